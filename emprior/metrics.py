r"""How good an estimate is, and how honest its uncertainty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emprior._check import check_level
from emprior._types import Image, PerImage


def psnr(x: Image, truth: Image) -> PerImage:
    r"""Returns the peak signal-to-noise ratio in dB,

    .. math:: -10 \log_{10} \tfrac{1}{n} \|x - x_\mathrm{true}\|^2,

    for a peak of 1. Nothing is clipped; an exact `x` gives infinity.

    Arguments:
        x: Images in `[0, 1]`, `(B, *shape)`.
        truth: The true images, `(B, *shape)`.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> psnr(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 8, 8), 0.5))
        tensor([20.0000])
    """
    x, truth = _alike(x, truth, "x")
    return -10 * (x - truth).square().flatten(1).mean(1).log10()


def ssim(x: Image, truth: Image) -> PerImage:
    r"""Returns the structural similarity, by scikit-image with its defaults.

    These are a uniform window of 7 x 7 pixels, :math:`K_1 = 0.01`, :math:`K_2 = 0.03`, sample
    covariances, and the mean over channels; the data range is 1. The Gaussian window of the paper
    gives other numbers: compare only values of one kind.

    References:
        | Image quality assessment: from error visibility to structural similarity (Wang et al., 2004)
        | https://doi.org/10.1109/TIP.2003.819861

    Arguments:
        x: Images in `[0, 1]`, `(B, C, H, W)`, at least 7 x 7.
        truth: The true images, `(B, C, H, W)`.

    Raises:
        ValueError: The shapes differ, or the images are smaller than the window.
    """
    from skimage.metrics import structural_similarity

    x, truth = _alike(x, truth, "x")
    if x.ndim != 4 or min(x.shape[-2:]) < 7:
        raise ValueError(f"x has shape {tuple(x.shape)}, but ssim wants (B, C, H, W) of at least 7 x 7 pixels.")
    pairs = zip(x.detach().cpu().numpy(), truth.detach().cpu().numpy(), strict=True)
    values = [structural_similarity(a, b, data_range=1.0, channel_axis=0) for a, b in pairs]
    return torch.tensor(values, dtype=x.dtype, device=x.device)


def coverage(samples: Tensor, truth: Image, level: float) -> PerImage:
    r"""Returns the share of pixels whose truth lies in the central credible interval of its samples.

    The truth's rank among `S` samples is uniform on `0, ..., S` if the samples are calibrated, so it
    stands for the :math:`[r, r + 1] / (S + 1)` part of the unit interval. A pixel counts by the share
    of that part inside :math:`[\frac{1 - l}{2}, \frac{1 + l}{2}]`; ties widen it. The expected
    coverage of calibrated samples is then the level :math:`l` for every `S`, where an interval
    between empirical quantiles would fall short. At small `S` a wrong posterior is hard to tell:
    a truth outside all samples counts 0 only from :math:`S + 1 = 2 / (1 - l)` on, 19 samples at
    level 0.9.

    Arguments:
        samples: The samples, `(S, B, *shape)`.
        truth: The true images, `(B, *shape)`.
        level: The level `l`, between 0 and 1.

    Raises:
        ValueError: The shapes do not fit, or the level is not between 0 and 1.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> draws = torch.randn(10, 1, 1, 256, 256, generator=rng)
        >>> round(coverage(draws[1:], draws[0], 0.9).item(), 2)
        0.9
    """
    check_level(level)
    samples, truth = _stacked(samples, truth, 1)
    below, above = (samples < truth).sum(0).to(truth), (samples <= truth).sum(0).to(truth)
    count = len(samples) + 1
    low, high = below / count, (above + 1) / count
    inside = high.clamp(max=(1 + level) / 2) - low.clamp(min=(1 - level) / 2)
    return (inside.clamp(min=0) / (high - low)).flatten(1).mean(1)


def gaussian_coverage(mean: Image, std: Image, truth: Image, level: float) -> PerImage:
    r"""Returns the share of pixels with :math:`|x_\mathrm{true} - m| \le z s`, the Gaussian credible interval.

    Arguments:
        mean: The posterior mean `m`, `(B, *shape)`.
        std: The posterior standard deviation `s`, `(B, *shape)`.
        truth: The true images, `(B, *shape)`.
        level: The level :math:`l = \Phi(z) - \Phi(-z)`, between 0 and 1.

    Raises:
        ValueError: The shapes differ, or the level is not between 0 and 1.

    Example:
        >>> mean, std = torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)
        >>> gaussian_coverage(mean, std, torch.tensor([[[[0.0, 1.0, 1.6, 2.0]]]]), 0.9)
        tensor([0.7500])
    """
    check_level(level)
    mean, truth = _alike(mean, truth, "mean")
    std, _ = _alike(std, truth, "std")
    z = math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()
    return ((truth - mean).abs() <= z * std).to(mean.dtype).flatten(1).mean(1)


def crps(samples: Tensor, truth: Image) -> PerImage:
    r"""Returns the continuous ranked probability score, averaged over pixels,

    .. math:: \frac{1}{S} \sum_i |x_i - x_\mathrm{true}| - \frac{1}{2 S (S - 1)} \sum_{i, j} |x_i - x_j|.

    This is the fair estimate, unbiased for every `S`: lower is better, and in expectation only the
    true posterior is best. It is in the units of the image, and of a point estimate it would be
    the mean absolute error.

    References:
        | Fair scores for ensemble forecasts (Ferro, 2014)
        | https://doi.org/10.1002/qj.2270

    Arguments:
        samples: The samples, `(S, B, *shape)`, at least two.
        truth: The true images, `(B, *shape)`.

    Raises:
        ValueError: The shapes do not fit, or there is only one sample.

    Example:
        >>> crps(torch.tensor([[[0.2]], [[0.6]]]), torch.tensor([[0.5]]))
        tensor([0.])
    """
    samples, truth = _stacked(samples, truth, 2)
    count = len(samples)
    rank = torch.arange(1, count + 1, device=samples.device, dtype=samples.dtype)
    weight = (2 * rank - count - 1) / (count * (count - 1))
    spread = torch.tensordot(weight, samples.sort(0).values, 1)
    return ((samples - truth).abs().mean(0) - spread).flatten(1).mean(1)


def _alike(x: Tensor, truth: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if x.shape != truth.shape or x.ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} and truth has shape {tuple(truth.shape)}. "
            "Give both as (B, *shape); truth[None] makes a batch of one image."
        )
    return _wide(x, truth)


def _stacked(samples: Tensor, truth: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if samples.shape[1:] != truth.shape or truth.ndim < 2:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)} and truth has shape {tuple(truth.shape)}. "
            "Give samples as (S, B, *shape) and truth as (B, *shape), as Result.samples and the true images are."
        )
    if len(samples) < least:
        raise ValueError(f"there are {len(samples)} samples, but at least {least} are needed; raise samples.")
    return _wide(samples, truth)


def _wide(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(x.dtype, truth.dtype), torch.float32)
    return x.to(dtype), truth.to(x.device, dtype)
