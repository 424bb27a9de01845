r"""The figures of an answer, one number for each image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emprior._types import Image, PerImage
from emprior.bench.methods.base import Answer, Task
from emprior.metrics import coverage, crps, psnr, ssim
from emprior.verify.images import sliced

WINDOW = 7
"""The side of the window of SSIM, which smaller images have not."""


@dataclass(frozen=True)
class Figure:
    r"""What is known of a figure.

    Arguments:
        label: Its heading.
        words: What it is.
        digits: How many decimals are shown.
        best: What is best: `"high"`, `"low"`, or a value that it should have; `None` if none is.
    """

    label: str
    words: str
    digits: int
    best: str | float | None


FIGURES: dict[str, Figure] = {
    "psnr": Figure("PSNR", "peak signal-to-noise ratio of the point estimate, dB", 2, "high"),
    "ssim": Figure("SSIM", "structural similarity of the point estimate", 3, "high"),
    "psnr_sample": Figure("PSNR of a sample", "peak signal-to-noise ratio of one sample, dB", 2, "high"),
    "ssim_sample": Figure("SSIM of a sample", "structural similarity of one sample", 3, "high"),
    "lpips": Figure("LPIPS", "learned distance of the point estimate from the truth", 3, "low"),
    "lpips_sample": Figure("LPIPS of a sample", "learned distance of one sample from the truth", 3, "low"),
    "crps": Figure("CRPS", "continuous ranked probability score of the samples, by the fair estimator", 4, "low"),
    "energy_score": Figure("energy score", "energy score of the samples, a pixel, by the fair estimator", 4, "low"),
    "coverage_50": Figure("50 % cover", "share of true pixels in the 50 % intervals of the samples", 3, 0.5),
    "coverage_90": Figure("90 % cover", "share of true pixels in the 90 % intervals of the samples", 3, 0.9),
    "spread_skill": Figure("spread / error", "standard deviation over the error of the mean", 3, 1.0),
    "residual": Figure("residual", "misfit of the point estimate, in standard deviations of the noise", 3, None),
    "residual_sample": Figure("residual of a sample", "misfit of one sample, in deviations of the noise", 3, 1.0),
    "diversity": Figure("diversity", "root mean square distance of two samples, a pixel", 4, None),
    "mean_error": Figure("mean error", "distance of the mean from the exact one, in exact deviations", 3, "low"),
    "std_ratio": Figure("std ratio", "root mean square of the standard deviation over the exact one", 3, 1.0),
    "distance": Figure("distance", "sliced 2-Wasserstein distance from exact draws, over that of exact ones", 2, 1.0),
}
"""What each figure is, in the order of tables. LPIPS needs its network; the last three, a posterior that is known."""

MAIN = (
    "psnr", "ssim", "psnr_sample", "lpips", "lpips_sample", "crps", "coverage_50", "coverage_90", "spread_skill",
    "residual_sample", "mean_error", "std_ratio", "distance",
)  # fmt: skip
"""The figures that tables for reading show; files hold all."""

SQUARED = {"spread_skill": ("variance", "square_error")}
"""Figures of many images that are the root of a ratio of means, not a mean of ratios."""

Exact = Callable[[Tensor], Any]
"""Maps measurements to their exact posterior, which has a `mean`, a `std` and draws by `sample(n, seed=...)`."""


def figures(
    answer: Answer,
    x: Image,
    task: Task,
    law: Any = None,
    seed: int = 0,
    lpips: Callable[[Image, Image], PerImage] | None = None,
) -> dict[str, PerImage]:
    r"""Returns the figures of an answer, `(B,)` each.

    The energy score is, like :func:`emprior.metrics.crps`, the fair estimate, divided by the root of the number of
    pixels `d`:

    .. math:: \frac{1}{\sqrt{d}} \left(\frac{1}{S} \sum_i \|x_i - x_\mathrm{true}\|
              - \frac{1}{2 S (S - 1)} \sum_{i, j} \|x_i - x_j\|\right).

    The variance that is compared with the squared error of the mean is unbiased; where both come from the same `S`
    draws it is :math:`\frac{S + 1}{S}` times that of the draws, as the mean of few draws errs more.

    References:
        | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting and Raftery, 2007)
        | https://doi.org/10.1198/016214506000001437
        | Why Should Ensemble Spread Match the RMSE of the Ensemble Mean? (Fortin et al., 2014)
        | https://doi.org/10.1175/JHM-D-14-0008.1

    Arguments:
        answer: What a method gave.
        x: The true images, `(B, *shape)`.
        task: What it was given.
        law: The exact posterior, where it is known.
        seed: The seed of its draws.
        lpips: A distance of images, where one is given.
    """
    fidelity = task.fidelity()
    out = {"psnr": psnr(answer.estimate, x), "residual": fidelity.residual(answer.estimate)}
    out["square_error"] = (answer.estimate - x).square().flatten(1).mean(1)
    large = x.ndim == 4 and min(x.shape[-2:]) >= WINDOW
    if large:
        out["ssim"] = ssim(answer.estimate, x)
    if lpips is not None:
        out["lpips"] = lpips(answer.estimate, x)
    if answer.samples is not None:
        single = answer.samples[0]
        out |= {"psnr_sample": psnr(single, x), "residual_sample": fidelity.residual(single)}
        out |= {"ssim_sample": ssim(single, x)} if large else {}
        out |= {} if lpips is None else {"lpips_sample": lpips(single, x)}
    if answer.samples is not None and len(answer.samples) > 1:
        out |= _spread(answer, x)
    if law is not None:
        out |= _truth(answer, law, seed)
    return {name: values.double().cpu() for name, values in out.items()}


def summary(name: str, rows: dict[str, Tensor]) -> Tensor:
    r"""Returns a figure of many images, of resampled ones `(..., n)` for each resampling.

    Arguments:
        name: A key of :data:`FIGURES`.
        rows: The figures of the images, by name.
    """
    if name in SQUARED:
        above, below = SQUARED[name]
        return (rows[above].mean(-1) / rows[below].mean(-1)).sqrt()
    return rows[name].mean(-1)


def parts(name: str) -> tuple[str, ...]:
    r"""Returns the entries for each image that a figure is made of."""
    return SQUARED.get(name, (name,))


def _spread(answer: Answer, x: Image) -> dict[str, PerImage]:
    assert answer.samples is not None
    draws, count = answer.samples, len(answer.samples)
    far, apart = _distances(draws, x)
    variance = draws.var(0) * (count + 1) / count if answer.std is None else answer.std.square()
    return {
        "crps": crps(draws, x),
        "coverage_50": coverage(draws, x, 0.5),
        "coverage_90": coverage(draws, x, 0.9),
        "variance": variance.flatten(1).mean(1),
        "energy_score": far - apart.mean(0) / 2,
        "diversity": apart.square().mean(0).sqrt(),
    }


def _distances(draws: Tensor, x: Image) -> tuple[PerImage, Tensor]:
    r"""Returns the mean distance of draws from the truth `(B,)`, and those of all pairs `(pairs, B)`, a pixel."""
    size = x[0].numel() ** 0.5
    far = (draws - x).flatten(2).norm(dim=2).mean(0) / size
    pairs = torch.combinations(torch.arange(len(draws)))
    return far, torch.stack([(draws[i] - draws[j]).flatten(1).norm(dim=1) / size for i, j in pairs.tolist()])


def _truth(answer: Answer, law: Any, seed: int) -> dict[str, PerImage]:
    mean, std = law.mean.to(answer.estimate), law.std.to(answer.estimate)
    scale = std.square().flatten(1).mean(1).sqrt()
    out = {"mean_error": (answer.estimate - mean).square().flatten(1).mean(1).sqrt() / scale}
    if answer.samples is None or len(answer.samples) < 2:
        return out
    count = len(answer.samples)
    variance = answer.samples.var(0) if answer.std is None else answer.std.square()
    out["std_ratio"] = variance.flatten(1).mean(1).sqrt() / scale
    first, second = law.sample(2 * count, seed=seed).flatten(2).double().split(count)
    draws = answer.samples.flatten(2).double().to(first)
    ratios = [
        sliced(draws[:, b], first[:, b]) / max(sliced(second[:, b], first[:, b]), math.ulp(1.0))
        for b in range(draws.shape[1])
    ]
    out["distance"] = torch.tensor(ratios)
    return out
