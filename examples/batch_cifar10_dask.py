r"""Restores many images on the workers of a Dask cluster, of this machine unless another is named.

.. math:: \hat{x}_i = \arg\min_x \frac{1}{2 \sigma^2} \|y_i - A x\|^2 + E(x)

Measures pieces of photographs, writes a file for each, and restores them all; the pages of the batch show the worst.
Started again it finds everything done, after an interruption it goes on. Dask comes by `pip install 'emprior[dask]'`.

    python examples/batch_cifar10_dask.py --out out/dask --workers 2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from photographs import write_pieces

import emprior
from emprior.batch import Dask
from emprior.report.batch import write_index
from emprior.train import as_public, load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--problem", default="cifar10/inpainting")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--scheduler", help="of a cluster that runs, tcp://HOST:PORT; by default one is started here")
    parser.add_argument("--workers", type=int, default=2, help="processes of a cluster that is started here")
    parser.add_argument("--chunk", type=int, default=4, help="images of a task")
    parser.add_argument("--out", type=Path, default=Path("out/dask"), help="the folder to write to")
    args = parser.parse_args()
    problem = emprior.load_problem(args.problem)
    truth, measured = write_pieces(args.out / "truth", args.images), args.out / "measured"
    measured.mkdir(exist_ok=True)
    for index, y in enumerate(problem.measure(as_public(load_images(truth)), seed=0)):
        np.save(measured / f"{index:04}.npy", y.numpy())

    summary = emprior.reconstruct_many(
        args.problem,
        measured,
        args.out / "restored",
        args.prior,
        truth=truth,
        chunk=args.chunk,
        engine=Dask(args.scheduler, args.workers),
    )
    print(summary)
    with (summary.out / "records.jsonl").open() as file:
        psnrs = [json.loads(line)["psnr"] for line in file]
    print(f"mean PSNR {sum(psnrs) / len(psnrs):.2f} dB, the worst {min(psnrs):.2f} dB")
    print(write_index(summary.out))


if __name__ == "__main__":
    main()
