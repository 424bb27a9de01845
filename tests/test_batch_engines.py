"""Processes and clusters: workers that die, drivers that die, and a million items."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from batching import CORRUPT, QUICK, assert_same, lines, measured, read_all, spoil, write_items
from conftest import make_operator

from emprior.batch import Dask, Local, Table, reconstruct_many
from emprior.batch.engines import LIVES
from emprior.batch.items import Folder
from emprior.batch.job import Job
from emprior.batch.plan import lay
from emprior.batch.run import run
from emprior.priors import GaussianPrior
from emprior.report.batch import write_index


@dataclass(frozen=True)
class Deadly(Folder):
    r"""A folder with an item that kills who reads it, the first few times."""

    where: str = ""
    times: int = 0

    def read(self, where):
        deaths = self.path.parent / "deaths"
        if where == self.where and len(deaths.read_bytes()) < self.times:
            with deaths.open("ab") as file:
                file.write(b"x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(where)


@pytest.mark.parametrize("times", [1, pytest.param(LIVES, marks=pytest.mark.slow)])
def test_a_worker_that_dies_loses_nothing(field, tmp_path, times):
    folder = write_items(tmp_path / "in", measured(field, 24)[1])
    (tmp_path / "deaths").write_bytes(b"")
    operator = make_operator("blur")
    reconstruct_many(operator, folder, tmp_path / "alone", field, chunk=4, **QUICK)
    source = Deadly(folder, "i09.npy", times)
    summary = reconstruct_many(operator, source, tmp_path / "out", field, chunk=4, engine=Local(2), **QUICK)
    assert (tmp_path / "deaths").read_bytes() == b"x" * times
    if times == LIVES:
        assert (summary.ok, summary.done, summary.failed, summary.fresh) == (False, 20, 0, 20)
        assert "chunk 2: its worker died 3 times, last with exit code -9" in str(summary)
        assert reconstruct_many(operator, source, tmp_path / "out", field, chunk=4, **QUICK).fresh == 4
    assert_same(read_all(tmp_path / "alone"), read_all(tmp_path / "out"))
    assert len(lines(tmp_path / "out/records.jsonl")) == 24


DRIVER = """
import sys, torch
from emprior.batch import Dask, reconstruct_many
import test_batch_engines as here

if __name__ == "__main__":
    operator, field = here.make_operator("blur"), torch.load(sys.argv[1] + "/prior.pt", weights_only=False)
    print(reconstruct_many(
        operator, here.Slow(here.Path(sys.argv[1]) / "in"), sys.argv[1] + "/out", field, engine=Dask(workers=2),
        chunk=8, batch=8, **here.QUICK
    ), flush=True)
"""


@dataclass(frozen=True)
class Slow(Folder):
    r"""A folder that takes its time, so that a run can be caught at work, and writes down who reads."""

    def read(self, where):
        time.sleep(0.02)
        with (self.path.parent / "readers").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().read(where)


def drive(folder):
    (folder / "driver.py").write_text(DRIVER)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, str(folder / "driver.py"), str(folder)], env=environment)


def wait_for(chunks, folder, driver):
    r"""Waits until a number of chunks are finished, while the driver lives."""
    for _ in range(2400):
        found = len(list((folder / "out/.batch").glob("chunks/*.jsonl")))
        if found >= chunks:
            return found
        assert driver.poll() is None
        time.sleep(0.05)
    raise AssertionError("no progress")


@pytest.mark.slow
def test_two_hundred_items_survive_the_death_of_a_worker_and_of_the_driver(field, tmp_path):
    pytest.importorskip("distributed")
    operator = make_operator("blur")
    folder = tmp_path / "in"
    write_items(folder, measured(field, 200)[1])
    spoil(folder)
    torch.save(field, tmp_path / "prior.pt")
    driver = drive(tmp_path)
    wait_for(2, tmp_path, driver)
    worker = int((tmp_path / "readers").read_text().split()[-1])
    os.kill(worker, signal.SIGKILL)
    before = wait_for(6, tmp_path, driver)
    driver.kill()
    driver.wait()
    time.sleep(1)
    between = len(list((tmp_path / "out/.batch").glob("chunks/*.jsonl")))
    assert before <= between < 25
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/.batch/chunks").iterdir()}
    again = drive(tmp_path)
    assert again.wait(timeout=300) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(set((tmp_path / "readers").read_text().split())) >= 4
    reconstruct_many(operator, folder, tmp_path / "alone", field, chunk=8, batch=8, **QUICK)
    assert_same(read_all(tmp_path / "alone"), read_all(tmp_path / "out"))
    ids = [record["id"] for record in lines(tmp_path / "out/records.jsonl")]
    assert len(ids) == len(set(ids)) == 200
    assert {record["id"] for record in lines(tmp_path / "out/errors.jsonl")} == CORRUPT.keys()


def test_threads_of_a_cluster_are_refused(field, tmp_path):
    distributed = pytest.importorskip("distributed")
    folder = write_items(tmp_path / "in", measured(field, 2)[1])
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        pytest.raises(ValueError, match="has 2 threads, but a worker is a process that does one chunk at a time"),
    ):
        reconstruct_many(
            make_operator("blur"), folder, tmp_path / "out", field, engine=Dask(cluster.scheduler_address), **QUICK
        )


@pytest.mark.slow
def test_a_million_items_are_listed_resumed_and_summed_up(tmp_path):
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    with (tmp_path / "list.csv").open("w") as file:
        file.write("path,id\n")
        file.writelines(f"survey/{i // 1000:03d}/{i:07d}.npy,object-{i:07d}\n" for i in range(1_000_000))
    prior = GaussianPrior(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
    job = Job(make_operator("denoising"), Table(tmp_path / "list.csv"), tmp_path / "out", prior)
    start, memory = time.process_time(), peak()
    plan = lay(job)
    assert len(plan.manifest) == 15625
    assert plan.manifest.read(7777)[3].id == "object-0497731"
    listed = time.process_time() - start
    (plan.ledger.folder / "chunks").mkdir()
    record = {"status": "converged", "residual": 1.0123456789, "seconds": 0.0123456789}
    for number in range(len(plan.manifest)):
        rows = range(64 * number, 64 * number + 64)
        text = "".join(json.dumps({"id": f"object-{row:07d}", **record}) + "\n" for row in rows)
        (plan.ledger.folder / f"chunks/{number:06d}.jsonl").write_text(text)
    start = time.process_time()
    summary = run(lay(job), Local())
    assert (summary.done, summary.fresh) == (1_000_000, 0)
    index = write_index(tmp_path / "out")
    assert listed + time.process_time() - start < 60
    assert peak() - memory < 200
    assert index.read_text().count('href="page-') == 1000
    assert np.char.count((tmp_path / "out/records.jsonl").read_text(), "\n") == 1_000_000
