"""Rules of recurrent layers: the rules of one step, applied from the last step to the first.

A scan runs a step of a few operations over time (`tfexplain.operations.scans`). On the way back,
states hand relevance from each step to the one before; the tensors of a step are computed again
from what it read, so that memory holds the states alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow as tf

from tfexplain.numerics import Tensor, shape_of
from tfexplain.operations import Call, Node, Operation, Scan
from tfexplain.operations.scans import where_counts
from tfexplain.rules.base import Absorbed, RecordedCall, Rule, rule_from_config, total
from tfexplain.rules.differences import DifferenceCall, DifferenceRule
from tfexplain.rules.routing import SignalTakesAll

# The tensors of one step in each forward pass.
Passes = Sequence[dict[Node, Tensor]]
# Records a call of a step, given the tensors of each pass.
Record = Callable[[Call, Passes], Any]


def _named_rules(value: Any) -> tuple[tuple[str, Rule], ...]:
    """Returns pairs of name and rule, of which rules may be configurations."""
    return tuple(
        (name, rule_from_config(rule) if isinstance(rule, dict) else rule) for name, rule in value
    )


@dataclass(frozen=True)
class ThroughTime(Rule):
    """The rules of the operations of a cell, at every step of a recurrent layer.

    With those of LRP it is the rule of [arras2017explaining] for LSTM and GRU: gates get nothing,
    the signals that they multiply everything; the sum of the cell shares in proportion; biases
    absorb. Relevance of states that start as zeros reaches nobody.

    Args:
        rules: Pairs of the name of a call of the step and its rule.
    """

    rules: tuple[tuple[str, Rule], ...]
    handled: ClassVar[tuple[type[Operation], ...]] = (Scan,)

    def __post_init__(self) -> None:
        """Takes rules also as configurations."""
        object.__setattr__(self, "rules", _named_rules(self.rules))
        object.__setattr__(self, "linear", all(rule.linear for _, rule in self.rules))

    def __str__(self) -> str:
        """Leaves out the rules, which a table has in rows of their own."""
        return "ThroughTime()"

    @property
    def compares_elements(self) -> bool:
        """Whether a rule of the step does."""
        return any(rule.compares_elements for _, rule in self.rules)

    def conserves(self, operation: Operation) -> bool:
        """Tells whether the rules of all calls of the step conserve."""
        return isinstance(operation, Scan) and _all_conserve(self.rules, operation)

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the relevance of the sequence, and of the first states that are given."""
        return self._way(call, relevance, account=False).inputs

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """Adds up what the calls of all steps absorb, and what ends at zeros."""
        return self._way(call, relevance, account=True).absorbed

    def _way(self, call: RecordedCall, relevance: tuple[Tensor, ...], account: bool) -> _Way:
        def record(inner: Call, passes: Passes) -> RecordedCall:
            (tensors,) = passes
            return RecordedCall(
                inner.operation,
                tuple(tensors[node] for node in inner.inputs),
                tuple(tensors[node] for node in inner.outputs),
                inner.nonnegative,
            )

        given = call.operation, call.nonnegative, [call.inputs]
        return _way_back(*given, relevance, dict(self.rules), record, account)


@dataclass(frozen=True)
class DifferenceThroughTime(DifferenceRule):
    """The rules of DeepLIFT at every step of a recurrent layer, with one multiplier an element.

    Args:
        rules: Pairs of the name of a call of the step and its rule.
    """

    rules: tuple[tuple[str, Rule], ...]
    handled: ClassVar[tuple[type[Operation], ...]] = (Scan,)

    def __post_init__(self) -> None:
        """Takes rules also as configurations."""
        object.__setattr__(self, "rules", _named_rules(self.rules))

    def __str__(self) -> str:
        """Leaves out the rules, which a table has in rows of their own."""
        return "DifferenceThroughTime()"

    def conserves(self, operation: Operation) -> bool:
        """Tells whether the rules of all calls of the step conserve."""
        return isinstance(operation, Scan) and _all_conserve(self.rules, operation)

    def propagate(self, call: DifferenceCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the multipliers of the sequence, and of the first states that are given."""

        def record(inner: Call, passes: Passes) -> DifferenceCall:
            here, baseline = passes
            return DifferenceCall(
                inner.operation,
                tuple(here[node] for node in inner.inputs),
                tuple(here[node] for node in inner.outputs),
                inner.nonnegative,
                baseline_inputs=tuple(baseline[node] for node in inner.inputs),
                baseline_outputs=tuple(baseline[node] for node in inner.outputs),
            )

        arriving = tuple(call.single(part, place) for place, part in enumerate(relevance))
        given = call.operation, call.nonnegative, [call.inputs, call.baseline_inputs]
        return _way_back(*given, arriving, dict(self.rules), record, account=False).inputs


def _all_conserve(rules: Sequence[tuple[str, Rule]], scan: Scan) -> bool:
    named = dict(rules)
    return all(named[call.name].conserves(call.operation) for call in scan.step.calls)


@dataclass(frozen=True, eq=False)
class _Way:
    """What came of going back through time.

    Attributes:
        inputs: The relevance of each input of the scan.
        absorbed: What reached none of them, if that was asked for.
    """

    inputs: tuple[Tensor, ...]
    absorbed: Absorbed


def _way_back(
    scan: Scan,
    nonnegative: Sequence[bool],
    inputs_of_passes: Sequence[Sequence[Tensor]],
    relevance: Sequence[Tensor],
    rules: dict[str, Rule],
    record: Record,
    account: bool,
) -> _Way:
    """Goes back through all steps.

    Args:
        scan: The recurrent layer, with its mask.
        nonnegative: Whether inputs are >= 0 for certain.
        inputs_of_passes: The inputs of each forward pass.
        relevance: What arrived at the outputs, (batch, num_vectors, *shape) each.
        rules: Name of a call of the step -> its rule.
        record: What makes the record of a call.
        account: Whether to account for what is absorbed.
    """
    calls, step = scan.signed_calls(nonnegative), scan.step
    states = len(step.states)
    arrays = [_recorded(scan, inputs) for inputs in inputs_of_passes]
    mask = scan.mask()
    size = shape_of(scan.by_time(inputs_of_passes[0][0]))[0]
    batch, vectors = shape_of(relevance[0])[:2]
    dtype = relevance[0].dtype

    def zeros(shape: Sequence) -> Tensor:
        return tf.zeros([batch, vectors, *shape], dtype)

    of_states = list(relevance[1:]) or [zeros(node.shape[1:]) for node in step.states]
    # What arrives at the output of the step before: all of it where only the last is returned, and
    # at masked steps, which repeat it.
    of_output = zeros(step.output.shape[1:]) if scan.return_sequences else relevance[0]
    of_outputs = None
    if scan.return_sequences:
        rank = len(relevance[0].shape)
        moved = tf.transpose(relevance[0], [2, 0, 1, *range(3, rank)])
        of_outputs = _unstacked(moved)
    masks = None if mask is None else _unstacked(mask)
    element = [*of_output.shape[:2], *inputs_of_passes[0][0].shape[2:]]
    of_sequence = tf.TensorArray(dtype, size, element_shape=element)
    accounts = [tf.zeros([batch, vectors], dtype) for _ in Absorbed._fields]

    def back(
        count: Tensor, of_output: Tensor, of_states: list, of_sequence: Any, accounts: list
    ) -> tuple:
        time = size - 1 - count
        arriving = of_output if of_outputs is None else of_output + of_outputs.read(time)
        passed, repeated = [None] * states, tf.zeros_like(arriving)
        reaching = list(of_states)
        accounts = list(accounts)
        if masks is not None:
            counts, nothing = masks.read(time), tf.zeros_like(arriving)
            skipped = where_counts(counts, nothing, arriving)
            arriving = where_counts(counts, arriving, nothing)
            if scan.zeros_where_masked:
                accounts[2] += total(skipped)
            else:
                repeated = skipped
            zero = [tf.zeros_like(part) for part in of_states]
            pairs = list(zip(of_states, zero, strict=True))
            passed = [where_counts(counts, none, part) for part, none in pairs]
            reaching = [where_counts(counts, part, none) for part, none in pairs]
        read = [(xs.read(time), [s.read(time) for s in before]) for xs, before in arrays]
        passes = [step.run(x, before) for x, before in read]
        whole: dict[Node, Tensor] = {}
        _arrive(whole, step.output, arriving)
        for node, part in zip(step.new_states, reaching, strict=True):
            _arrive(whole, node, part)
        for call in reversed(calls):
            (node,) = call.outputs
            if node not in whole:
                continue
            rule, recorded = rules[call.name], record(call, passes)
            results = rule.propagate(recorded, (whole[node],))
            if account:
                for place, term in enumerate(rule.absorbed(recorded, (whole[node],))):
                    accounts[place] += tf.cast(term, dtype)
            # What gets nothing for certain takes no further pass.
            reached = 1 if isinstance(rule, SignalTakesAll) else len(results)
            for source, result in zip(call.inputs[:reached], results, strict=False):
                _arrive(whole, source, result)
        leaving = []
        for node, part, kept in zip(step.states, of_states, passed, strict=True):
            result = whole.get(node, tf.zeros_like(part))
            result = result if kept is None else result + kept
            leaving.append(tf.ensure_shape(result, part.shape))
        x = read[0][0]
        of_x = whole.get(step.x, zeros(shape_of(x)[1:]))
        of_sequence = of_sequence.write(time, tf.ensure_shape(of_x, element))
        repeated = tf.ensure_shape(repeated, of_output.shape)
        return count + 1, repeated, leaving, of_sequence, accounts

    _, of_output, of_states, of_sequence, accounts = tf.while_loop(
        lambda count, *_: count < size,
        back,
        (tf.constant(0), of_output, of_states, of_sequence, accounts),
        maximum_iterations=size,
    )
    # Before the first step there is an output of zeros.
    accounts[2] += total(of_output)
    given = inputs_of_passes[0][1:]
    if not given:
        accounts[2] += sum(total(part) for part in of_states)
    inputs = (scan.in_place(of_sequence.stack(), 2), *of_states[: len(given)])
    return _Way(inputs, Absorbed(*accounts))


def _recorded(scan: Scan, inputs: Sequence[Tensor]) -> tuple[tf.TensorArray, list[tf.TensorArray]]:
    """Returns the sequence and the states that each step reads, as arrays over time."""
    history = scan.run(inputs)
    return _unstacked(scan.by_time(inputs[0])), [_unstacked(part) for part in history.before]


def _unstacked(tensor: Tensor) -> tf.TensorArray:
    """Returns an array over the first axis."""
    size = shape_of(tensor)[0]
    array = tf.TensorArray(
        tensor.dtype, size, clear_after_read=False, element_shape=tensor.shape[1:]
    )
    return array.unstack(tensor)


def _arrive(whole: dict[Node, Tensor], node: Node, relevance: Tensor) -> None:
    """Adds relevance to what a tensor has got."""
    whole[node] = whole[node] + relevance if node in whole else relevance
