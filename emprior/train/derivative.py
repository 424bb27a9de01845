r"""A loss and its gradient by the parameters, in one compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from emprior._compiled import Compiled, CompiledGradient

Terms = dict[str, Tensor]


class CompiledLoss(nn.Module):
    r"""A loss whose forward pass computes its gradient too.

    Arguments:
        loss: A module that maps tensors to a loss and its detached terms.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.graph = Compiled(self.derivative, constants=True)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Terms]:
        r"""Returns the loss and its detached terms."""
        return _Known.apply(self.graph, inputs, *self.loss.parameters())

    def derivative(self, parameters: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, Terms, tuple[Tensor, ...]]:
        r"""Returns the loss, its terms and its gradient by each parameter."""
        names = [name for name, _ in self.loss.named_parameters()]
        with torch.enable_grad():
            leaves = tuple(parameter.detach().requires_grad_() for parameter in parameters)
            loss, terms = torch.func.functional_call(self.loss, dict(zip(names, leaves, strict=True)), inputs)
            gradients = torch.autograd.grad(loss, leaves)
        return loss.detach(), terms, gradients


class _Known(torch.autograd.Function):
    r"""A value whose gradient was computed with it."""

    @staticmethod
    def forward(ctx: Any, graph: Compiled, inputs: tuple[Tensor, ...], *parameters: Tensor) -> tuple[Tensor, Terms]:
        loss, terms, ctx.gradients = graph(tuple(p.detach() for p in parameters), *inputs)
        return loss.clone(), terms

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Any) -> tuple[Any, ...]:
        return None, None, *(scale * gradient for gradient in ctx.gradients)


def gradient_of(potential: nn.Module, compiled: bool) -> Callable[[Tensor], Tensor]:
    r"""Returns the gradient of a potential, images `(B, C, H, W)` to images."""
    evaluate = CompiledGradient(potential)
    evaluate.graph.works = compiled
    return lambda x: evaluate(x)[1]
