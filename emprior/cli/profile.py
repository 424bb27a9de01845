r"""`emprior profile`: how fast this machine trains and evaluates gradients."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from emprior.cli._common import (
    UsageError,
    add_command,
    add_device,
    as_json,
    as_usage,
    check_device,
    positive_int,
    read_config,
)

if TYPE_CHECKING:
    from emprior.train.config import Config

EXAMPLES = """
emprior profile train pretrained/cifar10/train.yaml
emprior profile gradient pretrained/cifar10/train.yaml --set train.batch_size=256 --device cuda
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "profile", run, "measure the speed of training, or of gradients", EXAMPLES)
    parser.add_argument(
        "what", choices=["train", "gradient"], help="iterations of the trainer, or gradients of a prior"
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="the settings: network, batch, precision")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as for train")
    parser.add_argument("--shape", nargs=3, type=positive_int, default=[3, 32, 32], metavar="N", help="C H W (3 32 32)")
    parser.add_argument("--iterations", type=positive_int, default=10, metavar="N", help="how many are timed (10)")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(options: argparse.Namespace) -> int:
    config = _config(options)
    check_device(options.device)

    import torch

    from emprior.train.profile import profile_gradient, profile_training

    measure = profile_training if options.what == "train" else profile_gradient
    images = torch.randint(0, 256, (1024, *options.shape), dtype=torch.uint8)
    rows = measure(config, images, options.device, options.iterations)
    if options.json:
        print(as_json({row.name: {k: v for k, v in asdict(row).items() if k != "name"} for row in rows}))
        return 0
    print(f"{'':40}{'images/s':>10}{'ratio':>8}{'of peak':>9}{'MiB':>8}")
    for row in rows:
        share = "" if row.share is None else f"{100 * row.share:.0f} %"
        ratio = row.images_per_second / rows[1].images_per_second
        print(f"{row.name:40}{row.images_per_second:10.1f}{ratio:8.2f}{share:>9}{row.memory:8.0f}")
    return 0


def _config(options: argparse.Namespace) -> Config:
    r"""Returns settings that can be trained with, but for the data, which are random here."""
    from emprior.train.check import check_config
    from emprior.train.model import MODELS

    config = read_config(options.config, options.set)
    if options.what == "gradient" and config.kind == "denoiser":
        path = options.config
        raise UsageError(f"{path} is of a denoiser, which has no energy. Use: emprior profile train {path}")
    with as_usage():
        check_config(replace(config, data=replace(config.data, source="random images")))
        MODELS[config.kind](config).network(options.shape[0])
    return config
