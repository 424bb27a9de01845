r"""Steps that learn the acceptance they are meant to have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from emprior._types import PerImage

GAIN = 0.05
r"""How far an error of the acceptance moves the step, :math:`\gamma`: smaller moves it further."""

DELAY = 10
r"""How many iterations the first errors are spread over, :math:`t_0`."""

DECAY = 0.75
r"""How fast the average forgets the first steps, :math:`\kappa`."""


@dataclass(frozen=True)
class StepSize:
    r"""The step of each row, learnt by dual averaging.

    Arguments:
        log: The logarithm of the step to try next, `(S B,)`.
        average: The logarithm of the step to keep once learning ends, `(S B,)`.
        centre: What the logarithm is drawn to while little is known, `(S B,)`.
        error: The mean lack of acceptance so far, `(S B,)`.
        count: The iterations learnt from.
    """

    log: PerImage
    average: PerImage
    centre: PerImage
    error: PerImage
    count: int

    def now(self, learning: bool) -> PerImage:
        r"""Returns the step of each row, `(S B,)`, to try while `learning` and to keep afterwards."""
        return (self.log if learning else self.average).exp()


def begin(step_size: float, rows: PerImage) -> StepSize:
    r"""Returns a first step for rows like `rows`, `(S B,)`."""
    log = torch.full_like(rows, math.log(step_size))
    return StepSize(log, log, log + math.log(10), torch.zeros_like(log), 0)


def learn(step: StepSize, acceptance: PerImage, target: float) -> StepSize:
    r"""Moves the step towards a target acceptance :math:`\delta` by dual averaging,

    .. math:: \bar{H}_m = \left(1 - \frac{1}{m + t_0}\right) \bar{H}_{m - 1} + \frac{\delta - \alpha_m}{m + t_0},
              \qquad \log h_{m + 1} = \mu - \frac{\sqrt{m}}{\gamma} \bar{H}_m, \qquad
              \log \bar{h}_m = m^{-\kappa} \log h_{m + 1} + (1 - m^{-\kappa}) \log \bar{h}_{m - 1},

    with :math:`\mu` the logarithm of ten times the first step, so that it errs towards long steps, which are cheap
    to try. Rows with the same acceptance keep the same step: pool it over what should share one.

    References:
        | The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte Carlo, algorithm 5
          (Hoffman and Gelman, 2014)
        | https://arxiv.org/abs/1111.4246

    Arguments:
        step: The step so far.
        acceptance: The probability of acceptance :math:`\alpha_m` of the last iteration, `(S B,)`.
        target: The acceptance to aim at.

    Examples:
        >>> step = begin(0.1, torch.zeros(1))
        >>> for _ in range(2000):
        ...     step = learn(step, torch.exp(-step.now(True)), target=0.8)
        >>> bool((torch.exp(-step.now(False)) - 0.8).abs() < 1e-3)
        True
    """
    m = step.count + 1
    error = step.error + (target - acceptance - step.error) / (m + DELAY)
    log = step.centre - m**0.5 / GAIN * error
    return StepSize(log, step.average.lerp(log, m**-DECAY), step.centre, error, m)
