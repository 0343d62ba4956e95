"""Credit of single kernels of convolutions, by two definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfexplain.koopman.coordinates import Coordinates, coordinates_of
from tfexplain.koopman.fitting import Fitted, Settings, fit_block, plan
from tfexplain.koopman.operators import Volume, volume
from tfexplain.koopman.partition import Block
from tfexplain.operations import (
    Activation,
    Affine,
    AveragePooling,
    ConvolutionLinear,
    MaxPooling,
    Rearrangement,
    Scaling,
)

# Beside its convolution a block with kernels holds only what keeps channels apart.
_KEEPS_CHANNELS = (Affine, AveragePooling, MaxPooling, Rearrangement, Scaling)


def num_kernels(block: Block) -> int:
    """Returns the number of kernels of a block: a single convolution in a row, else 0.

    Rows of an operator belong to a kernel only where no other layer mixes channels.
    """
    convolutions = [c for c in block.calls if isinstance(c.operation, ConvolutionLinear)]
    if len(convolutions) != 1 or len(block.output_shape) < 2:
        return 0
    (call,) = convolutions
    others = [c.operation for c in block.calls if c is not call]
    apart = all(
        isinstance(operation, _KEEPS_CHANNELS)
        or (isinstance(operation, Activation) and not operation.joint)
        for operation in others
    )
    single = all(len(c.inputs) == 1 for c in block.calls)
    last = getattr(call.operation.source, "data_format", "channels_last") == "channels_last"
    channels = call.outputs[0].shape[-1]
    return channels if apart and single and last and block.output_shape[-1] == channels else 0


def row_volumes(block: Block, matrix: np.ndarray, outputs: Coordinates) -> list[Volume]:
    """Returns the volume of the rows of an operator that belong to each output channel.

    Args:
        block: The block.
        matrix: Its operator in coordinates, (q, p).
        outputs: Coordinates of its output.
    """
    places = np.arange(block.output_size).reshape(block.output_shape)
    found = []
    for channel in range(block.output_shape[-1]):
        rows = places[..., channel].ravel()
        part = matrix[rows] if outputs.components is None else outputs.components[rows] @ matrix
        found.append(volume(part))
    return found


def fit_kernel(
    run: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    maps: np.ndarray,
    narrowest: int,
    name: str,
    options: dict[str, Any],
    settings: Settings,
    generator: Callable[[int], np.random.Generator],
) -> tuple[Fitted | None, str]:
    """Fits the way from the input maps of a convolution to one output channel, as a block.

    Args:
        run: Function from input coordinates (n, p) to maps of the channel, (n, *sizes).
        start: Inputs, (count, p).
        maps: The channel's maps of these, (count, *sizes).
        narrowest: The least width inside the block.
        name: What notes call it.
        options: Of `coordinates_of`.
        settings: Of the run.
        generator: Function of the number of the repeat.

    Returns:
        The operators, or None where the data do not determine them, and a note.
    """
    outputs = coordinates_of(maps, **options)
    planned = plan(name, start.shape[1], outputs.size, narrowest, len(start), settings)
    if planned.note and settings.underdetermined == "raise":
        return None, planned.note
    fitted = fit_block(
        lambda z: outputs.encode(run(z)),
        start,
        outputs.encode(maps),
        planned,
        settings,
        generator,
    )
    return fitted, planned.note
