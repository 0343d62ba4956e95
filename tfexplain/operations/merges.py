"""Operations that merge several tensors element by element."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfexplain.numerics import Tensor, expand, shape_of, sum_to_shape
from tfexplain.operations.base import Operation
from tfexplain.operations.elementwise import combine, weighted


class _Merge(Operation):
    """Base of operations that merge tensors element by element."""

    def equal_shares(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Gives each input the same share."""
        share = relevance / len(inputs)
        return tuple(sum_to_shape(share, x.shape.as_list()) for x in inputs)


class Sum(_Merge):
    """y = sum_m c_m x_m: Add, Subtract, Average and additions of `keras.ops`.

    Args:
        label: What `describe` prints.
        coefficients: One number per input.
        source: The Keras operation.
    """

    def __init__(self, label: str, coefficients: Sequence[float], source: keras.Operation) -> None:
        self.label = label
        self.coefficients = tuple(coefficients)
        self.source = source

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the weighted sum."""
        return sum(self._contributions(inputs))

    def _contributions(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [x if c == 1 else c * x for c, x in zip(self.coefficients, inputs, strict=True)]

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if all summands are >= 0."""
        return all(inputs) and all(c >= 0 for c in self.coefficients)

    def bias(self, inputs: Sequence[Tensor]) -> None:
        """There is none."""
        return None

    def weighted_sum(
        self, inputs: Sequence[Tensor], nonnegative: Sequence[bool], above: float, below: float
    ) -> Tensor:
        """Returns sum_m above c_m^+ + below c_m^- of the summands c_m."""
        return sum(weighted(c, above, below) for c in self._contributions(inputs))

    def magnitude_sum(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns sum_m |c_m| of the summands c_m."""
        return sum(tf.abs(c) for c in self._contributions(inputs))

    def pull_weighted(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        share: Tensor,
        above: float,
        below: float,
    ) -> tuple[Tensor, ...]:
        """Returns (above c_m^+ + below c_m^-) share for each summand c_m."""
        return tuple(
            sum_to_shape(expand(weighted(c, above, below)) * share, c.shape.as_list())
            for c in self._contributions(inputs)
        )

    def pull_contributions(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        to_positive: Tensor | None,
        to_negative: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Returns c_m^+ to_positive + c_m^- to_negative for each summand c_m."""
        return tuple(combine(c, to_positive, to_negative) for c in self._contributions(inputs))

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Copies the relevance to each summand, times its coefficient."""
        return tuple(
            sum_to_shape(relevances[0] if c == 1 else c * relevances[0], x.shape.as_list())
            for c, x in zip(self.coefficients, inputs, strict=True)
        )


class Product(_Merge):
    """y = prod_m x_m, element by element: Multiply, gates, squeeze and excitation."""

    def __init__(self, label: str, source: keras.Operation) -> None:
        self.label = label
        self.source = source

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the product."""
        product = inputs[0]
        for x in inputs[1:]:
            product = product * x
        return product

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if all factors are >= 0."""
        return all(inputs)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Multiplies by the other factors."""
        results = []
        for index, x in enumerate(inputs):
            others = [other for place, other in enumerate(inputs) if place != index]
            results.append(
                sum_to_shape(relevances[0] * expand(self.forward(*others)), x.shape.as_list())
            )
        return tuple(results)


class Concatenation(Operation):
    """Joins tensors along one axis; relevance is taken apart again."""

    def __init__(self, label: str, axis: int, source: keras.Operation) -> None:
        self.label = label
        self.axis = axis
        self.source = source

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the joined tensor."""
        return tf.concat(inputs, axis=self.axis)

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if all parts are >= 0."""
        return all(inputs)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Splits the relevance as the inputs were joined."""
        axis = self.axis % len(inputs[0].shape)
        sizes = [shape_of(x)[axis] for x in inputs]
        return tuple(tf.split(relevances[0], sizes, axis=axis + 1))
