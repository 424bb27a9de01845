r"""How many threads a process uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int) -> Iterator[None]:
    r"""Lets torch use a number of threads, on which the last bits of its sums depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_single(workers: Mapping[str, int], unit: str) -> None:
    r"""Checks that the workers of a cluster have one thread each.

    Arguments:
        workers: Their threads, by address.
        unit: What a worker does one of at a time.

    Raises:
        ValueError: One has more.
    """
    for address, count in workers.items():
        if count > 1:
            raise ValueError(
                f"worker {address} has {count} threads, but a worker is a process that does one {unit} at a time. "
                "Start it by: dask worker --nthreads 1, and as many with --nworkers as there are GPUs or CPU shares."
            )
