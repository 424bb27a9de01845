r"""What a batch would cost, from its first batch."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch

from emprior._threads import threads
from emprior.batch.chunk import solve_items
from emprior.batch.plan import Plan


@dataclass(frozen=True)
class Preview:
    r"""The cost of a batch as one batch of it predicts.

    Arguments:
        items: The items.
        chunks: The chunks that they are cut into.
        left: Those that are not finished.
        chunk: The items in a chunk.
        batch: The images solved at a time.
        seconds: The time of a batch.
        total: The time of what is left, in seconds, if workers do not slow each other.
        memory: The peak memory of a worker in bytes, of the GPU where one is used; `None` where it is not known.
        disk: The size of the output in bytes.
        failed: The items of the first batch that failed.
    """

    items: int
    chunks: int
    left: int
    chunk: int
    batch: int
    seconds: float
    total: float
    memory: int | None
    disk: int
    failed: int

    def __str__(self) -> str:
        memory = "an unknown amount" if self.memory is None else f"{self.memory / 2**20:.0f} MiB"
        return (
            f"{self.items} items in {self.chunks} chunks of {self.chunk}, {self.left} left; batches of {self.batch}, "
            f"{self.seconds:.3g} s each; {_clock(self.total)} in all, {memory} of memory a "
            f"worker, {self.disk / 2**20:.4g} MiB on disk"
            + (f"; {self.failed} items of the first batch failed" if self.failed else "")
        )


def preview(plan: Plan, workers: int = 1, shard: tuple[int, int] = (0, 1)) -> Preview:
    r"""Solves the first batch that is left, keeps nothing of it, and says what the rest would cost.

    Arguments:
        plan: The batch.
        workers: The processes among which the time is shared.
        shard: The shard `(i, n)`.
    """
    job, manifest, finished = plan.job, plan.manifest, set(plan.ledger.finished())
    left = [number for number in plan.chunks(shard) if number not in finished]
    number = left[0] if left else 0
    items = manifest.read(number)[: job.batch] if left else []
    if torch.device(job.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
    start = time.perf_counter()
    with threads(job.threads):
        kept = solve_items(job, items, number * manifest.chunk)
    seconds = time.perf_counter() - start
    rows = [row for row, _ in kept if row is not None]
    size = sum(array.nbytes for array in rows[0].values()) if rows else 0
    calls = sum(-(-manifest.size(one) // job.batch) for one in left)
    return Preview(
        items=manifest.count,
        chunks=len(manifest),
        left=len(left),
        chunk=job.chunk,
        batch=job.batch,
        seconds=seconds,
        total=seconds * calls / min(workers, max(1, len(left))),
        memory=_peak(job.device),
        disk=size * manifest.count,
        failed=len(kept) - len(rows),
    )


def _peak(device: str) -> int | None:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # Windows has none
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
