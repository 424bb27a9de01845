r"""Learned scalar energy priors for imaging inverse problems."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emprior import hub, interop, metrics, priors
    from emprior._solve import solve
    from emprior.batch import reconstruct_many
    from emprior.energy import Energy, Posterior, Prior, Scaled, Sum
    from emprior.fidelity import GaussianFidelity
    from emprior.hub import list_denoisers, list_priors, load_prior
    from emprior.interaction import Repulsion
    from emprior.interop import load_denoiser
    from emprior.operators import as_operator
    from emprior.problem import Problem, list_problems, load_problem
    from emprior.result import Diagnostics, Result, Status

__version__ = "0.1.0"

_ROOMS = {
    "_solve": ["solve"],
    "batch": ["reconstruct_many"],
    "energy": ["Energy", "Posterior", "Prior", "Scaled", "Sum"],
    "fidelity": ["GaussianFidelity"],
    "hub": ["list_denoisers", "list_priors", "load_prior"],
    "interop": ["load_denoiser"],
    "interaction": ["Repulsion"],
    "operators": ["as_operator"],
    "problem": ["Problem", "list_problems", "load_problem"],
    "result": ["Diagnostics", "Result", "Status"],
    "sketch": ["Sketch"],
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}
_MODULES = ["diagnostics", "hub", "interop", "metrics", "priors", "uncertainty"]

__all__ = [
    "Diagnostics",
    "Energy",
    "GaussianFidelity",
    "Posterior",
    "Prior",
    "Problem",
    "Repulsion",
    "Result",
    "Scaled",
    "Sketch",
    "Status",
    "Sum",
    "as_operator",
    "diagnostics",
    "hub",
    "interop",
    "list_denoisers",
    "list_priors",
    "list_problems",
    "load_denoiser",
    "load_prior",
    "load_problem",
    "metrics",
    "priors",
    "reconstruct_many",
    "solve",
    "uncertainty",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"emprior.{name}")
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(f"emprior.{_HOMES[name]}"), name)
        return value
    raise AttributeError(f"module 'emprior' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
