r"""The learned prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emprior._bands import Bands
from emprior._calibration import Calibration
from emprior._compiled import CompiledGradient
from emprior._noise import Noise
from emprior._restoration import Restoration
from emprior._rows import column
from emprior._types import Image, PerImage
from emprior.energy import Prior
from emprior.interpolant import Interpolant

CHUNK = 64
"""Images generated at a time; image `i` depends on `(seed, i)` alone, so the number changes nothing."""

STEPS = 60
"""Steps of :meth:`NetworkPrior.sample`."""

LEVELS = 50
"""The noise levels of annealed starts."""

SETTINGS: dict[str, dict[str, Any]] = {
    "map": {"steps": 36, "tolerance": 0.1},
    "posterior": {"leaps": 16, "levels": LEVELS, "steps": 1500},
    "hmc": {"leaps": 16, "levels": LEVELS},
    **{method: {"levels": LEVELS} for method in ("flow", "gibbs", "mala", "skrock", "tempering", "ula")},
}
"""The solver settings of a prior for which no others were validated. The mode of a learned density is smoother than
any image, so that the descent ends soon after the continuation. Its curvature differs from place to place, so that
paths go on after those of a Gaussian would have turned. Its clean estimates keep some of the noise, so that more levels
leave more of it."""


class NetworkPrior(Prior):
    r"""The energy of a trained potential,

    .. math:: E(x) = V(2 x - 1) / \epsilon,

    for images `x` in `[0, 1]`; the network's own range is `[-1, 1]`. It is the density that the
    training compared with data, and includes the data's thermal noise, half of
    :meth:`emprior.interpolant.Interpolant.thermal` in public units.

    Arguments:
        potential: The network `V`, `(B, C, H, W)` to `(B,)`, which becomes the prior's own: it is put into evaluation
            mode, and its parameters no longer learn.
        shape: The shape of one training image, `(C, H, W)`; a fully convolutional network takes others too.
        interpolant: The path it was trained on.
        epsilon: The temperature :math:`\epsilon`.
        title: What messages call it.
    """

    restoration: Restoration | None = None
    """How well :meth:`restore` does, where it is known."""

    calibration: Calibration | None = None
    """What makes :meth:`denoise` of it, where it is known."""

    def __init__(
        self,
        potential: nn.Module,
        shape: tuple[int, ...],
        interpolant: Interpolant,
        epsilon: float,
        title: str = "network",
    ) -> None:
        super().__init__(shape)
        self.potential = potential.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.fused: CompiledGradient | None = None
        self.settings = {method: dict(values) for method, values in SETTINGS.items()}
        self.interpolant, self.epsilon, self.title = interpolant, epsilon, title
        stiffness = interpolant.stiffness if math.isfinite(interpolant.stiffness) else 1 / epsilon
        self.curvature = 4 * stiffness / epsilon
        self.noise_limit = interpolant.noise_limit / 2
        self.time_unit = epsilon / 4

    def accepts(self, shape: tuple[int, ...]) -> bool:
        r"""Whether `shape` has the channels of the training images and sides that reflection extends to the stride."""
        stride = getattr(self.potential, "stride", 1)
        return len(shape) == 3 and shape[0] == self.shape[0] and all(-side % stride < side for side in shape[1:])

    def forward(self, x: Image) -> PerImage:
        r"""Returns :math:`E(x)` `(B,)` for images `(B, C, H, W)` in `[0, 1]`."""
        return self.potential(2 * x - 1) / self.epsilon

    def accelerate(self) -> None:
        r"""Compiles :math:`\nabla V`, for each batch shape at its first use.

        That takes up to a minute, and afterwards a gradient is about 1.2 times as fast (`emprior profile gradient`), up
        to rounding the same: for long chains and many images. Without a compiler there is a warning and no change.
        """
        self.fused = CompiledGradient(self.potential)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        if self.fused is None:
            return super().value_and_grad(x)
        value, gradient = self.fused(2 * x - 1)
        return value / self.epsilon, 2 * gradient / self.epsilon

    def denoise(self, x: Image, sigma: float | PerImage) -> Image:
        r"""Returns an estimate of :math:`\mathbb{E}[\mathrm{clean} \mid x]`: what :meth:`restore` does, told the noise.

        See :class:`emprior._calibration.Calibration`. It costs one gradient.

        Arguments:
            x: Noisy images, `(B, C, H, W)`.
            sigma: The noise's standard deviation in public units, a positive number or `(B,)`.

        Raises:
            ValueError: It is above :attr:`noise_limit`.
        """
        clean = self.restore(x, sigma)
        if self.calibration is None:
            return clean
        levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        return self.calibration.apply(x, clean, levels)

    def restore(self, x: Image, sigma: float | PerImage) -> Image:
        r"""Returns the transport endpoint, which the energy points to.

        .. math:: D = \frac{a z - s \nabla V(z)}{a k + s b}, \qquad z = k (2 x - 1), \quad s / k = 2 \sigma

        It costs one gradient. See :class:`emprior.interpolant.Interpolant`. Arguments and errors as of :meth:`denoise`.
        """
        levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        if math.isfinite(self.noise_limit) and bool((levels > self.noise_limit).any()):
            raise ValueError(
                f"sigma is {float(levels.max()):g}, but the path of prior {self.title!r}, {self.interpolant}, ends at "
                f"{self.noise_limit:g}. Pass sigma={self.noise_limit:g} or less, or use a prior of another objective."
            )
        s = self.interpolant.fraction(2 * levels)
        z = column(self.interpolant.coefficients(s)[2], x) * (2 * x - 1)
        return (self.interpolant.endpoint(z, self.potential_gradient(z), s) + 1) / 2

    def precision(self, x: Image, sigma: float) -> Tensor | None:
        r"""Returns that of its `restoration`, None if it was not measured.

        It is at most the mean curvature of `E` (van Trees' bound of the error): under less noise than the thermal noise
        that the density includes, clean images are known better than draws of it.
        """
        if self.restoration is None:
            return None
        restored, energetic = self.restoration.on(Bands.of(x), sigma), super().precision(x, sigma)
        return restored if energetic is None else torch.minimum(restored, energetic)

    def potential_gradient(self, z: Tensor) -> Tensor:
        r"""Returns :math:`\nabla V` at images `z` in the network's range `[-1, 1]`, differentiable if `z` is."""
        follow = torch.is_grad_enabled() and z.requires_grad
        if self.fused is not None and not follow:
            return self.fused(z)[1]
        with torch.enable_grad():
            leaf = z if follow else z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.potential(leaf).sum(), leaf, create_graph=follow)
        return gradient

    def start(self, noise: Noise, shape: tuple[int, ...] | None = None) -> Image:
        r"""Draws white noise of the network's range, in public units: mean and deviation 1/2."""
        return (noise.normal(*(shape or self.shape)) + 1) / 2

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: int = STEPS,
        progress: bool = False,
        callback: Callable[[int, Image], None] | None = None,
    ) -> Image:
        r"""Generates `n` images by following the path from noise to data that the energy was trained on.

        .. math:: \hat x_1 = \frac{a z_s - s \nabla V(z_s)}{a k + s b}, \qquad
                  \hat x_0 = \frac{z_s - k \hat x_1}{s}, \qquad z_{s'} = k' \hat x_1 + s' \hat x_0,

        in equal steps of `s` from noise at 1 to the thermal noise of the data. On the path of transport
        alone that is the descent :math:`z \leftarrow z - h \nabla V(z)`; in a score zone, where `V` is as steep as one
        temperature makes it, a descent would lose contrast. They are no draws of :math:`e^{-E}`: chains that start from
        them are.

        Where a :attr:`calibration` is known, :math:`\hat x_1` is told the noise, up to the largest level it knows. An
        energy of the field :math:`c(s) \nabla \log p` reads the noise off the image: where that has less than `s` by a
        share :math:`\delta`, the next image has more by :math:`\delta` if `c` is constant, and so on; if `c = s` it has
        the right amount. A path that ends before all is noise (`k > 0` at 1) begins with `k` times a Gaussian image, of
        the spectrum that the :attr:`restoration` tells at the limit.

        Image `i` depends on `(seed, i)` alone. It costs a gradient for each step.

        References:
            | Denoising Diffusion Implicit Models (Song et al., 2021), of which this is the sampler along another path
            | https://arxiv.org/abs/2010.02502

        Arguments:
            n: How many.
            seed: The seed.
            steps: Steps; with none the noise is returned.
            progress: Whether to show a bar.
            callback: Called with 0 and the noise, and after each step with its index and the images
                `(B, C, H, W)` so far. Beyond 64 images it sees one part of at most 64 from 0 to `steps`, then the next.
        """
        watch = callback or (lambda step, images: None)
        parts = [range(first, min(first + CHUNK, n)) for first in range(0, n, CHUNK)]
        with tqdm(total=steps * len(parts), disable=not progress, unit="step", leave=False) as bar:
            return torch.cat([self._generate(part, seed, steps, bar, watch) for part in parts])

    @torch.no_grad()
    def _generate(
        self,
        indices: range,
        seed: int,
        steps: int,
        bar: tqdm,
        watch: Callable[[int, Image], None],
    ) -> Image:
        reference = next(self.potential.parameters())
        noise = Noise([(seed, "sample", i) for i in indices], reference.device, reference.dtype)
        levels = torch.linspace(1, self.interpolant.thermal(self.epsilon), steps + 1).to(reference)
        shares = self.interpolant.coefficients(levels)[2]
        z = self._faint(noise, shares[0])
        watch(0, (z + 1) / 2)
        for index in range(steps):
            s, k = levels[index], shares[index]
            clean = self._endpoint(z, s, k)
            z = shares[index + 1] * clean + levels[index + 1] * (z - k * clean) / s
            bar.update()
            watch(index + 1, (z + 1) / 2)
        return (z + 1) / 2

    def _faint(self, noise: Noise, k: Tensor) -> Tensor:
        z = noise.normal(*self.shape)
        if self.restoration is None or k == 0:
            return z
        bands = Bands.of(z)
        deviation = 2 * bands.spread(self.restoration.on(bands, self.noise_limit).rsqrt().to(z)[None], z)
        return z + k * bands.join(deviation * noise.normal(*self.shape))

    def _endpoint(self, z: Tensor, s: Tensor, k: Tensor) -> Tensor:
        clean = self.interpolant.endpoint(z, self.potential_gradient(z), s.expand(len(z)))
        if self.calibration is None or s > 2 * k * self.calibration.errors.sigma[-1]:
            return clean
        told = self.calibration.apply((z / k + 1) / 2, (clean + 1) / 2, (s / (2 * k)).expand(len(z)))
        return 2 * told - 1
