"""Rules at normalisations by statistics of each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from tfexplain.numerics import Tensor, expand
from tfexplain.operations import Normalization, Operation
from tfexplain.rules.base import Absorbed, RecordedCall, Rule, total, undefined_where
from tfexplain.rules.differences import DifferenceCall, DifferenceRule


@dataclass(frozen=True)
class HeldDeviation(Rule):
    """Shares in proportion to contributions, with the deviation as a constant.

    R_i = x_i sum_j w_ij R_j / y_j, where y_j = sum_i x_i w_ij + b_j for the deviation of this
    sample: means are shared out, and the bias absorbs its part (Prop. 3.4 of
    [achtibat2024attnlrp]).
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (Normalization,)

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the share of each input; a share of y = 0 is 0."""
        (x,), (y,) = call.inputs, call.outputs
        share = tf.math.divide_no_nan(relevance[0], expand(y))
        return (expand(x) * call.operation.pull_held(x, share),)

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """The bias takes its share; outputs of 0 give their relevance to nobody."""
        (x,), (y,) = call.inputs, call.outputs
        share = tf.math.divide_no_nan(relevance[0], expand(y))
        bias = total(expand(call.operation.bias(x)) * share)
        return undefined_where(tf.equal(y, 0), relevance[0])._replace(bias=bias)


@dataclass(frozen=True)
class NormalizationDifference(DifferenceRule):
    """Contributions to the difference of a normalisation, those through the deviation included.

    The two orders in which x and the deviation can change are averaged, as for products; the
    deviation's change is shared out by the chord of its function and by the derivative of the
    statistic, which is quadratic, in the middle.
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (Normalization,)

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns multipliers whose contributions add up."""
        (x,), (x0,) = call.inputs, call.baseline_inputs
        x0 = tf.broadcast_to(x0, tf.shape(x))
        return (call.operation.pull_differences(x, x0, call.single(relevance[0])),)
