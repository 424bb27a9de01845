r"""Operators that deepinv lacks, or whose proximal step or change of type it gets wrong.

It imports deepinv, which is slow; import it inside functions only.
"""

# ruff: noqa: N802 - deepinv calls the operator A.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import deepinv
import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from emprior._rows import column

LARGEST_RANK = 4096
"""The most singular values that are found for an exact proximal step."""

Gamma: TypeAlias = float | Tensor


def refresh(module: nn.Module) -> None:
    r"""Computes the spectrum of a filter anew, in the type and on the device of the filter.

    `nn.Module.to(torch.float64)` turns complex buffers real, and deepinv keeps its spectra in such.
    """
    if getattr(module, "filter", None) is None:
        return
    if isinstance(module, deepinv.physics.BlurFFT):
        spectra = module.get_filter_parameters(module.img_size, module.filter, module.filter.device)
    elif isinstance(module, deepinv.physics.Downsampling):
        size = module.imsize or module.imsize_dynamic
        spectra = module.get_filter_parameters(size, module.filter, module.factor, module.filter.device)
    else:
        return
    module._buffers.update({name: value for name, value in spectra.items() if isinstance(value, Tensor)})


def proximal(operator: Any, z: Tensor, y: Tensor, gamma: float) -> Tensor:
    r"""Returns an operator's own :math:`\arg\min_x \tfrac{\gamma}{2} \|A x - y\|^2 + \tfrac{1}{2} \|x - z\|^2`.

    Where :math:`A = U \, \mathrm{diag}(s) \, V^\top` is known it is computed as

    .. math:: z + V \frac{\bar{s}}{\gamma^{-1} + |s|^2} U^\top (y - A z),

    which keeps single precision at large :math:`\gamma`, where deepinv's form loses four digits.
    """
    if type(operator).prox_l2 is not deepinv.physics.DecomposablePhysics.prox_l2:
        return operator.prox_l2(z, y, gamma)
    s = torch.as_tensor(operator.mask).to(z.device)
    return z + operator.V(operator.U_adjoint(y - operator.A(z)) * (s.conj() / (1 / gamma + s.abs().square())))


class BlurFFT(deepinv.physics.BlurFFT):
    r"""deepinv's circular blur, which survives `.to(torch.float64)`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BlurFFT:
        return _apply_real(self, super()._apply, fn, recurse, ("angle",))


class Downsampling(deepinv.physics.Downsampling):
    r"""deepinv's circular blur and decimation, which survives `.to(torch.float64)`.

    Its proximal step goes through the low-resolution grid, where :math:`A A^\top` is a circular convolution,

    .. math:: z + A^\top (\gamma^{-1} + A A^\top)^{-1} (y - A z)

    and keeps single precision at large :math:`\gamma`, where deepinv's form loses four digits.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Downsampling:
        return _apply_real(self, super()._apply, fn, recurse, ("Fh", "Fhc", "Fh2"))

    def prox_l2(self, z: Any, y: Tensor, gamma: Gamma, use_fft: bool = True, **kwargs: Any) -> Tensor:
        if not use_fft or self.padding != "circular":
            return super().prox_l2(z, y, gamma, use_fft=use_fft, **kwargs)
        z = _start(self, z, y)
        residual = y - self.A(z)
        solved = torch.fft.fft2(residual) / (1 / column(gamma, z).to(z) + self._gain())
        return z + self.A_adjoint(torch.fft.ifft2(solved).real)

    def _gain(self) -> Tensor | float:
        if self.filter is None:
            return 1.0
        power = self.Fh.abs().square()
        *rows, height, width = power.shape
        f = self.factor
        return power.reshape(*rows, f, height // f, f, width // f).mean(dim=(-4, -2))


class MatrixPhysics(deepinv.physics.LinearPhysics):
    r"""The operator :math:`y = M \, \mathrm{vec}(x)`, with an exact proximal step.

    With :math:`M = U S V^\top`, found once,

    .. math:: \arg\min_x \tfrac{\gamma}{2} \|M x - y\|^2 + \tfrac{1}{2} \|x - z\|^2
              = z + V \frac{S}{\gamma^{-1} + S^2} U^\top (y - M z),

    whose factor is at most :math:`\sqrt{\gamma} / 2`, for a singular matrix too.

    Arguments:
        matrix: The matrix, `(m, n)`.
        shape: The shape of one image, of `n` numbers.
    """

    def __init__(self, matrix: Tensor, shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(img_size=tuple(shape), **kwargs)
        self.register_buffer("matrix", matrix)
        self._spectrum: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).mT

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return (y.flatten(1) @ self.matrix.to(y)).reshape(-1, *self.img_size)

    def prox_l2(self, z: Any, y: Tensor, gamma: Gamma, **kwargs: Any) -> Tensor:
        if min(self.matrix.shape) > LARGEST_RANK:
            return super().prox_l2(z, y, gamma, **kwargs)
        z = _start(self, z, y)
        left, values, right = (part.to(z) for part in self.spectrum())
        factor = values / (1 / column(gamma, y).to(z) + values.square())
        return z + (((y - self.A(z)) @ left * factor) @ right).reshape(z.shape)

    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Returns `U`, `S` and :math:`V^\top`, `(m, k)`, `(k,)` and `(k, n)`, with `k` the lesser of `m` and `n`."""
        if self._spectrum is None or self._spectrum[0] is not self.matrix:
            left, values, right = torch.linalg.svd(self.matrix.double(), full_matrices=False)
            self._spectrum = (self.matrix, left.to(self.matrix), values.to(self.matrix), right.to(self.matrix))
        return self._spectrum[1:]


class SciPyPhysics(deepinv.physics.LinearPhysics):
    r"""A `scipy.sparse.linalg.LinearOperator` on flattened images, computed by NumPy in double precision.

    Arguments:
        linear: The operator, `(m, n)`.
        shape: The shape of one image, of `n` numbers.
    """

    def __init__(self, linear: LinearOperator, shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(img_size=tuple(shape), **kwargs)
        self.linear = linear

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return _Multiply.apply(x.flatten(1), self.linear, self.linear.H)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return _Multiply.apply(y.flatten(1), self.linear.H, self.linear).reshape(-1, *self.img_size)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, linear: LinearOperator, adjoint: LinearOperator) -> Tensor:
        ctx.linear, ctx.adjoint = linear, adjoint
        columns = rows.detach().cpu().double().numpy().T
        return torch.from_numpy(np.ascontiguousarray(linear.matmat(columns).T)).to(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Multiply.apply(gradient, ctx.adjoint, ctx.linear), None, None


def _apply_real(module: Any, apply: Callable, fn: Callable, recurse: bool, spectra: tuple[str, ...]) -> Any:
    for name in spectra:
        if name in module._buffers:
            module._buffers[name] = None
    apply(fn, recurse)
    refresh(module)
    return module


def _start(physics: Any, z: Any, y: Tensor) -> Tensor:
    if isinstance(z, Tensor) and z.ndim:
        return z
    return torch.full_like(physics.A_adjoint(y), 0.0 if z is None else float(z))
