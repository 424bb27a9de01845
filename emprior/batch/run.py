r"""A plan from what is left of it to the summary."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from emprior._check import check_positive
from emprior._interrupt import Interrupt
from emprior.batch.chunk import Tally
from emprior.batch.engines import Engine
from emprior.batch.ledger import ERRORS
from emprior.batch.plan import Plan

logger = logging.getLogger("emprior")


@dataclass(frozen=True)
class Summary:
    r"""How a batch stands.

    Arguments:
        out: The folder of the output.
        items: The items of the batch, or of the shard that was asked for.
        done: Those that were reconstructed, in this run or before.
        failed: Those that failed, which `errors.jsonl` lists with their reasons.
        fresh: Those that were done or failed in this run.
        seconds: The wall time of this run.
        interrupted: Whether it was stopped before its end.
        reasons: Why chunks were left undone though nobody stopped the run.
    """

    out: Path
    items: int
    done: int
    failed: int
    fresh: int
    seconds: float
    interrupted: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        r"""Whether every item was reconstructed."""
        return self.done == self.items

    def __str__(self) -> str:
        undone = self.items - self.done - self.failed
        parts = [
            f"{self.done} of {self.items} items done",
            f"{self.failed} failed, see {self.out / ERRORS}" if self.failed else "",
            f"{undone} not done, run the same command again" if undone else "",
            f"{self.fresh} in this run, {self.fresh / max(self.seconds, 1e-9):.2f} items/s" if self.fresh else "",
            *self.reasons,
        ]
        return f"{self.out}: {'; '.join(part for part in parts if part)}"


def run(
    plan: Plan, engine: Engine, shard: tuple[int, int] = (0, 1), retry: bool = False, progress: bool = False
) -> Summary:
    r"""Does what is left of a plan, or of one shard of it; see `emprior.reconstruct_many`."""
    start, ledger, chunks = time.perf_counter(), plan.ledger, plan.chunks(shard)
    ledger.sweep()
    if retry:
        _reopen(plan, chunks)
    finished = set(ledger.finished())
    left = [number for number in chunks if number not in finished]
    tallies: list[Tally] = []
    failed = 0
    bar = _bar(plan, chunks, left, progress)
    with bar, Interrupt() as interrupt:
        try:
            for tally in engine.run(plan, _until(interrupt, left)) if left else ():
                tallies.append(tally)
                failed += tally.failed
                bar.set_postfix(failed=failed)
                bar.update(tally.items)
        except KeyboardInterrupt:
            logger.warning("interrupted: the chunks at work were dropped")
        finally:
            _close(plan)
    return _summary(plan, chunks, tallies, time.perf_counter() - start, len(tallies) < len(left))


def _close(plan: Plan) -> None:
    r"""Makes the lists of all finished chunks; of several processes that do so at once, the last leaves a full one."""
    known = None
    while known != (known := plan.ledger.finished()):
        plan.job.sink.close(plan.ledger, plan.manifest, known)
        plan.ledger.compile(known)


def check_shard(shard: tuple[int, int]) -> None:
    r"""Raises a ValueError unless `(i, n)` is one of `n` shards, counted from 0."""
    index, count = shard
    check_positive("the number of shards", count, whole=True)
    if not 0 <= index < count:
        raise ValueError(f"there is no shard {index}/{count}: shards count from 0 to {count - 1}.")


def _until(interrupt: Interrupt, chunks: Iterable[int]) -> Iterator[int]:
    for number in chunks:
        if interrupt.received:
            logger.warning("stopping once the chunks at work are finished; interrupt again to drop them")
            return
        yield number


def _reopen(plan: Plan, chunks: Iterable[int]) -> None:
    for number in chunks:
        tally = plan.ledger.tally(number)
        if tally is not None and tally[1]:
            plan.ledger.reopen(number)


def _bar(plan: Plan, chunks: Sequence[int], left: Sequence[int], shown: bool) -> tqdm:
    total, undone = (sum(map(plan.manifest.size, numbers)) for numbers in (chunks, left))
    return tqdm(total=total, initial=total - undone, disable=not shown, unit="item", leave=False)


def _summary(plan: Plan, chunks: Sequence[int], tallies: Sequence[Tally], seconds: float, cut: bool) -> Summary:
    known = [tally for tally in map(plan.ledger.tally, chunks) if tally is not None]
    ended, failed = sum(items for items, _ in known), sum(failed for _, failed in known)
    return Summary(
        out=plan.job.out,
        items=sum(map(plan.manifest.size, chunks)),
        done=ended - failed,
        failed=failed,
        fresh=sum(tally.items for tally in tallies),
        seconds=seconds,
        interrupted=cut,
        reasons=tuple(f"chunk {tally.number}: {tally.reason}" for tally in tallies if tally.reason),
    )
