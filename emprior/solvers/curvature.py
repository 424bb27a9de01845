r"""How stiff an energy is."""

from __future__ import annotations

import torch

from emprior._noise import generator
from emprior._rows import column, dot
from emprior._types import Image, PerImage
from emprior.energy import Energy, Fidelity, Posterior, Prior, Scaled, Sum


def largest_curvature(energy: Energy, x: Image, steps: int = 30) -> PerImage:
    r"""Returns an estimate of the largest eigenvalue of the Hessian of `energy` for each row, `(S B,)`.

    The data term's, :math:`\|A\|^2 / \sigma^2`, comes from power iteration, the prior's is its attribute
    `curvature`, and a sum's is at most the sum.
    """
    if isinstance(energy, Scaled):
        return energy.weight * largest_curvature(energy.energy, x, steps)
    if isinstance(energy, Sum):
        return torch.stack([largest_curvature(part, x, steps) for part in energy.parts().values()]).sum(0)
    if isinstance(energy, Prior):
        return torch.full((len(x),), energy.curvature, dtype=x.dtype, device=x.device)
    if isinstance(energy, Fidelity):
        return _power_iteration(energy, x, steps)
    return torch.zeros(len(x), dtype=x.dtype, device=x.device)


def check_curvature(energy: Energy) -> None:
    r"""Raises a ValueError if the largest curvature of `energy` is unknown, because its operator is not linear."""
    fidelity = energy.fidelity if isinstance(energy, Posterior) else energy
    if isinstance(fidelity, Fidelity) and not fidelity.linear:
        raise ValueError(
            "the curvature of a nonlinear operator is unknown, so this method has no safe step. "
            "Use method='mala', which adapts its step, or give the solver a step_size yourself."
        )


def prior_curvature(energy: Energy) -> float:
    r"""Returns the curvature of the terms that are not data terms, 1 if none is known."""
    if isinstance(energy, Posterior):
        return float(energy.weight) * getattr(energy.prior, "curvature", 1.0)
    return getattr(energy, "curvature", 1.0)


def _power_iteration(fidelity: Fidelity, x: Image, steps: int) -> PerImage:
    check_curvature(fidelity)
    start = torch.randn(x.shape[1:], generator=generator("curvature"), dtype=torch.float64)
    v = start.to(x).expand_as(x)
    norm = dot(v, v).sqrt()
    for _ in range(steps):
        v = fidelity.curve(v / column(norm.clamp(min=1e-30), x))
        norm = dot(v, v).sqrt()
    return 1.05 * norm
