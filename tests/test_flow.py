r"""Flow against the exact law of its iteration, which maps a Gaussian law to a Gaussian law."""

from __future__ import annotations

import pytest
import torch
from laws import Model, assert_drawn_from, flow_step, model

from emprior import as_operator
from emprior._noise import Noise
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.interaction import Repulsion
from emprior.priors import GaussianPrior
from emprior.solvers import Flow, Stage, run

SHAPE, SIZE, SIGMA, IMAGES = (1, 3, 3), 9, 0.2, 6000
EYE = torch.eye(SIZE, dtype=torch.float64)
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


def rand(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_law(flow, prior, fidelity, steps, weight, repulsion):
    r"""The mean and covariance from `N(m, C)`, for the samples of an image side by side."""
    H, b, C, m = model(fidelity, prior)
    samples = len(repulsion) // SIZE
    beside, h = torch.eye(samples, dtype=torch.float64), flow.step_size * prior.time_unit
    joint = Model(torch.kron(beside, H), b.repeat(samples), torch.kron(beside, C), m.repeat(samples))
    move, push, S = flow_step(joint, h, weight, repulsion)
    mean, law = joint.m, joint.C
    for k in range(steps):
        heat = min(1.0, max(0.0, (k * flow.step_size - flow.tau_star) / (1 - flow.tau_star)))
        mean, law = move @ mean + push, move @ law @ move.mT + 2 * h * heat * S @ S.mT
    return mean, law


@pytest.mark.parametrize("steps", [21, 40], ids=["warming", "warm"])
@pytest.mark.parametrize(
    ("weight", "samples", "strength", "mask"),
    [(2.0, 1, None, None), (1.0, 2, 0.9, None), (2.0, 2, 0.65, MASK)],
    ids=["weight 2", "a pair", "a pair in a region, weight 2"],
)
def test_flow_has_the_exact_law_of_its_iteration(weight, samples, strength, mask, steps):
    flow = Flow(step_size=0.04, tau_star=0.6)
    factor = rand(SIZE, SIZE, seed=0) / 20
    prior = GaussianPrior(torch.full(SHAPE, 0.5).double(), factor @ factor.mT + 0.05 * EYE)
    matrix = rand(4, SIZE, seed=1) / 3
    y = matrix @ prior.sample(1, seed=2).flatten() + SIGMA * rand(4, seed=3)
    interaction, repulsion = None, torch.zeros(SIZE, SIZE, dtype=torch.float64)
    if strength is not None:
        interaction = Repulsion(strength, mask, samples)
        region = torch.ones(SHAPE).double() if mask is None else mask.expand(SHAPE)
        apart = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        repulsion = 2 / strength**2 * torch.kron(apart, region.flatten().square().diag())
    operator = as_operator(matrix, SHAPE)
    mean, law = exact_law(flow, prior, GaussianFidelity(operator, y[None], SIGMA), steps, weight, repulsion)
    fidelity = GaussianFidelity(operator, y.expand(IMAGES, -1), SIGMA)
    noise = Noise([(s, i) for s in range(samples) for i in range(IMAGES)], dtype=torch.float64)
    x = torch.zeros(samples * IMAGES, *SHAPE, dtype=torch.float64)
    end = run([Stage(flow, steps)], Posterior(fidelity, prior, weight, interaction), x, noise, IMAGES).x
    assert_drawn_from(end.reshape(samples, IMAGES, SIZE).transpose(0, 1).flatten(1), mean, law)
