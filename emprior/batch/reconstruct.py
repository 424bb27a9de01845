r"""The call: what is given becomes a job, and the job is done."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emprior._check import nearest
from emprior.batch.engines import Engine, Local
from emprior.batch.items import Folder, Source, Table
from emprior.batch.job import QUANTILES, Job
from emprior.batch.plan import lay
from emprior.batch.run import Summary, check_shard, run
from emprior.batch.sinks import FORMATS
from emprior.batch.stacks import SUFFIXES, Stack
from emprior.energy import Prior
from emprior.problem import Problem

if TYPE_CHECKING:
    from deepinv.physics import Physics


def reconstruct_many(
    operator: Physics | Problem | str | None,
    items: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    prior: str | os.PathLike[str] | Prior = "cifar10",
    *,
    method: str = "map",
    weight: float | str = 1.0,
    samples: int | None = None,
    sigma: float | str | None = None,
    steps: int | None = None,
    seed: int = 0,
    save: Sequence[str] = ("estimate",),
    quantiles: Sequence[float] = QUANTILES,
    format: str = "files",
    truth: str | os.PathLike[str] | Source | None = None,
    chunk: int = 64,
    batch: int = 64,
    threads: int = 1,
    device: str = "cpu",
    engine: Engine | None = None,
    shard: tuple[int, int] = (0, 1),
    retry: bool = False,
    progress: bool | None = None,
) -> Summary:
    r"""Solves for ten or a million images, and writes each reconstruction as it comes.

    For item `i` it is what `emprior.solve` gives, in batches of a fixed size:

    .. math:: -\log p(x_i \mid y_i) = \frac{1}{2 \sigma^2} \|y_i - A_i x_i\|^2 + w E(x_i) + \mathrm{const}.

    The output's folder holds

    - `ID.npy`, the estimate of each item under its id, and `std/ID.npy`, `quantiles/ID.npy` `(Q, *shape)`,
      `samples/ID.npy` `(S, *shape)` and `traces/ID.npy` `(3, S, 100)`, the step, the energy and the data term in nats
      at a hundred places of each chain's run, if they are to be saved; or `result.zarr` or `result.h5`, arrays of all;
    - `records.jsonl`, a line for each item in order: its id, status, residual, seconds, with samplers R-hat, effective
      sample size and verdict, with a truth its PSNR in dB; and `errors.jsonl`, the lines of items that failed;
    - `.batch`, what the batch needs to go on: the plan, the list of items and the records of each finished chunk.

    Work is cut into chunks. A chunk is written whole and then declared finished; called again, the function does
    those that are left, after an interruption or the loss of any process. SIGINT or SIGTERM lets the chunks at work
    finish, a second one drops them. A lost worker's chunk is given to another. It is safe against the end of
    processes; a power failure may take the last chunks' pixels, which only a file system that was synced keeps.

    Randomness depends on the seed, the item's name and its measurements alone: `emprior.batch.item_seed` gives the
    seed with which `emprior.solve` does the same. The last bits depend on the number of images
    that are solved at a time, so every call of the solver holds the same number, with an item repeated where one
    lacks. Results of equal lists and options are then equal bit for bit on CPUs of one kind with as many threads,
    whatever the engine, the number of workers, the shards, the interruptions, and the items that fail beside them.
    They agree within rounding, which chains amplify, where the batch size changes with `chunk`, `batch` or the number
    of items, and where an item can be solved only alone, as when memory is short. Where items name problems, those of
    one chunk and one problem are solved together, in a power of two of images: `chunk` is then among the options.

    Arguments:
        operator: A deepinv physics, a problem, or its name or YAML file; `None` if a CSV names one for each item.
        items: A folder of `.npy` files and images; a stack `(N, ...)` in a `.npy`, HDF5 or zarr file, with
            `FILE::NAME` to choose an array; or a CSV with the columns `path`, `id`, `problem` and `truth`, all but the
            first optional. The id of a file is its path without the suffix, that of a row of a stack its number.
        out: The folder of the output, new, empty or of the same batch, and apart from the input.
        prior: A prior, the name of a bundled one, or the path of a prior's folder.
        method: The name of a method; see `emprior.solve`, also for the next five.
        weight: The factor of the prior energy, or `"estimate"`.
        samples: Chains, or starts of MAP.
        sigma: The noise level, instead of the problem's, or `"estimate"`.
        steps: Iterations of the method.
        seed: The seed of all randomness.
        save: What to keep: `"estimate"`, `"traces"`, and of methods that sample `"std"`, `"quantiles"`, `"samples"`.
        quantiles: The probabilities `Q` of the quantiles.
        format: `"files"`, `"zarr"` or `"hdf5"`; the latter two hold items of one shape.
        truth: The true images, if known: a folder with the items' ids, or a stack in the items' order.
        chunk: The most items in a chunk; chunks are made about equal.
        batch: The most images solved at a time; batches are made about equal.
        threads: The threads of each worker.
        device: Where to compute.
        engine: `emprior.batch.Local(workers)`, the default with one worker, or `emprior.batch.Dask(scheduler)`.
        shard: Does chunks `i`, `i + n`, ... alone, given `(i, n)`, for job arrays; the last one to end completes the
            lists.
        retry: Whether to do chunks again in which items failed.
        progress: Whether to show a bar; by default only on a terminal.

    Returns:
        How many items were done and failed.

    Raises:
        ValueError: An option is unknown, items are wrong, or `out` was begun with other items or options.
        FileExistsError: `out` holds something else, or lies in the input.
        OSError: The input cannot be listed, or the output not be written; what is finished stays.
        ModuleNotFoundError: An optional package is needed; the message names it.
    """
    check_shard(shard)
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}. {nearest(str(format), FORMATS)}")
    job = Job(
        operator, open_source(items), Path(out).absolute(), prior, method, weight, samples, sigma, steps, seed,
        tuple(save), tuple(quantiles), FORMATS[format](), None if truth is None else open_source(truth),
        chunk, batch, threads, device,
    )  # fmt: skip
    shown = sys.stderr.isatty() if progress is None else progress
    return run(lay(job), engine or Local(), shard, retry, shown)


def open_source(items: str | os.PathLike[str] | Source) -> Source:
    r"""Returns the source at a path: a folder, a stack (`FILE::NAME` for one of several arrays) or a CSV.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is something else.
    """
    if isinstance(items, Source):
        return items
    if not isinstance(items, str | os.PathLike):
        raise TypeError(
            f"items is a {type(items).__name__}, expected a path. Save an array first: numpy.save(path, y)."
        )
    text, _, name = os.fspath(items).partition("::")
    path = Path(text).resolve()
    if not path.exists():
        raise FileNotFoundError(f"there is no input {text}. Check the path; it is relative to {Path.cwd()}.")
    if path.suffix.lower() in SUFFIXES:
        return Stack(path, name)
    if path.is_dir():
        return Folder(path)
    if path.suffix.lower() == ".csv":
        return Table(path)
    raise ValueError(
        f"{text} is no list of items. Give a folder, a stack ({', '.join(SUFFIXES)}) or a CSV; "
        "a single image is solved by emprior.solve."
    )
