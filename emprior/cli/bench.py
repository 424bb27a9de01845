r"""`emprior bench`: methods on the same measurements, side by side with what they cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emprior.cli._common import (
    UsageError,
    add_command,
    add_device,
    as_usage,
    check_device,
    check_writable,
    positive_int,
)

if TYPE_CHECKING:
    from emprior.bench.plan import Plan
    from emprior.bench.records import Record
    from emprior.bench.suites import Suite

EXAMPLES = """
emprior bench --suite cifar10 --data cifar10_test.npy --images 64 --out report/
emprior bench --suite cifar10 --data cifar10_test.npy --images 4 --samples 2 --batch 4 --budget 24 --out smoke/
emprior bench --suite mixture --methods posterior --images 8 --samples 16 --out truth/
emprior bench --suite gaussian --methods emprior deepinv-dps --images 4 --out small/
"""

ENGINES = ("local",)
"""Where cells run."""


def add(commands: Any) -> None:
    parser = add_command(commands, "bench", run, "compare methods on the same measurements, with their cost", EXAMPLES)
    parser.add_argument("--suite", default="cifar10", metavar="NAME", help="cifar10 (default), mixture, gaussian")
    methods = "names, kinds (posterior, point, plug-and-play, classical), sources (emprior, deepinv, azula), or all"
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="NAME", help=methods)
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="problems of the suite; by default all")
    parser.add_argument("--data", metavar="DIR|NPY", help="test images, which no network has seen")
    parser.add_argument("--prior", default="cifar10", metavar="NAME|DIR", help="the prior (cifar10)")
    matched = "the denoiser that matches it, for all other methods (cifar10-denoiser)"
    parser.add_argument("--denoiser", default="cifar10-denoiser", metavar="NAME|DIR", help=matched)
    parser.add_argument("--images", type=positive_int, default=64, metavar="N", help="test images (64)")
    parser.add_argument("--samples", type=positive_int, default=16, metavar="S", help="samples of each image (16)")
    parser.add_argument("--batch", type=positive_int, default=1, metavar="B", help="images at a time (1)")
    budget = "the most network evaluations for an image, in all its samples; by default each method's own"
    parser.add_argument("--budget", type=positive_int, metavar="N", help=budget)
    tune = "try N settings of each method on validation images, and take the best; by default its own settings"
    parser.add_argument("--tune", type=positive_int, default=0, metavar="N", help=tune)
    parser.add_argument("--validation", type=positive_int, default=8, metavar="N", help="images to tune on (8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (0)")
    parser.add_argument("--engine", default="local", metavar="NAME", help="where to run: local (default)")
    parser.add_argument("--out", required=True, metavar="DIR", help="records, tables and page; what is there is kept")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    out = Path(options.out)
    check_writable("--out", out, out.absolute())
    device = check_device(options.device)

    from emprior._check import nearest

    if options.engine not in ENGINES:
        raise UsageError(f"unknown engine {options.engine!r}. {nearest(options.engine, ENGINES)}")

    from emprior.bench import report
    from emprior.bench.methods import chosen
    from emprior.bench.records import FAILED, Shelf
    from emprior.bench.runner import run as run_cells
    from emprior.bench.suites import Sources, load_suite
    from emprior.bench.text import networks
    from emprior.bench.tune import tuned

    with as_usage():
        methods = chosen(options.methods)
        suite = load_suite(options.suite, Sources(options.data, options.prior, options.denoiser, options.seed))
        problems = _problems(suite, options.problems)
        shelf, plan = Shelf(out), _plan(options, str(device))
        shelf.check(suite.name, plan.facts())
    say("\n".join(networks(fact) for fact in suite.facts))
    total, done, failed = len(problems) * len(methods), 0, 0
    for record, known in run_cells(suite, problems, methods, plan, shelf, tuned(shelf, say) if plan.tune else None):
        done, failed = done + 1, failed + (record.status == FAILED)
        print(f"{done:>4}/{total}  {_line(record)}{'  (kept)' if known else ''}", flush=True)
    for path in report(out):
        print(path)
    if failed:
        print(f"{failed} of {total} failed; the tables say why")
    return 0


def _plan(options: argparse.Namespace, device: str) -> Plan:
    from emprior.bench.plan import Plan

    return Plan(
        images=options.images, samples=options.samples, seed=options.seed, budget=options.budget, tune=options.tune,
        validation=options.validation, batch=options.batch, device=device,
    )  # fmt: skip


def say(message: str) -> None:
    print(message, flush=True)


def _problems(suite: Suite, names: list[str] | None) -> list[str]:
    from emprior._check import nearest

    for name in names or ():
        if name not in suite.problems:
            raise ValueError(f"suite {suite.name!r} has no problem {name!r}. {nearest(name, suite.problems)}")
    return list(names or suite.problems)


def _line(record: Record) -> str:
    start = f"{record.problem:28} {record.method:24}"
    if record.status == "failed":
        return f"{start} failed: {record.reason}"
    values = record.figures.get("psnr", [])
    finite = [value for value in values if value is not None]
    mean = f"{sum(finite) / len(finite):6.2f} dB" if finite else "  nothing finite"
    lost = f", {record.failures} images failed" if record.failures else ""
    return f"{start} {mean}  {record.evaluations:8.0f} evaluations  {record.run.get('seconds', 0):7.2f} s{lost}"
