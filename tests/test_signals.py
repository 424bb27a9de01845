r"""The exact sampler against integrals, closed forms and its own prior, and the suite that it judges."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from emprior._noise import Noise
from emprior.operators import as_operator
from emprior.priors.gaussian import GaussianPrior
from emprior.priors.increments import BernoulliLaplace, Gaussian, Increments, Laplace, StudentT
from emprior.verify.gibbs import LevyPosterior, posterior_draws

suite = import_module("emprior.verify.signals")

LAWS = [Gaussian(0.6), Laplace(0.8), StudentT(2, 0.5), BernoulliLaplace(0.8, 0.3, 0.1), BernoulliLaplace(0.8, 0.3, 0.0)]
CHAINS = 64

laws = pytest.mark.parametrize("law", LAWS, ids=str)


def double(*numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def zscores(means: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    r"""The deviations of chains' means `(draws, chains, ...)` from what is expected, in standard errors."""
    chains = means.mean(0)
    return (chains.mean(0) - expected) / (chains.std(0) / len(chains) ** 0.5)


def test_gaussian_increments_are_drawn_from_their_closed_form():
    matrix, sigma = double([1.0, 0.4, 0.0], [0.0, 0.5, -0.3]), 0.3
    y = double([0.7, -0.4], [0.1, 0.9])
    ticks = double(1.0, 2.0, 3.0)
    field = GaussianPrior(torch.zeros(3, dtype=torch.float64), 0.36 * torch.minimum(ticks[:, None], ticks))
    closed = field.posterior(as_operator(matrix, shape=(3,)), y, sigma)
    draws, means = posterior_draws(Gaussian(0.6), matrix, y, sigma, draws=150, burn_in=0, chains=8, seed=0)
    torch.testing.assert_close(means, closed.mean.expand_as(means))
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(closed.covariance), (draws - closed.mean)[..., None], upper=False
    )[..., 0].flatten(0, 2)
    assert (white.mean(0).abs() < 4 / len(white) ** 0.5).all()
    off = (white.mT @ white / len(white) - torch.eye(3)) / ((1 + torch.eye(3)) / len(white)).sqrt()
    assert off.abs().max() < 4


def cells(law: Increments) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Nodes and weights of the integral over one increment against its law, an atom included."""
    grid = torch.sinh(torch.linspace(-9.5, 9.5, 1201, dtype=torch.float64)) / 100
    dense = Laplace(law.scale) if law.share < 1 and law.width == 0 else law
    weights = torch.zeros_like(grid)
    weights[1:] += grid.diff() / 2
    weights[:-1] += grid.diff() / 2
    weights = weights * torch.exp(-dense.energy(grid))
    if dense is law:
        return grid, weights
    return torch.cat([grid, double(0.0)]), torch.cat([law.share * weights, double(1 - law.share)])


@laws
def test_two_increments_are_drawn_from_their_posterior(law):
    r"""Means, squares, products and the probability of a jump against integrals over a plane."""
    matrix, y, sigma = double([1.0, 0.0], [0.5, 0.7]), double(1.3, 0.2), 0.4
    grid, weights = cells(law)
    u = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    misfit = (y - u.cumsum(-1) @ matrix.mT).square().sum(-1) / (2 * sigma**2)
    density = weights[:, None] * weights * torch.exp(-misfit)

    def functions(u):
        x = u.cumsum(-1)
        near = (u.abs() < 0.05).double()
        return torch.cat([x, x.square(), x.prod(-1, keepdim=True), near, near.prod(-1, keepdim=True)], -1)

    expected = (density[..., None] * functions(u)).sum((0, 1)) / density.sum()
    draws, means = posterior_draws(law, matrix, y[None], sigma, draws=150, burn_in=20, chains=CHAINS, seed=0)
    x = draws[:, :, 0]
    steps = torch.diff(x, prepend=torch.zeros_like(x[..., :1]))
    z = zscores(functions(steps), expected)
    assert z.abs().max() < 4
    assert z.square().mean() < 3
    if not isinstance(law, Gaussian):
        assert zscores(means[:, :, 0], expected[:2]).abs().max() < 4


@laws
def test_signals_and_measurements_keep_their_joint_law(law):
    r"""Geweke's test: what is drawn from the prior, then by turns given and giving measurements, stays so."""
    n, rows, sigma = 5, 3000, 0.5
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, n, generator=random, dtype=torch.float64)
    noise = Noise([("joint", row) for row in range(rows)], dtype=torch.float64)
    posterior = LevyPosterior(law, matrix, sigma)
    prior = LevyPosterior(law, 0 * matrix, sigma)
    start = state = prior.begin(torch.zeros(rows, 4, dtype=torch.float64), noise)
    for _ in range(6):
        y = state.u.cumsum(-1) @ matrix.mT + sigma * noise.normal(4)
        state = posterior.step(state, y, noise)

    def functions(state):
        u = state.u
        bounded = [torch.tanh(u), torch.exp(-u.square()), torch.tanh(u[:, :1] * u[:, 1:])]
        return torch.cat([*bounded, state.jump.double(), torch.exp(-state.variance)], 1)

    one, other = functions(start), functions(state)
    assert (start.u != state.u).any(1).double().mean() > 0.8
    spread = ((one.var(0) + other.var(0)) / rows).sqrt()
    moved = spread > 0
    z = (one.mean(0) - other.mean(0))[moved] / spread[moved]
    assert z.abs().max() < 4
    assert z.square().mean() < 2


def test_a_signal_does_not_depend_on_its_neighbours():
    matrix, y = torch.eye(4, dtype=torch.float64), double([0.1, 0.9, 1.1, 1.0], [0.0, 0.0, -2.0, 0.1])
    schedule = {"draws": 5, "burn_in": 2, "chains": 3, "seed": 1}
    both, _ = posterior_draws(LAWS[-1], matrix, y, 0.2, **schedule)
    one, _ = posterior_draws(LAWS[-1], matrix, y[:1], 0.2, **schedule)
    torch.testing.assert_close(both[:, :, :1], one)


def test_noise_is_25_decibels_below_the_signal():
    for problem in suite.PROBLEMS:
        operator, sigma, _ = suite.measured(suite.LAWS["Gaussian"], problem, 1, 0)
        matrix = suite.as_matrix(operator)
        x = suite.walks(suite.LAWS["Gaussian"], 1000, "other")
        power = (x.flatten(1) @ matrix.mT).square().mean(1).median()
        assert 10 * math.log10(float(power) / sigma**2) == pytest.approx(25, abs=0.5)
        assert torch.linalg.matrix_norm(matrix, 2) == pytest.approx(1)


def test_gap_of_an_estimate_that_is_off_by_one_deviation():
    truth = suite.Truth(torch.zeros(2, 64), torch.tensor([3.0, 5.0]), torch.zeros(1, 2, 64), torch.zeros(2, 64))
    mean = torch.full((2, 64), 0.25)
    assert suite.gap(mean, truth) == pytest.approx(10 * math.log10(2))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(suite, "LAWS", {"Gaussian": suite.LAWS["Gaussian"], "Student-t": suite.LAWS["Student-t"]})
    monkeypatch.setattr(suite, "PROBLEMS", ("denoising",))
    monkeypatch.setattr(suite, "DRAWS", 100)


def test_two_rows_are_within_their_bars(short):
    rows = list(suite.signals("posterior", 800, 2, 0))
    assert [row.problem for row in rows] == ["denoising, Gaussian", "denoising, Student-t"]
    for row in rows:
        assert row.failures == ()
        assert 0.87 < row.figures["interval 90"] < 0.93
        assert row.figures["floor dB"] == 0


def test_a_biased_sampler_is_out_of_its_bars(short):
    r"""Langevin without a test, at steps of the order of its inverse curvature, spreads its draws too far."""
    row = next(suite.signals("ula", 300, 1, 0))
    assert "coverage 90" in row.failures


@pytest.mark.slow
def test_all_laws_are_within_their_bars():
    rows = list(suite.signals(None, None, 2, 0))
    assert [row.failures for row in rows] == [()] * 8
