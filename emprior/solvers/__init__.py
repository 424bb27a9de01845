r"""Methods under one loop. A new method is a class in a file of its own and a line in `METHODS`."""

from collections.abc import Callable
from dataclasses import dataclass

from emprior.solvers.annealing import Annealing
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
    "Annealing",
    "Continuation",
    "Descent",
    "Flow",
    "Info",
    "Method",
    "Moments",
    "Run",
    "Settings",
    "Solver",
    "Stage",
    "State",
    "run",
]


FLOW = 325
"""The steps of a flow, the published sampling time of 3.25."""


@dataclass(frozen=True)
class Settings:
    r"""What a recipe can be told; a prior's card may carry settings that were validated with it.

    Arguments:
        steps: Iterations in all, burn-in included.
        levels: The most noise levels of a continuation.
        start: Its first noise level.
        stop: Its last.
        trust: Its `trust`.
        tolerance: The relative gradient at which a descent stops.
        fresh: Whether a flow starts from noise rather than where the rows are.
    """

    steps: int
    levels: int = 28
    start: float = 3.0
    stop: float = 0.03
    trust: float = 2.0
    tolerance: float = 1e-5
    fresh: bool = True


@dataclass(frozen=True)
class Method:
    r"""A named recipe of stages.

    Arguments:
        stages: Makes the stages.
        settings: The defaults.
        samples: Whether the last stage is a sampler.
        warm: Whether it needs a point to start from, rather than making its own.
    """

    stages: Callable[[Settings], list[Stage]]
    settings: Settings
    samples: bool
    warm: bool = False


def _map(s: Settings) -> list[Stage]:
    levels = max(1, min(s.levels, round(0.8 * s.steps)))
    first = Stage(Continuation(levels, s.start, s.stop, s.trust), levels)
    return [first, Stage(Descent(s.tolerance), max(1, s.steps - levels - 1))]


def _continuation(s: Settings) -> list[Stage]:
    return [Stage(Continuation(s.steps, s.start, s.stop, s.trust), s.steps)]


def _descent(s: Settings) -> list[Stage]:
    return [Stage(Descent(s.tolerance), s.steps)]


def _ula(s: Settings) -> list[Stage]:
    return [Stage(ULA(), s.steps, burn_in=s.steps // 4)]


def _mala(s: Settings) -> list[Stage]:
    burn_in = s.steps // 4
    return [Stage(MALA(adapt=burn_in), s.steps, burn_in)]


def _flow(s: Settings) -> list[Stage]:
    if s.steps < 20:
        raise ValueError(
            f"a flow from noise to data takes at least 20 steps, got {s.steps}. Leave out steps for {FLOW}."
        )
    step_size = max(0.01, 1.5 / s.steps)
    burn_in = round(1.1 / step_size) if s.fresh else s.steps // 4
    return [Stage(Flow(step_size, fresh=s.fresh), s.steps, burn_in)]


METHODS: dict[str, Method] = {
    "map": Method(_map, Settings(400), samples=False),
    "continuation": Method(_continuation, Settings(28), samples=False),
    "descent": Method(_descent, Settings(400), samples=False, warm=True),
    "ula": Method(_ula, Settings(2000), samples=True, warm=True),
    "mala": Method(_mala, Settings(1000), samples=True, warm=True),
    "flow": Method(_flow, Settings(FLOW), samples=True),
}
