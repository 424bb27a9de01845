r"""GaussianPrior against dense linear algebra in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from emprior.priors.gaussian import GaussianPrior

SHAPE = (2, 3, 4)
SIZE = 24
EYE = torch.eye(SIZE, dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(size, seed=1):
    factor = rand(size, size, seed=seed) / size**0.5
    return factor @ factor.mT + 0.05 * torch.eye(size, dtype=torch.float64)


def even_spectrum():
    spectrum = rand(*SHAPE, seed=2).exp()
    return (spectrum + spectrum.flip(-2, -1).roll((1, 1), (-2, -1))) / 2


def make(kind):
    mean = rand(*SHAPE, seed=3)
    if kind == "full":
        return GaussianPrior(mean, spd(SIZE))
    if kind == "variances":
        return GaussianPrior(mean, rand(*SHAPE, seed=4).exp())
    return GaussianPrior.stationary(mean, spectrum=even_spectrum())


@pytest.fixture(params=["full", "variances", "stationary"])
def prior(request):
    return make(request.param)


def circulant(kernel):
    C, H, W = kernel.shape
    out = torch.zeros(C, H, W, C, H, W, dtype=kernel.dtype)
    for h in range(H):
        for w in range(W):
            for c in range(C):
                out[c, h, w, c] = kernel[c].roll((h, w), (0, 1))
    return out.reshape(C * H * W, -1)


def linear(matrix):
    return lambda x: x.flatten(1).to(matrix.dtype) @ matrix.mT


def test_the_covariance_is_the_one_given():
    torch.testing.assert_close(make("full").covariance_matrix(), spd(SIZE), rtol=0, atol=1e-13)
    variances = rand(*SHAPE, seed=4).exp()
    assert torch.equal(make("variances").covariance_matrix(), variances.flatten().diag())
    flat = GaussianPrior(rand(*SHAPE, seed=3), variances.flatten())
    assert torch.equal(flat.covariance_matrix(), make("variances").covariance_matrix())


def test_stationary_equals_the_circulant_matrix_of_its_kernel():
    mean, kernel = rand(*SHAPE, seed=3), torch.fft.ifft2(even_spectrum()).real
    dense = GaussianPrior(mean, circulant(kernel))
    x = rand(3, *SHAPE, seed=5)
    for fast in (GaussianPrior.stationary(mean, kernel), GaussianPrior.stationary(mean, spectrum=even_spectrum())):
        torch.testing.assert_close(fast.covariance_matrix(), circulant(kernel), rtol=0, atol=1e-13)
        torch.testing.assert_close(fast(x), dense(x), rtol=1e-11, atol=0)
        torch.testing.assert_close(fast.value_and_grad(x)[1], dense.value_and_grad(x)[1], rtol=0, atol=1e-11)
        torch.testing.assert_close(fast.denoise(x, 0.4), dense.denoise(x, 0.4), rtol=0, atol=1e-12)
        assert fast.curvature == pytest.approx(dense.curvature, rel=1e-10)
    shared = GaussianPrior.stationary(mean, kernel[0])
    torch.testing.assert_close(shared.covariance_matrix(), circulant(kernel[:1].expand(SHAPE)), rtol=0, atol=1e-13)


def test_energy_is_half_the_squared_mahalanobis_distance(prior):
    x = rand(4, *SHAPE, seed=6)
    v = (x - prior.mean).flatten(1)
    precision = torch.linalg.inv(prior.covariance_matrix())
    torch.testing.assert_close(prior(x), 0.5 * ((v @ precision) * v).sum(1), rtol=1e-10, atol=0)
    assert prior(prior.mean[None]).item() == 0
    assert prior.curvature == pytest.approx(float(torch.linalg.eigvalsh(precision).max()), rel=1e-9)


def test_gradients(prior):
    x = rand(2, *SHAPE, seed=7)
    assert torch.autograd.gradcheck(prior, x.clone().requires_grad_())
    value, gradient = prior.value_and_grad(x)
    expected_value, expected = super(GaussianPrior, prior).value_and_grad(x)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    tracked = x.clone().requires_grad_()
    assert not any(out.requires_grad for out in prior.value_and_grad(tracked))
    assert tracked.requires_grad
    assert tracked.grad is None


def test_a_batch_equals_its_images(prior):
    x, sigma = rand(2, *SHAPE, seed=8), torch.tensor([0.2, 0.7], dtype=torch.float64)
    for i in range(2):
        one = x[i : i + 1]
        torch.testing.assert_close(prior(x)[i], prior(one)[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(prior.value_and_grad(x)[1][i], prior.value_and_grad(one)[1][0], rtol=0, atol=1e-10)
        torch.testing.assert_close(prior.denoise(x, sigma)[i], prior.denoise(one, sigma[i])[0], rtol=0, atol=1e-10)


def test_denoise_is_the_wiener_filter(prior):
    x, sigma = rand(2, *SHAPE, seed=9), torch.tensor([0.3, 1.5], dtype=torch.float64)
    C, m = prior.covariance_matrix(), prior.mean.flatten()
    expected = torch.stack(
        [m + C @ torch.linalg.solve(C + s**2 * EYE, row - m) for s, row in zip(sigma, x.flatten(1), strict=True)]
    )
    torch.testing.assert_close(prior.denoise(x, sigma).flatten(1), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(prior.denoise(x, 0.3)[:1], prior.denoise(x, sigma)[:1], rtol=0, atol=1e-12)
    torch.testing.assert_close(prior.denoise(x, 0.0), x, rtol=0, atol=1e-12)


def test_sample_moments(prior):
    n = 4000
    x = prior.sample(n, seed=1).flatten(1)
    C = prior.covariance_matrix()
    z = (x.mean(0) - prior.mean.flatten()) / (C.diagonal() / n).sqrt()
    assert z.abs().max() < 4.5
    spread = (C.square() + C.diagonal()[:, None] * C.diagonal()) / n
    z = (x.mT.cov() - C) / spread.sqrt()
    assert z.abs().max() < 5
    assert 0.8 < z.square().mean() < 1.2
    assert float(prior(x.reshape(-1, *SHAPE)).mean()) == pytest.approx(SIZE / 2, abs=5 * (SIZE / 2 / n) ** 0.5)


def test_samples_depend_on_their_seed_and_index_alone(prior):
    state = torch.get_rng_state()
    many = prior.sample(5, seed=3)
    torch.testing.assert_close(many[:2], prior.sample(2, seed=3), rtol=0, atol=1e-12)
    assert not torch.allclose(many, prior.sample(5, seed=4))
    assert not torch.allclose(many[0], many[1])
    posterior = prior.posterior(lambda x: x, rand(2, *SHAPE), 0.5)
    draws = posterior.sample(4, seed=3)
    assert draws.shape == (4, 2, *SHAPE)
    torch.testing.assert_close(draws[:2], posterior.sample(2, seed=3), rtol=0, atol=1e-12)
    alone = prior.posterior(lambda x: x, rand(2, *SHAPE)[:1], 0.5)
    torch.testing.assert_close(draws[:, :1], alone.sample(4, seed=3), rtol=0, atol=1e-12)
    twins = prior.posterior(lambda x: x, rand(1, *SHAPE).expand(2, *SHAPE), 0.5).sample(1)[0]
    assert not torch.allclose(twins[0], twins[1])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("rows", "sigma"), [(7, 0.3), (24, 1e-3), (40, 0.1)])
def test_posterior_is_the_information_form(prior, rows, sigma):
    A, y = rand(rows, SIZE, seed=10), rand(3, rows, seed=11)
    posterior = prior.posterior(linear(A), y, sigma)
    precision = torch.linalg.inv(prior.covariance_matrix())
    covariance = torch.linalg.inv(A.mT @ A / sigma**2 + precision)
    torch.testing.assert_close(posterior.covariance, covariance, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(posterior.std.flatten(), covariance.diagonal().sqrt(), rtol=1e-6, atol=0)
    assert posterior.mean.shape == (3, *SHAPE)
    assert posterior.std.shape == SHAPE
    m = posterior.mean.flatten(1)
    data, pull = (m @ A.mT - y) @ A / sigma**2, (m - prior.mean.flatten()) @ precision
    assert (data + pull).norm() < 1e-8 * (y @ A / sigma**2).norm()
    torch.testing.assert_close(
        prior.value_and_grad(posterior.mean)[1].flatten(1),
        -data,
        rtol=1e-6,
        atol=1e-8 * float((y @ A).norm()) / sigma**2,
    )


@pytest.mark.parametrize("rows", [7, 40])
def test_log_evidence_is_the_density_of_the_measurements(prior, rows):
    A, y = rand(rows, SIZE, seed=10), rand(3, rows, seed=11)
    covariance = A @ prior.covariance_matrix() @ A.mT + 0.09 * torch.eye(rows, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(A @ prior.mean.flatten(), covariance)
    torch.testing.assert_close(prior.posterior(linear(A), y, 0.3).log_evidence, law.log_prob(y), rtol=1e-9, atol=0)
    blank = torch.cat([A, torch.zeros(5, SIZE)])
    padded = prior.posterior(linear(blank), torch.cat([y, torch.zeros(3, 5)], 1), 0.3)
    torch.testing.assert_close(padded.log_evidence, law.log_prob(y), rtol=1e-9, atol=0)


def test_posterior_samples_have_its_moments():
    prior, n = make("full"), 4000
    A, y = rand(7, SIZE, seed=10), rand(2, 7, seed=11)
    posterior = prior.posterior(linear(A), y, 1.0)
    draws = posterior.sample(n, seed=2).flatten(2)
    C = posterior.covariance
    z = (draws.mean(0) - posterior.mean.flatten(1)) / (C.diagonal() / n).sqrt()
    assert z.abs().max() < 4.5
    spread = ((C.square() + C.diagonal()[:, None] * C.diagonal()) / n).sqrt()
    for b in range(2):
        assert ((draws[:, b].mT.cov() - C) / spread).abs().max() < 5


def test_posterior_of_a_blind_operator_is_the_prior(prior):
    posterior = prior.posterior(lambda x: 0 * x, torch.zeros(1, *SHAPE, dtype=torch.float64), 0.1)
    torch.testing.assert_close(posterior.mean[0], prior.mean)
    torch.testing.assert_close(posterior.covariance, prior.covariance_matrix(), rtol=0, atol=1e-13)
    assert posterior.log_evidence.item() == 0


def test_posterior_takes_complex_and_listed_measurements():
    prior = make("full")
    x = rand(2, *SHAPE, seed=12)
    both = lambda x: [torch.fft.rfft2(x), x.mean((2, 3))]  # noqa: E731
    posterior = prior.posterior(both, both(x), 0.1)
    columns = [torch.view_as_real(torch.fft.rfft2(EYE.reshape(-1, *SHAPE))).flatten(1), EYE.reshape(-1, 2, 12).mean(2)]
    A = torch.cat(columns, 1).mT
    y = x.flatten(1) @ A.mT
    expected = prior.posterior(linear(A), y, 0.1)
    torch.testing.assert_close(posterior.mean, expected.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(posterior.covariance, expected.covariance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["Inpainting", "BlurFFT", "Blur", "Downsampling", "CompressedSensing", "Denoising"])
def test_posterior_of_deepinv_operators(name):
    dinv = pytest.importorskip("deepinv")
    shape = (1, 8, 8)
    noise, generator = dinv.physics.GaussianNoise(0.1), torch.Generator().manual_seed(0)
    blur = dinv.physics.functional.blur.gaussian_blur(sigma=(0.7, 0.7))
    physics = {
        "Inpainting": lambda: dinv.physics.Inpainting(shape, mask=0.5, noise_model=noise, rng=generator),
        "BlurFFT": lambda: dinv.physics.BlurFFT(shape, filter=blur, noise_model=noise),
        "Blur": lambda: dinv.physics.Blur(filter=blur, padding="circular", noise_model=noise),
        "Downsampling": lambda: dinv.physics.Downsampling(
            img_size=shape, filter="bicubic", factor=2, noise_model=noise
        ),
        "CompressedSensing": lambda: dinv.physics.CompressedSensing(
            m=20, img_size=shape, noise_model=noise, rng=generator
        ),
        "Denoising": lambda: dinv.physics.Denoising(noise),
    }[name]()
    decay = 2.0 ** -torch.fft.fftfreq(8, 1 / 8).abs()
    prior = GaussianPrior.stationary(torch.full(shape, 0.5), spectrum=(decay[:, None] * decay)[None])
    y = physics.A(prior.sample(2, seed=0))
    y = y + 0.1 * torch.randn(y.shape, generator=generator)
    posterior = prior.posterior(physics, y, 0.1)
    assert posterior.mean.dtype == torch.float32
    x = posterior.mean
    pull = prior.value_and_grad(x)[1]
    data = physics.A_adjoint(physics.A(x) - y) / 0.1**2
    assert (data + pull).norm() < 1e-3 * (physics.A_adjoint(y) / 0.1**2).norm()
    precise = prior.double().posterior(physics, y.double(), 0.1)
    assert precise.mean.dtype == torch.float64
    torch.testing.assert_close(precise.mean.float(), x, rtol=0, atol=1e-4)


def test_types_follow_the_prior_and_the_measurements():
    prior = make("full").float()
    x = prior.sample(2)
    outputs = [prior(x), *prior.value_and_grad(x), prior.denoise(x, 0.1), prior.covariance_matrix()]
    posterior = prior.posterior(lambda x: x, x, 0.1)
    outputs += [posterior.mean, posterior.std, posterior.covariance, posterior.sample(1), posterior.log_evidence]
    assert {out.dtype for out in outputs} == {torch.float32}
    assert make("full")(rand(1, *SHAPE)).dtype == torch.float64
    torch.testing.assert_close(prior(x).double(), make("full")(x.double()), rtol=1e-3, atol=0)


def test_arguments_are_not_shared():
    mean, variances = torch.zeros(SHAPE), torch.ones(SHAPE)
    prior = GaussianPrior(mean, variances)
    mean += 1
    variances += 1
    assert prior(torch.ones(1, *SHAPE)).item() == SIZE / 2


@pytest.mark.parametrize("order", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_priors_of_one_covariance_do_not_share_it(order):
    covariance, mean = make("stationary").covariance.float(), rand(*SHAPE, seed=3)
    priors = {dtype: GaussianPrior(mean.to(dtype), covariance) for dtype in order}
    assert covariance.values.dtype == torch.float32
    x = rand(2, *SHAPE, seed=5)
    for dtype, prior in priors.items():
        assert prior(x.to(dtype)).dtype == prior.covariance.values.dtype == dtype
        torch.testing.assert_close(prior(x.to(dtype)).double(), make("stationary")(x), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (lambda: torch.ones(3, 3), r"shape \(3, 3\), but images have shape \(2, 3, 4\)"),
        (lambda: EYE + EYE.roll(1, 0), r"not symmetric.* pass \(C \+ C.mT\) / 2"),
        (lambda: EYE - 0.5, "not positive definite.*add a small variance"),
        (lambda: torch.ones(24, 24), "not positive definite"),
        (lambda: torch.zeros(SHAPE), "not positive definite"),
        (lambda: EYE * math.nan, "24 entries|576 entries"),
        (lambda: torch.ones(SHAPE, dtype=torch.int64), "int64.*floating-point"),
    ],
)
def test_bad_covariances(covariance, message):
    with pytest.raises(ValueError, match=message):
        GaussianPrior(torch.zeros(SHAPE), covariance())


def test_bad_stationary_covariances():
    mean = torch.zeros(SHAPE)
    kernel = torch.fft.ifft2(even_spectrum()).real
    with pytest.raises(ValueError, match="exactly one"):
        GaussianPrior.stationary(mean)
    with pytest.raises(ValueError, match=r"kernel is not even.*ifftshift"):
        GaussianPrior.stationary(mean, torch.fft.fftshift(kernel + rand(*SHAPE).abs(), (-2, -1)))
    with pytest.raises(ValueError, match="spectrum is not even"):
        GaussianPrior.stationary(mean, spectrum=rand(*SHAPE).exp())
    with pytest.raises(ValueError, match=r"kernel has shape \(2, 3\)"):
        GaussianPrior.stationary(mean, torch.ones(2, 3))
    with pytest.raises(ValueError, match="not positive definite"):
        GaussianPrior.stationary(mean, -kernel)


def test_bad_images():
    prior = make("full")
    with pytest.raises(ValueError, match=r"x has shape \(1, 3, 4\).*\(B, 2, 3, 4\)"):
        prior(torch.zeros(1, 3, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"float32, but this prior is torch.float64.*prior.to\("):
        prior(torch.zeros(1, *SHAPE))
    with pytest.raises(ValueError, match=r"sigma has shape \(3,\).*one for each of 2 images"):
        prior.denoise(rand(2, *SHAPE), torch.ones(3))
    with pytest.raises(ValueError, match="not negative"):
        prior.denoise(rand(2, *SHAPE), -1.0)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (lambda x: x + 1, r"not linear, \|A\(0\)\| is 1.*subtract the offset"),
        (lambda x: x.abs(), "not linear.*emprior.solve"),
        (lambda x: x.clamp(-0.5, 0.5), "not linear"),
        (lambda x: x / (1 + x.abs().amax()), "not linear"),
        (lambda x: x[:, :1], r"y has shape .*to measurements \[\(1, 1, 3, 4\)\]"),
        (lambda x: x @ torch.ones(5, 5), "fails on images of shape"),
        (lambda x: x * torch.ones(3, 1, 1, 1), "maps 1 image to 3 measurements"),
        (EYE, "operator is a Tensor.*lambda x"),
    ],
)
def test_bad_operators(operator, message):
    with pytest.raises(ValueError, match=message):
        make("full").posterior(operator, torch.zeros(2, *SHAPE), 0.1)


def test_bad_measurements():
    with pytest.raises(ValueError, match="any batch size in front"):
        make("full").posterior(lambda x: x, torch.zeros(SHAPE), 0.1)
    for sigma in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="pass a positive number"):
            make("full").posterior(lambda x: x, torch.zeros(1, *SHAPE), sigma)


def test_analytic_priors_import_without_deepinv():
    code = "import sys, emprior.priors.gaussian, emprior.priors.mixture; sys.exit('deepinv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
