"""The algebra of energies, their gradients, and the data and interaction terms."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SHAPE, make_operator
from scipy.integrate import quad

from emprior._conjugate import conjugate_gradients
from emprior.energy import Energy, Posterior, Scaled, Sum
from emprior.fidelity import GaussianFidelity
from emprior.interaction import Repulsion
from emprior.interpolant import EnergyMatching
from emprior.nets import POTENTIALS, make_potential
from emprior.priors import GaussianMixturePrior, GaussianPrior, NetworkPrior


def rows(count: int, shape=SHAPE, seed: int = 0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(architecture: str, channels: int = 1) -> NetworkPrior:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        potential = make_potential(architecture, channels=channels, patch=2, widths=[4, 4], blocks=1)
    return NetworkPrior(potential.double(), (channels, 8, 8), EnergyMatching(), 0.01)


def test_a_prior_has_a_title():
    prior = network("inner_product")
    assert prior.title == "network"
    assert GaussianPrior(torch.zeros(SHAPE), torch.ones(SHAPE)).title == "GaussianPrior"
    prior.title = "mine"
    assert prior.title == "mine"
    assert "title" not in prior.state_dict()


def nonlinear():
    import deepinv as dinv

    return dinv.physics.Physics(A=lambda x, **_: (2 * x).tanh(), noise_model=dinv.physics.GaussianNoise(0.1))


def energies() -> dict[str, Energy]:
    diagonal = GaussianPrior(torch.full(SHAPE, 0.5).double(), 0.1 + rows(1, seed=1)[0])
    mixture = GaussianMixturePrior(torch.tensor([0.4, 0.6]).double(), rows(2, seed=2), 0.1 + rows(2, seed=3))
    y = make_operator("compressed_sensing").A(rows(2))
    data = GaussianFidelity(make_operator("compressed_sensing"), y)
    per_image = GaussianFidelity(make_operator("blur"), rows(2), torch.tensor([0.05, 0.05]).double())
    out: dict[str, Energy] = {
        "gaussian": diagonal,
        "mixture": mixture,
        "fidelity": data,
        "fidelity of sigma per image": per_image,
        "nonlinear fidelity": GaussianFidelity(nonlinear(), rows(2)),
        "interaction": Repulsion(0.7, samples=2),
        "masked interaction": Repulsion(0.7, (rows(1)[0] > 0.5).double(), samples=2),
        "scaled": 3.0 * diagonal,
        "sum": data + 2.0 * mixture,
        "posterior": Posterior(data, diagonal, 0.5, Repulsion(2.0, samples=2)),
    }
    return out | {name: network(name) for name in POTENTIALS}


@pytest.mark.parametrize("name", energies())
def test_gradients(name):
    energy = energies()[name]
    x = rows(4, seed=5)
    assert torch.autograd.gradcheck(energy, x.clone().requires_grad_(), atol=1e-5, rtol=1e-4)
    value, gradient = energy.value_and_grad(x)
    leaf = x.clone().requires_grad_()
    (automatic,) = torch.autograd.grad(energy(leaf).sum(), leaf)
    assert torch.allclose(value, energy(x), rtol=1e-12, atol=1e-12)
    assert torch.allclose(gradient, automatic, rtol=1e-9, atol=1e-9 * float(automatic.abs().max()))
    assert not value.requires_grad
    assert not gradient.requires_grad
    assert not x.requires_grad


@pytest.mark.parametrize("name", ["gaussian", "mixture", "scaled", *POTENTIALS])
def test_a_batch_equals_its_images(name):
    energy, x = energies()[name], rows(2, seed=5)
    together = energy.value_and_grad(x)
    alone = [energy.value_and_grad(x[i : i + 1]) for i in range(2)]
    for k in range(2):
        assert (together[k] - torch.cat([one[k] for one in alone])).abs().max() < 1e-10


def test_algebra():
    parts, x = energies(), rows(4)
    a, b = parts["gaussian"], parts["mixture"]
    total = a + 2.0 * b + a
    assert torch.allclose(total(x), 2 * a(x) + 2 * b(x))
    terms = total.terms(x)
    assert list(terms) == ["prior", "prior_2", "prior_3"]
    assert torch.allclose(torch.stack(list(terms.values())).sum(0), total(x))
    assert isinstance(2.0 * a, Scaled)
    assert isinstance(a + b, Sum)
    posterior = Posterior(parts["fidelity"], a, weight=3.0)
    assert list(posterior.terms(x)) == ["fidelity", "prior"]
    assert torch.allclose(posterior(x), parts["fidelity"](x) + 3 * a(x))
    for other in (1.0, "b"):
        with pytest.raises(TypeError):
            a + other
    with pytest.raises(TypeError):
        a * a


def test_fidelity_is_the_negative_log_likelihood(case):
    operator, y, _ = case
    x, sigma = rows(4), float(operator.noise_model.sigma)
    fidelity = GaussianFidelity(operator, y)
    direct = (operator.A(x) - y.repeat(2, *(1,) * (y.ndim - 1))).flatten(1).square().sum(1) / (2 * sigma**2)
    assert torch.allclose(fidelity(x), direct, rtol=1e-6)
    seen = (operator.A(rows(1)) != 0).sum()
    assert torch.allclose(fidelity.residual(x), (2 * direct / seen).sqrt(), rtol=1e-6)


def test_prox_and_solve_satisfy_their_equations(case):
    operator, y, _ = case
    fidelity, x = GaussianFidelity(operator, y), rows(4)
    for gamma in (1e-4, torch.tensor([1e-3, 1e-2, 1e-1, 1.0]).double()):
        column = torch.as_tensor(gamma).reshape(-1, 1, 1, 1)
        z = fidelity.prox(x, gamma)
        assert (z - x + column * fidelity.value_and_grad(z)[1]).abs().max() < 1e-8
        v = fidelity.solve(x, gamma)
        assert (v + column * fidelity.curve(v) - x).abs().max() < 1e-8


def test_a_wrong_closed_form_is_not_trusted():
    operator = make_operator("blur")

    class Wrong(type(operator)):
        def prox_l2(self, z, y, gamma, **kwargs):
            return 0.9 * super().prox_l2(z, y, gamma, **kwargs)

    operator.__class__ = Wrong
    fidelity, x = GaussianFidelity(operator, rows(2)), rows(2)
    assert not fidelity.closed
    assert (fidelity.solve(x, 0.1) + 0.1 * fidelity.curve(fidelity.solve(x, 0.1)) - x).abs().max() < 1e-9


def test_nonlinear_prox_is_stationary():
    fidelity, x = GaussianFidelity(nonlinear(), rows(2)), rows(2, seed=8)
    z = fidelity.prox(x, 0.01)
    gradient = fidelity.value_and_grad(z)[1] + (z - x) / 0.01
    assert gradient.flatten(1).norm(dim=1).max() < 1e-3 * fidelity.value_and_grad(x)[1].flatten(1).norm(dim=1).max()


def test_whitened_noise_has_the_hessian_as_covariance(case):
    operator, y, _ = case
    fidelity = GaussianFidelity(operator, y[:1])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, *fidelity.measured, generator=generator, dtype=torch.float64)
    drawn = fidelity.whiten(noise).flatten(1)
    hessian = fidelity.curve(torch.eye(64).double().reshape(64, *SHAPE)).reshape(64, 64)
    covariance = drawn.mT @ drawn / len(drawn)
    assert (covariance - hessian).abs().max() < 6 * hessian.abs().max() * (2 / len(drawn)) ** 0.5


def test_masks_for_each_image():
    import deepinv as dinv

    masks = (rows(2, seed=3) > 0.5).double()
    operator = dinv.physics.Inpainting(SHAPE, mask=masks, noise_model=dinv.physics.GaussianNoise(0.1))
    x = rows(2)
    y = masks * x
    fidelity = GaussianFidelity(operator, y)
    for index in range(2):
        one = dinv.physics.Inpainting(SHAPE, mask=masks[index], noise_model=dinv.physics.GaussianNoise(0.1))
        alone, trial = GaussianFidelity(one, y[index : index + 1]), rows(6, seed=4)
        mine = trial[index::2]
        assert torch.allclose(fidelity(trial)[index::2], alone(mine))
        assert torch.allclose(fidelity.prox(trial, 0.1)[index::2], alone.prox(mine, 0.1))


def test_conjugate_gradients_treat_rows_alone():
    matrix = torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix @ matrix.mT + torch.eye(30)
    b = rows(3, (30,)) * torch.tensor([[1.0], [1e6], [0.0]])
    x = conjugate_gradients(lambda p: p @ matrix, b)
    assert torch.allclose(x, b @ torch.linalg.inv(matrix), rtol=1e-9, atol=1e-12)
    assert torch.equal(x[:1], conjugate_gradients(lambda p: p @ matrix, b[:1]))


class Bowl(torch.nn.Module):
    r"""The potential `2 |z|^2 / 5`."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def forward(self, z):
        return self.weight * z.square().flatten(1).sum(1) / 2


def test_generation_along_transport_is_the_descent():
    r"""Where the gradient is `x_0 - x_1` throughout, ten steps of a tenth leave `0.92^10` of the noise."""
    prior = NetworkPrior(Bowl(), (1, 4, 4), EnergyMatching(0.0, 0.1), 0.01)
    noise = 2 * prior.sample(5, seed=1, steps=0) - 1
    torch.testing.assert_close(2 * prior.sample(5, seed=1, steps=10) - 1, 0.92**10 * noise)


def test_generation_through_a_score_zone_solves_its_equation():
    r"""With the clean estimate `d z`, `dz/ds = k' x_1 + x_0` shrinks noise by `exp(-int k' d + (1 - k d) / s)`."""
    path, epsilon = EnergyMatching(0.3, 0.6), 0.002
    prior = NetworkPrior(Bowl(), (1, 4, 4), path, epsilon)

    def rate(s):
        a, b, k = (float(c) for c in path.coefficients(torch.tensor(s, dtype=torch.float64)))
        slope = 0.0 if s < 0.3 else -b - s / 0.6 if s < 0.9 else -1.0
        clean = (a - 0.8 * s) / (a * k + s * b)
        return slope * clean + (1 - k * clean) / s

    whole, _ = quad(rate, (epsilon * 0.3) ** 0.5, 1, points=[0.3, 0.9])
    noise = 2 * prior.sample(5, seed=1, steps=0) - 1
    made = 2 * prior.sample(5, seed=1, steps=4000) - 1
    torch.testing.assert_close(made, math.exp(-whole) * noise, rtol=2e-3, atol=0)


def test_sampling_can_be_watched():
    prior, seen = network("inner_product"), []
    images = prior.sample(70, seed=3, steps=4, callback=lambda step, x: seen.append((step, x)))
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4] * 2
    assert [len(x) for _, x in seen] == [64] * 5 + [6] * 5
    first, last = (torch.cat([x for step, x in seen if step == moment]) for moment in (0, 4))
    assert torch.equal(last, images)
    assert torch.equal(images, prior.sample(70, seed=3, steps=4))
    assert torch.equal(first, prior.sample(70, seed=3, steps=0))
    assert abs(float(first.mean()) - 0.5) < 0.05
