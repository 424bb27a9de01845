r"""deepinv's samplers beside ours: the exact denoiser, laws that are known, and rows that say what failed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import assert_drawn_from

from emprior.cli import main
from emprior.fidelity import GaussianFidelity
from emprior.verify import PEERS, fields, mixture, verify
from emprior.verify.peers import SMOOTHING, peers, sample


@pytest.fixture(scope="module")
def cases():
    found = {case.problem.split()[0]: case for case in fields.cases(2, 0, sides=(8,))}
    return found | {"modes": next(mixture.cases(2, 0))}


@pytest.fixture
def short(monkeypatch):
    for name, steps in {"LANGEVIN": 20, "SKROCK": 4, "DIFFUSION": 20}.items():
        monkeypatch.setattr(f"emprior.verify.peers.{name}", steps)


def draw(name, case, samples, seed=0):
    return sample(name, case.operator, case.y, case.sigma, case.prior, samples, seed)


@pytest.mark.parametrize("name", PEERS)
def test_draws_of_every_peer(name, cases, short):
    case = cases["denoising"]
    before, kept, noise = torch.random.get_rng_state(), case.y.clone(), case.operator.noise_model
    first, calls = draw(name, case, 3)
    again, other = draw(name, case, 3)[0], draw(name, case, 3, seed=1)[0]
    assert first.shape == (3, 2, 1, 8, 8)
    assert first.dtype == torch.float64
    assert first.isfinite().all()
    assert calls > 0
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(case.y, kept)
    assert case.operator.noise_model is noise


def test_peers_are_given_the_exact_denoiser_and_the_noise(cases, monkeypatch):
    case, seen = cases["modes"], {}

    def spy(denoiser, physics, y, seed):
        x = physics.A_adjoint(y)
        seen.update(given=x, clean=denoiser(x, 0.3), sigma=float(physics.noise_model.sigma))
        return x

    monkeypatch.setitem(PEERS, "spy", spy)
    assert draw("spy", case, 2)[1] == 1
    assert seen["sigma"] == pytest.approx(case.sigma)
    torch.testing.assert_close(seen["clean"].double(), case.prior.denoise(seen["given"].double(), 0.3))


def test_ula_has_its_exact_biased_law(cases):
    r"""The score is that of the prior under noise `s`, and the step `h` adds :math:`h / 2` to each variance."""
    case = cases["denoising"]
    covariance, eye = case.prior.covariance_matrix(), torch.eye(64, dtype=torch.float64)
    smooth = torch.linalg.inv(covariance + SMOOTHING**2 * eye)
    precision = smooth + eye / case.sigma**2
    step = 1 / (1 / case.sigma**2 + 1 / SMOOTHING**2)
    law = torch.linalg.inv(precision @ (eye - step / 2 * precision))
    mean = torch.linalg.solve(precision, smooth @ case.prior.mean.flatten() + case.y[0].flatten() / case.sigma**2)
    draws = draw("deepinv-ula", case, 500)[0]
    assert_drawn_from(draws[:, 0].flatten(1), mean, law)


def test_moment_matching_is_right_where_all_is_gaussian(cases, monkeypatch):
    monkeypatch.setattr("emprior.verify.peers.DIFFUSION", 400)
    case = cases["denoising"]
    (row,) = peers(["deepinv-moments"], [replace(case, draws=64)], 0)
    assert row.status == "sampled"
    assert row.figures["mean error"] < 1.3 * row.figures["mean exact"]
    assert abs(row.figures["std ratio"] - 1) < 0.08  # a diffusion of few steps is a little too narrow


def test_the_weight_of_dps_matters(cases, monkeypatch):
    monkeypatch.setattr("emprior.verify.peers.DIFFUSION", 200)
    case = replace(cases["blur"], draws=32)
    own, weighted = peers(["deepinv-dps", "deepinv-dps-weighted"], [case], 0)
    assert own.figures["mean error"] > 1.5
    assert own.figures["std ratio"] > 1.5
    assert weighted.figures["mean error"] < 0.5
    assert own.evaluations == weighted.evaluations == 199


def test_the_guidance_of_weighted_dps_is_the_likelihoods(cases, monkeypatch):
    r"""Where the residual is that of the noise, its gradient is that of the data term."""
    import deepinv as dinv

    case, weights = cases["inpainting"], []
    monkeypatch.setattr("emprior.verify.peers._dps", lambda *arguments: weights.append(arguments[-1]) or arguments[2])
    draw("deepinv-dps-weighted", case, 1)
    fidelity = GaussianFidelity(case.operator, case.y, case.sigma)
    count = fidelity.count(case.x)[0]
    u = case.operator.A(torch.randn(case.y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x = case.y + case.sigma * count.sqrt() * u / u.flatten(1).norm(dim=1)[:, None, None, None]
    term = dinv.sampling.DPSDataFidelity(denoiser=lambda x, sigma: x, weight=weights[0])
    torch.testing.assert_close(
        term.grad(x.clone(), case.y, case.operator, 0.1), fidelity.value_and_grad(x)[1], rtol=1e-5, atol=1e-4
    )


def test_what_fails_is_a_row_that_says_why(cases, monkeypatch):
    (row,) = peers(["deepinv-ddrm"], [cases["compressed"]], 0)
    assert (row.status, row.figures, row.bars, row.failures) == ("failed", {}, {}, ())
    assert "TypeError: DDRM needs the singular values of the operator" in row.verdict
    assert "MatrixPhysics" in row.verdict

    def breaks(denoiser, physics, y, seed):
        return torch.where(torch.arange(len(y))[:, None, None, None] % 2 == 0, torch.nan, physics.A_adjoint(y))

    monkeypatch.setitem(PEERS, "breaks", breaks)
    (row,) = peers(["breaks"], [cases["denoising"]], 0)
    assert (row.status, row.figures) == ("failed", {})
    assert row.verdict == "50% of the draws are not finite"


def test_rows_stand_beside_those_of_the_method(short, monkeypatch):
    monkeypatch.setattr("emprior.verify.fields.SIDES", (8,))
    monkeypatch.setattr("emprior.verify.fields.PROBLEMS", {"denoising": 0.1})
    own, peer = verify(["gaussian"], "mala", steps=40, images=1, peers=["deepinv-pigdm"])
    assert (own.problem, own.method) == ("denoising 8x8", "mala")
    assert (peer.problem, peer.method) == ("denoising 8x8", "deepinv-pigdm")
    assert set(own.figures) - set(peer.figures) == {"R-hat", "ESS"}
    assert peer.bars == {}


def test_command(capsys, monkeypatch, short):
    monkeypatch.setattr("emprior.verify.mixture.CHAINS", 4)
    monkeypatch.setattr("emprior.verify.mixture.BARS", {})
    options = ["verify", "--suite", "modes", "--method", "mala", "--steps", "20", "--images", "1"]
    assert main([*options, "--peers", "deepinv-ddrm", "deepinv-ula"]) == 0
    heading, own, failed, peer, *_ = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["modes", "method", "status"]
    assert "TypeError" in failed
    end = heading.index("RMSE") + 4
    assert len(own) == len(peer) == len(heading)
    assert own[end - 1].isdigit()
    assert peer[end - 1].isdigit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peers", "deepinv-dsp"], "unknown peer 'deepinv-dsp'. Did you mean 'deepinv-dps'"),
        (["--suite", "calibration", "--peers"], "peers run on gaussian and modes alone, got calibration"),
    ],
)
def test_bad_input(options, message, capsys):
    assert main(["verify", *options]) == 2
    assert message in capsys.readouterr().err
