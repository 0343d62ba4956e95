"""Operations that move, copy, drop, join or pad elements without computing, and table look-ups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfexplain.numerics import Tensor, only_where, pull_back, shape_of, sum_to_shape
from tfexplain.operations.base import Movement, Operation
from tfexplain.operations.calls import Call, Slot
from tfexplain.operations.opaque import Opaque
from tfexplain.operations.weights import Weights, weight_of


class Rearrangement(Movement):
    """Reshape, transpose, pad with zeros, crop, repeat and the like: a replayed function."""

    attached = True

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Refuses indices that are tensors themselves."""
        indexed = len(call.inputs) > 1 and not all(node.floating for node in call.inputs)
        return Opaque.from_call(call) if indexed else super().from_call(call)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns the transposed map of the relevance."""
        return pull_back(self.folded(relevances[0]).forward, inputs, relevances, linear=True)


class Reshaping(Rearrangement):
    """A reshape, whose inverse is a reshape."""

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Flatten moves the channels first where they come first: it then does more than that."""
        moves = getattr(call.operation, "_channels_first", False)
        return Rearrangement.from_call(call) if moves else super().from_call(call)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Reshapes the relevance to the input's shape."""
        batch, vectors = shape_of(relevances[0])[:2]
        return (tf.reshape(relevances[0], [batch, vectors, *shape_of(inputs[0])[1:]]),)


class ConstantPadding(Movement):
    """Pads with a constant, which is no element of an input: its relevance reaches nobody.

    Args:
        label: What `describe` prints.
        paddings: For each axis, how much is added in front and behind; nothing along the first.
        constant: The number that is added.
        source: The Keras operation, or None.
    """

    def __init__(
        self,
        label: str,
        paddings: Sequence[Sequence[int]],
        constant: float,
        source: keras.Operation | None = None,
    ) -> None:
        super().__init__(label, source=source)
        self.paddings = [list(pair) for pair in paddings]
        self.constant = constant

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the padded tensor."""
        return tf.pad(inputs[0], self.paddings, constant_values=self.constant)

    def moved(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Pads with zeros."""
        return tf.pad(values[0], self.paddings)

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if the constant is >= 0, too."""
        return inputs[0] and self.constant >= 0

    def mirrored(self) -> Operation:
        """It pads with the constant times -1."""
        return ConstantPadding(self.label, self.paddings, -self.constant, self.source)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Takes the padding away."""
        sizes = shape_of(inputs[0])
        inside = (
            slice(before, before + size)
            for (before, _), size in zip(self.paddings[1:], sizes[1:], strict=True)
        )
        return (relevances[0][(slice(None), slice(None), *inside)],)


class Choice(Movement):
    """Each element is that of one of two tensors, as a condition says that the input does not move.

    Args:
        label: What `describe` prints.
        condition: Where the first is chosen, an array; None if the first input says it.
        constants: For each of the two, a number or array, or None if it is a tensor.
        source: The Keras operation, or None.
    """

    # The bounds of what is chosen are not those of one input.
    transparent = False

    def __init__(
        self,
        label: str,
        condition: Any,
        constants: tuple[Any, Any] = (None, None),
        source: keras.Operation | None = None,
    ) -> None:
        super().__init__(label, source=source)
        self.condition, self.constants = condition, constants

    def _chosen(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns where the first is chosen, boolean."""
        condition = inputs[0] if self.condition is None else tf.convert_to_tensor(self.condition)
        return tf.cast(condition, tf.bool)

    def _pair(self, tensors: Sequence[Tensor], constants: Sequence[Any]) -> list[Tensor]:
        """Returns both in their order: tensors, of which the last are given, and constants."""
        given = iter(tensors[len(tensors) - sum(c is None for c in constants) :])
        dtype = tensors[-1].dtype
        return [next(given) if c is None else tf.cast(c, dtype) for c in constants]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns what is chosen."""
        return tf.where(self._chosen(inputs), *self._pair(inputs, self.constants))

    def moved(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Chooses among values, and zeros where a constant is chosen."""
        zeros = [None if constant is None else 0 for constant in self.constants]
        return tf.where(self._chosen(inputs), *self._pair(values, zeros))

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if the tensors and the constants are >= 0."""
        constants = [np.asarray(c) for c in self.constants if c is not None]
        tensors = inputs[len(inputs) - 2 + len(constants) :]
        return all(tensors) and all((c >= 0).all() for c in constants)

    def mirrored(self) -> Operation:
        """It has the constants times -1."""
        first, second = (None if c is None else -np.asarray(c) for c in self.constants)
        return Choice(self.label, self.condition, (first, second), self.source)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Sends relevance to what was chosen; none to the condition."""
        chosen = tf.broadcast_to(self._chosen(inputs), tf.shape(outputs[0]))
        sent = [only_where(where, relevances[0]) for where in (chosen, ~chosen)]
        parts = [r for r, constant in zip(sent, self.constants, strict=True) if constant is None]
        tensors = inputs[len(inputs) - len(parts) :]
        results = [
            sum_to_shape(part, x.shape.as_list()) for part, x in zip(parts, tensors, strict=True)
        ]
        if self.condition is None:
            results.insert(0, _no_relevance(inputs[0], relevances[0]))
        return tuple(results)


class Condition(Operation):
    """Booleans made of integers and booleans: no relevance reaches them."""

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Refuses what compares floating numbers, which the input moves."""
        decided = not any(node.floating for node in call.inputs)
        booleans = all(node.dtype == "bool" for node in call.outputs)
        return super().from_call(call) if decided and booleans else Opaque.from_call(call)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns zeros."""
        return tuple(_no_relevance(x, relevances[0]) for x in inputs)


def _no_relevance(x: Tensor, relevance: Tensor) -> Tensor:
    return tf.zeros([*shape_of(relevance)[:2], *shape_of(x)[1:]], relevance.dtype)


class Concatenation(Movement):
    """Joins tensors along one axis; relevance is taken apart again."""

    def __init__(self, label: str, axis: int, source: keras.Operation) -> None:
        super().__init__(label, source=source)
        self.axis = axis

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Joins tensors only, and along another axis than that of the samples."""
        axis = getattr(call.operation, "axis", -1)
        if axis is None or axis % len(call.outputs[0].shape) == 0 or not call.only_tensors:
            return Opaque.from_call(call)
        return cls(type(call.operation).__name__, axis, call.operation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the joined tensor."""
        return tf.concat(inputs, axis=self.axis)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Splits the relevance as the inputs were joined."""
        axis = self.axis % len(inputs[0].shape)
        sizes = [shape_of(x)[axis] for x in inputs]
        return tuple(tf.split(relevances[0], sizes, axis=axis + 1))


class MergedTime(Movement):
    """Merges the axes of samples and time, (batch, time, *shape) -> (batch * time, *shape)."""

    attached = True

    def forward(self, x: Tensor) -> Tensor:
        """Returns each point of time as a sample."""
        batch, time, *sizes = shape_of(x)
        return tf.reshape(x, [batch * time, *sizes])

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Takes (batch * time, num_vectors, *shape) apart again."""
        batch, time, *sizes = shape_of(inputs[0])
        vectors = shape_of(relevances[0])[1]
        apart = tf.reshape(relevances[0], [batch, time, vectors, *sizes])
        return (_exchanged(apart),)


class SplitTime(Movement):
    """Takes the axes of samples and time apart again, whose sizes are its operand."""

    attached = True

    def forward(self, x: Tensor) -> Tensor:
        """Returns (batch, time, *shape)."""
        batch, time = tf.unstack(self.operands[0])
        return tf.reshape(x, [batch, time, *shape_of(x)[1:]])

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Merges (batch, num_vectors, time, *shape) to (batch * time, num_vectors, *shape)."""
        vectors = shape_of(relevances[0])[1]
        merged = [shape_of(inputs[0])[0], vectors, *shape_of(inputs[0])[1:]]
        return (tf.reshape(_exchanged(relevances[0]), merged),)


def _exchanged(relevance: Tensor) -> Tensor:
    """Exchanges the second and the third axis."""
    return tf.transpose(relevance, [0, 2, 1, *range(3, len(relevance.shape))])


class Lookup(Operation):
    """Embedding: an integer selects a row of a table.

    Args:
        layer: The Keras layer, or the table as weights.
        recoded: What makes the number of the row of a token; None if that is the token.
    """

    def __init__(
        self,
        layer: keras.layers.Embedding | Weights,
        recoded: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__("Embedding", source=layer)
        self.layers = () if isinstance(layer, Weights) else (layer,)
        self._recoded = recoded
        # The table has the precision of the analysis, which integer inputs do not tell.
        self.dtype = "float32"

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Looks up in the table of the layer."""
        return cls(call.operation)

    @property
    def rows(self) -> int | None:
        """The number of tokens, which is that of the rows of the table; None if it is not known."""
        return None if self._recoded is not None else self.source.input_dim

    def prepare(self, dtype: str) -> None:
        """Sets the precision of the vectors."""
        self.dtype = dtype

    def forward(self, indices: Tensor) -> Tensor:
        """Returns (batch, *shape, vector)."""
        table = weight_of(self.source, "embeddings", self.dtype)
        if self._recoded is not None:
            indices = self._recoded(indices)
        return tf.gather(table, tf.cast(indices, tf.int32))

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Sums over the vector of a token."""
        return (tf.reduce_sum(relevances[0], axis=-1),)


def stacking(call: Call) -> Operation:
    """`keras.ops.stack` of tensors alone."""
    return Rearrangement.from_call(call) if call.only_tensors else Opaque.from_call(call)


def padding(call: Call) -> Operation:
    """`keras.ops.pad`, with copies of elements or a number."""
    (constant,) = call.data[1:] or (0,)
    if isinstance(constant, Slot) or np.ndim(constant):
        return Opaque.from_call(call)
    if call.operation.mode != "constant" or constant == 0:
        return Rearrangement.from_call(call)
    widths, label = _pad_widths(call), type(call.operation).__name__
    return ConstantPadding(label, widths, float(constant), call.operation)


def pads_samples(call: Call) -> bool:
    """Tells whether samples are added."""
    return any(_pad_widths(call)[0])


def _pad_widths(call: Call) -> list[list[int]]:
    """Returns how much is added in front of each axis and behind it."""
    rank = len(call.inputs[0].shape)
    return np.broadcast_to(np.asarray(call.operation.pad_width), (rank, 2)).tolist()


def choosing(call: Call) -> Operation:
    """`keras.ops.where` with a condition that no floating number decides."""
    args, kwargs = call.arguments
    given = {**dict(zip(("condition", "x1", "x2"), args, strict=False)), **kwargs}
    condition, *values = (given.get(name) for name in ("condition", "x1", "x2"))
    slots = [value for value in values if isinstance(value, Slot)]
    deciding = call.inputs[condition.index] if isinstance(condition, Slot) else None
    rank = len(call.outputs[0].shape)
    # Tensors of another rank broadcast in ways of their own, as in a merge.
    fits = all(len(node.shape) == rank for node in call.inputs)
    moving = {call.inputs[slot.index].dtype for slot in slots}
    constants = [None if isinstance(value, Slot) else _number(value) for value in values]
    known = all(
        c is not None or isinstance(v, Slot) for c, v in zip(constants, values, strict=True)
    )
    decided = deciding is None or not deciding.floating
    if not (fits and len(moving) == 1 and known and decided):
        return Opaque.from_call(call)
    fixed = None if deciding is not None else np.asarray(condition, "bool")
    first, second = constants
    return Choice(type(call.operation).__name__, fixed, (first, second), call.operation)


def _number(value: Any) -> np.ndarray | None:
    """Returns a constant; None for a variable, which may become another one."""
    plain = isinstance(value, bool | int | float | np.generic | np.ndarray | tf.Tensor)
    return np.asarray(value) if plain else None


def renaming(call: Call) -> Operation | None:
    """A cast of floating numbers, which stay what they are in the precision of the analysis."""
    floating = call.inputs[0].floating and call.outputs[0].floating
    return None if floating else Condition.from_call(call)
