r"""A job laid down on disk: made once, found again by whoever goes on with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from emprior._files import atomic
from emprior.batch.items import Item
from emprior.batch.job import Job
from emprior.batch.ledger import Ledger
from emprior.batch.manifest import FILE, INDEX, Manifest, even, write_manifest

FORMAT = "emprior batch 1"


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
    r"""Lists the items of a job and lays down its plan, or finds the same plan again if a chunk of it is finished.

    Raises:
        FileExistsError: The output's folder holds something else, or lies in the input's.
        ValueError: There is a plan of other items or options, or the items are wrong; the message names what differs.
        OSError: The input cannot be listed or the output not be written.
    """
    check_out(job)
    ledger = Ledger(job.out)
    with ledger.scratch() as scratch:
        manifest, digest, problems = write_manifest(_checked(job), scratch, job.chunk)
        if job.operator is None and "" in problems:
            raise ValueError("some items name no problem. Fill the column 'problem' of each, or give one for all.")
        job = replace(job, chunk=manifest.chunk, batch=even(manifest.chunk, job.batch))
        plan = Plan(job, replace(manifest, folder=ledger.folder), job.describe(digest, sorted(problems - {""})))
        if ledger.finished():
            _check_same(plan, json.loads((ledger.folder / "plan.json").read_text(encoding="utf-8")))
            return plan
        for name in (FILE, INDEX):
            os.replace(scratch / name, ledger.folder / name)
    with atomic(ledger.folder / "plan.json") as path:
        path.write_text(json.dumps(_header(plan), indent=2) + "\n", encoding="utf-8")
    return plan


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


def _check_same(plan: Plan, known: dict[str, Any]) -> None:
    if known["hash"] == plan.hash:
        return
    old, new = known["config"], plan.config
    if known["format"] == FORMAT and old["input"] == new["input"] and old["items"] != new["items"]:
        raise ValueError(
            f"{plan.job.out} was begun with {known['items']} items, and {new['input']} now lists other ones "
            f"({plan.manifest.count}). Restore them, or choose another output."
        )
    differing = [f"{name} was {old.get(name)!r} and is {new[name]!r}" for name in new if old.get(name) != new[name]]
    raise ValueError(
        f"{plan.job.out} was begun with other options: {'; '.join(differing)}. Use the same, or choose another output."
    )
