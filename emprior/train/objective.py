r"""The training objective, as a module that returns the loss (ready to be wrapped by DDP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emprior._rows import column, dot
from emprior.interpolant import Interpolant
from emprior.train.coarse import Coarse

FLOOR = 0.02
"""The least noise fraction that the loss weight tells from zero."""


class GradientMatchingLoss(nn.Module):
    r"""Regression of the gradient along a path, and contrast when negatives are given.

    .. math:: L_\mathrm{OT} = \mathbb{E}\, w(s)\, \frac{1}{d} \|\nabla V(x_s) - (a x_0 - b x_1)\|^2, \qquad
              L_\mathrm{CD} = \max(\lambda (\mathbb{E}_+ V - \mathbb{E}_- V), -\beta)

    :math:`w(s) = g(s)^2 / s^p` weighs the error of the clean estimate, :math:`g \nabla V`, by the
    inverse of its least possible mean square, which grows about like :math:`s^p` (:math:`s` is floored at
    0.02, below which a net cannot follow and a few images would outweigh the rest). `balance=None` is the
    published weight, :math:`w = 1`. A share `slack` of what a wrong length of the residual :math:`r` of the clean
    estimate costs is forgiven, beyond the noise fraction 0.1 (none up to 0.05),

    .. math:: (1 - \alpha)^2 \|r\|^2, \qquad \alpha = \frac{\langle r, n \rangle}{\|r\|^2}, \qquad
              \|r - n\|^2 = \|\alpha r - n\|^2 + (1 - \alpha)^2 \|r\|^2,

    with `n` the noise: a scalar that is not told the noise cannot have the right length at all images
    (:class:`emprior._calibration.Calibration`), and tries to at the cost of the direction.

    The share `trim` of the highest negative energies is left out. Of a batch of `G` groups, row `i` in group
    :math:`i \bmod G`, :math:`L_\mathrm{CD}` is the mean over groups.

    References:
        | Energy Matching: Unifying Flow Matching and Energy-Based Models for Generative Modeling
        | (Balcerak et al., 2025)
        | https://arxiv.org/abs/2504.10612

    Arguments:
        potential: The network `V`, images `(B, C, H, W)` in `[-1, 1]` to `(B,)`.
        interpolant: The path between noise and data.
        balance: The exponent `p`, or `None`.
        strength: The weight :math:`\lambda` of the contrast.
        trim: The share :math:`\alpha` of negatives left out.
        clamp: The bound :math:`\beta`.
        groups: The number `G`.
        coarse: Where targets have no noise, and squares of errors count 30 times.
        slack: The share of the error of a residual's length that is forgiven.
    """

    def __init__(
        self,
        potential: nn.Module,
        interpolant: Interpolant,
        balance: float | None = 1.2,
        strength: float = 0.0,
        trim: float = 0.1,
        clamp: float = 0.02,
        groups: int = 1,
        coarse: Coarse | None = None,
        slack: float = 0.0,
    ) -> None:
        super().__init__()
        self.coarse, self.slack = coarse, slack
        self.potential, self.interpolant, self.balance = potential, interpolant, balance
        self.strength, self.trim, self.clamp, self.groups = strength, trim, clamp, groups

    def forward(
        self, x1: Tensor, x0: Tensor, s: Tensor, positives: Tensor | None = None, negatives: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        r"""Returns the loss and its detached terms.

        Arguments:
            x1: Data in `[-1, 1]`, `(B, C, H, W)`.
            x0: Noise, paired with the data, `(B, C, H, W)`.
            s: Noise fractions, `(B,)`.
            positives: Data for the contrast, `(P, C, H, W)`.
            negatives: Samples of the model for the contrast, `(N, C, H, W)`.
        """
        loss = self.transport(x1, x0, s)
        terms = {"transport": loss.detach()}
        if positives is not None and negatives is not None:
            contrast, gap = self.contrast(positives, negatives)
            terms |= {"contrast": contrast.detach(), "gap": gap}
            loss = loss + contrast
        return loss, terms

    def transport(self, x1: Tensor, x0: Tensor, s: Tensor) -> Tensor:
        x, target = self.interpolant.mix(x1, x0, s)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(self.potential(x).sum(), x, create_graph=True)
        difference = gradient - target
        error = difference.square().flatten(1).mean(1) if self.coarse is None else self.coarse.squares(difference, s)
        if self.slack:
            error = error - self.slack * self.stretch(difference, x0, s)
        if self.balance is None:
            return error.mean()
        return (error * self.interpolant.gain(s).square() / s.clamp(min=FLOOR).pow(self.balance)).mean()

    def stretch(self, difference: Tensor, x0: Tensor, s: Tensor) -> Tensor:
        r"""Returns the mean square error of the gradient that the length of the residual is guilty of, `(B,)`.

        Residual and noise are those of :math:`x_s`, `k` times those of the image, and with `k` it ends: it counts in
        full for :math:`k \ge 0.3`, and not at all for :math:`k \le 0.1`, where next to nothing of an image is left.
        """
        gain, k = self.interpolant.gain(s), self.interpolant.coefficients(s)[2]
        noise = column(s, x0) * x0
        residual = noise + column(k * gain, x0) * difference
        square = dot(residual, residual)
        length = dot(residual, noise) / square
        share = ((s - 0.05) / 0.05).clamp(0, 1) * (5 * k - 0.5).clamp(0, 1)
        return share * (1 - length).square() * square / ((k * gain).square().clamp(min=1e-12) * x0[0].numel())

    def contrast(self, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        energies = self.potential(torch.cat([positives, negatives]))
        return self.compare(*energies.split([len(positives), len(negatives)]))

    def compare(self, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns :math:`L_\mathrm{CD}` and :math:`\mathbb{E}_+ V - \mathbb{E}_- V`, detached.

        Arguments:
            above: The energies of data, `(P,)`.
            below: The energies of samples, `(N,)`.
        """
        above, below = above.unflatten(0, (-1, self.groups)), below.unflatten(0, (-1, self.groups))
        kept = max(1, round(len(below) * (1 - self.trim)))
        gap = above.mean(0) - below.sort(0).values[:kept].mean(0)
        return (self.strength * gap).clamp(min=-self.clamp).mean(), gap.mean().detach()


class VelocityMatchingLoss(nn.Module):
    r"""Flow matching, weighed as :class:`GradientMatchingLoss` weighs transport.

    .. math:: L = \mathbb{E}\, w(s)\, \frac{1}{d} \|v(x_s, s) - (x_0 - x_1)\|^2, \qquad
              x_s = (1 - s) x_1 + s x_0, \quad w(s) = s^2 / s^p

    Arguments:
        velocity: The network `v`, images `(B, C, H, W)` in `[-1, 1]` and fractions `(B,)` to velocities.
        balance: The exponent `p`, or `None` for :math:`w = 1`.
    """

    def __init__(self, velocity: nn.Module, balance: float | None = 1.2) -> None:
        super().__init__()
        self.velocity, self.balance = velocity, balance

    def forward(self, x1: Tensor, x0: Tensor, s: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        r"""Returns the loss and its detached term; arguments as for :class:`GradientMatchingLoss`."""
        t = column(s, x1)
        error = (self.velocity((1 - t) * x1 + t * x0, s) - (x0 - x1)).float().square().flatten(1).mean(1)
        weight = 1.0 if self.balance is None else s.square() / s.clamp(min=FLOOR).pow(self.balance)
        loss = (weight * error).mean()
        return loss, {"transport": loss.detach()}


Loss = GradientMatchingLoss | VelocityMatchingLoss
