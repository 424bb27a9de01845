r"""`emprior verify`: samplers against posteriors that are known exactly."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from emprior.cli._common import add_command, as_json, as_usage, positive_int

EXAMPLES = """
emprior verify
emprior verify --suite gaussian --method mala --steps 4000
emprior verify --suite gaussian modes --peers
emprior verify --suite images --prior runs/mine/prior
"""

PROBLEM, METHOD, STATUS, FIGURE = 34, 21, 10, 10
"""The widths of columns; a figure's is wider where its name is."""


def add(commands: Any) -> None:
    parser = add_command(commands, "verify", run, "check samplers against posteriors that are known", EXAMPLES)
    suites = "gaussian, modes, calibration (these three), calibration-long, images, signals, efficiency"
    parser.add_argument("--suite", nargs="+", metavar="NAME", help=suites)
    parser.add_argument("--method", metavar="NAME", help="a method that samples (the suite's own)")
    peers = "samplers of deepinv to run beside it on gaussian and modes, such as deepinv-dps; all without a name"
    parser.add_argument("--peers", nargs="*", metavar="NAME", help=peers)
    parser.add_argument(
        "--prior",
        metavar="NAME|DIR",
        help="a prior to sample beside the mixture of images, such as one learned from it",
    )
    parser.add_argument("--steps", type=positive_int, metavar="N", help="iterations; by default the method's own")
    parser.add_argument("--images", type=positive_int, default=2, metavar="B", help="images of each problem (2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (0)")
    parser.add_argument("--json", action="store_true", help="print each row as one JSON object")


def run(options: argparse.Namespace) -> int:
    from emprior.verify import DEFAULT, PEERS, verify

    peers = () if options.peers is None else options.peers or tuple(PEERS)
    with as_usage():
        rows = verify(
            options.suite or DEFAULT,
            options.method,
            peers=peers,
            prior=options.prior,
            steps=options.steps,
            images=options.images,
            seed=options.seed,
        )
    failed, table = 0, Table()
    for row in rows:
        failed += bool(row.failures)
        print(as_json(asdict(row)) if options.json else table.lines(row), flush=True)
    if not options.json:
        print(f"\n{failed} out of bars" if failed else "\nall within their bars")
    return int(failed > 0)


class Table:
    r"""Lines up rows under the names of their figures, and starts anew where a suite or a figure is new."""

    def __init__(self) -> None:
        self.suite = ""
        self.names: list[str] = []

    def lines(self, row: Any) -> str:
        r"""Returns the line of a row, after a heading if it needs one."""
        heading = []
        if row.suite != self.suite or not set(row.figures) <= set(self.names):
            gap = [""] if self.suite else []
            self.suite, self.names = row.suite, list(row.figures)
            heading = [*gap, *self._heading(row)]
        return "\n".join([*heading, self._line(row)])

    def _heading(self, row: Any) -> list[str]:
        bars = {name: _bar(*row.bars[name]) if name in row.bars else "" for name in self.names}
        names = self._columns(row.suite, "method", "status") + self._figures({name: name for name in self.names})
        lines = [names + f"{'gradients':>{FIGURE}}{'seconds':>{FIGURE}}"]
        return [*lines, self._columns("  bars", "", "") + self._figures(bars)] if row.bars else lines

    def _line(self, row: Any) -> str:
        problem = f"{row.problem}, {row.prior}" if row.prior else row.problem
        start = self._columns(problem, row.method, row.status)
        if not row.figures:
            return start + row.verdict
        texts = {name: f"{value:.3g}{'!' if name in row.failures else ''}" for name, value in row.figures.items()}
        return start + self._figures(texts) + f"{row.evaluations:>{FIGURE}}{row.seconds:>{FIGURE}.1f}"

    def _columns(self, problem: str, method: str, status: str) -> str:
        return f"{problem:{PROBLEM - 1}} {method:{METHOD - 1}} {status:{STATUS}}"

    def _figures(self, texts: dict[str, str]) -> str:
        return "".join(f" {texts.get(name, '-'):>{max(FIGURE, len(name) + 2) - 1}}" for name in self.names)


def _bar(low: float, high: float) -> str:
    if high in (1, float("inf")) and low > 0:
        return f">= {low:.3g}"
    return f"<= {high:.3g}" if low == 0 else f"{low:.3g}..{high:.3g}"
