"""Operations that merge several tensors element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfexplain.numerics import Tensor, expand, only_where, sum_to_shape
from tfexplain.operations.base import Operation, Selection, first_winners
from tfexplain.operations.calls import Call
from tfexplain.operations.elementwise import Scaling, SumOfTensors
from tfexplain.operations.functions import division, limited
from tfexplain.operations.opaque import Opaque


class Merge(Operation):
    """Merges tensors element by element; they broadcast against each other."""

    numeric = True

    def equal_shares(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Gives each input the same share."""
        share = relevance / len(inputs)
        return tuple(sum_to_shape(share, x.shape.as_list()) for x in inputs)


class Sum(Merge, SumOfTensors):
    """y = sum_m c_m x_m: Add, Subtract, Average and additions of `keras.ops`.

    Args:
        label: What `describe` prints.
        coefficients: One number per input.
        source: The Keras operation.
    """

    def __init__(self, label: str, coefficients: Sequence[float], source: keras.Operation) -> None:
        super().__init__(label, source=source)
        self.coefficients = tuple(coefficients)

    @classmethod
    def of(cls, coefficients: Callable[[int], Sequence[float]]) -> Callable[[Call], Operation]:
        """Returns what makes sums of calls; with a constant it is a scaling of single elements.

        Args:
            coefficients: Number of tensors -> one number for each.
        """

        def from_call(call: Call) -> Operation:
            if not call.merges:
                return Scaling.from_call(call)
            factors = coefficients(len(call.inputs))
            return cls(type(call.operation).__name__, factors, call.operation)

        return from_call

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the weighted sum."""
        return sum(self.contributions(inputs))

    def mirrored(self) -> Operation:
        """It is itself: there is no constant."""
        return self

    def factors(self, inputs: Sequence[Tensor]) -> Sequence[float]:
        """Returns the coefficients."""
        return self.coefficients

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if all summands are >= 0."""
        return all(inputs) and all(c >= 0 for c in self.coefficients)

    def bias(self, inputs: Sequence[Tensor]) -> None:
        """There is none."""
        return None


class Factors(Merge):
    """y = prod_m x_m, element by element."""

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

    def average_orders(
        self, inputs: Sequence[Tensor], baselines: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns multipliers of the factors, the orders in which they change averaged.

        Args:
            inputs: Tensors (batch, *shape).
            baselines: The same at the baseline, (batch or 1, *shape).
            relevance: Multipliers of the product, (batch, num_vectors, *output_shape).
        """
        ends = list(zip(inputs, baselines, strict=True))
        before = [ends[0]]
        for x, x0 in ends[1:-1]:
            before.append((before[-1][0] * x, before[-1][1] * x0))
        results = []
        for (x, x0), (p, p0) in zip(reversed(ends[1:]), reversed(before), strict=True):
            results.append(sum_to_shape(relevance * expand((p + p0) / 2), x.shape.as_list()))
            relevance = relevance * expand((x + x0) / 2)
        results.append(sum_to_shape(relevance, ends[0][0].shape.as_list()))
        return tuple(reversed(results))


class Quotient(Merge):
    """y = a / b, element by element.

    It is the product of a and 1 / b: methods of relevance give a half to each of the two, as they
    do at a product (uniform rule of [achtibat2024attnlrp]), and a function of single elements such
    as 1 / b passes its half to b.
    """

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Takes tensors; with a constant it is a function of single elements."""
        if not call.merges:
            return division(call)
        return cls(type(call.operation).__name__, source=call.operation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the quotient."""
        return inputs[0] / inputs[1]

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if both tensors are >= 0."""
        return all(inputs)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns R / b for a and -R a / b^2 for b."""
        a, b = inputs
        of_a = relevances[0] / expand(b)
        of_b = -of_a * expand(outputs[0])
        return sum_to_shape(of_a, a.shape.as_list()), sum_to_shape(of_b, b.shape.as_list())

    def average_orders(
        self, inputs: Sequence[Tensor], baselines: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns multipliers as of the product a (1 / b); 1 / b has the chord -1 / (b b0)."""
        (a, b), (a0, b0) = inputs, baselines
        of_a = relevance * expand((1 / b + 1 / b0) / 2)
        of_b = relevance * expand(-(a + a0) / 2 / b / b0)
        return sum_to_shape(of_a, a.shape.as_list()), sum_to_shape(of_b, b.shape.as_list())


class Product(Factors):
    """A product of tensors none of which is told apart: Multiply, squeeze and excitation."""

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Multiplies tensors; with a constant it is a scaling of single elements."""
        if not call.merges:
            return Scaling.from_call(call)
        return cls(type(call.operation).__name__, source=call.operation)


class Gate(Factors):
    """A signal times a gate, which says how much of it passes, as in LSTM and GRU.

    Its inputs are the signal and the gate.
    """


class CellSum(Sum):
    """What a recurrent cell keeps, plus what is new: LSTM's cell, GRU's state."""


class Maximum(Merge, Selection):
    """y = max_m x_m, element by element; the first of equal tensors wins.

    Its gradient is that of TensorFlow, which gives all to the first of equal tensors too.
    """

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Takes tensors; with a constant it is a function of single elements.

        Of masked tensors it takes the largest of those that are not: only the gradient is known.
        """
        if call.operands:
            return Opaque.from_call(call)
        if not call.merges:
            return limited(call, cls.largest)
        return cls(type(call.operation).__name__, source=call.operation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the largest of the tensors."""
        return functools.reduce(tf.maximum if self.largest else tf.minimum, inputs)

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if one tensor is >= 0; for the smallest, if all are."""
        return any(inputs) if self.largest else all(inputs)

    def route(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Gives everything to the first tensor that equals the output."""
        return tuple(
            sum_to_shape(only_where(won, relevance), x.shape.as_list())
            for x, won in zip(inputs, first_winners(inputs, outputs[0]), strict=True)
        )

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Routes to the winner."""
        return self.route(inputs, outputs, relevances[0])

    def average(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Returns the average of the tensors."""
        return sum(inputs) / len(inputs)

    def share_as_average(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Shares in proportion to x_m, as if the tensors were averaged."""
        average = expand(self.average(inputs, outputs))
        share = tf.math.divide_no_nan(relevance, average) / len(inputs)
        return tuple(sum_to_shape(expand(x) * share, x.shape.as_list()) for x in inputs)


class Minimum(Maximum):
    """y = min_m x_m, element by element; the first of equal tensors wins."""

    largest = False
