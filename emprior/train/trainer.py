r"""The training loop."""

from __future__ import annotations

import copy
import io
import logging
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emprior._files import atomic
from emprior._grid import save_grid
from emprior._interrupt import Interrupt
from emprior.train.check import check_shares
from emprior.train.checkpoint import CHECKPOINT, check_shape, describe, read_checkpoint
from emprior.train.coarse import Coarse
from emprior.train.config import Config, Contrast, Transport
from emprior.train.data import as_signed
from emprior.train.derivative import gradient_of
from emprior.train.distributed import World
from emprior.train.gradients import in_pieces, make_backward
from emprior.train.log import Log
from emprior.train.model import MODELS, draw
from emprior.train.optimiser import follow, learning_rate, make_optimizers
from emprior.train.sampler import Sampler
from emprior.train.start import load_spectrum, load_start, same_start
from emprior.train.stream import Stream
from emprior.train.teacher import Teacher

logger = logging.getLogger("emprior")


class Trainer:
    r"""Trains an energy in two phases, resumably.

    All randomness of an iteration is drawn from generators keyed by (seed, iteration, group of the batch), so a run
    that was stopped and resumed follows the same path as one that was not, also among other processes.

    Arguments:
        config: The settings.
        images: The data, `(N, C, H, W)` as :func:`emprior.train.load_images` returns them.
        out: The folder for checkpoint, log and sample grids.
        device: Where to train.
    """

    def __init__(self, config: Config, images: Tensor, out: str | Path, device: str | torch.device = "cpu") -> None:
        self.config, self.out, self.device = config, Path(out), torch.device(device)
        self.world = World.current()
        self.images = images.to(self.device)
        self.model = MODELS[config.kind](config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            network = self.model.network(images.shape[1])
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.world.share(list(self.network.parameters()))
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.coarse = self.hide() if config.train.hold and config.train.held == "coarse" else None
        self.teacher = self.hold() if config.train.hold else None
        self.log = Log(self.out / "log.jsonl")
        self.facts = describe(self.images, self.world.size)
        self.step, self.seconds, self.seen = 0, 0.0, 0
        self.norm = torch.zeros(())
        self.saved: int | None = None
        self.asked = config.train.groups
        self.begin(self.asked or self.world.size)

    def begin(self, groups: int) -> None:
        r"""Begins with batches in that many groups.

        Raises:
            ValueError: They cannot be dealt out to the processes.
        """
        check_shares(self.config, groups, self.world.size)
        train, path = replace(self.config.train, groups=groups), self.model.interpolant
        self.config = replace(self.config, train=train)
        gradient = in_pieces(gradient_of(self.network, train.compile), train.accumulate)
        self.stream = Stream(self.config, self.images, self.model.coupled, path.near)
        framed = "contrast.framed", "let chains move as images: --set contrast.framed=false"
        spectrum = load_spectrum(self.config, *framed) if self.config.contrast.framed else None
        thermal = path.thermal(self.config.density.epsilon)
        self.sampler = Sampler(self.config, self.images, gradient, thermal, spectrum)
        self.enter(self.config.transport)

    def enter(self, phase: Transport | Contrast) -> None:
        r"""Begins a phase with fresh optimisers."""
        train = self.config.train
        self.phase = phase
        self.optimizers = make_optimizers(self.network, phase, train)
        contrast = phase if isinstance(phase, Contrast) else None
        loss = self.model.loss(self.network, contrast, len(self.stream.groups), self.coarse)
        self.backward = make_backward(loss, train, self.autocast)

    def start(self) -> None:
        r"""Begins with the weights of the prior (or denoiser) that the settings name, whose images count as seen.

        Raises:
            ValueError: There is no such prior, or it is another network.
        """
        card, network = load_start(self.config, self.images.shape[1])
        for one in (self.network, self.average):
            one.load_state_dict(network.state_dict())
        self.seen = card.training.get("images_seen", 0)
        self.facts["start"] = {"name": card.name, "sha256": card.sha256, "images_seen": self.seen}
        logger.info("begins with the weights of %s", card.name)

    def hold(self) -> Teacher:
        r"""Returns the prior that is begun with, as what holds the training to it.

        Raises:
            ValueError: There is no such prior, or it is another network or another density.
        """
        train, (_, network) = self.config.train, load_start(self.config, self.images.shape[1])
        network = network.to(self.device).to(memory_format=torch.channels_last).requires_grad_(False)
        gradient = in_pieces(gradient_of(network, compiled=False), train.accumulate)
        return Teacher(gradient, self.model.interpolant, train.hold, self.coarse)

    def hide(self) -> Coarse:
        r"""Returns the bands that are held.

        Raises:
            ValueError: The card of the prior that is begun with does not say how its energy curves.
        """
        spectrum = load_spectrum(self.config, "train.held=coarse", "hold all: --set train.held=all")
        thermal = self.model.interpolant.thermal(self.config.density.epsilon)
        return Coarse(spectrum, self.config.train.hold, thermal, as_signed(self.images[:1]))

    @property
    def total(self) -> int:
        r"""The iterations of both phases."""
        return self.config.transport.steps + self.config.contrast.steps

    def run(self, progress: bool = False, seconds: float | None = None) -> str:
        r"""Trains to the end, or for about `seconds`, from wherever the state is, and writes the checkpoint.

        SIGTERM and SIGINT stop it after the running iteration, with a checkpoint.

        Returns:
            Why it stopped: `"finished"`, `"seconds"` or `"SIGTERM"`.

        Raises:
            FloatingPointError: The loss is not finite; the last checkpoint is from before.
            KeyboardInterrupt: SIGINT came; the checkpoint is written.
        """
        bar = tqdm(total=self.total, initial=self.step, disable=not progress or self.world.rank > 0, unit="it")
        with bar, Interrupt() as interrupt:
            reason = self.loop(bar, interrupt, float("inf") if seconds is None else seconds)
            if self.saved != self.step:
                self.save()
        if reason == "SIGINT":
            raise KeyboardInterrupt(f"training stopped at iteration {self.step}; {self.out / CHECKPOINT} is complete")
        return reason

    def loop(self, bar: Any, interrupt: Interrupt, seconds: float) -> str:
        train = self.config.train
        if self.world.rank == 0:
            self.log.rewind(self.step)
        start = now = saved = logged = time.monotonic()
        since = self.step
        while self.step < self.total:
            caught, late, due = self.world.agree(
                interrupt.received, now - start >= seconds, now - saved > train.checkpoint_every
            )
            if caught or late:
                return signal.Signals(caught).name if caught else "seconds"
            if due or (self.step == self.config.transport.steps and self.saved != self.step):
                self.save()
                saved = time.monotonic()
            terms = self.iterate()
            bar.update()
            if train.sample_every and self.step % train.sample_every == 0:
                self.save_samples()
            before, now = now, time.monotonic()
            self.seconds += now - before
            if self.step % train.log_every == 0 or self.step == self.total:
                rate = (self.step - since) * train.batch_size / max(now - logged, 1e-9)
                logged, since = now, self.step
                record = self.record(terms, rate)
                bar.set_postfix_str(f"loss {record['transport']:.4f}, {rate:.0f} images/s")
        return "finished"

    def iterate(self) -> dict[str, Tensor]:
        r"""Does one iteration and returns the terms of its loss."""
        config, done = self.config, self.step
        if done == config.transport.steps:
            self.network.load_state_dict(self.average.state_dict())
            self.enter(config.contrast)
        batch = self.stream.at(done)
        with self.autocast():
            pair = self.sampler.draw(batch) if isinstance(self.phase, Contrast) else ()
            batch = self.teacher(batch) if self.teacher else batch
        self.network.zero_grad(set_to_none=True)
        terms = self.backward(batch.x1, batch.x0, batch.s, *pair)
        self.world.average([p.grad for p in self.network.parameters() if p.grad is not None])
        terms["norm"] = nn.utils.clip_grad_norm_(self.network.parameters(), config.train.clip)
        self.optimizers.step(self.rate())
        follow(self.average, self.network, min(self.phase.ema, (1 + done) / (10 + done)))
        self.step += 1
        self.seen += config.train.batch_size
        self.norm = terms["norm"]
        return terms

    def check(self) -> None:
        r"""Raises `FloatingPointError` if the loss has not been finite: once lost, the weights stay lost."""
        if not torch.isfinite(self.norm):
            raise FloatingPointError(
                f"the loss is not finite at iteration {self.step}. Resume from the last checkpoint with a lower "
                "learning rate: --set transport.lr=5e-4 (or contrast.lr), or --set train.precision=fp32."
            )

    def rate(self) -> float:
        r"""The present learning rate."""
        begun = self.config.transport.steps if isinstance(self.phase, Contrast) else 0
        return learning_rate(self.phase, self.step - begun)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16")

    def record(self, terms: dict[str, Tensor], rate: float) -> dict[str, Any]:
        r"""Appends a line to the log and returns it."""
        self.check()
        self.world.average(list(terms.values()))
        line = {"iteration": self.step, "phase": type(self.phase).__name__.lower(), "images": self.seen}
        line |= {name: round(float(value), 6) for name, value in terms.items()}
        line |= {"lr": float(f"{self.optimizers.rate:.4g}")}
        line |= {"images_per_second": round(rate, 1), "seconds": round(self.seconds, 1)}
        if self.world.rank == 0:
            self.log.append(line)
        return line

    def save_samples(self, count: int = 64, steps: int = 150) -> None:
        r"""Saves a grid of images generated by the averaged network."""
        if self.world.rank == 0:
            grid = draw(self.model, self.average, tuple(self.images.shape[1:]), count, steps)
            save_grid(self.out / f"samples-{self.step:07d}.png", grid)

    def save(self) -> None:
        r"""Writes the checkpoint; with many processes all must call it."""
        self.check()
        self.saved = self.step
        chains = None if self.sampler.chains is None else self.world.gather(self.sampler.chains)
        if self.world.rank > 0:
            return
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "seen": self.seen,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "chains": chains,
            "facts": self.facts,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with atomic(self.out / CHECKPOINT) as path:
            path.write_bytes(buffer.getbuffer())

    def discard(self) -> None:
        r"""Replaces the checkpoint of the folder by the present state, and its log and samples by nothing."""
        self.save()
        if self.world.rank == 0:
            for path in [self.log.path, *self.out.glob("samples-*.png")]:
                path.unlink(missing_ok=True)

    def resume(self) -> bool:
        r"""Takes up the checkpoint of the folder, if there is one.

        Raises:
            ValueError: The checkpoint was made with another network, start, density or schedule or with data of another
                shape, or with groups that cannot be dealt out to the processes.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return False
        state = read_checkpoint(self.out, self.config, self.device)
        check_shape(path, state, list(self.images.shape[1:]))
        if not same_start(self.config, state["facts"].get("start")):
            raise ValueError(
                f"{path} did not begin with the weights that train.start={self.config.train.start} has now. Name those "
                "that it began with, use another --out folder, or start anew with --fresh."
            )
        drawn = state["config"]["train"].get("groups")
        if self.asked is None and drawn is not None:
            self.begin(drawn)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.step, self.seconds, self.seen = state["step"], state["seconds"], state["seen"]
        self.facts = state["facts"] | self.facts
        if self.step > self.config.transport.steps:
            self.enter(self.config.contrast)
        if self.step != self.config.transport.steps:
            self.optimizers.load_state_dict(state["optimizers"])
        self.sampler.chains = None if state["chains"] is None else self.world.deal(state["chains"])
        self.saved = self.step
        logger.info("resumed %s at iteration %d", path, self.step)
        return True
