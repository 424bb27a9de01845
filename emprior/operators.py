r"""Anything that maps images to measurements, as a deepinv operator; and the noise level that it carries."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor, nn

from emprior._noise import generator
from emprior._types import Image

if TYPE_CHECKING:
    import deepinv

RTOL = 1e-6
"""How far a given noise level may lie from the operator's, relatively; deepinv stores it in single precision."""


def as_operator(operator: Any, shape: tuple[int, ...] | None = None) -> deepinv.physics.Physics:
    r"""Returns an operator as a deepinv physics.

    A matrix :math:`M` of `m` rows and `n` columns becomes :math:`y = M \, \mathrm{vec}(x)`, from images
    `(B, *shape)` of `n` numbers to measurements `(B, m)`. Its adjoint is exact and it can be differentiated.
    A dense matrix also gets an exact proximal step.

    Arguments:
        operator: A `deepinv.physics.Physics`, which passes through; a NumPy array or tensor `(m, n)`; a SciPy
            sparse matrix or `LinearOperator`.
        shape: The shape of one image; needed unless `operator` is a physics.

    Raises:
        ValueError: The matrix does not fit the shape, is complex or has no adjoint, or the shape is missing.
        TypeError: It is none of these; the message names the cure.

    Examples:
        >>> operator = as_operator(torch.eye(12)[:4], shape=(3, 2, 2))
        >>> operator.A(torch.ones(5, 3, 2, 2)).shape
        torch.Size([5, 4])
    """
    if isinstance(operator, np.ndarray | Tensor | LinearOperator) or scipy.sparse.issparse(operator):
        return _wrap(operator, _check_shape(operator, shape))

    from deepinv.physics import Physics

    if isinstance(operator, Physics):
        return operator
    if callable(operator):
        raise TypeError(
            f"operator is a plain callable ({type(operator).__name__}), whose adjoint and noise are unknown. Wrap it: "
            "deepinv.physics.LinearPhysics(A=..., A_adjoint=..., noise_model=deepinv.physics.GaussianNoise(0.02)) "
            "if it is linear, deepinv.physics.Physics(A=..., noise_model=...) if not."
        )
    raise TypeError(
        f"operator is a {type(operator).__name__}; pass a deepinv.physics.Physics, a matrix (m, n) of NumPy, PyTorch "
        "or SciPy with shape=(C, H, W), or a scipy.sparse.linalg.LinearOperator with shape=(C, H, W)."
    )


def cast(operator: deepinv.physics.Physics, like: Tensor) -> deepinv.physics.Physics:
    r"""Returns the operator in the type and on the device of a tensor.

    The operator itself is never changed: a twin is returned where anything must move, and the operator where
    nothing must. Complex numbers stay complex, where `nn.Module.to(torch.float64)` drops their imaginary part.
    """
    numbers = [*operator.parameters(), *operator.buffers()]
    if all(part.device == like.device and part.dtype == _dtype(part.dtype, like) for part in numbers):
        return operator
    return _twin(operator, like)


def observed(operator: deepinv.physics.Physics, x: Image) -> Tensor:
    r"""Returns 1 where a measurement depends on the image, 0 where it is always zero, in the shape of `A(x)`.

    Masking operators, such as inpainting, fill what they do not measure with zeros. These carry no noise, and are
    not to be counted among the measurements. For an operator that is not linear, every entry counts.

    Arguments:
        operator: The operator.
        x: Images for the shape, type and device, `(B, *shape)`; their values do not matter.
    """
    from deepinv.physics import LinearPhysics

    with torch.no_grad():
        if not isinstance(operator, LinearPhysics):
            return torch.ones_like(operator.A(x))
        probe = torch.randn(x.shape, generator=generator("observed"), dtype=torch.float64).to(x)
        y = operator.A(probe)
        return (y != 0).to(y.dtype)


def noise_level(operator: deepinv.physics.Physics) -> float | Tensor | None:
    r"""Returns the standard deviation of the operator's Gaussian noise: a number, one per image `(B,)`, or None.

    Raises:
        ValueError: The operator's noise is not Gaussian.
    """
    from deepinv.physics import GaussianNoise, ZeroNoise

    model = getattr(operator, "noise_model", None)
    if model is None or isinstance(model, ZeroNoise):
        return None
    if not isinstance(model, GaussianNoise):
        raise ValueError(
            f"the operator's noise is {type(model).__name__}, but only white Gaussian noise is supported. If that is "
            "a fair approximation, set operator.noise_model = deepinv.physics.GaussianNoise(sigma=...)."
        )
    sigma = _per_image(model.sigma.detach(), "the operator's sigma")
    return None if isinstance(sigma, float) and sigma == 0 else sigma


def without_noise(operator: deepinv.physics.Physics) -> deepinv.physics.Physics:
    r"""Returns the operator with a noise model that says nothing of the noise level; the given one is not changed."""
    import deepinv as dinv

    bare = copy.copy(operator)
    bare._modules = dict(operator._modules)
    bare.noise_model = dinv.physics.ZeroNoise()
    return bare


def resolve_sigma(operator: deepinv.physics.Physics, sigma: float | Tensor | None = None) -> float | Tensor:
    r"""Returns the noise level to use: the given one, the operator's, or both where they agree.

    Arguments:
        operator: The operator.
        sigma: A standard deviation in public units, a number or one per image `(B,)`.

    Raises:
        ValueError: Neither is known, they disagree, or the level is not positive and finite.
    """
    known = None
    if sigma is None:
        known = noise_level(operator)
        if known is None:
            raise ValueError(
                "the noise level is unknown: the operator has no noise. Pass sigma=..., or set "
                "operator.noise_model = deepinv.physics.GaussianNoise(sigma=...)."
            )
        return _check_positive(known)
    given = _check_positive(_per_image(sigma, "sigma"))
    known = noise_level(operator)
    if known is not None and not _agree(given, known):
        raise ValueError(
            f"sigma is {_words(given)}, but the operator's noise model says {_words(known)}. Leave out sigma, or set "
            "operator.noise_model = deepinv.physics.GaussianNoise(sigma=...) to the value that you mean."
        )
    return given


def _check_shape(matrix: Any, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if matrix.ndim != 2:
        raise ValueError(f"operator has shape {tuple(matrix.shape)}; a matrix (m, n) is needed.")
    if shape is None:
        raise ValueError(
            f"operator is a matrix with {matrix.shape[1]} columns, and the shape of the images is unknown. "
            "Pass it: as_operator(matrix, shape=(C, H, W))."
        )
    if math.prod(shape) != matrix.shape[1]:
        raise ValueError(
            f"operator has {matrix.shape[1]} columns, but images of shape {tuple(shape)} have {math.prod(shape)} "
            "numbers. Pass emprior.as_operator(matrix, shape=(C, H, W)), the shape of one image without the batch, "
            "or a matrix (m, n) and not its transpose."
        )
    return tuple(shape)


def _wrap(operator: Any, shape: tuple[int, ...]) -> deepinv.physics.Physics:
    from emprior._physics import MatrixPhysics, SciPyPhysics

    if isinstance(operator, Tensor) and operator.layout != torch.strided:
        raise ValueError("operator is a sparse tensor; pass operator.to_dense(), or a SciPy sparse matrix.")
    dtype = operator.dtype
    if dtype.is_complex if isinstance(dtype, torch.dtype) else np.issubdtype(dtype or float, np.complexfloating):
        raise ValueError(
            "operator is complex, but images are real. Stack the real and imaginary parts of its rows, "
            "or use a deepinv.physics.LinearPhysics."
        )
    if isinstance(operator, Tensor | np.ndarray):
        return MatrixPhysics(_matrix(operator), shape)
    linear = aslinearoperator(operator)
    try:
        linear.rmatvec(np.zeros(linear.shape[0]))
    except (NotImplementedError, TypeError, AttributeError) as error:
        raise ValueError(
            "operator has no adjoint. Give it one: scipy.sparse.linalg.LinearOperator(shape, matvec=..., rmatvec=...)."
        ) from error
    return SciPyPhysics(linear, shape)


def _matrix(operator: Tensor | np.ndarray) -> Tensor:
    if isinstance(operator, Tensor):
        return operator if operator.is_floating_point() else operator.to(torch.get_default_dtype())
    dtype = operator.dtype if operator.dtype in (np.float32, np.float64) else np.float32
    return torch.from_numpy(np.array(operator, dtype=dtype, order="C"))


def _dtype(dtype: torch.dtype, like: Tensor) -> torch.dtype:
    if dtype.is_complex:
        return like.dtype.to_complex()
    return like.dtype if dtype.is_floating_point else dtype


def _twin(module: Any, like: Tensor) -> Any:
    from emprior._physics import refresh

    def convert(part: Any) -> Any:
        if isinstance(part, nn.Parameter):
            return nn.Parameter(convert(part.detach()), requires_grad=part.requires_grad)
        return part.to(like.device, _dtype(part.dtype, like)) if isinstance(part, Tensor) else part

    twin = copy.copy(module)
    twin._buffers = {name: convert(part) for name, part in module._buffers.items()}
    twin._parameters = {name: convert(part) for name, part in module._parameters.items()}
    twin._modules = {name: part if part is None else _twin(part, like) for name, part in module._modules.items()}
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            vars(twin)[name] = convert(value)
        elif name == "dtype" and isinstance(value, torch.dtype):
            vars(twin)[name] = _dtype(value, like)
    refresh(twin)
    return twin


def _per_image(sigma: Any, name: str) -> float | Tensor:
    if isinstance(sigma, np.ndarray | list | tuple):
        sigma = torch.as_tensor(sigma)
    if isinstance(sigma, Tensor) and sigma.ndim and sigma.numel() != 1:
        if sigma.numel() != sigma.shape[0] or not sigma.numel():
            raise ValueError(f"{name} has shape {tuple(sigma.shape)}; pass one number, or one per image (B,).")
        return sigma.reshape(-1)
    if isinstance(sigma, bool) or not isinstance(sigma, int | float | np.number | Tensor):
        raise ValueError(f"{name} is {sigma!r}; pass a positive number such as 0.02, or one per image (B,).")
    value = float(sigma)
    # deepinv stores 0.02 as the nearest single, 0.0199999996; the shortest decimal of that single is 0.02 again.
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def _check_positive(sigma: float | Tensor) -> float | Tensor:
    values = torch.as_tensor(sigma)
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ValueError(
            f"sigma is {_words(sigma)}, but a noise level must be positive and finite. It is a standard deviation "
            "for images in [0, 1]; for data without noise pass a small one, such as sigma=1e-3."
        )
    return sigma


def _agree(given: float | Tensor, known: float | Tensor) -> bool:
    first, second = (torch.as_tensor(value, dtype=torch.float64).cpu().reshape(-1) for value in (given, known))
    if 1 < len(first) != len(second) > 1:
        return False
    return bool(((first - second).abs() <= RTOL * second.abs()).all())


def _words(sigma: float | Tensor) -> str:
    return str(sigma.tolist()) if isinstance(sigma, Tensor) else f"{sigma:g}"
