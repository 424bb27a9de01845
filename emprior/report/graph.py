r"""Graphs of a few curves as SVG, which takes its letters and its width from the page around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from emprior._html import environment
from emprior.report.figures import MINUS

WIDTH, HEIGHT = 320, 216
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 8, 36
"""The margins around the axes, in the units of the SVG, in which letters are 11 high."""


@dataclass(frozen=True, eq=False)
class Curve:
    r"""A curve through points.

    Arguments:
        x: Where the points are.
        y: Their heights; at those that are not finite the curve is broken.
        colour: Its colour.
        width: The width of the line.
        dash: Whether the line is dashed.
        fill: Whether what lies between it and zero is filled instead.
        dots: Whether the points are marked.
        opacity: How much of what is behind it hides.
    """

    x: np.ndarray
    y: np.ndarray
    colour: str
    width: float = 1.2
    dash: bool = False
    fill: bool = False
    dots: bool = False
    opacity: float = 1.0


Limits = tuple[float, float]


def graph(curves: Sequence[Curve], labels: tuple[str, str], x: Limits, y: Limits, title: str) -> Markup:
    r"""Returns the SVG of some curves.

    Arguments:
        curves: The curves, the first behind the others.
        labels: What is said of the two axes.
        x: The ends of the horizontal axis.
        y: Those of the vertical one; what is beyond them is cut off.
        title: What is read to those who cannot see it.
    """
    across, down = _Scale(x, 0, WIDTH - LEFT - RIGHT), _Scale(y, HEIGHT - TOP - BOTTOM, 0)
    template = environment("emprior.report").get_template("graph.svg")
    text = template.render(
        size=(WIDTH, HEIGHT),
        origin=(LEFT, TOP),
        area=(WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM),
        drawn=[(curve, *_shape(curve, across, down)) for curve in curves],
        across=[(across(value), _label(value)) for value in across.ticks()],
        down=[(down(value), _label(value)) for value in down.ticks()],
        labels=labels,
        title=title,
    )
    return Markup(text)


@dataclass(frozen=True)
class _Scale:
    r"""The affine map that takes the ends of an axis to places."""

    ends: Limits
    start: float
    stop: float

    def __call__(self, value: float) -> str:
        low, high = self.ends
        place = self.start + (value - low) / (high - low) * (self.stop - self.start)
        # a curve that leaves the axes is cut off, wherever it goes
        return f"{min(max(place, -1e4), 1e4):.1f}"

    def ticks(self) -> list[float]:
        low, high = self.ends
        slack = 1e-9 * (high - low)
        values = np.asarray(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)).tolist()
        return [value for value in values if low - slack <= value <= high + slack]


def _shape(curve: Curve, across: _Scale, down: _Scale) -> tuple[str, list[tuple[str, str]]]:
    r"""Returns the path of a curve and its points."""
    finite = np.isfinite(curve.y)
    points = [(across(x), down(y)) if good else None for x, y, good in zip(curve.x, curve.y, finite, strict=True)]
    moves, pen = [], "M"
    for point in points:
        if point is not None:
            moves.append(f"{pen}{point[0]} {point[1]}")
        pen = "M" if point is None else "L"
    if curve.fill and points:
        moves += [f"L{across(curve.x[-1])} {down(0.0)}", f"L{across(curve.x[0])} {down(0.0)}Z"]
    return "".join(moves), [point for point in points if point is not None] if curve.dots else []


def _label(value: float) -> str:
    return "0" if value == 0 else f"{value:,.6g}".replace("-", MINUS)
