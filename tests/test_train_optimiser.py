from __future__ import annotations

import pytest
import torch
from torch import nn

from emprior.nets import make_potential, make_velocity
from emprior.train.config import Contrast, Train, Transport
from emprior.train.muon import KernelMuon
from emprior.train.optimiser import make_optimizers


def kernel(*shape, seed=0):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def gradients(shape, count, scale=1.0):
    random = torch.Generator().manual_seed(1)
    return [scale * torch.randn(shape, generator=random) for _ in range(count)]


def moved(parameter, optimizer, steps):
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_matrices_move_as_by_pytorch(shape):
    ours, theirs = kernel(*shape), kernel(*shape)
    reference = torch.optim.Muon([theirs], 3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    moved(theirs, reference, gradients(shape, 5))
    moved(ours, KernelMuon([ours], 3e-3, weight_decay=0.1), gradients(shape, 5))
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels_move_as_their_matrices(layout):
    shape = (8, 5, 3, 3)
    four, two = kernel(*shape), kernel(*shape)
    two = nn.Parameter(two.detach().flatten(1).clone())
    four = nn.Parameter(four.detach().to(memory_format=layout))
    steps = gradients(shape, 4)
    moved(four, KernelMuon([four], 1e-2), [g.to(memory_format=layout) for g in steps])
    moved(two, KernelMuon([two], 1e-2), [g.flatten(1) for g in steps])
    torch.testing.assert_close(four.detach().flatten(1), two.detach(), rtol=0, atol=0)
    assert four.is_contiguous(memory_format=layout)


def test_a_step_has_about_the_same_gain_in_all_directions():
    weight = kernel(8, 4, 3, 3)
    before = weight.detach().clone()
    gradient = gradients((8, 36), 1)[0]
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    steep = (u * torch.logspace(0, -1, 8)) @ v
    moved(weight, KernelMuon([weight], 1e-2), [steep.view(8, 4, 3, 3)])
    step = (before - weight.detach()).flatten(1)
    gains = (u.T @ step @ v.T).diagonal() / (0.2 * 1e-2 * 6)
    assert gains.min() > 0.6
    assert gains.max() < 1.3
    assert (step - (u * (u.T @ step @ v.T).diagonal()) @ v).norm() < 0.02 * step.norm()


def test_the_scale_of_a_gradient_does_not_matter():
    one, other = kernel(6, 3, 3, 3), kernel(6, 3, 3, 3)
    moved(one, KernelMuon([one], 1e-2), gradients((6, 3, 3, 3), 3))
    moved(other, KernelMuon([other], 1e-2), gradients((6, 3, 3, 3), 3, scale=2.0**10))
    torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=1e-6)


def test_kernels_without_a_gradient_stay():
    still, moving = kernel(4, 3, 3, 3), kernel(4, 3, 3, 3)
    before = still.detach().clone()
    moving.grad = torch.ones_like(moving)
    KernelMuon([still, moving], 1e-2).step()
    assert torch.equal(still.detach(), before)
    assert not torch.equal(moving.detach(), before)


def test_gradients_are_forgotten():
    weight = kernel(4, 3, 3, 3)
    optimizer = KernelMuon([weight], 1e-2)
    weight.grad = torch.ones_like(weight)
    optimizer.zero_grad(set_to_none=False)
    assert weight.grad.abs().max() == 0
    optimizer.zero_grad()
    assert weight.grad is None


@pytest.mark.parametrize(
    "make", [lambda **a: make_potential("squared_norm", **a), lambda **a: make_velocity("velocity", **a)]
)
def test_the_ends_and_biases_move_by_adam(make):
    network = make(channels=3, patch=2, widths=[8, 12], blocks=1)
    adam, muon = make_optimizers(network, Transport(optimizer="muon"), Train()).parts
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    outer = {names[id(parameter)] for group in adam.param_groups for parameter in group["params"]}
    inner = {names[id(parameter)] for parameter in muon.kernels}
    assert outer | inner == set(names.values())
    assert not outer & inner
    assert {name for name in outer if name.endswith("weight")} == {"field.stem.weight", "field.last.weight"}
    assert len(make_optimizers(network, Contrast(), Train()).parts) == 1


def test_all_parts_take_the_rate():
    network = make_potential("squared_norm", channels=3, patch=2, widths=[8, 12], blocks=1)
    optimizers = make_optimizers(network, Transport(optimizer="muon"), Train(weight_decay=0.0))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    optimizers.step(1e-3)
    assert not any(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
