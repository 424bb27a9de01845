r"""Measures what samples that repel each other gain in diversity inside a missing box, and what that costs.

.. math:: p(x_1, \dots, x_S \mid y) \propto \exp\left(-\sum_i \left(\frac{1}{2 \sigma^2} \|y - A x_i\|^2 + E(x_i)\right)
          + \frac{2}{S s^2} \sum_{i < j} \|B (x_i - x_j)\|^2\right)

`A` loses a box of 12 x 12 pixels, and `B` is that box. Without a repulsion samples are independent, so that those of
the largest `S` serve for all; the strongest repulsion is run for each `S`, the others for the first two. Chains begin
at an annealed start, which knows no repulsion: longer ones (`--steps`) come closer to the law.

    python examples/interaction_cifar10_study.py --test cifar10_test.npy --out out/interaction
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import emprior
from emprior.metrics import psnr
from emprior.plot import save_figure
from emprior.train import as_public, load_images

COLUMNS = ("inside", "outside", "residual", "PSNR of the mean", "PSNR of a sample", "energy", "acceptance")


def distance(samples: Tensor, region: Tensor) -> float:
    r"""Returns the root mean square difference of two samples `(S, B, *shape)` of an image over a region."""
    apart = samples.var(0) * region
    return float((2 * apart.flatten(1).sum(1) / region.sum()).mean().sqrt())


def measure(samples: Tensor, x: Tensor, y: Tensor, problem: emprior.Problem, prior: emprior.Prior, box: Tensor) -> dict:
    rows, fidelity = samples.flatten(0, 1), emprior.GaussianFidelity(problem.operator, y)
    return {
        "inside": distance(samples, box),
        "outside": distance(samples, 1 - box),
        "residual": float(fidelity.residual(rows).square().mean().sqrt()),
        "PSNR of the mean": float(psnr(samples.mean(0), x).mean()),
        "PSNR of a sample": float(psnr(rows, x.repeat(len(samples), 1, 1, 1)).mean()),
        "energy": float(prior(rows).mean()),
    }


def draw(pictures: dict[str, Tensor], x: Tensor, y: Tensor) -> Figure:
    r"""Draws a row of samples `(S, *shape)` for each strength, beside the truth and the measurements."""
    most = min(8, max(len(samples) for samples in pictures.values()))
    fig = Figure(figsize=(1.1 * (most + 1), 1.3 * len(pictures)), layout="constrained")
    axes = fig.subplots(len(pictures), most + 1, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for row, name in zip(axes, pictures, strict=True):
        for place, image in zip(row[1:], pictures[name], strict=False):
            place.imshow(image.clamp(0, 1).permute(1, 2, 0))
        row[1].set_title(name, fontsize=8)
    for row, image, title in zip(axes, (x, y), ("truth", "measured"), strict=False):
        row[0].imshow(image.clamp(0, 1).permute(1, 2, 0))
        row[0].set_title(title, fontsize=8)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--test", required=True, help="clean images: folder or .npy")
    parser.add_argument("--out", type=Path, default=Path("out/interaction"), help="the folder to write to")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--samples", type=int, nargs="*", default=[2, 4, 8, 16])
    parser.add_argument("--strengths", type=float, nargs="*", default=[2.0, 1.4, 1.2], help="smaller pushes harder")
    parser.add_argument("--steps", type=int, default=20, help="of Hamiltonian Monte Carlo, a quarter of them burn-in")
    parser.add_argument("--leaps", type=int, default=16, help="gradients of a step")
    parser.add_argument("--levels", type=int, default=20, help="noise levels of the annealed start")
    args = parser.parse_args()
    x, prior = as_public(load_images(args.test)[: args.images]), emprior.load_prior(args.prior)
    prior.settings = {"hmc": {"levels": args.levels, "leaps": args.leaps}}
    problem = emprior.load_problem("cifar10/box_inpainting")
    y, box = problem.measure(x, seed=0), 1 - problem.operator.A(torch.ones_like(x[:1]))[0]

    print(f"| strength | S | {' | '.join(COLUMNS)} |\n|{'---|' * (2 + len(COLUMNS))}")
    lines, pictures = [], {}
    for strength in (None, *args.strengths):
        counts = sorted(args.samples)
        for count in counts[-1:] if strength is None else counts if strength == min(args.strengths) else counts[:2]:
            repulsion = emprior.Repulsion(strength, box) if strength else None
            result = emprior.solve(
                problem.operator, y, prior, method="hmc", samples=count, steps=args.steps, interaction=repulsion
            )
            for part in counts if repulsion is None else [count]:
                line = measure(result.samples[:part], x, y, problem, prior, box)
                line["acceptance"] = float(result.diagnostics.acceptance.mean())
                lines.append({"strength": strength, "samples": part, **line})
                figures = " | ".join(f"{line[name]:.4g}" for name in COLUMNS)
                print(f"| {strength or 'off'} | {part} | {figures} |", flush=True)
            pictures[f"s = {strength:g}" if strength else "off"] = result.samples[:, 0]
    args.out.mkdir(parents=True, exist_ok=True)
    save_figure(draw(pictures, x[0], y[0]), args.out / "samples.png")
    (args.out / "figures.json").write_text(json.dumps(lines, indent=2) + "\n")
    print(f"written to {args.out}: figures.json, samples.png")


if __name__ == "__main__":
    main()
