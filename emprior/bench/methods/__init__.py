r"""Methods by name. A new one is a function in a room of its kind, and an entry in that room's `METHODS`."""

from __future__ import annotations

from collections.abc import Sequence

from emprior._check import nearest
from emprior.bench.methods import azula_samplers, classical, deepinv_samplers, diffusion, own, plug_and_play
from emprior.bench.methods.base import KINDS, Answer, Method, Models, Settings, Task

__all__ = ["KINDS", "METHODS", "Answer", "Method", "Models", "Settings", "Task", "chosen"]

METHODS: dict[str, Method] = (
    own.METHODS
    | deepinv_samplers.METHODS
    | azula_samplers.METHODS
    | diffusion.METHODS
    | plug_and_play.METHODS
    | classical.METHODS
)


def chosen(names: Sequence[str]) -> list[str]:
    r"""Returns the names of methods: those given, with a kind or a source for all of it, and `"all"` for all.

    Raises:
        ValueError: A name is unknown.
    """
    out: dict[str, None] = {}
    for name in names:
        found = [key for key, method in METHODS.items() if name in ("all", key, method.kind, method.source)]
        if not found:
            sources = {method.source for method in METHODS.values()}
            raise ValueError(f"unknown method {name!r}. {nearest(name, ['all', *METHODS, *KINDS, *sources])}")
        out |= dict.fromkeys(found)
    return list(out)
