r"""What is coarse, held to a teacher and weighed, against sums over coefficients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from emprior._bands import Bands, Spectrum
from emprior.interpolant import EnergyMatching
from emprior.nets import make_potential
from emprior.train.check import check_config
from emprior.train.coarse import EMPHASIS, HIDDEN, Coarse
from emprior.train.config import Config, Contrast, Data, Density, Net, Train, Transport
from emprior.train.derivative import CompiledLoss
from emprior.train.draws import Draws
from emprior.train.objective import GradientMatchingLoss
from emprior.train.stream import Batch
from emprior.train.teacher import Teacher
from emprior.train.trainer import Trainer

BELOW = 0.2
THERMAL = 0.01
PATH = EnergyMatching(sigma_star=0.3, blend=0.6)


def setting(count=12, channels=3, side=8, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    x1, x0 = (torch.randn(count, channels, side, side, generator=random, dtype=dtype) for _ in range(2))
    s = torch.linspace(0.005, 0.9, count, dtype=dtype).square().clamp(min=0.005)
    bands = Bands.of(x1)
    values = torch.linspace(2, 40_000, bands.count, dtype=torch.float64)
    return x1, x0, s, bands, values, Coarse(Spectrum.of(bands, values), BELOW, THERMAL, x1[:1])


def test_coarse_is_what_curves_little_beside_the_noise():
    _, _, s, bands, values, coarse = setting()
    inside = coarse.inside(s).flatten(1)
    for row, noise in enumerate(s.tolist()):
        expected = (max(noise, THERMAL) ** 2 * values / 4 < HIDDEN)[bands.band] & (noise < BELOW)
        assert torch.equal(inside[row], expected)
    assert inside[0].any()
    assert not inside[0].all()
    assert not inside[s >= BELOW].any()


def test_the_coarse_part_is_a_projection():
    x1, x0, s, _, _, coarse = setting()
    part = coarse.part(x1, s)
    torch.testing.assert_close(coarse.part(part, s), part)
    torch.testing.assert_close((coarse.part(x0, s) * (x1 - part)).flatten(1).sum(1), torch.zeros_like(s))


@pytest.mark.parametrize("noise", [0.002, 0.03, 0.15])
def test_what_is_coarse_of_gaussian_images_is_hidden(noise):
    r"""The share of the noise that an image of variance `v` tells is :math:`s^2 / (v + s^2)`."""
    x1, _, _, bands, _, _ = setting()
    variance = torch.logspace(2, -4, bands.count, dtype=torch.float64)
    curvature = 4 / (variance + THERMAL**2)
    coarse = Coarse(Spectrum.of(bands, curvature), BELOW, THERMAL, x1[:1])
    inside = coarse.inside(torch.tensor([noise], dtype=torch.float64)).flatten()
    told = (noise**2 / (variance + noise**2))[bands.band]
    assert inside.any()
    assert not inside.all()
    if noise >= THERMAL:
        assert told[inside].max() < HIDDEN
    assert (variance[bands.band][inside].min() + THERMAL**2) * HIDDEN > THERMAL**2


def test_autocast_rounds_no_coarse_part():
    _, x0, s, _, _, coarse = setting(dtype=torch.float32)
    expected = coarse.part(x0, s), coarse.squares(x0, s)
    with torch.autocast("cpu", torch.bfloat16):
        found = coarse.part(x0, s), coarse.squares(x0, s)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_errors_are_weighed_by_their_coefficients():
    x1, _, s, bands, _, coarse = setting()
    weight = torch.where(coarse.inside(s), EMPHASIS, 1.0)
    expected = (weight * bands.split(x1).square()).flatten(1).mean(1)
    torch.testing.assert_close(coarse.squares(x1, s).double(), expected, rtol=1e-5, atol=0)
    beyond = s >= BELOW
    torch.testing.assert_close(
        coarse.squares(x1, s)[beyond].double(), x1.square().flatten(1).mean(1)[beyond], rtol=1e-5, atol=0
    )


def test_a_teacher_of_the_coarse_leaves_the_rest_to_the_data():
    x1, x0, s, bands, _, coarse = setting()
    held = Teacher(lambda x: x.square() + 1, PATH, BELOW, coarse)(Batch(x1, x0, s, Draws.keyed((0,), range(1))))
    (x, target), (same, taught) = PATH.mix(x1, x0, s), PATH.mix(held.x1, held.x0, s)
    torch.testing.assert_close(same, x)
    expected = torch.where(coarse.inside(s), bands.split(x.square() + 1), bands.split(target))
    torch.testing.assert_close(bands.split(taught), expected)


def test_the_compiled_loss_is_the_plain_one():
    x1, x0, s, _, _, coarse = setting(channels=3, dtype=torch.float32)
    torch.manual_seed(0)
    net = make_potential("squared_norm", channels=3, patch=2, widths=[8, 8], blocks=1)
    loss = GradientMatchingLoss(net, PATH, coarse=coarse)
    plain, _ = loss(x1, x0, s)
    plain.backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    both = CompiledLoss(loss)
    compiled, _ = both(x1, x0, s)
    compiled.backward()
    assert both.graph.works
    torch.testing.assert_close(compiled, plain.detach(), rtol=1e-5, atol=0, check_stride=False)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    heavier, lighter = loss(x1, x0, s)[0], GradientMatchingLoss(net, PATH)(x1, x0, s)[0]
    assert heavier > lighter


CONFIG = Config(
    data=Data(source="images"),
    net=Net("squared_norm", {"patch": 2, "widths": [96, 160, 256], "blocks": 1}),
    density=Density("energy_matching", {"sigma_star": 0.3, "blend": 0.6}, 0.002),
    train=Train(
        batch_size=4, precision="fp32", compile=False, start="cifar10", hold=0.1, held="coarse", sample_every=0
    ),
    transport=Transport(steps=2, balance=1.2),
    contrast=Contrast(steps=0),
)


def test_what_begins_as_its_teacher_has_no_coarse_error(tmp_path):
    r"""The first loss, all of it near the data, is that of the fine part alone."""
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(CONFIG, images, tmp_path)
    trainer.start()
    batch = trainer.stream.at(0)
    batch = trainer.teacher(replace(batch, s=torch.full_like(batch.s, 0.03)))
    assert trainer.coarse.inside(batch.s).any()
    loss = trainer.backward(batch.x1, batch.x0, batch.s)["transport"]
    trainer.coarse = None
    trainer.enter(CONFIG.transport)
    plain = trainer.backward(batch.x1, batch.x0, batch.s)["transport"]
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=0)


def test_unknown_parts_are_refused():
    check_config(CONFIG)
    with pytest.raises(ValueError, match=r"train\.hold is 0 and nothing is held.*train\.held=all"):
        check_config(replace(CONFIG, train=replace(CONFIG.train, hold=0.0)))
    with pytest.raises(ValueError, match=r"up to train\.hold=0\.4 those of EnergyMatching.* hold images"):
        check_config(replace(CONFIG, train=replace(CONFIG.train, hold=0.4)))
    with pytest.raises(ValueError, match=r"train\.held is 'coarser', which is unknown.*coarse"):
        check_config(replace(CONFIG, train=replace(CONFIG.train, held="coarser")))
