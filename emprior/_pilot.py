r"""A first guess of the noise in measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._types import PerImage
from emprior.energy import Posterior, Prior
from emprior.fidelity import GaussianFidelity
from emprior.solvers import Annealing, Stage, run
from emprior.status import Status

if TYPE_CHECKING:
    from deepinv.physics import Physics

ROUNDS, LEVELS, LEAST = 4, 28, 1e-4


def pilot_noise(operator: Physics, y: Tensor, prior: Prior, shape: tuple[int, ...], weight: float) -> PerImage:
    r"""Returns noise levels under which reconstructions misfit the data by about as much, `(B,)`.

    .. math:: \sigma \leftarrow \sigma\, r(x_\sigma), \qquad
              r(x) = \frac{\|y - A x\|}{\sigma \sqrt{m}}, \quad x_\sigma \text{ an annealed draw given } \sigma,

    from half of the misfit of a gray image. It is where chains start that sample the noise level along with the image.
    """
    gray = torch.full((len(y), *shape), 0.5, dtype=y.dtype, device=y.device)
    unit = GaussianFidelity(operator, y, 1.0)
    level = unit.residual(gray).clamp(min=2 * LEAST) / 2
    for index in range(ROUNDS):
        fidelity = GaussianFidelity(operator, y, level)
        noise = Noise([("pilot", index)] * len(y), y.device, y.dtype)
        annealing = [Stage(Annealing(steps=LEVELS), LEVELS, burn_in=LEVELS)]
        outcome = run(annealing, Posterior(fidelity, prior, weight), fidelity.prox(gray, 1.0), noise, len(y))
        if Status.INTERRUPTED in outcome.status:
            raise KeyboardInterrupt
        level = unit.residual(outcome.x).clamp(min=LEAST)
    return level
