r"""What has been done: one file of records for each finished chunk, and the lists made from them."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emprior._files import atomic

RECORDS, ERRORS, PLAN = "records.jsonl", "errors.jsonl", "plan.json"
FAILED = "failed"
MARK = json.dumps({"status": FAILED})[1:-1].encode()
"""What the line of a failed item holds and no other line can: JSON escapes quotes inside strings."""


@dataclass(frozen=True)
class Ledger:
    r"""The records of a batch, in the folder `.batch` of its output.

    `chunks/000017.jsonl` holds one line for each item of chunk 17, in order. It appears by a rename once all that the
    chunk writes is in place, so that its existence says that the chunk is finished. What a chunk that was cut short
    leaves lies in `scratch/` and means nothing.

    Arguments:
        out: The folder of the output.
    """

    out: Path

    @property
    def folder(self) -> Path:
        r"""The folder of all that the batch keeps for itself."""
        return self.out / ".batch"

    def commit(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        r"""Declares a chunk finished.

        Raises:
            OSError: The records cannot be written; the chunk is then not finished.
        """
        lines = [json.dumps(_plain(record), allow_nan=False, ensure_ascii=True) + "\n" for record in records]
        with atomic(self._file(number)) as path:
            path.write_text("".join(lines), encoding="utf-8")

    def tally(self, number: int) -> tuple[int, int] | None:
        r"""Returns how many items of a chunk there are and how many failed; `None` if it is not finished."""
        try:
            content = self._file(number).read_bytes()
        except FileNotFoundError:
            return None
        return content.count(b"\n"), content.count(MARK)

    def finished(self) -> list[int]:
        r"""Returns the finished chunks, in order."""
        try:
            names = os.listdir(self.folder / "chunks")
        except FileNotFoundError:
            return []
        return sorted(int(name[:-6]) for name in names if name.endswith(".jsonl") and name[:-6].isdecimal())

    def reopen(self, number: int) -> None:
        r"""Declares a chunk unfinished again."""
        self._file(number).unlink(missing_ok=True)

    def compile(self, numbers: Sequence[int]) -> None:
        r"""Writes `records.jsonl`, a line for each item of some chunks, and `errors.jsonl`, those of failed items."""
        with (
            atomic(self.out / RECORDS) as records,
            atomic(self.out / ERRORS) as errors,
            records.open("wb") as every,
            errors.open("wb") as failed,
        ):
            for number in numbers:
                content = self._file(number).read_bytes()
                every.write(content)
                if MARK in content:
                    failed.writelines(line for line in content.splitlines(True) if MARK in line)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        r"""Gives a folder for what is not finished, and removes it."""
        (self.folder / "scratch").mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.folder / "scratch"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        r"""Removes what processes that were killed have left a day ago or earlier."""
        for folder in (self.folder / "scratch").glob("*"):
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > 86400:
                    shutil.rmtree(folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / "chunks" / f"{number:06d}.jsonl"


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
