r"""The charts of an image: residuals, traces and calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from emprior.report.figures import MINUS, SIGMA
from emprior.report.graph import Curve, Limits, graph
from emprior.report.view import LEVELS, View

COLOUR, REFERENCE = "#0072b2", "#444444"
CHAINS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
REACH = 4.5
"""The standard deviations up to which residuals are binned; those beyond are counted in the last bins."""

FEW = 100
"""The effective sample size below which intervals are too short to be judged."""


def charts_of(view: View) -> list[tuple[Markup, str]]:
    r"""Returns the charts of an image, each with its caption."""
    out = []
    if view.residual is not None:
        rms = view.residual.double().square().mean().sqrt().item()
        caption = (
            f"Residuals (y {MINUS} A x) / {SIGMA} of {view.residual.numel():,} measurements at the estimate, root mean "
            f"square {rms:.2f}. Noise alone follows the curve; an estimate that follows some of the noise is narrower."
        )
        out.append((residual_chart(view.residual.double().numpy()), caption))
    for name, words in (("energy", "Posterior energy"), ("fidelity", f"Data fit ‖y {MINUS} A x‖² / 2{SIGMA}²")):
        if name in view.trace:
            values, steps = view.trace[name].double().numpy(), view.trace["step"].numpy()
            lines = f", a line for each of {values.shape[1]} chains" if values.shape[1] > 1 else ""
            out.append((trace_chart(steps, values, view.clock), f"{words}, in nats{lines}; {len(steps)} points each."))
    if view.shares is not None:
        caption = "Share of true pixels inside their intervals, at every level. Right intervals follow the diagonal."
        if view.figures.get("ess", FEW) < FEW:
            caption += f" An effective sample size of {view.figures['ess']:.0f} makes them too short by itself."
        out.append((calibration_chart([view.shares.double().numpy()]), caption))
    return out


def residual_chart(residual: np.ndarray) -> Markup:
    r"""Draws the histogram of residuals, and the standard normal density that noise alone has."""
    edges = np.linspace(-REACH, REACH, 46)
    finite = residual[np.isfinite(residual)]
    density = np.histogram(finite.clip(-REACH, REACH), edges)[0] / max(1, len(finite)) / (edges[1] - edges[0])
    at = np.linspace(-REACH, REACH, 91)
    curves = [
        Curve(np.repeat(edges, 2)[1:-1], np.repeat(density, 2), COLOUR, fill=True, opacity=0.55),
        Curve(at, np.exp(-(at**2) / 2) / np.sqrt(2 * np.pi), REFERENCE),
    ]
    top = 1.05 * max(0.42, density.max())
    return graph(
        curves, (f"residual, in units of the noise {SIGMA}", "density"), (-REACH, REACH), (0, top), "residuals"
    )


def trace_chart(steps: np.ndarray, values: np.ndarray, clock: str = "step") -> Markup:
    r"""Draws a term of the energy over the steps, `(K, S)`, on a scale that shows the settled run."""
    chains = [
        Curve(steps, chain, CHAINS[index % len(CHAINS)], 0.9, opacity=0.85, dots=len(steps) == 1)
        for index, chain in enumerate(values.T)
    ]
    ends = (float(steps[0]), float(max(steps[-1], steps[0] + 1)))
    return graph(chains, (clock, "nats"), ends, _settled(values), "traces")


def calibration_chart(curves: Sequence[np.ndarray]) -> Markup:
    r"""Draws the share of true pixels inside intervals against their nominal level.

    Of several images each has a thin line, and their mean a thick one.
    """
    levels, diagonal = LEVELS.numpy(), np.array([0.0, 1.0])
    thin = [Curve(levels, curve, COLOUR, 0.6, opacity=0.3) for curve in curves] if len(curves) > 1 else []
    drawn = [
        Curve(diagonal, diagonal, REFERENCE, 1, dash=True),
        *thin,
        Curve(levels, np.mean(curves, axis=0), COLOUR, 1.5, dots=True),
    ]
    return graph(drawn, ("nominal level of the interval", "share inside"), (0, 1), (0, 1), "calibration")


def signal_chart(values: np.ndarray, peak: float | None = None) -> Markup:
    r"""Draws a signal, or its errors or deviations from 0 to `peak`."""
    finite = values[np.isfinite(values)]
    low, high = (0.0, peak) if peak is not None else (float(finite.min(initial=0)), float(finite.max(initial=1e-9)))
    pad = 0.05 * (high - low)
    ends = (low - pad * (peak is None), high + pad)
    curve = Curve(np.arange(len(values)), values, COLOUR, 1)
    return graph([curve], ("entry", ""), (0, max(1, len(values) - 1)), ends, "signal")


def _settled(values: np.ndarray) -> Limits:
    r"""Returns limits that hold the last three quarters, and no more than twice their reach of what came before."""
    late, every = (part[np.isfinite(part)] for part in (values[len(values) // 4 :], values))
    if not late.size:
        return 0.0, 1.0
    reach = late.max() - late.min()
    low = max(late.min() - 2 * reach, every.min())
    high = min(late.max() + 2 * reach, every.max())
    pad = 0.06 * (high - low) or 0.5
    return float(low - pad), float(high + pad)
