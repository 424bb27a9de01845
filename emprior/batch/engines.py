r"""Who does the chunks: this process, or processes of this machine. For clusters, see `emprior.batch.cluster`.

An engine draws the next chunk when a worker is free. What draws from decides when to stop: an interrupted batch ends
as its chunks do.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from emprior._check import check_positive, needed
from emprior._interrupt import Interrupt
from emprior.batch.chunk import Tally, solve_chunk
from emprior.batch.plan import Plan

LIVES = 3
"""How many workers a chunk may take with it before it is left undone."""


class Engine(ABC):
    r"""A way to run :func:`emprior.batch.chunk.solve_chunk`."""

    @abstractmethod
    def run(self, plan: Plan, chunks: Iterator[int]) -> Iterator[Tally]:
        r"""Yields a tally of each chunk once it is finished, in any order.

        Raises:
            OSError: The output cannot be written; what is finished stays.
        """


@dataclass(frozen=True)
class Local(Engine):
    r"""This machine: this process for one worker, else as many others.

    With `device="cuda"` and several workers, worker `k` sees GPU `k` alone (modulo the number of GPUs). A chunk whose
    worker dies is given to another, at most three times, since the chunk itself may be what kills. As with every
    `multiprocessing` of fresh processes, a script must guard its entry by `if __name__ == "__main__":`.

    Arguments:
        workers: The number of processes.
    """

    workers: int = 1

    def __post_init__(self) -> None:
        check_positive("workers", self.workers, whole=True)

    def run(self, plan: Plan, chunks: Iterator[int]) -> Iterator[Tally]:
        if self.workers == 1:
            yield from (solve_chunk(plan.job, plan.manifest, number) for number in chunks)
            return
        crew = Crew(packed(plan), chunks)
        try:
            for index in range(self.workers):
                crew.hire(index)
            while crew.busy:
                yield from crew.collect()
        finally:
            crew.dismiss()


@dataclass
class Worker:
    r"""A process and the chunk that it does."""

    index: int
    process: BaseProcess
    line: Connection
    chunk: int


@dataclass
class Crew:
    r"""Processes at work on the chunks of a plan."""

    parcel: bytes
    chunks: Iterator[int]
    busy: list[Worker] = field(default_factory=list)
    idle: list[Worker] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    deaths: Counter[int] = field(default_factory=Counter)

    def hire(self, index: int) -> None:
        r"""Starts a process, if there is a chunk for it."""
        number = self._draw()
        if number is None:
            return
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.parcel, index), daemon=True)
        process.start()
        theirs.close()
        worker = Worker(index, process, ours, number)
        self.busy.append(worker)
        self._send(worker, number)

    def collect(self) -> list[Tally]:
        r"""Waits for a worker, gives it the next chunk and returns the tallies of what is done."""
        ready = wait([worker.line for worker in self.busy])
        return [tally for worker in list(self.busy) if worker.line in ready for tally in self._hear(worker)]

    def dismiss(self) -> None:
        r"""Ends all processes; a chunk that one is at is dropped."""
        for worker in self.busy:
            worker.process.kill()
        for worker in [*self.busy, *self.idle]:
            worker.line.close()
            worker.process.join()

    def _hear(self, worker: Worker) -> list[Tally]:
        try:
            said = worker.line.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if isinstance(said, Exception):
            raise said
        number = self._draw()
        if number is None:
            self.busy.remove(worker)
            self.idle.append(worker)
        else:
            self._send(worker, number)
        return [said]

    def _bury(self, worker: Worker) -> list[Tally]:
        worker.process.join()
        self.busy.remove(worker)
        self.deaths[worker.chunk] += 1
        lost = self.deaths[worker.chunk] == LIVES
        if not lost:
            self.again.append(worker.chunk)
        self.hire(worker.index)
        how = f"its worker died {LIVES} times, last with exit code {worker.process.exitcode}: out of memory?"
        return [Tally(worker.chunk, 0, 0, how)] if lost else []

    def _draw(self) -> int | None:
        return self.again.pop() if self.again else next(self.chunks, None)

    def _send(self, worker: Worker, number: int) -> None:
        worker.chunk = number
        with suppress(OSError):  # if it has died, that is heard of next
            worker.line.send(number)


def packed(plan: Plan) -> bytes:
    r"""Returns a plan as bytes that another process can read.

    Raises:
        TypeError: Its operator or prior cannot be sent.
    """
    try:
        return pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        try:  # deepinv's noise models hold functions, which plain pickle refuses
            return needed("cloudpickle").dumps(plan)
        except (pickle.PicklingError, AttributeError, TypeError):
            raise TypeError(
                f"the operator or the prior cannot be sent to other processes: {error}. "
                "Give the name or YAML file of a problem and the name of a prior, or use one worker."
            ) from error


def _serve(line: Connection, parcel: bytes, index: int) -> None:
    for number in Interrupt.SIGNALS:  # whoever asked decides what becomes of them
        signal.signal(number, signal.SIG_IGN)
    plan: Plan = pickle.loads(parcel)
    if plan.job.device == "cuda":
        _see_one_gpu(index)
    with suppress(EOFError, OSError):  # whoever asked has gone
        while True:
            number = line.recv()
            try:
                said: Tally | Exception = solve_chunk(plan.job, plan.manifest, number)
            except OSError as error:
                said = OSError(*error.args)
            except Exception as error:
                said = RuntimeError(f"chunk {number}: {type(error).__name__}: {error}")
            line.send(said)


def _see_one_gpu(index: int) -> None:
    import torch

    known = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = known.split(",") if known else [str(gpu) for gpu in range(torch.cuda.device_count())]
    if names:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[index % len(names)]
