r"""Parallel tempering of the prior."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._types import Image
from emprior.energy import Energy, Posterior
from emprior.solvers.base import Info, Solver, State, as_posterior
from emprior.solvers.mala import MALA
from emprior.solvers.metric import metropolis, pooled
from emprior.solvers.replica import Known, Tempered, resumed


def even(ladder: Tensor, rejection: Tensor) -> Tensor:
    r"""Returns the ladder on which neighbours reject alike, each end kept.

    The sums of rejections up to each rung sample the communication barrier :math:`\Lambda(\beta)`; new rungs divide
    it evenly, by linear interpolation of :math:`\log \beta` over :math:`\Lambda`.

    Arguments:
        ladder: Inverse temperatures of each row, `(K, S B)`, falling.
        rejection: The mean rejection of swaps between neighbours, `(K - 1, S B)`.

    Examples:
        >>> ladder = torch.tensor([[1.0], [0.1], [0.01]])
        >>> even(ladder, torch.tensor([[0.75], [0.25]])).T.log10()
        tensor([[ 0.0000, -0.6667, -2.0000]])
    """
    steps = rejection.clamp(min=1e-3)
    barrier = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)]).mT.contiguous()
    shares = torch.linspace(0, 1, len(ladder), dtype=ladder.dtype, device=ladder.device)
    goal = (barrier[:, -1:] * shares)[:, 1:-1].contiguous()
    above = torch.searchsorted(barrier, goal).clamp(1, len(ladder) - 1)
    low, high, logs = barrier.gather(1, above - 1), barrier.gather(1, above), ladder.log().mT
    inner = logs.gather(1, above - 1).lerp(logs.gather(1, above), (goal - low) / (high - low))
    return torch.cat([ladder[:1], inner.mT.exp(), ladder[-1:]])


@dataclass(frozen=True)
class TemperingState(State):
    r"""The rows at :math:`\beta = 1`, and all replicas.

    Arguments:
        replicas: The state of the method at each inverse temperature.
        known: The rows of each replica, and their prior energies.
        ladder: The inverse temperatures of each row, `(K, S B)`.
        swaps: The probabilities of the swaps of neighbours since the ladder last changed, added up, `(K - 1, S B)`.
        tries: How many swaps that were, `(K - 1, 1)`.
    """

    replicas: tuple[State, ...]
    known: tuple[Known, ...]
    ladder: Tensor
    swaps: Tensor
    tries: Tensor

    @property
    def swap_rate(self) -> Tensor:
        r"""The mean acceptance of swaps between neighbours, `(K - 1, S B)`."""
        return self.swaps / self.tries.clamp(min=1)


@dataclass(frozen=True)
class Tempering(Solver):
    r"""Parallel tempering: replicas of each row at falling inverse temperatures of the prior,

    .. math:: \pi_k(x) \propto e^{-f(x) - \beta_k w E(x)}, \qquad 1 = \beta_1 > \dots > \beta_K > 0,

    each moved by `solver` and then exchanged with a neighbour, with probability

    .. math:: \min\left(1, e^{(\beta_k - \beta_{k + 1})\, w\, (E(x_k) - E(x_{k + 1}))}\right),

    the pairs of odd and of even `k` by turns, so that a row travels through the ladder rather than diffuses. Only
    replicas at :math:`\beta = 1` are reported; their law is exactly the posterior.

    The prior is tempered, and the data term `f` is not. With a linear operator `f` is convex: all barriers between
    modes are the prior's, and :math:`\beta` lowers them. Tempering `f` alone would leave them; tempering both would
    let go of the measurements, and take replicas as the root of the number of pixels, where this takes them as the
    root of those that the data leave open. A nonlinear operator can have barriers of its own, which stay. An
    interaction is not tempered, and swaps all samples of an image together.

    During burn-in the inner rungs are moved, for each image, until neighbours reject alike. A replica keeps the step
    that it learnt; a swap costs no gradient of the prior, which rows carry with them.

    References:
        | Replica-exchange Monte Carlo method for the isobaric-isothermal ensemble (Okabe et al., 2001)
        | https://doi.org/10.1016/S0009-2614(01)00055-0
        | Non-reversible parallel tempering: a scalable highly parallel MCMC scheme (Syed et al., 2022)
        | https://arxiv.org/abs/1905.02939

    Arguments:
        solver: A method with a Metropolis test, which moves each replica.
        ladder: The first inverse temperatures, falling from 1. The last should leave barriers of a few nats.
        adapt: The iterations over which the ladder is adapted, in their first half; make it the burn-in and the
            `adapt` of the method.

    Raises:
        ValueError: The ladder does not fall from 1 to a positive number.
        TypeError: The method has no Metropolis test.
    """

    solver: Solver = field(default_factory=MALA)
    ladder: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    adapt: int = 0
    samples = True

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in zip(self.ladder, self.ladder[1:], strict=False))
        if not self.ladder or self.ladder[0] != 1 or not falls or self.ladder[-1] <= 0:
            kind = "inverse temperatures that fall from 1 and stay positive"
            raise ValueError(f"ladder is {self.ladder}, expected {kind}. Try ladder=(1.0, 0.5, 0.25, 0.125).")

    def check(self, energy: Energy) -> None:
        as_posterior(energy, "Tempering")
        self.solver.check(energy)

    def init(self, energy: Energy, x: Image, noise: Noise) -> TemperingState:
        posterior, rungs = as_posterior(energy, "Tempering"), len(self.ladder)
        known = Known(x, *posterior.prior.value_and_grad(x))
        ladder = known.value.new_tensor(self.ladder)[:, None].repeat(1, len(x))
        replicas = tuple(self.solver.init(self._law(posterior, k, ladder, known), x, noise) for k in range(rungs))
        first, zeros = replicas[0], known.value.new_zeros(rungs - 1, len(x))
        return TemperingState(x, 0, first.done, first.value, replicas, (known,) * rungs, ladder, zeros, zeros[:, :1])

    def step(self, energy: Energy, state: TemperingState, noise: Noise) -> tuple[State, Info]:
        posterior, count = as_posterior(energy, "Tempering"), state.count + 1
        replicas, moved, info = self._move(posterior, state, noise)
        known, swaps, tries = self._swap(posterior, state, moved, noise)
        ladder = state.ladder
        if count in self._renewals():
            rate = torch.stack([pooled(row, energy) for row in swaps / tries.clamp(min=1)])
            ladder, swaps, tries = even(ladder, 1 - rate), torch.zeros_like(swaps), torch.zeros_like(tries)
        for k, (before, after) in enumerate(zip(moved, known, strict=True)):
            if ladder is not state.ladder or after is not before:
                replicas[k] = resumed(self.solver, self._law(posterior, k, ladder, after), replicas[k], after.x, noise)
        first = replicas[0]
        fresh = TemperingState(first.x, count, first.done, first.value, tuple(replicas), known, ladder, swaps, tries)
        return fresh, info

    def _law(self, posterior: Posterior, k: int, ladder: Tensor, known: Known | None = None) -> Posterior:
        r"""Returns the law of replica `k`, :math:`f + \beta_k w E`.

        Its `weight` is `w` times the first :math:`\beta_k`, alike for all images, from which methods make their
        metric :math:`\beta_k w L I + A^\top A / \sigma^2`; the ratio of each image's own :math:`\beta_k` to it is a
        factor of the prior.
        """
        prior = Tempered(posterior.prior, ladder[k] / self.ladder[k], known)
        return Posterior(posterior.fidelity, prior, self.ladder[k] * posterior.weight, posterior.interaction)

    def _move(self, posterior: Posterior, state: TemperingState, noise: Noise) -> tuple[list[State], list[Known], Info]:
        r"""Moves each replica by one step of the method."""
        replicas, known, infos = [replace(state.replicas[0], x=state.x), *state.replicas[1:]], [], []
        for k, before in enumerate(state.known):
            law = self._law(posterior, k, state.ladder)
            replicas[k], info = self.solver.step(law, replicas[k], noise)
            if info.accepted is None:
                name = type(self.solver).__name__
                raise TypeError(f"Tempering needs a method with a Metropolis test, got {name}. Use Tempering(MALA()).")
            assert isinstance(law.prior, Tempered)
            known.append(law.prior.moved(before, replicas[k].x))
            infos.append(info)
        shared = (len(infos) - 1) * (state.count == 0)
        return replicas, known, replace(infos[0], evaluations=sum(info.evaluations for info in infos) - shared)

    def _swap(
        self, posterior: Posterior, state: TemperingState, known: list[Known], noise: Noise
    ) -> tuple[tuple[Known, ...], Tensor, Tensor]:
        r"""Exchanges the rows of every other pair of neighbours, and adds up the probabilities."""
        known, swaps, tries = list(known), state.swaps.clone(), state.tries.clone()
        for k in range(state.count % 2, len(known) - 1, 2):
            cold, hot = known[k], known[k + 1]
            ratio = (state.ladder[k] - state.ladder[k + 1]) * posterior.weight * (cold.value - hot.value)
            probability, swapped = metropolis(ratio, posterior, noise)
            known[k], known[k + 1] = hot.where(swapped, cold), cold.where(swapped, hot)
            swaps[k] += probability
            tries[k] += 1
        return tuple(known), swaps, tries

    def _renewals(self) -> set[int]:
        r"""Returns the iterations after which the ladder is renewed, the ends of rounds that double."""
        return {self.adapt >> k for k in range(1, 5) if self.adapt >> k >= 8 and len(self.ladder) > 2}
