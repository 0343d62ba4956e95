"""Fig. 3: ratios of the two leading singular values of patterns, weights and their products.

The protocols differ in the mean output that patterns subtract (T8): over all samples, as the
published patterns have it, or over active ones, as the paper's derivation needs. Patterns are
fitted to the run's images; those of the paper (VGG-16) are not distributed any more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import tfexplain
from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.runs import Experiment, Task, finding
from experiments.sixt2020.protocol import PROTOCOLS
from tfexplain.audits import pattern_spectrum

# "Almost all" layers, and "considerably" larger, of claims without a number.
ALMOST_ALL, CONSIDERABLY = 0.8, 1.5
PUBLISHED_RATIO = 6


def compute(task: Task) -> xr.Dataset:
    """Fits patterns to images and returns their spectrum, with that of the audit's matrices."""
    protocol = PROTOCOLS[task.protocol]
    model = networks.load(task)
    x, _ = networks.images(task)
    analyzer = tfexplain.create_analyzer("pattern.net", model, output_mean=protocol.output_mean)
    dataset = pattern_spectrum(analyzer.fit(x, batch_size=100))
    reference = _sides(dataset)
    return dataset.assign(aligned_ratio=(("quantity", "pair"), reference)).assign_attrs(
        images=len(x)
    )


def _sides(dataset: xr.Dataset) -> np.ndarray:
    """Returns which ratio T_l would have if V_l and U_(l+1) were aligned: of roots multiplied."""
    ratios = [dataset["ratio"].sel(layer=dataset[side].values).values for side in SIDES]
    return np.sqrt(ratios[0] * ratios[1])


SIDES = ("first", "second")


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about S2 and S3."""
    ratio = {name: dataset["ratio"].sel(quantity=name).values for name in ("A", "W", "A*W")}
    between, aligned = (
        {name: dataset[variable].sel(quantity=name).values for name in ("W", "A*W")}
        for variable in ("interlayer_ratio", "aligned_ratio")
    )
    layers = dataset.sizes["layer"]
    larger = ratio["A*W"] / ratio["W"]
    note = (
        f"Patterns fitted to {dataset.attrs['images']} images with the mean output over "
        f"{dataset.attrs['output_mean']} samples; {layers} layers."
    )
    values = {
        f"sigma_1 / sigma_2 of {name}, {layer}": value
        for name, row in ratio.items()
        for layer, value in zip(dataset.layer.values, row, strict=True)
    }
    return [
        finding(
            dataset,
            "S2",
            [
                Criterion(
                    f"share of layers with sigma_1 / sigma_2 of A > {PUBLISHED_RATIO}",
                    np.mean(ratio["A"] > PUBLISHED_RATIO),
                    ">=",
                    ALMOST_ALL,
                )
            ],
            numbers=values,
            note=note,
        ),
        finding(
            dataset,
            "S3",
            [
                Criterion(
                    "share of layers in which A * W has the larger ratio",
                    np.mean(larger > 1),
                    ">=",
                    ALMOST_ALL,
                ),
                Criterion(
                    "median of ratio of A * W over ratio of W",
                    np.median(larger),
                    ">=",
                    CONSIDERABLY,
                ),
                Criterion(
                    "W: median of ratio between layers over that of aligned matrices",
                    np.median(between["W"] / aligned["W"]),
                    "<",
                    1,
                ),
                Criterion(
                    "A * W: pairs of layers with a larger ratio between them than if aligned",
                    np.count_nonzero(between["A*W"] > aligned["A*W"]),
                    ">=",
                    1,
                ),
            ],
            numbers={
                "W: pairs of layers with a larger ratio between them than if aligned": (
                    np.count_nonzero(between["W"] > aligned["W"])
                ),
                "pairs of layers": dataset.sizes["pair"],
            },
            note=note,
        ),
    ]


SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
COLOURS = {"A": "#029e73", "W": "#56b4e9", "A*W": "#cc78bc"}


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws fig. 3: patterns, slices, and between slices, a row for each network and protocol."""
    figure = Figure(figsize=(10, 2.9 * len(datasets)), layout="constrained")
    for axes, dataset in zip(
        figure.subplots(len(datasets), 3, squeeze=False), datasets, strict=True
    ):
        places = np.arange(dataset.sizes["layer"])
        panels = (("ratio", ("A",)), ("ratio", ("W", "A*W")), ("interlayer_ratio", ("W", "A*W")))
        for ax, (variable, names) in zip(axes, panels, strict=True):
            x = places if variable == "ratio" else places[: dataset.sizes["pair"]] + 0.5
            for name in names:
                line = dataset[variable].sel(quantity=name).values
                ax.plot(x, line, label=name, color=COLOURS[name], marker=".", linewidth=1)
            ax.set_xticks(places, dataset.layer.values, rotation=60, fontsize=7)
            ax.set_ylim(bottom=0)
            ax.tick_params(labelsize=7)
            ax.legend(fontsize=7)
        axes[0].axhline(PUBLISHED_RATIO, color="0.6", linewidth=0.7, linestyle=":")
        axes[0].set_ylabel(f"{SIGMA}\u2081 / {SIGMA}\u2082", fontsize=8)
        where = f"{dataset.attrs['network']}, {dataset.attrs['protocol']}"
        for ax, title in zip(axes, (f"{where}: A", "W and A * W", "between layers"), strict=True):
            ax.set_title(title, fontsize=8)
    return {"pattern_spectrum": figure}


EXPERIMENT = Experiment(
    "sixt2020",
    "pattern_spectrum",
    "Singular values of patterns and weights (fig. 3).",
    compute,
    judge,
    draw,
    models=("cifar_cnn",),
    known_models=networks.explained_on(networks.CIFAR10, networks.IMAGENET),
    images=1000,
    tiny={"models": (networks.TINY,), "images": 30},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
