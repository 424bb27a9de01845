r"""Prior cards and weights.

A prior is a folder: `card.yaml`, which a person can read, and `weights.safetensors`, whose SHA-256 is in
the card and is checked at every load. Denoisers and feature extractors are such folders too. Names are looked
up among the bundled ones, then in the cache folder (`EMPRIOR_CACHE`, by default the user's cache); a path to a
folder works as well.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import nn

from emprior._check import nearest
from emprior._files import atomic
from emprior._paths import cache_dir, pretrained_dir
from emprior.denoiser import NetworkDenoiser
from emprior.interpolant import make_interpolant
from emprior.nets import Classifier, make_features, make_potential, make_velocity
from emprior.priors.network import NetworkPrior

Network = TypeVar("Network", bound=nn.Module)

CARD, WEIGHTS = "card.yaml", "weights.safetensors"
DENSITY = ("objective", "arguments", "epsilon")
KINDS = {
    "prior": ("a prior", "emprior.load_prior"),
    "denoiser": ("a denoiser", "emprior.load_denoiser"),
    "features": ("a feature extractor", "emprior.hub.load_features"),
}


@dataclass(frozen=True)
class Card:
    r"""What is known of a prior.

    Arguments:
        name: Its name.
        kind: `"prior"`, `"denoiser"` for the baseline of one, or `"features"` for what compares images.
        architecture: The network's registered name.
        arguments: The network's arguments.
        shape: The shape of one training image, `(C, H, W)`.
        density: The `objective` and its `arguments`, and the temperature `epsilon`; empty for other kinds.
        sha256: The digest of the weights' file.
        description: One line.
        training: Data, licence, images seen, hardware, wall time, revision, settings.
        metrics: Figures on held-out images.
        solver: Solver settings validated with it.
    """

    name: str
    architecture: str
    arguments: dict[str, Any]
    shape: list[int]
    density: dict[str, Any]
    sha256: str
    kind: str = "prior"
    description: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    solver: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Card:
        r"""Reads the card of a folder.

        Raises:
            ValueError: The card is missing, is not YAML, or lacks or misspells a key.
        """
        path = folder / CARD
        try:
            tree = yaml.safe_load(path.read_text())
        except OSError as error:
            raise ValueError(f"no prior card at {path}: {error.strerror}. Give a folder with {CARD}.") from error
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}. Restore it from the package.") from error
        known = Card.__dataclass_fields__
        if not isinstance(tree, dict):
            raise ValueError(f"{path} is not a prior card: expected keys {', '.join(known)}.")
        for key in tree:
            if key not in known:
                raise ValueError(f"{path}: unknown key {key!r}. {nearest(str(key), known)}")
        for key in ("arguments", "density", "training", "metrics", "solver"):
            if not isinstance(tree.get(key, {}), dict):
                raise ValueError(f"{path}: {key!r} should be a section of keys, got {tree[key]!r}.")
        if str(kind := tree.get("kind", "prior")) not in KINDS:
            raise ValueError(f"{path}: unknown kind {kind!r}. {nearest(str(kind), KINDS)}")
        required = [
            name for name, entry in known.items() if entry.default is MISSING and entry.default_factory is MISSING
        ]
        missing = [name for name in required if name not in tree]
        if tree.get("kind", "prior") == "prior":
            missing += [f"density.{name}" for name in DENSITY if name not in (tree.get("density") or {})]
        if missing:
            raise ValueError(f"{path} is incomplete: it lacks {', '.join(missing)}. Restore it from the package.")
        return Card(**tree)


def list_priors() -> list[str]:
    r"""Returns the names of the bundled and cached priors."""
    return _names("prior")


def list_denoisers() -> list[str]:
    r"""Returns the names of the bundled and cached denoisers, the baselines of priors."""
    return _names("denoiser")


def find_prior(name: str | os.PathLike[str]) -> Path:
    r"""Returns the folder of a prior by name or path.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    folders = _folders()
    if str(name) in folders:
        return folders[str(name)]
    if (Path(name) / CARD).is_file():
        return Path(name)
    choices = [known for known, folder in folders.items() if _kind(folder) != "features"]
    raise ValueError(
        f"unknown prior {str(name)!r}. {nearest(str(name), choices)} A path to a folder with {CARD} works too; "
        "list priors with: emprior priors list"
    )


def load_prior(name: str | os.PathLike[str]) -> NetworkPrior:
    r"""Loads a learned prior by name or folder.

    Raises:
        ValueError: The prior is unknown, its card is wrong, or its weights are not those of the card.
    """
    card, potential = _load(name, "prior", make_potential)
    interpolant = make_interpolant(card.density["objective"], **card.density["arguments"])
    prior = NetworkPrior(potential, tuple(card.shape), interpolant, card.density["epsilon"], card.name)
    prior.settings = card.solver
    return prior


def load_network_denoiser(name: str | os.PathLike[str]) -> NetworkDenoiser:
    r"""Loads a denoiser by name or folder; :func:`emprior.load_denoiser` makes it deepinv's.

    Raises:
        ValueError: The denoiser is unknown, its card is wrong, or its weights are not those of the card.
    """
    card, velocity = _load(name, "denoiser", make_velocity)
    return NetworkDenoiser(velocity, tuple(card.shape), card.name)


def load_features(name: str | os.PathLike[str]) -> Classifier:
    r"""Loads a feature extractor by name or folder; its `features` describe images.

    Raises:
        ValueError: It is unknown, its card is wrong, or its weights are not those of the card.
    """
    _, network = _load(name, "features", make_features)
    return network.eval().requires_grad_(False)


def _load(name: str | os.PathLike[str], kind: str, make: Callable[..., Network]) -> tuple[Card, Network]:
    folder = find_prior(name)
    card = Card.read(folder)
    if card.kind != kind:
        is_a, load = KINDS[card.kind]
        raise ValueError(f"{card.name!r} is {is_a}, not {KINDS[kind][0]}. Load it with {load}.")
    try:
        tensors = load_tensors(checked_bytes(folder, card))
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is not a safetensors file: {error}. Save it with save_prior.") from error
    network = make(card.architecture, **card.arguments)
    floats = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    try:
        network.load_state_dict(floats)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit the architecture of its card: {error}") from error
    return card, network


def checked_bytes(folder: Path, card: Card) -> bytes:
    r"""Returns the content of the weights' file, once its digest has matched the card.

    Raises:
        ValueError: The file is missing or is not the one that the card describes.
    """
    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}. Install the package again.") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise ValueError(
            f"{path} is corrupted: its SHA-256 is {digest[:12]}…, the card says {card.sha256[:12]}…. "
            "Restore the file (install the package again, or git checkout it)."
        )
    return content


def verify_prior(name: str | os.PathLike[str]) -> Card:
    r"""Checks the card and weights of what is at `name` by loading and evaluating it once; returns the card.

    Raises:
        ValueError: Something is wrong with it.
    """
    card = Card.read(find_prior(name))
    gray = torch.full((1, *card.shape), 0.5)
    values: tuple[torch.Tensor, ...]
    if card.kind == "prior":
        values = load_prior(name).value_and_grad(gray)
    elif card.kind == "denoiser":
        values = (load_network_denoiser(name).denoise(gray, 0.1),)
    else:
        values = (load_features(name).features(gray),)
    if not all(bool(value.isfinite().all()) for value in values):
        raise ValueError(f"{card.kind} {str(name)!r} gives numbers that are not finite. Train it again.")
    return card


def save_prior(folder: Path, network: nn.Module, dtype: torch.dtype = torch.float32, **facts: Any) -> Card:
    r"""Writes a prior folder; `facts` are the entries of :class:`Card` but the digest."""
    tensors = {
        key: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for key, tensor in network.state_dict().items()
    }
    content = dump_tensors(tensors)
    card = Card(sha256=hashlib.sha256(content).hexdigest(), **facts)
    with atomic(folder / WEIGHTS) as path:
        path.write_bytes(content)
    with atomic(folder / CARD) as path:
        path.write_text(yaml.safe_dump(dict(card.__dict__), sort_keys=False, allow_unicode=True, width=110))
    return card


def _names(kind: str) -> list[str]:
    return sorted(name for name, folder in _folders().items() if _kind(folder) == kind)


def _kind(folder: Path) -> str:
    try:
        return Card.read(folder).kind
    except ValueError:
        return "prior"


def _folders() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in (cache_dir() / "priors", pretrained_dir()):
        if root.is_dir():
            found |= {path.parent.name: path.parent for path in sorted(root.glob(f"*/{CARD}"))}
    return found
