r"""emprior's own methods, on the energy prior."""

from __future__ import annotations

from dataclasses import replace

import torch

from emprior._pilot import LEVELS, ROUNDS
from emprior._solve import solve
from emprior.bench.methods.base import Answer, Method, Models, Settings, Task, paced_once
from emprior.operators import without_noise
from emprior.result import Result
from emprior.solvers import HMC, Annealing
from emprior.status import Status
from emprior.verify.path import Path

STATES = 256
"""The most states of chains that are kept to draw from."""

TRACE = 100
"""The most energies that the trace of a run holds, each of one evaluation where the method does not know it."""

APPROACH = 13
"""The most of them that are of an annealed start: chains know their energies."""

LEAST = 100
"""The evaluations that a chain is worth having for: many short chains see more explanations than few long ones."""

PILOT = ROUNDS * LEVELS
"""The evaluations of the first guess of an unknown noise."""

REFERENCE = (
    "Balcerak et al., Energy Matching: Unifying Flow Matching and Energy-Based Models for Generative Modeling, 2025, "
    "https://arxiv.org/abs/2504.10612"
)


def minimum(
    task: Task, models: Models, samples: int, seed: int, settings: Settings, sigma: float | str | None = None
) -> Answer:
    r"""The mode that a graduated continuation and a descent find."""
    prior = models.prior.told("map", levels=max(1, round(0.8 * settings["steps"])))
    result = solve(
        without_noise(task.operator), task.y, prior, method="map", sigma=sigma or task.sigma, seed=seed,
        steps=int(settings["steps"]), weight=settings["weight"], progress=False,
    )  # fmt: skip
    _check_whole(result)
    return Answer(result.estimate, note=_note(result))


def posterior(
    task: Task, models: Models, samples: int, seed: int, settings: Settings, sigma: float | str | None = None
) -> Answer:
    r"""Chains of Hamiltonian Monte Carlo, which stop when they have mixed; draws are evenly spaced states of them."""
    path = Path(STATES)
    prior = models.prior.told("posterior", leaps=int(settings["leaps"]), levels=int(settings["levels"]))
    result = solve(
        without_noise(task.operator), task.y, prior, method="posterior", sigma=sigma or task.sigma, seed=seed,
        steps=int(settings["steps"]), samples=int(settings["chains"]), weight=settings["weight"], progress=False,
        callback=path,
    )  # fmt: skip
    _check_whole(result)
    draws = [path.draws(result, image, samples) for image in range(len(task.y))]
    count = min(len(part) for part in draws)
    stacked = torch.stack([part[:count] for part in draws], 1).to(task.y).unflatten(2, task.shape)
    return Answer(result.mean, stacked, result.std, _note(result))


def flow(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""An annealed start and the Langevin steps of Energy Matching; each sample is the end of a run of its own."""
    result = solve(
        without_noise(task.operator), task.y, models.prior, method="flow", sigma=task.sigma, seed=seed,
        steps=int(settings["steps"]), samples=samples, weight=settings["weight"], progress=False,
    )  # fmt: skip
    _check_whole(result)
    return Answer(result.mean, result.samples, result.std, _note(result))


def minimum_blind(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The mode, given the noise that two chains of `"chain"` paths estimate after a start of `"levels"`."""
    told = {name: int(settings[name]) for name in ("leaps", "levels")}
    prior = models.prior.told("hmc", steps=int(settings["chain"]), **told)
    return minimum(task, replace(models, prior=prior), samples, seed, settings, "estimate")


def posterior_blind(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""Chains of images and of the noise level together."""
    return posterior(task, models, samples, seed, settings, "estimate")


def _chains_within(settings: Settings, samples: int, budget: int, trace: int = APPROACH) -> Settings:
    r"""Shares a budget among chains."""
    chains = min(int(settings["chains"]), max(1, budget // LEAST))
    each = _untraced(budget // chains, trace)
    return {**settings, "chains": chains, **_paths_within(settings, settings["steps"], each)}


def _paths_within(settings: Settings, most: float, budget: int) -> Settings:
    r"""Shares the budget of a chain: a third for the start, and short paths, at most `most`, where there is little."""
    levels = min(settings["levels"], max(4, budget // 3))
    leaps = min(settings["leaps"], max(1, (budget - levels) // 60))
    steps = min(most, max(8, int((budget - levels) / HMC(leaps=int(leaps)).cost)))
    return {"levels": levels, "leaps": leaps, "steps": steps}


def _blind_chains_within(settings: Settings, samples: int, budget: int) -> Settings:
    return _chains_within(settings, samples, max(1, budget - PILOT), TRACE)


def _minimum_within(settings: Settings, samples: int, budget: int) -> Settings:
    r"""Returns as many steps as a budget pays for, at four evaluations each: descent searches along its lines."""
    return paced_once(settings, samples, max(20, budget) // 4)


def _blind_within(settings: Settings, samples: int, budget: int) -> Settings:
    r"""Gives half of a budget to the two chains that estimate the noise."""
    each = _untraced(max(1, budget // 2 - PILOT) // 2)
    first = _paths_within(settings, settings["chain"], each)
    levels, leaps, chain = (first[name] for name in ("levels", "leaps", "steps"))
    return {**_minimum_within(settings, samples, budget // 2), "levels": levels, "leaps": leaps, "chain": chain}


def _flow_within(settings: Settings, samples: int, budget: int) -> Settings:
    r"""Returns as many steps as a budget pays for: at most two thirds are of a start, the others ask for energies."""
    each = budget // samples
    steps = min(2 * each // 3, (each + Annealing().steps - APPROACH) // 2)
    return {**settings, "steps": min(settings["steps"], max(20, steps))}


def _untraced(budget: int, trace: int = TRACE) -> int:
    r"""Returns what is left of a budget for a row once the energies of its trace are paid for."""
    return max(budget // 2, budget - trace)


def _check_whole(result: Result) -> None:
    r"""Raises a KeyboardInterrupt if the solver was stopped before its end, so that no record is made of a part."""
    if Status.INTERRUPTED in result.diagnostics.status:
        raise KeyboardInterrupt


def _note(result: Result) -> str:
    r"""Returns what a run says of its worst image."""
    lines = [line for line in result.diagnostics.verdict if line.startswith("not ")]
    return lines[0] if lines else result.status.value


POSTERIOR = Method(
    "posterior", posterior, "emprior", REFERENCE,
    settings={"chains": 16, "levels": 50, "leaps": 16, "steps": 400, "weight": 1.0},
    ranges={"weight": (0.4, 2.5)},
    within=_chains_within,
)  # fmt: skip
MAP = Method(
    "point", minimum, "emprior", REFERENCE,
    settings={"steps": 36, "weight": 1.0}, ranges={"weight": (0.2, 5.0)}, within=_minimum_within,
)  # fmt: skip
FLOW = Method(
    "posterior", flow, "emprior", REFERENCE,
    settings={"steps": 325, "weight": 1.0}, ranges={"weight": (0.4, 2.5)}, within=_flow_within,
)  # fmt: skip

METHODS = {
    "emprior-posterior": POSTERIOR,
    "emprior-flow": FLOW,
    "emprior-posterior-blind": replace(
        POSTERIOR,
        run=posterior_blind,
        within=_blind_chains_within,
        settings={**POSTERIOR.settings, "chains": 8, "steps": 750},
    ),
    "emprior-map": MAP,
    "emprior-map-blind": replace(
        MAP,
        run=minimum_blind,
        within=_blind_within,
        settings={**MAP.settings, "levels": 50, "leaps": 16, "chain": 200},
    ),
}
