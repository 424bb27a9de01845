r"""The largest curvature of an energy against the eigenvalues of its dense Hessian."""

from __future__ import annotations

import pytest
import torch
from conftest import SHAPE

from emprior import as_operator
from emprior._noise import Noise
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.interaction import Repulsion
from emprior.interpolant import Denoising, EnergyMatching, EquilibriumMatching
from emprior.priors import NetworkPrior
from emprior.solvers import ULA
from emprior.solvers.curvature import largest_curvature, prior_curvature


def blur(gain: float):
    import deepinv as dinv

    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    return dinv.physics.BlurFFT(SHAPE, filter=gain * (kernel[:, None] * kernel)[None, None] / 16)


def compressed_sensing():
    matrix = torch.randn(32, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 8
    return as_operator(matrix, shape=SHAPE)


OPERATORS = {
    "blur": lambda: blur(1.0),
    "weak blur": lambda: blur(0.3),
    "strong blur": lambda: blur(3.0),
    "compressed sensing": compressed_sensing,
}


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]()


def images(count: int):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gram(operator):
    matrix = operator.A(torch.eye(64, dtype=torch.float64).reshape(64, *SHAPE)).flatten(1)
    return matrix @ matrix.mT


def assert_bounds(estimate, exact):
    r"""Safe steps need the estimate not below the exact value; useful ones, not far above."""
    assert (estimate >= exact).all()
    assert (estimate <= 1.05 * exact * (1 + 1e-9)).all()


def test_curvature_of_a_data_term(operator):
    exact = torch.linalg.eigvalsh(gram(operator) / 0.05**2).max()
    fidelity = GaussianFidelity(operator, operator.A(images(2)), sigma=0.05)
    estimate = largest_curvature(fidelity, images(4))
    assert estimate.shape == (4,)
    assert_bounds(estimate, exact)


def test_curvature_follows_the_noise_of_each_image(operator):
    sigma = torch.tensor([0.02, 0.3], dtype=torch.float64)
    exact = torch.stack([torch.linalg.eigvalsh(gram(operator) / s**2).max() for s in sigma])
    fidelity = GaussianFidelity(operator, operator.A(images(2)), sigma=sigma)
    assert_bounds(largest_curvature(fidelity, images(6)), exact.repeat(3))


def test_curvature_of_a_posterior_bounds_its_hessian(operator, field):
    fidelity = GaussianFidelity(operator, operator.A(images(2)), sigma=0.2)
    precision = torch.linalg.inv(field.covariance_matrix())
    exact = torch.linalg.eigvalsh(gram(operator) / 0.2**2 + 3.0 * precision).max()
    posterior = Posterior(fidelity, field, weight=3.0, interaction=Repulsion(2.0))
    estimate = largest_curvature(posterior, images(4))
    data, prior = torch.linalg.eigvalsh(gram(operator)).max() / 0.2**2, 3.0 * torch.linalg.eigvalsh(precision).max()
    assert (estimate >= exact).all()
    assert (estimate <= (1.05 * data + prior) * (1 + 1e-9)).all()
    assert prior_curvature(posterior) == pytest.approx(float(prior), rel=1e-9)
    assert prior_curvature(field) == pytest.approx(float(prior) / 3, rel=1e-9)
    noise = Noise([(0, row) for row in range(4)], dtype=torch.float64)
    assert torch.equal(ULA().init(posterior, images(4), noise).step, 0.2 / estimate)


def test_curvature_of_a_nonlinear_operator_is_unknown():
    import deepinv as dinv

    fidelity = GaussianFidelity(dinv.physics.Physics(A=lambda x, **_: x.tanh()), images(2), sigma=0.1)
    with pytest.raises(ValueError, match=r"nonlinear operator is unknown.*method='mala'"):
        largest_curvature(fidelity, images(2))


class Bowl(torch.nn.Module):
    r"""`V(z) = k |z|^2 / 2`, the potential whose curvature at the data is `k`."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, z):
        return self.k * z.square().flatten(1).sum(1) / 2


@pytest.mark.parametrize(
    ("path", "k"),
    [
        (EnergyMatching(0.06), 1 / 0.06),
        (EnergyMatching(0.002), 500.0),
        (EnergyMatching(0.0), 1 / 0.01),
        (EquilibriumMatching(0.2, 40.0), 200.0),
        (Denoising(), 1.0),
    ],
    ids=str,
)
def test_curvature_of_a_network_is_that_of_its_target_at_the_data(path, k):
    r"""With no score zone it is that of thermal noise of `epsilon`, here 0.01, a pixel."""
    prior = NetworkPrior(Bowl(k), (1, 2, 2), path, epsilon=0.01)
    hessian = torch.autograd.functional.hessian(lambda x: prior(x).sum(), images(1)[..., :2, :2]).reshape(4, 4)
    assert prior.curvature == pytest.approx(4 * k / 0.01)
    assert prior.curvature == pytest.approx(float(torch.linalg.eigvalsh(hessian).max()))
