r"""Images in memory, as they are stored."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emprior.io import read_image

logger = logging.getLogger("emprior")

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}


BRIGHTEST = 16.0
"""The largest magnitude that images in `[0, 1]`, drawn from a wide density, are taken to have."""


def load_images(source: str | Path, size: int = 32, *, held_out: bool = False) -> Tensor:
    r"""Loads a data set whole, `(N, C, H, W)` uint8, or floats in public units, where 0 is black and 1 is white.

    Arguments:
        source: A folder of images (searched through; each is read by :func:`emprior.io.read_image`,
            cropped to its central square and resized to `size`), a `.npy` stack `(N, H, W)` or
            `(N, H, W, C)` of uint8, one `(N, C, H, W)` of floats in public units, as
            `emprior sample` writes it, or the root of a torchvision data set (CIFAR-10, CIFAR-100, MNIST,
            FashionMNIST, SVHN).
        size: The side of folder images.
        held_out: Whether to take the test images of a torchvision data set; other sources have one set.

    Raises:
        ValueError: There is nothing at `source` that can be read as images; the message says what was found.
    """
    source = Path(source).expanduser()
    if source.suffix == ".npy" and source.is_file():
        return _from_array(source)
    if not source.is_dir():
        raise ValueError(
            f"there is no data at {source}. Give a folder of images, a .npy stack (N, H, W[, C]) of uint8 or "
            "(N, C, H, W) of floats, or a torchvision root: emprior train CONFIG --set data.source=PATH"
        )
    found = _from_torchvision(source, not held_out)
    return found if found is not None else _from_folder(source, size)


def as_public(images: Tensor) -> Tensor:
    r"""Returns stored images in public units, float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def as_signed(images: Tensor) -> Tensor:
    r"""Returns stored images in the units of networks, where -1 is black and 1 is white, float32."""
    scale = 127.5 if images.dtype == torch.uint8 else 0.5
    return images.float().div(scale).sub(1)


def _from_array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a .npy array: {error}. Write it with numpy.save.") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays, expected one array. Write it with numpy.save.")
    if array.size == 0:
        raise ValueError(f"{path} has shape {array.shape} and so holds no images. Write at least one.")
    if array.dtype in (np.float16, np.float32, np.float64):
        return _floats(path, array)
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected uint8 of (N, H, W) or (N, H, W, C), or "
            "floats of (N, C, H, W). Convert images in [0, 1] with x.astype('float32')."
        )
    if array.ndim == 4 and array.shape[-1] not in (1, 3):
        raise ValueError(
            f"{path} has shape {array.shape}, expected (N, H, W, C) with C of 1 or 3, channels last. "
            "Transpose channels-first images with x.transpose(0, 2, 3, 1)."
        )
    return _channels_first(array)


def _floats(path: Path, array: np.ndarray) -> Tensor:
    if array.ndim == 3:
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected floats of (N, C, H, W). Give gray images "
            "their channel: x[:, None]."
        )
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected floats of (N, C, H, W) with C of 1 or 3, "
            "channels first. Transpose channels-last images with x.transpose(0, 3, 1, 2)."
        )
    largest = max(abs(float(array.min())), abs(float(array.max())))
    if not largest <= BRIGHTEST:
        raise ValueError(
            f"{path} holds {array.dtype} up to {largest:.4g}, expected finite images with black at 0 and white at 1. "
            "Divide 8-bit pixels by 255, and take out images that are not finite."
        )
    if array.min() < -0.5 and array.mean() < 0.1:
        logger.warning("%s looks like images in [-1, 1], expected black at 0: if so, write (x + 1) / 2.", path)
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def _channels_first(array: np.ndarray) -> Tensor:
    images = torch.from_numpy(array[..., None] if array.ndim == 3 else array)
    return images.permute(0, 3, 1, 2).contiguous()


def _from_torchvision(root: Path, train: bool) -> Tensor | None:
    from torchvision import datasets

    split = "train" if train else "test"
    readers = {
        "cifar-10-batches-py": lambda: datasets.CIFAR10(root, train).data,
        "cifar-100-python": lambda: datasets.CIFAR100(root, train).data,
        "MNIST": lambda: datasets.MNIST(root, train).data.numpy(),
        "FashionMNIST": lambda: datasets.FashionMNIST(root, train).data.numpy(),
        f"{split}_32x32.mat": lambda: datasets.SVHN(root, split).data.transpose(0, 2, 3, 1),
    }
    for mark, read in readers.items():
        if (root / mark).exists():
            try:
                return _channels_first(np.asarray(read()))
            except (RuntimeError, OSError, ValueError, EOFError) as error:
                raise ValueError(
                    f"{root / mark} looks like a torchvision data set but cannot be read: {error} "
                    "Download it again with torchvision.datasets, download=True."
                ) from error
    return None


def _from_folder(folder: Path, size: int) -> Tensor:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise ValueError(f"{folder} holds no images. Known suffixes: {', '.join(sorted(SUFFIXES))}.")
    stack = torch.stack([_read_square(path, size) for path in paths])
    gray = bool((stack == stack[:, :1]).all())
    return stack[:, : 1 if gray else 3].contiguous()


def _read_square(path: Path, size: int) -> Tensor:
    try:
        image = read_image(path, size=size)
    except ValueError as error:
        raise ValueError(f"{error} Save it again, or remove it from the folder.") from error
    return image.mul(255).round().byte().expand(3, -1, -1)
