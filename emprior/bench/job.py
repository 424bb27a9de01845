r"""What is to be run, as names and paths that any process can read, and what runs a cell of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from emprior.bench.methods import Models
from emprior.bench.plan import Plan
from emprior.bench.records import Record, Shelf
from emprior.bench.runner import Bout, finished
from emprior.bench.suites import Sources, Suite, load_suite
from emprior.bench.tune import tuned

Cell = tuple[str, str]
"""A problem and a method, by name."""


class Done(NamedTuple):
    r"""A cell that is finished.

    Arguments:
        record: Its record.
        known: Whether it was there before.
        lines: What was said of its tuning.
    """

    record: Record
    known: bool
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    r"""What every process that runs cells has to know.

    Arguments:
        suite: The name of the suite.
        sources: Where its images and networks are; for a cluster, paths that its workers share.
        plan: What is to be run.
        folder: The folder of the report.
    """

    suite: str
    sources: Sources
    plan: Plan
    folder: Path


class Bench:
    r"""A job whose suite is open.

    Arguments:
        job: The job.

    Raises:
        ValueError: There is no such suite, or it lacks its images.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.suite: Suite = load_suite(job.suite, job.sources)
        self.shelf = Shelf(job.folder)
        self.bout: Bout | None = None

    @cached_property
    def models(self) -> Models:
        r"""The networks, on their device."""
        return self.suite.models(self.job.plan.device)

    def do(self, problem: str, method: str) -> Done:
        r"""Runs a cell, unless it has a record, and keeps it.

        Raises:
            OSError: The record cannot be written.
        """
        plan, lines = self.job.plan, list[str]()
        if self.bout is None or self.bout.problem.name != problem:
            self.bout = Bout.of(self.suite, problem, self.suite.test(plan.images), plan)
        choose = tuned(self.shelf, lines.append) if plan.tune else None
        return Done(*finished(self.bout, method, self.models, self.shelf, choose), tuple(lines))
