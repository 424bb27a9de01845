r"""One chunk of a batch, from reading to the record that it is finished: what every engine runs.

Every call of the solver holds the same number of images. Products over a batch are cut into blocks that depend on its
size, and with them the last bits; at one size, no difference was ever measured by an image's place in the batch or by
what stands beside it. Where an item is missing another stands in for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from emprior._threads import threads
from emprior.batch.items import Item
from emprior.batch.job import Job
from emprior.batch.ledger import FAILED, Ledger
from emprior.batch.manifest import Manifest
from emprior.batch.sinks import Arrays
from emprior.batch.traces import thinned
from emprior.metrics import psnr
from emprior.result import VECTORS, Result
from emprior.status import Status

logger = logging.getLogger("emprior")

Row = TypeVar("Row")

BROKEN = (Status.DIVERGED, Status.NON_FINITE)
"""How an image ends that has no reconstruction."""


@dataclass(frozen=True)
class Tally:
    r"""What a worker returns of a chunk: numbers alone, the pixels are on disk.

    Arguments:
        number: The chunk.
        items: Its items; 0 if it was not finished.
        failed: How many of them failed.
        reason: Why the chunk was not finished.
    """

    number: int
    items: int
    failed: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Solved:
    r"""One image of a result.

    Arguments:
        result: The result of the batch that it was in.
        row: Its place there.
        share: Its share of the time, in seconds.
    """

    result: Result
    row: int
    share: float

    def arrays(self, save: Iterable[str], quantiles: Sequence[float]) -> Arrays:
        r"""Returns what is to be kept of the image."""
        kept: dict[str, Callable[[], Tensor | None]] = {
            "estimate": lambda: self.result.estimate[self.row],
            "std": lambda: None if self.result.std is None else self.result.std[self.row],
            "quantiles": lambda: self.result.sketches[self.row].quantile(quantiles)[:, 0],
            "samples": lambda: self.result.samples[:, self.row],
            "traces": lambda: thinned(self.result.diagnostics.history(self.row), len(self.result.samples)),
        }
        tensors = {name: kept[name]() for name in save}
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items() if tensor is not None}

    @property
    def estimate(self) -> Tensor:
        r"""The estimate as a batch of one image, on the CPU."""
        return self.result.estimate[self.row : self.row + 1].cpu()

    def record(self) -> dict[str, Any]:
        r"""Returns the figures of the image."""
        run = self.result.diagnostics
        vectors = {name: getattr(run, name) for name in VECTORS}
        out: dict[str, Any] = {"status": run.status[self.row].name.lower()}
        out |= {name: float(vector[self.row]) for name, vector in vectors.items() if vector is not None}
        if run.verdict:
            out["verdict"] = run.verdict[self.row]
        return out | {"seconds": self.share}


Outcome = Solved | Exception
"""What became of an image."""

Kept = tuple[Arrays | None, dict[str, Any]]
"""The arrays of an item, `None` if it failed, and its record."""


def solve_chunk(job: Job, manifest: Manifest, number: int) -> Tally:
    r"""Does one chunk, unless it is finished: reads, solves and writes its items, and records what became of each.

    An item that cannot be read or solved is tried again alone, then recorded with its reason, and stops no other.

    Arguments:
        job: What to do.
        manifest: The items.
        number: The chunk.

    Raises:
        OSError: The output cannot be written, or the disk is full: the chunk is not finished, nothing finished is lost.
        KeyboardInterrupt: The solver was interrupted: the chunk is dropped.
    """
    ledger = Ledger(job.out)
    known = ledger.tally(number)
    if known is not None:
        return Tally(number, *known)
    items = manifest.read(number)
    with threads(job.threads):
        kept = solve_items(job, items, number * manifest.chunk)
    rows = [row for row, _ in kept]
    job.sink.write(ledger, manifest, number, items, rows)
    ledger.commit(number, [record for _, record in kept])
    return Tally(number, len(items), sum(row is None for row in rows))


def solve_items(job: Job, items: Sequence[Item], first: int = 0) -> list[Kept]:
    r"""Returns what is kept of each of some items and its record, solving batch by batch of one problem.

    Arguments:
        job: What to do.
        items: The items.
        first: The place of the first of them among all.
    """
    out: dict[int, Kept] = {}
    numbered = dict(enumerate(items, first))
    order = sorted(numbered, key=lambda index: numbered[index].problem)
    for problem, indices in groupby(order, key=lambda index: numbered[index].problem):
        group = list(indices)
        for start in range(0, len(group), job.batch):
            out |= _batch(job, problem, {index: numbered[index] for index in group[start : start + job.batch]})
    return [out[index] for index in numbered]


def attempt(call: Callable[[list[Row]], Result], rows: Mapping[int, Row], size: int) -> dict[int, Outcome]:
    r"""Solves a batch of `size` images of which some places are taken, and finds those that make it fail.

    The first image stands in at every other place. A batch that fails is halved, each half in a batch of the full size,
    until the one to blame is left; that one is tried in a batch of its own size, 1, before it is given up.

    Arguments:
        call: Solves for `size` rows, measurements of one shape with whatever belongs to them.
        rows: The rows by their places, each below `size`.
        size: The number of images in the batch.

    Raises:
        KeyboardInterrupt: The solver was interrupted.
    """
    places, first = list(rows), next(iter(rows.values()))
    try:
        result = call([rows.get(place, first) for place in range(size)])
    except Exception as error:
        if len(places) > 1:
            halves = places[: len(places) // 2], places[len(places) // 2 :]
            return {k: v for half in halves for k, v in attempt(call, {p: rows[p] for p in half}, size).items()}
        return {places[0]: error if size == 1 else _alone(call, first)}
    statuses = result.diagnostics.status
    if Status.INTERRUPTED in statuses:
        raise KeyboardInterrupt
    share = result.diagnostics.seconds / len(places)
    out: dict[int, Outcome] = {place: Solved(result, place, share) for place in places}
    for place in places:
        if statuses[place] in BROKEN:
            broken = FloatingPointError(statuses[place].value)
            out[place] = broken if size == 1 else _alone(call, rows[place])
    return out


def _alone(call: Callable[[list[Row]], Result], row: Row) -> Outcome:
    return attempt(call, {0: row}, 1)[0]


def _batch(job: Job, problem: str, items: Mapping[int, Item]) -> dict[int, Kept]:
    r"""Solves for items of one problem: a full batch, or, where items name theirs, a power of two of images."""
    outcomes: dict[int, Outcome] = {}
    alike: dict[tuple[Any, ...], dict[int, tuple[Tensor, str]]] = {}
    indices = list(items)
    for place, index in enumerate(indices):
        y = _read(job, items[index])
        if isinstance(y, Exception):
            outcomes[index] = y
        else:
            alike.setdefault((y.shape, y.dtype), {})[place] = y, items[index].id
    size = min(job.batch, 1 << (len(items) - 1).bit_length()) if problem else job.batch

    def call(rows: list[tuple[Tensor, str]]) -> Result:
        ys, names = zip(*rows, strict=True)
        return job.solve(problem, torch.stack(ys), names)

    for rows in alike.values():
        solved = attempt(call, rows, size)
        outcomes |= {indices[place]: outcome for place, outcome in solved.items()}
    return {index: _kept(job, items[index], index, outcome) for index, outcome in outcomes.items()}


def _read(job: Job, item: Item) -> Tensor | Exception:
    r"""Reads measurements, a second time if the first fails, or returns why it cannot."""
    try:
        return job.source.read(item.where)
    except Exception:
        try:
            return job.source.read(item.where)
        except Exception as error:
            return error


def _kept(job: Job, item: Item, place: int, outcome: Outcome) -> Kept:
    r"""Returns what is kept of an item, the `place`-th of all: its arrays and figures, or the reason why it failed."""
    if isinstance(outcome, Exception):
        return _failed(item, outcome)
    try:
        arrays = outcome.arrays(job.save, job.quantiles)
    except Exception as error:
        return _failed(item, error)
    return arrays, {"id": item.id, **outcome.record(), **_score(job, item, place, outcome)}


def _failed(item: Item, error: Exception) -> Kept:
    reason = str(error) or type(error).__name__
    logger.info("%s failed: %s", item.id, reason)
    return None, {"id": item.id, "status": FAILED, "reason": reason, "where": item.where}


def _score(job: Job, item: Item, place: int, solved: Solved) -> dict[str, float]:
    r"""Returns the figures of an image beside its truth, none if no truth can be used."""
    try:
        truth = job.truth(item, place)
        return {} if truth is None else {"psnr": float(psnr(solved.estimate, truth[None]))}
    except (OSError, ValueError, IndexError) as error:
        logger.warning("%s has no usable truth: %s", item.id, error)
        return {}
