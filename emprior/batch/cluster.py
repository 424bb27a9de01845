r"""Dask: the chunks of a batch on the workers of a cluster."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from emprior._check import check_positive, needed
from emprior._threads import check_single
from emprior.batch.chunk import Tally, solve_chunk
from emprior.batch.engines import Engine, packed
from emprior.batch.plan import Plan


@dataclass(frozen=True)
class Dask(Engine):
    r"""Workers of a Dask cluster, each a process with one thread, that share the file system of the input and output.

    A task is one chunk and returns a few numbers; pixels go to disk. The scheduler gives the task of a lost worker to
    another. Under SLURM (PBS and LSF alike), `dask-jobqueue` starts the workers, one for each GPU:

    .. code-block:: python

        from dask_jobqueue import SLURMCluster

        cluster = SLURMCluster(cores=1, processes=1, memory="16GB", job_extra_directives=["--gpus=1"])
        cluster.scale(jobs=16)
        emprior.reconstruct_many(..., engine=Dask(cluster.scheduler_address))

    Where compute nodes cannot reach each other, shards in a job array do the same without Dask.

    Arguments:
        scheduler: The address of a scheduler, `"tcp://..."`; without one a cluster is started on this machine.
        workers: The number of workers of a cluster on this machine.
    """

    scheduler: str | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        check_positive("workers", self.workers, whole=True)
        needed("distributed", "dask")

    def run(self, plan: Plan, chunks: Iterator[int]) -> Iterator[Tally]:
        distributed = needed("distributed", "dask")
        with ExitStack() as stack:
            client = stack.enter_context(self._connect(distributed, stack))
            client.wait_for_workers(1)
            check_single(client.nthreads(), "chunk")
            # a task and not scattered data, so that it outlives the worker that holds it
            shared = client.submit(pickle.loads, packed(plan), key=f"emprior-plan-{uuid4().hex}")
            flying = distributed.as_completed()
            for future in _fed(client, shared, chunks, flying):
                yield _landed(future)

    def _connect(self, distributed: Any, stack: ExitStack) -> Any:
        if self.scheduler is not None:
            return distributed.Client(self.scheduler)
        cluster = distributed.LocalCluster(
            n_workers=self.workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        return distributed.Client(stack.enter_context(cluster))


def _fed(client: Any, shared: Any, chunks: Iterator[int], flying: Any) -> Iterator[Any]:
    r"""Yields finished tasks, and keeps two for each worker in flight while there are chunks."""

    def feed() -> None:
        while flying.count() < 2 * max(1, len(client.nthreads())):
            number = next(chunks, None)
            if number is None:
                return
            key = f"emprior-chunk-{number}-{uuid4().hex}"
            future = client.submit(_work, shared, number, key=key, retries=1)
            numbers[future.key] = number
            flying.add(future)

    numbers: dict[str, int] = {}
    feed()
    for future in flying:
        feed()
        yield numbers.pop(future.key), future


def _landed(landed: tuple[int, Any]) -> Tally:
    number, future = landed
    if future.status == "cancelled":
        raise ConnectionError("the scheduler was lost. Run the same command again: what is finished is kept.")
    error = future.exception()
    if error is None:
        return future.result()
    if type(error).__name__ == "KilledWorker":
        return Tally(number, 0, 0, f"its workers died again and again: {error}")
    raise error


def _work(plan: Plan, number: int) -> Tally:
    return solve_chunk(plan.job, plan.manifest, number)
