"""Operations that move, copy, drop or pad elements without computing, and table look-ups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfexplain.numerics import Tensor, pull_back, shape_of
from tfexplain.operations.base import Operation


class Rearrangement(Operation):
    """A linear map whose weights are 0 and 1: reshape, transpose, pad with zeros, crop, repeat.

    Relevance goes back the way the elements came: its gradient is the rule of every method. What
    lies on padded zeros or was never read is lost or zero, which the ledger shows.
    """

    def __init__(
        self,
        label: str,
        function: Callable[..., Tensor | Sequence[Tensor]],
        source: keras.Operation,
    ) -> None:
        self.label = label
        self.forward = function
        self.source = source

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Zeros and copies of elements >= 0 are >= 0."""
        return all(inputs)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns the transposed map of the relevance."""
        return pull_back(self.forward, inputs, relevances, linear=True)


class Reshaping(Rearrangement):
    """A reshape, whose inverse is a reshape."""

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Reshapes the relevance to the input's shape."""
        batch, vectors = shape_of(relevances[0])[:2]
        return (tf.reshape(relevances[0], [batch, vectors, *shape_of(inputs[0])[1:]]),)


class Lookup(Operation):
    """Embedding: an integer selects a row of a table."""

    def __init__(self, layer: keras.layers.Embedding) -> None:
        self.label = "Embedding"
        self.source = layer
        self.layers = (layer,)
        # The table has the precision of the analysis, which integer inputs do not tell.
        self.dtype = "float32"

    def prepare(self, dtype: str) -> None:
        """Sets the precision of the vectors."""
        self.dtype = dtype

    def forward(self, indices: Tensor) -> Tensor:
        """Returns (batch, *shape, vector)."""
        table = tf.cast(tf.convert_to_tensor(self.source.embeddings), self.dtype)
        return tf.gather(table, tf.cast(indices, tf.int32))

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Sums over the vector of a token."""
        return (tf.reduce_sum(relevances[0], axis=-1),)
