"""The spectrum of LRP-gamma for what the last layer of the digits' network reads.

The paper says that its analysis also concerns a representation with a linear readout. This one has
ten times as many outputs as there are classes, and LRP-0 in the last layer, whose column sums can
be near zero, is left out. As published all units have a column; corrected, those that are active:
nothing is ever explained by the others, whose columns can be arbitrarily large (trap 8.2).
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
from experiments.spectral2025 import figures
from experiments.spectral2025.judging import (
    COLLAPSED,
    averaged,
    best_gamma_of_ssm,
    gamma_and_norms,
)
from experiments.spectral2025.protocol import MNIST, TINY_MNIST
from experiments.spectral2025.sweep import LRP, NUMBERS, gamma_everywhere
from tfexplain import audits, create_analyzer

# Protocol -> which units have a column.
POLICIES = {"published": "literal", "corrected": "active"}
DESCRIBED = {"published": "all units", "corrected": "active units"}


def compute(task: Task) -> xr.Dataset:
    """Measures the spectra for all gammas."""
    gammas = (TINY_MNIST if task.request.tiny else MNIST).gammas
    model = networks.load(task)
    layer = model.layers[-2].name
    x, _ = networks.images(task)
    named = {
        f"{LRP} {gamma:g}": create_analyzer(
            "lrp.composite", model, composite=gamma_everywhere(gamma)
        )
        for gamma in gammas
    }
    path = task.scratch(f"spectrum-{len(x)}-{task.request.seed}")
    dataset = audits.spectrum(named, x, start=layer, policy=POLICIES[task.protocol], path=path)
    dataset = dataset[list(NUMBERS)].assign_coords(
        method=("analyzer", [LRP] * len(gammas)), value=("analyzer", list(map(float, gammas)))
    )
    dataset.attrs = {"images": len(x), "layer": layer, "policy": DESCRIBED[task.protocol]}
    return dataset


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about M1, M2 and M12."""
    attributes = dataset.attrs
    note = (
        f"{attributes['images']} images; R has {attributes['policy']} of {attributes['layer']}, "
        f"{float(dataset['columns'].mean()):.4g} on average."
    )
    # In the table of claims beside the same network with its classes.
    explained = f"{attributes['network']}: units of {attributes['layer']}"
    dataset = dataset.assign_attrs(network=explained)

    def say(claim: str, criteria: Sequence[Criterion], **more) -> Finding:
        return finding(dataset, claim, criteria, note=note, reason="a value is missing", **more)

    values = averaged(dataset, "SSM")
    gamma = dataset["value"].values[-1]
    collapse = Criterion(f"mean SSM at gamma {gamma:g}", values[-1], "<=", COLLAPSED)
    numbers = {
        f"median SSM at gamma {gamma:g}": averaged(dataset, "SSM", "median")[-1],
        "mean SSM at the smallest gamma": values[0],
        "largest mean SSM": np.max(values),
    }
    return [
        gamma_and_norms(dataset, say),
        best_gamma_of_ssm(dataset, say),
        say("M12", [collapse], numbers=numbers),
    ]


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws stability, sensitivity and SSM over gamma."""
    by_model = figures.by_network(datasets)
    return {
        "representation" if len(by_model) == 1 else f"representation_{name}": figures.spectra(own)
        for name, own in by_model.items()
    }


EXPERIMENT = Experiment(
    "spectral2025",
    "representation",
    "Spectra of LRP-gamma for the units in front of the last layer (digits).",
    compute,
    judge,
    draw,
    models=("mnist_cnn",),
    known_models=("lenet5",),
    # Each has 256 columns, for every gamma.
    images=20,
    data=(networks.MNIST,),
    tiny={"models": (networks.TINY,), "images": 3},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
