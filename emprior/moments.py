r"""The mean and the variance of a stream of samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from emprior._types import Image


@dataclass
class Moments:
    r"""The running mean and variance of samples, by Welford's recursion.

    References:
        | Note on a Method for Calculating Corrected Sums of Squares and Products (Welford, 1962)
    """

    count: int = 0
    mean: Tensor | None = None
    square: Tensor | None = None

    def add(self, x: Image) -> None:
        r"""Takes in samples `(S, B, *shape)`."""
        for sample in x:
            self.count += 1
            if self.mean is None or self.square is None:
                self.mean, self.square = sample.clone(), sample.new_zeros(sample.shape)
                continue
            delta = sample - self.mean
            self.mean = self.mean + delta / self.count
            self.square = self.square + delta * (sample - self.mean)

    def std(self) -> Tensor | None:
        r"""Returns the standard deviation over samples, `(B, *shape)`, or None of fewer than two."""
        if self.square is None or self.count < 2:
            return None
        return (self.square / (self.count - 1)).clamp(min=0).sqrt()
