"""Pictures of a report as data URIs, from saved Datasets."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from tfexplain import plotting

# Pixels of the larger side of a small map, above which it is shrunk.
LARGEST_MAP = 224
# Above it a picture is kept as JPEG: noise, as of gradients, does not get small as PNG.
LARGEST_EXACT = 64
# The percentile of magnitudes that ends the scale: single pixels can be far above all others.
PERCENTILE = 99.5


class Picture(NamedTuple):
    """A picture and what is said of it.

    Attributes:
        source: Data URI.
        alt: For those who do not see it.
        caption: Below it.
    """

    source: str
    alt: str
    caption: str


def drawn(make: Callable[[], Any], alt: str, caption: str) -> Picture | str:
    """Returns a figure as a picture, or why it cannot be drawn.

    Args:
        make: Function that returns a Figure or Axes.
        alt: See `Picture`.
        caption: See `Picture`.
    """
    stream = io.BytesIO()
    try:
        made = make()
        figure = made if isinstance(made, Figure) else made.figure
        figure.savefig(stream, format="png", dpi=130)
    except Exception as error:  # drawings of a user's own may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return f"{alt} cannot be drawn: {kind}{error}"
    return Picture(_uri(stream), alt, caption)


def small_input(x: np.ndarray) -> str:
    """Returns one input as a small picture: images (uint8 as they are), else lines or bars."""
    if x.ndim == 3:
        if x.dtype == np.uint8:
            return _pixels(np.broadcast_to(x / 255, (*x.shape[:2], 3)))
        shown = plotting.display_image(x)
        shown = np.repeat(shown[..., None], 3, axis=2) if shown.ndim == 2 else shown
        return _pixels(shown)
    return _small(lambda ax: plotting.draw_input(ax, x))


def small_map(relevance: np.ndarray, largest: int = LARGEST_MAP) -> tuple[str, float]:
    """Returns the map of one input as a small picture, and the limit of its colours: 0 if it is 0.

    Args:
        relevance: (height, width, channels), (steps, features) or (features,).
        largest: Pixels of the larger side of an image, above which it is shrunk.
    """
    if relevance.ndim == 3:
        map = plotting.reduce_channels(relevance)
        limits = plotting.symmetric_limits(map, PERCENTILE)
        colours = matplotlib.colormaps[plotting.COLORMAP](Normalize(*limits, clip=True)(map))
        return _pixels(colours[..., :3], largest), limits[1] if map.any() else 0.0
    limits = plotting.symmetric_limits(relevance)
    picture = _small(lambda ax: plotting.draw_map(ax, relevance))
    return picture, limits[1] if relevance.any() else 0.0


def _small(draw: Callable[[Any], object]) -> str:
    figure = Figure(figsize=(2.2, 1.5), layout="constrained")
    draw(figure.add_subplot())
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return _uri(stream)


def _pixels(colours: np.ndarray, largest: int = LARGEST_MAP) -> str:
    """Returns (height, width, 3) in 0..1 as a picture."""
    image = Image.fromarray(np.round(colours * 255).astype("uint8"))
    if max(image.size) > largest:
        image.thumbnail((largest, largest))
    stream = io.BytesIO()
    if max(image.size) > LARGEST_EXACT:
        image.save(stream, format="jpeg", quality=90, subsampling=0)
        return _uri(stream, "jpeg")
    image.save(stream, format="png", optimize=True)
    return _uri(stream)


def _uri(stream: io.BytesIO, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
