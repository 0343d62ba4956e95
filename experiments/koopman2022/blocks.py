"""What the experiments share: digits to fit and to hold out, kinds of blocks, measured credits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import xarray as xr
from keras import layers

from experiments import networks
from experiments.koopman2022.protocol import PROTOCOLS, SCALES, Protocol, sizes
from experiments.runs import Part
from tfexplain import koopman

CONVOLUTION, DENSE, POOLING, OTHER = "convolution", "dense", "pooling", "other"
# The digit that fig. 4a shows.
SHOWN_CLASS = 5
# Share of the drawn digits that operators are fitted on; the others are held out.
FITTED = 0.8
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
    """Preprocessed images of a part, with their classes.

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


def digits(part: Part) -> Digits:
    """Draws images and divides them.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if part.settings.images < 2:
        raise ValueError(
            f"There is {part.settings.images} image, and operators are judged on others than they "
            "are fitted on. Give --images 2 or more."
        )
    x, y = networks.images(part)
    cut = min(len(x) - 1, max(1, round(FITTED * len(x))))
    return Digits(x[:cut], y[:cut], x[cut:], y[cut:])


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
    found = {}
    for place in right.tolist():
        found.setdefault(int(y[place]), place)
    return dict(sorted(found.items())) or {int(y[0]): 0}


def predicted(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Returns the classes that a network predicts, (n,)."""
    return model.predict(x, batch_size=500, verbose=0).argmax(axis=1)


def type_of(model: keras.Model, block: koopman.Block) -> str:
    """Returns what a block is: a convolution, a dense layer, a pooling, or none of these."""
    for name, classes in _TYPES.items():
        if any(isinstance(model.get_layer(layer), classes) for layer in block.layers):
            return name
    return OTHER


def measured(
    part: Part,
    model: keras.Model,
    x: np.ndarray,
    held_out: np.ndarray,
    *,
    scales: Sequence[str] = tuple(SCALES),
    kernels: Sequence[str] = (),
) -> xr.Dataset:
    """Measures the credits of all blocks, with and without unit variance between them.

    Args:
        part: Its protocol says how operators are fitted.
        model: The network, or a part of it.
        x: What operators are fitted on.
        held_out: What their errors are measured on.
        scales: Keys of `SCALES`.
        kernels: Definitions of kernel credits, for the first scale.

    Returns:
        `OF_BLOCKS` (scale, block), the type of each block, and what there is of kernels (kernel,).
    """
    found = [
        koopman.credit(
            model,
            x,
            held_out=held_out,
            normalize=SCALES[scale],
            kernels=kernels if scale == scales[0] else (),
            **options(part, len(x)),
        )
        for scale in scales
    ]
    joined = xr.concat([one[list(OF_BLOCKS)] for one in found], "scale", combine_attrs="drop")
    of_kernels = [name for name in found[0] if str(name).startswith("kernel_")]
    types = [type_of(model, block) for block in koopman.blocks(model)]
    return joined.assign(found[0][of_kernels]).assign_coords(
        scale=list(scales), type=("block", types)
    )


def options(part: Part, count: int) -> dict[str, object]:
    """Returns arguments of `koopman.credit`.

    Args:
        part: Its protocol says how operators are fitted.
        count: Inputs that they are fitted on. One input does not determine them (K11), and has a
            single principal component.
    """
    chosen = sizes(part.settings.tiny)
    # Operators of many digits have to be determined; smoke runs have too few of them.
    determined = count > 1 and not part.settings.tiny
    return {
        **PROTOCOLS[part.protocol].options(),
        "repeats": chosen.repeats,
        "max_dimension": None if count == 1 else chosen.max_dimension,
        "underdetermined": "raise" if determined else "minimum_norm",
        "seed": part.settings.seed,
    }


def fitted_on(protocol: Protocol, found: Digits, place: int) -> np.ndarray:
    """Returns what operators are fitted on: one digit, or all that are not held out."""
    return found.x[place : place + 1] if protocol.single else found.x
