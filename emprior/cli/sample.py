r"""`emprior sample`: what a prior believes in."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emprior.cli._common import (
    UsageError,
    add_command,
    add_device,
    check_device,
    check_prior,
    check_samples,
    check_target,
    is_terminal,
    positive_int,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

EXAMPLES = """
emprior sample --prior cifar10 -n 64 --out grid.png
emprior sample --prior cifar10 -n 8 --out grid.png --trajectory trajectory.png --gif noise_to_images.gif
emprior sample --prior runs/mine/prior -n 1000 --seed 1 --steps 200 --out samples.npy
"""
COLUMNS, FRAMES = 10, 40


def add(commands: Any) -> None:
    parser = add_command(commands, "sample", run, "generate images from a prior", EXAMPLES)
    parser.add_argument("--prior", default="cifar10", metavar="NAME|DIR", help="see: emprior priors list (cifar10)")
    parser.add_argument("-n", type=positive_int, default=16, help="how many (16)")
    parser.add_argument("--seed", type=int, default=0, help="image i depends on the seed and i alone (0)")
    parser.add_argument("--steps", type=positive_int, help="steps, a gradient each (60)")
    add_device(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="a grid of images, .png, or (n, C, H, W) floats, .npy"
    )
    parser.add_argument(
        "--trajectory", type=Path, metavar="PNG", help="also a row for each image, from noise at equal times to the end"
    )
    parser.add_argument("--gif", type=Path, metavar="GIF", help="also an animation of the grid, from noise to images")


def run(options: argparse.Namespace) -> int:
    _check(options)
    device = check_device(options.device)

    import numpy as np

    from emprior._files import atomic
    from emprior._grid import save_animation, save_grid, save_trajectory
    from emprior.hub import load_prior
    from emprior.priors.network import STEPS, NetworkPrior

    prior = load_prior(options.prior).to(device)
    steps = options.steps or STEPS
    columns = moments(steps, COLUMNS) if options.trajectory else []
    frames = moments(steps, FRAMES) if options.gif else []
    film = Film({*columns, *frames})
    if isinstance(prior, NetworkPrior):
        x = prior.sample(options.n, seed=options.seed, steps=steps, progress=is_terminal(), callback=film.take).cpu()
    elif options.steps or options.trajectory or options.gif:
        raise UsageError(
            f"--prior {options.prior} is a mixture of Gaussians, drawn from in no steps. Leave out --steps, "
            "--trajectory and --gif."
        )
    else:
        x = prior.sample(options.n, seed=options.seed).cpu()
    check_samples(x, options.prior)
    if options.out.suffix.lower() == ".npy":
        with atomic(options.out) as path:
            np.save(path, x.numpy())
    else:
        save_grid(options.out, x)
    if options.trajectory:
        save_trajectory(options.trajectory, film.at(columns), captions(columns, steps))
    if options.gif:
        save_animation(options.gif, film.at(frames), captions(frames, steps))
    print(f"{options.out}: {options.n} sample{'s' * (options.n > 1)} of {prior.title}")
    for extra in filter(None, (options.trajectory, options.gif)):
        print(f"{extra}: {steps} steps from noise to images")
    return 0


class Film:
    r"""Keeps the pixels of generated images at some steps.

    Arguments:
        steps: The steps to keep.
    """

    def __init__(self, steps: set[int]) -> None:
        self.parts: dict[int, list[np.ndarray]] = {step: [] for step in steps}

    def take(self, step: int, images: Tensor) -> None:
        r"""Takes in what the sampler's callback is given."""
        from emprior._grid import to_pixels

        if step in self.parts:
            self.parts[step].append(to_pixels(images))

    def at(self, steps: Sequence[int]) -> np.ndarray:
        r"""Returns the images at each of the steps, `(T, B, H, W, 3)` uint8."""
        import numpy as np

        return np.stack([np.concatenate(self.parts[step]) for step in steps])


def moments(steps: int, count: int) -> list[int]:
    r"""Returns at most `count` steps from 0 to `steps`, as equally spaced as whole numbers are."""
    count = min(count, steps + 1)
    return [round(steps * index / (count - 1)) for index in range(count)]


def captions(steps: Sequence[int], total: int) -> list[str]:
    r"""Returns the sampling time of each step as text, from 0 at noise to 1."""
    return [f"t = {step / total:.2f}" for step in steps]


def _check(options: argparse.Namespace) -> None:
    check_target("--out", options.out, (".png", ".npy"), "samples are saved")
    extras = {"--trajectory": (".png", options.trajectory), "--gif": (".gif", options.gif)}
    for option, (suffix, path) in extras.items():
        if path is not None:
            check_target(option, path, (suffix,), "it is saved")
            if path.resolve() == options.out.resolve():
                raise UsageError(f"{option} and --out are the same file, {path}. Give two.")
    check_prior(options.prior)
