from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from emprior.metrics import coverage, crps, gaussian_coverage, psnr, ssim


def images(batch=3, channels=3, dtype=torch.float32):
    rng = torch.Generator().manual_seed(1)
    truth = torch.rand(batch, channels, 12, 10, generator=rng, dtype=dtype)
    return truth + 0.1 * torch.randn(truth.shape, generator=rng, dtype=dtype), truth


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_equals_scikit_image():
    x, truth = images()
    expected = [peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1.0) for a, b in zip(x, truth, strict=True)]
    torch.testing.assert_close(psnr(x, truth), torch.tensor(expected, dtype=torch.float32))


def test_psnr_does_not_clip_and_takes_any_shape():
    assert psnr(torch.full((1, 5), 3.0), torch.full((1, 5), 2.0)).item() == 0
    assert psnr(torch.ones(2, 5), torch.ones(2, 5)).tolist() == [math.inf] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_scikit_image(dtype, channels):
    x, truth = images(channels=channels, dtype=dtype)
    expected = [
        structural_similarity(a.numpy(), b.numpy(), data_range=1.0, channel_axis=0)
        for a, b in zip(x, truth, strict=True)
    ]
    torch.testing.assert_close(ssim(x, truth), torch.tensor(expected, dtype=dtype))
    torch.testing.assert_close(ssim(truth, truth), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("count", [1, 4, 19, 200])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_calibrated_samples_is_the_level_for_any_count(count, level):
    pixels = 40_000
    draws = normal(count + 1, 2, pixels, seed=count)
    error = 5 * math.sqrt(level * (1 - level) / pixels)
    assert coverage(draws[1:], draws[0], level).sub(level).abs().max() < error


def test_coverage_of_many_samples_is_that_of_the_gaussian_interval():
    samples, truth = 0.5 * normal(4000, 1, 500), normal(1, 500, seed=9)
    expected = gaussian_coverage(torch.zeros(1, 500), torch.full((1, 500), 0.5), truth, 0.9)
    assert coverage(samples, truth, 0.9).item() == pytest.approx(expected.item(), abs=0.02)
    assert expected.item() == pytest.approx(math.erf(0.8224 / math.sqrt(2)), abs=0.07)


def test_coverage_at_the_edges():
    samples = torch.linspace(0, 1, 19)[:, None, None].expand(19, 2, 4)
    truth = torch.tensor([-1.0, 2.0])[:, None].expand(2, 4)
    torch.testing.assert_close(coverage(samples, truth, 0.9), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(coverage(samples, torch.full((2, 4), 0.51), 0.9), torch.ones(2))
    torch.testing.assert_close(coverage(torch.ones(3, 2, 4), torch.ones(2, 4), 0.7), torch.full((2,), 0.7))


def test_gaussian_coverage():
    truth = normal(2, 100_000)
    for level in (0.5, 0.9, 0.99):
        share = gaussian_coverage(torch.zeros_like(truth), torch.ones_like(truth), truth, level)
        assert share.sub(level).abs().max() < 0.01


def test_crps_of_gaussians_is_the_closed_form():
    pixels, scale, shift = 4000, 0.5, 0.3
    samples, truth = scale * normal(6, 1, pixels), torch.full((1, pixels), shift, dtype=torch.float64)
    z = shift / scale
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    expected = scale * (z * math.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    per_pixel = torch.stack([crps(samples[..., i : i + 1], truth[..., i : i + 1]) for i in range(0, pixels, 10)])
    error = per_pixel.std().item() / math.sqrt(pixels)
    assert crps(samples, truth).item() == pytest.approx(expected, abs=4 * error)


def test_crps_is_the_double_sum():
    samples, truth = normal(5, 2, 3), normal(2, 3, seed=1)
    pairs = (samples[:, None] - samples[None]).abs().sum((0, 1)) / (2 * 5 * 4)
    expected = ((samples - truth).abs().mean(0) - pairs).mean(1)
    torch.testing.assert_close(crps(samples, truth), expected)


def test_batch_equals_singles_and_dtype_follows():
    x, truth = images(dtype=torch.float64)
    samples = torch.stack([x, truth, x + 0.1])
    for metric in (psnr, ssim):
        torch.testing.assert_close(
            metric(x, truth), torch.cat([metric(x[i : i + 1], truth[i : i + 1]) for i in range(3)])
        )
    for value in (psnr(x, truth), ssim(x, truth), crps(samples, truth), coverage(samples, truth, 0.5)):
        assert value.shape == (3,)
        assert value.dtype == torch.float64
    assert psnr(x.bfloat16(), truth.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_shapes_that_differ(metric):
    x, truth = images()
    with pytest.raises(
        ValueError, match=r"x has shape \(3, 3, 12, 10\) and truth has shape \(3, 12, 10\).*truth\[None\]"
    ):
        metric(x, truth[0])


def test_ssim_of_what_is_too_small():
    with pytest.raises(ValueError, match="at least 7 x 7"):
        ssim(torch.rand(1, 3, 6, 9), torch.rand(1, 3, 6, 9))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        ssim(torch.rand(1, 9), torch.rand(1, 9))


def test_samples_that_do_not_fit():
    with pytest.raises(ValueError, match=r"samples have shape \(3, 12, 10\) and truth has shape"):
        crps(torch.rand(3, 12, 10), torch.rand(3, 12, 10))
    with pytest.raises(ValueError, match="there are 1 samples, but at least 2 are needed; raise samples"):
        crps(torch.rand(1, 3, 12), torch.rand(3, 12))
    with pytest.raises(ValueError, match="std has shape"):
        gaussian_coverage(torch.rand(2, 3), torch.rand(2), torch.rand(2, 3), 0.5)


@pytest.mark.parametrize("level", [0, 1, 90])
def test_levels_are_probabilities(level):
    with pytest.raises(ValueError, match=f"level is {level}, but it is a probability"):
        coverage(torch.rand(4, 1, 2), torch.rand(1, 2), level)
    with pytest.raises(ValueError, match="level is"):
        gaussian_coverage(torch.rand(1, 2), torch.rand(1, 2), torch.rand(1, 2), level)
