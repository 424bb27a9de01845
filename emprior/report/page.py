r"""The page of some images, as one file with nothing to load from elsewhere."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from torch import Tensor

from emprior._files import atomic
from emprior._html import environment, scale_tile
from emprior._saved import own_version
from emprior.report import reproduce
from emprior.report.charts import calibration_chart, charts_of
from emprior.report.figures import FIGURES, known
from emprior.report.pictures import Strip, strip, thumbnail
from emprior.report.residual import residuals
from emprior.report.view import View, views
from emprior.result import Result

if TYPE_CHECKING:
    from deepinv.physics import Physics

PIXELS, SIDES = 8e6, (96, 512)
"""The pixels of a page's pictures together, about, and the least and the most that their sides then have."""

PICTURES = 12
"""The most pictures that an image has."""


@dataclass(frozen=True, eq=False)
class Section:
    r"""What is set on the page of an image.

    Arguments:
        view: What there is to show.
        thumbnail: A small picture of it.
        strip: Its pictures.
        charts: Its charts and their captions.
    """

    view: View
    thumbnail: str
    strip: Strip
    charts: list[tuple[Markup, str]]


def write_report(
    result: Result, path: str | os.PathLike[str], *, truth: Tensor | None = None, operator: Physics | None = None
) -> None:
    r"""Writes the page of a result, whole or not at all.

    Arguments:
        result: The result.
        path: The file.
        truth: The true images, `(B, *shape)`.
        operator: The operator, from which residuals are known; by default that of the problem which the result's
            configuration names.

    Raises:
        ValueError: The truth or the operator does not fit the result.
        OSError: The file cannot be written; nothing is left.
    """
    result = result.to("cpu")
    shown = views(result, truth, residuals(result, operator))
    title = str(result.config.get("problem") or f"{len(shown)} image{'s' * (len(shown) != 1)}")
    run = result.diagnostics
    facts = {
        "prior": str(result.config.get("prior") or ""),
        "method": str(result.config.get("method") or ""),
        "gradients of the prior": f"{run.gradient_evaluations:,} an image and chain" * bool(run.gradient_evaluations),
        "wall time": f"{run.seconds:.4g} s" * bool(run.seconds),
    }
    asked = result.config if run.sigma is None else {**result.config, "sigma": "estimate"}
    text = page(shown, title, facts, result.config, reproduce.command(asked))
    with atomic(path) as file:
        file.write_text(text, encoding="utf-8")


def page(
    shown: Sequence[View],
    title: str,
    facts: Mapping[str, str],
    config: Mapping[str, Any],
    command: str,
    back: str = "",
) -> str:
    r"""Returns the page of some images as HTML.

    Arguments:
        shown: What there is to show of each.
        title: What stands above all.
        facts: What is said of the run as a whole; empty texts are left out.
        config: What was run.
        command: How to do it again.
        back: The address of the index that the page belongs to.
    """
    side = round(min(SIDES[1], max(SIDES[0], math.sqrt(PIXELS / (PICTURES * max(1, len(shown)))))))
    curves = [view.shares.double().numpy() for view in shown if view.shares is not None]
    template = environment("emprior.report").get_template("page.html")
    return template.render(
        title=title,
        facts={name: text for name, text in facts.items() if text},
        sections=[Section(view, thumbnail(view), strip(view, side), charts_of(view)) for view in shown],
        columns=known(view.figures for view in shown),
        figures=FIGURES,
        good=sum(view.good for view in shown),
        calibration=calibration_chart(curves) if len(curves) > 1 else "",
        scale=scale_tile(),
        settings=reproduce.settings(config),
        command=command,
        version=own_version(),
        back=back,
    )
