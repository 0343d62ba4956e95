"""Fig. 4 and table 1, on a network for photographs.

The spectrum of LRP-gamma comes from products with the redistribution matrix and its transpose.
Those of SmoothGrad and integrated gradients cost ten times as much: their matrices have the columns
of the largest fiftieth of the outputs, in both protocols. Figures show numbers only.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import networks
from experiments.claim_table import Finding
from experiments.runs import Experiment, Task
from experiments.spectral2025 import figures
from experiments.spectral2025.judging import sayer, shared_findings
from experiments.spectral2025.protocol import IMAGENET, TINY_IMAGENET
from experiments.spectral2025.sweep import (
    SAMPLED_QUANTILE,
    analyzers,
    class_maps,
    class_numbers,
    gamma_in_front,
    measure,
    shared,
)

NOTE = (
    "SmoothGrad and integrated gradients have the columns of outputs with a magnitude of at least "
    f"quantile {SAMPLED_QUANTILE:g} in both protocols; LRP-gamma is in the first half of the "
    "convolutions only."
)


def compute(task: Task) -> xr.Dataset:
    """Measures all settings."""
    grid = TINY_IMAGENET if task.request.tiny else IMAGENET
    model = networks.load(task)
    low, high = networks.input_range(task.model)
    composite = functools.partial(gamma_in_front, model=model, low=low, high=high)
    settings = analyzers(task, model, grid, composite)
    with shared(task) as whole:
        dataset = measure(task, whole, settings, grid, matrix_free=True)
    x = networks.preprocess(task.model)(networks.pixels(task)[0])
    maps = class_maps(settings, x, dataset["logit"].values)
    dataset = dataset.assign(class_numbers(maps)).assign_coords(gamma=list(map(float, grid.gammas)))
    return dataset.drop_vars("logit").assign_attrs(
        top5=float(_top(dataset["logit"].values, dataset["label"].values, 5)), notes=NOTE
    )


def _top(logits: np.ndarray, labels: np.ndarray, count: int) -> float:
    """Returns the share of images whose label is among the largest outputs."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return float((order == labels[:, None]).any(axis=1).mean())


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about M1 to M6 and M9 to M11."""
    say = sayer(dataset, dataset.attrs["notes"])
    return [
        *shared_findings(dataset, say, digits=False),
        say(
            "M11",
            [],
            numbers={"top-5 accuracy on these images": dataset.attrs["top5"]},
            reason="it concerns the weights of VGG-16 and a validation set that were not at hand",
        ),
    ]


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws the curves of each network."""
    by_model = figures.by_network(datasets)
    return {
        "imagenet" if len(by_model) == 1 else f"imagenet_{name}": figures.curves(own)
        for name, own in by_model.items()
    }


EXPERIMENT = Experiment(
    "spectral2025",
    "imagenet",
    "Spectra, pixel flipping and entropy of explanations of photographs (fig. 4, table 1).",
    compute,
    judge,
    draw,
    models=("squeezenet",),
    known_models=networks.explained_on(networks.IMAGENET),
    images=5,
    data=(networks.IMAGENET,),
    tiny={"models": (networks.TINY,), "images": 2},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
