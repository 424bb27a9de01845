r"""What the commands share. Nothing here, nor at the top of a command's module, imports torch: help is quick."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from emprior.train.config import Config


ESTIMATE = "estimate"
"""What is typed in place of a number that is not known, as it is passed to `emprior.solve`."""


class UsageError(Exception):
    r"""What was asked for is wrong or does not exist."""


class Parser(argparse.ArgumentParser):
    r"""A parser that raises :class:`UsageError`, and that takes no abbreviations."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See: {self.prog} --help")


def add_command(commands: Any, name: str, run: Callable, help: str, examples: str) -> Parser:
    r"""Adds a command and returns its parser; `run` maps the parsed options to an exit code."""
    epilog = "examples:\n" + "".join(f"  {line.strip()}\n" for line in examples.strip().splitlines())
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=epilog)
    # no default here: that of an inner command would undo what was said to the outer one
    parser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="log what is done")
    parser.set_defaults(run=run)
    return parser


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, mps")


def positive_int(text: str) -> int:
    r"""Reads a positive whole number."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    r"""Reads a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def positive_or_estimate(text: str) -> float | str:
    r"""Reads a positive number, or the word for one that the measurements are to tell."""
    if text == ESTIMATE:
        return text
    try:
        return positive_float(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"expected a positive number or {ESTIMATE!r}, got {text!r}") from error


def check_estimates(options: argparse.Namespace) -> None:
    r"""Raises a :class:`UsageError` if the method cannot estimate what `--sigma` and `--weight` ask for."""
    from emprior._estimate import unknown

    with as_usage():
        unknown(options.method, options.sigma, options.weight)


def check_device(name: str) -> torch.device:
    r"""Returns the device of a name, if this machine has it."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UsageError(f"device {name!r} cannot be used: {reason}. Use --device cpu.") from error
    return device


@contextmanager
def as_usage(option: str = "") -> Iterator[None]:
    r"""Turns what a block refuses into a :class:`UsageError`, which may begin with the option that is to blame."""
    try:
        yield
    except (ValueError, FileExistsError) as error:
        raise UsageError(f"{option}: {error}" if option else str(error)) from error


def check_prior(name: str, kinds: Collection[str] = ("prior",)) -> str:
    r"""Returns the name or folder of a prior, or of one of some other `kinds`, if there is one."""
    from emprior.hub import find_prior

    with as_usage():
        find_prior(name, kinds)
    return name


def check_problem(name: str) -> str:
    r"""Returns the name or file of a problem, if there is such a problem; the file may be wrong."""
    from emprior.problem import find_problem

    with as_usage():
        find_problem(name)
    return name


def check_file(name: str, what: str) -> Path:
    r"""Returns the path of a file that must exist."""
    path = Path(name)
    if not path.exists():
        raise UsageError(f"there is no {what} {name}. Check the path; it is relative to {Path.cwd()}.")
    return path


def read_config(name: str, overrides: list[str]) -> Config:
    r"""Reads the settings of a training; a wrong override is bad usage, a wrong file is not."""
    from emprior.train.config import Config

    path = check_file(name, "configuration")
    config = Config.load(path)
    with as_usage():
        return Config.load(path, overrides) if overrides else config


def check_target(option: str, path: Path, suffixes: tuple[str, ...], what: str) -> None:
    r"""Raises a :class:`UsageError` unless a file with one of the suffixes can be written at `path`."""
    if os.path.isdir(path):
        raise UsageError(f"{option} {path} is a folder. Give a file, such as {path / ('file' + suffixes[0])}")
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{option} {path} ends in {path.suffix.lower()!r}, but {what} as {' or '.join(suffixes)}. "
            f"Try {option} {path.with_suffix(suffixes[0])}"
        )
    check_writable(option, path, path.absolute().parent)


def check_writable(option: str, path: Path, folder: Path) -> None:
    r"""Raises a :class:`UsageError` unless `folder`, which is to hold `path`, can be written to, or made."""
    folder = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        reason = "cannot be written to" if os.path.isdir(folder) else "is a file, not a folder"
        raise UsageError(f"{option} {path} cannot be written: {folder} {reason}. Choose another folder.")


def check_samples(x: Tensor, name: str) -> None:
    r"""Raises a FloatingPointError if generated images are not finite."""
    if not bool(x.isfinite().all()):
        raise FloatingPointError(f"prior {name!r} gave samples that are not finite: its flow diverges. Train it again.")


@contextmanager
def reporting(verbose: bool) -> Iterator[None]:
    r"""Sends the log to the standard error, and keeps the chatter of libraries away from it."""
    logger, handler = logging.getLogger("emprior"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("emprior: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def is_terminal() -> bool:
    r"""Whether somebody watches the standard error."""
    return sys.stderr.isatty()


def complain(message: str) -> None:
    r"""Prints an error as one paragraph to the standard error."""
    print("emprior: error:", " ".join(message.split()), file=sys.stderr)


def as_json(figures: dict[str, Any]) -> str:
    r"""Returns figures as one line of strict JSON, with null for what is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(figures), allow_nan=False)
