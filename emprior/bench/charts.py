r"""Charts for the page."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emprior._html import data_url
from emprior.bench.methods.base import KINDS
from emprior.bench.table import Line, Table

COLOURS = dict(zip(KINDS, ("#0072b2", "#d55e00", "#009e73", "#666666"), strict=True))
MARKERS = dict(zip(KINDS, ("o", "^", "s", "D"), strict=True))
SIZE = (4.6, 3.9)
STYLE: Any = {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "emprior", "font.family": "sans-serif"}


def cost_chart(table: Table) -> str:
    r"""Draws PSNR against what networks do for an image, with the front of those that nothing is cheaper and better."""

    def draw(axes: Axes) -> None:
        lines = [line for line in table.lines if "psnr" in line.entries]
        front = pareto(lines)
        for kind in KINDS:
            group = [line for line in lines if line.kind == kind]
            at = [(max(line.passes, 1), line.entries["psnr"].value) for line in group]
            if at:
                axes.plot(*zip(*at, strict=True), MARKERS[kind], color=COLOURS[kind], label=KINDS[kind], markersize=5)
        axes.plot(
            [max(line.passes, 1) for line in front], [line.entries["psnr"].value for line in front], color="0.7",
            linewidth=1, zorder=0,
        )  # fmt: skip
        for line in lines:
            if line in front or line.method.startswith("emprior"):
                spot = (max(line.passes, 1), line.entries["psnr"].value)
                axes.annotate(line.method, spot, (4, 4), textcoords="offset points", fontsize=6.5)
        axes.margins(x=0.15)
        axes.set(xscale="log", xlabel="evaluations and derivatives of a network, an image", ylabel="PSNR, dB")
        best = [line.entries["psnr"].value for line in lines]
        if best:
            axes.set_ylim(bottom=max(min(best), max(best) - 15) - 0.5)
        axes.legend(fontsize=6.5, frameon=False, loc="lower right")

    return _chart(draw, SIZE)


def coverage_chart(table: Table) -> str:
    r"""Draws how many true pixels the 50 % and 90 % intervals of each sampler hold."""
    lines = [line for line in table.lines if "coverage_90" in line.entries][::-1]

    def draw(axes: Axes) -> None:
        for name, level, colour in (("coverage_50", 0.5, "#56b4e9"), ("coverage_90", 0.9, "#0072b2")):
            axes.axvline(level, color=colour, linewidth=1, linestyle="--", zorder=0)
            for row, line in enumerate(lines):
                entry = line.entries[name]
                axes.plot([entry.low, entry.high], [row, row], color=colour, linewidth=1)
                axes.plot(entry.value, row, "o", color=colour, markersize=4)
        axes.set_yticks(range(len(lines)), [line.method for line in lines])
        axes.set(
            xlim=(0, 1), ylim=(-0.7, len(lines) - 0.3), xlabel="share of true pixels in the 50 % and 90 % intervals"
        )

    return _chart(draw, (SIZE[0], 0.9 + 0.19 * max(1, len(lines))))


def pareto(lines: Sequence[Line]) -> list[Line]:
    r"""Returns the methods that none is as cheap as and better than, by cost."""
    front: list[Line] = []
    for line in sorted(lines, key=lambda line: (line.passes, -line.entries["psnr"].value)):
        if not front or line.entries["psnr"].value > front[-1].entries["psnr"].value:
            front.append(line)
    return front


def _chart(draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return data_url("image/svg+xml", out.getvalue())
