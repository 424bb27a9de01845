r"""Images and measurements as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image as Picture
from PIL import ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from emprior._check import nearest
from emprior._files import atomic

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".npy": None}


def read_image(path: str | os.PathLike[str], *, size: int | tuple[int, int] | None = None) -> Tensor:
    r"""Reads an image as `(C, H, W)` float32 in `[0, 1]`, gray or RGB as the file is.

    A `.npy` array is `(H, W)`, `(C, H, W)` or `(H, W, C)` with `C` 1 or 3 (channels first where both
    would do), of 8- or 16-bit integers or of floats in `[0, 1]`. Any other file is opened by Pillow:
    it is turned as its EXIF tag says, and transparent pixels are laid on white.

    Arguments:
        path: A PNG, JPEG or `.npy` file.
        size: The height and width, or one number for both. The image is cropped about its centre to
            that shape and then resized with antialiasing.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an image.
    """
    array = _channels_first(load_array(path), path) if Path(path).suffix.lower() == ".npy" else _open(path)
    image = torch.from_numpy(_unit(array, path))
    return image if size is None else _resize(image, (size, size) if isinstance(size, int) else size)


def write_image(path: str | os.PathLike[str], x: Tensor) -> None:
    r"""Writes an image whole or not at all.

    PNG and JPEG hold 8 bits a channel, so values outside `[0, 1]` are clipped; `.npy` holds `x` as it is.

    Arguments:
        path: A file whose suffix is `.png`, `.jpg`, `.jpeg` or `.npy`.
        x: The image, `(C, H, W)` with `C` 1 or 3.

    Raises:
        ValueError: `x` is no image or holds NaN, or the suffix is unknown.
        OSError: The file cannot be written; nothing is left.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path} ends in {suffix!r}, which is no format to write. {nearest(suffix, FORMATS)}")
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but an image is (1, H, W) or (3, H, W). Write a batch by x[0]."
        )
    x = x.detach().cpu()
    if not x.isfinite().all():
        raise ValueError("x holds NaN or infinite values, which no image can show. Look at Result.status.")
    with atomic(path) as temporary, temporary.open("wb") as file:
        if suffix == ".npy":
            np.save(file, (x.float() if x.dtype == torch.bfloat16 else x).numpy())
            return
        pixels = x.double().clamp(0, 1).mul(255).round().byte().movedim(0, -1).numpy()
        picture = Picture.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.save(file, format=FORMATS[suffix], **({"quality": 95} if FORMATS[suffix] == "JPEG" else {}))


def read_measurements(path: str | os.PathLike[str]) -> Tensor:
    r"""Reads the measurements of one image, with no batch dimension.

    A `.npy` array of any shape is read as it is: floats keep their precision, half ones become
    float32, 8-bit integers are pixels and are divided by 255, and wider integers are counts and become
    float32. Any other file is an image; see :func:`read_image`.

    Arguments:
        path: A `.npy` file or an image.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is neither, or it holds NaN.
    """
    if Path(path).suffix.lower() != ".npy":
        return read_image(path)
    return as_measurements(load_array(path), os.fspath(path))


def as_measurements(array: np.ndarray, name: str) -> Tensor:
    r"""Returns an array of any shape as measurements, in the types that :func:`read_measurements` describes.

    Arguments:
        array: The array, which is copied.
        name: What messages call it.

    Raises:
        ValueError: It does not hold numbers, or not finite ones.
    """
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} holds {array.dtype} values, but measurements are numbers. Save them by np.save.")
    if array.dtype == np.uint8:
        array = array / np.float32(255)
    elif array.dtype.kind == "c":
        array = array.astype(np.complex64 if array.dtype.itemsize <= 8 else np.complex128)
    else:
        wide = array.dtype.kind == "f" and array.dtype.itemsize > 4
        array = array.astype(np.float64 if wide else np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values. Mask what was not measured in the operator instead.")
    return torch.from_numpy(np.asarray(array))


def load_array(path: str | os.PathLike[str], mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    r"""Reads the array of a `.npy` file, of any shape, type and order of bytes.

    Arguments:
        path: The file.
        mmap_mode: As of `numpy.load`: `"r"` leaves the array on the disk and reads what is indexed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no array, Python objects, or several arrays.
    """
    _check_file(path)
    try:
        array = np.load(path, mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"cannot read {path} as an array: {_reason(error)}. Write it by np.save, as plain numbers."
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive of several arrays. Write one of them by np.save.")
    return array


def _reason(error: Exception) -> str:
    r"""Returns what numpy says of a file, but for its advice on pickles, which are not to be loaded."""
    text = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".")
    return "it holds no plain array" if "pickle" in text or "Python objects" in text else text


def _open(path: str | os.PathLike[str]) -> np.ndarray:
    array = _decode(path)
    return np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]


def _decode(path: str | os.PathLike[str]) -> np.ndarray:
    _check_file(path)
    try:
        with Picture.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I") or picture.mode == "F":
                array = np.array(picture)
                sixteen = array.dtype.kind in "iu" and array.min() >= 0 and array.max() < 2**16
                return array.astype(np.uint16) if sixteen else array
            if picture.has_transparency_data:
                white = Picture.new("RGBA", picture.size, "white")
                gray = picture.mode in ("L", "LA")
                picture = Picture.alpha_composite(white, picture.convert("RGBA")).convert("L" if gray else "RGB")
            return np.array(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    except (OSError, ValueError, SyntaxError, Picture.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as an image: {error}. Give a PNG, JPEG or .npy file.") from error


def _check_file(path: str | os.PathLike[str]) -> None:
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}. Check the path; it is relative to {Path.cwd()}.")
    if not Path(path).is_file():
        raise ValueError(f"{path} is a folder. Give one file in it.")


def _channels_first(array: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and array.shape[0] in (1, 3):
        return array
    if array.ndim == 3 and array.shape[-1] in (1, 3):
        return np.moveaxis(array, -1, 0)
    raise ValueError(
        f"{path} holds an array of shape {array.shape}, but an image is (H, W), (C, H, W) or (H, W, C) with C 1 or 3. "
        "Save one image of a batch, without transparency."
    )


def _unit(array: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return np.ascontiguousarray(array / np.float32(np.iinfo(array.dtype).max), dtype=np.float32)
    if array.dtype.kind not in "bf":
        raise ValueError(
            f"{path} holds {array.dtype} values, but an image is uint8, uint16 or floats in [0, 1]. "
            "Convert it by array.astype(numpy.float32), then divide by the largest value it can take."
        )
    if array.size == 0 or not (array.min() >= 0 and array.max() <= 1):
        span = f"values from {array.min():.4g} to {array.max():.4g}" if array.size else "nothing"
        raise ValueError(f"{path} holds {span}, but an image of floats is in [0, 1]. Shift and scale it, or clip it.")
    return np.ascontiguousarray(array, dtype=np.float32)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    (height, width), (high, wide) = image.shape[-2:], size
    if min(high, wide) < 1:
        raise ValueError(f"size is {size}, but a height and a width are at least 1.")
    scale = min(height / high, width / wide)
    crop = max(1, round(high * scale)), max(1, round(wide * scale))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    image = image[:, top : top + crop[0], left : left + crop[1]]
    return interpolate(image[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
