r"""Whether measurements, operator, prior and start are of one shape."""

from __future__ import annotations

import torch

from emprior._check import check_range
from emprior._noise import generator
from emprior._types import Image
from emprior.energy import Prior
from emprior.fidelity import MISFITS, GaussianFidelity


def image_shape(fidelity: GaussianFidelity, prior: Prior, x0: Image | None) -> tuple[int, ...]:
    r"""Returns the shape of one image: that of the start, of the prior, or of what the operator maps back.

    Raises:
        ValueError: No shape suits the prior, the operator and the measurements.
    """
    shape = _found(fidelity, prior) if x0 is None else _start_shape(fidelity, prior, x0)
    if not prior.accepts(shape) or not _measures(fidelity, shape):
        raise ValueError(_mismatch(fidelity, prior, shape))
    return shape


def check_values(fidelity: GaussianFidelity, shape: tuple[int, ...]) -> None:
    r"""Raises a ValueError if the measurements are far out of the range of those of images in `[0, 1]`."""
    y = fidelity.y
    probe = torch.rand(1, *shape, generator=generator("range"), dtype=torch.float64).to(y).expand(len(y), *shape)
    with torch.no_grad():
        typical = fidelity.operator.A(probe)
    sigma = fidelity.sigma if isinstance(fidelity.sigma, float) else float(fidelity.sigma.max())
    check_range(y, typical, sigma)


def _found(fidelity: GaussianFidelity, prior: Prior) -> tuple[int, ...]:
    if _measures(fidelity, prior.shape):
        return prior.shape
    if fidelity.linear:
        try:
            return tuple(fidelity.operator.A_adjoint(fidelity.y).shape[1:])
        except MISFITS:
            pass
    raise ValueError(_mismatch(fidelity, prior, None))


def _start_shape(fidelity: GaussianFidelity, prior: Prior, x0: Image) -> tuple[int, ...]:
    shape = tuple(x0.shape[2:])
    if prior.accepts(shape) and _measures(fidelity, shape):
        return shape
    raise ValueError(
        f"x0 holds images of shape {shape}, prior {prior.title!r} is for "
        f"{prior.shape}, and y has shape {tuple(fidelity.y.shape)}. Pass a start that the prior takes and that the "
        f"operator {type(fidelity.operator).__name__} maps to the shape of y, or leave out x0."
    )


def _measures(fidelity: GaussianFidelity, shape: tuple[int, ...]) -> bool:
    r"""Whether images of `shape` have measurements of the shape of `y`."""
    y = fidelity.y
    try:
        with torch.no_grad():
            return fidelity.operator.A(torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device)).shape == y.shape
    except MISFITS:
        return False


def _mismatch(fidelity: GaussianFidelity, prior: Prior, shape: tuple[int, ...] | None) -> str:
    operator, kind = type(fidelity.operator).__name__, {1: "gray ", 3: "RGB "}.get(prior.shape[0], "")
    takes = f"takes images of shape {shape}" if shape else "gives no measurements of that shape"
    if shape is None and not fidelity.linear:
        takes += " and cannot tell what it takes: tell it by x0=torch.full((B, C, H, W), 0.5)"
    return (
        f"y has shape {tuple(fidelity.y.shape)}, the operator {operator} {takes}, and prior {prior.title!r} is for "
        f"{kind}images of shape {prior.shape}. Pass measurements of {kind}images of a matching size, or choose "
        "another prior from: emprior priors list"
    )
