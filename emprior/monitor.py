r"""Follows chains until they have told enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._types import Image, PerImage
from emprior.diagnostics import Mixing, mixing
from emprior.moments import Moments
from emprior.projections import Projections
from emprior.sketch import Sketch
from emprior.solvers.base import Observer

REMEMBERED = 32
"""The most states of the burn-in that are kept, to find principal components from."""

RECORDS = 500
"""The most draws of each chain whose energy is kept."""

LEARNT = ("acceptance", "weight", "weight_std", "reach", "rungs")
"""Numbers that are no draws of a chain, and cannot tell whether it has mixed."""

PATIENCE = 1.2
"""The factor by which chains grow from one judgement to the next."""


@dataclass(frozen=True, eq=False)
class Account:
    r"""What was seen of one image up to where its chains had told enough, or ended.

    Arguments:
        mean: The mean of the samples, `shape`.
        std: Their standard deviation, `shape`; `None` of a single sample.
        samples: The last state of each chain, `(S, *shape)`.
        sketch: Their quantiles.
        draws: The draws of each chain.
        mixing: How the chains mix, of this image alone.
        numbers: The mean over draws and chains of what else was known, by name.
        spreads: Its standard deviation.
        met: Whether the targets were met.
        trace: Every few draws, `"draw"`, `(K,)`, and the energy and the data term at them, `(K, S)`.
    """

    mean: Image
    std: Image | None
    samples: Tensor
    sketch: Sketch
    draws: int
    mixing: Mixing
    numbers: dict[str, float]
    spreads: dict[str, float]
    met: bool
    trace: dict[str, Tensor]

    @property
    def rhat(self) -> float:
        r"""The worst R-hat of the traces."""
        return float(self.mixing.rhat)

    @property
    def ess(self) -> float:
        r"""The least effective sample size of the traces, of bulk and tails."""
        return float(torch.minimum(self.mixing.ess, self.mixing.ess_tail))


class Monitor(Observer):
    r"""Follows the chains of `B` images, and is done with an image once they have mixed.

    It traces the energy, the data term, the mean of the image, a few pixels and the principal components of the
    burn-in. At draws 50, 60, 72 and so on, each a fifth more than the last, an image whose worst R-hat is at most
    `target_rhat` and whose least effective sample size, of bulk and tails, is at least `target_ess` is accounted for:
    what its chains do later changes nothing, so that the answer does not depend on how long other images take.

    Arguments:
        images: The number of images, `B`.
        target_rhat: The largest R-hat.
        target_ess: The least effective sample size; infinite for a run of a given length, judged at its end alone.
        first: The draws before the first judgement.
    """

    def __init__(self, images: int, target_rhat: float = 1.05, target_ess: float = 400.0, first: int = 50) -> None:
        self.images, self.target_rhat, self.target_ess, self.due = images, target_rhat, target_ess, first
        self.moments, self.sketch = Moments(), Sketch()
        self.traces: dict[str, list[Tensor]] = {}
        self.accounts: dict[int, Account] = {}
        self.past: list[Tensor] = []
        self.stride, self.seen, self.draws = 1, 0, 0
        self.projections: Projections | None = None
        self.last: Tensor | None = None

    @property
    def satisfied(self) -> bool:
        return len(self.accounts) == self.images

    def see(self, x: Image, numbers: Mapping[str, PerImage], kept: bool) -> None:
        if not kept:
            self._remember(x)
            return
        if self.projections is None:
            self.projections = Projections.fit(torch.cat(self.past[len(self.past) // 2 :] or [x]))
            self.past.clear()
        told = {name: value.cpu() for name, value in {**numbers, **self.projections.project(x)}.items()}
        self.draws, self.last = self.draws + 1, x
        self.moments.add(x)
        self.sketch.add(x)
        for name, value in told.items():
            self.traces.setdefault(name, []).append(value)
        if self.draws == self.due and math.isfinite(self.target_ess):
            self.due = int(PATIENCE * self.due)
            self._judge()

    def close(self) -> list[Account]:
        r"""Returns the accounts of all images, those of chains that have not told enough up to where they are.

        Raises:
            ValueError: Nothing was seen after the burn-in.
        """
        if not self.draws:
            raise ValueError("the run ended in its burn-in, so that there are no draws to account for. Raise steps.")
        if not self.satisfied:
            self._judge(ended=True)
        return [self.accounts[image] for image in range(self.images)]

    def _remember(self, x: Image) -> None:
        if self.seen % self.stride == 0:
            self.past.append(x)
        self.seen += 1
        if len(self.past) > REMEMBERED:
            self.past, self.stride = self.past[::2], 2 * self.stride

    def _judge(self, ended: bool = False) -> None:
        r"""Accounts for the images whose chains have told enough; the energy, which few hide from, is asked first."""
        traces = {name: torch.stack(values) for name, values in self.traces.items()}
        pending = [image for image in range(self.images) if image not in self.accounts]
        if not ended:
            hopeful = self._met({"energy": traces["energy"][:, :, pending]})[1]
            pending = [image for image, met in zip(pending, hopeful.tolist(), strict=True) if met]
        if not pending:
            return
        traces = {name: trace[:, :, pending] for name, trace in traces.items()}
        mixed, met = self._met({name: trace for name, trace in traces.items() if name not in LEARNT})
        for place, image in enumerate(pending):
            if ended or bool(met[place]):
                numbers = {name: trace[:, :, place] for name, trace in traces.items()}
                self.accounts[image] = self._account(image, mixed.image(place), numbers, bool(met[place]))

    def _met(self, traces: Mapping[str, Tensor]) -> tuple[Mixing, Tensor]:
        mixed = mixing(traces)
        ess = torch.minimum(mixed.ess, mixed.ess_tail)
        return mixed, (mixed.rhat <= self.target_rhat) & (ess >= self.target_ess)

    def _account(self, image: int, mixed: Mixing, numbers: Mapping[str, Tensor], met: bool) -> Account:
        std = self.moments.std()
        assert self.last is not None
        assert self.moments.mean is not None
        return Account(
            mean=self.moments.mean[image],
            std=None if std is None else std[image],
            samples=self.last[:, image],
            sketch=self.sketch.image(image),
            draws=self.draws,
            mixing=mixed,
            numbers={name: float(trace.mean()) for name, trace in numbers.items()},
            spreads={name: float(trace.std()) for name, trace in numbers.items()},
            met=met,
            trace=_thinned(numbers),
        )


def _thinned(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Returns every few draws of the energy and the data term, `(K, S)`, with `K` at most `RECORDS`."""
    every = {name: numbers[name] for name in ("energy", "fidelity") if name in numbers}
    count = len(every["energy"])
    kept = torch.arange(0, count, -(-count // RECORDS))
    return {"draw": kept + 1} | {name: trace[kept] for name, trace in every.items()}
