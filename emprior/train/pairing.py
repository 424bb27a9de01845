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
    cost = torch.cdist(x1.flatten(1), x0.flatten(1)).square()
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(columns, device=x0.device)
