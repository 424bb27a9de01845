r"""The verb: names become objects here, and nowhere else."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emprior._check import check_measurement, check_positive, check_range, check_start, nearest
from emprior._noise import Noise, generator
from emprior._outcome import chains, point
from emprior._pilot import pilot_noise
from emprior._types import Image
from emprior.energy import Posterior, Prior
from emprior.fidelity import GaussianFidelity
from emprior.hub import load_prior
from emprior.interaction import Interaction
from emprior.monitor import Monitor
from emprior.operators import as_operator, without_noise
from emprior.result import Diagnostics, Result
from emprior.solvers import METHODS, Method, NoiseLevel, run, validated

if TYPE_CHECKING:
    from deepinv.physics import Physics

logger = logging.getLogger("emprior")


@torch.no_grad()
def solve(
    operator: Physics,
    y: Tensor,
    prior: str | os.PathLike[str] | Prior = "cifar10",
    *,
    method: str = "map",
    weight: float = 1.0,
    samples: int | None = None,
    sigma: float | Tensor | str | None = None,
    interaction: Interaction | None = None,
    x0: Image | None = None,
    steps: int | None = None,
    seed: int = 0,
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
      parallel tempering of the prior around MALA, for posteriors with several modes.
    - `"mala"`: the Metropolis-adjusted Langevin algorithm, exact as the steps grow, after an annealed start.
    - `"ula"`: the unadjusted Langevin algorithm, biased by its step, after an annealed start. `"skrock"`: its
      stabilised form, less biased and faster for stiff energies.
    - `"flow"`: Energy Matching's sampler, from noise to data under the measurements; fast and biased.

    An image's result depends on its measurements, the options and the seed, never on the rest of the batch.

    Arguments:
        operator: A deepinv physics `A`, or what `emprior.as_operator` wraps.
        y: Measurements of `B` images, `(B, *measured)`, float32 or float64.
        prior: A prior, the name of a bundled one, or the path of a prior's folder.
        method: The name of a method.
        weight: The factor `w` of the prior energy; 1 is Bayes' rule.
        samples: The number `S` of chains (or of starts, of which MAP keeps the lowest in energy) for each image; 1,
            or 4 for `"posterior"`.
        sigma: The noise's standard deviation in public units, a number or one for each image `(B,)`; read from the
            operator unless given. `"estimate"` treats it as unknown, with Jeffreys' prior: methods with a Metropolis
            test sample it along with the image (`diagnostics.sigma` and `sigma_std`), and MAP takes the mean of such
            a chain.
        interaction: An energy between the samples of an image.
        x0: Where to start from, `(B, *shape)`, instead of the method's own start: MAP descends from it without a
            continuation, and chains run from it without an annealed start. From the second sample on a minimiser
            scatters its starts by noise of 0.1.
        steps: Iterations of the method, burn-in included; the annealed start of a chain comes before.
        seed: The seed of all randomness.
        progress: Whether to show a bar; by default only on a terminal.
        callback: Called after each iteration with its index and the rows `(S, B, *shape)`.

    Returns:
        The estimate, samples, mean and standard deviation, diagnostics and status.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument does not fit the others; the message names the cure.
    """
    y = check_measurement(y)
    recipe, weight = _method(method), check_positive("weight", weight)
    samples = recipe.chains if samples is None else check_positive("samples", samples, whole=True)
    steps = None if steps is None else check_positive("steps", steps, whole=True)
    if interaction is not None:
        _check_interaction(interaction, samples, method)
    x0 = None if x0 is None else check_start(x0, len(y))
    prior = _prior(prior, y)
    physics = as_operator(operator, prior.shape if x0 is None else tuple(x0.shape[1:]))
    unknown = isinstance(sigma, str)
    if isinstance(sigma, str):
        _check_estimate(sigma, method)
        physics, sigma = without_noise(physics), 1.0
    fidelity = GaussianFidelity(physics, y, sigma)
    shape = _image_shape(fidelity, prior, x0)
    _check_fit(fidelity, prior, shape)
    if interaction is not None:
        interaction.check(shape)

    found = None
    if unknown and recipe.samples:
        fidelity = GaussianFidelity(physics, y, pilot_noise(physics, y, prior, shape, weight))
    elif unknown:
        found = solve(
            physics, y, prior, method="mala", weight=weight, samples=2, sigma="estimate", seed=seed
        ).diagnostics
        fidelity = GaussianFidelity(physics, y, found.sigma)
    posterior = Posterior(fidelity, prior, weight, interaction.among(samples).to(y) if interaction else None)
    noise = Noise([(seed, _digest(image), s) for s in range(samples) for image in y], y.device, y.dtype)
    x = _starts(fidelity, noise, shape, x0, scatter=not recipe.samples)
    settings = replace(validated(method, prior.settings), fresh=x0 is None)
    settings = settings if steps is None else replace(settings, steps=steps)
    stages = [stage for stage in recipe.stages(settings) if stage.steps]
    if unknown and recipe.samples:
        stages[-1] = replace(stages[-1], solver=NoiseLevel(stages[-1].solver))
    shown = sys.stderr.isatty() if progress is None else progress
    monitor = Monitor(len(y), settings.rhat, settings.ess) if recipe.samples else None
    outcome = run(stages, posterior, x, noise, len(y), shown, callback, monitor)
    config = {
        "method": method,
        "prior": getattr(prior, "title", type(prior).__name__),
        "weight": weight,
        "samples": samples,
        "sigma": fidelity.sigma if isinstance(fidelity.sigma, float) else fidelity.sigma.tolist(),
        "steps": settings.steps,
        "seed": seed,
    }
    if monitor is None or not monitor.draws:
        result = point(outcome, fidelity, config)
        return result if found is None else _with_noise(result, found)
    return chains(outcome, monitor.close(), posterior, config, settings)


def _with_noise(result: Result, found: Diagnostics) -> Result:
    return replace(result, diagnostics=replace(result.diagnostics, sigma=found.sigma, sigma_std=found.sigma_std))


def _check_estimate(sigma: str, method: str) -> None:
    if sigma != "estimate":
        raise ValueError(f"sigma is {sigma!r}, expected a positive number, one for each image, or 'estimate'.")
    recipe = METHODS[method]
    if recipe.samples and not recipe.adjusted:
        choices = ", ".join(name for name, other in METHODS.items() if other.adjusted or not other.samples)
        raise ValueError(f"method {method!r} cannot estimate sigma. Use one of: {choices}; or pass sigma=0.02.")


def _starts(fidelity: GaussianFidelity, noise: Noise, shape: tuple[int, ...], x0: Image | None, scatter: bool) -> Image:
    r"""Returns the first rows: `x0`, or gray images fitted to the data, scattered from the second sample on."""
    if x0 is None:
        gray = torch.full((len(noise), *shape), 0.5, dtype=fidelity.y.dtype, device=fidelity.y.device)
        x = fidelity.prox(gray, 1.0)
    else:
        x = x0.to(fidelity.y).repeat(len(noise) // fidelity.images, *(1,) * len(shape))
    if scatter:
        x[fidelity.images :] += 0.1 * noise.normal(*shape)[fidelity.images :]
    return x


def _check_interaction(interaction: object, samples: int, method: str) -> None:
    if not isinstance(interaction, Interaction):
        raise TypeError(f"interaction is a {type(interaction).__name__}. Pass emprior.Interaction(strength=1.0).")
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


def _image_shape(fidelity: GaussianFidelity, prior: Prior, x0: Image | None) -> tuple[int, ...]:
    if x0 is not None:
        return _start_shape(fidelity, prior, x0)
    if _measures(fidelity, prior.shape):
        return prior.shape
    if fidelity.linear:
        try:
            return tuple(fidelity.operator.A_adjoint(fidelity.y).shape[1:])
        except (RuntimeError, ValueError, IndexError, AssertionError):
            pass
    raise ValueError(_mismatch(fidelity, prior, None))


def _start_shape(fidelity: GaussianFidelity, prior: Prior, x0: Image) -> tuple[int, ...]:
    shape = tuple(x0.shape[1:])
    if prior.accepts(shape) and _measures(fidelity, shape):
        return shape
    raise ValueError(
        f"x0 holds images of shape {shape}, prior {getattr(prior, 'title', type(prior).__name__)!r} is for "
        f"{prior.shape}, and y has shape {tuple(fidelity.y.shape)}. Pass a start that the prior takes and that the "
        f"operator {type(fidelity.operator).__name__} maps to the shape of y, or leave out x0."
    )


def _measures(fidelity: GaussianFidelity, shape: tuple[int, ...]) -> bool:
    r"""Whether images of `shape` have measurements of the shape of `y`."""
    y = fidelity.y
    try:
        with torch.no_grad():
            return fidelity.operator.A(torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device)).shape == y.shape
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return False


def _check_fit(fidelity: GaussianFidelity, prior: Prior, shape: tuple[int, ...]) -> None:
    if not prior.accepts(shape) or not _measures(fidelity, shape):
        raise ValueError(_mismatch(fidelity, prior, shape))
    y = fidelity.y
    probe = torch.rand(1, *shape, generator=generator("range"), dtype=torch.float64).to(y).expand(len(y), *shape)
    with torch.no_grad():
        typical = fidelity.operator.A(probe)
    sigma = fidelity.sigma if isinstance(fidelity.sigma, float) else float(fidelity.sigma.max())
    check_range(y, typical, sigma)


def _mismatch(fidelity: GaussianFidelity, prior: Prior, shape: tuple[int, ...] | None) -> str:
    title = getattr(prior, "title", type(prior).__name__)
    operator, kind = type(fidelity.operator).__name__, {1: "gray ", 3: "RGB "}.get(prior.shape[0], "")
    takes = f"takes images of shape {shape}" if shape else "gives no measurements of that shape"
    return (
        f"y has shape {tuple(fidelity.y.shape)}, the operator {operator} {takes}, and prior {title!r} is for "
        f"{kind}images of shape {prior.shape}. Pass measurements of {kind}images of a matching size, or choose "
        "another prior from: emprior priors list"
    )


def _digest(image: Tensor) -> str:
    content = image.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
