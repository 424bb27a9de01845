r"""What the examples share: photographs that come with scikit-image, pieces of them, and pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import skimage
from matplotlib.figure import Figure
from torch import Tensor

from emprior.io import read_image, write_image
from emprior.plot import save_figure

CAT = Path(skimage.data_dir, "chelsea.png")
"""The photograph that examples restore."""

OTHERS = ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""The photographs that pieces are cut from."""


def write_pieces(folder: Path, count: int, side: int = 32, reduced: int = 96, seed: int = 0) -> Path:
    r"""Writes `count` square pieces of four photographs, reduced to `reduced` pixels, as PNG files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    photographs = [read_image(Path(skimage.data_dir, name), size=reduced) for name in OTHERS]
    for index in range(count):
        top, left = random.integers(0, reduced - side + 1, 2)
        piece = photographs[index % len(OTHERS)][:, top : top + side, left : left + side]
        write_image(folder / f"{index:04}.png", piece)
    return folder


def save_rows(path: Path, rows: Mapping[str, Sequence[Tensor]]) -> None:
    r"""Saves a figure with a row of images `(3, H, W)` under each name."""
    width = max(map(len, rows.values()))
    fig = Figure(figsize=(1.3 * width, 1.5 * len(rows)), layout="constrained")
    for line, (name, images) in zip(fig.subplots(len(rows), width, squeeze=False), rows.items(), strict=True):
        line[0].set_title(name, fontsize=8, loc="left")
        for place in line:
            place.axis("off")
        for place, image in zip(line, images, strict=False):
            place.imshow(image.clamp(0, 1).permute(1, 2, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(fig, path)
