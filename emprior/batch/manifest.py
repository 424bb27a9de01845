r"""The list of all items, cut into chunks that can be read one at a time."""

from __future__ import annotations

import csv
import hashlib
import io
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import numpy as np

from emprior.batch.items import Item, check_id

FILE, INDEX = "manifest.csv", "index.npy"

BLOCK = 1024
"""The items that are written at a time."""


@dataclass(frozen=True, eq=False)
class Manifest:
    r"""Items in a file, and where in it each chunk begins.

    Chunk `c` holds the items `c * chunk` to `(c + 1) * chunk - 1`. Of a million items nothing but the index is kept
    in memory.

    Arguments:
        folder: The folder of the file, a CSV of ids, places, problems and truths, and of the index.
        offsets: The first byte of each chunk, and the end of the file, `(chunks + 1,)`.
        count: The number of items.
        chunk: The items in a chunk; the last may hold fewer.
    """

    folder: Path
    offsets: np.ndarray
    count: int
    chunk: int

    @staticmethod
    def open(folder: Path, count: int, chunk: int) -> Manifest:
        r"""Opens the manifest that :func:`write_manifest` left."""
        return Manifest(folder, np.load(folder / INDEX), count, chunk)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def size(self, number: int) -> int:
        r"""Returns the number of items in a chunk."""
        return min(self.chunk, self.count - number * self.chunk)

    def read(self, number: int) -> list[Item]:
        r"""Returns the items of a chunk."""
        start, stop = (int(offset) for offset in self.offsets[number : number + 2])
        with (self.folder / FILE).open("rb") as file:
            file.seek(start)
            text = file.read(stop - start).decode("utf-8", "surrogateescape")
        return list(map(Item._make, csv.reader(io.StringIO(text, newline=""))))


def write_manifest(items: Iterable[Item], folder: Path, chunk: int) -> tuple[Manifest, str, set[str]]:
    r"""Writes items as they come, and cuts them into chunks of about equal sizes, of at most `chunk` items.

    Returns:
        The manifest, the digest of its file and the problems that items name, `""` where one names none.

    Raises:
        ValueError: There are no items, or two have the same id, or an id cannot name a file.
        OSError: It cannot be written.
    """
    offsets, keys = array("Q", [0]), array("q")
    problems: set[str] = set()
    with (folder / FILE).open("wb") as file:
        digest = hashlib.blake2b(digest_size=16)
        stream = iter(items)
        while block := list(islice(stream, BLOCK)):
            for item in block:
                check_id(item.id)
            lines = _lines(block)
            ends = accumulate(map(len, lines), initial=offsets.pop())
            offsets.extend(ends)
            keys.extend(hash(item.id) for item in block)
            problems.update(item.problem for item in block)
            digest.update(text := b"".join(lines))
            file.write(text)
    if not keys:
        raise ValueError("there are no items to reconstruct. Give a folder of .npy files or images, a stack or a CSV.")
    chunk = even(len(keys), chunk)
    index = np.append(np.frombuffer(offsets, dtype=np.uint64)[:-1:chunk], np.uint64(offsets[-1]))
    np.save(folder / INDEX, index)
    manifest = Manifest(folder, index, len(keys), chunk)
    _check_unique(manifest, np.frombuffer(keys, dtype=np.int64))
    return manifest, digest.hexdigest(), problems


def even(count: int, most: int) -> int:
    r"""Returns the size of as few parts of at most `most` as hold `count` items, made about equal.

    Example:
        >>> even(200, 64), even(10, 64)
        (50, 10)
    """
    return -(-count // -(-count // most))


def _lines(items: Sequence[Item]) -> list[bytes]:
    r"""Returns items as lines of CSV; most need no quotes, which is seen of all at once."""
    lines = [",".join(item) + "\r\n" for item in items]
    text = "".join(lines)
    if '"' in text or text.count(",") > 3 * len(items) or text.count("\r") + text.count("\n") > 2 * len(items):
        lines = [_quoted(item) for item in items]
    return [line.encode("utf-8", "surrogateescape") for line in lines]


def _quoted(item: Item) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(item)
    return text.getvalue()


def _check_unique(manifest: Manifest, keys: np.ndarray) -> None:
    ranks = np.sort(keys)
    twice = set(ranks[1:][ranks[1:] == ranks[:-1]].tolist())
    if not twice:
        return
    seen: dict[str, str] = {}
    for number in range(len(manifest)):
        for item in manifest.read(number):
            if hash(item.id) in twice and item.id in seen:
                raise ValueError(
                    f"{seen[item.id]} and {item.where} have the same id {item.id!r}. Rename one of them, or give both "
                    "ids of their own in a CSV with the columns path and id."
                )
            if hash(item.id) in twice:
                seen[item.id] = item.where
