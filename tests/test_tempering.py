r"""Tempering against a posterior of two modes that plain chains never leave, and against its own parts."""

from __future__ import annotations

import math
from dataclasses import replace

import deepinv as dinv
import pytest
import torch
from conftest import SHAPE, make_operator

import emprior
from emprior import as_operator
from emprior._noise import Noise
from emprior._outcome import _with_rungs
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.priors import GaussianMixturePrior
from emprior.priors.increments import BernoulliLaplace
from emprior.priors.levy import LevyPrior
from emprior.solvers import HMC, MALA, METHODS, ULA, Stage, run, validated
from emprior.solvers.gibbs import SplitGibbs
from emprior.solvers.ladder import geometric
from emprior.solvers.metric import SpectralMetric
from emprior.solvers.replica import Tempered
from emprior.solvers.rungs import Rungs
from emprior.solvers.tempering import Tempering
from emprior.verdict import Verdict

ADAPT, LADDER = 160, (1.0, 0.6, 0.3, 0.05)


def streams(images, samples, seed=0):
    return Noise([(seed, b, s) for s in range(samples) for b in range(images)], dtype=torch.float64)


@pytest.fixture(scope="module")
def modes():
    r"""Two modes 9 deviations apart, mostly in the two directions of 16 that 14 measurements do not see."""
    random = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(16, 16, generator=random, dtype=torch.float64))[0]
    apart = 0.9 * Q[:, 14] + 0.2 * Q[:, 15] + 0.05 * Q[:, 0]
    factors = torch.randn(2, 16, 3, generator=random, dtype=torch.float64) / 10
    means = torch.stack([-apart, apart]).reshape(2, 1, 4, 4)
    prior = GaussianMixturePrior.low_rank(torch.tensor([0.4, 0.6]).double(), means, factors, 0.2)
    operator = as_operator(Q[:, :14].mT.contiguous(), shape=(1, 4, 4))
    operator.set_noise_model(dinv.physics.GaussianNoise(0.1))
    y = operator.A(prior.sample(2, seed=1))
    return Posterior(GaussianFidelity(operator, y), prior), prior.posterior(operator, y, 0.1)


def sampled(solver, posterior, start, samples, steps, burn_in=ADAPT):
    """The kept rows `(steps, S, B, *shape)` and the run."""
    kept, images = [], posterior.fidelity.images
    x = start.repeat(samples, *(1,) * (start.ndim - 1))
    stage, noise = Stage(solver, burn_in + steps, burn_in), streams(images, samples)
    out = run([stage], posterior, x, noise, images, callback=lambda index, rows: kept.append(rows))
    return torch.stack(kept[burn_in:]), out


def shares(kept, exact):
    """The share of draws nearer to the second mode, for each chain `(S, B)`."""
    first, second = ((kept - exact.means[:, k]).flatten(3).square().sum(-1) for k in (0, 1))
    return (second < first).double().mean(0)


@pytest.mark.parametrize(("method", "count"), [(HMC, 250), (SplitGibbs, 250)])
def test_modes_have_their_weights(modes, method, count):
    posterior, exact = modes
    solver = Tempering(method(adapt=ADAPT), LADDER, ADAPT)
    kept, out = sampled(solver, posterior, exact.means[:, 0], samples=120, steps=count)
    share = shares(kept, exact)
    error = share.std(0) / math.sqrt(len(share))
    assert (error < 0.017).all()
    assert ((share.mean(0) - exact.weights[:, 1]).abs() < 0.03).all()
    assert ((share.mean(0) - exact.weights[:, 1]) / error).abs().max() < 3.5
    spread = covariance(exact)
    for image in range(2):
        white = (kept[:, :, image] - exact.mean[image]).flatten(2) @ torch.linalg.inv(
            torch.linalg.cholesky(spread[image])
        ).mT
        products = white[..., :, None] * white[..., None, :]
        for moment, truth in ((white, torch.zeros(16)), (products, torch.eye(16))):
            means = moment.mean(0)
            z = (means.mean(0) - truth) / means.std(0) * math.sqrt(len(means))
            assert z.abs().max() < 4.5
            assert z.square().mean() < 1.6
    assert (out.acceptance > solver.solver.target - 0.07).all()


def covariance(exact):
    """The covariance of a mixture posterior, `(B, d, d)`."""
    means, centre = exact.means.flatten(2), exact.mean.flatten(1)
    second = exact.covariances + means[..., :, None] * means[..., None, :]
    return torch.einsum("bk,bkij->bij", exact.weights, second) - centre[:, :, None] * centre[:, None]


def test_a_plain_chain_never_leaves_its_mode(modes):
    posterior, exact = modes
    kept, _ = sampled(MALA(adapt=ADAPT), posterior, exact.means[:, 0], samples=20, steps=400)
    assert shares(kept, exact).max() == 0
    assert (exact.weights[:, 1] > 0.3).all()


def test_one_replica_is_the_method_itself(case, field):
    operator, y, _ = case
    posterior, start = Posterior(GaussianFidelity(operator, y), field, 1.3), torch.full((2, *SHAPE), 0.5).double()
    for solver in (MALA(adapt=20), HMC(adapt=20), SplitGibbs(adapt=20)):
        alone, first = sampled(solver, posterior, start, samples=2, steps=10, burn_in=20)
        one, second = sampled(Tempering(solver, (1.0,), adapt=20), posterior, start, samples=2, steps=10, burn_in=20)
        assert torch.equal(alone, one)
        assert first.evaluations == second.evaluations


def steps(solver, posterior, x, count, samples=1):
    """The states after each of `count` steps."""
    noise, out = streams(posterior.fidelity.images, samples), []
    state = solver.init(posterior, x, noise)
    for _ in range(count):
        state, _ = solver.step(posterior, state, noise)
        out.append(state)
    return out


def test_what_replicas_carry_is_what_they_would_evaluate(modes):
    r"""After swaps and renewals of the ladder each state holds the energy and gradient of its own law at its rows."""
    posterior, exact = modes
    solver = Tempering(MALA(adapt=64), LADDER, adapt=64)
    for state in steps(solver, posterior, exact.means[:, 0].repeat(8, 1, 1, 1), 60, samples=8)[-5:]:
        assert torch.equal(state.known.x, state.replicas.x)
        rungs, known = Rungs(len(LADDER), 2), state.known
        rows = (known.x, known.value, known.gradient, state.replicas.value, state.replicas.gradient)
        for beta, x, *carried in zip(state.ladder, *(rungs.split(part) for part in rows), strict=True):
            value, gradient = posterior.prior.value_and_grad(x)
            data, slope = posterior.fidelity.value_and_grad(x)
            own = (data + beta * value, slope + beta[:, None, None, None] * gradient)
            torch.testing.assert_close(tuple(carried), (value, gradient, *own))
        assert torch.equal(state.x, rungs.split(state.replicas.x)[0])
        torch.testing.assert_close(state.value, posterior(state.x))


def test_gradients_are_counted(modes):
    r"""One for each replica and step, and one at the start, which all replicas share: swaps cost none."""
    posterior, exact = modes
    calls = 0

    class Counted(GaussianMixturePrior):
        def value_and_grad(self, x):
            nonlocal calls
            calls += len(x)
            return super().value_and_grad(x)

    prior = posterior.prior
    counted = Counted(prior.weights, prior.means, prior.covariances)
    _, out = sampled(
        Tempering(MALA(adapt=20), LADDER, 20), Posterior(posterior.fidelity, counted), exact.mean, 2, 30, 20
    )
    assert calls == 4 * out.evaluations == 4 * (50 * len(LADDER) + 1)


def test_the_ladder_is_adapted_to_equal_rejection(modes):
    posterior, exact = modes
    solver = Tempering(MALA(adapt=400), (1.0, 0.98, 0.96, 0.94, 0.05), adapt=240)
    state = steps(solver, posterior, exact.means[:, 0].repeat(40, 1, 1, 1), 320, samples=40)[-1]
    rates = state.swap_rate.reshape(4, 40, 2).mean(1)
    assert state.tries.flatten().tolist() == [100, 100, 100, 100]
    assert rates.min() > 0.45
    assert (rates.amax(0) - rates.amin(0) < 0.1).all()
    ladder = state.ladder.reshape(5, 40, 2)
    assert torch.equal(ladder, ladder[:, :1].expand(5, 40, 2))
    assert (ladder[0] == 1).all()
    torch.testing.assert_close(ladder[-1], torch.full_like(ladder[-1], 0.05))
    assert (ladder.diff(dim=0) < 0).all()


def test_swaps_take_turns_and_have_the_exact_rate():
    r"""Two rungs of a Gaussian over two pixels, whose energies are exponential of rates 1 and b: 2 b / (1 + b)."""
    posterior = Posterior(GaussianFidelity(blind(), torch.zeros(400, 1, 1, 2).double()), unit())
    solver = Tempering(MALA(step_size=0.6), (1.0, 0.3))
    states = steps(solver, posterior, torch.zeros(400, 1, 1, 2).double(), 240)
    assert states[-1].tries.item() == 120
    rate = (states[-1].swaps - states[39].swaps) / (states[-1].tries - states[39].tries)
    assert abs(float((rate.mean() - 0.6 / 1.3) / rate.std() * 20)) < 4


def blind():
    return dinv.physics.Inpainting((1, 1, 2), mask=torch.zeros(1, 1, 2), noise_model=dinv.physics.GaussianNoise(0.1))


def unit():
    return emprior.priors.GaussianPrior(torch.zeros(1, 1, 2).double(), torch.ones(1, 1, 2).double())


def test_how_far_replicas_reach_is_told(modes):
    r"""A barrier of about 2, of which three replicas climb one."""
    posterior, exact = modes
    solver, noise = Tempering(HMC(adapt=128), (1.0, 0.5, 0.05), adapt=128), streams(2, 20)
    state = solver.init(posterior, exact.means[:, 0].repeat(20, 1, 1, 1), noise)
    for _ in range(128):
        state, info = solver.step(posterior, state, noise)
    assert torch.equal(info.numbers["reach"], state.ladder[-1])
    assert (state.ladder[-1] > 0.1).all()
    assert (state.swap_rate.reshape(2, 20, 2).mean(1) > 0.4).all()
    rungs = info.numbers["rungs"].reshape(20, 2)
    assert ((rungs > 4) & (rungs < 6)).all()
    assert (rungs == rungs[0]).all()


def test_replicas_that_are_too_few_are_a_reason():
    found = Verdict(False, ("R-hat is 1.4",))
    assert _with_rungs(found, 8.9, 8) is found
    cure = 'prior.settings.setdefault("tempering", {})["rungs"] = 13'
    text = str(_with_rungs(found, 12.2, 8))
    assert text.endswith(f"R-hat is 1.4; 8 replicas do not climb the barriers; set {cure}")
    assert _with_rungs(Verdict(True, ()), 12.2, 8).trustworthy
    stages = METHODS["tempering"].stages(validated("tempering", {"tempering": {"rungs": 13}}))
    assert stages[-1].solver.ladder == pytest.approx([8 ** (-k / 12) for k in range(13)])


def test_swaps_prepare_no_metric(field, monkeypatch):
    r"""A metric that takes a matrix is made once, for all replicas, however often rows are exchanged."""
    operator, calls = make_operator("blur"), []
    posterior = Posterior(GaussianFidelity(operator, operator.A(field.sample(2, seed=1))), field)
    whole = GaussianFidelity.hessian
    monkeypatch.setattr(GaussianFidelity, "hessian", lambda self, like: calls.append(self) or whole(self, like))
    end = steps(Tempering(HMC(adapt=20), (1.0, 0.9), 20), posterior, posterior.fidelity.y, 25)[-1]
    assert isinstance(end.replicas.warmup.known, SpectralMetric)
    assert len(calls) == 1


def test_samples_under_an_interaction_swap_together(field):
    operator = make_operator("denoising")
    y = operator.A(field.sample(2, seed=1))
    posterior = Posterior(GaussianFidelity(operator, y), field, 1.0, emprior.Repulsion(0.5, samples=3))
    states = steps(Tempering(MALA(adapt=20), (1.0, 0.9), 20), posterior, y.repeat(3, 1, 1, 1), 40, samples=3)
    swaps = torch.stack([state.swaps for state in states]).diff(dim=0).reshape(-1, 3, 2)
    assert (swaps == swaps[:, :1]).all()
    assert 0 < swaps.mean() < 1


def test_a_batch_equals_its_images(case, field):
    operator, y, _ = case
    noise = [(0, b, s) for s in range(3) for b in range(2)]

    def end(images):
        keys = [key for key in noise if key[1] in images]
        posterior = Posterior(GaussianFidelity(operator, y[images]), field)
        solver, x = Tempering(MALA(adapt=32), (1.0, 0.9, 0.7), 32), torch.full((3 * len(images), *SHAPE), 0.5).double()
        out = run([Stage(solver, 40, 32)], posterior, x, Noise(keys, dtype=y.dtype), len(images))
        return out.x.unflatten(0, (3, -1))

    assert (end([0, 1]) - torch.cat([end([0]), end([1])], 1)).abs().max() < 1e-10


def test_runs_repeat_and_leave_no_trace(modes):
    posterior, exact = modes
    before, start = torch.random.get_rng_state(), exact.mean.clone()
    first, second = (sampled(Tempering(MALA(adapt=20), LADDER, 20), posterior, start, 2, 10, 20)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(start, exact.mean)


def test_what_does_not_fit_is_refused(modes):
    posterior, exact = modes
    for ladder in ((), (0.9, 0.5), (1.0, 0.5, 0.5), (1.0, 0.0)):
        with pytest.raises(ValueError, match="inverse temperatures that fall from 1"):
            Tempering(ladder=ladder)
    with pytest.raises(TypeError, match=r"needs a method with a Metropolis test, got ULA. Use Tempering\(HMC"):
        steps(Tempering(ULA(0.01)), posterior, exact.mean, 1)
    with pytest.raises(TypeError, match="Tempering needs a data term and a prior"):
        Tempering().check(posterior.prior)
    tempered = Tempered(posterior.prior, torch.ones(2).double())
    for ask in (lambda: tempered.denoise(exact.mean, 0.1), lambda: tempered.sample(1)):
        with pytest.raises(TypeError, match="no denoiser and no draws"):
            ask()


def test_a_prior_that_softens_itself_crosses_between_its_spikes():
    r"""Two increments of a law of narrow spikes under one measurement of their sum, against quadrature.

    The spikes are a hundredth of a jump wide, and plain chains hardly leave the one that they are in.
    """
    law, sigma, count, burn_in = BernoulliLaplace(1.0, 0.3, 0.01), 0.05, 20, 64
    operator = dinv.physics.Inpainting((1, 1, 2), mask=torch.tensor([[[0.0, 1.0]]]))
    posterior = Posterior(
        GaussianFidelity(operator, torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2).double(), sigma), LevyPrior(law, 2)
    )
    axis = torch.cat([torch.linspace(-0.1, 0.1, 1601), torch.linspace(-3, 4, 2801)]).double().unique()
    cells = torch.diff(axis, prepend=axis[:1]) / 2 + torch.diff(axis, append=axis[-1:]) / 2
    x0, u1 = axis[:, None], axis[None]
    log = -law.energy(x0) - law.energy(u1) - (x0 + u1 - 1).square() / (2 * sigma**2)
    weights = (log - log.amax()).exp() * cells[:, None] * cells
    truth = {
        "first": float(weights[axis.abs() < 0.05].sum() / weights.sum()),
        "second": float(weights[:, axis.abs() < 0.05].sum() / weights.sum()),
    }

    def flat(kept):
        rows = kept[:, :, 0, 0, 0]
        inside = {"first": rows[..., 0].abs() < 0.05, "second": rows.diff(dim=-1)[..., 0].abs() < 0.05}
        return {name: each.double().mean(0) for name, each in inside.items()}

    plain = HMC(leaps=6, adapt=burn_in)
    start = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2).double()
    kept, _ = sampled(Tempering(plain, geometric(8, 4e-4), burn_in), posterior, start, count, 240, burn_in)
    for name, means in flat(kept).items():
        error = float(means.std()) / math.sqrt(count)
        assert abs(float(means.mean()) - truth[name]) < 4 * error
        assert error < 0.03
    stuck, _ = sampled(plain, posterior, start, count, 240, burn_in)
    assert abs(float(flat(stuck)["second"].mean()) - truth["second"]) > 0.1


def test_what_replicas_of_such_a_prior_carry_is_that_of_their_own_law():
    law = BernoulliLaplace(1.0, 0.3, 0.01)
    operator = dinv.physics.Inpainting((1, 1, 2), mask=torch.ones(1, 1, 2))
    fidelity = GaussianFidelity(operator, torch.tensor([0.5, 1.0]).reshape(1, 1, 1, 2).double(), 0.1)
    posterior, rungs = Posterior(fidelity, LevyPrior(law, 2)), Rungs(3, 1)
    solver = Tempering(HMC(adapt=64), (1.0, 0.5, 0.05), adapt=64)
    for state in steps(solver, posterior, torch.zeros(8, 1, 1, 2).double(), 60, samples=8)[-5:]:
        known = state.known
        assert torch.equal(known.x, state.replicas.x)
        for beta, x, value, gradient in zip(
            state.ladder, *(rungs.split(part) for part in (known.x, known.value, known.gradient)), strict=True
        ):
            width = law.width / float(beta[0]) ** 0.5
            own = LevyPrior(replace(law, width=width), 2)
            torch.testing.assert_close((value, gradient), own.value_and_grad(x))
        torch.testing.assert_close(state.value, posterior(state.x))
