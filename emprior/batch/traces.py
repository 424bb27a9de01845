r"""The course of a run in an array of fixed shape, which stands beside those of a million others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

POINTS = 100
"""The places of a run that are kept."""

TERMS = ("energy", "fidelity")
"""The terms of the energy that are kept, in nats."""


def thinned(history: Mapping[str, Tensor], chains: int) -> Tensor:
    r"""Returns the course of one image's run, `(3, S, 100)`: steps, energies and data terms.

    A run of more than 100 recorded places is kept at 100 of them, evenly spread from the first to the last; what a
    shorter one lacks is NaN. What repeats the last place is left out, so that the array does not depend on how long
    other images of the same batch have taken.

    Arguments:
        history: The terms, `(K, S)` each, and their `"step"`, `(K,)`; see `emprior.result.Diagnostics.history`.
        chains: Their number, `S`.
    """
    out = torch.full((1 + len(TERMS), chains, POINTS), torch.nan, dtype=torch.float64)
    if not history:
        return out
    terms = torch.stack([history[name].detach().cpu().double() for name in TERMS])
    changed = (terms != terms[:, -1:]).any(-1).any(0).nonzero()
    count = 1 + (int(changed[-1]) + 1 if len(changed) else 0)
    places = torch.linspace(0, count - 1, min(POINTS, count)).round().long()
    out[0, :, : len(places)] = history["step"].cpu().double()[places]
    out[1:, :, : len(places)] = terms[:, places].mT
    return out


def history(array: Tensor) -> dict[str, Tensor]:
    r"""Returns the terms `(K, S)` and the `"step"` `(K,)` that an array `(3, S, 100)` holds, nothing if it is empty."""
    known = array[0, 0].isfinite()
    if not known.any():
        return {}
    terms = {name: entry[:, known].mT for name, entry in zip(TERMS, array[1:], strict=True)}
    return {"step": array[0, 0, known].long(), **terms}
