"""PatternNet and PatternAttribution: fitted patterns take the place of weights on the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from tfexplain.numerics import Tensor
from tfexplain.operations import Additive, Operation
from tfexplain.rules.base import RecordedCall, Rule


@dataclass(frozen=True, eq=False, kw_only=True)
class PatternCall(RecordedCall):
    """One call with what was fitted for it.

    Attributes:
        parameters: The pattern, if the call has one.
    """

    parameters: tuple[Tensor, ...] = ()


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
    handled: ClassVar[tuple[type[Operation], ...]] = (Additive,)
    conserved_at: ClassVar[tuple[type[Operation], ...]] = ()
    record: ClassVar[type[RecordedCall]] = PatternCall

    def inside_scan(self) -> None:
        """No patterns are fitted inside of cells."""
        return None

    def propagate(self, call: PatternCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Sends relevance back through the pattern.

        Raises:
            ValueError: If no pattern was fitted to an operation that needs one.
        """
        weights = call.operation.weights(call.inputs)
        if call.parameters:
            (pattern,) = call.parameters
        elif call.operation.fitted:
            raise ValueError(
                f"{call.operation.label} has no pattern: PatternRule belongs to pattern.net and "
                "pattern.attribution, which fit one for each such call."
            )
        else:
            pattern = tf.math.divide_no_nan(tf.ones_like(weights), weights)
        if self.attribution:
            pattern = pattern * weights
        return call.operation.pull_weights(call.inputs, relevance[0], pattern)
