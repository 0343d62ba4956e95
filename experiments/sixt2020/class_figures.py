"""Figures of two classes: fig. 1b-e, methods side by side, and their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.sixt2020.class_contrasts import (
    CONTRASTIVE,
    CONTRASTIVE_LRP,
    EXCITATION,
    LRP,
    NAMES,
    PAIRS,
    PUBLISHED,
    SCENES,
)
from experiments.sixt2020.class_maps import draw_two_classes
from experiments.sixt2020.methods import COLOURS
from tfexplain.plotting import draw_map


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws fig. 1b-e for each image, the methods on each network, and all numbers."""
    figures = {f"two_classes_{scene}": _scene(datasets, scene) for scene in SCENES}
    # Protocols hardly differ in these; the last of a network is the corrected one.
    for dataset in {dataset.attrs["model"]: dataset for dataset in datasets}.values():
        figures[f"two_classes_methods_{dataset.attrs['model']}"] = _methods(dataset)
    figures["two_classes_distances"] = _panels(datasets, _draw_distances, 3)
    figures["two_classes_chains"] = _panels(datasets, _draw_chains, 2)
    return figures


def _where(dataset: xr.Dataset) -> str:
    return f"{dataset.attrs['network']}, {dataset.attrs['protocol']}"


def _scene(datasets: Sequence[xr.Dataset], scene: str) -> Figure:
    """Fig. 1b-e: a row for each network and protocol, and contrastive LRP beside it."""
    figure = Figure(figsize=(5, 0.25 + 1.07 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), 5, squeeze=False)
    for place, (row, dataset) in enumerate(zip(grid, datasets, strict=True)):
        relevance = dataset["relevance"].sel(scene=scene)
        maps = relevance.sel(shown=LRP).values[:2]
        picture = dataset["picture"].sel(scene=scene).values
        draw_two_classes(maps, picture, titles=NAMES[scene], ax=row[:4])
        contrastive = relevance.sel(shown=CONTRASTIVE_LRP, target="first").values
        draw_map(row[4], contrastive, percentile=99)
        row[4].set_title(CONTRASTIVE_LRP, fontsize=7, pad=3)
        row[0].set_title(_where(dataset).replace(", ", "\n"), fontsize=6)
        for ax in row[1:] if place else ():
            ax.set_title("")
    return figure


def _methods(dataset: xr.Dataset) -> Figure:
    """The maps of several methods, and their differences, for the first image."""
    here = dataset.isel(scene=0)
    relevance = {
        str(name): here["relevance"].sel(shown=name).values[:2] for name in here["shown"].values
    }
    figure = Figure(figsize=(3.1, 0.35 + 0.84 * len(relevance)), layout="constrained")
    axes = figure.subplots(len(relevance), 3, squeeze=False)
    draw_two_classes(relevance, titles=NAMES[str(here["scene"].values)], ax=axes)
    figure.suptitle(_where(dataset), fontsize=7)
    return figure


# Pair -> marker, and chain -> colour.
MARKERS = dict(zip(PAIRS, ("o", "x", "+"), strict=True))
CHAIN_COLOURS = {EXCITATION: "#029e73", CONTRASTIVE: "#d55e00", "Gradient": "#000000"}


def _panels(
    datasets: Sequence[xr.Dataset], draw_one: Callable[[Axes, xr.Dataset], None], columns: int
) -> Figure:
    """Draws a panel for each network and protocol; the first has the legend of all."""
    rows = -(-len(datasets) // 2)
    figure = Figure(figsize=(8.6, 0.4 + 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for ax in axes[len(datasets) :]:
        ax.set_axis_off()
    for ax, dataset in zip(axes, datasets, strict=False):
        draw_one(ax, dataset)
        ax.set_title(_where(dataset), fontsize=8)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.12)}
    axes[0].legend(fontsize=5.5, ncols=columns, **place)
    return figure


def _draw_distances(ax: Axes, dataset: xr.Dataset) -> None:
    """Draws the mean absolute difference of each method for the first image."""
    chosen = dataset["distance"].sel(image=SCENES[0])
    names = [str(name) for name in dataset["analyzer"].values]
    for pair, marker in MARKERS.items():
        for place, name in enumerate(names):
            ax.plot(
                chosen.sel(analyzer=name, pair=pair),
                place,
                marker,
                color=COLOURS.get(name, "0.5"),
                markersize=4,
                label=pair if place == 0 else None,
            )
    ax.axvline(PUBLISHED, color="0.6", linewidth=0.7, linestyle=":")
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), names, fontsize=6)
    ax.tick_params(axis="x", labelsize=6)
    ax.invert_yaxis()
    ax.set_xlabel(f"mean absolute difference, {SCENES[0]} (dotted: published)", fontsize=7)


def _draw_chains(ax: Axes, dataset: xr.Dataset) -> None:
    """Draws |cos| of the relevance of two classes at each layer."""
    layers = [str(name) for name in dataset["layer"].values]
    for scene, style in zip(SCENES, ("-", "--"), strict=True):
        for chain, colour in CHAIN_COLOURS.items():
            line = dataset["layer_cosine"].sel(chain=chain, scene=scene, pair="classes")
            ax.plot(np.abs(line), style, color=colour, linewidth=1, label=f"{chain}, {scene}")
    # The last of these is the input.
    step = -(-len(layers) // 14)
    places = np.arange(len(layers))[::-1][::step][::-1]
    names = [layers[place] for place in places]
    ax.set_xticks(places, names, rotation=60, ha="right", fontsize=5)
    ax.tick_params(axis="y", labelsize=6)
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("|cos| of both classes", fontsize=7)
