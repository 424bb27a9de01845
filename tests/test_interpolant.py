from __future__ import annotations

import pytest
import torch
from torch import nn

from emprior.interpolant import Denoising, EnergyMatching, EquilibriumMatching, LogDensity, make_interpolant
from emprior.priors.network import NetworkPrior

PATHS = [
    EnergyMatching(),
    EnergyMatching(0.0, 0.1),
    EnergyMatching(0.3, 0.5),
    EquilibriumMatching(),
    EquilibriumMatching(0.5, 4.0),
    Denoising(),
    LogDensity(),
    LogDensity(0.05, 1.0, 0.0, 1.0),
]


def pair(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 2, 3, 3, generator=random, dtype=torch.float64) for _ in range(2)]


def fractions(count=41):
    return torch.linspace(0.002, 0.99, count, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_endpoint_of_the_exact_target_is_the_image(path):
    s = fractions()
    x1, x0 = pair(len(s))
    x, target = path.mix(x1, x0, s)
    torch.testing.assert_close(path.endpoint(x, target, s), x1, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_gain_is_the_sensitivity_of_the_endpoint(path):
    s = fractions()
    x, error = pair(len(s))
    moved = path.endpoint(x, error, s) - path.endpoint(x, torch.zeros_like(x), s)
    torch.testing.assert_close(moved, -path.gain(s)[:, None, None, None] * error)
    assert path.gain(torch.zeros(3)).isfinite().all()


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_fraction_solves_for_the_noise_level(path):
    sigma = torch.tensor([0.0, 0.01, 0.06, 0.1, 0.5, 2.0, 20.0], dtype=torch.float64)
    s = path.fraction(sigma)
    torch.testing.assert_close(s, (sigma * path.coefficients(s)[2]).clamp(max=1), rtol=1e-10, atol=1e-12)


def test_without_a_score_zone_it_is_transport():
    s = fractions()
    x1, x0 = pair(len(s))
    x, target = EnergyMatching(sigma_star=0.0).mix(x1, x0, s)
    t = s[:, None, None, None]
    assert torch.equal(x, (1 - t) * x1 + t * x0)
    assert torch.equal(target, x0 - x1)


def test_beyond_the_blend_it_is_transport():
    path, s = EnergyMatching(0.06, 0.1), torch.linspace(0.1601, 1, 9, dtype=torch.float64)
    a, b, k = path.coefficients(s)
    assert torch.equal(a, torch.ones_like(s))
    assert torch.equal(b, torch.ones_like(s))
    assert torch.equal(k, 1 - s)


def test_in_the_score_zone_the_gradient_is_the_noise_over_sigma_star():
    path, s = EnergyMatching(0.06, 0.1), torch.linspace(0, 0.06, 7, dtype=torch.float64)
    a, b, k = path.coefficients(s)
    torch.testing.assert_close(a, s / 0.06)
    assert torch.equal(b, torch.zeros_like(s))
    assert torch.equal(k, torch.ones_like(s))


@pytest.mark.parametrize("edge", [0.06, 0.16])
def test_continuous_at_the_edges_of_the_blend(edge):
    path = EnergyMatching(0.06, 0.1)
    below, above = torch.tensor([edge - 1e-9], dtype=torch.float64), torch.tensor([edge + 1e-9], dtype=torch.float64)
    for left, right in zip(path.coefficients(below), path.coefficients(above), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-7)
    torch.testing.assert_close(path.gain(below), path.gain(above), rtol=0, atol=1e-7)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_noise_limit_is_the_noise_at_the_end_of_the_path(path):
    k = float(path.coefficients(torch.ones(1, dtype=torch.float64))[2])
    assert path.noise_limit == (1 / k if k else float("inf"))
    assert NetworkPrior(Quadratic(1.0), (2, 3, 3), path, epsilon=0.01).noise_limit == path.noise_limit / 2


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_stiffness_is_the_slope_of_the_target_at_the_data(path):
    s = torch.tensor(path.tau if isinstance(path, LogDensity) else 1e-9, dtype=torch.float64)
    slope = float(path.coefficients(s)[0] / s)
    assert slope > 1e8 if path.stiffness == float("inf") else abs(slope / path.stiffness - 1) < 1e-9
    assert path.thermal(0.01) == (0.01 / path.stiffness) ** 0.5


def test_equilibrium_matching_rests_on_the_data():
    path, s = EquilibriumMatching(0.2, 4.0), torch.tensor([0.0, 0.1, 0.2, 1.0], dtype=torch.float64)
    x1, x0 = pair(len(s))
    _, target = path.mix(x1, x0, s)
    fade = torch.tensor([0.0, 2.0, 4.0, 4.0], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(target, fade * (x0 - x1))


def test_denoising_targets_the_noise_that_is_there():
    s = fractions()
    x1, x0 = pair(len(s))
    x, target = Denoising().mix(x1, x0, s)
    torch.testing.assert_close(target, x - x1)


@pytest.mark.parametrize(
    ("objective", "arguments", "message"),
    [
        ("energy", {}, "unknown objective 'energy'. Did you mean 'energy_matching'"),
        ("energy_matching", {"sigma": 0.1}, "objective 'energy_matching': .*'sigma'"),
        ("energy_matching", {"sigma_star": 0.95}, "must have a width and end by noise fraction 1"),
        ("equilibrium_matching", {"width": 0.0}, "expected 0 < width <= 1 and scale > 0"),
    ],
)
def test_wrong_objectives(objective, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_interpolant(objective, **arguments)


class Quadratic(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor / 2 * x.square().flatten(1).sum(1)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("sigma", [0.01, 0.04, 0.25, 0.5, 1.0, 3.0])
def test_denoising_white_images_is_the_wiener_filter(path, sigma):
    r"""For x1 ~ N(0, tau^2), E[a x0 - b x1 | x] = (a s - b k tau^2) / (k^2 tau^2 + s^2) x."""
    tau = 0.7
    s = path.fraction(torch.tensor(2 * sigma, dtype=torch.float64))
    a, b, k = path.coefficients(s)
    factor = (a * s - b * k * tau**2) / (k**2 * tau**2 + s**2)
    prior = NetworkPrior(Quadratic(factor), (2, 3, 3), path, epsilon=0.01)
    x, _ = pair(4)
    if 2 * sigma > path.noise_limit:
        for levels in (sigma, torch.tensor([0.1, 0.1, sigma, 0.1])):
            end = path.noise_limit / 2
            with pytest.raises(ValueError, match=rf"sigma is {sigma:g}, but .* ends at {end:g}. Pass sigma={end:g} or"):
                prior.denoise(x, levels)
        return
    expected = (tau**2 / (tau**2 + (2 * sigma) ** 2) * (2 * x - 1) + 1) / 2
    torch.testing.assert_close(prior.denoise(x, sigma), expected, rtol=1e-9, atol=1e-9)
    levels = torch.full((4,), sigma, dtype=torch.float64)
    torch.testing.assert_close(prior.denoise(x, levels), expected, rtol=1e-9, atol=1e-9)


def blind_field(path, x, variance):
    """The target at `x`, `(d,)`, of a Gaussian with these variances, at the noise that `x` most likely has."""
    low, high = torch.zeros((), dtype=x.dtype), 100 * torch.ones((), dtype=x.dtype)
    for _ in range(200):
        q = (low + high) / 2
        wider = (x.square() / (variance + q).square() - 1 / (variance + q)).sum() > 0
        low, high = (q, high) if wider else (low, q)
    s = q.sqrt()
    a = path.coefficients(s)[0]
    return a * s * x / (variance + q)


@pytest.mark.parametrize(("path", "curl"), [(LogDensity(1e-4, 0.5, 0.99, 100.0), 0.0), (Denoising(), 0.02)])
def test_a_blind_target_is_a_gradient_for_the_log_density_alone(path, curl):
    variance = torch.logspace(-4, 0, 6, dtype=torch.float64)
    x = 0.5 * torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    eye = 1e-5 * torch.eye(6, dtype=torch.float64)
    columns = [(blind_field(path, x + e, variance) - blind_field(path, x - e, variance)) / 2e-5 for e in eye]
    jacobian = torch.stack(columns, dim=1)
    twist = float((jacobian - jacobian.mT).norm() / jacobian.norm())
    assert twist < 1e-6 if curl == 0 else twist > curl


def test_the_log_density_of_black_images_is_the_logarithm_of_the_norm():
    """In many dimensions, where the length of noise is its level."""
    from emprior.nets.potential import LogNormPotential

    path, d = LogDensity(), 3 * 64 * 64
    potential = LogNormPotential(widths=(8,), blocks=1, tau=path.tau, core=path.core)
    potential.field = nn.Identity()
    x0 = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0 = x0 * (d**0.5 / x0.flatten(1).norm(dim=1))[:, None, None, None]
    for s in (0.01, 0.0245, 0.25):
        x, target = path.mix(0 * x0, x0, torch.full((2,), s, dtype=torch.float64))
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(potential(x).sum(), x)
        torch.testing.assert_close(gradient, target, rtol=1e-9, atol=0)


@pytest.mark.parametrize("core", [0.3, 0.5, 1.0])
def test_a_log_density_holds_the_noise_of_an_image_about_the_thermal_noise(core):
    """The law of the length of `x` under the potential of a black image, by quadrature."""
    path, d = LogDensity(core=core), 3072
    s = torch.logspace(-2.5, 0, 200_000, dtype=torch.float64)
    log_s = s.log()
    energy = d * torch.cumulative_trapezoid(path.coefficients(s)[0] * s, log_s)
    mass = (d * log_s[1:] - energy - (d * log_s[1:] - energy).max()).exp()
    ratio = s[1:] / path.tau
    mean = float((mass * ratio).sum() / mass.sum())
    width = float((mass * (ratio - mean).square()).sum() / mass.sum()) ** 0.5
    expected = ((1 + core**2) / (2 * core**2 * d)) ** 0.5
    assert abs(mean - 1) < 0.3 * expected
    assert abs(width / expected - 1) < 0.1


@pytest.mark.parametrize("arguments", [{"tau": 0.0}, {"core": 0.0}, {"near_data": 1.0}, {"limit": 0.5}])
def test_a_log_density_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"tau=0\.0245, core=0\.5, near_data=0\.3, limit=3\.25"):
        make_interpolant("log_density", **arguments)
