r"""What the estimates leave of the measurements, in units of the noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emprior.fidelity import GaussianFidelity
from emprior.operators import as_operator, without_noise
from emprior.problem import load_problem
from emprior.result import Result

if TYPE_CHECKING:
    from deepinv.physics import Physics

AGREEMENT = 0.02
"""The relative difference from the residuals that a run reported, up to which an operator is taken for its own."""


def residuals(result: Result, operator: Physics | None = None) -> list[Tensor] | str:
    r"""Returns the residuals of each image at its estimate, or why they are not known,

    .. math:: r = (y - A \hat x) / \sigma,

    where the operator sees the image, flat, and with :math:`\sigma` as it was found where it was estimated.

    Arguments:
        result: The result, on the CPU.
        operator: The operator; by default that of the problem which the result's configuration names.

    Raises:
        ValueError: The given operator does not give the residuals that the run reported, or does not fit the images.
    """
    if result.measurement is None:
        return "the measurements were not kept with the result."
    if isinstance(result.config.get("sigma"), str):
        return "the noise level was estimated, and the level that residuals are told in was not kept."
    if operator is not None:
        found = _rescaled(result, _whitened(result, operator, result.measurement))
        if _agrees(result, found):
            return found
        raise ValueError(
            "operator gives other residuals than the run reported: it is not that of the run. Give that one, or none."
        )
    name = result.config.get("problem")
    if not name:
        return "the result names no problem, and no operator was given."
    try:
        found = _rescaled(result, _whitened(result, load_problem(name).operator, result.measurement))
    except (ValueError, OSError, RuntimeError, TypeError) as error:
        return f"the problem {name} is not at hand ({str(error).partition('. ')[0]})."
    return found if _agrees(result, found) else f"the problem {name} is not the one of the run."


def _whitened(result: Result, operator: Physics, y: Tensor) -> list[Tensor]:
    r"""Returns the residuals in units of the noise level that the run was given."""
    level = result.config.get("sigma")
    sigma = torch.tensor(level, dtype=y.dtype) if isinstance(level, list) else level
    with torch.no_grad():
        data = GaussianFidelity(operator if sigma is None else without_noise(as_operator(operator)), y, sigma)
        misfit, seen = -data.misfit(result.estimate), data.seen(result.estimate) != 0
    return [row[mask].flatten() for row, mask in zip(misfit, seen, strict=True)]


def _agrees(result: Result, found: list[Tensor]) -> bool:
    known = result.diagnostics.residual.double()
    rms = torch.stack([row.double().square().mean().sqrt() for row in found])
    return torch.allclose(rms, known, rtol=AGREEMENT, atol=1e-6, equal_nan=True)


def _rescaled(result: Result, found: list[Tensor]) -> list[Tensor]:
    r"""Returns the residuals in units of the noise level that the run found, if it looked for one."""
    level, sigma = result.config.get("sigma"), result.diagnostics.sigma
    if sigma is None or level is None:
        return found
    ratios = (torch.as_tensor(level, dtype=torch.float64) / sigma.double()).expand(len(found)).tolist()
    return [row * ratio for row, ratio in zip(found, ratios, strict=True)]
