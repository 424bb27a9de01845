r"""The command line, `emprior COMMAND ...`, also as `python -m emprior COMMAND ...`.

It exits with 0 if all went well, 1 if the work failed or a file is broken, 2 if what was asked for is wrong or does
not exist, and 130 if it was interrupted. Steps that ran out before the convergence test was met are no failure: 0,
with a notice. An error is one paragraph on the standard error; `EMPRIOR_DEBUG=1` shows where it arose.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from emprior.cli import batch, bench, doctor, evaluate, priors, problems, profile, report, sample, solve, train, verify
from emprior.cli._common import Parser, UsageError, complain, reporting

EXPECTED = (ValueError, TypeError, OSError, FloatingPointError)
"""Errors whose messages were written for whoever reads them."""


def main(argv: Sequence[str] | None = None) -> int:
    r"""Runs one command and returns its exit code.

    Arguments:
        argv: The arguments, by default those of the process.
    """
    try:
        options = build_parser().parse_args(argv)
        with reporting(options.verbose):
            code = options.run(options)
            sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse has printed its help or the version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        complain("interrupted.")
        return 130
    except Exception as error:
        if os.environ.get("EMPRIOR_DEBUG", "0") not in ("", "0"):
            raise
        return _explain(error)


def build_parser() -> argparse.ArgumentParser:
    r"""Returns the parser of all commands."""
    parser = Parser(prog="emprior", description="Learned scalar energy priors for imaging inverse problems.")
    parser.add_argument("--version", action=Version, help="print the version and exit")
    parser.set_defaults(verbose=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (solve, batch, report, sample, train, evaluate, verify, bench, profile, priors, problems, doctor):
        module.add(commands)
    return parser


class Version(argparse.Action):
    r"""Prints the version, which costs an import, only if it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from emprior import __version__

        print(f"emprior {__version__}")
        parser.exit()


def _explain(error: Exception) -> int:
    if isinstance(error, BrokenPipeError):  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, UsageError):
        complain(str(error))
        return 2
    if isinstance(error, EXPECTED):
        complain(str(error))
    else:
        complain(
            f"{type(error).__name__}: {error} (This was not foreseen. EMPRIOR_DEBUG=1 in the environment shows where "
            "it arose; please report it.)"
        )
    return 1
