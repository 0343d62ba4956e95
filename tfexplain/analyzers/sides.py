"""Both classes of one sigmoid unit: which of them speaks, and maps of each."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import keras
import numpy as np

from tfexplain.analyzers.capabilities import Capabilities
from tfexplain.compilation import Execution

S = TypeVar("S", bound="BothSides")

SIDES = POSITIVE_SIDE, NEGATIVE_SIDE, PREDICTED_SIDE = "positive", "negative", "predicted"


def is_side(target: Any) -> bool:
    """Returns whether a target is one of the words for a sigmoid unit."""
    return isinstance(target, str) and target in SIDES


class BothSides(Capabilities, abc.ABC):
    """Analyzers of one sigmoid unit explain two classes: 1, for which the unit speaks, and 0.

    Class 0 is explained by a second analyzer. Nobody but the first one holds it: name, options and
    files do not say its side.

    Attributes:
        side: For which class it speaks: "positive" (class 1) or "negative" (class 0).
    """

    user_model: keras.Model
    output_activation: str
    side: str = POSITIVE_SIDE
    execution: Execution
    _options: dict[str, Any]
    # What its name sets, which is no option.
    _preset: Mapping[str, Any] = MappingProxyType({})
    _opposite: BothSides | None = None

    @classmethod
    @abc.abstractmethod
    def named(
        cls: type[S],
        name: str,
        model: keras.Model,
        preset: Mapping[str, Any],
        options: Mapping[str, Any],
        side: str = POSITIVE_SIDE,
        execution: Execution | None = None,
    ) -> S:
        """Creates an analyzer of this class under a name."""

    @property
    @abc.abstractmethod
    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of the explained tensor, without the batch axis."""

    @abc.abstractmethod
    def outputs(self, x: Any, *, batch_size: int = 32) -> np.ndarray:
        """Returns the explained tensor."""

    @abc.abstractmethod
    def _run(self, x: Any, target: Any, batch_size: int) -> tuple:
        """Returns (the input as given, relevance, outputs, targets)."""

    @property
    def has_sides(self) -> bool:
        """Whether one sigmoid unit is explained, which speaks for two classes."""
        return False

    @property
    def _sees_signs(self) -> bool:
        """Whether opposite contributions to the logit may change more than the map's sign.

        It is asked of the analyzer of class 0.
        """
        return True

    @property
    def _starts_with_sign(self) -> bool:
        """Whether the map of the same network for the logit times -1 is another one."""
        return True

    def check_side(self, side: str) -> None:
        """Refuses a word for a class of a sigmoid unit that cannot be explained.

        Args:
            side: One of `SIDES`.

        Raises:
            ValueError: If no single sigmoid unit is explained, or class 0 has no map of its own.
        """
        if not self.has_sides:
            raise ValueError(
                f"The targets {', '.join(map(repr, SIDES))} are for an output of one sigmoid unit. "
                f"The explained output of {self.user_model.name!r} has the shape "
                f"{self.output_shape} and is no such unit: give the index of an output."
            )
        if side != POSITIVE_SIDE:
            self._of_class_0()

    def _of_class_0(self: S) -> S:
        """Returns the same method for class 0 of a sigmoid unit.

        The last linear layer has -W and -b there, so that methods which treat signs apart speak for
        that class; if the logit is a weighted sum of several, all of them have. Where something
        else makes the logit, such as a maximum, the logit is multiplied by -1.

        A probability p becomes 1 - p.

        Raises:
            ValueError: If that changes no map, because the method starts with 1 and shares it out.
        """
        if self._opposite is None:
            opposite = self.named(
                self.name,
                self.user_model,
                self._preset,
                self._options,
                NEGATIVE_SIDE,
                self.execution,
            )
            if not (opposite._sees_signs or self._starts_with_sign):
                raise ValueError(
                    f"{self.name} has the same map for both classes of {self.user_model.name!r}: "
                    "they do not depend on the sign of the logit, and no layer that makes it and "
                    "can have -W and -b has a rule that treats signs apart. Use a method that "
                    "starts with the value of the logit (head='logit'), or a gradient method."
                )
            self._opposite = opposite
        return self._opposite  # type: ignore[return-value]  # made by `named` of this very class

    def _run_side(self, x: Any, side: str, batch_size: int) -> tuple:
        """Explains the class that a word names, as `_run`."""
        self.check_side(side)
        if side == POSITIVE_SIDE:
            return self._run(x, 0, batch_size)
        if side == NEGATIVE_SIDE:
            return self._of_class_0()._run(x, 0, batch_size)
        template, relevance, outputs, targets = self._run(x, 0, batch_size)
        negative = self._speaks_for_0(outputs)
        if negative.any():
            _, others, other_outputs, _ = self._of_class_0()._run(template, 0, batch_size)
            outputs = _of_samples(negative, other_outputs, outputs)
            relevance = [
                _of_samples(negative, other, one)
                for one, other in zip(relevance, others, strict=True)
            ]
        return template, relevance, outputs, targets

    def _explained_sides(self, x: Any, side: str, count: int, batch_size: int) -> list[str]:
        """Returns which class speaks for each of `count` samples, by one of `SIDES`."""
        if side != PREDICTED_SIDE:
            return [side] * count
        negative = self._speaks_for_0(self.outputs(x, batch_size=batch_size))
        return [NEGATIVE_SIDE if of_class_0 else POSITIVE_SIDE for of_class_0 in negative]

    def _speaks_for_0(self, outputs: np.ndarray) -> np.ndarray:
        """Returns which samples are predicted to be of class 0; a logit of 0 is class 1."""
        return outputs.reshape(-1) < (0.5 if self.output_activation == "keep" else 0.0)


def _of_samples(chosen: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns `first` for the chosen samples, (n,), and `second` for the others."""
    return np.where(chosen.reshape(-1, *[1] * (first.ndim - 1)), first, second)
