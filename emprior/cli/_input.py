r"""What the commands read: clean images, and measurements that fit a problem."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from emprior.cli._common import UsageError, check_file

if TYPE_CHECKING:
    from torch import Tensor

    from emprior.problem import Problem

BUNDLED = "skimage:"
"""The prefix of images that come with scikit-image."""


def bundled_images() -> list[str]:
    r"""Returns the names of the images inside this copy of scikit-image, which need no download."""
    names = [entry.name for entry in files("skimage.data").iterdir()]
    return sorted(name.rpartition(".")[0] for name in names if name.endswith((".png", ".jpg")))


def check_input(name: str, degrade: bool) -> None:
    r"""Raises a :class:`UsageError` if there is no such input, or if it is no measurement."""
    if not name.startswith(BUNDLED):
        check_file(name, "input file")
        return
    image = name.removeprefix(BUNDLED)
    if image not in bundled_images():
        from emprior._check import nearest

        raise UsageError(f"scikit-image comes with no image {image!r}. {nearest(image, bundled_images())}")
    if not degrade:
        raise UsageError(f"{name} is a clean image and no measurement. Add --degrade to measure it first.")


def read_clean(name: str, shape: tuple[int, ...]) -> Tensor:
    r"""Reads a clean image as `(1, C, H, W)`, cropped and resized to `shape`; gray and RGB turn into each other."""
    from emprior.io import read_image

    if name.startswith(BUNDLED):
        stem = name.removeprefix(BUNDLED)
        entry = next(entry for entry in files("skimage.data").iterdir() if entry.name in (f"{stem}.png", f"{stem}.jpg"))
        with as_file(entry) as path:
            image = read_image(path, size=(shape[1], shape[2]))
    else:
        image = read_image(name, size=(shape[1], shape[2]))
    return _with_channels(image, shape[0], name)[None]


def read_measured(name: str, problem: Problem) -> Tensor:
    r"""Reads measurements of one image, with or without a batch dimension, as `(1, *measured)`."""
    import torch

    from emprior.io import read_measurements

    y = read_measurements(name)
    with torch.no_grad():
        expected = tuple(problem.operator.A(torch.zeros(1, *problem.shape)).shape[1:])
    if tuple(y.shape) == (1, *expected):
        return y
    if tuple(y.shape) != expected:
        raise ValueError(
            f"{name} holds measurements of shape {tuple(y.shape)}, but problem {problem.name!r} measures an image "
            f"{problem.shape} as {expected}. Give such measurements, or, if {name} is a clean image, add --degrade."
        )
    return y[None]


def _with_channels(image: Tensor, channels: int, name: str) -> Tensor:
    if image.shape[0] == channels:
        return image
    if image.shape[0] == 1:
        return image.expand(channels, -1, -1).contiguous()
    if channels == 1:
        return (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    raise ValueError(f"{name} has {image.shape[0]} channels, but the problem's images have {channels}.")
