from __future__ import annotations

import pytest
import torch
from torch import nn

import emprior
from emprior.denoiser import NetworkDenoiser
from emprior.hub import load_network_denoiser, save_prior, verify_prior
from emprior.nets import InnerProductPotential, Velocity, make_velocity
from emprior.train.objective import FLOOR, VelocityMatchingLoss

TAU = 0.7
SIZES = {"channels": 1, "widths": [8, 8], "blocks": 1}


class White(nn.Module):
    r"""The exact velocity of x1 ~ N(0, TAU^2): E[x0 - x1 | x] = (s - (1 - s) TAU^2) / ((1 - s)^2 TAU^2 + s^2) x."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, s):
        s = s[:, None, None, None]
        return self.unit * (s - (1 - s) * TAU**2) / ((1 - s) ** 2 * TAU**2 + s**2) * x


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0, torch.tensor([0.02, 0.2, 2.0, 20.0], dtype=torch.float64)])
def test_denoising_white_images_is_the_wiener_filter(sigma):
    x = normal(4, 2, 3, 3)
    level = torch.as_tensor(sigma, dtype=torch.float64).expand(4)[:, None, None, None]
    expected = (TAU**2 / (TAU**2 + (2 * level) ** 2) * (2 * x - 1) + 1) / 2
    torch.testing.assert_close(NetworkDenoiser(White(), (2, 3, 3)).denoise(x, sigma), expected)


def test_samples_follow_the_law_of_the_data():
    samples = NetworkDenoiser(White(), (2, 3, 3)).sample(600, seed=1, steps=200)
    count = samples.numel()
    assert abs(float(samples.mean()) - 0.5) < 4 * TAU / 2 / count**0.5
    assert abs(float(samples.std()) / (TAU / 2) - 1) < 4 / (2 * count) ** 0.5 + 0.01
    few = NetworkDenoiser(White(), (2, 3, 3)).sample(3, seed=1, steps=200)
    torch.testing.assert_close(few, samples[:3])


@pytest.mark.parametrize("balance", [None, 1.2])
def test_velocity_loss_is_its_formula(balance):
    x1, x0, s = normal(5, 1, 2, 2), normal(5, 1, 2, 2, seed=1), torch.linspace(0.01, 0.9, 5, dtype=torch.float64)
    loss, terms = VelocityMatchingLoss(White(), balance)(x1, x0, s)
    t = s[:, None, None, None]
    error = (White()((1 - t) * x1 + t * x0, s) - (x0 - x1)).square().mean((1, 2, 3))
    weight = 1.0 if balance is None else s**2 / s.clamp(min=FLOOR) ** balance
    torch.testing.assert_close(loss.double(), (weight * error).mean(), rtol=1e-5, atol=0)
    assert float(terms["transport"]) == float(loss)


def test_it_is_matched_to_the_potential_in_size():
    velocity, potential = (
        sum(p.numel() for p in kind(3, 2, (64, 128), 1).parameters()) for kind in (Velocity, InnerProductPotential)
    )
    assert 1 < velocity / potential < 1.02


def test_any_size_of_image():
    velocity = make_velocity("velocity", **SIZES)
    x = torch.rand(2, 1, 9, 13)
    assert velocity(x, torch.full((2,), 0.3)).shape == x.shape


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    facts = {"name": "tiny", "kind": "denoiser", "architecture": "velocity", "arguments": SIZES}
    save_prior(tmp_path / "tiny", make_velocity("velocity", **SIZES), shape=[1, 8, 8], density={}, **facts)
    return tmp_path / "tiny"


def test_it_loads_as_a_deepinv_denoiser(folder):
    import deepinv

    assert verify_prior(folder).kind == "denoiser"
    denoiser = emprior.load_denoiser(folder)
    assert isinstance(denoiser, deepinv.models.Denoiser)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(denoiser(x, 0.1), load_network_denoiser(folder).denoise(x, 0.1))
    mixed = denoiser(x, torch.tensor([0.0, 0.1, 0.3]))
    assert torch.equal(mixed[0], x[0])
    torch.testing.assert_close(mixed[1], denoiser(x, 0.1)[1])


def test_a_denoiser_is_no_prior(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"'tiny' is a denoiser, not a prior. Load it with emprior.load_denoiser"):
        emprior.load_prior(folder)
    with pytest.raises(ValueError, match=r"'cifar10' is a prior, not a denoiser. Load it with emprior.load_prior"):
        emprior.load_denoiser("cifar10")
    monkeypatch.setenv("EMPRIOR_CACHE", str(folder.parent / "cache"))
    (folder.parent / "cache" / "priors").mkdir(parents=True)
    folder.rename(folder.parent / "cache" / "priors" / "tiny")
    assert "tiny" in emprior.list_denoisers()
    assert "tiny" not in emprior.list_priors()
    with pytest.raises(ValueError, match=r"unknown denoiser 'tinny'. Did you mean 'tiny'\?") as caught:
        emprior.load_denoiser("tinny")
    assert "cifar10-features" not in str(caught.value)
    assert "mnist" not in str(caught.value)
