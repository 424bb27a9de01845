r"""Texts that change with what a batch depends on: its operators and its prior, by name with a digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emprior._check import needed
from emprior._noise import generator
from emprior._threads import threads
from emprior.energy import Prior
from emprior.hub import Card, find_prior
from emprior.operators import cast
from emprior.problem import Problem, find_problem

if TYPE_CHECKING:
    from deepinv.physics import Physics

PROBES = 2
"""The images that an operator is asked for."""

DIGITS = 6
"""The digits that count: the last bits of a sum depend on the machine."""

FACTS = ("shape", "epsilon", "interpolant", "settings", "typical", "spectrum", "restoration", "calibration")
"""What results depend on in a prior, beside its tensors."""


def identify(
    operator: Physics | Problem | str, shape: tuple[int, ...] | None = None, device: torch.device | str = "cpu"
) -> str:
    r"""Returns a text that changes with an operator: with the file of a problem, or with the tensors and the map.

    The map is known by what it makes of two random images. If it takes none, its attributes are digested instead.

    Arguments:
        operator: A problem, its name or file, or a physics.
        shape: The shape of one image, if it is known; that of a problem, or that a physics names, goes before.
        device: Where a physics works that does not on the CPU.
    """
    if isinstance(operator, str):
        return _digest(operator, find_problem(operator).read_bytes())
    if isinstance(operator, Problem):
        content = _content(operator.operator, operator.shape, device)
        return _digest(operator.name, repr(operator.sigma).encode(), content)
    return _digest(type(operator).__qualname__, _content(operator, shape, device))


def identify_prior(prior: str | os.PathLike[str] | Prior) -> str:
    r"""Returns a text that changes with a prior: with its card, or with its tensors and settings."""
    if isinstance(prior, Prior):
        return _digest(prior.title, _tensors(prior), _facts(prior))
    return f"{os.fspath(prior)} {Card.read(find_prior(prior)).identity[:32]}"


def prior_shape(prior: str | os.PathLike[str] | Prior) -> tuple[int, ...]:
    r"""Returns the shape of the images that a prior was made for."""
    return prior.shape if isinstance(prior, Prior) else tuple(Card.read(find_prior(prior)).shape)


def _content(operator: Physics, shape: tuple[int, ...] | None, device: torch.device | str) -> bytes:
    probe = next(_probes(operator, shape, device), None)
    return _tensors(operator) + (_attributes(operator) if probe is None else probe)


def _probes(operator: Physics, shape: tuple[int, ...] | None, device: torch.device | str) -> Iterator[bytes]:
    r"""Yields digests of what the map makes of images, first of the shape and type that tell most."""
    named = getattr(operator, "img_size", None)
    for size in (tuple(named) if isinstance(named, tuple | list | torch.Size) else None, shape):
        for where, dtype in (("cpu", torch.float64), (device, torch.float32)):
            if size is not None and (probe := _probe(operator, size, where, dtype)) is not None:
                yield probe


def _probe(operator: Physics, shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> bytes | None:
    r"""Returns what the map makes of images, rounded; `None` if it does not take them."""
    try:
        x = torch.rand(PROBES, *shape, generator=generator("identify"), dtype=torch.float64).to(device, dtype)
        with torch.no_grad(), threads(1):
            return _rounded(cast(operator, x).A(x))
    except Exception:
        return None


def _rounded(y: Tensor) -> bytes:
    r"""Returns the numbers of a tensor as multiples of a fraction of the largest."""
    y = torch.view_as_real(y) if y.is_complex() else y
    y = y.detach().double().cpu()
    scale = float(y.abs().max()) if y.numel() else 0.0
    ticks = (y / scale * 10**DIGITS).round().nan_to_num().long() if scale else y.long()
    return f"{tuple(y.shape)} {scale:.{DIGITS}g}".encode() + ticks.numpy().tobytes()


def _attributes(module: nn.Module) -> bytes:
    r"""Returns a digest of what the attributes of a module and its parts are."""
    out = hashlib.blake2b()
    for place, part in module.named_modules():
        for name, value in sorted(vars(part).items()):
            if not name.startswith("_") and not isinstance(value, torch.Generator):
                out.update(f"{place}.{name} {type(value).__qualname__}".encode() + _dumped(value))
    return out.digest()


def _dumped(value: object) -> bytes:
    r"""Returns a value as bytes, nothing where it has none that any process would make alike."""
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError):
        pass
    try:
        return bytes(needed("cloudpickle").dumps(value))
    except Exception:
        return b""


def _facts(prior: Prior) -> bytes:
    def plain(value: object) -> str:
        return repr(value) if is_dataclass(value) else type(value).__qualname__

    facts: dict[str, Any] = {name: getattr(prior, name, None) for name in FACTS}
    tree = json.loads(json.dumps(facts, default=plain), parse_float=lambda text: f"{float(text):.{DIGITS}g}")
    return json.dumps(tree, sort_keys=True).encode()


def _tensors(module: nn.Module) -> bytes:
    out = hashlib.blake2b()
    for name, tensor in module.state_dict().items():
        out.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        out.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return out.digest()


def _digest(name: str, *contents: bytes) -> str:
    out = hashlib.blake2b(digest_size=16)
    for content in contents:
        out.update(len(content).to_bytes(8, "big") + content)
    return f"{name} {out.hexdigest()}"
