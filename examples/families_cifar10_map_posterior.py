r"""Restores a photograph from one problem of each family, by MAP and by a short posterior.

.. math:: \hat{x} = \arg\min_x U(x), \qquad p(x \mid y) \propto \exp(-U(x)), \qquad
          U(x) = \frac{1}{2 \sigma^2} \|y - A x\|^2 + E(x)

Writes a page for each problem and prints a table. Chains as short as the default's have not mixed, and their verdict
says so; with `--steps 1000` they go on until they have. The pixels of one photograph err together, so that the share
of them within their 90 % intervals is 90 % only in the mean over many.

    python examples/families_cifar10_map_posterior.py --out out/families
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from photographs import CAT
from torch import Tensor

import emprior
from emprior.io import read_image
from emprior.metrics import psnr
from emprior.uncertainty import coverage

FAMILIES = ("inpainting", "deblurring", "compressed_sensing", "super_resolution_x2", "denoising")


def restore(family: str, x: Tensor, prior: emprior.Prior, steps: int, out: Path) -> dict[str, float | str]:
    r"""Writes the page of a problem and returns its figures."""
    problem = emprior.load_problem(f"cifar10/{family}")
    y = problem.measure(x, seed=0)
    point = emprior.solve(problem.operator, y, prior)
    chains = emprior.solve(problem.operator, y, prior, method="posterior", samples=2, steps=steps)
    chains.report(out / f"{family}.html", truth=x, operator=problem.operator)
    return {
        "problem": family,
        "map": float(psnr(point.estimate, x)),
        "mean": float(psnr(chains.mean, x)),
        "coverage": float(coverage(*chains.interval(0.9), x)),
        "verdict": chains.diagnostics.verdict[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, default=CAT, help="a photograph, reduced to 32 x 32")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--problems", nargs="+", default=FAMILIES, metavar="NAME", help=", ".join(FAMILIES))
    parser.add_argument("--steps", type=int, default=60, help="of the two chains, a quarter of them burn-in")
    parser.add_argument("--out", type=Path, default=Path("out/families"), help="the folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    x, prior = read_image(args.image, size=32)[None], emprior.load_prior(args.prior)

    print("| problem | MAP, dB | mean, dB | in 90 % intervals | verdict |\n|---|---|---|---|---|")
    lines = []
    for family in args.problems:
        line = restore(family, x, prior, args.steps, args.out)
        verdict = str(line["verdict"]).partition(";")[0]
        figures = f"{line['map']:.2f} | {line['mean']:.2f} | {line['coverage']:.1%}"
        print(f"| {family} | {figures} | {verdict} |", flush=True)
        lines.append(line)
    (args.out / "figures.json").write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
