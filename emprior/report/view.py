r"""What there is to show of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emprior.metrics import psnr, ssim
from emprior.result import VECTORS, Result
from emprior.uncertainty import coverage

LEVELS = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
"""The nominal coverages at which intervals are asked."""

NO_TRACE = "There are no traces of the energy; a batch keeps them with --save traces."


@dataclass(frozen=True, eq=False)
class View:
    r"""An image and what is known of it; what is not known is `None` or empty.

    Arguments:
        name: What it is called.
        estimate: The estimate, `shape`; `None` where there is none, as of an item that failed.
        mean: The posterior mean, `shape`.
        std: The posterior standard deviation, `shape`.
        samples: Samples, `(S, *shape)`.
        measurement: The measurements.
        truth: The true image, `shape`.
        residual: :math:`(y - A x) / \sigma` at the estimate where the operator sees the image, flat.
        trace: Terms of the energy, `(K, S)` each, and their `"step"`, `(K,)`.
        clock: What those steps count.
        shares: The share of true pixels inside their intervals at each of `LEVELS`.
        figures: Numbers by the names of `emprior.report.figures`.
        status: How its run ended.
        good: Whether it can be used as it is.
        verdict: Whether its samples can be believed, and why not.
        missing: What is left out, and why, a sentence each.
    """

    name: str
    estimate: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    samples: Tensor | None = None
    measurement: Tensor | None = None
    truth: Tensor | None = None
    residual: Tensor | None = None
    trace: dict[str, Tensor] = field(default_factory=dict)
    clock: str = "step"
    shares: Tensor | None = None
    figures: dict[str, float] = field(default_factory=dict)
    status: str = ""
    good: bool = True
    verdict: str = ""
    missing: tuple[str, ...] = ()


def views(result: Result, truth: Tensor | None = None, residuals: Sequence[Tensor] | str = "") -> list[View]:
    r"""Returns what there is to show of each image of a result.

    Arguments:
        result: The result, on the CPU.
        truth: The true images, of the estimate's shape, or one of a single image without the batch dimension.
        residuals: Those of each image in units of the noise, or why there are none.

    Raises:
        ValueError: The truth does not fit the result.
    """
    truths = None if truth is None else _fitting(truth, result)
    absent = tuple(_absent(result, truths, residuals))
    known = None if isinstance(residuals, str) else residuals
    return [
        _view(result, index, None if truths is None else truths[index], known[index] if known else None, absent)
        for index in range(len(result.estimate))
    ]


def scores(estimate: Tensor, truth: Tensor) -> dict[str, float]:
    r"""Returns how close an estimate is to the truth."""
    out = {"psnr": float(psnr(estimate[None], truth[None]))}
    if estimate.ndim == 3 and min(estimate.shape[-2:]) >= 7:
        out["ssim"] = float(ssim(estimate[None], truth[None]))
    return out


def _view(result: Result, index: int, truth: Tensor | None, residual: Tensor | None, absent: tuple[str, ...]) -> View:
    run = result.diagnostics
    status = run.status[index] if index < len(run.status) else result.status
    verdict = run.verdict[index] if index < len(run.verdict) else ""
    sampled = result.std is not None or len(result.samples) > 1
    shares = _shares(result, index, truth) if truth is not None and result.sketches else None
    return View(
        name=f"Image {index + 1}",
        estimate=result.estimate[index],
        mean=None if torch.equal(result.mean[index], result.estimate[index]) else result.mean[index],
        std=None if result.std is None else result.std[index],
        samples=result.samples[:, index] if sampled else None,
        measurement=None if result.measurement is None else result.measurement[index],
        truth=truth,
        residual=residual,
        trace=run.history(index),
        clock="draw after the burn-in" if run.chains else "step",
        shares=shares,
        figures=_figures(result, index, truth, shares),
        status=status.value,
        good=status.ok and not verdict.startswith("not "),
        verdict=verdict,
        missing=absent,
    )


def _figures(result: Result, index: int, truth: Tensor | None, shares: Tensor | None) -> dict[str, float]:
    run = result.diagnostics
    out = {} if truth is None else scores(result.estimate[index], truth)
    if shares is not None:
        out["coverage"] = float(shares[-2])
    vectors = {name: getattr(run, name) for name in VECTORS}
    out |= {name: float(vector[index]) for name, vector in vectors.items() if vector is not None and len(vector)}
    trace = run.history(index)
    ends = trace if run.chains else {name: entry[-1:] for name, entry in trace.items()}
    return out | {name: float(ends[name].double().mean()) for name in ("energy", "fidelity", "prior") if name in ends}


def _shares(result: Result, index: int, truth: Tensor) -> Tensor:
    r"""Returns the share of true pixels in the equal-tailed interval of each of `LEVELS`."""
    edges = torch.cat([(1 - LEVELS) / 2, (1 + LEVELS) / 2]).tolist()
    low, high = result.sketches[index].quantile(edges)[:, 0].chunk(2)
    return coverage(low, high, truth.to(low).expand_as(low))


def _fitting(truth: Tensor, result: Result) -> Tensor:
    shape = result.estimate.shape
    truth = truth[None] if truth.shape == shape[1:] and len(result.estimate) == 1 else truth
    if truth.shape != shape:
        raise ValueError(
            f"truth has shape {tuple(truth.shape)}, but the estimate has shape {tuple(shape)}. "
            "Give the true image of each of its images, (B, *shape)."
        )
    return truth.detach().cpu().to(result.estimate.dtype)


def _absent(result: Result, truth: Tensor | None, residuals: Sequence[Tensor] | str) -> list[str]:
    sampled = result.std is not None
    return [
        sentence
        for lacking, sentence in (
            (result.measurement is None, "The measurements were not kept with the result."),
            (isinstance(residuals, str), f"There is no histogram of residuals: {residuals}"),
            (not sampled, "There is no standard deviation and no interval: the method finds a mode, not its width."),
            (not result.diagnostics.trace and not result.diagnostics.chains, NO_TRACE),
            (truth is None, "The truth is not known: there is no error, and calibration cannot be seen."),
            (
                sampled and not result.sketches,
                "Calibration needs the quantiles of the samples, which were not kept.",
            ),
        )
        if lacking
    ]
