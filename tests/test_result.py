from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import emprior.result
from emprior._saved import check_replaceable
from emprior.result import Diagnostics, Result, Status

CONFIG = {
    "method": "mala",
    "steps": 400,
    "weight": 1.1,
    "adapt": True,
    "sigma": None,
    "limit": math.inf,
    "levels": [3.0, 0.1],
    "nested": {"deep": [1, {"x": "é"}]},
}


def make(dtype=torch.float32, std=True, measurement=None, shape=(3, 4, 5)):
    rng = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=rng, dtype=torch.float64).to(dtype)

    trace = {
        "step": torch.arange(0, 60, 10),
        "prior": draw(6, 7, 2),
        "energy": draw(6, 7, 2),
        "fidelity": draw(6, 7, 2),
    }
    run = Diagnostics(
        status=(Status.SAMPLED, Status.DIVERGED),
        trace=trace,
        residual=draw(2),
        acceptance=draw(2) if std else None,
        step_size=draw(2) if std else None,
        gradient_evaluations=400,
        seconds=1.25,
    )
    samples = draw(7, 2, *shape)
    mean = samples.mean(0)
    return Result(mean, samples, mean, samples.std(0) if std else None, run, Status.DIVERGED, dict(CONFIG), measurement)


def assert_same(a, b):
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, Diagnostics):
            assert_same(left, right)
        elif field.name == "trace":
            assert list(left) == list(right)
            assert all(torch.equal(left[name], right[name]) for name in left)
        elif isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype
            assert torch.equal(left, right)
        else:
            assert left == right


@pytest.fixture
def full_disk(monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    return lambda name: monkeypatch.setattr(name, fail)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("std", [True, False])
def test_round_trip_is_bit_for_bit(tmp_path, dtype, std):
    result = make(dtype, std, torch.randn(2, 9))
    result.save(tmp_path / "run")
    assert_same(Result.load(tmp_path / "run"), result)


def test_round_trip_without_measurement_and_with_shared_memory(tmp_path):
    x = torch.rand(2, 6)
    run = Diagnostics((Status.CONVERGED,) * 2, {}, torch.ones(2))
    result = Result(x, x[None], x, None, run, Status.CONVERGED, {})
    result.save(tmp_path / "run")
    assert_same(Result.load(tmp_path / "run"), result)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_measurements(tmp_path, dtype):
    result = make(measurement=torch.randn(2, 5, dtype=dtype).conj())
    result.save(tmp_path / "run")
    assert torch.equal(Result.load(tmp_path / "run").measurement, result.measurement)


def test_non_finite_values_survive(tmp_path):
    result = make()
    result.estimate[0] = torch.nan
    result.diagnostics.residual[1] = torch.inf
    result.save(tmp_path / "run")
    loaded = Result.load(tmp_path / "run")
    torch.testing.assert_close(loaded.estimate, result.estimate, equal_nan=True, rtol=0, atol=0)
    header = json.loads((tmp_path / "run" / "result.json").read_text())
    assert header["summary"]["residual"] is None


def test_a_result_of_tensors_with_gradients_is_saved(tmp_path):
    result = make()
    dataclasses.replace(result, estimate=result.estimate.clone().requires_grad_()).save(tmp_path / "run")
    assert not Result.load(tmp_path / "run").estimate.requires_grad


def test_folder_holds_files_that_others_can_open(tmp_path):
    result = make(torch.bfloat16)
    result.save(tmp_path / "deep" / "run")
    folder = tmp_path / "deep" / "run"
    assert {file.name for file in folder.iterdir()} == emprior.result.FILES
    assert np.array_equal(np.load(folder / "std.npy"), result.std.float().numpy())
    header = json.loads((folder / "result.json").read_text())
    assert header["status"] == "DIVERGED"
    assert header["message"] == Status.DIVERGED.value
    assert header["config"]["method"] == "mala"
    assert header["versions"]["torch"] == torch.__version__
    assert header["summary"]["ok"] == 0.5
    assert (folder.stat().st_mode & 0o777) == ((tmp_path / "deep").stat().st_mode & 0o777)


def test_an_earlier_result_is_replaced_and_other_files_stay(tmp_path):
    folder = tmp_path / "run"
    make().save(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "more").mkdir()
    (folder / "more" / "std.npy").write_text("mine too")
    make(std=False).save(folder)
    assert_same(Result.load(folder), make(std=False))
    assert not (folder / "std.npy").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "more" / "std.npy").read_text() == "mine too"
    assert list(tmp_path.iterdir()) == [folder]


def test_an_empty_folder_and_a_link_are_filled(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same(Result.load(tmp_path / "real"), make())


@pytest.mark.parametrize("use", [make().save, check_replaceable])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("photo.png", "{}"),
        ("result.json", "{}"),
        ("result.json", "[1]"),
        ("result.json", "not JSON"),
        ("result.json", '{"format": "another program\'s"}'),
        ("result.json", '{"format": 1}'),
    ],
)
def test_a_folder_of_other_things_is_left_alone(tmp_path, use, name, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(FileExistsError, match=r"left alone\. Give a new or an empty folder"):
        use(tmp_path / "run")
    assert [(file.name, file.read_text()) for file in (tmp_path / "run").iterdir()] == [(name, text)]


def test_what_can_be_replaced(tmp_path):
    check_replaceable(tmp_path / "new/folder")
    check_replaceable(tmp_path)
    make().save(tmp_path / "run")
    check_replaceable(str(tmp_path / "run"))
    edit(format="emprior result 0")(tmp_path / "run")
    check_replaceable(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_is_left_alone(tmp_path):
    (tmp_path / "run").write_text("mine")
    for use in (make().save, check_replaceable):
        with pytest.raises(FileExistsError, match="not a saved result"):
            use(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("writer", ["numpy.save", "emprior.result.save_file", "pathlib.Path.write_text", "os.fsync"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_leaves_nothing_and_harms_nothing(tmp_path, full_disk, writer, earlier):
    if earlier:
        make().save(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    full_disk(writer)
    with pytest.raises(OSError, match=r"cannot write .*run: No space left on device\. Nothing was left behind; free"):
        make(std=False).save(tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before
    if earlier:
        assert_same(Result.load(tmp_path / "run"), make())


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_the_earlier_result_comes_back_if_the_swap_fails(tmp_path, monkeypatch, error):
    make().save(tmp_path / "run")
    rename = emprior.result.os.rename

    def fail(source, target):
        if Path(source).name == "new":
            raise error
        rename(source, target)

    monkeypatch.setattr(emprior.result.os, "rename", fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        make(std=False).save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert_same(Result.load(tmp_path / "run"), make())


def test_a_full_disk_under_safetensors(tmp_path, monkeypatch):
    def fail(*_):
        raise emprior.result.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(emprior.result, "save_file", fail)
    with pytest.raises(OSError, match=r"os error 28.*free some space"):
        make().save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*choose another folder"):
        make().save(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"x0": torch.ones(1)}, r"config\['x0'\] is a Tensor, which JSON cannot hold"),
        ({"a": {"b": [1, Path(".")]}}, r"config\['a'\]\['b'\]\[1\] is a PosixPath"),
        ({"a": {1: 2}}, r"config\['a'\] has the key 1.*Use str\(1\)"),
    ],
)
def test_a_config_that_json_cannot_hold(tmp_path, config, message):
    with pytest.raises(TypeError, match=message):
        dataclasses.replace(make(), config=config).save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks result\.json\. Give a folder that Result\.save wrote"):
        Result.load(tmp_path / "nowhere")
    make().save(tmp_path / "run")
    (tmp_path / "run" / "arrays.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks arrays\.safetensors"):
        Result.load(tmp_path / "run")


def corrupt_arrays(folder):
    data = bytearray((folder / "arrays.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "arrays.safetensors").write_bytes(data)


def truncate_arrays(folder):
    (folder / "arrays.safetensors").write_bytes((folder / "arrays.safetensors").read_bytes()[:-9])


def truncate_header(folder):
    (folder / "result.json").write_text((folder / "result.json").read_text()[:40])


def edit(**changes):
    def change(folder):
        header = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**header, **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (corrupt_arrays, "sha256"),
        (truncate_arrays, "sha256"),
        (truncate_header, "cannot be read"),
        (lambda folder: (folder / "result.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "result.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (edit(format="emprior result 9"), "format is 'emprior result 9', where this version reads"),
        (edit(status="FINE"), "FINE"),
        (edit(trace=["missing"]), "missing"),
    ],
)
def test_loading_what_is_damaged(tmp_path, damage, message):
    make().save(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(ValueError, match=message) as caught:
        Result.load(tmp_path / "run")
    assert "Copy the folder again" in str(caught.value)


def test_summary():
    run = make().diagnostics
    summary = run.summary()
    assert summary["energy"] == pytest.approx(run.trace["energy"][-1].mean().item())
    assert summary["acceptance"] == pytest.approx(run.acceptance.mean().item())
    assert summary["gradient_evaluations"] == 400
    assert summary["seconds"] == 1.25
    assert summary["ok"] == 0.5
    assert "step" not in summary
    assert "acceptance" not in make(std=False).diagnostics.summary()
    assert repr(run).startswith("Diagnostics(prior=")


def test_status():
    assert {status for status in Status if status.ok} == {
        Status.CONVERGED,
        Status.MIXED,
        Status.SAMPLED,
        Status.STALLED,
    }
    assert Status.worst([Status.SAMPLED, Status.NON_FINITE, Status.EXHAUSTED]) is Status.NON_FINITE
    assert "raise steps" in Status.EXHAUSTED.value


def test_repr():
    assert repr(make()) == f"Result(2 images (3, 4, 5), 7 samples, {Status.DIVERGED.value})"


def test_to_moves_every_tensor_and_keeps_the_rest():
    result = make(measurement=torch.ones(2, 3))
    moved = result.to("meta")
    assert {moved.std.device.type, moved.measurement.device.type, moved.diagnostics.residual.device.type} == {"meta"}
    assert {entry.device.type for entry in moved.diagnostics.trace.values()} == {"meta"}
    assert moved.config == result.config
    assert result.estimate.device.type == "cpu"
    assert make(std=False).to("meta").std is None


def test_results_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().status = Status.SAMPLED


def test_plot_returns_a_figure():
    assert make(shape=(3, 8, 8)).plot(1, truth=torch.rand(3, 8, 8)).axes
