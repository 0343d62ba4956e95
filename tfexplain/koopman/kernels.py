"""Credit of single kernels of convolutions, by two definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers

from tfexplain.koopman.coordinates import Coordinates, coordinates_of
from tfexplain.koopman.fitting import FitOptions, Fitted, fit_block, snapshot_budget
from tfexplain.koopman.operators import Volume, volume
from tfexplain.koopman.partition import Block
from tfexplain.operations import (
    Activation,
    Affine,
    AveragePooling,
    ConvolutionLinear,
    MaxPooling,
    Operation,
    Scaling,
)

# Behind its convolution a block with kernels holds only what keeps channels apart, in their place.
_KEEPS_CHANNELS = (Affine, AveragePooling, MaxPooling, Scaling)
_KEEPS_LAST_AXIS = tuple(
    getattr(layers, f"{name}{rank}D")
    for name in ("ZeroPadding", "Cropping", "UpSampling")
    for rank in (1, 2, 3)
)

Encode = Callable[[np.ndarray], np.ndarray]


def num_kernels(block: Block) -> int:
    """Returns the number of kernels of a block: of its last convolution, in a row of layers.

    Rows of an operator belong to a kernel only where no layer behind it mixes or moves channels,
    which are the last axis; other blocks have none.
    """
    if len(block.output_shape) < 2 or any(len(call.inputs) != 1 for call in block.calls):
        return 0
    behind: list[Operation] = []
    for call in reversed(block.calls):
        if isinstance(call.operation, ConvolutionLinear):
            last = getattr(call.operation.source, "data_format", "channels_last")
            apart = all(map(_keeps_channels, behind)) and last == "channels_last"
            return call.outputs[0].shape[-1] if apart else 0
        behind.append(call.operation)
    return 0


def _keeps_channels(operation: Operation) -> bool:
    if isinstance(operation, Activation):
        return not operation.joint
    return isinstance(operation, _KEEPS_CHANNELS) or isinstance(operation.source, _KEEPS_LAST_AXIS)


def row_volumes(
    block: Block, matrix: np.ndarray, outputs: Coordinates, fit_options: FitOptions
) -> list[Volume]:
    """Returns the volume of the rows of an operator that belong to each output channel.

    Args:
        block: The block.
        matrix: Its operator in coordinates, (q, p).
        outputs: Coordinates of its output.
        fit_options: How operators are fitted.
    """
    places = np.arange(block.output_size).reshape(block.output_shape)
    volumes = []
    for channel in range(block.output_shape[-1]):
        rows = places[..., channel].ravel()
        part = matrix[rows] if outputs.components is None else outputs.components[rows] @ matrix
        volumes.append(volume(part, fit_options.rounding_of(part)))
    return volumes


def fit_kernel(
    run: Callable[[np.ndarray, Encode], np.ndarray],
    start: np.ndarray,
    maps: np.ndarray,
    narrowest: int,
    name: str,
    options: dict[str, Any],
    fit_options: FitOptions,
    generator: Callable[[int], np.random.Generator],
) -> tuple[Fitted | None, str]:
    """Fits the way from the input maps of a convolution to one output channel, as a block.

    Args:
        run: Function of input coordinates (n, p) and of an encoding of maps of the channel,
            (n, *sizes), that returns their coordinates.
        start: Inputs, (count, p).
        maps: The channel's maps of these, (count, *sizes).
        narrowest: The least width inside the block.
        name: What notes call it.
        options: The options of `coordinates_of`.
        fit_options: How operators are fitted.
        generator: Function of the number of the repeat.

    Returns:
        The operators, or None where the data do not determine them, and a note.
    """
    outputs = coordinates_of(maps, **options)
    budget = snapshot_budget(name, start.shape[1], outputs.size, narrowest, len(start), fit_options)
    if budget.note and fit_options.underdetermined == "raise":
        return None, budget.note
    fitted = fit_block(
        lambda z: run(z, outputs.encode),
        start,
        outputs.encode(maps),
        budget,
        fit_options,
        generator,
    )
    return fitted, budget.note
