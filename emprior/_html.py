r"""Pages that stand alone: templates and pictures, as text that a browser shows without asking anybody."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from importlib.resources import files

import jinja2
import numpy as np
from matplotlib import colormaps
from PIL import Image as Picture

SPREAD = "magma"
"""The colours of errors and standard deviations."""


@lru_cache
def environment(package: str) -> jinja2.Environment:
    r"""Returns the templates beside a package's modules, and the style and scripts that all pages include."""

    def load(name: str) -> str | None:
        places = (files(package).joinpath(name), files("emprior").joinpath(name))
        return next((place.read_text(encoding="utf-8") for place in places if place.is_file()), None)

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def tile(image: np.ndarray) -> str:
    r"""Returns an image `(C, H, W)` in `[0, 1]` as a PNG."""
    pixels = np.nan_to_num(image.astype(np.float32)).clip(0, 1)
    channels = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    return _png((255 * channels).round().astype(np.uint8))


def spread_tile(image: np.ndarray, peak: float) -> str:
    r"""Returns a map of errors or deviations `(C, H, W)` as a PNG, from 0 to `peak`."""
    flat = np.nan_to_num(image.astype(np.float32)).mean(0) / peak
    return _png((255 * colormaps[SPREAD](flat.clip(0, 1))[..., :3]).round().astype(np.uint8))


@lru_cache
def scale_tile() -> str:
    r"""Returns the colours of :func:`spread_tile`, from 0 on the left."""
    return _png((255 * colormaps[SPREAD](np.linspace(0, 1, 128)[None])[..., :3]).round().astype(np.uint8))


def data_url(kind: str, content: bytes) -> str:
    r"""Returns content of a MIME type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _png(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Picture.fromarray(pixels).save(out, format="PNG", optimize=True)
    return data_url("image/png", out.getvalue())
