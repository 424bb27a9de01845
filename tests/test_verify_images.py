from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from emprior import load_prior
from emprior.priors import GaussianMixturePrior
from emprior.result import Diagnostics, Result, Status
from emprior.sketch import Sketch
from emprior.verify import verify
from emprior.verify.images import BARS, Marginal, figures, images, sliced
from emprior.verify.path import Path

SHAPE, SIZE = (1, 2, 4), 8


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(count=2):
    r"""The posterior of `count` images of a mixture of which both components are likely."""
    weights, means = torch.tensor([0.4, 0.6], dtype=torch.float64), rand(2, *SHAPE, seed=1)
    prior = GaussianMixturePrior.low_rank(weights, means, rand(2, SIZE, 2, seed=2), 0.4)
    exact = prior.posterior(lambda x: x.flatten(1)[:, :3], rand(count, 3, seed=3) / 2, 0.8)
    assert exact.weights.min() > 0.05
    return exact


def test_marginals_are_those_of_the_posterior():
    exact = posterior()
    draws = exact.sample(20_000, seed=4).flatten(2)
    for image, law in enumerate(Marginal.each(exact)):
        torch.testing.assert_close(law.mean, exact.mean[image].flatten())
        torch.testing.assert_close(law.variance, exact.std[image].flatten().square())
        for shift in (-1.0, 0.3):
            x = law.mean + shift * law.variance.sqrt()
            p = law.cdf(x)
            found = (draws[:, image] <= x).double().mean(0)
            assert ((found - p) / (p * (1 - p) / len(draws)).sqrt()).abs().max() < 4


def test_components_of_no_weight_are_left_out():
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    prior = GaussianMixturePrior(weights, torch.tensor([[-9.0], [9.0]], dtype=torch.float64), torch.ones(2, 1).double())
    (law,) = Marginal.each(prior.posterior(lambda x: x, torch.tensor([[8.0]], dtype=torch.float64), 0.5))
    assert law.weights.tolist() == [1.0]


def test_distances_and_scores_against_quadrature():
    r"""The score is the integral of the squared error of the distribution function, and of the law's own spread."""
    law = Marginal.each(posterior(1))[0]
    draws = rand(5, SIZE, seed=5)
    grid = torch.linspace(-12, 12, 12_001, dtype=torch.float64)[:, None]
    F = torch.stack([law.cdf(x.expand(SIZE)) for x in grid])
    ensemble = torch.stack([(draws <= x).double().mean(0) for x in grid])
    spread = torch.trapezoid(F * (1 - F), grid, dim=0)
    torch.testing.assert_close(
        law.score(draws), spread + torch.trapezoid((ensemble - F).square(), grid, dim=0), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(law.least_score(4), 1.25 * spread, rtol=0, atol=1e-6)
    at = 6300
    distance = torch.trapezoid(F[: at + 1], grid[: at + 1], dim=0) + torch.trapezoid(1 - F[at:], grid[at:], dim=0)
    torch.testing.assert_close(law.distance(grid[at].expand(SIZE)), distance, rtol=0, atol=1e-6)


def test_draws_of_the_law_have_the_least_score_on_average():
    law, draws = Marginal.each(posterior(1))[0], posterior(1).sample(4000, seed=6)[:, 0].flatten(1)
    scores = torch.stack([law.score(part) for part in draws.split(8)])
    z = (scores.mean(0) - law.least_score(8)) / (scores.std(0) / len(scores) ** 0.5)
    assert z.abs().max() < 4


def test_sliced_distances():
    a, shift = rand(50, SIZE, seed=7), rand(SIZE, seed=8)
    assert sliced(a, a.flip(0)) < 1e-15
    line = torch.tensor([[0.0, 2.0], [5.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert sliced(line[:, :1], line[:, 1:]) == pytest.approx((10 / 3) ** 0.5)
    lengths = torch.tensor([sliced(rand(9, 400, seed=i), rand(9, 400, seed=i) + shift[0]) for i in range(3)])
    assert (lengths - shift[0].abs()).abs().max() < 4 * shift[0].abs() / (2 * 128) ** 0.5
    assert sliced(a, a + shift) == pytest.approx(sliced(3 * a, 3 * a + shift), rel=1e-12)


def test_a_path_keeps_what_the_result_accounts_for():
    path = Path(limit=8)
    for index in range(1, 41):
        path(index, torch.tensor([[0.0, 100.0], [1000.0, 1100.0]])[:, :, None, None, None] + index)
    assert sorted(path.states) == [8, 16, 24, 32, 40]
    result = SimpleNamespace(diagnostics=SimpleNamespace(draws=torch.tensor([20.0, 12.0])))
    assert path.draws(result, 0, 99).flatten().tolist() == [24, 1024, 32, 1032, 40, 1040]
    assert path.draws(result, 1, 99).flatten().tolist() == [124, 1124, 132, 1132]
    assert path.draws(result, 1, 2).flatten().tolist() == [124, 1132]


def made_of(draws, shift=0.0, width=1.0):
    r"""A result and a path of given draws `(N, B, *shape)`, moved and stretched about their mean."""
    mean = draws.mean(0)
    rows = mean + shift * draws.std(0) + width * (draws - mean)
    sketch, path = Sketch(), Path(len(rows))
    sketch.add(rows)
    for index, row in enumerate(rows):
        path(index + 1, row[None])
    images = draws.shape[1]
    sketches = tuple(sketch.image(image) for image in range(images))
    count = torch.full((images,), float(len(rows)))
    run = Diagnostics((Status.SAMPLED,) * images, {}, torch.ones(images), draws=count, verdict=("",) * images)
    return Result(rows.mean(0), rows[-1:], rows.mean(0), rows.std(0), run, Status.SAMPLED, {}, None, sketches), path


def judged(exact, draws, **change):
    found = figures(*made_of(draws, **change), exact, seed=0)
    return found, [name for name, (low, high) in BARS.items() if not low <= found[name] <= high]


def test_exact_draws_are_within_the_bars():
    exact = posterior()
    found, failures = judged(exact, exact.sample(4000, seed=9))
    assert failures == []
    assert found["coverage 50"] == pytest.approx(0.5, abs=0.01)
    assert found["spread-skill"] == pytest.approx(1, abs=0.02)
    assert found["SW2"] < 2 * found["SW2 exact"]
    assert math.isnan(found["ESS"])


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"width": 0.9}, ["coverage 90"]),
        ({"width": 1.1}, ["coverage 90"]),
        ({"shift": 0.25}, ["coverage 90", "CRPS ratio"]),
        ({"width": 0.7}, ["coverage 90", "CRPS ratio"]),
    ],
)
def test_wrong_draws_are_out_of_the_bars(change, failed):
    exact = posterior()
    found, failures = judged(exact, exact.sample(4000, seed=9), **change)
    assert set(failed) <= set(failures)
    assert found["SW2"] > found["SW2 exact"]


def test_spread_and_skill_of_a_known_error():
    r"""Widths of one half are one half; an error of one deviation divides by the root of two."""
    exact = posterior()
    draws = exact.sample(4000, seed=9)
    assert judged(exact, draws, width=0.5)[0]["spread-skill"] == pytest.approx(0.5, abs=0.02)
    assert judged(exact, draws, shift=1.0)[0]["spread-skill"] == pytest.approx(0.5**0.5, abs=0.02)


def test_a_short_suite(monkeypatch):
    names = ["cifar10/inpainting", "mnist/denoising"]
    monkeypatch.setattr("emprior.verify.images.list_problems", lambda: names)
    (row,) = images("posterior", 200, 1, 1)
    assert (row.suite, row.problem, row.method) == ("images", names[0], "posterior")
    assert row.bars == BARS
    assert row.figures["coverage 50"] == pytest.approx(0.5, abs=0.015)
    assert row.figures["coverage 90"] == pytest.approx(0.9, abs=0.015)
    assert row.figures["CRPS ratio"] == pytest.approx(1, abs=0.01)
    assert row.figures["spread-skill"] == pytest.approx(1, abs=0.02)
    assert row.figures["SW2"] < 1.5 * row.figures["SW2 exact"]


def test_a_prior_is_judged_beside_the_mixture_by_the_same_posteriors(monkeypatch):
    monkeypatch.setattr("emprior.verify.images.list_problems", lambda: ["cifar10/denoising"])
    exact, same = verify(["images"], steps=20, images=1, seed=1, prior="cifar10-mixture")
    assert exact.problem == same.problem == "cifar10/denoising"
    assert (exact.prior, same.prior) == (None, "cifar10-mixture")
    assert same.figures == exact.figures
    _, other = verify(["images"], steps=20, images=1, seed=1, prior=load_prior("cifar10"))
    assert other.figures["SW2 exact"] == exact.figures["SW2 exact"]
    assert other.figures["CRPS ratio"] > BARS["CRPS ratio"][1]
    assert not other.bars


def test_priors_that_cannot_be_judged_are_named():
    with pytest.raises(ValueError, match="for the suite 'images' alone, got gaussian"):
        verify(["gaussian"], prior="cifar10")
    with pytest.raises(ValueError, match=r"'mnist' is of images \(1, 28, 28\), but"):
        verify(["images"], prior="mnist")
    with pytest.raises(ValueError, match="nosuch"):
        verify(["images"], prior="nosuch")


@pytest.mark.slow
def test_rows_are_within_their_bars_or_say_that_their_chains_have_not_mixed():
    rows = list(images("posterior", None, 1, 0))
    assert len(rows) == 8
    assert [row.problem for row in rows if row.failures and row.status != "unmixed"] == []
    assert sum(not row.failures for row in rows) >= 5
