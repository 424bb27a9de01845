r"""The training loop."""

from __future__ import annotations

import copy
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emprior._files import atomic
from emprior._grid import save_grid
from emprior._noise import generator
from emprior.interpolant import Interpolant
from emprior.nets import make_potential
from emprior.train.config import Config, Contrast, Transport
from emprior.train.distributed import World
from emprior.train.generate import generate
from emprior.train.negatives import ReplayBuffer, fresh_negatives
from emprior.train.objective import EnergyMatchingLoss
from emprior.train.pairing import optimal_pairing

logger = logging.getLogger("emprior")


class Trainer:
    r"""Trains an energy in two phases, resumably.

    All randomness of an iteration is drawn from a generator keyed by (seed, iteration, rank), so a
    run that was stopped and resumed follows the same path as one that was not.

    Arguments:
        config: The settings.
        images: The data, `(N, C, H, W)` uint8.
        out: The folder for checkpoint, log and sample grids.
        device: Where to train.
    """

    def __init__(self, config: Config, images: Tensor, out: str | Path, device: str | torch.device = "cpu") -> None:
        self.config, self.out, self.device = config, Path(out), torch.device(device)
        self.world = World.current()
        self.images = images.to(self.device)
        self.interpolant = Interpolant(config.density.sigma_star, config.density.blend)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            potential = make_potential(config.net.architecture, channels=images.shape[1], **config.net.arguments)
        self.potential = potential.to(self.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.potential).requires_grad_(False)
        self.step, self.seconds, self.seen = 0, 0.0, 0
        self.chains: Tensor | None = None
        self.enter(config.transport)

    def enter(self, phase: Transport | Contrast) -> None:
        r"""Begins a phase with a fresh optimiser."""
        train = self.config.train
        self.phase = phase
        self.optimizer = torch.optim.AdamW(
            self.potential.parameters(), phase.lr, betas=train.betas, weight_decay=train.weight_decay
        )
        contrast = phase if isinstance(phase, Contrast) else None
        loss = EnergyMatchingLoss(self.potential, self.interpolant, self.config.transport.balance)
        if contrast:
            loss.strength, loss.trim, loss.clamp = contrast.strength, contrast.trim, contrast.clamp
        self.loss = self.world.wrap(loss)

    @property
    def total(self) -> int:
        r"""The iterations of both phases."""
        return self.config.transport.steps + self.config.contrast.steps

    def run(self, progress: bool = False, seconds: float | None = None) -> None:
        r"""Trains to the end, or for about `seconds`, from wherever the state is.

        Raises:
            FloatingPointError: The loss is not finite; the last checkpoint is from before.
        """
        train = self.config.train
        bar = tqdm(total=self.total, initial=self.step, disable=not progress or self.world.rank > 0, unit="it")
        start = saved = logged = time.monotonic()
        since = self.step
        while self.step < self.total and (seconds is None or time.monotonic() - start < seconds):
            terms = self.iterate()
            now = time.monotonic()
            bar.update()
            if self.step % train.log_every == 0 or self.step == self.total:
                rate = (self.step - since) * train.batch_size / (now - logged)
                self.seconds, logged, since = self.seconds + now - logged, now, self.step
                record = self.record(terms, rate)
                bar.set_postfix_str(f"loss {record['transport']:.4f}, {rate:.0f} images/s")
            if train.sample_every and self.step % train.sample_every == 0:
                self.save_samples()
            if now - saved > train.checkpoint_every or self.step in (self.config.transport.steps, self.total):
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    def iterate(self) -> dict[str, Tensor]:
        r"""Does one iteration and returns the terms of its loss."""
        config, done = self.config, self.step
        if done == config.transport.steps:
            self.potential.load_state_dict(self.average.state_dict())
            self.enter(config.contrast)
        random = generator(config.train.seed, done, self.world.rank, device=self.device)
        x1 = self.batch()
        x0 = torch.randn(x1.shape, generator=random, device=self.device)
        x0 = x0[optimal_pairing(x0, x1)]
        s = torch.rand(len(x1), generator=random, device=self.device).clamp(min=1e-4).pow(config.transport.skew)
        pair = self.contrasted(x1, random) if isinstance(self.phase, Contrast) else ()

        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        with self.autocast():
            loss, terms = self.loss(x1, x0, s, *pair)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        terms["norm"] = nn.utils.clip_grad_norm_(self.potential.parameters(), config.train.clip)
        if not torch.isfinite(terms["norm"]):
            raise FloatingPointError(
                f"the loss is not finite at iteration {done}. Resume from the last checkpoint with a lower "
                "learning rate: --set transport.lr=5e-4 (or contrast.lr), or --set train.precision=fp32."
            )
        self.optimizer.step()
        decay = min(self.phase.ema, (1 + done) / (10 + done))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.potential.parameters()), 1 - decay)
        self.step += 1
        self.seen += config.train.batch_size
        return terms

    def batch(self) -> Tensor:
        r"""Returns this iteration's images in `[-1, 1]`: epochs are permutations keyed by (seed, epoch)."""
        train, n = self.config.train, len(self.images)
        positions = range(self.step * train.batch_size, (self.step + 1) * train.batch_size)
        mine = list(positions)[self.world.rank :: self.world.size]
        rows = torch.stack([self.permutation(p // n)[p % n] for p in mine])
        x = self.images[rows.to(self.device)].float().div(127.5).sub(1)
        if self.config.data.flip:
            flips = torch.rand(len(x), generator=generator(train.seed, "flip", self.step, self.world.rank)) < 0.5
            x = torch.where(flips.to(self.device)[:, None, None, None], x.flip(-1), x)
        return x.contiguous(memory_format=torch.channels_last)

    def permutation(self, epoch: int) -> Tensor:
        cached: tuple[int, Tensor] | None = getattr(self, "_epoch", None)
        if cached is None or cached[0] != epoch:
            order = torch.randperm(len(self.images), generator=generator(self.config.train.seed, "epoch", epoch))
            self._epoch = cached = (epoch, order)
        return cached[1]

    def contrasted(self, x1: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        r"""Returns data under the prior's thermal noise, and negatives."""
        contrast, density = self.config.contrast, self.config.density
        n = torch.randn(x1.shape, generator=random, device=self.device)
        positives = x1 + (density.epsilon * density.sigma_star) ** 0.5 * n
        with self.autocast():
            if contrast.negatives == "fresh":
                return positives, fresh_negatives(contrast, density.epsilon, self.potential, positives, random)
            if self.chains is None:
                self.chains = self.initial_chains(contrast.chains)
            buffer = ReplayBuffer(contrast, density.epsilon, self.chains)
            return positives, buffer.draw(self.potential, positives, random)

    def initial_chains(self, count: int) -> Tensor:
        rows = torch.arange(count) * self.world.size + self.world.rank
        return self.images[rows.to(self.device) % len(self.images)].float().div(127.5).sub(1)

    def rate(self) -> float:
        r"""The learning rate: a linear rise, a plateau, and a linear fall to zero."""
        phase = self.phase
        done = self.step - (self.config.transport.steps if isinstance(phase, Contrast) else 0)
        left = (phase.steps - done) / max(1.0, phase.decay * phase.steps)
        return phase.lr * min(1.0, (1 + done) / max(1, phase.warmup), left)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16")

    def record(self, terms: dict[str, Tensor], rate: float) -> dict[str, Any]:
        r"""Appends a line to the log and returns it."""
        line = {"iteration": self.step, "phase": type(self.phase).__name__.lower(), "images": self.seen}
        line |= {name: round(float(value), 6) for name, value in terms.items()}
        line |= {"lr": self.rate(), "images_per_second": round(rate, 1), "seconds": round(self.seconds, 1)}
        if self.world.rank == 0:
            with (self.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def save_samples(self, count: int = 64) -> None:
        r"""Saves a grid of images generated by the averaged network."""
        if self.world.rank == 0:
            shape = self.images.shape[1:]
            x = generate(self.average, (count, *shape), self.config.density.epsilon, seed=0, device=self.device)
            save_grid(self.out / f"samples-{self.step:07d}.png", (x + 1) / 2)

    def save(self) -> None:
        r"""Writes the checkpoint."""
        if self.world.rank > 0:
            return
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "seen": self.seen,
            "potential": self.potential.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "chains": self.chains,
        }
        with atomic(self.out / "checkpoint.pt") as path:
            torch.save(state, path)

    def resume(self) -> bool:
        r"""Takes up the checkpoint of the folder, if there is one.

        Raises:
            ValueError: The checkpoint was made with another network or data path.
        """
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        for section in ("net", "density"):
            if state["config"][section] != self.config.to_dict()[section]:
                raise ValueError(
                    f"{path} was trained with another {section!r} section: {state['config'][section]}. "
                    "Use that, or another --out folder."
                )
        self.step, self.seconds, self.seen = state["step"], state["seconds"], state["seen"]
        if self.step > self.config.transport.steps:
            self.enter(self.config.contrast)
        self.potential.load_state_dict(state["potential"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.chains = state["chains"]
        logger.info("resumed %s at iteration %d", path, self.step)
        return True
