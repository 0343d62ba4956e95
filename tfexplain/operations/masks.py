"""What masks do to a tensor: elements at masked positions get a value that says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfexplain.numerics import Tensor, expand
from tfexplain.operations.base import Movement, Operation


class Masked(Movement):
    """y = x where a mask, its operand, is true, else a value: relevance there reaches nobody.

    Args:
        label: What `describe` prints.
        value: What masked elements are.
        source: The Keras operation.
        leading: The axes of the mask are the first ones of the tensor; else they are the last.
    """

    numeric = True

    def __init__(
        self,
        label: str,
        value: float,
        source: keras.Operation | None = None,
        leading: bool = True,
    ) -> None:
        super().__init__(label, source=source)
        self.value, self.leading = value, leading
        self.linear = value == 0  # type: ignore[misc]  # a filled value is a shift

    def kept(self, x: Tensor) -> Tensor:
        """Returns where the mask is true, in a shape that broadcasts to that of x."""
        (mask,) = self.operands
        mask = mask > 0.5 if mask.dtype.is_floating else tf.cast(mask, tf.bool)
        if self.leading:
            for _ in range(len(x.shape) - len(mask.shape)):
                mask = tf.expand_dims(mask, -1)
        return mask

    def forward(self, x: Tensor) -> Tensor:
        """Returns x with the value at masked positions."""
        return tf.where(self.kept(x), x, tf.constant(self.value, x.dtype))

    def moved(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> Any:
        """Returns other values where the mask is true, else 0."""
        (value,) = values
        return tf.where(self.kept(value), value, tf.zeros((), value.dtype))

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if the elements and the value are >= 0."""
        return inputs[0] and self.value >= 0

    def mirrored(self) -> Operation | None:
        """It is itself where nothing is filled in but zeros."""
        return self if self.value == 0 else None

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns the relevance of kept elements, and exactly 0 elsewhere."""
        (relevance,) = relevances
        kept = expand(tf.broadcast_to(self.kept(inputs[0]), tf.shape(inputs[0])))
        return (tf.where(kept, relevance, tf.zeros((), relevance.dtype)),)
