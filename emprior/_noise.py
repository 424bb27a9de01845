r"""Randomness that depends on a key alone: never on the batch, the worker or the global generator."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from numbers import Integral

import torch
from torch import Tensor


def derive_seed(*key: Hashable) -> int:
    r"""Returns a 63-bit seed for a key of integers and strings, the same on every machine."""
    plain = tuple(int(part) if isinstance(part, Integral) else part for part in key)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: Hashable, device: torch.device | str = "cpu") -> torch.Generator:
    r"""Returns a fresh generator for a key."""
    return torch.Generator(device=device).manual_seed(derive_seed(*key))


class Noise:
    r"""One random stream for each row of a batch.

    The numbers that a row sees depend on its own key alone, so that a batch of two equals two
    batches of one.

    Arguments:
        keys: One key for each row.
        device: Where the numbers are drawn.
        dtype: The type of the numbers.
    """

    def __init__(
        self,
        keys: Sequence[tuple[Hashable, ...]],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.generators = [generator(*key, device=device) for key in keys]
        self.device, self.dtype = device, dtype

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        r"""Draws standard normal numbers, `(rows, *shape)`."""
        out = torch.empty(len(self), *shape, device=self.device, dtype=self.dtype)
        for row, stream in zip(out, self.generators, strict=True):
            row.normal_(generator=stream)
        return out

    def uniform(self, *shape: int) -> Tensor:
        r"""Draws numbers from `[0, 1)`, `(rows, *shape)`."""
        out = torch.empty(len(self), *shape, device=self.device, dtype=self.dtype)
        for row, stream in zip(out, self.generators, strict=True):
            row.uniform_(generator=stream)
        return out
