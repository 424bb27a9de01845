from __future__ import annotations

import pytest
import torch

from emprior.interpolant import EnergyMatching
from emprior.nets import POTENTIALS, make_potential
from emprior.train.objective import GradientMatchingLoss

TINY = {"channels": 1, "patch": 2, "widths": [4, 6], "blocks": 1}


def tiny(name, **changes):
    r"""A network whose every weight is random, zero-initialised ones too."""
    potential = make_potential(name, **(TINY | changes)).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in potential.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=random, dtype=p.dtype))
    return potential


def images(count, height=8, width=8, channels=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("name", POTENTIALS)
def test_first_and_second_derivatives(name):
    potential, x = tiny(name), images(2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(potential, (x,))
    assert torch.autograd.gradgradcheck(potential, (x,))


@pytest.mark.parametrize("name", POTENTIALS)
def test_derivatives_through_the_padding(name):
    potential, x = tiny(name), images(1, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(potential, (x,))
    assert torch.autograd.gradgradcheck(potential, (x,))


@pytest.mark.parametrize("name", POTENTIALS)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (9, 12)])
def test_a_batch_of_two_equals_two_singles(name, size):
    potential, x = tiny(name, channels=3), images(2, *size, channels=3)
    together = potential(x)
    assert together.shape == (2,)
    torch.testing.assert_close(together, torch.cat([potential(x[:1]), potential(x[1:])]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", POTENTIALS)
def test_every_parameter_gets_a_gradient_of_the_transport_loss(name):
    loss = GradientMatchingLoss(tiny(name), EnergyMatching())
    x1, x0 = images(4), images(4, seed=1)
    loss(x1, x0, torch.linspace(0.05, 0.9, 4, dtype=torch.float64))[0].backward()
    for key, p in loss.named_parameters():
        assert p.grad is not None, key
        assert p.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", POTENTIALS)
def test_the_first_step_reaches_the_last_layer(name):
    torch.manual_seed(0)
    loss = GradientMatchingLoss(make_potential(name, **TINY).double(), EnergyMatching())
    loss(images(4), images(4, seed=1), torch.full((4,), 0.5, dtype=torch.float64))[0].backward()
    assert all(p.grad is not None for p in loss.parameters())
    assert sum(p.grad.square().sum() for p in loss.parameters()) > 0


@pytest.mark.parametrize("name", POTENTIALS)
def test_values_are_summed_in_float32_at_least(name):
    potential = make_potential(name, **TINY).bfloat16()
    assert potential(images(2).bfloat16()).dtype == torch.float32


def test_unknown_names_and_arguments():
    with pytest.raises(ValueError, match="Did you mean 'inner_product'"):
        make_potential("inner_prodct")
    with pytest.raises(ValueError, match=r"net\.arguments"):
        make_potential("local", depth=3)
