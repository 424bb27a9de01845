r"""Quantiles of a stream of samples, in the memory of a few of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._check import check_positive
from emprior._types import Image

PIXELS = 1 << 14
"""How many pixels are sorted at a time when a quantile is asked for."""


@dataclass
class _Level:
    r"""The samples of one weight: room for `size` of them, and how many there are."""

    room: Tensor
    filled: int = 0

    @property
    def items(self) -> Tensor:
        return self.room[: self.filled]


class Sketch:
    r"""A summary of the samples of each pixel that answers for any of their quantiles.

    Level `l` holds up to `size` samples of each pixel, and each of them stands for :math:`2^l` that were seen. When
    more come to a full level, it is sorted pixel by pixel and every other sample moves up,

    .. math:: x_{(1)} \le x_{(2)} \le \dots \le x_{(k)} \;\longmapsto\;
              x_{(1)}, x_{(3)}, \dots, x_{(k-1)} \quad\text{or}\quad x_{(2)}, x_{(4)}, \dots, x_{(k)}.

    The first choice counts at most :math:`2^l` samples too many below any value and the second as many too few; the
    one is taken that balances those before. For `N` samples the share of them below any value is then known to

    .. math:: \varepsilon \le \frac{\log_2(N / k) + 2}{2 k}, \qquad k = \mathrm{size},

    whatever their law and order, for a sketch without merges; `rank_error` is what is guaranteed for the one at hand.
    An error is none as often as not, which makes their root mean square at most about :math:`0.7 / k`, or 0.011 at
    the default size. Up to `size` samples nothing is lost. At most
    :math:`k (1 + \lceil \log_2(N / k) \rceil)` images are kept, 640 of 20,000 at the default size.

    Nothing is random, pixels know nothing of each other, and how the samples are split among calls of `add` does not
    matter. NaN counts as larger than any number.

    References:
        | Approximate Medians and other Quantiles in One Pass and with Limited Memory (Manku et al., 1998)
        | https://doi.org/10.1145/276304.276342

        | Optimal Quantile Approximation in Streams (Karnin et al., 2016)
        | https://arxiv.org/abs/1603.05346

    Arguments:
        size: The samples that a level holds, `k`, an even number.

    Raises:
        ValueError: `size` is not a positive even number.

    Example:
        >>> sketch = Sketch()
        >>> sketch.add(torch.linspace(0, 1, 10_001)[:, None, None])
        >>> sketch.count, abs(sketch.quantile(0.9).item() - 0.9) < 0.01
        (10001, True)
    """

    def __init__(self, size: int = 64) -> None:
        self.size = check_positive("size", size, whole=True)
        if self.size % 2:
            raise ValueError(f"size is {size}, but full levels are halved: it must be even. Try size={size + 1}.")
        self._levels: list[_Level] = []
        self._over = self._under = 0

    @property
    def count(self) -> int:
        r"""The samples seen of each pixel, `N`."""
        return sum(level.filled << index for index, level in enumerate(self._levels))

    @property
    def rank_error(self) -> float:
        r"""The largest error that `probability` can have, in `[0, 1]`.

        The rank of a quantile errs by no more than this and half the share that the heaviest sample stands for.
        """
        return max(self._over, self._under) / max(1, self.count)

    def add(self, x: Tensor) -> None:
        r"""Takes in samples `(S, B, *shape)`.

        Raises:
            ValueError: They are not a stack of batches of real numbers, or not of the shape of those before.
        """
        if x.ndim < 2 or not x.is_floating_point():
            raise ValueError(
                f"x is {x.dtype} of shape {tuple(x.shape)}, expected floating-point samples (S, B, *shape). "
                "Write x[None] for one sample of a batch."
            )
        if self._levels:
            _check_shape("x", x.shape[1:], self._shape)
        self._put(0, x.detach())

    def merge(self, other: Sketch) -> None:
        r"""Takes in all that another sketch of the same pixels has seen, and leaves it as it is.

        The guaranteed errors add up, which is to say that their mean, weighted by the counts, is the new `rank_error`,
        and what further halvings add.

        Raises:
            ValueError: The sketches differ in size or in the shape of their samples.
        """
        if other.size != self.size:
            raise ValueError(f"the sketches have sizes {self.size} and {other.size}. Make both of size {self.size}.")
        if self._levels and other._levels:
            _check_shape("other", other._shape, self._shape)
        self._over, self._under = self._over + other._over, self._under + other._under
        for index, level in enumerate(other._levels):
            self._put(index, level.items)

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        r"""Returns the `q`-quantile of each pixel, `(B, *shape)`, or several, `(Q, B, *shape)`.

        A sample of weight `w` stands for the ranks :math:`c, \dots, c + w - 1` among `0, ..., N - 1` and is placed
        in their middle; the quantile at rank :math:`q (N - 1)` is interpolated between its neighbours. Where all
        weights are one, that is the definition of `torch.quantile`.

        Arguments:
            q: Probabilities in `[0, 1]`.

        Raises:
            ValueError: A probability is out of range, or there are no samples.
        """
        asked = torch.as_tensor(q, dtype=torch.float64)
        if not bool(((asked >= 0) & (asked <= 1)).all()):
            raise ValueError(f"q is {q}, but it is a probability between 0 and 1, such as 0.95.")
        self._check_count()
        ranks = (asked.reshape(-1) * (self.count - 1)).tolist()
        items = torch.cat([level.items for level in self._levels]).flatten(1)
        weights = torch.cat([torch.full((level.filled,), 1 << i) for i, level in enumerate(self._levels)])
        parts = [_interpolate(part, weights.to(part.device), ranks) for part in items.split(PIXELS, 1)]
        return torch.cat(parts, 1).reshape(*asked.shape, *self._shape)

    def probability(self, threshold: float | Image) -> Image:
        r"""Returns the share of samples above a threshold, `(B, *shape)`.

        Arguments:
            threshold: A number, or one for each pixel, `(B, *shape)` or what broadcasts to it.

        Raises:
            ValueError: There are no samples.
        """
        self._check_count()
        above = sum((~(level.items <= threshold)).sum(0) << index for index, level in enumerate(self._levels))
        assert isinstance(above, Tensor)
        return (above.double() / self.count).to(self._levels[0].room.dtype)

    def image(self, index: int) -> Sketch:
        r"""Returns a sketch of one image of the batch, `(1, *shape)`, which goes on by itself."""
        return self.map(lambda items: items[:, index : index + 1].clone())

    def map(self, change: Callable[[Tensor], Tensor]) -> Sketch:
        r"""Returns the sketch with a function applied to its samples, such as one that moves them."""
        sketch = Sketch(self.size)
        sketch._over, sketch._under = self._over, self._under
        for index, level in enumerate(self._levels):
            sketch._put(index, change(level.items))
        return sketch

    def state_dict(self) -> dict[str, Tensor]:
        r"""Returns all that the sketch knows, as plain tensors for `safetensors` or `torch.save`."""
        numbers = {"size": self.size, "levels": len(self._levels), "over": self._over, "under": self._under}
        levels = {f"level{index}": level.items.clone() for index, level in enumerate(self._levels)}
        return {name: torch.tensor(number) for name, number in numbers.items()} | levels

    @staticmethod
    def from_state_dict(state: Mapping[str, Tensor]) -> Sketch:
        r"""Returns the sketch that `state_dict` described; it goes on as if it had never been away.

        Raises:
            ValueError: An entry is missing.
        """
        try:
            sketch = Sketch(int(state["size"]))
            for index in range(int(state["levels"])):
                sketch._put(index, state[f"level{index}"])
            sketch._over, sketch._under = int(state["over"]), int(state["under"])
        except KeyError as error:
            raise ValueError(f"the state lacks {error}. Give all that Sketch.state_dict returned.") from error
        return sketch

    @property
    def _shape(self) -> torch.Size:
        return self._levels[0].room.shape[1:]

    def _put(self, index: int, x: Tensor) -> None:
        if index == len(self._levels):
            self._levels.append(_Level(x.new_empty(self.size, *x.shape[1:])))
        level = self._levels[index]
        for part in self._portions(level, index, x):
            level.room[level.filled : level.filled + len(part)] = part
            level.filled += len(part)

    def _portions(self, level: _Level, index: int, x: Tensor) -> Iterator[Tensor]:
        r"""Yields the next samples that fit into a level, after making room in a full one."""
        while len(x):
            if level.filled == self.size:
                self._put(index + 1, self._halve(level, index))
            part, x = x.tensor_split([self.size - level.filled])
            yield part

    def _halve(self, level: _Level, index: int) -> Tensor:
        values = level.room.sort(0).values
        level.filled = 0
        if self._over <= self._under:
            self._over += 1 << index
            return values[::2]
        self._under += 1 << index
        return values[1::2]

    def _check_count(self) -> None:
        if self.count == 0:
            raise ValueError("the sketch has seen no samples. Call add(x) with samples (S, B, *shape) first.")


def _interpolate(items: Tensor, weights: Tensor, ranks: list[float]) -> Tensor:
    r"""Returns quantiles `(Q, P)` of `P` pixels at given ranks, of items `(M, P)` that stand for `weights` `(M,)`."""
    values, order = items.sort(0)
    weight = weights[order].double()
    place = weight.cumsum(0) - (weight + 1) / 2
    out = []
    for rank in ranks:
        below = (place <= rank).sum(0, keepdim=True)
        left, right = (below - 1).clamp(min=0), below.clamp(max=len(items) - 1)
        start, stop = place.gather(0, left), place.gather(0, right)
        share = ((rank - start) / (stop - start).clamp(min=1)).to(items.dtype)
        out.append(values.gather(0, left).lerp(values.gather(0, right), share))
    return torch.cat(out)


def _check_shape(name: str, given: torch.Size, known: torch.Size) -> None:
    if given != known:
        raise ValueError(
            f"{name} holds batches of shape {tuple(given)}, but the sketch is of batches (B, *shape) = {tuple(known)}. "
            "Make one Sketch for each batch."
        )
