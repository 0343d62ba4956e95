"""Fig. 4 and 9a: similarity of the maps of the true class and of a random one, for all methods.

Maps are compared as the protocol has it: upside down or not (T6), with the data range 2 or 1 (T7),
with the better of a map and its negative for all methods or for two, with a random class for each
method or the same for all (T14).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.runs import Experiment, Task, finding
from experiments.sixt2020 import maps
from experiments.sixt2020.methods import COLOURS, analyzers, images
from experiments.sixt2020.protocol import PROTOCOLS
from tfexplain import audits


def compute(task: Task) -> xr.Dataset:
    """Compares the maps of the label and of one other class, for every method of the table."""
    protocol = PROTOCOLS[task.protocol]
    model = networks.load(task)
    x, y = images(task, protocol)
    of_methods = {}
    for method, analyzer in analyzers(task, protocol, model, x):
        with maps.overflowing():
            of_methods[method.name] = audits.random_logit(
                {method.name: analyzer}, x, y, **maps.options(task, protocol, method, x)
            )
    ssim = np.stack([dataset["ssim"].values[0, :, 0] for dataset in of_methods.values()])
    others = np.stack([dataset["other_class"].values[:, 0] for dataset in of_methods.values()])
    return xr.Dataset(
        {
            "ssim": (("analyzer", "sample"), ssim),
            "other_class": (("analyzer", "sample"), others),
            "target": (("sample",), y),
            "missing": (("analyzer",), np.isnan(ssim).sum(axis=1)),
        },
        {"analyzer": list(of_methods), "sample": np.arange(len(x))},
        {"images": len(x), "count_missing": int(protocol.count_constant_maps)},
    )


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about S6."""
    criteria, numbers = [], {}
    for name in dataset["analyzer"].values.tolist():
        values = dataset["ssim"].sel(analyzer=name).values
        if name not in maps.ELSEWHERE:
            counted = bool(dataset.attrs["count_missing"])
            criteria.append(_criterion(name, maps.median(values, counted)))
        numbers[f"median SSIM, {name}"] = maps.median(values, True)
    missing = maps.missing_text(dataset["missing"], dataset.sizes["sample"])
    note = f"{dataset.attrs['images']} images, one random class each. {missing}"
    return [finding(dataset, "S6", criteria, numbers=numbers, note=note, reason=missing)]


def _criterion(name: str, value: float) -> Criterion:
    if name not in maps.REST:
        return Criterion(f"{name}: median SSIM", value, ">=", maps.CLOSE)
    low, high = maps.FIELD
    middle, half = (low + high) / 2, (high - low) / 2
    distance = np.round(abs(value - middle), 12)
    return Criterion(
        f"{name}: distance of the median SSIM from {middle:g}", distance, "<=", round(half, 12)
    )


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws a box for each method, in the paper's order and colours."""
    figure = Figure(figsize=(8, 3.4 * len(datasets)), layout="constrained")
    rows = figure.subplots(len(datasets), 1, squeeze=False)[:, 0]
    for ax, dataset in zip(rows, datasets, strict=True):
        names = dataset["analyzer"].values.tolist()
        values = [row[~np.isnan(row)] for row in dataset["ssim"].values]
        boxes = ax.boxplot(values, patch_artist=True, flierprops={"marker": ".", "markersize": 3})
        for box, line, name in zip(boxes["boxes"], boxes["medians"], names, strict=True):
            box.set(facecolor=COLOURS[name], alpha=0.7, linewidth=0.7)
            line.set_color("black")
        for place, count in enumerate(dataset["missing"].values.tolist(), start=1):
            if count:
                ax.text(place, 0, f"{count}\nmissing", ha="center", fontsize=6, color="0.4")
        ax.axhspan(*maps.FIELD, color="0.93", zorder=0)
        ax.axhline(maps.CLOSE, color="0.6", linewidth=0.7, linestyle=":", zorder=0)
        ax.set_xticks(np.arange(1, len(names) + 1), names, rotation=45, ha="right", fontsize=7)
        lowest = min([0.0, *(float(row.min()) for row in values if len(row))])
        ax.set_ylim(lowest - 0.05, 1.05)
        ax.set_ylabel("SSIM", fontsize=8)
        ax.tick_params(axis="y", labelsize=7)
        where = f"{dataset.attrs['network']}, {dataset.attrs['protocol']}"
        ax.set_title(f"{where}: maps of the true and of a random logit", fontsize=8)
    return {"random_logit": figure}


EXPERIMENT = Experiment(
    "sixt2020",
    "random_logit",
    "Similarity of the maps of the true and of a random logit (fig. 4, 9a).",
    compute,
    judge,
    draw,
    models=("cifar_cnn", "cifar_resnet20", "squeezenet"),
    known_models=networks.explained_on(networks.CIFAR10, networks.IMAGENET),
    images=50,
    tiny={"models": (networks.TINY,), "images": 3},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
