r"""Restores a photograph with missing pixels by MAP and by posterior sampling.

.. math:: \hat{x} = \arg\min_x \frac{1}{2 \sigma^2} \|y - A x\|^2 + E(x), \qquad
          x \sim p(x \mid y) \propto \exp\left(-\frac{1}{2 \sigma^2} \|y - A x\|^2 - E(x)\right)

The photograph is the cat that ships with scikit-image, reduced to 32 x 32; `A` keeps 30 % of its pixels.

    python examples/inpainting_cifar10_posterior.py --out out/inpainting
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import skimage
import torch

import emprior
from emprior.metrics import psnr, ssim
from emprior.plot import figure, save_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/inpainting"), help="the folder to write to")
    parser.add_argument("--steps", type=int, default=90, help="paths of each chain (90)")
    parser.add_argument("--samples", type=int, default=4, help="chains (4)")
    args = parser.parse_args()

    cat = skimage.data.chelsea()[:, 75:375]
    small = skimage.transform.resize(cat, (32, 32), anti_aliasing=True)
    x = torch.from_numpy(small).float().permute(2, 0, 1)[None]
    problem = emprior.load_problem("cifar10/inpainting")
    y = problem.measure(x, seed=0)

    lines = {}
    for method, samples, steps in (("map", 1, None), ("posterior", args.samples, args.steps)):
        result = emprior.solve(problem.operator, y, prior="cifar10", method=method, samples=samples, steps=steps)
        folder = args.out / method
        result.save(folder)
        save_figure(figure(result, truth=x), folder / "figure.png")
        figures = {"psnr": psnr(result.estimate, x).item(), "ssim": ssim(result.estimate, x).item()}
        lines[method] = figures | result.diagnostics.summary()
        print(f"{method:9}" + "".join(f"  {name} {value:.4g}" for name, value in lines[method].items()))
        print("\n".join(f"           {line}" for line in (result.status.value, *result.diagnostics.verdict)))
    (args.out / "figures.json").write_text(json.dumps(lines, indent=2) + "\n")
    print(f"written to {args.out}: {', '.join(sorted(p.name for p in (args.out / 'posterior').iterdir()))}")


if __name__ == "__main__":
    main()
