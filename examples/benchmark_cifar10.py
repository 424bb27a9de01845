r"""Compares methods on the same measurements, with the same budget of network evaluations.

.. math:: \hat{x} = \arg\min_x \frac{1}{2 \sigma^2} \|y - A x\|^2 + E(x), \qquad
          p(x \mid y) \propto \exp\left(-\frac{1}{2 \sigma^2} \|y - A x\|^2 - E(x)\right)

by emprior, beside plug-and-play and diffusion samplers with the matched denoiser, and total variation. The test images
are pieces of photographs unless others are given; started again, it does what is not done yet. A few images tell
that everything runs, and not which method is better; `emprior bench` is the same for many.

    python examples/benchmark_cifar10.py --out out/benchmark --data cifar10_test.npy --images 16
"""

from __future__ import annotations

import argparse
from pathlib import Path

from photographs import write_pieces

from emprior.bench import Plan, Shelf, Sources, chosen, load_suite, report, run

METHODS = ("emprior-map", "emprior-posterior", "pnp-dpir", "deepinv-diffpir", "total-variation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="test images: folder or .npy; by default pieces of photographs")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--problems", nargs="+", default=["cifar10/inpainting", "cifar10/deblurring"], metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--samples", type=int, default=2, help="of each image")
    parser.add_argument("--budget", type=int, default=400, help="network evaluations for an image")
    parser.add_argument("--out", type=Path, default=Path("out/benchmark"), help="the folder to write to")
    args = parser.parse_args()

    data = args.data or write_pieces(args.out / "images", args.images)
    suite = load_suite("cifar10", Sources(str(data), args.prior))
    plan, shelf = Plan(images=args.images, samples=args.samples, budget=args.budget), Shelf(args.out / "report")
    shelf.check(suite.name, plan.facts())
    for record, _ in run(suite, args.problems, chosen(args.methods), plan, shelf):
        print(f"{record.problem} {record.method}: {record.status}, {record.run.get('seconds', 0):.1f} s", flush=True)
    table, *rest = report(shelf.folder)
    print("###" + table.read_text().split("###")[1], table, *rest, sep="\n")


if __name__ == "__main__":
    main()
