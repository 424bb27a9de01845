r"""Tables made of records alone: means with intervals, and what is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from emprior._noise import generator
from emprior.bench.figures import FIGURES, Figure, parts, summary
from emprior.bench.methods.base import KINDS
from emprior.bench.records import DONE, Record

RESAMPLES = 2000
"""The resamplings of images behind an interval."""

LEVEL = 0.95
"""The level of intervals, and of the test by which a method is as good as the best."""

LEAST = 6
"""The fewest images that can tell better from lucky: the chance that one of two equals wins on all is then 1 / 32."""

EVERY = "all problems"
"""What the table of means over problems is called."""


@dataclass(frozen=True)
class Entry:
    r"""A figure of a method.

    Arguments:
        value: The mean over images.
        low: The lower end of its bootstrap interval; not a number for one image.
        high: The upper end.
        best: Whether it is the best of its kind, or no worse than that beyond chance.
    """

    value: float
    low: float
    high: float
    best: bool = False

    def text(self, figure: Figure) -> str:
        r"""Returns the value with half of the width of its interval, if there is one."""
        value, half = f"{self.value:.{figure.digits}f}", (self.high - self.low) / 2
        return value if math.isnan(half) else f"{value} ± {half:.{figure.digits}f}"


@dataclass(frozen=True)
class Line:
    r"""What a table says of a method.

    Arguments:
        method: Its name.
        kind: Its kind.
        entries: Its figures; none if it failed.
        reason: Why it failed.
        failures: The images without a finite answer.
        evaluations: Network evaluations an image.
        derivatives: Network derivatives an image.
        seconds: Seconds an image.
        memory: Peak memory, in bytes.
        note: What the method says of its own run on its worst image.
    """

    method: str
    kind: str
    entries: dict[str, Entry] = field(default_factory=dict)
    reason: str = ""
    failures: int = 0
    evaluations: float = 0.0
    derivatives: float = 0.0
    seconds: float = 0.0
    memory: int | None = None
    note: str = ""

    @property
    def passes(self) -> float:
        r"""Evaluations and derivatives together: what the networks do for an image."""
        return self.evaluations + self.derivatives


@dataclass(frozen=True)
class Table:
    r"""The methods on a problem, or on all.

    Arguments:
        title: The problem.
        lines: A line for each method, kind by kind.
        images: The number of images.
    """

    title: str
    lines: tuple[Line, ...]
    images: int

    def shown(self) -> list[str]:
        r"""Returns the names of the figures that some method has, in order."""
        return [name for name in FIGURES if any(name in line.entries for line in self.lines)]


def tables(records: Iterable[Record]) -> list[Table]:
    r"""Returns a table of means over problems, if there are several, and one for each problem."""
    cells: dict[str, list[Record]] = {}
    for record in records:
        cells.setdefault(record.problem, []).append(record)
    every = [table_of(EVERY, _across(cells))] if len(cells) > 1 else []
    return every + [table_of(problem, group) for problem, group in cells.items()]


def table_of(title: str, records: Sequence[Record]) -> Table:
    r"""Returns the table of records of one problem.

    Intervals are of the bootstrap over images, the same resamplings for all methods. The best of its kind is marked,
    and so is each method whose paired difference from it is not beyond chance at the level 0.95; of fewer than six
    images none is. A method with images that failed is compared on none, for leaving them out would flatter it.

    References:
        | Bootstrap Methods: Another Look at the Jackknife (Efron, 1979)
        | https://doi.org/10.1214/aos/1176344552
    """
    entries: dict[str, dict[str, Entry]] = {record.method: {} for record in records}
    for kind in KINDS:
        group = {record.method: _tensors(record) for record in records if record.kind == kind and _whole(record)}
        for name, figure in FIGURES.items():
            having = {method: rows for method, rows in group.items() if all(part in rows for part in parts(name))}
            for method, entry in _compared(name, figure, having).items():
                entries[method][name] = entry
    lines = sorted((_line(record, entries[record.method]) for record in records), key=_rank)
    return Table(title, tuple(lines), max((int(record.plan["images"]) for record in records), default=0))


def _compared(name: str, figure: Figure, group: dict[str, dict[str, Tensor]]) -> dict[str, Entry]:
    r"""Returns a figure of each method of a kind."""
    if not group:
        return {}
    count = len(next(iter(group.values()))[parts(name)[0]])
    chosen = torch.randint(count, (RESAMPLES, count), generator=generator("bootstrap", count))
    drawn = {
        method: summary(name, {part: rows[part][chosen] for part in parts(name)}) for method, rows in group.items()
    }
    values = {method: float(summary(name, rows)) for method, rows in group.items()}
    tail = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    best = set() if figure.best is None or count < LEAST else _best(figure.best, values, drawn, tail)
    low, high = ({method: float(rows.quantile(q)) for method, rows in drawn.items()} for q in tail)
    if count < 2:
        low = high = dict.fromkeys(group, math.nan)
    return {method: Entry(values[method], low[method], high[method], method in best) for method in group}


def _best(goal: str | float, values: dict[str, float], drawn: dict[str, Tensor], tail: Tensor) -> set[str]:
    first = max(values, key=lambda method: float(_merit(torch.tensor(values[method]), goal)))
    merits = {method: _merit(rows, goal) for method, rows in drawn.items()}
    return {method for method in values if method == first or (merits[first] - merits[method]).quantile(tail[0]) <= 0}


def _merit(value: Tensor, goal: str | float) -> Tensor:
    if isinstance(goal, float):
        return -(value - goal).abs()
    return value if goal == "high" else -value


def _across(cells: dict[str, list[Record]]) -> list[Record]:
    r"""Returns one record for each method, with the figures of each image averaged over the problems.

    A method that did not finish a problem has none.
    """
    by_method: dict[str, list[Record]] = {}
    for group in cells.values():
        for record in group:
            by_method.setdefault(record.method, []).append(record)
    out = []
    for group in by_method.values():
        done = [record for record in group if _whole(record)]
        if len(done) < len(cells):
            reason = f"finished {len(done)} of {len(cells)} problems"
            out.append(replace(group[0], status="failed", reason=reason, figures={}, failures=0))
            continue
        out.append(_mean_of(done))
    return out


def _mean_of(done: list[Record]) -> Record:
    rows, count = [_tensors(record) for record in done], len(done)
    common = [name for name in rows[0] if all(name in row for row in rows)]
    memory = [record.run["memory"] for record in done if record.run.get("memory") is not None]
    seconds = sum(float(record.run.get("seconds", 0)) for record in done) / count
    return replace(
        done[0],
        figures={name: torch.stack([row[name] for row in rows]).mean(0).tolist() for name in common},
        evaluations=sum(record.evaluations for record in done) / count,
        derivatives=sum(record.derivatives for record in done) / count,
        run={"seconds": seconds, "memory": max(memory, default=None)},
        reason="",
    )


def _line(record: Record, entries: dict[str, Entry]) -> Line:
    if record.status != DONE:
        return Line(record.method, record.kind, reason=record.reason)
    return Line(
        record.method, record.kind, entries, "", record.failures, record.evaluations, record.derivatives,
        float(record.run.get("seconds", 0)), record.run.get("memory"), record.reason,
    )  # fmt: skip


def _rank(line: Line) -> tuple[int, float, str]:
    r"""Returns what lines are sorted by: their kind, and then their PSNR, from the best."""
    quality = line.entries["psnr"].value if "psnr" in line.entries else -math.inf
    return list(KINDS).index(line.kind), -quality, line.method


def _whole(record: Record) -> bool:
    return record.status == DONE and not record.failures


def _tensors(record: Record) -> dict[str, Tensor]:
    kept = {name: values for name, values in record.figures.items() if None not in values}
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in kept.items()}
