r"""The pictures of an image: what was measured, what was found, how far it may be off, and samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from emprior._html import spread_tile, tile
from emprior.metrics import psnr
from emprior.report.charts import signal_chart
from emprior.report.figures import MINUS
from emprior.report.view import View

SAMPLES = 6
"""The most samples that are shown."""


@dataclass(frozen=True)
class Picture:
    r"""A picture.

    Arguments:
        title: What it shows.
        source: The picture itself, as the address of an image; nothing where it is a curve or cannot be drawn.
        note: What is said below it.
        spread: Whether its colours are those of the common scale of errors and deviations.
        graph: The curve of a signal.
    """

    title: str
    source: str
    note: str = ""
    spread: bool = False
    graph: Markup | None = None


@dataclass(frozen=True)
class Strip:
    r"""The pictures of an image.

    Arguments:
        pictures: The measurement, the truth, the estimate, the mean, the standard deviation and the error.
        samples: Some samples.
        peak: The error or deviation at which the colours end.
        pixelated: Whether the pixels are few enough to be seen.
    """

    pictures: tuple[Picture, ...]
    samples: tuple[Picture, ...]
    peak: float
    pixelated: bool


def strip(view: View, side: int, samples: int = SAMPLES) -> Strip:
    r"""Draws an image; the error is that of the mean where there is one, on one scale with the deviation.

    Arguments:
        view: What there is to show.
        side: The most pixels of a picture's side; larger images are averaged down.
        samples: The most samples to show.
    """
    centre = view.estimate if view.mean is None else view.mean
    error = None if view.truth is None or centre is None else (centre - view.truth).abs()
    peak = _peak([part for part in (view.std, error) if part is not None])
    drawn = view.samples[:samples] if view.samples is not None else ()
    alone = " (mean)" if view.std is not None and view.mean is None else ""
    name = "mean" if view.std is not None else "estimate"
    parts = [
        _measured(view, side),
        _plain("truth", view.truth, side),
        _plain(f"estimate{alone}", view.estimate, side, _score(view.estimate, view.truth)),
        _plain("mean", view.mean, side, _score(view.mean, view.truth)),
        _spread("standard deviation", view.std, side, peak),
        _spread(f"|{name} {MINUS} truth|", error, side, peak),
    ]
    shown = [_plain(f"sample {number}", sample, side) for number, sample in enumerate(drawn, 1)]
    few = view.estimate is None or max(view.estimate.shape[-2:]) <= 160
    return Strip(tuple(filter(None, parts)), tuple(filter(None, shown)), peak, few)


def thumbnail(view: View, side: int = 64) -> str:
    r"""Returns a small picture of the estimate, nothing where there is none to draw."""
    return tile(_shrunk(view.estimate, side)) if _drawable(view.estimate) else ""


def _plain(title: str, x: Tensor | None, side: int, note: str = "") -> Picture | None:
    if x is None or not (_drawable(x) or x.ndim == 1):
        return None
    if x.ndim == 1:
        return Picture(title, "", note, graph=signal_chart(x.double().numpy()))
    return Picture(title, tile(_shrunk(x, side)), note)


def _spread(title: str, x: Tensor | None, side: int, peak: float) -> Picture | None:
    if x is None or not (_drawable(x) or x.ndim == 1):
        return None
    note = f"mean {x.double().mean().item():.2g}"
    if x.ndim == 1:
        return Picture(title, "", note, graph=signal_chart(x.double().numpy(), peak))
    return Picture(title, spread_tile(_shrunk(x, side), peak), note, spread=True)


def _measured(view: View, side: int) -> Picture | None:
    r"""Draws the measurement as an image where it is one, stretched where it is not of the images' range."""
    y = view.measurement
    if y is None:
        return None
    if y.is_complex() or not (_drawable(y) or (y.ndim == 1 and view.estimate is not None and view.estimate.ndim == 1)):
        return Picture("measurement", "", f"{y.numel():,} {'complex ' * y.is_complex()}numbers")
    low, high = np.quantile(y.double().numpy(), (0.01, 0.99))
    if y.ndim == 1 or (low > -0.25 and high < 1.25):
        return _plain("measurement", y, side)
    return _plain("measurement", (y - low) / max(high - low, 1e-12), side, f"black {low:.3g}, white {high:.3g}")


def _score(x: Tensor | None, truth: Tensor | None) -> str:
    return "" if x is None or truth is None else f"{psnr(x[None], truth[None]).item():.2f} dB"


def _drawable(x: Tensor | None) -> bool:
    return x is not None and not x.is_complex() and (x.ndim == 2 or (x.ndim == 3 and x.shape[0] in (1, 3)))


def _shrunk(x: Tensor | None, side: int) -> np.ndarray:
    assert x is not None
    image = x.float().reshape(-1, *x.shape[-2:])
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    if scale >= 1:
        return image.numpy()
    return adaptive_avg_pool2d(image, (max(1, round(height * scale)), max(1, round(width * scale)))).numpy()


def _peak(maps: list[Tensor]) -> float:
    flat = [(x.double().mean(0) if x.ndim == 3 else x.double()).flatten() for x in maps]
    finite = [x[torch.isfinite(x)] for x in flat]
    peak = max((float(np.quantile(x.numpy(), 0.995)) for x in finite if len(x)), default=1.0)
    return peak if peak > 0 else 1e-3
