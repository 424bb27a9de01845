r"""Linear algebra of the analytic priors: covariances in eigenform, and operators as matrices."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from emprior._bands import Spectrum
from emprior._noise import generator
from emprior._types import Image

LOG_2PI = math.log(2 * math.pi)

PROBES = 16
"""The probes of each band that a spectrum is measured with."""


class Covariance(nn.Module, ABC):
    r"""`K` covariances in eigenform,

    .. math:: C_k = Q_k \Lambda_k Q_k^\top + \nu_k (I - Q_k Q_k^\top), \qquad
              f(C_k) = Q_k f(\Lambda_k) Q_k^\top + f(\nu_k) (I - Q_k Q_k^\top),

    with orthonormal columns in :math:`Q_k`, so that inverses, square roots and Wiener filters are
    all a function of the eigenvalues. The second term is there for a thin :math:`Q_k` only.

    Arguments:
        values: The eigenvalues :math:`\Lambda`, `(K, r)`.
        size: The number `d` of pixels.
        floor: The eigenvalue :math:`\nu` of the complement, `(K, 1)`, or none where `r = d`.
    """

    values: Tensor
    floor: Tensor | None

    def __init__(self, values: Tensor, size: int, floor: Tensor | None = None) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("values", values.detach().clone())
        self.register_buffer("floor", None if floor is None else floor.detach().clone())

    @abstractmethod
    def to_basis(self, v: Tensor) -> Tensor:
        r"""Maps rows `(B, K, d)` to their coordinates :math:`Q^\top v`, `(B, K, r)`."""

    @abstractmethod
    def from_basis(self, c: Tensor) -> Tensor:
        r"""Maps coordinates `(B, K, r)` to rows :math:`Q c`, `(B, K, d)`."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        r"""Returns the variances of the pixels, `(K, d)`."""

    def filter(self, v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        r"""Returns :math:`f(C_k) v` of rows `(B, K, d)` for an elementwise function of the eigenvalues."""
        c = self.to_basis(v)
        out = self.from_basis(c * function(self.values))
        return out if self.floor is None else out + function(self.floor) * (v - self.from_basis(c))

    def mahalanobis(self, v: Tensor, variance: Tensor | float = 0.0) -> Tensor:
        r"""Returns :math:`v^\top (C_k + s^2 I)^{-1} v`, `(B, K)`, for a variance `s²` of shape `(B, 1, 1)`."""
        c = self.to_basis(v)
        out = (c.square() / (self.values + variance)).sum(-1)
        if self.floor is None:
            return out
        return out + ((v - self.from_basis(c)).square() / (self.floor + variance)).sum(-1)

    def log_density(self, v: Tensor, variance: Tensor | float = 0.0) -> Tensor:
        r"""Returns :math:`\log \mathcal{N}(v; 0, C_k + s^2 I)`, `(B, K)`."""
        determinant = (self.values + variance).log().sum(-1)
        if self.floor is not None:
            determinant = determinant + (self.size - self.values.shape[-1]) * (self.floor + variance).log().sum(-1)
        return -0.5 * (self.mahalanobis(v, variance) + determinant + self.size * LOG_2PI)

    def matrix(self) -> Tensor:
        r"""Returns the dense matrices, `(K, d, d)`."""
        basis = torch.eye(self.size, dtype=self.values.dtype, device=self.values.device)
        out = self.filter(basis[:, None].expand(-1, len(self.values), -1), lambda value: value).transpose(0, 1)
        return (out + out.mT) / 2

    def curvature(self) -> float:
        r"""Returns the largest eigenvalue of the precisions."""
        thin = self.floor is not None and self.values.shape[-1] < self.size
        least = self.floor.min() if self.floor is not None and thin else self.values.min()
        return 1 / float(least)

    def spectrum(self, weights: Tensor, shape: tuple[int, ...]) -> Spectrum:
        r"""Returns the curvatures by band of the mean precision :math:`\sum_k w_k C_k^{-1}`, for weights `(K,)`."""

        def precision(v: Image) -> Image:
            rows = v.flatten(1)[:, None].expand(-1, len(weights), -1)
            return (weights[:, None] * self.filter(rows, torch.reciprocal)).sum(1).reshape(v.shape)

        return Spectrum.measure(precision, self.values.new_empty(PROBES, *shape))

    def component(self, k: int, dtype: torch.dtype) -> Covariance:
        r"""Returns :math:`C_k` alone, in another type; a view where the type is the same."""
        out = copy.copy(self)
        buffers = {name: None if b is None else b[k : k + 1].to(dtype) for name, b in self._buffers.items()}
        out.__dict__["_buffers"] = buffers
        return out


class Diagonal(Covariance):
    r"""Independent pixels: :math:`Q = I`."""

    def to_basis(self, v: Tensor) -> Tensor:
        return v

    def from_basis(self, c: Tensor) -> Tensor:
        return c

    def diagonal(self) -> Tensor:
        return self.values


class Stationary(Covariance):
    r"""Periodic stationary channels: :math:`Q` is the Hartley basis, the real form of Fourier's."""

    def __init__(self, values: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(values, math.prod(shape))
        self.shape = shape

    def to_basis(self, v: Tensor) -> Tensor:
        if v.numel() == 0:  # of which libraries make no transform
            return v
        frequencies = torch.fft.fft2(v.unflatten(-1, self.shape), norm="ortho")
        return (frequencies.real - frequencies.imag).flatten(2)

    def from_basis(self, c: Tensor) -> Tensor:
        return self.to_basis(c)

    def diagonal(self) -> Tensor:
        spectrum = self.values.unflatten(-1, self.shape)
        return spectrum.mean((-2, -1), keepdim=True).expand_as(spectrum).flatten(1)


class Rotated(Covariance):
    r"""Any :math:`Q`, thin or square, `(K, d, r)`."""

    basis: Tensor

    def __init__(self, values: Tensor, basis: Tensor, floor: Tensor | None = None) -> None:
        super().__init__(values, basis.shape[1], floor)
        self.register_buffer("basis", basis.detach())

    def to_basis(self, v: Tensor) -> Tensor:
        return torch.einsum("bkd,kdr->bkr", v, self.basis)

    def from_basis(self, c: Tensor) -> Tensor:
        return torch.einsum("bkr,kdr->bkd", c, self.basis)

    def diagonal(self) -> Tensor:
        squares = self.basis.square()
        out = torch.einsum("kdr,kr->kd", squares, self.values)
        return out if self.floor is None else out + self.floor * (1 - squares.sum(-1))


def tabulated(covariances: Tensor, shape: tuple[int, ...]) -> Covariance:
    r"""Reads `K` covariances, full `(K, d, d)` or diagonal `(K, d)` or `(K, *shape)`."""
    size = math.prod(shape)
    given = tuple(covariances.shape[1:])
    check_finite(covariances, "the covariance")
    if given in {tuple(shape), (size,)}:
        values = covariances.flatten(1)
        _check_positive(values)
        return Diagonal(values, size)
    if given != (size, size):
        raise ValueError(
            f"the covariance of one image has shape {given}, but images have shape {tuple(shape)}: pass variances "
            f"of shape {tuple(shape)} or {(size,)}, or a matrix of shape {(size, size)}."
        )
    gap = float((covariances - covariances.mT).abs().max())
    if gap > torch.finfo(covariances.dtype).eps ** 0.5 * float(covariances.abs().max()):
        raise ValueError(
            f"the covariance is not symmetric, |C - C.mT| reaches {gap:.3g}: if that is rounding, pass (C + C.mT) / 2."
        )
    values, basis = torch.linalg.eigh(covariances.double())
    _check_positive(values, covariances.dtype)
    return Rotated(values.to(covariances.dtype), basis.to(covariances.dtype))


def low_rank(factors: Tensor, noise: float | Tensor) -> Covariance:
    r"""Returns :math:`C_k = U_k U_k^\top + \nu_k^2 I` for factors `(K, d, r)` and noise, a number or `(K,)`."""
    check_finite(factors, "factors")
    floor = torch.as_tensor(noise, dtype=factors.dtype, device=factors.device).square()
    if floor.shape not in {(), factors.shape[:1]} or not bool(((floor > 0) & floor.isfinite()).all()):
        raise ValueError(
            f"noise is {noise}, but must be a positive standard deviation, or {len(factors)} of them: "
            "without it U U.mT is singular."
        )
    floor = floor.expand(len(factors))[:, None]
    basis, singular, _ = torch.linalg.svd(factors.double(), full_matrices=False)
    return Rotated(singular.square().to(factors.dtype) + floor, basis.to(factors.dtype), floor)


def stationary(spectrum: Tensor) -> Covariance:
    r"""Returns the circulant covariance with the eigenvalues `(*lead, H, W)`, in the order of `torch.fft.fft2`."""
    check_finite(spectrum, "the spectrum")
    check_even(spectrum, "the spectrum")
    _check_positive(spectrum, spectrum.dtype)
    return Stationary(spectrum.flatten()[None], tuple(spectrum.shape))


def check_even(values: Tensor, what: str) -> None:
    r"""Raises unless values at :math:`(h, w)` and :math:`(-h, -w)`, modulo the size, agree."""
    gap = float((values - values.flip(-2, -1).roll((1, 1), (-2, -1))).abs().max())
    if gap > torch.finfo(values.dtype).eps ** 0.5 * float(values.abs().max()):
        raise ValueError(
            f"{what} is not even, its entries at (h, w) and (-h, -w) differ by up to {gap:.3g}: put the origin at "
            "index (0, 0), with torch.fft.ifftshift if it is centred."
        )


def check_finite(values: Tensor, what: str) -> None:
    r"""Raises unless all values are finite floating-point numbers."""
    if not values.is_floating_point():
        raise ValueError(f"{what} is {values.dtype}: pass real floating-point numbers, with .float() or .double().")
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"{what} has {int((~values.isfinite()).sum())} entries that are not finite: remove them first."
        )


def check_images(x: Tensor, mean: Tensor, shape: tuple[int, ...]) -> None:
    r"""Raises unless `x` is a batch of images of that shape and of the type of the mean."""
    if tuple(x.shape[1:]) != shape or x.ndim == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, but this prior expects images of shape (B, {str(shape)[1:]}.")
    if x.dtype != mean.dtype:
        raise ValueError(f"x is {x.dtype}, but this prior is {mean.dtype}: move it once, with prior.to({x.dtype}).")


def as_variance(sigma: float | Tensor, x: Tensor) -> Tensor:
    r"""Returns `sigma²`, `(1, 1, 1)` or `(B, 1, 1)`, for a number or one for each image."""
    deviation = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if deviation.ndim and deviation.shape != x.shape[:1]:
        raise ValueError(
            f"sigma has shape {tuple(deviation.shape)}: pass a number, or one for each of {len(x)} images."
        )
    if not bool((deviation >= 0).all()):
        raise ValueError(f"sigma is {sigma}, but is a standard deviation: pass numbers that are not negative.")
    return deviation.square().reshape(-1, 1, 1)


def _check_positive(values: Tensor, dtype: torch.dtype | None = None) -> None:
    least, largest = float(values.min()), float(values.max())
    if least <= (torch.finfo(dtype).eps * largest if dtype else 0.0):
        raise ValueError(
            f"the covariance is not positive definite, its eigenvalues reach from {least:.3g} to {largest:.3g}: add a "
            "small variance to each pixel, such as covariance + 1e-4 * torch.eye(d)."
        )


@torch.no_grad()
def as_matrix(operator: Any, y: Any, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Returns a linear operator as a float64 matrix `(m, d)`, and measurements that it fits as rows `(B, m)`."""
    apply = getattr(operator, "A", operator)
    if isinstance(operator, Tensor) or not callable(apply):
        raise ValueError(
            f"operator is a {type(operator).__name__}: pass a deepinv physics or a function of images; for a matrix, "
            "lambda x: x.flatten(1) @ matrix.mT."
        )
    dtype, example = _probe(apply, shape, device)
    given, expected = _shapes(y), _shapes(example)
    if [part[1:] for part in given] != [part[1:] for part in expected]:
        raise ValueError(
            f"y has shape {given}, but this operator maps images {(1, *shape)} to measurements {expected}: pass y of "
            "that shape, with any batch size in front."
        )
    _check_linear(apply, shape, dtype, device)
    return _matrix(apply, shape, dtype, device), _flat(y)


def _flat(y: Any) -> Tensor:
    r"""Returns measurements as real rows `(B, m)`; lists are joined and complex numbers split."""
    parts = getattr(y, "x", y)  # deepinv's TensorList
    if isinstance(parts, list | tuple):
        return torch.cat([_flat(part) for part in parts], 1)
    return (torch.view_as_real(parts) if parts.is_complex() else parts).reshape(len(parts), -1)


def _shapes(y: Any) -> list[tuple[int, ...]]:
    parts = getattr(y, "x", y)
    return [tuple(part.shape) for part in (parts if isinstance(parts, list | tuple) else [parts])]


def _probe(apply: Callable[[Tensor], Any], shape: tuple[int, ...], device: torch.device) -> tuple[torch.dtype, Any]:
    r"""Finds the most precise type of images that the operator takes, and its measurements of a zero image."""
    errors = []
    for dtype in (torch.float64, torch.float32):
        try:
            example = apply(torch.zeros(1, *shape, dtype=dtype, device=device))
        except RuntimeError as error:
            errors.append(error)
            continue
        if len(_flat(example)) != 1:
            raise ValueError(
                f"the operator maps 1 image to {len(_flat(example))} measurements: its masks or filters have a batch "
                "size, so pass the operator of one image at a time."
            )
        return dtype, example
    raise ValueError(
        f"the operator fails on images of shape (1, {str(shape)[1:]} on {device}: give it the shape and the device of "
        f"this prior. It says: {errors[-1]}"
    ) from errors[-1]


def _check_linear(
    apply: Callable[[Tensor], Any], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    u, v = torch.randn(2, *shape, generator=generator("linearity"), dtype=torch.float64).to(device, dtype)
    inputs = torch.stack([torch.zeros_like(u), u, v, u - 2 * v])
    rows = torch.cat([_flat(apply(one[None])) for one in inputs]).double()
    scale, offset = float(rows.abs().max()), float(rows[0].abs().max())
    gap = float((_flat(apply(inputs))[3] - rows[1] + 2 * rows[2]).abs().max())
    if offset > 1e-6 * scale or not gap <= 1e-4 * scale:
        raise ValueError(
            f"the operator is not linear, |A(0)| is {offset:.3g} and |A(u - 2 v) - A(u) + 2 A(v)| is {gap:.3g} where "
            f"its values reach {scale:.3g}: subtract the offset A(0) from it and from y, or, where it is not affine, "
            "sample the posterior with emprior.solve."
        )


def _matrix(
    apply: Callable[[Tensor], Any], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, chunk: int = 256
) -> Tensor:
    size, columns = math.prod(shape), []
    for start in range(0, size, chunk):
        index = torch.arange(start, min(start + chunk, size), device=device)
        basis = torch.zeros(len(index), size, dtype=dtype, device=device).scatter_(1, index[:, None], 1.0)
        columns.append(_flat(apply(basis.reshape(-1, *shape))).double())
    matrix = torch.cat(columns).mT.contiguous()
    check_finite(matrix, "the operator's matrix")
    return matrix
