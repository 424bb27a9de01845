r"""Measures whether a prior is stationary on data, and with `--costs` what its gradients and its contrast cost.

Langevin without bias by its step (`emprior.train.negatives.kinetic`)
is run from clean images for 1,000 steps, each a sixth of the inverse curvature of `V` at the data. Between steps 100
and 1,000 a stationary prior keeps the standard deviation of the pixels within 5 % and the mean energy within half of
the spread of the data's energies; at clean images the flow at temperature 0 moves outward at a rate below 0.05. Chains
in the frame of the prior's curvature (`emprior.train.frame`) go as far in 100 steps as those in 10,000.

    python examples/measure_prior.py --test cifar10_test.npy --prior cifar10
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import emprior
from emprior._bands import Bands
from emprior.priors import NetworkPrior
from emprior.train import Config, Trainer, as_public, load_images
from emprior.train.config import Contrast, Net, Train, Transport
from emprior.train.evaluate import LEVELS, chain, denoising_psnr, drift, framed_chain


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    function()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def stationarity(prior: NetworkPrior, x: torch.Tensor, steps: int) -> None:
    rate, curvature = float(drift(prior, x).mean()), prior.interpolant.stiffness
    print(
        f"outward drift at {len(x)} clean images: {rate:+.4f} (below 0.05 in size, for V of transport), "
        f"{rate / curvature:+.4f} of the curvature"
    )
    figures = chain(prior, x, steps)
    for row in zip(*figures.values(), strict=True):
        print("chain: " + ", ".join(f"{name} {value}" for name, value in zip(figures, row, strict=True)))
    widths, energies = figures["pixel_std"], figures["energy"]
    print(f"pixel std changes by {100 * (widths[2] / widths[1] - 1):+.2f} % (below 5 % in size)")
    share = (energies[2] - energies[1]) / figures["spread"][0]
    print(f"mean energy changes by {share:+.3f} of the spread of the data's energies (below 0.5 in size)")


def wandering(prior: NetworkPrior, x: torch.Tensor, steps: int) -> None:
    figures = framed_chain(prior, x, steps)
    widths, energies, spread = figures["pixel_std"], figures["energy"], figures["spread"][0]
    for step, width, energy in zip(figures["step"], widths, energies, strict=True):
        change, share = 100 * (width / widths[0] - 1), (energy - energies[0]) / spread
        print(f"chain in the frame, step {step}: pixel std {change:+.1f} %, energy {share:+.2f} spreads")


def tilt(prior: NetworkPrior, x: torch.Tensor, draws: int = 16, width: float = 0.2) -> float:
    r"""Returns by how many nats the energy changes over `width` along the brightness of an image, root mean square.

    The gradient at an image is averaged over its thermal noise, and the variance of that average is taken out. Data
    hold no such force worth mentioning: what is found is what the training missed, where samples would drift.
    """
    random = torch.Generator().manual_seed(0)
    thermal = prior.interpolant.thermal(prior.epsilon) / 2
    noise = (torch.randn(x.shape, generator=random) for _ in range(draws))
    slopes = torch.stack([prior.value_and_grad(x + thermal * n)[1].flatten(1).sum(1) for n in noise])
    slopes = width * slopes / x[0].numel() ** 0.5
    return float((slopes.mean(0).square() - slopes.var(0) / draws).mean().clamp(min=0).sqrt())


def gains(prior: NetworkPrior, x: torch.Tensor) -> dict[float, float]:
    r"""Returns by what factor forces at the thermal noise are too weak, for each frequency of luminance.

    With :math:`g = \nabla V` at images under thermal noise :math:`\tau n`, :math:`\epsilon n / \tau` is what `g` should
    be, but for noise whose mean is zero at each image: the factor is the least-squares gain
    :math:`\mathbb{E} \langle g, \epsilon n / \tau \rangle / \mathbb{E} \|g\|^2` in a band.
    """
    bands, thermal = Bands.of(x), prior.interpolant.thermal(prior.epsilon)
    n = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    found = []
    for image, noise in zip(x.split(64), n.split(64), strict=True):
        g = bands.split(prior.potential_gradient(2 * image - 1 + thermal * noise))
        wanted = prior.epsilon / thermal * bands.split(noise)
        found.append(torch.stack([bands.sums(g * wanted).sum(0), bands.sums(g.square()).sum(0)]))
    above, below = torch.stack(found).sum(0)
    luminance = bands.colour == 0
    return dict(zip(bands.frequency[luminance].tolist(), (above / below)[luminance].tolist(), strict=True))


def cost(prior: NetworkPrior, x: torch.Tensor) -> None:
    part = x[:64]
    with torch.no_grad():
        forward = seconds(lambda: prior(part))
    print(f"value_and_grad costs {seconds(lambda: prior.value_and_grad(part)) / forward:.2f} forward passes")


def contrast_cost(images: torch.Tensor, net: Net, out: str) -> None:
    spent = {}
    for negatives, steps in (("replay", 12), ("fresh", 200)):
        contrast = Contrast(steps=10, negatives=negatives, langevin_steps=steps, batch_size=64)
        trainer = Trainer(
            Config(net=net, train=Train(batch_size=64), transport=Transport(steps=0), contrast=contrast), images, out
        )
        spent[negatives] = seconds(trainer.iterate, 1)
        print(f"contrastive iteration, {negatives} chains of {steps} steps: {spent[negatives]:.2f} s")
    print(f"replay is {spent['fresh'] / spent['replay']:.1f} times cheaper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--test", required=True, help="clean images: folder or .npy")
    parser.add_argument("--prior", default="cifar10")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--costs", action="store_true", help="time gradients and contrastive iterations too")
    parser.add_argument("--out", default="out/measure", help="the folder of the trainings that are timed")
    parser.add_argument("--framed", type=int, default=100, help="steps of chains in the prior's frame")
    args = parser.parse_args()
    images = load_images(args.test)[: args.images]
    x, prior = as_public(images), emprior.load_prior(args.prior)
    levels = ", ".join(f"{denoising_psnr(prior, x, s):.2f} dB at {s}" for s in LEVELS)
    print(f"denoising: {levels}")
    print(f"tilt of the energy along brightness: {tilt(prior, x[:64]):.1f} nats over 0.2")
    lengths = ", ".join(f"{factor:.2f} at {frequency:.2f}" for frequency, factor in gains(prior, x).items())
    print(f"gain of luminance at the thermal noise, by half-cycles a pixel: {lengths}")
    stationarity(prior, x, args.steps)
    wandering(prior, x[:64], args.framed)
    if not args.costs:
        return
    cost(prior, x)
    card = emprior.hub.Card.read(emprior.hub.find_prior(args.prior))
    arguments = {key: value for key, value in card.arguments.items() if key != "channels"}
    contrast_cost(images, Net(card.architecture, arguments), args.out)


if __name__ == "__main__":
    main()
