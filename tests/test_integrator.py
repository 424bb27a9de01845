"""Integrators against what they keep, and against the closed form of their error on a spring."""

from __future__ import annotations

import pytest
import torch
from conftest import SHAPE, make_operator

from emprior._noise import Noise
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.priors import GaussianMixturePrior, GaussianPrior
from emprior.solvers.integrator import LEAPFROG, THREE_STAGE, Integrator, Phase, hamiltonian
from emprior.solvers.metric import DataMetric

both = pytest.mark.parametrize("integrator", [LEAPFROG, THREE_STAGE], ids=["leapfrog", "three stages"])


@pytest.fixture(scope="module")
def bent():
    """A posterior that is not Gaussian: two modes under compressed sensing, for two images."""
    random = torch.Generator().manual_seed(3)
    means = torch.randn(2, *SHAPE, generator=random, dtype=torch.float64) / 8
    prior = GaussianMixturePrior(torch.tensor([0.5, 0.5]).double(), means, torch.full((2, 64), 0.02).double())
    operator = make_operator("compressed_sensing")
    return Posterior(GaussianFidelity(operator, operator.A(prior.sample(2, seed=1))), prior)


def start(energy, rows=4):
    x = energy.prior.sample(rows, seed=2)
    metric, noise = DataMetric.of(energy), Noise([(0, i) for i in range(rows)], dtype=torch.float64)
    return metric, Phase(x, metric.draw(noise, x), *energy.value_and_grad(x))


@both
def test_the_motion_is_undone_by_turning_back(bent, integrator):
    metric, phase = start(bent)
    h = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    there = integrator.follow(bent, metric, phase, h, 12)
    back = integrator.follow(bent, metric, Phase(there.x, -there.p, there.value, there.gradient), h, 12)
    assert (there.x - phase.x).abs().max() > 0.1
    for a, b in [(back.x, phase.x), (-back.p, phase.p), (back.value, phase.value), (back.gradient, phase.gradient)]:
        assert ((a - b).abs() <= 1e-9 * (1 + b.abs().max())).all()


@both
def test_the_motion_is_symplectic(field, integrator):
    r"""On a Gaussian it is an affine map `M`, with :math:`M^\top J M = J`."""
    operator, eye = make_operator("blur"), torch.eye(128, dtype=torch.float64)
    energy = Posterior(GaussianFidelity(operator, operator.A(field.sample(1, seed=1))), field)
    x, p = (torch.cat([eye, eye[:1] * 0])[:, half].reshape(-1, *SHAPE) for half in (slice(64), slice(64, None)))
    end = integrator.follow(energy, DataMetric.of(energy), Phase(x, p, *energy.value_and_grad(x)), 0.7, 5)
    rows = torch.cat([end.x.flatten(1), end.p.flatten(1)], 1)
    M = (rows[:-1] - rows[-1]).mT
    J = torch.cat([eye[64:], -eye[:64]])
    assert (M.mT @ J @ M - J).abs().max() < 1e-9
    assert (M - eye).abs().max() > 1


@both
def test_the_hamiltonian_is_kept_to_second_order(bent, integrator):
    metric, phase = start(bent)
    errors = []
    for steps in (20, 40, 80, 160):
        end = integrator.follow(bent, metric, phase, 2 / steps, steps)
        errors.append(hamiltonian(metric, end) - hamiltonian(metric, phase))
    errors = torch.stack(errors)
    order = (errors[:-1] / errors[1:]).log2()
    assert (errors[0].abs() > 1e-7).all()
    assert (order[-1] - 2).abs().max() < 0.02
    assert ((order[-1] - 2).abs() < (order[0] - 2).abs()).all()


def spring(integrator, h):
    r"""The map of a step on :math:`H = (x^2 + p^2) / 2`, one matrix for each `h`, in rows."""
    prior = GaussianPrior(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    x, p = (torch.eye(2, dtype=torch.float64)[:, [i]].repeat(len(h), 1) for i in (0, 1))
    end = integrator.follow(prior, DataMetric(1.0), Phase(x, p, *prior.value_and_grad(x)), h.repeat_interleave(2), 1)
    return torch.cat([end.x, end.p], 1).unflatten(0, (-1, 2)).mT


@pytest.mark.parametrize(
    ("integrator", "unit", "error", "stable"),
    [(LEAPFROG, 1, 1 / 24, 2.0), (THREE_STAGE, 3, 7.4e-5, 4.662)],
    ids=["leapfrog", "three stages"],
)
def test_the_error_of_a_spring(integrator, unit, error, stable):
    r"""With the step `[[A, B], [C, A]]` a path errs in `H` by :math:`(B + C)^2 / (2 (1 - A^2))` at most, on average."""
    (A, B), (C, D) = spring(integrator, torch.linspace(0.01, unit, 300, dtype=torch.float64)).permute(1, 2, 0)
    assert (A - D).abs().max() < 1e-12
    found = (B + C).square() / (2 * (1 - A.square()))
    assert found.max() == pytest.approx(error, rel=0.01)
    inside, outside = (
        spring(integrator, torch.tensor([at * stable], dtype=torch.float64))[0].trace().abs() for at in (0.999, 1.001)
    )
    assert inside < 2 < outside


@pytest.mark.parametrize(
    ("kicks", "drifts"), [((0.4, 0.6), (1.0,)), ((0.5, 0.5), (0.9,)), ((0.5, 0.5), (0.5, 0.5))], ids=repr
)
def test_shares_that_do_not_make_a_step(kicks, drifts):
    with pytest.raises(ValueError, match="expected shares of sum 1 that read the same backwards"):
        Integrator(kicks, drifts)
