r"""Functions that hold derivatives, as one graph that a compiler can take."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

logger = logging.getLogger("emprior")


class Compiled:
    r"""A function of tensors, compiled for each set of shapes that it is called with.

    `torch.compile` cannot differentiate twice. Here the function, with all the derivatives that it takes inside, is
    first traced into one graph of plain operations without autograd, in which derivatives are operations like others;
    the compiler then fuses what lies between the convolutions. The result is the function's up to rounding.

    The first call with new shapes takes up to a minute. Where there is no compiler, a warning says so, once, and the
    function is called as it is.

    Arguments:
        function: From containers of tensors to containers of tensors, none of which is part of a graph of autograd.
        constants: Whether it may hold tensors of its own, which never change.
    """

    def __init__(self, function: Callable[..., Any], constants: bool = False) -> None:
        self.function, self.constants = function, constants
        self.graphs: dict[object, Callable[..., Any]] = {}
        self.works = True

    def __call__(self, *arguments: Any) -> Any:
        if not self.works:
            return self.function(*arguments)
        key = _signature(arguments)
        if key in self.graphs:
            return self.graphs[key](*arguments)
        graph = self._compile(arguments)
        try:
            result = graph(*arguments)
        except Exception as error:  # whatever a compiler, or its absence, raises
            self.works = False
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("nothing is compiled, and work goes on slower. On a CPU it takes g++ or clang: %s", reason)
            return self.function(*arguments)
        self.graphs[key] = graph
        return result

    def _compile(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        from torch.fx.experimental.proxy_tensor import make_fx

        caching = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            trace = make_fx(lambda *a: self.function(*a), tracing_mode="fake", _allow_non_fake_inputs=self.constants)
            compiled = torch.compile(trace(*arguments))
        finally:
            torch.set_autocast_cache_enabled(caching)
        device = next(a.device for a in pytree.tree_leaves(arguments) if isinstance(a, Tensor))

        def run(*arguments: Any) -> Any:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                return compiled(*arguments)

        return run


def _signature(arguments: tuple[Any, ...]) -> object:
    leaves, structure = pytree.tree_flatten(arguments)
    kinds = [(a.shape, a.stride(), a.dtype, a.device) if isinstance(a, Tensor) else a for a in leaves]
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    return (str(structure), *kinds, *autocast)


class CompiledGradient:
    r"""The values and gradients of a potential `V`, compiled; its parameters may change in between.

    Arguments:
        potential: The network, images `(B, C, H, W)` to `(B,)`.
    """

    def __init__(self, potential: nn.Module) -> None:
        self.potential = potential
        self.graph = Compiled(self.derivative)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns `V` `(B,)` and its gradient at `x`, both detached."""
        x = x.detach().contiguous(memory_format=torch.channels_last)
        value, gradient = self.graph({name: p.detach() for name, p in self.potential.named_parameters()}, x)
        return value, gradient

    def derivative(self, parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = torch.func.functional_call(self.potential, parameters, (leaf,))
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient.detach()
