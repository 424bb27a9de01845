r"""What a batch keeps, read again: its records in order, and all that is known of one of its items."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emprior._check import needed
from emprior.batch.items import Item, Source
from emprior.batch.ledger import FAILED, PLAN, RECORDS, Ledger
from emprior.batch.manifest import BLOCK, Manifest
from emprior.batch.reconstruct import open_source
from emprior.batch.sinks import Files
from emprior.batch.traces import history
from emprior.report.residual import residuals
from emprior.report.view import View, views
from emprior.result import VECTORS, Diagnostics, Result
from emprior.status import Status

KEPT = ("estimate", "std", "samples", "traces")
"""What a batch may keep of an item that can be shown."""


@dataclass(frozen=True, eq=False)
class Stored:
    r"""A batch on disk.

    Arguments:
        out: Its folder.
        header: Its plan: the number of items, the configuration and the versions that made it.
    """

    out: Path
    header: dict[str, Any]

    @staticmethod
    def open(out: Path) -> Stored:
        r"""Opens the folder that a batch has written.

        Raises:
            FileNotFoundError: There is no batch, or no item of it is finished.
            ValueError: The plan is damaged.
        """
        plan = Ledger(out).folder / PLAN
        if not plan.is_file():
            raise FileNotFoundError(f"no batch in {out}: it lacks .batch/{PLAN}. Give a folder of emprior batch.")
        if not (out / RECORDS).is_file():
            raise FileNotFoundError(f"no item in {out} is finished, it lacks {RECORDS}. Let emprior batch end first.")
        try:
            header = json.loads(plan.read_text(encoding="utf-8"))
            return Stored(out, {name: header[name] for name in ("items", "config", "versions")})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{plan} cannot be read: {error}. Run the command of emprior batch again.") from error

    @property
    def config(self) -> dict[str, Any]:
        r"""All that the results depend on."""
        return self.header["config"]

    @cached_property
    def manifest(self) -> Manifest:
        r"""The items."""
        return Manifest.open(Ledger(self.out).folder, self.header["items"], self.config["chunk"])

    def records(self) -> Iterator[dict[str, Any]]:
        r"""Yields the records of all items that are finished, in order, holding a thousand of them at most."""
        with (self.out / RECORDS).open(encoding="utf-8") as lines:
            while block := list(islice(lines, BLOCK)):
                yield from json.loads(f"[{','.join(block)}]")

    def items(self) -> Iterator[tuple[int, Item, dict[str, Any]]]:
        r"""Yields place, item and record of all that are finished, in order.

        Raises:
            ValueError: The records are not those of the items.
        """
        items = enumerate(item for number in range(len(self.manifest)) for item in self.manifest.read(number))
        for record in self.records():
            for place, item in items:
                if item.id == record["id"]:
                    yield place, item, record
                    break
            else:
                raise ValueError(
                    f"{self.out / RECORDS} names {record['id']!r}, which is none of the items or out of their "
                    "order. Run the command of emprior batch again: it makes the lists anew."
                )

    def view(self, place: int, item: Item, record: dict[str, Any]) -> View:
        r"""Returns what there is to show of an item."""
        if record["status"] == FAILED:
            return View(item.id, measurement=self._measured(item), status=f"failed: {record['reason']}", good=False)
        arrays = {name: self._array(name, place, item) for name in KEPT}
        if arrays["estimate"] is None:
            return replace(_bare(item, record), missing=("The batch kept no estimate, or it is no longer there.",))
        result = self._result(item, record, arrays)
        truth = self._truth(item, place)
        fits = truth is not None and truth.shape == result.estimate.shape[1:]
        return replace(views(result, truth if fits else None, residuals(result))[0], name=item.id)

    def _result(self, item: Item, record: dict[str, Any], arrays: Mapping[str, Tensor | None]) -> Result:
        r"""Returns the result of an item as far as it was kept."""
        estimate, std, samples, traces = (arrays[name] for name in KEPT)
        assert estimate is not None
        course = {} if traces is None else history(traces)
        drawn = bool(course) and "rhat" in record
        status = Status[record["status"].upper()]
        known = {name: torch.tensor([record[name]]) for name in VECTORS if record.get(name) is not None}
        vectors: dict[str, Any] = {"residual": torch.tensor([math.nan])} | known
        verdict = (record["verdict"],) if "verdict" in record else ()
        run = Diagnostics(
            status=(status,),
            trace={}
            if drawn
            else {name: entry[..., None] if entry.ndim > 1 else entry for name, entry in course.items()},
            **vectors,
            verdict=verdict,
            chains=({"draw" if name == "step" else name: entry for name, entry in course.items()},) if drawn else (),
            seconds=record.get("seconds", 0.0),
        )
        problem = item.problem or (self.config["operator"] or "").rpartition(" ")[0]
        config = {"problem": problem, "sigma": self.config["sigma"]}
        x = estimate[None]
        draws = x[None] if samples is None else samples[:, None]
        return Result(x, draws, x, None if std is None else std[None], run, status, config, self._batched(item))

    def _array(self, name: str, place: int, item: Item) -> Tensor | None:
        r"""Returns what was kept of an item under a name, `None` if nothing that can be read was."""
        if name not in self.config["save"]:
            return None
        try:
            return torch.from_numpy(np.asarray(_READERS[self.config["format"]](self.out, name, place, item)))
        except (OSError, ValueError, KeyError, IndexError):
            return None

    def _batched(self, item: Item) -> Tensor | None:
        y = self._measured(item)
        return None if y is None else y[None]

    def _measured(self, item: Item) -> Tensor | None:
        try:
            return None if self._source is None else self._source.read(item.where)
        except (OSError, ValueError, IndexError):
            return None

    def _truth(self, item: Item, place: int) -> Tensor | None:
        try:
            own = None if self._source is None else self._source.truth(item)
            return own if own is not None or self._truths is None else self._truths.beside(item, place)
        except (OSError, ValueError, IndexError):
            return None

    @cached_property
    def _source(self) -> Source | None:
        return _opened(self.config["input"])

    @cached_property
    def _truths(self) -> Source | None:
        return _opened(self.config["truth"]) if self.config["truth"] else None


def _opened(path: str) -> Source | None:
    r"""Returns the source at a path, `None` if it is no longer there."""
    try:
        return open_source(path)
    except (OSError, ValueError, ModuleNotFoundError):
        return None


def _bare(item: Item, record: dict[str, Any]) -> View:
    status, verdict = Status[record["status"].upper()], record.get("verdict", "")
    return View(item.id, status=status.value, good=status.ok and not verdict.startswith("not "), verdict=verdict)


def _file(out: Path, name: str, place: int, item: Item) -> np.ndarray:
    return np.load(Files.path(out, item.id, name), allow_pickle=False)


def _zarr(out: Path, name: str, place: int, item: Item) -> np.ndarray:
    return needed("zarr").open_array(out / "result.zarr" / name, mode="r")[place]


def _hdf5(out: Path, name: str, place: int, item: Item) -> np.ndarray:
    with needed("h5py").File(out / "result.h5", "r") as file:
        return file[name][place]


_READERS = {"Files": _file, "Zarr": _zarr, "HDF5": _hdf5}
