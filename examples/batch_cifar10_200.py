r"""Restores 200 CIFAR-10 images in one batch, and compares its speed with that of the bare solver.

.. math:: \hat{x}_i = \arg\min_x \frac{1}{2 \sigma^2} \|y_i - A x\|^2 + w E(x)

Measures the images by a problem, writes the measurements and the truths as two stacks, restores them by
`emprior.reconstruct_many` with one worker or more, and prints the mean PSNR and the images per second beside those of
`emprior.solve` on the same batches, one thread each. Run twice, it finds everything done.

    python examples/batch_cifar10_200.py --test cifar10_test.npy --out restored --workers 2
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import emprior
from emprior.batch import Dask, Local, reconstruct_many
from emprior.train import as_public, load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--test", required=True, help="images to measure and restore: folder or .npy")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--problem", default="cifar10/deblurring")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--steps", type=int, help="of MAP; the prior's default unless given")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--engine", choices=["local", "dask"], default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bare", action="store_true", help="time the bare solver too")
    parser.add_argument("--out", type=Path, default=Path("restored"))
    args = parser.parse_args()

    problem = emprior.load_problem(args.problem)
    x = as_public(load_images(args.test)[: args.images])
    y = problem.measure(x, seed=0)
    stacks = args.out / "stacks"
    stacks.mkdir(parents=True, exist_ok=True)
    np.save(stacks / "truth.npy", x.numpy())
    np.save(stacks / "measured.npy", y.numpy())

    summary = reconstruct_many(
        args.problem,
        stacks / "measured.npy",
        args.out / "estimates",
        args.prior,
        truth=stacks / "truth.npy",
        steps=args.steps,
        chunk=args.batch,
        batch=args.batch,
        engine=Local(args.workers) if args.engine == "local" else Dask(workers=args.workers),
    )
    print(summary)
    with (summary.out / "records.jsonl").open() as file:
        records = [json.loads(line) for line in file]
    psnrs = [record["psnr"] for record in records if "psnr" in record]
    print(f"mean PSNR {sum(psnrs) / len(psnrs):.2f} dB")
    if args.bare:
        torch.set_num_threads(1)
        prior, start = emprior.load_prior(args.prior), time.perf_counter()
        for part in y.split(args.batch):
            emprior.solve(problem.operator, part, prior, steps=args.steps, progress=False)
        bare = len(y) / (time.perf_counter() - start)
        print(f"bare solver {bare:.2f} items/s, batch {summary.fresh / summary.seconds / bare:.2f} of that")


if __name__ == "__main__":
    main()
