r"""Mixtures of probabilistic principal component analysers: fitting them to images, and what is stored of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emprior._check import check_positive, make
from emprior._noise import generator
from emprior._types import Image
from emprior.priors._linear import LOG_2PI, Rotated, check_finite
from emprior.priors.mixture import GaussianMixturePrior

LEAST = 1 / (12 * 255**2)
"""The least variance along any direction, that of rounding to 8 bits."""

LLOYD = 10
"""The iterations of k-means that a fit begins with."""

CHUNK = 1024
"""Images whose coordinates are held at a time."""


def fit_analysers(
    images: Image,
    components: int,
    rank: int,
    steps: int = 40,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> GaussianMixturePrior:
    r"""Fits a mixture of probabilistic principal component analysers to images by maximum likelihood,

    .. math:: p(x) = \sum_{k=1}^K w_k\, \mathcal{N}(x;\, m_k,\, C_k), \qquad
              C_k = Q_k \Lambda_k Q_k^\top + \nu_k (I - Q_k Q_k^\top), \quad Q_k^\top Q_k = I_r,

    from a start by k-means. Each step of expectation and maximisation

    .. math:: r_{nk} = p(k \mid x_n), \qquad
              m_k = \frac{\sum_n r_{nk} x_n}{\sum_n r_{nk}}, \qquad
              S_k = \frac{\sum_n r_{nk} (x_n - m_k)(x_n - m_k)^\top}{\sum_n r_{nk}}

    moves the columns of :math:`Q_k` to the span of :math:`S_k Q_k`, turns them to the eigenvectors of
    :math:`Q_k^\top S_k Q_k`, whose eigenvalues become :math:`\Lambda_k`, and spreads the rest of the variance evenly,
    :math:`\nu_k = (\mathrm{tr}\, S_k - \mathrm{tr}\, \Lambda_k) / (d - r)`. That is the best covariance in the span
    where the recursion of Tipping and Bishop would pick one, so that the likelihood never falls; it costs
    :math:`O(N d r)` operations for each component and forms no matrix of `d x d`. The fixed points are the same: the
    leading eigenvectors of :math:`S_k`.

    References:
        | Mixtures of Probabilistic Principal Component Analysers (Tipping and Bishop, 1999)
        | https://doi.org/10.1162/089976699300016728

    Arguments:
        images: The images, `(N, *shape)` of `d` pixels, in `[0, 1]`.
        components: The number of components, `K`.
        rank: The directions of each, `r < d`.
        steps: The iterations.
        seed: The seed of the start.
        callback: Called with each step, from 0, and the mean log-likelihood of an image before it, in nats.

    Raises:
        ValueError: A number is out of range, or the images are not finite or too few.

    Example:
        >>> x = torch.randn(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> fit_analysers(x, components=1, rank=2).means.shape
        torch.Size([1, 1, 2, 2])
    """
    for name, value in {"components": components, "rank": rank, "steps": steps}.items():
        check_positive(name, value, whole=True)
    check_finite(images, "images")
    size, shape = images[0].numel(), images.shape[1:]
    if rank >= size or len(images) < components * (rank + 2):
        raise ValueError(
            f"there are {len(images)} images of {size} pixels for {components} components of rank {rank}: pass at "
            f"least {components * (rank + 2)} images and a rank below {size}, or fewer components."
        )
    centre = images.mean(0).flatten()
    x = images.flatten(1) - centre
    random = generator("analysers", seed)
    basis = torch.randn(components, size, rank, generator=random, dtype=torch.float64).to(x)
    mixture = _maximise(x, nn.functional.one_hot(_nearest(x, _k_means(x, components, random))).to(x), basis)
    for step in range(steps):
        joint = mixture.log_joint(x)
        if callback is not None:
            callback(step, float(joint.logsumexp(1).double().mean()))
        mixture = _maximise(x, joint.softmax(1), mixture.basis)
    means = (mixture.means + centre).unflatten(1, shape)
    return GaussianMixturePrior(mixture.weights, means, Rotated(mixture.values, mixture.basis, mixture.floor))


@dataclass(frozen=True, eq=False)
class Mixture:
    r"""The mixture of a fit.

    Arguments:
        weights: The weights, `(K,)`.
        means: The means, `(K, d)`.
        values: The variances :math:`\Lambda` along the directions, `(K, r)`.
        basis: The directions `Q`, `(K, d, r)`.
        floor: The variance :math:`\nu` along all others, `(K, 1)`.
    """

    weights: Tensor
    means: Tensor
    values: Tensor
    basis: Tensor
    floor: Tensor

    def log_joint(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\log w_k + \log \mathcal{N}(x_n; m_k, C_k)` of rows `(N, d)`, `(N, K)`."""
        return torch.cat([self._log_joint(part) for part in x.split(CHUNK)])

    def _log_joint(self, x: Tensor) -> Tensor:
        size, rank = self.basis.shape[1:]
        offsets = torch.einsum("kd,kdr->kr", self.means, self.basis)
        squares = (torch.einsum("nd,kdr->nkr", x, self.basis) - offsets).square()
        apart = x.square().sum(1, keepdim=True) - 2 * x @ self.means.mT + self.means.square().sum(1)
        rest = (apart - squares.sum(2)).clamp(min=0)
        mahalanobis = (squares / self.values).sum(2) + rest / self.floor[:, 0]
        determinant = self.values.log().sum(1) + (size - rank) * self.floor[:, 0].log()
        return self.weights.log() - 0.5 * (mahalanobis + determinant + size * LOG_2PI)


def _maximise(x: Tensor, shares: Tensor, basis: Tensor) -> Mixture:
    r"""Returns the mixture of rows `(N, d)` given their shares in its components `(N, K)`, near the last bases."""
    counts = shares.sum(0).clamp(min=torch.finfo(x.dtype).tiny)
    parts = []
    for k, count in enumerate(counts):
        rows = shares[:, k] > 0
        part, share = x[rows], shares[rows, k, None] / count
        mean = (share * part).sum(0)
        parts.append((mean, *_analyse((part - mean) * share.sqrt(), basis[k])))
    means, values, bases, floors = (torch.stack(column) for column in zip(*parts, strict=True))
    return Mixture(counts / counts.sum(), means, values, bases, floors[:, None])


def _analyse(rows: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns variances `(r,)`, directions `(d, r)` and the variance of the rest of :math:`S = V^\top V`."""
    size, rank = basis.shape
    basis = torch.linalg.qr(rows.mT @ (rows @ basis)).Q
    seen = rows @ basis
    values, turn = torch.linalg.eigh(seen.mT @ seen)
    floor = (rows.square().sum() - values.sum()) / (size - rank)
    return values.clamp(min=LEAST), basis @ turn, floor.clamp(min=LEAST)


def _k_means(x: Tensor, components: int, random: torch.Generator) -> Tensor:
    r"""Returns the centres `(K, d)` of clusters of rows `(N, d)`, from seeds far apart.

    References:
        | k-means++: The Advantages of Careful Seeding (Arthur and Vassilvitskii, 2007)
        | https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
    """
    centres = x[:1]
    while len(centres) < components:
        apart = torch.cdist(x, centres).amin(1).square().double().cpu() + torch.finfo(torch.float64).tiny
        centres = torch.cat([centres, x[torch.multinomial(apart, 1, generator=random).to(x.device)]])
    for _ in range(LLOYD):
        nearest = _nearest(x, centres)
        members = [x[nearest == k] for k in range(components)]
        centres = torch.stack([part.mean(0) if len(part) else old for part, old in zip(members, centres, strict=True)])
    return centres


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([torch.cdist(part, centres).argmin(1) for part in x.split(CHUNK)])


class Analysers(nn.Module):
    r"""What is stored of a mixture of `K` analysers, :math:`C_k = U_k U_k^\top + \nu_k I`.

    Arguments:
        components: The number of components, `K`.
        pixels: The pixels of an image, `d`.
        rank: The directions of each component, `r`.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    noise: Tensor

    def __init__(self, components: int, pixels: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, pixels))
        self.register_buffer("factors", torch.zeros(components, pixels, rank))
        self.register_buffer("noise", torch.ones(components))

    @staticmethod
    def of(prior: GaussianMixturePrior) -> Analysers:
        r"""Returns what is to be stored of a fit.

        Raises:
            TypeError: The prior is not one that :func:`fit_analysers` returns.
        """
        law = prior.covariances
        if not isinstance(law, Rotated) or law.floor is None:
            raise TypeError(
                f"the covariances are {type(law).__name__}, expected directions and a variance of the rest. Pass what "
                "fit_analysers or GaussianMixturePrior.low_rank returned."
            )
        stored = Analysers(*law.basis.shape)
        stored.weights, stored.means = prior.weights.clone(), prior.means.flatten(1).clone()
        stored.factors = law.basis * (law.values - law.floor).clamp(min=0).sqrt()[:, None]
        stored.noise = law.floor[:, 0].sqrt()
        return stored

    def prior(self, shape: tuple[int, ...]) -> GaussianMixturePrior:
        r"""Returns the mixture over images of `shape`."""
        weights, means = self.weights / self.weights.sum(), self.means.unflatten(1, shape)
        return GaussianMixturePrior.low_rank(weights, means, self.factors, self.noise)


ANALYSERS: dict[str, Callable[..., Analysers]] = {"analysers": Analysers}
"""What a card of a mixture may name."""


def make_analysers(architecture: str, /, **arguments: object) -> Analysers:
    r"""Makes the storage of a mixture by its registered name.

    Raises:
        ValueError: The name is unknown, or an argument is.
    """
    return make(ANALYSERS, "net.architecture", architecture, arguments)
