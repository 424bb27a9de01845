r"""What a method is given, what it gives, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emprior import peers
from emprior._noise import Noise, derive_seed
from emprior._types import Image
from emprior.bench.meter import Meter, MeteredPrior
from emprior.fidelity import GaussianFidelity
from emprior.operators import cast, without_noise

if TYPE_CHECKING:
    from deepinv.models import Denoiser
    from deepinv.physics import Physics

Settings = Mapping[str, float]

KINDS = {
    "posterior": "samplers of the posterior",
    "point": "point estimates",
    "plug-and-play": "plug and play",
    "classical": "without a network",
}
"""The kinds of methods, in the order in which tables list them."""


@dataclass(frozen=True, eq=False)
class Task:
    r"""Measurements to be inverted.

    Arguments:
        operator: The operator, a deepinv physics.
        y: The measurements, `(B, *measured)`.
        sigma: The standard deviation of their noise, in public units.
        shape: The shape of one image.
    """

    operator: Physics
    y: Tensor
    sigma: float
    shape: tuple[int, ...]

    def rows(self, samples: int) -> Tensor:
        r"""Returns the measurements once for each sample, `(S B, *measured)`, ordered sample by sample."""
        return self.y.repeat(samples, *(1,) * (self.y.ndim - 1))

    def physics(self) -> Physics:
        r"""Returns the operator in the type of the measurements, with its noise model and no other."""
        from deepinv.physics import GaussianNoise

        physics = without_noise(cast(self.operator, self.y))
        physics.noise_model = GaussianNoise(self.sigma).to(self.y.device)
        return physics

    def fidelity(self, samples: int = 1) -> GaussianFidelity:
        r"""Returns the data term of `S` samples of each image."""
        return GaussianFidelity(without_noise(self.operator), self.rows(samples), self.sigma)

    def noise(self, samples: int, seed: int, name: str) -> Noise:
        r"""Returns a random stream for each row."""
        keys = [(seed, name, sample, image) for sample in range(samples) for image in range(len(self.y))]
        return Noise(keys, self.y.device, self.y.dtype)


@dataclass(frozen=True, eq=False)
class Models:
    r"""The networks of a suite, watched.

    Arguments:
        prior: The prior of emprior's own methods.
        denoiser: The matched denoiser of all others, in public units.
        meter: What counts their evaluations.
    """

    prior: MeteredPrior
    denoiser: Denoiser
    meter: Meter


@dataclass(frozen=True, eq=False)
class Answer:
    r"""What a method gives.

    Arguments:
        estimate: The point estimate, `(B, *shape)`.
        samples: Draws, `(S, B, *shape)`; `None` for a method without.
        std: The standard deviation of each pixel, where it is known from more than the draws.
        note: What the method says of its own run.
    """

    estimate: Image
    samples: Tensor | None = None
    std: Image | None = None
    note: str = ""

    @staticmethod
    def drawn(rows: Tensor, samples: int) -> Answer:
        r"""Returns the answer of independent draws `(S B, *shape)`: their mean is the estimate."""
        draws = rows.detach().unflatten(0, (samples, -1))
        return Answer(draws.mean(0), draws)


Run = Callable[[Task, Models, int, int, Settings], Answer]
"""Maps a task, the networks, a number of samples, a seed and settings to an answer."""


def paced(settings: Settings, samples: int, budget: int) -> Settings:
    r"""Returns as many `"steps"` of one evaluation for each sample as a budget pays for, at least two."""
    return {**settings, "steps": min(settings["steps"], max(2, budget // samples))}


def paced_once(settings: Settings, samples: int, budget: int) -> Settings:
    r"""Returns as many `"steps"` of one evaluation as a budget pays for, at least two, whatever the samples."""
    return paced(settings, 1, budget)


def unpaced(settings: Settings, samples: int, budget: int) -> Settings:
    r"""Returns the settings of a method that asks no network, or a number of times that is fixed."""
    return settings


@dataclass(frozen=True)
class Method:
    r"""A method of the benchmark.

    Arguments:
        kind: A key of `KINDS`.
        run: The method itself.
        source: The package that it comes from, or `"paper"`.
        reference: Authors, title, year and address of what it is from.
        settings: The defaults.
        ranges: The lowest and the highest value of the settings that tuning tries, on a scale of ratios.
        within: Maps settings, a number of samples and a budget of network evaluations an image to settings within it.
    """

    kind: str
    run: Run
    source: str
    reference: str
    settings: Settings = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    within: Callable[[Settings, int, int], Settings] = unpaced

    def trial(self, point: tuple[float, ...]) -> dict[str, float]:
        r"""Returns settings at a point of the unit cube, one coordinate for each of `ranges`."""
        out = dict(self.settings)
        for (name, (low, high)), share in zip(self.ranges.items(), point, strict=False):
            value = math.exp((1 - share) * math.log(low) + share * math.log(high))
            out[name] = round(value) if isinstance(self.settings[name], int) else float(f"{value:.4g}")
        return out


def isolated(seed: int, name: str, device: torch.device) -> AbstractContextManager[None]:
    r"""Seeds the global generators for a method, and puts them back as they were; see `emprior.peers.isolated`."""
    return peers.isolated(derive_seed(seed, "bench", name), device)
