"""Intervals against Gaussian quantiles, regions against chi-square, and calibration against its finite-sample law."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy import stats

from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.sketch import Sketch
from emprior.uncertainty import Conformal, coverage, exceedance, hpd_member, interval


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_sketch(x):
    sketch = Sketch(128)
    sketch.add(x)
    return sketch


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("source", [torch.as_tensor, as_sketch], ids=["samples", "sketch"])
def test_interval_has_the_quantiles_of_the_posterior(level, source):
    count, pixels = 4_000, 400
    mean, std = normal(1, pixels, seed=1), normal(1, pixels, seed=2).exp()
    low, high = interval(source(mean + std * normal(count, 1, pixels)), level)
    for bound, q in ((low, (1 - level) / 2), (high, (1 + level) / 2)):
        ranks = torch.special.ndtr((bound - mean) / std)
        assert bound.shape == (1, pixels)
        error = math.hypot(math.sqrt(q * (1 - q) / count), 0.0 if source is torch.as_tensor else 0.7 / 128)
        assert (ranks - q).abs().max() < 4.5 * error
        assert (ranks.mean() - q).abs() < 5 * error / math.sqrt(pixels) + (
            0 if source is torch.as_tensor else 0.3 / 128
        )


def test_interval_of_samples_is_exact():
    x = normal(301, 2, 5)
    low, high = interval(x, 0.8)
    torch.testing.assert_close(low, x.quantile(0.1, 0))
    torch.testing.assert_close(high, x.quantile(0.9, 0))


def test_intervals_of_few_samples_fall_short_as_is_said():
    count, level, pixels = 15, 0.8, 40_000
    u = torch.rand(count + 1, 1, pixels, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    share = coverage(*interval(u[1:], level), u[0]).item()
    expected = level * (count - 1) / (count + 1)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / pixels)


@pytest.mark.parametrize("source", [torch.as_tensor, as_sketch], ids=["samples", "sketch"])
def test_exceedance_is_the_tail_of_the_posterior(source):
    count, threshold = 4_000, torch.linspace(-2, 2, 50, dtype=torch.float64)[None]
    share = exceedance(source(normal(count, 1, 50)), threshold)
    exact = 1 - torch.special.ndtr(threshold)
    error = (exact * (1 - exact) / count).sqrt() + (0 if source is torch.as_tensor else 0.7 / 128)
    assert share.shape == (1, 50)
    assert ((share - exact) / error).abs().max() < 4


def test_coverage_counts_the_bounds_in():
    low, high = torch.zeros(2, 1, 1, 4), torch.ones(2, 1, 1, 4)
    truth = torch.tensor([[0.0, 1.0, 0.5, 1.1], [-0.1, 2.0, -3.0, 1.0]]).reshape(2, 1, 1, 4)
    assert coverage(low, high, truth).tolist() == [0.75, 0.25]


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_region_of_highest_density_holds_its_share(level):
    trials, count, dimension = 4_000, 49, 6
    energies = normal(count + 1, trials, dimension).square().sum(-1) / 2
    share = hpd_member(energies[0], energies[1:], level).double().mean().item()
    exact = math.ceil(level * (count + 1)) / (count + 1)
    assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / trials)


def test_the_region_of_highest_density_of_a_gaussian_posterior(case, field):
    operator, y, posterior = case
    energy = Posterior(GaussianFidelity(operator, y), field)
    draws = posterior.sample(2_000, seed=5)
    energies = energy(draws.flatten(0, 1)).reshape(-1, 2)
    floor, radius = energy(posterior.mean), stats.chi2.ppf(0.9, 64) / 2
    direction = draws[0] - posterior.mean
    length = (2 * (energies[0] - floor)).sqrt().reshape(2, 1, 1, 1)
    for factor, member in ((0.0, True), (0.985, True), (1.015, False), (3.0, False)):
        x = posterior.mean + factor * math.sqrt(2 * radius) * direction / length
        assert hpd_member(energy(x), energies, 0.9).tolist() == [member] * 2


def test_too_few_samples_rule_no_image_out():
    energies = torch.arange(8.0)[:, None]
    assert hpd_member(torch.tensor([1e9]), energies, 0.9).tolist() == [True]
    assert hpd_member(torch.tensor([1e9]), torch.arange(9.0)[:, None], 0.9).tolist() == [False]


@pytest.mark.parametrize(("images", "pixels"), [(9, 1), (30, 1), (12, 25), (60, 25)])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_calibrated_intervals_cover_between_their_bounds(images, pixels, level):
    """Pixels depend on each other and the widths are wrong; only the images are exchangeable."""
    trials = 1_500
    common, own = normal(trials, images + 1, 1, seed=1), normal(trials, images + 1, pixels, seed=2)
    width = 0.2 + torch.linspace(0, 1, pixels, dtype=torch.float64).expand_as(own)
    truth = (common + own) * (1 + 3 * normal(trials, images + 1, 1, seed=3).abs())
    mean = torch.zeros_like(truth)
    shares = []
    for m, w, x in zip(mean, width, truth, strict=True):
        fitted = Conformal.fit(m[1:], w[1:], x[1:], level)
        shares.append(coverage(*fitted.apply(m[:1], w[:1]), x[:1]))
    share = torch.cat(shares)
    error = share.std().item() / math.sqrt(trials)
    assert level - 3.5 * error < share.mean() < level + 2 / (images + 1) + 3.5 * error
    if pixels == 1:
        exact = math.ceil(round(level * (images + 1), 9)) / (images + 1)
        assert abs(share.mean() - exact) < 3.5 * error


def test_the_factor_is_the_gaussian_quantile_of_a_right_posterior():
    images, pixels, level = 200, 500, 0.9
    mean, std = normal(images, pixels, seed=1), normal(images, pixels, seed=2).exp()
    fitted = Conformal.fit(mean, std, mean + std * normal(images, pixels, seed=3), level)
    z = stats.norm.ppf((1 + level) / 2)
    error = math.sqrt(level * (1 - level) / (images * pixels)) / (2 * stats.norm.pdf(z))
    target = level * (images + 1) / images
    assert abs(fitted.scale - stats.norm.ppf((1 + target) / 2)) < 4 * error
    half = Conformal.fit(mean, 2 * std, mean + std * normal(images, pixels, seed=3), level)
    assert half.scale == pytest.approx(fitted.scale / 2)


def test_the_factor_is_the_right_order_statistic():
    truth = torch.arange(1.0, 21.0)[:, None]
    for level, rank in ((0.9, 19), (0.55, 12), (0.5, 11), (0.05, 2), (20 / 21, 20)):
        assert Conformal.fit(torch.zeros(20, 1), torch.ones(20, 1), truth, level).scale == rank


def test_pixels_without_width():
    mean, truth, width = torch.zeros(30, 4), torch.ones(30, 4), torch.ones(30, 4)
    width[:, 0], truth[:, 0] = 0, 0
    assert Conformal.fit(mean, width, truth, 0.9).scale == 1
    truth[:, 0] = 0.1
    with pytest.raises(ValueError, match=r"no factor reaches a level of 0.9.*width.clamp"):
        Conformal.fit(mean, width, truth, 0.9)
    assert Conformal.fit(mean, width, truth, 0.5).scale == 1


def test_a_calibration_is_kept_as_plain_numbers(tmp_path):
    fitted = Conformal.fit(torch.zeros(20, 3), torch.ones(20, 3), normal(20, 3), 0.9)
    fitted.save(tmp_path / "calibration.json")
    assert Conformal.load(tmp_path / "calibration.json") == fitted
    assert json.loads((tmp_path / "calibration.json").read_text())["images"] == 20
    (tmp_path / "other.json").write_text('{"scale": 1}')
    with pytest.raises(ValueError, match=r"other.json holds no calibration: 'format'"):
        Conformal.load(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError):
        Conformal.load(tmp_path / "missing.json")


def test_what_is_wrong_is_named():
    x = torch.ones(8, 4)
    with pytest.raises(ValueError, match=r"8 calibration images cannot promise a level of 0.9: pass at least 9, or"):
        Conformal.fit(x, x, x, 0.9)
    with pytest.raises(ValueError, match="negative or NaN"):
        Conformal.fit(x, -x, x, 0.5)
    with pytest.raises(ValueError, match=r"mean \(8, 4\), width \(8, 4\), truth \(4,\)"):
        Conformal.fit(x, x, x[0], 0.5)
    with pytest.raises(ValueError, match=r"low \(8, 4\), high \(8, 4\), truth \(7, 4\)"):
        coverage(x, x, x[1:])
    with pytest.raises(ValueError, match=r"energy has shape \(2,\) and energies have shape \(3, 1\)"):
        hpd_member(torch.ones(2), torch.ones(3, 1), 0.9)
    for call in (lambda level: interval(x[None], level), lambda level: Conformal.fit(x, x, x, level)):
        with pytest.raises(ValueError, match="level is 90, but it is a probability"):
            call(90)
    with pytest.raises(ValueError, match="has seen no samples"):
        interval(Sketch(), 0.9)
