r"""The loop, once; a method is an `init` and a `step`.

A method works on rows: the `S` samples of `B` images are `S B` rows, ordered sample by sample, and
no row depends on the rows of other images. It never sees names, files or operators.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image, PerImage
from emprior.energy import Energy, Posterior
from emprior.moments import Moments
from emprior.result import Status

logger = logging.getLogger("emprior")


@dataclass(frozen=True)
class State:
    r"""Where a method stands.

    Arguments:
        x: The current rows, `(S B, *shape)`.
        count: The iterations done.
        done: Which rows have converged, `(S B,)`.
        value: The energies of the rows, `(S B,)`, where the method knows them; see `Solver.varies`.
    """

    x: Image
    count: int
    done: Tensor
    value: PerImage | None

    @staticmethod
    def at(x: Image) -> State:
        r"""Returns the start of a method that needs to know nothing but the rows."""
        return State(x, 0, torch.zeros(len(x), dtype=torch.bool, device=x.device), None)


@dataclass(frozen=True)
class Info:
    r"""What one iteration tells of itself.

    Arguments:
        evaluations: Gradients of the prior evaluated for each row.
        accepted: The probability or fact of acceptance of each row, `(S B,)`.
        step_size: The step of each row, `(S B,)`.
        stalled: Rows that can go no lower, `(S B,)`.
        numbers: What else was drawn or is worth following, by name, `(S B,)` each.
    """

    evaluations: int = 1
    accepted: PerImage | None = None
    step_size: PerImage | None = None
    stalled: Tensor | None = None
    numbers: Mapping[str, PerImage] = field(default_factory=dict)


class Solver(ABC):
    r"""A method: frozen options, no tensors, no state."""

    samples = False
    """Whether the iterates follow a law (a sampler) or approach a point (a minimiser)."""

    tests = False
    """Whether `State.done` is a test of convergence, by which a run is judged."""

    varies = False
    """Whether it changes the energy as it goes, so that `State.value` is of another than the one it was given."""

    def check(self, energy: Energy) -> None:  # noqa: B027 - most methods take any energy
        r"""Raises what is wrong with `energy` for this method, before any work is done."""

    @abstractmethod
    def init(self, energy: Energy, x: Image, noise: Noise) -> State:
        r"""Returns the state at rows `x`; it may cost gradients, which the first `Info` counts."""

    @abstractmethod
    def step(self, energy: Energy, state: Any, noise: Noise) -> tuple[State, Info]:
        r"""Does one iteration."""


@dataclass(frozen=True)
class Stage:
    r"""A method with its schedule.

    Arguments:
        solver: The method.
        steps: Its iterations.
        burn_in: The first iterations, left out of the statistics (and used to adapt).
    """

    solver: Solver
    steps: int
    burn_in: int = 0


class Observer(ABC):
    r"""Who follows the chains of the last stage, and says when they may stop."""

    @abstractmethod
    def see(self, x: Image, numbers: Mapping[str, PerImage], kept: bool) -> None:
        r"""Takes in one iteration.

        Arguments:
            x: The samples, `(S, B, *shape)`.
            numbers: What else is known of them, such as `"energy"`, `(S, B)` each; nothing in the burn-in.
            kept: Whether the burn-in is over.
        """

    @property
    @abstractmethod
    def satisfied(self) -> bool:
        r"""Whether nothing more needs to be seen of any image."""


@dataclass
class Run:
    r"""What the loop leaves: the last rows, their statistics, and the account of how it went."""

    x: Image
    images: int
    status: list[Status]
    bound: float
    moments: Moments = field(default_factory=Moments)
    trace: dict[str, list[Tensor]] = field(default_factory=dict)
    index: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    accepted: PerImage | None = None
    proposals: int = 0
    step_size: PerImage | None = None
    value: PerImage | None = None

    @property
    def acceptance(self) -> PerImage | None:
        r"""The mean acceptance after the burn-in, `(B,)`."""
        return None if self.accepted is None else (self.accepted / self.proposals).reshape(-1, self.images).mean(0)

    def take(self, solver: Solver, state: State, info: Info, kept: bool) -> None:
        r"""Takes in one iteration; `kept` says whether it counts in the statistics."""
        self.index += 1
        self.x, self.value = state.x, None if solver.varies else state.value
        self.evaluations += info.evaluations
        if info.step_size is not None:
            self.step_size = info.step_size.reshape(-1, self.images).mean(0)
        if not (solver.samples and kept):
            return
        self.moments.add(state.x.unflatten(0, (-1, self.images)))
        if info.accepted is not None:
            self.accepted = info.accepted if self.accepted is None else self.accepted + info.accepted
            self.proposals += 1

    def note(self, energy: Energy) -> None:
        r"""Adds the terms of the energy to the trace, once for each iteration."""
        if self.trace and int(self.trace["step"][-1]) == self.index:
            return
        known = self.value is not None and bool(self.value.isfinite().all())
        with torch.no_grad():
            terms = energy.terms(self.x, self.value if known else None)
        terms["energy"] = torch.stack(list(terms.values())).sum(0)
        for name, value in terms.items():
            self.trace.setdefault(name, []).append(value.reshape(-1, self.images).cpu())
        self.trace.setdefault("step", []).append(torch.tensor(self.index))

    def restore(self, state: State) -> State:
        r"""Puts rows that broke or ran away back to their last good place, and says so."""
        finite = state.x.flatten(1).isfinite().all(1)
        if state.value is not None:
            finite = finite & state.value.isfinite()
        near = state.x.flatten(1).abs().amax(1) < self.bound
        good = finite & near
        if bool(good.all()):
            return state
        for row in torch.nonzero(~good).flatten().tolist():
            self.blame(row % self.images, Status.DIVERGED if bool(finite[row]) else Status.NON_FINITE)
        return replace(state, x=torch.where(column(good, state.x), state.x, self.x))

    def blame(self, image: int, status: Status) -> None:
        r"""Records what went wrong with an image, and warns of it the first time."""
        if self.status[image] in (Status.DIVERGED, Status.NON_FINITE):
            return
        self.status[image] = status
        logger.warning("image %d at iteration %d: %s", image, self.index + 1, status.value)

    def judge(self, done: Tensor, stalled: Tensor) -> None:
        r"""Sets the status of each image after a method that tests convergence."""
        done, stalled = (rows.reshape(-1, self.images) for rows in (done, stalled))
        for image in range(self.images):
            if self.status[image] in (Status.DIVERGED, Status.NON_FINITE):
                continue
            ended = Status.STALLED if bool((done | stalled)[:, image].all()) else Status.EXHAUSTED
            self.status[image] = Status.CONVERGED if bool(done[:, image].all()) else ended


def run(
    stages: Sequence[Stage],
    energy: Energy,
    x: Image,
    noise: Noise,
    images: int,
    progress: bool = False,
    callback: Callable[[int, Image], None] | None = None,
    observer: Observer | None = None,
    records: int = 50,
) -> Run:
    r"""Runs methods one after the other, each from where the last one stopped.

    Arguments:
        stages: The methods and their schedules.
        energy: The energy to minimise or sample.
        x: The first rows, `(S B, *shape)`.
        noise: The random streams of the rows.
        images: The number of images, `B`.
        progress: Whether to show a bar.
        callback: Called with the iteration and the rows `(S, B, *shape)` after each iteration.
        observer: Follows the last stage, if that is a sampler's.
        records: About how many iterations the trace would keep of one stage; of those before the last, a quarter.

    Raises:
        ValueError: A method cannot treat the energy.
    """
    for stage in stages:
        stage.solver.check(energy)
    out = Run(x, images, [Status.SAMPLED] * images, RUNAWAY * (1 + float(x.abs().max())))
    total = sum(stage.steps for stage in stages)
    start = time.perf_counter()
    bar = tqdm(total=total, disable=not progress, unit="step", leave=False)
    try:
        for stage in stages:
            last = stage is stages[-1]
            watching, thin = observer if last and stage.solver.samples else None, max(1, total // records)
            _run_stage(stage, energy, noise, out, thin if last else APPROACH * thin, bar, callback, watching)
    except KeyboardInterrupt:
        logger.warning("interrupted after iteration %d: what there is, is returned", out.index)
        out.status = [Status.worst([status, Status.INTERRUPTED]) for status in out.status]
    finally:
        bar.close()
    out.note(energy)
    out.seconds = time.perf_counter() - start
    return out


APPROACH = 4
"""How many times fewer iterations of what leads to the last stage are kept: their energies have to be asked for."""

RUNAWAY = 1e4
"""How many times larger than the start a row may become before it counts as divergent."""


def _run_stage(
    stage: Stage,
    energy: Energy,
    noise: Noise,
    out: Run,
    thin: int,
    bar: tqdm,
    callback: Callable[[int, Image], None] | None,
    observer: Observer | None,
) -> None:
    solver = stage.solver
    state = out.restore(solver.init(energy, out.x, noise))
    stalled = torch.zeros_like(state.done)
    for step in range(stage.steps):
        state, info = solver.step(energy, state, noise)
        state = out.restore(state)
        kept = step >= stage.burn_in
        out.take(solver, state, info, kept)
        if observer is not None and kept and state.value is None:
            out.value = _values(energy, state.x)
        if info.stalled is not None:
            stalled = info.stalled
        if out.index % thin == 0:
            out.note(energy)
            means = {name: float(out.trace[name][-1].mean()) for name in ("energy", "fidelity") if name in out.trace}
            bar.set_postfix_str(", ".join(f"{name} {value:.1f}" for name, value in means.items()))
        bar.update()
        if callback is not None:
            callback(out.index, state.x.unflatten(0, (-1, out.images)))
        if observer is not None:
            numbers = _numbers(energy, state, info, out) if kept else {}
            observer.see(state.x.unflatten(0, (-1, out.images)), numbers, kept)
            if observer.satisfied:
                break
        if solver.tests and bool((state.done | stalled).all()):
            break
    if solver.tests:
        out.judge(state.done, stalled)


def _values(energy: Energy, x: Image) -> PerImage:
    with torch.no_grad():
        return energy(x)


def _numbers(energy: Energy, state: State, info: Info, out: Run) -> dict[str, PerImage]:
    r"""Returns what an iteration knows of its rows at little cost, `(S, B)` each."""
    numbers = dict(info.numbers) if info.accepted is None else {**info.numbers, "acceptance": info.accepted}
    value = out.value if state.value is None else state.value
    assert value is not None
    numbers["energy"] = value
    if isinstance(energy, Posterior) and "fidelity" not in numbers:
        numbers["fidelity"] = _values(energy.fidelity, state.x)
    return {name: value.reshape(-1, out.images) for name, value in numbers.items()}


def as_posterior(energy: Energy, method: str) -> Posterior:
    r"""Returns `energy` as the data term and the prior that `method` treats apart.

    Raises:
        TypeError: It is not a `Posterior`.
    """
    if not isinstance(energy, Posterior):
        raise TypeError(
            f"{method} needs a data term and a prior, got {type(energy).__name__}. "
            "Pass emprior.energy.Posterior(fidelity, prior)."
        )
    return energy


def falling(start: float, stop: float, index: int, count: int, limit: float) -> float:
    r"""Returns the noise level `index` of `count`, falling geometrically from `start` to `stop`, at most `limit`."""
    share = index / max(1, count - 1)
    return min(limit, min(start, limit) ** (1 - share) * min(stop, limit) ** share)
