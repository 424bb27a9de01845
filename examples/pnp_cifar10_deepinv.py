r"""Deblurs a photograph by deepinv's own optimisers, with the prior as their denoiser and as their energy.

Plug-and-play puts a denoiser where the proximal step of an energy belongs, and proximal gradients have that step:

.. math:: x \leftarrow D_s\left(x - \gamma \nabla f(x)\right), \qquad
          x \leftarrow \mathrm{prox}_{\gamma E}\left(x - \gamma \nabla f(x)\right) \searrow
          \arg\min_x f(x) + E(x), \qquad f(x) = \frac{1}{2 \sigma^2} \|y - A x\|^2

A denoiser leaves open what it minimises, and proximal gradients go on from what it found. The energy of each answer is
printed in nats above the least. DPIR runs by its paper's schedule, which was chosen for another network.

    python examples/pnp_cifar10_deepinv.py --out out/pnp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from deepinv.optim import DPIR, L2, PGD, PnP
from photographs import CAT, save_rows
from torch import Tensor

import emprior
from emprior.interop import as_deepinv_prior, as_denoiser
from emprior.io import read_image
from emprior.metrics import psnr


@torch.no_grad()
def answers(problem: emprior.Problem, y: Tensor, prior: emprior.Prior, steps: int) -> dict[str, Tensor]:
    r"""Returns the restorations by name, each `(1, 3, 32, 32)`."""
    physics, data, step = problem.operator, L2(sigma=problem.sigma), problem.sigma**2
    denoiser = as_denoiser(prior)
    plug = PGD(data_fidelity=data, prior=PnP(denoiser), stepsize=step, sigma_denoiser=0.05, max_iter=50)(y, physics)
    proximal = PGD(data_fidelity=data, prior=as_deepinv_prior(prior), stepsize=step, max_iter=steps)
    return {
        "DPIR": DPIR(sigma=problem.sigma, denoiser=denoiser)(y, physics),
        "PnP": plug,
        "PnP, then proximal gradients": proximal(y, physics, init=plug),
        "emprior.solve": emprior.solve(physics, y, prior).estimate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, default=CAT, help="a photograph, reduced to 32 x 32")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--steps", type=int, default=5, help="proximal steps")
    parser.add_argument("--out", type=Path, default=Path("out/pnp"), help="the folder to write to")
    args = parser.parse_args()
    problem, prior = emprior.load_problem("cifar10/deblurring"), emprior.load_prior(args.prior)
    x = read_image(args.image, size=32)[None]
    y = problem.measure(x, seed=0)

    found = {"measured": y, **answers(problem, y, prior, args.steps)}
    energy = problem.fidelity(y) + prior
    values = {name: float(energy(image)) for name, image in found.items()}
    for name, image in found.items():
        print(f"{name}: {float(psnr(image, x)):.2f} dB, energy {values[name] - min(values.values()):.1f}")
    save_rows(args.out / "figure.png", {f"truth, {', '.join(found)}": [x[0], *(image[0] for image in found.values())]})


if __name__ == "__main__":
    main()
