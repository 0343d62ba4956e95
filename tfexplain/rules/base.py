"""What every rule is: a frozen value that redistributes the relevance of one call."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from tfexplain.numerics import Tensor, only_where
from tfexplain.operations import Operation


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """One call with the tensors of this forward pass.

    A rule that reads more of it has a subclass for that, which it names as its `record`.

    Attributes:
        operation: What was computed.
        inputs: Tensors (batch, *shape).
        outputs: Tensors (batch, *shape).
        nonnegative: For each input, whether it is >= 0 for certain.
        vanishing: No relevance arrives where the output is < 0.
    """

    # An `Operation` of a class that the rule handles, and knows.
    operation: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nonnegative: tuple[bool, ...] = ()
    vanishing: bool = False


class Absorbed(NamedTuple):
    """Relevance that reaches no input of a call, each (batch, num_vectors) or a number for all.

    Attributes:
        bias: The share of the bias.
        stabilizer: The share of what is added to denominators.
        undefined: What the rule gives to nobody: shares of 0/0, and what its routing drops.
    """

    bias: Tensor | float = 0.0
    stabilizer: Tensor | float = 0.0
    undefined: Tensor | float = 0.0


RULES: dict[str, type[Rule]] = {}


@dataclass(frozen=True)
class Rule:
    """Redistributes the relevance of a call's outputs to its inputs.

    A rule is a value: it holds numbers, no layer and no tensor. Subclasses are frozen dataclasses;
    they enter `RULES` when they are defined.

    Attributes:
        handled: Kinds of operations it is defined for.
        conserved_at: Kinds of operations at which it hands on what it receives, no more and no
            less: what reaches the inputs and what is `absorbed` add up to what arrived.
        linear: What it returns is linear in the relevance.
        record: What it has to know of a call; reversed networks record that.
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (Operation,)
    conserved_at: ClassVar[tuple[type[Operation], ...]] = (Operation,)
    linear: ClassVar[bool] = True
    record: ClassVar[type[RecordedCall]] = RecordedCall

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        """Enters the class into the registry that saving and loading use.

        Raises:
            ValueError: If another module has a rule of that name.
        """
        super().__init_subclass__(**kwargs)
        if abstract:
            return
        known = RULES.setdefault(cls.__name__, cls)
        # The same class again: decorators and reloaded modules make classes anew.
        if known.__module__ != cls.__module__:
            raise ValueError(f"There is a rule {cls.__name__!r} already; choose another name.")
        RULES[cls.__name__] = cls

    def handles(self, operation: Any) -> bool:
        """Tells whether the rule is defined for an operation."""
        return isinstance(operation, self.handled)

    @property
    def compares_elements(self) -> bool:
        """Whether it compares all elements of a sample: their axis has to be the first one then."""
        return False

    def conserves(self, operation: Operation) -> bool:
        """Tells whether it hands on at an operation what it receives."""
        return isinstance(operation, self.conserved_at)

    def inside_scan(self) -> Rule | None:
        """Returns what stands for the rule inside of a recurrent cell; None if nothing does."""
        return self

    def is_sign_blind(self) -> bool:
        """Tells whether it shares out a sum alike if all summands have the opposite signs."""
        return False

    def propagate(self, call: Any, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the relevance of each input.

        Args:
            call: The call with its tensors, of the class `record`.
            relevance: One (batch, num_vectors, *shape) for each output.

        Returns:
            One (batch, num_vectors, *shape) for each input, same unit.
        """
        raise NotImplementedError

    def absorbed(self, call: Any, relevance: tuple[Tensor, ...]) -> Absorbed:
        """Returns the relevance that reaches no input, for the ledger; by default none does.

        It follows from the rule's formula, never from what `propagate` has returned: the ledger
        compares the two.

        Args:
            call: The call with its tensors, of the class `record`.
            relevance: What arrived, one (batch, num_vectors, *shape) for each output.
        """
        return Absorbed()

    def to_config(self) -> dict[str, Any]:
        """Returns the rule as JSON-able data."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"rule": type(self).__name__, **{k: plain(v) for k, v in fields.items()}}


class UnknownRuleError(ValueError):
    """A rule that a configuration names is not defined in this process."""


def rule_from_config(config: dict[str, Any]) -> Rule:
    """Returns the rule that `to_config` described.

    Raises:
        UnknownRuleError: If there is no such rule.
    """
    values = dict(config)
    name = values.pop("rule", None)
    if name not in RULES:
        raise UnknownRuleError(
            f"There is no rule {name!r}; known rules: {', '.join(sorted(RULES))}. Of a rule of "
            "your own, import the module that defines it first."
        )
    return RULES[name](**values)


def total(relevance: Tensor) -> Tensor:
    """Sums relevance over everything but (batch, num_vectors)."""
    return tf.reduce_sum(relevance, axis=list(range(2, len(relevance.shape))))


def undefined_where(missing: Tensor, relevance: Tensor) -> Absorbed:
    """Returns that the relevance of some outputs reaches no input, and all other relevance does.

    Args:
        missing: Which outputs those are, boolean, (batch or 1, *shape).
        relevance: What arrived, (batch, num_vectors, *shape).
    """
    return Absorbed(undefined=total(only_where(missing, relevance)))


def plain(value: Any) -> Any:
    """Returns tuples as lists, and rules by their own configuration."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value.to_config() if isinstance(value, Rule) else value


def freeze_array(value: Any, name: str) -> float | tuple:
    """Returns a number, or an array as nested tuples: comparable, hashable, writable as JSON.

    Raises:
        ValueError: If it is not numeric or not finite.
    """
    try:
        array = np.asarray(value, dtype="float64")
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number or an array, received {value!r}.") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, received {value!r}.")

    def nested(item: Any) -> float | tuple:
        return tuple(nested(part) for part in item) if isinstance(item, list) else item

    return nested(array.tolist())
