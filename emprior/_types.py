r"""Names for the arrays that pass between the rooms."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

Image: TypeAlias = Tensor
"""Images, `(B, C, H, W)`, or `(B, *shape)` for priors over other shapes; public ones are in `[0, 1]`."""

PerImage: TypeAlias = Tensor
"""One number for each image, `(B,)`."""
