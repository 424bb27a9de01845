r"""`emprior evaluate`: figures of a prior against held-out images. Those of cards are in `measure`."""

from __future__ import annotations

import argparse
import logging
from math import ceil
from typing import TYPE_CHECKING, Any

from emprior.cli import measure
from emprior.cli._common import (
    add_command,
    add_device,
    as_json,
    as_usage,
    check_device,
    check_file,
    check_prior,
    check_samples,
    is_terminal,
    positive_int,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from emprior.frechet import Extractor

EXAMPLES = """
emprior evaluate generation --prior cifar10 --images cifar10_test.npy -n 2000
emprior evaluate generation --prior runs/mine/prior --images held_out --json
emprior evaluate generation --images cifar10_test.npy -n 5000 --inception inception-2015-12-05.pt
"""


def add(commands: Any) -> None:
    both = EXAMPLES.strip() + measure.EXAMPLES
    parser = add_command(commands, "evaluate", run, "measure how good a prior is", both)
    actions = parser.add_subparsers(metavar="prior|generation", required=True)
    measure.add(actions)
    generation = add_command(
        actions, "generation", run, "compare generated with real images by a Fréchet distance", EXAMPLES
    )
    generation.add_argument(
        "--prior", default="cifar10", metavar="NAME|DIR", help="a prior, or the denoiser that is its baseline (cifar10)"
    )
    generation.add_argument(
        "--images", required=True, metavar="DIR|NPY", help="real images that the prior was not trained on"
    )
    generation.add_argument(
        "-n", type=positive_int, default=2000, help="how many to generate, at most half as many as are given (2000)"
    )
    generation.add_argument("--seed", type=int, default=0, help="image i depends on the seed and i alone (0)")
    generation.add_argument("--steps", type=positive_int, help="sampling steps; by default the prior's own")
    generation.add_argument(
        "--inception",
        metavar="PT",
        help="the standard Inception network as TorchScript, for the FID; by default the features are of a small "
        "CIFAR-10 classifier, and the figure is called frechet_cifar",
    )
    add_device(generation)
    generation.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(options: argparse.Namespace) -> int:
    from emprior.hub import MODELS, load_model

    check_prior(options.prior, MODELS)
    check_file(options.images, "folder or .npy file of images")
    device = check_device(options.device)
    name, extractor = _extractor(options, device)

    from emprior.frechet import features, frechet_distance, to_bytes
    from emprior.priors import GaussianMixturePrior

    model = load_model(options.prior).to(device)
    others, real = _halves(options, model.shape, extractor)
    if isinstance(model, GaussianMixturePrior):
        x = model.sample(len(others), seed=options.seed)
    else:
        settings = {} if options.steps is None else {"steps": options.steps}
        x = model.sample(len(others), seed=options.seed, progress=is_terminal(), **settings)
    check_samples(x, options.prior)
    reference = features(real, extractor)
    figures = {
        "prior": model.title,
        "images": options.images,
        name: frechet_distance(features(to_bytes(x), extractor), reference),
        "floor": frechet_distance(features(others, extractor), reference),
        "n": len(others),
        "real": len(real),
        "seed": options.seed,
    }
    print(as_json(figures) if options.json else _lines(figures, name))
    return 0


def _extractor(options: argparse.Namespace, device: torch.device) -> tuple[str, Extractor]:
    from emprior.frechet import cifar_extractor, enough_images, inception_extractor

    if options.inception is None:
        name, extractor = "frechet_cifar", cifar_extractor(device)
    else:
        name, extractor = "fid", inception_extractor(check_file(options.inception, "Inception network"), device)
    dimension = _dimension(extractor)
    with as_usage():
        enough_images(options.n, dimension, "-n is", f"Generate more: -n {max(2000, 1000 * ceil(dimension / 500))}")
    return name, extractor


def _dimension(extractor: Extractor) -> int:
    import torch

    with torch.no_grad():
        return extractor(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1]


def _halves(options: argparse.Namespace, shape: tuple[int, ...], extractor: Extractor) -> tuple[Tensor, Tensor]:
    r"""Reads the real images and parts them at random: `n` of one half at most, and the other half.

    The figure and its floor compare as many images, generated and real, with that other half.
    """
    import torch

    from emprior._noise import generator
    from emprior.frechet import enough_images, to_bytes
    from emprior.train.data import as_public, load_images

    images = to_bytes(as_public(load_images(options.images, shape[-1], held_out=True)))
    if tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{options.images} holds images of shape {tuple(images.shape[1:])}, but {options.prior!r} generates "
            f"{tuple(shape)}. Give images of that shape, such as those held out from its training."
        )
    half = len(images) // 2
    what = f"half of the {len(images)} images at {options.images} is"
    enough_images(half, _dimension(extractor), what, "Give more real images.")
    if options.n > half:
        logging.getLogger("emprior").warning(
            "-n is %d, but half of the %d images at %s is %d: that many are generated.",
            options.n, len(images), options.images, half,
        )  # fmt: skip
    images = images[torch.randperm(len(images), generator=generator("halves"))]
    return images[:half][: options.n], images[half:]


def _lines(figures: dict[str, Any], name: str) -> str:
    label = "FID" if name == "fid" else name
    return (
        f"{figures['prior']}: {label} {figures[name]:.3f}, {figures['n']} generated against {figures['real']} real "
        f"images\n{figures['images']}: {label} {figures['floor']:.3f}, {figures['n']} other real images against the "
        "same: the floor, as few images differ by chance"
    )
