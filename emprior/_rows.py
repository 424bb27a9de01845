r"""Arithmetic of rows, a batch `(B, *shape)` with one number for each."""

from __future__ import annotations

import torch
from torch import Tensor


def column(values: float | Tensor, x: Tensor) -> Tensor:
    r"""Returns a number as it is, and one number for each row so shaped that it multiplies rows `x`."""
    if not isinstance(values, Tensor):
        return torch.as_tensor(values, dtype=x.dtype, device=x.device)
    return values.reshape(-1, *(1,) * (x.ndim - 1)) if values.ndim else values


def dot(a: Tensor, b: Tensor) -> Tensor:
    r"""Returns the inner product of each row of `a` with that of `b`, `(B,)`."""
    return (a * b).flatten(1).sum(1)
