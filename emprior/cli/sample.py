r"""`emprior sample`: what a prior believes in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emprior.cli._common import (
    UsageError,
    add_command,
    add_device,
    check_device,
    check_prior,
    is_terminal,
    positive_int,
)

EXAMPLES = """
emprior sample --prior cifar10 -n 64 --out grid.png
emprior sample --prior runs/mine/prior -n 1000 --seed 1 --steps 325 --out samples.npy
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "sample", run, "generate images from a prior", EXAMPLES)
    parser.add_argument("--prior", default="cifar10", metavar="NAME|DIR", help="see: emprior priors list (cifar10)")
    parser.add_argument("-n", type=positive_int, default=16, help="how many (16)")
    parser.add_argument("--seed", type=int, default=0, help="image i depends on the seed and i alone (0)")
    parser.add_argument("--steps", type=positive_int, help="Langevin steps; by default the prior's own")
    add_device(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="a grid of images, .png, or (n, C, H, W) floats, .npy"
    )


def run(options: argparse.Namespace) -> int:
    suffix = options.out.suffix.lower()
    if suffix not in (".png", ".npy"):
        raise UsageError(f"--out {options.out} ends in {suffix!r}, but samples are saved as .png or .npy.")
    check_prior(options.prior)
    device = check_device(options.device)

    import numpy as np

    from emprior._files import atomic
    from emprior._grid import save_grid
    from emprior.hub import load_prior

    prior = load_prior(options.prior).to(device)
    settings = {} if options.steps is None else {"steps": options.steps}
    x = prior.sample(options.n, seed=options.seed, progress=is_terminal(), **settings).cpu()
    if not x.isfinite().all():
        raise FloatingPointError(
            f"prior {options.prior!r} gave samples that are not finite: its flow diverges. Train it again."
        )
    if suffix == ".npy":
        with atomic(options.out) as path:
            np.save(path, x.numpy())
    else:
        save_grid(options.out, x)
    print(f"{options.out}: {options.n} sample{'s' * (options.n > 1)} of {prior.title}")
    return 0
