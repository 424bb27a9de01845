r"""A job laid down on disk: made once, found again by whoever goes on with it."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from emprior._files import atomic
from emprior.batch.items import Item
from emprior.batch.job import Job
from emprior.batch.ledger import PLAN, Ledger
from emprior.batch.manifest import FILE, INDEX, Manifest, even, write_manifest

FORMAT = "emprior batch 2"


@dataclass(frozen=True, eq=False)
class Plan:
    r"""What every process that works on a batch has to agree on.

    Arguments:
        job: What to do; its chunks and batches are of the sizes that suit the number of items.
        manifest: The items.
        config: All that the results depend on.
    """

    job: Job
    manifest: Manifest
    config: dict[str, Any]

    @property
    def ledger(self) -> Ledger:
        r"""The records of the batch."""
        return Ledger(self.job.out)

    @property
    def hash(self) -> str:
        r"""The digest of the configuration."""
        return hashlib.blake2b(json.dumps(self.config, sort_keys=True).encode(), digest_size=16).hexdigest()

    def chunks(self, shard: tuple[int, int] = (0, 1)) -> range:
        r"""Returns the chunks of shard `i` of `n`: `i`, `i + n` and so on."""
        return range(shard[0], len(self.manifest), shard[1])


def lay(job: Job) -> Plan:
    r"""Lists the items of a job and lays down its plan, or finds the same plan again.

    Of several processes that do so at once one lays the plan, and the others compare theirs with it. What is laid is
    never replaced, since others may be at work on it.

    Raises:
        FileExistsError: The output's folder holds something else, or lies in the input's.
        ValueError: There is a plan of other items or options, or the items are wrong; the message names what differs.
        OSError: The input cannot be listed or the output not be written.
    """
    check_out(job)
    ledger = Ledger(job.out)
    with ledger.scratch() as scratch:
        plan = _draft(job, scratch)
        _claim(plan, scratch)
        _check_same(plan, _known(ledger))
        for name in (FILE, INDEX):
            _place(scratch / name, ledger.folder / name)
    return replace(plan, manifest=replace(plan.manifest, folder=ledger.folder))


@contextmanager
def drafted(job: Job) -> Iterator[Plan]:
    r"""Gives the plan of a job and lays nothing in the output's folder; raises what :func:`lay` does."""
    check_out(job)
    with TemporaryDirectory(prefix="emprior-") as folder:
        plan = _draft(job, Path(folder))
        if (plan.ledger.folder / PLAN).exists():
            _check_same(plan, _known(plan.ledger))
        yield plan


def check_out(job: Job) -> None:
    r"""Raises a FileExistsError unless the output's folder is new, empty or that of a batch, and apart from the input.

    Example of what is refused: results among the measurements would be taken for measurements the next time.
    """
    out, source = job.out.resolve(), job.source.path.resolve()
    folder = source if source.is_dir() else source.parent
    if source.is_dir() and (out.is_relative_to(folder) or folder.is_relative_to(out)):
        raise FileExistsError(f"the output {job.out} and the input {source} lie in one another. Choose another output.")
    if out.is_file() or (out.is_dir() and not (out / ".batch").is_dir() and any(out.iterdir())):
        raise FileExistsError(
            f"{job.out} already holds something that is no batch, and it was left alone. Give a new or an empty folder."
        )


def _draft(job: Job, folder: Path) -> Plan:
    r"""Returns the plan of a job, with its manifest in a folder."""
    job = job.rooted()
    manifest, digest, problems = write_manifest(_checked(job), folder, job.chunk)
    if job.operator is None and "" in problems:
        raise ValueError("some items name no problem. Fill the column 'problem' of each, or give one for all.")
    if job.truths is not None:
        job.truths.check_beside(manifest.count)
    job = replace(job, chunk=manifest.chunk, batch=even(manifest.chunk, job.batch))
    return Plan(job, manifest, job.describe(digest, sorted(problems - {""})))


def _checked(job: Job) -> Iterator[Item]:
    for item in job.source.items():
        job.sink.check(item)
        yield item


def _header(plan: Plan) -> dict[str, Any]:
    try:
        own = version("emprior")
    except PackageNotFoundError:
        own = "unknown"
    counts = {"items": plan.manifest.count, "chunks": len(plan.manifest)}
    versions = {"emprior": own, "torch": torch.__version__}
    return {"format": FORMAT, "hash": plan.hash, **counts, "config": plan.config, "versions": versions}


def _claim(plan: Plan, scratch: Path) -> None:
    r"""Lays down a plan, whole, unless there is one."""
    made, target = scratch / PLAN, plan.ledger.folder / PLAN
    text = json.dumps(_header(plan), indent=2) + "\n"
    with atomic(made) as path:
        path.write_text(text, encoding="utf-8")
    with suppress(FileExistsError):
        try:
            os.link(made, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with target.open("x", encoding="utf-8") as file:
                file.write(text)


def _known(ledger: Ledger) -> dict[str, Any]:
    r"""Returns the plan that is laid down."""
    path = ledger.folder / PLAN
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {name: tree[name] for name in ("format", "hash", "items", "config", "versions")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Choose another output; or remove that file, and give the very command "
            "that the batch was begun with."
        ) from error


def _place(made: Path, target: Path) -> None:
    r"""Puts a file in place, unless one like it is there."""
    if not target.is_file() or not filecmp.cmp(made, target, shallow=False):
        os.replace(made, target)


def _check_same(plan: Plan, known: dict[str, Any]) -> None:
    if known["format"] != FORMAT:
        raise ValueError(
            f"{plan.job.out} was begun with emprior {known['versions']['emprior']}, whose plans were of another form. "
            "Finish it with that version, or choose another output."
        )
    if known["hash"] == plan.hash:
        return
    old, new, cure = known["config"], plan.config, _cure(plan)
    if old["input"] == new["input"] and old["items"] != new["items"]:
        raise ValueError(
            f"{plan.job.out} was begun with {known['items']} items, and {new['input']} now lists other ones "
            f"({plan.manifest.count}). Restore them, or {cure}"
        )
    differing = [f"{name} was {old.get(name)!r} and is {new[name]!r}" for name in new if old.get(name) != new[name]]
    raise ValueError(f"{plan.job.out} was begun with other options: {'; '.join(differing)}. Use the same, or {cure}")


def _cure(plan: Plan) -> str:
    if plan.ledger.finished():
        return "choose another output."
    folder = plan.ledger.folder
    return f"choose another output. No chunk is finished: if no other process is at work on it, remove {folder}"
