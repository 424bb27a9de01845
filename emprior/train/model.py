r"""What is trained: an energy, or the denoiser that it is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from emprior.denoiser import NetworkDenoiser
from emprior.interpolant import EnergyMatching, Interpolant, make_interpolant
from emprior.nets import make_potential, make_velocity
from emprior.priors.network import NetworkPrior
from emprior.train.coarse import Coarse
from emprior.train.config import Config, Contrast
from emprior.train.objective import GradientMatchingLoss, Loss, VelocityMatchingLoss


class Model(ABC):
    r"""How a network is made, judged and drawn from.

    Arguments:
        config: The settings.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    @abstractmethod
    def interpolant(self) -> Interpolant:
        r"""The path from noise to data."""

    @property
    def coupled(self) -> bool:
        r"""Whether noise and data are paired by optimal transport, beyond `interpolant.near`."""
        return self.interpolant.coupled

    @abstractmethod
    def network(self, channels: int) -> nn.Module:
        r"""Makes the network, with the present random state."""

    @abstractmethod
    def loss(
        self, network: nn.Module, contrast: Contrast | None, groups: int = 1, coarse: Coarse | None = None
    ) -> Loss:
        r"""Makes the loss of a phase: transport, or transport and contrast, for batches that hold `groups` groups, in
        which errors of the `coarse` part count more."""

    @abstractmethod
    def wrap(self, network: nn.Module, shape: tuple[int, ...]) -> NetworkPrior | NetworkDenoiser:
        r"""Makes what users get of a trained network."""


class EnergyModel(Model):
    r"""A potential `V`, by regression of its gradient and contrast of its values."""

    @property
    def interpolant(self) -> Interpolant:
        density = self.config.density
        return make_interpolant(density.objective, **density.arguments)

    def network(self, channels: int) -> nn.Module:
        net = self.config.net
        return make_potential(net.architecture, **{"channels": channels, **net.arguments})

    def loss(
        self, network: nn.Module, contrast: Contrast | None, groups: int = 1, coarse: Coarse | None = None
    ) -> GradientMatchingLoss:
        balance, slack = self.config.transport.balance, self.config.transport.slack
        loss = GradientMatchingLoss(network, self.interpolant, balance, groups=groups, coarse=coarse, slack=slack)
        if contrast:
            loss.strength, loss.trim, loss.clamp = contrast.strength, contrast.trim, contrast.clamp
        return loss

    def wrap(self, network: nn.Module, shape: tuple[int, ...]) -> NetworkPrior:
        return NetworkPrior(network, shape, self.interpolant, self.config.density.epsilon, self.config.name)


class DenoiserModel(Model):
    r"""A velocity `v`, by flow matching with independent noise."""

    @property
    def interpolant(self) -> Interpolant:
        return EnergyMatching(sigma_star=0.0)

    @property
    def coupled(self) -> bool:
        return False

    def network(self, channels: int) -> nn.Module:
        net = self.config.net
        return make_velocity(net.architecture, **{"channels": channels, **net.arguments})

    def loss(
        self, network: nn.Module, contrast: Contrast | None, groups: int = 1, coarse: Coarse | None = None
    ) -> VelocityMatchingLoss:
        return VelocityMatchingLoss(network, self.config.transport.balance)

    def wrap(self, network: nn.Module, shape: tuple[int, ...]) -> NetworkDenoiser:
        return NetworkDenoiser(network, shape, self.config.name)


MODELS: dict[str, type[Model]] = {"prior": EnergyModel, "denoiser": DenoiserModel}


def draw(model: Model, network: nn.Module, shape: tuple[int, ...], count: int, steps: int) -> Tensor:
    r"""Returns `count` images of a network, `(count, C, H, W)` in `[0, 1]`."""
    with torch.no_grad():
        return model.wrap(network, shape).sample(count, seed=0, steps=steps)
