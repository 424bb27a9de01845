r"""Ladders against barriers that are known, and replicas in one batch against each on its own."""

from __future__ import annotations

import deepinv as dinv
import pytest
import torch
from conftest import SHAPE, make_operator

from emprior._noise import Noise
from emprior.energy import Posterior, Prior
from emprior.fidelity import GaussianFidelity
from emprior.priors.increments import BernoulliLaplace
from emprior.priors.levy import LevyPrior
from emprior.solvers import MALA
from emprior.solvers.ladder import even
from emprior.solvers.metric import SpectralMetric
from emprior.solvers.replica import Known, Tempered
from emprior.solvers.rungs import RungFidelity, RungNoise, Rungs, exchanged
from emprior.solvers.tempering import Tempering, tempered


def streams(images, samples, seed=0):
    return Noise([(seed, b, s) for s in range(samples) for b in range(images)], dtype=torch.float64)


def test_even_rungs():
    ladder = torch.tensor([[1.0, 1.0], [0.5, 0.1], [0.25, 0.01], [0.125, 0.001]]).double()
    torch.testing.assert_close(even(ladder[:, :1], torch.full((3, 1), 0.4).double(), 0.125), ladder[:, :1])
    moved = even(ladder[:, 1:], torch.tensor([[0.2], [0.3], [0.4]]).double(), 0.001)
    torch.testing.assert_close(moved[:, 0].log10(), torch.tensor([0, -4 / 3, -2.25, -3]).double())


def test_a_ladder_that_would_break_ends_sooner_and_one_that_can_goes_on():
    r"""Barriers of 0.9 a decade, of which three rungs climb one; then of 0.4 a decade, as one decade has shown."""
    ladder = torch.tensor([[1.0], [0.1], [0.01]]).double()
    steep = even(ladder, torch.full((2, 1), 0.9).double(), 0.01)
    torch.testing.assert_close(steep[:, 0].log10(), torch.tensor([0, -0.5 / 0.9, -1 / 0.9]).double())
    flat = even(ladder[:2].sqrt(), torch.full((1, 1), 0.2).double(), 0.01)
    torch.testing.assert_close(flat[:, 0].log10(), torch.tensor([0, -1.25]).double())


def test_replicas_as_images_of_one_batch():
    r"""Rows s K B + k B + b, whose samples are pooled apart, and whose numbers do not depend on other rows."""
    rungs, rows = Rungs(3, 2), torch.arange(30).reshape(3, 10)
    batch = rungs.join(rows)
    assert torch.equal(rungs.split(batch), rows)
    assert torch.equal(batch.reshape(5, 3, 2)[4, 2], rows[2, 8:])
    assert torch.equal(rungs.repeat(rows[0]), rungs.join(rows[:1].repeat(3, 1)))
    both = RungNoise(streams(2, 5), rungs).normal(1, 4)
    alone = RungNoise(Noise([(0, 1, s) for s in range(5)], dtype=torch.float64), Rungs(3, 1)).normal(1, 4)
    assert torch.equal(both.unflatten(0, (5, 3, 2))[:, :, 1].flatten(0, 1), alone)
    assert len(both.unique()) == both.numel()
    swapped = torch.tensor([[True, False], [False, True], [False, False]])
    assert exchanged(swapped).T.tolist() == [[1, 0, 2], [0, 2, 1]]


def test_the_data_term_of_replicas_is_that_of_their_images(case):
    operator, y, _ = case
    rungs, fidelity = Rungs(3, 2), GaussianFidelity(operator, y)
    many, x = RungFidelity(fidelity, rungs), streams(6, 4).normal(*SHAPE)
    gamma = torch.linspace(0.1, 1, 24).double()
    v = streams(6, 4).normal(*fidelity.measured)
    asks = (
        lambda f, x, g, v: f(x), lambda f, x, g, v: f.value_and_grad(x)[1], lambda f, x, g, v: f.prox(x, g),
        lambda f, x, g, v: f.solve(x, g), lambda f, x, g, v: f.curve(x), lambda f, x, g, v: f.residual(x),
        lambda f, x, g, v: f.count(x), lambda f, x, g, v: f.whiten(v),
    )  # fmt: skip
    for ask in asks:
        parts = [ask(fidelity, *each) for each in zip(*(rungs.split(part) for part in (x, gamma, v)), strict=True)]
        torch.testing.assert_close(rungs.split(ask(many, x, gamma, v)), torch.stack(parts))
    torch.testing.assert_close(many.hessian(x), fidelity.hessian(x))


def test_rows_that_were_not_evaluated_last_are_evaluated(field):
    here = field.sample(2, seed=0)
    tempered, before = Tempered(field, torch.ones(2).double()), Known(here, *field.value_and_grad(here))
    tempered.value_and_grad(here + 1)
    mixed = torch.stack([here[0] + 1, here[1]])
    for x in (mixed, here + 2):
        known = tempered.moved(before, x)
        value, gradient = field.value_and_grad(x)
        torch.testing.assert_close((known.x, known.value, known.gradient), (x, value, gradient))


def test_each_replica_has_the_metric_of_its_own_law(field, monkeypatch):
    r"""That of a posterior whose prior has its inverse temperature for weight, however many images there are; and that
    of the first where matrices are many."""
    operator, rungs, x = make_operator("blur"), Rungs(2, 2), streams(4, 3).normal(*SHAPE)
    posterior = Posterior(GaussianFidelity(operator, operator.A(field.sample(2, seed=1))), field)
    ladder = torch.tensor([[1.0, 1.0], [0.2, 0.2]]).double().repeat(1, 3)
    law, _ = tempered(posterior, ladder, rungs)
    betas = rungs.join(ladder)
    own = SpectralMetric.of(law, x, 64)
    solved = own.solve(x)
    for row, beta in enumerate(betas.tolist()):
        alone = SpectralMetric.of(Posterior(posterior.fidelity, field, beta), x[:1], 64)
        torch.testing.assert_close(solved[row], alone.solve(x[row : row + 1])[0])
        torch.testing.assert_close(own.prior.curvature[row], alone.prior.curvature[0])
    monkeypatch.setattr("emprior.solvers.metric.LARGEST", 91)
    assert torch.equal(SpectralMetric.of(law, x, 64).solve(x), solved)
    monkeypatch.setattr("emprior.solvers.metric.LARGEST", 90)
    first = SpectralMetric.of(posterior, x[:2], 64)
    torch.testing.assert_close(SpectralMetric.of(law, x, 64).solve(x), first.solve(x))


def test_a_factor_is_a_factor_also_of_a_prior_that_softens_itself():
    r"""An unknown weight is one; only tempering asks for softened energies."""
    prior = LevyPrior(BernoulliLaplace(1.0, 0.3, 0.1), 4)
    x = prior.sample(3, seed=0)
    value, gradient = prior.value_and_grad(x)
    twice = Tempered(prior, torch.full((3,), 2.0).double())
    torch.testing.assert_close(twice.value_and_grad(x), (2 * value, 2 * gradient))
    rungs, ladder = Rungs(1, 3), torch.full((1, 3), 0.25).double()
    operator = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    _, soft = tempered(Posterior(GaussianFidelity(operator, x), prior), ladder, rungs)
    wide = LevyPrior(BernoulliLaplace(1.0, 0.3, 0.2), 4)
    torch.testing.assert_close(soft.value_and_grad(x), wide.value_and_grad(x))
    torch.testing.assert_close(soft.gain(soft.knowing(x), torch.ones(3).double()), wide(x) - prior(x))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_gradients_of_a_prior_that_softens_itself_are_counted(count):
    r"""Beside those of each replica, an energy and a gradient of all rows for each exchange, and one at the start."""
    prior, calls = LevyPrior(BernoulliLaplace(1.0, 0.3, 0.1), 4), 0

    class Counted(Prior):
        def __init__(self, inner):
            super().__init__(prior.shape)
            self.inner = inner

        def forward(self, x):
            nonlocal calls
            calls += len(x)
            return self.inner(x)

        def value_and_grad(self, x):
            nonlocal calls
            calls += len(x)
            return self.inner.value_and_grad(x)

        def soften(self, beta):
            return Counted(self.inner.soften(beta))

        denoise = start = sample = None

    operator = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    x = prior.sample(2, seed=0)
    posterior, noise = Posterior(GaussianFidelity(operator, x), Counted(prior)), streams(2, 3)
    solver, asked = Tempering(MALA(), tuple(0.5**k for k in range(count))), 0
    state = solver.init(posterior, x.repeat(3, 1, 1, 1), noise)
    for _ in range(5):
        state, info = solver.step(posterior, state, noise)
        asked += info.evaluations
    assert calls == 6 * asked
