r"""Methods under one loop. A new method is a class in a file of its own and a line in `METHODS`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from emprior._check import check_positive, nearest
from emprior.moments import Moments
from emprior.solvers.annealing import Annealing
from emprior.solvers.base import Info, Observer, Run, Solver, Stage, State, run
from emprior.solvers.continuation import Continuation
from emprior.solvers.descent import Descent
from emprior.solvers.flow import Flow
from emprior.solvers.gibbs import SplitGibbs
from emprior.solvers.hmc import HMC
from emprior.solvers.ladder import geometric
from emprior.solvers.mala import MALA
from emprior.solvers.noise_level import NoiseLevel
from emprior.solvers.skrock import SKROCK
from emprior.solvers.tempering import Tempering
from emprior.solvers.ula import ULA

__all__ = [
    "HMC",
    "MALA",
    "METHODS",
    "SKROCK",
    "ULA",
    "Annealing",
    "Continuation",
    "Descent",
    "Flow",
    "Info",
    "Method",
    "Moments",
    "NoiseLevel",
    "Observer",
    "Run",
    "Settings",
    "Solver",
    "SplitGibbs",
    "Stage",
    "State",
    "Tempering",
    "run",
    "validated",
]


FLOW = 325
"""The steps of a flow, the published sampling time of 3.25."""


@dataclass(frozen=True)
class Settings:
    r"""What a recipe can be told; a prior's card may carry settings that were validated with it.

    Arguments:
        steps: Iterations in all, burn-in included; an annealed start is not counted.
        levels: The most noise levels of a continuation, or those of an annealed start.
        start: The first noise level.
        stop: The last.
        trust: The `trust` of a continuation or of an annealed start.
        tolerance: The relative gradient at which a descent stops.
        leaps: The mean number of gradients of a Hamiltonian trajectory.
        warmup: The most iterations of burn-in of Hamiltonian chains, whose metric is known; never more than a quarter.
        rungs: The replicas of parallel tempering.
        last: The inverse temperature of the last of them.
        rhat: The largest R-hat at which chains may stop.
        ess: The least effective sample size at which chains may stop.
        fresh: Whether the method makes its own start, rather than begin where the rows are.
    """

    steps: int
    levels: int = 28
    start: float = 3.0
    stop: float = 0.03
    trust: float = 2.0
    tolerance: float = 1e-5
    leaps: int = 3
    warmup: int = 100
    rungs: int = 8
    last: float = 1 / 8
    rhat: float = 1.05
    ess: float = math.inf
    fresh: bool = True


@dataclass(frozen=True)
class Method:
    r"""A named recipe of stages.

    Arguments:
        stages: Makes the stages.
        settings: The defaults.
        samples: Whether the last stage is a sampler.
        chains: How many chains or starts an image has unless told.
        adjusted: Whether the last stage has a Metropolis test, so that it can be one step of another chain.
    """

    stages: Callable[[Settings], list[Stage]]
    settings: Settings
    samples: bool
    chains: int = 1
    adjusted: bool = False


def _map(s: Settings) -> list[Stage]:
    if not s.fresh:
        return _descent(s)
    levels = min(s.levels, max(1, round(0.8 * s.steps)))
    first = replace(s, steps=levels)
    return [*_continuation(first), *_descent(replace(s, steps=s.steps - levels))]


def _continuation(s: Settings) -> list[Stage]:
    if not s.fresh:
        raise ValueError("a continuation starts from noise and would forget x0. Leave out x0, or use method='map'.")
    return [Stage(Continuation(s.steps, s.start, s.stop, s.trust), s.steps)]


def _descent(s: Settings) -> list[Stage]:
    return [Stage(Descent(s.tolerance), s.steps)]


def _annealing(s: Settings) -> list[Stage]:
    return [Stage(Annealing(s.levels, s.start, s.stop, s.trust), s.levels, burn_in=s.levels)] if s.fresh else []


def _ula(s: Settings) -> list[Stage]:
    return [*_annealing(s), Stage(ULA(), s.steps, burn_in=s.steps // 4)]


def _mala(s: Settings) -> list[Stage]:
    burn_in = s.steps // 4
    return [*_annealing(s), Stage(MALA(adapt=burn_in), s.steps, burn_in)]


def _hmc(s: Settings) -> list[Stage]:
    burn_in = min(s.steps // 4, s.warmup)
    return [*_annealing(s), Stage(HMC(leaps=s.leaps, adapt=burn_in), s.steps, burn_in)]


def _gibbs(s: Settings) -> list[Stage]:
    burn_in = s.steps // 4
    return [*_annealing(s), Stage(SplitGibbs(adapt=burn_in), s.steps, burn_in)]


def _skrock(s: Settings) -> list[Stage]:
    return [*_annealing(s), Stage(SKROCK(), s.steps, burn_in=s.steps // 4)]


def _tempering(s: Settings) -> list[Stage]:
    burn_in = s.steps // 4
    tempering = Tempering(HMC(leaps=s.leaps, adapt=burn_in), geometric(s.rungs, s.last), adapt=burn_in)
    return [*_annealing(s), Stage(tempering, s.steps, burn_in)]


def _flow(s: Settings) -> list[Stage]:
    if s.steps < 20:
        raise ValueError(
            f"a flow from noise to data takes at least 20 steps, got {s.steps}. Leave out steps for {FLOW}."
        )
    step_size = max(0.01, 1.5 / s.steps)
    levels = min(s.levels, round(1 / step_size)) if s.fresh else 0
    warm = round(0.1 / step_size) if s.fresh else s.steps // 4
    way = _annealing(replace(s, levels=levels))
    return [*way, Stage(Flow(step_size, fresh=False), s.steps - levels, burn_in=warm)]


def _chain(steps: int) -> Settings:
    start = Annealing()
    return Settings(steps, start.steps, start.start, start.stop, start.trust)


METHODS: dict[str, Method] = {
    "map": Method(_map, Settings(400), samples=False),
    "continuation": Method(_continuation, Settings(28), samples=False),
    "descent": Method(_descent, Settings(400), samples=False),
    "ula": Method(_ula, _chain(2000), samples=True),
    "mala": Method(_mala, _chain(1000), samples=True, adjusted=True),
    "hmc": Method(_hmc, _chain(200), samples=True, adjusted=True),
    "gibbs": Method(_gibbs, _chain(1000), samples=True, adjusted=True),
    "skrock": Method(_skrock, _chain(200), samples=True),
    "tempering": Method(_tempering, _chain(1000), samples=True),
    "posterior": Method(_hmc, replace(_chain(1000), ess=400.0), samples=True, chains=4, adjusted=True),
    "flow": Method(_flow, _chain(FLOW), samples=True),
}


BLIND = 9
"""The gradients of a path where the prior's curvature is not known, so that directions differ in how stiff they are."""


def validated(method: str, card: Mapping[str, Any], blind: bool = False) -> Settings:
    r"""Returns the settings of a method, those of a prior's card in place of the defaults.

    Arguments:
        method: The name of the method.
        card: Settings by method, such as `{"map": {"steps": 40}}`.
        blind: Whether the curvature of the prior is not known, which asks for longer paths.

    Raises:
        ValueError: The card names a method, a setting or a value that there is not.
    """
    for name, values in card.items():
        if name not in METHODS:
            raise ValueError(f"solver settings are for an unknown method {name!r}. {nearest(str(name), METHODS)}")
        if not isinstance(values, Mapping):
            raise ValueError(f"solver.{name} is {values!r}, expected settings such as {{steps: 40}}.")
        for key, value in values.items():
            _check_setting(name, key, value)
    settings = METHODS[method].settings
    return replace(settings, **{"leaps": BLIND if blind else settings.leaps, **card.get(method, {})})


def _check_setting(method: str, key: str, value: object) -> None:
    known = [name for name in Settings.__dataclass_fields__ if name != "fresh"]
    if key not in known:
        raise ValueError(f"solver.{method} holds an unknown setting {key!r}. {nearest(str(key), known)}")
    if key == "last" and isinstance(value, int | float) and value >= 1:
        raise ValueError(f"solver.{method}.last is {value}, expected an inverse temperature below 1. Try last=0.125.")
    check_positive(f"solver.{method}.{key}", value, whole=key in ("steps", "levels", "leaps", "warmup", "rungs"))
