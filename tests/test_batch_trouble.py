"""A batch through every kind of trouble: what is finished stays, and nothing stops the rest."""

from __future__ import annotations

import errno
import os
import signal
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from batching import CORRUPT, QUICK, assert_same, lines, measured, read_all, spoil, untouched, write_items
from conftest import SHAPE, make_operator

import emprior
from emprior.batch import reconstruct_many
from emprior.batch.chunk import Solved, attempt
from emprior.batch.engines import Local
from emprior.batch.items import Folder
from emprior.batch.job import Job
from emprior.batch.plan import lay
from emprior.batch.run import run
from emprior.batch.sinks import Files


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
