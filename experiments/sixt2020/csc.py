"""Fig. 6, 7c and 10: cosine similarity convergence of all methods, from the logits and from layers.

Each method runs by itself through `tfexplain.audits.cosine_convergence`, on the same vectors. The
published code rounds cosines to float32, so that nothing between 1 - 6e-8 and 1 is seen (T12).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import keras
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import tfexplain
from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.runs import Experiment, Task, finding
from experiments.sixt2020.maps import ELSEWHERE, scratch
from experiments.sixt2020.methods import COLOURS, analyzers, create, images
from experiments.sixt2020.protocol import (
    PROTOCOLS,
    PUBLISHED,
    Method,
    Protocol,
    methods,
)
from tfexplain.audits import cosine_convergence
from tfexplain.audits.case import merged_orders
from tfexplain.plotting import convergence_curves, convergence_histogram

# The median |cos| of "convergence" in section 4.
CONVERGED = 0.99
# What the paper finds not to converge.
EXEMPT = ("LRP z", "DeepLIFT RevC", "DeepLIFT Resc", "Gradient")
FASTEST = ("LRP 1/0", "PatternNet", "DeepLIFT Abla")
ALPHA_BETA = ("LRP 1/0", "LRP 2/1", "LRP 5/4")
MISSING = "a method of this claim was not measured on this network, or overflows"
# What T3 decides, shown by the other choice.
CLIP, NO_CLIP = ", clipped", ", not clipped"
# Network -> start layers; the first is the logits. Where the paper has none, a spread of blocks.
STARTS: dict[str, tuple[str | None, ...]] = {
    "cifar_cnn": ("fc6", "fc5", "conv4", "conv3", "conv2"),
    "vgg16": ("fc3", "fc1", "conv4_3", "conv3_3", "conv2_2"),
    "resnet50": ("dense", "block5_1", "block4_2", "block3_4", "block3_2", "block2_2"),
}
NOT_READ = (keras.layers.InputLayer, keras.layers.Dropout, keras.layers.ZeroPadding2D)
# Network -> the layer of the histograms, by the protocol before or behind its activation; elsewhere
# the first convolution.
HISTOGRAM = {"resnet50": ("conv2_1a", "conv2_1a_relu")}


def compute(task: Task) -> xr.Dataset:
    """Measures every method of the paper's table that has a backward chain."""
    protocol = PROTOCOLS[task.protocol]
    model = networks.load(task)
    x, _ = images(task, protocol)
    layers = read_points(model, protocol)
    of_methods, left_out = {}, []
    named = [(m.name, a) for m, a in analyzers(task, protocol, model, x) if m.chain]
    clips = _clips(model, protocol)
    named += [(name, create(task, m, model, x, protocol)) for name, m in clips.items()]
    for name, analyzer in named:
        try:
            of_methods[name] = cosine_convergence(
                {name: analyzer},
                x,
                start=list(STARTS.get(task.model, (None,))),
                layers=None if len(STARTS.get(task.model, (None,))) > 1 else layers,
                seed=task.request.seed,
                path=scratch(task, name),
            )
        except ValueError as error:
            if "overflows" not in str(error):
                raise
            left_out.append(f"{name}: {error}")
    # Methods that fold normalisations have fewer layers than others.
    order = merged_orders([list(each["layer"].values) for each in of_methods.values()])
    nothing = {"count": 0, "negative": 0, "dead": 0, "dropped": 0}
    aligned = [each.reindex(layer=order, fill_value=nothing) for each in of_methods.values()]
    joined = xr.concat(aligned, "analyzer", join="exact", combine_attrs="drop")
    dataset = joined[["count", "quantile", "baseline", "dead", "dropped"]]
    kept = (*layers, *dataset["start"].values, "input")
    dataset = dataset.sel(layer=[name for name in dataset["layer"].values if name in kept])
    if not protocol.exact_cosines:
        dataset["quantile"] = dataset["quantile"].astype("float32").astype("float64")
    dataset["product"] = _gradient_times_input(model, x[:4])
    return dataset.assign_attrs(
        overflow="\n".join(left_out), images=len(x), residual=int(_is_residual(model))
    )


def _clips(model: keras.Model, protocol: Protocol) -> dict[str, Method]:
    """Returns alpha-beta with the other choice of T3, the clip at residual additions."""
    if not _is_residual(model):
        return {}
    clipped = protocol.addition_clip is not None
    other = replace(protocol, addition_clip=None if clipped else PUBLISHED.addition_clip)
    other_methods = methods(other)
    return {f"{name}{NO_CLIP if clipped else CLIP}": other_methods[name] for name in ALPHA_BETA}


def read_points(model: keras.Model, protocol: Protocol) -> list[str]:
    """Returns the layers at which relevance is read (T15).

    Published are the outputs of convolutions and dense layers, wherever their activation is, of
    poolings and of residual blocks; corrected are tensors behind activations, so that the masks of
    gradients count alike for all networks.
    """
    points = []
    for layer in model.layers[:-1]:
        if isinstance(layer, NOT_READ):
            continue
        separate = isinstance(layer, keras.layers.Activation | keras.layers.ReLU)
        fused = getattr(layer, "activation", None) not in (None, keras.activations.linear)
        linear = isinstance(layer, keras.layers.Add) or (bool(layer.weights) and not fused)
        behind_addition = separate and isinstance(_before(layer), keras.layers.Add)
        normalization = isinstance(layer, keras.layers.BatchNormalization)
        published = not (normalization or isinstance(layer, keras.layers.Add)) and (
            not separate or behind_addition
        )
        if published if protocol.read_point == "output" else not linear:
            points.append(layer.name)
    return points


def _before(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    return getattr(layer.input, "_keras_history", (None,))[0]


def _gradient_times_input(model: keras.Model, x: np.ndarray) -> float:
    """Returns the largest difference of LRP-z and gradient times input, relative to the largest."""
    names = ("lrp.z", "input_t_gradient")
    first, second = (
        tfexplain.create_analyzer(name, model, dtype="float64").analyze(x) for name in names
    )
    return float(np.abs(first - second).max() / np.abs(second).max())


def _is_residual(model: keras.Model) -> bool:
    return any(isinstance(layer, keras.layers.Add) for layer in model.layers)


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about the claims on convergence."""
    chains = {name: _medians(dataset, name) for name in dataset["analyzer"].values}
    best = {name: float(np.nanmax(chain[1:])) for name, chain in chains.items()}
    layers = [str(layer) for layer in dataset["layer"].values]
    first_convolution = _first_convolution(dataset)
    residual = bool(dataset.attrs["residual"])
    overflow = dataset.attrs["overflow"]
    end = {name: chain[layers.index(first_convolution)] for name, chain in chains.items()}
    dropped = {
        name: _share_dropped(dataset, name, first_convolution) for name in chains if "5/4" in name
    }
    numbers = {f"median |cos| at {first_convolution}, {name}": v for name, v in end.items()}
    numbers |= {f"1 - median |cos| at the input, {n}": 1 - chains[n][-1] for n in chains}
    note = (
        f"{dataset.attrs['images']} images, five vectors each, from the logits. Reached means the "
        "largest median of all layers below the start. Left out because relevance overflows: "
        f"{overflow or 'none'}."
    )

    def say(claim: str, criteria: Sequence[Criterion], **more) -> Finding:
        return finding(dataset, claim, criteria, reason=MISSING, note=note, **more)

    def reached(name: str, relation: str = ">=", bound: float = CONVERGED) -> Criterion:
        return Criterion(f"{name}: median |cos| reached", best.get(name, np.nan), relation, bound)

    modified = [n for n in chains if n not in (*EXEMPT, *ELSEWHERE) and "clipped" not in n]
    findings = [
        say(
            "S8",
            [*(reached(name) for name in modified), reached("Gradient", "<")],
            numbers=numbers,
        ),
        _alpha5(say, end, best, dropped, residual),
        say(
            "S17",
            [
                Criterion(
                    "largest difference of LRP-z and gradient times input, over the largest value",
                    float(dataset["product"]),
                    "<=",
                    1e-9,
                ),
                reached("LRP z", "<"),
            ],
        ),
        say("S18", [reached("DTD")]),
        say(
            "S19",
            [
                reached("DeepLIFT Resc", "<"),
                reached("DeepLIFT RevC", "<"),
                reached("DeepLIFT Abla"),
            ],
        ),
        say("S25", [reached("LRP 5/4", "<")]),
        say(
            "S13",
            [
                Criterion(
                    "share of methods whose median |cos| is larger at the input than at "
                    f"{first_convolution}",
                    np.mean([chains[name][-1] > end[name] for name in chains]),
                    ">=",
                    0.8,
                )
            ],
        ),
        _cmp(say, chains, best, dataset, residual),
    ]
    if not residual:
        findings.append(_fastest(say, chains, dataset))
    if residual:
        findings.append(_ablation(say, end, overflow, first_convolution))
    if dataset.attrs["model"] == "cifar_cnn":
        least = 1 - best.get("LRP 1/0", np.nan)
        findings.append(
            say("S12", [Criterion("LRP 1/0: least 1 - median |cos|", least, "<", 1e-6)])
        )
    return findings


def _medians(dataset: xr.Dataset, name: str) -> np.ndarray:
    """Returns the median |cos| of each layer from the logits to the input; NaN where nothing is."""
    chosen = dataset["quantile"].isel(start=0).sel(analyzer=name, q=0.5).values.astype(float)
    counted = dataset["count"].isel(start=0).sel(analyzer=name).sum("bin").values
    return np.where(counted > 0, chosen, np.nan)


def _first_convolution(dataset: xr.Dataset) -> str:
    """Returns the first layer of the network that the Dataset has."""
    layers = dataset["layer"].values.tolist()
    (name,) = (n for n in HISTOGRAM.get(dataset.attrs["model"], layers[-2:-1]) if n in layers)
    return name


def _alpha5(say, end, best, dropped, residual: bool) -> Finding:
    """S9: alpha 5 beta 4 less strongly than 2/1 without branches, considerably with them."""
    if residual:
        value = best.get("LRP 5/4", np.nan)
        criteria = [Criterion("LRP 5/4: median |cos| reached", value, ">=", 0.95)]
    else:
        gap = end.get("LRP 2/1", np.nan) - end.get("LRP 5/4", np.nan)
        criteria = [Criterion("median |cos| of LRP 2/1 less that of LRP 5/4", gap, ">", 0)]
    numbers = {f"median |cos| reached, {name}": best[name] for name in dropped}
    numbers |= {f"share of pairs with a vector 0, {name}": v for name, v in dropped.items()}
    return say("S9", criteria, numbers=numbers)


def _share_dropped(dataset: xr.Dataset, name: str, layer: str) -> float:
    """Returns which share of pairs has no cosine at a layer."""
    chosen = dataset.isel(start=0).sel(analyzer=name, layer=layer)
    dropped = float(chosen["dropped"])
    pairs = dropped + float(chosen["count"].sum())
    return dropped / pairs if pairs else np.nan


def _cmp(say, chains, best, dataset: xr.Dataset, residual: bool) -> Finding:
    """S21: LRP-CMP flat in dense layers, converging in convolutions."""
    criteria = []
    for name in ("LRP CMP 1/0", "LRP CMP 2/1"):
        chain = chains.get(name)
        if chain is None:
            continue
        criteria.append(Criterion(f"{name}: median |cos| reached", best[name], ">=", CONVERGED))
        flattened = [i for i, layer in enumerate(dataset["layer"].values) if layer == "flatten"]
        if flattened and not residual:
            value = chain[flattened[0]]
            criteria.append(Criterion(f"{name}: median |cos| at flatten", value, "<", 0.9))
    return say("S21", criteria)


def _fastest(say, chains, dataset: xr.Dataset) -> Finding:
    """S10: mean decades of 1 - |cos| over all layers, and a straight line of PatternAttribution."""
    decades = {
        name: float(np.nanmean(-np.log10(np.maximum(1 - chain[1:], 1e-16))))
        for name, chain in chains.items()
    }
    others = [v for n, v in decades.items() if n not in (*FASTEST, "DTD", *EXEMPT)]
    criteria = [
        Criterion(
            f"{name}: decades of 1 - median |cos|, mean over layers, beyond the best other's",
            decades.get(name, np.nan) - max(others),
            ">",
            0,
        )
        for name in FASTEST
    ]
    chain = chains.get("PatternAttr.")
    fit = np.nan
    if chain is not None:
        y = np.log10(np.maximum(1 - chain[1:], 1e-16))
        kept = np.isfinite(y)
        fit = np.corrcoef(np.arange(len(y))[kept], y[kept])[0, 1] ** 2
    criteria.append(
        Criterion("PatternAttr.: R^2 of a line through log10(1 - |cos|)", fit, ">=", 0.8)
    )
    return say("S10", criteria, numbers=decades)


def _ablation(say, end, overflow: str, layer: str) -> Finding:
    """S11: the ablation overflows as published, and converges when it is rescaled."""
    overflows = "DeepLIFT Abla" in overflow
    value = 0.0 if overflows else end.get("DeepLIFT Abla", np.nan)
    return say(
        "S11",
        [
            Criterion(
                f"DeepLIFT Abla: median |cos| at {layer} (0 where it overflows)", value, "==", 0
            )
        ],
    )


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws curves from the logits (linear and on the log axis) and histograms."""
    curves = Figure(figsize=(13, 3.6 * len(datasets)), layout="constrained")
    rows = curves.subplots(len(datasets), 2, squeeze=False)
    histograms = Figure(figsize=(4 * len(datasets), 3.4), layout="constrained")
    places = histograms.subplots(1, len(datasets), squeeze=False)[0]
    for axes, place, dataset in zip(rows, places, datasets, strict=True):
        where = f"{dataset.attrs['network']}, {dataset.attrs['protocol']}"
        start = str(dataset["start"].values[0])
        for ax, logarithmic in zip(axes, (False, True), strict=True):
            convergence_curves(dataset, start=start, logarithmic=logarithmic, ax=ax, colors=COLOURS)
            ax.set_title(where, fontsize=8)
        layer = _first_convolution(dataset)
        convergence_histogram(dataset, start=start, layer=layer, ax=place, colors=COLOURS)
        place.set_title(f"{where}: {layer}", fontsize=8)
    figures = {"csc": curves, "csc_histograms": histograms}
    several = [dataset for dataset in datasets if dataset.sizes["start"] > 1]
    if several:
        figures["csc_starts"] = _starts(several)
    return figures


def _starts(datasets: Sequence[xr.Dataset]) -> Figure:
    """Fig. 10: one panel for each start layer."""
    columns = max(dataset.sizes["start"] for dataset in datasets)
    figure = Figure(figsize=(4.2 * columns, 3.4 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), columns, squeeze=False)
    for row, dataset in zip(grid, datasets, strict=True):
        for ax, start in zip(row, dataset["start"].values, strict=False):
            convergence_curves(
                dataset, start=str(start), logarithmic=True, ax=ax, colors=COLOURS, legend=False
            )
            ax.set_title(f"{dataset.attrs['network']}, {dataset.attrs['protocol']}", fontsize=8)
        for ax in row[dataset.sizes["start"] :]:
            ax.set_axis_off()
    return figure


EXPERIMENT = Experiment(
    "sixt2020",
    "csc",
    "Cosine similarity convergence of all methods (fig. 6, 7c, 10).",
    compute,
    judge,
    draw,
    models=("cifar_cnn", "cifar_resnet20", "squeezenet"),
    known_models=networks.explained_on(networks.CIFAR10, networks.IMAGENET),
    images=20,
    tiny={"models": (networks.TINY,), "images": 3},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
