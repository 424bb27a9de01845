r"""Reconstructs CIFAR-10 test images by sampling the posterior, and compares its widths with its errors.

    p(x | y)  ~  exp(-||y - A x||^2 / (2 sigma^2) - E(x))

by four chains of Hamiltonian Monte Carlo for each image, which stop when they have mixed or when `--steps` end. A right
posterior holds 90 % of the true pixels in its 90 % intervals. The mean is given beside that of the least squares
estimate of the baseline denoiser where the problem is denoising.

    python examples/reconstruction_cifar10_posterior.py --test cifar10_test.npy --problems cifar10/denoising
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from deepinv.physics import GaussianNoise

import emprior
from emprior.metrics import psnr
from emprior.train import as_public, load_images


def report(problem: emprior.Problem, x: torch.Tensor, prior: str, options: argparse.Namespace) -> str:
    r"""Returns a line of figures of one problem."""
    y = problem.measure(x, seed=0)
    parts = [
        emprior.solve(problem.operator, part, prior, method=options.method, steps=options.steps, samples=options.chains)
        for part in y.split(options.batch)
    ]
    mean = torch.cat([part.mean for part in parts])
    held = []
    for level in (0.5, 0.9):
        low, high = (torch.cat(ends) for ends in zip(*(part.interval(level) for part in parts), strict=True))
        held.append(float(((low <= x) & (x <= high)).float().mean()))
    single = torch.cat([part.samples[0] for part in parts])
    runs = [part.diagnostics for part in parts]
    rhat, residual = torch.cat([run.rhat for run in runs]), torch.cat([run.residual for run in runs])
    mixed = sum(status is emprior.result.Status.MIXED for run in runs for status in run.status)
    return (
        f"mean {float(psnr(mean, x).mean()):.2f} dB, a sample {float(psnr(single, x).mean()):.2f} dB, "
        f"50 and 90 % intervals cover "
        f"{100 * held[0]:.1f} and {100 * held[1]:.1f} %, residual {float(residual.mean()):.3f}, "
        f"R-hat {float(rhat.median()):.3f} (median), {mixed} of {len(x)} mixed, "
        f"{max(run.gradient_evaluations for run in runs)} gradients, {sum(run.seconds for run in runs) / len(x):.1f} s "
        "an image"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--test", required=True, help="clean images: folder or .npy")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--baseline", default="cifar10-denoiser")
    parser.add_argument("--problems", nargs="+", help="names of problems; by default all")
    parser.add_argument("--sigma", type=float, help="another noise than the problem's")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="images at a time")
    parser.add_argument("--method", default="posterior")
    parser.add_argument("--chains", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    x = as_public(load_images(options.test)[: options.images])
    prior = emprior.load_prior(options.prior)
    prior.accelerate()
    for name in options.problems or emprior.list_problems():
        problem = emprior.load_problem(name)
        if options.sigma is not None:
            problem.operator.set_noise_model(GaussianNoise(options.sigma))
            problem = replace(problem, sigma=options.sigma)
        print(f"{name}, sigma {problem.sigma}: {report(problem, x, prior, options)}", flush=True)
        if name.endswith("denoising"):
            clean = emprior.load_denoiser(options.baseline)(problem.measure(x, seed=0), problem.sigma)
            print(f"    baseline denoiser {float(psnr(clean, x).mean()):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
