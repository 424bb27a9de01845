r"""Fits a mixture of probabilistic principal component analysers to images, for a prior whose posteriors are known.

.. math:: \max \sum_n \log \sum_k w_k\, \mathcal{N}(x_n;\, m_k,\, U_k U_k^\top + \nu_k I)

by expectation and maximisation (Tipping and Bishop, 1999). The bundled mixture, whose images `emprior verify` takes
for the truth, is the result of

    python examples/fit_cifar10_mixture.py --train cifar10_train.npy --test cifar10_test.npy --out cifar10-mixture

Fitted to draws of that mixture itself, it is a learned energy whose errors `emprior verify --suite images --prior DIR`
tells from those of the sampler.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from emprior.hub import Card, save_prior
from emprior.priors import GaussianMixturePrior
from emprior.priors.analysers import Analysers, fit_analysers
from emprior.train import as_public, load_images
from emprior.train.evaluate import denoising_figures
from emprior.train.provenance import circumstances, origin

DATA = "CIFAR-10 training images (Krizhevsky, 2009), all 50,000, in [0, 1]"
LICENCE = (
    "no licence stated by the authors; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
)
DENOISED = 256


def report(step: int, likelihood: float) -> None:
    print(f"step {step}: {likelihood:.2f} nats an image, {time.process_time():.0f} CPU seconds", flush=True)


@torch.no_grad()
def figures(prior: GaussianMixturePrior, images: Tensor) -> dict[str, object]:
    r"""Returns the figures of the card; the energy is the negative log-likelihood of held-out images."""
    energies = torch.cat([prior(part) for part in images.split(256)]).double()
    mean, spread = float(energies.mean()), float(energies.std())
    return {
        **denoising_figures(prior, images[:DENOISED]),
        "likelihood": {"images": len(images), "nats_per_pixel": round(-mean / images[0].numel(), 4)},
        "energy": {"mean": round(mean, 1), "spread": round(spread, 1)},
    }


def save(prior: GaussianMixturePrior, args: argparse.Namespace, images: int, seconds: float) -> Card:
    test = as_public(load_images(args.test, held_out=True))
    stored = Analysers.of(prior).half().float()
    return save_prior(
        args.out,
        stored,
        torch.float16,
        name=args.out.name,
        kind="mixture",
        description=f"Mixture of {args.components} Gaussians of rank {args.rank} fitted to "
        f"{args.data.partition(' (')[0]}; its posteriors under linear operators are known exactly",
        architecture="analysers",
        arguments={"components": args.components, "pixels": test[0].numel(), "rank": args.rank},
        shape=list(test.shape[1:]),
        density={},
        training={
            "data": args.data,
            "licence": args.licence,
            "images_in_set": images,
            "steps": args.steps,
            "seed": args.seed,
            **circumstances(origin(torch.device("cpu")), {"cpu_seconds": seconds}),
            "command": f"python examples/fit_cifar10_mixture.py --train {args.train.name} --test {args.test.name} "
            f"--out {args.out.name}",
        },
        metrics=figures(stored.prior(tuple(test.shape[1:])), test),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="images to fit: folder or .npy")
    parser.add_argument("--test", type=Path, required=True, help="held-out images, likewise")
    parser.add_argument("--out", type=Path, required=True, help="the folder for card.yaml and weights.safetensors")
    parser.add_argument("--data", default=DATA, help="what the card says of the images")
    parser.add_argument("--licence", default=LICENCE, help="and of their licence")
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.process_time()
    images = as_public(load_images(args.train))
    prior = fit_analysers(images, args.components, args.rank, args.steps, args.seed, report)
    card = save(prior, args, len(images), time.process_time() - start)
    print(f"{args.out}: {card.metrics['likelihood']['nats_per_pixel']} nats a pixel of held-out images")


if __name__ == "__main__":
    main()
