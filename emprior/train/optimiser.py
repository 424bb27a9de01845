r"""How the weights move, and the average that follows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from emprior.train.config import Contrast, Train, Transport
from emprior.train.muon import KernelMuon

OPTIMIZERS = ("adamw", "muon")


class Optimizers:
    r"""One or several optimisers of a network, which take steps together.

    Arguments:
        parts: Optimisers of different parameters.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts, self.rate = parts, 0.0

    def step(self, rate: float) -> None:
        r"""Takes a step of all, at one learning rate."""
        self.rate = rate
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        r"""Returns the state of each."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        r"""Takes up what `state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def make_optimizers(network: nn.Module, phase: Transport | Contrast, train: Train) -> Optimizers:
    r"""Makes the optimisers of a phase.

    With `"muon"` the kernels of a network move by :class:`emprior.train.muon.KernelMuon`, but for the first and the
    last, which move by Adam, as do all biases.
    """
    inner = [p for p in network.parameters() if p.ndim > 1][1:-1] if phase.optimizer == "muon" else []
    chosen = {id(p) for p in inner}
    outer = [p for p in network.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(outer, phase.lr, betas=train.betas, weight_decay=train.weight_decay, fused=True)
    return Optimizers(adam, KernelMuon(inner, phase.lr, weight_decay=train.weight_decay)) if inner else Optimizers(adam)


def learning_rate(phase: Transport | Contrast, done: int) -> float:
    r"""Returns the rate after `done` iterations of a phase: a linear rise, a plateau, and a linear fall to zero."""
    left = (phase.steps - done) / max(1.0, phase.decay * phase.steps)
    return phase.lr * min(1.0, (1 + done) / max(1, phase.warmup), left)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    r"""Moves averaged weights by the share `1 - decay` of the way to those of the network."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
