r"""Ladders of inverse temperatures, and the barriers that they climb.

References:
    | Non-reversible parallel tempering: a scalable highly parallel MCMC scheme (Syed et al., 2022)
    | https://arxiv.org/abs/1905.02939
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

REJECTION = 0.5
"""The most that neighbours should reject: a ladder on which they would reject more ends sooner."""


def geometric(count: int, last: float = 1 / 8) -> tuple[float, ...]:
    r"""Returns `count` inverse temperatures from 1 to `last`, each the same share of the one before.

    Examples:
        >>> geometric(4)
        (1.0, 0.5, 0.25, 0.125)
    """
    return tuple(last ** (k / max(1, count - 1)) for k in range(count))


def barriers(ladder: Tensor, rejection: Tensor, last: float) -> tuple[Tensor, Tensor]:
    r"""Returns what has been seen of the communication barrier :math:`\Lambda(\beta)`.

    It is the sum of rejections from 1 to :math:`\beta`, known at each rung, and beyond the last extended to the
    inverse temperature `last` as steep as it ends, in :math:`\log \beta`.

    Arguments:
        ladder: Inverse temperatures of each row, `(K, S B)`, falling.
        rejection: The mean rejection of swaps between neighbours, `(K - 1, S B)`.
        last: An inverse temperature, at most that of the last rung.

    Returns:
        The values of :math:`\log \beta` and of :math:`\Lambda`, `(K + 1, S B)` each.
    """
    steps, logs = rejection.clamp(min=1e-3), ladder.log()
    end = torch.full_like(logs[:1], math.log(last))
    beyond = (logs[-1:] - end).clamp(min=0) / (logs[-2:-1] - logs[-1:]) * steps[-1:]
    return torch.cat([logs, end]), torch.cat([torch.zeros_like(end), steps, beyond]).cumsum(0)


def even(ladder: Tensor, rejection: Tensor, last: float) -> Tensor:
    r"""Returns the ladder on which neighbours reject alike, and at most `REJECTION`.

    New rungs divide the barrier evenly, by linear interpolation of :math:`\log \beta` over :math:`\Lambda`. They
    reach to `last`, or as far as they can. Arguments are those of :func:`barriers`.

    Examples:
        >>> ladder = torch.tensor([[1.0], [0.1], [0.01]])
        >>> even(ladder, torch.tensor([[0.6], [0.2]]), 0.01).T.log10()
        tensor([[ 0.0000, -0.6667, -2.0000]])
        >>> even(ladder, torch.tensor([[0.9], [0.9]]), 0.01).T.log10()
        tensor([[ 0.0000, -0.5556, -1.1111]])
    """
    logs, barrier = (part.mT.contiguous() for part in barriers(ladder, rejection, last))
    shares = torch.linspace(0, 1, len(ladder), dtype=ladder.dtype, device=ladder.device)[1:]
    goal = barrier[:, -1:].clamp(max=REJECTION * len(rejection)) * shares
    above = torch.searchsorted(barrier, goal).clamp(1, len(ladder))
    low, high = barrier.gather(1, above - 1), barrier.gather(1, above)
    inner = logs.gather(1, above - 1).lerp(logs.gather(1, above), (goal - low) / (high - low))
    return torch.cat([ladder[:1], inner.mT.exp()])
