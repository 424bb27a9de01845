r"""Many images as one picture."""

from __future__ import annotations

import math
import os

import numpy as np
from PIL import Image
from torch import Tensor

from emprior._files import atomic


def to_pixels(x: Tensor) -> np.ndarray:
    r"""Converts images `(..., C, H, W)` in `[0, 1]` to `(..., H, W, 3)` uint8, clipping."""
    array = x.detach().float().cpu().clamp(0, 1).mul(255).round().byte().movedim(-3, -1).numpy()
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]


def save_grid(path: str | os.PathLike[str], x: Tensor, columns: int | None = None, zoom: int = 2) -> None:
    r"""Saves images `(B, C, H, W)` in `[0, 1]` side by side as a PNG.

    Arguments:
        path: The PNG file.
        x: The images.
        columns: Images in a row; by default the grid is about square.
        zoom: The side of the square that shows one pixel.
    """
    tiles = to_pixels(x)
    count, height, width, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        grid[top : top + height, left : left + width] = tile
    picture = Image.fromarray(grid)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")
