"""Fig. 1a, 5, 7a-b, 9b and 11: maps of networks whose parameters are random from the last layer on.

Each step randomises all layers at or behind a named one; the explained class stays. Besides the
similarities of the audit there are two numbers of maps: whether a map is that of the trained
network up to local factors (S21), and how much of it is noise (S23).

As published, PatternAttribution keeps the products of patterns and trained weights (T4), and each
method has a random network of its own, DeepLIFT one for each step (T14).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import tfexplain
from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.frequencies import high_frequencies
from experiments.runs import Experiment, Task, finding
from experiments.sixt2020 import maps
from experiments.sixt2020.methods import COLOURS, analyzers, images
from experiments.sixt2020.protocol import CORRECTED, PROTOCOLS, Method, Protocol, methods
from tfexplain import audits, plotting
from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.patterns import PatternAttribution
from tfexplain.patterns import fitted_calls


def _residual_steps(blocks: int) -> tuple[str, ...]:
    """Returns the steps of the ResNets for CIFAR-10: last, middle and first block of each stage."""
    last, middle = f"layer3_{blocks - 1}_conv1", f"_{blocks // 2}_conv1"
    return (
        *("linear", last, f"layer3{middle}", "layer3_0_conv1"),
        *(f"layer2{middle}", "layer2_0_conv1", f"layer1{middle}", "conv1"),
    )


# Network -> steps from the last layer to the first, which makes everything random. The name of an
# output of a block (ResNet-50, GoogLeNet) means what lies behind it: the block itself is trained.
STEPS = {
    networks.TINY: ("fc4", "fc3", "conv2", "conv1"),
    "cifar_cnn": ("fc6", "fc5", "conv4", "conv3", "conv2", "conv1"),
    **{f"cifar_resnet{6 * n + 2}": _residual_steps(n) for n in (3, 5, 7, 9)},
    "squeezenet": (
        "conv10",
        *(f"fire{number}_squeeze1x1" for number in (9, 8, 6, 5, 4, 2)),
        "conv1",
    ),
    "googlenet": (
        "loss3_classifier",
        *(f"inception_{block}_output" for block in ("5a", "4e", "4c", "4a", "3a")),
        *("conv2_3x3", "conv1_7x7_s2"),
    ),
    "mobilenet": ("conv_preds", *(f"conv_dw_{number}" for number in (13, 11, 7, 5, 3, 1)), "conv1"),
    "vgg16": (
        *("fc3", "fc1", "conv5_3", "conv5_1", "conv4_3", "conv4_1"),
        *("conv3_1", "conv2_1", "conv1_1"),
    ),
    "resnet50": (
        *("dense", "block5_2", "block4_6", "block4_1", "block3_3", "block3_1"),
        *("block2_2", "conv1"),
    ),
}
# Images whose maps are kept in memory, for local factors and noise.
MAPS = 10
SIMILARITIES = ("ssim", "spearman", "cosine")
# Options that the maps to look at share with the similarities.
SHARED = ("layers", "weights", "reduction", "seed", "batch_size")
UNCHANGED = 0.99
# Patches in which a map counts as rescaled, as a part of its side, and from which cosine on.
PATCHES, RESCALED = 8, 0.9
# What a map has in the figures, about.
PIXELS = 80
CMP = ("LRP CMP 1/0", "LRP CMP 2/1")


def compute(task: Task) -> xr.Dataset:
    """Randomises a network step by step, for every method of the table."""
    protocol = PROTOCOLS[task.protocol]
    model = networks.load(task)
    x, y = images(task, protocol)
    pixels, photograph = maps.photograph(task, protocol, x.shape[1])
    shown = np.concatenate([photograph, x[:MAPS]])
    targets = np.concatenate([model(photograph).numpy().argmax(axis=1), y[:MAPS]])
    scores, relevance = [], []
    for method, analyzer in analyzers(task, protocol, model, x):
        named = {method.name: _audited(method, analyzer, protocol)}
        audited, cascades = [], []
        for options in _random_networks(task, protocol, method, x):
            shared = {key: options[key] for key in SHARED}
            with maps.overflowing():
                audited.append(audits.parameter_randomization(named, x, y, **options))
                cascade = audits.cascade_maps(named, shown, targets, **shared)
            cascades.append(cascade["relevance"].values[0])
        scores.append(_joined(audited, "step"))
        relevance.append(np.concatenate([cascades[0][:1], *(one[1:] for one in cascades)]))
    dataset = _joined(scores, "analyzer").sel(similarity="ssim", drop=True)
    if not protocol.count_constant_maps:
        for name in ("median", "low", "high"):
            dataset[name] = dataset[name].where(dataset["missing"] == 0)
    kept = np.stack(relevance)  # (analyzer, 1 + step, 1 + image, height, width)
    trained, random = kept[:, 0, 1:], kept[:, 1:, 1:]
    dataset["rescaled"] = (
        ("analyzer", "step", "image"),
        _each(local_cosine, np.broadcast_to(trained[:, None], random.shape), random),
    )
    dataset["noise"] = ("analyzer", "image"), _each(high_frequencies, trained)
    dataset["relevance"] = ("analyzer", "shown", "height", "width"), kept[:, :, 0].astype("float32")
    dataset["pixels"] = ("height", "width", "channel"), pixels
    dataset = dataset.assign_coords(shown=["trained", *dataset["step"].values])
    return dataset.assign_attrs(
        images=len(x),
        dense_step=_dense_step(model, dataset["step"].values.tolist()),
        flattened=int(any(isinstance(layer, keras.layers.Flatten) for layer in model.layers)),
        lowest_logit=float(analyzer.outputs(x, batch_size=options["batch_size"]).min()),
        notes=audited[0].attrs["notes"],
    )


def _random_networks(
    task: Task, protocol: Protocol, method: Method, x: np.ndarray
) -> list[dict[str, Any]]:
    """Returns the options of the audit for each random network that a method sees.

    It is one for all steps; in the published code DeepLIFT has a new one for each step (T14).
    """
    steps, options = list(STEPS[task.model]), maps.options(task, protocol, method, x)
    options["weights"] = protocol.random_weights
    if protocol.shared_draws or not method.analyzer.startswith("deep_lift."):
        return [{**options, "layers": steps}]
    return [
        {
            **options,
            "layers": [step],
            "seed": maps.draw_seed(task, protocol, method, step),
            "path": maps.scratch(task, f"{method.name} {step}"),
        }
        for step in steps
    ]


def _joined(scores: Sequence[xr.Dataset], dim: str) -> xr.Dataset:
    """Joins what audits found for one step or analyzer each."""
    return xr.concat(
        [score[[*SIMILARITIES, "median", "low", "high", "missing"]] for score in scores],
        dim,
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="drop",
    )


def _each(function, *stacks: np.ndarray) -> np.ndarray:
    """Returns a number for each map, the last two axes."""
    shape = stacks[0].shape[:-2]
    return np.array([function(*(s[i] for s in stacks)) for i in np.ndindex(shape)]).reshape(shape)


def _audited(method: Method, analyzer: Analyzer, protocol: Protocol) -> Analyzer:
    if method.analyzer == "pattern.attribution" and protocol.pattern_weights == "frozen":
        return frozen(analyzer)
    return analyzer


def frozen(attribution: PatternAttribution) -> Analyzer:
    """Returns PatternAttribution with the weights of now, whatever they become (T4).

    It is PatternNet with the products of patterns and weights as its patterns.

    Args:
        attribution: Fitted to data.
    """
    products = {
        fitted.call.name: attribution.patterns[fitted.call.name] * fitted.weights(FLOAT).numpy()
        for fitted in fitted_calls(attribution.graph)
        if fitted.call.name in attribution.patterns
    }
    return tfexplain.create_analyzer("pattern.net", attribution.user_model, patterns=products)


FLOAT = np.zeros((), "float32")


def _dense_step(model: keras.Model, steps: Sequence[str]) -> str:
    """Returns the last step that leaves all convolutions as they are; empty if there is none."""
    names = [layer.name for layer in model.layers]
    last = max(place for place, layer in enumerate(model.layers) if isinstance(layer, CONVOLUTIONS))
    behind = [step for step in steps if names.index(step) > last]
    return behind[-1] if behind else ""


CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


# --- numbers of maps -----------------------------------------------------------------------------


def local_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the median |cos| of two maps in patches: 1 if they differ by local factors only.

    Args:
        first: A map, (height, width), at least 4 x 4.
        second: Another one.

    Returns:
        0..1; not a number if a map is not finite, or no patch is nonzero in both.
    """
    side = max(2, min(first.shape) // PATCHES)
    rows, columns = (length // side for length in first.shape)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("nan")
    a, b = (
        map[: rows * side, : columns * side]
        .reshape(rows, side, columns, side)
        .swapaxes(1, 2)
        .reshape(rows * columns, -1)
        / (np.abs(map).max() or 1)
        for map in (first, second)
    )
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    nonzero = lengths > 0
    if not nonzero.any():
        return float("nan")
    return float(np.median(np.abs((a * b).sum(axis=1)[nonzero]) / lengths[nonzero]))


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about S7, S15, S18, S21 and S23."""
    names = dataset["analyzer"].values.tolist()
    steps = dataset["step"].values.tolist()
    total = dataset.sizes["sample"] * len(steps)
    missing = maps.missing_text(dataset["missing"].sum("step"), total)
    note = (
        f"{dataset.attrs['images']} images; steps {', '.join(steps)}; maps of at most {MAPS} "
        f"images for local factors and noise. {missing}"
    )

    def say(claim: str, criteria: Sequence[Criterion], reason: str = "", **more) -> Finding:
        absent = "the method is not on this network, or has no median."
        reason = reason or f"{absent} {missing}"
        return finding(dataset, claim, criteria, note=note, reason=reason, **more)

    def ssim(name: str, step: str) -> float:
        if name not in names:
            return float("nan")
        return float(dataset["median"].sel(analyzer=name, step=step))

    return [
        _groups(say, names, steps, ssim),
        say("S15", [_at_least(f"GuidedBP: median SSIM at {steps[0]}", ssim("GuidedBP", steps[0]))]),
        _flips(say, dataset, names, steps[0]),
        _local(say, dataset, names, ssim),
        _noise(say, dataset, names),
    ]


def _at_least(quantity: str, value: float, bound: float = UNCHANGED) -> Criterion:
    return Criterion(quantity, value, ">=", bound)


def _groups(say, names, steps, ssim) -> Finding:
    """S7, at the middle step: the last convolutions are random on all networks."""
    middle = steps[len(steps) // 2]
    criteria = [
        Criterion(f"{name}: median SSIM at {middle}", ssim(name, middle), *bound)
        for name in names
        if name not in maps.ELSEWHERE
        for bound in [("<=", maps.FIELD[1]) if name in maps.REST else (">=", maps.CLOSE)]
    ]
    numbers = {f"median SSIM at {step}, {n}": ssim(n, step) for n in names for step in steps}
    return say("S7", criteria, numbers=numbers)


def _flips(say, dataset: xr.Dataset, names, step: str) -> Finding:
    """S18: images whose maps are negatively correlated when the last layer is random."""
    criteria, numbers, reason = [], {}, ""
    for name in maps.SIGNED:
        share = size = np.nan
        if name in names:
            cosines = dataset["cosine"].sel(analyzer=name, step=step).values
            cosines = cosines[~np.isnan(cosines)]
            if len(cosines):
                share, size = np.mean(cosines < 0), np.median(np.abs(cosines))
        numbers[f"median |cos| of maps at {step}, {name}"] = size
        if dataset.attrs["lowest_logit"] >= 0:
            share, reason = np.nan, "no logit of this network is ever negative"
        criteria.append(Criterion(f"{name}: share of maps that flip at {step}", share, ">", 0))
    return say("S18", criteria, reason, numbers=numbers)


def _local(say, dataset: xr.Dataset, names, ssim) -> Finding:
    """S21: with random dense layers maps of LRP-CMP change, by local factors."""
    step = dataset.attrs["dense_step"]
    if not step:
        return say("S21", [], "the network has no dense layer, so LRP-CMP is LRP alpha-beta")
    criteria, numbers = [], {}
    for name in names:
        value = maps.median(dataset["rescaled"].sel(analyzer=name, step=step).values, True)
        numbers[f"median |cos| in patches at {step}, {name}"] = value
        if name not in CMP:
            continue
        quantity = f"{name}: median SSIM at {step}"
        if not dataset.attrs["flattened"]:
            criteria.append(_at_least(quantity, ssim(name, step), maps.CLOSE))
            continue
        criteria.append(Criterion(quantity, ssim(name, step), "<", maps.CLOSE))
        criteria.append(_at_least(f"{name}: median |cos| in patches at {step}", value, RESCALED))
    return say("S21", criteria, numbers=numbers)


def _noise(say, dataset: xr.Dataset, names) -> Finding:
    """S23: LRP alpha 5 beta 4 has more energy in high frequencies than alpha 1 beta 0."""
    ratio = float("nan")
    if {"LRP 1/0", "LRP 5/4"} <= set(names):
        noise = dataset["noise"].sel(analyzer=["LRP 5/4", "LRP 1/0"]).values
        ratio = maps.median(noise[0] / noise[1], True)
    quantity = "share of energy in high frequencies, LRP 5/4 over LRP 1/0, median"
    numbers = {
        f"share of energy in high frequencies, {name}": maps.median(
            dataset["noise"].sel(analyzer=name).values, True
        )
        for name in names
    }
    return say("S23", [Criterion(quantity, ratio, ">", 1)], numbers=numbers)


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws the curves of all Datasets, and maps of a photograph for each."""
    figure = Figure(figsize=(8.5, 3.6 * len(datasets)), layout="constrained")
    figures = {"sanity_checks": figure}
    for ax, dataset in zip(
        figure.subplots(len(datasets), 1, squeeze=False)[:, 0], datasets, strict=True
    ):
        _curves(ax, dataset)
        name = f"sanity_checks_{dataset.attrs['model']}_{dataset.attrs['protocol']}"
        figures[name] = _maps(dataset)
    return figures


def _curves(ax, dataset: xr.Dataset) -> None:
    """Draws medians and their intervals, in the paper's colours and with its letters."""
    steps, table = dataset["step"].values.tolist(), methods(CORRECTED)
    places = np.arange(len(steps))
    for name in dataset["analyzer"].values.tolist():
        one, colour = dataset.sel(analyzer=name), COLOURS[name]
        marker = maps.marker(table[name].letter)
        style = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 0.9}
        ax.plot(places, one["median"].values, label=name, **style)
        band = one["low"].values, one["high"].values
        ax.fill_between(places, *band, color=colour, alpha=0.12, linewidth=0)
    ax.axhline(maps.CLOSE, color="0.6", linewidth=0.7, linestyle=":", zorder=0)
    ax.set_xticks(places, steps, rotation=30, ha="right", fontsize=7)
    ax.set_ylim(min(-0.02, float(dataset["low"].min(skipna=True)) - 0.05), 1.05)
    ax.set_ylabel("SSIM: median, 99 % interval", fontsize=8)
    ax.set_xlabel("random from the last layer to", fontsize=8)
    ax.tick_params(axis="y", labelsize=7)
    ax.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    ax.set_title(f"{dataset.attrs['network']}, {dataset.attrs['protocol']}", fontsize=8)


def _maps(dataset: xr.Dataset) -> Figure:
    """Draws the maps of the photograph: a row for each method, a column for each step."""
    cascade = dataset[["relevance"]].rename(shown="step").assign(input=dataset["pixels"])
    rows, columns = dataset.sizes["analyzer"], dataset.sizes["shown"] + 1
    figure = Figure(figsize=(1 + 0.75 * columns, 0.3 + 0.9 * rows), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False)
    cascade = cascade.expand_dims("sample").assign_attrs(audit="cascade_maps")
    plotting.cascade(cascade, ax=cells)
    if max(dataset["pixels"].shape) > PIXELS:
        for image in (image for ax in cells.flat for image in ax.get_images()):
            image.set_interpolation("antialiased")
    figure.suptitle(f"{dataset.attrs['network']}, {dataset.attrs['protocol']}", fontsize=8)
    return figure


EXPERIMENT = Experiment(
    "sixt2020",
    "sanity_checks",
    "Maps of networks with random parameters (fig. 1a, 5, 7a-b, 9b, 11).",
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
