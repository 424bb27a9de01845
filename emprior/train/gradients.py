r"""The gradient of an iteration's loss, of the whole batch at once or in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from emprior.train.config import Train
from emprior.train.derivative import CompiledLoss, Terms
from emprior.train.negatives import Gradient
from emprior.train.objective import GradientMatchingLoss, Loss

Autocast = Callable[[], AbstractContextManager[object]]


class Backward(ABC):
    r"""Adds the gradient of a loss to the parameters."""

    @abstractmethod
    def __call__(self, *batch: Tensor) -> Terms:
        r"""Takes the arguments of the loss, and returns its detached terms."""


class WholeBatch(Backward):
    r"""All at once.

    Arguments:
        loss: The loss.
        compiled: Whether it is compiled.
        autocast: Makes the context in which losses are computed.
    """

    def __init__(self, loss: Loss, compiled: bool, autocast: Autocast) -> None:
        self.loss, self.autocast = CompiledLoss(loss) if compiled else loss, autocast

    def __call__(self, *batch: Tensor) -> Terms:
        with self.autocast():
            loss, terms = self.loss(*batch)
        loss.backward()
        return terms


class Pieces(Backward):
    r"""In pieces that take up less memory, whose losses have that of the batch as their mean.

    The contrast is no mean over images, as its highest negatives are left out and its value is bounded. Its derivative
    by the energies of the whole batch is taken first, :math:`w_i = \partial L_\mathrm{CD} / \partial V(x_i)`; the
    pieces then add :math:`\sum_i w_i \nabla_\theta V(x_i)`.

    References:
        | Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (Gao et al., 2021)
        | https://arxiv.org/abs/2101.06983

    Arguments:
        loss: The loss.
        compiled: Whether that of a piece is compiled.
        autocast: Makes the context in which losses are computed.
        count: The number `k` of pieces.
    """

    def __init__(self, loss: Loss, compiled: bool, autocast: Autocast, count: int) -> None:
        weighted = WeightedLoss(loss)
        self.whole, self.autocast, self.count = loss, autocast, count
        self.loss = CompiledLoss(weighted) if compiled else weighted

    def __call__(self, *batch: Tensor) -> Terms:
        contrasted, terms = self.weigh(*batch[3:]) if len(batch) > 3 else ((), {})
        transport = []
        for piece in zip(*(rows.chunk(self.count) for rows in (*batch[:3], *contrasted)), strict=True):
            with self.autocast():
                loss, found = self.loss(*piece)
            (loss / self.count).backward()
            transport.append(found["transport"])
        return {"transport": torch.stack(transport).mean(), **terms}

    def weigh(self, positives: Tensor, negatives: Tensor) -> tuple[tuple[Tensor, Tensor], Terms]:
        r"""Returns images of the contrast, their weights times `k`, and the terms of the contrast."""
        assert isinstance(self.whole, GradientMatchingLoss)
        x = torch.cat([positives, negatives])
        with torch.no_grad(), self.autocast():
            energies = torch.cat([self.whole.potential(piece) for piece in x.chunk(self.count)])
        energies.requires_grad_()
        contrast, gap = self.whole.compare(*energies.split([len(positives), len(negatives)]))
        (weights,) = torch.autograd.grad(contrast, energies)
        return (x, self.count * weights), {"contrast": contrast.detach(), "gap": gap}


class WeightedLoss(nn.Module):
    r"""The loss of a piece of a batch.

    Arguments:
        loss: The loss of transport, and of energies the potential `V`.
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, x1: Tensor, x0: Tensor, s: Tensor, x: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[Tensor, Terms]:
        r"""Returns :math:`L_\mathrm{OT} + \sum_i w_i V(x_i)` and the first term, detached.

        Arguments:
            x1: Data in `[-1, 1]`, `(B, C, H, W)`.
            x0: Noise, paired with the data, `(B, C, H, W)`.
            s: Noise fractions, `(B,)`.
            x: Images of the contrast, `(N, C, H, W)`.
            weights: Their weights `w`, `(N,)`.
        """
        loss, terms = self.loss(x1, x0, s)
        if x is None or weights is None:
            return loss, terms
        assert isinstance(self.loss, GradientMatchingLoss)
        return loss + (weights * self.loss.potential(x)).sum(), terms


def make_backward(loss: Loss, train: Train, autocast: Autocast) -> Backward:
    r"""Returns what takes the gradient of a loss as the settings say."""
    if train.accumulate == 1:
        return WholeBatch(loss, train.compile, autocast)
    return Pieces(loss, train.compile, autocast, train.accumulate)


def in_pieces(gradient: Gradient, count: int) -> Gradient:
    r"""Returns the gradient of a potential that takes `count` pieces of its images one after the other."""
    if count == 1:
        return gradient
    return lambda x: torch.cat([gradient(piece) for piece in x.chunk(count)])
