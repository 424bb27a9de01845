r"""One picture of a result: what was measured, what was found, and how sure it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from emprior._check import nearest
from emprior._files import atomic
from emprior._types import Image
from emprior.metrics import psnr
from emprior.result import Result

SIDE, GAP, TITLE, FOOT, MARGIN, BAR, NAME = 1.5, 0.12, 0.22, 0.2, 0.2, 0.55, 0.5
"""Inches: the height of a panel, between panels, above and below each, around all, for the colour bar and for the name
beside a curve."""

GRAY, COLOURS = "0.35", ("#333333", "#0072b2", "#d55e00", "#009e73")


@dataclass(frozen=True)
class Panel:
    title: str
    image: Tensor | None
    note: str = ""
    spread: bool = False


def figure(result: Result, index: int = 0, truth: Image | None = None, measurement: Tensor | None = None) -> Figure:
    r"""Draws one image of a result.

    The upper row holds the measurement, the truth, the estimate, the mean, the standard deviation and
    the error of the mean, the last two averaged over channels and on one colour scale; below are up to
    four samples and the energy's terms over the steps, a line for each chain, on scales that show the
    settled run, so that a long first descent may enter from outside. What a result lacks is left out.
    Images are shown in `[0, 1]`, signals as lines, and other measurements by their number.

    Arguments:
        result: The result.
        index: Which of its images.
        truth: The true image `(*shape)`, or those of all images `(B, *shape)`.
        measurement: The measurements `(B, ...)`; by default those that the result holds.

    Raises:
        IndexError: The result has no such image.
        ValueError: The truth or the measurements do not fit the result.
    """
    images = len(result.estimate)
    if not -images <= index < images:
        raise IndexError(f"index is {index}, but the result holds {images} images: give 0 to {images - 1}.")
    index %= images
    truth = _truth(result, index, truth)
    measurement = result.measurement if measurement is None else measurement
    if measurement is not None and len(measurement) != images:
        raise ValueError(
            f"measurement has shape {tuple(measurement.shape)}, but the result holds {images} images. Give one for "
            "each image, (B, ...)."
        )
    top = _upper(result, index, truth, None if measurement is None else measurement[index])
    single = len(result.samples) == 1 and result.std is None
    drawn = () if single else result.samples[:4, index].detach().cpu()
    bottom = [Panel(f"sample {number}", sample) for number, sample in enumerate(drawn, 1)]
    terms = {name: entry[..., index].detach().cpu().double().numpy() for name, entry in _terms(result).items()}
    return _compose(top, bottom, _steps(result), terms, _headline(result, index))


def save_figure(fig: Figure, path: str | os.PathLike[str], dpi: int = 200) -> None:
    r"""Saves a figure whole or not at all.

    Arguments:
        fig: The figure.
        path: A file whose suffix is `.png`, `.pdf` or `.svg`.
        dpi: Pixels an inch.

    Raises:
        ValueError: The suffix is unknown.
        OSError: The file cannot be written; nothing is left.
    """
    suffix, known = Path(path).suffix.lower(), (".pdf", ".png", ".svg")
    if suffix not in known:
        raise ValueError(f"{path} ends in {suffix!r}, which is no format for a figure. {nearest(suffix, known)}")
    with atomic(path) as temporary:
        fig.savefig(temporary, format=suffix[1:], dpi=dpi)


def _truth(result: Result, index: int, truth: Tensor | None) -> Tensor | None:
    if truth is None:
        return None
    if truth.shape == result.estimate.shape:
        truth = truth[index]
    if truth.shape != result.estimate.shape[1:]:
        raise ValueError(
            f"truth has shape {tuple(truth.shape)}, but the estimate has shape {tuple(result.estimate.shape)}. "
            "Give the true image without a batch dimension, or one for each image."
        )
    return truth.detach().cpu()


def _upper(result: Result, index: int, truth: Tensor | None, measurement: Tensor | None) -> list[Panel]:
    estimate, mean = result.estimate[index].detach().cpu(), result.mean[index].detach().cpu()
    apart = not torch.equal(estimate, mean)
    panels = [] if measurement is None else [_measured(measurement.detach().cpu(), tuple(estimate.shape))]
    panels += [] if truth is None else [Panel("truth", truth)]
    panels += [
        Panel("estimate" if apart or result.std is None else "estimate (mean)", estimate, _score(estimate, truth))
    ]
    panels += [Panel("mean", mean, _score(mean, truth))] if apart else []
    panels += [] if result.std is None else [Panel("std", result.std[index].detach().cpu(), spread=True)]
    if truth is not None:
        of, name = (estimate, "estimate") if result.std is None else (mean, "mean")
        panels += [Panel(f"|{name} \N{MINUS SIGN} truth|", (of - truth).abs(), spread=True)]
    return panels


def _measured(y: Tensor, shape: tuple[int, ...]) -> Panel:
    if y.is_complex():
        return Panel("measurement", None, f"m = {y.numel()}\ncomplex\nmeasurements")
    if not _drawable(y) and not (len(shape) == 1 and y.ndim == 1):
        return Panel("measurement", None, f"m = {y.numel()}\nmeasurements")
    low, high = np.quantile(y.double().numpy(), (0.01, 0.99))
    if not _drawable(y) or (low > -0.25 and high < 1.25):
        return Panel("measurement", y)
    return Panel("measurement", (y - low) / max(high - low, 1e-12), f"black {low:.3g}, white {high:.3g}")


def _score(x: Tensor, truth: Tensor | None) -> str:
    return "" if truth is None else f"{psnr(x[None], truth[None]).item():.2f} dB"


def _terms(result: Result) -> dict[str, Tensor]:
    trace = result.diagnostics.trace
    return {name: trace[name] for name in list(trace) if name != "step" and len(trace[name])}


def _steps(result: Result) -> np.ndarray:
    trace = result.diagnostics.trace
    longest = max((len(entry) for entry in trace.values()), default=0)
    return trace["step"].detach().cpu().numpy() if "step" in trace else np.arange(longest)


def _headline(result: Result, index: int) -> str:
    run = result.diagnostics
    names = [str(result.config[key]) for key in ("problem", "prior", "method") if result.config.get(key)]
    status = run.status[index] if index < len(run.status) else result.status
    residual = (
        [f"residual {run.residual[index].item():.2f} \N{GREEK SMALL LETTER SIGMA}"] if index < len(run.residual) else []
    )
    return "  ·  ".join([*names, *residual, status.value])


def _compose(
    top: list[Panel], bottom: list[Panel], steps: np.ndarray, terms: dict[str, np.ndarray], headline: str
) -> Figure:
    width = SIDE * _aspect(top)
    cell, row = width + GAP, TITLE + SIDE + FOOT
    bar = BAR if any(panel.spread and _drawable(panel.image) for panel in top) else 0.0
    rows, inset = 2 if bottom else 1, 0.3 if bar else 0.5
    left = MARGIN + max(len(top) * cell + bar, len(bottom) * cell)
    under = bool(terms) and bool(bottom) and (len(top) - len(bottom)) * cell > 2 * SIDE
    total = left if under or not terms else left + inset + 2.4 * SIDE
    head = MARGIN + 0.1
    height = head + rows * row + MARGIN
    fig = Figure(figsize=(max(total + MARGIN - GAP, 0.064 * len(headline) + 2 * MARGIN), height), facecolor="white")

    def place(x: float, y: float, w: float, h: float) -> Axes:
        across, down = fig.get_size_inches()
        return fig.add_axes((x / across, 1 - (y + h) / down, w / across, h / down))

    fig.text(MARGIN / fig.get_figwidth(), 1 - 0.2 / height, headline, size=8, color=GRAY, va="center", parse_math=False)
    peak = _peak(panel.image for panel in top if panel.spread)
    for line, panels in enumerate((top, bottom)):
        for column, panel in enumerate(panels):
            axes = place(MARGIN + column * cell, head + line * row + TITLE, width, SIDE)
            _draw(axes, panel, peak)
    if bar:
        axes = place(MARGIN + len(top) * cell - GAP / 3, head + TITLE, 0.09, SIDE)
        _colour_bar(axes, peak)
    if terms:
        x = MARGIN + len(bottom) * cell + 0.45 if under else left + inset
        y = head + row * under + TITLE
        right = MARGIN + len(top) * cell - GAP if under else total - GAP
        _trace(place, steps, terms, (x, y, right - x, head + rows * row - FOOT - y))
    return fig


def _aspect(top: list[Panel]) -> float:
    image = next(panel.image for panel in top if panel.image is not None and panel.title.startswith("estimate"))
    return float(np.clip(image.shape[-1] / image.shape[-2], 0.8, 1.6)) if _drawable(image) else 1.3


def _drawable(x: Tensor | None) -> bool:
    return x is not None and (x.ndim == 2 or (x.ndim == 3 and x.shape[0] in (1, 3)))


def _peak(spreads: Iterable[Tensor | None]) -> float:
    maps = [_flat(x) for x in spreads if x is not None]
    peak = max((x[x.isfinite()].quantile(0.995).item() for x in maps if x.isfinite().any()), default=1.0)
    return peak if peak > 0 else 1e-3


def _flat(x: Tensor) -> Tensor:
    return x.double().mean(0) if x.ndim == 3 else x.double()


def _draw(axes: Axes, panel: Panel, peak: float) -> None:
    axes.set_title(panel.title, size=9, pad=4)
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="0.6")
    x = panel.image
    if x is None:
        axes.set_facecolor("0.95")
        axes.text(0.5, 0.5, panel.note, size=8, color=GRAY, ha="center", va="center", transform=axes.transAxes)
        return
    axes.set_xlabel(panel.note, size=8, labelpad=3)
    if not _drawable(x):
        axes.plot(x.double().flatten().numpy(), linewidth=0.8, color=COLOURS[1])
        if panel.spread:
            axes.set(ylim=(0, 1.1 * peak), xlabel=f"up to {x.max():.3g}")
    elif panel.spread:
        axes.imshow(_flat(x).numpy(), cmap="magma", vmin=0, vmax=peak, interpolation="nearest")
    else:
        pixels = x.double().clamp(0, 1).reshape(-1, *x.shape[-2:]).movedim(0, -1).numpy()
        axes.imshow(
            pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels,
            cmap="gray",
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )


def _colour_bar(axes: Axes, peak: float) -> None:
    axes.imshow(np.linspace(1, 0, 256)[:, None], cmap="magma", aspect="auto", extent=(0, 1, 0, peak))
    axes.yaxis.tick_right()
    axes.set_xticks([])
    axes.locator_params(axis="y", nbins=4)
    axes.tick_params(labelsize=7, length=2, width=0.5, pad=2)
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="0.6")


def _trace(
    place: Callable[..., Axes],
    steps: np.ndarray,
    terms: dict[str, np.ndarray],
    box: tuple[float, float, float, float],
) -> None:
    x, y, width, height = box
    between = 0.08
    each = (height - between * (len(terms) - 1)) / len(terms)
    for row, (name, values) in enumerate(terms.items()):
        axes = place(x, y + row * (each + between), width - NAME, each)
        colour = COLOURS[row % len(COLOURS)]
        chains = values.reshape(len(values), -1)
        marker = "." if len(chains) == 1 else None
        axes.plot(
            steps[: len(chains)], chains, color=colour, linewidth=0.8, marker=marker, alpha=0.4 + 0.5 / chains.shape[1]
        )
        axes.set_ylim(*_limits(chains))
        axes.margins(x=0)
        axes.locator_params(axis="y", nbins=3 if each < 0.8 else 5)
        axes.tick_params(labelsize=6.5, length=2, width=0.5, pad=2, colors=GRAY)
        axes.text(1.03, 0.5, name, size=8, color=colour, va="center", transform=axes.transAxes)
        for side, spine in axes.spines.items():
            spine.set(linewidth=0.5, color="0.6", visible=side in ("left", "bottom"))
        if row == 0:
            axes.set_title("energy in nats", size=9, pad=4)
        if row < len(terms) - 1:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("step", size=8, labelpad=1, color=GRAY)


def _limits(chains: np.ndarray) -> tuple[float, float]:
    settled = chains[len(chains) // 4 :]
    finite, all_finite = settled[np.isfinite(settled)], chains[np.isfinite(chains)]
    if not finite.size:
        return 0.0, 1.0
    low, high = finite.min(), finite.max()
    reach = high - low
    if reach > 0:
        # a transient a thousand times as high as the rest would leave the rest a flat line
        low, high = max(low - 2 * reach, all_finite.min()), min(high + 2 * reach, all_finite.max())
    pad = 0.06 * (high - low) or 0.5
    return float(low - pad), float(high + pad)
