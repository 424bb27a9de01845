r"""Strict YAML: every complaint names the file, the line and the nearest match."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from emprior._check import nearest


class Section(Mapping[str, Any]):
    r"""A YAML mapping that remembers where its keys stood. Mappings inside it are sections too.

    Arguments:
        path: The file.
        label: What the section is called in messages.
        values: The values by key.
        lines: The line of each key, from 1.
        line: The line on which the section begins.
    """

    def __init__(self, path: Path, label: str, values: dict[str, Any], lines: dict[str, int], line: int) -> None:
        self.path, self.label, self.values_, self.lines, self.line = path, label, values, lines, line

    def __getitem__(self, key: str) -> Any:
        return self.values_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def error(self, key: str | None, message: str) -> ValueError:
        r"""Returns the error to raise about a key, or about the whole section."""
        line = self.line if key is None else self.lines.get(key, self.line)
        return ValueError(f"{self.path}, line {line}: {message}")

    def check_keys(self, required: Iterable[str], optional: Iterable[str] = ()) -> None:
        r"""Refuses a key that is unknown or missing.

        Raises:
            ValueError: With the file, the line and the nearest match.
        """
        required = list(required)
        known = [*required, *optional]
        for key in self:
            if key not in known:
                choices = nearest(key, known) if known else "It takes none."
                raise self.error(key, f"unknown key {key!r} in {self.label}. {choices}")
        for key in required:
            if key not in self:
                raise self.error(None, f"{self.label} lacks the key {key!r}. Its keys are: {', '.join(known)}.")

    def section(self, key: str) -> Section:
        r"""Returns the value of a key that must be a mapping."""
        value = self[key]
        if not isinstance(value, Section):
            raise self.error(key, f"{key!r} must be a mapping such as {{type: ...}}, not {value!r}.")
        return value

    def choice(self, key: str, choices: Iterable[str]) -> str:
        r"""Returns the value of a key that must be one of some names."""
        value, choices = self[key], list(choices)
        if value not in choices:
            raise self.error(key, f"{key!r} is {value!r}, which is unknown. {nearest(str(value), choices)}")
        return value


def read_yaml(path: str | os.PathLike[str]) -> Section:
    r"""Reads a YAML file whose root is a mapping.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML, its root is no mapping, a key is no string or appears twice.
    """
    path = Path(path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}, line {line}: not YAML: {error.problem or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, line 1: not a YAML text: {error}.") from error
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path}, line 1: the file must hold a mapping of keys to values.")
    return _section(path, "the file", node)


def _section(path: Path, label: str, node: yaml.MappingNode) -> Section:
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if key_node.tag != "tag:yaml.org,2002:str":
            raise ValueError(f"{path}, line {line}: the key {key!r} is not a name.")
        if key in values:
            raise ValueError(f"{path}, line {line}: the key {key!r} appears a second time; keep one.")
        lines[key] = line
        if isinstance(value_node, yaml.MappingNode):
            values[key] = _section(path, repr(key), value_node)
        else:
            values[key] = _value(path, value_node)
    return Section(path, label, values, lines, node.start_mark.line + 1)


def _value(path: Path, node: yaml.Node) -> Any:
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{path}, line {node.start_mark.line + 1}: {problem}.") from error
