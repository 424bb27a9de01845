r"""What a solver returns, and the folder that keeps it."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emprior._check import check_level
from emprior._files import CURE, replaced, sha256
from emprior._saved import ARRAYS, FILES, FORMAT, HEADER, PLAIN, REPORT, check_config, check_replaceable, own_version
from emprior._types import Image, PerImage
from emprior.sketch import Sketch
from emprior.status import Status

if TYPE_CHECKING:
    from deepinv.physics import Physics
    from matplotlib.figure import Figure

Holder = TypeVar("Holder", "Diagnostics", "Result")

VECTORS = ("residual", "acceptance", "step_size", "rhat", "ess", "draws", "sigma", "sigma_std", "weight", "weight_std")


@dataclass(frozen=True, eq=False, repr=False)
class Diagnostics:
    r"""What a run says about itself.

    Arguments:
        status: How each of the `B` images ended.
        trace: The entry `"step"` `(K,)` counts the steps at which the run was recorded, and one entry
            for each term of the energy, such as `"energy"`, `"fidelity"` and `"prior"`, `(K, S, B)`,
            holds its values in nats.
        residual: The root mean square of :math:`(y - A x) / \sigma` at the estimate, `(B,)`; about 1
            at the truth.
        acceptance: The share of accepted proposals, `(B,)`; `None` for a method that always accepts.
        step_size: The last step size, `(B,)`; `None` for a method without one.
        rhat: The worst R-hat of the energy, the data term, the mean of the image, some pixels and the principal
            components of the chains, `(B,)`; `None` for a method that does not sample. See `emprior.diagnostics`.
        ess: The least effective sample size of the same, `(B,)`.
        draws: The draws of each chain after the burn-in, `(B,)`.
        sigma: The mean of the noise level under the posterior, `(B,)`, where it was estimated.
        sigma_std: Its standard deviation, `(B,)`.
        weight: The weight of the prior that makes the measurements most likely, `(B,)`, where it was estimated.
        weight_std: Its standard deviation by the curvature of the likelihood, `(B,)`; infinite where that shows none.
        verdict: For each image, whether its samples can be believed, and if not, why and what to do.
        chains: For each image, up to 500 draws after the burn-in: the entry `"draw"` `(K,)` counts them, and
            `"energy"` and `"fidelity"` `(K, S)` hold the energy and the data term of each chain in nats.
        gradient_evaluations: How often :math:`\nabla E` of the prior was evaluated, per image and chain.
        seconds: The wall time.
    """

    status: tuple[Status, ...]
    trace: dict[str, Tensor]
    residual: PerImage
    acceptance: PerImage | None = None
    step_size: PerImage | None = None
    rhat: PerImage | None = None
    ess: PerImage | None = None
    draws: PerImage | None = None
    sigma: PerImage | None = None
    sigma_std: PerImage | None = None
    weight: PerImage | None = None
    weight_std: PerImage | None = None
    verdict: tuple[str, ...] = ()
    chains: tuple[dict[str, Tensor], ...] = ()
    gradient_evaluations: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, float]:
        r"""Returns means over the images, to print.

        The terms of the energy are those at the last recorded step; `"ok"` is the share of images
        whose status is.
        """
        out = {name: self.trace[name][-1] for name in self.trace if name != "step" and len(self.trace[name])}
        vectors = {name: getattr(self, name) for name in VECTORS}
        out |= {name: vector for name, vector in vectors.items() if vector is not None}
        numbers = {name: value.double().mean().item() for name, value in out.items()}
        numbers["ok"] = sum(status.ok for status in self.status) / max(1, len(self.status))
        return numbers | {"gradient_evaluations": float(self.gradient_evaluations), "seconds": self.seconds}

    def history(self, index: int) -> dict[str, Tensor]:
        r"""Returns the terms of the energy of one image over its run, `(K, S)` each, and their `"step"`, `(K,)`.

        Of chains those are the draws after the burn-in, which `"step"` then counts; of all else the whole run. It is
        empty where nothing was recorded.
        """
        if self.chains:
            return {"step" if name == "draw" else name: entry for name, entry in self.chains[index].items()}
        if "step" not in self.trace or not len(self.trace["step"]):
            return {}
        return {name: entry if name == "step" else entry[..., index] for name, entry in self.trace.items()}

    def __repr__(self) -> str:
        return f"Diagnostics({', '.join(f'{name}={value:.4g}' for name, value in self.summary().items())})"


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    r"""The answer to an inverse problem.

    Arguments:
        estimate: The point estimate, `(B, *shape)`: the MAP of a descent, the posterior mean of a sampler.
        samples: The samples, or the descents from several starts, `(S, B, *shape)`.
        mean: The posterior mean, `(B, *shape)`; for MAP, the estimate.
        std: The standard deviation of each pixel under the posterior, `(B, *shape)`. It is `None` for
            MAP, which finds a mode and knows nothing of the width around it.
        diagnostics: What the run says about itself.
        status: How the run ended, the worst of its images'.
        config: What was run: names and numbers that JSON can hold.
        measurement: The measurements, `(B, ...)`.
        sketches: The quantiles of the samples of each image, after the burn-in; empty for MAP.

    Example:
        >>> x, ran = torch.full((1, 1, 2, 2), 0.5), Diagnostics((Status.CONVERGED,), {}, torch.ones(1))
        >>> Result(x, x[None], x, None, ran, Status.CONVERGED, {"method": "map"})
        Result(1 image (1, 2, 2), 1 sample, converged: the relative gradient fell below the tolerance)
    """

    estimate: Image
    samples: Tensor
    mean: Image
    std: Image | None
    diagnostics: Diagnostics
    status: Status
    config: dict[str, Any]
    measurement: Tensor | None = None
    sketches: tuple[Sketch, ...] = ()

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        r"""Returns the `q`-quantile of each pixel under the posterior, `(B, *shape)`, or several, `(Q, B, *shape)`.

        Raises:
            ValueError: The method did not sample, or a probability is out of range.
        """
        if not self.sketches:
            raise ValueError("a MAP has no quantiles. Use a method that samples, such as method='posterior'.")
        axis = 0 if torch.as_tensor(q).ndim == 0 else 1
        return torch.cat([sketch.quantile(q) for sketch in self.sketches], axis)

    def interval(self, level: float = 0.9) -> tuple[Image, Image]:
        r"""Returns the equal-tailed interval that holds a share `level` of the posterior of each pixel, low and high.

        Raises:
            ValueError: The method did not sample, or `level` is not between 0 and 1.
        """
        check_level(level)
        low, high = self.quantile([(1 - level) / 2, (1 + level) / 2])
        return low, high

    def to(self, device: torch.device | str) -> Result:
        r"""Returns the result with its tensors on `device`."""
        return _each(self, lambda x: x.to(device))

    def plot(self, index: int = 0, truth: Image | None = None) -> Figure:
        r"""Draws one image of the result; see :func:`emprior.plot.figure`."""
        from emprior.plot import figure

        return figure(self, index, truth)

    def report(
        self, path: str | os.PathLike[str], *, truth: Image | None = None, operator: Physics | None = None
    ) -> None:
        r"""Writes one HTML file that shows all images of the result; see :func:`emprior.report.write_report`."""
        from emprior.report import write_report

        write_report(self, path, truth=truth, operator=operator)

    def _repr_html_(self) -> str:
        from emprior.report import snippet

        return snippet(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        r"""Saves the result as a folder, whole or not at all.

        `result.json` holds the configuration, the status and the diagnostics, and `arrays.safetensors`
        every tensor. Copies for other programs are `estimate.npy`, `mean.npy`, `std.npy` and
        `samples.npy`, with bfloat16 widened to float32. An earlier result in `path` is replaced, and a
        `report.html` of it goes; other files beside it stay.

        Raises:
            FileExistsError: `path` is a file, or a folder that holds something but no result.
            TypeError: The configuration holds what JSON cannot.
            OSError: The folder cannot be written to or the disk is full; nothing is left.
        """
        folder = Path(path).resolve()
        check_replaceable(path)
        check_config(self.config, "config")
        try:
            with replaced(folder, FILES | {REPORT}) as fresh:
                _write(self, fresh)
        except (OSError, SafetensorError) as error:
            raise OSError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}. {CURE}") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Result:
        r"""Loads a result that :meth:`save` wrote, bit for bit, to the CPU.

        Raises:
            FileNotFoundError: There is no result in `path`.
            ValueError: The files are damaged, or another version wrote them.
        """
        folder = Path(path)
        for name in (HEADER, ARRAYS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no result in {path}: it lacks {name}. Give a folder that Result.save wrote.")
        try:
            return _read(folder)
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ValueError(
                f"the result in {path} cannot be read: {error}. "
                "Copy the folder again from where it was written, or run solve again."
            ) from error

    def __repr__(self) -> str:
        (images, *shape), samples = self.estimate.shape, len(self.samples)
        counts = f"{images} image{'s' * (images != 1)} {tuple(shape)}, {samples} sample{'s' * (samples != 1)}"
        return f"Result({counts}, {self.status.value})"


def _each(holder: Holder, change: Callable[[Tensor], Tensor]) -> Holder:
    changed: dict[str, Any] = {}
    for field in fields(holder):
        value = getattr(holder, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif isinstance(value, Diagnostics):
            changed[field.name] = _each(value, change)
        elif field.name == "sketches":
            changed[field.name] = tuple(sketch.map(change) for sketch in value)
        elif field.name == "trace":
            changed[field.name] = {name: change(entry) for name, entry in value.items()}
        elif field.name == "chains":
            changed[field.name] = tuple({name: change(entry) for name, entry in trace.items()} for trace in value)
    return replace(holder, **changed)


def _write(result: Result, folder: Path) -> None:
    run = result.diagnostics
    parts = {name: getattr(result, name) for name in ("estimate", "samples", "mean", "std", "measurement")}
    parts |= {name: getattr(run, name) for name in VECTORS}
    parts |= {f"trace/{name}": entry for name, entry in run.trace.items()}
    for index, chain in enumerate(run.chains):
        parts |= {f"chain/{index}/{name}": entry for name, entry in chain.items()}
    for index, sketch in enumerate(result.sketches):
        parts |= {f"sketch/{index}/{name}": entry for name, entry in sketch.state_dict().items()}
    tensors = {name: part.detach().cpu() for name, part in parts.items() if part is not None}
    for name in PLAIN:
        if name in tensors:
            plain = tensors[name].float() if tensors[name].dtype == torch.bfloat16 else tensors[name]
            np.save(folder / f"{name}.npy", plain.numpy())
    complexes = [name for name, tensor in tensors.items() if tensor.is_complex()]
    tensors |= {name: torch.view_as_real(tensors[name].resolve_conj()) for name in complexes}
    # safetensors refuses tensors that share memory, as the estimate and the samples of a MAP do
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / ARRAYS)
    header = {
        "format": FORMAT,
        "status": result.status.name,
        "message": result.status.value,
        "summary": {name: value if math.isfinite(value) else None for name, value in run.summary().items()},
        "config": result.config,
        "images": [status.name for status in run.status],
        "verdict": list(run.verdict),
        "gradient_evaluations": run.gradient_evaluations,
        "seconds": run.seconds,
        "trace": list(run.trace),
        "sketches": len(result.sketches),
        "chains": len(run.chains),
        "complex": complexes,
        "versions": {"emprior": own_version(), "torch": torch.__version__, "python": platform.python_version()},
        "sha256": sha256(folder / ARRAYS),
    }
    (folder / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def _read(folder: Path) -> Result:
    header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {header['format']!r}, where this version reads {FORMAT!r}")
    if header["sha256"] != sha256(folder / ARRAYS):
        raise ValueError(f"{ARRAYS} is damaged, its sha256 is not the one in {HEADER}")
    tensors = load_file(folder / ARRAYS)
    tensors |= {name: torch.view_as_complex(tensors[name]) for name in header["complex"]}
    return Result(
        estimate=tensors["estimate"],
        samples=tensors["samples"],
        mean=tensors["mean"],
        std=tensors.get("std"),
        diagnostics=Diagnostics(
            status=tuple(Status[name] for name in header["images"]),
            trace={name: tensors[f"trace/{name}"] for name in header["trace"]},
            **{name: tensors.get(name) for name in VECTORS[1:]},
            residual=tensors["residual"],
            verdict=tuple(header["verdict"]),
            # results of before chains were kept have none
            chains=tuple(_under(tensors, f"chain/{index}/") for index in range(header.get("chains", 0))),
            gradient_evaluations=header["gradient_evaluations"],
            seconds=header["seconds"],
        ),
        status=Status[header["status"]],
        config=header["config"],
        measurement=tensors.get("measurement"),
        sketches=tuple(
            Sketch.from_state_dict(_under(tensors, f"sketch/{index}/")) for index in range(header["sketches"])
        ),
    )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
