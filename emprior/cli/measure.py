r"""`emprior evaluate prior`: the figures of a card, on held-out images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from emprior.cli._common import (
    UsageError,
    add_command,
    add_device,
    as_json,
    check_device,
    check_file,
    check_prior,
    check_writable,
    positive_int,
)

if TYPE_CHECKING:
    from emprior.card import Card

EXAMPLES = """
emprior evaluate prior --prior cifar10 --images cifar10_test.npy
emprior evaluate prior --prior runs/mine/prior --images held_out --write
"""


def add(actions: Any) -> None:
    parser = add_command(
        actions, "prior", run, "measure the figures of a card: denoising, energies, curvature, chains", EXAMPLES
    )
    parser.add_argument("--prior", required=True, metavar="NAME|DIR", help="a learned prior, or the denoiser of one")
    parser.add_argument("--images", required=True, metavar="DIR|NPY", help="images that it was not trained on")
    parser.add_argument("-n", type=positive_int, default=256, help="how many of them, the first (256)")
    parser.add_argument("--write", action="store_true", help="replace the figures of its card by these")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(options: argparse.Namespace) -> int:
    from emprior.hub import MODELS, Card, find_prior, load_model

    check_prior(options.prior, MODELS)
    check_file(options.images, "folder or .npy file of images")
    device = check_device(options.device)

    from emprior.priors import GaussianMixturePrior
    from emprior.train.data import as_public, load_images
    from emprior.train.evaluate import measure

    folder = find_prior(options.prior, MODELS)
    card = Card.read(folder)
    model = load_model(folder)
    if isinstance(model, GaussianMixturePrior):
        raise UsageError(f"{card.name!r} is a mixture of Gaussians, known exactly: give a learned prior.")
    if options.write:
        check_writable("--prior", folder, folder)
    images = load_images(options.images, card.shape[-1], held_out=True)[: options.n]
    if images.shape[1] != card.shape[0]:
        raise ValueError(
            f"{options.images} holds images of {images.shape[1]} channels, but {options.prior!r} was trained on "
            f"{card.shape[0]}. Give images such as those held out from its training."
        )
    card = replace(card, metrics=measure(model, as_public(images), device))
    if options.write:
        card.write(folder)
    print(as_json({"prior": card.name, **card.metrics}) if options.json else _lines(card))
    return 0


def _lines(card: Card) -> str:
    figures = card.metrics
    levels = ", ".join(f"{value:.2f} dB at {level}" for level, value in figures["denoising_psnr"].items())
    lines = [f"{card.name}: {figures['images']} images", f"denoising: {levels}"]
    if card.kind == "denoiser":
        return "\n".join(lines)
    chain, (first, *_, last) = figures["chain"], figures["spectrum"]["curvature"][0]
    moves = ", ".join(f"{std} at step {step}" for step, std in zip(chain["step"], chain["pixel_std"], strict=True))
    return "\n".join(
        [
            *lines,
            f"energy: {figures['energy']['mean']} +- {figures['energy']['spread']} nats",
            f"curvature: {first:g} at the mean, {last:g} at the highest frequency",
            f"outward drift: {figures['drift']}",
            f"chains of {chain['images']} images: pixel std {moves}",
        ]
    )
