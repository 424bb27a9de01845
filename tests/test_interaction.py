r"""Samples that repel each other, against the exact joint law under a Gaussian prior."""

from __future__ import annotations

import json
import math
import re
import runpy
import sys
from pathlib import Path

import deepinv as dinv
import numpy as np
import pytest
import torch
from conftest import SHAPE, make_operator

import emprior
from emprior import Repulsion
from emprior._noise import Noise
from emprior.energy import Energy, Posterior
from emprior.fidelity import GaussianFidelity
from emprior.priors import GaussianPrior
from emprior.report import reproduce
from emprior.solvers import HMC, MALA, SplitGibbs, Stage, run

MASK = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)


def rows(count: int, shape=SHAPE, seed: int = 0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_the_formula_over_pairs(samples):
    x, mask = rows(2 * samples), (rows(1)[0] > 0.3).double()
    energy = Repulsion(0.5, mask, samples)
    groups = (x * mask).reshape(samples, 2, -1)
    squares = sum((groups[i] - groups[j]).square().sum(1) for i in range(samples) for j in range(i))
    torch.testing.assert_close(energy(x).reshape(samples, 2).sum(0), -2 / samples * squares / 0.25)
    with pytest.raises(ValueError, match="positive length"):
        Repulsion(0.0)


@pytest.mark.parametrize(
    "mask",
    [
        rows(1)[0] > 0.3,
        (rows(1)[0, 0] > 0.3).to(torch.uint8) * 255,
        (3 * rows(1)[0]).long(),
        rows(1)[0, 0, :, :1],
        torch.tensor(0.5),
        rows(1)[0].requires_grad_(),
    ],
    ids=["bool", "uint8", "int64", "column", "number", "with gradient"],
)
def test_masks(mask):
    energy, x = Repulsion(0.5, mask, samples=2).among(3), rows(6, seed=5)
    region = mask.detach().double().expand(SHAPE)
    expected = Repulsion(0.5, region, samples=3)
    torch.testing.assert_close(energy(x), expected(x))
    torch.testing.assert_close(energy.value_and_grad(x)[1], expected.value_and_grad(x)[1])
    leaf = x.clone().requires_grad_()
    (automatic,) = torch.autograd.grad(energy(leaf).sum(), leaf)
    torch.testing.assert_close(energy.value_and_grad(x)[1], automatic)


def test_a_mask_is_not_shared():
    mask = torch.ones(SHAPE).double()
    energy, x = Repulsion(0.5, mask), rows(4)
    before = energy(x)
    mask *= 2
    assert torch.equal(energy(x), before)


@pytest.mark.parametrize("mask", [np.ones(SHAPE), [[1.0]], 1.0, torch.ones(SHAPE, dtype=torch.complex64)])
def test_masks_of_a_wrong_type(mask):
    kind = r"torch\.complex64" if isinstance(mask, torch.Tensor) else type(mask).__name__
    with pytest.raises(TypeError, match=rf"mask is {kind}, expected a tensor.*torch\.as_tensor\(mask\)"):
        Repulsion(0.5, mask)


@pytest.mark.parametrize("shape", [(8, 4), (3, 8, 8), (8, 8, 1), (1, 4, 4), (7,), (0,)])
def test_masks_that_do_not_fit_the_images(shape):
    energy = Repulsion(0.5, torch.ones(shape), samples=2)
    message = rf"mask has shape {re.escape(str(shape))}, but the images have shape \(1, 8, 8\)\. Pass a mask of shape"
    with pytest.raises(ValueError, match=message):
        energy.check(SHAPE)
    for call in (energy, energy.value_and_grad):
        with pytest.raises(ValueError, match=message):
            call(rows(4))


def test_masks_of_more_dimensions_than_an_image():
    with pytest.raises(ValueError, match=r"\(1, 1, 3, 8, 8\), expected one region.*leading dimensions: mask\[0, 0\]"):
        Repulsion(0.5, torch.ones(1, 1, 3, 8, 8))
    for images, mask in (((5,), (3, 5)), ((8, 8), (1, 8, 8))):
        with pytest.raises(ValueError, match="but the images have shape"):
            Repulsion(0.5, torch.ones(mask)).check(images)
    for images, mask in (((5,), (5,)), ((3, 8, 8), (3, 1, 1)), ((3, 8, 8), (1, 8, 8)), ((2, 3, 8, 8), (8, 8))):
        Repulsion(0.5, torch.ones(mask)).check(torch.Size(images))
    Repulsion(0.5).check((5,))


def pairs(images: int):
    r"""A Gaussian prior of six pixels, an operator that sees two of them, measurements and their exact posterior."""
    factor = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 12
    prior = GaussianPrior(torch.full((1, 2, 3), 0.5).double(), factor @ factor.mT + 0.05 * torch.eye(6))
    seen = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]], dtype=torch.float64)
    operator = dinv.physics.Inpainting((1, 2, 3), mask=seen, noise_model=dinv.physics.GaussianNoise(0.2))
    noise = torch.randn(images, 1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (prior.sample(images, seed=2) + 0.2 * noise) * seen
    return prior, operator, y, prior.posterior(operator, y, 0.2)


def joint(precision, samples, strength, mask):
    r"""The covariance of the samples of an image, `(S d, S d)`: of their mean, and of what they differ by."""
    push = 4 / strength**2 * mask.square().diag()
    shared = torch.full((samples, samples), 1 / samples, dtype=torch.float64)
    apart = torch.eye(samples, dtype=torch.float64) - shared
    mean, rest = (torch.linalg.inv(matrix).contiguous() for matrix in (precision, precision - push))
    return torch.kron(shared, mean) + torch.kron(apart, rest)


def test_samples_that_interact_are_accepted_together():
    prior, operator, y, _ = pairs(5)
    start = prior.mean.expand(5, -1, -1, -1)
    options = {"method": "mala", "samples": 3, "steps": 80, "x0": start}

    def moves(interaction):
        r"""Which rows `(steps, samples, images)` moved."""
        seen = [start.expand(3, -1, -1, -1, -1)]
        emprior.solve(
            operator, y, prior, interaction=interaction, callback=lambda _, rows: seen.append(rows.clone()), **options
        )
        return torch.stack(seen).diff(dim=0).flatten(3).abs().amax(3) > 0

    together = moves(Repulsion(1.5))
    assert together.shape == (80, 3, 5)
    assert (together == together[:, :1]).all()
    assert not (together == together[:, :, :1]).all()
    assert (together.double().mean(0) - 0.5).abs().max() < 0.4
    alone = moves(None)
    assert not (alone == alone[:, :1]).all()


@pytest.mark.parametrize("mask", [None, MASK], ids=["everywhere", "in a region"])
@pytest.mark.parametrize(
    ("samples", "solver"),
    [(2, HMC(leaps=4, adapt=40)), (4, HMC(leaps=4, adapt=40)), (4, MALA(adapt=40)), (3, SplitGibbs(adapt=40))],
    ids=["2 by hmc", "4 by hmc", "4 by mala", "3 by gibbs"],
)
def test_samples_that_repel_have_their_joint_law(samples, solver, mask):
    r"""Means, variances and covariances between samples along chains, in standard errors over independent images."""
    images, strength, start = 64, 0.85, 40
    prior, operator, y, exact = pairs(images)
    region = (torch.ones(3).double() if mask is None else mask).expand(2, 3).flatten()
    law = joint(torch.linalg.inv(exact.covariance), samples, strength, region)
    noise = Noise([(s, i) for s in range(samples) for i in range(images)], dtype=torch.float64)
    energy, kept = Posterior(GaussianFidelity(operator, y), prior, 1.0, Repulsion(strength, mask, samples)), []
    keep = lambda i, now: kept.append((now - exact.mean).flatten(2)) if i > start else None  # noqa: E731
    x = exact.sample(samples, seed=4).flatten(0, 1)
    run([Stage(solver, 240, start)], energy, x, noise, images, callback=keep)
    draws = torch.stack(kept).transpose(1, 2).flatten(2)
    products = torch.einsum("nbi,nbj->bij", draws, draws) / len(draws)
    scale = law.diagonal().sqrt()
    for each, truth in ((draws.mean(0), 0.0), (products / (scale[:, None] * scale), law / (scale[:, None] * scale))):
        error = each.std(0) / images**0.5
        z = (each.mean(0) - truth) / error
        assert z.abs().max() < 4.5
        assert z.square().mean() < 1.6
    alone = joint(torch.linalg.inv(exact.covariance), samples, 1e9, region)
    assert ((products.mean(0) - alone) * images**0.5 / products.std(0)).abs().max() > 8


@pytest.mark.parametrize("method", ["mala", "hmc"])
def test_without_a_repulsion_samples_are_independent(method):
    r"""Whitened samples of an image are not correlated, in standard errors over images."""
    images, samples, kept = 64, 3, []
    prior, operator, y, exact = pairs(images)
    white = torch.linalg.cholesky(torch.linalg.inv(exact.covariance))
    keep = lambda i, now: kept.append((now - exact.mean).flatten(2) @ white) if i > 40 else None  # noqa: E731
    options = {"samples": samples, "steps": 160, "x0": exact.mean, "method": method, "callback": keep}
    emprior.solve(operator, y, prior, **options)
    draws = torch.stack(kept)
    for s in range(samples):
        for t in range(s):
            each = torch.einsum("nbi,nbj->bij", draws[:, s], draws[:, t]) / len(draws)
            z = each.mean(0) / each.std(0) * images**0.5
            assert z.abs().max() < 4.5
            assert z.square().mean() < 1.6
            assert (each.std(0) / images**0.5).max() < 0.1


def test_a_result_tells_what_it_was_made_with():
    prior, operator, y, exact = pairs(2)
    options = {"method": "mala", "samples": 2, "steps": 4, "x0": exact.mean, "interaction": Repulsion(1.5, MASK)}
    result = emprior.solve(operator, y, prior, **options)
    expected = {"strength": 1.5, "mask": list(MASK.shape), "area": float(MASK.square().sum())}
    assert result.config["interaction"] == expected
    assert reproduce.command(result.config).endswith("interaction=emprior.Repulsion(1.5, mask=mask), x0=x0)")
    assert ("interaction", f"strength 1.5, mask {', '.join(map(str, MASK.shape))}, area {expected['area']:g}") in (
        reproduce.settings(result.config)
    )
    plain = emprior.solve(operator, y, prior, method="mala", steps=4).config
    assert {"interaction", "x0"}.isdisjoint(plain)


@pytest.mark.parametrize("samples", [2, 4, 16])
def test_a_strength_means_the_same_for_any_number_of_samples(field, samples):
    r"""The mean squared distance of two samples in the region is :math:`2 tr (\Lambda - 4 B^2 / s^2)^{-1}`."""
    operator, images, region = make_operator("denoising"), 96 // samples, torch.zeros(SHAPE).double()
    region[:, 2:6, 2:6] = 1
    y = operator.A(field.sample(1, seed=1)).repeat(images, 1, 1, 1)
    posterior = field.posterior(operator, y[:1], 0.1)
    precision, strength = torch.linalg.inv(posterior.covariance), 0.25
    inside = region.flatten().bool()
    exact = [
        float(2 * torch.linalg.inv(precision - push * inside.diag()).diagonal()[inside].sum())
        for push in (0.0, 4 / strength**2)
    ]
    assert exact[1] > 1.3 * exact[0]
    energy = Posterior(GaussianFidelity(operator, y), field, 1.0, Repulsion(strength, region, samples))
    noise = Noise([(s, i) for s in range(samples) for i in range(images)], dtype=torch.float64)
    kept = []
    keep = lambda i, now: kept.append(now.flatten(2)[..., inside]) if i > 40 else None  # noqa: E731
    start = posterior.sample(samples * images)[:, 0]
    run([Stage(HMC(leaps=4, adapt=40), 120, 40)], energy, start, noise, images, callback=keep)
    draws = torch.stack(kept)
    squares = 2 * (draws - draws.mean(1, keepdim=True)).square().sum((1, 3)) / (samples - 1)
    each = squares.mean(0)
    assert (each.mean() - exact[1]).abs() < 4 * each.std() / images**0.5
    assert each.std() / images**0.5 < 0.02 * exact[1]


@pytest.mark.parametrize("name", ["denoising", "inpainting", "compressed_sensing"])
def test_a_repulsion_that_is_too_strong_is_refused(field, name):
    r"""The bound is where the joint precision has a zero eigenvalue; the strength that the message names is enough."""
    operator = make_operator(name)
    x = field.sample(2, seed=1)
    y = operator.A(x)
    sigma = float(operator.noise_model.sigma)
    region = torch.zeros(SHAPE).double()
    region[:, :4, :5] = 1
    precision = torch.linalg.inv(field.posterior(operator, y, sigma).covariance)
    inner = torch.linalg.inv(torch.linalg.inv(precision)[region.flatten().bool()][:, region.flatten().bool()])
    bound = 2 / float(torch.linalg.eigvalsh(inner)[0]) ** 0.5
    posterior = Posterior(GaussianFidelity(operator, y), field)
    Repulsion(1.02 * bound, region).check_proper(posterior, x)
    with pytest.raises(ValueError, match=r"strength .* of image 0.*Pass strength=[\d.]+ or more") as caught:
        Repulsion(0.85 * bound, region).check_proper(posterior, x)
    named = float(re.search(r"strength=([\d.]+)", str(caught.value)).group(1))
    assert 0.9 * bound < named < 1.25 * bound
    with pytest.raises(ValueError, match="they would run apart"):
        emprior.solve(operator, y, field, method="hmc", samples=2, interaction=Repulsion(0.5 * bound, region))
    Repulsion(0.01, torch.zeros(SHAPE)).check_proper(posterior, x)


def test_a_prior_that_holds_nothing_names_another_cure():
    class Flat(GaussianPrior):
        def value_and_grad(self, x):
            return x.new_zeros(len(x)), torch.zeros_like(x)

    prior = Flat(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    physics = dinv.physics.Inpainting(SHAPE, mask=torch.zeros(SHAPE), noise_model=dinv.physics.GaussianNoise(0.1))
    posterior = Posterior(GaussianFidelity(physics, torch.zeros(1, *SHAPE).double()), prior)
    with pytest.raises(ValueError, match="Pass a smaller region"):
        Repulsion(1.0).check_proper(posterior, torch.zeros(1, *SHAPE).double())


def test_the_study_runs_in_short(monkeypatch, tmp_path, capsys):
    x = emprior.load_prior("cifar10-mixture").sample(1, seed=3).clamp(0, 1)
    np.save(tmp_path / "x.npy", (255 * x).round().byte().permute(0, 2, 3, 1).numpy())
    name = "interaction_cifar10_study.py"
    short = ["--samples", "2", "3", "--strengths", "4", "2", "--steps", "4", "--leaps", "1", "--levels", "2"]
    monkeypatch.setattr(sys, "argv", [name, "--test", str(tmp_path / "x.npy"), "--out", str(tmp_path / "out"), *short])
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / name), run_name="__main__")
    assert capsys.readouterr().out.count("\n| ") == 6
    lines = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [(line["strength"], line["samples"]) for line in lines] == [
        (strength, samples) for strength in (None, 4.0, 2.0) for samples in (2, 3)
    ]
    assert (tmp_path / "out" / "samples.png").stat().st_size > 1000


class Toy(Energy):
    r"""The sum over pixels of a function of one variable."""

    def __init__(self, law):
        super().__init__()
        self.law = law

    def forward(self, x):
        return self.law(x).flatten(1).sum(1)


def test_what_holds_near_and_not_far_is_refused_with_a_strength_that_is_then_held():
    energy, x = Toy(lambda x: 20 * (1 + (x / 0.1).square()).sqrt()), torch.zeros(2, *SHAPE).double()
    Repulsion(1.0).check_proper(energy, x)
    with pytest.raises(ValueError, match="they would run apart") as refused:
        Repulsion(0.05).check_proper(energy, x)
    named = float(re.search(r"strength=([\d.]+) or more", str(refused.value))[1])
    Repulsion(named).check_proper(energy, x)
    with pytest.raises(ValueError, match="they would run apart"):
        Repulsion(0.7 * named).check_proper(energy, x)


def test_a_weak_smooth_direction_is_found_among_stiff_ones():
    r"""The stiffness spreads over five decades, so that a short Krylov space is of the stiffest directions."""
    side = 12
    ticks = (torch.arange(side).double() + 0.5) / side
    waves = torch.cos(math.pi * torch.arange(side).double()[:, None] * ticks)
    waves = torch.kron(waves, waves)
    tilt = torch.randn(waves.shape, generator=torch.Generator().manual_seed(0), dtype=waves.dtype)
    basis = torch.linalg.qr((waves / waves.norm(dim=1, keepdim=True)).mT + 1e-5 * tilt)[0]
    stiffness = torch.logspace(2, 7, side**2).double()
    stiffness[1] = 4.0

    class Stiff(Energy):
        def forward(self, x):
            return 0.5 * ((x.flatten(1) @ basis).square() * stiffness).sum(1)

    x = torch.zeros(1, 1, side, side).double()
    with pytest.raises(ValueError, match="they would run apart"):
        Repulsion(0.5).check_proper(Stiff(), x)
    Repulsion(1.1).check_proper(Stiff(), x)


def test_a_learned_energy_is_asked_where_it_holds_least():
    r"""In a box `cifar10` holds 0.505, of which directions for quadratic energies tell 0.436."""
    truth, problem = emprior.load_prior("cifar10-mixture"), emprior.load_problem("cifar10/box_inpainting")
    x = truth.denoise(truth.sample(4, seed=3).clamp(0, 1), torch.full((4,), 0.1))[:1].detach()
    posterior = Posterior(
        GaussianFidelity(problem.operator, problem.measure(x, seed=0), problem.sigma), emprior.load_prior("cifar10")
    )
    box = 1 - problem.operator.A(torch.ones_like(x))[0]
    with pytest.raises(ValueError, match="they would run apart"):
        Repulsion(0.47, box).check_proper(posterior, x)
    Repulsion(1.2, box).check_proper(posterior, x)


def test_separate_modes_within_reach_are_no_reason_to_refuse():
    def two(x):
        return -torch.logaddexp(-50 * x.square().flatten(1).sum(1), -50 * (x - 0.45).square().flatten(1).sum(1))

    class Two(Energy):
        def forward(self, x):
            return two(x)

    Repulsion(0.3).check_proper(Two(), torch.zeros(1, *SHAPE).double())
    with pytest.raises(ValueError, match="they would run apart"):
        Repulsion(0.15).check_proper(Two(), torch.zeros(1, *SHAPE).double())


def test_an_energy_that_overflows_far_away_holds():
    energy = Toy(lambda x: 50 * x.square() + (x / 1.5).pow(2000))
    Repulsion(0.5).check_proper(energy, torch.zeros(1, *SHAPE).double())
