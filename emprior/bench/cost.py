r"""What a run takes: seconds and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    r"""What a block took.

    Arguments:
        seconds: The wall time.
        memory: The most bytes beyond those at its start, on the device or, on Linux, of the process; `None` where that
            cannot be told.
    """

    seconds: float = 0.0
    memory: int | None = None


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    r"""Measures a block."""
    cost, before = Cost(), _reset(device)
    start = time.perf_counter()
    try:
        yield cost
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - start
        after = _peak(device)
        cost.memory = None if before is None or after is None else max(0, after - before)


def _reset(device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    return _entry("VmRSS")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _entry("VmHWM")


def _entry(name: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
