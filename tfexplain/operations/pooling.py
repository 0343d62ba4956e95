"""Pooling, over windows and over all positions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfexplain.compilation import is_one_vector
from tfexplain.numerics import (
    Tensor,
    expand,
    fold,
    only_where,
    pull_back,
    repeat,
    shape_of,
    unfold,
)
from tfexplain.operations.base import Operation, Selection, first_winners
from tfexplain.operations.calls import Call, Replay
from tfexplain.operations.opaque import Opaque

# Cells of a window that are looked at one by one where TensorFlow has a kernel too.
MOST_CELLS = 64


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
        return pull_back(self.folded(relevances[0]).forward, inputs, relevances, linear=True)

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
        by_kernel = self._has_kernel and is_one_vector(relevances[0])
        cells = None if by_kernel else self.candidates(inputs)
        if cells is not None:
            # The winners are found once for all vectors.
            winners = first_winners(cells, outputs[0])
            return self.placed([only_where(won, relevances[0]) for won in winners], inputs)
        x, y, relevance = self._last(inputs[0]), self._last(outputs[0]), relevances[0]
        relevance = self._last(relevance, 1)
        if self._has_kernel:
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

    @property
    def _has_kernel(self) -> bool:
        """Whether TensorFlow has a gradient kernel that gives everything to the first winner."""
        return len(self.pool_size) == 2

    def candidates(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """Returns the cells of windows that do not overlap, in row-major order of a window."""
        many = self._has_kernel and math.prod(self.pool_size) > MOST_CELLS
        if self.pool_size != self.strides or self.padding != "valid" or many:
            return None
        x = inputs[0]
        first = 1 if self.channels_last else 2
        inside, apart, places = [slice(None)] * first, shape_of(x)[:first], []
        for size, window in zip(shape_of(x)[first:], self.pool_size, strict=False):
            count = size // window
            inside.append(slice(count * window))
            apart += [count, window]
        if self.channels_last:
            apart.append(shape_of(x)[-1])
        # A view with an axis for each place of a window; steps would make slow copies.
        apart = tf.reshape(x[tuple(inside)], apart)
        for offset in _offsets(self.pool_size):
            place = (part for here in offset for part in (slice(None), here))
            places.append(apart[(*[slice(None)] * first, *place)])
        return places

    def placed(self, parts: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Puts windows together; what lies in none of them gets zeros."""
        x, parts = inputs[0], list(parts)
        # Behind the axes of samples and vectors, and perhaps of channels.
        first = 2 if self.channels_last else 3
        sizes = shape_of(parts[0])
        rests = [[0, 0]] * len(sizes)
        for axis in reversed(range(len(self.pool_size))):
            window = self.pool_size[axis]
            parts = [
                tf.stack(parts[start : start + window], axis=first + axis + 1)
                for start in range(0, len(parts), window)
            ]
            sizes[first + axis] *= window
            rests[first + axis] = [0, shape_of(x)[first + axis - 1] - sizes[first + axis]]
        pulled = tf.reshape(parts[0], sizes)
        if all(isinstance(rest, int) and rest == 0 for _, rest in rests):
            return (pulled,)
        return (tf.pad(pulled, rests),)

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
        total = None
        offsets = [
            functools.partial(self._cells, offset=offset, counts=counts)
            for offset in _offsets(self.pool_size)
        ]
        winners = first_winners([cells(padded) for cells in offsets], y)
        for cells, won in zip(offsets, winners, strict=True):
            pulled = pull_back(cells, [padded], [only_where(won, relevance)], linear=True)[0]
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
        flat = tf.reshape(moved if self.largest else -moved, [*sizes[: len(others)], -1])
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


class GlobalMinPooling(GlobalMaxPooling):
    """The minimum over axes; the first winner in row-major order gets everything."""

    largest = False


class LogSumExp(Operation):
    """y = log sum exp x over axes, a smooth maximum.

    It is exp, a sum and log. Methods of relevance pass it through both functions of single
    elements, and share it at the sum in proportion: R_i = s_i R with s the softmax, which is the
    gradient, and conserves relevance.

    Args:
        label: What `describe` prints.
        axes: Over which it sums, not that of the samples.
        keepdims: Whether they stay as axes of length one.
        source: The Keras operation, or None.
    """

    def __init__(
        self,
        label: str,
        axes: Sequence[int],
        keepdims: bool = False,
        source: keras.Operation | None = None,
    ) -> None:
        super().__init__(label, source=source)
        self.axes, self.keepdims = tuple(axes), keepdims

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Takes the axes of the operation."""
        axes, operation = _axes(call), call.operation
        if axes is None:
            return Opaque.from_call(call)
        return cls(type(operation).__name__, axes, operation.keepdims, operation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the logarithm."""
        return tf.reduce_logsumexp(inputs[0], axis=self.axes, keepdims=self.keepdims)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Multiplies by the softmax."""
        (x,), (relevance,) = inputs, relevances
        share = tf.exp(x - self.spread(expand(outputs[0]), x)[:, 0])
        return (expand(share) * self.spread(relevance, x),)

    def spread(self, relevance: Tensor, x: Tensor) -> Tensor:
        """Gives relevance of outputs (batch, num_vectors, *shape) axes of length one for x."""
        rank = len(x.shape)
        axes = [axis % rank for axis in self.axes]
        sizes = [1 if axis in axes else size for axis, size in enumerate(shape_of(x))]
        return tf.reshape(relevance, [*shape_of(relevance)[:2], *sizes[1:]])


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
    """`keras.ops.max` and `amax`; with an initial value, that may be the largest."""
    return _over_axes(call, GlobalMaxPooling, "Max")


def minimum_over_axes(call: Call) -> Operation:
    """`keras.ops.min` and `amin`."""
    return _over_axes(call, GlobalMinPooling, "Min")


def _over_axes(call: Call, kind: type[GlobalMaxPooling], label: str) -> Operation:
    axes, operation = _axes(call), call.operation
    if axes is None or getattr(operation, "initial", None) is not None:
        return Opaque.from_call(call)
    return kind(label, axes, Replay(operation, call.arguments), operation)


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
