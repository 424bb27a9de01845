r"""Who runs cells: threads in place of workers, a cluster in this process, interrupts and losses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from emprior.bench import Bench, Dask, Job, Local, Plan, Shelf, Sources
from emprior.bench.engines import _fed
from emprior.bench.methods import own
from emprior.bench.runner import run

CELLS = [(problem, method) for problem in ("denoising", "blur") for method in ("tikhonov", "ddnm")]
PLAN = Plan(images=2, samples=2, budget=20)


def job(folder):
    return Job("gaussian", Sources(), PLAN, folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    r"""The records of one process."""
    bench = Bench(job(tmp_path_factory.mktemp("alone")))
    return bench, {done.record.repeatable().key: done.record.repeatable() for done in Local().run(bench, CELLS)}


def by_key(dones):
    return {done.record.key: done.record.repeatable() for done in dones}


def test_an_engine_gives_the_records_of_a_plain_run(alone, tmp_path):
    bench, records = alone
    plain = run(bench.suite, ["denoising", "blur"], ["tikhonov", "ddnm"], PLAN, Shelf(tmp_path))
    assert records == {record.key: record.repeatable() for record, _ in plain}
    assert all(done.known for done in Local().run(bench, CELLS))


def test_as_many_cells_are_in_flight_as_there_are_workers(alone, tmp_path):
    _, records = alone

    class Counting(ThreadPoolExecutor):
        def submit(self, *arguments):
            sent.append(len(sent) - len(landed))
            return super().submit(*arguments)

    sent, landed, before = [], [], torch.get_num_threads()
    with Counting(1) as executor:
        for done in _fed(executor, lambda: 2, job(tmp_path), CELLS):
            landed.append(done)
    assert by_key(landed) == records
    assert len(sent) == 4
    assert max(sent) <= 2
    assert torch.get_num_threads() == before


def test_an_interrupt_ends_with_the_cells_at_work(alone, tmp_path):
    r"""A signal after the first of four cells: the second, which has been handed out, is finished, and no other."""
    _, records = alone
    handler, landed = signal.getsignal(signal.SIGINT), []

    def heard(done):
        landed.append(done)
        if len(landed) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as executor, pytest.raises(KeyboardInterrupt):
        list(map(heard, _fed(executor, lambda: 2, job(tmp_path), CELLS)))
    assert signal.getsignal(signal.SIGINT) is handler
    kept = {record.key: record.repeatable() for record in Shelf(tmp_path).all()}
    assert len(kept) == len(landed) == 2
    assert kept.items() <= records.items()


class Losing(ThreadPoolExecutor):
    r"""Loses its worker at the first cell, once `meanwhile` has been called."""

    meanwhile = staticmethod(lambda: None)

    def submit(self, *arguments):
        future = Future()
        threading.Timer(0.05, lambda: (self.meanwhile(), future.set_exception(BrokenExecutor()))).start()
        return future


def test_a_lost_worker_says_what_to_do(tmp_path):
    with (
        Losing() as executor,
        pytest.raises(ConnectionError, match=r"a worker died or was lost: .* fewer workers"),
    ):
        list(_fed(executor, lambda: 1, job(tmp_path), CELLS))


def test_workers_that_an_interrupt_ends_are_not_lost(tmp_path):
    class Stopped(Losing):
        meanwhile = staticmethod(lambda: os.kill(os.getpid(), signal.SIGINT))

    with Stopped() as executor, pytest.raises(KeyboardInterrupt):
        list(_fed(executor, lambda: 1, job(tmp_path), CELLS))


def test_a_part_of_a_solution_is_no_record(tmp_path, monkeypatch):
    r"""A solver that is interrupted returns what it has, of which no record is made."""
    solve = own.solve

    def stop(step, x):
        raise KeyboardInterrupt

    monkeypatch.setattr(own, "solve", lambda *given, **options: solve(*given, **{**options, "callback": stop}))
    bench = Bench(job(tmp_path))
    for method in ("emprior-map", "emprior-posterior", "emprior-flow"):
        with pytest.raises(KeyboardInterrupt):
            bench.do("denoising", method)
    assert not list(bench.shelf.all())


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed")

    def start(threads):
        return distributed.LocalCluster(
            n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=None
        )

    return start


def test_a_cluster_gives_the_records_of_one_process(alone, tmp_path, cluster):
    _, records = alone
    with cluster(1) as workers:
        landed = list(Dask(workers.scheduler_address).run(Bench(job(tmp_path)), CELLS))
    assert by_key(landed) == records
    assert {record.key: record.repeatable() for record in Shelf(tmp_path).all()} == records


def test_threads_of_a_cluster_are_refused(tmp_path, cluster):
    with cluster(2) as workers, pytest.raises(ValueError, match="has 2 threads, but a worker is a process that does"):
        list(Dask(workers.scheduler_address).run(Bench(job(tmp_path)), CELLS))


def test_workers_are_counted():
    with pytest.raises(ValueError, match="workers"):
        Local(0)


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [True, False])
def test_processes_end_with_an_interrupt(tmp_path, to_all):
    r"""At once if they hear it, as from a terminal; at the second if the first process alone does."""
    words = ["--suite", "gaussian", "--images", "64", "--methods", "emprior-posterior-blind", "emprior-posterior"]
    words += ["--problems", "blur", "--workers", "2", "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, "bench", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        while len(children := children_of(driver.pid)) < 3 and driver.poll() is None:
            time.sleep(0.2)
        time.sleep(20)
        for _ in range(1 if to_all else 2):
            (os.killpg if to_all else os.kill)(driver.pid, signal.SIGINT)
            time.sleep(3)
        assert driver.wait(timeout=60) == 130
        said = driver.stderr.read()
    assert "error: interrupted. The same command does what is left." in said
    assert to_all or ("interrupt again to drop them" in said and "Traceback" not in said)
    deadline = time.monotonic() + 20
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [child for child in children if is_alive(child)]


DRIVER = """
import signal, sys
from emprior.cli import main
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
"""


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False
