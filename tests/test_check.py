r"""What the checks at the boundary let pass, and what they say of the rest."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from emprior._check import check_measurement, check_positive, check_range, check_start, nearest


@pytest.mark.parametrize(
    "value",
    [3, np.int64(3), np.int32(3), np.uint8(3), np.array([3])[0]],
    ids=lambda value: type(value).__name__,
)
def test_whole_numbers_of_every_kind(value):
    for whole in (True, False):
        assert check_positive("steps", value, whole=whole) == 3
    assert type(check_positive("steps", value, whole=True)) is int


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2)], ids=lambda v: type(v).__name__
)
def test_numbers_of_every_kind(value):
    assert check_positive("weight", value) == 0.5
    assert type(check_positive("weight", value)) is float
    with pytest.raises(ValueError, match=r"weight is .*0\.5.*|weight is Fraction\(1, 2\)"):
        check_positive("weight", value, whole=True)


@pytest.mark.parametrize(
    "value",
    [0, -1, -0.5, math.nan, math.inf, True, np.True_, np.float32("nan"), np.int64(0), 1j, "1", None, torch.ones(())],
    ids=repr,
)
def test_what_is_no_positive_number(value):
    with pytest.raises(ValueError, match=r"^weight is .*, expected a positive number\. Try weight=1\.0\.$"):
        check_positive("weight", value)
    with pytest.raises(ValueError, match=r"^steps is .*, expected a positive whole number\. Try steps=1\.$"):
        check_positive("steps", value, whole=True)


def test_nearest():
    assert nearest("mla", ["ula", "mala"]) == "Did you mean 'mala'? The choices are: mala, ula."
    assert nearest("zzz", ["b", "a"]) == "The choices are: a, b."
    assert nearest("a", []) == "There are none to choose from."


class TensorList:
    """Stands for deepinv's."""


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (TensorList(), TypeError, "one operator whose measurements are one tensor"),
        (np.zeros((1, 2)), TypeError, r"y is a ndarray.*torch\.as_tensor\(y\)"),
        (torch.zeros(1, 2, dtype=torch.complex64), TypeError, r"complex.*view_as_real"),
        (torch.zeros(1, 2, dtype=torch.uint8), TypeError, r"torch\.uint8.*y\.float\(\) / 255"),
        (torch.zeros(2), ValueError, r"shape \(2,\).*y\[None\]"),
        (torch.zeros(0, 2), ValueError, r"shape \(0, 2\).*at least one"),
        (torch.tensor([[0.0, 0.0], [math.nan, math.inf]]), ValueError, r"2 values of image 1.*nan_to_num"),
    ],
)
def test_bad_measurements(y, error, message):
    with pytest.raises(error, match=message):
        check_measurement(y)


def test_measurements_pass_detached():
    y = torch.ones(2, 3, requires_grad=True)
    assert torch.equal(check_measurement(y), y)
    assert not check_measurement(y).requires_grad
    assert y.requires_grad


def test_range():
    typical = torch.ones(1, 4)
    check_range(5 * typical, typical, sigma=0.0)
    check_range(60 * typical, typical, sigma=1.5)
    with pytest.raises(ValueError, match=r"y reaches 255, .* about 1\. .*divide it by 255"):
        check_range(255 * typical, typical, sigma=0.0)
    with pytest.raises(ValueError, match=r"y reaches 9, .*Rescale it"):
        check_range(9 * typical, typical, sigma=0.0)


@pytest.mark.parametrize(
    ("x0", "error", "message"),
    [
        (np.zeros((2, 3)), TypeError, "x0 is ndarray.*Convert it"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, r"x0 is torch\.int64"),
        (torch.zeros(3, 3), ValueError, "x0 holds 3 images, but y holds 2"),
        (torch.zeros(4, 3, 3), ValueError, "x0 holds 3 images, but y holds 2"),
        (torch.zeros(3, 2, 3), ValueError, r"starts of 3 samples, but samples is 4\. Pass samples=3"),
        (torch.full((2, 3), math.nan), ValueError, r"x0\.nan_to_num"),
    ],
)
def test_bad_starts(x0, error, message):
    with pytest.raises(error, match=message):
        check_start(x0, 2, samples=4, axes=1)


def test_starts_are_of_samples_or_of_all():
    assert check_start(torch.zeros(2, 3), 2, samples=4, axes=1).shape == (1, 2, 3)
    assert check_start(torch.zeros(4, 2, 3), 2, samples=4, axes=1).shape == (4, 2, 3)
