r"""LPIPS, where a network for it is given: none comes with emprior, and no other distance stands in for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emprior._files import sha256
from emprior._noise import generator
from emprior._types import Image, PerImage

LPIPS = "LPIPS"
"""The role of the network among those that a record names."""

ZERO = 1e-4
"""The most that an image may be apart from itself."""

WANTED = (
    "Give a TorchScript file, as torch.jit.save writes it, of a network that maps two image batches (B, 3, H, W) of "
    "float32 in [-1, 1] to their B distances, (B,) or (B, 1, 1, 1)"
)


@dataclass(frozen=True, eq=False)
class Lpips:
    r"""A learned distance of images, lower for what looks more alike.

    The network is asked for one pair at a time, on the CPU, so that a figure depends on its image alone. Images in
    [0, 1] are clipped to that range and brought to [-1, 1]; gray ones are given as RGB.

    References:
        | The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018)
        | https://arxiv.org/abs/1801.03924

    Arguments:
        file: Where the network is from.
        network: Maps two batches `(B, 3, H, W)` in [-1, 1] to `B` distances.
        digest: The SHA-256 of the file.
    """

    file: Path
    network: Any
    digest: str

    @staticmethod
    def load(path: str | os.PathLike[str], shape: Sequence[int]) -> Lpips:
        r"""Reads the network, and tries it on two pairs of images.

        Arguments:
            path: A TorchScript file.
            shape: The shape of the images that it is for, `(1, H, W)` or `(3, H, W)`.

        Raises:
            ValueError: The file is not TorchScript, or what it holds is no distance of such images.
        """
        file = Path(path)
        if not file.is_file():
            raise ValueError(f"there is no file {file} for LPIPS. {WANTED}.")
        try:
            network = torch.jit.load(str(file), map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{file} is not a TorchScript file ({reason}). {WANTED}; a file of weights alone, a state_dict, does "
                "not hold the network."
            ) from error
        lpips = Lpips(file, network, sha256(file))
        lpips.check(shape)
        return lpips

    def fact(self) -> dict[str, Any]:
        r"""Returns what records say of the network."""
        return {
            "role": LPIPS,
            "name": f"{self.file.name} (sha256 {self.digest[:12]})",
            "parameters": sum(part.numel() for part in self.network.parameters()) or None,
            "images_seen": None,
            "sha256": self.digest,
        }

    def __call__(self, x: Image, other: Image) -> PerImage:
        r"""Returns the distance of each image from the other, `(B,)` in float64.

        Arguments:
            x: Images in [0, 1], `(B, C, H, W)` with 1 or 3 channels.
            other: The others, of the same shape.

        Raises:
            ValueError: The network refuses images, or gives something else than a distance.
        """
        pairs = zip(_scaled(x).split(1), _scaled(other).split(1), strict=True)
        return torch.cat([self._distances(a, b) for a, b in pairs])

    def check(self, shape: Sequence[int]) -> None:
        r"""Raises a ValueError unless the network tells images apart, and none from itself, of two pairs at a time."""
        x = _scaled(torch.rand(2, *shape, generator=generator("lpips")))
        itself, apart = float(self._distances(x, x).abs().max()), float(self._distances(x, x.flip(0)).min())
        if not itself <= ZERO < apart:
            raise ValueError(
                f"{self.file} gives {itself:.3g} for an image and itself, and {apart:.3g} for two of noise, expected "
                f"0 and more than 0. {WANTED}."
            )

    def _distances(self, x: Tensor, other: Tensor) -> PerImage:
        try:
            with torch.no_grad():
                out = self.network(x, other)
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise ValueError(f"{self.file} does not take two batches {tuple(x.shape)}: {reason}. {WANTED}.") from error
        if not isinstance(out, Tensor) or out.ndim == 0 or len(out) != len(x) or out.numel() != len(x):
            given = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"{self.file} gives {given} for {len(x)} pairs of images. {WANTED}.")
        return out.double().flatten()


def lpips_of(models: Sequence[Mapping[str, Any]]) -> str:
    r"""Returns the name of the network for LPIPS among those of a record, or `"none"`."""
    return next((str(fact["name"]) for fact in models if fact["role"] == LPIPS), "none")


def _scaled(x: Image) -> Tensor:
    scaled = 2 * x.detach().to("cpu", torch.float32).clamp(0, 1) - 1
    return scaled.expand(-1, 3, -1, -1) if x.shape[1] == 1 else scaled
