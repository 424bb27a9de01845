r"""Methods under one loop. A new method is a class in a file of its own and a line in `METHODS`."""

from collections.abc import Callable
from dataclasses import dataclass

from emprior.solvers.base import Info, Moments, Run, Solver, Stage, State, run
from emprior.solvers.continuation import Continuation
from emprior.solvers.descent import Descent
from emprior.solvers.flow import Flow
from emprior.solvers.mala import MALA
from emprior.solvers.ula import ULA

__all__ = [
    "MALA",
    "METHODS",
    "ULA",
    "Continuation",
    "Descent",
    "Flow",
    "Info",
    "Method",
    "Moments",
    "Run",
    "Solver",
    "Stage",
    "State",
    "run",
]


@dataclass(frozen=True)
class Method:
    r"""A named recipe of stages.

    Arguments:
        stages: Makes the stages for a number of steps.
        steps: The default number of steps.
        samples: Whether the last stage is a sampler.
        warm: Whether it needs a point to start from, rather than making its own.
    """

    stages: Callable[[int], list[Stage]]
    steps: int
    samples: bool
    warm: bool = False


def _map(steps: int) -> list[Stage]:
    levels = max(1, min(60, round(0.7 * steps)))
    return [Stage(Continuation(levels), levels), Stage(Descent(), max(1, steps - levels - 1))]


def _continuation(steps: int) -> list[Stage]:
    return [Stage(Continuation(steps), steps)]


def _descent(steps: int) -> list[Stage]:
    return [Stage(Descent(), steps)]


def _ula(steps: int) -> list[Stage]:
    return [Stage(ULA(), steps, burn_in=steps // 4)]


def _mala(steps: int) -> list[Stage]:
    burn_in = steps // 4
    return [Stage(MALA(adapt=burn_in), steps, burn_in)]


def _flow(steps: int) -> list[Stage]:
    return [Stage(Flow(), steps, burn_in=min(steps - 1, 150))]


METHODS: dict[str, Method] = {
    "map": Method(_map, 90, samples=False),
    "continuation": Method(_continuation, 60, samples=False),
    "descent": Method(_descent, 200, samples=False, warm=True),
    "ula": Method(_ula, 2000, samples=True, warm=True),
    "mala": Method(_mala, 1000, samples=True, warm=True),
    "flow": Method(_flow, 325, samples=True),
}
