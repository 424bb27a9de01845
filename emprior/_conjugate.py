r"""Systems of equations, one for each row of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emprior._rows import column, dot


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor], b: Tensor, goal: Tensor | None = None, steps: int = 2000
) -> Tensor:
    r"""Solves :math:`M x = b` for symmetric positive definite `M`, each row of the batch on its own.

    A row stands still once the norm of its residual is below its goal, or 10 units of rounding of `b`, so that it
    does not depend on its neighbours.

    Arguments:
        operator: The map `M` over rows `(B, *shape)`.
        b: The right-hand sides `(B, *shape)`.
        goal: The norm of the residual of each row, as a column.
        steps: The most iterations.
    """
    x, r = torch.zeros_like(b), b
    p, square = r, column(dot(r, r), b)
    least = square * (10 * torch.finfo(b.dtype).eps) ** 2
    least = least if goal is None else torch.maximum(least, goal.square())
    for _ in range(steps):
        active = square > least
        if not active.any():
            break
        q = operator(p)
        alpha = torch.where(active, square / column(dot(p, q), b), 0)
        x, r = x + alpha * p, r - alpha * q
        fresh = torch.where(active, column(dot(r, r), b), square)
        p = torch.where(active, r + fresh / square * p, p)
        square = fresh
    return x
