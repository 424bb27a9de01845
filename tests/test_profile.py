"""What `emprior profile` counts and reports."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

import pytest
import torch
import yaml

from emprior._compiled import CompiledGradient
from emprior.cli import main
from emprior.train.config import Config, Contrast, Net, Train
from emprior.train.profile import Meter, PlainLoop, operations, profile_gradient, profile_training

CONFIG = Config(
    net=Net("inner_product", {"patch": 2, "widths": [8, 16], "blocks": 1}),
    train=Train(batch_size=4, compile=False),
    contrast=Contrast(batch_size=4, chains=8, langevin_steps=2),
)
IMAGES = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_operations_of_a_forward_pass_are_those_of_its_convolutions():
    def conv(inputs, outputs, side, pixels):
        return 2 * inputs * outputs * side**2 * pixels

    block = [conv(8, 8, 3, 16), conv(8, 8, 3, 16)]
    bottom = [conv(8, 16, 2, 4), conv(16, 16, 3, 4), conv(16, 16, 3, 4), conv(16, 32, 1, 4)]
    one = sum([conv(12, 8, 3, 16), *block, *bottom, *block, conv(8, 12, 3, 16)])
    assert forward_operations(PlainLoop(CONFIG, IMAGES, torch.device("cpu"))) == 4 * one


def test_the_plain_loop_lowers_its_loss():
    plain, losses = PlainLoop(CONFIG, IMAGES, torch.device("cpu")), []
    for _ in range(30):
        torch.manual_seed(0)
        losses.append(plain.iterate())
    assert losses[-1] < 0.98 * losses[0]


def test_a_speed_is_images_a_second_and_its_share_of_the_peak(monkeypatch):
    meter, clock = Meter(torch.device("cpu"), batch=6), itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 0.25 * next(clock))
    meter.peak = {torch.float32: 1e3, torch.bfloat16: 4e3}.get
    speed = meter.read("work", lambda: None, 3, flops=100.0)
    assert (speed.images_per_second, speed.share) == (6 / 0.25, 100 / 0.25 / 1e3)
    assert meter.read("work", lambda: None, 3, 100.0, torch.bfloat16).share == 100 / 0.25 / 4e3
    assert meter.read("work", lambda: None, 3).share is None


def forward_operations(plain):
    arguments = [plain.batch()] if plain.config.kind == "prior" else [plain.batch(), plain.fractions()]
    return operations(plain.network.requires_grad_(False), *arguments)


@pytest.mark.parametrize(("kind", "passes"), [("prior", 6), ("denoiser", 3)])
def test_a_step_amounts_to_so_many_forward_passes(kind, passes):
    r"""Of an energy: forward and inner gradient, and twice that on the way back; a denoiser has no inner gradient."""
    net = Net("inner_product" if kind == "prior" else "velocity", CONFIG.net.arguments)
    plain = PlainLoop(replace(CONFIG, kind=kind, net=net), IMAGES, torch.device("cpu"))
    step = plain.step_operations()
    assert step == pytest.approx(passes * forward_operations(plain), rel=0.1)


def test_a_gradient_amounts_to_two_forward_passes():
    plain = PlainLoop(CONFIG, IMAGES, torch.device("cpu"))
    parameters = dict(plain.network.named_parameters())
    gradient = operations(CompiledGradient(plain.network).derivative, parameters, plain.batch())
    assert gradient == 2 * forward_operations(plain)


def test_profiles_compare_with_the_plain_way():
    training = profile_training(CONFIG, IMAGES, iterations=2)
    names = [speed.name for speed in training if speed.name != "torchebm's transport"]
    assert names == [
        "transport",
        "plain transport",
        "contrast, replay chains of 2 steps",
        "contrast, fresh chains of 200 steps",
    ]
    assert all(speed.images_per_second > 0 and speed.memory > 0 for speed in training)
    gradient = profile_gradient(CONFIG, IMAGES, iterations=2)
    assert [speed.name for speed in gradient] == ["gradient", "plain gradient", "compiled gradient", "forward pass"]
    assert all(speed.share is not None and speed.share > 0 for speed in gradient)


@pytest.mark.parametrize("what", ["train", "gradient"])
def test_the_command(tmp_path, capsys, what):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(CONFIG.to_dict()))
    options = ["profile", what, str(path), "--iterations", "1", "--shape", "3", "8", "8"]
    assert main(options) == 0
    table = capsys.readouterr().out.splitlines()
    assert "images/s" in table[0]
    assert main([*options, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert len(figures) == len(table) - 1
    assert all(row["images_per_second"] > 0 for row in figures.values())


def test_a_denoiser_has_no_gradient_to_profile(tmp_path, capsys):
    path = tmp_path / "train.yaml"
    path.write_text("kind: denoiser\nnet: {architecture: velocity}\n")
    assert main(["profile", "gradient", str(path)]) == 2
    assert "has no energy" in capsys.readouterr().err
