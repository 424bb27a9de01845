r"""The code and the commands of Markdown pages."""

from __future__ import annotations

import functools
import re
import shlex

import emprior


def blocks(text: str, language: str) -> list[str]:
    r"""Returns the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    r"""Returns the words of each line of `bash` blocks that calls emprior, without its name and what starts it."""
    lines = [shlex.split(line, comments=True) for block in blocks(text, "bash") for line in block.splitlines()]
    started = [line[line.index("emprior") + 1 :] for line in lines if "emprior" in line]
    return [words for words in started if words]


def run_python(monkeypatch, text: str, name: str, steps: int = 12) -> None:
    r"""Runs the `python` blocks of a page in turn, with few `steps` of `solve` where they name none."""
    monkeypatch.setattr(emprior, "solve", functools.partial(emprior.solve, steps=steps))
    scope: dict[str, object] = {}
    for block in blocks(text, "python"):
        exec(compile(block, name, "exec"), scope)
