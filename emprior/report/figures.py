r"""The figures of an image: what they are called, what they mean, and which side is worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Figure:
    r"""A figure.

    Arguments:
        label: What stands over its column.
        meaning: What it is, and what it should be.
        digits: The digits after the point; `None` for four significant ones.
        worst: 1 if large values are bad, -1 if small ones are, 0 if neither.
    """

    label: str
    meaning: str
    digits: int | None = None
    worst: int = 0

    def text(self, value: float | None) -> str:
        r"""Returns a value as it is shown, nothing for one that is not known."""
        return "" if value is None else format(value, self.form)

    @cached_property
    def form(self) -> str:
        r"""How a value is written."""
        return ".4g" if self.digits is None else f",.{self.digits}f"


SIGMA, MINUS = "\N{GREEK SMALL LETTER SIGMA}", "\N{MINUS SIGN}"

FIGURES = {
    "psnr": Figure("PSNR, dB", "peak signal-to-noise ratio of the estimate against the truth", 2, -1),
    "ssim": Figure("SSIM", "structural similarity of the estimate to the truth", 3, -1),
    "coverage": Figure("in 90 %", "share of true pixels inside their 90 % intervals; 0.90 is right", 3, -1),
    "residual": Figure(
        f"residual, {SIGMA}",
        f"root mean square of (y {MINUS} A x) / {SIGMA} at the estimate; about 1 at the truth",
        3,
        1,
    ),
    "rhat": Figure("R-hat", "worst of the traces; 1 if the chains agree", 3, 1),
    "ess": Figure("ESS", "least effective sample size of the traces", 0, -1),
    "draws": Figure("draws", "draws of each chain after the burn-in", 0),
    "acceptance": Figure("accepted", "share of proposals that were accepted", 2),
    "step_size": Figure("step size", "last step size"),
    "sigma": Figure(f"{SIGMA} found", "mean of the noise level under the posterior"),
    "sigma_std": Figure(f"± {SIGMA}", "standard deviation of the noise level under the posterior"),
    "weight": Figure("weight found", "weight of the prior that makes the measurements most likely"),
    "weight_std": Figure("± weight", "standard deviation of that weight"),
    "energy": Figure("energy, nats", "posterior energy, mean of the draws, or where a descent ended"),
    "fidelity": Figure("data fit, nats", "data term of the energy, likewise"),
    "prior": Figure("prior, nats", "prior energy where a descent ended"),
    "seconds": Figure("seconds", "share of the wall time", 2),
}


def known(rows: Iterable[Mapping[str, object]]) -> list[str]:
    r"""Returns the figures that any of some rows has, in the order of `FIGURES`."""
    found = {name for row in rows for name, value in row.items() if value is not None}
    return [name for name in FIGURES if name in found]
