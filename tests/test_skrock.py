"""SK-ROCK against its exact law on Gaussian targets, which Chebyshev's polynomials give in closed form."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from conftest import SHAPE, make_operator
from laws import assert_drawn_from, model
from torch.special import chebyshev_polynomial_t as T
from torch.special import chebyshev_polynomial_u as U

from emprior._noise import Noise
from emprior.energy import Energy, Posterior
from emprior.fidelity import GaussianFidelity
from emprior.priors import GaussianPrior
from emprior.result import Status
from emprior.solvers import ULA, Stage, run
from emprior.solvers.curvature import largest_curvature
from emprior.solvers.skrock import SKROCK, Scheme

STAGES = (2, 3, 5, 10, 15)


def streams(rows, seed=0):
    return Noise([(seed, i) for i in range(rows)], dtype=torch.float64)


def stability(stages, eta, z):
    r"""The factors `A(z)` and `B(z)` of :math:`x' = A x + B \sqrt{2 h} n`, from the polynomials themselves."""
    w = torch.tensor(1 + eta / stages**2, dtype=torch.float64)
    slope = T(w, stages) / (stages * U(w, stages - 1))
    A = T(w + slope * z, stages) / T(w, stages)
    B = U(w + slope * z, stages - 1) / U(w, stages - 1) * (1 + slope * z / 2)
    return A, B


def diagonal(curvatures):
    """Independent pixels of these curvatures about zero."""
    return GaussianPrior(torch.zeros_like(curvatures), 1 / curvatures)


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("eta", [0.0, 0.05, 0.5])
def test_a_step_is_the_polynomials_of_chebyshev(stages, eta):
    scheme = Scheme.chebyshev(stages, eta)
    curvatures = torch.linspace(0.01, 1, 40, dtype=torch.float64) * scheme.reach
    x, n = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = torch.linspace(0.2, 1, 5, dtype=torch.float64)
    there = scheme.advance(diagonal(curvatures), x, h, n)
    A, B = stability(stages, eta, -h[:, None] * curvatures)
    assert (there - A * x - B * (2 * h[:, None]).sqrt() * n).abs().max() < 1e-9
    assert (A * x).abs().mean() > 0.05


@pytest.mark.parametrize("stages", STAGES)
def test_it_is_stable_as_far_as_it_reaches(stages):
    r"""With the damping no direction is kept for long but the slow ones, and none is wider than it should be."""
    reach = Scheme.chebyshev(stages, 0.05).reach
    z = torch.linspace(1e-3, 1, 4001, dtype=torch.float64) * reach
    A, B = stability(stages, 0.05, -z)
    assert (A.abs() < 1).all()
    assert A[z > 1.5].abs().max() < 0.96
    ratio = 2 * z * B**2 / (1 - A**2)
    assert ratio.max() < 1
    assert 1 - ratio[0] < 0.2 * z[0]


def test_the_stationary_law_is_biased_as_derived():
    h, stages, chains = 0.5, 5, 256
    curvatures = torch.tensor([0.5, 1.0, 2.0, 5.0, 12.0, 30.0, 60.0], dtype=torch.float64)
    A, B = stability(stages, 0.05, -h * curvatures)
    exact = 2 * h * B**2 / (1 - A**2)
    squares = []
    x = exact.sqrt() * streams(chains, 1).normal(7)
    out = run(
        [Stage(SKROCK(stages, step_size=h), 200)],
        diagonal(curvatures),
        x,
        streams(chains),
        chains,
        callback=lambda _, rows: squares.append(rows[0].square()),
    )
    mean = torch.stack(squares).mean(0)
    error = mean.std(0) / chains**0.5
    assert ((mean.mean(0) - exact) / error).abs().max() < 4
    assert ((exact - 1 / curvatures) / error)[3:].abs().min() > 10  # the bias is far larger than the error of the test
    assert out.evaluations == 200 * stages


def test_a_posterior_has_its_exact_law_after_any_number_of_steps(case, field):
    r"""From zero, after `k` steps: mean :math:`(1 - A^k) m`, variance :math:`2 h B^2 (1 - A^{2k}) / (1 - A^2)`."""
    operator, y, posterior = case
    fidelity, rows, k, solver = GaussianFidelity(operator, y[:1]), 1500, 6, SKROCK(4, fraction=0.6)
    energy, x = Posterior(fidelity, field), torch.zeros(rows, *SHAPE, dtype=torch.float64)
    h = float(solver.init(energy, x[:1], streams(1)).step)
    assert h == pytest.approx(0.6 * Scheme.chebyshev(4, 0.05).reach / float(largest_curvature(energy, x[:1])))

    gauss = model(fidelity, field)
    curvatures, basis = torch.linalg.eigh(gauss.H + torch.linalg.inv(gauss.C))
    A, B = stability(4, 0.05, -h * curvatures)
    mean = basis * (1 - A**k) @ basis.mT @ posterior.mean[0].flatten()
    law = basis * (2 * h * B**2 * (1 - A ** (2 * k)) / (1 - A**2)) @ basis.mT
    end = run([Stage(solver, k)], energy, x, streams(rows), 1).x.flatten(1)
    assert_drawn_from(end, mean, law)


def forgets(stages, h, curvature):
    r"""The gradients in which a direction is forgotten by a factor `e`."""
    return stages / -stability(stages, 0.05, torch.tensor(-h * curvature).double())[0].abs().log()


def test_it_forgets_a_slow_direction_several_times_faster_for_the_same_gradients():
    condition, gradients, chains = 2000.0, 300, 512
    curvatures = torch.cat([torch.ones(8), torch.tensor([condition])]).double()
    ula = 1.9 / condition
    rooted = -1 / math.log(1 - ula)
    gains = [rooted / forgets(s, 0.95 * Scheme.chebyshev(s, 0.05).reach / condition, 1.0) for s in STAGES]
    assert gains == sorted(gains)
    assert gains[3] > 8
    assert gains[4] > 13

    h = 0.95 * Scheme.chebyshev(10, 0.05).reach / condition
    kept = []
    for solver, steps, factor in [
        (SKROCK(10, step_size=h), gradients // 10, stability(10, 0.05, torch.tensor(-h).double())[0]),
        (ULA(step_size=ula), gradients, torch.tensor(1 - ula).double()),
    ]:
        x = streams(chains, 1).normal(9) / curvatures.sqrt()
        end = run([Stage(solver, steps)], diagonal(curvatures), x, streams(chains), chains).x
        product = (x * end)[:, :8].flatten()
        error = product.std() / len(product) ** 0.5
        assert (product.mean() - factor**steps).abs() < 4 * error
        kept.append(product.mean().clamp(min=float(error)))
    assert kept[0].log() / kept[1].log() > 5


def test_the_largest_stable_step_is_stable(field):
    operator = make_operator("compressed_sensing")
    energy = Posterior(GaussianFidelity(operator, operator.A(field.sample(2, seed=1))), field)
    x = field.sample(4, seed=2)
    out = run([Stage(SKROCK(15, fraction=1.0), 60)], energy, x, streams(4), 2)
    assert out.status == [Status.SAMPLED] * 2
    assert out.x.abs().max() < 3
    steep = run([Stage(SKROCK(15, step_size=1.3 * float(out.step_size[0])), 60)], energy, x, streams(4), 2)
    assert steep.status == [Status.DIVERGED] * 2


def test_a_batch_equals_its_images_and_runs_repeat(case, field):
    operator, y, _ = case
    x, keys = field.sample(4, seed=5), [(0, s, b) for s in range(2) for b in range(2)]

    def end(pick):
        chosen = [2 * s + b for s in range(2) for b in pick]
        noise = Noise([keys[i] for i in chosen], dtype=torch.float64)
        energy = Posterior(GaussianFidelity(operator, y[pick]), field)
        return run([Stage(SKROCK(5), 10)], energy, x[chosen], noise, len(pick)).x.unflatten(0, (2, -1))

    before, held = torch.random.get_rng_state(), x.clone()
    together = end([0, 1])
    assert (together - torch.cat([end([0]), end([1])], 1)).abs().max() < 1e-10
    assert torch.equal(together, end([0, 1]))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(x, held)
    assert not x.requires_grad


class Wall(Energy):
    r"""`x² / 2` per pixel, and nothing beyond 5."""

    def forward(self, x):
        return (x.square() / 2 * torch.where(x.abs() > 5, math.nan, 1.0)).flatten(1).sum(1)


def test_an_energy_that_breaks_is_reported(caplog):
    x = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
    with caplog.at_level(logging.WARNING, "emprior"):
        out = run([Stage(SKROCK(step_size=0.1), 5)], Wall(), x, streams(2), 2)
    assert out.status == [Status.SAMPLED, Status.NON_FINITE]
    assert out.x.isfinite().all()


def test_a_step_that_cannot_be_known(field):
    import deepinv as dinv

    with pytest.raises(ValueError, match=r"the curvature of Wall is unknown.*SKROCK\(step_size=...\)"):
        SKROCK().init(Wall(), torch.zeros(1, 1).double(), streams(1))
    fidelity = GaussianFidelity(dinv.physics.Physics(A=lambda x, **_: x.tanh()), field.sample(1, seed=1), sigma=0.1)
    with pytest.raises(ValueError, match="the curvature of a nonlinear operator is unknown"):
        run([Stage(SKROCK(), 1)], Posterior(fidelity, field), field.sample(1), streams(1), 1)
    SKROCK(step_size=1e-3).check(Posterior(fidelity, field))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 1}, r"stages is 1, expected at least 2. With one stage take emprior.solvers.ULA"),
        ({"stages": 2.5}, "stages is 2.5, expected a positive whole number"),
        ({"eta": -0.1}, "eta is -0.1, expected a damping from 0 to 1"),
        ({"fraction": 1.5}, "fraction is 1.5, expected a share of the largest stable step"),
        ({"step_size": 0.0}, "step_size is 0.0, expected a positive number"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SKROCK(**options)
