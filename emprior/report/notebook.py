r"""A result in a notebook: its pictures, its verdict and its figures, at the size of a cell."""

from __future__ import annotations

from emprior._html import environment
from emprior.report.figures import FIGURES, known
from emprior.report.pictures import strip
from emprior.report.view import views
from emprior.result import Result

DRAWN, LISTED = 3, 8
"""The most images that are drawn, and that are listed."""


def snippet(result: Result) -> str:
    r"""Returns the compact form of a result as HTML, its styles inline so that nothing around it changes."""
    shown = views(result.to("cpu"))
    rows = shown[:LISTED]
    run, config = result.diagnostics, result.config
    facts = [str(config[name]) for name in ("prior", "method") if config.get(name)]
    template = environment("emprior.report").get_template("snippet.html")
    return template.render(
        title=config.get("problem") or f"{len(shown)} image{'s' * (len(shown) != 1)}",
        facts=[*facts, f"{run.seconds:.3g} s"],
        shown=[(view, strip(view, 96, samples=3)) for view in rows[:DRAWN]],
        rows=rows,
        columns=known(view.figures for view in rows),
        figures=FIGURES,
        more=len(shown) - len(rows),
    )
