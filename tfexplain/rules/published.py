"""Rules that only reproduce published code; experiments use them, no default does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from tfexplain.numerics import Tensor
from tfexplain.operations import Operation, Sum
from tfexplain.rules.base import Absorbed, RecordedCall, Rule, rule_from_config, total


@dataclass(frozen=True)
class ClippedAddition(Rule):
    """Another rule at an addition, with the result clipped to [low, high].

    The published ResNet code of [sixt2020when] clips to [0, 1000] at every addition, which makes
    the backward pass non-linear and deletes negative relevance.

    Args:
        inner: The rule that shares the relevance.
        low: Smallest relevance that is kept.
        high: Largest relevance that is kept.

    Raises:
        ValueError: If `inner` is no rule of additions, or low is not below high.
    """

    inner: Rule
    low: float = 0.0
    high: float = 1000.0
    handled: ClassVar[tuple[type[Operation], ...]] = (Sum,)
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Takes the inner rule also as a configuration, and checks the values."""
        if isinstance(self.inner, dict):
            object.__setattr__(self, "inner", rule_from_config(self.inner))
        if not isinstance(self.inner, Rule) or not issubclass(Sum, self.inner.handled):
            raise ValueError(f"inner must be a rule of additions, received {self.inner!r}.")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, received {self.low!r} and {self.high!r}.")

    def is_sign_blind(self) -> bool:
        """Tells whether the inner rule is."""
        return self.inner.is_sign_blind()

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Shares by the inner rule, then clips."""
        shares = self.inner.propagate(call, relevance)
        return tuple(self._clipped(share) for share in shares)

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """What is cut off reaches nobody, beside what the inner rule gives to nobody."""
        shares = self.inner.propagate(call, relevance)
        cut = sum(total(share - self._clipped(share)) for share in shares)
        inner = self.inner.absorbed(call, relevance)
        return inner._replace(undefined=inner.undefined + cut)

    def _clipped(self, share: Tensor) -> Tensor:
        return tf.clip_by_value(share, self.low, self.high)
