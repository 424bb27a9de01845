r"""`emprior doctor`: whether this copy works, and how fast."""

from __future__ import annotations

import argparse
from typing import Any

from emprior.cli._common import (
    add_command,
    add_device,
    as_json,
    as_usage,
    check_device,
    check_prior,
    positive_int,
)

EXAMPLES = """
emprior doctor
emprior doctor --shape 3 64 64 --batch 4
emprior doctor --device cuda --json
"""


def add(commands: Any) -> None:
    parser = add_command(
        commands, "doctor", run, "check this installation, and print what a bug report needs", EXAMPLES
    )
    parser.add_argument("--prior", default="cifar10", metavar="NAME|DIR", help="whose gradient is timed (cifar10)")
    parser.add_argument(
        "--shape", nargs=3, type=positive_int, metavar="N", help="C H W of the images timed; by default the prior's"
    )
    parser.add_argument("--batch", type=positive_int, default=16, metavar="B", help="how many at a time (16)")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(options: argparse.Namespace) -> int:
    check_prior(options.prior)
    check_device(options.device)

    from emprior.doctor import examine

    shape = None if options.shape is None else tuple(options.shape)
    with as_usage("--shape"):
        report = examine(options.prior, shape, options.batch, options.device)
    print(as_json(report.facts()) if options.json else report)
    return 0 if report.ok else 1
