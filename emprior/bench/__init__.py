r"""The benchmark: methods on the same measurements, side by side with what they cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from emprior._files import atomic
from emprior.bench.figures import FIGURES
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


def report(folder: str | os.PathLike[str]) -> Sequence[Path]:
    r"""Writes `table.md`, `figures.csv` and `index.html` into a folder of records, and returns their paths.

    Raises:
        ValueError: There are no records, or one is damaged.
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
    return [shelf.folder / name for name in out]
