r"""deepinv's samplers of a posterior, each as a function.

It maps a denoiser `D`, an operator `A` with its noise :math:`\sigma`, measurements and a seed to one image for each row
of the measurements, to be taken for a draw from

.. math:: p(x \mid y) \propto e^{-\|y - A x\|^2 / 2 \sigma^2}\, p(x), \qquad
          D(x, s) = \mathbb{E}[\mathrm{clean} \mid x] \text{ under white noise of standard deviation } s.

Every function takes

- `denoiser`: a `deepinv.models.Denoiser`, called with images in `[0, 1]` and `s` in their units;
- `physics`: a linear operator with Gaussian noise of one level, in the type and on the device of `y`;
- `y`: the measurements, `(N, *measured)`, which are left as they are;
- `seed`: of a generator of its own, or of the global ones, which are put back as they were;
- `steps`, by name: the iterations; then what else the sampler asks for. Defaults are deepinv's own.

It returns images `(N, *shape)` in `[0, 1]`, in the precision in which the sampler works, and raises a `ValueError`
where the noise model does not name one level, or whatever deepinv raises where it cannot treat the operator.
"""

from __future__ import annotations

from emprior.peers.guided import ald, dps, likelihood_weight, moment_matching, pigdm
from emprior.peers.isolation import isolated
from emprior.peers.langevin import skrock, ula
from emprior.peers.restoration import ddrm, diffpir

__all__ = [
    "ald",
    "ddrm",
    "diffpir",
    "dps",
    "isolated",
    "likelihood_weight",
    "moment_matching",
    "pigdm",
    "skrock",
    "ula",
]
