r"""The results as a block of a Markdown file, such as a README: made by the command, never typed.

The block stands between two comments, which a reader of the page does not see:

.. code-block:: text

    <!-- bench: cifar10 -->
    <!-- /bench -->

The word is the name of the suite, so that one file may hold a block of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from emprior._files import atomic
from emprior.bench.figures import FIGURES, Figure
from emprior.bench.methods.base import KINDS
from emprior.bench.records import Record
from emprior.bench.table import LEAST, Entry, Line, Table, tables
from emprior.bench.text import networks, row, standings

COLUMNS = ("psnr", "lpips", "crps", "coverage_90")
"""The figures of the first table, of which LPIPS is there if a network for it was given."""

UNIT = "emprior-posterior"
"""The method whose seconds are the unit, where it finished."""

OWN = "emprior-"
"""How the names of emprior's methods begin."""

RIVALS = 3
"""How many methods that are not emprior's the second table shows."""

END = "<!-- /bench -->"


def put(file: str | os.PathLike[str], text: str, suite: str) -> None:
    r"""Replaces what stands between the comments of a suite in a file; all else in it stays, byte for byte.

    Arguments:
        file: The file, UTF-8.
        text: What is to stand there.
        suite: The name of the suite.

    Raises:
        ValueError: There is no such file, or the comments are not in it once, one after the other.
        OSError: It cannot be written; it is then as it was.
    """
    first, last = span(file, suite)
    content = Path(file).read_bytes()
    with atomic(file) as path:
        path.write_bytes(content[:first] + f"\n\n{text.strip()}\n\n".encode() + content[last:])


def span(file: str | os.PathLike[str], suite: str) -> tuple[int, int]:
    r"""Returns where the block of a suite begins and ends in a file, in bytes.

    Raises:
        ValueError: There is no such file, or the comments are not in it once, one after the other.
    """
    start = f"<!-- bench: {suite} -->"
    cure = f"Put these two lines where the results are to stand, with nothing between them: {start} and {END}"
    try:
        content = Path(file).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"there is no file {file}. Make it, a Markdown file such as README.md. {cure}") from error
    count = content.count(start.encode())
    if count != 1:
        found = "has no line" if count == 0 else f"has {count} lines"
        raise ValueError(f"{file} {found} {start}, expected one. {cure}")
    first = content.index(start.encode()) + len(start)
    last, following = content.find(END.encode(), first), content.find(b"<!-- bench:", first)
    if last < 0 or 0 <= following < last:
        raise ValueError(f"{file} has {start}, but no {END} belongs to it. {cure}")
    return first, last


def block(records: Sequence[Record], command: str) -> str:
    r"""Returns what was run, a table of means over problems, and one of PSNR by problem, in Markdown.

    A problem counts if each method that has a record has one of it, of success or failure.

    Arguments:
        records: The records.
        command: The command that makes them.

    Raises:
        ValueError: No problem counts.
    """
    counted, begun = complete(records), len({record.problem for record in records})
    found = tables([record for group in counted.values() for record in group])
    head, singles = found[0], found[-len(counted) :]
    parts = [
        _opening(records, head, len(singles), begun),
        "\n".join(f"- {networks(fact)}" for fact in records[0].models),
        _means(head, singles),
        _legend(head),
        _by_problem(head, singles),
        f"```console\n$ {command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def complete(records: Sequence[Record]) -> dict[str, list[Record]]:
    r"""Returns the records of the problems that all methods have a record of, by problem.

    Raises:
        ValueError: There is none.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.problem, []).append(record)
    methods = {record.method for record in records}
    out = {problem: group for problem, group in groups.items() if {record.method for record in group} == methods}
    if not out:
        problem, group = max(groups.items(), key=lambda entry: len(entry[1]))
        lacking = sorted(methods - {record.method for record in group})
        raise ValueError(
            f"no problem has records of all {len(methods)} methods; {problem!r} lacks {', '.join(lacking)}. Run the "
            "same methods on the same problems to the end; what is there is kept."
        )
    return out


def _opening(records: Sequence[Record], head: Table, count: int, begun: int) -> str:
    days = sorted({str(record.run.get("date"))[:10] for record in records})
    revisions = sorted({_short(str(record.run.get("revision"))) for record in records})
    dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    some = "" if count == begun else f" of {begun} begun"
    plan = records[0].plan
    what = f"{plan['images']} images, {plan['samples']} samples of each" + (
        f", at most about {plan['budget']} network evaluations an image" if plan["budget"] else ""
    )
    problems = f"{count} problem{'s' if count > 1 else ''}{some}"
    return (
        f"Suite {records[0].suite}, {dates}, revision {', '.join(revisions)}: {what}. "
        f"Means over {problems} that all {len(head.lines)} methods were run on."
    )


def _means(head: Table, singles: Sequence[Table]) -> str:
    r"""Returns the table of methods, kind by kind."""
    names = [name for name in COLUMNS if name in {"psnr", *head.shown()}]
    unit = _unit(head)
    labels = [FIGURES[name].label for name in names]
    often = _often(head, singles)
    seconds = f"seconds, {unit.method} = 1" if unit else "seconds"
    columns = ["method", *labels, *(["best in PSNR"] if often else []), "evaluations", seconds]
    lines, kind = [row(columns), row(["---"] * len(columns))], None
    for line in head.lines:
        if line.kind != kind:
            kind = line.kind
            lines.append(row([f"*{KINDS[kind]}*", *[""] * (len(columns) - 1)]))
        best = [f"{often[line.method]} of {len(singles)}"] if often else []
        lines.append(row([line.method, *_entries(line, names), *best, *_cost(line, unit)]))
    return "\n".join(lines)


def _often(head: Table, singles: Sequence[Table]) -> dict[str, int]:
    r"""Returns on how many problems each method is among the best of its kind in PSNR; nothing where none is marked."""
    if head.images < LEAST:
        return {}
    counts = dict(standings(singles))
    return {line.method: counts.get(line.method, {}).get("psnr", 0) for line in head.lines}


def _entries(line: Line, names: Sequence[str]) -> list[str]:
    if line.reason or line.failures:
        return [line.reason or f"no finite answer for {line.failures} images", *[""] * (len(names) - 1)]
    return [_entry(line, name, Entry.text if name == "psnr" else _value) for name in names]


def _entry(line: Line, name: str, written: Callable[[Entry, Figure], str]) -> str:
    if name not in line.entries:
        return ""
    text = written(line.entries[name], FIGURES[name])
    return f"**{text}**" if line.entries[name].best else text


def _value(entry: Entry, figure: Figure) -> str:
    return f"{entry.value:.{figure.digits}f}"


def _cost(line: Line, unit: Line | None) -> list[str]:
    if line.reason:
        return ["", ""]
    ratio = line.seconds / unit.seconds if unit else line.seconds
    return [f"{line.evaluations:,.0f}", f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"]


def _unit(head: Table) -> Line | None:
    r"""Returns the line whose seconds are the unit: that of emprior's sampler, or the first that has any."""
    timed = [line for line in head.lines if line.seconds > 0]
    return next((line for line in timed if line.method == UNIT), timed[0] if timed else None)


def _legend(head: Table) -> str:
    marks = (
        "Bold is the best of its kind, and what is no worse beyond chance; *best in PSNR* counts the problems where "
        "a method is among these."
        if head.images >= LEAST
        else f"Of fewer than {LEAST} images nothing is marked best, for they cannot tell better from lucky."
    )
    return f"PSNR ± half of its 95 % bootstrap interval, in dB. {marks} Evaluations are of a network, for an image."


def _by_problem(head: Table, singles: Sequence[Table]) -> str:
    r"""Returns the PSNR of emprior's methods and of the best others, problem by problem."""
    own = [line for line in head.lines if line.method.startswith(OWN)]
    others = [line for line in head.lines if line not in own and "psnr" in line.entries]
    rivals = sorted(others, key=lambda line: -line.entries["psnr"].value)[:RIVALS]
    shown = [line.method for line in (*own, *rivals)]
    lines = [row(["PSNR", *shown]), row(["---"] * (len(shown) + 1))]
    for table in singles:
        found = {line.method: line for line in table.lines}
        lines.append(row([table.title, *(_entry(found[method], "psnr", _value) or "failed" for method in shown)]))
    return "\n".join(lines)


def _short(revision: str) -> str:
    commit, mark, rest = revision.partition("-")
    return commit[:12] + mark + rest
