r"""Checks at the boundary, and the messages that name the cure."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor

Made = TypeVar("Made")


def nearest(name: str, choices: Iterable[str]) -> str:
    r"""Returns a sentence that lists the choices and guesses the one that was meant."""
    choices = sorted(choices)
    if not choices:
        return "There are none to choose from."
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}The choices are: {', '.join(choices)}."


def make(registry: Mapping[str, Callable[..., Made]], key: str, name: str, arguments: Mapping[str, object]) -> Made:
    r"""Makes an entry of a registry.

    Arguments:
        registry: What there is, by name.
        key: The setting that names the entry, such as `net.architecture`; `net.arguments` then go to it.
        name: The entry.
        arguments: Its arguments.

    Raises:
        ValueError: The name is unknown, or an argument is unknown or of the wrong type.
    """
    section, _, what = key.partition(".")
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"unknown {what} {name!r}. {nearest(str(name), registry)}")
    known = inspect.signature(registry[name]).parameters
    cure = f"When training, --set {section}.arguments={{}} takes the defaults."
    for argument in arguments:
        if argument not in known:
            raise ValueError(
                f"{what} {name!r}: unexpected keyword argument {argument!r}. {nearest(str(argument), known)} {cure}"
            )
    try:
        return registry[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{what} {name!r}: {error}. Its arguments are: {', '.join(sorted(known))}. {cure}") from error


def check_measurement(y: object) -> Tensor:
    r"""Returns `y` if it is a batch of finite real numbers.

    Raises:
        TypeError: It is not a tensor of float32 or float64.
        ValueError: It has no batch dimension, is empty, or is not finite.
    """
    if type(y).__name__ == "TensorList":
        raise TypeError(
            "y is a TensorList, the measurements of stacked operators, which are not supported. "
            "Write them as one operator whose measurements are one tensor."
        )
    if not isinstance(y, Tensor):
        raise TypeError(f"y is a {type(y).__name__}, expected a tensor (B, ...). Convert it: torch.as_tensor(y).")
    if y.is_complex():
        raise TypeError(
            "y is complex, but energies are of real numbers. Use an operator whose measurements have the real and "
            "imaginary parts as channels, as deepinv.physics.MRI does, and pass torch.view_as_real(y) in its layout."
        )
    if y.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"y is {y.dtype}, expected torch.float32 or torch.float64. Convert it: y.float(), "
            "or y.float() / 255 if it holds 8-bit pixels."
        )
    if y.ndim < 2 or len(y) == 0:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, expected a batch (B, ...) of at least one measurement. "
            "Add the batch dimension: y[None]."
        )
    bad = ~y.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        image = int(bad.nonzero()[0])
        raise ValueError(
            f"y holds {int((~y[image].isfinite()).sum())} values of image {image} that are NaN or infinite. "
            "Mask them out of the operator, or replace them: y = y.nan_to_num()."
        )
    return y.detach()


def check_range(y: Tensor, typical: Tensor, sigma: float) -> None:
    r"""Raises a ValueError if `y` is far out of the range of measurements of images in `[0, 1]`.

    Arguments:
        y: The measurements.
        typical: The measurements of an image in `[0, 1]`.
        sigma: The noise's standard deviation.
    """
    largest, expected = float(y.abs().max()), float(typical.abs().max()) + 6 * sigma
    if largest > 8 * max(expected, 1e-6):
        hint = (
            "This looks like 0-255: divide it by 255." if 30 * expected < largest < 2000 * expected else "Rescale it."
        )
        raise ValueError(
            f"y reaches {largest:.4g}, but measurements of images in [0, 1] by this operator reach about "
            f"{expected:.3g}. {hint}"
        )


def check_start(x0: object, images: int, samples: int, axes: int) -> Tensor:
    r"""Returns the starts `(S, B, *shape)` of each sample of each image, or `(1, B, *shape)` if they are one for all.

    Arguments:
        x0: The starts `(B, *shape)` or `(S, B, *shape)`.
        images: The number `B` of images.
        samples: The number `S` of samples.
        axes: The number of axes of an image.

    Raises:
        TypeError: It is not a floating-point tensor.
        ValueError: It is of another number of images or samples, or not finite.
    """
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        kind = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
        raise TypeError(f"x0 is {kind}, expected a floating-point tensor (B, C, H, W) in [0, 1]. Convert it.")
    each = x0 if x0.ndim == axes + 2 else x0[None]
    if len(each) not in (1, samples):
        raise ValueError(
            f"x0 holds starts of {len(each)} samples, but samples is {samples}. Pass samples={len(each)}, or one start "
            "for each image."
        )
    if each.shape[1] != images:
        raise ValueError(f"x0 holds {each.shape[1]} images, but y holds {images}. Pass one start for each.")
    if not bool(x0.isfinite().all()):
        raise ValueError("x0 holds values that are NaN or infinite. Replace them: x0 = x0.nan_to_num().")
    return each.detach()


@overload
def check_positive(name: str, value: object, whole: Literal[True]) -> int: ...
@overload
def check_positive(name: str, value: object, whole: bool = False) -> int | float: ...
def check_positive(name: str, value: object, whole: bool = False) -> int | float:
    r"""Returns `value` as a `float` (an `int` if `whole`), NumPy's numbers included.

    Raises:
        ValueError: It is not a positive, finite number, or not a whole one.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else 0.0
    if not 0 < number < float("inf") or (whole and not isinstance(value, Integral)):
        what = "a positive whole number" if whole else "a positive number"
        raise ValueError(f"{name} is {value!r}, expected {what}. Try {name}={1 if whole else 1.0}.")
    return int(number) if whole else number


def check_level(level: float) -> None:
    r"""Raises a ValueError unless `level` is a probability between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, but it is a probability between 0 and 1, such as 0.9.")


def needed(package: str, extra: str = "batch") -> Any:
    r"""Imports an optional package.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this needs {package}, which is not installed: pip install 'emprior[{extra}]'"
        ) from error
