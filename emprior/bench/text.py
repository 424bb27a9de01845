r"""Tables as text: Markdown for reading, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from emprior.bench.figures import FIGURES, MAIN
from emprior.bench.methods.base import KINDS
from emprior.bench.records import Record
from emprior.bench.table import EVERY, Line, Table

STANDINGS = ("psnr", "crps", "coverage_90")
"""The figures by which it is counted how often a method is among the best."""

LEGEND = (
    "Means over images ± half of the 95 % bootstrap interval; bold is the best of its kind, and what is no worse "
    "beyond chance. Evaluations and derivatives of a network are counted for an image in all its samples."
)


def heading(records: Sequence[Record], command: str) -> str:
    r"""Returns what was run, when and with what, in Markdown.

    Arguments:
        records: The records.
        command: The command that makes them.
    """
    first, runs = records[0], [record.run for record in records]
    dates = sorted(str(run.get("date")) for run in runs)
    revisions = sorted({str(run.get("revision")) for run in runs})
    lines = [f"Suite {first.suite}, {dates[0]} to {dates[-1]}, revision {', '.join(revisions)}.", ""]
    lines += [f"- {networks(fact)}" for fact in first.models]
    lines += ["", LEGEND]
    return "\n".join([*lines, "", "```console", f"$ {command}", "```"]) + "\n\n"


def networks(fact: Mapping[str, Any]) -> str:
    r"""Returns what is known of a network, as a line."""
    closed = "" if fact["parameters"] is None else ", in closed form"
    size = f", {fact['parameters']:,} parameters" if fact["parameters"] else closed
    seen = f", {fact['images_seen']:,} images seen in training" if fact["images_seen"] else ""
    return f"{fact['role']}: {fact['name']}{size}{seen}"


def markdown(found: Sequence[Table], names: Sequence[str] = MAIN) -> str:
    r"""Returns tables in Markdown; the best of each kind are in bold.

    Arguments:
        found: The tables.
        names: The figures to show.
    """
    blocks = []
    for table in found:
        shown = [name for name in table.shown() if name in names]
        head = ["method", *(FIGURES[name].label for name in shown), "evaluations", "derivatives", "seconds"]
        lines = [f"### {table.title}", "", row(head), row(["---"] * len(head))]
        kind = None
        for line in table.lines:
            if line.kind != kind:
                kind = line.kind
                lines.append(row([f"*{KINDS[kind]}*", *[""] * (len(head) - 1)]))
            lines.append(row(_cells(line, shown)))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def standings(found: Sequence[Table]) -> list[tuple[str, dict[str, int]]]:
    r"""Returns on how many problems each method is among the best of its kind, by figure; those that never are, not.

    Arguments:
        found: Tables, of which those of single problems count.
    """
    single = [table for table in found if table.title != EVERY]
    counts: dict[str, dict[str, int]] = {}
    for table in single:
        for line in table.lines:
            tally = counts.setdefault(line.method, dict.fromkeys(STANDINGS, 0))
            for name in STANDINGS:
                tally[name] += name in line.entries and line.entries[name].best
    first = found[0].lines
    return [(line.method, counts[line.method]) for line in first if any(counts[line.method].values())]


def csv_of(found: Sequence[Table]) -> str:
    r"""Returns tables as CSV, a line for each figure of each method."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["problem", "method", "kind", "figure", "value", "low", "high", "best", "images"])
    for table in found:
        for line in table.lines:
            start = [table.title, line.method, line.kind]
            for name, entry in line.entries.items():
                numbers = [f"{value:.6g}" for value in (entry.value, entry.low, entry.high)]
                writer.writerow([*start, name, *numbers, int(entry.best), table.images])
            if line.reason:
                writer.writerow([*start, "failed", "", "", "", 0, table.images])
                continue
            for name in ("evaluations", "derivatives", "seconds", "failures"):
                writer.writerow([*start, name, f"{getattr(line, name):.6g}", "", "", 0, table.images])
    return out.getvalue()


def _cells(line: Line, shown: list[str]) -> list[str]:
    if line.reason:
        return [line.method, f"failed: {line.reason}", *[""] * (len(shown) + 2)]
    if line.failures:
        return [line.method, f"no finite answer for {line.failures} images", *[""] * (len(shown) + 2)]
    texts = []
    for name in shown:
        entry = line.entries.get(name)
        text = "" if entry is None else entry.text(FIGURES[name])
        texts.append(f"**{text}**" if entry is not None and entry.best else text)
    return [line.method, *texts, f"{line.evaluations:.0f}", f"{line.derivatives:.0f}", f"{line.seconds:.2f}"]


def row(cells: Sequence[str]) -> str:
    r"""Returns a line of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
