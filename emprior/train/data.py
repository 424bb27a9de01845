r"""Images in memory, as uint8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}


def load_images(source: str | Path, size: int = 32) -> Tensor:
    r"""Loads a data set whole, `(N, C, H, W)` uint8.

    Arguments:
        source: A folder of images (searched through; each is cropped to its central square and
            resized to `size`), a `.npy` stack `(N, H, W)` or `(N, H, W, C)` of uint8, or the root of a
            torchvision data set (CIFAR-10, CIFAR-100, MNIST, FashionMNIST, SVHN).
        size: The side of folder images.

    Raises:
        ValueError: There is nothing at `source` that can be read as images; the message says what was found.
    """
    source = Path(source).expanduser()
    if source.suffix == ".npy" and source.is_file():
        return _from_array(source)
    if not source.is_dir():
        raise ValueError(
            f"there is no data at {source}. Give a folder of images, a .npy stack (N, H, W[, C]) of uint8, "
            "or a torchvision root: emprior train CONFIG --set data.source=PATH"
        )
    found = _from_torchvision(source)
    return found if found is not None else _from_folder(source, size)


def _from_array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a .npy array: {error}. Write it with numpy.save.") from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected uint8 of (N, H, W) or (N, H, W, C). "
            "Convert images in [0, 1] with (255 * x).round().astype('uint8')."
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.shape[-1] not in (1, 3):
        raise ValueError(f"{path} has shape {array.shape}, expected channels last, 1 or 3. Transpose it.")
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def _from_torchvision(root: Path) -> Tensor | None:
    from torchvision import datasets

    readers = {
        "cifar-10-batches-py": lambda: datasets.CIFAR10(root).data,
        "cifar-100-python": lambda: datasets.CIFAR100(root).data,
        "MNIST": lambda: datasets.MNIST(root).data.numpy(),
        "FashionMNIST": lambda: datasets.FashionMNIST(root).data.numpy(),
        "train_32x32.mat": lambda: datasets.SVHN(root).data.transpose(0, 2, 3, 1),
    }
    for mark, read in readers.items():
        if (root / mark).exists():
            array = np.asarray(read())
            return torch.from_numpy(array[..., None] if array.ndim == 3 else array).permute(0, 3, 1, 2).contiguous()
    return None


def _from_folder(folder: Path, size: int) -> Tensor:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no images. Known suffixes: {', '.join(sorted(SUFFIXES))}.")
    images = [_read_square(path, size) for path in paths]
    gray = all(np.ptp(image.astype(int), axis=-1).max() == 0 for image in images)
    stack = np.stack(images)[..., : 1 if gray else 3]
    return torch.from_numpy(np.ascontiguousarray(stack)).permute(0, 3, 1, 2).contiguous()


def _read_square(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}. Remove it or save it again.") from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX, box=box))
