r"""A line of the table."""

from __future__ import annotations

from dataclasses import dataclass

from emprior.result import Result


@dataclass(frozen=True)
class Row:
    r"""What a method gave on one problem, beside what it should.

    Arguments:
        suite: The suite.
        problem: The problem.
        method: The method.
        figures: The figures, by name.
        bars: The least and the largest value that a figure should have.
        status: How the run ended.
        verdict: What the run says of itself, of its worst image.
        evaluations: The gradients of the prior, for each chain.
        seconds: The wall time.
    """

    suite: str
    problem: str
    method: str
    figures: dict[str, float]
    bars: dict[str, tuple[float, float]]
    status: str
    verdict: str
    evaluations: int
    seconds: float

    @staticmethod
    def of(
        result: Result, suite: str, problem: str, figures: dict[str, float], bars: dict[str, tuple[float, float]]
    ) -> Row:
        r"""Returns the row of a result."""
        run = result.diagnostics
        worst = next((line for line in run.verdict if line.startswith("not ")), run.verdict[0])
        method = str(result.config["method"])
        ended = result.status.name.lower()
        return Row(suite, problem, method, figures, bars, ended, worst, run.gradient_evaluations, run.seconds)

    @property
    def failures(self) -> tuple[str, ...]:
        r"""The figures that are out of their bars."""
        return tuple(
            name for name, (low, high) in self.bars.items() if not low <= self.figures.get(name, float("nan")) <= high
        )
