r"""What of emprior's own code a result depends on."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "emprior"

SHOWN = ("emprior.plot", "emprior.report")
"""What makes figures and pages of results, on which no result depends."""


@lru_cache
def code_digest(*modules: str) -> str:
    r"""Returns the digest of modules and of all others of emprior that they import, directly or not, at any place.

    Comments, docstrings and layout do not count, nor does what shows results, nor the package that holds a module,
    unless something in it that is no module is imported. Of a module without a file the name counts alone.
    """
    seen: set[str] = set()
    ahead = set(modules)
    while ahead:
        seen |= ahead
        ahead = {name for module in ahead for name in _imports(module)} - seen
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(f"{name} {ast.dump(_tree(name))} ".encode())
    return digest.hexdigest()


def _imports(module: str) -> Iterator[str]:
    r"""Yields the modules of emprior that a module imports, but for what shows results."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _counts(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module is not None and _counts(node.module):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _file(inner) is not None else node.module


@lru_cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    tree = ast.parse("" if file is None else file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@lru_cache
def _file(module: str) -> Path | None:
    r"""Returns the file of a module of Python; `None` if there is none."""
    try:
        spec = find_spec(module)
    except (ModuleNotFoundError, ValueError):  # the parent is no package, or this is the interpreter's own module
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _counts(module: str) -> bool:
    return _within(module, PACKAGE) and not any(_within(module, shown) for shown in SHOWN)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
