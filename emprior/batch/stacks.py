r"""Stacks: many measurements in one array, of which a row is read at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from emprior._check import needed
from emprior.batch.items import Item, Source
from emprior.io import as_measurements, load_array

HDF5 = (".h5", ".hdf5")
SUFFIXES = (".npy", ".zarr", *HDF5)
"""What a stack's name ends in."""


@dataclass(frozen=True)
class Stack(Source):
    r"""The rows of an array `(N, *measured)` in a `.npy`, HDF5 or zarr file.

    The id of row 7 of a thousand is `007`. A row holds what `emprior.io.read_measurements` would take: floats keep
    their precision, 8-bit integers are divided by 255, wider ones are counts.

    Arguments:
        path: The file, or the folder of a zarr array.
        name: Which array, of an HDF5 file or a zarr group; not needed if there is one alone.
    """

    path: Path
    name: str = ""

    @property
    def address(self) -> str:
        return f"{self.path}::{self.name}" if self.name else str(self.path)

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def items(self) -> Iterator[Item]:
        count = len(self)
        width = len(str(max(0, count - 1)))
        return (Item(f"{row:0{width}d}", str(row)) for row in range(count))

    def read(self, where: str) -> Tensor:
        return as_measurements(np.asarray(self._array[int(where)]), f"row {where} of {self.address}")

    def beside(self, item: Item, place: int) -> Tensor | None:
        return self.read(str(place))

    def check_beside(self, count: int) -> None:
        if len(self) != count:
            raise ValueError(
                f"{self.address} holds {len(self)} true images, but there are {count} items, and rows are taken in the "
                "items' order. Give one row for each, or a folder of files of the items' ids."
            )

    @property
    def _array(self) -> Any:
        return _opened(self.path, self.name, self.path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, name: str, changed: int) -> Any:
    array = _open(path, name)
    if not getattr(array, "ndim", 0):
        raise ValueError(
            f"{path} holds no stack (N, ...) of measurements. Give an array whose first axis is the items."
        )
    return array


def _open(path: Path, name: str) -> Any:
    if path.suffix.lower() == ".npy":
        return load_array(path, "r")
    if path.suffix.lower() in HDF5:
        return _chosen(needed("h5py").File(path, "r"), path, name)
    opened = needed("zarr").open(path, mode="r")
    return opened if hasattr(opened, "ndim") else _chosen(opened, path, name)


def _chosen(group: Any, path: Path, name: str) -> Any:
    arrays = sorted(key for key in group if hasattr(group[key], "ndim"))
    if not name and len(arrays) != 1:
        raise ValueError(
            f"{path} holds {len(arrays)} arrays: {', '.join(arrays)}. Say which: {path}::{next(iter(arrays), 'name')}"
        )
    if name and name not in arrays:
        raise ValueError(f"{path} has no array {name!r}, but: {', '.join(arrays)}.")
    return group[name or arrays[0]]
