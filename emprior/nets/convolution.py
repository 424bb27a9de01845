r"""Convolutions whose second derivative costs what the first does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Geometry = tuple[tuple[int, ...], tuple[int, ...]]


class Conv2d(nn.Conv2d):
    r"""A convolution :math:`y = w * x + b` that trains an energy by its gradient.

    The loss of an energy holds :math:`\nabla V`, so its own gradient differentiates the backward pass. The partial
    derivatives of the trilinear form

    .. math:: T(g, x, w) = \langle g, w * x \rangle

    are closed under differentiation, and each is a kernel of its own, while PyTorch writes the one by `w`, within a
    second derivative, as a convolution with kernels as large as the image. Weights that are not trained take PyTorch's
    way, which is then as good.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return _Partial.apply(0, None, x, weight, bias, (self.stride, self.padding))


class _Partial(torch.autograd.Function):
    r"""The derivative of `T` by its argument `slot`, at the other two; that by `g`, the convolution, takes a bias.

    The tensor in the slot itself gives the shape alone.
    """

    @staticmethod
    def forward(
        slot: int, g: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        stride, padding = geometry
        if slot == 0:
            return torch.conv2d(x, weight, bias, stride, padding)
        wanted = [slot == 1, slot == 2, False]
        return torch.ops.aten.convolution_backward(
            g, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, wanted
        )[slot - 1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.slot, *arguments, _, ctx.geometry = inputs
        arguments[ctx.slot] = None
        ctx.save_for_backward(*arguments)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        arguments = list(ctx.saved_tensors)
        arguments[ctx.slot] = u
        gradients = [
            _Partial.apply(slot, *arguments, None, ctx.geometry)
            if slot != ctx.slot and ctx.needs_input_grad[slot + 1]
            else None
            for slot in range(3)
        ]
        bias = u.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        return None, *gradients, bias, None
