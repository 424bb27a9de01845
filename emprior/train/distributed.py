r"""One process or many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    r"""The place of this process among those that `torchrun` started."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> World:
        r"""Joins the process group that `torchrun` describes, or stands alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return World()
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return World(dist.get_rank(), dist.get_world_size())

    @staticmethod
    def expected_size() -> int:
        r"""Returns how many processes `torchrun` started, without joining them."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @staticmethod
    def is_first() -> bool:
        r"""Whether this process is the first of those that `torchrun` started, without joining them."""
        return int(os.environ.get("RANK", "0")) == 0

    @staticmethod
    def leave() -> None:
        r"""Leaves the process group, if there is one."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    def groups(self, total: int) -> range:
        r"""Returns which of `total` groups this process takes."""
        return range(self.rank, total, self.size)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        r"""Replaces tensors of one type by their means over all processes, in one message."""
        if self.size == 1:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(message)
        _unpack(message / self.size, tensors)

    @torch.no_grad()
    def share(self, tensors: Sequence[Tensor]) -> None:
        r"""Replaces tensors of one type by those of the first process, in one message."""
        if self.size == 1:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors])
        dist.broadcast(message, 0)
        _unpack(message, tensors)

    def agree(self, *votes: int) -> list[int]:
        r"""Returns the largest vote of all processes on each question, so that all do the same."""
        if self.size == 1:
            return list(votes)
        ballot = torch.tensor(votes)
        dist.all_reduce(ballot, dist.ReduceOp.MAX)
        return ballot.tolist()

    def gather(self, rows: Tensor) -> Tensor:
        r"""Returns the rows of all processes, dealt out: row `i` of process `r` becomes row `i * size + r`."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    def deal(self, rows: Tensor) -> Tensor:
        r"""Returns this process's rows of `gather`."""
        return rows if self.size == 1 else rows[self.rank :: self.size].clone()


def _unpack(message: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = message.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


def send(rows: Tensor, device: torch.device) -> Tensor:
    r"""Returns rows of the CPU on a device, without waiting for what a GPU still has to do."""
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)


def place(device: str | torch.device) -> torch.device:
    r"""Returns the device of this process: `"cuda"` is the GPU of its local rank.

    Raises:
        ValueError: The device does not exist.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {str(device)!r}. Use cpu, cuda, or cuda:0 and so on.") from error
    if chosen.type != "cuda":
        return chosen
    if not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, but PyTorch sees no CUDA GPU. Use --device cpu.")
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if chosen.index is None else chosen.index)
    if chosen.index >= torch.cuda.device_count():
        raise ValueError(
            f"there is no {chosen}: PyTorch sees {torch.cuda.device_count()} GPUs. "
            "Start at most one process for each: torchrun --nproc_per_node."
        )
    torch.cuda.set_device(chosen)
    return chosen
