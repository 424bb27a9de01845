r"""Who runs the cells: this process, others of this machine, or the workers of a Dask cluster.

What others are sent is a :class:`emprior.bench.job.Job`, names and paths alone; each opens it for itself, once, and
writes the records of its cells, so that a cell is the same whoever runs it. What comes back is the record.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from concurrent.futures.process import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from multiprocessing.connection import Connection
from uuid import uuid4

import torch

from emprior._check import check_positive, needed
from emprior._interrupt import Interrupt
from emprior._threads import check_single
from emprior._threads import threads as use
from emprior.bench.job import Bench, Cell, Done, Job

logger = logging.getLogger("emprior")

DIED = (
    "a worker died or was lost: out of memory? Finished cells are kept: run the same command again, with fewer workers "
    "if memory is short."
)
"""What is said where a cell did not come back."""

HEARING = 1.0
"""The seconds after which an interrupt is heard while all cells are at work."""


class Engine(ABC):
    r"""A way to run cells."""

    @abstractmethod
    def run(self, bench: Bench, cells: Sequence[Cell]) -> Iterator[Done]:
        r"""Yields each cell once it is finished, in any order.

        Raises:
            OSError: A record cannot be written, or a worker was lost; what is finished stays.
            KeyboardInterrupt: It was interrupted; what is finished stays.
        """


@dataclass(frozen=True)
class Local(Engine):
    r"""This machine: this process for one worker, else as many others.

    Each process uses as many threads as this one, on which the last bits of figures depend: several are best started
    with `OMP_NUM_THREADS=1`. The seconds in a record are those of a machine that all of them share. At an
    interrupt that this process alone hears, cells at work are finished; one from a terminal, or a second, drops them.

    Arguments:
        workers: The number of processes.
    """

    workers: int = 1

    def __post_init__(self) -> None:
        check_positive("workers", self.workers, whole=True)

    def run(self, bench: Bench, cells: Sequence[Cell]) -> Iterator[Done]:
        if self.workers == 1:
            yield from (bench.do(*cell) for cell in cells)
            return
        _warn_of_threads(self.workers)
        context = multiprocessing.get_context("spawn")
        leash, ours = context.Pipe(duplex=False)
        with ours, ProcessPoolExecutor(self.workers, context, initializer=_follow, initargs=(leash,)) as executor:
            try:
                yield from _fed(executor, lambda: self.workers, bench.job, cells)
            except (KeyboardInterrupt, GeneratorExit):
                ours.close()
                raise


@dataclass(frozen=True)
class Dask(Engine):
    r"""Workers of a Dask cluster, each a process with one thread, that share the file system of images and records.

    Arguments:
        scheduler: The address of the scheduler, such as `"tcp://head:8786"`.

    Raises:
        ModuleNotFoundError: Dask is not installed; the message says how to.
    """

    scheduler: str

    def __post_init__(self) -> None:
        needed("distributed", "dask")

    def run(self, bench: Bench, cells: Sequence[Cell]) -> Iterator[Done]:
        distributed = needed("distributed", "dask")
        with distributed.Client(self.scheduler) as client:
            client.wait_for_workers(1)
            check_single(client.nthreads(), "cell")
            with client.get_executor(pure=False) as executor:
                try:
                    yield from _fed(executor, lambda: len(client.nthreads()), bench.job, cells)
                except distributed.KilledWorker as error:
                    raise ConnectionError(DIED) from error


def _fed(executor: Executor, width: Callable[[], int], job: Job, cells: Sequence[Cell]) -> Iterator[Done]:
    r"""Yields finished cells, and keeps one for each worker in flight until there are no more, or an interrupt."""
    left, flying = iter(cells), set[Future[Done]]()
    token, threads = uuid4().hex, torch.get_num_threads()
    told = False
    with Interrupt() as interrupt:
        while True:
            if interrupt.received and not told:
                told = True
                logger.warning("stopping once the cells at work are finished; interrupt again to drop them")
            free = 0 if interrupt.received else max(1, width()) - len(flying)
            flying |= {executor.submit(_work, token, threads, job, *cell) for cell in islice(left, max(0, free))}
            if not flying:
                break
            landed, flying = wait(flying, HEARING, FIRST_COMPLETED)
            try:
                yield from [future.result() for future in landed]
            except (BrokenExecutor, CancelledError) as error:
                raise KeyboardInterrupt if interrupt.received else ConnectionError(DIED) from error
    if interrupt.received:
        raise KeyboardInterrupt


def _follow(leash: Connection) -> None:
    r"""Lets a worker end at once, and without a word, with a terminal's interrupt and with whoever holds the leash."""

    def hold() -> None:
        with suppress(EOFError, OSError):
            leash.recv()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=hold, daemon=True).start()


def _work(token: str, threads: int, job: Job, problem: str, method: str) -> Done:
    with use(threads):
        return _opened(token, job).do(problem, method)


@lru_cache(maxsize=1)
def _opened(token: str, job: Job) -> Bench:
    r"""Opens a job once in a process; another run of it, of another token, opens it again."""
    return Bench(job)


def _warn_of_threads(workers: int) -> None:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if threads > 1 and workers * threads > cores:
        logger.warning(
            "%d workers of %d threads share %d cores and hinder one another. Set OMP_NUM_THREADS=%d before.",
            workers, threads, cores, max(1, cores // workers),
        )  # fmt: skip
