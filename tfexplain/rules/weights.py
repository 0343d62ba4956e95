"""LRP rules for first layers: shares that depend on weights and bounds, not on the activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tensorflow as tf

from tfexplain.numerics import Tensor, expand, only_where, rounding
from tfexplain.operations import Additive, Affine, Linear, Operation, SumOfLinear
from tfexplain.operations.base import NEGATIVE, ONES, POSITIVE, SQUARE
from tfexplain.rules.base import Absorbed, RecordedCall, Rule, freeze_array, undefined_where


@dataclass(frozen=True)
class _WeightRule(Rule, abstract=True):
    """Shares v_ij / sum_k v_kj, the same for all samples."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Additive,)
    part: ClassVar[str]

    def is_sign_blind(self) -> bool:
        """Tells that signs of summands do not matter."""
        return True

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the share of each input; the weights of sums and scalings share equally."""
        if isinstance(call.operation, Linear | SumOfLinear):
            return call.operation.weighted_shares(call.inputs, relevance[0], self.part)[0]
        return _of_elements(call, relevance[0], weighted=self.part != ONES)

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """Outputs without any weight give their relevance to nobody."""
        if not isinstance(call.operation, Linear | SumOfLinear):
            return _dropped_by_elements(call, relevance[0], weighted=self.part != ONES)
        sums = call.operation.weighted_shares(call.inputs, relevance[0], self.part)[1]
        return undefined_where(tf.equal(sums, 0), relevance[0])


def _of_elements(call: RecordedCall, relevance: Tensor, weighted: bool) -> tuple[Tensor, ...]:
    """Returns equal shares at sums and scalings of elements; a factor of 0 has no share."""
    if weighted and isinstance(call.operation, Affine):
        kept = tf.not_equal(call.operation.factor(call.inputs), 0)
        relevance = only_where(kept, relevance)
    return call.operation.equal_shares(call.inputs, call.outputs, relevance)


def _dropped_by_elements(call: RecordedCall, relevance: Tensor, weighted: bool) -> Absorbed:
    """Returns the relevance of elements that are multiplied by 0."""
    if not (weighted and isinstance(call.operation, Affine)):
        return Absorbed()
    return undefined_where(tf.equal(call.operation.factor(call.inputs), 0), relevance)


@dataclass(frozen=True)
class WSquare(_WeightRule):
    """R_i = sum_j w_ij^2 / sum_k w_kj^2 R_j (w^2 rule of [montavon2017explaining])."""

    part: ClassVar[str] = SQUARE


@dataclass(frozen=True)
class Flat(_WeightRule):
    """R_i = sum_j R_j / n_j, n_j the number of inputs of output j ([lapuschkin2019unmasking])."""

    part: ClassVar[str] = ONES


@dataclass(frozen=True, eq=False, kw_only=True)
class BoundedCall(RecordedCall):
    """One call of which the range of the input is known.

    Attributes:
        bounds: Lowest and highest values of the input, each (1, *shape).
    """

    bounds: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ZBox(Rule):
    """Shares for inputs inside a box (z^B rule of [montavon2017explaining]).

    R_i = sum_j q_ij / sum_k q_kj R_j with q_ij = x_i w_ij - low_i w_ij^+ - high_i w_ij^-.

    Args:
        low: Lowest values of the model's input: a number or an array that broadcasts to it.
        high: Highest values.

    Raises:
        ValueError: If they are not finite or low > high anywhere.
    """

    low: float | tuple
    high: float | tuple
    handled: ClassVar[tuple[type[Operation], ...]] = (Additive,)
    record: ClassVar[type[RecordedCall]] = BoundedCall

    def __post_init__(self) -> None:
        """Checks the bounds."""
        for name in ("low", "high"):
            object.__setattr__(self, name, freeze_array(getattr(self, name), name))
        low, high = np.asarray(self.low), np.asarray(self.high)
        if np.any(low > high) or np.all(low == high):
            raise ValueError(
                f"low must be <= high, and below it somewhere; received low={low.min()} to "
                f"{low.max()}, high={high.min()} to {high.max()}."
            )

    def __str__(self) -> str:
        """Shortens arrays, of which tables would otherwise print every number."""
        ends = []
        for value in (self.low, self.high):
            array = np.asarray(value)
            wide = array.size > 3
            ends.append(f"{array.min()} to {array.max()}, shape {array.shape}" if wide else value)
        return f"ZBox(low={ends[0]}, high={ends[1]})"

    def _sum_and_share(self, call: BoundedCall, relevance: Tensor) -> tuple[Tensor, Tensor]:
        low, high = call.bounds
        operation, x = call.operation, call.inputs[0]
        bias = operation.bias(call.inputs)
        bias = tf.zeros((), x.dtype) if bias is None else bias
        ends = [
            operation.apply(end, operation.kernel(x.dtype, part))
            for end, part in ((low, POSITIVE), (high, NEGATIVE))
        ]
        # Both terms are >= 0. Their sum is z - b - low W+ - high W-, in which digits cancel where
        # inputs lie near their bounds.
        z = operation.apply(x - low, operation.kernel(x.dtype, POSITIVE))
        z += operation.apply(x - high, operation.kernel(x.dtype, NEGATIVE))
        # Where the whole receptive field lies on its bounds, rounding is all that is left.
        size = sum(tf.abs(term) for term in (call.outputs[0], bias, *ends))
        z = tf.where(tf.abs(z) > rounding(x.dtype) * size, z, tf.zeros((), x.dtype))
        return z, tf.math.divide_no_nan(relevance, expand(z))

    def inside_scan(self) -> None:
        """Nobody knows the bounds of a state."""
        return None

    def propagate(self, call: BoundedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the share of each input; a sum or scaling of inputs shares equally."""
        operation = call.operation
        if not isinstance(operation, Linear):
            return _of_elements(call, relevance[0], weighted=True)
        low, high = call.bounds
        x = call.inputs[0]
        _, share = self._sum_and_share(call, relevance[0])
        above, below = (
            operation.transpose(share, operation.kernel(x.dtype, part), x)
            for part in (POSITIVE, NEGATIVE)
        )
        return (expand(x - low) * above + expand(x - high) * below,)

    def absorbed(self, call: BoundedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """Outputs with an empty box give their relevance to nobody."""
        if not isinstance(call.operation, Linear):
            return _dropped_by_elements(call, relevance[0], weighted=True)
        z, _ = self._sum_and_share(call, relevance[0])
        return undefined_where(tf.equal(z, 0), relevance[0])
