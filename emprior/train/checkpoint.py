r"""The file from which a training is taken up."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emprior.train import provenance
from emprior.train.config import Config

CHECKPOINT = "checkpoint.pt"


def read_checkpoint(folder: str | Path, config: Config, device: str | torch.device = "cpu") -> dict[str, Any]:
    r"""Reads the checkpoint of a folder and checks that it is one of this training.

    Raises:
        ValueError: There is none, it cannot be read, or it was made by an earlier version, or with another network,
            density, schedule or replay buffer.
    """
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}. Train first: emprior train CONFIG --out {folder}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        saved, step = state["config"], state["step"]
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint of a training ({type(error).__name__}): it is damaged or something "
            "else. Start anew with --fresh, or choose another --out folder."
        ) from error
    if "kind" not in saved or "facts" not in state:
        raise ValueError(
            f"{path} was written by an earlier version of emprior, which recorded less of the training. "
            "Start anew with --fresh, or choose another --out folder."
        )
    given = config.to_dict()
    for section in ("kind", "net", "density"):
        if saved[section] != given[section]:
            raise ValueError(
                f"{path} was trained with another {section!r}: {saved[section]}. "
                "Use that, another --out folder, or start anew with --fresh."
            )
    _check_optimizer(path, state, given)
    before, now = saved["transport"]["steps"], config.transport.steps
    if step > before and now != before:
        raise ValueError(
            f"{path} began its contrast at iteration {before}, so transport.steps cannot become {now}. "
            f"Use --set transport.steps={before}"
        )
    if now < step <= before:
        raise ValueError(
            f"{path} is at iteration {step} of the transport, beyond transport.steps={now}. "
            f"To end the phase here, use --set transport.steps={step}"
        )
    if config.contrast.negatives == "replay" and step < config.transport.steps + config.contrast.steps:
        _check_chains(path, state, config.contrast.chains)
    return state


def _check_optimizer(path: Path, state: dict[str, Any], given: dict[str, Any]) -> None:
    if "optimizer" in state:  # of a version that knew no other
        state["optimizers"] = [state.pop("optimizer")]
    saved, step, end = state["config"], state["step"], given["transport"]["steps"]
    phase = "transport" if step < end else "contrast"
    before = saved[phase].get("optimizer", "adamw")
    if step != end and before != given[phase]["optimizer"]:
        raise ValueError(
            f"{path} is within its {phase}, with {before!r}, and holds no state of another optimizer. Use "
            f"--set {phase}.optimizer={before}. To go on with another, begin a training with the prior that this one "
            "has made: --set train.start=FOLDER --out NEW"
        )


def check_shape(path: Path, state: dict[str, Any], shape: list[int]) -> None:
    r"""Refuses a checkpoint of images of another shape `[C, H, W]`.

    Raises:
        ValueError: They differ.
    """
    before = state["facts"]["shape"]
    if before != shape:
        raise ValueError(
            f"{path} was trained on images of shape {before}, but the data are {shape}. "
            "Use the same data, another --out folder, or start anew with --fresh."
        )


def describe(images: Tensor, processes: int) -> dict[str, Any]:
    r"""Returns the facts of a checkpoint: what a card will say of the data, `(N, C, H, W)`, and of the machine."""
    shape = list(images.shape[1:])
    return {"images": len(images), "shape": shape, **provenance.origin(images.device, processes)}


def _check_chains(path: Path, state: dict[str, Any], count: int) -> None:
    if state["chains"] is None:
        return
    found = list(state["chains"].shape)
    rows = [4, *state["facts"]["shape"]]
    if found[1:] != rows:
        raise ValueError(
            f"{path} has a replay buffer of shape {found}, expected {[count, *rows]}, chains, origins, views, momenta: "
            "another version of emprior wrote it. Start anew with --fresh, or choose another --out folder."
        )
    if found[0] != count:
        raise ValueError(
            f"{path} has a replay buffer of {found[0]} chains, so contrast.chains cannot become {count}. "
            f"Use --set contrast.chains={found[0]}, another --out folder, or start anew with --fresh."
        )
