r"""Methods whose rows are moved under a law that changes, without asking the prior twice where that can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image, PerImage
from emprior.energy import Posterior, Prior
from emprior.solvers.base import Solver, State

LEARNT = ("count", "done", "step", "warmup", "log_step", "average")
"""What a method learns of a law rather than of its rows: the fields of a state that stay when rows are exchanged."""


@dataclass(frozen=True)
class Known:
    r"""Rows `(S B, *shape)` with their prior energies, `(S B,)`, and the gradients of these; see :class:`Tempered`."""

    x: Image
    value: PerImage
    gradient: Image

    def where(self, rows: Tensor, other: Known) -> Known:
        r"""Returns these at `rows` `(S B,)` and `other` elsewhere."""
        take = column(rows, self.x)
        x, gradient = torch.where(take, self.x, other.x), torch.where(take, self.gradient, other.gradient)
        return Known(x, torch.where(rows, self.value, other.value), gradient)

    def map(self, change: Callable[[Tensor], Tensor]) -> Known:
        r"""Returns these with every tensor changed alike."""
        return Known(change(self.x), change(self.value), change(self.gradient))

    def holds(self, x: Image) -> Tensor:
        r"""Returns which rows are those of `x`, `(S B,)`."""
        return (self.x == x).flatten(1).all(1)


class Tempered(Prior):
    r"""The energy :math:`b E(x)`, with a factor for each row, which keeps what it evaluated last.

    Arguments:
        prior: The prior `E`.
        factor: The factors `b`, `(S B,)`.
        known: Rows at which `E` has been evaluated, and need not be again.
    """

    beta: PerImage

    def __init__(self, prior: Prior, factor: PerImage, known: Known | None = None) -> None:
        super().__init__(prior.shape)
        self.prior, self.factor, self.beta, self.known = prior, factor, factor, known
        self.curvature, self.spectrum = prior.curvature, prior.spectrum

    def forward(self, x: Image) -> PerImage:
        return self.factor * self.prior(x)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        known = self.knowing(x)
        return self.factor * known.value, column(self.factor, x) * known.gradient

    def knowing(self, x: Image) -> Known:
        r"""Returns what is known of rows `x`."""
        if self.known is None or not torch.equal(self.known.x, x):
            self.known = Known(x, *self.prior.value_and_grad(x))
        return self.known

    def moved(self, before: Known, x: Image) -> Known:
        r"""Returns what is known of rows `x`, each of which was kept from `before` or evaluated last."""
        last = before if self.known is None else self.known
        if bool((last.holds(x) | before.holds(x)).all()):
            return last.where(last.holds(x), before)
        return self.knowing(x)

    def gain(self, known: Known, beta: PerImage) -> PerImage:
        r"""Returns by how much the energies of known rows would fall if they had other factors."""
        return (self.factor - beta) * known.value

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("a tempered prior has an energy, but no denoiser and no draws. Temper a method such as HMC().")

    denoise = start = sample = _refuse


class Softened(Tempered):
    r"""The energies :math:`E_\beta(x)` of a prior that softens itself, with a :math:`\beta` for each row.

    What is known of rows is their energy under their own :math:`\beta`, and has to be asked anew when that changes.

    Arguments:
        prior: The prior `E`.
        beta: The inverse temperatures, `(S B,)`.
        soft: What the prior softens itself to.
    """

    def __init__(self, prior: Prior, beta: PerImage, soft: Prior) -> None:
        super().__init__(soft, torch.ones_like(beta))
        self.whole, self.beta = prior, beta
        self.curvature, self.spectrum = prior.curvature, prior.spectrum

    def gain(self, known: Known, beta: PerImage) -> PerImage:
        other = self.whole.soften(beta)
        assert other is not None
        return known.value - other(known.x)


def resumed(solver: Solver, law: Posterior, state: State, x: Image, noise: Noise) -> State:
    r"""Returns the state of a method at rows `x` under another law, with what it learnt.

    What it would prepare to learn from is not made, as a metric that takes a matrix.
    """
    kept = {entry.name: getattr(state, entry.name) for entry in fields(state) if entry.name in LEARNT}
    return replace(_settled(solver).init(law, x, noise), **kept)


def _settled(solver: Solver) -> Solver:
    r"""Returns the method as it is once it has learnt."""
    assert is_dataclass(solver)
    learns = any(entry.name == "adapt" for entry in fields(solver))
    return replace(solver, adapt=0) if learns else solver
