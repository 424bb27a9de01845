r"""What a batch is to do: everything that its results depend on, and where they go."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from emprior._check import check_positive, nearest
from emprior._noise import derive_seed
from emprior._solve import solve
from emprior.batch.identity import identify, identify_prior, prior_shape
from emprior.batch.items import Item, Source
from emprior.batch.sinks import OUTPUTS, Files, Sink
from emprior.energy import Prior
from emprior.hub import find_prior, load_prior
from emprior.operators import without_noise
from emprior.problem import Problem, find_problem, load_problem
from emprior.result import Result
from emprior.solvers import METHODS

if TYPE_CHECKING:
    from deepinv.physics import Physics

Made = TypeVar("Made")

QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, eq=False)
class Job:
    r"""What is done to every item, and how work is cut. It can be pickled if its operator and prior can.

    Arguments:
        operator: A problem, its name or its YAML file, or a deepinv physics; `None` if each item names its own.
        source: Where the measurements are.
        out: The folder of the output.
        prior: A prior, the name of a bundled one, or the path of a prior's folder.
        method: The name of a method of `emprior.solve`; so are the next five.
        weight: The factor of the prior energy.
        samples: Chains, or starts of MAP.
        sigma: The noise level, instead of the problem's.
        steps: Iterations.
        seed: The seed of all randomness.
        save: What to keep of each item, of `"estimate"`, `"std"`, `"quantiles"`, `"samples"` and `"traces"`.
        quantiles: The probabilities of the quantiles that are kept.
        sink: The form of the output.
        truths: Where true images are, if they are known: a folder of the items' ids, or a stack in their order.
        chunk: The items in a chunk, which is finished as a whole.
        batch: The images that are solved at a time, always this many.
        threads: The threads of each worker.
        device: Where to compute.

    Raises:
        ValueError: An option is unknown, or does not go with another.
    """

    operator: Physics | Problem | str | None
    source: Source
    out: Path
    prior: str | os.PathLike[str] | Prior = "cifar10"
    method: str = "map"
    weight: float | str = 1.0
    samples: int | None = None
    sigma: float | str | None = None
    steps: int | None = None
    seed: int = 0
    save: tuple[str, ...] = ("estimate",)
    quantiles: tuple[float, ...] = QUANTILES
    sink: Sink = field(default_factory=Files)
    truths: Source | None = None
    chunk: int = 64
    batch: int = 64
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}. {nearest(str(self.method), METHODS)}")
        for name in ("chunk", "batch", "threads", "steps", "samples"):
            if (value := getattr(self, name)) is not None:
                check_positive(name, value, whole=True)
        method = METHODS[self.method]
        method.stages(method.settings if self.steps is None else replace(method.settings, steps=self.steps))
        for output in self.save:
            if output not in OUTPUTS:
                raise ValueError(f"save names the unknown output {output!r}. {nearest(str(output), OUTPUTS)}")
        if not self.save:
            raise ValueError(f"save names no output. {nearest('', OUTPUTS)}")
        _check_quantiles(self.quantiles)
        spread = {"std", "quantiles"} & set(self.save)
        if spread and not method.samples:
            raise ValueError(
                f"method {self.method!r} finds a mode, which has no {' nor '.join(sorted(spread))}. "
                "Use a method that samples, such as 'posterior', or keep the estimate alone."
            )

    def solve(self, problem: str, y: Tensor, names: Sequence[str]) -> Result:
        r"""Solves for images `(B, *measured)` of items of one problem, `""` for that of the whole batch."""
        operator = self._operator(problem)
        y = y.to(self.device)
        return solve(
            operator,
            y,
            self._prior(y),
            method=self.method,
            weight=self.weight,
            samples=self.samples,
            sigma=self.sigma,
            steps=self.steps,
            seed=[item_seed(self.seed, name) for name in names],
            progress=False,
        )

    def truth(self, item: Item, place: int) -> Tensor | None:
        r"""Returns the true image of an item, the `place`-th of all, if it is known."""
        own = self.source.truth(item)
        return own if own is not None or self.truths is None else self.truths.beside(item, place)

    def rooted(self) -> Job:
        r"""Returns the job with paths of problem and prior that hold in any working folder.

        Raises:
            ValueError: There is no such problem or prior; the message names the nearest match.
        """
        operator, prior = self.operator, self.prior
        if isinstance(operator, str):
            operator = _rooted(operator, find_problem(operator))
        if not isinstance(prior, Prior):
            prior = _rooted(prior, find_prior(prior))
        return replace(self, operator=operator, prior=prior)

    def describe(self, digest: str, problems: Sequence[str]) -> dict[str, Any]:
        r"""Returns all that the results depend on, as JSON holds it: names with digests of what they stand for.

        Arguments:
            digest: The digest of the manifest.
            problems: The problems that items name.
        """
        plain = ("method", "weight", "samples", "sigma", "steps", "seed", "save", "quantiles", "chunk", "batch")
        operator = None if self.operator is None else identify(self.operator, prior_shape(self.prior), self.device)
        return {
            "operator": operator,
            "problems": {name: identify(name) for name in problems},
            "prior": identify_prior(self.prior),
            "input": self.source.address,
            "truth": None if self.truths is None else self.truths.address,
            "items": digest,
            "format": type(self.sink).__name__,
            **json.loads(json.dumps({name: getattr(self, name) for name in plain})),
        }

    def _operator(self, name: str) -> Physics:
        operator = name or self.operator
        if operator is None:
            raise ValueError("no problem is given for this item. Name one in the column 'problem', or for the batch.")
        if isinstance(operator, str):
            operator = self._kept(("problem", operator), load_problem, operator)
        if not isinstance(operator, Problem):
            return operator
        return operator.operator if self.sigma is None else without_noise(operator.operator)

    def _prior(self, y: Tensor) -> Prior:
        if isinstance(self.prior, Prior):
            return self.prior
        name, like = self.prior, (y.device, y.dtype)
        return self._kept(("prior", *like), lambda: load_prior(name).to(*like))

    def _kept(self, key: tuple[Hashable, ...], make: Callable[..., Made], *arguments: Any) -> Made:
        r"""Returns what was made under a key, for as long as the job is in memory."""
        if key not in self._made:
            self._made[key] = make(*arguments)
        return self._made[key]

    @cached_property
    def _made(self) -> dict[tuple[Hashable, ...], Any]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def item_seed(seed: int, name: str) -> int:
    r"""Returns the seed of an item of a batch with a seed of its own: `emprior.solve` with it gives the same result."""
    return derive_seed(seed, "item", name)


def _check_quantiles(quantiles: Sequence[float]) -> None:
    if not quantiles:
        raise ValueError("quantiles names none. Give the probabilities that are wanted, such as 0.05 0.5 0.95.")
    for value in quantiles:
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"quantiles holds {value!r}, but they are probabilities from 0 to 1, such as 0.95.")


def _rooted(name: str | os.PathLike[str], found: Path) -> str:
    r"""Returns a name as it is, and a path, at which something was found, from anywhere."""
    return str(found.absolute()) if found == Path(name) else os.fspath(name)
