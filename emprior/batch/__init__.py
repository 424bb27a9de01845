r"""Many inverse problems at once: `reconstruct_many`, which can be stopped, resumed, spread and repeated.

Items are read (`items`, `stacks`), listed and cut into chunks (`manifest`), which with the options are a plan (`job`,
`plan`). An engine (`engines`, `cluster`) hands chunks to one function (`chunk`), which writes what it finds (`sinks`)
and records that it has (`ledger`).
"""

from __future__ import annotations

from emprior.batch.cluster import Dask
from emprior.batch.engines import Engine, Local
from emprior.batch.items import Folder, Item, Source, Table
from emprior.batch.job import item_seed
from emprior.batch.preview import Preview
from emprior.batch.reconstruct import reconstruct_many
from emprior.batch.run import Summary
from emprior.batch.stacks import Stack

__all__ = [
    "Dask",
    "Engine",
    "Folder",
    "Item",
    "Local",
    "Preview",
    "Source",
    "Stack",
    "Summary",
    "Table",
    "item_seed",
    "reconstruct_many",
]
