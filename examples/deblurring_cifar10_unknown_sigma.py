r"""Deblurs a photograph without being told the noise level.

.. math:: p(x, \sigma \mid y) \propto \sigma^{-m - 1}
          \exp\left(-\frac{1}{2 \sigma^2} \|y - A x\|^2 - E(x)\right)

with Jeffreys' prior :math:`1 / \sigma` of the noise and `m` measurements. Chains sample both; MAP takes the mean of
`sigma` under such a chain. Beside them, MAP that is told the level, and MAP that is told four times as much.

    python examples/deblurring_cifar10_unknown_sigma.py --out out/unknown_sigma
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from photographs import CAT

import emprior
from emprior.io import read_image
from emprior.metrics import psnr
from emprior.operators import without_noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, default=CAT, help="a photograph, reduced to 32 x 32")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--steps", type=int, default=100, help="of the posterior's chains, a quarter of them burn-in")
    parser.add_argument("--out", type=Path, default=Path("out/unknown_sigma"), help="the folder to write to")
    args = parser.parse_args()
    problem, prior = emprior.load_problem("cifar10/deblurring"), emprior.load_prior(args.prior)
    x = read_image(args.image, size=32)[None]
    y, operator = problem.measure(x, seed=0), without_noise(problem.operator)

    results = {
        "MAP, told sigma": emprior.solve(operator, y, prior, sigma=problem.sigma),
        "MAP, told 4 sigma": emprior.solve(operator, y, prior, sigma=4 * problem.sigma),
        "MAP": emprior.solve(operator, y, prior, sigma="estimate"),
        "posterior": emprior.solve(
            operator, y, prior, method="posterior", sigma="estimate", samples=2, steps=args.steps
        ),
    }
    print(f"sigma is {problem.sigma:g}")
    lines: dict[str, dict[str, float]] = {}
    for name, result in results.items():
        lines[name] = {"psnr": float(psnr(result.estimate, x))}
        line = f"{name}: {lines[name]['psnr']:.2f} dB"
        if result.diagnostics.sigma is not None:
            lines[name] |= {"sigma": float(result.diagnostics.sigma), "std": float(result.diagnostics.sigma_std)}
            line += f", sigma {lines[name]['sigma']:.5f} +- {lines[name]['std']:.5f}"
        print(line)
    print(results["posterior"].diagnostics.verdict[0])
    results["posterior"].save(args.out / "posterior")
    results["posterior"].report(args.out / "posterior.html", truth=x)
    (args.out / "figures.json").write_text(json.dumps({"truth": problem.sigma, **lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
