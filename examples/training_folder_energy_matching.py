r"""Trains a small prior on a folder of images, and restores with it an image that it has not seen.

.. math:: \min_V \mathbb{E} \left\|\nabla V(x_s) - (a x_0 - b x_1)\right\|^2
          + \lambda \left(\mathbb{E}_\mathrm{data} V - \mathbb{E}_\mathrm{chains} V\right), \qquad E = V / \epsilon,

with paths :math:`x_s` from noise :math:`x_0` to images :math:`x_1`; then :math:`\hat{x} = \arg\min_x
\frac{1}{2 \sigma^2} \|y - x\|^2 + E(x)`. Without a folder the images are pieces of four photographs. A minute of a
small network makes a prior that denoises; for one that is worth more see docs/training.md.

    python examples/training_folder_energy_matching.py --images photos --out out/training
"""

from __future__ import annotations

import argparse
from pathlib import Path

from photographs import CAT, save_rows, write_pieces

import emprior
from emprior.io import read_image
from emprior.metrics import psnr
from emprior.train import Config, run_training
from emprior.train.config import Contrast, Data, Density, Net, Train, Transport


def settings(images: Path, steps: int) -> Config:
    r"""Returns the settings of a training of `steps` iterations, a tenth of them with contrast."""
    contrast = steps // 10
    return Config(
        name="small",
        data=Data(source=str(images), size=32, name=f"the images in {images.name}"),
        net=Net("squared_norm", {"patch": 2, "widths": [24, 48], "blocks": 1}),
        density=Density(arguments={"sigma_star": 0.3, "blend": 0.6}, epsilon=0.002),
        train=Train(batch_size=32, precision="fp32", compile=False, log_every=20, sample_every=0),
        transport=Transport(steps=steps - contrast, lr=2e-3, warmup=20, ema=0.98, skew=1.6),
        contrast=Contrast(steps=contrast, chains=64, batch_size=32, langevin_steps=8, warmup=5, ema=0.9),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="the folder to learn from; by default pieces of photographs")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("out/training"), help="the folder to write to")
    args = parser.parse_args()
    images = args.images or write_pieces(args.out / "images", 400)
    figures = run_training(settings(images, args.steps), args.out / "run", fresh=True)
    print(f"{figures['images']} images in {figures['seconds']:.0f} s, prior in {figures['prior']}")

    problem = emprior.load_problem("cifar10/denoising")
    x = read_image(CAT, size=32)[None]
    y = problem.measure(x, seed=0)
    result = emprior.solve(problem.operator, y, figures["prior"])
    result.save(args.out / "map")
    result.report(args.out / "map.html", truth=x, operator=problem.operator)
    save_rows(args.out / "figure.png", {"truth, measured, MAP": [x[0], y[0], result.estimate[0]]})
    print(f"measured {float(psnr(y, x)):.2f} dB, MAP {float(psnr(result.estimate, x)):.2f} dB")
    print(result.status.value)


if __name__ == "__main__":
    main()
