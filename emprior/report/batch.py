r"""The index of a batch: what became of its items, the worst of them, and tables of all, a thousand a page.

The records are read twice, once for their statistics and once for the tables; no more than a page of them is held.
"""

from __future__ import annotations

import math
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from emprior._check import check_positive
from emprior._files import atomic
from emprior._html import environment
from emprior._saved import own_version
from emprior.batch.ledger import FAILED
from emprior.report import reproduce
from emprior.report.figures import FIGURES, known
from emprior.report.page import page
from emprior.report.pictures import thumbnail
from emprior.report.stored import Stored
from emprior.status import Status

ROWS = 1000
"""The items on a page of the table."""

WORST = 8
"""The worst items by each figure that are shown, and that have pages of their own."""

CLIP = 120
"""The most characters of a reason in a table."""

SOUND = {status.name.lower() for status in Status if status.ok}


@dataclass
class Survey:
    r"""The statistics of the records of a batch.

    Arguments:
        statuses: How many items ended how.
        count: How many items have a record; they are numbered in their order.
        usable: How many can be used as they are.
        values: Each figure of these items, NaN where one lacks it.
        failed: The numbers of the first failures.
        seen: What the records hold.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    count: int = 0
    usable: int = 0
    values: dict[str, array[float]] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def add(self, record: Mapping[str, Any]) -> None:
        r"""Takes in the record of the next item."""
        if record["status"] == FAILED and len(self.failed) < WORST:
            self.failed.append(self.count)
        if not record.keys() <= self.seen:
            self._meet(record)
        for name, values in self.values.items():
            value = record.get(name)
            values.append(math.nan if value is None else value)
        self.statuses[record["status"]] += 1
        self.usable += usable(record)
        self.count += 1

    def _meet(self, record: Mapping[str, Any]) -> None:
        r"""Makes room for the figures that no record before this one had."""
        self.seen |= {name for name, value in record.items() if value is not None or name not in FIGURES}
        for name in self.seen & FIGURES.keys() - self.values.keys():
            self.values[name] = array("d", [math.nan]) * self.count

    @property
    def columns(self) -> list[str]:
        r"""The figures that any item has."""
        return known([self.values])

    def quantiles(self) -> list[tuple[str, list[float]]]:
        r"""Returns the 5 %, 50 % and 95 % quantiles of each figure, and its mean."""
        out = []
        for name in self.columns:
            values = np.frombuffer(self.values[name])
            values = values[~np.isnan(values)]
            out.append((name, [*np.quantile(values, (0.05, 0.5, 0.95)).tolist(), float(values.mean())]))
        return out

    def worst(self) -> dict[str, list[int]]:
        r"""Returns the numbers of the worst items by each figure that can be bad, the very worst first."""
        out = {FAILED: self.failed} if self.failed else {}
        for name in self.columns:
            if FIGURES[name].worst:
                badness = FIGURES[name].worst * np.frombuffer(self.values[name])
                order = np.argsort(np.where(np.isnan(badness), -np.inf, badness), kind="stable")[::-1]
                out[name] = [int(row) for row in order[:WORST] if not math.isnan(badness[row])]
        return out


class Row(NamedTuple):
    r"""A line of a table; the link and the thumbnail are empty for an item without a page of its own."""

    number: int
    name: str
    status: str
    good: bool
    cells: list[str]
    link: str = ""
    thumbnail: str = ""

    @property
    def line(self) -> str:
        r"""The row as HTML; numbers need no escaping."""
        name, status = escape(self.name), _escaped(self.status)
        if self.link:
            picture = f'<img class="thumb" src="{self.thumbnail}" alt="">' if self.thumbnail else ""
            name = f'<a href="{self.link}">{picture}{name}</a>'
        return "<td>".join(("<tr>", name, "yes" if self.good else "no", *self.cells, status))


def write_index(batch: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, items: int = 24) -> Path:
    r"""Writes the index of a batch, and pages of its first items and of the worst.

    Arguments:
        batch: The folder of the batch.
        out: The folder of the index, by default `report` in that of the batch.
        items: How many items, the first of the list, have pages of their own beside the worst.

    Returns:
        The index, `index.html`.

    Raises:
        FileNotFoundError: There is no batch, or no item of it is finished.
        ValueError: What the batch keeps is damaged.
        OSError: The index cannot be written.
    """
    check_positive("items", items, whole=True)
    stored = Stored.open(Path(batch))
    folder = Path(batch) / "report" if out is None else Path(out)
    (folder / "items").mkdir(parents=True, exist_ok=True)
    survey = Survey()
    for record in stored.records():
        survey.add(record)
    chosen = {number for numbers in survey.worst().values() for number in numbers}
    names = _names(survey.count)
    common = {"figures": FIGURES, "columns": survey.columns, "pages": names, "title": Path(batch).resolve().name}
    worst: dict[int, Row] = {}
    for number, part in enumerate(_parts(_rows(stored, survey, chosen, items, folder))):
        worst |= {row.number: row for row in part if row.number in chosen}
        lines = Markup("\n".join(row.line for row in part))
        if len(names) > 1:
            text = _render("items.html", common | {"lines": lines, "number": number})
            (folder / names[number][0]).write_text(text, encoding="utf-8")
    whole = lines if len(names) == 1 else ""
    shown = {"lines": whole, "worst": worst, "survey": survey, "ranked": survey.worst()}
    with atomic(folder / "index.html") as file:
        file.write_text(_render("index.html", common | shown | _facts(stored, Path(batch))), encoding="utf-8")
    return folder / "index.html"


def usable(record: Mapping[str, Any]) -> bool:
    r"""Returns whether what a record tells of can be used as it is."""
    return record["status"] in SOUND and not record.get("verdict", "").startswith("not ")


def _rows(stored: Stored, survey: Survey, chosen: set[int], items: int, folder: Path) -> Iterator[Row]:
    r"""Yields the line of each record, and writes the pages of the first items and of those that were chosen."""
    columns = [(name, FIGURES[name].text) for name in survey.columns]
    command = reproduce.batch_command(stored.config, str(stored.out))
    for number, (place, item, record) in enumerate(stored.items()):
        cells = [text(record.get(name)) for name, text in columns]
        status = f"failed: {record['reason']}"[:CLIP] if record["status"] == FAILED else record["status"]
        row = Row(number, item.id, status, usable(record), cells)
        if place < items or number in chosen:
            view = stored.view(place, item, record)
            link = f"items/{place:07d}.html"
            facts = {"item": f"{place + 1:,} of {stored.header['items']:,}"}
            inner = page([view], item.id, facts, stored.config, command, back="../index.html")
            (folder / link).write_text(inner, encoding="utf-8")
            row = row._replace(link=link, thumbnail=thumbnail(view))
        yield row


@lru_cache(maxsize=64)
def _escaped(status: str) -> str:
    return escape(status)


def _parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while part := list(islice(rows, ROWS)):
        yield part


def _names(count: int) -> list[tuple[str, str]]:
    r"""Returns the file of each page of the table, and which of the records it holds."""
    starts = range(0, count, ROWS)
    return [
        (f"page-{number:04d}.html", f"{start + 1:,} to {min(start + ROWS, count):,}")
        for number, start in enumerate(starts, 1)
    ]


def _facts(stored: Stored, batch: Path) -> dict[str, Any]:
    return {
        "items": stored.header["items"],
        "settings": reproduce.settings(stored.config),
        "command": reproduce.batch_command(stored.config, str(batch)),
        "version": own_version(),
    }


def _render(template: str, values: Mapping[str, Any]) -> str:
    return environment("emprior.report").get_template(template).render(values)
