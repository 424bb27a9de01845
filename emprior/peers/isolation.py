r"""The world that others' samplers see: random numbers and a noise level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from emprior.operators import resolve_sigma

if TYPE_CHECKING:
    from deepinv.physics import Physics


@contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    r"""Seeds the global generators, which others' samplers draw from, and puts them back as they were.

    Arguments:
        seed: The seed, below :math:`2^{63}`.
        device: Where the sampler draws; the generator of the CPU is seeded too.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def noise_of(physics: Physics) -> float:
    r"""Returns the standard deviation of an operator's noise, in the units of the measurements.

    Raises:
        ValueError: The noise is not Gaussian, or of another level for each image.
    """
    sigma = resolve_sigma(physics)
    if not isinstance(sigma, float):
        raise ValueError(
            f"the operator's noise has {len(sigma)} levels, but deepinv's samplers take one. Call them once for each "
            "image, with physics.noise_model = deepinv.physics.GaussianNoise(sigma)."
        )
    return sigma
