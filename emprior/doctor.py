r"""What a report of a fault should hold: versions, the machine, whether this copy works, and how fast."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from emprior import __version__
from emprior._noise import generator
from emprior._paths import cache_dir, pretrained_dir, problems_dir
from emprior._solve import solve
from emprior.bench.cost import measured
from emprior.energy import Prior
from emprior.hub import load_prior
from emprior.selftest import Check, checks
from emprior.train.provenance import hardware, revision

REPEATS = 5
"""The gradients that are timed."""

COMPILERS = ("g++", "clang++")
"""What `torch.compile` looks for on a CPU, unless `CXX` names another."""

COLUMN = 26
"""The width of the names."""


@dataclass(frozen=True)
class Speed:
    r"""What gradients and reconstructions of a batch cost.

    Arguments:
        prior: The prior.
        shape: The shape of one image.
        batch: The number of images.
        device: Where they were.
        gradients: Gradients of one image a second.
        evaluations: The gradients that MAP takes for each image, denoising at 0.1.
        images: Images a second by that MAP.
        memory: The most bytes that the first gradient of the batch took beyond what was held before; `None` where that
            cannot be told.
    """

    prior: str
    shape: tuple[int, ...]
    batch: int
    device: str
    gradients: float
    evaluations: int
    images: float
    memory: int | None

    def lines(self) -> dict[str, str]:
        r"""Returns the figures in words."""
        shape = " x ".join(map(str, self.shape))
        return {
            "of": f"{self.prior}, {self.batch} images of {shape} at a time, {self.device}",
            "gradients": f"{self.gradients:.4g} images a second",
            f"MAP, {self.evaluations} gradients": f"{self.images:.3g} images a second",
            "memory of a gradient": "unknown" if self.memory is None else f"{self.memory / 2**20:.0f} MiB",
        }


@dataclass(frozen=True)
class Report:
    r"""What was found; `str` gives plain text to paste.

    Arguments:
        versions: Of what emprior needs.
        optional: Of what its extras bring, or how to install it.
        machine: What it runs on, and where its data are.
        checks: What was checked.
        speed: What was timed, `None` if the prior is broken.
    """

    versions: dict[str, str]
    optional: dict[str, str]
    machine: dict[str, str]
    checks: tuple[Check, ...]
    speed: Speed | None

    @property
    def ok(self) -> bool:
        r"""Whether no check failed."""
        return all(check.ok for check in self.checks)

    def facts(self) -> dict[str, Any]:
        r"""Returns the report as containers that JSON can hold."""
        found = {check.name: {"ok": check.ok, "words": check.words} for check in self.checks}
        return asdict(self) | {"checks": found, "ok": self.ok}

    def __str__(self) -> str:
        sections = {"versions": self.versions, "optional": self.optional, "machine": self.machine}
        sections["checks"] = {c.name: f"{'ok' if c.ok else 'FAILED'}, {c.words}" for c in self.checks}
        sections["speed"] = {} if self.speed is None else self.speed.lines()
        failed, count = sum(not check.ok for check in self.checks), len(self.checks)
        end = f"{failed} of {count} checks failed" if failed else f"all {count} checks went well"
        return "\n".join([*(_section(title, lines) for title, lines in sections.items() if lines), end])


def examine(
    prior: str = "cifar10", shape: tuple[int, ...] | None = None, batch: int = 16, device: str = "cpu"
) -> Report:
    r"""Examines this copy of emprior on this machine.

    Arguments:
        prior: The prior whose gradient is checked and timed, a name or a folder.
        shape: The shape of the images that are timed; by default the prior's.
        batch: Their number.
        device: Where to compute.

    Raises:
        ValueError: The prior does not take images of that shape.
    """
    loaded = _loaded(prior)
    if loaded is not None and not loaded.accepts(shape or loaded.shape):
        raise ValueError(f"prior {prior!r} is for images of shape {loaded.shape} and the like, not {shape}.")
    place = torch.device(device)
    # first, while the process holds nothing that a gradient could take up again
    speed = None if loaded is None else measure(loaded, prior, shape or loaded.shape, batch, place)
    found = tuple(checks(prior, place))
    return Report(*versions(), machine(), found, speed)


def versions() -> tuple[dict[str, str], dict[str, str]]:
    r"""Returns the versions of what emprior needs, and of what its extras bring or how to install it."""
    commit = revision()
    needed = {"python": platform.python_version(), "emprior": __version__ + (f", git {commit}" if commit else "")}
    optional: dict[str, str] = {}
    for line in _requirements():
        name, extra = re.split(r"[^\w.-]", line)[0], re.search(r"extra == ['\"](\w+)", line)
        if extra is None:
            needed[name] = _version(name) or f"missing; install it: pip install '{line}'"
        elif extra[1] != "dev":
            optional[name] = _version(name) or f"none; install it: pip install 'emprior[{extra[1]}]'"
    return needed, optional


def machine() -> dict[str, str]:
    r"""Returns what this machine is, and where this copy of emprior has its data."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    named = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [named] if named else COMPILERS)), None)
    return {
        "platform": platform.platform(),
        "processor": f"{hardware(torch.device('cpu'))}, {usable} of {os.cpu_count()} CPUs",
        "cuda": ", ".join(cuda) or f"none; torch is built for {torch.version.cuda or 'CPUs'}",
        "compiler": compiler or "none: nothing is compiled, and training is slower",
        "problems": _place(problems_dir),
        "pretrained": _place(pretrained_dir),
        "cache": str(cache_dir()),
    }


def measure(prior: Prior, name: str, shape: tuple[int, ...], batch: int, device: torch.device) -> Speed:
    r"""Measures gradients of a batch and MAP of it; the first gradient tells the memory."""
    from deepinv.physics import Denoising, GaussianNoise

    y = torch.rand(batch, *shape, generator=generator("doctor", "speed")).to(device)
    prior = prior.to(device)
    with measured(device) as first:
        prior.value_and_grad(y)
    with measured(device) as more:
        for _ in range(REPEATS):
            prior.value_and_grad(y)
    run = solve(Denoising(GaussianNoise(0.1)), y, prior, progress=False).diagnostics
    gradients, images = REPEATS * batch / more.seconds, batch / run.seconds
    return Speed(name, shape, batch, str(device), gradients, run.gradient_evaluations, images, first.memory)


def _loaded(name: str) -> Prior | None:
    r"""Returns a prior, or none if it is broken, which its check tells."""
    try:
        return load_prior(name)
    except (ValueError, TypeError, KeyError, OSError):
        return None


def _requirements() -> list[str]:
    try:
        return metadata.requires("emprior") or []
    except metadata.PackageNotFoundError:
        return ["torch", "deepinv", "numpy", "scipy"]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _place(folder: Callable[[], Path]) -> str:
    try:
        return str(folder())
    except OSError as error:
        return str(error)


def _section(title: str, lines: dict[str, str]) -> str:
    return "\n".join([title, *(f"  {name:{COLUMN}}  {words}" for name, words in lines.items()), ""])
