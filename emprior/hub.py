r"""Prior cards and weights.

A prior is a folder: `card.yaml`, which a person can read, and `weights.safetensors`, whose SHA-256 is in
the card and is checked at every load. Denoisers and feature extractors are such folders too. Names are looked
up among the bundled ones, then in the cache folder (`EMPRIOR_CACHE`, by default the user's cache); a path to a
folder works as well.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import nn

from emprior._bands import Spectrum
from emprior._calibration import Calibration
from emprior._check import nearest
from emprior._files import atomic
from emprior._paths import cache_dir, pretrained_dir
from emprior._restoration import Restoration
from emprior.card import CARD, KINDS, WEIGHTS, Card, cure
from emprior.denoiser import NetworkDenoiser
from emprior.interpolant import make_interpolant
from emprior.nets import Classifier, make_features, make_potential, make_velocity
from emprior.priors.analysers import make_analysers
from emprior.priors.mixture import GaussianMixturePrior
from emprior.priors.network import NetworkPrior

Network = TypeVar("Network", bound=nn.Module)

MODELS = ("prior", "denoiser")
"""The kinds that know how images look: what :func:`load_model` loads."""


def list_priors() -> list[str]:
    r"""Returns the names of the bundled and cached priors."""
    return list_names(["prior"])


def list_denoisers() -> list[str]:
    r"""Returns the names of the bundled and cached denoisers, the baselines of priors."""
    return list_names(["denoiser"])


def list_names(kinds: Collection[str] = tuple(KINDS)) -> list[str]:
    r"""Returns the names of all that is bundled or cached and of some `kinds`, keys of :data:`KINDS`."""
    nouns = {KINDS[kind][0] for kind in kinds}
    return sorted(name for name, folder in _folders().items() if _noun(folder) in nouns)


def find_prior(name: str | os.PathLike[str], kinds: Collection[str] = ("prior",)) -> Path:
    r"""Returns the folder of a prior, or of one of some other `kinds`, by name or path.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    folder = _find(name, kinds)
    if (noun := _noun(folder)) not in {KINDS[kind][0] for kind in kinds}:
        choices = nearest(str(name), list_names(kinds))
        raise ValueError(f"{str(name)!r} is a {noun}, not a {_nouns(kinds)}. {choices}")
    return folder


def load_prior(name: str | os.PathLike[str]) -> NetworkPrior | GaussianMixturePrior:
    r"""Loads a learned prior by name or folder: a network, or a mixture of Gaussians.

    Raises:
        ValueError: The prior is unknown, its card is wrong, or its weights are not those of the card.
    """
    is_mixture = Card.read(_find(name, ["prior"])).kind == "mixture"
    card, prior = _load_mixture(name) if is_mixture else _load_network(name)
    prior.settings |= card.solver
    prior.typical = card.typical or prior.typical
    if "spectrum" in card.metrics:
        prior.spectrum = Spectrum.read(card.metrics["spectrum"])
    if "restoration" in card.metrics and isinstance(prior, NetworkPrior):
        prior.restoration = Restoration.read(card.metrics["restoration"])
        if "calibration" in card.metrics:
            prior.calibration = Calibration.read(prior.restoration, card.metrics["calibration"])
    return prior


def load_model(name: str | os.PathLike[str]) -> NetworkPrior | GaussianMixturePrior | NetworkDenoiser:
    r"""Loads a prior, or a denoiser that is the baseline of one, whichever is there.

    Raises:
        ValueError: It is unknown, its card is wrong, or its weights are not those of the card.
    """
    is_denoiser = Card.read(find_prior(name, MODELS)).kind == "denoiser"
    return load_network_denoiser(name) if is_denoiser else load_prior(name)


def _load_network(name: str | os.PathLike[str]) -> tuple[Card, NetworkPrior]:
    card, potential = _load(name, "prior", make_potential)
    interpolant = make_interpolant(card.density["objective"], **card.density["arguments"])
    return card, NetworkPrior(potential, tuple(card.shape), interpolant, card.density["epsilon"], card.name)


def _load_mixture(name: str | os.PathLike[str]) -> tuple[Card, GaussianMixturePrior]:
    card, stored = _load(name, "mixture", make_analysers)
    prior = stored.prior(tuple(card.shape))
    prior.title = card.name
    return card, prior


def load_network_denoiser(name: str | os.PathLike[str]) -> NetworkDenoiser:
    r"""Loads a denoiser by name or folder; :func:`emprior.load_denoiser` makes it deepinv's.

    Raises:
        ValueError: The denoiser is unknown, its card is wrong, or its weights are not those of the card.
    """
    card, velocity = _load(name, "denoiser", make_velocity)
    return NetworkDenoiser(velocity, tuple(card.shape), card.name)


def load_network(name: str | os.PathLike[str], kind: str) -> tuple[Card, nn.Module]:
    r"""Loads the card and the bare network of a `"prior"`, a `"denoiser"` or `"features"` by name or folder.

    Raises:
        ValueError: It is unknown or of another kind, its card is wrong, or its weights are not those of the card.
    """
    makers: dict[str, Callable[..., nn.Module]] = {
        "prior": make_potential, "denoiser": make_velocity, "features": make_features
    }  # fmt: skip
    return _load(name, kind, makers[kind])


def load_features(name: str | os.PathLike[str]) -> Classifier:
    r"""Loads a feature extractor by name or folder; its `features` describe images.

    Raises:
        ValueError: It is unknown, its card is wrong, or its weights are not those of the card.
    """
    _, network = _load(name, "features", make_features)
    return network.eval().requires_grad_(False)


def _load(name: str | os.PathLike[str], kind: str, make: Callable[..., Network]) -> tuple[Card, Network]:
    folder = _find(name, [kind])
    card = Card.read(folder)
    if card.kind != kind:
        noun, load = KINDS[card.kind]
        raise ValueError(f"{card.name!r} is a {noun}, not a {_nouns([kind])}. Load it with {load}.")
    try:
        tensors = load_tensors(checked_bytes(folder, card))
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is not a safetensors file: {error}. Save it with save_prior.") from error
    try:
        network = make(card.architecture, **card.arguments)
    except ValueError as error:
        raise ValueError(f"{folder / CARD}: {error}") from error
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
        raise ValueError(f"cannot read {path}: {error.strerror}. {cure(folder)}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise ValueError(
            f"{path} is corrupted: its SHA-256 is {digest[:12]}…, the card says {card.sha256[:12]}…. {cure(folder)}"
        )
    return content


def verify_prior(name: str | os.PathLike[str]) -> Card:
    r"""Checks the card and weights of what is at `name` by loading and evaluating it once; returns the card.

    Raises:
        ValueError: Something is wrong with it.
    """
    card = Card.read(find_prior(name, KINDS))
    gray = torch.full((1, *card.shape), 0.5)
    values: tuple[torch.Tensor, ...]
    if KINDS[card.kind][0] == "prior":
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
    card.write(folder)
    return card


def _find(name: str | os.PathLike[str], kinds: Collection[str]) -> Path:
    folders = _folders()
    if str(name) in folders:
        return folders[str(name)]
    if (Path(name) / CARD).is_file():
        return Path(name)
    listing = "; list priors with: emprior priors list" if "prior" in kinds else "."
    raise ValueError(
        f"unknown {_nouns(kinds)} {str(name)!r}. {nearest(str(name), list_names(kinds))} "
        f"A path to a folder with {CARD} works too{listing}"
    )


def _nouns(kinds: Collection[str]) -> str:
    return " or ".join(dict.fromkeys(KINDS[kind][0] for kind in kinds))


def _noun(folder: Path) -> str:
    try:
        return KINDS[Card.read(folder).kind][0]
    except ValueError:
        return "prior"


def _folders() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in (cache_dir() / "priors", pretrained_dir()):
        if root.is_dir():
            found |= {path.parent.name: path.parent for path in sorted(root.glob(f"*/{CARD}"))}
    return found
