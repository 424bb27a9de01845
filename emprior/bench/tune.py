r"""Settings chosen on validation images, as many tried for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from emprior.bench.methods import METHODS, Method
from emprior.bench.plan import Plan
from emprior.bench.records import DONE, Record, Shelf
from emprior.bench.runner import Bout, Tuned, cell, cell_key, paced_settings
from emprior.bench.suites import Suite

BASES = (2, 3, 5)
"""The bases of Halton's sequence, one for each setting that is tried."""


def tuned(shelf: Shelf, say: Callable[[str], None]) -> Tuned:
    r"""Returns what chooses settings; its trials are kept beside the records, and are not run again.

    Arguments:
        shelf: Where the records are.
        say: Called with a line for each method and problem.
    """

    def choose(suite: Suite, problem: str, name: str, plan: Plan) -> Mapping[str, float]:
        method = METHODS[name]
        tried = [
            trial(suite, problem, name, settings, plan, Shelf(shelf.folder / "tune" / str(index)))
            for index, settings in enumerate(trials(method, plan.tune))
        ]
        best = max(tried, key=merit)
        told = ", ".join(f"{key} {value:.4g}" for key, value in best.settings.items() if key in method.ranges)
        say(f"  tuned {name} on {problem}: {len(tried)} trials, {told or 'nothing to choose'}")
        return best.settings

    return choose


def trials(method: Method, count: int) -> list[dict[str, float]]:
    r"""Returns `count` settings: the defaults, and points of Halton's sequence in the ranges; one if there are none.

    References:
        | On the efficiency of certain quasi-random sequences of points in evaluating multi-dimensional integrals
        | (Halton, 1960)
        | https://doi.org/10.1007/BF01386213
    """
    if not method.ranges:
        return [dict(method.settings)]
    bases = BASES[: len(method.ranges)]
    points = [tuple(halton(index, base) for base in bases) for index in range(1, count)]
    return [dict(method.settings), *(method.trial(point) for point in points)]


def trial(suite: Suite, problem: str, name: str, settings: Mapping[str, float], plan: Plan, shelf: Shelf) -> Record:
    r"""Runs a method with some settings on the validation images, unless that has been done."""
    small = replace(plan, images=plan.validation, tune=0)
    bout = Bout.of(suite, problem, suite.validation(plan.validation, plan.images), small, stage="validation")
    settings = paced_settings(METHODS[name], settings, small)
    key = cell_key(bout, name, settings)
    known = shelf.find(problem, name, key)
    if known is not None:
        return known
    record, _ = cell(bout, name, suite.models(plan.device), settings, key)
    shelf.keep(record)
    return record


def merit(record: Record) -> float:
    r"""Returns what is to be largest: minus the mean CRPS of a sampler, the mean PSNR of any other method."""
    if record.status != DONE or record.failures:
        return -math.inf
    name, sign = ("crps", -1) if record.kind == "posterior" and "crps" in record.figures else ("psnr", 1)
    values = record.figures[name]
    return sign * sum(value for value in values if value is not None) / len(values)


def halton(index: int, base: int) -> float:
    r"""Returns the radical inverse of a number: its digits in some base, mirrored about the point."""
    share, out = 1.0, 0.0
    while index:
        share /= base
        out += share * (index % base)
        index //= base
    return out
