r"""Where problems/, pretrained/ and the cache lie."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def problems_dir() -> Path:
    r"""Returns the folder of problem files, from a source checkout or from an installed wheel.

    Raises:
        FileNotFoundError: This copy of emprior came without it; the message names the cure.
    """
    return _data_dir("problems")


def pretrained_dir() -> Path:
    r"""Returns the folder of bundled priors, from a source checkout or from an installed wheel.

    Raises:
        FileNotFoundError: This copy of emprior came without it; the message names the cure.
    """
    return _data_dir("pretrained")


def cache_dir() -> Path:
    r"""Returns the folder for downloads, which need not exist yet.

    It is `$EMPRIOR_CACHE` if set, else `$XDG_CACHE_HOME/emprior`, else `~/.cache/emprior`.
    """
    if own := os.environ.get("EMPRIOR_CACHE"):
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says that a relative path is invalid and to be ignored.
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "emprior"


def _data_dir(name: str) -> Path:
    checkout, wheel = PACKAGE.parent / name, PACKAGE / "_data" / name
    if checkout.is_dir() and (PACKAGE.parent / "setup.cfg").is_file():
        return checkout
    if wheel.is_dir():
        return wheel
    raise FileNotFoundError(
        f"this copy of emprior came without its {name}/ folder, which was looked for at {checkout} and {wheel}. "
        "Install it again: pip install --force-reinstall emprior, or, in a checkout, pip install -e ."
    )
