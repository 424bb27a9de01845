r"""`emprior verify`: samplers against posteriors that are known exactly."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from emprior.cli._common import add_command, as_json, as_usage, positive_int

EXAMPLES = """
emprior verify
emprior verify --suite gaussian --method mala --steps 4000
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "verify", run, "check samplers against posteriors that are known", EXAMPLES)
    parser.add_argument("--suite", nargs="+", metavar="NAME", help="gaussian, modes (both)")
    parser.add_argument("--method", metavar="NAME", help="a method that samples (the suite's own)")
    parser.add_argument("--steps", type=positive_int, metavar="N", help="iterations; by default the method's own")
    parser.add_argument("--images", type=positive_int, default=2, metavar="B", help="images of each problem (2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (0)")
    parser.add_argument("--json", action="store_true", help="print each row as one JSON object")


def run(options: argparse.Namespace) -> int:
    from emprior.verify import SUITES, verify

    with as_usage():
        rows = verify(
            options.suite or tuple(SUITES),
            options.method,
            steps=options.steps,
            images=options.images,
            seed=options.seed,
        )
    failed = 0
    for row in rows:
        failed += bool(row.failures)
        print(as_json(asdict(row)) if options.json else _line(row), flush=True)
    if not options.json:
        print(f"{failed} out of bars" if failed else "all within their bars")
    return int(failed > 0)


def _line(row: Any) -> str:
    figures = ", ".join(
        f"{name} {value:.3g}{' (!)' if name in row.failures else ''}" for name, value in row.figures.items()
    )
    cost = f"{row.evaluations} gradients, {row.seconds:.1f} s"
    return f"{row.problem:30} {row.method:10} {row.status:8} {figures}; {cost}"
