"""Fig. 2, 3 and 5, table 1 and the bound of eq. 9, on a CNN for digits.

All columns of the redistribution matrix are made and decomposed. LRP-gamma is in all layers but the
last. Norms of layers are measured twice, in float64: as the maps are made, with biases in the
denominators, where the closed form is a bound; and without biases, where it is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import keras
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.runs import Experiment, Task
from experiments.spectral2025 import figures
from experiments.spectral2025.judging import (
    COLLAPSED,
    Say,
    averaged,
    of_method,
    sayer,
    shared_findings,
)
from experiments.spectral2025.protocol import MNIST, PROTOCOLS, TINY_MNIST, Grid
from experiments.spectral2025.sweep import (
    LRP,
    analyzers,
    class_maps,
    class_numbers,
    gamma_everywhere,
    measure,
    scratch,
    shared,
)
from models import datasets
from tfexplain import audits, create_analyzer

# "split": as the maps are made; "ignore": without biases.
BIASES = ("split", "ignore")
ACCURACY, CLOSE = 0.98, 0.01
# Relative difference of a measured norm and its closed form.
SAME = 1e-5
# Part of its fall that the bound has behind it at gamma = 1.
SATURATED = 0.9
# Ratio of a layer's norms at gamma = 0 and at the largest, up to which it hardly changes.
HARDLY = 1.5
# Median c up to which positive contributions dominate: they are twice the negative ones.
DOMINATED = 0.5
NUM_TERMS = 4


def compute(task: Task) -> xr.Dataset:
    """Measures all settings, norms of layers, and the maps and terms of one digit."""
    grid = TINY_MNIST if task.request.tiny else MNIST
    protocol = PROTOCOLS[task.protocol]
    model = networks.load(task)
    settings = analyzers(task, model, grid, gamma_everywhere)
    with shared(task) as whole:
        dataset = measure(task, whole, settings, grid, matrix_free=False)
        x = networks.preprocess(task.model)(networks.pixels(task)[0])
        norms = {
            bias: _norms(whole, model, x[: grid.images_of_norms], grid, bias) for bias in BIASES
        }
    logits = dataset["logit"].values
    maps = class_maps(settings, x, logits)
    # The digit of the figures: its class stands out, so that it has a column in both protocols.
    example = int(np.argmax(logits.max(axis=1) / np.median(np.abs(logits), axis=1)))
    # A small, a middle and a large gamma.
    chosen = (0, len(grid.gammas) // 2, len(grid.gammas) - 1)
    terms = [
        audits.spectral_terms(
            settings[place].analyzer,
            x[example : example + 1],
            int(dataset["predicted"][example]),
            policy=protocol.policy,
            quantile=protocol.quantile,
            num_terms=NUM_TERMS,
        )
        for place in chosen
    ]
    for name in ("term", "rest", "explanation", "singular_value", "coefficient"):
        first = terms[0][name]
        values = np.concatenate([one[name].values for one in terms]).astype("float32")
        dataset[name] = ("shown", *first.dims[1:]), values
    order = np.argsort(-logits[example], kind="stable")[:2]
    dataset = dataset.assign(class_numbers(maps)).assign(
        {
            "maps": (("gamma", "class_shown", "row", "column"), maps[:, :, example].astype("f4")),
            "digit": (("row", "column"), x[example].mean(axis=-1)),
            **{
                f"layer_{name}": (
                    ("bias", "gamma", "image", "layer"),
                    np.stack([norms[bias][name].values for bias in BIASES]),
                )
                for name in ("measured", "closed_form", "c", "worst", "measured_worst", "active")
            },
            **{
                name: (
                    ("bias", "gamma", "image"),
                    np.stack([norms[bias][name].values for bias in BIASES]),
                )
                for name in ("norm", "bound")
            },
        }
    )
    dataset = dataset.assign_coords(
        gamma=list(map(float, grid.gammas)),
        shown=[float(grid.gammas[place]) for place in chosen],
        class_shown=order,
        rank=np.arange(1, NUM_TERMS + 1),
        bias=list(BIASES),
        layer=norms[BIASES[0]]["layer"].values,
    )
    right, count = _tested(task, model)
    return dataset.assign_attrs(accuracy=right, tested_images=count, example=example)


def _norms(whole: Task, model: keras.Model, x: np.ndarray, grid: Grid, bias: str) -> xr.Dataset:
    """Measures norms of layers for all gammas."""
    named = {
        f"{gamma:g}": create_analyzer(
            "lrp.composite", model, composite=gamma_everywhere(gamma, bias), dtype="float64"
        )
        for gamma in grid.gammas
    }
    path = scratch(whole, f"norms-{bias}")
    return audits.layer_norms(named, x, columns=grid.columns, seed=whole.request.seed, **path)


def _tested(task: Task, model: keras.Model) -> tuple[float, int]:
    """Returns the share of right answers on all test images, and how many these are."""
    if task.model == networks.TINY:
        return float("nan"), 0
    data = datasets.load_mnist(task.request.data.get(networks.MNIST))
    x = networks.preprocess(task.model)(data.x_test)
    outputs = model.predict(x, batch_size=500, verbose=0)
    return float((outputs.argmax(axis=1) == data.y_test).mean()), len(x)


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about M1 to M12."""
    say = sayer(dataset)
    findings = [
        *shared_findings(dataset, say, digits=True),
        _bound(dataset),
        _positive_layers(dataset, say),
        _accuracy(dataset, say),
        _collapse(dataset, say),
    ]
    return sorted(findings, key=lambda finding: int(finding.claim[1:]))


def _bound(dataset: xr.Dataset) -> Finding:
    """M7: the bound holds, falls and saturates; the closed form is what the rule does."""
    split = dataset.sel(bias="split")
    bound, norm = split["bound"].values, split["norm"].values  # (gamma, image)
    gammas = dataset["gamma"].values
    # Whatever gamma is, the factor of the last layer stays: it has LRP-0.
    at_one = int(np.argmin(np.abs(gammas - 1)))
    middle = np.median(bound, axis=1)
    exact = dataset.sel(bias="ignore")
    measured, form = exact["layer_measured"].values, exact["layer_closed_form"].values
    worst = exact["layer_measured_worst"].values  # (gamma, image, layer)
    criteria = [
        Criterion("largest L1 norm over its bound", float((norm / bound).max()), "<=", 1),
        Criterion(
            "share of steps of gamma at which the bound falls",
            float((np.diff(bound, axis=0) < 0).mean()),
            "==",
            1,
        ),
        Criterion(
            f"part of the fall of the median bound that is over at gamma {gammas[at_one]:g}",
            _part_of_fall(middle, at_one),
            ">=",
            SATURATED,
        ),
        Criterion(
            "largest relative difference of a layer's norm and its closed form, without biases",
            float((np.abs(measured - form) / form).max()),
            "<=",
            SAME,
        ),
        Criterion(
            "share of layers and images whose worst output is the same for all gammas",
            float((worst == worst[0]).all(axis=0).mean()),
            "==",
            1,
        ),
    ]
    numbers = {
        f"part of the fall of its logarithm that is over at gamma {gammas[at_one]:g}": (
            _part_of_fall(np.log(middle), at_one)
        ),
        "largest excess of a layer's norm over its closed form, with biases": float(
            (split["layer_measured"] / split["layer_closed_form"]).max() - 1
        ),
    }
    for place in (0, at_one, len(gammas) - 1):
        numbers[f"median bound at gamma {gammas[place]:g}"] = middle[place]
        numbers[f"median L1 norm at gamma {gammas[place]:g}"] = np.median(norm[place])
    note = f"Norms of {dataset.sizes['image']} images."
    return sayer(dataset, note)("M7", criteria, numbers=numbers)


def _part_of_fall(values: np.ndarray, place: int) -> float:
    fall = values[0] - values[-1]
    return float((values[0] - values[place]) / fall) if fall > 0 else float("nan")


def _positive_layers(dataset: xr.Dataset, say: Say) -> Finding:
    """M8: the less negative contributions a layer has, the less its norm depends on gamma."""
    # The last layer has LRP-0 for every gamma.
    split = dataset.sel(bias="split").isel(layer=slice(None, -1))
    c = np.median(split["layer_c"].values[0], axis=0)  # (layer,)
    form = split["layer_closed_form"].values
    changes = np.median(form[0] / form[-1], axis=0)
    smallest, largest = int(np.argmin(c)), int(np.argmax(c))
    layers = split["layer"].values.tolist()
    dominated = c[smallest] <= DOMINATED
    text = "norm at the smallest gamma over that at the largest, median"
    criteria = [
        Criterion(
            f"layer with the smallest c, if that is at most {DOMINATED:g}: {text}",
            changes[smallest] if dominated else np.nan,
            "<=",
            HARDLY,
        ),
        Criterion(
            f"layer with the largest c: {text}, over that with the smallest",
            changes[largest] / changes[smallest],
            ">",
            1,
        ),
    ]
    numbers = {f"median c of {layer}": value for layer, value in zip(layers, c, strict=True)}
    numbers |= {f"{layer}: {text}": v for layer, v in zip(layers, changes, strict=True)}
    reason = (
        "positive contributions dominate in no layer, because its worst output counts: the "
        f"smallest median c is {c[smallest]:.3g}"
    )
    return say("M8", criteria, numbers=numbers, reason=reason)


def _accuracy(dataset: xr.Dataset, say: Say) -> Finding:
    """M11: the network is as good as the paper's."""
    accuracy = dataset.attrs["accuracy"]
    distance = np.round(abs(accuracy - ACCURACY), 12)
    count = dataset.attrs["tested_images"]
    return say(
        "M11",
        [Criterion(f"distance of the accuracy from {ACCURACY:g}", distance, "<=", CLOSE)],
        numbers={"accuracy": accuracy, "test images": count},
        reason="the network was not trained",
    )


def _collapse(dataset: xr.Dataset, say: Say) -> Finding:
    """M12: the redistribution matrix has nearly rank 1 at the largest gamma."""
    lrp = of_method(dataset, LRP)
    gamma = lrp["value"].values[-1]
    values = averaged(lrp, "SSM")
    criteria = [Criterion(f"mean SSM at gamma {gamma:g}", values[-1], "<=", COLLAPSED)]
    numbers = {
        f"median SSM at gamma {gamma:g}": averaged(lrp, "SSM", "median")[-1],
        "mean SSM at the smallest gamma": values[0],
    }
    return say("M12", criteria, numbers=numbers)


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws curves, the bound, maps and terms."""
    drawn = {}
    for name, own in figures.by_network(datasets).items():
        suffix = "" if len(figures.by_network(datasets)) == 1 else f"_{name}"
        drawn[f"mnist{suffix}"] = figures.curves(own)
        drawn[f"mnist_bound{suffix}"] = figures.bound(own)
        drawn[f"mnist_maps{suffix}"] = figures.class_maps(own)
        drawn |= {
            f"mnist_terms_{dataset.attrs['protocol']}{suffix}": figures.terms(dataset)
            for dataset in own
        }
    return drawn


EXPERIMENT = Experiment(
    "spectral2025",
    "mnist",
    "Spectra, pixel flipping and entropy of explanations of digits (fig. 2, 3, 5, table 1).",
    compute,
    judge,
    draw,
    models=("mnist_cnn",),
    known_models=("lenet5",),
    images=100,
    data=(networks.MNIST,),
    tiny={"models": (networks.TINY,), "images": 3},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
