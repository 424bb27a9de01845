r"""How the weights move, and the average that follows them."""

from __future__ import annotations

import torch
from torch import nn

from emprior.train.config import Contrast, Train, Transport


def make_optimizer(network: nn.Module, phase: Transport | Contrast, train: Train) -> torch.optim.AdamW:
    r"""Makes the optimiser of a phase."""
    return torch.optim.AdamW(
        network.parameters(), phase.lr, betas=train.betas, weight_decay=train.weight_decay, fused=True
    )


def learning_rate(phase: Transport | Contrast, done: int) -> float:
    r"""Returns the rate after `done` iterations of a phase: a linear rise, a plateau, and a linear fall to zero."""
    left = (phase.steps - done) / max(1.0, phase.decay * phase.steps)
    return phase.lr * min(1.0, (1 + done) / max(1, phase.warmup), left)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    r"""Moves averaged weights by the share `1 - decay` of the way to those of the network."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
