r"""Parallel tempering of the prior."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._types import Image
from emprior.energy import Energy, Posterior
from emprior.solvers.base import Info, Solver, State, as_posterior
from emprior.solvers.hmc import HMC
from emprior.solvers.ladder import REJECTION, barriers, even, geometric
from emprior.solvers.metric import metropolis, pooled
from emprior.solvers.replica import Known, Softened, Tempered, resumed
from emprior.solvers.rungs import RungFidelity, RungNoise, Rungs, exchanged, taken


@dataclass(frozen=True)
class TemperingState(State):
    r"""The rows at :math:`\beta = 1`, and all replicas.

    Arguments:
        replicas: The state of the method, of all replicas in one batch; see :class:`emprior.solvers.rungs.Rungs`.
        known: The rows of the batch, and their prior energies; see :class:`emprior.solvers.replica.Tempered`.
        ladder: The inverse temperatures of each row, `(K, S B)`.
        swaps: The probabilities of the swaps of neighbours since the ladder last changed, added up, `(K - 1, S B)`.
        tries: How many swaps that were, `(K - 1, 1)`.
    """

    replicas: State
    known: Known
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

    .. math:: \pi_k(x) \propto e^{-f(x) - w E_k(x)}, \qquad E_k = \beta_k E, \qquad
              1 = \beta_1 > \dots > \beta_K > 0,

    each moved by `solver` and then exchanged with a neighbour, with probability

    .. math:: \min\left(1, e^{w (E_k(x_k) + E_{k + 1}(x_{k + 1}) - E_{k + 1}(x_k) - E_k(x_{k + 1}))}\right),

    the pairs of odd and of even `k` by turns, so that a row travels through the ladder rather than diffuses. Only
    replicas at :math:`\beta = 1` are reported; their law is exactly the posterior.

    The prior is tempered, and the data term `f` is not. With a linear operator `f` is convex: all barriers between
    modes are the prior's, and :math:`\beta` lowers them. Tempering `f` alone would leave them; tempering both would
    let go of the measurements, and take replicas as the root of the number of pixels, where this takes them as the
    root of those that the data leave open. A nonlinear operator can have barriers of its own, which stay. An
    interaction is not tempered, and swaps all samples of an image together.

    A prior may soften itself otherwise, by an :math:`E_k` of its own (:meth:`emprior.energy.Prior.soften`): where its
    modes are spikes a factor takes their mass away before it widens them, and replicas meet a transition of the first
    order; one that widens them and leaves their mass has none.

    All replicas move in one batch, each with steps of its own. Hamiltonian paths have a metric for each, that of
    `ladder`, where the prior's spectrum is known and the matrices can be held, else that of :math:`\beta = 1`. A
    method of long paths is for it: where the data see nothing a path must be :math:`\beta_k^{-1/2}` times as long to
    cross what replica `k` crosses, where Langevin takes :math:`\beta_k^{-1}` times as many steps. A replica keeps the
    step that it learnt; a swap costs no gradient of the prior, which rows carry with them, but of one that softens
    itself an energy and a gradient.

    During burn-in the rungs are moved, for each image, until neighbours reject alike, and not more than half of the
    swaps: `K` rungs climb a barrier of :math:`\Lambda = (K - 1) / 2`. Where that does not reach to the end of
    `ladder` it ends sooner. Each iteration tells the last :math:`\beta` as `"reach"`, and as `"rungs"` how many would
    reach to the end, :math:`1 + 2 \Lambda` by the swaps seen since the rungs last moved.

    References:
        | Replica-exchange Monte Carlo method for the isobaric-isothermal ensemble (Okabe et al., 2001)
        | https://doi.org/10.1016/S0009-2614(01)00055-0
        | Non-reversible parallel tempering: a scalable highly parallel MCMC scheme (Syed et al., 2022)
        | https://arxiv.org/abs/1905.02939

    Arguments:
        solver: A method with a Metropolis test, which moves the replicas.
        ladder: The first inverse temperatures, falling from 1. The last should leave barriers of a few nats.
        adapt: The iterations over which the ladder is adapted, in their first half; make it the burn-in and the
            `adapt` of the method.

    Raises:
        ValueError: The ladder does not fall from 1 to a positive number.
        TypeError: The method has no Metropolis test.
    """

    solver: Solver = field(default_factory=HMC)
    ladder: tuple[float, ...] = geometric(8)
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
        posterior, rungs = as_posterior(energy, "Tempering"), self._rungs(energy)
        first = Known(x, *posterior.prior.value_and_grad(x)).map(rungs.repeat)
        ladder = first.value.new_tensor(self.ladder)[:, None].repeat(1, len(x))
        law, prior = tempered(posterior, ladder, rungs, first)
        replicas, zeros = self.solver.init(law, first.x, RungNoise(noise, rungs)), torch.zeros_like(ladder[1:])
        return _reported(rungs, 0, replicas, prior.knowing(first.x), ladder, zeros, zeros[:, :1])

    def step(self, energy: Energy, state: TemperingState, noise: Noise) -> tuple[State, Info]:
        posterior, rungs, count = as_posterior(energy, "Tempering"), self._rungs(energy), state.count + 1
        streams, (law, prior) = RungNoise(noise, rungs), tempered(posterior, state.ladder, rungs)
        replicas, info = self.solver.step(law, _restored(rungs, state), streams)
        if info.accepted is None:
            name = type(self.solver).__name__
            raise TypeError(f"Tempering needs a method with a Metropolis test, got {name}. Use Tempering(HMC()).")
        known, ladder, swaps, tries = prior.moved(state.known, replicas.x), state.ladder, state.swaps, state.tries
        if rungs.count > 1:
            known, probability, tried = exchange(law, prior, rungs, known, ladder, state.count % 2, streams)
            swaps, tries = swaps + probability, tries + tried
            if count in self._renewals():
                ladder = even(ladder, self._rejection(energy, swaps, tries), self.ladder[-1])
                swaps, tries = torch.zeros_like(swaps), torch.zeros_like(tries)
            law, prior = tempered(posterior, ladder, rungs, known)
            replicas = resumed(self.solver, law, replicas, known.x, streams)
            known = prior.knowing(known.x)
        info = replace(info, evaluations=self._asked(info.evaluations, rungs.count, prior, state.count == 0))
        told = {"reach": ladder[-1], "rungs": self._wanted(energy, ladder, swaps, tries)}
        return _reported(rungs, count, replicas, known, ladder, swaps, tries), _first(rungs, info, told)

    def _asked(self, each: int, rungs: int, prior: Tempered, first: bool) -> int:
        r"""Returns the gradients of an iteration, from those of each replica: the start is asked for once, and rows
        that are swapped twice more, where the prior softens itself."""
        if not isinstance(prior, Softened):
            return rungs * each - (rungs - 1) * first
        return rungs * (each + 2 * (rungs > 1)) + first

    def _rungs(self, energy: Energy) -> Rungs:
        return Rungs(len(self.ladder), as_posterior(energy, "Tempering").fidelity.images)

    def _rejection(self, energy: Energy, swaps: Tensor, tries: Tensor) -> Tensor:
        r"""Returns the mean rejection of swaps between neighbours, over the samples of an image, `(K - 1, S B)`."""
        return 1 - torch.stack([pooled(row, energy) for row in swaps / tries.clamp(min=1)])

    def _wanted(self, energy: Energy, ladder: Tensor, swaps: Tensor, tries: Tensor) -> Tensor:
        r"""Returns how many rungs would reach to the end of the ladder that was asked for, `(S B,)`."""
        if len(ladder) == 1:
            return torch.ones_like(ladder[0])
        return 1 + barriers(ladder, self._rejection(energy, swaps, tries), self.ladder[-1])[1][-1] / REJECTION

    def _renewals(self) -> set[int]:
        r"""Returns the iterations after which the ladder is renewed, the ends of rounds that double."""
        return {self.adapt >> k for k in range(1, 5) if self.adapt >> k >= 8 and len(self.ladder) > 2}


def tempered(
    posterior: Posterior, ladder: Tensor, rungs: Rungs, known: Known | None = None
) -> tuple[Posterior, Tempered]:
    r"""Returns the law of all replicas of one batch, :math:`f + w E_k`, and its prior.

    Its `weight` and the curvatures of its prior are those at :math:`\beta = 1`; the prior tells `beta`.
    """
    beta, fidelity = rungs.join(ladder), RungFidelity(posterior.fidelity, rungs)
    soft = posterior.prior.soften(beta)
    prior = Tempered(posterior.prior, beta, known) if soft is None else Softened(posterior.prior, beta, soft)
    return Posterior(fidelity, prior, posterior.weight, posterior.interaction), prior


def exchange(
    law: Posterior, prior: Tempered, rungs: Rungs, known: Known, ladder: Tensor, first: int, noise: Noise
) -> tuple[Known, Tensor, Tensor]:
    r"""Exchanges the rows of every other pair of neighbours.

    Arguments:
        law: The law of all replicas.
        prior: Its prior.
        rungs: How they lie in a batch.
        known: The rows of the batch, `(S K B, *shape)`.
        ladder: The inverse temperatures, `(K, S B)`.
        first: The replica that the first pair begins with, 0 or 1.
        noise: The streams of the batch.

    Returns:
        The rows, the probabilities of the swaps, `(K - 1, S B)`, zero for pairs whose turn it is not, and whether
        it is, `(K - 1, 1)`.
    """
    tried = (torch.arange(len(ladder) - 1, device=ladder.device)[:, None] % 2 == first).to(ladder)
    pair = tried.bool().expand(-1, ladder.shape[1])
    across = taken(ladder, exchanged(torch.cat([pair, torch.zeros_like(pair[:1])])))
    gain = law.weight * rungs.split(prior.gain(known, rungs.join(across)))
    closed = torch.full_like(ladder, -torch.inf)
    closed[:-1] = torch.where(pair, gain[:-1] + gain[1:], closed[:-1])
    probability, swapped = (rungs.split(part) for part in metropolis(rungs.join(closed), law, noise))
    order = exchanged(swapped)
    return known.map(lambda batch: rungs.join(taken(rungs.split(batch), order))), probability[:-1], tried


def _restored(rungs: Rungs, state: TemperingState) -> State:
    r"""Returns the state of the method with the rows at :math:`\beta = 1` where the loop has put them."""
    return replace(state.replicas, x=rungs.join(torch.cat([state.x[None], rungs.split(state.replicas.x)[1:]])))


def _reported(
    rungs: Rungs, count: int, replicas: State, known: Known, ladder: Tensor, swaps: Tensor, tries: Tensor
) -> TemperingState:
    r"""Returns a state whose rows are those at :math:`\beta = 1`."""
    value = None if replicas.value is None else rungs.split(replicas.value)[0]
    x, done = (rungs.split(part)[0] for part in (replicas.x, replicas.done))
    return TemperingState(x, count, done, value, replicas, known, ladder, swaps, tries)


def _first(rungs: Rungs, info: Info, told: dict[str, Tensor]) -> Info:
    r"""Returns what the method tells of the rows at :math:`\beta = 1`, and what is `told` of their replicas."""
    accepted, size, stalled = (
        None if part is None else rungs.split(part)[0] for part in (info.accepted, info.step_size, info.stalled)
    )
    numbers = {name: rungs.split(part)[0] for name, part in info.numbers.items()}
    return Info(info.evaluations, accepted, size, stalled, numbers | told)
