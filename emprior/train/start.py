r"""The prior, or denoiser, that a training begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from emprior._bands import Spectrum
from emprior.hub import Card, find_prior, load_network
from emprior.train.check import check_start
from emprior.train.config import Config


def load_start(config: Config, channels: int) -> tuple[Card, nn.Module]:
    r"""Loads the card and the network of `train.start`, for images of that many channels.

    Raises:
        ValueError: There is no such prior, its network is another, or it is to be held to and its density is another.
    """
    assert config.train.start is not None
    card, network = load_network(config.train.start, config.kind)
    check_start(config, card, channels)
    return card, network


def load_spectrum(config: Config, setting: str, cure: str) -> Spectrum:
    r"""Returns the curvature by frequency that the card of `train.start` holds.

    Arguments:
        config: The settings.
        setting: The one that asks for it.
        cure: What to do without it.

    Raises:
        ValueError: There is no such prior, or its card holds none.
    """
    assert config.train.start is not None
    card = Card.read(find_prior(config.train.start))
    if "spectrum" not in card.metrics:
        raise ValueError(
            f"{setting} goes by the curvature on the card of {card.name}, which holds no metrics.spectrum. Write it "
            f"there, emprior evaluate prior --prior {config.train.start} --images PATH --write, or {cure}"
        )
    return Spectrum.read(card.metrics["spectrum"])


def same_start(config: Config, began: Mapping[str, Any] | None) -> bool:
    r"""Whether a training that `began` with a prior, or with none, is one that the settings describe.

    Without `train.start` any is: the weights are in the checkpoint.
    """
    if config.train.start is None:
        return True
    card = Card.read(find_prior(config.train.start, [config.kind]))
    return began is not None and began["sha256"] == card.sha256
