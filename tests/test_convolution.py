from __future__ import annotations

import pytest
import torch
from torch import nn

from emprior.nets.convolution import Conv2d
from emprior.nets.unet import spread

GEOMETRIES = [{"kernel_size": 3, "padding": 1}, {"kernel_size": 2, "stride": 2}, {"kernel_size": 1}]


def pair(geometry, bias=True):
    r"""Ours and PyTorch's, with the same weights."""
    torch.manual_seed(0)
    ours, theirs = (kind(3, 4, bias=bias, **geometry).double() for kind in (Conv2d, nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def image(seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 6, 4, generator=random, dtype=torch.float64).requires_grad_()


def derivatives(layer, x):
    r"""The loss of an energy's gradient, its gradient by the weights, and the gradient of that one's square."""
    (slope,) = torch.autograd.grad(layer(x).square().sum() + layer(x).sin().sum(), x, create_graph=True)
    loss = (slope - 1).square().mean()
    first = torch.autograd.grad(loss, (x, *layer.parameters()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, *layer.parameters()))
    return [layer(x), slope, loss, *first, *second]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_three_derivatives_are_those_of_the_plain_convolution(geometry, bias):
    x = image()
    ours, theirs = pair(geometry, bias)
    for mine, reference in zip(derivatives(ours, x), derivatives(theirs, x), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_derivatives_by_finite_differences(geometry):
    layer, _ = pair(geometry)
    inputs = (image(), *(p.detach().requires_grad_() for p in layer.parameters()))
    names = [name for name, _ in layer.named_parameters()]

    def evaluate(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    layer.requires_grad_(True)
    assert torch.autograd.gradcheck(evaluate, inputs)
    assert torch.autograd.gradgradcheck(evaluate, inputs)


def test_autocast_reaches_every_product():
    layer, _ = pair(GEOMETRIES[0])
    layer, x = layer.float(), image().float().detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    (slope,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    assert slope.dtype == torch.float32
    (gradient,) = torch.autograd.grad(slope.square().sum(), layer.weight)
    assert gradient.dtype == torch.float32
    assert gradient.abs().sum() > 0


def test_a_layer_that_is_not_trained_is_pytorchs_own():
    layer, _ = pair(GEOMETRIES[0])
    assert "_Partial" in type(layer(image()).grad_fn).__name__
    assert "_Partial" not in type(layer.requires_grad_(False)(image()).grad_fn).__name__


def test_spread_puts_each_quarter_of_the_channels_on_its_pixel():
    h = torch.arange(2 * 12 * 3 * 5.0).reshape(2, 12, 3, 5)
    wide = spread(h)
    assert wide.shape == (2, 3, 6, 10)
    for row in range(2):
        for column in range(2):
            quarter = h[:, 3 * (2 * row + column) :][:, :3]
            assert torch.equal(wide[:, :, row::2, column::2], quarter)
