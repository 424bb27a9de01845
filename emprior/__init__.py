r"""Learned scalar energy priors for imaging inverse problems."""

from emprior import priors
from emprior._solve import solve
from emprior.energy import Energy, Posterior, Prior, Scaled, Sum
from emprior.fidelity import GaussianFidelity
from emprior.hub import list_priors, load_prior
from emprior.interaction import Interaction
from emprior.operators import as_operator
from emprior.problem import Problem, list_problems, load_problem
from emprior.result import Diagnostics, Result, Status

__version__ = "0.1.0"

__all__ = [
    "Diagnostics",
    "Energy",
    "GaussianFidelity",
    "Interaction",
    "Posterior",
    "Prior",
    "Problem",
    "Result",
    "Scaled",
    "Status",
    "Sum",
    "as_operator",
    "list_priors",
    "list_problems",
    "load_prior",
    "load_problem",
    "priors",
    "solve",
]
