r"""`emprior bench`: methods on the same measurements, side by side with what they cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emprior.cli._common import (
    Parser,
    UsageError,
    add_command,
    add_device,
    as_usage,
    check_device,
    check_writable,
    complain,
    positive_int,
)

if TYPE_CHECKING:
    from emprior.bench import Bench, Engine, Job, Plan, Record

EXAMPLES = """
emprior bench --suite cifar10 --data cifar10_test.npy --images 64 --out report/
emprior bench --suite cifar10 --data cifar10_test.npy --images 4 --samples 2 --batch 4 --budget 24 --out smoke/
emprior bench --suite mixture --methods posterior --images 8 --samples 16 --out truth/
emprior bench --suite cifar10 --data cifar10_test.npy --lpips lpips_alex.pt --out perceived/
emprior bench --out report/ --into README.md
"""

ENGINES = ("local", "dask")
"""Who runs cells."""

INTO = (
    "with the results, replace what stands in a Markdown file between the lines <!-- bench: SUITE --> and "
    "<!-- /bench -->; with --out alone, of the records that are there: nothing is run"
)
LPIPS = (
    "measure LPIPS as well, by a TorchScript file of a network that maps two image batches (B, 3, H, W) in [-1, 1] to "
    "B distances; records are not mixed with those made without it"
)


def add(commands: Any) -> None:
    parser = add_command(commands, "bench", run, "compare methods on the same measurements, with their cost", EXAMPLES)
    _add_task(parser)
    _add_plan(parser)
    parser.add_argument("--engine", default="local", metavar="NAME", help="who runs cells: local (default), dask")
    workers = "processes of this machine (1), each with the threads of one: see OMP_NUM_THREADS"
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help=workers)
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://head:8786")
    parser.add_argument("--out", required=True, metavar="DIR", help="records, tables and page; what is there is kept")
    parser.add_argument("--into", metavar="FILE", help=INTO)
    add_device(parser)


def _add_task(parser: Parser) -> None:
    parser.add_argument("--suite", metavar="NAME", help="cifar10 (default), mixture, gaussian")
    methods = "names, kinds (posterior, point, plug-and-play, classical) or sources (emprior, deepinv, azula); else all"
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=methods)
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="problems of the suite; by default all")
    parser.add_argument("--data", metavar="DIR|NPY", help="test images, which no network has seen")
    parser.add_argument("--prior", default="cifar10", metavar="NAME|DIR", help="the prior (cifar10)")
    matched = "the denoiser that matches it, for all other methods (cifar10-denoiser)"
    parser.add_argument("--denoiser", default="cifar10-denoiser", metavar="NAME|DIR", help=matched)
    parser.add_argument("--lpips", metavar="PT", help=LPIPS)


def _add_plan(parser: Parser) -> None:
    parser.add_argument("--images", type=positive_int, default=64, metavar="N", help="test images (64)")
    parser.add_argument("--samples", type=positive_int, default=16, metavar="S", help="samples of each image (16)")
    parser.add_argument("--batch", type=positive_int, default=1, metavar="B", help="images at a time (1)")
    budget = "the most network evaluations for an image, in all its samples; by default each method's own"
    parser.add_argument("--budget", type=positive_int, metavar="N", help=budget)
    tune = "try N settings of each method on validation images, and take the best; by default its own settings"
    parser.add_argument("--tune", type=positive_int, default=0, metavar="N", help=tune)
    parser.add_argument("--validation", type=positive_int, default=8, metavar="N", help="images to tune on (8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (0)")


def run(options: argparse.Namespace) -> int:
    out = Path(options.out)
    check_writable("--out", out, out.absolute())
    device = check_device(options.device)

    from emprior.bench import Shelf, report

    job, engine, first = _job(options, str(device)), _engine(options), next(Shelf(out).all(), None)
    if first is not None and _is_only_told(options, job):
        _check_into(options, first.suite)
    elif code := _run_cells(options, job, engine):
        return code
    for path in report(out, options.into):
        print(path)
    return 0


def _run_cells(options: argparse.Namespace, job: Job, engine: Engine) -> int:
    r"""Runs what has no record, says how it goes, and returns the exit code."""
    from emprior.bench import Bench, chosen
    from emprior.bench.records import FAILED
    from emprior.bench.text import networks

    with as_usage():
        methods = chosen(options.methods or ["all"])
        bench = Bench(job)
        problems = _problems(bench, options.problems)
        bench.shelf.check(job.suite, job.plan.facts(), bench.suite.facts)
    _check_into(options, job.suite)
    print("\n".join(networks(fact) for fact in bench.suite.facts), flush=True)
    cells, failed = [(problem, method) for problem in problems for method in methods], 0
    try:
        for count, done in enumerate(engine.run(bench, cells), 1):
            failed += done.record.status == FAILED
            told = f"{count:>4}/{len(cells)}  {_line(done.record)}{'  (kept)' if done.known else ''}"
            print("\n".join([*done.lines, told]), flush=True)
    except KeyboardInterrupt:
        complain("interrupted. The same command does what is left.")
        return 130
    if failed:
        print(f"{failed} of {len(cells)} failed; the tables say why")
    return 0


def _is_only_told(options: argparse.Namespace, job: Job) -> bool:
    r"""Whether nothing is said of what to run, so that records that are there are only to be shown."""
    from emprior.bench import Plan, Sources

    said = options.suite, options.methods, options.problems
    return not any(said) and (job.plan, job.sources) == (Plan(), Sources())


def _check_into(options: argparse.Namespace, suite: str) -> None:
    r"""Raises a :class:`UsageError`, before hours of work, unless the file has a place for the results."""
    from emprior.bench.block import span

    if options.into is None:
        return
    with as_usage("--into"):
        span(options.into, suite)
    check_writable("--into", Path(options.into), Path(options.into).absolute().parent)


def _job(options: argparse.Namespace, device: str) -> Job:
    from emprior.bench import Job, Sources

    data, lpips = _absolute(options.data), _absolute(options.lpips)
    sources = Sources(data, _shared(options.prior), _shared(options.denoiser), options.seed, lpips)
    return Job(options.suite or "cifar10", sources, _plan(options, device), Path(options.out).absolute())


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _shared(name: str) -> str:
    r"""Returns the name of a network, or the path of its folder from anywhere."""
    return str(Path(name).absolute()) if (Path(name) / "card.yaml").is_file() else name


def _engine(options: argparse.Namespace) -> Engine:
    from emprior._check import nearest
    from emprior.bench import Dask, Local

    if options.engine not in ENGINES:
        raise UsageError(f"unknown engine {options.engine!r}. {nearest(options.engine, ENGINES)}")
    if (options.scheduler is not None) != (options.engine == "dask"):
        raise UsageError(
            "--engine dask and --scheduler, the address of a Dask cluster, go together, such as: --engine dask "
            "--scheduler tcp://head:8786. On this machine alone: --workers N"
        )
    try:
        return Local(options.workers) if options.engine == "local" else Dask(options.scheduler)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from error


def _plan(options: argparse.Namespace, device: str) -> Plan:
    from emprior.bench import Plan

    return Plan(
        images=options.images, samples=options.samples, seed=options.seed, budget=options.budget, tune=options.tune,
        validation=options.validation, batch=options.batch, device=device,
    )  # fmt: skip


def _problems(bench: Bench, names: list[str] | None) -> list[str]:
    from emprior._check import nearest

    suite = bench.suite
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
