r"""Whether what chains sampled can be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from emprior._types import PerImage
from emprior.diagnostics import Mixing

USEFUL = (0.1, 0.98)
"""The acceptance outside of which steps are far too long or far too short."""

OUTLYING = 4.0
"""The standard deviations from its law beyond which a residual or an energy is inconsistent with it."""

SLACK = 0.05
"""How far a residual may be from 1 before it matters, however surely it is."""


@dataclass(frozen=True)
class Verdict:
    r"""Whether the samples of an image can be believed; `str` gives one line.

    Arguments:
        trustworthy: Whether no check failed.
        reasons: What failed and what to do about it, or else what was checked.
    """

    trustworthy: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'' if self.trustworthy else 'not '}trustworthy: {'; '.join(self.reasons)}"


def verdict(
    mixing: Mixing | None,
    acceptance: PerImage | None,
    residual: PerImage | None,
    energy: PerImage | None,
    typical: tuple[float, float] | None,
    *,
    target_rhat: float = 1.05,
    target_ess: float = 100,
    dimension: int | None,
) -> tuple[Verdict, ...]:
    r"""Returns for each image whether its samples can be believed, and if not, why and what to do.

    The chains must agree and be long enough, the acceptance be useful, the residual follow the law of the noise and
    the prior energy be that of typical images. What is `None` is not checked, and the line says so.

    Arguments:
        mixing: How the chains mix.
        acceptance: The share of accepted proposals, `(B,)`.
        residual: The root mean square of :math:`(y - A x) / \sigma` over measurements and samples, `(B,)`.
        energy: The mean prior energy of the samples, `(B,)`, in nats.
        typical: The mean and the standard deviation of the prior energies of typical images, in nats.
        target_rhat: The largest R-hat to accept.
        target_ess: The smallest effective sample size to accept, of the bulk and of the tails.
        dimension: The number of measurements of an image that depend on it, `m`.

    Raises:
        ValueError: Nothing is known, or the numbers of images differ.
    """
    chains = None if mixing is None else _chains(mixing, target_rhat, target_ess)
    checks = {
        "chains": chains,
        "acceptance": None if acceptance is None else _acceptances(acceptance, chains),
        "residual": None if residual is None or dimension is None else _residuals(residual, dimension),
        "energy": None if energy is None or typical is None else _energy(energy, typical),
    }
    known = {name: check for name, check in checks.items() if check is not None}
    counts = {name: len(check) for name, check in known.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"the images of what is known are {counts}, expected one number for all. Pass (B,) for each.")
    unknown = tuple(f"{name} not checked" for name in checks if name not in known)
    verdicts = []
    for findings in zip(*known.values(), strict=True):
        bad = tuple(text for good, text in findings if not good)
        verdicts.append(Verdict(not bad, bad or tuple(text for _, text in findings) + unknown))
    return tuple(verdicts)


def _chains(mixing: Mixing, target_rhat: float, target_ess: float) -> list[tuple[bool, str]]:
    sizes = torch.minimum(mixing.ess, mixing.ess_tail)
    return [
        _chain(mixing, image, rhat, ess, target_rhat, target_ess)
        for image, (rhat, ess) in enumerate(zip(mixing.rhat.tolist(), sizes.tolist(), strict=True))
    ]


def _chain(
    mixing: Mixing, image: int, rhat: float, ess: float, target_rhat: float, target_ess: float
) -> tuple[bool, str]:
    if math.isnan(rhat) or math.isnan(ess):
        return False, "nothing is known of the chains: they never moved or are too short; take more steps"
    if math.isinf(rhat):
        return False, "chains are stuck or not finite: R-hat is infinite; take more steps, or another method"
    text = []
    if not rhat <= target_rhat:
        where = next(name for name, one in mixing.traces.items() if one.rhat[image] == rhat)
        text.append(f"R-hat of {where} is {rhat:.2f}, above {target_rhat}: the chains disagree; take more steps")
    if not ess >= target_ess:
        factor = target_ess / ess
        more = f"{float(f'{mixing.draws * (factor - 1):.2g}'):,.0f}"
        text.append(
            f"the effective sample size is {ess:.0f}, below {target_ess:g}: means err by {max(ess, 1) ** -0.5:.2f} "
            "standard deviations, interval bounds by more; "
            f"take {factor:.2g} times the steps, about {more} more draws of each chain"
        )
    return not text, "; ".join(text) or f"R-hat {rhat:.2f}, effective sample size {ess:.0f}"


def _acceptances(acceptance: PerImage, chains: list[tuple[bool, str]] | None) -> list[tuple[bool, str]]:
    r"""Judges acceptances; steps that are all but always accepted are no fault of chains that mix."""
    mixed = {image for image, (good, _) in enumerate(chains or []) if good}
    return [_acceptance(share, image in mixed) for image, share in enumerate(acceptance.tolist())]


def _acceptance(share: float, mixed: bool) -> tuple[bool, str]:
    low, high = USEFUL
    if low <= share <= high or (mixed and share > high):
        return True, f"acceptance {share:.2f}"
    if share > high:
        return False, f"acceptance is {share:.2f}: steps are too short; take more of them, or another method"
    return False, f"acceptance is {share:.2f}: steps are too long; take more of them, or another method"


def _residuals(residual: PerImage, dimension: int) -> list[tuple[bool, str]]:
    r"""Tests residuals by their law.

    If the model is right, samples and measurements have one joint law, by which :math:`m r^2 \sim \chi^2_m` for the
    residual `r` of a sample. The mean of :math:`r^2` over the samples of an image varies less, so that a test by that
    law errs on the side of trust. By the cube root of Wilson and Hilferty, good from about 50 measurements on, it is

    .. math:: z = \frac{r^{2/3} - (1 - \frac{2}{9 m})}{\sqrt{2 / (9 m)}} \sim \mathcal{N}(0, 1).

    References:
        | Posterior Predictive p-Values (Meng, 1994)
        | https://doi.org/10.1214/aos/1176325622

        | The Distribution of Chi-Square (Wilson and Hilferty, 1931)
        | https://doi.org/10.1073/pnas.17.12.684
    """
    variance = 2 / (9 * dimension)
    scores = (residual.double() ** (2 / 3) - 1 + variance) / math.sqrt(variance)
    return [_residual(r, z) for r, z in zip(residual.tolist(), scores.tolist(), strict=True)]


def _residual(r: float, z: float) -> tuple[bool, str]:
    if not math.isfinite(r):
        return False, f"the residual is {r}: samples are not finite; check y and sigma"
    if abs(z) <= OUTLYING or abs(r - 1) <= SLACK:
        return True, f"residual {r:.2f}"
    side, cure = (
        ("above", "sigma is too small, the operator wrong or the prior too strong; check them or lower the weight")
        if z > 0
        else ("below", "sigma is too large; state the noise that the measurements have")
    )
    return False, f"the residual is {r:.2f} of the noise, {abs(z):.2g} standard deviations {side} its law: {cure}"


def _energy(energy: PerImage, typical: tuple[float, float]) -> list[tuple[bool, str]]:
    mean, spread = typical
    if not spread > 0:
        raise ValueError(f"typical is {typical}, expected the mean and the standard deviation of energies that differ.")
    return [_far(z) for z in ((energy.double() - mean) / spread).tolist()]


def _far(z: float) -> tuple[bool, str]:
    if not math.isfinite(z):
        return False, "the prior energy is not finite; check y and sigma"
    if abs(z) <= OUTLYING:
        return True, f"prior energy at {z:+.1f} standard deviations"
    side = "above" if z > 0 else "below"
    return False, (
        f"the prior energy is {abs(z):.2g} standard deviations {side} that of typical images: "
        "out of distribution; take a prior of such images"
    )
