r"""One file for each cell, from which all tables and pages are made."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from emprior._files import atomic
from emprior.bench.lpips import LPIPS, lpips_of

FORMAT = "emprior bench 1"
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Record:
    r"""What became of a method on a problem. All but `run` is the same each time.

    Arguments:
        key: The digest of all that the figures depend on.
        suite: The suite.
        problem: The problem.
        method: The method.
        kind: Its kind.
        source: The package that it comes from, with its version.
        reference: What it is from.
        settings: Its settings.
        plan: Images, samples, seed, budget and trials.
        models: What is known of the networks.
        status: `"done"` or `"failed"`.
        reason: Why it failed, or what the method says of its worst image.
        digest: The SHA-256 of the measurements that it was given.
        figures: The figures of each image; `None` where one is not finite.
        failures: The images whose answer was not finite.
        evaluations: The rows that a network was evaluated for, an image.
        derivatives: The rows that its derivative was taken for, an image.
        samples: The draws that the figures are of.
        run: Seconds an image, peak memory, date, hardware, versions and revision.
    """

    key: str
    suite: str
    problem: str
    method: str
    kind: str
    source: str
    reference: str
    settings: Mapping[str, float]
    plan: Mapping[str, Any]
    models: list[dict[str, Any]]
    status: str
    reason: str = ""
    digest: str = ""
    figures: Mapping[str, list[float | None]] = field(default_factory=dict)
    failures: int = 0
    evaluations: float = 0.0
    derivatives: float = 0.0
    samples: int = 0
    run: Mapping[str, Any] = field(default_factory=dict)

    def repeatable(self) -> Record:
        r"""Returns the record without what differs from run to run."""
        return replace(self, run={})


@dataclass(frozen=True)
class Shelf:
    r"""The folder of records: `records/<problem>/<method>.json`, with arrays to draw beside it in `.npz`.

    A record appears by a rename once its arrays are in place, so that its existence says that the cell is finished.

    Arguments:
        folder: The folder of the report.
    """

    folder: Path

    def check(self, suite: str, plan: Mapping[str, Any], models: Sequence[Mapping[str, Any]] = ()) -> None:
        r"""Raises unless what is here can stand in one table with records of a suite, a plan and networks.

        LPIPS is of records with its network alone: answers are not kept, so that it cannot be added to those without.

        Raises:
            FileExistsError: There are records of another suite or plan, or of other networks for LPIPS.
        """
        given = {"suite": suite, **plan, LPIPS: lpips_of(models)}
        for record in self.all():
            here = {"suite": record.suite, **record.plan, LPIPS: lpips_of(record.models)}
            apart = ", ".join(f"{name} {here.get(name)}" for name in given if given[name] != here.get(name))
            if apart:
                raise FileExistsError(
                    f"{self.folder} holds records with {apart}, which cannot stand in one table with what is asked "
                    "for. Give another folder, or ask for the same again."
                )

    def find(self, problem: str, method: str, key: str) -> Record | None:
        r"""Returns the record of a cell, if there is one of that key."""
        record = self._read(self._file(problem, method))
        return record if record is not None and record.key == key else None

    def keep(self, record: Record, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        r"""Writes a record, and what is to be drawn of it.

        Raises:
            OSError: It cannot be written; nothing is left.
        """
        file = self._file(record.problem, record.method)
        if arrays:
            with atomic(file.with_suffix(".npz")) as path:
                np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        text = json.dumps({"format": FORMAT, **plain(asdict(record))}, indent=1, allow_nan=False)
        with atomic(file) as path:
            path.write_text(text + "\n", encoding="utf-8")

    def all(self) -> Iterator[Record]:
        r"""Yields the records, problem by problem."""
        for file in sorted((self.folder / "records").rglob("*.json")):
            if (record := self._read(file)) is not None:
                yield record

    def arrays(self, record: Record) -> dict[str, np.ndarray]:
        r"""Returns what is to be drawn of a record; nothing for one that failed."""
        file = self._file(record.problem, record.method).with_suffix(".npz")
        if record.status == FAILED or not file.is_file():
            return {}
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def _file(self, problem: str, method: str) -> Path:
        return self.folder / "records" / problem.replace(" ", "_") / f"{method}.json"

    def _read(self, file: Path) -> Record | None:
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
            return Record(**tree) if tree.pop("format") == FORMAT else None
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is no record: {error}. Remove it, and the cell is run again.") from error


def digest_of(*parts: Any) -> str:
    r"""Returns a digest of what JSON can hold, and of bytes."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(plain(part), sort_keys=True).encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def plain(value: Any) -> Any:
    r"""Returns a tree with `None` in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
