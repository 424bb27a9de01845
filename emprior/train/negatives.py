r"""Samples of the model, for the contrast."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from emprior._bands import Spectrum
from emprior._rows import column
from emprior._schedule import heat
from emprior.train.config import Contrast
from emprior.train.draws import Draws
from emprior.train.frame import Frame, Gradient
from emprior.train.views import punch


def langevin(gradient: Gradient, x: Tensor, epsilon: Tensor, step_size: float, random: Draws) -> Tensor:
    r"""Runs one Langevin step at a temperature for each schedule entry.

    .. math:: x \leftarrow x - h \nabla V(x) + \sqrt{2 h \epsilon_k}\, n_k

    Arguments:
        gradient: The gradient of `V`.
        x: Images in `[-1, 1]`, `(B, C, H, W)`.
        epsilon: The temperature of each step, `(K,)` or `(K, B)`.
        step_size: The step `h`.
        random: The source of `n`.
    """
    for temperature in epsilon:
        scale = column((2 * step_size * temperature).sqrt(), x)
        x = x - step_size * gradient(x) + scale * random.normal(x)
    return x


def kinetic(
    gradient: Gradient, x: Tensor, p: Tensor, noise: Iterable[Tensor], epsilon: float, step_size: float, momentum: float
) -> tuple[Tensor, Tensor]:
    r"""Runs Langevin steps with momenta (BAOAB), one for each draw of `noise`,

    .. math:: p \leftarrow p - \tfrac{h}{2} \nabla V(x), \quad x \leftarrow x + \tfrac{h}{2} p, \quad
              p \leftarrow c p + \sqrt{(1 - c^2) \epsilon}\, n, \quad x \leftarrow x + \tfrac{h}{2} p, \quad
              p \leftarrow p - \tfrac{h}{2} \nabla V(x).

    Where `V` is quadratic, `x` has the variance of :math:`e^{-V / \epsilon}` however long the step; that of
    :func:`langevin` is too wide by half a step.

    References:
        | Rational Construction of Stochastic Numerical Methods for Molecular Sampling (Leimkuhler and Matthews, 2013)
        | https://arxiv.org/abs/1203.5428

    Arguments:
        gradient: The gradient of `V`.
        x: Images in `[-1, 1]`, `(B, C, H, W)`.
        p: Momenta, `(B, C, H, W)`.
        noise: Draws of white noise, `(B, C, H, W)` each.
        epsilon: The temperature.
        step_size: The Langevin step that it amounts to, :math:`h^2 / 2`.
        momentum: The share `c` of the momenta that is kept; 0 is Langevin without any.

    Returns:
        Images and momenta.
    """
    h, force = (2 * step_size) ** 0.5, gradient(x)
    for n in noise:
        p = p - h / 2 * force
        x = x + h / 2 * p
        p = momentum * p + ((1 - momentum**2) * epsilon) ** 0.5 * n
        x = x + h / 2 * p
        force = gradient(x)
        p = p - h / 2 * force
    return x, p


def start_chains(images: Tensor, sigma: Tensor, holes: Tensor, thermal: float, epsilon: float, random: Draws) -> Tensor:
    r"""Returns chains under thermal noise at their origins, images `(N, C, H, W)`.

    Their views have noise `sigma`, `(N,)`, and are NaN inside a box where `holes`, `(N,)`, says so.
    """
    noise = random.normal(images, 3)
    view = images + column(torch.where(sigma.isfinite(), sigma, 0), images) * noise[1]
    view = punch(view, holes, random)
    return torch.stack([images + thermal * noise[0], images, view, epsilon**0.5 * noise[2]], dim=1)


class ReplayBuffer:
    r"""Persistent chains at the prior's temperature, each beside the data it started from.

    Contrasting a chain with its own origin, under fresh thermal noise, leaves the expected gradient as it
    is and takes the spread between images out of it: a chain stays near its origin for long, and what the
    two differ by is the drift. A share of the chains is given a noisy view :math:`y = x_1 + \sigma n` of the origin
    :math:`x_1` and follows

    .. math:: p(x \mid y) \propto \exp\left(-\frac{V(x)}{\epsilon} - \frac{\|x - y\|^2}{2 \sigma^2}\right),

    of which its origin is a draw if the density is right: a contrast where posteriors are sampled. Pixels inside a hole
    of the view are left out of the norm. The chains have momenta `p`, of which they keep a share `c` at each step, so
    that they cross a wide flat density rather than diffuse in it, and take the steps of :func:`kinetic`.

    References:
        | Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient
        | (Tieleman, 2008)
        | Learning Energy-Based Models by Diffusion Recovery Likelihood (Gao et al., 2021)
        | https://arxiv.org/abs/2012.08125

    Arguments:
        settings: The contrast.
        epsilon: The temperature of the chains.
        thermal: The standard deviation of the noise of the data under that temperature, in `[-1, 1]`.
        sigma: The noise of each chain's view, in `[-1, 1]`, infinite for a chain without one, `(N,)`.
        holes: Whether each chain's view has a hole, `(N,)`.
        chains: Of each chain `x`, its origin, its view and `p`, `(N, 4, C, H, W)`, changed in place.
        spectrum: That of the frame in which the chains move; without one they move as images.
    """

    def __init__(
        self,
        settings: Contrast,
        epsilon: float,
        thermal: float,
        sigma: Tensor,
        holes: Tensor,
        chains: Tensor,
        spectrum: Spectrum | None = None,
    ) -> None:
        self.settings, self.epsilon, self.thermal = settings, epsilon, thermal
        self.sigma, self.holes, self.chains, self.spectrum = sigma, holes, chains, spectrum

    def advance(self, rows: Tensor, steps: int, gradient: Gradient, random: Draws) -> None:
        r"""Runs some chains."""
        x, _, view, p = self.chains[rows].unbind(1)
        pull = self.epsilon / self.sigma[rows].square()
        noise = (random.normal(x) for _ in range(steps))
        rates = (self.epsilon, self.settings.step_size, self.settings.momentum)

        def slope(x: Tensor) -> Tensor:
            return gradient(x) + column(pull, x) * torch.where(view.isnan(), 0, x - view)

        if self.spectrum is None:
            x, p = kinetic(slope, x, p, noise, *rates)
        else:
            frame = Frame(self.spectrum, self.epsilon, pull, x)
            z, p = kinetic(frame.gradient(slope), frame.split(x), p, noise, *rates)
            x = frame.join(z)
        self.chains[rows, 0], self.chains[rows, 3] = x, p

    def age(self, gradient: Gradient, random: Draws) -> None:
        r"""Runs the chains before their first use, each batch of them for another share of `settings.age` steps.

        Young chains stand where they started, and a contrast with them alone does not see where old ones go.
        """
        parts = torch.arange(len(self.chains), device=self.chains.device).split(self.settings.batch_size)
        for index, rows in enumerate(parts):
            self.advance(rows, round(self.settings.age * (index + 1) / len(parts)), gradient, random)

    def draw(self, gradient: Gradient, data: Tensor, random: Draws) -> tuple[Tensor, Tensor]:
        r"""Advances a random batch of chains and returns their origins, under thermal noise, and them.

        Arguments:
            gradient: The gradient of `V`.
            data: Clean images from which some chains restart, `(B, C, H, W)`.
            random: The source of all randomness; each of its groups has its own chains and images.
        """
        c = self.settings
        rows = random.subset(len(self.chains), c.batch_size)
        restarts = random.uniform(len(rows)) < c.restart
        donors = data[random.choice(len(data), len(rows))]
        fresh = start_chains(donors, self.sigma[rows], self.holes[rows], self.thermal, self.epsilon, random)
        self.chains[rows] = torch.where(column(restarts, fresh), fresh, self.chains[rows])
        self.advance(rows, c.langevin_steps, gradient, random)
        x, origin = self.chains[rows, 0], self.chains[rows, 1]
        return origin + self.thermal * random.normal(x), x


def fresh_negatives(settings: Contrast, epsilon: float, gradient: Gradient, data: Tensor, random: Draws) -> Tensor:
    r"""Runs the published negatives: half of each group from noise, half from data, all steps each time.

    Those from noise are carried at temperature 0 to :math:`t = \tau_*`, then linearly to `epsilon` at
    :math:`t = 1`, with :math:`t` the accumulated step; those from data stay at `epsilon`.
    """
    c = settings
    half = len(random) * (c.batch_size // len(random) // 2)
    noise = random.normal(data.new_empty(half, *data.shape[1:]))
    donors = random.choice(len(data), c.batch_size - half)
    warmth = [heat(k * c.step_size, c.tau_star, c.step_size) for k in range(c.langevin_steps)]
    temperature = torch.full((c.langevin_steps, c.batch_size), epsilon, device=data.device)
    temperature[:, :half] *= torch.tensor(warmth, device=data.device)[:, None]
    return langevin(gradient, torch.cat([noise, data[donors]]), temperature, c.step_size, random)
