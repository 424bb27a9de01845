r"""How fast training and gradients are, beside the plainest way to write them, in one run."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from emprior._compiled import CompiledGradient
from emprior.nets.convolution import Conv2d
from emprior.priors.network import NetworkPrior
from emprior.train.config import Config, Contrast
from emprior.train.data import as_signed
from emprior.train.derivative import CompiledLoss
from emprior.train.model import MODELS
from emprior.train.trainer import Trainer

ENDLESS = 10**9

LONG = 0.1
"""The seconds of one operation after which the peak is not looked for in a larger one."""

RESET = Path("/proc/self/clear_refs")
"""Where Linux takes the wish to measure the peak memory anew."""


@dataclass(frozen=True)
class Speed:
    r"""What one way of doing the work achieves.

    Arguments:
        name: What was run.
        images_per_second: Images, or gradients of images.
        share: Operations of convolutions and matrix products a second, as a share of the measured peak; None where
            they are not counted.
        memory: The most memory held meanwhile, in MiB: of the GPU, or of the process.
    """

    name: str
    images_per_second: float
    share: float | None
    memory: float


class Meter:
    r"""Times work, each repetition to its end.

    Arguments:
        device: Where the work is done.
        batch: The images of one repetition.
    """

    def __init__(self, device: torch.device, batch: int) -> None:
        self.device, self.batch = device, batch
        self.peak = cache(self._peak)

    def read(
        self,
        name: str,
        work: Callable[[], object],
        repeats: int,
        flops: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Speed:
        r"""Returns the median speed of `work`, which does `flops` operations in `dtype`."""
        peak = None if flops is None else self.peak(dtype)
        self._forget()
        spent = sorted(self._durations(work, repeats))[repeats // 2]
        share = None if flops is None or peak is None else flops / spent / peak
        return Speed(name, self.batch / spent, share, self._memory())

    def _peak(self, dtype: torch.dtype) -> float:
        r"""Returns the most operations a second of a matrix product or convolution; libraries differ in which.

        They grow until one takes a while: a processor without the type needs minutes where another needs milliseconds.
        """
        found = 0.0
        for size in (256, 512, 1024, 2048):
            a = torch.randn(size, size, device=self.device).to(dtype)
            x = torch.randn(size // 32, 256, 32, 32, device=self.device).to(dtype, memory_format=torch.channels_last)
            kernel = torch.randn(256, 256, 3, 3, device=self.device).to(dtype)
            with torch.no_grad():
                product = min(self._durations(partial(torch.mm, a, a), 5))
                convolution = min(self._durations(partial(F.conv2d, x, kernel, padding=1), 5))
            found = max(found, 2 * size**3 / product, 2 * x.numel() * kernel[0].numel() / convolution)
            if max(product, convolution) > LONG:
                break
        return found

    def _durations(self, work: Callable[[], object], repeats: int) -> list[float]:
        spent = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            spent.append(time.perf_counter() - start)
        return spent[1:]

    def _forget(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif RESET.exists():
            RESET.write_text("5")

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def profile_training(config: Config, images: Tensor, device: str = "cpu", iterations: int = 10) -> list[Speed]:
    r"""Measures iterations of the trainer, in both phases, beside a plain float32 loop over the same network.

    If torchebm is installed, so is the plain loop with its transport loss.

    Arguments:
        config: The settings.
        images: The data, `(N, C, H, W)` as stored.
        device: Where to train.
        iterations: How many are timed; of the plain loop and of the contrast a third, of fresh chains one.
    """
    place = torch.device(device)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    meter, few = Meter(place, config.train.batch_size), max(1, iterations // 3)
    plain = PlainLoop(config, images, place)
    work = plain.step_operations()
    with tempfile.TemporaryDirectory() as out:

        def trainer(transport: int, contrast: Contrast) -> Trainer:
            settings = replace(config, transport=replace(config.transport, steps=transport), contrast=contrast)
            return Trainer(settings, images, out, device)

        ours = trainer(ENDLESS, replace(config.contrast, steps=0))
        found = [meter.read("transport", ours.iterate, iterations, work, dtype)]
        found += [meter.read("plain transport", plain.iterate, few, work)]
        if config.kind == "prior" and importlib.util.find_spec("torchebm"):
            found.append(meter.read("torchebm's transport", plain.torchebm(), few, work))
        for negatives, steps, repeats in (("replay", config.contrast.langevin_steps, few), ("fresh", 200, 1)):
            if config.kind == "prior":
                contrast = replace(config.contrast, steps=ENDLESS, negatives=negatives, langevin_steps=steps)
                name = f"contrast, {negatives} chains of {steps} steps"
                found.append(meter.read(name, trainer(0, contrast).iterate, repeats))
    return found


def profile_gradient(config: Config, images: Tensor, device: str = "cpu", iterations: int = 20) -> list[Speed]:
    r"""Measures the prior's gradient, as solvers use it, beside a plain one and a forward pass.

    Arguments:
        config: The settings, of an energy prior.
        images: Images, `(N, C, H, W)` as stored.
        device: Where to evaluate.
        iterations: How many are timed.
    """
    place = torch.device(device)
    meter = Meter(place, config.train.batch_size)
    plain = PlainLoop(config, images, place)
    x = plain.batch()
    prior = plain.model.wrap(copy.deepcopy(plain.network), tuple(x.shape[1:]))
    assert isinstance(prior, NetworkPrior)

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(plain.network(leaf).sum(), leaf)[0]

    @torch.no_grad()
    def value() -> Tensor:
        return plain.network(x)

    fused = CompiledGradient(prior.potential.to(memory_format=torch.channels_last))
    forward = operations(plain.network.requires_grad_(False), x)
    work = operations(fused.derivative, dict(prior.potential.named_parameters()), x)
    return [
        meter.read("gradient", lambda: prior.value_and_grad(x), iterations, work),
        meter.read("plain gradient", gradient, iterations, work),
        meter.read("compiled gradient", lambda: fused(x), iterations, work),
        meter.read("forward pass", value, iterations, forward),
    ]


class PlainLoop:
    r"""Transport written in the plainest way: float32, contiguous, eager, one image and one parameter at a time, and
    PyTorch's own convolutions.

    Arguments:
        config: The settings, of which it takes the network, the path, the weights and the batch size.
        images: The data, `(N, C, H, W)` as stored.
        device: Where to train.
    """

    def __init__(self, config: Config, images: Tensor, device: torch.device) -> None:
        self.config, self.images, self.device = config, images, device
        self.model = MODELS[config.kind](config)
        self.network = self.model.network(images.shape[1]).to(device)
        for layer in self.network.modules():
            if isinstance(layer, Conv2d):
                layer.__class__ = nn.Conv2d  # type: ignore[assignment]
        self.average = copy.deepcopy(self.network)
        self.loss = self.model.loss(self.network, None)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4, foreach=False)

    def batch(self) -> Tensor:
        r"""Draws images in `[-1, 1]`."""
        rows = torch.randint(len(self.images), (self.config.train.batch_size,))
        return torch.stack([as_signed(self.images[row].to(self.device)) for row in rows])

    def iterate(self) -> float:
        r"""Does one iteration and returns its loss."""
        x1 = self.batch()
        return self.learn(self.loss(x1, torch.randn_like(x1), self.fractions())[0])

    def learn(self, loss: Tensor) -> float:
        r"""Takes the step that a loss asks for."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.clip, foreach=False)
        self.optimizer.step()
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 0.001)
        return loss.item()

    def torchebm(self) -> Callable[[], float]:
        r"""Returns the iteration with torchebm's transport loss in place of ours."""
        from torchebm.losses import EnergyMatchingLoss

        loss = EnergyMatchingLoss(self.network, lambda_cd=0.0, device=self.device)
        return lambda: self.learn(loss(self.batch()))

    def step_operations(self) -> int:
        r"""Counts the operations of the gradient of one loss."""
        parameters = tuple(self.network.parameters())
        return operations(CompiledLoss(self.loss).derivative, parameters, self.batch(), self.batch(), self.fractions())

    def fractions(self) -> Tensor:
        r"""Draws noise fractions."""
        return torch.rand(self.config.train.batch_size, device=self.device).clamp(min=1e-4)


def operations(function: Callable[..., object], *arguments: object) -> int:
    r"""Counts the operations of convolutions and matrix products of a function, and of the derivatives in it."""
    graph = make_fx(lambda *a: function(*a))(*arguments)
    with FlopCounterMode(display=False) as counter:
        graph(*arguments)
    return counter.get_total_flops()
