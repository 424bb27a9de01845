r"""`emprior train`: a prior from images."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from emprior.cli._common import (
    add_command,
    add_device,
    as_json,
    check_device,
    check_writable,
    is_terminal,
    read_config,
)
from emprior.cli._common import positive_float as seconds

EXAMPLES = """
emprior train mine.yaml --out runs/mine --set data.source=photos train.batch_size=64
emprior train mine.yaml --out runs/mine --seconds 3600   (stops after an hour; the same command goes on)
torchrun --nproc-per-node 4 -m emprior train mine.yaml --out runs/mine --device cuda
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "train", run, "train a prior, or go on training it", EXAMPLES)
    parser.add_argument("config", metavar="CONFIG.yaml", help="the settings")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="checkpoint, log and DIR/prior, which --prior takes; a checkpoint is gone on from",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings that override the file's"
    )
    add_device(parser)
    parser.add_argument("--seconds", type=seconds, metavar="T", help="stop after about that long")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever --out holds")


def run(options: argparse.Namespace) -> int:
    config = read_config(options.config, options.set)
    check_writable("--out", options.out, options.out.absolute())
    check_device(options.device)

    from emprior.train import run_training

    figures = run_training(
        config,
        options.out,
        device=options.device,
        progress=is_terminal(),
        seconds=options.seconds,
        fresh=options.fresh,
    )
    if os.environ.get("RANK", "0") != "0":
        return 0
    if options.json:
        print(as_json(figures))
    else:
        end = "; finished" if figures["finished"] else "; stopped before the end, the same command goes on"
        print(f"{figures['out']}: {figures['iterations']} iterations, {figures['images']} images{end}")
    return 0
