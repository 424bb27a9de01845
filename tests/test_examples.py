r"""That the examples run, in short, that their commands can be given, and that what they print is so."""

from __future__ import annotations

import argparse
import ast
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import emprior
from emprior.hub import verify_prior
from emprior.interpolant import Denoising
from emprior.priors import NetworkPrior

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*_*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python examples/(\w+\.py)([^`\n;()]*)")


class Bowl(torch.nn.Module):
    r"""The potential `w |z|^2 / 2`."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, z):
        return self.weight * z.square().flatten(1).sum(1) / 2


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    r"""Runs an example that writes to `tmp_path`, and returns what it prints."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def call(name: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words), "--out", str(tmp_path)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    r"""An image from the mixture, under whose posteriors intervals are right."""
    path = tmp_path_factory.mktemp("drawn") / "x.npy"
    np.save(path, emprior.load_prior("cifar10-mixture").sample(1, seed=3)[0].clamp(0, 1).numpy())
    return path


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse((EXAMPLES / name).read_text())) or ""


def commands() -> Iterator[tuple[str, str]]:
    r"""Each script and its words, wherever a docstring or a page tells how to call it."""
    for text in [*map(docstring, SCRIPTS), *(page.read_text() for page in PAGES)]:
        yield from COMMAND.findall(text)


def decibels(out: str, name: str) -> float:
    return float(re.search(rf"\b{name} (-?[\d.]+) dB", out).group(1))


def test_every_script_says_how_it_is_called_and_is_on_the_page():
    listed = re.findall(r"^\| \[`(\w+\.py)`\]\(\.\./examples/\1\) \|", (ROOT / "docs/examples.md").read_text(), re.M)
    assert sorted(listed) == SCRIPTS
    assert {name for text in map(docstring, SCRIPTS) for name, _ in COMMAND.findall(text)} == set(SCRIPTS)


@pytest.mark.parametrize(("name", "words"), sorted(set(commands())), ids=lambda text: text[:40])
def test_commands_can_be_given(monkeypatch, name, words):
    class Parsed(Exception):  # noqa: N818
        pass

    original = argparse.ArgumentParser.parse_args

    def parse(self):
        original(self, shlex.split(words, comments=True))
        raise Parsed

    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(Parsed):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_families(run, drawn, tmp_path):
    words = ("--image", drawn, "--prior", "cifar10-mixture", "--problems", "denoising")
    out = run("families_cifar10_map_posterior.py", *words, "--steps", 120)
    lines = {line["problem"]: line for line in json.loads((tmp_path / "figures.json").read_text())}
    assert out.count("\n| ") == len(lines) == 1
    for family, line in lines.items():
        assert line["mean"] > line["map"] - 0.5, family
        assert 0.84 < line["coverage"] < 0.94, family
        assert line["verdict"].partition(":")[0] in ("trustworthy", "not trustworthy")
        assert (tmp_path / f"{family}.html").stat().st_size > 10_000


def test_tomography(run, tmp_path):
    out = run("tomography_cifar10_map.py", "--angles", 8)
    assert decibels(out, "MAP") > decibels(out, "least squares") + 1
    assert 0.9 < float(emprior.Result.load(tmp_path / "map").diagnostics.residual) < 1.1
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_rays_keep_what_they_cross(monkeypatch):
    r"""Each beam sees the whole image, and its centre of mass along the beam's axis."""
    monkeypatch.syspath_prepend(EXAMPLES)
    rays = runpy.run_path(str(EXAMPLES / "tomography_cifar10_map.py"))["rays"]
    image, angles = np.random.default_rng(0).random((8, 8)), 5
    seen = (rays(8, angles) @ image.ravel()).reshape(angles, -1)
    np.testing.assert_allclose(seen.sum(1), image.sum() / 8, rtol=1e-12)
    bins = np.arange(seen.shape[1]) - (seen.shape[1] - 1) / 2
    theta, side = np.arange(angles) * np.pi / angles, np.arange(8) - 3.5
    across, down = (image.sum(0) * side).sum(), (image.sum(1) * side).sum()
    np.testing.assert_allclose(seen @ bins, (across * np.cos(theta) + down * np.sin(theta)) / 8, atol=1e-12)


def test_training(run, tmp_path):
    out = run("training_folder_energy_matching.py", "--steps", 60)
    assert decibels(out, "MAP") > decibels(out, "measured") + 1
    card = verify_prior(tmp_path / "run/prior")
    assert card.training["images_in_set"] == len(list((tmp_path / "images").glob("*.png"))) == 400
    assert card.training["iterations"] == {"transport": 54, "contrast": 6}


def test_pnp(run):
    out = run("pnp_cifar10_deepinv.py", "--steps", 2, "--prior", "cifar10-mixture")
    energies = {name: float(value) for name, value in re.findall(r"^(.+): .* dB, energy ([\d.]+)$", out, re.MULTILINE)}
    assert len(energies) == 5
    assert energies["emprior.solve"] == 0
    assert energies["PnP, then proximal gradients"] < energies["PnP"] / 2
    assert decibels(out, "emprior.solve:") > decibels(out, "measured:") + 0.5


def test_unknown_sigma(run, drawn, tmp_path):
    run("deblurring_cifar10_unknown_sigma.py", "--image", drawn, "--prior", "cifar10-mixture", "--steps", 60)
    lines = json.loads((tmp_path / "figures.json").read_text())
    for name in ("MAP", "posterior"):
        assert abs(lines[name]["sigma"] - lines["truth"]) < 3 * lines[name]["std"]
        assert 0 < lines[name]["std"] < 0.1 * lines["truth"]
    assert lines["MAP"]["psnr"] > lines["MAP, told 4 sigma"]["psnr"]


def test_repulsion(run, drawn, tmp_path):
    words = ("--image", drawn, "--prior", "cifar10-mixture", "--steps", 100, "--leaps", 8, "--strength", 2.4)
    out = run("inpainting_cifar10_repulsion.py", *words)
    (alone, outside), (pushed, held) = re.findall(r"([\d.]+) apart inside the box, ([\d.]+) outside", out)
    assert float(pushed) > 1.1 * float(alone)
    assert float(held) < 1.2 * float(outside)
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_benchmark(run, tmp_path):
    words = ("--problems", "cifar10/denoising", "--images", 1, "--samples", 1, "--budget", 8)
    out = run("benchmark_cifar10.py", *words, "--methods", "emprior-map", "pnp-dpir", "tikhonov")
    assert out.count(": done, ") == 3
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"table.md", "figures.csv", "index.html"}


def test_dask(run, tmp_path):
    pytest.importorskip("distributed")
    words = ("--images", 3, "--chunk", 2, "--workers", 1, "--problem", "cifar10/denoising", "--prior")
    first, again = (run("batch_cifar10_dask.py", *words, "cifar10-mixture") for _ in range(2))
    assert "3 of 3 items done; 3 in this run" in first
    assert "in this run" not in again
    assert decibels(first, "mean PSNR") == decibels(again, "mean PSNR") > 21
    assert (tmp_path / "restored/report/index.html").stat().st_size > 1000


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    r"""Six images as data sets hold them, drawn from the mixture."""
    path = tmp_path_factory.mktemp("photographs") / "x.npy"
    x = emprior.load_prior("cifar10-mixture").sample(6, seed=3).clamp(0, 1)
    np.save(path, (255 * x).round().byte().permute(0, 2, 3, 1).numpy())
    return path


def test_a_prior_is_measured(run, photographs):
    out = run("measure_prior.py", "--test", photographs, "--images", 2, "--steps", 4, "--framed", 4)
    levels = [float(found) for found in re.findall(r"([\d.]+) dB at", out)]
    assert len(levels) == 5
    assert levels == sorted(levels, reverse=True)
    assert re.search(r"tilt of the energy along brightness: \d+\.\d nats", out)
    assert "chain in the frame, step 0: pixel std +0.0 %, energy +0.00 spreads" in out
    assert "chain in the frame, step 4:" in out
    assert "gain of luminance at the thermal noise, by half-cycles a pixel: " in out


@pytest.mark.parametrize("weight", [1.0, 1.3])
def test_the_gain_of_a_force_is_that_of_its_closed_form(weight):
    r"""White images of variance `v` under noise `t`: the force is `w z` and should be `epsilon z / (v + t^2)`."""
    prior = NetworkPrior(Bowl(weight), (1, 8, 8), Denoising(), 0.04)
    x = 0.5 + 0.1 * torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    found = runpy.run_path(str(EXAMPLES / "measure_prior.py"))["gains"](prior, x)
    exact = 0.04 / (weight * (0.04 + prior.interpolant.thermal(0.04) ** 2))
    assert [*found.values()][-1] == pytest.approx(exact, rel=0.03)


def test_a_batch_is_restored_beside_the_bare_solver(run, photographs):
    words = ("--test", photographs, "--images", 6, "--batch", 3, "--prior", "cifar10-mixture", "--steps", 12, "--bare")
    out = run("batch_cifar10_200.py", *words, "--workers", 1)
    assert "6 of 6 items done; 6 in this run" in out
    assert decibels(out, "mean PSNR") > 21
    assert re.search(r"bare solver [\d.]+ items/s, batch [\d.]+ of that", out)
    again = run("batch_cifar10_200.py", *words[:-1], "--workers", 1)
    assert "6 of 6 items done\n" in again
