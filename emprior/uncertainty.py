r"""What samples of a posterior are good for: intervals, probabilities, regions, and their calibration."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from emprior._check import check_level
from emprior._files import atomic
from emprior._types import Image, PerImage
from emprior.sketch import Sketch

FORMAT = "emprior conformal 1"


def interval(samples: Sketch | Tensor, level: float) -> tuple[Image, Image]:
    r"""Returns the equal-tailed credible interval of each pixel, low and high, `(B, *shape)` each,

    .. math:: \left[ Q\left(\tfrac{1 - l}{2}\right),\; Q\left(\tfrac{1 + l}{2}\right) \right],

    with `Q` the quantiles of the samples. Of `S` independent samples it holds a further one with a probability of
    about :math:`l (S - 1) / (S + 1)`: few samples give intervals that are short of their level.

    Arguments:
        samples: A sketch, or samples `(S, B, *shape)`.
        level: The level `l`, between 0 and 1.

    Raises:
        ValueError: The level is out of range, or there are no samples.

    Example:
        >>> low, high = interval(torch.linspace(0, 1, 101)[:, None, None], 0.9)
        >>> round(low.item(), 4), round(high.item(), 4)
        (0.05, 0.95)
    """
    check_level(level)
    low, high = _sketched(samples).quantile([(1 - level) / 2, (1 + level) / 2])
    return low, high


def exceedance(samples: Sketch | Tensor, threshold: float | Image) -> Image:
    r"""Returns the posterior probability that each pixel is above a threshold, `(B, *shape)`.

    Arguments:
        samples: A sketch, or samples `(S, B, *shape)`.
        threshold: A number, or one for each pixel.

    Raises:
        ValueError: There are no samples.

    Example:
        >>> exceedance(torch.tensor([0.1, 0.4, 0.6, 0.7])[:, None, None], 0.5)
        tensor([[0.5000]])
    """
    return _sketched(samples).probability(threshold)


def hpd_member(energy: PerImage, energies: Tensor, level: float) -> Tensor:
    r"""Returns whether images lie in the region of highest posterior density that holds a share `level`, `(B,)`,

    .. math:: C_l = \{x : U(x) \le \gamma_l\}, \qquad P(U(x) \le \gamma_l \mid y) = l,

    with `U` the posterior energy and :math:`\gamma_l` the :math:`\lceil l (N + 1) \rceil`-th smallest of the
    energies of `N` samples: a further independent sample is then a member with a probability between `l` and
    :math:`l + 1 / (N + 1)`. Where that rank exceeds `N`, all images are members: there are too few samples to rule
    one out. To ask whether the data support a structure, take it out of the image and ask for what remains.

    References:
        | Maximum-a-posteriori estimation with Bayesian confidence regions (Pereyra, 2017)
        | https://arxiv.org/abs/1602.08590

    Arguments:
        energy: The posterior energies of the images, `(B,)`, in nats and of the same terms as those of the samples.
        energies: The energies of the samples, `(N, B)`; those of `S` chains are flattened, `(K S, B)`.
        level: The level `l`, between 0 and 1.

    Raises:
        ValueError: The shapes do not fit, or the level is out of range.

    Example:
        >>> hpd_member(torch.tensor([2.0, 9.5]), torch.arange(9.0)[:, None].expand(9, 2), 0.9)
        tensor([ True, False])
    """
    check_level(level)
    if energy.ndim != 1 or energies.ndim != 2 or energies.shape[1:] != energy.shape or len(energies) == 0:
        raise ValueError(
            f"energy has shape {tuple(energy.shape)} and energies have shape {tuple(energies.shape)}, expected (B,) "
            "and (N, B). Flatten the chains: energies.flatten(0, 1)."
        )
    rank = _rank(level * (len(energies) + 1))
    if rank > len(energies):
        return torch.ones_like(energy, dtype=torch.bool)
    return energy <= energies.kthvalue(rank, 0).values


def coverage(low: Image, high: Image, truth: Image) -> PerImage:
    r"""Returns the share of pixels whose truth lies between two bounds, which belong to the interval, `(B,)`.

    To judge samples themselves at any number of them, see :func:`emprior.metrics.coverage`.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> coverage(torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([[-1.0, 0.0, 0.5, 2.0]]))
        tensor([0.5000])
    """
    _check_alike(low=low, high=high, truth=truth)
    return ((low <= truth) & (truth <= high)).to(low.dtype).flatten(1).mean(1)


@dataclass(frozen=True)
class Conformal:
    r"""Intervals :math:`[m - \lambda w, m + \lambda w]` whose coverage holds whatever the prior is worth.

    With the scores :math:`s_{ip} = |x_{ip} - m_{ip}| / w_{ip}` of the `P` pixels of `n` calibration images,
    :math:`\lambda` is the :math:`\lceil l (n + 1) P \rceil`-th smallest of all of them. If a further image and the
    calibration images are exchangeable, the share of its pixels in the interval satisfies

    .. math:: l \le \mathbb{E} \left[ \frac{1}{P} \sum_p 1\left(|x_p - m_p| \le \lambda w_p\right) \right]
              \le l + \frac{2}{n + 1},

    the right side if the images are independent and no two scores equal. The mean is over pixels, over the further
    image and over calibration sets; pixels may depend on each other, but no single image, pixel or region is promised
    the level. This is conformal risk control with the share of missed pixels as the loss, for `P = 1` split conformal
    prediction. The image-to-image regression of Angelopoulos et al. (2022), whose scaled intervals these are, holds
    with high probability over calibration sets instead of on average over them, and is wider for that.

    References:
        | Image-to-Image Regression with Distribution-Free Uncertainty Quantification and Applications in Imaging
        | (Angelopoulos et al., 2022)
        | https://arxiv.org/abs/2202.05265

        | Conformal Risk Control (Angelopoulos et al., 2022)
        | https://arxiv.org/abs/2208.02814

    Arguments:
        scale: The factor :math:`\lambda`.
        level: The level `l` that it was fitted for.
        images: The number of calibration images, `n`.
    """

    scale: float
    level: float
    images: int

    @staticmethod
    def fit(mean: Image, width: Image, truth: Image, level: float) -> Conformal:
        r"""Finds the factor on calibration images, which neither trained the prior nor tuned the method.

        Arguments:
            mean: The estimates `m`, `(n, *shape)`.
            width: The posterior standard deviations or half-widths of intervals `w`, `(n, *shape)`, not negative. A
                pixel of no width is covered if it is exact, and by no factor otherwise.
            truth: The true images, `(n, *shape)`.
            level: The level `l`, between 0 and 1.

        Raises:
            ValueError: The shapes differ, a width is negative or not a number, there are fewer than
                :math:`l / (1 - l)` images, or more pixels than the level allows miss by no width.
        """
        check_level(level)
        _check_alike(mean=mean, width=width, truth=truth)
        if not bool((width >= 0).all()):
            raise ValueError("width holds values that are negative or NaN. Pass standard deviations, as Result.std is.")
        images, pixels = len(truth), truth[0].numel()
        rank = _rank(level * (images + 1) * pixels)
        if rank > images * pixels:
            raise ValueError(
                f"{images} calibration images cannot promise a level of {level}: pass at least "
                f"{_rank(level / (1 - level))}, or take a level of at most {images / (images + 1):.3g}."
            )
        miss = (truth - mean).abs()
        score = torch.where(miss == 0, torch.zeros_like(miss), miss / width)
        scale = score.flatten().kthvalue(rank).values.item()
        if not math.isfinite(scale):
            raise ValueError(
                f"no factor reaches a level of {level}: too many pixels have a width of zero and miss, or are NaN. "
                "Give the widths a floor, such as width.clamp(min=1e-3)."
            )
        return Conformal(scale, level, images)

    def apply(self, mean: Image, width: Image) -> tuple[Image, Image]:
        r"""Returns the interval of each pixel, low and high, `(B, *shape)` each.

        Arguments:
            mean: The estimates `m`, `(B, *shape)`.
            width: The widths `w`, `(B, *shape)`, of the kind that was fitted.

        Raises:
            ValueError: The shapes differ.
        """
        _check_alike(mean=mean, width=width)
        return mean - self.scale * width, mean + self.scale * width

    def save(self, path: str | os.PathLike[str]) -> None:
        r"""Writes the three numbers as JSON.

        Raises:
            OSError: The file cannot be written.
        """
        with atomic(path) as file:
            file.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Conformal:
        r"""Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds something else.
        """
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
            if given["format"] != FORMAT:
                raise ValueError(f"its format is {given['format']!r}, where this version reads {FORMAT!r}")
            return Conformal(float(given["scale"]), float(given["level"]), int(given["images"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no calibration: {error}. Give a file that Conformal.save wrote.") from error


def _sketched(samples: Sketch | Tensor) -> Sketch:
    if isinstance(samples, Sketch):
        return samples
    exact = Sketch(max(2, len(samples) + len(samples) % 2))
    exact.add(samples)
    return exact


def _rank(product: float) -> int:
    r"""Rounds up, but not for the rounding of a product such as 0.55 times 20."""
    return math.ceil(round(product, 6))


def _check_alike(**images: Tensor) -> None:
    shapes = {name: tuple(image.shape) for name, image in images.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) < 2 for shape in shapes.values()):
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"the shapes are {given}. Give all as (B, *shape); x[None] makes a batch of one image.")
