r"""Checks of the settings before hours are spent on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from emprior._check import nearest
from emprior.card import Card
from emprior.interpolant import OBJECTIVES, LogDensity, make_interpolant
from emprior.nets import POTENTIALS, VELOCITIES
from emprior.train.config import Config
from emprior.train.model import MODELS
from emprior.train.optimiser import OPTIMIZERS

Rule = tuple[Callable[[Any], bool], str]

WHOLE: Rule = (lambda v: v >= 1, "at least 1")
WHOLE_OR_NONE: Rule = (lambda v: v is None or v >= 1, "at least 1, or null")
COUNT: Rule = (lambda v: v >= 0, "0 or more")
POSITIVE: Rule = (lambda v: v > 0, "greater than 0")
SHARE: Rule = (lambda v: 0 <= v <= 1, "between 0 and 1")
BELOW_ONE: Rule = (lambda v: 0 <= v < 1, "at least 0 and below 1")

RULES: dict[str, dict[str, Rule]] = {
    "data": {"size": WHOLE},
    "density": {"epsilon": POSITIVE},
    "train": {
        "batch_size": WHOLE,
        "groups": WHOLE_OR_NONE,
        "accumulate": WHOLE,
        "hold": SHARE,
        "clip": POSITIVE,
        "weight_decay": COUNT,
        "checkpoint_every": COUNT,
        "log_every": WHOLE,
        "sample_every": COUNT,
    },
    "transport": {
        "steps": COUNT,
        "lr": POSITIVE,
        "warmup": COUNT,
        "decay": SHARE,
        "ema": BELOW_ONE,
        "skew": POSITIVE,
        "slack": BELOW_ONE,
    },
    "contrast": {
        "steps": COUNT,
        "lr": POSITIVE,
        "warmup": COUNT,
        "decay": SHARE,
        "ema": BELOW_ONE,
        "chains": WHOLE,
        "batch_size": WHOLE,
        "langevin_steps": WHOLE,
        "step_size": POSITIVE,
        "tau_star": SHARE,
        "age": COUNT,
        "restart": SHARE,
        "views": SHARE,
        "holes": SHARE,
        "momentum": BELOW_ONE,
        "strength": COUNT,
        "trim": BELOW_ONE,
        "clamp": COUNT,
    },
}

CHOICES = {
    "train.precision": ("bf16", "fp32"),
    "train.held": ("all", "coarse"),
    "transport.optimizer": OPTIMIZERS,
    "contrast.optimizer": OPTIMIZERS,
    "contrast.negatives": ("replay", "fresh"),
}


def check_config(config: Config, processes: int = 1) -> None:
    r"""Refuses settings that cannot be trained with.

    Arguments:
        config: The settings.
        processes: The processes among which batches are dealt out.

    Raises:
        ValueError: It names the key, what was expected and what to type.
    """
    for section, rules in RULES.items():
        for key, (holds, expected) in rules.items():
            value = getattr(getattr(config, section), key)
            if not holds(value):
                raise ValueError(f"{section}.{key} is {value!r}, expected a number {expected}: --set {section}.{key}=…")
    if config.kind not in MODELS:
        raise ValueError(f"kind is {config.kind!r}, which is unknown. {nearest(config.kind, MODELS)}")
    nets = VELOCITIES if config.kind == "denoiser" else POTENTIALS
    named = {"net.architecture": tuple(nets), "density.objective": tuple(OBJECTIVES)}
    for name, choices in {**CHOICES, **named}.items():
        section, key = name.split(".")
        value = getattr(getattr(config, section), key)
        if value not in choices:
            raise ValueError(f"{name} is {value!r}, which is unknown. {nearest(value, choices)}")
    if not config.data.source:
        raise ValueError("data.source is empty, expected a folder of images, a .npy stack or a torchvision root: "
                         "--set data.source=PATH")  # fmt: skip
    if not all(0 <= beta < 1 for beta in config.train.betas):
        raise ValueError(f"train.betas are {config.train.betas}, expected two numbers in [0, 1): [0.9, 0.99]")
    if not 0 < config.contrast.noise[0] <= config.contrast.noise[1]:
        raise ValueError(
            f"contrast.noise is {config.contrast.noise}, expected two rising positive numbers: [0.04, 0.4]"
        )
    make_interpolant(config.density.objective, **config.density.arguments)
    _check_relations(config)
    check_shares(config, config.train.groups or processes, processes)


def _check_log_density(config: Config) -> None:
    path = make_interpolant(config.density.objective, **config.density.arguments)
    if isinstance(path, LogDensity) and config.density.epsilon != 1:
        raise ValueError(
            f"density.epsilon is {config.density.epsilon}, but log_density makes V in nats, whose temperature is 1: "
            "--set density.epsilon=1"
        )
    if config.net.architecture != "log_norm":
        return
    if not isinstance(path, LogDensity):
        raise ValueError(
            f"net.architecture is 'log_norm', whose gradient grows like 1 / s, but those of {config.density.objective} "
            "do not: --set density.objective=log_density density.epsilon=1, or net.architecture=squared_norm"
        )
    for key, value in (("tau", path.tau), ("core", path.core)):
        own = config.net.arguments.get(key, getattr(LogDensity, key))
        if own != value:
            raise ValueError(
                f"net.arguments.{key} is {own}, but {key} of the density is {value}: --set net.arguments.{key}={value}"
            )


def _check_held(config: Config) -> None:
    hold, path = config.train.hold, make_interpolant(config.density.objective, **config.density.arguments)
    if not hold:
        raise ValueError(
            "train.held is 'coarse', but train.hold is 0 and nothing is held: --set train.hold=0.1 "
            "train.start=NAME, or --set train.held=all"
        )
    if path.coefficients(torch.tensor(hold))[1] != 0:
        raise ValueError(
            f"train.held=coarse is for where targets hold noise alone, but up to train.hold={hold} those of {path} "
            "hold images. Take less, --set train.hold=0.1, or hold all: --set train.held=all"
        )


def check_start(config: Config, card: Card, channels: int) -> None:
    r"""Refuses to begin with the weights of another network, or to hold to another density.

    Arguments:
        config: The settings.
        card: The card of what is to be begun with.
        channels: Those of the images.

    Raises:
        ValueError: It says what that network is, and what to type.
    """
    density = config.to_dict()["density"]
    if config.train.hold and card.density != density:
        raise ValueError(
            f"train.hold keeps the density of {card.name}, which is {card.density}, but density is {density}. "
            "Train that, or hold to none: --set train.hold=0"
        )
    here = config.net.architecture, {"channels": channels, **config.net.arguments}
    if here == (card.architecture, card.arguments):
        return
    if channels != card.arguments.get("channels", channels):
        raise ValueError(
            f"train.start={card.name} is for images of {card.arguments['channels']} channels, but the data have "
            f"{channels}. Begin with random weights: --set train.start=null"
        )
    arguments = ", ".join(f"{key}: {value}" for key, value in card.arguments.items() if key != "channels")
    raise ValueError(
        f"train.start={card.name} is another network: {card.architecture} of {{{arguments}}}, not "
        f"{config.net.architecture} of {config.net.arguments}. Train that: --set net.architecture={card.architecture} "
        f"'net.arguments={{{arguments}}}'"
    )


def _check_relations(config: Config) -> None:
    contrast = config.contrast
    if config.transport.steps + contrast.steps == 0:
        raise ValueError("transport.steps and contrast.steps are both 0: nothing to train. --set transport.steps=10000")
    if config.train.held == "coarse":
        _check_held(config)
    if config.kind == "prior":
        _check_log_density(config)
    if config.train.hold and (config.train.start is None or config.kind == "denoiser"):
        raise ValueError(
            f"train.hold is {config.train.hold}, but there is no energy to hold to. Name a prior that the training "
            "begins with, --set train.start=NAME, or hold to none: --set train.hold=0"
        )
    if contrast.framed and (config.train.start is None or contrast.negatives != "replay"):
        raise ValueError(
            "contrast.framed is for replay chains of a training that begins with a prior, whose card holds the frame: "
            "--set train.start=NAME contrast.negatives=replay, or contrast.framed=false"
        )
    if contrast.holes and not contrast.views:
        raise ValueError(
            f"contrast.holes is {contrast.holes}, but no chain has a view that they could be in: "
            "--set contrast.views=0.5, or contrast.holes=0"
        )
    if config.transport.slack and config.kind == "denoiser":
        raise ValueError("a denoiser is told its noise, and no length is forgiven: --set transport.slack=0")
    if contrast.steps and config.kind == "denoiser":
        raise ValueError("a denoiser has no energies to contrast: --set contrast.steps=0")
    if contrast.steps and contrast.negatives == "replay" and contrast.chains < contrast.batch_size:
        raise ValueError(
            f"contrast.chains is {contrast.chains}, fewer than contrast.batch_size {contrast.batch_size} that every "
            f"iteration draws: --set contrast.chains={4 * contrast.batch_size}"
        )


def check_shares(config: Config, groups: int, processes: int) -> None:
    r"""Refuses batches that cannot be dealt out evenly.

    Arguments:
        config: The settings.
        groups: The groups in which batches are drawn.
        processes: The processes that take whole groups.

    Raises:
        ValueError: It names the key, what was expected and what to type.
    """
    train, contrast = config.train, config.contrast
    if groups % processes:
        raise ValueError(
            f"batches are drawn in {groups} group{'s' * (groups > 1)}, which cannot be dealt out to {processes} "
            f"processes. Draw them in others from here on: --set train.groups={math.lcm(groups, processes)}"
        )
    parts = {"processes": processes, "groups (train.groups)": groups}
    batch = parts | {"pieces (processes times train.accumulate)": processes * train.accumulate}
    shared = {"train.batch_size": (train.batch_size, batch)}
    if contrast.steps:
        shared |= {"contrast.batch_size": (contrast.batch_size, batch), "contrast.chains": (contrast.chains, parts)}
    for name, (value, among) in shared.items():
        unit = math.lcm(*among.values())
        for parts_name, count in among.items():
            if value % count:
                raise ValueError(
                    f"{name} is {value}, which does not divide among {count} {parts_name}: "
                    f"--set {name}={max(1, round(value / unit)) * unit}"
                )
