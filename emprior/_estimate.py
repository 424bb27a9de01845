r"""What can be asked of the measurements themselves: the noise level, or the weight of the prior."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor

from emprior.energy import Posterior
from emprior.result import Diagnostics, Result
from emprior.solvers import METHODS, NoiseLevel, Stage
from emprior.solvers.noise_level import Rescaled
from emprior.solvers.weight import Weight

logger = logging.getLogger("emprior")

ASK = "estimate"
"""What is passed in place of a number that is not known."""

EXAMPLES = {"sigma": 0.02, "weight": 1.0}

FIRST: dict[str, dict[str, Any]] = {
    "sigma": {"method": "hmc", "samples": 2},
    "weight": {"method": "hmc", "samples": 2, "steps": 400},
}
"""The chain whose estimate a minimiser takes."""


def unknown(method: str, sigma: object, weight: object) -> str | None:
    r"""Returns which of the two is to be estimated, `"sigma"` or `"weight"`, if any.

    Raises:
        ValueError: A word is not `"estimate"`, both are to be estimated, or the method cannot estimate them.
    """
    asked = [name for name, value in (("sigma", sigma), ("weight", weight)) if isinstance(value, str)]
    for name in asked:
        value, each = (sigma, ", one for each image,") if name == "sigma" else (weight, "")
        if value != ASK:
            raise ValueError(f"{name} is {value!r}, expected a positive number{each} or {ASK!r}.")
    if not asked:
        return None
    if len(asked) > 1:
        raise ValueError(
            "sigma and weight cannot be estimated at once: a weaker prior explains what more noise explains. "
            "Pass a number for one of them, such as weight=1.0."
        )
    (name,), recipe = asked, METHODS[method]
    if recipe.samples and not recipe.adjusted:
        choices = ", ".join(name for name, other in METHODS.items() if other.adjusted or not other.samples)
        raise ValueError(
            f"method {method!r} cannot estimate {name}. Use one of: {choices}; or pass {name}={EXAMPLES[name]}."
        )
    return name


def estimating(stage: Stage, name: str) -> Stage:
    r"""Returns a stage that samples the noise level, or learns the weight in its burn-in, along with the images."""
    solver = NoiseLevel(stage.solver) if name == "sigma" else Weight(stage.solver, stage.burn_in)
    return replace(stage, solver=solver)


def weighted(posterior: Posterior, weight: Tensor, samples: int) -> Posterior:
    r"""Returns :math:`f(x) / w_b + E(x)`, whose minimiser for image `b` is that of :math:`f(x) + w_b E(x)`.

    Arguments:
        posterior: The posterior :math:`f + E`.
        weight: The weight of each image, `(B,)`.
        samples: The number of rows of each image.
    """
    return Posterior(Rescaled(posterior.fidelity, (1 / weight).repeat(samples)), posterior.prior)


def completed(result: Result, found: Diagnostics) -> Result:
    r"""Returns a minimum under estimates with these, and with its energies :math:`f + w E` in nats.

    What the chain that made the estimates says of itself goes with them, and into the log if they are not to be
    trusted.
    """
    for image, line in enumerate(found.verdict):
        if line.startswith("not "):
            logger.warning("image %d: the chain that made the estimate is %s", image, line)
    names = ("sigma", "sigma_std", "weight", "weight_std", "rhat", "ess", "draws", "verdict")
    trace = result.diagnostics.trace
    if found.weight is not None:
        factor = found.weight.to(trace["energy"])
        trace = {name: entry if name == "step" else factor * entry for name, entry in trace.items()}
    estimates = {name: getattr(found, name) for name in names}
    return replace(result, diagnostics=replace(result.diagnostics, trace=trace, **estimates))
