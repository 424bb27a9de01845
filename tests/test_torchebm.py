"""The published transport loss, against another implementation of it."""

from __future__ import annotations

import pytest
import torch

from emprior.interpolant import EnergyMatching
from emprior.nets import make_potential
from emprior.train.objective import GradientMatchingLoss
from emprior.train.pairing import optimal_pairing

torchebm = pytest.importorskip("torchebm", reason="pip install emprior[torchebm]")


@pytest.mark.slow
def test_plain_transport_is_torchebms():
    from torchebm.losses import EnergyMatchingLoss

    random = torch.Generator().manual_seed(0)
    x1 = 2 * torch.rand(16, 3, 8, 8, generator=random) - 1
    x0 = torch.randn(x1.shape, generator=random)
    x0, t = x0[optimal_pairing(x0, x1)], 0.98 * torch.rand(16, generator=random)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        potential = make_potential("inner_product", channels=3, widths=[8, 16], blocks=1)

    theirs = EnergyMatchingLoss(
        potential,
        coupling="independent",
        sigma=0.0,
        flow_weight_cutoff=1.0,
        lambda_cd=0.0,
        t_sampler=lambda *_, **__: t,
        device="cpu",
    )(x1, x0=x0)
    expected = torch.autograd.grad(theirs, list(potential.parameters()))
    transport = EnergyMatching(sigma_star=0.0, blend=1e-6)
    ours, _ = GradientMatchingLoss(potential, transport, balance=None)(x1, x0, 1 - t)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for mine, other in zip(torch.autograd.grad(ours, list(potential.parameters())), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
