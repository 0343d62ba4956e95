"""Pictures of attributions, drawn on Figures of their own: no pyplot, no global state.

Preparation (`reduce_channels`, `symmetric_limits`, `display_image`, `overlay`) is pure and apart
from drawing (`draw_input`, `draw_map`, `maps`). Signed maps have limits symmetric about zero and a
diverging colour map, so that zero is neutral; the limit is printed with each map.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

COLORMAP = "RdBu_r"
MOST_ROWS = 32  # samples of sequences that are drawn at once
MOST_BANDS = 10  # curves, above which bands hide one another
REDUCTIONS = ("sum", "mean", "max_abs", "norm")

_TITLE_WIDTH = 12  # characters of a title line that fit over one cell
_LINE = 0.13  # inches: height of a line of small text
_SMALL = 7  # points


def reduce_channels(relevance: np.ndarray, reduction: str = "sum") -> np.ndarray:
    """Reduces the last axis of relevance.

    Args:
        relevance: Shape (..., channels).
        reduction: "sum" (default; the relevance of a pixel), "mean", "max_abs" (the signed value
            that is largest in magnitude) or "norm" (Euclidean, never negative).

    Returns:
        New array, shape (...).

    Raises:
        ValueError: If `reduction` is none of these.
    """
    relevance = np.asarray(relevance)
    if reduction == "sum":
        return relevance.sum(axis=-1)
    if reduction == "mean":
        return relevance.mean(axis=-1)
    if reduction == "max_abs":
        largest = np.abs(relevance).argmax(axis=-1)
        return np.take_along_axis(relevance, largest[..., None], axis=-1)[..., 0]
    if reduction == "norm":
        return np.linalg.norm(relevance, axis=-1)
    raise ValueError(f"reduction is {reduction!r}. Expected one of {', '.join(REDUCTIONS)}.")


def symmetric_limits(map: np.ndarray, percentile: float | None = None) -> tuple[float, float]:
    """Limits (-limit, limit) of the colours of a signed map.

    Args:
        map: Any shape, not empty.
        percentile: The limit is this percentile of the magnitudes; values beyond it get the
            colour of the limit. `None`: the largest magnitude.

    Returns:
        Two floats, (-1, 1) for a map that is zero everywhere.

    Raises:
        ValueError: If the map is empty or has NaN or infinite values, or `percentile` is not in
            (0, 100].

    Example:
        >>> symmetric_limits([-3.0, 1.0])
        (-3.0, 3.0)
    """
    magnitudes = np.abs(np.asarray(map, dtype=np.float64))
    if not magnitudes.size:
        raise ValueError(f"map is empty, its shape is {magnitudes.shape}. Give at least one value.")
    if not np.isfinite(magnitudes).all():
        raise ValueError(
            f"map has {np.count_nonzero(~np.isfinite(magnitudes))} NaN or infinite values of "
            f"{magnitudes.size}. Check the analyzer's input and the model's weights."
        )
    limit = magnitudes.max()
    if percentile is not None:
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile is {percentile}. Expected a number in (0, 100].")
        # a sparse map, whose percentile is 0, keeps its largest magnitude
        limit = np.percentile(magnitudes, percentile) or limit
    limit = float(limit) or 1.0
    return -limit, limit


def display_image(image: np.ndarray) -> np.ndarray:
    """Scales an image of any value range to 0..1, for display only.

    Args:
        image: Shape (height, width, channels).

    Returns:
        New array in 0..1: (height, width, 3) for three channels, else (height, width), the mean
        of the channels. A constant image becomes grey.
    """
    image = np.array(image, dtype=np.float64)
    if image.shape[-1] != 3:
        image = image.mean(axis=-1)
    low, high = np.min(image), np.max(image)
    if not np.isfinite([low, high]).all():
        raise ValueError("The image has NaN or infinite values. Give finite inputs.")
    return (image - low) / (high - low) if high > low else np.full_like(image, 0.5)


def resized(map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a map at the size of a photograph, by linear interpolation between its values.

    Args:
        map: Shape (height, width).
        size: Height and width of the result.
    """
    if map.shape == size:
        return map
    picture = Image.fromarray(np.asarray(map, "float32"))
    return np.array(picture.resize(size[::-1], Image.Resampling.BILINEAR))


def overlay(image: np.ndarray, map: np.ndarray, percentile: float | None = None) -> np.ndarray:
    """Blends a signed map over the grey image: the stronger the relevance, the more opaque.

    Args:
        image: Shape (height, width, channels) or (height, width), any value range.
        map: Shape (height, width), or (height, width, channels), which is summed over channels. One
            of another size, as of the network's input, is resized to the image.
        percentile: As in `symmetric_limits`.

    Returns:
        Colours, shape (height, width, 3) of the image, in 0..1.

    Raises:
        ValueError: If there are other axes, or values are not finite.
    """
    image, map = np.asarray(image), np.asarray(map)
    for name, array in (("image", image), ("map", map)):
        if array.ndim not in (2, 3) or 0 in array.shape:
            one = f" Give one of them: {name}[0]." if array.ndim == 4 else ""
            raise ValueError(
                f"{name} has shape {array.shape}. Expected (height, width) or (height, width, "
                f"channels), not empty.{one}"
            )
    image = image[..., None] if image.ndim == 2 else image
    map = reduce_channels(map) if map.ndim == 3 else map
    symmetric_limits(map, percentile)  # refuses what is not finite, which resizing would spread
    map = resized(map, image.shape[:2])
    grey = display_image(image)
    grey = grey.mean(axis=-1) if grey.ndim == 3 else grey
    background = 0.25 + 0.65 * grey[..., None]  # room for dark and light colours
    limits = symmetric_limits(map, percentile)
    colours = matplotlib.colormaps[COLORMAP](Normalize(*limits, clip=True)(map))[..., :3]
    opacity = np.clip(np.abs(map) / limits[1], 0, 1)[..., None] ** 0.75
    return (1 - opacity) * background + opacity * colours


def draw_input(ax: Axes, x: np.ndarray) -> list:
    """Draws one input on `ax` and returns the artists.

    Args:
        ax: Where to draw.
        x: Shape (height, width, channels): an image. (steps, features): lines for up to four
            features, else a strip. (features,): bars.
    """
    x = np.asarray(x)
    _check_rank(x.ndim, x.shape)
    if x.ndim == 3:
        _no_ticks(ax)
        return [ax.imshow(display_image(x), cmap="gray", vmin=0, vmax=1, interpolation="nearest")]
    ax.tick_params(labelsize=_SMALL - 1, length=2, pad=1)
    if x.ndim == 1:
        return list(ax.bar(np.arange(len(x)), x, color="0.4"))
    if x.shape[1] <= 4:
        ax.set_xlim(-0.5, len(x) - 0.5)
        return ax.plot(np.arange(len(x)), x, linewidth=0.8)
    return [ax.imshow(x.T, cmap="gray", aspect="auto", interpolation="nearest")]


def draw_map(
    ax: Axes, relevance: np.ndarray, *, reduction: str = "sum", percentile: float | None = None
) -> tuple[list, float]:
    """Draws the relevance of one input on `ax`, its limits symmetric about zero.

    Args:
        ax: Where to draw.
        relevance: Shape (height, width, channels): a map of the reduced channels. (steps,
            features): a strip with a row per feature. (features,): bars.
        reduction: See `reduce_channels`; for images only.
        percentile: See `symmetric_limits`.

    Returns:
        The artists and the limit, in the unit of the relevance.
    """
    relevance = np.asarray(relevance)
    _check_rank(relevance.ndim, relevance.shape)
    strip = relevance.ndim == 2
    if relevance.ndim == 3:
        relevance = reduce_channels(relevance, reduction)
    low, high = symmetric_limits(relevance, percentile)
    colours: dict[str, Any] = {"cmap": COLORMAP, "norm": Normalize(low, high)}
    if relevance.ndim == 1:
        shades = ScalarMappable(**colours).to_rgba(relevance)
        bars = ax.bar(
            np.arange(len(relevance)), relevance, color=shades, edgecolor="0.4", linewidth=0.5
        )
        ax.set_ylim(1.05 * low, 1.05 * high)
        ax.tick_params(labelsize=_SMALL - 1, length=2, pad=1)
        return [*bars, ax.axhline(0, color="0.4", linewidth=0.5)], high
    _no_ticks(ax)
    aspect: Any = "auto" if strip else "equal"
    shown = relevance.T if strip else relevance
    return [ax.imshow(shown, **colours, aspect=aspect, interpolation="nearest")], high


def picture(
    relevance: np.ndarray,
    image: np.ndarray | None = None,
    *,
    title: str = "",
    reduction: str = "sum",
    percentile: float | None = None,
) -> Figure:
    """Draws one map with its colour scale, over the grey image if that is given.

    Args:
        relevance: As in `draw_map`; (height, width, channels) if `image` is given.
        image: Shape (height, width, channels), any value range.
        title: Text above the map.
        reduction: See `reduce_channels`.
        percentile: See `symmetric_limits`.

    Returns:
        A new Figure.
    """
    relevance = np.asarray(relevance)
    tall = relevance.shape[0] / relevance.shape[1] if relevance.ndim == 3 else 0.6
    figure = Figure(figsize=(5.6, 0.7 + 4.2 * min(2.5, max(0.4, tall))), layout="constrained")
    ax = figure.add_subplot()
    if image is None:
        _, limit = draw_map(ax, relevance, reduction=reduction, percentile=percentile)
    else:
        reduced = reduce_channels(relevance, reduction)
        limit = symmetric_limits(reduced, percentile)[1]
        _no_ticks(ax)
        ax.imshow(overlay(image, reduced, percentile), interpolation="nearest")
    ax.set_title(title, fontsize=9, parse_math=False)
    scale = ScalarMappable(Normalize(-limit, limit), COLORMAP)
    bar = figure.colorbar(scale, ax=ax, fraction=0.05, pad=0.02, ticks=[-limit, 0, limit])
    low, high = f"\N{MINUS SIGN}{limit:.3g}", f"+{limit:.3g}"
    if percentile is not None:  # colours stand for values beyond the limit too
        low, high = f"\N{LESS-THAN OR EQUAL TO} {low}", f"\N{GREATER-THAN OR EQUAL TO} {high}"
    bar.ax.set_yticklabels([low, "0", high], fontsize=_SMALL)
    return figure


def maps(
    x: np.ndarray,
    relevance: np.ndarray | Mapping[str, np.ndarray],
    *,
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    reduction: str = "sum",
    percentile: float | None = None,
    ax: object | None = None,
) -> Figure:
    """Draws a row per sample: the input, and its signed map for each method.

    Each map has limits of its own, symmetric about zero; the limit is printed under it.

    Args:
        x: Inputs, shape (n, *input_shape): images (height, width, channels), sequences (steps,
            features) or tabular (features,). Any value range; scaled for display only.
        relevance: Shape of `x`, or a dict of method -> such an array. Of images also (n, height,
            width), or another size, which is resized: x may be the photographs themselves.
        titles: One per column: the input's and those of methods. Default: "input" and the names.
        row_labels: One per sample, at the left.
        reduction: "sum", "mean", "max_abs" or "norm" over the channels of images.
        percentile: See `symmetric_limits`. `None`: the largest magnitude.
        ax: Array of Axes, shape (n, 1 + number of methods), to draw on. `None`: a new Figure.

    Returns:
        The Figure. `figure.savefig(path)` writes it.

    Raises:
        ValueError: If shapes or numbers of labels do not fit, or values are not finite.

    Example:
        >>> figure = maps(np.zeros((2, 8, 8, 1)), {"gradient": np.ones((2, 8, 8, 1))})
    """
    x = np.asarray(x)
    _check_rank(x.ndim - 1, x.shape[1:])
    if not isinstance(relevance, Mapping):
        relevance = {"relevance": relevance}
    relevance = {str(name): np.asarray(values) for name, values in relevance.items()}
    if not len(x) or not relevance:
        raise ValueError(
            f"x has {len(x)} samples and relevance {len(relevance)} methods. Give at least one of "
            "each."
        )
    _check_batch(x, relevance)
    if x.ndim == 4:
        relevance = {name: _like_images(v, x, reduction) for name, v in relevance.items()}
    fitting = (x.shape, (*x.shape[:3], 1)) if x.ndim == 4 else (x.shape,)
    if wrong := {name: v.shape for name, v in relevance.items() if v.shape not in fitting}:
        raise ValueError(
            f"x has shape {x.shape}, but relevance has {wrong}. Expected the shape of x for each "
            "method; select one target before plotting."
        )
    shape = (len(x), 1 + len(relevance))
    titles = ["input", *relevance] if titles is None else list(titles)
    labels = [""] * len(x) if row_labels is None else list(row_labels)
    for given, expected, name in ((titles, shape[1], "titles"), (labels, shape[0], "row_labels")):
        if len(given) != expected:
            raise ValueError(f"{name} has {len(given)} entries. Expected {expected}.")
    titles = [_wrapped(str(title)) for title in titles]
    cells = _new_cells(x.shape, titles, labels) if ax is None else _given(ax, shape)
    for row, (label, sample) in enumerate(zip(labels, x, strict=True)):
        draw_input(cells[row, 0], sample)
        cells[row, 0].set_ylabel(
            str(label),
            fontsize=_SMALL,
            rotation=0,
            horizontalalignment="right",
            labelpad=3,
            parse_math=False,
        )
        for column, values in enumerate(relevance.values(), start=1):
            cell = cells[row, column]
            _, limit = draw_map(cell, values[row], reduction=reduction, percentile=percentile)
            cell.set_xlabel(f"\N{PLUS-MINUS SIGN}{limit:.2g}", fontsize=_SMALL - 1, labelpad=1.5)
    for cell, title in zip(cells[0], titles, strict=True):
        cell.set_title(title, fontsize=_SMALL, pad=3, parse_math=False)
    return cells[0, 0].figure


def _check_batch(x: np.ndarray, relevance: Mapping[str, np.ndarray]) -> None:
    """Refuses an image without the axis of samples, which looks like a batch of sequences.

    Raises:
        ValueError: If it is one. A batch of so many sequences has more rows than fit a page.
    """
    large = x.ndim == 3 and min(x.shape[:2]) >= MOST_ROWS and x.shape[2] in (1, 3)
    lacks = x.ndim in (2, 3) and any(values.shape[1:] == x.shape for values in relevance.values())
    if large or lacks or (x.ndim == 3 and x.dtype == np.uint8):
        more = " Of sequences, give fewer at a time." if large else ""
        raise ValueError(
            f"x has shape {x.shape}, and its first axis counts samples. One image needs that axis: "
            f"x[None], and relevance of the same form.{more}"
        )


def _like_images(relevance: np.ndarray, x: np.ndarray, reduction: str) -> np.ndarray:
    """Returns maps at the size of images, (n, height, width, 1), where they have another form."""
    if relevance.shape == x.shape or relevance.ndim not in (3, 4) or len(relevance) != len(x):
        return relevance
    reduced = reduce_channels(relevance, reduction) if relevance.ndim == 4 else relevance
    return np.stack([resized(map, x.shape[1:3]) for map in reduced])[..., None]


def _check_rank(rank: int, shape: tuple[int, ...]) -> None:
    """Refuses inputs that are no image, sequence or row of a table."""
    if rank not in (1, 2, 3) or 0 in shape:
        raise ValueError(
            f"One input has shape {shape}. Expected (height, width, channels), (steps, features) "
            "or (features,), not empty; reduce other inputs to one of these."
        )


def _no_ticks(ax: Axes) -> None:
    """Removes ticks, which mean nothing on a map, and keeps the frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(linewidth=0.4, color="0.6")


def _wrapped(title: str) -> str:
    """Breaks a method's name after dots and underscores into lines that fit over a cell."""
    lines = [""]
    for part in re.findall(r"[^._\s]*[._\s]?", title):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > _TITLE_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _given(ax: object, shape: tuple[int, int]) -> np.ndarray:
    """The caller's Axes as an array of that shape."""
    cells = np.array(ax, dtype=object)
    if cells.size != shape[0] * shape[1]:
        raise ValueError(
            f"ax has {cells.size} Axes. Expected {shape}: a row per sample, a column for the "
            "input and one per method."
        )
    return cells.reshape(shape)


class Margins(NamedTuple):
    """Space around a grid of axes, in inches."""

    left: float
    right: float
    top: float
    bottom: float


def grid_of_axes(
    shape: tuple[int, int],
    size: tuple[float, float],
    gaps: tuple[float, float],
    margins: Margins,
) -> np.ndarray:
    """Returns axes on a new Figure that is as large as they need.

    Args:
        shape: Rows and columns.
        size: Width and height of one of the axes, in inches.
        gaps: Space between columns and between rows, in inches.
        margins: Space around.

    Returns:
        Array of Axes, (rows, columns).
    """
    (rows, columns), (width, height), (gap, below) = shape, size, gaps
    total = (
        margins.left + columns * width + (columns - 1) * gap + margins.right,
        margins.top + rows * height + (rows - 1) * below + margins.bottom,
    )
    return Figure(figsize=total, dpi=130).subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": margins.left / total[0],
            "right": 1 - margins.right / total[0],
            "top": 1 - margins.top / total[1],
            "bottom": margins.bottom / total[1],
            "wspace": gap / width,
            "hspace": below / height,
        },
    )


def _new_cells(
    shape: tuple[int, ...], titles: Sequence[str], labels: Sequence[str], widest: float = 2.2
) -> np.ndarray:
    """Axes on a new Figure, of sizes in inches so that no text overlaps, and a colour scale."""
    rows, columns, rank = shape[0], len(titles), len(shape) - 1
    width = min(widest, max(0.86, 12 / columns)) * (1 if rank == 3 else 1.5)
    height = width * (min(3.0, max(0.3, shape[1] / shape[2])) if rank == 3 else 0.6)
    gap = 0.06 if rank == 3 else 0.4  # tick labels of bars and lines
    left = 0.15 + 0.075 * max(len(str(label)) for label in labels) + (0 if rank == 3 else 0.3)
    top = 0.1 + _LINE * max(title.count("\n") + 1 for title in titles)
    bottom, below, right = 0.25, 0.2 if rank == 3 else 0.35, 0.75
    margins = Margins(left, right, top, bottom)
    cells = grid_of_axes((rows, columns), (width, height), (gap, below), margins)
    figure = cells[0, 0].figure
    total = figure.get_size_inches()
    length = min(2.0, total[1] - top - bottom)
    scale = figure.add_axes(
        (
            1 - (right - 0.12) / total[0],
            1 - (top + length) / total[1],
            0.1 / total[0],
            length / total[1],
        )
    )
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), COLORMAP), cax=scale, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["\N{MINUS SIGN}limit", "0", "+limit"], fontsize=_SMALL)
    return cells
