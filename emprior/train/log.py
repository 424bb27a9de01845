r"""The log of a training, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emprior._files import atomic


class Log:
    r"""Lines of figures, each with its `iteration`.

    Arguments:
        path: The file, `log.jsonl`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        r"""Adds a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        r"""Returns the lines; one that was cut short by a crash is left out."""
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def rewind(self, iteration: int) -> None:
        r"""Takes out the lines after `iteration`, which will be trained again."""
        if not self.path.exists():
            return
        kept = [line for line in self.read() if line["iteration"] <= iteration]
        with atomic(self.path) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
