r"""Networks: energies, which map an image batch to one scalar per image, and what goes with them."""

from torch import nn

from emprior._check import make
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


def make_potential(architecture: str, /, **arguments: object) -> nn.Module:
    r"""Makes a potential by its registered name.

    Raises:
        ValueError: The name is unknown, or an argument is.
    """
    return make(POTENTIALS, "net.architecture", architecture, arguments)


def make_velocity(architecture: str, /, **arguments: object) -> nn.Module:
    r"""Makes the network of a denoiser by its registered name.

    Raises:
        ValueError: The name is unknown, or an argument is.
    """
    return make(VELOCITIES, "net.architecture", architecture, arguments)


def make_features(architecture: str, /, **arguments: object) -> Classifier:
    r"""Makes a feature extractor by its registered name.

    Raises:
        ValueError: The name is unknown, or an argument is.
    """
    return make(FEATURES, "net.architecture", architecture, arguments)
