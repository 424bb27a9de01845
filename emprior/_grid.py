r"""Many images as one picture, and pictures that follow them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from emprior._files import atomic

CAPTION = 22
"""The height of a line of text, in pixels of the picture."""


def to_pixels(x: Tensor) -> np.ndarray:
    r"""Converts images `(..., C, H, W)` in `[0, 1]` to `(..., H, W, 3)` uint8, clipping."""
    array = x.detach().float().cpu().clamp(0, 1).mul(255).round().byte().movedim(-3, -1).numpy()
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]


def make_grid(tiles: np.ndarray, columns: int | None = None, zoom: int = 2) -> Image.Image:
    r"""Lays images side by side.

    Arguments:
        tiles: The images, `(B, H, W, 3)` uint8.
        columns: Images in a row; by default the grid is about square.
        zoom: The side of the square that shows one pixel.
    """
    count, height, width, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        grid[top : top + height, left : left + width] = tile
    picture = Image.fromarray(grid)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def save_grid(path: str | os.PathLike[str], x: Tensor, columns: int | None = None, zoom: int = 2) -> None:
    r"""Saves images `(B, C, H, W)` in `[0, 1]` side by side as a PNG; see :func:`make_grid`."""
    picture = make_grid(to_pixels(x), columns, zoom)
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")


def save_trajectory(path: str | os.PathLike[str], frames: np.ndarray, captions: Sequence[str]) -> None:
    r"""Saves images as they change as a PNG: a row for each image, a column for each moment.

    Arguments:
        path: The PNG file.
        frames: The images at each moment, `(T, B, H, W, 3)` uint8.
        captions: What stands above each column, `T` lines.
    """
    moments, images, _, width, _ = frames.shape
    zoom = _legible(width)
    tiles = frames.swapaxes(0, 1).reshape(moments * images, *frames.shape[2:])
    centres = [((index + 0.5) * (width + 1) + 0.5) * zoom for index in range(moments)]
    picture = _captioned(make_grid(tiles, moments, zoom), list(zip(centres, captions, strict=True)))
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")


def save_animation(
    path: str | os.PathLike[str], frames: np.ndarray, captions: Sequence[str], milliseconds: int = 80
) -> None:
    r"""Saves a grid of images as they change as a GIF that repeats, and rests on the last.

    Arguments:
        path: The GIF file.
        frames: The images at each moment, `(T, B, H, W, 3)` uint8.
        captions: What stands above the grid at each moment, `T` lines.
        milliseconds: How long a moment is shown.
    """
    pictures = []
    for tiles, caption in zip(frames, captions, strict=True):
        grid = make_grid(tiles, zoom=_legible(frames.shape[3]))
        pictures.append(_captioned(grid, [(grid.width / 2, caption)]).quantize(256))
    durations = [milliseconds] * (len(pictures) - 1) + [25 * milliseconds]
    with atomic(path) as temporary:
        pictures[0].save(temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _legible(width: int) -> int:
    r"""Returns a zoom at which one image is as wide as a caption."""
    return max(2, math.ceil(66 / (width + 1)))


def _captioned(picture: Image.Image, captions: Sequence[tuple[float, str]]) -> Image.Image:
    out = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
    out.paste(picture, (0, CAPTION))
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(14)
    for centre, text in captions:
        box = draw.textbbox((0, 0), text, font=font)
        draw.text((centre - (box[0] + box[2]) / 2, (CAPTION - box[1] - box[3]) / 2), text, fill="black", font=font)
    return out
