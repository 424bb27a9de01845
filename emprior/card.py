r"""Cards: what is known of a prior, in a file that a person can read."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from emprior._check import check_positive, nearest
from emprior._files import atomic
from emprior._paths import pretrained_dir
from emprior.interpolant import make_interpolant

CARD, WEIGHTS = "card.yaml", "weights.safetensors"
DENSITY = ("objective", "arguments", "epsilon")
KINDS = {
    "prior": ("prior", "emprior.load_prior"),
    "mixture": ("prior", "emprior.load_prior"),
    "denoiser": ("denoiser", "emprior.load_denoiser"),
    "features": ("feature extractor", "emprior.hub.load_features"),
}
"""What a folder may hold: its noun, and the function that loads it. A mixture goes wherever a prior is asked for."""

TYPES: dict[str, tuple[type, str]] = {
    "str": (str, "a text"),
    "list[int]": (list, "a list of numbers"),
    "dict[str, Any]": (dict, "a section of keys"),
}
"""The annotations of :class:`Card`, as YAML has them."""


@dataclass(frozen=True)
class Card:
    r"""What is known of a prior.

    Arguments:
        name: Its name.
        kind: `"prior"`, `"mixture"` for one of Gaussians, `"denoiser"` for the baseline of a prior, or `"features"` for
            what compares images.
        architecture: The registered name of the network, or of what a mixture is stored as.
        arguments: Its arguments.
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
            ValueError: The card is missing, is not YAML, lacks or misspells a key, or has a value that cannot be.
        """
        path = folder / CARD
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"no prior card at {path}: {error.strerror}. Give a folder with {CARD}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid YAML: {error}. {cure(folder)}") from error
        known = Card.__dataclass_fields__
        if not isinstance(tree, dict):
            raise ValueError(f"{path} is not a prior card: expected keys {', '.join(known)}.")
        for key in tree:
            if key not in known:
                raise ValueError(f"{path}: unknown key {key!r}. {nearest(str(key), known)}")
        for key, value in tree.items():
            expected, words = TYPES[str(known[key].type)]
            if not isinstance(value, expected):
                raise ValueError(f"{path}: {key!r} should be {words}, got {value!r}.")
        if (kind := tree.get("kind", "prior")) not in KINDS:
            raise ValueError(f"{path}: unknown kind {kind!r}. {nearest(kind, KINDS)}")
        required = [
            name for name, entry in known.items() if entry.default is MISSING and entry.default_factory is MISSING
        ]
        missing = [name for name in required if name not in tree]
        if kind == "prior":
            missing += [f"density.{name}" for name in DENSITY if name not in tree.get("density", {})]
        if missing:
            raise ValueError(f"{path} is incomplete: it lacks {', '.join(missing)}. {cure(folder)}")
        card = Card(**tree)
        try:
            card.check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return card

    @property
    def typical(self) -> tuple[float, float] | None:
        r"""The mean and the standard deviation of the energies of held-out images, if they are known and differ."""
        energy = self.metrics.get("energy", {})
        mean, spread = energy.get("mean", math.nan), energy.get("spread", math.nan)
        return (mean, spread) if math.isfinite(mean) and 0 < spread < math.inf else None

    @property
    def identity(self) -> str:
        r"""A digest of all on the card that results depend on: of weights, network, density, solver and metric."""
        figures = {name: self.metrics.get(name) for name in ("energy", "spectrum", "restoration", "calibration")}
        facts = (self.sha256, self.architecture, self.arguments, self.density, self.solver, figures)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        r"""Writes the card of a folder, whole or not at all."""
        with atomic(folder / CARD) as path:
            text = yaml.safe_dump(
                dict(self.__dict__), sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
            )
            path.write_text(text, encoding="utf-8")

    def check(self) -> None:
        r"""Raises a ValueError if its shape, its arguments or its density cannot be."""
        for axis, side in enumerate(self.shape):
            check_positive(f"shape[{axis}]", side, whole=True)
        _check_section("arguments", self.arguments)
        if self.kind == "prior":
            check_positive("density.epsilon", self.density["epsilon"])
            _check_section("density.arguments", self.density["arguments"])
            make_interpolant(self.density["objective"], **self.density["arguments"])


def _check_section(name: str, section: object) -> None:
    if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
        raise ValueError(f"{name!r} should be a section of keys, got {section!r}. For the defaults write {{}}.")


def cure(folder: Path) -> str:
    if pretrained_dir() in folder.resolve().parents:
        return "Restore the file: install the package again, or git checkout it."
    return "Restore the file from a copy, or write it anew with the emprior train command that made it."
