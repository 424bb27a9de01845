r"""Images, problems and networks that belong together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emprior._check import nearest
from emprior._types import Image
from emprior.bench.lpips import Lpips
from emprior.bench.meter import Meter, MeteredPrior
from emprior.bench.methods.base import Models
from emprior.energy import Prior
from emprior.hub import Card, find_prior, load_prior
from emprior.interop import as_denoiser, load_denoiser
from emprior.operators import cast
from emprior.problem import Problem, list_problems, load_problem
from emprior.train.data import as_public, load_images

if TYPE_CHECKING:
    from deepinv.models import Denoiser

SIDE = 8
"""The side of the Gaussian fields."""


@dataclass(frozen=True)
class Sources:
    r"""Where a suite takes its images and networks from.

    Arguments:
        data: A stack or folder of test images, which no network has seen.
        prior: The name or folder of the prior; that which the denoiser matches by default.
        denoiser: The name or folder of the matched denoiser, of the same trunk and as many training images.
        seed: The seed of images that are drawn.
        lpips: The network for LPIPS, a TorchScript file; see :class:`emprior.bench.lpips.Lpips`. None by default: the
            figure is then absent.
    """

    data: str | None = None
    prior: str = "cifar10"
    denoiser: str = "cifar10-denoiser"
    seed: int = 0
    lpips: str | None = None


@dataclass(frozen=True, eq=False)
class Suite:
    r"""Images, problems and networks.

    Arguments:
        name: The name.
        problems: The names of its problems.
        problem: Makes one of them.
        test: Returns the first `n` test images, `(n, *shape)` in float32.
        validation: Returns `n` images to tune on, none of them among the first `m` test images, from `(n, m)`.
        prior: The prior.
        denoiser: The matched denoiser, as deepinv's.
        facts: What is known of the networks.
        exact: Maps a problem and measurements to the exact posterior, where it is known.
        lpips: The distance of images, where a network for it is given.
    """

    name: str
    problems: tuple[str, ...]
    problem: Callable[[str], Problem]
    test: Callable[[int], Image]
    validation: Callable[[int, int], Image]
    prior: Prior
    denoiser: Denoiser
    facts: list[dict[str, Any]]
    exact: Callable[[Problem, Tensor], Any] | None = None
    lpips: Lpips | None = None

    def models(self, device: torch.device | str = "cpu") -> Models:
        r"""Returns the networks in single precision on a device, watched by a meter of their own."""
        meter = Meter()
        prior = copy.deepcopy(self.prior).to(device, torch.float32)
        denoiser = copy.deepcopy(self.denoiser).to(device, torch.float32)
        return Models(MeteredPrior(prior, meter), meter.watch(denoiser), meter)


def load_suite(name: str, sources: Sources) -> Suite:
    r"""Returns a suite by its name.

    Raises:
        ValueError: There is no such suite, or it lacks its images, or what is given for LPIPS is no such network.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}. {nearest(name, SUITES)}")
    suite = SUITES[name](sources)
    if sources.lpips is None:
        return suite
    lpips = Lpips.load(sources.lpips, suite.prior.shape)
    return replace(suite, lpips=lpips, facts=[*suite.facts, lpips.fact()])


def problems_of(name: str) -> tuple[str, ...]:
    r"""Returns the names of the problems of a suite, of which nothing is loaded."""
    from emprior.verify import fields

    return tuple(fields.PROBLEMS) if name == "gaussian" else _bundled()


def cifar10(sources: Sources) -> Suite:
    r"""Test images under the bundled problems, with a learned prior and the denoiser that matches it."""
    if sources.data is None:
        raise ValueError(
            "suite 'cifar10' needs test images, which do not come with emprior. Give as many as --images or more that "
            "no network has seen, such as the test set of CIFAR-10: a .npy stack (N, 32, 32, 3) of uint8, a folder of "
            "images, or a torchvision root, which holds cifar-10-batches-py: --data cifar10_test.npy"
        )
    prior, denoiser = load_prior(sources.prior), load_denoiser(sources.denoiser)
    images = load_images(sources.data, prior.shape[-1], held_out=True)
    if tuple(images.shape[1:]) != prior.shape:
        raise ValueError(
            f"{sources.data} holds images of shape {tuple(images.shape[1:])}, but prior {sources.prior!r} is of "
            f"{prior.shape}. Give images of that shape."
        )

    def test(count: int) -> Image:
        _enough(count, len(images), sources.data)
        return as_public(images[:count])

    def validation(count: int, tested: int) -> Image:
        _enough(count + tested, len(images), sources.data)
        return as_public(images[-count:])

    facts = [_facts("prior", sources.prior, prior), _facts("denoiser", sources.denoiser, denoiser)]
    return Suite("cifar10", _bundled(), load_problem, test, validation, prior, denoiser, facts)


def mixture(sources: Sources) -> Suite:
    r"""Images drawn from a mixture fitted to photographs: its posteriors and its denoiser are known exactly."""
    name = "cifar10-mixture"
    prior = load_prior(name)

    def exact(problem: Problem, y: Tensor) -> Any:
        return prior.posterior(cast(problem.operator, y.double()), y.double(), problem.sigma)  # type: ignore[operator]

    return Suite(
        "mixture", _bundled(), load_problem, _drawn(prior, sources.seed), _drawn_apart(prior, sources.seed), prior,
        as_denoiser(prior), [_facts("prior and denoiser", name, prior)], exact,
    )  # fmt: skip


def gaussian(sources: Sources) -> Suite:
    r"""Gaussian fields of 8 x 8 pixels, whose posteriors are known exactly: quick, for trying things out."""
    from emprior.verify import fields

    prior = fields.gaussian_field(SIDE)

    def problem(name: str) -> Problem:
        sigma = fields.PROBLEMS[name]
        return Problem(name, fields.make_operator(name, SIDE), sigma, prior.shape, f"Gaussian field, {name}.")

    def exact(problem: Problem, y: Tensor) -> Any:
        return prior.posterior(cast(problem.operator, y.double()), y.double(), problem.sigma)

    facts = {"role": "prior and denoiser", "name": "Gaussian field", "parameters": 0, "images_seen": None, "sha256": ""}
    return Suite(
        "gaussian", problems_of("gaussian"), problem, _drawn(prior, sources.seed), _drawn_apart(prior, sources.seed),
        prior, as_denoiser(prior), [facts], exact,
    )  # fmt: skip


SUITES: dict[str, Callable[[Sources], Suite]] = {"cifar10": cifar10, "mixture": mixture, "gaussian": gaussian}


def _bundled() -> tuple[str, ...]:
    return tuple(name for name in list_problems() if name.startswith("cifar10/"))


def _drawn(prior: Any, seed: int) -> Callable[[int], Image]:
    return lambda count: prior.sample(count, seed=seed).float()


def _drawn_apart(prior: Any, seed: int) -> Callable[[int, int], Image]:
    return lambda count, tested: prior.sample(count, seed=seed + 1_000_003).float()


def _enough(count: int, held: int, where: object) -> None:
    if count > held:
        raise ValueError(f"{where} holds {held} images, but {count} are asked for. Give more, or take --images fewer.")


def _facts(role: str, name: str, model: nn.Module) -> dict[str, Any]:
    kinds = ("prior", "mixture", "denoiser")
    card = Card.read(find_prior(name, kinds))
    return {
        "role": role,
        "name": card.name,
        "parameters": sum(part.numel() for part in model.parameters()),
        "images_seen": card.training.get("images_seen"),
        "data": card.training.get("data", ""),
        "sha256": card.sha256,
        "identity": card.identity,
    }
