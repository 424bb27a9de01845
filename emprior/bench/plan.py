r"""What is to be run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from emprior._check import check_positive


@dataclass(frozen=True)
class Plan:
    r"""What is to be run, the same for every method.

    Arguments:
        images: The test images of each problem.
        samples: The draws of each image.
        seed: The seed of the noise and of the methods.
        budget: About the most network evaluations that a method may take for an image, in all its samples; derivatives
            are not counted. None by default.
        tune: The settings that are tried for each method and problem, its defaults among them; 0 takes the defaults.
        validation: The images that they are tried on.
        batch: The images that a method is given at a time. Others' samplers draw from one generator for a batch, so
            that their draws depend on it.
        device: Where to run.
        shown: The images of each problem whose answers are kept to be drawn.

    Raises:
        ValueError: A number is out of range.
    """

    images: int = 64
    samples: int = 16
    seed: int = 0
    budget: int | None = None
    tune: int = 0
    validation: int = 8
    batch: int = 1
    device: str = "cpu"
    shown: int = 2

    def __post_init__(self) -> None:
        for name in ("images", "samples", "validation", "batch", "shown"):
            check_positive(name, getattr(self, name), whole=True)
        if self.budget is not None:
            check_positive("budget", self.budget, whole=True)

    def facts(self) -> dict[str, Any]:
        r"""Returns what figures depend on."""
        facts = asdict(self)
        del facts["device"], facts["shown"]
        return facts
