r"""What a network is asked for, counted where it is asked and not by trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._types import Image, PerImage
from emprior.energy import Prior

if TYPE_CHECKING:
    from deepinv.models import Denoiser


class Meter:
    r"""Counts the rows that a network is evaluated for, and the rows that its derivative is taken for."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def watch(self, denoiser: Denoiser) -> Denoiser:
        r"""Returns a denoiser, each of whose calls and derivatives is counted from now on."""

        def called(module: object, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            self.forwards += len(output)
            return _Tally.apply(output, self)

        denoiser.register_forward_hook(called)
        return denoiser


class _Tally(torch.autograd.Function):
    r"""The identity, whose derivative leaves a mark."""

    @staticmethod
    def forward(x: Tensor, meter: Meter) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Meter], output: Tensor) -> None:
        ctx.meter = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.meter.backwards += len(gradients[0])
        return gradients[0], None


class MeteredPrior(Prior):
    r"""A prior, each of whose evaluations is counted; it is the prior in all else.

    An energy's gradient is one evaluation and one derivative of its network, and so is a clean estimate.

    Arguments:
        prior: The prior.
        meter: What counts.
    """

    def __init__(self, prior: Prior, meter: Meter) -> None:
        super().__init__(prior.shape)
        self.prior, self.meter = prior, meter
        self.title = prior.title
        self.settings = {method: dict(values) for method, values in prior.settings.items()}
        self.curvature, self.time_unit = prior.curvature, prior.time_unit
        self.typical, self.noise_limit, self.spectrum = prior.typical, prior.noise_limit, prior.spectrum

    def told(self, method: str, **settings: float) -> MeteredPrior:
        r"""Returns the same prior, counted by the same meter, with its settings of a method changed."""
        twin = MeteredPrior(self.prior, self.meter)
        twin.settings = self.settings | {method: self.settings.get(method, {}) | settings}
        return twin

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return self.prior.accepts(shape)

    def precision(self, x: Image, sigma: float) -> Tensor | None:
        return self.prior.precision(x, sigma)

    def soften(self, beta: PerImage) -> Prior | None:
        soft = self.prior.soften(beta)
        return None if soft is None else MeteredPrior(soft, self.meter)

    def forward(self, x: Image) -> PerImage:
        self.meter.forwards += len(x)
        return self.prior(x)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        self._count(x)
        return self.prior.value_and_grad(x)

    def denoise(self, x: Image, sigma: float | PerImage) -> Image:
        self._count(x)
        return self.prior.denoise(x, sigma)

    def restore(self, x: Image, sigma: float | PerImage) -> Image:
        self._count(x)
        return self.prior.restore(x, sigma)

    def start(self, noise: Noise, shape: tuple[int, ...] | None = None) -> Image:
        return self.prior.start(noise, shape)

    def sample(self, n: int, *, seed: int = 0) -> Image:
        return self.prior.sample(n, seed=seed)

    def _count(self, x: Image) -> None:
        self.meter.forwards += len(x)
        self.meter.backwards += len(x)
