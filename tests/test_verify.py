from __future__ import annotations

import json
import math

import deepinv as dinv
import pytest
import torch

from emprior.cli import main
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.priors import GaussianPrior
from emprior.solvers import ULA, Stage
from emprior.verify import DEFAULT, verify
from emprior.verify.efficiency import effective_draws
from emprior.verify.fields import gaussian_field, wasserstein
from emprior.verify.mixture import mode_shares, stein_discrepancy, two_modes


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_wasserstein_of_diagonal_gaussians():
    r"""W2^2 of N(m, s^2) and N(0, t^2) is |m|^2 + sum (s - t)^2; draws are made to have these moments exactly."""
    white = normal(500, 3)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.mT))).mT
    s, t, m = torch.tensor([[1.0, 2.0, 0.5], [1.5, 1.0, 0.5], [0.3, 0.0, -0.4]], dtype=torch.float64)
    found = wasserstein(white * s + m, torch.zeros(3, dtype=torch.float64), torch.diag(t.square()))
    expected = (m.square().sum() + (s - t).square().sum()).sqrt()
    torch.testing.assert_close(found, expected)


def test_wasserstein_of_rotated_gaussians():
    r"""Where covariances do not commute: of rank one, vv' and ww', it is |v|^2 + |w|^2 - 2 |v'w|."""
    v, w = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.6, 0.8], dtype=torch.float64)
    z = normal(400, 1)
    z = (z - z.mean()) / z.std()
    found = wasserstein(z * v, torch.zeros(2, dtype=torch.float64), torch.outer(w, w))
    torch.testing.assert_close(found, torch.tensor((1 + 1 - 2 * 0.6) ** 0.5, dtype=torch.float64))


def test_stein_discrepancy_of_one_point():
    r"""At one point x of N(0, I) it is sqrt(|x|^2 + d)."""
    prior = GaussianPrior(torch.zeros(1, 2, 2, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    x = normal(1, 1, 2, 2)
    assert stein_discrepancy(prior, x) == pytest.approx(math.sqrt(float(x.square().sum()) + 4))


def test_stein_discrepancy_is_that_of_its_definition():
    r"""Against the kernel differentiated by autograd."""
    prior, _ = two_modes()
    x = normal(3, 1, 4, 4)
    score = -prior.value_and_grad(x)[1].flatten(1)
    total = 0.0
    for i in range(3):
        for j in range(3):
            a, b = (x[k].flatten().clone().requires_grad_() for k in (i, j))
            k = (1 + (a - b).square().sum()) ** -0.5
            by_a, by_b = torch.autograd.grad(k, (a, b), create_graph=True)
            mixed = sum(torch.autograd.grad(by_a[n], b, retain_graph=True)[0][n] for n in range(16))
            total += float(score[i] @ score[j] * k + score[i] @ by_b + score[j] @ by_a + mixed)
    assert stein_discrepancy(prior, x) == pytest.approx(math.sqrt(total / 9))


def test_stein_discrepancy_tells_right_from_wrong():
    prior = GaussianPrior(torch.zeros(1, 2, 2, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    right = stein_discrepancy(prior, normal(1000, 1, 2, 2))
    assert stein_discrepancy(prior, 0.8 * normal(1000, 1, 2, 2)) > 2 * right
    assert stein_discrepancy(prior, normal(1000, 1, 2, 2) + 0.3) > 2 * right


def test_shares_of_modes():
    means = torch.tensor([[-1.0, 1.0], [0.0, 5.0]])[:, :, None, None, None]
    draws = torch.tensor([[-2.0, 1.0], [-0.5, 4.0], [0.5, 3.0], [-1.0, 2.0]])[:, :, None, None, None]
    torch.testing.assert_close(mode_shares(draws, means), torch.tensor([[0.75, 0.25], [0.5, 0.5]]).double())


def test_the_field_has_the_covariance_that_it_says():
    field = gaussian_field(8)
    draws = field.sample(20_000, seed=1).flatten(1)
    found = torch.cov(draws[:, [0, 1, 2, 16]].mT)[0]
    expected = 0.05 * torch.exp(-torch.tensor([0.0, 1.0, 2.0, 2.0], dtype=torch.float64) / 2)
    assert (found - expected).abs().max() < 4 * 0.05 * (2 / 20_000) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("suite", DEFAULT)
def test_the_suite_is_within_its_bars(suite):
    rows = list(verify([suite]))
    assert rows
    assert [row.failures for row in rows] == [()] * len(rows)


def test_effective_draws_of_langevin():
    r"""White, each direction is an AR(1) chain of c = 1 - h, worth (1 - c) / (1 + c); squares have c^2."""
    prior = GaussianPrior(torch.zeros(1, 4, 4, dtype=torch.float64), torch.full((16,), 2.0, dtype=torch.float64))
    operator = dinv.physics.Denoising(dinv.physics.GaussianNoise(sigma=2**0.5))
    energy = Posterior(GaussianFidelity(operator, normal(1, 1, 4, 4), 2**0.5), prior)
    exact = prior.posterior(operator, normal(1, 1, 4, 4), 2**0.5)
    x = exact.sample(4, seed=0).flatten(0, 1)
    (found, squares), gradients = effective_draws(Stage(ULA(0.5), 4000, burn_in=1000), energy, exact, x, 0)
    assert found == pytest.approx(1000 / 3, rel=0.15)
    assert squares == pytest.approx(600, rel=0.15)
    assert 4000 <= gradients <= 4001


def test_efficiency_of_a_poor_sampler_is_out_of_its_bars(monkeypatch):
    monkeypatch.setattr("emprior.verify.efficiency.PLAIN", 2000)
    blur, sensing, inpainting = verify(["efficiency"], "mala", steps=400, images=1)
    assert blur.failures == ("ratio",)
    assert inpainting.bars == {}
    for row in (blur, sensing, inpainting):
        assert row.figures["ratio"] == pytest.approx(row.figures["ESS"] / row.figures["ESS of ULA"])


@pytest.mark.slow
def test_the_posterior_sampler_is_ten_times_as_efficient_as_langevin():
    rows = list(verify(["efficiency"]))
    assert [row.failures for row in rows] == [()] * 3


def test_modes_without_tempering_are_out_of_their_bars():
    (row,) = verify(["modes"], "mala", steps=60, images=1)
    assert row.failures
    assert "not " in row.verdict


def test_command(capsys, monkeypatch):
    monkeypatch.setattr("emprior.verify.fields.SIDES", (8,))
    monkeypatch.setattr("emprior.verify.fields.PROBLEMS", {"denoising": 0.1})
    assert main(["verify", "--suite", "gaussian", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["problem"] == "denoising 8x8"
    assert row["status"] == "mixed"
    assert row["figures"]["mean error"] < 0.05
    assert row["figures"]["W2"] < 2 * row["figures"]["W2 exact"]
    assert main(["verify", "--suite", "gaussian", "--method", "mala", "--steps", "8"]) == 1
    heading, bars, line, _, ending = capsys.readouterr().out.splitlines()
    assert heading.startswith("gaussian ")
    assert "0.97..1.03" in bars
    assert line.startswith("denoising 8x8 ")
    assert "!" in line
    assert len(heading) == len(line)
    assert ending == "1 out of bars"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "gausian"], "unknown suite 'gausian'. Did you mean 'gaussian'"),
        (["--method", "map"], "'map' is not a method that samples"),
    ],
)
def test_bad_input(options, message, capsys):
    assert main(["verify", *options]) == 2
    assert message in capsys.readouterr().err
