"""Fits the patterns of PatternNet and PatternAttribution: one streaming pass of running moments.

For an output y = w . x of a linear layer, the pattern is a = c / (w . c), c the covariance of x and
y over those samples and positions in which the output is active ([kindermans2018learning]; Eq. 9 of
[sixt2020when]). All layers are fitted in one pass; moments are centred batch by batch and merged
in float64, so that memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfexplain.compilation import PLAIN, Compiled, Execution
from tfexplain.graph import Call, Graph, Node
from tfexplain.numerics import Tensor
from tfexplain.operations import Activation, Additive, Affine, Operation

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

    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody calls
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
        """Returns the weights, shaped as the pattern, in the precision of x."""
        return self.operation.weights([x])

    def summed(self, pattern: Tensor) -> Tensor:
        """Returns the sum of a pattern-shaped array for each unit."""
        units = self.call.outputs[0].shape[self.operation.unit_axis]
        return self.operation.summed(pattern, units)

    def by_unit(self, values: Tensor) -> Tensor:
        """Returns the sum of (batch, *output_shape) for each unit."""
        axes = list(range(len(values.shape)))
        axes.pop(self.operation.unit_axis)
        return tf.reduce_sum(values, axis=axes)

    def spread(self, units: Tensor, like: Tensor) -> Tensor:
        """Returns one number per unit, shaped to broadcast against outputs."""
        if self.operation.unit_axis == -1:
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
        scaled, collected = self.operation.scaled, self.operation.collected
        mean_x = scaled(collected(inputs, active), inverse)
        centred = active * (y - self.spread(mean_y, y))
        # The mean of y is rounded, so that `centred` does not add up to zero exactly.
        products = collected(inputs, centred) - scaled(mean_x, self.by_unit(centred))
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
        return self.operation.scaled(tf.constant(pattern), tf.constant(factor)).numpy()

    def pattern(self, moments: Moments, output_mean: str) -> np.ndarray:
        """Returns c / (w . c); 0 for units that were never active or never changed.

        Args:
            moments: The moments of all samples.
            output_mean: "active": c is the covariance over the active samples; "all": the mean of y
                is that over all samples, as in the published code.
        """
        counts = tf.constant(np.where(moments.count > 0, moments.count, 1.0))
        operation = self.operation
        c = operation.scaled(tf.constant(moments.products), 1 / counts)
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
        return operation.scaled(c, tf.math.divide_no_nan(tf.ones_like(along), along)).numpy()


def fitted_calls(graph: Graph) -> list[FittedCall]:
    """Returns the calls of a canonical graph that have patterns, in the order of the forward pass.

    Raises:
        ValueError: For layers whose units are no channels.
    """
    consumers = graph.consumers()
    fitted = []
    for call in graph.calls:
        if not (isinstance(call.operation, Additive) and call.operation.fitted):
            continue
        if call.operation.without_pattern:
            raise ValueError(f"{call.name} {call.operation.without_pattern}")
        fitted.append(FittedCall(call, _followers(call, consumers)))
    return fitted


def _followers(call: Call, consumers: dict[Node, list[Call]]) -> tuple[Operation, ...]:
    """Returns the activation behind a call, with normalisations between, or nothing."""
    followers: list[Operation] = []
    readers = consumers[call.outputs[0]]
    while len(readers) == 1 and isinstance(readers[0].operation, Affine | Activation):
        followers.append(readers[0].operation)
        if isinstance(followers[-1], Activation):
            return tuple(followers)
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
        execution: How its functions run.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: Sequence[Node],
        specs: Sequence[tf.TensorSpec],
        *,
        estimator: str,
        output_mean: str,
        execution: Execution = PLAIN,
    ) -> None:
        self.calls = fitted_calls(graph)
        self.places = {node: place for place, node in enumerate(nodes)}
        self.estimator, self.output_mean = estimator, output_mean
        # The `Moments` of each call; None before the first sample.
        self.moments: list[Any] = [None] * len(self.calls)
        self._run = Compiled(self._moments, [list(specs)], execution)

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
            parts: list[Any] = [np.asarray(part) for part in moments]
            self.moments[place] = fitted.merge(self.moments[place], Moments(*parts))

    def patterns(self) -> dict[str, np.ndarray]:
        """Returns the pattern of each call by its name."""
        return {
            fitted.call.name: fitted.pattern(moments, self.output_mean)
            for fitted, moments in zip(self.calls, self.moments, strict=True)
        }
