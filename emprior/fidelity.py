r"""Data terms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emprior._conjugate import conjugate_gradients
from emprior._noise import generator
from emprior._rows import column, dot
from emprior._types import Image, PerImage
from emprior.energy import Fidelity

if TYPE_CHECKING:
    from deepinv.physics import LinearPhysics, Physics


MISFITS = (RuntimeError, ValueError, IndexError, AssertionError)
"""What operators raise at images of a shape that they do not take."""


class GaussianFidelity(Fidelity):
    r"""The data term of white Gaussian noise,

    .. math:: f(x) = \frac{1}{2 \sigma^2} \|y - A x\|^2.

    Arguments:
        operator: A deepinv physics `A`, or anything that `emprior.as_operator` wraps.
        y: Measurements `(B, *measured)`.
        sigma: The noise's standard deviation; read from the operator's noise model unless given.

    Raises:
        ValueError: No noise level is known, or two that conflict.

    Examples:
        >>> import torch, deepinv
        >>> physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
        >>> fidelity = GaussianFidelity(physics, torch.zeros(2, 1, 4, 4))
        >>> fidelity(torch.full((2, 1, 4, 4), 0.1))
        tensor([8., 8.])
    """

    def __init__(self, operator: Physics, y: Tensor, sigma: float | Tensor | None = None) -> None:
        from deepinv.physics import LinearPhysics

        from emprior.operators import as_operator, cast, resolve_sigma

        super().__init__()
        self.operator = cast(as_operator(operator), y)
        level = resolve_sigma(self.operator, sigma)
        if not isinstance(level, float) and len(level) != len(y):
            raise ValueError(
                f"sigma holds {len(level)} levels, but y holds {len(y)} images. Pass one for each, or a number."
            )
        self.sigma = level if isinstance(level, float) else level.to(y)
        self.linear = isinstance(self.operator, LinearPhysics)
        self.register_buffer("y", y)
        self.y: Tensor
        self.images, self.measured = len(y), tuple(y.shape[1:])
        self._seen: Tensor | None = None
        tensors = [*self.operator.buffers(), *self.operator.parameters()]
        suspected = any(len(t) == len(y) > 1 for t in tensors if t.ndim > 1)
        self.per_image = suspected and not (self.linear and _maps_one(self.operator, y))

    def forward(self, x: Image) -> PerImage:
        return self.misfit(x).flatten(1).square().sum(1) / 2

    def misfit(self, x: Image) -> Tensor:
        r"""Returns :math:`(A x - y) / \sigma`, `(S B, *measured)`."""
        y = self._tiled(self.y, x)
        return (self._map(self.operator.A, x) - y) * self._tiled(self.seen(x), x) / self._level(y)

    def seen(self, x: Image) -> Tensor:
        r"""Returns 1 where a measurement depends on the image and 0 where it is noise alone, `(B, *measured)`."""
        from emprior.operators import observed

        if self._seen is None:
            self._seen = observed(self.operator, x[: self.images].detach()).expand_as(self.y)
        return self._seen

    def _tiled(self, y: Tensor, x: Image) -> Tensor:
        return y.repeat(len(x) // self.images, *(1,) * (y.ndim - 1))

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        with torch.no_grad():
            r = self.misfit(x)
            return r.flatten(1).square().sum(1) / 2, self.pull(r, x)

    def pull(self, r: Tensor, x: Image) -> Image:
        r"""Returns :math:`J(x)^\top r / \sigma`, with `J` the Jacobian of the operator."""
        r = r / self._level(r)
        if self.linear:
            return self._map(self.operator.A_adjoint, r)
        if not self.per_image:
            return self.operator.A_vjp(x, r)
        pairs = zip(x.split(self.images), r.split(self.images), strict=True)
        return torch.cat([self.operator.A_vjp(a, b) for a, b in pairs])

    def residual(self, x: Image) -> PerImage:
        with torch.no_grad():
            return (self.misfit(x).flatten(1).square().sum(1) / self.count(x)).sqrt()

    def count(self, x: Image) -> PerImage:
        return self._tiled(self.seen(x), x).flatten(1).sum(1).to(x).clamp(min=1)

    def curve(self, v: Image) -> Image:
        r"""Returns :math:`A^\top A v / \sigma^2`, or zero for a nonlinear operator."""
        if not self.linear:
            return torch.zeros_like(v)
        with torch.no_grad():
            return self._map(self.operator.A_adjoint, self._map(self.operator.A, v)) / self._level(v) ** 2

    def hessian(self, like: Image) -> Tensor | None:
        if not self.linear or self.per_image or not isinstance(self.sigma, float):
            return None
        data = self.double_precision or self
        eye = torch.eye(like[0].numel(), dtype=data.y.dtype, device=like.device).reshape(-1, *like.shape[1:])
        rows = torch.cat([data.curve(part) for part in eye.split(256)]).flatten(1).double()
        return (rows + rows.mT) / 2

    def whiten(self, noise: Tensor) -> Image:
        r"""Returns :math:`A^\top n / \sigma` for white noise `n` of the measurements' shape."""
        with torch.no_grad():
            return self._map(self.operator.A_adjoint, noise / self._level(noise))

    def prox(self, x: Image, gamma: float | PerImage) -> Image:
        r"""Returns :math:`(I + \gamma A^\top A / \sigma^2)^{-1} (x + \gamma A^\top y / \sigma^2)`.

        It is computed as a correction of `x`, which leaves what the operator does not see as it is, however large
        :math:`\gamma`: by the operator's own closed form where it has one, else by conjugate gradients, each row on
        its own. Single precision is not enough for either, whose errors of rounding are multiplied by up to
        :math:`\gamma \|A\|^2 / \sigma^2`, so both work in double precision wherever the operator can. For a
        nonlinear operator it is descended on to a relative gradient of 1e-4.
        """
        if not self.linear:
            return self._descend(x, column(gamma, x).to(x))
        with torch.no_grad():
            z, data = self._lift(x)
            if data.closed and not isinstance(gamma, Tensor):
                return data._closed_form(z, data._tiled(data.y, z), gamma).to(x)
            return (z + data._correction(z, gamma, torch.finfo(x.dtype).eps)).to(x)

    def solve(self, v: Image, gamma: float | PerImage) -> Image:
        r"""Returns :math:`(I + \gamma A^\top A / \sigma^2)^{-1} v`."""
        if not self.linear:
            return v
        with torch.no_grad():
            z, data = self._lift(v)
            if data.closed and not isinstance(gamma, Tensor):
                return data._closed_form(z, torch.zeros_like(data._tiled(data.y, z)), gamma).to(v)
            step, goal = column(gamma, z).to(z), 10 * torch.finfo(v.dtype).eps * _norm(z)
            return conjugate_gradients(lambda p: p + step * data.curve(p), z, goal).to(v)

    def _lift(self, x: Image) -> tuple[Image, GaussianFidelity]:
        r"""Returns rows and the data term in double precision, or as they are where the operator has none."""
        return (x, self) if self.double_precision is None else (x.double(), self.double_precision)

    @cached_property
    def double_precision(self) -> GaussianFidelity | None:
        r"""The data term in double precision, if it is not so itself and if its adjoint is then exact to 1e-13."""
        if self.y.dtype == torch.float64:
            return None
        random = generator("adjoint")
        try:
            twin = GaussianFidelity(self.operator, self.y.double(), self.sigma)
            y = torch.randn(self.y.shape, generator=random, dtype=torch.float64).to(twin.y)
            back = twin._map(twin.operator.A_adjoint, y)
            x = torch.randn(back.shape, generator=random, dtype=torch.float64).to(twin.y)
            forward = twin._map(twin.operator.A, x)
            gap = (dot(forward, y) - dot(x, back)).abs()
            return twin if bool((gap <= 1e-13 * (dot(forward, forward) * dot(y, y)).sqrt()).all()) else None
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return None

    def _correction(self, x: Image, gamma: float | PerImage, eps: float) -> Image:
        r"""Returns :math:`d = \mathrm{prox}(x) - x` to an error of about :math:`10\, \mathrm{eps}\, \|x\|`.

        With :math:`B = A / \sigma` and :math:`r = B x - y / \sigma` it is the solution of the smaller of

        .. math:: (\gamma^{-1} + B^\top B)\, d = -B^\top r, \qquad
                  (\gamma^{-1} + B B^\top)\, u = r, \quad d = -B^\top u,

        whose residuals reach `d` multiplied by at most :math:`\gamma` and :math:`\sqrt{\gamma} / 2`.
        """
        misfit, error = self.misfit(x), 10 * eps * _norm(x)
        if misfit[0].numel() > x[0].numel():
            step = column(gamma, x).to(x)
            return -conjugate_gradients(lambda d: d / step + self.curve(d), self.pull(misfit, x), error / step)
        step, error = column(gamma, misfit).to(misfit), error.reshape(-1, *(1,) * (misfit.ndim - 1))
        dual = conjugate_gradients(lambda u: u / step + self._push(self.pull(u, x)), misfit, error / step.sqrt())
        return -self.pull(dual, x)

    def _closed_form(self, z: Image, y: Tensor, gamma: float) -> Image:
        from emprior._physics import proximal

        assert isinstance(self.sigma, float)
        return proximal(self.operator, z, y, gamma / self.sigma**2)

    def _push(self, x: Image) -> Tensor:
        r = self._map(self.operator.A, x)
        return r / self._level(r)

    @cached_property
    def closed(self) -> bool:
        r"""Whether the operator's own `prox_l2` is a closed form, found by solving a system with it."""
        from deepinv.physics import LinearPhysics

        own = type(self.operator).prox_l2 is not LinearPhysics.prox_l2
        if not own or self.per_image or not isinstance(self.sigma, float):
            return False
        random = generator("closed")
        try:
            y = torch.randn(self.y[:1].shape, generator=random, dtype=torch.float64).to(self.y)
            back = self.operator.A_adjoint(y)
            x = torch.randn(back.shape, generator=random, dtype=torch.float64).to(self.y)
            return all(self._solves(x, y, back, ratio * self.sigma**2, ratio) for ratio in (1.0, 100.0))
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return False

    def _solves(self, x: Image, y: Tensor, back: Image, gamma: float, ratio: float) -> bool:
        z = self._closed_form(x, y, gamma)
        error = z - x + ratio * (self.operator.A_adjoint(self.operator.A(z)) - back)
        size = _norm(x) + ratio * _norm(back)
        return bool(_norm(error) <= 100 * torch.finfo(x.dtype).eps * size)

    def _descend(self, x: Image, step: Tensor, steps: int = 200, tolerance: float = 1e-4) -> Image:
        r"""Descends on :math:`f(z) + \|z - x\|^2 / 2 \gamma` by Barzilai-Borwein steps with backtracking."""

        def product(a: Tensor, b: Tensor) -> Tensor:
            return column(dot(a, b), x)

        def objective(z: Image) -> tuple[Tensor, Image]:
            value, gradient = self.value_and_grad(z)
            return column(value, x) + product(z - x, z - x) / (2 * step), gradient + (z - x) / step

        z = x
        value, gradient = objective(z)
        goal = tolerance**2 * product(gradient, gradient)
        reach = step.expand_as(value).clone()
        for _ in range(steps):
            active = product(gradient, gradient) > goal
            if not active.any():
                break
            trial = z - reach * gradient
            there, slope = objective(trial)
            taken = active & (there <= value - 1e-4 * reach * product(gradient, gradient))
            move, change = trial - z, slope - gradient
            bend = product(move, change)
            fresh = torch.where(bend > 0, product(move, move) / bend, 2 * reach)
            reach = torch.where(taken, fresh, torch.where(active, reach / 4, reach))
            z, value = torch.where(taken, trial, z), torch.where(taken, there, value)
            gradient = torch.where(taken, slope, gradient)
        return z

    def _level(self, rows: Tensor) -> float | Tensor:
        if isinstance(self.sigma, float):
            return self.sigma
        return column(self.sigma.repeat(len(rows) // self.images), rows)

    def _map(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        if not self.per_image:
            return function(rows)
        return torch.cat([function(part) for part in rows.split(self.images)])


def _maps_one(operator: LinearPhysics, y: Tensor) -> bool:
    r"""Whether a linear operator maps one image's measurements to one image, whatever its tensors look like."""
    try:
        with torch.no_grad():
            return len(operator.A_adjoint(y[:1])) == 1
    except MISFITS:
        return False


def _norm(x: Tensor) -> Tensor:
    return column(dot(x, x).sqrt(), x)
