r"""Networks that map an image batch to one scalar per image."""

from torch import nn

from emprior._check import nearest
from emprior.nets.potential import POTENTIALS, InnerProductPotential, LocalPotential
from emprior.nets.unet import UNet

__all__ = ["POTENTIALS", "InnerProductPotential", "LocalPotential", "UNet", "make_potential"]


def make_potential(architecture: str, **arguments: object) -> nn.Module:
    r"""Makes a network by its registered name.

    Raises:
        ValueError: The name is unknown, or an argument is.
    """
    if architecture not in POTENTIALS:
        raise ValueError(f"unknown architecture {architecture!r}. {nearest(architecture, POTENTIALS)}")
    try:
        return POTENTIALS[architecture](**arguments)
    except TypeError as error:
        raise ValueError(f"architecture {architecture!r}: {error}. Compare net.arguments with its docs.") from error
