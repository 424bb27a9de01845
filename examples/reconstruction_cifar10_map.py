r"""Compares MAP with the pseudo-inverse and with total variation on every problem.

.. math:: \hat{x} = \arg\min_x \frac{1}{2 \sigma^2} \|y - A x\|^2 + w E(x)

MAP has one weight and one schedule for all problems. The weight of total variation (deepinv's, by ADMM) is
tuned for each problem on images that are not tested on. The table holds mean PSNRs in dB.

    python examples/reconstruction_cifar10_map.py --test cifar10_test.npy --tune cifar10_train.npy
"""

from __future__ import annotations

import argparse

import deepinv
import torch
from torch import Tensor

import emprior
from emprior.metrics import psnr
from emprior.train import as_public, load_images

WEIGHTS = (0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2)


def total_variation(problem: emprior.Problem, y: Tensor, weight: float, steps: int) -> Tensor:
    solver = deepinv.optim.ADMM(
        data_fidelity=deepinv.optim.L2(),
        prior=deepinv.optim.TVPrior(n_it_max=30),
        lambda_reg=weight,
        stepsize=10.0,
        max_iter=steps,
    )
    with torch.no_grad():
        return solver(y, problem.operator)


def tuned(problem: emprior.Problem, x: Tensor, y: Tensor, steps: int) -> float:
    return max(WEIGHTS, key=lambda weight: float(psnr(total_variation(problem, y, weight, steps), x).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--test", required=True, help="images to measure and restore: folder or .npy")
    parser.add_argument("--tune", required=True, help="other images, to tune total variation on")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--tune-images", type=int, default=16)
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--steps", type=int, help="of MAP; the prior's default unless given")
    parser.add_argument("--tv-steps", type=int, default=80, help="of total variation")
    parser.add_argument("--problems", nargs="*", default=emprior.list_problems())
    args = parser.parse_args()
    test = as_public(load_images(args.test)[: args.images])
    tune = as_public(load_images(args.tune)[-args.tune_images :])
    prior = emprior.load_prior(args.prior)

    print("| problem | pseudo-inverse | total variation (weight) | MAP | gradients | seconds an image | status |")
    print("|---|---|---|---|---|---|---|")
    for name in args.problems:
        problem = emprior.load_problem(name)
        weight = tuned(problem, tune, problem.measure(tune, seed=1), args.tv_steps)
        y = problem.measure(test, seed=0)
        inverse = psnr(problem.operator.A_dagger(y), test).mean()
        tv = psnr(total_variation(problem, y, weight, args.tv_steps), test).mean()
        result = emprior.solve(problem.operator, y, prior, steps=args.steps)
        run = result.diagnostics
        print(
            f"| {problem.name} | {inverse:.2f} | {tv:.2f} ({weight}) | {psnr(result.estimate, test).mean():.2f} "
            f"| {run.gradient_evaluations} | {run.seconds / len(test):.3f} | {result.status.name.lower()} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
