r"""How a run ended."""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Status(enum.Enum):
    r"""How a run ended, from best to worst; the values are the messages that a person reads."""

    CONVERGED = "converged: the relative gradient fell below the tolerance"
    MIXED = "the chains have mixed: R-hat and effective sample size met their targets"
    SAMPLED = "all requested steps were taken"
    STALLED = "the line search could find no lower energy: at the limit of floating point"
    EXHAUSTED = "the steps ran out before the tolerance was met; raise steps"
    UNMIXED = "the steps ran out before the chains had mixed; raise steps"
    INTERRUPTED = "interrupted before the last step; the result holds the steps that were taken"
    DIVERGED = "diverged: the image ran away from its start; weaken the interaction or take another method"
    NON_FINITE = "the energy became infinite or NaN; check y, sigma and x0, or take another method"

    @property
    def ok(self) -> bool:
        r"""Whether the result can be used as it is."""
        return self in (Status.CONVERGED, Status.MIXED, Status.SAMPLED, Status.STALLED)

    @staticmethod
    def worst(statuses: Iterable[Status]) -> Status:
        r"""Returns the status of a batch, the worst of its images'."""
        return max(statuses, key=list(Status).index)
