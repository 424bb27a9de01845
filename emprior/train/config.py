r"""The settings of a training, from YAML and command-line overrides."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emprior._yaml import read_yaml
from emprior.train.parse import apply_override, build, plain


@dataclass(frozen=True)
class Data:
    r"""What is learned from.

    Arguments:
        source: A folder of images, a `.npy` stack `(N, H, W[, C])` uint8 or `(N, C, H, W)` of floats, or
            the root of a torchvision data set.
        validation: The same for held-out images, on which the card's figures are measured; of a torchvision
            data set the test images are taken.
        size: The side that folder images are cropped and resized to.
        flip: Whether half of the images are mirrored.
        name: What the card calls the data.
        licence: What the card says of its licence.
    """

    source: str = ""
    validation: str | None = None
    size: int = 32
    flip: bool = True
    name: str = ""
    licence: str = "unknown"


@dataclass(frozen=True)
class Net:
    r"""The network: `architecture` names an entry of `emprior.nets.POTENTIALS`, `arguments` go to it."""

    architecture: str = "inner_product"
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Density:
    r"""What the energy becomes.

    Arguments:
        objective: The path it is trained on, an entry of `emprior.interpolant.OBJECTIVES`.
        arguments: The path's arguments.
        epsilon: The temperature of the density `exp(-V / epsilon)`.
    """

    objective: str = "energy_matching"
    arguments: dict[str, Any] = field(default_factory=dict)
    epsilon: float = 0.01


@dataclass(frozen=True)
class Train:
    r"""What both phases share.

    Arguments:
        batch_size: Images an iteration, over all processes.
        groups: The parts of a batch, of equal size, each with its own random numbers, within which noise is paired with
            data and negatives are compared; null for one in each process. The result depends on it, and not on how
            the groups are dealt out.
        accumulate: The pieces that a process takes its share of a batch in, one after the other, to save memory; the
            result does not depend on it, but for rounding.
        seed: The seed of everything random.
        start: A prior (or denoiser) of the same network to begin with the weights of, by name or folder; null for
            random ones.
        hold: The noise fraction below which the energy is held to that of `start`, and not taught by data; half of each
            batch is then drawn there. See :class:`emprior.train.teacher.Teacher`.
        held: What is held there: `"all"` of the gradient, or its `"coarse"` part, of which data teach next to nothing
            and whose errors count 30 times; data teach the rest. See :class:`emprior.train.coarse.Coarse`.
        precision: `"bf16"` (autocast) or `"fp32"`.
        compile: Whether loss and gradients are compiled: a minute at the start for half again the speed.
        clip: The bound on the norm of the parameters' gradient.
        betas: The moment decays of Adam.
        weight_decay: The decoupled weight decay.
        checkpoint_every: Seconds between checkpoints.
        log_every: Iterations between log lines.
        sample_every: Iterations between sample grids (0: none).
    """

    batch_size: int = 128
    groups: int | None = None
    accumulate: int = 1
    seed: int = 0
    start: str | None = None
    hold: float = 0.0
    held: str = "all"
    precision: str = "bf16"
    compile: bool = True
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    checkpoint_every: float = 120.0
    log_every: int = 50
    sample_every: int = 1000


@dataclass(frozen=True)
class Transport:
    r"""The first phase.

    Arguments:
        steps: Iterations.
        optimizer: `"muon"`, orthogonalised momentum for the kernels within the network and Adam for the rest, or
            `"adamw"` for all.
        lr: The learning rate, reached after `warmup` iterations, held, and taken linearly to
            zero over the last `decay` share of the phase.
        warmup: Iterations.
        decay: The share of the phase over which the rate falls.
        ema: The decay of the weights' moving average.
        balance: The exponent of the loss weight, see `GradientMatchingLoss`; null for the published weight.
        skew: Noise fractions are `u ** skew`, `u` uniform; 1 is the published law.
        slack: The share of what a wrong length of the residual costs that is forgiven, below 1, in both phases.
    """

    steps: int = 10_000
    optimizer: str = "adamw"
    lr: float = 1e-3
    warmup: int = 200
    decay: float = 0.5
    ema: float = 0.999
    balance: float | None = 1.2
    skew: float = 2.0
    slack: float = 0.0


@dataclass(frozen=True)
class Contrast:
    r"""The second phase: transport goes on, and the energies of data and of the model's samples are compared.

    Arguments:
        steps: Iterations; 0 leaves the phase out.
        optimizer: `"adamw"` or `"muon"`.
        lr: The learning rate; `warmup`, `decay` and `ema` as in the first phase.
        negatives: `"replay"` (persistent chains) or `"fresh"` (chains from noise and data each time).
        chains: Chains in the replay buffer, over all processes.
        batch_size: Negatives an iteration, over all processes.
        langevin_steps: Langevin steps an iteration: 10 to 20 for `replay`, 200 for `fresh`.
        step_size: The Langevin step.
        framed: Whether replay chains move in the :class:`emprior.train.frame.Frame` of the prior that `train.start`
            names, in which `V` curves by about 1 and a `step_size` of 0.06 is stable where a training needs it.
        tau_star: The time up to which fresh chains from noise run at temperature 0.
        age: The most Langevin steps that replay chains run before the first iteration.
        restart: The share of replay chains restarted from data each time they are used.
        views: The share of replay chains that are given a noisy view of their origin.
        holes: The share of the views of which a box is missing, a quarter to a half of each side long.
        momentum: The share of its momentum that a replay chain keeps at each step.
        noise: The least and the largest noise of the views, in public units.
        strength: The weight of the contrast.
        trim: The share of the highest negative energies that is left out; published for fresh chains: 0.1.
        clamp: The weighted contrast is bounded below by minus this.
    """

    steps: int = 600
    optimizer: str = "adamw"
    lr: float = 2e-4
    warmup: int = 20
    decay: float = 0.5
    ema: float = 0.99
    negatives: str = "replay"
    chains: int = 256
    batch_size: int = 128
    langevin_steps: int = 12
    step_size: float = 0.01
    framed: bool = False
    tau_star: float = 0.9
    age: int = 0
    restart: float = 0.01
    views: float = 0.0
    holes: float = 0.0
    momentum: float = 0.0
    noise: tuple[float, float] = (0.04, 0.4)
    strength: float = 4e-3
    trim: float = 0.0
    clamp: float = 0.02


@dataclass(frozen=True)
class Config:
    r"""A whole training.

    Arguments:
        name: What the card calls the result.
        kind: `"prior"`, or `"denoiser"` for the baseline of one: the same trunk, data and schedule, told its noise
            level, and without `density` and `contrast`.
        solver: Settings of methods that were validated with the prior, for its card.
    """

    name: str = "prior"
    kind: str = "prior"
    data: Data = field(default_factory=Data)
    net: Net = field(default_factory=Net)
    density: Density = field(default_factory=Density)
    train: Train = field(default_factory=Train)
    transport: Transport = field(default_factory=Transport)
    contrast: Contrast = field(default_factory=Contrast)
    solver: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def load(path: str | Path, overrides: list[str] | None = None) -> Config:
        r"""Reads a YAML file and applies overrides such as `"train.batch_size=64"`.

        Raises:
            ValueError: A key is unknown or a value is of the wrong type; the line and the nearest match are named.
            OSError: The file cannot be read.
        """
        config: Config = build(Config, read_yaml(path), where=str(path))
        for override in overrides or []:
            tree = config.to_dict()
            apply_override(tree, override)
            config = build(Config, tree, where=f"--set {override}")
        return config

    def to_dict(self) -> dict[str, Any]:
        r"""Returns the settings as plain containers, ready for YAML."""
        return plain(dataclasses.asdict(self))
