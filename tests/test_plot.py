from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from emprior.plot import figure, save_figure
from emprior.result import Diagnostics, Result, Status


def make(shape=(3, 8, 8), samples=6, sampler=True, measurement=None, steps=20):
    rng = torch.Generator().manual_seed(0)
    draws = torch.rand(samples, 2, *shape, generator=rng)
    trace = {name: torch.randn(steps, samples, 2, generator=rng) for name in ("energy", "fidelity", "prior")}
    run = Diagnostics((Status.SAMPLED,) * 2, {"step": torch.arange(steps), **trace}, torch.ones(2))
    mean = draws.mean(0)
    std = draws.std(0) if sampler else None
    return Result(mean, draws, mean, std, run, Status.SAMPLED, {"method": "mala"}, measurement)


def titles(fig):
    return [axes.get_title() for axes in fig.axes if axes.get_title()]


def overlaps(fig):
    fig.canvas.draw()
    boxes = [axes.get_tightbbox() for axes in fig.axes]
    inside = all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1 for box in boxes)
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    touching = [min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1 for (a, b) in pairs]
    return not inside or any(touching)


def test_panels_of_a_sampler():
    result = make(measurement=torch.rand(2, 3, 8, 8))
    fig = figure(result, 1, truth=torch.rand(2, 3, 8, 8))
    assert titles(fig) == [
        "measurement",
        "truth",
        "estimate (mean)",
        "std",
        "|mean \N{MINUS SIGN} truth|",
        *(f"sample {number}" for number in range(1, 5)),
        "energy in nats",
    ]
    panels = {axes.get_title(): axes for axes in fig.axes}
    assert panels["estimate (mean)"].get_xlabel().endswith(" dB")
    std, error = (panels[name].images[0] for name in ("std", "|mean \N{MINUS SIGN} truth|"))
    assert std.get_clim() == error.get_clim()
    assert std.get_interpolation() == "nearest"
    np.testing.assert_allclose(panels["sample 2"].images[0].get_array(), result.samples[1, 1].movedim(0, -1), rtol=1e-6)


def test_panels_of_a_map():
    result = make(samples=1, sampler=False)
    assert titles(figure(result)) == ["estimate", "energy in nats"]
    assert titles(figure(result, truth=torch.rand(3, 8, 8)))[-2] == "|estimate \N{MINUS SIGN} truth|"


def test_mean_is_shown_beside_another_estimate():
    result = make()
    fig = figure(dataclasses.replace(result, estimate=result.samples[0]))
    assert titles(fig)[:3] == ["estimate", "mean", "std"]


def test_measurements_that_are_no_image():
    fig = figure(make(measurement=torch.rand(2, 768)))
    assert "m = 768\nmeasurements" in [text.get_text() for text in fig.axes[0].texts]
    fig = figure(make(measurement=torch.rand(2, 5, dtype=torch.complex64)))
    assert "complex" in fig.axes[0].texts[0].get_text()
    fig = figure(make(), measurement=50 * torch.rand(2, 1, 9, 5))
    assert fig.axes[0].get_xlabel().startswith("black ")


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (8, 8), (1, 20, 6), (3, 6, 20), (30,)])
@pytest.mark.parametrize("with_truth", [True, False])
@pytest.mark.parametrize("samples", [1, 2, 6])
def test_nothing_overlaps_or_is_cut(shape, with_truth, samples):
    result = make(shape, samples, sampler=samples > 1, measurement=torch.rand(2, *shape))
    assert not overlaps(figure(result, truth=torch.rand(shape) if with_truth else None))


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_short_traces(steps):
    assert ("energy in nats" in titles(figure(make(steps=steps)))) == (steps > 0)


def test_values_that_are_not_finite(tmp_path):
    result = make()
    for entry in (result.estimate, result.std, result.diagnostics.trace["prior"]):
        entry[:] = torch.nan
    result.diagnostics.trace["energy"][0] = torch.inf
    save_figure(figure(result, truth=torch.rand(3, 8, 8)), tmp_path / "figure.png")


def test_errors():
    with pytest.raises(IndexError, match="index is 2, but the result holds 2 images: give 0 to 1"):
        figure(make(), 2)
    with pytest.raises(ValueError, match=r"truth has shape \(3, 8\), but the estimate has shape \(2, 3, 8, 8\)"):
        figure(make(), truth=torch.rand(3, 8))
    with pytest.raises(ValueError, match=r"measurement has shape \(3, 8, 8\).*Give one for each image"):
        figure(make(), measurement=torch.rand(3, 8, 8))


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_save(tmp_path, suffix):
    save_figure(make().plot(), tmp_path / f"figure.{suffix}", dpi=50)
    assert [file.name for file in tmp_path.iterdir()] == [f"figure.{suffix}"]
    if suffix == "png":
        assert Image.open(tmp_path / "figure.png").width > 300


def test_save_errors_leave_nothing(tmp_path, monkeypatch):
    fig = make().plot()
    with pytest.raises(ValueError, match=r"ends in '\.pgn'.*Did you mean '\.png'"):
        save_figure(fig, tmp_path / "figure.pgn")

    def fail(target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fig, "savefig", fail)
    with pytest.raises(OSError, match=r"No space left on device.*free some space"):
        save_figure(fig, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_pyplot_is_never_imported():
    code = "import sys, emprior.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
