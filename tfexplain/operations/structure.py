"""Operations that move, copy, drop, join or pad elements without computing, and table look-ups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfexplain.numerics import Tensor, pull_back, shape_of
from tfexplain.operations.base import Movement, Operation
from tfexplain.operations.calls import Call
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
        return pull_back(self.forward, inputs, relevances, linear=True)


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
    """`keras.ops.pad` with zeros."""
    zeros = call.operation.mode == "constant" and not any(call.data[1:])
    return Rearrangement.from_call(call) if zeros else Opaque.from_call(call)


def renaming(call: Call) -> Operation | None:
    """A cast of floating numbers, which stay what they are in the precision of the analysis."""
    floating = call.inputs[0].floating and call.outputs[0].floating
    return None if floating else Opaque.from_call(call)
