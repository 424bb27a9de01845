r"""Priors: closed forms and the learned one."""

from emprior.priors.gaussian import GaussianPrior
from emprior.priors.levy import LevyPrior
from emprior.priors.mixture import GaussianMixturePrior
from emprior.priors.network import NetworkPrior

__all__ = ["GaussianMixturePrior", "GaussianPrior", "LevyPrior", "NetworkPrior"]
