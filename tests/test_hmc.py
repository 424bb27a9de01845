"""Hamiltonian Monte Carlo, its metric and its step: the motion against its invariants, the law against closed forms."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from conftest import SHAPE, make_operator
from laws import assert_drawn_from

import emprior
from emprior._noise import Noise
from emprior.energy import Energy, Posterior
from emprior.fidelity import GaussianFidelity
from emprior.result import Status
from emprior.solvers import MALA, Stage, run
from emprior.solvers.adaptation import begin, learn
from emprior.solvers.hmc import HMC
from emprior.solvers.integrator import LEAPFROG, THREE_STAGE
from emprior.solvers.metric import DataMetric, metropolis, pooled


def streams(rows, seed=0):
    return Noise([(seed, i) for i in range(rows)], dtype=torch.float64)


def kept(solver, energy, x, images, steps, burn_in):
    """The rows after the burn-in, `(steps - burn_in, S B, *shape)`, and the run."""
    rows = []
    keep = lambda i, now: rows.append(now.flatten(0, 1)) if i > burn_in else None  # noqa: E731
    out = run([Stage(solver, steps, burn_in)], energy, x, streams(len(x)), images, callback=keep)
    return torch.stack(rows), out


def assert_zero(statistics):
    """Means over independent chains `(chains, ...)` in standard errors, none far out and all together not too wide."""
    z = statistics.mean(0) / (statistics.std(0) / len(statistics) ** 0.5)
    assert z.abs().max() < 4.5
    assert z.square().mean() < 1.6


def test_the_metric_is_the_hessian_of_the_data_and_a_constant(field):
    operator, eye = make_operator("compressed_sensing"), torch.eye(64, dtype=torch.float64)
    fidelity = GaussianFidelity(operator, operator.A(field.sample(1, seed=1)))
    metric = DataMetric.of(Posterior(fidelity, field, weight=2.0), curvature=30.0)
    exact = 30 * eye + fidelity.curve(eye.reshape(64, *SHAPE)).flatten(1)
    assert (metric.solve(exact.reshape(64, *SHAPE)).flatten(1) - eye).abs().max() < 1e-9
    rows = metric.draw(streams(3000), torch.zeros(3000, *SHAPE, dtype=torch.float64)).flatten(1)
    assert_drawn_from(rows, torch.zeros(64).double(), exact)
    assert DataMetric.of(Posterior(fidelity, field, weight=2.0)).constant == pytest.approx(2 * field.curvature)


def test_the_metric_without_linear_measurements_is_a_constant(field):
    import deepinv as dinv

    fidelity = GaussianFidelity(dinv.physics.Physics(A=lambda x, **_: x.tanh()), field.sample(1, seed=1), sigma=0.1)
    for energy in (field, Posterior(fidelity, field)):
        metric, x = DataMetric.of(energy, 4.0), field.sample(3, seed=2)
        assert torch.equal(metric.solve(x), x / 4)
        assert torch.equal(metric.draw(streams(3), x), 2 * streams(3).normal(*SHAPE))


@pytest.mark.parametrize("integrator", [LEAPFROG, THREE_STAGE], ids=["leapfrog", "three stages"])
def test_hmc_is_exact(case, field, integrator):
    operator, y, posterior = case
    energy, chains = Posterior(GaussianFidelity(operator, y), field), 64
    x = field.sample(2 * chains, seed=5)
    rows, out = kept(HMC(leaps=4, integrator=integrator, adapt=120), energy, x, 2, 240, 120)
    off = rows.unflatten(1, (chains, 2)) - posterior.mean
    assert_zero(off.mean(0))
    assert_zero((off.square() - posterior.std**2).mean(0))
    assert out.acceptance.min() > 0.76
    assert out.acceptance.max() < (0.84 if integrator is LEAPFROG else 0.99)
    assert out.status == [Status.SAMPLED] * 2


def test_every_direction_is_exact_in_the_metric(field):
    """In the eigenbasis of an ill-conditioned posterior, where pixels would hide the stiff directions."""
    operator = make_operator("compressed_sensing")
    y = operator.A(field.sample(1, seed=1))
    posterior, energy = field.posterior(operator, y, 0.05), Posterior(GaussianFidelity(operator, y), field)
    variances, basis = torch.linalg.eigh(posterior.covariance)
    assert variances[-1] > 50 * variances[0]
    rows, _ = kept(HMC(leaps=6, adapt=50), energy, field.sample(128, seed=5), 1, 150, 50)
    white = (rows - posterior.mean).flatten(2) @ basis / variances.sqrt()
    assert_zero(white.mean(0))
    assert_zero((white.square() - 1).mean(0))


@pytest.mark.parametrize("target", [0.65, 0.8, 0.95])
def test_the_step_learns_the_acceptance(field, target):
    operator = make_operator("compressed_sensing")
    energy = Posterior(GaussianFidelity(operator, operator.A(field.sample(2, seed=1))), field)
    for first in (1e-3, 1.5):
        _, out = kept(
            HMC(first, 3, LEAPFROG, target, 200, field.curvature), energy, field.sample(64, seed=5), 2, 360, 200
        )
        assert (out.acceptance - target).abs().max() < 0.04


def test_dual_averaging_solves_for_the_acceptance_of_each_row():
    scale = torch.tensor([0.01, 1.0, 100.0]).double()
    step = begin(0.1, scale)
    for _ in range(3000):
        step = learn(step, (-scale * step.now(True)).exp(), 0.8)
    assert (step.now(False) * scale + math.log(0.8)).abs().max() < 5e-3
    assert torch.equal(begin(0.1, scale).now(False), torch.full_like(scale, math.log(0.1)).exp())


class Wells(Energy):
    r"""`4 (x² - 1)²`, two wells with a barrier of 4 nats."""

    def forward(self, x):
        return 4 * (x.flatten(1).square() - 1).square().sum(1)


def quantiles(energy, u):
    """Inverts the distribution function of a density on the line, by quadrature."""
    grid = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    weight = (-energy(grid[:, None])).exp()
    cdf = torch.cat([torch.zeros(1).double(), (weight[1:] + weight[:-1]).cumsum(0)])
    cdf, at = cdf / cdf[-1], torch.searchsorted(cdf / cdf[-1], u).clamp(1, len(grid) - 1)
    return grid[at - 1] + (u - cdf[at - 1]) / (cdf[at] - cdf[at - 1]) * (grid[at] - grid[at - 1])


@pytest.mark.parametrize(
    "solver",
    [HMC(0.22, 4, LEAPFROG, curvature=1.0), HMC(0.6, 4, curvature=1.0), MALA(0.05, curvature=1.0)],
    ids=["leapfrog", "three stages", "mala"],
)
def test_two_wells_in_detailed_balance(solver):
    r"""From the exact law, each bin keeps its share, and as many rows go from bin `i` to `j` as from `j` to `i`."""
    chains, bins = 2000, 8
    energy = Wells()
    x = quantiles(energy, torch.rand(chains, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    edges = quantiles(energy, torch.arange(1, bins) / bins)
    rows, out = kept(solver, energy, x[:, None], chains, 60, 0)
    where = torch.searchsorted(edges, torch.cat([x[None], rows[..., 0]]))
    inside = torch.nn.functional.one_hot(where, bins).double()
    assert_zero((inside[1:].mean(0) - 1 / bins)[:, :-1])
    moves = torch.einsum("tni,tnj->nij", inside[:-1], inside[1:])
    i, j = torch.triu_indices(bins, bins, 1)
    often = (moves + moves.mT).sum(0)[i, j] > 200
    assert_zero((moves - moves.mT)[:, i[often], j[often]])
    assert often.sum() > 12
    assert 0.6 < out.acceptance.mean() < 0.95  # so that the test of Metropolis matters


def test_where_there_is_no_energy_there_are_no_samples(caplog):
    """A normal law cut off at 1: its mean is that of the truncated law."""

    class Cut(Energy):
        def forward(self, x):
            return (x.square() / 2 * torch.where(x > 1, math.nan, 1.0)).flatten(1).sum(1)

    rows, out = kept(HMC(1.5, leaps=3), Cut(), torch.zeros(400, 1).double(), 400, 260, 20)
    density = math.exp(-0.5) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert rows.max() <= 1
    assert_zero(rows.mean(0) + density / below)
    assert out.status == [Status.SAMPLED] * 400
    with caplog.at_level(logging.WARNING, "emprior"):
        lost = run([Stage(HMC(0.5), 3)], Cut(), torch.tensor([[0.0], [2.0]]).double(), streams(2), 2)
    assert lost.status == [Status.SAMPLED, Status.NON_FINITE]


def coupled(field, images, strength=1.0):
    operator = make_operator("denoising")
    y = operator.A(field.sample(1, seed=1))
    fidelity = GaussianFidelity(operator, y.repeat(images, 1, 1, 1))
    return Posterior(fidelity, field, 1.0, emprior.Repulsion(strength, samples=2)), field.posterior(operator, y, 0.1)


@pytest.mark.parametrize("solver", [HMC(leaps=4, adapt=60), MALA(adapt=60)], ids=["hmc", "mala"])
def test_samples_that_repel_have_their_joint_law(field, solver):
    r"""Of two samples the sum keeps the precision :math:`\Lambda`, the difference has :math:`\Lambda - 4 / s^2`."""
    energy, posterior = coupled(field, 64, strength=0.3)
    precision = torch.linalg.inv(posterior.covariance)
    values, basis = torch.linalg.eigh(precision)
    assert values[0] > 4 / 0.3**2
    rows, _ = kept(solver, energy, field.sample(128, seed=5), 64, 360, 60)
    pairs = (rows - posterior.mean).unflatten(1, (2, 64)).flatten(3) @ basis
    both, apart = (pairs[:, 0] + pairs[:, 1]) / 2**0.5, (pairs[:, 0] - pairs[:, 1]) / 2**0.5
    for modes, exact in [(both, values), (apart, values - 4 / 0.3**2)]:
        assert_zero(modes.mean(0))
        assert_zero((modes.square() * exact - 1).mean(0))


def test_samples_that_repel_move_together(field):
    energy, _ = coupled(field, 16)
    rows, _ = kept(HMC(0.9, leaps=3), energy, field.sample(32, seed=5), 16, 40, 0)
    moved = (rows.diff(dim=0) != 0).flatten(2).any(2).unflatten(1, (2, 16))
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert 0 < moved.double().mean() < 1


def test_a_joint_decision_adds_the_ratios_of_an_image(field):
    energy, _ = coupled(field, 2)
    ratio = torch.tensor([-1.0, 1.0, -2.0, math.nan]).double()
    probability, accepted = metropolis(ratio, energy, streams(4))
    u = streams(4).uniform()[:2].repeat(2)
    torch.testing.assert_close(probability, torch.tensor([-3.0, -math.inf, -3.0, -math.inf]).double().exp())
    assert torch.equal(accepted, u < probability)
    assert torch.equal(pooled(torch.tensor([1.0, 2.0, 3.0, 6.0]), energy), torch.tensor([2.0, 4.0, 2.0, 4.0]))
    with pytest.raises(TypeError, match="joint test of samples needs a data term and a prior, got Repulsion"):
        metropolis(ratio, emprior.Repulsion(1.0), streams(4))


def test_the_leaps_vary_evenly_about_their_mean(field):
    lengths = torch.tensor([float(HMC(leaps=8, integrator=LEAPFROG)._steps(k)) for k in range(1500)])
    assert torch.equal(lengths.unique(), torch.arange(1.0, 16.0))
    assert lengths.unique(return_counts=True)[1].sub(100).abs().max() <= 3
    for n in (10, 40):
        assert abs(lengths[:n].mean() - 8) < 15 / n
    assert {HMC(leaps=8, integrator=LEAPFROG, jitter=0)._steps(k) for k in range(50)} == {8}
    assert {HMC(leaps=9, integrator=LEAPFROG, jitter=0.5)._steps(k) for k in range(50)} == set(range(5, 14))
    assert HMC(leaps=1)._steps(7) == 1


@pytest.mark.parametrize("integrator", [LEAPFROG, THREE_STAGE])
def test_evaluations_are_gradients(field, integrator):
    calls = []

    class Counted(Energy):
        def forward(self, x):
            return field(x)

        def value_and_grad(self, x):
            calls.append(len(x))
            return field.value_and_grad(x)

    hmc = HMC(leaps=7, integrator=integrator)
    _, out = kept(hmc, Counted(), field.sample(2, seed=1), 2, 20, 0)
    assert out.evaluations == len(calls) == 1 + integrator.stages * sum(hmc._steps(k) for k in range(20))


def test_a_batch_equals_its_images_and_runs_repeat(case, field):
    operator, y, _ = case
    x, keys = field.sample(4, seed=5), [(0, s, b) for s in range(2) for b in range(2)]

    def end(rows):
        pick = [0, 1] if rows == slice(None) else [rows.start]
        chosen = [2 * s + b for s in range(2) for b in pick]
        noise = Noise([keys[i] for i in chosen], dtype=torch.float64)
        energy = Posterior(GaussianFidelity(operator, y[rows]), field)
        return run([Stage(HMC(adapt=15), 25, 15)], energy, x[chosen], noise, len(pick)).x.unflatten(0, (2, -1))

    before, held = torch.random.get_rng_state(), x.clone()
    together = end(slice(None))
    alone = torch.cat([end(slice(0, 1)), end(slice(1, 2))], 1)
    assert (together - alone).abs().max() < 1e-10
    assert torch.equal(together, end(slice(None)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(x, held)
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0}, "step_size is 0, expected a positive number"),
        ({"leaps": 0}, "leaps is 0, expected a positive whole number"),
        ({"jitter": 1.5}, "jitter is 1.5, expected a share of the leaps from 0 to 1"),
        ({"target": 1.0}, "target is 1.0, expected an acceptance between 0 and 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        HMC(**options)
