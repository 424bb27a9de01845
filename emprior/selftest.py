r"""Whether this copy of emprior computes what it should, in a few seconds.

.. math:: \hat{x} = \left(C^{-1} + \tfrac{1}{\sigma^2} A^\top A\right)^{-1}
          \left(C^{-1} m + \tfrac{1}{\sigma^2} A^\top y\right)

is the posterior mean of a Gaussian field: a MAP must be equal to it, and the mean of chains within their Monte-Carlo
error. Of a learned prior no such truth is known, but its gradient must be that of its energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from emprior._noise import generator
from emprior._solve import solve
from emprior.energy import Prior
from emprior.hub import list_names, load_prior, verify_prior
from emprior.metrics import psnr
from emprior.priors.gaussian import GaussianPosterior, GaussianPrior
from emprior.problem import list_problems, load_problem
from emprior.result import Result
from emprior.verify.fields import cases
from emprior.verify.row import Case

DESCENT = 1e-3
"""The most that a MAP may err, in posterior standard deviations."""

CHAINS = 1.5
"""The most that means and standard deviations of chains may err, root mean square, in Monte-Carlo standard errors."""

SLOPE = 1e-5
"""The most that a gradient may err along a direction, relative to its length."""

GAIN = 5.0
"""The least that a MAP must gain over its measurement, in dB."""


@dataclass(frozen=True)
class Check:
    r"""A check: its name, whether it went well, and in words what was found."""

    name: str
    ok: bool
    words: str


def attempt(name: str, test: Callable[[], tuple[bool, str]]) -> Check:
    r"""Runs a test, which returns whether it went well and its words; what it raises is a failure."""
    try:
        return Check(name, *test())
    except Exception as error:  # whatever a broken installation raises is what is looked for
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def checks(prior: str, device: torch.device) -> Iterator[Check]:
    r"""Yields the checks of all bundled and cached files, of MAP and chains, and of the gradient of a prior.

    Arguments:
        prior: The prior, a name or a folder.
        device: Where to compute; what takes float64 is left to the CPU where the device has none.
    """
    exact = torch.device("cpu") if device.type == "mps" else device
    yield from files()
    yield attempt("MAP of a Gaussian field", lambda: descent(exact))
    yield attempt("chains of a Gaussian field", lambda: chains(exact))
    yield attempt(f"gradient of {prior}", lambda: slope(load_prior(prior).to(exact, torch.float64)))
    yield attempt("MAP by cifar10", lambda: restoration(device))


def files() -> Iterator[Check]:
    r"""Yields a check of each network, against its digest and by evaluating it, and one of all problems."""
    try:
        names = list_names()
    except OSError as error:
        yield Check("files", False, str(error))
        return
    for name in names:
        yield attempt(f"files of {name}", partial(intact, name))
    yield attempt("problems", lambda: (True, f"{len([load_problem(name) for name in list_problems()])} can be loaded"))


def intact(name: str) -> tuple[bool, str]:
    r"""Checks a network against its digest and evaluates it once; what is wrong is raised."""
    return True, f"sha256 {verify_prior(name).sha256[:12]}"


def descent(device: torch.device) -> tuple[bool, str]:
    r"""Compares a MAP with the normal equations."""
    case, exact = known()
    result = solve(case.operator, case.y.to(device), case.prior, sigma=case.sigma, progress=False)
    error = float(((result.estimate.cpu() - exact.mean) / exact.std).abs().max())
    words = f"{error:.1e} standard deviations from the normal equations, {DESCENT:g} allowed"
    return _judged(error <= DESCENT, words, result)


def chains(device: torch.device) -> tuple[bool, str]:
    r"""Compares mean and standard deviation of chains with the exact ones."""
    case, exact = known()
    y = case.y.to(device)
    result = solve(case.operator, y, case.prior, method="posterior", sigma=case.sigma, progress=False).to("cpu")
    size = torch.as_tensor(result.diagnostics.ess).to(result.mean).reshape(-1, 1, 1, 1)
    assert result.std is not None
    errors = {
        "mean": (result.mean - exact.mean) / exact.std * size.sqrt(),
        "std": (result.std / exact.std - 1) * (2 * size).sqrt(),
    }
    found = {name: float(error.square().mean().sqrt()) for name, error in errors.items()}
    words = f"{' and '.join(f'{name} {error:.2f}' for name, error in found.items())} Monte-Carlo errors from the exact"
    return _judged(max(found.values()) <= CHAINS, f"{words}, {CHAINS:g} allowed, of {size.min():.0f} draws", result)


def slope(prior: Prior, reach: float = 1e-4) -> tuple[bool, str]:
    r"""Compares :math:`\langle \nabla E(x), v \rangle` with :math:`(E(x + h v) - E(x - h v)) / 2 h`.

    The direction `v` is half along the gradient, whose length it tells, and half random, which tells where it is wrong.
    """
    like = next(tensor for tensor in [*prior.parameters(), *prior.buffers()] if tensor.is_floating_point())
    x = drawing(prior.shape).to(like)
    gradient = prior.value_and_grad(x)[1]
    noise = torch.randn(x.shape, generator=generator("selftest"), dtype=torch.float64).to(like)
    v = gradient / gradient.norm() + noise / noise.norm()
    v = v / v.norm()
    with torch.no_grad():
        difference = (prior(x + reach * v) - prior(x - reach * v)).sum() / (2 * reach)
    error = float((difference - (gradient * v).sum()).abs() / gradient.norm())
    return error <= SLOPE, f"relative error {error:.1e} beside a difference of energies, {SLOPE:g} allowed"


def restoration(device: torch.device) -> tuple[bool, str]:
    r"""Takes the noise out of a drawing."""
    problem = load_problem("cifar10/denoising")
    x = drawing(problem.shape)
    y = problem.measure(x)
    result = solve(problem.operator, y.to(device), "cifar10", progress=False)
    before, after = float(psnr(y, x)), float(psnr(result.estimate.cpu(), x))
    return _judged(after >= before + GAIN, f"{before:.2f} dB become {after:.2f} dB, {GAIN:g} more asked", result)


def known() -> tuple[Case, GaussianPosterior]:
    r"""Returns the inpainting of two fields of 8 x 8 pixels, and its exact posterior."""
    case = next(case for case in cases(images=2, seed=0, sides=(8,)) if case.problem.startswith("inpainting"))
    assert isinstance(case.prior, GaussianPrior)
    return case, case.prior.posterior(case.operator, case.y, case.sigma)


def drawing(shape: tuple[int, ...]) -> Tensor:
    r"""Returns a disc before a gradient of brightness, `(1, C, H, W)` in `[0, 1]`."""
    channels, height, width = shape
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    disc = torch.sigmoid(12 * (0.6 - (rows.square() + columns.square()).sqrt()))
    tint = torch.linspace(0.2, 0.8, channels).reshape(-1, 1, 1)
    return (0.4 + 0.2 * rows + disc * (tint - 0.3)).clamp(0, 1)[None]


def _judged(good: bool, words: str, result: Result) -> tuple[bool, str]:
    return good and result.status.ok, f"{words}; {result.status.name.lower()}"
