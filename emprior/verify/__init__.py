r"""The truth suite: samplers against posteriors that are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from os import PathLike

from emprior._check import check_positive, nearest
from emprior.energy import Prior
from emprior.solvers import METHODS
from emprior.verify import calibration, efficiency, fields, mixture, signals
from emprior.verify.images import images as of_images
from emprior.verify.images import prior_of_images
from emprior.verify.peers import PEERS
from emprior.verify.peers import peers as of_peers
from emprior.verify.row import Case, Row

__all__ = ["DEFAULT", "PEERS", "SUITES", "Row", "verify"]

SUITES: dict[str, tuple[Callable[..., Iterator[Row]], str | None]] = {
    "gaussian": (fields.gaussian, "posterior"),
    "modes": (mixture.modes, "tempering"),
    "calibration": (calibration.calibration, None),
    "calibration-long": (calibration.calibration_at_length, None),
    "images": (of_images, "posterior"),
    "signals": (signals.signals, None),
    "efficiency": (efficiency.efficiency, "hmc"),
}
"""Each suite with the method that it is for; None where that depends on the problem."""

IMAGES = "images"
"""The suite that takes a prior of one's own."""

DEFAULT = ("gaussian", "modes", "calibration")
"""The suites that take a minute each."""

CASES: dict[str, Callable[[int, int], Iterator[Case]]] = {
    "gaussian": partial(fields.cases, sides=(8,)),
    "modes": mixture.cases,
}
"""The problems that peers can be compared on, from the number of images and the seed."""


def verify(
    suites: Sequence[str] = DEFAULT,
    method: str | None = None,
    *,
    peers: Sequence[str] = (),
    prior: str | PathLike[str] | Prior | None = None,
    steps: int | None = None,
    images: int = 2,
    seed: int = 0,
) -> Iterator[Row]:
    r"""Runs samplers on problems whose posterior is known, and yields a row of figures for each as it is done.

    Arguments:
        suites: The names of suites: `"gaussian"`, fields of 8 x 8 and 32 x 32 pixels under four operators;
            `"modes"`, a posterior of two modes far apart; `"calibration"`, the ranks of many truths among draws, on
            the small fields and the two modes, and `"calibration-long"`, on signals and on images; `"images"`, a
            mixture fitted to photographs under the bundled problems; `"signals"`, signals with independent
            increments; `"efficiency"`, effective draws for the gradients that they cost, beside unadjusted Langevin's.
        method: The name of a method that samples; by default the one that the suite is for.
        peers: Names of samplers of deepinv, `PEERS`, to run beside it on the small fields and on the two modes. Their
            rows have no bars.
        prior: A prior, by name, by folder or as it is, such as an energy learned from draws of the mixture, to be
            sampled beside the mixture itself on `"images"`.
        steps: The iterations of the method; by default its own.
        images: The number of images; a hundred times as many for ranks.
        seed: The seed of truths, measurements and chains.

    Raises:
        ValueError: A name is unknown, the method does not sample, or no suite is one that peers run on or that takes a
            prior.
    """
    images = check_positive("images", images, whole=True)
    for kind, names, known in (("suite", suites, list(SUITES)), ("peer", peers, list(PEERS))):
        for name in names:
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}. {nearest(name, known)}")
    if peers and not set(suites) & set(CASES):
        raise ValueError(f"peers run on {' and '.join(CASES)} alone, got {', '.join(suites)}. Add one of these suites.")
    if prior is not None:
        if IMAGES not in suites:
            raise ValueError(f"a prior is for the suite {IMAGES!r} alone, got {', '.join(suites)}. Add that suite.")
        prior = prior_of_images(prior)
    if method is not None and (method not in METHODS or not METHODS[method].samples):
        samplers = [name for name, recipe in METHODS.items() if recipe.samples]
        raise ValueError(f"{method!r} is not a method that samples. {nearest(method, samplers)}")
    return (row for suite in suites for row in _rows(suite, method, peers, prior, steps, images, seed))


def _rows(
    suite: str,
    method: str | None,
    peers: Sequence[str],
    prior: Prior | None,
    steps: int | None,
    images: int,
    seed: int,
) -> Iterator[Row]:
    run, own = SUITES[suite]
    run = partial(run, prior=prior) if suite == IMAGES else run
    yield from run(method or own, steps, images, seed)
    if peers and suite in CASES:
        yield from of_peers(peers, CASES[suite](images, seed), seed)
