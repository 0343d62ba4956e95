"""Fits the patterns of PatternNet and PatternAttribution: one streaming pass of running moments.

For an output y = w . x of a linear layer, the pattern is a = c / (w . c), c the covariance of x and
y over those samples and positions in which the output is active ([kindermans2018learning]; Eq. 9 of
[sixt2020when]). All layers are fitted in one pass; moments are centred batch by batch and merged
in float64, so that memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfexplain.graph import Call, Graph, Node
from tfexplain.numerics import Compiled, Tensor
from tfexplain.operations import Activation, Affine, EinsumLinear, Linear, Operation, Sum

ESTIMATORS = ("relu", "linear")
OUTPUT_MEANS = ("active", "all")
# Deviation relative to the mean below which an output has not changed.
UNCHANGED = 1e-12


class Moments(NamedTuple):
    """Moments of the inputs x and the output y of each unit j over its active samples.

    Attributes:
        count: Number of active samples and positions, (units,).
        mean_x: Means of x, shaped as the pattern.
        mean_y: Means of y, (units,).
        products: Sums of (x - mean_x) (y - mean_y), shaped as the pattern.
        total: Number of all samples and positions.
        mean_all: Means of y over all of them, (units,).
    """

    count: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    products: np.ndarray
    total: float
    mean_all: np.ndarray


class FittedCall:
    """A call whose pattern is fitted: what its units, inputs and activity are.

    Args:
        call: A linear layer or an addition of a canonical graph.
        followers: The activation that follows, and normalisations before it; they decide where a
            unit is active.
    """

    def __init__(self, call: Call, followers: Sequence[Operation] = ()) -> None:
        self.call = call
        self.operation = call.operation
        self.followers = tuple(followers)

    def weights(self, x: Tensor) -> Tensor:
        """Returns the weights, shaped as the pattern: the kernel, or (summands, 1)."""
        if isinstance(self.operation, Linear):
            return self.operation.kernel(x.dtype)
        return tf.constant(self.operation.coefficients, x.dtype)[:, None]

    def scaled(self, pattern: Tensor, factor: Tensor) -> Tensor:
        """Returns a pattern times one factor per unit."""
        if isinstance(self.operation, Linear):
            return self.operation._output_scaled(pattern, factor)
        return pattern * factor

    def summed(self, pattern: Tensor) -> Tensor:
        """Returns the sum of a pattern-shaped array for each unit: the transpose of `scaled`."""
        if isinstance(self.operation, Sum):
            return tf.reduce_sum(pattern, axis=0)
        units = tf.ones(self._units(pattern), pattern.dtype)
        with tf.GradientTape() as tape:
            tape.watch(units)
            total = tf.reduce_sum(self.operation._output_scaled(pattern, units))
        return tape.gradient(total, units)

    def _units(self, pattern: Tensor) -> list[int]:
        return [self.call.outputs[0].shape[-1 if self.operation.channels_last else 1]]

    def collected(self, inputs: Sequence[Tensor], values: Tensor) -> Tensor:
        """Returns the sum of x times `values`, (batch, *output_shape), shaped as the pattern."""
        if isinstance(self.operation, Sum):
            axes = list(range(len(values.shape) - 1))
            return tf.stack([tf.reduce_sum(x * values, axis=axes) for x in inputs])
        kernel = self.operation.kernel(values.dtype)
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            y = self.operation.apply(inputs[0], kernel)
        return tape.gradient(y, kernel, output_gradients=values)

    def by_unit(self, values: Tensor) -> Tensor:
        """Returns the sum of (batch, *output_shape) for each unit."""
        axes = list(range(len(values.shape)))
        axes.pop(-1 if isinstance(self.operation, Sum) or self.operation.channels_last else 1)
        return tf.reduce_sum(values, axis=axes)

    def spread(self, units: Tensor, like: Tensor) -> Tensor:
        """Returns one number per unit, shaped to broadcast against outputs."""
        if isinstance(self.operation, Sum) or self.operation.channels_last:
            return units
        return tf.reshape(units, [-1] + [1] * (len(like.shape) - 2))

    def moments(self, inputs: Sequence[Tensor], output: Tensor, estimator: str) -> Moments:
        """Returns the moments of one batch, in its precision."""
        bias = self.operation.bias(inputs)
        y = output if bias is None else output - bias
        if estimator == "linear":
            active = tf.ones_like(output)
        else:
            after = output
            for operation in self.followers:
                after = operation.forward(after)
            active = tf.cast(after > 0, output.dtype)
        count = self.by_unit(active)
        total = tf.cast(tf.size(y), y.dtype) / tf.cast(tf.size(count), y.dtype)
        mean_y = tf.math.divide_no_nan(self.by_unit(active * y), count)
        inverse = tf.math.divide_no_nan(tf.ones_like(count), count)
        mean_x = self.scaled(self.collected(inputs, active), inverse)
        centred = active * (y - self.spread(mean_y, y))
        # The mean of y is rounded, so that `centred` does not add up to zero exactly.
        products = self.collected(inputs, centred) - self.scaled(mean_x, self.by_unit(centred))
        return Moments(
            count,
            mean_x,
            mean_y,
            products,
            total,
            self.by_unit(y) / total,
        )

    def merge(self, first: Moments | None, second: Moments) -> Moments:
        """Returns the moments of two sets of samples together."""
        if first is None:
            return second
        count = first.count + second.count
        share = np.divide(second.count, count, out=np.zeros_like(count), where=count > 0)
        moved = second.mean_x - first.mean_x
        both = (second.mean_y - first.mean_y) * first.count * share
        total = first.total + second.total
        return Moments(
            count,
            first.mean_x + self._scaled(moved, share),
            first.mean_y + (second.mean_y - first.mean_y) * share,
            first.products + second.products + self._scaled(moved, both),
            total,
            first.mean_all + (second.mean_all - first.mean_all) * (second.total / total),
        )

    def _scaled(self, pattern: np.ndarray, factor: np.ndarray) -> np.ndarray:
        return self.scaled(tf.constant(pattern), tf.constant(factor)).numpy()

    def pattern(self, moments: Moments, output_mean: str) -> np.ndarray:
        """Returns c / (w . c); 0 for units that were never active or never changed.

        Args:
            moments: Of all samples.
            output_mean: "active": c is the covariance over the active samples; "all": the mean of y
                is that over all samples, as in the published code.
        """
        counts = tf.constant(np.where(moments.count > 0, moments.count, 1.0))
        c = self.scaled(tf.constant(moments.products), 1 / counts)
        # The weights do not depend on x, whose precision they take.
        weights = self.weights(tf.zeros([], tf.float64))
        if output_mean == "all":
            # c = E+[x y] - E+[x] E[y]
            everywhere = moments.count == moments.total
            between = np.where(everywhere, 0.0, moments.mean_y - moments.mean_all)
            c += self._scaled(moments.mean_x, between)
        along = self.summed(weights * c)
        # w . c is the variance of y, or of that size; below this it is rounding of y alone.
        changes = tf.abs(along) > tf.constant(UNCHANGED * np.abs(moments.mean_y)) ** 2
        along = tf.where(changes, along, tf.zeros_like(along))
        return self.scaled(c, tf.math.divide_no_nan(tf.ones_like(along), along)).numpy()


def fitted_calls(graph: Graph) -> list[FittedCall]:
    """Returns the calls of a canonical graph that have patterns, in the order of the forward pass.

    Raises:
        ValueError: For layers whose units are no channels.
    """
    consumers = graph.consumers()
    found = []
    for call in graph.calls:
        if not isinstance(call.operation, Linear | Sum):
            continue
        if isinstance(call.operation, EinsumLinear):
            equation = call.operation.source.equation
            if not _acts_on_last_axis(equation):
                raise ValueError(
                    f"{call.name} (EinsumDense) has the equation {equation!r}; patterns exist for "
                    "kernels of (inputs, units) on the last axis, as in 'abc,cd->abd'."
                )
        found.append(FittedCall(call, _followers(call, consumers)))
    return found


def _acts_on_last_axis(equation: str) -> bool:
    """Tells whether an equation is that of a Dense layer: X c, c d -> X d."""
    left, output = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    return (
        len(kernel) == 2
        and kernel[0] != kernel[1]
        and (inputs[-1], output[-1]) == tuple(kernel)
        and inputs[:-1] == output[:-1]
    )


def _followers(call: Call, consumers: dict[Node, list[Call]]) -> tuple[Operation, ...]:
    """Returns the activation behind a call, with normalisations between, or nothing."""
    found: list[Operation] = []
    readers = consumers[call.outputs[0]]
    while len(readers) == 1 and isinstance(readers[0].operation, Affine | Activation):
        found.append(readers[0].operation)
        if isinstance(found[-1], Activation):
            return tuple(found)
        readers = consumers[readers[0].outputs[0]]
    return ()


class PatternFit:
    """Running moments of all fitted calls of a graph.

    Args:
        graph: A canonical graph.
        nodes: The tensors that a forward pass returns, in order.
        specs: Their `tf.TensorSpec`s.
        estimator: "relu" (units count where they are active) or "linear" (everywhere).
        output_mean: See `FittedCall.pattern`.
        jit_compile: Compile by XLA.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: Sequence[Node],
        specs: Sequence[tf.TensorSpec],
        *,
        estimator: str,
        output_mean: str,
        jit_compile: bool = False,
    ) -> None:
        self.calls = fitted_calls(graph)
        self.places = {node: place for place, node in enumerate(nodes)}
        self.estimator, self.output_mean = estimator, output_mean
        self.found: list[Moments | None] = [None] * len(self.calls)
        self._run = Compiled(self._moments, [list(specs)], jit_compile)

    def _moments(self, records: list[Tensor]) -> list[Moments]:
        return [
            fitted.moments(
                [records[self.places[node]] for node in fitted.call.inputs],
                records[self.places[fitted.call.outputs[0]]],
                self.estimator,
            )
            for fitted in self.calls
        ]

    def add(self, records: list[Tensor]) -> None:
        """Adds the tensors of one forward pass, in float64."""
        for place, (fitted, moments) in enumerate(zip(self.calls, self._run(records), strict=True)):
            moments = Moments(*(np.asarray(part) for part in moments))
            self.found[place] = fitted.merge(self.found[place], moments)

    def patterns(self) -> dict[str, np.ndarray]:
        """Returns the pattern of each call by its name."""
        return {
            fitted.call.name: fitted.pattern(moments, self.output_mean)
            for fitted, moments in zip(self.calls, self.found, strict=True)
        }
