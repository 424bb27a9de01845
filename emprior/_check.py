r"""Checks at the boundary, and the messages that name the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[str]) -> str:
    r"""Returns a sentence that lists the choices and guesses the one that was meant."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}The choices are: {', '.join(choices)}."
