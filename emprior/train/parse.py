r"""Settings from plain containers: names and types are checked, and errors say where."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import yaml

from emprior._check import nearest
from emprior._yaml import Section


def apply_override(tree: dict[str, Any], override: str) -> None:
    r"""Sets one dotted key of a tree of settings, in place: `"train.batch_size=64"`."""
    key, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"--set {override!r} has no value. Write --set section.key=value.")
    *sections, last = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"--set {override!r}: {section!r} is a value, not a section.")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override!r}: {value!r} is not a YAML value. Quote it if it is a text.") from error


def build(kind: type, tree: Any, where: str) -> Any:
    r"""Makes a dataclass from plain containers or a YAML section, checking names and types."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: expected a section of keys, got {tree!r}.")
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        place = f"{tree.path}, line {tree.lines[key]}" if isinstance(tree, Section) else where
        if key not in hints:
            raise ValueError(f"{place}: unknown key {key!r}. {nearest(str(key), hints)}")
        values[key] = _convert(hints[key], value, f"{place}: {key}")
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        numbers = [_number(v) for v in value] if isinstance(value, list | tuple) else []
        if len(numbers) != len(typing.get_args(hint)) or None in numbers:
            raise ValueError(f"{where} should be {len(typing.get_args(hint))} numbers, got {value!r}.")
        return tuple(numbers)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        accepted = typing.get_origin(option) or option
        if accepted is float and _number(value) is not None:
            return _number(value)
        if accepted is dict and isinstance(value, Mapping):
            return plain(value)
        if isinstance(value, accepted) and not (accepted is int and isinstance(value, bool)):
            return value
    names = " or ".join("null" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
    raise ValueError(f"{where} should be {names}, got {value!r}.")


def _number(value: Any) -> float | None:
    r"""Returns a number as a float; YAML reads `1e-3` as a text, which counts too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def plain(value: Any) -> Any:
    r"""Returns mappings as dictionaries and sequences as lists, all the way down."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
