"""A batch through every kind of trouble: what is finished stays, and nothing stops the rest."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

import numpy as np
import pytest
import torch
from batching import CORRUPT, QUICK, assert_same, lines, measured, read_all, spoil, untouched, write_items
from conftest import SHAPE, make_operator

import emprior
from emprior.batch import reconstruct_many
from emprior.batch.chunk import Solved, attempt
from emprior.batch.engines import Local
from emprior.batch.items import Folder, Item
from emprior.batch.job import Job
from emprior.batch.ledger import Ledger
from emprior.batch.plan import FORMAT, lay
from emprior.batch.run import run
from emprior.batch.sinks import FORMATS, Files
from emprior.batch.stacks import Stack


@pytest.fixture(scope="module")
def inputs(field, tmp_path_factory):
    r"""Twenty-four measurements as files."""
    return write_items(tmp_path_factory.mktemp("batch") / "in", measured(field, 24)[1])


@pytest.fixture(scope="module")
def expected(field, inputs, tmp_path_factory):
    r"""What an undisturbed run makes of them."""
    out = tmp_path_factory.mktemp("expected")
    assert reconstruct_many(make_operator("blur"), inputs, out, field, chunk=8, batch=8, **QUICK).ok
    return read_all(out)


@pytest.fixture
def spoilt(field, tmp_path):
    folder = write_items(tmp_path / "spoilt", measured(field, 24)[1])
    spoil(folder)
    return folder


def test_corrupt_items_alone_fail_and_change_no_bit_of_the_others(field, spoilt, expected, tmp_path):
    summary = reconstruct_many(make_operator("blur"), spoilt, tmp_path / "out", field, chunk=8, batch=8, **QUICK)
    assert (summary.ok, summary.done, summary.failed) == (False, 19, 5)
    errors = {record["id"]: record for record in lines(tmp_path / "out/errors.jsonl")}
    assert errors.keys() == CORRUPT.keys()
    for name, reason in CORRUPT.items():
        assert errors[name]["status"] == "failed"
        assert reason in errors[name]["reason"]
        assert errors[name]["where"] == f"{name}.npy"
    assert len(lines(tmp_path / "out/records.jsonl")) == 24
    assert_same({name: expected[name] for name in expected if name not in CORRUPT}, read_all(tmp_path / "out"))


def test_items_that_failed_are_done_again_on_request(field, spoilt, expected, tmp_path):
    def go(**options):
        return reconstruct_many(
            make_operator("blur"), spoilt, tmp_path / "out", field, chunk=4, batch=8, **QUICK, **options
        )

    assert go().failed == 5
    write_items(spoilt, measured(field, 24)[1])
    assert (go().fresh, go().failed) == (0, 5)
    again = go(retry=True)
    assert (again.ok, again.fresh) == (True, 16)
    assert (tmp_path / "out/errors.jsonl").read_text() == ""
    assert read_all(tmp_path / "out").keys() == expected.keys()


class Fragile:
    r"""A solver that breaks on batches that hold a value above 1, and counts its calls."""

    def __init__(self, limit: int = 100) -> None:
        self.sizes: list[int] = []
        self.limit = limit

    def __call__(self, rows):
        y = torch.stack(rows)
        self.sizes.append(len(y))
        if bool((y > 1).any()) or len(y) > self.limit:
            raise RuntimeError("too much")
        return untouched(y)


def test_one_bad_item_is_found_by_halving_at_one_size():
    solver, ys = Fragile(), {place: torch.tensor([place / 20]) for place in (0, 1, 2, 4, 5, 6, 7)}
    ys[5] = torch.tensor([7.0])
    out = attempt(solver, ys, 8)
    assert out.keys() == ys.keys()
    for place, outcome in out.items():
        if place == 5:
            assert str(outcome) == "too much"
        else:
            assert isinstance(outcome, Solved)
            assert outcome.row == place
            assert torch.equal(outcome.result.estimate[place], ys[place])
    assert set(solver.sizes) == {8, 1}
    assert len(solver.sizes) <= 8


def test_items_that_fit_only_alone_are_solved_alone():
    out = attempt(Fragile(limit=3), {place: torch.tensor([place / 20]) for place in range(4)}, 4)
    assert [float(out[place].result.estimate[out[place].row]) for place in range(4)] == pytest.approx(
        [0, 0.05, 0.1, 0.15]
    )


@dataclass(frozen=True)
class Troubled(Files):
    r"""Files with trouble at the second chunk that is written."""

    trouble: str = "none"

    def write(self, ledger, manifest, number, items, rows):
        if number == 1 and self.trouble == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if number == 1 and self.trouble == "dropped":
            raise KeyboardInterrupt
        super().write(ledger, manifest, number, items, rows)
        if number == 1 and self.trouble in ("SIGINT", "SIGTERM"):
            os.kill(os.getpid(), getattr(signal, self.trouble))


def plan_of(field, inputs, out, trouble):
    sink = Troubled(trouble)
    return lay(Job(make_operator("blur"), Folder(inputs), out, field, "continuation", steps=4, sink=sink, chunk=8))


@pytest.mark.parametrize(("trouble", "kept"), [("SIGINT", 16), ("SIGTERM", 16), ("dropped", 8), ("full", 8)])
def test_what_was_finished_before_trouble_stays_and_the_rest_is_done_later(
    field, inputs, expected, tmp_path, trouble, kept
):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    plan = plan_of(field, inputs, tmp_path, trouble)
    if trouble == "full":
        with pytest.raises(OSError, match="No space left"):
            run(plan, Local())
    else:
        summary = run(plan, Local())
        assert summary.interrupted
        assert (summary.done, summary.fresh) == (kept, kept)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert len(lines(tmp_path / "records.jsonl")) == len(read_all(tmp_path)) == kept
    assert list((tmp_path / ".batch/scratch").iterdir()) == []
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    rest = run(plan_of(field, inputs, tmp_path, "none"), Local())
    assert (rest.ok, rest.interrupted, rest.fresh) == (True, False, 24 - kept)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert_same(expected, read_all(tmp_path))


def test_what_the_killed_have_left_is_removed_when_nobody_can_be_at_it(field, inputs, tmp_path):
    plan = plan_of(field, inputs, tmp_path, "none")
    old, new = (tmp_path / ".batch/scratch" / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "part.npy").write_bytes(b"half")
    os.utime(old, (0, 0))
    assert run(plan, Local()).ok
    assert [path.name for path in (tmp_path / ".batch/scratch").iterdir()] == ["new"]


@pytest.mark.parametrize("package", ["zarr", "h5py"])
def test_a_package_that_lacks_is_missed_before_any_work(field, inputs, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    form = {"zarr": "zarr", "h5py": "hdf5"}[package]
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}, .*: pip install 'emprior\[batch\]'"):
        reconstruct_many(make_operator("blur"), inputs, tmp_path / "out", field, format=form, **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_batch_goes_on_only_as_it_was_begun(field, inputs, tmp_path):
    def go(folder=inputs, **options):
        return reconstruct_many(
            make_operator("blur"), folder, tmp_path / "out", field, **{**QUICK, "chunk": 8, "shard": (0, 3), **options}
        )

    go()
    with pytest.raises(ValueError, match=r"begun with other options: seed was 0 and is 1\. Use the same"):
        go(seed=1)
    with pytest.raises(ValueError, match="chunk was 8 and is 24; batch was 8 and is 24"):
        go(chunk=64)
    with pytest.raises(ValueError, match="other options: prior was 'GaussianPrior"):
        reconstruct_many(make_operator("blur"), inputs, tmp_path / "out", emprior.priors.GaussianPrior(
            field.mean, 2 * field.covariance_matrix()), chunk=8, **QUICK)  # fmt: skip
    other = write_items(tmp_path / "other", measured(field, 3)[1])
    with pytest.raises(ValueError, match="input was"):
        go(other)
    np.save(inputs / "late.npy", np.zeros(SHAPE, np.float32))
    try:
        with pytest.raises(ValueError, match=r"begun with 24 items, and .* now lists other ones \(25\)"):
            go()
    finally:
        os.remove(inputs / "late.npy")
    assert go(shard=(1, 3)).done == 8


def test_outputs_that_would_harm_something_are_refused(field, inputs, tmp_path):
    def go(out, **options):
        return reconstruct_many(make_operator("blur"), inputs, out, field, **{**QUICK, **options})

    with pytest.raises(FileExistsError, match="lie in one another"):
        go(inputs / "out")
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something that is no batch"):
        go(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="which has no quantiles nor std"):
        go(tmp_path / "out", method="map", steps=None, save=("quantiles", "std"))
    with pytest.raises(ValueError, match=r"unknown output 'stdev'\. Did you mean 'std'\?"):
        go(tmp_path / "out", save=("stdev",))
    with pytest.raises(ValueError, match="a flow from noise to data takes at least 20 steps"):
        go(tmp_path / "out", method="flow")
    with pytest.raises(ValueError, match=r"unknown format 'h5'\."):
        go(tmp_path / "out", format="h5")
    with pytest.raises(ValueError, match="shards count from 0 to 1"):
        go(tmp_path / "out", shard=(2, 2))
    assert not (tmp_path / "out").exists()


def job_of(field, folder, out, **options):
    return Job(make_operator("blur"), Folder(folder), out, field, "continuation", **{"steps": 4, "chunk": 8, **options})


def laid(out):
    return {path.name: path.read_bytes() for path in (out / ".batch").iterdir() if path.is_file()}


def test_a_plan_is_not_replaced_while_another_may_be_at_work_on_it(field, inputs, tmp_path):
    out, few = tmp_path / "out", write_items(tmp_path / "few", measured(field, 3)[1])
    plan = lay(job_of(field, inputs, out))
    before = laid(out)
    assert before.keys() == {"plan.json", "manifest.csv", "index.npy"}
    cure = rf"another output\. No chunk is finished: if no other process is at work on it, remove {out}/\.batch"
    for options in ({"seed": 1}, {"chunk": 4}):
        with pytest.raises(ValueError, match=f"begun with other options: .* Use the same, or choose {cure}"):
            lay(job_of(field, inputs, out, **options))
    with pytest.raises(ValueError, match="begun with other options: input was"):
        lay(job_of(field, few, out))
    assert laid(out) == before
    assert lay(job_of(field, inputs, out)).hash == plan.hash
    assert run(plan, Local()).fresh == 24


@pytest.mark.parametrize("links", [True, False])
def test_of_plans_laid_at_once_one_stands_with_its_own_items(field, inputs, tmp_path, monkeypatch, links):
    r"""Another process lays its plan between this one's look at the folder and its own laying."""
    out, few = tmp_path / "out", write_items(tmp_path / "few", measured(field, 3)[1])
    link, first = os.link, []

    def late(*paths):
        if not first:
            first.append(True)
            first.append(lay(job_of(field, few, out)))
        if not links:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        link(*paths)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(ValueError, match="begun with other options: input was"):
        lay(job_of(field, inputs, out))
    assert json.loads((out / ".batch/plan.json").read_text())["hash"] == first[1].hash
    assert run(first[1], Local()).fresh == 3
    assert lay(job_of(field, few, out)).manifest.read(0) == first[1].manifest.read(0)


def test_a_plan_whose_process_died_before_its_list_was_there_is_gone_on_with(field, inputs, tmp_path):
    plan = lay(job_of(field, inputs, tmp_path / "out"))
    (plan.ledger.folder / "manifest.csv").write_text("of something else")
    os.remove(plan.ledger.folder / "index.npy")
    assert run(lay(job_of(field, inputs, tmp_path / "out")), Local()).fresh == 24


def test_plans_that_are_damaged_or_of_another_form_are_told(field, inputs, tmp_path):
    plan = lay(job_of(field, inputs, tmp_path / "out"))
    path = plan.ledger.folder / "plan.json"
    path.write_text(path.read_text().replace(FORMAT, "emprior batch 1"))
    with pytest.raises(ValueError, match=r"begun with emprior .*, whose plans were of another form\. Finish it with"):
        lay(job_of(field, inputs, tmp_path / "out"))
    path.write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json cannot be read: .* Choose another output; or remove that file"):
        lay(job_of(field, inputs, tmp_path / "out"))


def test_arrays_are_made_by_many_at_once(field, inputs, tmp_path):
    pytest.importorskip("zarr")
    for attempt_ in range(6):
        sink = FORMATS["zarr"]()
        plan = lay(job_of(field, inputs, tmp_path / f"out{attempt_}", chunk=4, sink=sink))
        gate = Barrier(6)

        def write(number, plan=plan, gate=gate):
            rows = [{"estimate": np.full(SHAPE, number, np.float32)}] * 4
            gate.wait()
            plan.job.sink.write(plan.ledger, plan.manifest, number, plan.manifest.read(number), rows)

        with ThreadPoolExecutor(6) as executor:
            list(executor.map(write, range(6)))
        group = sys.modules["zarr"].open_group(plan.job.out / "result.zarr", mode="r")
        assert (group["estimate"][:, 0, 0, 0] == np.repeat(np.arange(6), 4)).all()


def test_a_full_disk_names_what_was_written_and_the_cure(field, inputs, tmp_path, monkeypatch):
    def full(*given, **options):
        raise OSError("9216 requested and 992 written")

    pytest.importorskip("zarr")
    h5py = pytest.importorskip("h5py")
    targets = {"files": "out", "zarr": "result.zarr/estimate", "hdf5": "parts/000000.h5"}
    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr(h5py.File, "__setitem__", full)
    monkeypatch.setattr(sys.modules["zarr"], "create_array", full)
    row = {"estimate": np.zeros(SHAPE, np.float32)}
    for form, target in targets.items():
        ledger = Ledger(tmp_path / form / "out")
        told = f"cannot write .*{target}: 9216 requested and 992 written. What is finished is kept: free some space"
        with pytest.raises(OSError, match=told):
            FORMATS[form]().write(ledger, Listed(), 0, [Item("a", "a.npy")], [row])


class Listed:
    r"""A list of one item."""

    count = chunk = 1


@pytest.mark.parametrize("quantiles", [(0.5, 1.5), (-0.1,), (float("nan"),), (), ("0.5",)])
def test_quantiles_that_cannot_be_are_refused(field, inputs, tmp_path, quantiles):
    with pytest.raises(ValueError, match=r"quantiles (holds .* probabilities from 0 to 1|names none)"):
        job_of(field, inputs, tmp_path / "out", quantiles=quantiles)


def test_a_stack_of_truths_of_another_length_is_refused_before_any_work(field, inputs, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((23, *SHAPE)))
    with pytest.raises(ValueError, match=r"x\.npy holds 23 true images, but there are 24 items, and rows are taken"):
        lay(job_of(field, inputs, tmp_path / "out", truths=Stack(tmp_path / "x.npy")))


def test_a_truth_that_is_lost_on_the_way_costs_no_item(field, inputs, tmp_path, caplog):
    np.save(tmp_path / "x.npy", np.zeros((24, *SHAPE)))
    plan = lay(job_of(field, inputs, tmp_path / "out", truths=Stack(tmp_path / "x.npy")))
    np.save(tmp_path / "x.npy", np.zeros((20, *SHAPE)))
    assert run(plan, Local()).ok
    records = lines(tmp_path / "out/records.jsonl")
    assert ["psnr" in record for record in records] == [True] * 20 + [False] * 4
    assert "i23 has no usable truth" in caplog.text


def test_an_item_of_which_an_array_cannot_be_made_fails_alone(field, inputs, tmp_path, monkeypatch):
    arrays = Solved.arrays

    def broken(self, save, quantiles):
        if self.row == 2:
            raise RuntimeError("no such quantile")
        return arrays(self, save, quantiles)

    monkeypatch.setattr(Solved, "arrays", broken)
    plan = lay(job_of(field, inputs, tmp_path / "out"))
    summary = run(plan, Local())
    assert (summary.done, summary.failed) == (21, 3)
    errors = lines(tmp_path / "out/errors.jsonl")
    assert {record["reason"] for record in errors} == {"no such quantile"}
