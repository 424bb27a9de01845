r"""GaussianMixturePrior against torch.distributions, quadrature and dense linear algebra in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from emprior.priors.gaussian import GaussianPrior
from emprior.priors.mixture import GaussianMixturePrior

SHAPE = (2, 2, 3)
K, SIZE, RANK = 3, 12, 4
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
NOISE = torch.tensor([0.5, 0.7, 0.4], dtype=torch.float64)
EYE = torch.eye(SIZE, dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEANS, FACTORS = rand(K, *SHAPE, seed=1), rand(K, SIZE, RANK, seed=2)


def make(kind):
    if kind == "full":
        factor = rand(K, SIZE, SIZE, seed=3) / SIZE**0.5
        return GaussianMixturePrior(WEIGHTS, MEANS, factor @ factor.mT + 0.3 * EYE)
    if kind == "variances":
        return GaussianMixturePrior(WEIGHTS, MEANS, rand(K, *SHAPE, seed=4).exp())
    return GaussianMixturePrior.low_rank(WEIGHTS, MEANS, FACTORS, NOISE)


@pytest.fixture(params=["full", "variances", "low_rank"])
def prior(request):
    return make(request.param)


def log_joint(prior, x, sigma=0.0):
    laws = MultivariateNormal(prior.means.flatten(1), prior.covariance_matrices() + sigma**2 * EYE)
    return prior.weights.log() + laws.log_prob(x.flatten(1)[:, None])


def linear(matrix):
    return lambda x: x.flatten(1).to(matrix.dtype) @ matrix.mT


def test_the_covariances_are_those_given():
    dense = FACTORS @ FACTORS.mT + NOISE.square()[:, None, None] * EYE
    torch.testing.assert_close(make("low_rank").covariance_matrices(), dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        GaussianMixturePrior.low_rank(WEIGHTS, MEANS, FACTORS, 0.5).covariance_matrices(),
        FACTORS @ FACTORS.mT + 0.25 * EYE,
        rtol=0,
        atol=1e-12,
    )
    variances = rand(K, *SHAPE, seed=4).exp()
    for given in (variances, variances.flatten(1)):
        matrices = GaussianMixturePrior(WEIGHTS, MEANS, given).covariance_matrices()
        assert torch.equal(matrices, torch.diag_embed(variances.flatten(1)))


@pytest.mark.parametrize("rank", [1, RANK, SIZE, SIZE + 5])
def test_low_rank_equals_full(rank):
    factors = rand(K, SIZE, rank, seed=5)
    thin = GaussianMixturePrior.low_rank(WEIGHTS, MEANS, factors, 0.3)
    full = GaussianMixturePrior(WEIGHTS, MEANS, factors @ factors.mT + 0.09 * EYE)
    x, y = rand(4, *SHAPE, seed=6), rand(2, 5, seed=7)
    torch.testing.assert_close(thin(x), full(x), rtol=1e-10, atol=0)
    torch.testing.assert_close(thin.value_and_grad(x)[1], full.value_and_grad(x)[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(thin.denoise(x, 0.4), full.denoise(x, 0.4), rtol=0, atol=1e-11)
    torch.testing.assert_close(thin.sample(20), full.sample(20), rtol=0, atol=1e-9)
    assert thin.curvature == pytest.approx(full.curvature, rel=1e-9)
    ours, theirs = (prior.posterior(linear(rand(5, SIZE, seed=8)), y, 0.2) for prior in (thin, full))
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.std, theirs.std, rtol=0, atol=1e-9)


def test_energy_is_normalised(prior):
    x = rand(5, *SHAPE, seed=9)
    torch.testing.assert_close(prior(x), -log_joint(prior, x).logsumexp(1), rtol=1e-11, atol=0)
    far = 1e3 * x
    assert bool(prior(far).isfinite().all())
    line = GaussianMixturePrior(WEIGHTS, rand(K, 1, seed=1), torch.tensor([[0.1], [1.0], [2.0]], dtype=torch.float64))
    grid = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    assert torch.trapezoid((-line(grid[:, None])).exp(), grid).item() == pytest.approx(1, abs=1e-9)


def test_one_component_is_a_gaussian():
    one, x = make("full"), rand(3, *SHAPE, seed=9)
    C = one.covariance_matrices()[0]
    mixture, gaussian = GaussianMixturePrior(WEIGHTS[:1] / 0.2, MEANS[:1], C[None]), GaussianPrior(MEANS[0], C)
    constant = 0.5 * torch.logdet(2 * math.pi * C)
    torch.testing.assert_close(mixture(x), gaussian(x) + constant, rtol=1e-11, atol=0)
    ours, theirs = (prior.posterior(lambda x: 2 * x, x, 0.3) for prior in (mixture, gaussian))
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.std, theirs.std.expand(3, *SHAPE), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.log_evidence, theirs.log_evidence, rtol=1e-12, atol=0)


def test_curvature_bounds_the_hessian(prior):
    precisions = torch.linalg.inv(prior.covariance_matrices())
    assert prior.curvature == pytest.approx(float(torch.linalg.eigvalsh(precisions).max()), rel=1e-9)
    for x in prior.sample(5, seed=1):
        hessian = torch.func.hessian(lambda v: prior(v.reshape(1, *SHAPE))[0])(x.flatten())
        assert torch.linalg.eigvalsh(hessian).max() <= prior.curvature * (1 + 1e-9)


def test_gradients(prior):
    x = (MEANS[:2] + MEANS[1:]) / 2
    assert (prior.responsibilities(x).amax(1) < 1 - 1e-6).any()
    assert torch.autograd.gradcheck(prior, x.clone().requires_grad_())
    value, gradient = prior.value_and_grad(x)
    expected_value, expected = super(GaussianMixturePrior, prior).value_and_grad(x)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    assert not any(out.requires_grad for out in prior.value_and_grad(x.clone().requires_grad_()))


def test_a_batch_equals_its_images(prior):
    x, sigma = rand(2, *SHAPE, seed=8), torch.tensor([0.2, 0.7], dtype=torch.float64)
    for i in range(2):
        one = x[i : i + 1]
        torch.testing.assert_close(prior(x)[i], prior(one)[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(prior.value_and_grad(x)[1][i], prior.value_and_grad(one)[1][0], rtol=0, atol=1e-10)
        torch.testing.assert_close(prior.denoise(x, sigma)[i], prior.denoise(one, sigma[i])[0], rtol=0, atol=1e-10)


def test_denoise_is_the_weighted_wiener_filter_and_tweedie(prior):
    x, sigma = prior.sample(2, seed=4), torch.tensor([0.6, 1.5], dtype=torch.float64)
    expected = []
    for s, row in zip(sigma, x.flatten(1), strict=True):
        weights = log_joint(prior, row[None], s)[0].softmax(0)
        m, C = prior.means.flatten(1), prior.covariance_matrices()
        filtered = [m[k] + C[k] @ torch.linalg.solve(C[k] + s**2 * EYE, row - m[k]) for k in range(K)]
        expected.append(weights @ torch.stack(filtered))
        torch.testing.assert_close(prior.responsibilities(x, sigma)[len(expected) - 1], weights, rtol=0, atol=1e-11)
    torch.testing.assert_close(prior.denoise(x, sigma).flatten(1), torch.stack(expected), rtol=0, atol=1e-11)
    torch.testing.assert_close(prior.denoise(x, 0.0), x, rtol=0, atol=1e-11)
    smooth = GaussianMixturePrior(WEIGHTS, MEANS, prior.covariance_matrices() + 0.36 * EYE)
    torch.testing.assert_close(prior.denoise(x, 0.6), x - 0.36 * smooth.value_and_grad(x)[1], rtol=0, atol=1e-10)


def test_denoise_against_quadrature():
    weights, means = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([[-1.0], [1.5]], dtype=torch.float64)
    prior = GaussianMixturePrior(weights, means, torch.tensor([[0.2], [0.5]], dtype=torch.float64))
    x, sigma = torch.tensor([[0.1], [0.8], [-3.0]], dtype=torch.float64), 0.9
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = (-prior(grid[:, None]) - 0.5 * ((x - grid) / sigma).square()).exp()
    expected = torch.trapezoid(density * grid, grid) / torch.trapezoid(density, grid)
    torch.testing.assert_close(prior.denoise(x, sigma)[:, 0], expected, rtol=0, atol=1e-9)


def test_posterior_against_quadrature():
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [0.0, 2.0]], dtype=torch.float64)
    factor = rand(3, 2, 2, seed=11)
    prior = GaussianMixturePrior(WEIGHTS, means, factor @ factor.mT * 0.2 + 0.1 * torch.eye(2))
    A, y, sigma = torch.tensor([[1.0, 0.7]], dtype=torch.float64), torch.tensor([[0.3], [1.4]]).double(), 0.4
    posterior = prior.posterior(linear(A), y, sigma)
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    volume = (axis[1] - axis[0]) ** 2
    components = log_joint_2d(prior, grid)
    for b in range(2):
        likelihood = -0.5 * ((y[b] - grid @ A[0]) / sigma).square() - 0.5 * math.log(2 * math.pi * sigma**2)
        masses = (components + likelihood[:, None]).exp() * volume
        evidence = masses.sum()
        density = masses.sum(1) / evidence
        torch.testing.assert_close(posterior.log_evidence[b], evidence.log(), rtol=0, atol=1e-9)
        torch.testing.assert_close(posterior.weights[b], masses.sum(0) / evidence, rtol=0, atol=1e-9)
        mean = density @ grid
        torch.testing.assert_close(posterior.mean[b], mean, rtol=0, atol=1e-9)
        torch.testing.assert_close(posterior.std[b], (density @ (grid - mean).square()).sqrt(), rtol=0, atol=1e-9)
        for k in range(3):
            share = masses[:, k] / masses[:, k].sum()
            torch.testing.assert_close(posterior.means[b, k], share @ grid, rtol=0, atol=1e-9)
            apart = grid - share @ grid
            torch.testing.assert_close(posterior.covariances[k], (share[:, None] * apart).mT @ apart, rtol=0, atol=1e-9)


def log_joint_2d(prior, grid):
    laws = MultivariateNormal(prior.means, prior.covariance_matrices())
    return prior.weights.log() + laws.log_prob(grid[:, None])


@pytest.mark.parametrize("rows", [5, 20])
def test_posterior_components_are_the_information_form(prior, rows):
    A, y, sigma = rand(rows, SIZE, seed=12), rand(2, rows, seed=13), 0.3
    posterior = prior.posterior(linear(A), y, sigma)
    assert posterior.means.shape == (2, K, *SHAPE)
    assert posterior.std.shape == posterior.mean.shape == (2, *SHAPE)
    precisions = torch.linalg.inv(prior.covariance_matrices())
    covariances = torch.linalg.inv(A.mT @ A / sigma**2 + precisions)
    torch.testing.assert_close(posterior.covariances, covariances, rtol=0, atol=1e-10)
    pull = torch.einsum("kde,bke->bkd", precisions, (posterior.means - prior.means).flatten(2))
    data = (posterior.means.flatten(2) @ A.mT - y[:, None]) @ A / sigma**2
    assert (pull + data).norm() < 1e-9 * (y @ A / sigma**2).norm()
    shape = torch.eye(rows, dtype=torch.float64) * sigma**2
    laws = MultivariateNormal(prior.means.flatten(1) @ A.mT, A @ prior.covariance_matrices() @ A.mT + shape)
    joint = prior.weights.log() + laws.log_prob(y[:, None])
    torch.testing.assert_close(posterior.weights, joint.softmax(1), rtol=0, atol=1e-10)
    torch.testing.assert_close(posterior.log_evidence, joint.logsumexp(1), rtol=1e-10, atol=0)


def test_posterior_of_denoising_is_denoise(prior):
    x = prior.sample(2, seed=4)
    torch.testing.assert_close(prior.posterior(lambda x: x, x, 0.6).mean, prior.denoise(x, 0.6), rtol=0, atol=1e-11)


def test_sample_moments(prior):
    n = 4000
    x = prior.sample(n, seed=1).flatten(1)
    m, C = prior.means.flatten(1), prior.covariance_matrices()
    mean = prior.weights @ m
    total = torch.einsum("k,kde->de", prior.weights, C + (m - mean)[:, :, None] * (m - mean)[:, None])
    assert ((x.mean(0) - mean) / (total.diagonal() / n).sqrt()).abs().max() < 4.5
    centred = x - mean
    products = centred[:, :, None] * centred[:, None]
    z = (products.mean(0) - total) / (products.std(0) / n**0.5)
    assert z.abs().max() < 5
    share = prior.responsibilities(x.reshape(-1, *SHAPE))
    assert ((share.mean(0) - prior.weights) / (share.std(0) / n**0.5)).abs().max() < 4


def test_posterior_samples_have_its_moments():
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=torch.float64)
    prior = GaussianMixturePrior(WEIGHTS[:2] / 0.7, means, torch.full((2, 2), 0.1, dtype=torch.float64))
    y, n = torch.tensor([[0.3], [0.0]], dtype=torch.float64), 4000
    posterior = prior.posterior(lambda x: x.sum(1, keepdim=True), y, 0.5)
    assert posterior.weights.min() > 0.05
    draws = posterior.sample(n, seed=5)
    assert draws.shape == (n, 2, 2)
    z = (draws.mean(0) - posterior.mean) / (posterior.std / n**0.5)
    assert z.abs().max() < 4.5
    squares = (draws - posterior.mean).square()
    z = (squares.mean(0) - posterior.std.square()) / (squares.std(0) / n**0.5)
    assert z.abs().max() < 4.5
    share = prior.responsibilities(draws.reshape(-1, 2)).reshape(n, 2, 2)
    assert ((share.mean(0) - posterior.weights) / (share.std(0) / n**0.5)).abs().max() < 4.5


def test_samples_depend_on_their_seed_and_index_alone(prior):
    state = torch.get_rng_state()
    many = prior.sample(9, seed=3)
    torch.testing.assert_close(many[:2], prior.sample(2, seed=3), rtol=0, atol=1e-12)
    assert not torch.allclose(many, prior.sample(9, seed=4))
    posterior = prior.posterior(lambda x: x, rand(2, *SHAPE), 0.5)
    draws = posterior.sample(4, seed=3)
    torch.testing.assert_close(draws[:2], posterior.sample(2, seed=3), rtol=0, atol=1e-12)
    alone = prior.posterior(lambda x: x, rand(2, *SHAPE)[:1], 0.5)
    torch.testing.assert_close(draws[:, :1], alone.sample(4, seed=3), rtol=0, atol=1e-12)
    twins = prior.posterior(lambda x: x, rand(1, *SHAPE).expand(2, *SHAPE), 0.5).sample(1)[0]
    assert not torch.allclose(twins[0], twins[1])
    assert torch.equal(state, torch.get_rng_state())


def test_types_follow_the_prior_and_the_measurements(prior):
    double = prior(MEANS)
    prior = prior.float()
    x = MEANS.float()
    outputs = [prior(x), *prior.value_and_grad(x), prior.denoise(x, 0.1), prior.sample(2), prior.covariance_matrices()]
    law = prior.posterior(lambda x: x, x, 0.1)
    outputs += [law.mean, law.std, law.weights, law.means, law.covariances, law.sample(2), law.log_evidence]
    assert {out.dtype for out in outputs} == {torch.float32}
    torch.testing.assert_close(prior(x).double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_priors_of_one_covariance_do_not_share_it(order):
    covariances = make("low_rank").covariances.float()
    priors = {dtype: GaussianMixturePrior(WEIGHTS, MEANS.to(dtype), covariances) for dtype in order}
    assert {buffer.dtype for buffer in covariances.buffers()} == {torch.float32}
    for dtype, prior in priors.items():
        assert prior(MEANS.to(dtype)).dtype == prior.covariances.values.dtype == dtype
        torch.testing.assert_close(prior(MEANS.to(dtype)).double(), make("low_rank")(MEANS), rtol=1e-3, atol=0)


def test_low_rank_never_forms_a_square_matrix():
    size = 50_000
    prior = GaussianMixturePrior.low_rank(
        torch.tensor([0.5, 0.5]), rand(2, size).float(), rand(2, size, 2, seed=1).float(), 0.1
    )
    x = prior.sample(2)
    value, gradient = prior.value_and_grad(x)
    assert bool(value.isfinite().all())
    torch.testing.assert_close(prior.denoise(x, 1e-4), x, rtol=0, atol=1e-3)
    assert gradient.shape == x.shape


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], r"weights have shape \(2,\)"),
        ([0.5, 0.5, 0.5], "add up to 1.5.*weights / weights.sum"),
        ([0.5, 0.5, 0.0], "must be positive.*leave out"),
        ([0.5, 0.5, math.nan], "not finite"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixturePrior(torch.tensor(weights), MEANS, torch.ones(K, *SHAPE))


def test_bad_covariances():
    with pytest.raises(ValueError, match="2 covariances over 12 pixels, but 3 means"):
        GaussianMixturePrior(WEIGHTS, MEANS, torch.ones(2, *SHAPE))
    with pytest.raises(ValueError, match="not positive definite"):
        GaussianMixturePrior(WEIGHTS, MEANS, FACTORS @ FACTORS.mT)
    with pytest.raises(ValueError, match=r"shape \(5,\), but images have shape \(2, 2, 3\)"):
        GaussianMixturePrior(WEIGHTS, MEANS, torch.ones(K, 5))
    with pytest.raises(ValueError, match=r"factors have shape \(3, 5, 2\).*\(3, 12, 'r'\)"):
        GaussianMixturePrior.low_rank(WEIGHTS, MEANS, torch.ones(K, 5, 2), 0.1)
    for noise in (0.0, math.nan, torch.ones(2)):
        with pytest.raises(ValueError, match=r"noise is .*positive standard deviation"):
            GaussianMixturePrior.low_rank(WEIGHTS, MEANS, FACTORS, noise)


def test_bad_images_and_operators(prior):
    with pytest.raises(ValueError, match=r"x has shape \(2, 12\)"):
        prior(rand(2, SIZE))
    with pytest.raises(ValueError, match="sigma has shape"):
        prior.denoise(rand(2, *SHAPE), torch.ones(3))
    with pytest.raises(ValueError, match="not linear"):
        prior.posterior(torch.relu, rand(2, *SHAPE), 0.1)
