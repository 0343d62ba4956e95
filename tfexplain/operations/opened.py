"""Canonical operations made of TensorFlow operations, which no Keras layer stands for."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfexplain.numerics import Tensor, pull_each, shape_of, swapped
from tfexplain.operations.base import Diagonal, Movement
from tfexplain.operations.calls import as_list
from tfexplain.operations.elementwise import Activation, SumOfTensors
from tfexplain.operations.opaque import Opaque
from tfexplain.operations.weights import Weight


class Moved(Movement):
    """Moves, copies or drops elements in a way that has no class of its own.

    What it puts beside them, such as the number of masked places, is no element of an input.
    """

    attached = True
    linear = False

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """It may put anything beside its inputs."""
        return False

    def moved(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """Moves other values; what is put beside them becomes 0."""
        results = [self.forward(*each) for each in (values, map(tf.zeros_like, values))]
        ends = zip(*map(as_list, results), strict=True)
        return [one - zero for one, zero in ends]

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Sends each vector back by itself: sizes may be those of the samples."""
        return pull_each(self.forward, inputs, relevances)


class Reshaped(Movement):
    """A reshape, whatever becomes of the axis of the samples."""

    attached = True

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Reshapes the relevance of each vector to the input's shape."""
        vectors_first = swapped(relevances[0])
        shape = [shape_of(vectors_first)[0], *shape_of(inputs[0])]
        return (swapped(tf.reshape(vectors_first, shape)),)


class Transposed(Movement):
    """Other order of the axes, that of the samples included.

    Args:
        order: Which axis of the input each axis of the output is.
    """

    attached = True

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__("Transpose")
        self.order = tuple(order)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the tensor with its axes in the other order."""
        return tf.transpose(x, self.order)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Puts the axes back."""
        back = [self.order.index(axis) + 1 for axis in range(len(self.order))]
        return (swapped(tf.transpose(swapped(relevances[0]), [0, *back])),)


class Recoding(Movement):
    """Makes other integers of tokens, one by one: what a token receives is that of its new number.

    Args:
        label: What `describe` prints.
        function: What it computes.
    """

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Keeps the relevance of every token."""
        return (relevances[0],)


class StopGradient(Activation):
    """What TensorFlow lets no gradient through: relevance passes, gradients are 0."""

    def __init__(self) -> None:
        super().__init__("stop_gradient", tf.stop_gradient, keeps_sign=True)

    def derivative(self, x: Tensor) -> Tensor:
        """Returns 1: as a function of numbers it is x."""
        return tf.ones_like(x)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns zeros, as the tape does."""
        return (tf.zeros_like(relevances[0]),)


class Shift(SumOfTensors, Diagonal):
    """y = x * scale + shift with weights that broadcast against single elements.

    Args:
        label: What `describe` prints.
        scale: The factor; None for 1.
        shift: What is added; None for 0.
    """

    fitted = False

    def __init__(self, label: str, scale: Weight | None, shift: Weight | None) -> None:
        super().__init__(label)
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        """Returns x * scale + shift."""
        y = x if self.scale is None else x * self.scale(x.dtype)
        return y if self.shift is None else y + self.shift(x.dtype)

    def factor(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the scale, with as many axes as the input."""
        (x,) = inputs
        if self.scale is None:
            return tf.ones([1] * len(x.shape), x.dtype)
        scale = self.scale(x.dtype)
        missing = len(x.shape) - len(scale.shape)
        return tf.reshape(scale, [1] * missing + scale.shape.as_list())

    def factors(self, inputs: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """Returns the scale, the factor of the only input."""
        return (1.0 if self.scale is None else self.scale(inputs[0].dtype),)

    def bias(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """Returns the shift."""
        return None if self.shift is None else self.shift(inputs[0].dtype)

    def equal_shares(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Every output has one input, which gets everything."""
        return (relevance,)


class OpenedOpaque(Opaque):
    """A TensorFlow operation of which only the gradient is known."""

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Sends each vector back by itself: sizes may be those of the samples."""
        return pull_each(self.forward, inputs, relevances)
