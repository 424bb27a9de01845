r"""How far generated images are from real ones, by the Fréchet distance of their features.

A figure is named after its features: `frechet_cifar` with those of a small CIFAR-10 classifier that comes with emprior,
and FID only with the standard Inception network, which does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from emprior.hub import load_features

FEATURES = "cifar10-features"
INCEPTION_DIMENSION = 2048

Extractor: TypeAlias = Callable[[Tensor], Tensor]
"""From images `(B, C, H, W)` of uint8 to features `(B, d)`."""


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Returns the squared Fréchet distance of the Gaussians fitted to two sets of features,

    .. math:: \|m_a - m_b\|^2 + \mathrm{tr}\big(C_a + C_b - 2 (C_a C_b)^{1/2}\big).

    With the QR decomposition of each centred set, :math:`C = R^\top R`, the eigenvalues of :math:`C_a C_b` are the
    squared singular values of :math:`R_a R_b^\top`, and the last trace is their sum: no root of a matrix is taken, and
    all is computed in float64.

    The distance of finite sets from one law is positive and falls about as one over their number; compare only
    figures of equal numbers.

    References:
        | The Fréchet distance between multivariate normal distributions (Dowson and Landau, 1982)
        | https://doi.org/10.1016/0047-259X(82)90077-X

        | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017)
        | https://arxiv.org/abs/1706.08500

    Arguments:
        a: The features of one set, `(N, d)` with `N > d`.
        b: The features of the other, `(M, d)` with `M > d`.

    Raises:
        ValueError: The sets are no such matrices, hold too few vectors or values that are not finite.

    Example:
        >>> a = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(a, 2 + a), 6)
        12.0
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"a holds features of dimension {a.shape[1]} and b of {b.shape[1]}. Compute both with one network."
        )
    root_a, root_b = _root(a), _root(b)
    spread = root_a.square().sum() + root_b.square().sum() - 2 * torch.linalg.svdvals(root_a @ root_b.T).sum()
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() + spread))


def enough_images(count: int, dimension: int, what: str, cure: str) -> None:
    r"""Raises a ValueError unless there are more images than features, as their covariance needs."""
    if count <= dimension:
        raise ValueError(
            f"{what} {count}, but the covariance of {dimension} features needs at least {dimension + 1}. {cure}"
        )


def features(images: Tensor, extractor: Extractor, batch_size: int = 250) -> Tensor:
    r"""Returns the features `(N, d)` in float64 of images.

    Arguments:
        images: The images, `(N, C, H, W)` of uint8; gray ones are taken as RGB.
        extractor: The network.
        batch_size: Images at a time.
    """
    with torch.no_grad():
        parts = [extractor(part.expand(-1, 3, -1, -1)).double().cpu() for part in images.split(batch_size)]
    return torch.cat(parts)


def to_bytes(x: Tensor) -> Tensor:
    r"""Rounds images in `[0, 1]` to the 256 levels that real images have, clipping."""
    return x.clamp(0, 1).mul(255).round().byte()


def cifar_extractor(device: str | torch.device = "cpu") -> Extractor:
    r"""Returns the features that come with emprior.

    Raises:
        ValueError: Their weights are not those of the card.
    """
    network = load_features(FEATURES).to(device)
    return lambda images: network.features(images.to(device).float() / 255)


def inception_extractor(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Extractor:
    r"""Returns the standard Inception features from a TorchScript file, for images of any size.

    The network is called with images `(B, 3, H, W)` of uint8, and with `return_features=True` if it takes that, as
    `inception-2015-12-05.pt` of StyleGAN does; it resizes and scales them itself and gives `(B, 2048)`.

    Raises:
        ValueError: The file is not TorchScript, or its network gives something else.
    """
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"{Path(path)} is not a TorchScript file ({str(error).strip().partition(chr(10))[0]}). Give the standard "
            "Inception network as torch.jit.save writes it, such as inception-2015-12-05.pt; a file of weights "
            "alone, a state_dict, does not hold the network."
        ) from error
    names = {argument.name for argument in network.forward.schema.arguments}
    options = {"return_features": True} if "return_features" in names else {}

    def extract(images: Tensor) -> Tensor:
        try:
            out = network(images.to(device), **options)
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise ValueError(
                f"{Path(path)} does not take images (B, 3, H, W) of uint8: {reason}. Wrap the standard Inception "
                "network in a module that does, and save it with torch.jit.save."
            ) from error
        if not isinstance(out, Tensor) or tuple(out.shape) != (len(images), INCEPTION_DIMENSION):
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"{Path(path)} gives {given} of {len(images)} images, expected the ({len(images)}, "
                f"{INCEPTION_DIMENSION}) pooled features of Inception. Export these, not the logits."
            )
        return out

    return extract


def _checked(x: Tensor, name: str) -> Tensor:
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected features (N, d). Flatten them: x.flatten(1).")
    enough_images(len(x), x.shape[1], f"{name} holds", "Take more images, or fewer features.")
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} holds values that are NaN or infinite. Leave out the images they are of.")
    return x.detach().double()


def _root(x: Tensor) -> Tensor:
    return torch.linalg.qr(x - x.mean(0), mode="r").R / (len(x) - 1) ** 0.5
