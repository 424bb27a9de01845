r"""What a run amounts to: its result."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from emprior._types import Image
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.monitor import Account
from emprior.result import Diagnostics, Result, Status
from emprior.solvers import Run, Settings
from emprior.verdict import Verdict, verdict

ENOUGH = 100.0
"""The effective sample size below which chains of a given length are not to be trusted."""


BIASED = "without a Metropolis test steps bias widths and residual: compare with method='hmc'"


def point(outcome: Run, fidelity: GaussianFidelity, config: dict[str, object]) -> Result:
    r"""Returns the lowest of the rows of each image."""
    rows = outcome.x.unflatten(0, (-1, outcome.images))
    lowest = outcome.trace["energy"][-1].argmin(0)
    estimate = torch.stack([rows[int(s), b] for b, s in enumerate(lowest)])
    diagnostics = _diagnostics(outcome, fidelity.residual(estimate))
    return Result(estimate, rows, estimate, None, diagnostics, Status.worst(outcome.status), config, fidelity.y)


def chains(
    outcome: Run,
    accounts: list[Account],
    posterior: Posterior,
    config: dict[str, object],
    settings: Settings,
) -> Result:
    r"""Returns the mean of the chains of each image, and what they tell of themselves.

    Chains that were to go on until they had mixed are judged by what they were to reach.
    """
    fidelity = posterior.fidelity
    assert isinstance(fidelity, GaussianFidelity)
    mean = torch.stack([account.mean for account in accounts])
    stds = [account.std for account in accounts if account.std is not None]
    std = torch.stack(stds) if stds else None

    def each(name: str) -> Tensor:
        return torch.tensor([float(getattr(account, name)) for account in accounts])

    for image, account in enumerate(accounts):
        if math.isfinite(settings.ess) and outcome.status[image] is Status.SAMPLED:
            outcome.status[image] = Status.MIXED if account.met else Status.UNMIXED
    noise = _numbers(accounts, "noise")
    diagnostics = replace(
        _diagnostics(outcome, fidelity.residual(mean) / (1 if noise is None else noise.to(mean))),
        rhat=each("rhat"),
        ess=each("ess"),
        draws=each("draws"),
        acceptance=_numbers(accounts, "acceptance"),
        sigma=None if noise is None else noise.to(mean) * fidelity.sigma,
        sigma_std=None if noise is None else _spreads(accounts, "noise").to(mean) * fidelity.sigma,
        weight=_numbers(accounts, "weight"),
        weight_std=_numbers(accounts, "weight_std"),
        verdict=tuple(str(verdict) for verdict in _verdicts(accounts, posterior, mean, settings)),
        chains=tuple(account.trace for account in accounts),
    )
    samples = torch.stack([account.samples for account in accounts], dim=1)
    sketches = tuple(account.sketch for account in accounts)
    return Result(mean, samples, mean, std, diagnostics, Status.worst(outcome.status), config, fidelity.y, sketches)


def _verdicts(accounts: list[Account], posterior: Posterior, mean: Image, settings: Settings) -> tuple[Verdict, ...]:
    r"""Judges each image by its own account."""
    fidelity, prior = posterior.fidelity, posterior.prior
    plain = posterior.weight == 1 and posterior.interaction is None and "weight" not in accounts[0].numbers
    typical = prior.typical if plain and tuple(mean.shape[1:]) == tuple(prior.shape) else None
    counts = [int(count) for count in fidelity.count(mean)]
    enough = settings.ess if math.isfinite(settings.ess) else ENOUGH
    verdicts: list[Verdict] = []
    for account, count in zip(accounts, counts, strict=True):
        share = account.numbers.get("acceptance")
        acceptance = None if share is None else torch.tensor([share])
        data = account.numbers["fidelity"]
        residual, energy = torch.tensor([2 * data / count]).sqrt(), torch.tensor([account.numbers["energy"] - data])
        (found,) = verdict(
            account.mixing, acceptance, residual, energy, typical,
            target_rhat=settings.rhat, target_ess=enough, dimension=count,
        )  # fmt: skip
        found = found if share is not None else replace(found, reasons=(*found.reasons, BIASED))
        verdicts.append(_with_rungs(found, account.numbers.get("rungs", 0.0), settings.rungs))
    return tuple(verdicts)


def _with_rungs(found: Verdict, wanted: float, rungs: int) -> Verdict:
    r"""Adds to what is wrong with replicas that they are too few for their barrier."""
    if found.trustworthy or wanted <= rungs + 1:
        return found
    cure = f'prior.settings.setdefault("tempering", {{}})["rungs"] = {math.ceil(wanted)}'
    return replace(found, reasons=(*found.reasons, f"{rungs} replicas do not climb the barriers; set {cure}"))


def _numbers(accounts: list[Account], name: str) -> Tensor | None:
    if any(name not in account.numbers for account in accounts):
        return None
    return torch.tensor([account.numbers[name] for account in accounts])


def _spreads(accounts: list[Account], name: str) -> Tensor:
    return torch.tensor([account.spreads[name] for account in accounts])


def _diagnostics(outcome: Run, residual: Tensor) -> Diagnostics:
    return Diagnostics(
        status=tuple(outcome.status),
        trace={name: torch.stack(values) for name, values in outcome.trace.items()},
        residual=residual,
        acceptance=outcome.acceptance,
        step_size=outcome.step_size,
        gradient_evaluations=outcome.evaluations,
        seconds=outcome.seconds,
    )
