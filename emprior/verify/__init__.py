r"""The truth suite: samplers against posteriors that are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from emprior._check import check_positive, nearest
from emprior.solvers import METHODS
from emprior.verify.fields import gaussian
from emprior.verify.mixture import modes
from emprior.verify.row import Row

__all__ = ["SUITES", "Row", "verify"]

SUITES: dict[str, tuple[Callable[..., Iterator[Row]], str]] = {
    "gaussian": (gaussian, "posterior"),
    "modes": (modes, "tempering"),
}
"""Each suite with the method that it is for."""


def verify(
    suites: Sequence[str] = tuple(SUITES),
    method: str | None = None,
    *,
    steps: int | None = None,
    images: int = 2,
    seed: int = 0,
) -> Iterator[Row]:
    r"""Runs a sampler on problems whose posterior is known, and yields a row of figures for each as it is done.

    Arguments:
        suites: The names of suites: `"gaussian"`, fields of 8 x 8 and 32 x 32 pixels under four operators, and
            `"modes"`, a posterior of two modes far apart.
        method: The name of a method that samples; by default `"posterior"`, and `"tempering"` for `"modes"`.
        steps: Its iterations; by default its own.
        images: The number of images.
        seed: The seed of truths, measurements and chains.

    Raises:
        ValueError: A name is unknown, or the method does not sample.
    """
    images = check_positive("images", images, whole=True)
    for suite in suites:
        if suite not in SUITES:
            raise ValueError(f"unknown suite {suite!r}. {nearest(suite, SUITES)}")
    if method is not None and (method not in METHODS or not METHODS[method].samples):
        samplers = [name for name, recipe in METHODS.items() if recipe.samples]
        raise ValueError(f"{method!r} is not a method that samples. {nearest(method, samplers)}")
    return (row for suite in suites for row in SUITES[suite][0](method or SUITES[suite][1], steps, images, seed))
