r"""One file for people: tables, plots and images of all records, with nothing to load from elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emprior._html import environment, scale_tile, spread_tile, tile
from emprior.bench import charts
from emprior.bench.figures import FIGURES, MAIN
from emprior.bench.lpips import LPIPS
from emprior.bench.methods import KINDS, METHODS
from emprior.bench.records import Record, Shelf
from emprior.bench.suites import Sources, problems_of
from emprior.bench.table import LEAST, Line, Table, table_of, tables
from emprior.bench.text import STANDINGS, networks, standings

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Row:
    r"""What is shown of the answer of a method to one image; each is the address of a picture."""

    method: str
    estimate: str
    sample: str
    error: str
    std: str
    score: str


@dataclass(frozen=True)
class Strip:
    r"""What is shown of one image of a problem.

    Arguments:
        truth: The true image.
        seen: The data, brought back to an image.
        rows: A row for each method.
        peak: The error or deviation at which the colours end, half as much again as most methods have.
    """

    truth: str
    seen: str
    rows: tuple[Row, ...]
    peak: str


def page(shelf: Shelf, records: Sequence[Record]) -> str:
    r"""Returns the page of some records as HTML.

    Arguments:
        shelf: Where their arrays are.
        records: The records.
    """
    found = tables(records)
    by_problem = {table.title: [r for r in records if r.problem == table.title] for table in found}
    template = environment("emprior.bench").get_template(TEMPLATE)
    return template.render(
        first=records[0],
        head=found[0],
        problems=[(table, strips(shelf, by_problem[table.title])) for table in found if by_problem[table.title]],
        cost=charts.cost_chart(found[0]),
        cover=charts.coverage_chart(found[0]),
        samplers=any("coverage_90" in line.entries for line in found[0].lines),
        scale=scale_tile(),
        kinds=KINDS,
        figures=FIGURES,
        main=MAIN,
        least=LEAST,
        methods=_methods(records),
        failed=[record for record in records if record.status != "done" or record.failures],
        revisions=sorted({str(record.run.get("revision")) for record in records}),
        dates=sorted({str(record.run.get("date")) for record in records}),
        hardware=sorted({str(record.run.get("hardware")) for record in records}),
        command=command(records),
        cells=cells,
        grouped=grouped,
        networks=networks,
        standings=standings(found),
        counted=STANDINGS,
    )


def strips(shelf: Shelf, records: Sequence[Record]) -> list[Strip]:
    r"""Returns the images of a problem, errors and deviations of all methods on one colour scale."""
    order = [line.method for line in table_of("", records).lines]
    held = {record.method: shelf.arrays(record) for record in sorted(records, key=lambda r: order.index(r.method))}
    held = {method: arrays for method, arrays in held.items() if arrays}
    if not held:
        return []
    first = next(iter(held.values()))
    return [_strip(held, index) for index in range(len(first["truth"]))]


def cells(table: Table, line: Line) -> list[tuple[str, bool]]:
    r"""Returns the text of each shown figure of a line, and whether it is among the best."""
    names = [name for name in table.shown() if name in MAIN]
    entries = [(FIGURES[name], line.entries.get(name)) for name in names]
    return [("", False) if entry is None else (entry.text(figure), entry.best) for figure, entry in entries]


def grouped(table: Table) -> list[tuple[str, list[Line]]]:
    r"""Returns the lines of a table by the words for their kinds."""
    groups = [(words, [line for line in table.lines if line.kind == kind]) for kind, words in KINDS.items()]
    return [(words, lines) for words, lines in groups if lines]


def command(records: Sequence[Record]) -> str:
    r"""Returns the command that makes these records."""
    plan, suite = records[0].plan, records[0].suite
    methods = list(dict.fromkeys(record.method for record in records))
    methods = ["all"] if set(methods) == set(METHODS) else methods
    words = ["emprior", "bench", "--suite", suite, "--images", str(plan["images"]), "--samples", str(plan["samples"])]
    words += ["--batch", str(plan["batch"]), "--seed", str(plan["seed"])]
    for name in ("budget", "tune"):
        words += [f"--{name}", str(plan[name])] if plan[name] else []
    words += ["--validation", str(plan["validation"])] if plan["tune"] else []
    words += _sources(suite, records[0].models)
    problems = list(dict.fromkeys(record.problem for record in records))
    words += [] if set(problems) == set(problems_of(suite)) else ["--problems", *problems]
    return shlex.join([*words, "--methods", *methods, "--out", "report"])


def _sources(suite: str, models: Sequence[Mapping[str, Any]]) -> list[str]:
    r"""Returns the words for images and networks, as far as they are not those that are taken anyway."""
    usual, names = Sources(), {str(fact["role"]): fact["name"] for fact in models}
    words = ["--data", "TEST_IMAGES"] if suite == "cifar10" else []
    for role, name in (("prior", usual.prior), ("denoiser", usual.denoiser)):
        words += [f"--{role}", names[role]] if names.get(role, name) != name else []
    return words + (["--lpips", "LPIPS.pt"] if LPIPS in names else [])


def _strip(held: dict[str, dict[str, np.ndarray]], index: int) -> Strip:
    first = next(iter(held.values()))
    truth = first["truth"][index].astype(np.float32)
    maps = [np.abs(arrays["estimate"][index] - truth) for arrays in held.values()]
    maps += [arrays["std"][index] for arrays in held.values() if "std" in arrays]
    tops = [np.quantile(np.nan_to_num(part.astype(np.float32)).mean(0), 0.98) for part in maps]
    peak = max(1.5 * float(np.median(tops)), 1e-3)
    rows = tuple(_row(method, arrays, truth, index, peak) for method, arrays in held.items())
    return Strip(tile(truth), tile(first["seen"][index]), rows, f"{peak:.2g}")


def _row(method: str, arrays: dict[str, np.ndarray], truth: np.ndarray, index: int, peak: float) -> Row:
    estimate = arrays["estimate"][index].astype(np.float32)
    square = float(np.mean((estimate - truth) ** 2))
    return Row(
        method,
        tile(estimate),
        tile(arrays["sample"][index]) if "sample" in arrays else "",
        spread_tile(np.abs(estimate - truth), peak),
        spread_tile(arrays["std"][index], peak) if "std" in arrays else "",
        f"{-10 * np.log10(square):.2f} dB" if square > 0 else "",
    )


def _methods(records: Sequence[Record]) -> list[dict[str, Any]]:
    r"""Returns what each method is, and its settings on each problem, joined where they agree."""
    out = []
    for name in dict.fromkeys(record.method for record in records):
        group = [record for record in records if record.method == name]
        settings: dict[str, list[str]] = {}
        for record in group:
            text = ", ".join(f"{key} {value:g}" for key, value in record.settings.items()) or "none"
            settings.setdefault(text, []).append(record.problem)
        first = group[0]
        entry = {"name": name, "kind": KINDS[first.kind], "source": first.source, "reference": first.reference}
        out.append({**entry, "settings": settings})
    return out
