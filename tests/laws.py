r"""Linear solvers map Gaussian laws to Gaussian laws: their exact means and covariances, and tests by them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from emprior.fidelity import GaussianFidelity
from emprior.priors import GaussianPrior


class Model(NamedTuple):
    r"""The data term `x' H x / 2 - b' x` of one image and the prior `N(m, C)`, over flat images."""

    H: Tensor
    b: Tensor
    C: Tensor
    m: Tensor

    @property
    def eye(self) -> Tensor:
        return torch.eye(len(self.m), dtype=self.m.dtype)


def model(fidelity: GaussianFidelity, prior: GaussianPrior) -> Model:
    m, d = prior.mean.flatten(), prior.mean.numel()
    H = fidelity.curve(torch.eye(d, dtype=m.dtype).reshape(d, *prior.shape)).reshape(d, d)
    b = -fidelity.value_and_grad(torch.zeros(1, *prior.shape, dtype=m.dtype))[1].flatten()
    return Model(H, b, prior.covariance_matrix(), m)


def split_law(
    model: Model, sigmas: list[float], trust: float, weight: float, noisy: bool, drawn: bool = False
) -> tuple[Tensor, Tensor]:
    r"""The law after clean estimates `u = m + G (x + noisy sigma n - m)` and data steps from `u`, from `x = 0`.

    A data step is the mean of the conditional law of precision `I / r + H`; the last may be a draw from it.
    """
    H, b, C, m = model
    mean, law = torch.zeros_like(m), torch.zeros_like(C)
    for sigma in sigmas:
        r = trust * sigma**2 / weight
        G = C @ torch.linalg.inv(C + sigma**2 * model.eye)
        S = torch.linalg.inv(model.eye / r + H)
        law = S @ (G @ (law + noisy * sigma**2 * model.eye) @ G.mT / r**2) @ S + (drawn and sigma == sigmas[-1]) * S
        mean = S @ ((m + G @ (mean - m)) / r + b)
    return mean, law


def flow_step(model: Model, h: float, weight: float = 1.0, repulsion: Tensor | float = 0.0) -> tuple[Tensor, ...]:
    r"""The maps of `x' = S (x - h (w C^{-1} (x - m) - R x) + sqrt(2 h θ) n + h b)`, `S = (I + h H)^{-1}`.

    Returns `move`, `push` and `S` of `x' = move x + push + sqrt(2 h θ) S n`.
    """
    H, b, C, m = model
    S = torch.linalg.inv(model.eye + h * H)
    move = S @ (model.eye - h * (weight * torch.linalg.inv(C) - repulsion))
    return move, h * S @ (weight * torch.linalg.solve(C, m) + b), S


def assert_moments(rows: Tensor, mean: Tensor, law: Tensor) -> None:
    r"""Rows `(N, d)` against the means and deviations of `N(mean, law)`, which may be singular."""
    std = law.diagonal().sqrt()
    assert ((rows.mean(0) - mean).abs() <= 4.5 * std / len(rows) ** 0.5 + 1e-9).all()
    assert ((rows.std(0) - std).abs() <= 4.5 * std / (2 * len(rows)) ** 0.5 + 1e-9).all()


def assert_drawn_from(rows: Tensor, mean: Tensor, law: Tensor) -> None:
    r"""Rows `(N, d)` against `N(mean, law)`, in standard errors of the whitened mean and covariance."""
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(law), (rows - mean).mT, upper=False).mT
    eye = torch.eye(len(law), dtype=torch.float64)
    means = white.mean(0) * len(rows) ** 0.5
    products = (white.mT @ white / len(rows) - eye) / ((1 + eye) / len(rows)).sqrt()
    for z in (means, products):
        assert z.abs().max() < 4.5
    assert products.square().mean() < 1.5
