"""What the experiments share: digits to fit and to hold out, kinds of blocks, measured credits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np
import xarray as xr
from keras import layers

from experiments import networks
from experiments.koopman2022.protocol import AS_THEY_ARE, PROTOCOLS, SCALES, Protocol, sizes
from experiments.runs import Task
from tfexplain import koopman

CONVOLUTION, DENSE, POOLING, OTHER = "convolution", "dense", "pooling", "other"
# The digit that fig. 4a shows.
SHOWN_CLASS = 5
_TYPES = {
    CONVOLUTION: (layers.Conv2D,),
    DENSE: (layers.Dense,),
    POOLING: (
        layers.AveragePooling2D,
        layers.MaxPooling2D,
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling2D,
    ),
}
BATCH_SIZE = 500
# The side of the images of smoke runs.
TINY_SIDE = 6
# What is kept of the Dataset of `koopman.credit`.
OF_BLOCKS = (
    "log_volume",
    "log_volume_per_dimension",
    "log_volume_fixed_rank",
    "log_volume_mean",
    "log_volume_std",
    "log_sensitivity",
    "rank",
    "residual",
    "one_step_error",
    "columns",
    "steps",
    "diverged",
    "collapsed",
    "energy_lost",
    "least_squares_log_volume",
    "least_squares_log_volume_per_dimension",
    "least_squares_rank",
    "least_squares_one_step_error",
)


@dataclass(frozen=True, eq=False)
class Digits:
    """Preprocessed images of a task, with their classes.

    Args:
        x: Images that operators are fitted on, (n, height, width, channels).
        y: Their classes, (n,).
        held_out: Further images.
        held_out_y: Their classes.
    """

    x: np.ndarray
    y: np.ndarray
    held_out: np.ndarray
    held_out_y: np.ndarray


def load(task: Task) -> keras.Model:
    """Returns the network of a task; for smoke runs one that is small enough to decompose."""
    if task.model != networks.TINY:
        return networks.load(task)
    model = keras.Sequential(
        [
            keras.Input((TINY_SIDE, TINY_SIDE, 1), name="input"),
            layers.Conv2D(4, 3, padding="same", name="conv1"),
            layers.Activation("relu", name="relu1"),
            layers.AveragePooling2D(2, name="pool1"),
            layers.Conv2D(6, 3, padding="same", name="conv2"),
            layers.Activation("relu", name="relu2"),
            layers.Flatten(name="flatten"),
            layers.Dense(12, name="fc3"),
            layers.Activation("relu", name="relu3"),
            layers.Dense(5, name="fc4"),
        ],
        name=networks.TINY,
    )
    generator = np.random.default_rng(task.request.seed)
    for variable in model.weights:
        size = np.sqrt(2 / max(1, np.prod(variable.shape[:-1])))
        variable.assign(generator.normal(0, size, variable.shape))
    return model


def digits(task: Task) -> Digits:
    """Draws images to fit on, as many as the request says, and others to hold out."""
    count = task.request.images
    more = sizes(task.request.tiny).held_out
    x, y = networks.images(replace(task, request=replace(task.request, images=count + more)))
    if task.model == networks.TINY:
        x = x[:, :TINY_SIDE, :TINY_SIDE, :1]
    return Digits(x[:count], y[:count], x[count:], y[count:])


def known(model: keras.Model, x: np.ndarray, y: np.ndarray) -> dict[int, int]:
    """Returns the first image of each class that the network classifies rightly.

    Args:
        model: The network.
        x: Images.
        y: Their classes.

    Returns:
        Class -> place of the image, by class; the first image for its class if all are wrong.
    """
    right = np.flatnonzero(predicted(model, x) == y)
    places = {}
    for place in right.tolist():
        places.setdefault(int(y[place]), place)
    return dict(sorted(places.items())) or {int(y[0]): 0}


def outputs(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Returns what a model makes of inputs, (n, *shape); `predict` takes long for few of them."""
    parts = [x[start : start + BATCH_SIZE] for start in range(0, len(x), BATCH_SIZE)]
    return np.concatenate([keras.ops.convert_to_numpy(model(part)) for part in parts])


def predicted(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Returns the classes that a network predicts, (n,)."""
    return outputs(model, x).argmax(axis=1)


def short(value: float) -> str:
    """Returns a number for a figure, three digits or whole; "none" for NaN."""
    if np.isnan(value):
        return "none"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def type_of(model: keras.Model, block: koopman.Block) -> str:
    """Returns what a block is: a convolution, a dense layer, a pooling, or none of these."""
    for name, classes in _TYPES.items():
        if any(isinstance(model.get_layer(layer), classes) for layer in block.layers):
            return name
    return OTHER


def measured(
    task: Task,
    model: keras.Model,
    x: np.ndarray,
    held_out: np.ndarray,
    *,
    kernels: Sequence[str] = (),
) -> xr.Dataset:
    """Measures the credits of all blocks, with and without unit variance between them.

    Args:
        task: Its protocol says how operators are fitted.
        model: The network, or a part of it.
        x: What operators are fitted on.
        held_out: What their errors are measured on.
        kernels: Definitions of kernel credits, for activations as they are.

    Returns:
        `OF_BLOCKS` (scale, block), the type of each block, and what there is of kernels (kernel,).
        Attributes say how it was fitted.
    """
    given = options(task, model, len(x))
    # One input has no variance.
    scales = list(SCALES) if len(x) > 1 else [AS_THEY_ARE]
    of_scales = [
        koopman.credit(
            model,
            x,
            held_out=held_out,
            normalize=SCALES[scale],
            kernels=kernels if scale == scales[0] else (),
            **given,
        )
        for scale in scales
    ]
    joined = xr.concat([one[list(OF_BLOCKS)] for one in of_scales], "scale", combine_attrs="drop")
    of_kernels = [name for name in of_scales[0] if str(name).startswith("kernel_")]
    types = [type_of(model, block) for block in koopman.blocks(model)]
    joined = joined.assign(of_scales[0][of_kernels])
    return joined.assign_coords(scale=scales, type=("block", types)).assign_attrs(
        described=str(PROTOCOLS[task.protocol]),
        fitted=len(x),
        held_out=len(held_out),
        repeats=int(given["repeats"]),
        max_dimension=given["max_dimension"] or 0,
    )


def options(task: Task, model: keras.Model, count: int) -> dict[str, object]:
    """Returns arguments of `koopman.credit`.

    Args:
        task: Its protocol says how operators are fitted.
        model: What is divided into blocks.
        count: Inputs that operators are fitted on. One input does not determine them (K11), and
            has a single principal component.
    """
    chosen = sizes(task.request.tiny)
    given = {
        **PROTOCOLS[task.protocol].options(),
        "repeats": chosen.repeats,
        "seed": task.request.seed,
        "batch_size": BATCH_SIZE,
    }
    if count == 1:
        return {**given, "max_dimension": None, "underdetermined": "minimum_norm"}
    widest = max(max(block.input_size, block.output_size) for block in koopman.blocks(model))
    return {
        **given,
        "repeats": chosen.repeats if widest <= chosen.max_dimension else chosen.few_repeats,
        "max_dimension": chosen.max_dimension,
        "max_snapshots": chosen.max_values // min(widest, chosen.max_dimension),
        # Smoke runs have too few digits.
        "underdetermined": "minimum_norm" if task.request.tiny else "raise",
    }


def fitted_on(protocol: Protocol, all_digits: Digits, place: int) -> np.ndarray:
    """Returns what operators are fitted on: one digit, or all that are not held out."""
    return all_digits.x[place : place + 1] if protocol.single else all_digits.x
