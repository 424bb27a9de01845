r"""Methods of the benchmark on Gaussian fields: laws that are known, networks that are counted, and equal terms."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from deepinv.physics import Denoising
from laws import assert_drawn_from, assert_moments, model

import emprior
from emprior.bench.meter import Meter, MeteredPrior
from emprior.bench.methods import METHODS, Models, Task, chosen
from emprior.bench.methods import deepinv_samplers as of_deepinv
from emprior.bench.methods.diffusion import END, WIDEST, directions, geometric, polynomial, trained_levels
from emprior.bench.methods.plug_and_play import red_gradient
from emprior.bench.plan import Plan
from emprior.bench.runner import paced_settings
from emprior.energy import Prior
from emprior.interop import as_denoiser
from emprior.priors import GaussianPrior
from emprior.verify import fields

SIDE, SIGMA = 3, 0.2
ROWS = 4000


def field():
    ticks = torch.arange(float(SIDE), dtype=torch.float64)
    lag = torch.minimum(ticks, SIDE - ticks)
    kernel = 0.05 * torch.exp(-(lag[:, None].square() + lag.square()).sqrt())
    return GaussianPrior.stationary(torch.full((1, SIDE, SIDE), 0.5, dtype=torch.float64), kernel[None])


def models_of(prior):
    meter = Meter()
    return Models(MeteredPrior(prior, meter), meter.watch(as_denoiser(prior)), meter)


@pytest.fixture
def small():
    r"""One image whose corner pixels are measured, in double precision; its model and its networks."""
    from deepinv.physics import Inpainting

    prior, shape = field(), (1, SIDE, SIDE)
    mask = torch.zeros(shape, dtype=torch.float64)
    mask[..., ::2, ::2] = 1
    operator = Inpainting(shape, mask=mask)
    y = mask * (prior.sample(1, seed=1) + 0.1)
    task = Task(operator, y, SIGMA, shape)
    return task, models_of(prior), model(task.fidelity(), prior)


@pytest.fixture(scope="module")
def eight():
    r"""Two fields of 8 x 8 pixels under blur, in single precision."""
    prior, operator = fields.gaussian_field(8).float(), fields.make_operator("blur", 8)
    y = operator.A(prior.sample(2, seed=3).double()).float()
    return Task(operator, y, 0.05, (1, 8, 8)), prior


def cheap(method, samples=2, budget=80):
    return paced_settings(method, method.settings, Plan(samples=samples, budget=budget))


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name, eight):
    r"""Answers have the shape of images, repeat, leave everything as it was, and count what they ask."""
    method, (task, prior) = METHODS[name], eight
    if name == "azula-repaint":
        task = replace(task, operator=fields.make_operator("inpainting", 8))
    models, settings, kept = models_of(prior), cheap(method), task.y.clone()
    if name.startswith("azula"):
        pytest.importorskip("azula")
    before = torch.random.get_rng_state()
    answer = method.run(task, models, 2, 0, settings)
    again = method.run(task, models, 2, 0, settings)
    assert answer.estimate.shape == (2, 1, 8, 8)
    assert answer.estimate.isfinite().all()
    assert torch.equal(answer.estimate, again.estimate)
    assert (answer.samples is not None) == (method.kind == "posterior")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(task.y, kept)
    assert (models.meter.forwards > 0) == (method.kind != "classical")
    if answer.samples is not None:
        other = method.run(task, models, 2, 1, settings)
        assert answer.samples.shape == (2, 2, 1, 8, 8)
        assert not torch.equal(answer.samples, other.samples)
        assert name == "ddnm" or not torch.equal(answer.samples[0], answer.samples[1])


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.source in ("emprior", "paper")])
def test_an_image_does_not_depend_on_its_neighbours_where_streams_are_ours(name, eight):
    method, (task, prior) = METHODS[name], eight
    both = method.run(task, models_of(prior), 2, 0, cheap(method))
    alone = method.run(replace(task, y=task.y[:1]), models_of(prior), 2, 0, cheap(method))
    torch.testing.assert_close(both.estimate[:1], alone.estimate, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_budgets_are_kept(name, eight):
    r"""But for what a method must ask at least, such as a start of four levels or a pilot of the noise."""
    method, (task, prior) = METHODS[name], eight
    if name.startswith("azula"):
        pytest.importorskip("azula")
        task = replace(task, operator=fields.make_operator("inpainting", 8))
    least = 100 if name.endswith("blind") else 12
    models, budget = models_of(prior), 400
    method.run(replace(task, y=task.y[:1]), models, 4, 0, cheap(method, 4, budget))
    assert models.meter.forwards <= 1.1 * budget + least


@pytest.mark.parametrize(("samples", "budget"), [(16, 2000), (4, 2000), (4, 400), (6, 600), (10, 2000)])
def test_flow_takes_what_its_budget_pays_for(samples, budget, eight):
    method, (task, prior) = METHODS["emprior-flow"], eight
    models = models_of(prior)
    method.run(replace(task, y=task.y[:1]), models, samples, 0, cheap(method, samples, budget))
    assert 0.9 * budget <= models.meter.forwards <= budget


def test_counts():
    meter = Meter()
    prior = MeteredPrior(field(), meter)
    denoiser = meter.watch(as_denoiser(field()))
    x = torch.rand(5, 1, SIDE, SIDE, dtype=torch.float64)
    prior(x)
    assert (meter.forwards, meter.backwards) == (5, 0)
    prior.value_and_grad(x)
    prior.denoise(x, 0.1)
    assert (meter.forwards, meter.backwards) == (15, 10)
    leaf = x.clone().requires_grad_()
    clean = denoiser(leaf, 0.1)
    assert (meter.forwards, meter.backwards) == (20, 10)
    for _ in range(2):
        torch.autograd.grad(clean.sum(), leaf, retain_graph=True)
    assert (meter.forwards, meter.backwards) == (20, 20)
    _, pull = torch.func.vjp(lambda z: denoiser(z, 0.1), x)
    pull(x)
    assert (meter.forwards, meter.backwards) == (25, 25)
    torch.testing.assert_close(clean, field().denoise(x, 0.1))


def test_dps_takes_one_evaluation_and_one_derivative_a_step(eight):
    task, prior = eight
    models = models_of(prior)
    of_deepinv.dps(task, models, 3, 0, {"steps": 7, "weight": 1.0})
    assert (models.meter.forwards, models.meter.backwards) == (7 * 6, 7 * 6)


def gain(model, level):
    r"""The matrix `G` of the denoiser :math:`m + G (x - m)`."""
    return model.C @ torch.linalg.inv(model.C + level**2 * model.eye)


def conditional(model, variance):
    r"""The maps of a draw given `u`: :math:`S (u / v + b) + S^{1/2} n`."""
    S = torch.linalg.inv(model.eye / variance + model.H)
    return S / variance, S @ model.b, S


def through(law, M, v, Q=0.0):
    r"""The law of `M x + v + q` with `q` of covariance `Q`."""
    mean, covariance = law
    return M @ mean + v, M @ covariance @ M.mT + Q


def test_daps_has_the_law_of_its_affine_steps(small):
    task, models, law_of = small
    settings = {"steps": 6, "inner": 3, "stop": 0.05}
    levels = polynomial(WIDEST, 0.05, 6)
    half = torch.full_like(law_of.m, 0.5)
    law = half, levels[0] ** 2 * law_of.eye
    for level, after in zip(levels, [*levels[1:], 0.0], strict=True):
        inner = [*polynomial(level, END, 3), 0.0]
        for a, b in pairwise(inner):
            M = gain(law_of, a) + b / a * (law_of.eye - gain(law_of, a))
            law = through(law, M, law_of.m - M @ law_of.m)
        M, v, S = conditional(law_of, level**2)
        law = through(law, M, v, S + after**2 * law_of.eye)
    draws = METHODS["daps"].run(task, models, ROWS, 0, settings).samples
    assert_drawn_from(draws[:, 0].flatten(1), *law)


def ancestral(law, model, level, steps):
    levels = [*polynomial(level, min(END, level), steps), 0.0]
    for a, b in pairwise(levels):
        ratio = (b / a) ** 2
        M = gain(model, a) + ratio * (model.eye - gain(model, a))
        law = through(law, M, model.m - M @ model.m, b**2 * (1 - ratio) * model.eye)
    return law


def test_pnp_dm_has_the_law_of_its_affine_steps(small):
    task, models, law_of = small
    law = torch.full_like(law_of.m, 0.5), torch.zeros_like(law_of.C)
    for coupling in geometric(2.0, 0.1, 5):
        M, v, S = conditional(law_of, coupling**2)
        law = ancestral(through(law, M, v, S), law_of, coupling, 4)
    settings = {"steps": 5, "inner": 4, "start": 2.0, "stop": 0.1}
    draws = METHODS["pnp-dm"].run(task, models, ROWS, 0, settings).samples
    assert_moments(draws[:, 0].flatten(1), *law)


def test_pnp_dm_samples_the_posterior_of_inflated_noise(small):
    r"""Under constant coupling it is the posterior under noise :math:`\sigma^2 I + \rho^2 A A^\top`."""
    _, _, law_of = small
    rho, zero = 0.15, torch.zeros_like(law_of.C)
    v, Q = ancestral((torch.zeros_like(law_of.m), zero), law_of, rho, 600)
    M = torch.stack([ancestral((e, zero), law_of, rho, 600)[0] - v for e in law_of.eye], 1)
    draw, push, S = conditional(law_of, rho**2)
    law = torch.full_like(law_of.m, 0.5), zero
    for _ in range(100):
        law = through(through(law, draw, push, S), M, v, Q)
    shrink = SIGMA**2 / (SIGMA**2 + rho**2)
    precision = torch.linalg.inv(law_of.C) + shrink * law_of.H
    mean = torch.linalg.solve(precision, torch.linalg.solve(law_of.C, law_of.m) + shrink * law_of.b)
    torch.testing.assert_close(law[0], mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(law[1], torch.linalg.inv(precision), rtol=0, atol=5e-4)


@pytest.mark.parametrize("gains", [1.0, torch.linspace(0.2, 1.6, SIDE, dtype=torch.float64)], ids=["mask", "gains"])
def test_ddnm_has_the_law_of_its_affine_steps(small, gains):
    r"""Each measured direction is taken in as far as its own noise, the larger the smaller its gain, allows."""
    task, models, law_of = small
    operator = copy.deepcopy(task.operator)
    operator.mask = operator.mask * gains
    task = replace(task, operator=operator, y=task.y * gains)
    settings, eta = {"steps": 12, "eta": 0.6}, 0.6
    levels, d = [*trained_levels(12), 0.0], operator.mask.flatten()
    law = torch.full_like(law_of.m, 0.5), levels[0] ** 2 * law_of.eye
    for level, after in pairwise(levels):
        share = torch.where(d > 0, (after * d / SIGMA).clamp(max=1), 0.0)
        error = torch.where(d > 0, share * SIGMA / d, 0.0)
        spread = (after**2 - error**2).clamp(min=0).sqrt().diag()
        G, keep = gain(law_of, level), (1 - share).diag()
        old = spread * (1 - eta**2) ** 0.5 / level
        M = keep @ G + old @ (law_of.eye - G)
        away = law_of.m - G @ law_of.m
        v = keep @ away + torch.where(d > 0, share * task.y.flatten() / d, 0.0) - old @ away
        law = through(law, M, v, (eta * spread).square())
    draws = METHODS["ddnm"].run(task, models, ROWS, 0, settings).samples
    assert_moments(draws[:, 0].flatten(1), *law)


def test_ddnm_says_where_it_cannot_be_run(small):
    with pytest.raises(ValueError, match=r"matrix of all 12288 pixels, and 4096 are the most. Leave out ddnm"):
        directions(small[0].operator, (3, 64, 64), torch.float32, torch.device("cpu"))


def test_ddnm_puts_back_what_was_measured(small):
    r"""Where the noise is small, measured pixels are within the last noise of the diffusion, four deviations of it."""
    task, models, _ = small
    task = replace(task, sigma=1e-4)
    draws = METHODS["ddnm"].run(task, models, 400, 0, {"steps": 60, "eta": 0.85}).samples[:, 0].flatten(1)
    seen = task.y.flatten() != 0
    assert (draws[:, seen] - task.y.flatten()[seen]).abs().max() < 4 * trained_levels(60)[-1]
    assert draws[:, ~seen].std(0).min() > 10 * trained_levels(60)[-1]


def test_pnp_flow_follows_its_mean(small):
    r"""Under an affine denoiser the mean of many runs is the run without noise."""
    task, models, law_of = small
    settings = {"steps": 6, "draws": 1, "alpha": 0.5}
    many = replace(task, y=task.y.expand(ROWS, -1, -1, -1).contiguous())
    draws = METHODS["pnp-flow"].run(many, models, 1, 0, settings).estimate.flatten(1)
    AtA = law_of.H * SIGMA**2
    x = task.fidelity().prox(torch.full((1, *task.shape), 0.5, dtype=torch.float64), 1.0).flatten()
    for index in range(1, 7):
        t = index / 7
        z = x - (1 - t) ** 0.5 * (AtA @ x - task.y.flatten())
        x = law_of.m + gain(law_of, (1 - t) / (2 * t)) @ (z - law_of.m)
    z = (draws.mean(0) - x) / (draws.std(0) / ROWS**0.5)
    assert z.abs().max() < 4.5


def test_the_gradient_of_red_diff(small):
    r"""On average over the noise it is that of the data, and :math:`(I - G) (x - m)`."""
    task, models, law_of = small
    x = torch.rand(1, *task.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = task.noise(ROWS, 0, "test").normal(*task.shape)
    rows, y = x.expand(ROWS, -1, -1, -1), task.rows(ROWS)
    found = red_gradient(task.physics(), models, rows, y, noise, 0.3, 0.5).flatten(1)
    prior = (law_of.eye - gain(law_of, 0.3)) @ (x.flatten() - law_of.m)
    data = SIGMA**2 * (law_of.H @ x.flatten() - law_of.b)
    exact = (data + 0.5 * prior) / SIDE**2
    z = (found.mean(0) - exact) / (found.std(0) / ROWS**0.5)
    assert z.abs().max() < 4.5


def test_tikhonov_solves_its_normal_equations(small):
    task, models, law_of = small
    x = METHODS["tikhonov"].run(task, models, 1, 0, {"std": 0.3}).estimate.flatten()
    left = law_of.H + law_of.eye / 0.3**2
    torch.testing.assert_close(left @ x, law_of.b + 0.5 / 0.3**2, rtol=1e-9, atol=1e-9)


def test_total_variation_does_not_depend_on_neighbours(eight):
    task, prior = eight
    settings = {"steps": 5, "weight": 0.02}
    run = METHODS["total-variation"].run
    both = run(task, models_of(prior), 1, 0, settings).estimate
    alone = run(replace(task, y=task.y[1:]), models_of(prior), 1, 0, settings).estimate
    torch.testing.assert_close(both[1:], alone)


def test_levels():
    levels = trained_levels(100)
    assert len(levels) == 100
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == pytest.approx(157.4 / 2, rel=0.01)
    assert geometric(4.0, 1.0, 3) == pytest.approx([4.0, 2.0, 1.0])
    assert polynomial(5.0, 0.1, 1) == pytest.approx([5.0])
    assert polynomial(5.0, 0.1, 4)[-1] == pytest.approx(0.1)


def test_azula_is_given_measurements_in_its_units():
    r"""Of an image `2 x - 1` in `[-1, 1]` they are :math:`A (2 x - 1)`, and its clean estimate is that of `x`."""
    pytest.importorskip("azula")
    from emprior.bench.methods.azula_samplers import Data, _denoiser

    prior = fields.gaussian_field(8).float()
    operator, x = fields.make_operator("blur", 8), prior.sample(2, seed=5)
    task = Task(operator, operator.A(x.double()).float(), 0.05, (1, 8, 8))
    data = Data.of(task, 1)
    torch.testing.assert_close(data.map((2 * x - 1).flatten(1)), data.y, rtol=0, atol=1e-5)
    assert data.var == pytest.approx(0.1**2)
    wrapped = _denoiser(models_of(prior), task)
    t = torch.tensor(0.5)
    alpha, sigma = wrapped.schedule(t)
    clean = wrapped((alpha * (2 * x - 1)).flatten(1), t).mean
    expected = prior.denoise(x, float(sigma / (2 * alpha)))
    torch.testing.assert_close((clean.unflatten(1, (1, 8, 8)) + 1) / 2, expected, rtol=0, atol=1e-5)


def test_ddrm_and_repaint_say_what_they_need(eight):
    task, prior = eight
    task = replace(task, operator=fields.make_operator("compressed sensing", 8), y=torch.zeros(1, 32))
    with pytest.raises(TypeError, match="DDRM needs the singular values of the operator"):
        METHODS["deepinv-ddrm"].run(task, models_of(prior), 1, 0, METHODS["deepinv-ddrm"].settings)
    pytest.importorskip("azula")
    with pytest.raises(TypeError, match="RePaint fills in missing pixels"):
        METHODS["azula-repaint"].run(
            replace(task, operator=Denoising(), y=torch.zeros(1, 1, 8, 8)), models_of(prior), 1, 0,
            METHODS["azula-repaint"].settings,
        )  # fmt: skip


def test_names():
    assert chosen(["all"]) == list(METHODS)
    assert set(chosen(["classical", "emprior-map"])) == {"pseudo-inverse", "tikhonov", "total-variation", "emprior-map"}
    assert all(METHODS[name].source == "azula" for name in chosen(["azula"]))
    with pytest.raises(ValueError, match=r"unknown method 'deepinv-dsp'. Did you mean 'deepinv-dps'"):
        chosen(["deepinv-dsp"])


@pytest.mark.parametrize("name", METHODS)
def test_what_is_said_of_methods(name):
    method = METHODS[name]
    assert set(method.ranges) <= set(method.settings)
    assert all(low < high for low, high in method.ranges.values())
    assert method.reference
    for key, (low, high) in method.ranges.items():
        assert low <= method.settings[key] <= high


@pytest.mark.parametrize("name", ["mnist", "cifar10-mixture"])
def test_a_counted_prior_is_the_prior_in_all_else(name):
    prior = emprior.load_prior(name)
    counted, x = MeteredPrior(prior, Meter()), torch.zeros(1, *prior.shape)
    for attribute in (*Prior.__annotations__, "settings", "shape"):
        assert getattr(counted, attribute) == getattr(prior, attribute), attribute
    assert torch.equal(counted.precision(x, 0.1), prior.precision(x, 0.1))
