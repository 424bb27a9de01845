"""Bands of frequency and colour, and the metric that chains learn in them."""

import copy

import pytest
import torch
from conftest import SHAPE, make_operator
from laws import assert_drawn_from

from emprior._bands import Bands, Spectrum
from emprior._noise import Noise, generator
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.operators import without_noise
from emprior.priors import GaussianMixturePrior, GaussianPrior
from emprior.solvers import HMC, Stage, run
from emprior.solvers.metric import BandMetric, SpectralMetric
from emprior.solvers.warmup import FLOOR, WORTH, prepare
from emprior.verify.fields import gaussian_field

SHAPES = [(1, 8, 8), (3, 8, 8), (3, 6, 10), (2, 5, 4), (1, 1, 16), (12,), (4, 3), (3, 2, 3, 4)]


def streams(rows):
    return Noise([(0, row) for row in range(rows)], dtype=torch.float64)


def white(*shape):
    return torch.randn(*shape, generator=generator("bands"), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_basis_is_orthonormal(shape):
    size = torch.Size(shape).numel()
    eye = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    bands = Bands.of(eye)
    matrix = bands.split(eye).flatten(1)
    assert (matrix @ matrix.mT - matrix.new_ones(size).diag()).abs().max() < 1e-12
    assert (bands.join(bands.split(eye)) - eye).abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_bands_share_out_every_coefficient(shape):
    x = white(2, *shape)
    bands = Bands.of(x)
    assert torch.equal(bands.band.unique(), torch.arange(bands.count))
    squares = bands.sums(bands.split(x).square())
    assert torch.allclose(squares.sum(1), x.flatten(1).square().sum(1), rtol=1e-12)


def test_a_flat_image_is_in_a_band_of_its_own():
    x = torch.ones(1, 3, 8, 8, dtype=torch.float64) * torch.tensor([0.2, 0.5, 0.7]).double()[:, None, None]
    bands = Bands.of(x)
    energies = bands.sums(bands.split(x).square())[0]
    held = energies > 1e-20
    assert held.sum() == 3
    assert all(int((bands.band == band).sum()) == 1 for band in held.nonzero())
    gray = bands.sums(bands.split(torch.full_like(x, 0.5)).square())[0]
    assert (gray > 1e-20).sum() == 1


def test_the_metric_of_bands_is_diagonal_in_them():
    x = white(1, 3, 4, 4)
    bands = Bands.of(x)
    curvature = 1 + torch.arange(bands.count, dtype=torch.float64)[None]
    metric = BandMetric(bands, curvature)
    eye = torch.eye(48, dtype=torch.float64).reshape(48, 3, 4, 4)
    inverse = BandMetric(bands, curvature.expand(48, -1)).solve(eye).flatten(1)
    basis = bands.split(eye).flatten(1)
    assert (basis.mT @ inverse @ basis - (1 / curvature[0, bands.band]).diag()).abs().max() < 1e-12
    rows = BandMetric(bands, curvature.expand(4000, -1)).draw(streams(4000), x).flatten(1)
    assert_drawn_from(rows, torch.zeros(48).double(), basis @ curvature[0, bands.band].diag() @ basis.mT)
    assert metric.solve(x).shape == x.shape


@pytest.fixture(scope="module")
def steep():
    """A Gaussian whose curvature is that of its band, from 20 to 2,000, and denoising of two images of it."""
    x = white(1, 3, 8, 8)
    bands = Bands.of(x)
    curvature = torch.logspace(1.3, 3.3, bands.count, dtype=torch.float64)
    eye = torch.eye(192, dtype=torch.float64).reshape(192, 3, 8, 8)
    basis = bands.split(eye).flatten(1)
    covariance = basis @ (1 / curvature[bands.band]).diag() @ basis.mT
    prior = GaussianPrior(torch.full((3, 8, 8), 0.5).double(), (covariance + covariance.mT) / 2)
    y = prior.sample(2, seed=1) + 0.1 * white(2, 3, 8, 8)
    return Posterior(GaussianFidelity(make_operator("denoising"), y, 0.1), prior), curvature


def test_paths_show_the_curvature_of_each_band(steep):
    energy, curvature = steep
    chains = 4
    x = energy.prior.sample(2 * chains, seed=3)
    solver, noise = HMC(leaps=4, adapt=400), streams(2 * chains)
    state = solver.init(energy, x, noise)
    for _ in range(201):
        state, _ = solver.step(energy, state, noise)
    learnt = state.warmup.known.curvature
    assert ((learnt / (curvature + 100)).log().abs() < 0.02).all()
    for image in range(2):
        assert torch.equal(learnt[image], learnt[image + 2])


def test_hmc_is_exact_in_a_learnt_metric(steep):
    energy, _ = steep
    chains, rows = 32, []
    x = energy.prior.sample(2 * chains, seed=5)
    run(
        [Stage(HMC(leaps=3, adapt=160), 260, 160)], energy, x, streams(2 * chains), 2,
        callback=lambda i, now: rows.append(now) if i > 160 else None,
    )  # fmt: skip
    exact = energy.prior.posterior(energy.fidelity.operator, energy.fidelity.y, 0.1)
    values, vectors = torch.linalg.eigh(exact.covariance)
    off = (torch.stack(rows) - exact.mean).flatten(3) @ vectors / values.sqrt()
    means, squares = off.mean(0), (off.square() - 1).mean(0)
    for statistics in (means, squares):
        z = statistics.mean(0) / (statistics.std(0) / chains**0.5)
        assert z.abs().max() < 4.5
        assert z.square().mean() < 1.25
    assert squares.abs().mean() < 0.2


@pytest.mark.parametrize(
    ("name", "learns"), [("denoising", True), ("inpainting", False), ("compressed_sensing", False)]
)
def test_a_metric_is_learnt_where_the_data_are_as_stiff_everywhere(name, learns):
    field = gaussian_field(8)
    operator = make_operator(name)
    energy = Posterior(GaussianFidelity(operator, operator.A(field.sample(1, seed=1))), field)
    warmup = prepare(energy, field.sample(2, seed=2), 0.1, 0)
    assert (warmup.secants is not None) == learns
    if learns:
        assert torch.allclose(warmup.secants.isotropic, torch.full((2, 1), 100.0).double())


def test_curvature_has_a_floor():
    field = gaussian_field(8)
    solver, noise, x = HMC(leaps=2, adapt=64), streams(2), field.sample(2, seed=1)
    state = solver.init(field * 0.0, x, noise)
    assert prepare(field * 0.0, x, 0.1, 0).secants is not None
    for _ in range(64):
        state, _ = solver.step(field * 0.0, state, noise)
    assert (state.warmup.known.curvature >= FLOOR * 0.99).all()


def as_spectrum(bands, curvature):
    rows = [bands.colour == colour for colour in range(int(bands.colour.max()) + 1)]
    return Spectrum(tuple(bands.frequency[rows[0]].tolist()), tuple(tuple(curvature[row].tolist()) for row in rows))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_spectrum_is_the_mean_curvature_of_each_band(shape):
    size = torch.Size(shape).numel()
    eye = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    bands = Bands.of(eye)
    basis = bands.split(eye).flatten(1)
    root = white(size, size)
    hessian = basis @ (root @ root.mT + torch.diag(bands.band.double())) @ basis.mT
    exact = bands.sums((basis.mT @ hessian @ basis).diagonal()[None])[0] / torch.bincount(bands.band)
    found = Spectrum.measure(lambda v: (v.flatten(1) @ hessian).reshape(v.shape), eye.new_zeros(4000, *shape))
    assert torch.allclose(found.on(bands), exact, rtol=0.1)
    alone = torch.bincount(bands.band) == 1
    assert torch.allclose(found.on(bands)[alone], exact[alone], rtol=1e-10)


def test_gaussians_know_their_spectrum(steep):
    energy, curvature = steep
    assert torch.allclose(energy.prior.spectrum.on(Bands.of(white(1, 3, 8, 8))), curvature, rtol=1e-6)
    variances = torch.tensor([[0.1], [0.5]]).double().expand(2, 16)
    two = GaussianMixturePrior(torch.tensor([0.25, 0.75]).double(), torch.zeros(2, 1, 4, 4).double(), variances)
    assert torch.allclose(two.spectrum.on(Bands.of(white(1, 1, 4, 4))), torch.tensor(0.25 * 10 + 0.75 * 2).double())


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 16, 24), (3, 64, 64)])
def test_a_spectrum_follows_its_power_law_on_other_sizes(shape):
    bands, other = Bands.of(white(1, 3, 32, 32)), Bands.of(white(1, *shape))
    law = lambda b: (1 + b.colour) * (10 * b.frequency.clamp(min=1e-3)) ** 2  # noqa: E731
    found, asked = as_spectrum(bands, law(bands)).on(other), other.frequency
    inside = (asked >= bands.frequency[1]) & (asked <= bands.frequency.max())
    assert torch.allclose(found[inside], law(other)[inside], rtol=1e-9)
    assert (found > 0).all()


def test_curvatures_that_are_no_scale_of_length_are_raised():
    bands = Bands.of(white(1, 1, 8, 8))
    falling = torch.linspace(100, -20, bands.count).double()
    found = as_spectrum(bands, falling).on(bands)
    assert torch.allclose(found, falling.clamp(min=1e-4))


@pytest.mark.parametrize("name", ["inpainting", "compressed_sensing", "blur"])
def test_the_spectral_metric_is_the_hessian_of_the_data_and_of_the_bands(field, name):
    operator = make_operator(name)
    energy = Posterior(GaussianFidelity(operator, operator.A(field.sample(2, seed=1))), field, weight=2.0)
    eye = torch.eye(64, dtype=torch.float64).reshape(64, *SHAPE)
    metric, basis, bands = SpectralMetric.of(energy, eye[:1], 64), Bands.of(eye).split(eye).flatten(1), Bands.of(eye)
    exact = energy.fidelity.curve(eye).flatten(1)
    exact = exact + 2 * basis @ field.spectrum.on(bands)[bands.band].diag() @ basis.mT
    assert (metric.solve(exact.reshape(64, *SHAPE)).flatten(1) - eye.flatten(1)).abs().max() < 1e-9
    rows = metric.draw(streams(4000), torch.zeros(4000, *SHAPE, dtype=torch.float64)).flatten(1)
    assert_drawn_from(rows, torch.zeros(64).double(), exact)
    x = white(5, *SHAPE)
    assert torch.equal(metric.solve(x)[2:3], metric.solve(x[2:3]))


def test_the_spectral_metric_needs_what_it_is_made_of(field):
    operator = make_operator("blur")
    y = operator.A(field.sample(2, seed=1))
    x = field.sample(2, seed=2)
    energy = Posterior(GaussianFidelity(operator, y, 0.05), field)
    assert SpectralMetric.of(energy, x, 63) is None
    assert SpectralMetric.of(field, x, 64) is None
    levels = torch.tensor([0.05, 0.1])
    assert SpectralMetric.of(Posterior(GaussianFidelity(without_noise(operator), y, levels), field), x, 64) is None
    blind = copy.deepcopy(field)
    blind.spectrum = None
    assert SpectralMetric.of(Posterior(energy.fidelity, blind), x, 64) is None
    assert isinstance(prepare(energy, x, 0.1, 2).known, SpectralMetric)
    assert prepare(energy, x, 0.1, 2, curvature=3.0).known is None


def test_the_spectral_metric_is_made_where_all_samples_of_an_image_are_worth_it(field):
    operator = make_operator("blur")
    y = operator.A(field.sample(2, seed=1))
    energy, needed = Posterior(GaussianFidelity(operator, y, 0.05), field), -(-64 // WORTH)
    assert prepare(energy, field.sample(2, seed=2), 0.1, needed - 1).known is None
    assert isinstance(prepare(energy, field.sample(2, seed=2), 0.1, needed).known, SpectralMetric)
    assert isinstance(prepare(energy, field.sample(2 * needed, seed=2), 0.1, 1).known, SpectralMetric)


def test_hmc_is_exact_in_the_spectral_metric(field):
    operator = make_operator("blur")
    y = operator(field.sample(2, seed=1))
    energy, chains, rows, solver = Posterior(GaussianFidelity(operator, y), field), 32, [], HMC(leaps=3, adapt=120)
    x = field.sample(2 * chains, seed=5)
    assert isinstance(solver.init(energy, x, streams(2 * chains)).warmup.known, SpectralMetric)
    run(
        [Stage(solver, 220, 120)], energy, x, streams(2 * chains), 2,
        callback=lambda i, now: rows.append(now) if i > 120 else None,
    )  # fmt: skip
    exact = field.posterior(operator, y, energy.fidelity.sigma)
    values, vectors = torch.linalg.eigh(exact.covariance)
    off = (torch.stack(rows) - exact.mean).flatten(3) @ vectors / values.sqrt()
    for statistics in (off.mean(0), (off.square() - 1).mean(0)):
        z = statistics.mean(0) / (statistics.std(0) / chains**0.5)
        assert z.abs().max() < 4.5
        assert z.square().mean() < 1.25
    assert off.mean(0).square().mean() < 2 / len(off)
