r"""Cells, problem by problem and method by method; what fails becomes a record that says why."""

from __future__ import annotations

import datetime
import logging
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emprior._noise import derive_seed
from emprior._types import Image
from emprior.bench.code import code_digest
from emprior.bench.cost import Cost, measured
from emprior.bench.figures import figures
from emprior.bench.methods import METHODS, Answer, Method, Models, Settings, Task
from emprior.bench.plan import Plan
from emprior.bench.records import DONE, FAILED, Record, Shelf, digest_of
from emprior.bench.suites import Suite
from emprior.problem import Problem
from emprior.train.provenance import hardware, revision

logger = logging.getLogger("emprior")

PACKAGES = ("emprior", "torch", "deepinv", "azula")
MISSING = "not installed"

Tuned = Callable[[Suite, str, str, Plan], Mapping[str, float]]
"""Maps a suite, a problem, a method and a plan to the settings of the method."""


@dataclass(frozen=True, eq=False)
class Bout:
    r"""A problem with its images and measurements, which every method is given alike.

    Arguments:
        suite: The suite.
        problem: The problem.
        x: The true images, `(B, *shape)`.
        y: Their measurements, `(B, *measured)`.
        plan: What is to be run.
    """

    suite: Suite
    problem: Problem
    x: Image
    y: Tensor
    plan: Plan

    @staticmethod
    def of(suite: Suite, name: str, x: Image, plan: Plan, stage: str = "test") -> Bout:
        r"""Returns a problem with its measurements, which depend on the images, the seed and the stage alone."""
        problem = suite.problem(name)
        y = problem.measure(x, seed=derive_seed(plan.seed, "bench", stage))
        return Bout(suite, problem, x.to(plan.device), y.to(plan.device), plan)

    @cached_property
    def law(self) -> Any:
        r"""The exact posterior of the measurements, where it is known."""
        return None if self.suite.exact is None else self.suite.exact(self.problem, self.y.cpu())

    @property
    def task(self) -> Task:
        return Task(self.problem.operator, self.y, self.problem.sigma, self.problem.shape)

    def answer(self, method: Method, models: Models, settings: Settings) -> tuple[Answer, Cost]:
        r"""Runs a method, some images at a time, and returns its answer and its cost."""
        answers, total = [], Cost(0.0, 0)
        for first in range(0, len(self.y), self.plan.batch):
            part = replace(self.task, y=self.y[first : first + self.plan.batch])
            seed = derive_seed(self.plan.seed, "bench", first)
            with measured(self.y.device) as cost:
                answers.append(method.run(part, models, self.plan.samples, seed, settings))
            peak = None if cost.memory is None or total.memory is None else max(total.memory, cost.memory)
            total = Cost(total.seconds + cost.seconds, peak)
        return _joined(answers), total


def run(
    suite: Suite,
    problems: Sequence[str],
    methods: Sequence[str],
    plan: Plan,
    shelf: Shelf,
    tuned: Tuned | None = None,
) -> Iterator[tuple[Record, bool]]:
    r"""Runs each method on each problem, and yields its record and whether it was there before.

    Arguments:
        suite: Images, problems and networks.
        problems: The names of problems.
        methods: The names of methods.
        plan: What is to be run.
        shelf: Where the records are kept; those of the same key are not run again.
        tuned: Chooses the settings; by default they are the method's own.

    Raises:
        OSError: A record cannot be written.
    """
    x, models = suite.test(plan.images), suite.models(plan.device)
    for problem in problems:
        bout = Bout.of(suite, problem, x, plan)
        yield from (finished(bout, name, models, shelf, tuned) for name in methods)


def finished(bout: Bout, name: str, models: Models, shelf: Shelf, tuned: Tuned | None = None) -> tuple[Record, bool]:
    r"""Returns the record of a method on a problem and whether it was there; if it was not, it is made and kept.

    Raises:
        OSError: The record cannot be written.
    """
    method, problem = METHODS[name], bout.problem.name
    chosen = method.settings if tuned is None else tuned(bout.suite, problem, name, bout.plan)
    settings = paced_settings(method, chosen, bout.plan)
    key = cell_key(bout, name, settings)
    known = shelf.find(problem, name, key)
    if known is not None:
        return known, True
    record, answer = cell(bout, name, models, settings, key)
    shelf.keep(record, None if answer is None else pictures(bout, answer))
    return record, False


def paced_settings(method: Method, settings: Settings, plan: Plan) -> Settings:
    r"""Returns the settings within the budget of the plan."""
    return settings if plan.budget is None else method.within(settings, plan.samples, plan.budget)


def cell_key(bout: Bout, name: str, settings: Settings) -> str:
    r"""Returns the digest of all that the figures of a cell depend on, the code of emprior that makes them included."""
    networks = [fact.get("identity", fact["sha256"]) for fact in bout.suite.facts]
    packages = {package: _version(package) for package in PACKAGES}
    content = bout.x.cpu().numpy().tobytes() + bout.y.cpu().numpy().tobytes()
    code = code_digest(METHODS[name].run.__module__, figures.__module__)
    return digest_of(
        bout.suite.name, bout.problem.name, name, dict(settings), bout.plan.facts(), networks, packages, content, code
    )


def cell(bout: Bout, name: str, models: Models, settings: Settings, key: str = "") -> tuple[Record, Answer | None]:
    r"""Runs a method on a problem; an exception becomes the reason why it failed."""
    method, plan, digest = METHODS[name], bout.plan, digest_of(bout.y.cpu().numpy().tobytes())
    blank = Record(
        key, bout.suite.name, bout.problem.name, name, method.kind, _source(method), method.reference, dict(settings),
        plan.facts(), bout.suite.facts, FAILED, digest=digest, run=_circumstances(bout.y.device),
    )  # fmt: skip
    if method.source in PACKAGES and _version(method.source) == MISSING:
        return replace(blank, reason=f"{method.source} is not installed: pip install 'emprior[bench]'"), None
    models.meter.forwards = models.meter.backwards = 0
    try:
        answer, cost = bout.answer(method, models, settings)
        found = figures(answer, bout.x, bout.task, bout.law, plan.seed, bout.suite.lpips)
    except Exception as error:
        logger.debug("%s on %s", name, bout.problem.name, exc_info=True)
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return replace(blank, reason=reason), None
    lost = ~answer.estimate.flatten(1).isfinite().all(1)
    if answer.samples is not None:
        lost |= ~answer.samples.flatten(2).isfinite().all(2).all(0)
    count = len(bout.y)
    record = replace(
        blank,
        status=DONE,
        reason=answer.note,
        figures={key: [v if math.isfinite(v) else None for v in values.tolist()] for key, values in found.items()},
        failures=int(lost.sum()),
        evaluations=models.meter.forwards / count,
        derivatives=models.meter.backwards / count,
        samples=0 if answer.samples is None else len(answer.samples),
        run={**blank.run, "seconds": cost.seconds / count, "memory": cost.memory},
    )
    return record, answer


def pictures(bout: Bout, answer: Answer) -> dict[str, np.ndarray]:
    r"""Returns the truth, the data seen as an image, and the answer, of the first images, in half precision."""
    with torch.no_grad():
        seen = bout.task.fidelity().prox(torch.full_like(bout.x, 0.5), 1.0)
    std = answer.std
    if std is None and answer.samples is not None and len(answer.samples) > 1:
        std = answer.samples.std(0)
    parts = {"truth": bout.x, "seen": seen, "estimate": answer.estimate, "std": std}
    parts["sample"] = None if answer.samples is None else answer.samples[0]
    kept = {name: part[: bout.plan.shown] for name, part in parts.items() if part is not None}
    return {name: part.detach().cpu().numpy().astype(np.float16) for name, part in kept.items()}


def _joined(answers: list[Answer]) -> Answer:
    r"""Returns one answer for all images, of as many draws as the image with the fewest has."""
    estimate = torch.cat([answer.estimate for answer in answers])
    draws = [answer.samples for answer in answers if answer.samples is not None]
    stds = [answer.std for answer in answers if answer.std is not None]
    count = min((len(part) for part in draws), default=0)
    samples = torch.cat([part[:count] for part in draws], 1) if draws else None
    notes = [answer.note for answer in answers]
    note = next((note for note in notes if note.startswith("not ")), notes[0])
    return Answer(estimate, samples, torch.cat(stds) if len(stds) == len(answers) else None, note)


def _circumstances(device: torch.device) -> dict[str, Any]:
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    versions = {package: _version(package) for package in PACKAGES} | {"python": platform.python_version()}
    return {"date": date, "revision": revision(), "hardware": hardware(device), "versions": versions}


def _source(method: Method) -> str:
    return f"{method.source} {_version(method.source)}" if method.source in PACKAGES else method.source


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return MISSING
