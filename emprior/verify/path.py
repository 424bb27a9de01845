r"""What is kept of chains while they run."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from emprior.result import Result


class Path:
    r"""Keeps states of chains, evenly spaced, for `solve` to call.

    Arguments:
        limit: The most iterations that are kept.
    """

    def __init__(self, limit: int = sys.maxsize) -> None:
        self.limit, self.stride, self.last = limit, 1, 0
        self.states: dict[int, Tensor] = {}

    def __call__(self, index: int, rows: Tensor) -> None:
        r"""Takes in the rows `(S, B, *shape)` after an iteration."""
        self.last = index
        if index % self.stride == 0:
            self.states[index] = rows
        if len(self.states) > self.limit:
            self.stride *= 2
            self.states = {index: rows for index, rows in self.states.items() if index % self.stride == 0}

    def after(self, first: int, last: int = sys.maxsize) -> list[Tensor]:
        r"""Returns the states that are kept of the iterations after `first`, up to `last`."""
        return [rows for index, rows in self.states.items() if first < index <= last]

    def draws(self, result: Result, image: int, count: int) -> Tensor:
        r"""Returns at most `count` draws of an image that its result accounts for, `(n, d)` float64.

        They are evenly spaced in time, and one of each chain after the other: draw `k` of `n` is the state
        :math:`\lfloor (k + 1/2) T / n \rfloor` of the `T` kept ones, of chain `k` modulo `S`.
        """
        assert result.diagnostics.draws is not None
        first = self.last - int(result.diagnostics.draws.max())
        end = first + int(result.diagnostics.draws[image])
        kept = torch.stack([rows[:, image] for rows in self.after(first, end)])
        times, chains = kept.shape[:2]
        n = min(count, times * chains)
        k = torch.arange(n)
        return kept[(2 * k + 1) * times // (2 * n), k % chains].flatten(1).double()
