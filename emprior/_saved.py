r"""What a saved result is known by, and what may be written over."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FORMAT = "emprior result 2"
HEADER, ARRAYS, PLAIN = "result.json", "arrays.safetensors", ("estimate", "mean", "std", "samples")
FILES = {HEADER, ARRAYS, *(f"{name}.npy" for name in PLAIN)}
REPORT = "report.html"
"""The page beside a saved result, which goes when another result takes its place."""


def check_replaceable(path: str | os.PathLike[str]) -> None:
    r"""Raises unless :meth:`Result.save` may fill `path`: nothing, an empty folder or an earlier result.

    Raises:
        FileExistsError: `path` is a file, or a folder that holds something but no result.
    """
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and (_is_result(folder) or not any(folder.iterdir()))):
        raise FileExistsError(
            f"{path} already holds something that is not a saved result, and it was left alone. "
            "Give a new or an empty folder, or one that Result.save wrote."
        )


def _is_result(folder: Path) -> bool:
    try:
        return json.loads((folder / HEADER).read_text(encoding="utf-8"))["format"].startswith("emprior result")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check_config(value: object, where: str) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}, which JSON would turn into a string. Use str({key!r}).")
            check_config(entry, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            check_config(entry, f"{where}[{index}]")
    elif not isinstance(value, str | int | float | None):
        raise TypeError(
            f"{where} is a {type(value).__name__}, which JSON cannot hold. "
            "Give str, int, float, bool, None, or lists and dicts of them."
        )


def own_version() -> str:
    r"""Returns the version of emprior, as it was installed."""
    try:
        return version("emprior")
    except PackageNotFoundError:
        return "unknown"
