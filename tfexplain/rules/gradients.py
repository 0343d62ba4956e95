"""Gradient rules: the plain vector-Jacobian product and its modifications at rectifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow as tf

from tfexplain.checks import real
from tfexplain.numerics import Tensor, expand, positive, shape_of
from tfexplain.operations import (
    RECTIFIERS,
    Activation,
    Condition,
    LogSumExp,
    Lookup,
    Movement,
    Operation,
)
from tfexplain.rules.base import Absorbed, RecordedCall, Rule, undefined_where


@dataclass(frozen=True)
class Gradient(Rule):
    """The vector-Jacobian product of the operation ([simonyan2014deep]).

    Where elements only move, are copied or joined, it hands on what it receives; so it does at a
    smooth maximum.
    """

    conserved_at: ClassVar[tuple[type[Operation], ...]] = (Movement, Lookup, Condition, LogSumExp)

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns R dy/dx for each input x."""
        return call.operation.gradient(call.inputs, call.outputs, relevance)

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """Padded zeros and constants are no elements of an input: theirs reaches nobody."""
        if not isinstance(call.operation, Movement):
            return Absorbed()
        moving = [x for x in call.inputs if x.dtype.is_floating] or call.inputs
        ones = [tf.ones_like(x, dtype=relevance[0].dtype) for x in moving]
        moved = call.operation.moved(call.inputs, ones)
        # A copy of an element is 1, what is padded stays 0.
        copies = moved if isinstance(moved, list | tuple) else [moved]
        padded = [
            undefined_where(tf.equal(copy, 0), r) for copy, r in zip(copies, relevance, strict=True)
        ]
        return Absorbed(undefined=sum(part.undefined for part in padded))


@dataclass(frozen=True)
class RectifierRule(Rule, abstract=True):
    """Base of rules for ReLU, ReLU6, LeakyReLU and PReLU."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Activation,)
    conserved_at: ClassVar[tuple[type[Operation], ...]] = ()

    def handles(self, operation: Any) -> bool:
        """Rectifiers only."""
        return super().handles(operation) and operation.name in RECTIFIERS


@dataclass(frozen=True)
class GuidedReLU(RectifierRule):
    """R_x = f'(x) max(R_y, 0) ([springenberg2015striving]; Eq. 14 of [sixt2020when])."""

    linear: ClassVar[bool] = False

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keeps positive relevance where the rectifier is open."""
        return call.operation.gradient(call.inputs, call.outputs, (positive(relevance[0]),))


@dataclass(frozen=True)
class DeconvReLU(RectifierRule):
    """R_x = max(R_y, 0), wherever the rectifier was open ([zeiler2014visualizing])."""

    linear: ClassVar[bool] = False

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keeps positive relevance."""
        return (positive(relevance[0]),)


@dataclass(frozen=True)
class RectGrad(RectifierRule):
    """Lets through only relevance whose product with the activation is among the largest.

    R_x = f'(x) R_y where y R_y > tau, else 0, with y = f(x) and tau the given percentile of
    y R_y over all units of a sample (nearest rank) ([kim2019saliency]).

    Args:
        percentile: Float in [0, 100).

    Raises:
        ValueError: If it is outside.
    """

    percentile: float = 98.0
    linear: ClassVar[bool] = False

    @property
    def compares_elements(self) -> bool:
        """It has a threshold for each sample."""
        return True

    def __post_init__(self) -> None:
        """Checks the value."""
        object.__setattr__(self, "percentile", real("percentile", self.percentile, 0, 100))

    def inside_scan(self) -> None:
        """The units of a sample are those of one call, not of one step."""
        return None

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Thresholds per sample and vector, then applies the derivative."""
        (arriving,) = relevance
        product = expand(call.outputs[0]) * arriving
        batch, vectors = shape_of(product)[:2]
        ordered = tf.sort(tf.reshape(product, [batch, vectors, -1]), axis=-1)
        last = shape_of(ordered)[-1] - 1
        rank = tf.round(tf.cast(last, tf.float64) * (self.percentile / 100))
        tau = tf.gather(ordered, tf.cast(rank, tf.int32), axis=-1)
        tau = tf.reshape(tau, [batch, vectors] + [1] * (len(product.shape) - 2))
        kept = tf.where(product > tau, arriving, tf.zeros((), arriving.dtype))
        return call.operation.gradient(call.inputs, call.outputs, (kept,))
