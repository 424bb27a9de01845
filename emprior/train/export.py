r"""From a checkpoint to a prior that others can load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emprior.hub import Card, save_prior
from emprior.priors.network import NetworkPrior
from emprior.train.checkpoint import read_checkpoint
from emprior.train.config import Config
from emprior.train.data import as_public, load_images
from emprior.train.evaluate import measure, measure_essentials
from emprior.train.model import MODELS
from emprior.train.provenance import circumstances


def export_prior(
    config: Config,
    checkpoint_dir: str | Path,
    out: str | Path,
    *,
    images: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    held_out: int = 256,
) -> Card:
    r"""Writes the averaged weights of a training, finished or not, as a prior folder.

    The figures of the card are those of the weights as stored. They are measured on the first images of
    `config.data.validation`. If that is not given, training images give what samplers use: the mean and spread of the
    energy, its curvature and how well noisy images are restored, by frequency; how good the prior is stays unknown.

    Arguments:
        config: The settings of the training.
        checkpoint_dir: The folder with the checkpoint.
        out: The folder to write `card.yaml` and `weights.safetensors` to.
        images: Training images, `(N, C, H, W)` as stored, of which the first are measured on if none are held out.
        dtype: How weights are stored: `torch.float32`, or `torch.float16` or `torch.bfloat16` for half the size.
        device: Where the figures are computed.
        held_out: The number of images to measure on.

    Raises:
        ValueError: There is no checkpoint, it is of another training, or the validation images do not fit.
    """
    state = read_checkpoint(checkpoint_dir, config)
    facts = state["facts"]
    shape = tuple(facts["shape"])
    known = held_out_images(config, shape, held_out)
    network = MODELS[config.kind](config).network(shape[0])
    network.load_state_dict(state["average"])
    made = MODELS[config.kind](config).wrap(copy.deepcopy(network).to(dtype).float(), shape)
    metrics = {}
    if known is not None:
        metrics = measure(made, known, device)
    elif images is not None and isinstance(made, NetworkPrior):
        metrics = measure_essentials(made, as_public(images[:held_out]), device)
    return save_prior(
        Path(out),
        network,
        dtype,
        name=config.name,
        kind=config.kind,
        description=_describe(config, network),
        architecture=config.net.architecture,
        arguments={"channels": shape[0], **config.net.arguments},
        shape=list(shape),
        density=config.to_dict()["density"] if config.kind == "prior" else {},
        training=_training(config, state, facts),
        solver=config.solver,
        metrics=metrics,
    )


def held_out_images(config: Config, shape: tuple[int, ...], count: int) -> Tensor | None:
    r"""Returns the first validation images `(B, C, H, W)` in `[0, 1]`, or None if the settings name none.

    Raises:
        ValueError: They cannot be read, or have other channels than the training images.
    """
    source = config.data.validation
    if source is None:
        return None
    try:
        images = load_images(source, config.data.size, held_out=True)[:count]
    except ValueError as error:
        raise ValueError(f"data.validation: {error} Or give none: --set data.validation=null") from error
    if images.shape[1] != shape[0]:
        raise ValueError(
            f"validation images at {source} have {images.shape[1]} channels, but the network was trained on "
            f"{shape[0]}. Give others, or none: --set data.validation=null"
        )
    return as_public(images)


def _describe(config: Config, network: nn.Module) -> str:
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    data = config.data.name or Path(config.data.source).name
    if config.kind == "denoiser":
        return f"MMSE denoiser on {data}: flow-matching {config.net.architecture} of {millions:.2g} M parameters"
    objective = config.density.objective.replace("_", " ").capitalize()
    return f"{objective} prior on {data}: {config.net.architecture} potential of {millions:.2g} M parameters"


def _training(config: Config, state: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    settings, step = state["config"], state["step"]
    transport = settings["transport"]["steps"]
    data = {key: value and Path(value).name if key in ("source", "validation") else value
            for key, value in settings["data"].items()}  # fmt: skip
    start = settings["train"].get("start")
    train = settings["train"] | {"start": start and Path(start).name}
    return {
        "data": config.data.name or Path(config.data.source).name,
        "licence": config.data.licence,
        **({"start": facts["start"]} if "start" in facts else {}),
        "images_in_set": facts["images"],
        "images_seen": state["seen"],
        "iterations": {"transport": min(step, transport), "contrast": max(0, step - transport)},
        **circumstances(facts, {"seconds": state["seconds"]}),
        "settings": {**settings, "data": data, "train": train},
    }
