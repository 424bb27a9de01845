r"""What keeps a training that goes on from a prior from losing what that prior knows."""

from __future__ import annotations

from dataclasses import replace

from emprior._rows import column
from emprior.interpolant import Interpolant
from emprior.train.coarse import Coarse
from emprior.train.negatives import Gradient
from emprior.train.stream import Batch


class Teacher:
    r"""A potential that is held to below a noise fraction, while data teach what lies above.

    Where :math:`s` is less than `below`, the pair that makes :math:`x_s` is exchanged for the one that makes the same
    :math:`x_s` and of which the target is the gradient of the potential,

    .. math:: x_1' = \frac{a x_s - s \nabla V(x_s)}{a k + s b}, \qquad
              x_0' = \frac{b x_s + k \nabla V(x_s)}{a k + s b}, \qquad
              k x_1' + s x_0' = x_s, \quad a x_0' - b x_1' = \nabla V(x_s).

    With `coarse` the pair is exchanged in its coarse bands alone, where data have next to nothing to teach and a
    contrast had: the rest of the gradient is free to learn.

    A contrast that has been paid for is so kept through a transport that would undo it. For that enough of each batch
    must be drawn there: :data:`emprior.train.stream.REHEARSED`, closer to the data the more.

    References:
        | Learning without Forgetting (Li and Hoiem, 2016)
        | https://arxiv.org/abs/1606.09282

    Arguments:
        gradient: The gradient of the potential, images `(B, C, H, W)` to images.
        interpolant: The path from noise to data.
        below: The noise fraction.
        coarse: The bands, if not all are held.
    """

    def __init__(
        self, gradient: Gradient, interpolant: Interpolant, below: float, coarse: Coarse | None = None
    ) -> None:
        self.gradient, self.interpolant, self.below, self.coarse = gradient, interpolant, below, coarse

    def __call__(self, batch: Batch) -> Batch:
        r"""Returns a batch with the pairs exchanged whose noise fraction is below the bound."""
        rows = (batch.s < self.below).nonzero()[:, 0]
        if len(rows) == 0:
            return batch
        s, (x, _) = batch.s[rows], self.interpolant.mix(batch.x1[rows], batch.x0[rows], batch.s[rows])
        a, b, k = self.interpolant.coefficients(column(s, x))
        slope = self.gradient(x)
        x1, x0 = self.interpolant.endpoint(x, slope, s), (b * x + k * slope) / (a * k + column(s, x) * b)
        if self.coarse is not None:
            before = batch.x1[rows], batch.x0[rows]
            x1, x0 = (old + self.coarse.part(new - old, s) for old, new in zip(before, (x1, x0), strict=True))
        return replace(batch, x1=batch.x1.index_copy(0, rows, x1), x0=batch.x0.index_copy(0, rows, x0))
