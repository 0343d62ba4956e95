"""Weights of operations, of Keras layers or computed from variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfexplain.numerics import Tensor

# A function of a dtype that returns current weights.
Weight = Callable[[Any], Tensor]


class Weights:
    """Weights and settings in place of a Keras layer, as linear operations read them.

    Args:
        name: What `describe` prints.
        kernel: Function of a dtype that returns the kernel; None for none.
        bias: The same for the bias.
        **settings: What the operation reads of a layer: strides, padding, an equation ...
    """

    def __init__(
        self, name: str, kernel: Weight | None = None, bias: Weight | None = None, **settings: Any
    ) -> None:
        self.name, self.kernel, self.bias = name, kernel, bias
        vars(self).update(settings)


def weight_of(source: Any, name: str, dtype: tf.DType) -> Tensor:
    """Returns the current value of a weight of a Keras layer, or of `Weights`."""
    value = getattr(source, name)
    if isinstance(source, Weights):
        return value(dtype)
    return tf.cast(tf.convert_to_tensor(value), dtype)
