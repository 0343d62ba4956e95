"""Rules without parameters for operations that only route relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from tfexplain.numerics import Tensor
from tfexplain.operations import (
    Activation,
    AveragePooling,
    Bystander,
    Gate,
    Merge,
    Operation,
    Scaling,
    Selection,
    Sum,
    TensorProduct,
)
from tfexplain.rules.base import Absorbed, RecordedCall, Rule, total, undefined_where
from tfexplain.rules.contributions import ContributionRule
from tfexplain.rules.groups import Group


@dataclass(frozen=True)
class NoRelevance(Rule):
    """Nothing arrives, and nothing leaves: what is computed beside the signal."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Bystander,)
    conserved_at: ClassVar[tuple[type[Operation], ...]] = ()

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns nothing: no input gets relevance."""
        return ()

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """What arrives at constants, such as positions, stays there."""
        return Absorbed(undefined=sum(total(part) for part in relevance))


@dataclass(frozen=True)
class SignalTakesAll(Rule):
    """A gate gets nothing, the signal that it multiplies everything ([arras2017explaining])."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Gate,)

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns all for the signal and zeros for the gate."""
        return relevance[0], tf.zeros_like(relevance[0])


@dataclass(frozen=True)
class Pass(Rule):
    """R_x = R_y: single elements keep their relevance (activations, scalings) ([bach2015pixel])."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Activation, Scaling)

    def is_sign_blind(self) -> bool:
        """Tells that signs of summands do not matter."""
        return True

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the relevance unchanged."""
        return relevance


@dataclass(frozen=True)
class Proportional(ContributionRule):
    """R_i = sum_j x_i w_ij / z_j R_j, at average pooling and additions ([bach2015pixel])."""

    handled: ClassVar[tuple[type[Operation], ...]] = (AveragePooling, Sum)

    @property
    def groups(self) -> tuple[Group, ...]:
        """All contributions alike."""
        return (Group(1, 1, 1, 1),)

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the share of each input."""
        if isinstance(call.operation, Sum):
            return super().propagate(call, relevance)
        return call.operation.in_proportion(call.inputs, call.outputs, relevance[0])

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """Averages of 0 give their relevance to nobody."""
        if isinstance(call.operation, Sum):
            return super().absorbed(call, relevance)
        return undefined_where(tf.equal(call.outputs[0], 0), relevance[0])


@dataclass(frozen=True)
class Winner(Rule):
    """Max pooling gives everything to the first winner of a window ([montavon2017explaining])."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Selection,)

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Routes to the winner."""
        return call.operation.route(call.inputs, call.outputs, relevance[0])


@dataclass(frozen=True)
class AverageOfWindow(Rule):
    """Max pooling shares in proportion to its inputs, as average pooling does ([bach2015pixel])."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Selection,)

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Shares in proportion to x_i over the window."""
        return call.operation.share_as_average(call.inputs, call.outputs, relevance[0])

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """Windows whose inputs add up to 0 give their relevance to nobody."""
        average = call.operation.average(call.inputs, call.outputs)
        return undefined_where(tf.equal(average, 0), relevance[0])


@dataclass(frozen=True)
class EqualShares(Rule):
    """Factors or summands get the same share (uniform rule, [achtibat2024attnlrp]).

    At a product that sums over axes, R_A = A * (q B^T) and R_B = B * (A^T q) with q = R / (2 y).
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (Merge, TensorProduct)

    def is_sign_blind(self) -> bool:
        """Tells that signs of summands do not matter."""
        return True

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Divides by the number of inputs."""
        return call.operation.equal_shares(call.inputs, call.outputs, relevance[0])

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """Sums of products that are 0 give their relevance to nobody."""
        if not isinstance(call.operation, TensorProduct):
            return Absorbed()
        return undefined_where(tf.equal(call.outputs[0], 0), relevance[0])
