"""PatternNet and PatternAttribution: fitted patterns take the place of weights on the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from tfexplain.numerics import Tensor, expand, sum_to_shape
from tfexplain.operations import Affine, Linear, Operation, Sum
from tfexplain.rules.base import RecordedCall, Rule


@dataclass(frozen=True)
class PatternRule(Rule):
    """R_i = sum_j a_ij R_j (PatternNet) or sum_j a_ij w_ij R_j (PatternAttribution).

    The pattern a_j of an output has w_j . a_j = 1 ([kindermans2018learning]; Eqs. 10 and 11 of
    [sixt2020when]). It comes with the call as `parameters`: for a linear layer an array of the
    shape of its kernel, for an addition one number per summand and entry of the last axis. A
    normalisation has one input per output, and hence the pattern 1 / w.

    Args:
        attribution: Multiply the pattern by the weights.
    """

    attribution: bool = False
    handled: ClassVar[tuple[type[Operation], ...]] = (Linear, Sum, Affine)

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Sends relevance back through the pattern."""
        operation, x = call.operation, call.inputs[0]
        if isinstance(operation, Linear):
            (pattern,) = call.parameters
            if self.attribution:
                pattern = pattern * operation.kernel(x.dtype)
            return (operation.transpose(relevance[0], pattern, x),)
        if isinstance(operation, Affine):
            factor = operation.factor(call.inputs)
            own = tf.math.divide_no_nan(tf.ones_like(factor), factor)
            return (relevance[0] * expand(own * factor if self.attribution else own),)
        (pattern,) = call.parameters
        factors = operation.coefficients if self.attribution else (1.0,) * len(call.inputs)
        return tuple(
            sum_to_shape(c * pattern[place] * relevance[0], x.shape.as_list())
            for place, (c, x) in enumerate(zip(factors, call.inputs, strict=True))
        )
