r"""The operators that a problem file may name, with their options.

It imports deepinv, which is slow; import it inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import deepinv
import torch
from torch import Tensor

from emprior._noise import generator
from emprior._physics import BlurFFT, Downsampling, MatrixPhysics

Shape: TypeAlias = tuple[int, int, int]

REQUIRED = object()
LARGEST_MATRIX = 2**29
"""The most entries of a dense matrix, 2 GiB in single precision."""


class OptionError(ValueError):
    r"""An option that does not go with the image's shape."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Option:
    r"""A key of an operator: what its values may be, in words and as a test, and its default."""

    words: str
    accepts: Callable[[Any], bool]
    default: Any = REQUIRED


def denoising(shape: Shape) -> deepinv.physics.Physics:
    r"""The identity."""
    return deepinv.physics.Denoising()


def inpainting(shape: Shape, missing: float, pixelwise: bool, seed: int) -> deepinv.physics.Physics:
    r"""Drops a share of the pixels, or of the numbers, drawn once; the count of those dropped is exact."""
    _, *sides = shape
    mask = torch.ones(1, *sides) if pixelwise else torch.ones(shape)
    order = torch.randperm(mask.numel(), generator=generator(seed, "inpainting"))
    mask.view(-1)[order[: round(missing * mask.numel())]] = 0
    return deepinv.physics.Inpainting(img_size=shape, mask=mask.expand(shape).clone())


def box_inpainting(shape: Shape, side: int, top: int | None, left: int | None) -> deepinv.physics.Physics:
    r"""Drops a square, by default the one in the middle."""
    _, height, width = shape
    if side > min(height, width):
        raise OptionError("side", f"a box of side {side} does not fit into images of {height} x {width}.")
    top = (height - side) // 2 if top is None else top
    left = (width - side) // 2 if left is None else left
    for key, start, room in (("top", top, height - side), ("left", left, width - side)):
        if start > room:
            raise OptionError(key, f"{key!r} is {start}, so the box leaves the image; it may be {room} at most.")
    mask = torch.ones(shape)
    mask[:, top : top + side, left : left + side] = 0
    return deepinv.physics.Inpainting(img_size=shape, mask=mask)


def blur(shape: Shape, sigma: float) -> deepinv.physics.Physics:
    r"""Circular convolution with a Gaussian of a standard deviation in pixels, cut at four of these."""
    side = 2 * math.ceil(4 * sigma) + 1
    _check_kernel("sigma", side, shape)
    offsets = torch.arange(side, dtype=torch.float64) - side // 2
    profile = torch.exp(-(offsets**2) / (2 * sigma**2))
    return _convolution(shape, profile[:, None] * profile)


def motion_blur(shape: Shape, size: int, spread: float, seed: int) -> deepinv.physics.Physics:
    r"""Circular convolution with the trace of a random walk, `spread` half-sides of the kernel wide."""
    _check_kernel("size", size, shape)
    walk = deepinv.physics.generator.MotionBlurGenerator(
        (size, size), rng=generator(seed, "motion blur"), sigma=spread, dtype=torch.float64
    )
    return _convolution(shape, walk.step(batch_size=1)["filter"][0, 0])


def downsampling(shape: Shape, factor: int, filter: str) -> deepinv.physics.Physics:
    r"""Circular convolution with an anti-aliasing filter, then every `factor`-th pixel."""
    _, height, width = shape
    if height % factor or width % factor:
        raise OptionError("factor", f"'factor' is {factor}, which does not divide the sides {height} x {width}.")
    weights = FILTERS[filter](factor)
    _check_kernel("factor", max(weights.shape[-2:]), shape)
    return Downsampling(img_size=shape, filter=weights, factor=factor, padding="circular")


def compressed_sensing(shape: Shape, ratio: float, seed: int) -> deepinv.physics.Physics:
    r"""A dense matrix of white noise, of variance `1/m`, on all the numbers of an image."""
    columns = math.prod(shape)
    rows = max(1, round(ratio * columns))
    if rows * columns > LARGEST_MATRIX:
        raise OptionError("ratio", f"the matrix would be {rows} x {columns}, too large; use type single_pixel instead.")
    matrix = torch.randn(rows, columns, generator=generator(seed, "compressed sensing")) / math.sqrt(rows)
    return MatrixPhysics(matrix, shape)


def single_pixel(shape: Shape, ratio: float, ordering: str) -> deepinv.physics.Physics:
    r"""A share of the Hadamard coefficients of each channel."""
    _, height, width = shape
    if height & (height - 1) or width & (width - 1):
        raise OptionError("type", f"single_pixel needs sides that are powers of 2, not {height} x {width}.")
    if ordering == "cake_cutting" and height != width:
        raise OptionError("ordering", f"'cake_cutting' needs square images, not {height} x {width}.")
    return deepinv.physics.SinglePixelCamera(
        m=max(1, round(ratio * height * width)),
        img_size=shape,
        ordering=ordering,
        rng=generator(0, "single pixel"),
    )


def is_number(value: Any) -> bool:
    r"""Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int = 1) -> bool:
    r"""Whether a value is a whole number, `least` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _fraction() -> Option:
    return Option("a number between 0 and 1", lambda value: is_number(value) and 0 < value < 1)


def _positive(default: Any = REQUIRED) -> Option:
    return Option("a positive number", lambda value: is_number(value) and value > 0, default)


def _count() -> Option:
    return Option("a whole number, 1 or more", is_count)


def _place(default: Any = REQUIRED) -> Option:
    return Option("a whole number, 0 or more", lambda value: is_count(value, least=0), default)


def _choice(*names: str, default: Any = REQUIRED) -> Option:
    return Option(f"one of {', '.join(names)}", lambda value: value in names, default)


FILTERS: dict[str, Callable[[int], Tensor]] = {
    "bicubic": deepinv.physics.functional.bicubic_filter,
    "bilinear": deepinv.physics.functional.bilinear_filter,
    "gaussian": lambda factor: deepinv.physics.functional.gaussian_blur(sigma=(factor, factor)),
}
"""The anti-aliasing filter of each name, by the factor; the Gaussian has a standard deviation of `factor` pixels."""

OPERATORS: dict[str, tuple[Callable[..., deepinv.physics.Physics], dict[str, Option]]] = {
    "denoising": (denoising, {}),
    "inpainting": (
        inpainting,
        {
            "missing": _fraction(),
            "pixelwise": Option("true or false", lambda value: isinstance(value, bool), True),
            "seed": _place(),
        },
    ),
    "box_inpainting": (box_inpainting, {"side": _count(), "top": _place(None), "left": _place(None)}),
    "blur": (blur, {"sigma": _positive()}),
    "motion_blur": (motion_blur, {"size": _count(), "spread": _positive(0.25), "seed": _place()}),
    "downsampling": (downsampling, {"factor": _count(), "filter": _choice(*FILTERS, default="bicubic")}),
    "compressed_sensing": (compressed_sensing, {"ratio": _fraction(), "seed": _place()}),
    "single_pixel": (
        single_pixel,
        {
            "ratio": _fraction(),
            "ordering": _choice("sequency", "cake_cutting", "zig_zag", "xy", default="sequency"),
        },
    ),
}
"""The builder of each operator type, and its options."""


def _convolution(shape: Shape, kernel: Tensor) -> BlurFFT:
    kernel = (kernel / kernel.sum()).float()
    return BlurFFT(img_size=shape, filter=kernel[None, None])


def _check_kernel(key: str, side: int, shape: Shape) -> None:
    if side > min(shape[1:]):
        raise OptionError(key, f"the kernel would be {side} pixels wide, wider than images of {shape[1]} x {shape[2]}.")
