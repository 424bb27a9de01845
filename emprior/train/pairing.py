r"""Minibatch optimal transport."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def optimal_pairing(x0: Tensor, x1: Tensor) -> Tensor:
    r"""Returns the permutation that pairs noise with data at the least total squared distance.

    .. math:: \pi = \arg\min_\pi \sum_i \|x_0^{\pi(i)} - x_1^i\|^2

    References:
        | Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        | (Tong et al., 2024)
        | https://arxiv.org/abs/2302.00482

    Arguments:
        x0: Noise, `(B, *shape)`.
        x1: Data, `(B, *shape)`.

    Returns:
        Indices `(B,)` into `x0`.
    """
    return assignment(transport_cost(x0, x1)).to(x0.device)


def transport_cost(x0: Tensor, x1: Tensor, alone: Tensor | None = None) -> Tensor:
    r"""Returns the squared distances of data and noise, `(B, B)`; rows that are `alone`, `(B,)`, keep their own."""
    cost = torch.cdist(x1.flatten(1), x0.flatten(1)).square()
    if alone is None:
        return cost
    own = torch.eye(len(cost), dtype=torch.bool, device=cost.device)
    return cost.masked_fill((alone[:, None] | alone) & ~own, float("inf")).masked_fill(alone[:, None] & own, 0.0)


def assignments(costs: list[Tensor]) -> Tensor:
    r"""Returns the column of each row, `(B,)`, where row `i` belongs to problem :math:`i \bmod G` of the `G` given."""
    count = len(costs)
    return torch.stack([assignment(cost) * count + index for index, cost in enumerate(costs)], dim=1).flatten()


def assignment(cost: Tensor) -> Tensor:
    r"""Returns the column of each row, `(B,)`, at the least total cost `(B, B)`."""
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1])
