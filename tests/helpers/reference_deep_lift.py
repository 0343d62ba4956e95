"""DeepLIFT in NumPy, one sample and one multiplier at a time, from Shrikumar et al. (2017).

A network is a chain of `Linear` (a dense matrix, which a convolution is too) and `Function`. All
tensors are flat. The forward pass keeps, for each tensor, the value at the baseline and the
positive and the negative part of its difference; the backward pass keeps a multiplier of each part.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

RESCALE, REVEAL_CANCEL = "rescale", "reveal_cancel"


@dataclasses.dataclass(frozen=True)
class Linear:
    """y = x W + b, W of shape (inputs, outputs)."""

    matrix: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class Function:
    """y = f(x) for single elements."""

    rule: str
    value: Callable = lambda x: np.maximum(x, 0.0)
    slope: Callable = lambda x: (x > 0) * 1.0


@dataclasses.dataclass
class Reading:
    """What is known of one tensor after both passes."""

    contribution: np.ndarray
    multiplier: np.ndarray


def convolution_matrix(kernel, bias, shape, stride=1):
    """Returns the `Linear` of a two-dimensional convolution without padding, channels last."""
    height, width, channels = shape
    rows, columns, _, filters = kernel.shape
    tall, wide = (height - rows) // stride + 1, (width - columns) // stride + 1
    matrix = np.zeros((height, width, channels, tall, wide, filters))
    for i, j in np.ndindex(tall, wide):
        for k, n in np.ndindex(rows, columns):
            matrix[i * stride + k, j * stride + n, :, i, j, :] += kernel[k, n]
    size = height * width * channels
    return Linear(matrix.reshape(size, -1), np.tile(bias, tall * wide))


def slope_between(function, start, end):
    """(f(end) - f(start)) / (end - start), or f' where they coincide."""
    found = np.empty_like(end)
    for index in np.ndindex(end.shape):
        step = end[index] - start[index]
        rise = function.value(end[index]) - function.value(start[index])
        found[index] = rise / step if step != 0 else function.slope(start[index])
    return found


def part_slopes(step, x0, above, below):
    """How much of the output's parts each unit of the input's parts is."""
    if step.rule == RESCALE:
        whole = slope_between(step, x0, x0 + above + below)
        return whole, whole
    # The positive part acts first, or after the negative one, and the other way round.
    alone, after = slope_between(step, x0, x0 + above), x0 + below
    up = (alone + slope_between(step, after, after + above)) / 2
    alone, after = slope_between(step, x0, x0 + below), x0 + above
    down = (alone + slope_between(step, after, after + below)) / 2
    return up, down


def pull(matrix, difference, above, below):
    """Multipliers of the inputs of a linear layer, from those of its outputs' two parts."""
    found = np.zeros(len(difference))
    for i, j in np.ndindex(matrix.shape):
        product = matrix[i, j] * difference[i]
        chosen = (above[j] + below[j]) / 2
        if product > 0:
            chosen = above[j]
        elif product < 0:
            chosen = below[j]
        found[i] += matrix[i, j] * chosen
    return found


def deep_lift(steps, x, x0, relevance):
    """Returns one `Reading` for the input and for the output of each step but the last.

    Args:
        steps: The chain.
        x: One sample, flat.
        x0: Its baseline.
        relevance: Multiplier of both parts of the output.
    """
    # The difference itself comes from the values, which know exactly where it is zero.
    values, base = x, x0
    above, below = np.maximum(x - x0, 0.0), np.minimum(x - x0, 0.0)
    tensors = [(base, values - base, above, below)]
    for step in steps:
        if isinstance(step, Linear):
            products = step.matrix * (values - base)[:, None]
            above = np.maximum(products, 0.0).sum(axis=0)
            below = np.minimum(products, 0.0).sum(axis=0)
            values, base = (v @ step.matrix + step.bias for v in (values, base))
        else:
            up, down = part_slopes(step, base, above, below)
            above, below = up * above, down * below
            values, base = step.value(values), step.value(base)
        tensors.append((base, values - base, above, below))

    readings = []
    up, down = relevance, relevance
    for step, (base, moved, above, below) in zip(steps[::-1], tensors[-2::-1], strict=True):
        if isinstance(step, Linear):
            up = down = pull(step.matrix, moved, up, down)
        else:
            slopes = part_slopes(step, base, above, below)
            up, down = up * slopes[0], down * slopes[1]
        contribution, multiplier = up * above + down * below, (up + down) / 2
        where = moved != 0
        multiplier[where] = contribution[where] / moved[where]
        readings.append(Reading(contribution, multiplier))
    return readings[::-1]


def ablated(steps, x, x0, relevance, definition):
    """Multipliers of positive and of negative differences at the input and after each step.

    Args:
        steps: The chain; its functions are rescaled.
        x: One sample, flat.
        x0: Its baseline.
        relevance: Multiplier at the output.
        definition: "as_run" (W+ for both) or "as_written" (W+ and W-, decoupled).
    """
    pairs = [(x, x0)]
    for step in steps:
        linear = isinstance(step, Linear)
        pairs.append(
            tuple(p @ step.matrix + step.bias if linear else step.value(p) for p in pairs[-1])
        )
    up, down = relevance, relevance
    found = []
    for step, (here, base) in zip(steps[::-1], pairs[-2::-1], strict=True):
        if not isinstance(step, Linear):
            slope = slope_between(step, base, here)
            up, down = slope * up, slope * down
        elif definition == "as_run":
            up = down = np.maximum(step.matrix, 0.0) @ up
        else:
            up = (here > base) * (np.maximum(step.matrix, 0.0) @ up)
            down = (here < base) * (np.minimum(step.matrix, 0.0) @ down)
        found.append((up, down))
    return found[::-1]
