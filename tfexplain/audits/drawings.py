"""What an audit shows of its Dataset: figures, galleries and grids of maps, for pages to render."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Legends with a line per method, inches: least height of a figure, and what a line takes.
LEAST_HEIGHT, LEGEND_LINE = 3.6, 0.17


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        draw: Function of the Dataset, its methods named as matplotlib reads them, that returns the
            Figure or Axes.
        alt: For those who do not see it.
        caption: Below it.
    """

    draw: Callable[[xr.Dataset], Figure | SubFigure | Axes]
    alt: str
    caption: str


@dataclass(frozen=True, eq=False)
class Tile:
    """A small picture.

    Attributes:
        values: (height, width, channels), (steps, features) or (features,); of a map also (height,
            width) or (steps,), see `has_channels`.
        alt: For those who do not see it.
        caption: Below it; behind that of a map the limit of its colours is printed.
        is_map: Whether it is a map, which is signed, or an input.
        has_channels: Whether the last axis of a map holds channels or features; without them two
            axes are (height, width).
    """

    values: np.ndarray
    alt: str
    caption: str = ""
    is_map: bool = True
    has_channels: bool = True


@dataclass(frozen=True, eq=False)
class Gallery:
    """Small pictures in a row, with a title and a line of text."""

    title: str
    text: str
    tiles: Sequence[Tile]


@dataclass(frozen=True, eq=False)
class Grid:
    """Small maps in a table: a row per method; None stands for a map that is not finite."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Tile | None]]


@dataclass(frozen=True)
class Labels:
    """How samples and outputs are called.

    Attributes:
        positions: Place of each audited sample among those given.
        names: Name of each given sample, or none.
        classes: Output index, as text -> name.
    """

    positions: Sequence[int] = ()
    names: Sequence[str] = ()
    classes: Mapping[str, str] = field(default_factory=dict)

    def sample(self, position: int) -> str:
        """Returns the place of an audited sample among those given, and its name if it has one."""
        place = self.positions[position] if len(self.positions) else position
        return f"{place} ({self.names[place]})" if len(self.names) else str(place)

    def output(self, index: int) -> str:
        """Returns the name of an output with its index."""
        name = self.classes.get(str(index))
        return f"output {index}" if name is None else f"{name} (output {index})"


def axes_for_legend(dataset: xr.Dataset) -> Axes:
    """Returns Axes that are high enough for a legend with a line for each method."""
    from matplotlib.figure import Figure

    height = max(LEAST_HEIGHT, 0.6 + LEGEND_LINE * dataset.sizes["analyzer"])
    return Figure(figsize=(8.4, height), layout="constrained").subplots()
