"""Pooling, over windows and over all positions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfexplain.compilation import is_one_vector
from tfexplain.numerics import (
    Tensor,
    expand,
    fold,
    pull_back,
    repeat,
    shape_of,
    unfold,
)
from tfexplain.operations.base import Operation, Selection
from tfexplain.operations.calls import Call, Replay
from tfexplain.operations.opaque import Opaque
from tfexplain.operations.structure import Rearrangement


class AveragePooling(Operation):
    """A linear map with fixed weights >= 0: average pooling, mean, sum, bilinear interpolation."""

    attached = True
    linear = True

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """An average of elements >= 0 is >= 0."""
        return inputs[0]

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Spreads the relevance with the weights."""
        return pull_back(self.forward, inputs, relevances, linear=True)

    def in_proportion(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Shares R_i = x_i w_ij R_j / sum_k x_k w_kj."""
        share = tf.math.divide_no_nan(relevance, expand(outputs[0]))
        return (expand(inputs[0]) * self.gradient(inputs, outputs, [share])[0],)


class MaxPooling(Selection):
    """Max pooling over windows; the first winner in row-major order of a window gets everything.

    Args:
        label: What `describe` prints.
        pool_size: Window, one integer per spatial axis.
        strides: One integer per spatial axis.
        padding: "valid" or "same".
        channels_last: Whether the channels are the last axis.
        source: The Keras operation.
    """

    attached = True

    def __init__(
        self,
        label: str,
        pool_size: Sequence[int],
        strides: Sequence[int],
        padding: str,
        channels_last: bool,
        source: keras.Operation,
    ) -> None:
        super().__init__(label, source=source)
        self.pool_size = tuple(pool_size)
        self.strides = tuple(strides)
        self.padding = padding
        self.channels_last = channels_last

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Reads the windows off the layer."""
        layer = call.operation
        last = layer.data_format == "channels_last"
        size, strides = layer.pool_size, layer.strides
        return cls(type(layer).__name__, size, strides, layer.padding, last, layer)

    def _last(self, x: Tensor, axes: int = 0) -> Tensor:
        """Moves channels to the end; `axes` counts additional leading axes."""
        return x if self.channels_last else channels_to_last(x, axes)

    def _back(self, x: Tensor, axes: int = 0) -> Tensor:
        return x if self.channels_last else channels_to_first(x, axes)

    def _pool(self, x: Tensor) -> Tensor:
        return pool(tf.nn.max_pool, x, self.pool_size, self.strides, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the maximum of each window."""
        return self._back(self._pool(self._last(x)))

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """A maximum of elements >= 0 is >= 0."""
        return inputs[0]

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Gives everything to the first winner, as TensorFlow does on ties in two dimensions."""
        x, y, relevance = self._last(inputs[0]), self._last(outputs[0]), relevances[0]
        relevance = self._last(relevance, 1)
        tiles = self.pool_size == self.strides and self.padding == "valid"
        has_kernel = len(self.pool_size) == 2
        if tiles and not (has_kernel and is_one_vector(relevance)):
            pulled = self._route_tiles(x, y, relevance)
        elif has_kernel:
            vectors = shape_of(relevance)[1]
            # The flat gradient kernel has no axis of vectors: x and y are repeated for it.
            many = [repeat(t, vectors) for t in (x, y)]
            pulled = tf.raw_ops.MaxPoolGrad(
                orig_input=many[0],
                orig_output=many[1],
                grad=fold(relevance),
                ksize=[1, *self.pool_size, 1],
                strides=[1, *self.strides, 1],
                padding=self.padding.upper(),
            )
            pulled = unfold(pulled, relevance)
        else:
            pulled = self._route_windows(x, y, relevance)
        return (self._back(pulled, 1),)

    def route(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Gives everything to the first winner."""
        return self.gradient(inputs, outputs, [relevance])

    def share_as_average(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Shares in proportion to x_i, as if the window were averaged."""
        average = AveragePooling(self.label, self._average, self.source)
        return average.in_proportion(inputs, (self.average(inputs, outputs),), relevance)

    def average(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Returns the average of each window."""
        return self._average(inputs[0])

    def _average(self, x: Tensor) -> Tensor:
        x = self._last(x)
        y = pool(tf.nn.avg_pool, x, self.pool_size, self.strides, self.padding)
        return self._back(y)

    def _route_tiles(self, x: Tensor, y: Tensor, relevance: Tensor) -> Tensor:
        """Windows that do not overlap: the winners are found once for all vectors."""
        counts = shape_of(y)[1:-1]
        batch, vectors = shape_of(relevance)[:2]
        parts, taken = [], None
        for offset in _offsets(self.pool_size):
            cells = tf.equal(self._cells(x, offset, counts), y)
            here = cells if taken is None else cells & ~taken
            taken = cells if taken is None else taken | cells
            parts.append(expand(tf.cast(here, relevance.dtype)) * relevance)
        for axis in reversed(range(len(self.pool_size))):
            size = self.pool_size[axis]
            parts = [
                tf.stack(parts[start : start + size], axis=3 + axis)
                for start in range(0, len(parts), size)
            ]
        covered = [count * size for count, size in zip(counts, self.pool_size, strict=True)]
        pulled = tf.reshape(parts[0], [batch, vectors, *covered, shape_of(x)[-1]])
        rest = [size - c for size, c in zip(shape_of(x)[1:-1], covered, strict=True)]
        if all(isinstance(r, int) and r == 0 for r in rest):
            return pulled
        return tf.pad(pulled, [[0, 0], [0, 0], *([0, r] for r in rest), [0, 0]])

    def _cells(self, x: Tensor, offset: tuple[int, ...], counts: list) -> Tensor:
        """Returns the cell at `offset` of every window."""
        index = [slice(None)]
        for here, count, step in zip(offset, counts, self.strides, strict=True):
            index.append(slice(here, here + (count - 1) * step + 1, step))
        return x[tuple(index)]

    def _route_windows(self, x: Tensor, y: Tensor, relevance: Tensor) -> Tensor:
        """Overlapping windows of rank 1 and 3, offset by offset in row-major order.

        TensorFlow's kernel for three axes gives the whole relevance to every tied cell.
        """
        counts = shape_of(y)[1:-1]
        before, padded = self._padded(x)
        taken = tf.zeros(tf.shape(y), tf.bool)
        total = None
        for offset in _offsets(self.pool_size):
            cells = functools.partial(self._cells, offset=offset, counts=counts)
            here = tf.equal(cells(padded), y) & ~taken
            taken = taken | here
            part = expand(tf.cast(here, relevance.dtype)) * relevance
            pulled = pull_back(cells, [padded], [part], linear=True)[0]
            total = pulled if total is None else total + pulled
        starts = [0, 0, *before, 0]
        return tf.slice(total, starts, [-1, -1, *shape_of(x)[1:-1], -1])

    def _padded(self, x: Tensor) -> tuple[list, Tensor]:
        sizes = shape_of(x)[1:-1]
        if self.padding == "valid":
            return [0] * len(sizes), x
        pads = []
        for size, window, step in zip(sizes, self.pool_size, self.strides, strict=True):
            need = (-(-size // step) - 1) * step + window - size
            need = tf.maximum(need, 0) if tf.is_tensor(need) else max(need, 0)
            pads.append([need // 2, need - need // 2])
        lowest = x.dtype.min
        return [pad[0] for pad in pads], tf.pad(x, [[0, 0], *pads, [0, 0]], constant_values=lowest)


class GlobalMaxPooling(Selection):
    """The maximum over axes; the first winner in row-major order gets everything.

    Attributes:
        splits_ties: All winners get the same instead, as in the gradient of TensorFlow's reduce_max
            and with it in innvestigate.
    """

    attached = True
    splits_ties: bool = False

    def __init__(
        self,
        label: str,
        axes: Sequence[int],
        function: Callable[[Tensor], Tensor],
        source: keras.Operation,
    ) -> None:
        super().__init__(label, function, source)
        self.axes = tuple(axes)

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Takes all axes of positions."""
        layer, rank = call.operation, len(call.inputs[0].shape)
        axes = range(1, rank - 1) if layer.data_format == "channels_last" else range(2, rank)
        return cls(type(layer).__name__, axes, Replay(layer, call.arguments), layer)

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """A maximum of elements >= 0 is >= 0."""
        return inputs[0]

    def route(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Gives everything to the first winner, or the same to all of them."""
        x = inputs[0]
        rank = len(x.shape)
        axes = sorted(axis % rank for axis in self.axes)
        others = [axis for axis in range(rank) if axis not in axes]
        order = others + axes
        moved = tf.transpose(x, order)
        sizes = shape_of(moved)
        flat = tf.reshape(moved, [*sizes[: len(others)], -1])
        count = shape_of(flat)[-1]
        if self.splits_ties:
            largest = tf.reduce_max(flat, axis=-1, keepdims=True)
            winner = tf.cast(tf.equal(flat, largest), relevance.dtype)
            winner /= tf.reduce_sum(winner, axis=-1, keepdims=True)
        else:
            winner = tf.one_hot(tf.argmax(flat, axis=-1), count, dtype=relevance.dtype)
        winner = tf.reshape(winner, sizes)
        winner = tf.transpose(winner, [order.index(axis) for axis in range(rank)])
        batch, vectors = shape_of(relevance)[:2]
        # With or without keepdims, the relevance has the sizes of the axes that remain.
        kept = [1 if axis in axes else shape_of(x)[axis] for axis in range(1, rank)]
        return (expand(winner) * tf.reshape(relevance, [batch, vectors, *kept]),)

    def share_as_average(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Shares in proportion to x_i, as if all positions were averaged."""
        average = AveragePooling(self.label, lambda x: self.average((x,), outputs), self.source)
        return average.in_proportion(inputs, (self.average(inputs, outputs),), relevance)

    def average(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Returns the average over the axes, shaped as the output."""
        keepdims = len(outputs[0].shape) == len(inputs[0].shape)
        return tf.reduce_mean(inputs[0], axis=list(self.axes), keepdims=keepdims)


def window_average(call: Call) -> Operation:
    """Average pooling, also in the precisions and formats that its layer does not run in."""
    layer = call.operation
    last = layer.data_format == "channels_last"

    def function(x: Tensor) -> Tensor:
        y = x if last else channels_to_last(x)
        y = pool(tf.nn.avg_pool, y, layer.pool_size, layer.strides, layer.padding)
        return y if last else channels_to_first(y)

    return AveragePooling(type(layer).__name__, function, layer)


def _axes(call: Call) -> tuple[int, ...] | None:
    """Returns the axes of a reduction; None if that of the samples is among them."""
    axes = getattr(call.operation, "axis", None)
    axes = (axes,) if isinstance(axes, int) else axes
    rank = len(call.inputs[0].shape)
    return None if axes is None or any(axis % rank == 0 for axis in axes) else tuple(axes)


def averaging(call: Call) -> Operation:
    """`keras.ops.mean` and `sum`."""
    return Opaque.from_call(call) if _axes(call) is None else AveragePooling.from_call(call)


def maximum_over_axes(call: Call) -> Operation:
    """`keras.ops.max`."""
    axes, operation = _axes(call), call.operation
    if axes is None:
        return Opaque.from_call(call)
    return GlobalMaxPooling("Max", axes, Replay(operation, call.arguments), operation)


def up_sampling(call: Call) -> Operation:
    """Copies or averages; other interpolations overshoot: some of their weights are negative."""
    interpolation = getattr(call.operation, "interpolation", "nearest")
    known = {"nearest": Rearrangement, "bilinear": AveragePooling}
    return known.get(interpolation, Opaque).from_call(call)


def pool(
    function: Callable, x: Tensor, size: Sequence[int], strides: Sequence[int], padding: str
) -> Tensor:
    """Pools windows of channels-last x by `tf.nn.max_pool` or `tf.nn.avg_pool`.

    For three axes there is no float64 kernel: then the last two are pooled first.
    """
    padding = padding.upper()
    if len(size) < 3 or x.dtype != tf.float64:
        return function(x, size, strides, padding)
    batch, depth, *plane, channels = shape_of(x)
    y = tf.reshape(x, [batch * depth, *plane, channels])
    y = function(y, size[1:], strides[1:], padding)
    height, width = shape_of(y)[1:3]
    y = tf.reshape(y, [batch, depth, height * width, channels])
    y = function(y, [size[0], 1], [strides[0], 1], padding)
    return tf.reshape(y, [batch, shape_of(y)[1], height, width, channels])


def channels_to_last(x: Tensor, axes: int = 0) -> Tensor:
    """Moves the channel axis from position 1 + `axes` to the end."""
    rank = len(x.shape)
    return tf.transpose(x, [*range(1 + axes), *range(2 + axes, rank), 1 + axes])


def channels_to_first(x: Tensor, axes: int = 0) -> Tensor:
    """Moves the channel axis from the end to position 1 + `axes`."""
    rank = len(x.shape)
    return tf.transpose(x, [*range(1 + axes), rank - 1, *range(1 + axes, rank - 1)])


def _offsets(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    offsets: list[tuple[int, ...]] = [()]
    for size in sizes:
        offsets = [(*offset, here) for offset in offsets for here in range(size)]
    return offsets
