r"""Reports: one HTML file that shows what was measured, what was found, how sure it is, and how to do it again.

What there is to show of an image is a `View` (`view`, `residual`), whose figures have one list of meanings (`figures`).
Views are made of results or of the items of a batch (`stored`), drawn (`pictures`, `charts`, `graph`), and set into a
page (`page`) or a notebook (`notebook`), with the words that make them again (`reproduce`). The index of a batch
(`batch`) reads its records twice and holds a page of them.
"""

from __future__ import annotations

from emprior.report.notebook import snippet
from emprior.report.page import page, write_report

__all__ = ["page", "snippet", "write_report"]
