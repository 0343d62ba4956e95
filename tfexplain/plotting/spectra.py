"""Plots of spectra: falling singular values, and the terms of explanations."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tfexplain.plotting.pictures import (
    COLORMAP,
    MOST_BANDS,
    _given,
    _no_ticks,
    symmetric_limits,
)

_TEXT = 8  # points
_ROUNDING = 1e-16  # of float64
_LINES, _MARKERS = ("-", "--", ":", "-."), "osv^"


def singular_values(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draws the singular values of each analyzer: medians over samples, and their quartiles.

    Args:
        dataset: What `tfexplain.audits.spectrum` returned.
        ax: Where to draw; by default on a new Figure (`ax.figure`).

    Returns:
        The axes. What is below rounding, 1e-16 of an analyzer's first value, is not drawn, nor is
        an analyzer without any value.
    """
    ax = Figure(figsize=(5.4, 3.4), layout="constrained").subplots() if ax is None else ax
    ranks = dataset["rank"].values
    few = dataset.sizes["analyzer"] <= MOST_BANDS
    for index, name in enumerate(dataset["analyzer"].values.tolist()):
        values = dataset["singular_value"].sel(analyzer=name).values
        known = ~np.isnan(values).all(axis=0)
        if not known.any():
            continue
        low, middle, high = np.nanpercentile(values[:, known], [25, 50, 75], axis=0)
        rounding = middle < _ROUNDING * middle[0]
        low[rounding], middle[rounding], high[rounding] = np.nan, np.nan, np.nan
        # Ten colours: of more analyzers the lines differ.
        turn = index // 10 % len(_LINES)
        look: dict[str, Any] = {
            "marker": _MARKERS[turn] if known.sum() < 30 else "",
            "linestyle": _LINES[turn],
        }
        ssm = float(dataset["ssm"].sel(analyzer=name).median())
        label = f"{name}: SSM {ssm:.2f}"
        (line,) = ax.plot(
            ranks[known], middle, color=f"C{index}", markersize=3, label=label, **look
        )
        if few:
            colour = line.get_color()
            ax.fill_between(ranks[known], low, high, color=colour, alpha=0.15, linewidth=0)
    ax.set_yscale("log")
    if len(ranks) > 30:
        ax.set_xscale("log")
    ax.set_xlabel("rank", fontsize=_TEXT)
    ax.set_ylabel("singular value of R", fontsize=_TEXT)
    ax.tick_params(labelsize=_TEXT - 1)
    beside: dict[str, Any] = {} if few else {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    ax.legend(fontsize=_TEXT - 1, frameon=False, **beside)
    return ax


def term_maps(dataset: xr.Dataset, *, ax: object | None = None) -> Figure:
    """Draws explanations and their terms: a row for each sample (fig. 5 of [maess2025uncovering]).

    All maps of a row have the same limits, so that the terms add up by eye too.

    Args:
        dataset: What `tfexplain.audits.spectral_terms` returned, of images.
        ax: Array of Axes, shape (samples, 2 + terms). None: a new Figure.

    Returns:
        The Figure.

    Raises:
        ValueError: If the maps are no images, or there are too few Axes.
    """
    if "row" not in dataset["explanation"].dims:
        raise ValueError(
            f"The maps have the axes {dataset['explanation'].dims[1:]}; only images are drawn."
        )
    rows, columns = dataset.sizes["sample"], 2 + dataset.sizes["rank"]
    if ax is None:
        size = (1.25 * columns, 0.3 + 1.5 * rows)
        ax = Figure(figsize=size, layout="constrained").subplots(rows, columns)
    cells = _given(ax, (rows, columns))
    ranks = dataset["rank"].values
    for row in range(rows):
        one = dataset.isel(sample=row)
        shown = [one["explanation"].values, *one["term"].values, one["rest"].values]
        norm = Normalize(*symmetric_limits(np.stack(shown)))
        for cell, map in zip(cells[row], shown, strict=True):
            _no_ticks(cell)
            cell.imshow(map, cmap=COLORMAP, norm=norm, interpolation="nearest")
        for cell, rank in zip(cells[row][1:], ranks, strict=False):
            sigma = one["singular_value"].sel(rank=rank).item()
            if not np.isnan(sigma):
                cell.set_xlabel(f"σ = {sigma:.3g}", fontsize=_TEXT - 1)
    titles = ["explanation", *(f"term {rank}" for rank in ranks), "rest"]
    for cell, title in zip(cells[0], titles, strict=True):
        cell.set_title(title, fontsize=_TEXT)
    return cells[0, 0].figure
