"""Pictures of the maps of two classes, side by side, and their difference."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tfexplain.plotting.audits import _TEXT, _cells, _empty, _label, _print
from tfexplain.plotting.pictures import (
    COLORMAP,
    _check_rank,
    _no_ticks,
    draw_input,
    reduce_channels,
    symmetric_limits,
)


def scaled(map: np.ndarray, percentile: float | None = 99.5) -> np.ndarray:
    """Scales a signed map to -1..1: one is the limit of its colours.

    Args:
        map: Any shape, not empty.
        percentile: See `symmetric_limits`.

    Returns:
        New array; what is beyond the limit is clipped.

    Example:
        >>> scaled([-2.0, 1.0], percentile=None).tolist()
        [-1.0, 0.5]
    """
    limit = symmetric_limits(map, percentile)[1]
    return np.clip(np.asarray(map, dtype=np.float64) / limit, -1, 1)


def class_difference(
    first: np.ndarray,
    second: np.ndarray,
    *,
    reduction: str = "sum",
    percentile: float | None = 99.5,
    flip: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the scaled maps of two classes and their difference.

    Scaled, because maps that differ by a factor only look the same.

    Args:
        first: Relevance of one input for one class: (height, width, channels), (steps, features) or
            (features,).
        second: The same for another class.
        reduction: See `reduce_channels`; for images only.
        percentile: See `symmetric_limits`.
        flip: Take the negative of the second map where that is closer to the first: for methods
            whose maps change their sign with that of the logit.

    Returns:
        Two maps in -1..1, and the first minus the second.

    Raises:
        ValueError: If shapes differ or values are not finite.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise ValueError(
            f"The maps of two classes have shapes {first.shape} and {second.shape}. Explain one "
            "input for both."
        )
    if first.ndim == 3:
        first, second = (reduce_channels(part, reduction) for part in (first, second))
    first, second = (scaled(part, percentile) for part in (first, second))
    if flip and np.abs(first + second).mean() < np.abs(first - second).mean():
        second = -second
    return first, second, first - second


def two_classes(
    x: np.ndarray,
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    *,
    titles: Sequence[str] = ("one class", "another"),
    reduction: str = "sum",
    percentile: float | None = 99.5,
    flip: bool = False,
    ax: object | None = None,
) -> Figure:
    """Draws the maps of two classes side by side and their difference, a row per method.

    All panels have one scale: the full colours of each map are its limit, and the difference is
    that of the scaled maps, so that it is white where they look the same ([sixt2020when], fig. 1).
    Its mean magnitude is printed under it; 2 is the largest possible.

    Args:
        x: One input: (height, width, channels), (steps, features) or (features,).
        first: Method -> relevance for one class, of the shape of x.
        second: The same methods -> relevance for another class.
        titles: Names of the two classes.
        reduction: See `reduce_channels`; for images only.
        percentile: See `symmetric_limits`.
        flip: See `class_difference`; the limit of a map that was turned around says so.
        ax: Array of Axes, (methods, 4). `None`: a new Figure.

    Returns:
        The Figure.

    Raises:
        ValueError: If methods or shapes do not fit, or values are not finite.
    """
    x = np.asarray(x)
    _check_rank(x.ndim, x.shape)
    if not first or first.keys() != second.keys():
        raise ValueError(
            f"The methods of the two classes are {', '.join(first) or 'none'} and "
            f"{', '.join(second) or 'none'}. Give the same to both."
        )
    if len(titles) != 2:
        raise ValueError(f"titles has {len(titles)} entries. Expected 2, one for each class.")
    if wrong := {name: np.shape(v) for name, v in first.items() if np.shape(v) != x.shape}:
        raise ValueError(f"x has shape {x.shape}, but relevance has {wrong}. Expected that of x.")
    options: dict[str, Any] = {"reduction": reduction, "percentile": percentile}
    names = [str(name) for name in first]
    heads = ["input", str(titles[0]), str(titles[1]), "difference"]
    cells = _cells((len(names), *x.shape), heads, names, ax)
    draw_input(cells[0, 0], x)
    for row, name in enumerate(first):
        if row:
            _empty(cells[row, 0])
        _label(cells[row, 0], names[row])
        panels = class_difference(first[name], second[name], flip=flip, **options)
        for cell, panel in zip(cells[row, 1:], panels, strict=True):
            _draw_scaled(cell, panel.T if x.ndim == 2 else panel, strip=x.ndim == 2)
        as_given = class_difference(first[name], second[name], **options)[1]
        for cell, relevance, turned in (
            (cells[row, 1], first[name], False),
            (cells[row, 2], second[name], not np.array_equal(as_given, panels[1])),
        ):
            reduced = reduce_channels(relevance, reduction) if x.ndim == 3 else relevance
            limit = symmetric_limits(reduced, percentile)[1]
            sign = "\N{MINUS-OR-PLUS SIGN}" if turned else "\N{PLUS-MINUS SIGN}"
            _print(cell, f"{sign}{limit:.2g}")
        _print(cells[row, 3], f"mean {np.abs(panels[2]).mean():.2g}")
    return cells[0, 0].figure


def _draw_scaled(ax: Axes, map: np.ndarray, strip: bool) -> None:
    """Draws a map whose full colours are -1 and 1; a strip fills its place."""
    colours: dict[str, Any] = {"cmap": COLORMAP, "norm": Normalize(-1, 1)}
    if map.ndim == 1:
        ax.bar(np.arange(len(map)), map, color="0.5")
        ax.set_ylim(-2.1, 2.1)
        ax.tick_params(labelsize=_TEXT - 2, length=2, pad=1)
        return
    _no_ticks(ax)
    aspect: Any = "auto" if strip else "equal"
    ax.imshow(map, **colours, aspect=aspect, interpolation="nearest")
