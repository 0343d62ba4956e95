"""How the paper normalises and shows the explanations of two classes (fig. 1c-e).

`tfexplain.plotting.two_classes` has signed maps, each scaled by its limit; the published maps are
magnitudes, and the difference is one of magnitudes that are normalised channel by channel.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tfexplain.plotting import COLORMAP, display_image, reduce_channels, symmetric_limits

_SMALL = 7  # points
_CELL = 1.15  # inches


def magnitudes(relevance: np.ndarray, percent: float = 99.5) -> np.ndarray:
    """Magnitudes in units of a percentile, positive and negative values each by their own.

    Positive values are divided by the given and negative ones by the opposite percentile, both of
    all entries, and clipped at 1. Where all values have one strict sign, magnitudes are divided by
    their own percentile and not clipped. So [sixt2020when] compares the maps of two classes
    (fig. 1). Where the percentile of a sign is 0, the largest magnitude of that sign stands for it.

    Args:
        relevance: Any shape; channels are entries like others.
        percent: Upper percentile, in (50, 100].

    Returns:
        Float64 array >= 0 of the same shape; NaN everywhere if the relevance is zero everywhere or
        holds NaN or infinity.

    Example:
        >>> magnitudes([-4.0, -2.0, 0.0, 1.0, 2.0], 100)
        array([1. , 0.5, 0. , 0.5, 1. ])
    """
    relevance = np.asarray(relevance, "float64")
    if not np.isfinite(relevance).all() or not relevance.any():
        return np.full(relevance.shape, np.nan)
    if (relevance > 0).all() or (relevance < 0).all():
        return np.abs(relevance) / np.percentile(np.abs(relevance), percent)
    scaled = np.zeros(relevance.shape)
    for chosen, rank in ((relevance > 0, percent), (relevance < 0, 100 - percent)):
        if chosen.any():
            scale = np.abs(np.percentile(relevance, rank)) or np.abs(relevance[chosen]).max()
            scaled[chosen] = np.minimum(np.abs(relevance[chosen]) / scale, 1)
    return scaled


class TwoClassMaps(NamedTuple):
    """What is shown of the relevance for two classes.

    Attributes:
        first: Magnitudes of the channel sums for the first class, (height, width).
        second: The same for the second class.
        difference: That of all magnitudes, summed over channels and clipped to its 1st and
            99th percentile, (height, width); positive where the first class has more.
        distance: Mean absolute difference of the magnitudes of all channels, not clipped.
    """

    first: np.ndarray
    second: np.ndarray
    difference: np.ndarray
    distance: float


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the number of fig. 1e: how much two normalised explanations differ on average.

    Args:
        first: Relevance, any shape.
        second: The map of another class, the same shape.
    """
    return float(np.abs(magnitudes(first) - magnitudes(second)).mean())


def two_class_maps(relevance: np.ndarray) -> TwoClassMaps:
    """Prepares the relevance for two classes as in fig. 1 of [sixt2020when].

    Magnitudes are those of `magnitudes`: a map and its negative look the same.
    Relevance that is zero everywhere stays zero.

    Args:
        relevance: Shape (2, height, width, channels), of one input.

    Raises:
        ValueError: For another shape, NaN or infinity.
    """
    relevance = np.asarray(relevance)
    if relevance.ndim != 4 or len(relevance) != 2 or 0 in relevance.shape:
        raise ValueError(
            f"relevance has shape {relevance.shape}. Expected (2, height, width, channels): one "
            "input, explained for two classes."
        )
    if not np.isfinite(relevance).all():
        raise ValueError("relevance has NaN or infinite values. Check the analyzer's input.")
    first, second = (_magnitudes(part) for part in reduce_channels(relevance))
    difference = _magnitudes(relevance[0]) - _magnitudes(relevance[1])
    shown = reduce_channels(difference)
    shown = np.clip(shown, *np.percentile(shown, [1, 99]))
    return TwoClassMaps(first, second, shown, float(np.abs(difference).mean()))


def _magnitudes(relevance: np.ndarray) -> np.ndarray:
    return magnitudes(relevance) if relevance.any() else np.zeros(relevance.shape)


def draw_two_classes(
    relevance: np.ndarray | Mapping[str, np.ndarray],
    image: np.ndarray | None = None,
    *,
    titles: Sequence[str] = ("first class", "second class"),
    ax: object | None = None,
) -> Figure:
    """Draws the maps of two classes side by side, with their difference, in a row for each method.

    Maps are magnitudes, from 0 to the percentile that is 1; differences have a scale of their own,
    symmetric about zero. Under a difference stand its limit and, in brackets, the mean absolute
    difference of the two normalised explanations (`TwoClassMaps.distance`).

    Args:
        relevance: Shape (2, height, width, channels), or a dict of method -> such an array.
        image: The explained input, (height, width, channels), any value range; drawn at the left
            of the first row.
        titles: Names of the two classes.
        ax: Array of Axes, shape (methods, 3), or (methods, 4) with an image, to draw on. `None`: a
            new Figure.

    Returns:
        The Figure.

    Raises:
        ValueError: If shapes or the number of titles or Axes do not fit, or values are not finite.

    Example:
        >>> figure = draw_two_classes({"gradient": np.ones((2, 8, 8, 3))}, np.zeros((8, 8, 3)))
    """
    if not isinstance(relevance, Mapping):
        relevance = {"": relevance}
    prepared = {str(name): two_class_maps(values) for name, values in relevance.items()}
    if not prepared or len(titles) != 2:
        raise ValueError(
            f"relevance has {len(prepared)} methods and titles {len(titles)} entries. Expected at "
            "least one method, and two titles."
        )
    offset = 0 if image is None else 1
    shape = (len(prepared), 3 + offset)
    cells = _new_cells(shape) if ax is None else np.array(ax, dtype=object)
    if cells.size != shape[0] * shape[1]:
        raise ValueError(
            f"ax has {cells.size} Axes. Expected {shape}: a row per method, columns for "
            f"{'the image, ' if offset else ''}both classes and their difference."
        )
    cells = cells.reshape(shape)
    for row, (name, shown) in zip(cells, prepared.items(), strict=True):
        for cell, map in zip(row[offset:], shown[:2], strict=False):
            _draw(cell, map, 1.0)
        limit = symmetric_limits(shown.difference)[1]
        _draw(row[-1], shown.difference, limit)
        row[-1].set_xlabel(
            f"\N{PLUS-MINUS SIGN}{limit:.2g} ({shown.distance:.2g})",
            fontsize=_SMALL - 1,
            labelpad=1.5,
        )
        row[offset].set_ylabel(
            textwrap.fill(name, 12),
            fontsize=_SMALL,
            rotation=0,
            horizontalalignment="right",
            verticalalignment="center",
            labelpad=3,
            parse_math=False,
        )
    if image is not None:
        image = display_image(image)
        cells[0, 0].imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for cell in cells[:, 0]:
            cell.set_axis_off()
    for cell, title in zip(cells[0, offset:], (*titles, "difference"), strict=True):
        cell.set_title(title, fontsize=_SMALL, pad=3, parse_math=False)
    return cells[0, 0].figure


def _draw(ax: Axes, map: np.ndarray, limit: float) -> None:
    """Draws a map with limits symmetric about zero and without ticks."""
    ax.imshow(map, cmap=COLORMAP, norm=Normalize(-limit, limit), interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(linewidth=0.4, color="0.6")


def _new_cells(shape: tuple[int, int]) -> np.ndarray:
    """Axes on a new Figure with a colour scale."""
    size = (_CELL * shape[1] + 0.9, (_CELL + 0.15) * shape[0] + 0.3)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    cells = figure.subplots(*shape, squeeze=False)
    scale = ScalarMappable(Normalize(-1, 1), COLORMAP)
    bar = figure.colorbar(scale, ax=cells, ticks=[-1, 0, 1], fraction=0.06, aspect=12, shrink=0.8)
    bar.ax.set_yticklabels(["\N{MINUS SIGN}limit", "0", "+limit or 1"], fontsize=_SMALL)
    return cells
