r"""The weight of the prior as an unknown, against the evidence: in closed form for a Gaussian, by quadrature else."""

from __future__ import annotations

import math

import deepinv as dinv
import pytest
import torch
from conftest import SHAPE

import emprior
from emprior._noise import Noise
from emprior.energy import Posterior, Prior
from emprior.fidelity import GaussianFidelity
from emprior.solvers import HMC, MALA, SplitGibbs, Stage, run
from emprior.solvers.base import Observer
from emprior.solvers.weight import Unmeasured, Weight

COPIES, TRUE, SIGMA = 20, 0.4, 0.1


class Last(Observer):
    r"""Keeps the last numbers."""

    satisfied = False

    def see(self, x, numbers, kept):
        self.numbers = {name: value.clone() for name, value in numbers.items()}


class Absolute(Prior):
    r"""The energy :math:`\sum_i (\sqrt{1 + 400 x_i^2} - 1)` of pixels that are near to zero or far from it."""

    curvature = 400.0

    def forward(self, x):
        return ((1 + 400 * x.square()).sqrt() - 1).flatten(1).sum(1)

    def denoise(self, x, sigma):
        return x

    def start(self, noise, shape=None):
        return 0.1 * noise.normal(*self.shape)

    def sample(self, n, *, seed=0):
        raise NotImplementedError


def at(logs, evidence):
    r"""The maximiser of the evidence and its curvature in the weight, from values on a fine grid of its logarithm."""
    best = int(evidence.argmax())
    assert 0 < best < len(logs) - 1
    low, top, high = evidence[best - 1 : best + 2]
    step = logs[1] - logs[0]
    bend = (2 * top - low - high) / step**2
    log = logs[best] + (high - low) / (2 * step) / bend
    return float(log.exp()), float(bend / (2 * log).exp())


def gaussian_case(field):
    r"""A field that is :math:`1 / \sqrt{0.4}` as wide as its prior says; all is diagonal in the basis of its modes."""
    random = torch.Generator().manual_seed(1)
    x = field.mean + (field.sample(1, seed=3) - field.mean) / TRUE**0.5
    y = x + SIGMA * torch.randn(x.shape, generator=random, dtype=x.dtype)
    values, basis = torch.linalg.eigh(field.covariance_matrix())
    modes = ((y - field.mean).flatten() @ basis).square()
    logs = torch.linspace(-4, 3, 7001, dtype=torch.float64)
    variances = values / logs.exp()[:, None] + SIGMA**2
    return field, y, *at(logs, -(modes / variances + variances.log()).sum(1) / 2)


def absolute_case(_):
    r"""Pixels of another law than the prior's, each by itself, so that the evidence is a product of integrals."""
    prior, random = Absolute(SHAPE), torch.Generator().manual_seed(1)
    x = 0.06 * torch.randn(1, *SHAPE, generator=random, dtype=torch.float64).pow(3)
    y = x + SIGMA * torch.randn(x.shape, generator=random, dtype=x.dtype)
    grid = torch.linspace(-15, 15, 60001, dtype=torch.float64)
    energy = prior(grid[:, None])
    logs = torch.linspace(-3, 2, 251, dtype=torch.float64)
    near = torch.linspace(-3, 3, 3001, dtype=torch.float64)
    data = -(y.reshape(-1, 1) - near).square() / (2 * SIGMA**2)
    evidence = [
        ((data - w * prior(near[:, None])).logsumexp(1) + math.log(near[1] - near[0])).sum()
        - 64 * ((-w * energy).logsumexp(0) + math.log(grid[1] - grid[0]))
        for w in logs.exp()
    ]
    return prior, y, *at(logs, torch.stack(evidence))


CASES = {"a Gaussian field": gaussian_case, "an energy that is not homogeneous": absolute_case}


def estimates(prior, y, solver, adapt, samples=4):
    r"""Independent estimates from the same measurements, and the information that they see."""
    fidelity = GaussianFidelity(dinv.physics.Denoising(), y.repeat(COPIES, 1, 1, 1), SIGMA)
    noise, last = Noise([(s, i) for s in range(samples) for i in range(COPIES)], dtype=y.dtype), Last()
    x = y.repeat(COPIES * samples, 1, 1, 1)
    run([Stage(Weight(solver, adapt), adapt + 1, adapt)], Posterior(fidelity, prior), x, noise, COPIES, observer=last)
    for value in (last.numbers["weight"], last.numbers["weight_std"]):
        assert torch.equal(value, value[:1].expand_as(value))
    return last.numbers["weight"][0], last.numbers["weight_std"][0] ** -2


@pytest.mark.parametrize(
    ("case", "solver", "bias"),
    [
        ("a Gaussian field", HMC(leaps=4, adapt=120), 0.0),
        ("a Gaussian field", MALA(adapt=250), 0.0),
        ("a Gaussian field", SplitGibbs(adapt=200), 0.0),
        ("an energy that is not homogeneous", HMC(leaps=4, adapt=300), 0.2),
    ],
    ids=["hmc", "mala", "gibbs", "not homogeneous"],
)
def test_the_weight_is_that_of_the_largest_evidence(field, case, solver, bias):
    r"""The mean logarithm of independent estimates, in standard errors.

    Steps that have not fallen to zero leave a bias of second order where the energy is not homogeneous; it is held
    below a fifth of the deviation of the likelihood.
    """
    prior, y, best, information = CASES[case](field)
    assert abs(math.log(best)) > 0.5
    found, seen = estimates(prior, y, solver, solver.adapt)
    error, deviation = found.log().std() / COPIES**0.5, 1 / (best * information**0.5)
    assert error < 0.1 * deviation
    assert (found.log().mean() - math.log(best)).abs() < (bias * deviation or 4 * error)
    assert (seen.mean() - information).abs() < 4 * seen.std() / COPIES**0.5
    assert seen.std() < information


def test_samples_are_of_the_posterior_of_that_weight(field):
    _, y, best, information = gaussian_case(field)
    result = emprior.solve(
        dinv.physics.Denoising(), y, field, method="hmc", weight="estimate", sigma=SIGMA, samples=8, steps=400
    )
    run_ = result.diagnostics
    assert abs(float(run_.weight) - best) < 0.5 / information**0.5
    identity, precision = torch.eye(64, dtype=torch.float64), torch.linalg.inv(field.covariance_matrix())
    errors = []
    for weight in (float(run_.weight), 1.0):
        law = torch.linalg.inv(weight * precision + identity / SIGMA**2)
        mean = field.mean.flatten() + law @ (y - field.mean).flatten() / SIGMA**2
        std = law.diagonal().sqrt()
        error = ((result.mean.flatten() - mean) / std).square().mean() * float(run_.ess)
        errors.append((float(error), abs(float((result.std.flatten() / std).mean()) - 1)))
    (near, narrow), (far, wide) = errors
    assert near < 2
    assert narrow < 0.02
    assert far > 10
    assert wide > 0.04
    assert result.config["weight"] == "estimate"


def test_map_takes_the_weight_of_a_chain(field):
    x = field.sample(2, seed=3)
    y = field.mean + torch.tensor([0.7, 1.8]).double().reshape(2, 1, 1, 1) * (x - field.mean)
    result = emprior.solve(dinv.physics.Denoising(), y, field, weight="estimate", sigma=SIGMA)
    weight = result.diagnostics.weight
    assert weight[0] > 2 * weight[1]
    assert (result.diagnostics.weight_std > 0).all()
    for b in range(2):
        known = emprior.solve(
            dinv.physics.Denoising(), y[b : b + 1], field, weight=float(weight[b]), sigma=SIGMA
        ).diagnostics
        exact = (y[b] - field.mean).flatten() / SIGMA**2
        matrix = float(weight[b]) * torch.linalg.inv(field.covariance_matrix()) + torch.eye(64) / SIGMA**2
        minimum = field.mean.flatten() + torch.linalg.solve(matrix, exact)
        torch.testing.assert_close(result.estimate[b].flatten(), minimum, rtol=0, atol=1e-4)
        torch.testing.assert_close(result.diagnostics.residual[b], known.residual[0], rtol=1e-3, atol=0)
        for name in ("energy", "fidelity", "prior"):
            ends = result.diagnostics.trace[name][-1, :, b], known.trace[name][-1, :, 0]
            torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-3)


def test_an_image_of_a_batch_is_that_image_alone(field):
    y, before = field.sample(2, seed=3), torch.random.get_rng_state()
    options = {"method": "mala", "weight": "estimate", "sigma": SIGMA, "steps": 40, "samples": 2}
    one, two = (emprior.solve(dinv.physics.Denoising(), rows, field, **options) for rows in (y[:1], y))
    torch.testing.assert_close(two.mean[:1], one.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(two.diagnostics.weight[:1], one.diagnostics.weight, rtol=0, atol=1e-9)
    assert two.diagnostics.weight[0] != two.diagnostics.weight[1]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_estimated_is_saved(field, tmp_path):
    options = {"method": "mala", "weight": "estimate", "sigma": SIGMA, "steps": 40}
    result = emprior.solve(dinv.physics.Denoising(), field.sample(2, seed=3), field, **options)
    result.save(tmp_path / "run")
    loaded = emprior.Result.load(tmp_path / "run").diagnostics
    assert torch.equal(loaded.weight, result.diagnostics.weight)
    assert torch.equal(loaded.weight_std, result.diagnostics.weight_std)
    assert loaded.sigma is None
    assert result.diagnostics.summary()["weight"] == pytest.approx(float(result.diagnostics.weight.mean()))


def test_the_prior_is_not_asked_twice(field):
    calls = []

    class Counted(type(field)):
        def value_and_grad(self, x):
            calls.append(len(x))
            return super().value_and_grad(x)

    prior = Counted(field.mean, field.covariance)
    fidelity = GaussianFidelity(dinv.physics.Denoising(), field.sample(2, seed=3), SIGMA)
    noise, last = Noise([(0, 0), (0, 1)], dtype=torch.float64), Last()
    x = field.sample(2, seed=3)
    out = run([Stage(Weight(MALA(), 10), 30, 10)], Posterior(fidelity, prior), x, noise, 2, observer=last)
    assert out.evaluations == len(calls) == 1 + 10 * 2 + 20


def test_the_data_term_of_no_data_is_that_of_an_operator_that_sees_nothing():
    blind = GaussianFidelity(dinv.physics.Inpainting(SHAPE, mask=torch.zeros(SHAPE)), torch.zeros(2, *SHAPE), 0.1)
    nothing = Unmeasured(2, SHAPE)
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    for of in (
        lambda data: data(x),
        lambda data: data.value_and_grad(x)[0],
        lambda data: data.value_and_grad(x)[1],
        lambda data: data.prox(x, 0.03),
        lambda data: data.curve(x),
        lambda data: data.solve(x, torch.full((4,), 0.03)),
        lambda data: data.whiten(torch.zeros(4, *data.measured)),
        lambda data: data.residual(x),
        lambda data: data.count(x),
    ):
        torch.testing.assert_close(of(nothing), of(blind))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "guess"}, r"weight is 'guess', expected a positive number or 'estimate'"),
        (
            {"weight": "estimate", "method": "flow"},
            r"method 'flow' cannot estimate weight. Use one of: map, .*hmc.*or pass weight=1.0",
        ),
        ({"weight": "estimate", "method": "tempering"}, r"'tempering' cannot estimate weight"),
        ({"weight": "estimate", "sigma": "estimate"}, r"cannot be estimated at once.*Pass a number.*weight=1.0"),
        ({"weight": "estimate", "method": "mala", "steps": 12}, r"at least 8 iterations, got 3. Pass steps=32"),
        (
            {"weight": "estimate", "method": "mala", "samples": 2, "interaction": emprior.Repulsion(9.0)},
            r"under a repulsion.*Leave out interaction, or pass weight=1.0",
        ),
    ],
)
def test_bad_input(field, options, message):
    with pytest.raises(ValueError, match=message):
        emprior.solve(dinv.physics.Denoising(), field.sample(1, seed=1), field, **{"sigma": SIGMA, **options})
