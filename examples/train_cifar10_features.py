r"""Trains the classifier whose features `emprior evaluate generation` compares images by.

.. math:: \min_\theta \; \mathbb{E}\, [-\log \mathrm{softmax}(\mathrm{logits}_\theta(x))_c]

over images x of class c, shifted by up to two pixels and mirrored, with labels smoothed by 0.1. The test images are
used once, for the accuracy on the card. The bundled features are the result of

    python examples/train_cifar10_features.py --train cifar10_train.npy --test cifar10_test.npy --out features

where beside each stack of images (N, 32, 32, 3) lie its labels, cifar10_train_labels.npy and cifar10_test_labels.npy.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emprior.hub import Card, save_prior
from emprior.nets import Classifier
from emprior.train import as_public, load_images
from emprior.train.provenance import circumstances, origin

SHIFT = 2
ARGUMENTS = {"channels": 3, "patch": 2, "widths": [48, 96, 128], "classes": 10}
COMMAND = "python examples/train_cifar10_features.py --train cifar10_train.npy --test cifar10_test.npy --out features"


def read(path: Path) -> tuple[Tensor, Tensor]:
    labels = np.load(path.with_name(f"{path.stem}_labels.npy"))
    return load_images(path), torch.from_numpy(labels.astype(np.int64))


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    side, count = images.shape[-1], len(images)
    padded = F.pad(as_public(images), (SHIFT,) * 4, mode="reflect")
    windows = padded.unfold(2, side, 1).unfold(3, side, 1)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count), generator=random)
    x = windows[torch.arange(count), :, down, right]
    mirror = torch.rand(count, 1, 1, 1, generator=random) < 0.5
    return torch.where(mirror, x.flip(-1), x)


def fit(images: Tensor, labels: Tensor, epochs: int, batch_size: int, lr: float) -> Classifier:
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    network = Classifier(**ARGUMENTS).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.2, cycle_momentum=False)
    for epoch in range(epochs):
        right = 0
        for part in torch.randperm(len(images), generator=random).split(batch_size)[: steps // epochs]:
            x = augmented(images[part], random).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(x)
            loss = F.cross_entropy(logits.float(), labels[part], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == labels[part]).sum())
        share = right / (steps // epochs * batch_size)
        print(f"epoch {epoch + 1}: {share:.3f} right, {time.process_time():.0f} CPU seconds", flush=True)
    return network.eval()


@torch.no_grad()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    logits = torch.cat([network(as_public(part)) for part in images.split(500)])
    return float((logits.argmax(1) == labels).float().mean())


def save(network: Classifier, args: argparse.Namespace, seconds: float) -> Card:
    images, labels = read(args.test)
    stored = network.half().float()
    return save_prior(
        args.out,
        stored,
        torch.float16,
        name="cifar10-features",
        kind="features",
        description="Features of images, from a classifier of CIFAR-10: the last hidden layer, 128 numbers",
        architecture="classifier",
        arguments=ARGUMENTS,
        shape=[3, 32, 32],
        density={},
        training={
            "data": "CIFAR-10 training images (Krizhevsky, 2009), all 50,000, with their labels",
            "licence": "no licence stated by the authors; cite Krizhevsky, Learning Multiple Layers of Features from "
            "Tiny Images, 2009",
            "epochs": args.epochs,
            "batch_size": args.batch_size,
            "lr": args.lr,
            **circumstances(origin(torch.device("cpu")), {"cpu_seconds": seconds}),
            "command": COMMAND,
        },
        metrics={"images": len(images), "test_accuracy": round(accuracy(stored, images, labels), 4)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="images, with NAME_labels.npy beside NAME.npy")
    parser.add_argument("--test", type=Path, required=True, help="held-out images, likewise")
    parser.add_argument("--out", type=Path, required=True, help="the folder for card.yaml and weights.safetensors")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.2)
    args = parser.parse_args()
    start = time.process_time()
    network = fit(*read(args.train), args.epochs, args.batch_size, args.lr)
    card = save(network, args, time.process_time() - start)
    print(f"{args.out}: test accuracy {card.metrics['test_accuracy']:.2%}")


if __name__ == "__main__":
    main()
