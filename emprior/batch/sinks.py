r"""What a batch writes: files, or arrays of all items. A chunk is written whole, then declared finished."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emprior._check import needed
from emprior.batch.items import Item
from emprior.batch.ledger import Ledger
from emprior.batch.manifest import Manifest

Arrays = Mapping[str, np.ndarray]
"""What is kept of an item by name: `estimate`, `std`, `quantiles` `(Q, *shape)`, `samples` `(S, *shape)`, `traces`."""


class Sink(ABC):
    r"""Where the reconstructions go. Sinks are options alone: many processes write through equal ones at once."""

    @abstractmethod
    def write(
        self, ledger: Ledger, manifest: Manifest, number: int, items: Sequence[Item], rows: Sequence[Arrays | None]
    ) -> None:
        r"""Writes what is kept of the items of a chunk, `None` for those that failed.

        Written again, a chunk replaces itself.

        Raises:
            OSError: Something cannot be written.
            ValueError: An item's arrays do not fit the others'.
        """

    def close(self, ledger: Ledger, manifest: Manifest, numbers: Sequence[int]) -> None:  # noqa: B027 - most leave nothing to do
        r"""Makes what some finished chunks hold readable as one."""

    def check(self, item: Item) -> None:  # noqa: B027 - most take any id
        r"""Raises a ValueError if an item of this id cannot be written."""


@dataclass(frozen=True)
class Files(Sink):
    r"""A `.npy` file for each item: the estimate of `a/b` is `a/b.npy`, its deviations are `std/a/b.npy`, and so on."""

    def write(
        self, ledger: Ledger, manifest: Manifest, number: int, items: Sequence[Item], rows: Sequence[Arrays | None]
    ) -> None:
        moves = []
        with writing(ledger.out), ledger.scratch() as scratch:
            for index, (item, row) in enumerate(zip(items, rows, strict=True)):
                for name, array in (row or {}).items():
                    np.save(scratch / f"{name}-{index}.npy", array)
                    moves.append((scratch / f"{name}-{index}.npy", self.path(ledger.out, item.id, name)))
            for folder in {target.parent for _, target in moves}:
                folder.mkdir(parents=True, exist_ok=True)
            for temporary, target in moves:
                os.replace(temporary, target)

    def check(self, item: Item) -> None:
        first = item.id.partition("/")[0]
        if first in OUTPUTS and "/" in item.id:
            raise ValueError(
                f"the id {item.id!r} begins with {first + '/'!r}, where the {first} of all items is written. "
                "Rename that folder, or give other ids in a CSV with the columns path and id."
            )

    @staticmethod
    def path(out: Path, name: str, output: str = "estimate") -> Path:
        r"""Returns the file of an item."""
        return (out if output == "estimate" else out / output) / f"{name}.npy"


@dataclass(frozen=True)
class Zarr(Sink):
    r"""Arrays `(N, *shape)` in the group `result.zarr`, one for each output, in the order of the manifest.

    A chunk of items is one shard, so that no two processes ever write one file; in it each item is a zarr chunk.
    Items that failed are NaN.
    """

    def __post_init__(self) -> None:
        needed("zarr")

    def write(
        self, ledger: Ledger, manifest: Manifest, number: int, items: Sequence[Item], rows: Sequence[Arrays | None]
    ) -> None:
        start = number * manifest.chunk
        for name, block in stacked(rows).items():
            with writing(ledger.out / GROUP / name):
                array = self._array(ledger, manifest, name, block)
                check_shape(name, block, array.shape)
                array[start : start + len(block)] = block

    def _array(self, ledger: Ledger, manifest: Manifest, name: str, block: np.ndarray) -> Any:
        zarr = needed("zarr")
        path = self._group(ledger) / name
        if not path.is_dir():
            with ledger.scratch() as scratch:
                shape = block.shape[1:]
                zarr.create_array(
                    scratch / name,
                    shape=(manifest.count, *shape),
                    shards=(manifest.chunk, *shape),
                    chunks=(1, *shape),
                    dtype=block.dtype,
                    fill_value=np.nan,
                )
                _settle(scratch / name, path)
        return zarr.open_array(path, mode="r+")

    @staticmethod
    def _group(ledger: Ledger) -> Path:
        r"""Returns the folder of the group, which one of several processes makes, whole."""
        path = ledger.out / GROUP
        if not path.is_dir():
            with ledger.scratch() as scratch:
                needed("zarr").create_group(scratch / GROUP)
                _settle(scratch / GROUP, path)
        return path


@dataclass(frozen=True)
class HDF5(Sink):
    r"""Datasets `(N, *shape)` in `result.h5`, one for each output, in the order of the manifest.

    HDF5 has one writer at a time, so each chunk is a file of its own in `parts/`, and `result.h5` joins them as a
    virtual dataset: keep the two together, or make one file of them by `h5repack`. Items that failed are NaN.
    """

    def __post_init__(self) -> None:
        needed("h5py")

    def write(
        self, ledger: Ledger, manifest: Manifest, number: int, items: Sequence[Item], rows: Sequence[Arrays | None]
    ) -> None:
        h5py = needed("h5py")
        with writing(self._part(ledger, number)), ledger.scratch() as scratch:
            with h5py.File(scratch / "part.h5", "w") as part:
                for name, block in stacked(rows).items():
                    part[name] = block
            (ledger.out / "parts").mkdir(exist_ok=True)
            os.replace(scratch / "part.h5", self._part(ledger, number))

    def close(self, ledger: Ledger, manifest: Manifest, numbers: Sequence[int]) -> None:
        h5py = needed("h5py")
        layouts: dict = {}
        for number in numbers:
            with h5py.File(self._part(ledger, number), "r") as part:
                for name, block in part.items():
                    shape = (manifest.count, *block.shape[1:])
                    layout = layouts.setdefault(name, h5py.VirtualLayout(shape, block.dtype))
                    check_shape(name, block, layout.shape)
                    source = h5py.VirtualSource(os.path.relpath(block.file.filename, ledger.out), name, block.shape)
                    layout[number * manifest.chunk : number * manifest.chunk + len(block)] = source
        with writing(ledger.out / "result.h5"), ledger.scratch() as scratch:
            with h5py.File(scratch / "result.h5", "w") as file:
                for name, layout in layouts.items():
                    file.create_virtual_dataset(name, layout, fillvalue=np.nan)
            os.replace(scratch / "result.h5", ledger.out / "result.h5")

    @staticmethod
    def _part(ledger: Ledger, number: int) -> Path:
        return ledger.out / "parts" / f"{number:06d}.h5"


GROUP = "result.zarr"
"""The group of all arrays."""

OUTPUTS = ("estimate", "std", "quantiles", "samples", "traces")
"""What can be kept of an item."""

FORMATS: Mapping[str, Callable[[], Sink]] = {"files": Files, "zarr": Zarr, "hdf5": HDF5}


@contextmanager
def writing(target: Path) -> Iterator[None]:
    r"""Lets an OSError of a block name what could not be written, and the cure."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {target}: {error.strerror or error}. What is finished is kept: free some space if the disk "
            "is full, and run the same command again."
        ) from error


def stacked(rows: Sequence[Arrays | None]) -> dict[str, np.ndarray]:
    r"""Returns the arrays of items as one for each output, `(n, *shape)`, with NaN where an item failed.

    Raises:
        ValueError: The items' arrays differ in shape.
    """
    known = next((row for row in rows if row is not None), {})
    out = {}
    for name, like in known.items():
        block = np.full((len(rows), *like.shape), np.nan, like.dtype)
        for index, row in enumerate(rows):
            if row is not None:
                check_shape(name, row[name][None], block.shape)
                block[index] = row[name]
        out[name] = block
    return out


def check_shape(name: str, block: np.ndarray, known: Sequence[int]) -> None:
    r"""Raises a ValueError unless the items of a block `(n, *shape)` are of the shape of an array `(N, *shape)`."""
    if tuple(block.shape[1:]) != tuple(known[1:]):
        raise ValueError(
            f"the {name} of an item has shape {tuple(block.shape[1:])}, but that of others {tuple(known[1:])}: they do "
            "not fit one array. Write files instead: format='files', or --format files."
        )


def _settle(made: Path, path: Path) -> None:
    r"""Puts a new folder in place, unless another process was first."""
    try:
        os.rename(made, path)
    except OSError:
        if not path.is_dir():
            raise
