r"""One process or many."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


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
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return World(dist.get_rank(), dist.get_world_size())

    def wrap(self, module: nn.Module) -> nn.Module:
        r"""Makes the gradients of a module means over all processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module)
