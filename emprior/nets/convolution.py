r"""Convolutions whose second derivative costs what the first does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Geometry = tuple[tuple[int, ...], tuple[int, ...]]


class Conv2d(nn.Conv2d):
    r"""A convolution :math:`y = w * x + b` that trains an energy by its gradient.

    The loss of an energy holds :math:`\nabla V`, so its own gradient differentiates the backward pass. Three products
    are closed under differentiation,

    .. math:: w * x, \qquad w^\top \star g, \qquad \partial_w \langle g, w * x \rangle,

    each a kernel of its own, while PyTorch writes the last one, within a second derivative, as a convolution with
    kernels as large as the image. Weights that are not trained take PyTorch's way, which is then as good.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return _Product.apply(x, weight, bias, (self.stride, self.padding))


class _Product(torch.autograd.Function):
    r"""`w * x + b`."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        stride, padding = geometry
        return torch.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _Transposed.apply(g, weight, x, ctx.geometry) if needs[0] else None,
            _Correlation.apply(g, x, weight, ctx.geometry) if needs[1] else None,
            g.sum((0, 2, 3)) if needs[2] else None,
            None,
        )


class _Transposed(torch.autograd.Function):
    r"""`w^T g`, of the shape of `x`."""

    @staticmethod
    def forward(g: Tensor, weight: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return _backward(g, x, weight, geometry, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(g, weight)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        g, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _Product.apply(u, weight, None, ctx.geometry) if needs[0] else None,
            _Correlation.apply(g, u, weight, ctx.geometry) if needs[1] else None,
            None,
            None,
        )


class _Correlation(torch.autograd.Function):
    r"""The gradient of `<g, w * x>` by `w`, of the shape of `weight`."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return _backward(g, x, weight, geometry, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, x, _, ctx.geometry = inputs
        ctx.save_for_backward(g, x)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        g, x = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _Product.apply(x, u, None, ctx.geometry) if needs[0] else None,
            _Transposed.apply(g, u, x, ctx.geometry) if needs[1] else None,
            None,
            None,
        )


def _backward(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, which: int) -> Tensor:
    stride, padding = geometry
    wanted = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(g, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, wanted)[
        which
    ]
