r"""How fast training and gradients are, beside the plainest way to write them, in one run."""

from __future__ import annotations

import copy
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from emprior.train.config import Config
from emprior.train.model import MODELS
from emprior.train.trainer import Trainer

ENDLESS = 10**9


@dataclass(frozen=True)
class Speed:
    r"""What one way of doing the work achieves.

    Arguments:
        name: What was run.
        images_per_second: Images, or gradients of images.
        flops: Operations of convolutions and matrix products a second, as a share of `peak_flops`.
        memory: The most memory held until then, in MiB: of the GPU, or of the process.
    """

    name: str
    images_per_second: float
    flops: float
    memory: float


def peak_flops(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    r"""Measures the operations a second of a matrix product, the best of several."""
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / min(durations(lambda: a @ a, device, 5))


def durations(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    r"""Returns the seconds that each repetition takes, after one that does not count."""
    spent = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
    return spent[1:]


def profile_training(config: Config, images: Tensor, device: str = "cpu", iterations: int = 10) -> list[Speed]:
    r"""Measures iterations of the trainer, in both phases, beside a plain float32 loop over the same network.

    Arguments:
        config: The settings.
        images: The data, `(N, C, H, W)` uint8.
        device: Where to train.
        iterations: How many are timed; of the plain loop and of the contrast fewer.
    """
    place, batch = torch.device(device), config.train.batch_size
    peak = peak_flops(place, torch.bfloat16 if config.train.precision == "bf16" else torch.float32)
    plain = PlainLoop(config, images, place)
    work = flops(plain.iterate)
    few = max(2, iterations // 3)

    def speed(name: str, iterate: Callable[[], object], repeats: int, share: bool = True) -> Speed:
        spent = sorted(durations(iterate, place, repeats))[repeats // 2]
        return Speed(name, batch / spent, work / spent / peak if share else float("nan"), memory(place))

    with tempfile.TemporaryDirectory() as out:

        def trainer(transport: int, contrast: Contrast) -> Trainer:
            phases = {"transport": replace(config.transport, steps=transport), "contrast": contrast}
            return Trainer(replace(config, **phases), images, out, device)

        ours = trainer(ENDLESS, replace(config.contrast, steps=0))
        found = [speed("transport", ours.iterate, iterations), speed("plain transport", plain.iterate, few)]
        if config.kind == "prior":
            for negatives, steps, repeats in (("replay", config.contrast.langevin_steps, few), ("fresh", 200, 1)):
                contrast = replace(config.contrast, steps=ENDLESS, negatives=negatives, langevin_steps=steps)
                name = f"contrast, {negatives} chains of {steps} steps"
                found.append(speed(name, trainer(0, contrast).iterate, repeats, share=False))
    return found


def profile_gradient(config: Config, images: Tensor, device: str = "cpu", iterations: int = 20) -> list[Speed]:
    r"""Measures the prior's gradient, as solvers use it, beside a plain one and beside a forward pass."""
    place, batch = torch.device(device), config.train.batch_size
    model = MODELS[config.kind](config)
    network = model.network(images.shape[1]).to(place)
    x = (images[:batch].float() / 255).to(place)
    prior = model.wrap(copy.deepcopy(network), tuple(images.shape[1:]))
    peak = peak_flops(place, torch.float32)

    def plain() -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(network(leaf).sum(), leaf)[0]

    def forward() -> None:
        with torch.no_grad():
            prior(x)

    found = []
    for name, work in (("gradient", lambda: prior.value_and_grad(x)), ("plain gradient", plain), ("forward", forward)):
        spent = sorted(durations(work, place, iterations))[iterations // 2]
        found.append(Speed(name, batch / spent, flops(work) / spent / peak, memory(place)))
    return found


class PlainLoop:
    r"""Transport written in the plainest way: float32, contiguous, eager, one parameter at a time.

    Arguments:
        config: The settings, of which it takes the network, the path, the weights and the batch size.
        images: The data, `(N, C, H, W)` uint8.
        device: Where to train.
    """

    def __init__(self, config: Config, images: Tensor, device: torch.device) -> None:
        self.config, self.images, self.device = config, images, device
        self.model = MODELS[config.kind](config)
        self.network = self.model.network(images.shape[1]).to(device)
        self.average = copy.deepcopy(self.network)
        self.loss = self.model.loss(self.network, None)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4, foreach=False)

    def iterate(self) -> float:
        rows = torch.randint(len(self.images), (self.config.train.batch_size,))
        x1 = torch.stack([self.images[row].to(self.device).float() / 127.5 - 1 for row in rows])
        x0 = torch.randn_like(x1)
        s = torch.rand(len(x1), device=self.device).clamp(min=1e-4)
        loss, _ = self.loss(x1, x0, s)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.clip, foreach=False)
        self.optimizer.step()
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 0.001)
        return loss.item()


def flops(work: Callable[[], object]) -> float:
    r"""Counts the operations of convolutions and matrix products."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())


def memory(device: torch.device) -> float:
    r"""Returns the most memory held so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
