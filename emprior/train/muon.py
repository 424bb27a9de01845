r"""PyTorch's Muon, for kernels of any dimension."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class KernelMuon(torch.optim.Muon):
    r"""Momentum, orthogonalised: every direction of a kernel's step has about the same gain.

    A kernel is a matrix `W` of its `m` outputs by the `n` values that each sees. With the gradient `G`, its running
    mean `M` and :math:`\mu = 0.95`,

    .. math:: M \leftarrow \mu M + (1 - \mu) G, \qquad U S V^\top = \mu M + (1 - \mu) G, \qquad
              W \leftarrow (1 - \eta \delta) W - 0.2\, \eta \sqrt{\max(m, n)}\; U V^\top,

    where a Newton-Schulz iteration, in bfloat16, brings all singular values near 1. The factor makes steps about as
    long as Adam's, so that both take one rate.

    References:
        | Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024)
        | https://kellerjordan.github.io/posts/muon/
        | Muon is Scalable for LLM Training (Liu et al., 2025)
        | https://arxiv.org/abs/2502.16982

    Arguments:
        kernels: Parameters of two dimensions or more, the first that of outputs.
        lr: The rate :math:`\eta`.
        weight_decay: The decoupled decay :math:`\delta`.
    """

    def __init__(self, kernels: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        self.kernels = list(kernels)
        self.matrices = [nn.Parameter(torch.empty_like(kernel.detach().flatten(1))) for kernel in self.kernels]
        super().__init__(self.matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        r"""Moves every kernel that has a gradient."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.copy_(kernel.flatten(1))
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        super().step()
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            kernel.copy_(matrix.view(kernel.shape))
            matrix.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        r"""Forgets the gradients of the kernels."""
        for kernel in self.kernels:
            if set_to_none:
                kernel.grad = None
            elif kernel.grad is not None:
                kernel.grad.zero_()
