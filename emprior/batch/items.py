r"""What a batch reads: items, each the measurements of one image, from wherever they lie."""

from __future__ import annotations

import csv
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from torch import Tensor

from emprior._check import nearest
from emprior.io import read_measurements

READABLE = (".npy", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""The suffixes of files that a folder is searched for."""


class Item(NamedTuple):
    r"""One image to reconstruct.

    Arguments:
        id: Its name, unique in the batch; a relative path, which names what is written.
        where: Where its measurements lie in their source: a file, or a row of a stack.
        problem: The problem that it was measured by, if not that of the whole batch.
        truth: The file of the true image, if one is known.
    """

    id: str
    where: str
    problem: str = ""
    truth: str = ""


class Source(ABC):
    r"""Where items come from. Sources are small and can be pickled: they hold absolute paths, never pixels."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).absolute())

    @property
    def address(self) -> str:
        r"""What to type for this source."""
        return str(self.path)

    @abstractmethod
    def items(self) -> Iterator[Item]:
        r"""Yields the items, one at a time and always in the same order.

        Raises:
            ValueError: An entry cannot be an item; the message names it.
        """

    @abstractmethod
    def read(self, where: str) -> Tensor:
        r"""Returns the measurements at a place, with no batch dimension.

        Raises:
            OSError: They cannot be read.
            ValueError: They are not numbers, or not finite.
        """

    @abstractmethod
    def beside(self, item: Item, place: int) -> Tensor | None:
        r"""Returns what this source, of true images, holds for the `place`-th item of another; `None` if nothing."""

    def check_beside(self, count: int) -> None:  # noqa: B027 - of a folder some may lack
        r"""Raises a ValueError if this source cannot be the true images of `count` items of another."""

    def truth(self, item: Item) -> Tensor | None:
        r"""Returns the true image that an item of this source names; `None` if it names none."""
        return None


@dataclass(frozen=True)
class Folder(Source):
    r"""Every `.npy` file and image in a folder and those below it; hidden ones are passed over.

    The id of `a/b.npy` is `a/b`. Files are ordered folder by folder, by their names.

    Arguments:
        path: The folder.
    """

    path: Path

    def items(self) -> Iterator[Item]:
        return self._walk("")

    def read(self, where: str) -> Tensor:
        return read_measurements(self.path / where)

    def beside(self, item: Item, place: int) -> Tensor | None:
        for suffix in READABLE:
            file = self.path / f"{item.id}{suffix}"
            if file.is_file():
                return read_measurements(file)
        return None

    def _walk(self, prefix: str) -> Iterator[Item]:
        files, folders = [], []
        with os.scandir(self.path / prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in READABLE:
                    files.append(entry.name)
        before = "", ""
        for name in sorted(files, key=os.path.splitext):
            stem = os.path.splitext(name)[0]
            if stem == before[0]:
                raise ValueError(
                    f"{self.path / prefix / before[1]} and {name} beside it have the same id {prefix + stem!r}. "
                    "Rename one of them, or list the files in a CSV with the columns path and id."
                )
            before = stem, name
            yield Item(prefix + stem, prefix + name)
        for name in sorted(folders):
            yield from self._walk(f"{prefix}{name}/")


COLUMNS = ("path", "id", "problem", "truth")

PLAIN = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*").fullmatch
"""What most ids are: letters, digits and marks that any file can have in its name."""


@dataclass(frozen=True)
class Table(Source):
    r"""The files that a CSV lists, one a line under a header.

    Its columns are `path`, and if need be `id` (by default the path without its suffix), `problem` (the name or YAML
    file of the item's own) and `truth` (the file of its true image). Paths are relative to the folder of the CSV.

    Arguments:
        path: The CSV.
    """

    path: Path

    def items(self) -> Iterator[Item]:
        with self.path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            names = next(rows, [])
            self._check_header(names)
            path, name, problem, truth = (names.index(column) if column in names else len(names) for column in COLUMNS)
            for row in filter(None, rows):
                excess = len(row) - len(names)
                row += [""] * (1 - excess)
                where = row[path]
                if not where or excess > 0:
                    raise ValueError(
                        f"{self.path}, line {rows.line_num}: expected a path and {len(names)} fields at most."
                    )
                yield Item(row[name] or _name(where), where, self._problem(row[problem]), row[truth])

    def read(self, where: str) -> Tensor:
        return read_measurements(self.path.parent / where)

    def beside(self, item: Item, place: int) -> Tensor | None:
        raise ValueError(
            f"{self.path} cannot hold truths by itself. Name them in the column 'truth' of the items' CSV."
        )

    def check_beside(self, count: int) -> None:
        self.beside(Item("", ""), 0)

    def truth(self, item: Item) -> Tensor | None:
        return self.read(item.truth) if item.truth else None

    def _problem(self, name: str) -> str:
        r"""Returns the problem that a line names, a file with its folder."""
        return str(self.path.parent / name) if name.endswith((".yaml", ".yml")) else name

    def _check_header(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in COLUMNS:
                raise ValueError(f"{self.path} has the unknown column {name!r}. {nearest(name, COLUMNS)}")
        if "path" not in names:
            raise ValueError(
                f"{self.path} lacks the column 'path'. Its first line is a header such as: path,id,problem"
            )


def check_id(name: str) -> None:
    r"""Raises a ValueError unless an id can name a file below the output's folder."""
    if PLAIN(name):
        return
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or any(part.startswith(".") for part in parts) or "\0" in name:
        raise ValueError(
            f"the id {name!r} cannot name a file. An id is a relative path without parts that begin with a dot."
        )


def _name(where: str) -> str:
    path = PurePosixPath(where)
    plain = not path.is_absolute() and ".." not in path.parts
    return str(path.with_suffix("")) if plain else path.stem
