"""DeepLIFT: multipliers, which are contributions per difference from a baseline.

D = x - x0 is the difference of an element from its value at the baseline. What these rules send
back is a multiplier m, and m D is the element's contribution to the explained output
([shrikumar2017learning]). Contributions are conserved: those of a call's inputs add up to those of
its outputs.

A difference also has a positive and a negative part, D = D+ + D- (`SignedParts`). These are sums of
positive and of negative contributions from the layers before, so that both may differ from 0 in one
element. Each can have a multiplier of its own, m+ and m-; the contribution is m+ D+ + m- D-. The
axis of vectors then holds all m+ and after them all m-, and an element has two multipliers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from tfexplain.checks import choice
from tfexplain.numerics import Tensor, expand, negative, only_where, positive, select
from tfexplain.operations import (
    Activation,
    Additive,
    AveragePooling,
    Condition,
    Diagonal,
    Factors,
    LogSumExp,
    Lookup,
    Movement,
    Operation,
    Quotient,
    Selection,
    TensorProduct,
)
from tfexplain.operations.base import NEGATIVE, POSITIVE, first_winners
from tfexplain.rules.base import Absorbed, RecordedCall, Rule, undefined_where
from tfexplain.rules.chords import chord, shares_of_log_sum, through_softmax


class SignedParts(NamedTuple):
    """The parts of a difference D = D+ + D-, each (batch, *shape).

    Attributes:
        positive: D+ >= 0.
        negative: D- <= 0.
    """

    positive: Tensor
    negative: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class DifferenceCall(RecordedCall):
    """One call with the tensors of two forward passes, at the input and at the baseline.

    Attributes:
        baseline_inputs: The inputs at the baseline, (batch or 1, *shape).
        baseline_outputs: The outputs at the baseline.
        parts: Those of each floating input, where an element has two multipliers.
        num_multipliers: 1, or 2 if m+ and m- arrive at the outputs.
        signed: Whether D+ >= 0 and D- <= 0 for certain: behind a function that falls somewhere, D+
            may be negative.
    """

    baseline_inputs: tuple[Tensor, ...]
    baseline_outputs: tuple[Tensor, ...]
    parts: tuple[SignedParts, ...] = ()
    num_multipliers: int = 1
    signed: bool = False

    @property
    def input_differences(self) -> list[Tensor]:
        """D of each input, x - x0."""
        return [x - x0 for x, x0 in zip(self.inputs, self.baseline_inputs, strict=True)]

    @property
    def output_differences(self) -> list[Tensor]:
        """D of each output, y - y0."""
        return [y - y0 for y, y0 in zip(self.outputs, self.baseline_outputs, strict=True)]

    def by_sign(self, multipliers: Tensor) -> tuple[Tensor, Tensor]:
        """Returns m+ and m-; a single m is both."""
        if self.num_multipliers == 1:
            return multipliers, multipliers
        above, below = tf.split(multipliers, 2, axis=1)
        return above, below

    def single(self, multipliers: Tensor, place: int = 0) -> Tensor:
        """Returns the multiplier that concerns the difference of an output."""
        if self.num_multipliers == 1:
            return multipliers
        above, below = self.by_sign(multipliers)
        return select(self.output_differences[place], above, below, (above + below) / 2)


@dataclass(frozen=True)
class DifferenceRule(Rule, abstract=True):
    """Base of the rules of DeepLIFT: `propagate` takes and returns multipliers.

    By default an input has one multiplier: each output has a difference of one sign, so one of its
    multipliers concerns nothing.
    """

    record: ClassVar[type[RecordedCall]] = DifferenceCall

    def leaving(self, arriving: int) -> int:
        """Returns how many multipliers an input gets, given how many an output has: 1 or 2."""
        return 1

    def parts(self, call: DifferenceCall) -> tuple[SignedParts, ...]:
        """Returns D+ and D- of each output; by default one of them is the whole difference."""
        return tuple(SignedParts(positive(d), negative(d)) for d in call.output_differences)


@dataclass(frozen=True)
class LinearDifference(DifferenceRule):
    """The linear rule: D > 0 meets W+ with m+ and W- with m-, D < 0 the other way round.

    m = W+^T m+ + W-^T m- where D > 0, W-^T m+ + W+^T m- where D < 0, half of both where D = 0
    ([shrikumar2017learning]; Eq. 13 of [sixt2020when]). D is the whole difference of an input.
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (Additive,)

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the multipliers of the inputs, for both signs."""
        operation = call.operation
        if call.num_multipliers == 1:
            return operation.gradient(call.inputs, call.outputs, relevance)
        above, below = call.by_sign(relevance[0])
        return operation.pull_differences(call.inputs, call.input_differences, above, below)

    def parts(self, call: DifferenceCall) -> tuple[SignedParts, ...]:
        """Returns the sums of positive and of negative contributions to each output."""
        differences = call.input_differences
        # c+ = (c + |c|) / 2, and the contributions add up to the difference of the output.
        whole = call.output_differences[0]
        apart = call.operation.magnitude_sum(differences)
        # Rounding may leave a little of the other sign.
        return (SignedParts(positive((whole + apart) / 2), negative((whole - apart) / 2)),)


@dataclass(frozen=True)
class AblatedLinear(DifferenceRule):
    """The linear rule without its mixing of positive and negative multipliers.

    Args:
        definition: "as_run", what the code of [sixt2020when] runs: m = W+^T m for both signs.
            "as_written", what its text says: W+ for positive and W- for negative differences,
            m+ = [D > 0] W+^T m+ and m- = [D < 0] W-^T m-.

    Raises:
        ValueError: For another definition.
    """

    definition: str = "as_run"
    handled: ClassVar[tuple[type[Operation], ...]] = (Additive,)
    conserved_at: ClassVar[tuple[type[Operation], ...]] = ()

    def __post_init__(self) -> None:
        """Checks the value."""
        known = ("as_run", "as_written")
        object.__setattr__(self, "definition", choice("definition", self.definition, known))

    def leaving(self, arriving: int) -> int:
        """Two decoupled chains as written, one as run."""
        return 2 if self.definition == "as_written" else 1

    def inside_scan(self) -> None:
        """Its multipliers are scaled where one tensor carries all of them, which no state does."""
        return None

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the multipliers of the inputs."""
        if self.definition == "as_run":
            return self._pulled(call, relevance[0], POSITIVE)
        above, below = call.by_sign(relevance[0])
        above, below = self._pulled(call, above, POSITIVE), self._pulled(call, below, NEGATIVE)
        results = []
        for d, first, second in zip(call.input_differences, above, below, strict=True):
            results.append(tf.concat([only_where(d > 0, first), only_where(d < 0, second)], axis=1))
        return tuple(results)

    @staticmethod
    def _pulled(call: DifferenceCall, relevance: Tensor, part: str) -> tuple[Tensor, ...]:
        """Sends multipliers through one sign of the weights."""
        weights = call.operation.weights(call.inputs, part)
        return call.operation.pull_weights(call.inputs, relevance, weights)


@dataclass(frozen=True)
class AffineDifference(DifferenceRule):
    """A factor for each element; a negative one exchanges m+ and m- ([shrikumar2017learning])."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Diagonal,)

    def leaving(self, arriving: int) -> int:
        """As many as arrive."""
        return arriving

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns m times the factor."""
        if call.num_multipliers == 1:
            return call.operation.gradient(call.inputs, call.outputs, relevance)
        factor = expand(call.operation.factor(call.inputs))
        above, below = call.by_sign(relevance[0])
        up, down = positive(factor), negative(factor)
        return (tf.concat([up * above + down * below, up * below + down * above], axis=1),)

    def parts(self, call: DifferenceCall) -> tuple[SignedParts, ...]:
        """Returns the scaled parts, exchanged where the factor is negative."""
        factor = call.operation.factor(call.inputs)
        ((above, below),) = call.parts
        up, down = positive(factor), negative(factor)
        return (SignedParts(up * above + down * below, up * below + down * above),)


@dataclass(frozen=True)
class Transport(DifferenceRule):
    """Multipliers go the way of the gradient: where elements move, and where they are averaged.

    At max pooling, which may have this rule too, everything goes to the winner of the input alone.
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (
        Movement,
        Lookup,
        Condition,
        AveragePooling,
        Selection,
    )
    conserved_at: ClassVar[tuple[type[Operation], ...]] = (
        Movement,
        Lookup,
        Condition,
        AveragePooling,
    )

    def leaving(self, arriving: int) -> int:
        """As many as arrive."""
        return arriving

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the vector-Jacobian product."""
        return call.operation.gradient(call.inputs, call.outputs, relevance)

    def parts(self, call: DifferenceCall) -> tuple[SignedParts, ...]:
        """Moves the parts as the elements move."""
        operation, moved = call.operation, []
        if not isinstance(operation, Movement | AveragePooling):
            return super().parts(call)
        for parts in zip(*call.parts, strict=True):
            if isinstance(operation, Movement):
                result = operation.moved(call.inputs, parts)
            else:
                result = operation.forward(*parts)
            moved.append(list(result) if isinstance(result, list | tuple) else [result])
        return tuple(SignedParts(*pair) for pair in zip(*moved, strict=True))


@dataclass(frozen=True)
class Rescale(DifferenceRule):
    """m_x = m_y D_y / D_x, with the derivative as limit ([shrikumar2017learning]).

    A softmax inside of the network is taken as exp(x - log sum exp x).
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (Activation,)

    def handles(self, operation: Any) -> bool:
        """Functions of single elements, and softmax."""
        return super().handles(operation) and (not operation.joint or operation.name == "softmax")

    def leaving(self, arriving: int) -> int:
        """As many as arrive."""
        return arriving

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Multiplies by the slope of the chord between baseline and input."""
        (x,), (x0,) = call.inputs, call.baseline_inputs
        if call.operation.joint:
            # Its outputs have differences of one sign each.
            multipliers = through_softmax(call.operation, x, x0, call.single(relevance[0]))
            return (tf.concat([multipliers] * call.num_multipliers, axis=1),)
        slope = chord(call.operation, x0, x, rise=call.output_differences[0])
        return (relevance[0] * expand(slope),)

    def parts(self, call: DifferenceCall) -> tuple[SignedParts, ...]:
        """Scales both parts alike."""
        if call.operation.joint:
            return super().parts(call)
        ends = call.baseline_inputs[0], call.inputs[0]
        slope = chord(call.operation, *ends, rise=call.output_differences[0])
        ((above, below),) = call.parts
        return (SignedParts(slope * above, slope * below),)


@dataclass(frozen=True)
class PassDifference(DifferenceRule):
    """Contributions pass unchanged, as a layer declares: m_x = m_y D_y / D_x, m_y where D_x = 0."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Activation,)

    def handles(self, operation: Any) -> bool:
        """Layers that declare `relevance_policy = "pass"`."""
        return super().handles(operation) and operation.declared

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Multiplies by the ratio of the differences, element by element."""
        (moved,), (difference,) = call.input_differences, call.output_differences
        still = tf.equal(moved, 0)
        ratio = difference / tf.where(still, tf.ones_like(moved), moved)
        ratio = tf.where(still, tf.ones_like(ratio), ratio)
        return (call.single(relevance[0]) * expand(ratio),)

    def absorbed(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """The contribution of an output reaches nobody where its input does not differ."""
        (moved,), (difference,) = call.input_differences, call.output_differences
        contribution = call.single(relevance[0]) * expand(difference)
        return undefined_where(tf.equal(moved, 0), contribution)


@dataclass(frozen=True)
class RevealCancel(DifferenceRule):
    """D+ and D- act one after the other, averaged over both orders ([shrikumar2017learning]).

    D_y+ = (f(x0 + D+) - f(x0)) / 2 + (f(x0 + D- + D+) - f(x0 + D-)) / 2, D_y- in the same way, and
    m+ and m- are multiplied by D_y+ / D+ and D_y- / D-, with the derivative as limit. A function
    such as the logarithm, which some numbers have none of, has another rule: x0 + D- may be one of
    these though neither x nor x0 is.
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (Activation,)

    def handles(self, operation: Any) -> bool:
        """Functions of single elements that are defined for all numbers."""
        return super().handles(operation) and not (operation.joint or operation.partial)

    def leaving(self, arriving: int) -> int:
        """Always two."""
        return 2

    def _slopes(self, call: DifferenceCall) -> tuple[Tensor, Tensor]:
        (x0,), ((above, below),) = call.baseline_inputs, call.parts
        operation, end = call.operation, x0 + above + below
        raised, lowered = x0 + above, x0 + below

        def slope(low: Tensor, high: Tensor) -> Tensor:
            return chord(operation, low, high, ascends=call.signed)

        up = slope(x0, raised) + slope(lowered, end)
        down = slope(lowered, x0) + slope(end, raised)
        return up / 2, down / 2

    def inside_scan(self) -> Rule:
        """Parts of differences are not carried through time: there it is Rescale."""
        return Rescale()

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Multiplies m+ and m- each by its own slope."""
        above, below = call.by_sign(relevance[0])
        up, down = self._slopes(call)
        return (tf.concat([expand(up) * above, expand(down) * below], axis=1),)

    def parts(self, call: DifferenceCall) -> tuple[SignedParts, ...]:
        """Returns D_y+ and D_y-."""
        up, down = self._slopes(call)
        ((above, below),) = call.parts
        return (SignedParts(up * above, down * below),)


@dataclass(frozen=True)
class MaxDifference(DifferenceRule):
    """Maxima: D_y > 0 belongs to the winner of the input, D_y < 0 to that of the baseline.

    Where the smallest element wins it is the other way round. The contributions then add up to
    m_y D_y, which the gradient does not give. Where nothing differs, the gradient is the limit.
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (Selection,)

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns contributions divided by the differences of the inputs."""
        arriving, operation = call.single(relevance[0]), call.operation
        elements, before = map(operation.candidates, (call.inputs, call.baseline_inputs))
        if elements is None:
            return self._summed(call, arriving)
        # A winner has one output, which makes the formula m_y D_y / D_x at each.
        (difference,) = call.output_differences
        falls = difference < 0 if operation.largest else difference > 0
        wins = [
            tf.where(falls, of_x0, of_x)
            for of_x, of_x0 in zip(
                first_winners(elements, call.outputs[0]),
                first_winners(before, call.baseline_outputs[0]),
                strict=True,
            )
        ]
        moved = elements[0] - before[0]
        for won, x, x0 in zip(wins[1:], elements[1:], before[1:], strict=True):
            moved = tf.where(won, x - x0, moved)
        one = tf.ones((), moved.dtype)
        ratio = tf.where(tf.equal(moved, 0), one, tf.math.divide_no_nan(difference, moved))
        sent = arriving * expand(ratio)
        return operation.placed([only_where(won, sent) for won in wins], call.inputs)

    @staticmethod
    def _summed(call: DifferenceCall, arriving: Tensor) -> tuple[Tensor, ...]:
        """Sums contributions where an element may be the winner of several outputs."""
        x, (y,) = call.inputs, call.outputs
        pairs = zip(call.baseline_inputs, x, strict=True)
        x0 = tuple(tf.broadcast_to(before, tf.shape(after)) for before, after in pairs)
        y0 = tf.broadcast_to(call.baseline_outputs[0], tf.shape(y))
        difference, route = y - y0, call.operation.route
        ends = (positive, negative) if call.operation.largest else (negative, positive)
        of_x = route(x, (y,), arriving * expand(ends[0](difference)))
        of_x0 = route(x0, (y0,), arriving * expand(ends[1](difference)))
        still = only_where(tf.equal(difference, 0), arriving)
        results = []
        limits = route(x, (y,), still)
        for after, before, first, second, limit in zip(x, x0, of_x, of_x0, limits, strict=True):
            moved = expand(after - before)
            share = tf.math.divide_no_nan(first + second, moved)
            results.append(tf.where(tf.equal(moved, 0), limit, share))
        return tuple(results)


@dataclass(frozen=True)
class ProductDifference(DifferenceRule):
    """x y - x0 y0 = (x - x0) (y + y0) / 2 + (y - y0) (x + x0) / 2, factor by factor.

    The two orders in which the factors change are averaged, also where a product sums over axes. A
    quotient is the product with the reciprocal of its divisor.
    """

    handled: ClassVar[tuple[type[Operation], ...]] = (Factors, TensorProduct, Quotient)

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Multiplies by the mean of the other factor at input and baseline."""
        arriving = call.single(relevance[0])
        return call.operation.average_orders(call.inputs, call.baseline_inputs, arriving)


@dataclass(frozen=True)
class LogSumExpDifference(DifferenceRule):
    """log sum exp x by the chords of its exponentials and of the logarithm of their sum."""

    handled: ClassVar[tuple[type[Operation], ...]] = (LogSumExp,)

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gives each summand its share of the difference, divided by its own."""
        (x,), (x0,), operation = call.inputs, call.baseline_inputs, call.operation
        share = shares_of_log_sum(x, x0, operation.axes)
        return (expand(share) * operation.spread(call.single(relevance[0]), x),)
