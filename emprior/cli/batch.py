r"""`emprior batch`: many inverse problems, from a folder, a stack or a list to files or arrays."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emprior.cli._common import (
    Parser,
    UsageError,
    add_command,
    add_device,
    as_usage,
    check_device,
    check_estimates,
    check_prior,
    check_problem,
    check_writable,
    complain,
    is_terminal,
    positive_int,
    positive_or_estimate,
)

if TYPE_CHECKING:
    from emprior.batch import Engine
    from emprior.batch.job import Job

EXAMPLES = """
emprior batch --problem cifar10/denoising --input noisy --prior cifar10 --out restored
emprior batch --problem cifar10/deblurring --input y.npy --method posterior --save estimate std --format zarr --out mean
emprior batch --input list.csv --out restored --workers 8 --dry-run
emprior batch --problem ct.yaml --input scans --out slices --shard 3/16
emprior batch --problem ct.yaml --input scans --out slices --engine dask --scheduler tcp://head:8786
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "batch", run, "solve many inverse problems with a prior", EXAMPLES)
    _add_task(parser)
    _add_work(parser)
    add_device(parser)


def _add_task(parser: Parser) -> None:
    parser.add_argument("--problem", metavar="NAME|YAML", help="of all items; a CSV may name one for each instead")
    parser.add_argument(
        "--input",
        required=True,
        metavar="DIR|STACK|CSV",
        help="a folder of .npy files and images, a stack (.npy, .h5, .zarr; FILE::NAME for one of several arrays), or "
        "a CSV with the columns path, id, problem, truth",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="estimates, records and errors go there")
    parser.add_argument("--prior", default="cifar10", metavar="NAME|DIR", help="see: emprior priors list (cifar10)")
    parser.add_argument("--method", default="map", help="as of emprior solve (map)")
    parser.add_argument("--samples", type=positive_int, metavar="S", help="chains, or starts of map")
    parser.add_argument("--steps", type=positive_int, metavar="N", help="iterations; by default the method's own")
    parser.add_argument(
        "--weight", type=positive_or_estimate, default=1.0, metavar="W", help="factor of the prior (1), or estimate"
    )
    parser.add_argument(
        "--sigma", type=positive_or_estimate, metavar="S", help="noise level, instead of the problem's, or estimate"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (0)")
    truth = "true images for the PSNR: files of the items' ids, or a stack in their order"
    parser.add_argument("--truth", metavar="DIR|STACK", help=truth)
    outputs = "of estimate (default), std, quantiles, samples, traces"
    parser.add_argument("--save", nargs="+", default=["estimate"], metavar="WHAT", help=outputs)
    parser.add_argument("--quantiles", nargs="+", type=float, metavar="Q", help="which quantiles (0.05 0.5 0.95)")
    parser.add_argument("--format", default="files", metavar="NAME", help="files (default), zarr or hdf5")


def _add_work(parser: Parser) -> None:
    parser.add_argument("--chunk", type=positive_int, default=64, metavar="N", help="items finished as a whole (64)")
    parser.add_argument("--batch", type=positive_int, default=64, metavar="N", help="images solved at a time (64)")
    parser.add_argument("--engine", default="local", choices=["local", "dask"], help="who does the chunks (local)")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes of this machine (1)")
    parser.add_argument("--threads", type=positive_int, default=1, metavar="N", help="threads of each worker (1)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://head:8786")
    parser.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N", help="do every N-th chunk from I on, I from 0 to N - 1"
    )
    parser.add_argument("--retry", action="store_true", help="do chunks again in which items failed")
    parser.add_argument("--dry-run", action="store_true", help="solve one batch and print what all would cost")


def run(options: argparse.Namespace) -> int:
    check_device(options.device)
    if options.problem is not None:
        check_problem(options.problem)
    check_prior(options.prior)
    check_writable("--out", options.out, options.out.resolve().parent)
    job, engine = _job(options), _engine(options)
    check_estimates(options)

    from emprior.batch import run as runs
    from emprior.batch.plan import lay

    if options.dry_run:
        return _preview(job, options)
    with as_usage():
        plan = lay(job)
    summary = runs.run(plan, engine, options.shard, options.retry, is_terminal())
    print(summary)
    if summary.interrupted:
        complain("interrupted. The same command does what is left.")
        return 130
    return 0 if summary.ok else 1


def _preview(job: Job, options: argparse.Namespace) -> int:
    r"""Solves one batch, prints what all would cost, and leaves the output's folder as it was."""
    from emprior.batch.plan import drafted
    from emprior.batch.preview import preview

    with ExitStack() as stack:
        with as_usage():
            plan = stack.enter_context(drafted(job))
        print(preview(plan, options.workers, options.shard))
    return 0


def _job(options: argparse.Namespace) -> Job:
    from emprior._check import nearest
    from emprior.batch.job import QUANTILES, Job
    from emprior.batch.reconstruct import open_source
    from emprior.batch.sinks import FORMATS

    if options.format not in FORMATS:
        raise UsageError(f"--format: unknown format {options.format!r}. {nearest(options.format, FORMATS)}")
    try:
        source = open_source(options.input)
        truths = None if options.truth is None else open_source(options.truth)
        sink = FORMATS[options.format]()
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
    with as_usage():
        return Job(
            operator=options.problem,
            source=source,
            out=options.out.absolute(),
            prior=options.prior,
            method=options.method,
            weight=options.weight,
            samples=options.samples,
            sigma=options.sigma,
            steps=options.steps,
            seed=options.seed,
            save=tuple(options.save),
            quantiles=tuple(options.quantiles or QUANTILES),
            sink=sink,
            truths=truths,
            chunk=options.chunk,
            batch=options.batch,
            threads=options.threads,
            device=options.device,
        )


def _engine(options: argparse.Namespace) -> Engine:
    from emprior.batch import Dask, Local

    if options.scheduler is not None and options.engine != "dask":
        raise UsageError("--scheduler is the address of a Dask cluster. Add --engine dask.")
    try:
        return Local(options.workers) if options.engine == "local" else Dask(options.scheduler, options.workers)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from error


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, such as 0/16, got {text!r}")
    return int(index), int(count)
