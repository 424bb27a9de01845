r"""Split Gibbs sampling against closed-form posteriors, quadrature and the densities of its own proposals."""

from __future__ import annotations

import copy
import math

import deepinv as dinv
import pytest
import torch
from conftest import SHAPE, make_operator
from laws import model

import emprior
from emprior._noise import Noise
from emprior.energy import Posterior, Prior
from emprior.fidelity import GaussianFidelity
from emprior.priors import GaussianPrior
from emprior.solvers import Stage, run
from emprior.solvers.curvature import prior_curvature
from emprior.solvers.gibbs import REACH, Place, SplitGibbs, log_ratio, propose

ADAPT = 200


def streams(images, samples, dtype=torch.float64, seed=0):
    return Noise([(seed, b, s) for s in range(samples) for b in range(images)], dtype=dtype)


def chains(posterior, start, samples, steps, **options):
    """The kept rows `(steps, S, B, *shape)` and the run."""
    kept, images = [], posterior.fidelity.images
    x = start.repeat(samples, *(1,) * (start.ndim - 1))
    stage = Stage(SplitGibbs(adapt=ADAPT, **options), ADAPT + steps, ADAPT)
    noise = streams(images, samples, x.dtype)
    out = run([stage], posterior, x, noise, images, callback=lambda index, rows: kept.append(rows))
    return torch.stack(kept[ADAPT:]).double(), out


def assert_law(kept, exact):
    """Mean and variance along each eigenvector of the exact covariance, in standard errors from independent chains."""
    values, basis = torch.linalg.eigh(exact.covariance)
    white = (kept - exact.mean).flatten(3) @ basis / values.sqrt()
    for moment, truth in ((white, 0), (white.square(), 1)):
        means = moment.mean(0)
        z = (means.mean(0) - truth) / means.std(0) * math.sqrt(len(means))
        assert z.abs().max() < 5
        assert z.square().mean() < 1.5


def test_gaussian_posteriors_are_exact(case, field):
    operator, y, exact = case
    posterior = Posterior(GaussianFidelity(operator, y), field)
    kept, out = chains(posterior, torch.full((2, *SHAPE), 0.5).double(), samples=40, steps=300)
    assert_law(kept, exact)
    assert ((out.acceptance - 0.574).abs() < 0.05).all()
    assert out.evaluations == ADAPT + 300 + 1


def stiff(name, field, sigma=0.002):
    operator = make_operator(name)
    operator.set_noise_model(dinv.physics.GaussianNoise(sigma))
    y = operator.A(field.sample(2, seed=1))
    y = y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype) * (y != 0)
    return operator, y, field.posterior(operator, y, sigma)


@pytest.mark.parametrize("name", ["denoising", "inpainting", "compressed_sensing"])
def test_stiff_data_do_not_slow_it_down(field, name):
    r"""At sigma = 0.002 the posterior's precisions span five decades."""
    operator, y, exact = stiff(name, field)
    posterior = Posterior(GaussianFidelity(operator, y), field)
    kept, out = chains(posterior, torch.full((2, *SHAPE), 0.5).double(), samples=40, steps=300)
    assert_law(kept, exact)
    assert (out.acceptance > 0.52).all()
    assert (out.step_size * field.curvature <= REACH * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", ["denoising", "inpainting"])
def test_single_precision_keeps_a_stiff_law(field, name):
    operator, y, exact = stiff(name, field)
    posterior = Posterior(GaussianFidelity(operator, y.float()), copy.deepcopy(field).float())
    kept, out = chains(posterior, torch.full((2, *SHAPE), 0.5), samples=40, steps=300)
    assert out.x.dtype == torch.float32
    assert_law(kept, exact)


def test_a_weight_is_kept(field):
    operator = make_operator("denoising")
    y = operator.A(field.sample(1, seed=1))
    posterior = Posterior(GaussianFidelity(operator, y), field, weight=3.0)
    flatter = GaussianPrior(field.mean, field.covariance_matrix() / 3)
    kept, _ = chains(posterior, y, samples=40, steps=300)
    assert_law(kept, flatter.posterior(operator, y, 0.1))


def test_the_ratio_is_that_of_the_densities(case, field):
    r"""`propose` and `log_ratio` against dense matrices of the law that the docstring gives."""
    operator, y, _ = case
    fidelity, rows = GaussianFidelity(operator, y[:1]), 4000
    posterior = Posterior(fidelity, field, weight=1.7)
    H, b, *_ = model(fidelity, field)
    eye, eta = torch.eye(64).double(), torch.full((rows,), 0.7 / prior_curvature(posterior)).double()
    S = torch.linalg.inv(eye + eta[0] * H)
    law = eta[0] * S @ (eye + S)

    def centre(place):
        return (place.x.flatten(1) - eta[0] * place.gradient.flatten(1) + eta[0] * b) @ S

    def log_q(to, given):
        r = to.x.flatten(1) - centre(given)
        return -(r * torch.linalg.solve(law, r.mT).mT).sum(1) / 2

    here = Place.at(posterior, field.sample(1, seed=3).expand(rows, *SHAPE))
    there = Place.at(posterior, propose(fidelity, here, eta, streams(1, rows)))
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(law), (there.x.flatten(1) - centre(here)).mT, upper=False
    )
    assert (white.mean(1) * rows**0.5).abs().max() < 4.5
    assert ((white @ white.mT / rows - eye) / ((1 + eye) / rows).sqrt()).abs().max() < 4.5

    exact = posterior(here.x) - posterior(there.x) + log_q(here, there) - log_q(there, here)
    torch.testing.assert_close(log_ratio(fidelity, here, there, eta), exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_ratio(fidelity, there, here, eta), -exact, rtol=0, atol=1e-8)


class DoubleWell(Prior):
    r"""2 (x² - 1)² per pixel."""

    curvature = 16.0

    def forward(self, x):
        return 2 * (x.flatten(1).square() - 1).square().sum(1)

    def denoise(self, x, sigma):
        raise NotImplementedError

    def start(self, noise, shape=None):
        raise NotImplementedError

    def sample(self, n, *, seed=0):
        raise NotImplementedError


@pytest.fixture
def well():
    operator = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.7))
    return Posterior(GaussianFidelity(operator, torch.full((1, 1, 1, 1), 0.15).double()), DoubleWell((1, 1, 1)))


def test_a_double_well_has_its_density(well):
    r"""From one well alone, to both in their proportion; errors from independent chains."""
    rows, cells, kept = 200, torch.linspace(-2, 2, 21).double(), []
    grid = torch.linspace(-3, 3, 60001).double()
    density = (-well(grid.reshape(-1, 1, 1, 1))).exp()
    exact = torch.zeros(22).double().index_add(0, torch.bucketize(grid, cells), density) / density.sum()
    stage = Stage(SplitGibbs(step_size=6.0), 700, 200)
    start = -torch.ones(rows, 1, 1, 1).double()
    run([stage], well, start, streams(1, rows), 1, callback=lambda _, x: kept.append(torch.bucketize(x, cells)))
    visits = torch.nn.functional.one_hot(torch.stack(kept[200:]).reshape(500, rows), 22).double().mean(0)
    z = (visits.mean(0) - exact) / visits.std(0) * rows**0.5
    assert (exact > 1e-3).sum() == 16
    assert z[exact > 1e-3].abs().max() < 3.5


def test_a_double_well_is_left_in_detailed_balance(well):
    r"""From the exact law, as many rows go from one region to another as come back."""
    rows, grid = 40_000, torch.linspace(-2.4, 2.4, 4801).double()
    cumulative = (-well(grid.reshape(-1, 1, 1, 1))).exp().cumsum(0)
    u = torch.rand(rows, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    start = grid[torch.searchsorted(cumulative / cumulative[-1], u)].reshape(-1, 1, 1, 1)
    solver, noise = SplitGibbs(step_size=4.0), streams(1, rows)
    end = solver.step(well, solver.init(well, start, noise), noise)[0].x
    cells = torch.tensor([-1.0, -0.7, 0.0, 0.7, 1.0]).double()
    a, b = torch.searchsorted(cells, start.flatten()), torch.searchsorted(cells, end.flatten())
    flow = torch.zeros(6, 6).double().index_put((a, b), torch.ones(rows).double(), accumulate=True)
    z = (flow - flow.mT) / (flow + flow.mT).clamp(min=1).sqrt()
    assert flow.sum() - flow.diagonal().sum() > 4_000
    assert z.abs().max() < 4


def test_without_data_it_is_the_metropolis_adjusted_langevin_algorithm():
    blind = dinv.physics.Inpainting((1, 1, 2), mask=torch.zeros(1, 1, 2), noise_model=dinv.physics.GaussianNoise(0.1))
    posterior = Posterior(GaussianFidelity(blind, torch.zeros(1, 1, 1, 2).double()), DoubleWell((1, 1, 2)))
    here = Place.at(posterior, torch.tensor([[[[0.9, -1.1]]]]).double())
    there, eta = Place.at(posterior, torch.tensor([[[[0.7, -1.0]]]]).double()), torch.tensor([0.02]).double()

    def log_q(to, given):
        return -(to.x - given.x + eta * given.gradient).square().sum() / (4 * eta)

    exact = here.value - there.value + log_q(here, there) - log_q(there, here)
    torch.testing.assert_close(log_ratio(posterior.fidelity, here, there, eta), exact)


def test_samples_under_an_interaction_are_accepted_jointly(field):
    r"""Two samples that repel: their difference is wider, by the exact law of the pair, and their mean is not."""
    operator, strength, pairs = make_operator("denoising"), 0.3, 40
    y = operator.A(field.sample(1, seed=1)).repeat(pairs, 1, 1, 1)
    posterior = Posterior(GaussianFidelity(operator, y), field, 1.0, emprior.Repulsion(strength, samples=2))
    kept, out = chains(posterior, y, samples=2, steps=300)
    precision = torch.linalg.inv(field.covariance_matrix()) + torch.eye(64) / 0.1**2
    apart = 2 * torch.linalg.inv(precision - 4 / strength**2 * torch.eye(64)).diagonal().mean()
    together = 2 * torch.linalg.inv(precision).diagonal().mean()
    assert apart > 1.2 * together
    centre = 2 * field.posterior(operator, y[:1], 0.1).mean
    for rows, exact in ((kept[:, 0] - kept[:, 1], apart), (kept[:, 0] + kept[:, 1] - centre, together)):
        variances = rows.square().flatten(2).mean((0, 2))
        assert abs(float((variances.mean() - exact) / variances.std() * pairs**0.5)) < 4
    assert abs(float(out.acceptance.mean()) - 0.574) < 0.05


def test_the_step_follows_its_target(field):
    operator = make_operator("inpainting")
    y = operator.A(field.sample(2, seed=1))
    posterior = Posterior(GaussianFidelity(operator, y), field)
    for target in (0.3, 0.8):
        _, out = chains(posterior, y, samples=16, steps=200, target=target)
        assert ((out.acceptance - target).abs() < 0.05).all()
    first = SplitGibbs().step(posterior, SplitGibbs().init(posterior, y, streams(2, 1)), streams(2, 1))[1]
    torch.testing.assert_close(first.step_size, torch.full((2,), 1 / field.curvature).double())


def test_a_batch_equals_its_images(case, field):
    operator, y, _ = case
    start = torch.full((2, *SHAPE), 0.5).double()
    noise = [(0, b, s) for s in range(3) for b in range(2)]

    def end(images):
        keys = [key for key in noise if key[1] in images]
        posterior = Posterior(GaussianFidelity(operator, y[images]), field)
        x = start[images].repeat(3, 1, 1, 1)
        out = run([Stage(SplitGibbs(adapt=20), 40, 20)], posterior, x, Noise(keys, dtype=y.dtype), len(images))
        return out.x.unflatten(0, (3, -1)), out.step_size

    together, alone = end([0, 1]), [end([0]), end([1])]
    assert (together[0] - torch.cat([one[0] for one in alone], 1)).abs().max() < 1e-10
    torch.testing.assert_close(together[1], torch.cat([one[1] for one in alone]))


def test_runs_repeat_and_leave_no_trace(case, field):
    operator, y, _ = case
    posterior, start = Posterior(GaussianFidelity(operator, y), field), torch.full((2, *SHAPE), 0.5).double()
    before, kept = torch.random.get_rng_state(), start.clone()
    first, second, other = (
        run([Stage(SplitGibbs(adapt=10), 30)], posterior, start, streams(2, 1, seed=seed), 2).x for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(start, kept)


def test_what_it_cannot_draw_from_is_refused(field):
    physics = dinv.physics.PhaseRetrieval(lambda x: x)
    fidelity = GaussianFidelity(physics, torch.rand(1, *SHAPE), 0.1)
    with pytest.raises(ValueError, match="Use method='mala'"):
        SplitGibbs().check(Posterior(fidelity, field))
    with pytest.raises(TypeError, match="SplitGibbs needs a data term and a prior"):
        SplitGibbs().check(field)
    with pytest.raises(ValueError, match=r"target is 1\.5"):
        SplitGibbs(target=1.5)
