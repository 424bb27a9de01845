r"""Inverse problems by name: an operator, its noise and the shape of its images.

.. math:: y = A x + \sigma n, \qquad n \sim \mathcal{N}(0, I)

A problem is a YAML file that says nothing about the method which solves it:

.. code-block:: yaml

    description: Seventy per cent of the pixels are missing.
    shape: [3, 32, 32]
    operator: {type: inpainting, missing: 0.7, seed: 0}
    noise: {type: gaussian, sigma: 0.02}
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emprior._check import nearest
from emprior._noise import Noise
from emprior._paths import problems_dir
from emprior._types import Image
from emprior._yaml import Section, read_yaml
from emprior.energy import Energy
from emprior.operators import cast, observed

if TYPE_CHECKING:
    import deepinv


@dataclass(frozen=True, eq=False)
class Problem:
    r"""An operator with its noise.

    Arguments:
        name: Its name, such as `"cifar10/denoising"`.
        operator: The operator :math:`A`, a deepinv physics whose noise model is `GaussianNoise(sigma)`.
        sigma: The noise's standard deviation in public units.
        shape: The shape of one image, `(C, H, W)`.
        description: One line that says what it is.
    """

    name: str
    operator: deepinv.physics.Physics
    sigma: float
    shape: tuple[int, ...]
    description: str = ""

    def measure(self, x: Image, *, seed: int = 0, first: int = 0) -> Tensor:
        r"""Returns noisy measurements :math:`y = A x + \sigma n` of images `(B, *shape)`.

        The noise of an image depends on `seed` and its index alone, and is the same in every type and on every
        device. Entries that the operator does not measure, such as missing pixels, are zero and have no noise.

        Arguments:
            x: Clean images.
            seed: The seed of the noise.
            first: The index of the first image, for a data set that is measured batch by batch.

        Raises:
            ValueError: The images do not have the problem's shape.
        """
        if tuple(x.shape[1:]) != self.shape or not x.is_floating_point():
            raise ValueError(
                f"x has shape {tuple(x.shape)} and type {x.dtype}, but problem {self.name!r} measures floating-point "
                f"images of shape {('B', *self.shape)}. Convert them, or write a problem file for your shape."
            )
        operator = cast(self.operator, x)
        with torch.no_grad():
            clean = operator.A(x)
        noise = Noise([(seed, "measure", first + row) for row in range(len(x))], dtype=torch.float64)
        white = noise.normal(*clean.shape[1:]).to(clean)
        return clean + self.sigma * white * observed(operator, x)

    def fidelity(self, y: Tensor) -> Energy:
        r"""Returns the energy :math:`\|y - A x\|^2 / (2 \sigma^2)` of measurements `y`."""
        from emprior.fidelity import GaussianFidelity

        return GaussianFidelity(self.operator, y, sigma=self.sigma)


def load_problem(name: str | os.PathLike[str]) -> Problem:
    r"""Loads a problem by its name or from a YAML file.

    The same file gives the same operator, bit for bit; the global generator is not touched.

    Arguments:
        name: One of `list_problems()`, or the path of a YAML file.

    Raises:
        ValueError: There is no such problem, or the file is wrong; the message names the line and the nearest match.

    Examples:
        >>> problem = load_problem("cifar10/inpainting")
        >>> problem.measure(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """
    path = find_problem(name)
    file = read_yaml(path)
    file.check_keys(["description", "shape", "operator", "noise"])
    description = file["description"]
    if not isinstance(description, str) or not description.strip() or "\n" in description.strip():
        raise file.error("description", f"'description' must be one line of text, not {description!r}.")
    shape, sigma = _shape(file), _sigma(file)
    operator = _operator(file.section("operator"), shape)

    from deepinv.physics import GaussianNoise

    operator.set_noise_model(GaussianNoise(sigma))
    return Problem(_name(path), operator, sigma, shape, description.strip())


def list_problems() -> list[str]:
    r"""Returns the names of the problems that come with emprior."""
    folder = problems_dir()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_problem(name: str | os.PathLike[str]) -> Path:
    r"""Returns the file of a problem by name or path.

    Raises:
        ValueError: There is none; the message names the nearest match.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ValueError(f"there is no problem file {path}. For one that comes with emprior: {_listing(path.stem)}")
    names = list_problems()
    if str(name) not in names:
        raise ValueError(f"there is no problem {str(name)!r}. {_listing(str(name))} Or pass the path of a .yaml file.")
    return problems_dir() / f"{name}.yaml"


def _listing(name: str) -> str:
    return nearest(name, list_problems())


def _name(path: Path) -> str:
    folder = problems_dir().resolve()
    path = path.resolve().with_suffix("")
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _shape(file: Section) -> tuple[int, int, int]:
    from emprior._catalog import is_count

    shape = file["shape"]
    if not isinstance(shape, list) or len(shape) != 3 or not all(is_count(side) for side in shape):
        raise file.error("shape", f"'shape' must be [channels, height, width], such as [3, 32, 32], not {shape!r}.")
    return tuple(shape)


def _sigma(file: Section) -> float:
    from emprior._catalog import is_number

    noise = file.section("noise")
    noise.check_keys(["type", "sigma"])
    noise.choice("type", ["gaussian"])
    sigma = noise["sigma"]
    if not is_number(sigma) or sigma <= 0:
        raise noise.error("sigma", f"'sigma' must be a positive number, not {sigma!r}.{_hint(sigma)}")
    return float(sigma)


def _operator(section: Section, shape: tuple[int, int, int]) -> deepinv.physics.Physics:
    from emprior._catalog import OPERATORS, REQUIRED, OptionError

    if "type" not in section:
        raise section.error(None, f"'operator' lacks the key 'type'. {nearest('', OPERATORS)}")
    build, options = OPERATORS[section.choice("type", OPERATORS)]
    required = ["type", *(key for key, option in options.items() if option.default is REQUIRED)]
    section.check_keys(required, options)
    values: dict[str, Any] = {}
    for key, option in options.items():
        values[key] = section.get(key, option.default)
        if key in section and not option.accepts(values[key]):
            value = values[key]
            raise section.error(key, f"{key!r} must be {option.words}, not {value!r}.{_hint(value)}")
    try:
        return build(shape, **values)
    except OptionError as error:
        raise section.error(error.key, str(error)) from error


def _hint(value: Any) -> str:
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        number = None
    return "" if number is None else f" YAML reads {value} as text; write {number!r}."
