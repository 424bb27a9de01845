r"""The benchmark: methods on the same measurements, side by side with what they cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from emprior._files import atomic
from emprior.bench.block import block, put
from emprior.bench.engines import Dask, Engine, Local
from emprior.bench.figures import FIGURES
from emprior.bench.job import Bench, Job
from emprior.bench.methods import KINDS, METHODS, chosen
from emprior.bench.page import command, page
from emprior.bench.plan import Plan
from emprior.bench.records import Record, Shelf
from emprior.bench.runner import run
from emprior.bench.suites import SUITES, Sources, Suite, load_suite
from emprior.bench.table import tables
from emprior.bench.text import csv_of, heading, markdown
from emprior.bench.tune import tuned

__all__ = [
    "FIGURES",
    "KINDS",
    "METHODS",
    "SUITES",
    "Bench",
    "Dask",
    "Engine",
    "Job",
    "Local",
    "Plan",
    "Record",
    "Shelf",
    "Sources",
    "Suite",
    "chosen",
    "load_suite",
    "report",
    "run",
    "tables",
    "tuned",
]


def report(folder: str | os.PathLike[str], into: str | os.PathLike[str] | None = None) -> Sequence[Path]:
    r"""Writes `table.md`, `figures.csv` and `index.html` into a folder of records, and returns their paths.

    Arguments:
        folder: The folder of the report.
        into: A Markdown file whose block of the suite is to hold the results; see :mod:`emprior.bench.block`.

    Raises:
        ValueError: There are no records, or one is damaged; or the file has no place for the results.
        OSError: A file cannot be written.
    """
    shelf = Shelf(Path(folder))
    records = list(shelf.all())
    if not records:
        raise ValueError(f"there are no records in {folder}. Run: emprior bench --out {folder}")
    found = tables(records)
    out = {
        "table.md": heading(records, command(records)) + markdown(found),
        "figures.csv": csv_of(found),
        "index.html": page(shelf, records),
    }
    for name, text in out.items():
        with atomic(shelf.folder / name) as path:
            path.write_text(text, encoding="utf-8")
    written = [shelf.folder / name for name in out]
    if into is None:
        return written
    put(into, block(records, command(records)), records[0].suite)
    return [*written, Path(into)]
