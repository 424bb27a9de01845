from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from emprior._bands import Spectrum
from emprior._files import sole
from emprior.hub import Card, load_prior, verify_prior
from emprior.interpolant import EnergyMatching
from emprior.priors.network import NetworkPrior
from emprior.train import Config, Trainer, check_config, export_prior, load_images, run_training
from emprior.train.draws import Draws
from emprior.train.evaluate import chain, denoising_psnr, drift, energies, framed_chain
from emprior.train.parse import build
from emprior.train.stream import Batch
from emprior.train.teacher import Teacher


def settings(folder, **sections):
    np.save(folder / "train.npy", np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8))
    np.save(folder / "test.npy", np.random.default_rng(1).integers(0, 256, (6, 8, 8), dtype=np.uint8))
    tree = {
        "name": "tiny",
        "data": {"source": str(folder / "train.npy"), "name": "noise", "licence": "CC0-1.0"},
        "net": {"architecture": "local", "arguments": {"widths": [8, 8], "blocks": 1}},
        "train": {"batch_size": 8, "compile": False, "log_every": 10, "sample_every": 30},
        "transport": {"steps": 20, "warmup": 5},
        "contrast": {"steps": 20, "chains": 16, "batch_size": 8, "langevin_steps": 2},
    }
    for section, values in sections.items():
        tree[section] |= values
    return build(Config, tree, "test")


def test_end_to_end(tmp_path):
    config = settings(tmp_path, data={"validation": str(tmp_path / "test.npy")})
    out = tmp_path / "out"
    figures = run_training(config, out)
    assert figures["finished"]
    assert figures["stopped"] == "finished"
    assert figures["iterations"] == 40
    assert figures["images"] == 320
    assert figures["prior"] == str(out / "prior")
    assert {p.name for p in out.iterdir()} == {"checkpoint.pt", "log.jsonl", "samples-0000030.png", "prior"}
    with Image.open(out / "samples-0000030.png") as picture:
        assert picture.size == (2 * (8 * 9 + 1),) * 2

    card = verify_prior(out / "prior")
    assert card.name == "tiny"
    assert card.shape == [1, 8, 8]
    assert card.arguments == {"channels": 1, "widths": [8, 8], "blocks": 1}
    assert card.density == {"objective": "energy_matching", "arguments": {}, "epsilon": 0.01}
    assert "noise" in card.description
    training = card.training
    assert training["licence"] == "CC0-1.0"
    assert (training["images_in_set"], training["images_seen"]) == (64, 320)
    assert training["iterations"] == {"transport": 20, "contrast": 20}
    assert training["settings"]["data"]["source"] == "train.npy"
    assert training["torch"] == torch.__version__
    assert "thread" in training["hardware"]
    assert card.metrics["images"] == 6
    assert card.metrics["chain"]["step"] == [0, 100, 300]
    assert np.isfinite(list(card.metrics["denoising_psnr"].values())).all()
    assert yaml.safe_load((out / "prior" / "card.yaml").read_text()) == card.__dict__

    average = torch.load(out / "checkpoint.pt", weights_only=True)["average"]
    loaded = load_prior(out / "prior").potential.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in average.items())


def test_a_denoiser_end_to_end(tmp_path):
    net = {"architecture": "velocity", "arguments": {"widths": [8, 8], "blocks": 1}}
    config = settings(tmp_path, data={"validation": str(tmp_path / "test.npy")}, net=net, contrast={"steps": 0})
    config = replace(config, kind="denoiser")
    figures = run_training(config, tmp_path / "out")
    card = verify_prior(figures["prior"])
    assert (card.kind, card.density) == ("denoiser", {})
    assert card.training["iterations"] == {"transport": 20, "contrast": 0}
    assert set(card.metrics) == {"images", "denoising_psnr"}


def test_an_unfinished_training_goes_on_or_starts_anew(tmp_path):
    config, out = settings(tmp_path), tmp_path / "out"
    figures = run_training(config, out, seconds=0)
    assert (figures["finished"], figures["stopped"], figures["prior"]) == (False, "seconds", None)
    trainer = Trainer(config, torch.zeros(64, 1, 8, 8, dtype=torch.uint8), out)
    trainer.iterate()
    trainer.save()
    (out / "samples-0000001.png").touch()
    assert run_training(config, out, seconds=0) | {"seconds": 0} == figures | {
        "iterations": 1, "images": 8, "resumed": True, "seconds": 0,
    }  # fmt: skip
    assert run_training(config, out, seconds=0, fresh=True)["iterations"] == 0
    assert {p.name for p in out.iterdir()} == {"checkpoint.pt"}
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 0


def test_fresh_ignores_a_checkpoint_of_another_network(tmp_path):
    run_training(settings(tmp_path), tmp_path / "out", seconds=0)
    other = settings(tmp_path, net={"arguments": {"widths": [8, 8], "blocks": 2}})
    with pytest.raises(ValueError, match="another 'net'"):
        run_training(other, tmp_path / "out", seconds=0)
    assert run_training(other, tmp_path / "out", seconds=0, fresh=True)["resumed"] is False


def test_checkpoints_of_an_earlier_version_are_refused(tmp_path):
    config, out = settings(tmp_path), tmp_path / "out"
    run_training(config, out, seconds=0)
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    config_then = {key: value for key, value in state["config"].items() if key != "kind"}
    for changed in ({"config": config_then}, {"facts": None}):
        early = {key: value for key, value in (state | changed).items() if value is not None}
        torch.save(early, out / "checkpoint.pt")
        with pytest.raises(ValueError, match=r"by an earlier version .* anew with --fresh, or .* another --out"):
            run_training(config, out, seconds=0)
        with pytest.raises(ValueError, match="written by an earlier version"):
            export_prior(config, out, tmp_path / "prior")
    assert run_training(config, out, seconds=0, fresh=True)["resumed"] is False


def test_weights_of_an_unfinished_training_can_be_exported(tmp_path):
    config, out = settings(tmp_path), tmp_path / "out"
    run_training(config, out, seconds=0)
    card = export_prior(config, out, tmp_path / "prior", dtype=torch.float16)
    assert card.training["iterations"] == {"transport": 0, "contrast": 0}
    assert card.training["images_in_set"] == 64
    assert card.metrics == {}
    assert Card.read(tmp_path / "prior") == card
    average = torch.load(out / "checkpoint.pt", weights_only=True)["average"]
    loaded = load_prior(tmp_path / "prior").potential.state_dict()
    assert all(torch.equal(loaded[key], value.half().float()) for key, value in average.items())


def test_errors_come_before_the_training(tmp_path):
    cases = {
        "train.batch_size is 0": settings(tmp_path, train={"batch_size": 0}),
        "there is no data at": settings(tmp_path, data={"source": str(tmp_path / "none.npy")}),
        "there is no data at .*none": settings(tmp_path, data={"validation": str(tmp_path / "none.npy")}),
        "argument 'depth'": settings(tmp_path, net={"arguments": {"depth": 3}}),
    }
    for message, config in cases.items():
        with pytest.raises(ValueError, match=message):
            run_training(config, tmp_path / "out")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        run_training(settings(tmp_path), tmp_path / "out", device="gpu")
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        export_prior(settings(tmp_path), tmp_path / "out", tmp_path / "prior")
    np.save(tmp_path / "colour.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="have 3 channels, but the network was trained on 1"):
        run_training(settings(tmp_path, data={"validation": str(tmp_path / "colour.npy")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Quadratic(torch.nn.Module):
    def forward(self, x):
        return 2.0 * x.square().flatten(1).sum(1)


def test_figures_of_a_known_energy():
    r"""With V = 2 |z|^2 the drift is -4, and a chain ends at variance e / 4."""
    prior = NetworkPrior(Quadratic(), (1, 8, 8), EnergyMatching(), epsilon=0.02)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drift(prior, images), torch.full((64,), -4.0))
    figures = chain(prior, images, steps=200)
    assert figures["step"] == [0, 100, 200]
    variance = 0.02 / 4
    assert figures["pixel_std"][-1] == pytest.approx(variance**0.5 / 2, rel=0.05)
    assert figures["energy"][-1] == pytest.approx(2 * 64 * variance, rel=0.1)


def test_framed_chains_of_a_known_energy():
    r"""With V = 2 |z|^2 the spectrum is 16 / e; a chain ends at variance e / 4 whatever its frame."""
    prior = NetworkPrior(Quadratic(), (1, 8, 8), EnergyMatching(), epsilon=0.02)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"no spectrum.*emprior evaluate prior"):
        framed_chain(prior, images)
    prior.spectrum = Spectrum((0.0, 1.0), ((400.0, 3200.0),))
    figures = framed_chain(prior, images, steps=40)
    assert figures["step"] == [0, 10, 30, 40]
    assert figures["pixel_std"][0] > 0.28
    variance = 0.02 / 4
    assert figures["pixel_std"][-1] == pytest.approx(variance**0.5 / 2, rel=0.05)
    assert figures["energy"][-1] == pytest.approx(2 * 64 * variance, rel=0.1)


def test_denoising_of_a_known_energy():
    r"""At sigma = 0.1, s = 1/6 and k = 5/6: the estimate of V = 2 |z|^2 is g z, with g = k (1 - 4 s) = 5/18."""
    prior = NetworkPrior(Quadratic(), (1, 32, 32), EnergyMatching(), epsilon=0.02)
    contrast = torch.linspace(0, 0.5, 300).reshape(-1, 1, 1, 1)
    x = contrast * (torch.rand(300, 1, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5)
    g = 5 / 18
    error = (1 - g) ** 2 * x.square().flatten(1).mean(1) + (g * 0.1) ** 2
    assert denoising_psnr(prior, x + 0.5, 0.1) == pytest.approx(float((-10 * error.log10()).mean()), abs=0.02)


SCRIPT = """
import sys, torch
sys.modules["deepinv"] = sys.modules["matplotlib"] = None
from emprior.train import Config, run_training
config = Config.load(sys.argv[1], ["train.sample_every=0", *sys.argv[3:]])
print(run_training(config, sys.argv[2])["stopped"])
"""


def start(folder, out, *overrides):
    (folder / "train.yaml").write_text(yaml.safe_dump(settings(folder).to_dict()))
    command = [sys.executable, "-c", SCRIPT, str(folder / "train.yaml"), str(folder / out), *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_terminated_process_leaves_a_checkpoint(tmp_path):
    r"""And none of it needs deepinv or matplotlib."""
    with start(tmp_path, "out", "transport.steps=1000000") as run:
        log = tmp_path / "out" / "log.jsonl"
        while not log.exists() and run.poll() is None:
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        assert run.communicate(timeout=60)[0].strip() == "SIGTERM"
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"] >= 10


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_killed_process_resumes_bit_for_bit(tmp_path, compiled):
    overrides = ["transport.steps=300", "contrast.steps=60", "train.precision=fp32", "train.checkpoint_every=0.2"]
    overrides.append(f"train.compile={compiled}")
    with start(tmp_path, "whole", *overrides) as run:
        assert run.communicate(timeout=300)[0].strip() == "finished"
    kills = 0
    for _ in range(3):
        with start(tmp_path, "cut", *overrides) as run:
            seen = last_step(tmp_path / "cut")
            while run.poll() is None and last_step(tmp_path / "cut") <= seen + 30:
                time.sleep(0.05)
            kills += run.poll() is None
            run.kill()
    assert kills
    assert last_step(tmp_path / "cut") < 360
    with start(tmp_path, "cut", *overrides) as run:
        assert run.communicate(timeout=300)[0].strip() == "finished"
    whole, cut = (torch.load(tmp_path / out / "checkpoint.pt", weights_only=True) for out in ("whole", "cut"))
    for part in ("network", "average"):
        assert all(torch.equal(value, cut[part][name]) for name, value in whole[part].items())
    assert torch.equal(whole["chains"], cut["chains"])


def last_step(folder):
    path = folder / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["iteration"] if lines else 0


def test_without_held_out_images_the_card_has_what_samplers_use(tmp_path):
    config = settings(tmp_path)
    folder = run_training(config, tmp_path / "out")["prior"]
    metrics = Card.read(Path(folder)).metrics
    assert (metrics["measured_on"], metrics["images"]) == ("training images", 64)
    assert set(metrics) == {"images", "measured_on", "energy", "spectrum", "restoration", "calibration"}
    prior = load_prior(folder)
    mean, spread = energies(prior, torch.from_numpy(np.load(tmp_path / "train.npy"))[:, None].float() / 255).values()
    assert prior.typical == (mean, spread)
    assert prior.spectrum is not None
    assert prior.restoration is not None
    assert prior.calibration is not None


def test_start_from_a_prior(tmp_path):
    config = settings(tmp_path)
    first = run_training(config, tmp_path / "first")
    weights = load_prior(first["prior"]).potential.state_dict()

    train = replace(config.train, start=first["prior"], seed=1)
    begun = Trainer(replace(config, train=train), torch.zeros(8, 1, 8, 8).byte(), tmp_path)
    begun.start()
    for network in (begun.network, begun.average):
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert begun.seen == 320

    config = replace(config, name="second", train=replace(config.train, start=first["prior"], seed=1))
    config = replace(config, transport=replace(config.transport, steps=3), contrast=replace(config.contrast, steps=2))
    out = tmp_path / "second"
    figures = run_training(config, out, seconds=0)
    assert not figures["finished"]
    figures = run_training(config, out)
    assert figures["resumed"]
    assert (figures["iterations"], figures["images"]) == (5, 360)
    training = Card.read(out / "prior").training
    assert training["images_seen"] == 360
    assert training["start"] == {
        "name": "tiny",
        "sha256": Card.read(tmp_path / "first" / "prior").sha256,
        "images_seen": 320,
    }
    assert training["settings"]["train"]["start"] == "prior"


def test_chains_move_in_the_frame_of_the_start(tmp_path):
    first = run_training(settings(tmp_path), tmp_path / "first")["prior"]
    framed = {"steps": 6, "chains": 16, "batch_size": 8, "langevin_steps": 3, "age": 4, "framed": True}
    config = settings(tmp_path, train={"start": first}, transport={"steps": 0}, contrast=framed)
    through = run_training(config, tmp_path / "through")["prior"]
    assert not run_training(config, tmp_path / "halves", seconds=1e-9)["finished"]
    halves = run_training(config, tmp_path / "halves")["prior"]
    plain = replace(config, contrast=replace(config.contrast, framed=False))
    other = run_training(plain, tmp_path / "plain")["prior"]
    hashes = [Card.read(Path(folder)).sha256 for folder in (through, halves, other)]
    assert hashes[0] == hashes[1] != hashes[2]

    with pytest.raises(ValueError, match=r"contrast\.framed is for replay chains.*train\.start=NAME"):
        check_config(replace(config, train=replace(config.train, start=None)))
    with pytest.raises(ValueError, match=r"contrast\.holes is 0\.5, but no chain has a view.*contrast\.views=0\.5"):
        check_config(replace(config, contrast=replace(config.contrast, holes=0.5)))
    with pytest.raises(ValueError, match=r"contrast\.negatives=replay"):
        check_config(replace(config, contrast=replace(config.contrast, negatives="fresh")))
    card = Path(first) / "card.yaml"
    card.write_text(card.read_text().replace("spectrum:", "other:"))
    with pytest.raises(ValueError, match=r"card of tiny, which holds no metrics\.spectrum.*--write.*framed=false"):
        run_training(config, tmp_path / "bare")


def test_a_start_with_another_network_is_refused(tmp_path):
    config = settings(tmp_path)
    first = run_training(config, tmp_path / "first")["prior"]
    start = replace(config.train, start=first)
    wider = replace(config, train=start, net=replace(config.net, arguments={"widths": [8, 16], "blocks": 1}))
    with pytest.raises(ValueError, match=r"another network: local of \{widths: \[8, 8\], blocks: 1\}.*--set net.arch"):
        run_training(wider, tmp_path / "second")
    colours = replace(config, train=replace(config.train, start="cifar10"))
    with pytest.raises(ValueError, match=r"images of 3 channels, but the data have 1.*train\.start=null"):
        run_training(colours, tmp_path / "second")
    with pytest.raises(ValueError, match="unknown prior 'cifar11'"):
        run_training(replace(config, train=replace(config.train, start="cifar11")), tmp_path / "second")


@pytest.mark.parametrize("below", [0.0, 0.3, 1.0])
def test_a_teacher_keeps_points_and_sets_targets(below):
    r"""Where it holds, the target is its gradient; elsewhere, the data's."""
    path = EnergyMatching(sigma_star=0.3, blend=0.6)
    random = torch.Generator().manual_seed(0)
    x1, x0 = (torch.randn(40, 1, 4, 4, generator=random, dtype=torch.float64) for _ in range(2))
    s = torch.linspace(1e-4, 1, 40, dtype=torch.float64)
    batch = Batch(x1, x0, s, Draws.keyed((0,), range(1)))
    held = Teacher(lambda x: x.square() + 1, path, below)(batch)
    (x, target), (same, taught) = path.mix(x1, x0, s), path.mix(held.x1, held.x0, s)
    torch.testing.assert_close(same, x)
    expected = torch.where((s < below)[:, None, None, None], x.square() + 1, target)
    torch.testing.assert_close(taught, expected)


def test_a_held_training_starts_without_a_loss(tmp_path):
    r"""Held everywhere, the prior that it begins with is already learned; above a bound, it is not."""
    first = run_training(settings(tmp_path), tmp_path / "first")["prior"]
    for hold, least, most in ((1.0, 0.0, 1e-6), (0.1, 0.1, 10.0)):
        config = settings(tmp_path, train={"start": first, "hold": hold, "precision": "fp32", "log_every": 1})
        out = tmp_path / str(hold)
        trainer = Trainer(config, load_images(config.data.source), out)
        trainer.start()
        assert least <= float(trainer.iterate()["transport"]) <= most


def test_what_is_held_to_is_found_again(tmp_path):
    first = run_training(settings(tmp_path), tmp_path / "first")["prior"]
    config = settings(tmp_path, train={"start": first, "hold": 0.3, "precision": "fp32"})
    through = Trainer(config, load_images(config.data.source), tmp_path / "through")
    through.start()
    halves = Trainer(config, load_images(config.data.source), tmp_path / "halves")
    halves.start()
    for _ in range(25):
        through.iterate()
    for _ in range(12):
        halves.iterate()
    halves.save()
    halves = Trainer(config, load_images(config.data.source), tmp_path / "halves")
    assert halves.resume()
    for _ in range(13):
        halves.iterate()
    for key, value in through.average.state_dict().items():
        assert torch.equal(value, halves.average.state_dict()[key]), key


def test_another_start_is_refused_on_the_way(tmp_path):
    first = run_training(settings(tmp_path), tmp_path / "first")["prior"]
    other = run_training(settings(tmp_path, train={"seed": 5}), tmp_path / "other")["prior"]
    out, plain = tmp_path / "out", tmp_path / "plain"
    run_training(settings(tmp_path, train={"start": first}), out, seconds=0)
    run_training(settings(tmp_path), plain, seconds=0)
    for folder in (out, plain):
        with pytest.raises(ValueError, match=r"did not begin with the weights that train\.start=.*other"):
            run_training(settings(tmp_path, train={"start": other}), folder, seconds=0)
    assert run_training(settings(tmp_path), out, seconds=0)["resumed"]
    shutil.rmtree(first)
    shutil.copytree(other, first)
    with pytest.raises(ValueError, match="did not begin with the weights"):
        run_training(settings(tmp_path, train={"start": first, "hold": 0.3}), out, seconds=0)


def test_a_density_is_not_held_at_another_temperature(tmp_path):
    first = run_training(settings(tmp_path), tmp_path / "first")["prior"]
    config = settings(tmp_path, train={"start": first, "hold": 0.3})
    config = replace(config, density=replace(config.density, epsilon=0.5))
    with pytest.raises(ValueError, match=r"keeps the density of tiny, which is .*0\.01.* but density is .*0\.5"):
        run_training(config, tmp_path / "out")


def test_two_do_not_train_in_one_folder(tmp_path):
    config, out = settings(tmp_path), tmp_path / "out"
    with sole(out, "training"), pytest.raises(ValueError, match=r"another process is training in .*out\. Wait for it"):
        run_training(config, out, seconds=0)
    run_training(config, out, seconds=0)
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt"}


def test_holding_to_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no energy to hold to.*train\.start=NAME"):
        run_training(settings(tmp_path, train={"hold": 0.2}), tmp_path / "out")
