"""Every method against closed-form posteriors, and the loop's promises."""

from __future__ import annotations

import copy
import logging
import math

import deepinv as dinv
import pytest
import torch
from conftest import make_operator
from laws import assert_moments, flow_step, model, split_law
from torch import nn

import emprior
from emprior._noise import Noise
from emprior.energy import Energy, Posterior
from emprior.fidelity import GaussianFidelity
from emprior.interpolant import Denoising
from emprior.priors import GaussianPrior, NetworkPrior
from emprior.result import Status
from emprior.solvers import MALA, METHODS, ULA, Annealing, Continuation, Descent, Flow, Settings, Stage, run

CHAINS = 192


class Quadratic(Energy):
    """x² / 2 s² per pixel."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = s

    def forward(self, x):
        return x.flatten(1).square().sum(1) / (2 * self.s**2)


def chain_means(operator, y, prior, method, steps, seed=0):
    """Means over time of each chain, from the callback, and the result."""
    burn_in = sum(stage.burn_in for stage in METHODS[method].stages(Settings(steps, Annealing().steps)))
    sums, count = 0, 0

    def add(index, rows):
        nonlocal sums, count
        if index > burn_in:
            sums, count = sums + rows, count + 1

    result = emprior.solve(operator, y, prior, method=method, samples=CHAINS, steps=steps, seed=seed, callback=add)
    return sums / count, result


def test_mala_is_exact(case, field):
    operator, y, posterior = case
    means, result = chain_means(operator, y, field, "mala", 1000)
    error = means.std(0) / math.sqrt(CHAINS)
    z = (result.mean - posterior.mean) / error
    assert z.abs().max() < 4
    assert z.square().mean() < 1.6
    assert (result.std / posterior.std).sub(1).abs().max() < 0.03
    assert ((result.diagnostics.acceptance - 0.574).abs() < 0.05).all()


def test_map_reaches_the_exact_mode(case, field):
    operator, y, posterior = case
    for method in ("map", "descent"):
        result = emprior.solve(operator, y, field, method=method, steps=400)
        assert result.status is Status.CONVERGED
        assert (result.estimate - posterior.mean).abs().max() < 1e-4
        assert result.std is None


def test_map_with_a_weight_satisfies_the_normal_equations(case, field):
    operator, y, _ = case
    result = emprior.solve(operator, y, field, weight=3.0, steps=400)
    fidelity = GaussianFidelity(operator, y)
    gradient = fidelity.value_and_grad(result.estimate)[1] + 3.0 * field.value_and_grad(result.estimate)[1]
    scale = 3.0 * field.value_and_grad(result.estimate)[1].flatten(1).norm(dim=1)
    assert (gradient.flatten(1).norm(dim=1) < 1e-3 * scale).all()


def test_ula_has_its_exact_biased_law():
    s, h, shape = 0.7, 0.4, (4, 5, 5)
    energy, chains = Quadratic(s), 512
    noise = Noise([(0, i) for i in range(chains)], dtype=torch.float64)
    x = torch.zeros(chains, *shape, dtype=torch.float64)
    out = run([Stage(ULA(step_size=h), 300, burn_in=50)], energy, x, noise, 1)
    exact = s**2 / (1 - h / (2 * s**2))
    assert exact > 1.5 * s**2  # the bias is far larger than the error of the test
    variance = out.moments.std().square().mean()
    rho = 1 - h / s**2
    effective = chains * 250 * 100 * (1 - rho**2) / (1 + rho**2)
    assert abs(float(variance) / exact - 1) < 5 * math.sqrt(2 / effective)


def test_mala_removes_ulas_bias():
    s, chains = 0.7, 512
    noise = Noise([(0, i) for i in range(chains)], dtype=torch.float64)
    x = torch.zeros(chains, 1, 2, 2, dtype=torch.float64)
    out = run([Stage(MALA(step_size=0.4, adapt=0, curvature=1.0), 400, burn_in=50)], Quadratic(s), x, noise, 1)
    assert abs(float(out.moments.std().square().mean()) / s**2 - 1) < 0.02


def test_flow_has_its_exact_biased_law(case, field):
    operator, y, posterior = case
    h = Flow().step_size * field.time_unit
    move, _, step = flow_step(model(GaussianFidelity(operator, y[:1]), field), h)
    law = 2 * h * step @ step.mT
    for _ in range(30):  # the series of the stationary covariance, by doubling
        law, move = law + move @ law @ move.mT, move @ move
    exact = law.diagonal().sqrt().reshape(1, 8, 8)
    result = emprior.solve(operator, y, field, method="flow", samples=64, steps=1500)
    assert (result.std / exact).mean().sub(1).abs() < 0.02
    assert ((result.mean - posterior.mean) / posterior.std).abs().max() < 0.25


def test_a_flow_through_a_learned_prior_arrives_at_the_data():
    r"""Samples of a stroke under noise are nearer to it than what was measured, and leave the noise as residual."""
    stroke, random = torch.zeros(1, 1, 28, 28), torch.Generator().manual_seed(0)
    stroke[..., 5:23, 13:15] = 1
    y = stroke + 0.2 * torch.randn(stroke.shape, generator=random)
    operator = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.2))
    result = emprior.solve(operator, y, "mnist", method="flow", steps=60)
    assert (result.samples[0] - stroke).square().mean() < 0.25 * (y - stroke).square().mean()
    assert abs(float(result.diagnostics.residual) - 1) < 4 / (2 * y.numel()) ** 0.5


@pytest.mark.parametrize(("draws", "noisy"), [(1, True), (3, False)], ids=["one draw", "draws that sum to zero"])
def test_a_continuation_has_its_exact_law(case, field, draws, noisy):
    r"""The denoiser is linear, so that draws that sum to zero leave no noise at all."""
    operator, y, _ = case
    chains, levels, weight = 800, 8, 2.0
    solver = Continuation(levels, start=1.0, stop=0.1, trust=0.7, draws=draws)
    fidelity = GaussianFidelity(operator, y[:1])
    sigmas = [solver.stop ** (k / (levels - 1)) for k in range(levels)]
    noise = Noise([(0, i) for i in range(chains)], dtype=torch.float64)
    x = torch.zeros(chains, 1, 8, 8, dtype=torch.float64)
    end = run([Stage(solver, levels)], Posterior(fidelity, field, weight), x, noise, 1).x.flatten(1)
    assert_moments(end, *split_law(model(fidelity, field), sigmas, solver.trust, weight, noisy))


@pytest.mark.parametrize("method", [Annealing, Continuation])
def test_falling_noise_starts_where_the_prior_ends(case, field, method):
    operator, y, _ = case
    known = copy.deepcopy(field)
    known.noise_limit = 0.5

    def end(prior, start, stop):
        noise = Noise([(0, i) for i in range(2)], dtype=torch.float64)
        posterior = Posterior(GaussianFidelity(operator, y), prior)
        return run([Stage(method(5, start, stop), 5)], posterior, torch.zeros(2, 1, 8, 8).double(), noise, 2).x

    for (start, stop), (first, last) in {(3, 0.1): (0.5, 0.1), (3, 1): (0.5, 0.5), (0.3, 0.1): (0.3, 0.1)}.items():
        torch.testing.assert_close(end(known, start, stop), end(field, first, last))


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_step_denoiser_is_asked_for_no_more_noise_than_it_knows(method):
    potential = nn.Sequential(nn.Flatten(), nn.Linear(64, 1).double(), nn.Flatten(0))
    prior = NetworkPrior(potential, (1, 8, 8), Denoising(), 0.01)
    operator = make_operator("inpainting")
    y = operator.A(torch.full((1, 1, 8, 8), 0.5).double())
    assert emprior.solve(operator, y, prior, method=method, steps=20).estimate.isfinite().all()


def test_draws_of_a_continuation_are_white_and_sum_to_zero():
    n = Continuation(draws=3)._balanced(Noise([(0, i) for i in range(400)]), torch.zeros(400, 1, 8, 8))
    assert n.sum(0).abs().max() < 1e-5
    assert (n.flatten(1).var(1) - 1).abs().max() < 5 * (2 / n[0].numel()) ** 0.5


def test_odd_powers_of_the_draws_of_a_continuation():
    x, noise = torch.zeros(4, 1, 8, 8).double(), [(0, i) for i in range(4)]
    pair, three = (Continuation(draws=m)._balanced(Noise(noise, dtype=x.dtype), x) for m in (2, 3))
    for power in (1, 3, 5):
        torch.testing.assert_close(pair.pow(power).sum(0), x)
    torch.testing.assert_close(three.pow(3).sum(0), 3 * three.prod(0))
    assert three.pow(3).sum(0).abs().mean() > 1


def test_descent_never_raises_the_energy(field):
    operator = make_operator("compressed_sensing")
    y = operator.A(field.sample(3, seed=4))
    posterior = Posterior(GaussianFidelity(operator, y), field)
    values = []
    noise = Noise([(0, i) for i in range(3)], dtype=torch.float64)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run([Stage(Descent(1e-9), 150)], posterior, x, noise, 3, callback=lambda _, rows: values.append(posterior(rows[0])))
    trace = torch.stack(values)
    assert (trace.diff(dim=0) <= 0).all()
    assert (trace[-1] < trace[0]).all()


def test_descent_survives_a_rough_energy():
    class Rough(Energy):
        def forward(self, x):
            return (x.flatten(1).abs() + 0.3 * torch.cos(20 * x.flatten(1))).sum(1)

    x = torch.linspace(-3, 3, 32, dtype=torch.float64).reshape(4, 1, 2, 4)
    energy, noise = Rough(), Noise([(0, i) for i in range(4)])
    values = [energy(x)]
    out = run([Stage(Descent(1e-6), 200)], energy, x, noise, 4, callback=lambda _, r: values.append(energy(r[0])))
    assert (torch.stack(values).diff(dim=0) <= 0).all()
    assert all(status in (Status.CONVERGED, Status.STALLED, Status.EXHAUSTED) for status in out.status)


def test_descent_stops_at_once_at_the_minimum(field):
    x = field.mean.expand(2, -1, -1, -1)
    out = run([Stage(Descent(), 50)], field, x, Noise([(0, 0), (0, 1)]), 2)
    assert out.evaluations <= 2
    assert out.status == [Status.CONVERGED] * 2
    assert torch.equal(out.x, x)


def test_continuation_counts_its_gradients(case, field):
    operator, y, _ = case
    result = emprior.solve(operator, y, field, method="continuation", steps=25)
    assert result.diagnostics.gradient_evaluations == 25 * Continuation().draws


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_images(case, field, method):
    """Up to rounding, which the first draws of a start, by conjugate gradients, let grow a million times and more."""
    operator, y, _ = case
    together = emprior.solve(operator, y, field, method=method, samples=2, steps=40)
    alone = [emprior.solve(operator, y[i : i + 1], field, method=method, samples=2, steps=40) for i in range(2)]
    for name in ("estimate", "mean"):
        joined = torch.cat([getattr(one, name) for one in alone])
        assert (getattr(together, name) - joined).abs().max() < 1e-5
    assert (together.samples - torch.cat([one.samples for one in alone], 1)).abs().max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_runs_repeat_and_leave_no_trace(case, field, method):
    operator, y, _ = case
    before, kept, flags = torch.random.get_rng_state(), y.clone(), [p.requires_grad for p in operator.parameters()]
    first = emprior.solve(operator, y, field, method=method, samples=2, steps=40)
    second = emprior.solve(operator, y, field, method=method, samples=2, steps=40)
    other = emprior.solve(operator, y, field, method=method, samples=2, steps=40, seed=1)
    assert torch.equal(first.samples, second.samples)
    assert torch.equal(first.estimate, second.estimate)
    if METHODS[method].samples:
        assert not torch.equal(first.samples, other.samples)
        assert not torch.equal(first.samples[0], first.samples[1])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(y, kept)
    assert not y.requires_grad
    assert [p.requires_grad for p in operator.parameters()] == flags


def test_moments_leave_out_the_burn_in():
    x = torch.zeros(1, 1, 1, 1)
    seen = []
    stage = Stage(ULA(step_size=0.1), 20, burn_in=12)
    out = run([stage], Quadratic(1.0), x, Noise([(0, 0)]), 1, callback=lambda i, r: seen.append(r[0].clone()))
    assert out.moments.count == 8
    assert torch.allclose(out.moments.mean, torch.stack(seen[12:]).mean(0))
    assert torch.allclose(out.moments.std(), torch.stack(seen[12:]).std(0))


def test_an_energy_that_breaks_is_reported(caplog):
    class Broken(Energy):
        def forward(self, x):
            return x.flatten(1).square().sum(1) / torch.where(x.flatten(1).amax(1) > 5, math.nan, 1.0)

    x = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 10.0)])
    with caplog.at_level(logging.WARNING, "emprior"):
        out = run([Stage(ULA(step_size=0.1), 5)], Broken(), x, Noise([(0, 0), (0, 1)]), 2)
    assert out.status == [Status.SAMPLED, Status.NON_FINITE]
    assert torch.isfinite(out.x).all()
    assert "image 1 at iteration 1: the energy became infinite or NaN" in caplog.text


@pytest.mark.parametrize("solver", [ULA(step_size=0.1), MALA(curvature=1.0)])
def test_an_energy_without_a_value_is_reported(solver):
    class Undefined(Quadratic):
        def forward(self, x):
            return super().forward(x) * torch.where(x.flatten(1)[:, 0] > 5, math.nan, 1.0)

        def value_and_grad(self, x):
            return self(x), x

    x = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 100.0)])
    out = run([Stage(solver, 5)], Undefined(1.0), x, Noise([(0, 0), (0, 1)]), 2)
    assert out.status == [Status.SAMPLED, Status.NON_FINITE]


def test_a_repulsion_that_is_too_strong_diverges(field):
    operator = make_operator("inpainting")
    y = operator.A(field.sample(1, seed=1))
    energy = Posterior(GaussianFidelity(operator, y), field, 1.0, emprior.Repulsion(0.05, samples=2))
    out = run([Stage(ULA(), 4000)], energy, field.sample(2, seed=2), Noise([(0, 0), (0, 1)], dtype=y.dtype), 1)
    assert out.status == [Status.DIVERGED]
    assert not out.status[0].ok
    assert out.x.isfinite().all()


def test_methods_without_a_test_do_not_claim_one(case, field):
    operator, y, _ = case
    assert emprior.solve(operator, y, field, method="continuation", steps=25).status is Status.SAMPLED


def test_ula_has_its_exact_biased_posterior(field):
    operator = make_operator("denoising")
    y = operator.A(field.sample(2, seed=1))
    result = emprior.solve(operator, y, field, method="ula", samples=64, steps=2000)
    h = result.diagnostics.step_size
    assert (h - h[0]).abs().max() < 1e-12
    values, basis = torch.linalg.eigh(torch.linalg.inv(field.covariance_matrix()) + torch.eye(64) / 0.1**2)
    law = basis * (1 / (values * (1 - h[0] * values / 2))) @ basis.mT
    exact = law.diagonal().sqrt().reshape(1, 8, 8)
    assert (result.std / exact).mean().sub(1).abs() < 0.01
    assert (exact / field.posterior(operator, y, 0.1).std).mean() > 1.02


def test_an_interrupt_returns_what_there_is(case, field):
    operator, y, _ = case

    def stop(index, rows):
        if index == 170:
            raise KeyboardInterrupt

    result = emprior.solve(operator, y, field, method="mala", steps=100, callback=stop)
    assert result.status is Status.INTERRUPTED
    assert result.diagnostics.trace["step"].diff().min() > 0
    assert int(result.diagnostics.trace["step"][-1]) == 170
    assert result.estimate.isfinite().all()


def test_solvers_that_need_a_posterior_say_so():
    with pytest.raises(TypeError, match="needs a data term and a prior"):
        Continuation().init(Quadratic(1.0), torch.zeros(1, 1, 2, 2), Noise([(0, 0)]))
    with pytest.raises(TypeError, match="needs a Prior"):
        Flow().init(Quadratic(1.0), torch.zeros(1, 1, 2, 2), Noise([(0, 0)]))


def test_flow_without_measurements_samples_the_prior():
    prior = GaussianPrior(torch.full((1, 2, 2), 0.3, dtype=torch.float64), torch.full((1, 2, 2), 0.04).double())
    noise = Noise([(0, i) for i in range(256)], dtype=torch.float64)
    x = torch.zeros(256, 1, 2, 2, dtype=torch.float64)
    out = run([Stage(Flow(), 400, burn_in=150)], prior, x, noise, 1)
    h = Flow().step_size * prior.time_unit
    biased = 0.04 / (1 - h / (2 * 0.04))
    assert abs(float(out.moments.std().square().mean()) / biased - 1) < 0.02
    assert (out.moments.mean - 0.3).abs().max() < 0.01
