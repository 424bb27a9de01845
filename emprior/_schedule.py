r"""The temperature of a flow."""

from __future__ import annotations


def heat(t: float, tau_star: float, step_size: float) -> float:
    r"""Returns the temperature at transport time `t`, relative to the prior's,

    .. math:: \theta(t) = \mathrm{clip}\left(\frac{t - \tau_*}{1 - \tau_*}, 0, 1\right),

    where the warming takes at least one step.
    """
    return min(1.0, max(0.0, (t - tau_star) / max(1 - tau_star, step_size)))
