r"""Networks: energies, which map an image batch to one scalar per image, and what goes with them."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from emprior._check import nearest
from emprior.nets.features import FEATURES, Classifier
from emprior.nets.potential import POTENTIALS, InnerProductPotential, LocalPotential
from emprior.nets.unet import UNet
from emprior.nets.velocity import VELOCITIES, Velocity

__all__ = [
    "FEATURES",
    "POTENTIALS",
    "VELOCITIES",
    "Classifier",
    "InnerProductPotential",
    "LocalPotential",
    "UNet",
    "Velocity",
    "make_features",
    "make_potential",
    "make_velocity",
]

Network = TypeVar("Network", bound=nn.Module)


def make_potential(architecture: str, **arguments: object) -> nn.Module:
    r"""Makes a potential by its registered name.

    Raises:
        ValueError: The name is unknown, or an argument is.
    """
    return _make(POTENTIALS, architecture, arguments)


def make_velocity(architecture: str, **arguments: object) -> nn.Module:
    r"""Makes the network of a denoiser by its registered name.

    Raises:
        ValueError: The name is unknown, or an argument is.
    """
    return _make(VELOCITIES, architecture, arguments)


def make_features(architecture: str, **arguments: object) -> Classifier:
    r"""Makes a feature extractor by its registered name.

    Raises:
        ValueError: The name is unknown, or an argument is.
    """
    return _make(FEATURES, architecture, arguments)


def _make(registry: dict[str, Callable[..., Network]], architecture: str, arguments: dict[str, object]) -> Network:
    if architecture not in registry:
        raise ValueError(f"unknown architecture {architecture!r}. {nearest(architecture, registry)}")
    try:
        return registry[architecture](**arguments)
    except TypeError as error:
        raise ValueError(f"architecture {architecture!r}: {error}. Compare net.arguments with its docs.") from error
