"""What the repository promises outside of its modules: the README, the examples, the data and the package."""

from __future__ import annotations

import configparser
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from documents import commands, run_python

import emprior
from emprior.cli import main
from emprior.hub import load_features, verify_prior

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def run_example(monkeypatch, capsys, name: str, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return capsys.readouterr().out


def test_readme_python(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run_python(monkeypatch, README, "README.md")
    assert (tmp_path / "out/readme/mean.npy").exists()


def test_readme_commands(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "measurements").mkdir()
    np.save(tmp_path / "measurements/y.npy", np.full((3, 32, 32), 0.5, np.float32))
    lines = commands(README)
    assert len(lines) >= 5
    for arguments in lines:
        if arguments[0] == "train":
            train_shortly(tmp_path, arguments)
            continue
        arguments = [str(ROOT / part) if part.startswith("pretrained/") else part for part in arguments]
        short = ["--steps", "4"] if arguments[0] in ("sample", "batch") else []
        assert main([*arguments, *short]) == 0, capsys.readouterr().err


def train_shortly(folder: Path, arguments: list[str]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (32, 8, 8, 3), np.uint8)
    np.save(folder / "x.npy", images)
    line = [str(ROOT / part) if part.startswith("pretrained/") else part for part in arguments]
    line = [part.replace("data.source=PATH", f"data.source={folder / 'x.npy'}") for part in line]
    small = [
        "train.batch_size=4",
        "train.compile=false",
        "transport.steps=2",
        "contrast.steps=1",
        "contrast.chains=4",
        "contrast.batch_size=4",
    ]
    out = line.index("--out")
    assert main([*line[:out], *small, "net.arguments.widths=[8, 8]", "train.precision=fp32", *line[out:]]) == 0
    assert emprior.load_prior(folder / "runs/mine/prior").title == "mine"


def test_readme_names_both_scripts():
    for script in ("examples/quickstart.sh", "tests/run.sh"):
        assert f"bash {script}" in README
        assert (ROOT / script).stat().st_mode & 0o111


def test_example_quickstart(monkeypatch, tmp_path, capsys):
    out = run_example(
        monkeypatch, capsys, "inpainting_cifar10_posterior.py", "--steps", "8", "--samples", "2", "--out", str(tmp_path)
    )
    assert "psnr" in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"psnr", "ssim", "energy", "gradient_evaluations", "seconds"} <= figures["posterior"].keys()
    for name in ("estimate.npy", "mean.npy", "std.npy", "samples.npy", "figure.png", "result.json"):
        assert (tmp_path / "posterior" / name).exists()


def test_example_reconstruction(monkeypatch, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    np.save(tmp_path / "x.npy", images)
    data = str(tmp_path / "x.npy")
    arguments = (
        "--test",
        data,
        "--tune",
        data,
        "--images",
        "1",
        "--tune-images",
        "1",
        "--tv-steps",
        "2",
        "--steps",
        "5",
    )
    out = run_example(
        monkeypatch, capsys, "reconstruction_cifar10_map.py", *arguments, "--problems", "cifar10/denoising"
    )
    assert "| cifar10/denoising |" in out


def test_example_features(monkeypatch, tmp_path, capsys):
    random = np.random.default_rng(0)
    for name in ("train", "test"):
        np.save(tmp_path / f"{name}.npy", random.integers(0, 255, (32, 32, 32, 3), np.uint8))
        np.save(tmp_path / f"{name}_labels.npy", random.integers(0, 10, 32))
    data = ("--train", str(tmp_path / "train.npy"), "--test", str(tmp_path / "test.npy"))
    shrunk = ("--epochs", "1", "--batch-size", "16", "--out", str(tmp_path / "features"))
    with torch.random.fork_rng():
        out = run_example(monkeypatch, capsys, "train_cifar10_features.py", *data, *shrunk)
    assert "test accuracy" in out
    card = verify_prior(tmp_path / "features")
    assert card.kind == "features"
    assert card.training["epochs"] == 1
    assert load_features(tmp_path / "features").features(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


def test_bundled_features_load():
    card = verify_prior("cifar10-features")
    assert (card.name, card.kind) == ("cifar10-features", "features")
    assert card.training["data"]
    assert card.training["command"].split()[1] == "examples/train_cifar10_features.py"
    assert card.metrics["test_accuracy"] > 0.8
    assert (ROOT / "pretrained/cifar10-features/weights.safetensors").stat().st_size < 2e6
    assert "cifar10-features" not in emprior.list_priors()


@pytest.mark.parametrize("name", emprior.list_priors())
def test_bundled_priors_load(name):
    card = verify_prior(name)
    assert card.name == name
    assert card.training["data"]
    assert card.metrics["denoising_psnr"]
    assert (ROOT / "pretrained" / name / "weights.safetensors").stat().st_size < 20e6


@pytest.mark.parametrize("name", [name for name in emprior.list_priors() if name != "cifar10-mixture"])
def test_bundled_priors_denoise_with_their_own_settings(name):
    import deepinv
    import skimage

    prior = emprior.load_prior(name)
    seven = np.zeros((28, 28), "float32")
    seven[6:9, 7:21] = 1
    for row in range(9, 24):
        seven[row, 18 - (row - 9) // 2 : 21 - (row - 9) // 2] = 1
    picture = skimage.filters.gaussian(seven, 0.6) if prior.shape[0] == 1 else photograph()
    x = torch.as_tensor(picture).float().reshape(-1, *prior.shape)
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    result = emprior.solve(physics, y, prior)
    assert result.diagnostics.gradient_evaluations <= 100
    assert emprior.metrics.psnr(result.estimate, x) > emprior.metrics.psnr(y, x) + 5


def photograph():
    import skimage

    small = skimage.transform.resize(skimage.data.chelsea()[:, 75:375], (32, 32), anti_aliasing=True)
    return torch.from_numpy(small).float().permute(2, 0, 1)[None]


def test_the_cifar10_prior_restores_a_photograph():
    x = photograph()
    problem = emprior.load_problem("cifar10/inpainting")
    y = problem.measure(x)
    result = emprior.solve(problem.operator, y)
    assert result.diagnostics.gradient_evaluations <= 100
    assert result.status.ok
    assert emprior.metrics.psnr(result.estimate, x) > 20
    assert 0.5 < float(result.diagnostics.residual) < 2


def test_every_package_is_installed():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = set(parser["options"]["packages"].split())
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "emprior").rglob("__init__.py")}
    assert found == {name for name in listed if not name.startswith("emprior._data")}


def test_files_stay_small():
    for path in (ROOT / "emprior").rglob("*.py"):
        assert path.read_text().count("\n") <= 350, path
