r"""Fills a box in a photograph four times, with samples that are independent and with samples that repel each other.

.. math:: p(x_1, \dots, x_S \mid y) \propto \exp\left(-\sum_i \left(\frac{1}{2 \sigma^2} \|y - A x_i\|^2 + E(x_i)\right)
          + \frac{2}{S s^2} \sum_{i < j} \|B (x_i - x_j)\|^2\right)

`A` loses a box of 12 x 12 pixels, `B` is that box, and the strength `s` is a length: the smaller, the harder they push.
The figures are root mean square differences of two samples; outside of the box the data hold them together. Chains
begin at an annealed start, which knows no repulsion: longer ones (`--steps`) come closer to the law.

    python examples/inpainting_cifar10_repulsion.py --out out/repulsion
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from photographs import CAT, save_rows
from torch import Tensor

import emprior
from emprior.io import read_image


def apart(samples: Tensor, region: Tensor) -> float:
    r"""Returns the root mean square difference of two samples `(S, *shape)` over a region."""
    return float((2 * (samples.var(0) * region).sum() / region.sum()).sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, default=CAT, help="a photograph, reduced to 32 x 32")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--strength", type=float, default=1.4)
    parser.add_argument("--steps", type=int, default=40, help="of the chains, a quarter of them burn-in")
    parser.add_argument(
        "--leaps", type=int, default=16, help="of a path, in the mean; long paths move what is held least"
    )
    parser.add_argument("--out", type=Path, default=Path("out/repulsion"), help="the folder to write to")
    args = parser.parse_args()
    problem, prior = emprior.load_problem("cifar10/box_inpainting"), emprior.load_prior(args.prior)
    x = read_image(args.image, size=32)[None]
    prior.settings = {"hmc": {"leaps": args.leaps}}
    y, box = problem.measure(x, seed=0), 1 - problem.operator.A(torch.ones_like(x))[0]

    pictures = {}
    for name, repulsion in (("independent", None), ("repelling", emprior.Repulsion(args.strength, box))):
        result = emprior.solve(
            problem.operator, y, prior, method="hmc", samples=args.samples, steps=args.steps, interaction=repulsion
        )
        result.save(args.out / name)
        samples = result.samples[:, 0]
        pictures[name] = [x[0], y[0], *samples]
        print(f"{name}: {apart(samples, box):.3f} apart inside the box, {apart(samples, 1 - box):.3f} outside")
        print(f"    {result.diagnostics.verdict[0]}")
    save_rows(args.out / "samples.png", pictures)


if __name__ == "__main__":
    main()
