r"""The verb: names become objects here, and nowhere else."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emprior._check import check_measurement, check_positive, check_start, nearest
from emprior._estimate import FIRST, completed, estimating, unknown, weighted
from emprior._fit import check_values, image_shape
from emprior._noise import Noise
from emprior._outcome import chains, point
from emprior._pilot import pilot_noise
from emprior._types import Image
from emprior.energy import Posterior, Prior
from emprior.fidelity import GaussianFidelity
from emprior.hub import load_prior
from emprior.interaction import Repulsion
from emprior.monitor import Monitor
from emprior.operators import as_operator, without_noise
from emprior.result import Result
from emprior.solvers import METHODS, Annealing, Method, Settings, Stage, run, validated
from emprior.status import Status

if TYPE_CHECKING:
    from deepinv.physics import Physics

logger = logging.getLogger("emprior")

LEVELS = 20
"""The noise levels on the way to an image about which a repulsion is tested."""


@torch.no_grad()
def solve(
    operator: Physics,
    y: Tensor,
    prior: str | os.PathLike[str] | Prior = "cifar10",
    *,
    method: str = "map",
    weight: float | str = 1.0,
    samples: int | None = None,
    sigma: float | Tensor | str | None = None,
    interaction: Repulsion | None = None,
    x0: Image | None = None,
    steps: int | None = None,
    seed: int | Sequence[int] = 0,
    progress: bool | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Result:
    r"""Solves an inverse problem with an energy prior.

    The posterior of an image `x` in `[0, 1]` given measurements :math:`y = A x + \sigma n` is

    .. math:: -\log p(x \mid y) = \frac{1}{2 \sigma^2} \|y - A x\|^2 + w E(x) + \mathrm{const},

    which `method` minimises or samples:

    - `"map"`: graduated continuation, then monotone descent; `"continuation"` and `"descent"` alone.
    - `"posterior"`: what to use when in doubt. Four chains of Hamiltonian Monte Carlo after an annealed start, in the
      metric of the data, their step learnt in the burn-in; they stop once R-hat is at most 1.05 and the effective
      sample size of energy, data term, mean, pixels and principal components at least 400, or say that they could not.
    - `"hmc"`: the same of a given length. `"gibbs"`: split Gibbs with Metropolis' test, for stiff data. `"tempering"`:
      parallel tempering of the prior around HMC, for posteriors with several modes.
    - `"mala"`: the Metropolis-adjusted Langevin algorithm, exact as the steps grow, after an annealed start.
    - `"ula"`: the unadjusted Langevin algorithm, biased by its step, after an annealed start. `"skrock"`: its
      stabilised form, faster for stiff energies, whose stiff directions come out too narrow.
    - `"flow"`: an annealed start, then the semi-implicit Langevin steps that end Energy Matching's sampler; fast and
      biased.

    An image's result depends on its measurements, the options and the seed, never on the rest of the batch.

    Arguments:
        operator: A deepinv physics `A`, or what `emprior.as_operator` wraps.
        y: Measurements of `B` images, `(B, *measured)`, float32 or float64.
        prior: A prior, the name of a bundled one, or the path of a prior's folder.
        method: The name of a method.
        weight: The factor `w` of the prior energy; 1 is Bayes' rule. `"estimate"` takes the one under which the
            measurements of each image are most likely (`diagnostics.weight` and `weight_std`): methods with a
            Metropolis test learn it in their burn-in, and MAP takes that of such a chain.
        samples: The number `S` of chains (or of starts, of which MAP keeps the lowest in energy) for each image; 1,
            or 4 for `"posterior"`.
        sigma: The noise's standard deviation in public units, a number or one for each image `(B,)`; read from the
            operator unless given. `"estimate"` treats it as unknown, with Jeffreys' prior: methods with a Metropolis
            test sample it along with the image (`diagnostics.sigma` and `sigma_std`), and MAP takes the mean of such
            a chain.
        interaction: An energy between the samples of an image, an `emprior.Repulsion`. Without one they are
            independent.
        x0: Where to start from, instead of the method's own start: MAP descends from it without a continuation, and
            chains run from it without an annealed start. With `(S, B, *shape)` each sample has a start of its own, so
            that `x0=result.samples` goes on with chains. With `(B, *shape)` all chains of an image begin at one place,
            where R-hat cannot see other modes; from the second sample on a minimiser scatters its starts by noise of
            0.1.
        steps: Iterations of the method, burn-in included; the annealed start of a chain comes before.
        seed: The seed of all randomness, a number or one for each image.
        progress: Whether to show a bar; by default only on a terminal.
        callback: Called after each iteration with its index and the rows `(S, B, *shape)`.

    Returns:
        The estimate, samples, mean and standard deviation, diagnostics and status.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument does not fit the others; the message names the cure.
    """
    y = check_measurement(y)
    recipe, asked = _method(method), unknown(method, sigma, weight)
    factor = 1.0 if isinstance(weight, str) else check_positive("weight", weight)
    samples = recipe.chains if samples is None else check_positive("samples", samples, whole=True)
    _check_interaction(interaction, samples, method)
    prior = _prior(prior, y)
    x0 = None if x0 is None else check_start(x0, len(y), samples, len(prior.shape))
    settings = _settings(method, prior, steps, fresh=x0 is None)
    physics = as_operator(operator, prior.shape if x0 is None else tuple(x0.shape[2:]))
    physics = without_noise(physics) if asked == "sigma" else physics
    fidelity = GaussianFidelity(physics, y, 1.0 if isinstance(sigma, str) else sigma)
    shape = image_shape(fidelity, prior, x0)
    check_values(fidelity, shape)

    found = None
    if asked is not None and not recipe.samples:
        found = solve(physics, y, prior, weight=weight, sigma=sigma, seed=seed, **FIRST[asked]).diagnostics
        if Status.INTERRUPTED in found.status:
            raise KeyboardInterrupt
    if asked == "sigma":
        level = pilot_noise(physics, y, prior, shape, factor) if found is None else found.sigma
        fidelity = GaussianFidelity(physics, y, level)
    noise = Noise(_keys(seed, y, samples), y.device, y.dtype)
    x = _starts(fidelity, noise, shape, x0, scatter=not recipe.samples)
    posterior = Posterior(fidelity, prior, factor)
    if interaction is not None:
        posterior = _coupled(posterior, interaction, x, samples, settings)
    law = posterior
    if found is not None and found.weight is not None:
        law = weighted(posterior, found.weight.to(y), samples)

    stages = _stages(recipe, settings, asked)
    shown = sys.stderr.isatty() if progress is None else progress
    monitor = Monitor(len(y), settings.rhat, settings.ess) if recipe.samples else None
    outcome = run(stages, law, x, noise, len(y), shown, callback, monitor)
    config: dict[str, object] = {
        "method": method,
        "prior": prior.title,
        "weight": weight if isinstance(weight, str) else factor,
        "samples": samples,
        "sigma": fidelity.sigma if isinstance(fidelity.sigma, float) else fidelity.sigma.tolist(),
        "steps": settings.steps,
        "seed": [int(value) for value in seed] if isinstance(seed, Sequence) else int(seed),
    }
    if interaction is not None:
        config["interaction"] = interaction.describe()
    if x0 is not None:
        config["x0"] = "given"
    if monitor is None or not monitor.draws:
        result = point(outcome, fidelity, config)
        return result if found is None else completed(result, found)
    return chains(outcome, monitor.close(), posterior, config, settings)


def _settings(method: str, prior: Prior, steps: int | None, fresh: bool) -> Settings:
    settings = replace(validated(method, prior.settings, prior.spectrum is None), fresh=fresh)
    return settings if steps is None else replace(settings, steps=check_positive("steps", steps, whole=True))


def _stages(recipe: Method, settings: Settings, asked: str | None) -> list[Stage]:
    settings = replace(settings, warmup=settings.steps) if asked else settings
    stages = [stage for stage in recipe.stages(settings) if stage.steps]
    if asked is not None and recipe.samples:
        stages[-1] = estimating(stages[-1], asked)
    return stages


def _coupled(posterior: Posterior, interaction: Repulsion, x: Image, samples: int, s: Settings) -> Posterior:
    r"""Returns the joint posterior of the samples of an image, if it holds about `x0` or a short annealed start."""
    interaction = interaction.among(samples).to(x)
    interaction.check(x.shape[1:])
    first = x[: posterior.fidelity.images]
    if s.fresh:
        noise = Noise([("repulsion",)] * len(first), x.device, x.dtype)
        annealing = Stage(Annealing(LEVELS, s.start, s.stop, s.trust), LEVELS, burn_in=LEVELS)
        outcome = run([annealing], posterior, first, noise, len(first), records=1)
        if Status.INTERRUPTED in outcome.status:
            raise KeyboardInterrupt
        first = outcome.x
    interaction.check_proper(posterior, first)
    return Posterior(posterior.fidelity, posterior.prior, posterior.weight, interaction)


def _starts(fidelity: GaussianFidelity, noise: Noise, shape: tuple[int, ...], x0: Image | None, scatter: bool) -> Image:
    r"""Returns the first rows: `x0`, or gray images fitted to the data, scattered if they are one for all samples."""
    if x0 is None:
        gray = torch.full((len(noise), *shape), 0.5, dtype=fidelity.y.dtype, device=fidelity.y.device)
        x = fidelity.prox(gray, 1.0)
    else:
        x = x0.to(fidelity.y).expand(len(noise) // fidelity.images, *x0.shape[1:]).flatten(0, 1).clone()
    if scatter and (x0 is None or len(x0) == 1):
        x[fidelity.images :] += 0.1 * noise.normal(*shape)[fidelity.images :]
    return x


def _check_interaction(interaction: object, samples: int, method: str) -> None:
    if interaction is None:
        return
    if not isinstance(interaction, Repulsion):
        raise TypeError(f"interaction is a {type(interaction).__name__}. Pass emprior.Repulsion(strength=2.0).")
    if samples < 2:
        raise ValueError(f"an interaction is between samples, but samples is {samples}. Pass samples=2 or more.")
    if not METHODS[method].samples:
        choices = ", ".join(name for name, other in METHODS.items() if other.samples)
        raise ValueError(f"an interaction is between samples, but {method!r} does not sample. Use one of: {choices}.")


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}. {nearest(str(name), METHODS)}")
    return METHODS[name]


def _prior(prior: str | os.PathLike[str] | Prior, y: Tensor) -> Prior:
    if isinstance(prior, Prior):
        tensors = [*prior.parameters(), *prior.buffers()]
        moved = all(t.device == y.device and (not t.is_floating_point() or t.dtype == y.dtype) for t in tensors)
        return prior if moved else copy.deepcopy(prior).to(y.device, y.dtype)
    if not isinstance(prior, str | os.PathLike):
        raise TypeError(f"prior is a {type(prior).__name__}, expected a name, a folder or an emprior.energy.Prior.")
    return load_prior(prior).to(y.device, y.dtype)


def _keys(seed: int | Sequence[int], y: Tensor, samples: int) -> list[tuple[Hashable, ...]]:
    r"""Returns the key of the random stream of each row: the seed of its image, its measurements, its sample."""
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(y)
    if not all(isinstance(value, Integral) for value in seeds):
        raise TypeError(f"seed is {seed!r}, expected an integer, or one for each image. Try seed=0.")
    if len(seeds) != len(y):
        raise ValueError(f"there are {len(seeds)} seeds for {len(y)} images. Pass one for each, or a number.")
    digests = [_digest(image) for image in y]
    return [(value, digest, s) for s in range(samples) for value, digest in zip(seeds, digests, strict=True)]


def _digest(image: Tensor) -> str:
    content = image.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
