r"""deepinv's samplers beside ours: the exact denoiser, laws that are known, and rows that say what failed."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from laws import assert_drawn_from, assert_moments, model

from emprior import peers as of_deepinv
from emprior.cli import main
from emprior.fidelity import GaussianFidelity
from emprior.interop import as_denoiser
from emprior.operators import cast, without_noise
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


SAMPLERS = {
    "ula": (partial(of_deepinv.ula, smoothing=SMOOTHING), 1),
    "skrock": (partial(of_deepinv.skrock, smoothing=SMOOTHING), 10),
    "dps": (of_deepinv.dps, 1),
    "pigdm": (of_deepinv.pigdm, 1),
    "moment matching": (of_deepinv.moment_matching, 1),
    "ald": (of_deepinv.ald, 1),
    "diffpir": (of_deepinv.diffpir, 1),
    "ddrm": (of_deepinv.ddrm, 1),
}
"""Every sampler, and the evaluations that it takes for a step."""


def given(case, levels=None):
    r"""The denoiser of a case, its calls, its operator with noise, and its measurements, in single precision."""
    import deepinv as dinv

    denoiser, calls = as_denoiser(copy.deepcopy(case.prior).float()), []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    physics = without_noise(cast(case.operator, case.y.float()))
    physics.noise_model = dinv.physics.GaussianNoise(case.sigma if levels is None else levels)
    return denoiser, calls, physics, case.y.float()


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_and_seeds(name, cases):
    (sampler, each), (denoiser, calls, physics, y) = SAMPLERS[name], given(cases["denoising"])
    before, kept = torch.random.get_rng_state(), y.clone()
    first = sampler(denoiser, physics, y, 3, steps=7)
    assert len(calls) == 7 * each
    assert torch.equal(first, sampler(denoiser, physics, y, 3, steps=7))
    assert not torch.equal(first, sampler(denoiser, physics, y, 4, steps=7))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(y, kept)
    assert not first.requires_grad


@pytest.mark.parametrize("name", ["dps", "pigdm", "moment matching", "ald", "diffpir", "ddrm"])
def test_defaults_are_those_of_deepinv(name):
    r"""Guided diffusions stop at a thousand times, between which there are 999 steps."""
    options = {key: entry.default for key, entry in inspect.signature(SAMPLERS[name][0]).parameters.items()}
    assert options["steps"] == {"diffpir": 100, "ddrm": 100}.get(name, 999)


def test_ddrm_has_the_law_of_its_affine_steps(cases):
    r"""Under an affine denoiser and white noise, where singular vectors are pixels and singular values are one."""
    case, eta, eta_b = cases["denoising"], 0.6, 0.7
    denoiser, _, physics, y = given(case)
    law_of = model(GaussianFidelity(case.operator, case.y, case.sigma), case.prior)
    levels, seen = torch.linspace(1, 0, 12, dtype=torch.float64).tolist(), case.y[0].flatten()
    mean, covariance = seen, (1 - case.sigma**2) / 2 * law_of.eye
    for before, level in pairwise(levels):
        G = law_of.C @ torch.linalg.inv(law_of.C + before**2 * law_of.eye)
        mean, covariance = law_of.m + G @ (mean - law_of.m), G @ covariance @ G.mT
        if level >= case.sigma:
            old, variance = 1 - eta_b, level**2 - (eta_b * case.sigma) ** 2
        else:
            old, variance = 1 - (1 - eta**2) ** 0.5 * level / case.sigma, (eta * level) ** 2
        mean, covariance = old * mean + (1 - old) * seen, old**2 * covariance + variance / 2 * law_of.eye
    rows = y[:1].expand(4000, -1, -1, -1)
    draws = of_deepinv.ddrm(denoiser, physics, rows, 0, steps=12, eta=eta, eta_b=eta_b)
    assert_moments(draws.double().flatten(1), mean, covariance)


def test_the_noise_must_have_one_level(cases):
    denoiser, _, physics, y = given(cases["denoising"], torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="the operator's noise has 2 levels, but deepinv's samplers take one"):
        of_deepinv.diffpir(denoiser, physics, y, 0)
    with pytest.raises(ValueError, match="the noise level is unknown"):
        of_deepinv.likelihood_weight(without_noise(physics), y)


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


def ula_law(case, share):
    r"""The score is that of the prior under noise `s`, and the step `h` adds :math:`h / 2` to each variance."""
    covariance, eye = case.prior.covariance_matrix(), torch.eye(64, dtype=torch.float64)
    smooth = torch.linalg.inv(covariance + SMOOTHING**2 * eye)
    precision = smooth + eye / case.sigma**2
    step = share * 2 / (1 / case.sigma**2 + 1 / SMOOTHING**2)
    law = torch.linalg.inv(precision @ (eye - step / 2 * precision))
    mean = torch.linalg.solve(precision, smooth @ case.prior.mean.flatten() + case.y[0].flatten() / case.sigma**2)
    return mean, law


def test_ula_has_its_exact_biased_law(cases, monkeypatch):
    monkeypatch.setattr("emprior.verify.peers.LANGEVIN", 400)
    case = cases["denoising"]
    draws = draw("deepinv-ula", case, 500)[0]
    assert_drawn_from(draws[:, 0].flatten(1), *ula_law(case, 0.5))


def test_the_step_of_ula_is_a_share_of_the_largest(cases):
    case = cases["denoising"]
    denoiser, _, physics, y = given(case)
    rows = y[:1].expand(500, -1, -1, -1)
    draws = of_deepinv.ula(denoiser, physics, rows, 0, steps=300, smoothing=SMOOTHING, share=0.9)
    assert_drawn_from(draws.double().flatten(1), *ula_law(case, 0.9))


def test_moment_matching_is_right_where_all_is_gaussian(cases, monkeypatch):
    monkeypatch.setattr("emprior.verify.peers.DIFFUSION", 399)
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
    assert own.evaluations == weighted.evaluations == 200


def test_the_guidance_of_weighted_dps_is_the_likelihoods(cases, monkeypatch):
    r"""Where the residual is that of the noise, its gradient is that of the data term."""
    import deepinv as dinv

    case, weights = cases["inpainting"], []

    def spy(denoiser, physics, y, seed, *, steps, weight):
        return weights.append(weight) or physics.A_adjoint(y)

    monkeypatch.setattr("emprior.peers.dps", spy)
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
