"""Plots of `cosine_convergence`: curves from the start to the input, and stacked histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Edges of |cos| in the histograms of [sixt2020when].
EDGES = (0.0, 0.9, 0.99, 0.999, 0.9999, 1.0)
MARKERS = "osv^D<>pPXh*"
HATCHES = ("", "//", "..", "xx", "--", "oo", "\\\\", "++", "**")
_SMALL = 7  # points
_MOST_NAMES = 45  # of layers below an axis


def convergence_lines(
    dataset: xr.Dataset, start: str | None = None
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Returns the median |cos| of each analyzer from a start to the input.

    Args:
        dataset: What `tfexplain.audits.cosine_convergence` returned.
        start: Name of the start; None is the first.

    Returns:
        Names of the layers that were measured, and analyzer -> one value per layer; NaN where
        nothing was counted.

    Raises:
        ValueError: If there is no such start.
    """
    chosen = _of_start(dataset, start)
    median = chosen["quantile"].sel(q=0.5).where(chosen["count"].sum("bin") > 0)
    measured = median.notnull().any("analyzer").values
    names = [str(name) for name in dataset["layer"].values[measured]]
    lines = {
        str(name): median.sel(analyzer=name).values[measured] for name in median["analyzer"].values
    }
    return names, lines


def convergence_curves(
    dataset: xr.Dataset,
    *,
    start: str | None = None,
    logarithmic: bool = False,
    closest: float = 1e-16,
    ax: Axes | None = None,
    colors: Mapping[str, str] | None = None,
    legend: bool = True,
) -> Axes:
    """Draws the median |cos| over the layers (fig. 6 of [sixt2020when]).

    Args:
        dataset: What `tfexplain.audits.cosine_convergence` returned.
        start: Name of the start; None is the first.
        logarithmic: Draw 1 - median on a logarithmic axis with 1 at the top, labelled 1 - 10^-k.
        closest: On that axis, medians that are nearer to 1 are drawn at this distance from it.
        ax: Where to draw; by default on a new Figure (`ax.figure`).
        colors: Analyzer -> colour of matplotlib. Lines of one colour differ by their marker.
        legend: Name the lines.

    Returns:
        The axes.
    """
    ax = Figure(figsize=(7.5, 3.6), layout="constrained").subplots() if ax is None else ax
    layers, lines = convergence_lines(dataset, start)
    baseline = _of_start(dataset, start)["baseline"].max("analyzer").sel(layer=layers).values
    places = np.arange(len(layers))
    styles = _styles(lines, colors)
    for name, line in lines.items():
        color, marker = styles[name]
        shown = _shown(line, logarithmic, closest)
        ax.plot(places, shown, label=name, color=color, marker=marker, markersize=3, linewidth=1)
    shown = _shown(baseline, logarithmic, closest)
    ax.plot(places, shown, ":", color="0.5", linewidth=1, label="random directions")
    # Some of many layers are named, from the last on, which is the input.
    named = places[::-1][:: -(-len(layers) // _MOST_NAMES)][::-1]
    names = [layers[place] for place in named]
    ax.set_xticks(named, names, rotation=60, ha="right", fontsize=_SMALL - 1)
    ax.tick_params(axis="y", labelsize=_SMALL)
    if logarithmic:
        _one_minus_powers(ax, [_shown(line, True, closest) for line in (*lines.values(), baseline)])
    else:
        ax.set_ylim(-0.05, 1.05)
    ax.set_ylabel("median |cos|", fontsize=_SMALL + 1)
    first = start or str(dataset["start"].values[0])
    ax.set_xlabel(f"from {first} to the input", fontsize=_SMALL + 1)
    if legend:
        ax.legend(fontsize=_SMALL - 1, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return ax


def convergence_shares(
    dataset: xr.Dataset, layer: str, start: str | None = None
) -> dict[str, np.ndarray]:
    """Returns which share of |cos| lies between any two of `EDGES`.

    Args:
        dataset: What `tfexplain.audits.cosine_convergence` returned.
        layer: Name of the layer.
        start: Name of the start; None is the first.

    Returns:
        Analyzer -> five shares that sum to 1; NaN where nothing was counted. A bin of the Dataset
        belongs where its larger |cos| lies.

    Raises:
        ValueError: If there is no such start or layer.
    """
    chosen = _of_start(dataset, start)
    if layer not in chosen["layer"].values:
        known = ", ".join(map(str, chosen["layer"].values))
        raise ValueError(f"The Dataset has no layer {layer!r}. It has {known}.")
    # Rounded, because 1 - 0.9 is not quite 0.1.
    largest = np.round(1 - chosen["bin_low"].values, 12)
    place = np.clip(np.searchsorted(EDGES, largest, side="left") - 1, 0, len(EDGES) - 2)
    by_analyzer = {}
    for name in chosen["analyzer"].values:
        count = chosen["count"].sel(analyzer=name, layer=layer).values
        shares = np.bincount(place, weights=count, minlength=len(EDGES) - 1)
        by_analyzer[str(name)] = (
            shares / shares.sum() if shares.sum() else np.full(len(shares), np.nan)
        )
    return by_analyzer


def convergence_histogram(
    dataset: xr.Dataset,
    *,
    layer: str,
    start: str | None = None,
    ax: Axes | None = None,
    colors: Mapping[str, str] | None = None,
    legend: bool = True,
) -> Axes:
    """Draws the stacked histogram of |cos| at a layer (fig. 6e to 6g of [sixt2020when]).

    Args:
        dataset: What `tfexplain.audits.cosine_convergence` returned.
        layer: Name of the layer.
        start: Name of the start; None is the first.
        ax: Where to draw; by default on a new Figure (`ax.figure`).
        colors: Analyzer -> colour of matplotlib. Bars of one colour differ by their hatch.
        legend: Name the bars.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no such start or layer.
    """
    ax = Figure(figsize=(5, 3.6), layout="constrained").subplots() if ax is None else ax
    shares = convergence_shares(dataset, layer, start)
    bottom = np.zeros(len(EDGES) - 1)
    palette = _styles(shares, colors)
    seen: dict[str, int] = {}
    for name, values in shares.items():
        if np.isnan(values).any():
            continue
        color = palette[name][0]
        seen[color] = seen.get(color, -1) + 1
        hatch = HATCHES[seen[color] % len(HATCHES)]
        style: dict[str, Any] = {
            "color": color,
            "hatch": hatch,
            "edgecolor": "white",
            "linewidth": 0.4,
        }
        ax.bar(np.arange(len(values)), values, bottom=bottom, width=0.9, label=name, **style)
        bottom += values
    names = [f"[{low:g}, {high:g})" for low, high in zip(EDGES[:-1], EDGES[1:], strict=True)]
    names[-1] = names[-1].replace(")", "]")
    ax.set_xticks(np.arange(len(names)), names, rotation=30, ha="right", fontsize=_SMALL)
    ax.set_yticks([])
    ax.set_xlabel(f"|cos| at {layer}", fontsize=_SMALL + 1)
    if legend and ax.containers:
        ax.legend(fontsize=_SMALL - 1, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return ax


def _of_start(dataset: xr.Dataset, start: str | None) -> xr.Dataset:
    if start is None:
        return dataset.isel(start=0)
    if start not in dataset["start"].values:
        raise ValueError(
            f"The Dataset has no start {start!r}. It has "
            f"{', '.join(map(str, dataset['start'].values))}."
        )
    return dataset.sel(start=start)


def _shown(line: np.ndarray, logarithmic: bool, closest: float) -> np.ndarray:
    return np.maximum(1 - line, closest) if logarithmic else line


def _one_minus_powers(ax: Axes, distances: list[np.ndarray]) -> None:
    """Makes a logarithmic axis of 1 - |cos|, turned over, with labels of |cos|."""
    least = min(map(np.nanmin, distances))
    decades = max(1, int(np.ceil(-np.log10(least))))
    ax.set_yscale("log")
    ax.set_ylim(1.3, 10.0 ** (-decades - 0.3))
    step = max(1, decades // 6)
    powers = range(0, decades + 1, step)
    labels = ["0" if k == 0 else f"$1-10^{{-{k}}}$" for k in powers]
    ax.set_yticks([10.0**-k for k in powers], labels, fontsize=_SMALL)
    ax.minorticks_off()


def _styles(
    names: Mapping[str, np.ndarray], colors: Mapping[str, str] | None
) -> dict[str, tuple[str, str]]:
    """Returns colour and marker of each analyzer; those of one colour get other markers."""
    cycle = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]  # it has a list
    seen: dict[str, int] = {}
    styles = {}
    for index, name in enumerate(names):
        color = (colors or {}).get(name) or matplotlib.colors.to_hex(cycle[index % 10])
        seen[color] = seen.get(color, -1) + 1
        styles[name] = color, MARKERS[seen[color] % len(MARKERS)]
    return styles
