"""Pooling to a given number of windows, which may overlap and differ in size by one."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfexplain.numerics import Tensor, expand, pull_back
from tfexplain.operations.base import Operation, Selection
from tfexplain.operations.calls import Call
from tfexplain.operations.opaque import Opaque
from tfexplain.operations.pooling import AveragePooling


class AdaptiveMaxPooling(Selection):
    """The maximum of each window, axis after axis; the first winner gets everything.

    Args:
        label: What `describe` prints.
        output_size: The number of windows along each spatial axis.
        channels_last: Whether the channels are the last axis; else they are the first.
        source: The Keras operation, or None.
    """

    attached = True

    def __init__(
        self,
        label: str,
        output_size: Sequence[int],
        channels_last: bool,
        source: keras.Operation | None = None,
    ) -> None:
        super().__init__(label, source=source)
        self.output_size = tuple(output_size)
        self.first_axis = 1 if channels_last else 2

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Reads the number of windows off; the sizes of the input have to be known."""
        known = _windows_of(call)
        return Opaque.from_call(call) if known is None else cls(*known)

    def _cells(self, x: Tensor) -> list[tuple[Tensor, np.ndarray, int]]:
        """Returns for each axis the tensor that is pooled along it, and the cells of windows."""
        steps = []
        for axis, count in enumerate(self.output_size, self.first_axis):
            cells = _cells(x.shape[axis], count)
            steps.append((x, cells, axis))
            x = tf.reduce_max(tf.gather(x, cells, axis=axis), axis=axis + 1)
        return [*steps, (x, np.empty(0), 0)]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the maximum of each window."""
        return self._cells(inputs[0])[-1][0]

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """A maximum of elements >= 0 is >= 0."""
        return inputs[0]

    def route(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Gives everything to the first winner along the last axis, and so on to the first."""
        for x, cells, axis in reversed(self._cells(inputs[0])[:-1]):
            inside = tf.gather(x, cells, axis=axis)
            # A window that is shorter than others repeats its last cell, which is never the first.
            first = tf.argmax(inside, axis=axis + 1)
            won = tf.one_hot(first, cells.shape[1], axis=axis + 1, dtype=relevance.dtype)
            parts = expand(won) * tf.expand_dims(relevance, axis + 2)
            (relevance,) = pull_back(
                lambda x, cells=cells, axis=axis: tf.gather(x, cells, axis=axis),
                [x],
                [parts],
                linear=True,
            )
        return (relevance,)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Routes to the winners."""
        return self.route(inputs, outputs, relevances[0])

    def average(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Returns the average of each window."""
        return _averages(inputs[0], self.output_size, self.first_axis)

    def share_as_average(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Shares in proportion to x_i, as if the windows were averaged."""
        average = AveragePooling(self.label, lambda x: self.average((x,), outputs), self.source)
        return average.in_proportion(inputs, (self.average(inputs, outputs),), relevance)


def adaptive_averaging(call: Call) -> Operation:
    """Averages of windows, in the precisions and formats that Keras does not pool in too."""
    known = _windows_of(call)
    if known is None:
        return Opaque.from_call(call)
    label, sizes, last, source = known
    return AveragePooling(label, lambda x: _averages(x, sizes, 1 if last else 2), source)


def _windows_of(call: Call) -> tuple[str, tuple[int, ...], bool, keras.Operation] | None:
    """Returns label, numbers of windows, whether channels are last, and the operation."""
    operation, shape = call.operation, call.inputs[0].shape
    last = (operation.data_format or keras.config.image_data_format()) == "channels_last"
    sizes = shape[1:-1] if last else shape[2:]
    counts = operation.output_size
    counts = (counts,) * len(sizes) if isinstance(counts, int) else tuple(counts)
    if None in sizes or None in counts:
        return None
    return type(operation).__name__, counts, last, operation


def _ends(size: int, count: int) -> list[tuple[int, int]]:
    """Returns where windows begin and end: floor(i size / count), ceil((i + 1) size / count)."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _cells(size: int, count: int) -> np.ndarray:
    """Returns the places of the cells of each window, (count, longest)."""
    ends = _ends(size, count)
    longest = max(end - start for start, end in ends)
    return np.array([[min(start + k, end - 1) for k in range(longest)] for start, end in ends])


def _averages(x: Tensor, counts: Sequence[int], first_axis: int) -> Tensor:
    """Returns the averages of windows, axis after axis."""
    for axis, count in enumerate(counts, first_axis):
        weights = np.zeros((x.shape[axis], count))
        for window, (start, end) in enumerate(_ends(x.shape[axis], count)):
            weights[start:end, window] = 1 / (end - start)
        averaged = tf.tensordot(x, tf.constant(weights, x.dtype), axes=[[axis], [0]])
        rank = len(x.shape)
        order = [*range(axis), rank - 1, *range(axis, rank - 1)]
        x = tf.transpose(averaged, order)
    return x
