"""Many problems at once: against closed forms, and bit for bit."""

from __future__ import annotations

import importlib.util
import shutil
import sys

import numpy as np
import pytest
import torch
from batching import CORRUPT, QUICK, assert_same, lines, measured, read_all, spoil, untouched, write_items
from conftest import SHAPE, make_operator

import emprior
from emprior._noise import generator
from emprior.batch import item_seed, reconstruct_many
from emprior.batch.engines import Local
from emprior.batch.items import Folder
from emprior.batch.job import Job
from emprior.batch.plan import drafted, lay
from emprior.batch.preview import preview
from emprior.batch.reconstruct import open_source
from emprior.batch.run import run
from emprior.batch.traces import history, thinned
from emprior.hub import find_prior
from emprior.metrics import psnr
from emprior.report.reproduce import batch_command
from emprior.report.stored import Stored


@pytest.fixture(scope="module")
def inputs(field, tmp_path_factory):
    r"""Twenty-four measurements as files."""
    return write_items(tmp_path_factory.mktemp("batch") / "in", measured(field, 24)[1])


def test_estimates_are_the_exact_modes(field, tmp_path):
    x, y = measured(field, 10, dtype=torch.float64)
    operator, truths = make_operator("blur"), write_items(tmp_path / "truth", x)
    summary = reconstruct_many(
        operator, write_items(tmp_path / "in", y), tmp_path / "out", field, steps=400, chunk=4, truth=truths
    )
    exact = field.posterior(operator, y, 0.05).mean
    found = torch.stack([torch.from_numpy(array) for array in read_all(tmp_path / "out").values()])
    assert summary.ok
    assert (summary.items, summary.done, summary.failed, summary.fresh) == (10, 10, 0, 10)
    assert found.dtype == torch.float64
    assert (found - exact).abs().max() < 1e-4
    records = lines(tmp_path / "out/records.jsonl")
    assert [record["id"] for record in records] == [f"i{index:02d}" for index in range(10)]
    torch.testing.assert_close(torch.tensor([r["psnr"] for r in records]).double(), psnr(found, x))
    assert all(record["status"] in ("converged", "stalled") for record in records)
    assert (tmp_path / "out/errors.jsonl").read_text() == ""


def test_items_of_several_problems_have_each_their_own_posterior(field, tmp_path):
    x = field.sample(12, seed=1)
    y = x + 0.1 * torch.randn(x.shape, generator=generator("problems"), dtype=torch.float64)
    write_items(tmp_path / "in", y)
    levels = {"quiet": 0.05, "loud": 0.3}
    for name, sigma in levels.items():
        (tmp_path / f"{name}.yaml").write_text(
            "description: Noise alone.\nshape: [1, 8, 8]\noperator: {type: denoising}\n"
            f"noise: {{type: gaussian, sigma: {sigma}}}\n"
        )
    names = [["quiet", "loud"][index % 2] for index in range(12)]
    rows = [f"in/i{index:02d}.npy,k{index:02d},{tmp_path / name}.yaml" for index, name in enumerate(names)]
    (tmp_path / "list.csv").write_text("path,id,problem\n" + "\n".join(rows) + "\n")
    assert reconstruct_many(None, tmp_path / "list.csv", tmp_path / "out", field, steps=400, chunk=6, batch=3).ok
    found = read_all(tmp_path / "out")
    for index, name in enumerate(names):
        exact = field.posterior(make_operator("denoising"), y[index : index + 1], levels[name]).mean[0]
        assert np.abs(found[f"k{index:02d}"] - exact.numpy()).max() < 1e-4


def test_calls_of_the_solver_are_of_one_size_or_of_powers_of_two(field, inputs, tmp_path, monkeypatch):
    sizes = []

    def solve(job, problem, y, names):
        sizes.append(len(y))
        return untouched(y)

    monkeypatch.setattr(Job, "solve", solve)
    names = sorted(path.name for path in inputs.iterdir())
    for problems in (["cifar10/denoising"] * 3 + ["cifar10/inpainting"] * 5, [""] * 20):
        rows = [f"{inputs / name},{name[:3]},{problem}" for name, problem in zip(names, problems, strict=False)]
        (tmp_path / "list.csv").write_text("path,id,problem\n" + "\n".join(rows) + "\n")
        out = tmp_path / f"out{len(rows)}"
        assert reconstruct_many(make_operator("blur"), tmp_path / "list.csv", out, field, batch=8).ok
    assert sizes == [4, 8, 7, 7, 7]


def test_what_samplers_tell_is_kept(field, inputs, tmp_path):
    operator = make_operator("blur")
    options = {"method": "mala", "samples": 3, "steps": 20}
    save = ("estimate", "std", "quantiles", "samples")
    reconstruct_many(operator, inputs, tmp_path, field, save=save, quantiles=(0.1, 0.9), batch=24, **options)
    y = torch.stack([torch.from_numpy(np.load(path)) for path in sorted(inputs.iterdir())])
    seeds = [item_seed(0, path.stem) for path in sorted(inputs.iterdir())]
    result = emprior.solve(operator, y, field, seed=seeds, **options)
    truth = {"std": result.std, "quantiles": result.quantile([0.1, 0.9]).movedim(1, 0)}
    truth |= {"samples": result.samples.movedim(1, 0), ".": result.estimate}
    for name, tensor in truth.items():
        files = [np.load(tmp_path / name / f"i{index:02d}.npy") for index in range(24)]
        assert np.array_equal(np.stack(files), tensor.numpy()), name
    record = lines(tmp_path / "records.jsonl")[7]
    assert record["rhat"] == pytest.approx(float(result.diagnostics.rhat[7]))
    assert record["verdict"] == result.diagnostics.verdict[7]


def test_traces_of_the_draws_are_kept(field, inputs, tmp_path):
    operator, options = make_operator("blur"), {"method": "mala", "samples": 3, "steps": 20}
    reconstruct_many(operator, inputs, tmp_path, field, save=("estimate", "traces"), batch=24, **options)
    y = torch.stack([torch.from_numpy(np.load(path)) for path in sorted(inputs.iterdir())])
    seeds = [item_seed(0, path.stem) for path in sorted(inputs.iterdir())]
    result = emprior.solve(operator, y, field, seed=seeds, **options)
    array = np.load(tmp_path / "traces/i07.npy")
    draws = result.diagnostics.chains[7]
    count = len(draws["draw"])
    assert (array.shape, count) == ((3, 3, 100), 15)
    assert np.isnan(array[:, :, count:]).all()
    for row, name in enumerate(("draw", "energy", "fidelity")):
        entry = draws[name].expand(3, -1) if name == "draw" else draws[name].mT
        assert np.array_equal(array[row, :, :count], entry.numpy())


def test_traces_do_not_depend_on_who_else_is_in_the_batch(field, tmp_path):
    r"""Twelve descents, of which some take longer than others."""
    y = measured(field, 12)[1]
    y[11] *= 5
    options = {"method": "map", "save": ("estimate", "traces"), "steps": 400, "batch": 4, "chunk": 4}
    reconstruct_many(make_operator("blur"), write_items(tmp_path / "in", y), tmp_path / "a", field, **options)
    rows = [f"in/i{index:02d}.npy,i{index:02d}" for index in (11, *range(11))]
    (tmp_path / "list.csv").write_text("path,id\n" + "\n".join(rows) + "\n")
    reconstruct_many(make_operator("blur"), tmp_path / "list.csv", tmp_path / "b", field, **options)
    for index in range(12):
        a, b = (np.load(tmp_path / out / f"traces/i{index:02d}.npy") for out in "ab")
        assert np.array_equal(a, b, equal_nan=True), index


def test_a_long_run_is_thinned_to_its_end():
    r"""Of 301 places the last 51 repeat one: what is left is 0, 2.525, 5.05, ..., 250."""
    energy = torch.arange(301.0, dtype=torch.float64).clamp(max=250)[:, None] * torch.tensor([1.0, 2.0])
    array = thinned({"step": torch.arange(301), "energy": energy, "fidelity": energy / 2}, 2)
    places = torch.linspace(0, 250, 100, dtype=torch.float64).round()
    torch.testing.assert_close(array[0], places.expand(2, -1), rtol=0, atol=0)
    known = history(array)
    torch.testing.assert_close(known["energy"], places[:, None] * torch.tensor([1.0, 2.0]).double(), rtol=0, atol=0)
    torch.testing.assert_close(known["fidelity"], known["energy"] / 2, rtol=0, atol=0)
    assert known["step"].tolist() == places.tolist()
    assert history(thinned({}, 2)) == {}


@pytest.mark.parametrize("name", ["denoising", "inpainting", "blur", "compressed_sensing"])
def test_bits_do_not_depend_on_chunks_shards_or_order(field, tmp_path, name):
    operator = make_operator(name)
    folder = write_items(tmp_path / "in", measured(field, 16, name)[1])
    rows = [f"in/i{index:02d}.npy,i{index:02d}" for index in reversed(range(16))]
    (tmp_path / "reversed.csv").write_text("path,id\n" + "\n".join(rows) + "\n")
    options = {**QUICK, "method": "flow", "steps": 20, "batch": 8}
    reconstruct_many(operator, folder, tmp_path / "plain", field, chunk=8, **options)
    reconstruct_many(operator, folder, tmp_path / "large", field, chunk=16, **options)
    reconstruct_many(operator, tmp_path / "reversed.csv", tmp_path / "reversed", field, chunk=16, **options)
    for index in (1, 0):
        reconstruct_many(operator, folder, tmp_path / "sharded", field, chunk=8, shard=(index, 2), **options)
    plain = read_all(tmp_path / "plain")
    assert len(plain) == 16
    for other in ("large", "reversed", "sharded"):
        assert_same(plain, read_all(tmp_path / other))
    assert len(lines(tmp_path / "sharded/records.jsonl")) == 16


def test_bits_are_those_of_the_solver(field, inputs, tmp_path):
    reconstruct_many(make_operator("blur"), inputs, tmp_path, field, chunk=8, **QUICK)
    found = read_all(tmp_path)
    y = torch.stack([torch.from_numpy(np.load(path)) for path in sorted(inputs.iterdir())])
    options = {name: QUICK[name] for name in ("method", "steps")}
    for start in range(0, 24, 8):
        seeds = [item_seed(0, f"i{index:02d}") for index in range(start, start + 8)]
        result = emprior.solve(make_operator("blur"), y[start : start + 8], field, seed=seeds, **options)
        for row in range(8):
            assert np.array_equal(result.estimate[row].numpy(), found[f"i{start + row:02d}"])


def test_arrays_of_all_items_hold_what_files_do(field, tmp_path):
    spoilt = write_items(tmp_path / "spoilt", measured(field, 24)[1])
    spoil(spoilt)
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    options = {"method": "flow", "steps": 20, "save": ("estimate", "std"), "chunk": 9, "progress": False}
    for form in ("files", "zarr", "hdf5"):
        for index in (1, 0):
            reconstruct_many(
                make_operator("blur"), spoilt, tmp_path / form, field, format=form, shard=(index, 2), **options
            )
    ids = [record["id"] for record in lines(tmp_path / "zarr/records.jsonl")]
    group = zarr.open_group(tmp_path / "zarr/result.zarr", mode="r")
    with h5py.File(tmp_path / "hdf5/result.h5") as file:
        for name, folder in {"estimate": ".", "std": "std"}.items():
            assert group[name].shape == (24, *SHAPE)
            assert group[name].shards == (8, *SHAPE)
            assert np.array_equal(group[name][:], file[name][:], equal_nan=True)
            for row, item in enumerate(ids):
                if item in CORRUPT:
                    assert np.isnan(group[name][row]).all()
                else:
                    assert np.array_equal(group[name][row], np.load(tmp_path / "files" / folder / f"{item}.npy"))


def test_a_preview_keeps_nothing(field, inputs, tmp_path):
    with drafted(Job(make_operator("blur"), Folder(inputs), tmp_path / "out", field, chunk=4)) as draft:
        assert preview(draft).chunks == 6
    assert not (tmp_path / "out").exists()
    job = Job(make_operator("blur"), Folder(inputs), tmp_path / "out", field, "continuation", steps=4, chunk=8)
    with drafted(job) as draft:
        seen = preview(draft, workers=2)
    plan = lay(job)
    with drafted(job) as draft:
        assert draft.hash == plan.hash
    assert (seen.items, seen.chunks, seen.left, seen.chunk, seen.batch, seen.failed) == (24, 3, 3, 8, 8, 0)
    assert seen.disk == 24 * 64 * 4
    assert seen.total == pytest.approx(seen.seconds * 3 / 2)
    assert read_all(tmp_path / "out") == {}
    assert run(plan, Local()).fresh == 24


def test_a_run_leaves_the_process_as_it_was(field, inputs, tmp_path):
    random, threads = torch.random.get_rng_state(), torch.get_num_threads()
    reconstruct_many(make_operator("blur"), inputs, tmp_path, field, threads=threads + 1, chunk=24, **QUICK)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_a_stack_of_truths_is_taken_in_the_order_of_files(field, tmp_path, kind):
    x, y = measured(field, 6, dtype=torch.float64)
    folder, stack = write_items(tmp_path / "in", y), f"{tmp_path}/truth.{kind}"
    if kind == "npy":
        np.save(stack, x.numpy())
    else:
        with pytest.importorskip("h5py").File(stack, "w") as file:
            file["other"], file["x"] = torch.zeros_like(x).numpy(), x.numpy()
        stack += "::x"
    for form, truth in {"stack": stack, "files": write_items(tmp_path / "truth", x)}.items():
        options = {**QUICK, "chunk": 2, "truth": truth}
        assert reconstruct_many(make_operator("blur"), folder, tmp_path / form, field, **options).ok
    scores = {form: [r["psnr"] for r in lines(tmp_path / form / "records.jsonl")] for form in ("stack", "files")}
    assert scores["stack"] == scores["files"]
    stored = Stored.open(tmp_path / "stack")
    assert stored.config["truth"] == str(stack)
    for place, item, record in stored.items():
        assert stored.view(place, item, record).truth is not None


def test_arrays_of_one_file_are_batches_of_their_own(field, tmp_path):
    x, y = measured(field, 4)
    with pytest.importorskip("h5py").File(tmp_path / "y.h5", "w") as file:
        file["one"], file["two"], file["x"], file["z"] = y.numpy(), y.numpy()[::-1], x.numpy(), x.numpy()

    def go(items, truth):
        options = {**QUICK, "truth": f"{tmp_path}/y.h5::{truth}"}
        return reconstruct_many(make_operator("blur"), f"{tmp_path}/y.h5::{items}", tmp_path / "out", field, **options)

    assert go("one", "x").ok
    with pytest.raises(ValueError, match=r"input was '.*y\.h5::one' and is '.*y\.h5::two'"):
        go("two", "x")
    with pytest.raises(ValueError, match=r"truth was '.*y\.h5::x' and is '.*y\.h5::z'"):
        go("one", "z")
    assert go("one", "x").fresh == 0
    config = Stored.open(tmp_path / "out").config
    told = batch_command(config, "again")
    assert f"--input {tmp_path}/y.h5::one" in told
    assert f"--truth {tmp_path}/y.h5::x" in told


def test_a_job_is_the_same_from_any_folder(field, tmp_path, monkeypatch):
    y = torch.rand(3, 1, 28, 28, generator=generator("anywhere"))
    write_items(tmp_path / "in", y)
    (tmp_path / "mine.yaml").write_text(
        "description: Noise alone.\nshape: [1, 28, 28]\noperator: {type: denoising}\n"
        "noise: {type: gaussian, sigma: 0.1}\n"
    )
    rows = [f"in/i{index:02d}.npy,{'mine.yaml' if index else ''}" for index in range(3)]
    (tmp_path / "list.csv").write_text("path,problem\n" + "\n".join(rows) + "\n")
    shutil.copytree(find_prior("mnist"), tmp_path / "prior")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    plan = lay(Job("mine.yaml", open_source("list.csv"), tmp_path / "out", "prior", "continuation", steps=2))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(plan, Local()).ok
    named = lay(Job("cifar10/denoising", Folder(tmp_path / "in"), tmp_path / "named", "mnist"))
    assert (named.job.operator, named.job.prior) == ("cifar10/denoising", "mnist")


def test_where_memory_cannot_be_asked_for_it_is_unknown(field, inputs, tmp_path, monkeypatch):
    r"""As on Windows, which has no module of this name."""
    monkeypatch.setitem(sys.modules, "resource", None)
    spec = importlib.util.find_spec("emprior.batch.preview")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    job = Job(make_operator("blur"), Folder(inputs), tmp_path / "out", field, "continuation", steps=4, chunk=8)
    with drafted(job) as plan:
        seen = module.preview(plan)
    assert seen.memory is None
    assert "an unknown amount of memory a worker" in str(seen)
