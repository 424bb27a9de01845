r"""The loop, once; a method is an `init` and a `step`.

A method works on rows: the `S` samples of `B` images are `S B` rows, ordered sample by sample, and
no row depends on the rows of other images. It never sees names, files or operators.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from emprior._noise import Noise
from emprior._types import Image, PerImage
from emprior.energy import Energy
from emprior.result import Status

logger = logging.getLogger("emprior")


@dataclass(frozen=True)
class State:
    r"""Where a method stands.

    Arguments:
        x: The current rows, `(S B, *shape)`.
        count: The iterations done.
        done: Which rows have converged, `(S B,)`.
    """

    x: Image
    count: int
    done: Tensor


@dataclass(frozen=True)
class Info:
    r"""What one iteration tells of itself.

    Arguments:
        evaluations: Gradients of the prior evaluated for each row.
        accepted: The probability or fact of acceptance of each row, `(S B,)`.
        step_size: The step of each row, `(S B,)`.
        stalled: Rows that can go no lower, `(S B,)`.
    """

    evaluations: int = 1
    accepted: PerImage | None = None
    step_size: PerImage | None = None
    stalled: Tensor | None = None


class Solver(ABC):
    r"""A method: frozen options, no tensors, no state."""

    samples = False
    """Whether the iterates follow a law (a sampler) or approach a point (a minimiser)."""

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


@dataclass
class Moments:
    r"""The running mean and variance of samples, by Welford's recursion.

    References:
        | Note on a Method for Calculating Corrected Sums of Squares and Products (Welford, 1962)
    """

    count: int = 0
    mean: Tensor | None = None
    square: Tensor | None = None

    def add(self, x: Image) -> None:
        r"""Takes in samples `(S, B, *shape)`."""
        for sample in x:
            self.count += 1
            if self.mean is None or self.square is None:
                self.mean, self.square = sample.clone(), torch.zeros_like(sample)
                continue
            delta = sample - self.mean
            self.mean = self.mean + delta / self.count
            self.square = self.square + delta * (sample - self.mean)

    def std(self) -> Tensor:
        r"""Returns the standard deviation over samples, `(B, *shape)`."""
        assert self.square is not None
        return (self.square / max(1, self.count - 1)).clamp(min=0).sqrt()


@dataclass
class Run:
    r"""What the loop leaves: the last rows, their statistics, and the account of how it went."""

    x: Image
    images: int
    moments: Moments = field(default_factory=Moments)
    trace: dict[str, list[Tensor]] = field(default_factory=dict)
    status: list[Status] = field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0
    acceptance: PerImage | None = None
    step_size: PerImage | None = None

    def note(self, energy: Energy, index: int) -> None:
        r"""Adds the terms of the energy at iteration `index` to the trace."""
        with torch.no_grad():
            terms = energy.terms(self.x)
        terms["energy"] = torch.stack(list(terms.values())).sum(0)
        for name, value in terms.items():
            self.trace.setdefault(name, []).append(value.reshape(-1, self.images).cpu())
        self.trace.setdefault("step", []).append(torch.tensor(index))


def run(
    stages: Sequence[Stage],
    energy: Energy,
    x: Image,
    noise: Noise,
    images: int,
    progress: bool = False,
    callback: Callable[[int, Image], None] | None = None,
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
        records: About how many iterations the trace keeps.
    """
    out = Run(x, images, status=[Status.SAMPLED] * images)
    total = sum(stage.steps for stage in stages)
    thin = max(1, total // records)
    start, index = time.perf_counter(), 0
    bar = tqdm(total=total, disable=not progress, unit="step", leave=False)
    try:
        for stage in stages:
            index = _run_stage(stage, energy, noise, out, index, thin, bar, callback)
    except KeyboardInterrupt:
        logger.warning("interrupted at iteration %d: what there is, is returned", index)
        out.status = [Status.INTERRUPTED] * images
    finally:
        bar.close()
    if not out.trace or int(out.trace["step"][-1]) != index:
        out.note(energy, index)
    out.seconds = time.perf_counter() - start
    return out


def _run_stage(
    stage: Stage,
    energy: Energy,
    noise: Noise,
    out: Run,
    index: int,
    thin: int,
    bar: tqdm,
    callback: Callable[[int, Image], None] | None,
) -> int:
    solver, acceptance, kept = stage.solver, None, 0
    state = solver.init(energy, out.x, noise)
    stalled = torch.zeros_like(state.done)
    for step in range(stage.steps):
        state, info = solver.step(energy, state, noise)
        index += 1
        out.evaluations += info.evaluations
        state = _restore(state, out, index)
        out.x = state.x
        if info.stalled is not None:
            stalled |= info.stalled
        if solver.samples and step >= stage.burn_in:
            kept += 1
            out.moments.add(state.x.unflatten(0, (-1, out.images)))
            if info.accepted is not None:
                acceptance = info.accepted if acceptance is None else acceptance + info.accepted
        if info.step_size is not None:
            out.step_size = info.step_size.reshape(-1, out.images).mean(0)
        if index % thin == 0:
            out.note(energy, index)
            means = {name: float(v[-1].mean()) for name, v in out.trace.items() if name in ("energy", "fidelity")}
            bar.set_postfix_str(", ".join(f"{name} {value:.1f}" for name, value in means.items()))
        bar.update()
        if callback is not None:
            callback(index, state.x.unflatten(0, (-1, out.images)))
        if bool((state.done | stalled).all()):
            break
    if acceptance is not None:
        out.acceptance = (acceptance / kept).reshape(-1, out.images).mean(0)
    if not solver.samples:
        _judge(out, state.done, stalled)
    return index


def _restore(state: State, out: Run, index: int) -> State:
    r"""Puts rows that are no longer finite back to their last finite place, and says so."""
    finite = state.x.flatten(1).isfinite().all(1)
    if bool(finite.all()):
        return state
    for image in sorted({int(row) % out.images for row in torch.nonzero(~finite).flatten()}):
        if out.status[image] is not Status.NON_FINITE:
            out.status[image] = Status.NON_FINITE
            logger.warning("image %d is not finite at iteration %d. %s", image, index, Status.NON_FINITE.value)
    keep = finite.reshape(-1, *(1,) * (state.x.ndim - 1))
    return replace(state, x=torch.where(keep, state.x, out.x))


def _judge(out: Run, done: Tensor, stalled: Tensor) -> None:
    done, stalled = done.reshape(-1, out.images).all(0), stalled.reshape(-1, out.images).any(0)
    for image in range(out.images):
        if out.status[image] is Status.NON_FINITE:
            continue
        if bool(done[image]):
            out.status[image] = Status.CONVERGED
        else:
            out.status[image] = Status.STALLED if bool(stalled[image]) else Status.EXHAUSTED


def column(values: PerImage, x: Tensor) -> Tensor:
    r"""Reshapes one number per row so that it multiplies rows `x`."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def dot(a: Tensor, b: Tensor) -> PerImage:
    r"""Returns the inner product of each row of `a` with that of `b`."""
    return (a * b).flatten(1).sum(1)
