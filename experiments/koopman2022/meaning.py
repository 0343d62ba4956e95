"""Does credit say how much a block contributes? Credits against what perturbing a block costs.

The paper wants credit to tell "how much a certain component contributes for the final output" and
does not measure it. Here credits of all definitions are ranked against

* the loss of accuracy when noise is added to a block's output, in units of its root mean square;
* the loss of accuracy when noise is added to its kernel, in units of its root mean square;
* the loss of accuracy when its kernel is replaced by the nearest one of a lower rank;
* what other methods say of the block: mean |relevance| of LRP-epsilon and mean |gradient| of the
  predicted class at the block's input, as sums and as means over the tensor.

Biases stay. Poolings have no kernel. There are few blocks, so that few rank correlations are
significant: exact p-values stand beside them, and with 4 blocks no correlation but 1 is below 0.05.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

import keras
import numpy as np
import scipy.stats
import xarray as xr
from matplotlib.figure import Figure

from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.koopman2022.blocks import (
    BATCH_SIZE,
    OF_BLOCKS,
    SHOWN_CLASS,
    digits,
    fitted_on,
    known,
    load,
    measured,
    outputs,
    predicted,
    short,
)
from experiments.koopman2022.protocol import PROTOCOLS, definitions, sizes
from experiments.runs import RECOMPUTED, Experiment, Task, finding
from tfexplain import create_analyzer, koopman, metrics, netcdf, results

# Noise, relative to the root mean square of what it is added to.
LEVELS = (0.25, 0.5, 1.0, 2.0)
# Rank of the replaced kernel, as part of the full one.
RANKS = (0.125, 0.25, 0.5)
# What credit is compared with -> words for it.
LOSSES = {
    "output_noise": "loss of accuracy by noise on the output",
    "kernel_noise": "loss of accuracy by noise on the kernel",
    "rank_reduced": "loss of accuracy by a kernel of lower rank",
}
OTHERS = {"relevance": "|LRP relevance|", "gradient": "|gradient|"}
# Spearman correlation from which credit orders blocks as a loss does.
AGREES = 0.7
# Blocks from which a correlation is tested: of 3 there are 6 orders only.
FEWEST = 4
TEXT = 8


def compute(task: Task) -> xr.Dataset:
    """Measures credits, losses of accuracy, relevance and gradients of all blocks."""
    protocol = PROTOCOLS[task.protocol]
    model = load(task)
    all_digits = digits(task)
    places = known(model, all_digits.x, all_digits.y)
    x = fitted_on(protocol, all_digits, places.get(SHOWN_CLASS, min(places.values())))
    dataset = credits_of(task, model, x, all_digits.held_out)
    blocks = koopman.blocks(model)
    draws = sizes(task.request.tiny).draws
    noise = output_noise(task, blocks, all_digits.held_out, all_digits.held_out_y, draws)
    kernel, reduced = changed_kernels(
        task, model, blocks, all_digits.held_out, all_digits.held_out_y, draws
    )
    maps = attributions(model, blocks, all_digits.held_out)
    return (
        dataset.assign(
            {
                "output_noise": (("level", "block"), noise),
                "kernel_noise": (("level", "block"), kernel),
                "rank_reduced": (("part_of_rank", "block"), reduced),
                **{name: ("block", values) for name, values in maps.items()},
            }
        )
        .assign_coords(level=list(LEVELS), part_of_rank=list(RANKS))
        .assign_attrs(
            draws=draws,
            accuracy=float((predicted(model, all_digits.held_out) == all_digits.held_out_y).mean()),
        )
    )


def credits_of(task: Task, model: keras.Model, x: np.ndarray, held_out: np.ndarray) -> xr.Dataset:
    """Returns the credits of all blocks.

    With `--resume` those of the experiment `credits` are taken, if the same command made them.
    """
    path = replace(task, experiment="credits").path
    if task.request.resume and path.is_file():
        saved = netcdf.read(path, RECOMPUTED)
        same = {
            "command": EXPERIMENT.command(task).replace(".meaning", ".credits"),
            "files": json.dumps(task.files, sort_keys=True),
            "versions": json.dumps(results.versions(), sort_keys=True),
        }
        if all(saved.attrs[name] == value for name, value in same.items()):
            kept = saved[list(OF_BLOCKS)]
            keys = ("fitted", "held_out", "repeats", "max_dimension", "described")
            kept.attrs = {key: saved.attrs[key] for key in keys}
            return kept
    return measured(task, model, x, held_out)


def output_noise(
    task: Task,
    blocks: Sequence[koopman.Block],
    x: np.ndarray,
    y: np.ndarray,
    draws: int,
) -> np.ndarray:
    """Returns the mean loss of accuracy by noise on each block's output, (level, block)."""
    tensors = [x]
    for block in blocks:
        tensors.append(block(tensors[-1], BATCH_SIZE))
    right = (tensors[-1].argmax(axis=1) == y).mean()
    losses = np.zeros((len(LEVELS), len(blocks)))
    for place, output in enumerate(tensors[1:]):
        size = np.sqrt(np.mean(np.square(output, dtype="float64")))
        for draw in range(draws):
            # One draw for all levels, so that levels differ in size alone.
            noise = task.generator("output noise", place, draw).normal(size=output.shape)
            for row, level in enumerate(LEVELS):
                changed = (output + level * size * noise).astype(output.dtype)
                for block in blocks[place + 1 :]:
                    changed = block(changed, BATCH_SIZE)
                wrong = right - (changed.argmax(axis=1) == y).mean()
                losses[row, place] += wrong / draws
    return losses


def changed_kernels(
    task: Task,
    model: keras.Model,
    blocks: Sequence[koopman.Block],
    x: np.ndarray,
    y: np.ndarray,
    draws: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns losses of accuracy by changes of each block's kernel; NaN for blocks without.

    Returns:
        Mean loss by noise, (level, block), and loss by lower rank, (part of the rank, block).
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    right = (predicted(copy, x) == y).mean()
    by_noise = np.full((len(LEVELS), len(blocks)), np.nan)
    by_rank = np.full((len(RANKS), len(blocks)), np.nan)
    for place, block in enumerate(blocks):
        kernels = [
            copy.get_layer(name).kernel
            for name in block.layers
            if hasattr(copy.get_layer(name), "kernel")
        ]
        if not kernels:
            continue
        (variable,) = kernels
        kernel = variable.numpy()

        def loss(changed: np.ndarray, variable: keras.Variable = variable) -> float:
            variable.assign(changed)
            return float(right - (predicted(copy, x) == y).mean())

        size = np.sqrt(np.mean(np.square(kernel, dtype="float64")))
        drawn = [
            task.generator("kernel noise", place, draw).normal(size=kernel.shape)
            for draw in range(draws)
        ]
        for row, level in enumerate(LEVELS):
            by_noise[row, place] = np.mean([loss(kernel + level * size * noise) for noise in drawn])
        for row, share in enumerate(RANKS):
            by_rank[row, place] = loss(of_rank(kernel, share))
        variable.assign(kernel)
    return by_noise, by_rank


def of_rank(kernel: np.ndarray, share: float) -> np.ndarray:
    """Returns the nearest kernel of a lower rank, as matrix of inputs and taps by outputs.

    Args:
        kernel: (..., outputs).
        share: Share of the full rank, rounded up.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype("float64")
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = int(np.ceil(share * len(values)))
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(kernel.shape)


def attributions(
    model: keras.Model, blocks: Sequence[koopman.Block], x: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns mean sums of |relevance| and |gradient| at the input of each block, (block,)."""
    ends = [block.layers[-1] for block in blocks[:-1]]
    logits = outputs(model, x)
    first = np.eye(logits.shape[1], dtype="float32")[logits.argmax(axis=1)]
    sums = {}
    # Relevance starts with the logit, the gradient with 1.
    for name, method, sent in (
        ("relevance", "lrp.epsilon", first * logits),
        ("gradient", "gradient", first),
    ):
        maps = create_analyzer(method, model).propagate(x, sent[:, None], layers=ends)
        sums[name] = np.array(
            [
                np.mean(np.abs(maps[layer]).astype("float64").reshape(len(x), -1).sum(axis=1))
                for layer in ("input", *ends)
            ]
        )
    return sums


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about K-C11, for each definition of credit."""
    attributes = dataset.attrs
    losses = {name: mean_loss(dataset, name) for name in LOSSES}
    others = attributed(dataset)
    blocks = dataset["block"].values.tolist()
    note = (
        f"{attributes['protocol']}: {attributes['described']}; {attributes['fitted']} digits to "
        f"fit, losses on {attributes['held_out']} held out, means over "
        f"{', '.join(map(str, LEVELS))} of noise ({attributes['draws']} draws) and "
        f"{', '.join(map(str, RANKS))} of the rank. p-values are exact and one-sided."
    )
    findings = []
    for name, definition in definitions(attributes["protocol"]).items():
        credit = definition.of(dataset)
        criteria, numbers = [], {}
        for loss, text in LOSSES.items():
            value, p, count = ranked(credit, losses[loss])
            criteria.append(
                Criterion(
                    f"Spearman correlation with the {text}, {count} blocks", value, ">=", AGREES
                )
            )
            numbers[f"p-value, {text}"] = p
        for text, values in others.items():
            value, p, _ = ranked(credit, values)
            numbers[f"Spearman correlation with the {text}"] = value
            numbers[f"p-value, {text}"] = p
        named = dataset.assign_attrs(network=f"{attributes['network']}: {name}")
        findings.append(
            finding(
                named,
                "K-C11",
                criteria,
                numbers=numbers,
                note=note,
                reason="an operator is zero, all losses are equal, or there are fewer than "
                f"{FEWEST} blocks",
            )
        )
    # The same for what other methods say, and the losses themselves, once.
    numbers = {"accuracy": attributes["accuracy"]}
    for text, values in others.items():
        for loss, words in LOSSES.items():
            name = f"Spearman correlation of {text} and {words}"
            numbers[name] = ranked(values, losses[loss])[0]
    for text, values in [
        *((words, losses[loss]) for loss, words in LOSSES.items()),
        *others.items(),
    ]:
        numbers |= {f"{block}: {text}": v for block, v in zip(blocks, values, strict=True)}
    findings[0] = replace(findings[0], numbers={**findings[0].numbers, **numbers})
    return findings


def attributed(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """Returns what other methods say of the blocks, in words -> (block,)."""
    sums = {f"sum of {text}": dataset[name].values for name, text in OTHERS.items()}
    sizes_of_inputs = dataset["input_size"].values
    means = {f"mean {t}": dataset[name].values / sizes_of_inputs for name, t in OTHERS.items()}
    return sums | means


def mean_loss(dataset: xr.Dataset, name: str) -> np.ndarray:
    """Returns the mean loss of accuracy over levels or ranks, (block,)."""
    return dataset[name].values.mean(axis=0)


def ranked(first: np.ndarray, second: np.ndarray) -> tuple[float, float, int]:
    """Returns Spearman's correlation over blocks that have both numbers.

    Args:
        first: (block,), NaN where there is none.
        second: Likewise.

    Returns:
        The correlation, the share of all orders of the blocks that have at least this correlation,
        and the number of blocks; NaN for fewer than `FEWEST` blocks and for numbers that are equal.
    """
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    if len(first) < FEWEST:
        return float("nan"), float("nan"), len(first)
    value = metrics.spearman(first, second)
    if np.isnan(value):
        return value, float("nan"), len(first)
    ranks = [scipy.stats.rankdata(values) for values in (first, second)]
    orders = np.array(list(itertools.permutations(ranks[1])))
    # Sums of products of half-integers: exact, so that ties count.
    reached = orders @ ranks[0] >= ranks[1] @ ranks[0]
    return value, float(np.mean(reached)), len(first)


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws what credit, losses and other methods say of each block."""
    return {
        f"meaning_{dataset.attrs['model']}_{dataset.attrs['protocol']}": table(dataset)
        for dataset in datasets
    }


def table(dataset: xr.Dataset) -> Figure:
    """Draws a table: darker is a higher rank among the blocks, the numbers stand in the cells."""
    rows = {
        f"credit: {name}": definition.of(dataset)
        for name, definition in definitions(dataset.attrs["protocol"]).items()
    }
    rows |= {text: mean_loss(dataset, name) for name, text in LOSSES.items()}
    others = attributed(dataset)
    rows |= others
    blocks = dataset["block"].values.tolist()
    shades = np.array([_shades(values) for values in rows.values()])
    figure = Figure(
        figsize=(2.9 + 0.62 * len(blocks), 0.6 + 0.24 * len(rows)), layout="constrained"
    )
    ax = figure.subplots()
    ax.imshow(shades, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for row, values in enumerate(rows.values()):
        for column, value in enumerate(values):
            ax.text(column, row, short(value), ha="center", va="center", fontsize=TEXT - 1)
    ax.set_xticks(range(len(blocks)), blocks)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.tick_params(labelsize=TEXT - 1, length=0, top=True, labeltop=True, bottom=False)
    ax.tick_params(labelbottom=False)
    for place in (len(rows) - len(others), len(rows) - len(others) - len(LOSSES)):
        ax.axhline(place - 0.5, color="0.2", linewidth=1)
    ax.set_title(
        f"{dataset.attrs['network']}, {dataset.attrs['protocol']}", fontsize=TEXT, loc="left"
    )
    return figure


def _shades(values: np.ndarray) -> np.ndarray:
    """Returns ranks among the numbers that there are, 0 for the lowest and 1 for the highest."""
    known_values = np.isfinite(values)
    shades = np.full(len(values), np.nan)
    count = int(known_values.sum())
    if count:
        ranks = scipy.stats.rankdata(values[known_values])
        shades[known_values] = (ranks - 1) / max(1, count - 1)
    return shades


EXPERIMENT = Experiment(
    "koopman2022",
    "meaning",
    "Credits of blocks against the loss of accuracy when a block is changed, LRP and gradients.",
    compute,
    judge,
    draw,
    models=("lenet5", "pooled_mlp"),
    known_models=("mnist_cnn",),
    images=1500,
    data=(networks.MNIST,),
    tiny={"models": (networks.TINY,), "images": 40},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
