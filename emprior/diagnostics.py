r"""Whether chains have mixed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from emprior._types import PerImage


@dataclass(frozen=True, eq=False)
class Figures:
    r"""How well the `S` chains of `K` draws mix in one number of each image, `(B,)` each.

    Arguments:
        rhat: The rank-normalised split R-hat, the larger of bulk and folded; 1 for chains that agree.
        ess: The effective sample size of the bulk, of all chains together.
        ess_tail: The smaller effective sample size of the 5 % and 95 % quantiles.
        autocorrelation_time: :math:`\tau = 1 + 2 \sum_{k > 0} \rho_k`, in draws; `S K` over the size for the mean.
        mcse: The Monte-Carlo standard error of the mean, in the units of the trace.
    """

    rhat: PerImage
    ess: PerImage
    ess_tail: PerImage
    autocorrelation_time: PerImage
    mcse: PerImage

    def image(self, index: int) -> Figures:
        r"""Returns the figures of one image, `(1,)` each."""
        return Figures(*(getattr(self, field.name)[index : index + 1] for field in fields(self)))


def figures(trace: Tensor) -> Figures:
    r"""Returns how well chains mix in a scalar, by ArviZ.

    .. math:: \hat R = \sqrt{\frac{n - 1}{n} + \frac{B}{n W}}, \qquad
              N_\mathrm{eff} = \frac{S K}{1 + 2 \sum_{k > 0} \hat\rho_k},

    with `W` the mean variance within half-chains of `n` draws and `B / n` the variance of their means, both of normal
    scores of ranks, and with Geyer's initial monotone sequence of autocorrelations. A single chain is taken for two,
    its halves. All figures are NaN for fewer than four draws (R-hat of a single chain: eight) and for a trace that
    never changes, which tells nothing. Chains that stand still at different values have an infinite R-hat. A trace
    with values that are not finite has an infinite R-hat, time and error and no effective samples.

    References:
        | Rank-normalization, folding, and localization: An improved R-hat for assessing convergence of MCMC
        | (Vehtari et al., 2021)
        | https://arxiv.org/abs/1903.08008

    Arguments:
        trace: The values at each draw, `(K, S, B)`.

    Raises:
        ValueError: `trace` has another number of dimensions.

    Example:
        >>> draws = torch.randn(500, 4, 1, generator=torch.Generator().manual_seed(0))
        >>> figures(draws).rhat.item() < 1.01
        True
    """
    if trace.ndim != 3:
        raise ValueError(f"trace has shape {tuple(trace.shape)}, expected draws, chains, images (K, S, B). Stack it.")
    plain = trace.detach().permute(2, 1, 0).double().cpu()
    finite = plain.isfinite().flatten(1).all(1)
    calm = torch.where(finite[:, None, None], plain, 0.0)
    same = (calm == calm[:, :1, :1]).flatten(1).all(1) | (len(trace) < 4)
    stuck = (calm == calm[:, :, :1]).flatten(1).all(1)
    rhat, ess, tail, time, error = _by_arviz(calm)
    rhat = torch.where(stuck, math.inf, rhat)

    def settled(value: Tensor, broken: float) -> Tensor:
        value = torch.where(finite, torch.where(same, math.nan, value), broken)
        return value.to(trace.device, torch.promote_types(trace.dtype, torch.float32))

    return Figures(
        rhat=settled(rhat, math.inf),
        ess=settled(ess, 0.0),
        ess_tail=settled(tail, 0.0),
        autocorrelation_time=settled(time, math.inf),
        mcse=settled(error, math.inf),
    )


def _by_arviz(chains: Tensor) -> tuple[Tensor, ...]:
    r"""Returns R-hat, the sizes of bulk and tails, the time and the error of finite chains `(B, S, K)`."""
    from arviz_stats.base import array_stats

    images, several, draws = chains.shape
    halves = chains if several > 1 else chains[:, :, draws % 2 :].reshape(images, 2, -1)
    trace = chains.numpy()
    with np.errstate(all="ignore"):
        found = (
            array_stats.rhat(halves.numpy()),
            array_stats.ess(trace, method="bulk"),
            array_stats.ess(trace, method="tail", prob=(0.05, 0.95)),
            several * draws / array_stats.ess(trace, method="mean"),
            array_stats.mcse(trace, method="mean"),
        )
    return tuple(torch.as_tensor(value) for value in found)


@dataclass(frozen=True, eq=False)
class Mixing:
    r"""How well chains mix in several numbers, such as energies and projections; see :func:`mixing`.

    Arguments:
        traces: The figures of each trace.
        draws: The draws of each chain, `K`.
        chains: The chains of each image, `S`.
    """

    traces: dict[str, Figures]
    draws: int
    chains: int

    @property
    def rhat(self) -> PerImage:
        r"""The largest R-hat, `(B,)`, of the traces that have one."""
        return _largest([one.rhat for one in self.traces.values()])

    @property
    def ess(self) -> PerImage:
        r"""The smallest effective sample size of the bulk, `(B,)`, of the traces that have one."""
        return -_largest([-one.ess for one in self.traces.values()])

    @property
    def ess_tail(self) -> PerImage:
        r"""The smallest effective sample size of the tails, `(B,)`, of the traces that have one."""
        return -_largest([-one.ess_tail for one in self.traces.values()])

    def image(self, index: int) -> Mixing:
        r"""Returns the figures of one image."""
        return Mixing({name: one.image(index) for name, one in self.traces.items()}, self.draws, self.chains)

    def table(self) -> str:
        r"""Returns a line for each trace, each figure the worst of the images'."""
        width = max(map(len, self.traces), default=0)
        lines = [f"{'':{width}}  {'R-hat':>8} {'ESS':>8} {'tail ESS':>8} {'time':>8}"]
        for name, one in self.traces.items():
            large = [float(_largest(list(value.reshape(-1)))) for value in (one.rhat, -one.ess, -one.ess_tail)]
            time = float(_largest(list(one.autocorrelation_time)))
            lines.append(f"{name:{width}}  {large[0]:8.3f} {-large[1]:8.0f} {-large[2]:8.0f} {time:8.1f}")
        return "\n".join(lines)


def mixing(traces: Mapping[str, Tensor]) -> Mixing:
    r"""Returns the figures of named traces, `(K, S, B)` each.

    Raises:
        ValueError: There are none, or their shapes differ.
    """
    shapes = {name: tuple(trace.shape) for name, trace in traces.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"the traces have shapes {shapes}, expected one shape (K, S, B) for all and at least one.")
    found = {name: figures(trace) for name, trace in traces.items()}
    draws, chains, _ = next(iter(shapes.values()))
    return Mixing(found, draws, chains)


def _largest(rows: list[PerImage]) -> PerImage:
    r"""Returns the largest of numbers that are known, and NaN where none is."""
    stack = torch.stack(rows)
    known = ~stack.isnan()
    largest = torch.where(known, stack, -math.inf).amax(0)
    return torch.where(known.any(0), largest, math.nan)
