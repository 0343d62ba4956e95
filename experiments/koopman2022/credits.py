"""Fig. 4a: credits of the layers and convolution kernels of LeNet-5, under every definition.

The paper's credit, the log-volume, adds as many terms as the operator has dimensions (K18), and
moves when a layer is multiplied and the next one divided by the same number, which leaves the
network as it is (K19). Beside it stand definitions without the one or the other, and for each of
them what such a rescaling of two dense layers moves. A claim about credits means something if it
holds under several of them.

Kernels have no definition in the paper (K22). Two are measured: the rows of the layer's operator
that belong to the kernel's feature map, and an operator of its own, from the layer's input to that
map.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import keras
import numpy as np
import scipy.stats
import xarray as xr
from keras import layers
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.koopman2022.blocks import (
    BATCH_SIZE,
    CONVOLUTION,
    DENSE,
    POOLING,
    SHOWN_CLASS,
    digits,
    fitted_on,
    known,
    load,
    measured,
    options,
    outputs,
    short,
    type_of,
)
from experiments.koopman2022.protocol import PROTOCOLS, definitions, sizes
from experiments.runs import Experiment, Task, finding
from tfexplain import koopman, metrics

# By which a dense layer is multiplied and the next one divided.
RESCALED = 4.0
# Definition of kernel credits -> what `koopman.credit` calls it.
ROWS, BLOCK = "rows", "block"
KERNELS = {"rows of the operator": ROWS, "operators of their own": BLOCK}
# Difference of log-credits per dimension: 1.05 times as long.
DIFFERENT = 0.05
# Kernels of a layer from which they are compared.
FEWEST = 4
# |Spearman correlation| up to which a feature map does not show the credit of its kernel.
UNREADABLE = 0.5
COLOURS = {CONVOLUTION: "#0173b2", DENSE: "#de8f05", POOLING: "#029e73"}
# Bars from which their numbers stand upright.
CROWDED = 8
TEXT = 8


def compute(task: Task) -> xr.Dataset:
    """Measures credits of blocks and kernels, and what a rescaling moves."""
    protocol = PROTOCOLS[task.protocol]
    model = load(task)
    all_digits = digits(task)
    places = known(model, all_digits.x, all_digits.y)
    five = places.get(SHOWN_CLASS, min(places.values()))
    x = fitted_on(protocol, all_digits, five)
    dataset = measured(task, model, x, all_digits.held_out, kernels=(ROWS,))
    own = own_operators(task, model, x)
    dataset = dataset.assign({name: ("kernel", values) for name, values in own.items()})
    moved = [
        measured(task, tail, *inputs)
        for tail, inputs in _tails(model, (x, all_digits.held_out), RESCALED)
    ]
    for variable in {d.variable for d in definitions(task.protocol).values()}:
        shift = moved[1][variable].values - moved[0][variable].values
        dataset[f"moved_{variable}"] = ("scale", "dense_block"), shift
    maps = feature_maps(model, x)
    for name, values in maps.items():
        axes = ("channel", "row", "column")
        place = 0 if protocol.single else five
        dataset[f"map_{name}"] = (
            tuple(f"{axis}_{name}" for axis in axes),
            np.moveaxis(values[place], -1, 0).astype("float32"),
        )
    energy = [
        np.mean(np.square(values, dtype="float64"), axis=(0, 1, 2)) for values in maps.values()
    ]
    dataset["feature_map_energy"] = "kernel", np.concatenate(energy)
    dataset["digit"] = ("row", "column"), all_digits.x[five].mean(axis=-1)
    return dataset


def _tails(
    model: keras.Model, inputs: Sequence[np.ndarray], factor: float
) -> list[tuple[keras.Model, list[np.ndarray]]]:
    """Returns the dense layers at the end of a network, and the same function rescaled.

    The kernel and bias of the first are multiplied, the kernel of the second is divided; between
    them is a ReLU.

    Args:
        model: A chain of layers that ends in at least two dense ones.
        inputs: Inputs of the network.
        factor: Positive.

    Returns:
        Two networks, with what the inputs become in front of them.
    """
    dense = [place for place, layer in enumerate(model.layers) if isinstance(layer, layers.Dense)]
    chain = model.layers[dense[0] :]
    front = keras.Model(model.inputs[0], chain[0].input)
    given = [outputs(front, x) for x in inputs]
    tails = []
    for number in (1.0, factor):
        copies = [type(layer).from_config(layer.get_config()) for layer in chain]
        tail = keras.Sequential([keras.Input(chain[0].input.shape[1:]), *copies])
        for layer, copy in zip(chain, copies, strict=True):
            copy.set_weights(layer.get_weights())
        first, second = [copy for copy in copies if isinstance(copy, layers.Dense)][:2]
        first.set_weights([weight * number for weight in first.get_weights()])
        kernel, *bias = second.get_weights()
        second.set_weights([kernel / number, *bias])
        tails.append((tail, given))
    return tails


def own_operators(task: Task, model: keras.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the credits of all kernels by operators of their own, (kernel,).

    Each block with a convolution is a network by itself here, so that fewer alignments are enough
    for it.
    """
    of_kernels: dict[str, list[np.ndarray]] = {}
    for block in koopman.blocks(model):
        if type_of(model, block) == CONVOLUTION:
            first, last = (model.get_layer(block.layers[place]) for place in (0, -1))
            alone = keras.Model(first.input, last.output)
            repeats = {"repeats": sizes(task.request.tiny).kernel_repeats}
            dataset = koopman.credit(
                alone, x, kernels=(BLOCK,), **{**options(task, alone, len(x)), **repeats}
            )
            for name in dataset:
                if str(name).startswith(f"kernel_{BLOCK}_"):
                    of_kernels.setdefault(str(name), []).append(dataset[name].values)
        x = block(x, BATCH_SIZE)
    return {name: np.concatenate(values) for name, values in of_kernels.items()}


def feature_maps(model: keras.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs of the blocks that are convolutions, (n, height, width, channels)."""
    maps = {}
    for block in koopman.blocks(model):
        x = block(x, BATCH_SIZE)
        if type_of(model, block) == CONVOLUTION:
            maps[block.name] = x
    return maps


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about K-C1 and K-C2."""
    return [*_order(dataset), *_kernels(dataset)]


def _note(dataset: xr.Dataset) -> str:
    attributes = dataset.attrs
    most = attributes["max_dimension"]
    reduced = f"tensors of more than {most} dimensions reduced to principal components"
    return (
        f"{attributes['protocol']}: {attributes['described']}; {attributes['fitted']} to fit, "
        f"{attributes['repeats']} alignments; {reduced if most else 'no tensor reduced'}. Credits "
        "are natural logarithms."
    )


def _order(dataset: xr.Dataset) -> list[Finding]:
    """K-C1: convolution, dense, pooling, under each definition."""
    types = dataset["type"].values
    blocks = dataset["block"].values.tolist()
    findings = []
    for name, definition in definitions(dataset.attrs["protocol"]).items():
        values = definition.of(dataset)
        of_type = {kind: values[types == kind] for kind in (CONVOLUTION, DENSE, POOLING)}
        criteria = []
        for high, low in ((CONVOLUTION, DENSE), (DENSE, POOLING)):
            text = f"least credit of a {high} block minus the largest of a {low} block"
            apart = _least(of_type[high]) + _least(-of_type[low])
            criteria.append(Criterion(text, apart, ">", 0))
        numbers = {f"credit of {block}": v for block, v in zip(blocks, values, strict=True)}
        ranks = dataset[definition.rank].sel(scale=definition.scale).values
        numbers |= {f"rank of {block}": v for block, v in zip(blocks, ranks, strict=True)}
        if name == "log-volume":
            numbers |= _fit_numbers(dataset.sel(scale=definition.scale))
        moved = dataset[f"moved_{definition.variable}"].sel(scale=definition.scale).values
        text = f"when the first dense layer is multiplied and the second divided by {RESCALED:g}"
        numbers[f"change of the first dense layer's credit {text}"] = moved[0]
        numbers[f"change of the second dense layer's credit {text}"] = moved[1]
        findings.append(
            finding(
                dataset.assign_attrs(network=f"{dataset.attrs['network']}: {name}"),
                "K-C1",
                criteria,
                numbers=numbers,
                note=_note(dataset),
                reason="an operator is zero, or a type of block is missing",
            )
        )
    return findings


def _fit_numbers(dataset: xr.Dataset) -> dict[str, float]:
    """Returns how the operators were fitted and how true they are."""
    texts = {
        "columns": "pairs of snapshots",
        "diverged": "trajectories that diverged, all alignments",
        "collapsed": "trajectories that came to a standstill, all alignments",
        "one_step_error": "relative error of one step on held-out digits",
        "least_squares_one_step_error": "the same with least squares",
        "energy_lost": "part of the squared norm that the reduction of its output leaves out",
    }
    return {
        f"{block}: {text}": float(dataset[name].sel(block=block))
        for block in dataset["block"].values.tolist()
        for name, text in texts.items()
    }


def _least(values: np.ndarray) -> float:
    """Returns the least value; NaN if there is none or one has no volume."""
    return float(values.min()) if len(values) and np.isfinite(values).all() else float("nan")


def _kernels(dataset: xr.Dataset) -> list[Finding]:
    """K-C2: kernels differ, and not as their feature maps do; by both definitions."""
    findings = []
    energy = dataset["feature_map_energy"].values
    of_block = dataset["kernel_block"].values
    for name, definition in KERNELS.items():
        credits = _of_kernels(dataset, definition, "log_volume_per_dimension")
        raw = _of_kernels(dataset, definition, "log_volume")
        criteria, numbers = [], {}
        for block in dict.fromkeys(of_block.tolist()):
            own = of_block == block
            numbers[f"{block}: kernels whose operator is zero"] = int(np.isnan(credits[own]).sum())
            own &= np.isfinite(credits)
            enough = own.sum() >= FEWEST
            spread = float(np.ptp(credits[own])) if enough else float("nan")
            correlation = metrics.spearman(credits[own], energy[own]) if enough else float("nan")
            criteria += [
                Criterion(
                    f"{block}: largest minus least credit per dimension of a kernel",
                    spread,
                    ">=",
                    DIFFERENT,
                ),
                Criterion(
                    f"{block}: |Spearman correlation| of credit and mean square of the map",
                    abs(correlation),
                    "<=",
                    UNREADABLE,
                ),
            ]
            numbers[f"{block}: Spearman correlation of credit per dimension and mean square"] = (
                correlation
            )
            if not enough:
                continue
            numbers[f"{block}: its p-value"] = _p_value(credits[own], energy[own])
            numbers[f"{block}: Spearman correlation of log-volume and mean square"] = (
                metrics.spearman(raw[own], energy[own])
            )
            numbers[f"{block}: largest minus least log-volume of a kernel"] = np.ptp(raw[own])
            numbers[f"{block}: mean rank of a kernel"] = float(
                dataset[f"kernel_{definition}_rank"].values[own].mean()
            )
        both = [_of_kernels(dataset, d, "log_volume_per_dimension") for d in KERNELS.values()]
        known_both = np.isfinite(both).all(axis=0)
        if known_both.sum() >= FEWEST:
            numbers["Spearman correlation of both definitions"] = metrics.spearman(
                *(values[known_both] for values in both)
            )
        findings.append(
            finding(
                dataset.assign_attrs(network=f"{dataset.attrs['network']}: {name}"),
                "K-C2",
                criteria,
                numbers=numbers,
                note=_note(dataset),
                reason=f"fewer than {FEWEST} kernels have an operator that is not zero, or all "
                "are alike",
            )
        )
    return findings


def _of_kernels(dataset: xr.Dataset, definition: str, name: str) -> np.ndarray:
    """Returns a credit of all kernels, NaN for an operator that is zero."""
    ranks = dataset[f"kernel_{definition}_rank"].values
    return np.where(ranks > 0, dataset[f"kernel_{definition}_{name}"].values, np.nan)


def _p_value(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0 or not np.isfinite([first, second]).all():
        return float("nan")
    return float(scipy.stats.spearmanr(first, second).pvalue)


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws credits of blocks, and feature maps with credits of kernels."""
    drawn = {}
    several = len({dataset.attrs["model"] for dataset in datasets}) > 1
    for dataset in datasets:
        protocol = dataset.attrs["protocol"]
        suffix = f"_{dataset.attrs['model']}_{protocol}" if several else f"_{protocol}"
        drawn[f"credits{suffix}"] = layer_figure(dataset)
        drawn[f"credits_kernels{suffix}"] = kernel_figure(dataset)
    return drawn


def layer_figure(dataset: xr.Dataset) -> Figure:
    """Draws one panel of bars for each definition of a block's credit."""
    named = definitions(dataset.attrs["protocol"])
    columns = 2
    rows = -(-len(named) // columns)
    figure = Figure(figsize=(7.5, 1.55 * rows + 0.5), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (name, definition) in zip(cells, named.items(), strict=False):
        _bars(ax, dataset["block"].values, definition.of(dataset), dataset["type"].values)
        ax.set_title(name, fontsize=TEXT)
    for ax in cells[len(named) :]:
        ax.set_axis_off()
    handles = [
        cells[0].bar(0, 0, color=colour, label=kind)
        for kind, colour in COLOURS.items()
        if kind in dataset["type"].values
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, fontsize=TEXT, frameon=False
    )
    figure.suptitle(
        f"{dataset.attrs['network']}, {dataset.attrs['protocol']}: log-credits of blocks",
        fontsize=TEXT + 1,
    )
    return figure


def _bars(ax: Axes, names: Sequence[str], values: np.ndarray, types: Sequence[str]) -> None:
    """Draws bars with their numbers."""
    values = np.where(np.isfinite(values), values, np.nan)
    places = np.arange(len(names))
    ax.bar(places, np.nan_to_num(values), color=[COLOURS.get(kind, "0.6") for kind in types])
    ax.axhline(0, color="0.3", linewidth=0.6)
    for place, value in zip(places, values, strict=True):
        ax.annotate(
            short(value),
            (place, 0 if np.isnan(value) else value),
            (0, 2 if not value < 0 else -2),
            textcoords="offset points",
            ha="center",
            va="top" if value < 0 else "bottom",
            fontsize=TEXT - 2,
            rotation=90 if len(names) > CROWDED else 0,
        )
    ax.set_xticks(places, names)
    # Room for the numbers, also on the side of zero.
    ax.use_sticky_edges = False
    ax.tick_params(labelsize=TEXT - 1)
    ax.margins(y=0.45 if len(names) > CROWDED else 0.2)
    ax.spines[["top", "right"]].set_visible(False)


def kernel_figure(dataset: xr.Dataset) -> Figure:
    """Draws the feature maps of the shown digit with the credits of their kernels, as fig. 4a."""
    of_block = dataset["kernel_block"].values
    blocks = list(dict.fromkeys(of_block.tolist()))
    counts = {block: int((of_block == block).sum()) for block in blocks}
    figure = Figure(figsize=(7.5, 2.9 * len(blocks)), layout="constrained")
    for part, block in zip(np.ravel(figure.subfigures(len(blocks), 1)), blocks, strict=True):
        upper, lower = part.subfigures(2, 1, height_ratios=(1, 2.2))
        cells = upper.subplots(1, counts[block] + 1)
        maps = dataset[f"map_{block}"].values
        for ax, image in zip(cells, [dataset["digit"].values, *maps], strict=True):
            ax.imshow(image, cmap="gray_r", interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
        cells[0].set_title("input", fontsize=TEXT - 1)
        for number, ax in enumerate(cells[1:]):
            ax.set_title(str(number), fontsize=TEXT - 1)
        upper.suptitle(f"{block}: feature maps, credits of kernels", fontsize=TEXT)
        for ax, (name, definition) in zip(lower.subplots(1, 2), KERNELS.items(), strict=True):
            values = _of_kernels(dataset, definition, "log_volume_per_dimension")
            own = values[of_block == block]
            _bars(ax, [str(n) for n in range(counts[block])], own, [CONVOLUTION] * counts[block])
            ax.set_title(f"{name}, per dimension", fontsize=TEXT - 1)
    figure.suptitle(f"{dataset.attrs['network']}, {dataset.attrs['protocol']}", fontsize=TEXT + 1)
    return figure


EXPERIMENT = Experiment(
    "koopman2022",
    "credits",
    "Credits of the layers and kernels of LeNet-5 (fig. 4a), under every definition.",
    compute,
    judge,
    draw,
    models=("lenet5",),
    images=1500,
    data=(networks.MNIST,),
    tiny={"models": (networks.TINY,), "images": 40},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
