"""Bands of frequency and colour, and the metric that chains learn in them."""

import pytest
import torch
from conftest import make_operator
from laws import assert_drawn_from

from emprior._noise import Noise, generator
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.priors import GaussianPrior
from emprior.solvers import HMC, Stage, run
from emprior.solvers.bands import Bands
from emprior.solvers.metric import BandMetric
from emprior.solvers.warmup import FLOOR, prepare
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
    learnt = state.warmup.learnt.curvature
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
    warmup = prepare(energy, field.sample(2, seed=2), 0.1)
    assert (warmup.secants is not None) == learns
    if learns:
        assert torch.allclose(warmup.secants.isotropic, torch.full((2, 1), 100.0).double())


def test_curvature_has_a_floor():
    field = gaussian_field(8)
    solver, noise, x = HMC(leaps=2, adapt=64), streams(2), field.sample(2, seed=1)
    state = solver.init(field * 0.0, x, noise)
    assert prepare(field * 0.0, x, 0.1).secants is not None
    for _ in range(64):
        state, _ = solver.step(field * 0.0, state, noise)
    assert (state.warmup.learnt.curvature >= FLOOR * 0.99).all()
