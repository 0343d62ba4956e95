"""Reversed networks of DeepLIFT: two passes forward, multipliers backward.

The paper ([shrikumar2017learning]) compares a network at an input x with itself at a baseline x0.
One call of the graph after the other:

1. Forward, twice: every tensor is recorded at x and at x0. Its difference is D = x - x0.
2. Forward once more, where it is needed: the parts D+ and D- of differences. At an input of the
   model one of them is D; a linear layer sums positive and negative contributions apart, and every
   rule says how its parts follow from those of its inputs (`DifferenceRule.parts`).
3. Backward: multipliers m. The start has one for each vector. Rescale multiplies m by
   D_y / D_x, so an element keeps one; RevealCancel has a slope for each part, so an element gets
   m+ and m-. How many a tensor has is known from the rules before anything is computed
   (`_num_multipliers`); where a call or tensor that carries two receives one, m+ = m- = m.
4. Read: the contribution m D, or m+ D+ + m- D- where a tensor has two multipliers.

The ledger of a call counts contributions: it receives those of its outputs, sum_j m_j D_j, and
keeps those of its inputs, sum_i m_i D_i. By the rules of the paper both are equal; no bias or
stabilizer takes part. `undefined` is what `PassDifference` gives to nobody, m_j D_j where D_i = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfexplain.compilation import Compiled
from tfexplain.composites import RuleAssignment
from tfexplain.graph import Call, Graph, Node
from tfexplain.numerics import Tensor, expand, negative, positive
from tfexplain.operations import Bystander
from tfexplain.reverse.network import ReversedNetwork, of_sample
from tfexplain.reverse.steps import CallStep, ReverseCall, Step
from tfexplain.rules import DifferenceCall, DifferenceRule, LinearDifference, SignedParts
from tfexplain.rules.base import total

CONTRIBUTION, MULTIPLIER = "contribution", "multiplier"


class TwoPasses(dict[Node, Tensor]):
    """Tensors of the pass at the input, with what else the way back needs of each node.

    Args:
        tensors: Node -> its tensor x, (batch, *shape).
        baseline: Node -> its tensor x0 at the baseline, (batch or 1, *shape), for each node behind
            the inputs in which samples differ: tokens have their vectors.

    Attributes:
        parts: Node -> D+ and D-, made when they are first asked for.
    """

    def __init__(self, tensors: Mapping[Node, Tensor], baseline: Mapping[Node, Tensor]) -> None:
        super().__init__(tensors)
        self.baseline = dict(baseline)
        self.parts: dict[Node, SignedParts] = {}

    def at_baseline(self, node: Node) -> Tensor:
        """Returns x0; integers in front of their vectors are the same in both passes."""
        return self.baseline.get(node, self[node])


class PartsOfOutputs(CallStep):
    """Positive and negative part of the difference of each output of a call."""

    def __init__(
        self, call: Call, rule: DifferenceRule, name: str, dtype: str, signed: bool
    ) -> None:
        super().__init__(call.operation, name, dtype)
        self.rule, self.results, self.signed = rule, call.outputs, signed

    def call(self, tensors: Mapping[str, Sequence]) -> list[SignedParts]:
        """Returns D+ and D- of each output, (batch, *shape).

        Args:
            tensors: Those of the call, named as the fields of `DifferenceCall`.
        """
        given: dict[str, Any] = {name: tuple(value) for name, value in tensors.items()}
        operation = self.operation.bound(given.pop("operands", ()))
        record = DifferenceCall(operation, signed=self.signed, **given)
        return list(self.rule.parts(record))

    def spec(self, tensors: Any) -> list[SignedParts]:
        """Two tensors of the shape of each output."""
        return [_parts_like(node, self.dtype) for node in self.results]


class PartsOfInput(Step):
    """Positive and negative part of the difference of an input of the model."""

    def call(self, x: Tensor, x0: Tensor) -> SignedParts:
        """Returns max(x - x0, 0) and min(x - x0, 0)."""
        difference = x - x0
        return SignedParts(positive(difference), negative(difference))

    def spec(self, x: Any, x0: Any) -> SignedParts:
        """Two tensors of the shape of x."""
        return _parts_like(x, self.dtype)


def _parts_like(tensor: Any, dtype: str) -> SignedParts:
    return SignedParts(*(keras.KerasTensor(tensor.shape, dtype) for _ in SignedParts._fields))


class BothSigns(Step):
    """Makes the multipliers m+ = m- = m of one m."""

    def call(self, multipliers: Tensor) -> Tensor:
        """Returns the vectors twice."""
        return tf.concat([multipliers, multipliers], axis=1)

    def spec(self, multipliers: Any) -> keras.KerasTensor:
        """Unknown numbers of vectors stay unknown."""
        return keras.KerasTensor(multipliers.shape, self.dtype)


class UnitMaximum(Step):
    """Divides the multipliers of each sample and vector by the largest magnitude."""

    def __init__(self, num_multipliers: int, name: str, dtype: str) -> None:
        super().__init__(name, dtype)
        self.num_multipliers = num_multipliers

    def call(self, multipliers: Tensor) -> Tensor:
        """Returns the multipliers; m+ and m- of a vector have one divisor."""
        axes = list(range(2, len(multipliers.shape)))
        largest = tf.reduce_max(tf.abs(multipliers), axis=axes, keepdims=True)
        if self.num_multipliers == 2:
            first, second = tf.split(largest, 2, axis=1)
            largest = tf.maximum(first, second)
            largest = tf.concat([largest, largest], axis=1)
        return tf.math.divide_no_nan(multipliers, largest)

    def spec(self, multipliers: Any) -> keras.KerasTensor:
        """The same shape."""
        return keras.KerasTensor(multipliers.shape, self.dtype)


class Contribution(Step):
    """What is read: contributions, or contributions per difference."""

    def __init__(self, quantity: str, name: str, dtype: str) -> None:
        super().__init__(name, dtype)
        self.quantity = quantity

    def call(
        self, multipliers: Tensor, x: Tensor, x0: Tensor, parts: SignedParts | None = None
    ) -> Tensor:
        """Returns m D, or m; with two multipliers m+ D+ + m- D-, or that by D."""
        difference = expand(x - x0)
        if parts is None:
            return multipliers if self.quantity == MULTIPLIER else multipliers * difference
        above, below = tf.split(multipliers, 2, axis=1)
        contribution = above * expand(parts.positive) + below * expand(parts.negative)
        if self.quantity == CONTRIBUTION:
            return contribution
        mean = (above + below) / 2
        quotient = tf.math.divide_no_nan(contribution, difference)
        return tf.where(tf.equal(difference, 0), mean, quotient)

    def spec(self, multipliers: Any, x: Any, x0: Any, parts: Any = None) -> keras.KerasTensor:
        """The shape of the multipliers."""
        return keras.KerasTensor(multipliers.shape, self.dtype)


class DifferenceNetwork(ReversedNetwork):
    """A reversed network that sends multipliers, from inputs and their baselines.

    Its inputs are those of the model and then the baselines, (batch or 1, *shape); the baseline of
    tokens is given at their vectors, and masks and what else are operands have none. The compiled
    functions take all tensors of the pass at the baseline instead, which `run_baseline` returns:
    one pass may serve many batches.

    Args:
        graph: A canonical graph.
        assignment: Rule of each call, all of them `DifferenceRule`s.
        sources: Where the baselines are given: floating inputs, and vectors of tokens.
        quantity: What is read: "contribution" or "multiplier".
        unit_maximum: Divide multipliers by their largest magnitude wherever one tensor carries all
            of them, so that long chains stay finite; results then have an arbitrary positive unit.
        **options: See `ReversedNetwork`.
    """

    # They are the same in both passes.
    sees_bystanders = False

    def __init__(
        self,
        graph: Graph,
        assignment: RuleAssignment,
        *,
        sources: Sequence[Node],
        start: Node,
        quantity: str = CONTRIBUTION,
        unit_maximum: bool = False,
        dtype: str,
        **options: Any,
    ) -> None:
        upstream = graph.upstream([start])
        self._sources = list(sources)
        self._baseline_nodes = [*self._sources]
        for call in upstream.calls:
            # What carries no relevance does not differ.
            if not isinstance(call.operation, Bystander):
                self._baseline_nodes += [n for n in call.outputs if n not in self._sources]
        rules = {call: assignment.rules[call] for call in upstream.calls}
        self._producers, self._difference_rules = upstream.producer(), rules
        self._num_multipliers = _num_multipliers(upstream, rules, start)
        self._bottlenecks = _bottlenecks(upstream, start) if unit_maximum else frozenset()
        self._parts_of_outputs = {
            call: PartsOfOutputs(call, rules[call], f"parts_{index}", dtype, self._signed(call))
            for index, call in enumerate(upstream.calls)
        }
        self._parts_of_input = PartsOfInput("parts_of_input", dtype)
        self._both_signs = BothSigns("both_signs", dtype)
        self._unit = {n: UnitMaximum(n, f"unit_maximum_{n}", dtype) for n in (1, 2)}
        self._contribution = Contribution(quantity, "contribution", dtype)
        super().__init__(graph, assignment, start=start, dtype=dtype, **options)
        # Each source has a batch of its own, of one sample or of all.
        specs = [self._spec(node) for node in self._sources]
        operands = [self._spec(node) for node in self.operands]
        self.run_baseline = Compiled(self.baseline_pass, [specs, operands], self.execution)
        inputs = [self._spec(node) for node in self.graph.inputs]
        self.run_operands = Compiled(self.operands_at, [inputs], self.execution)

    def _reverse_call(self, call: Call, name: str) -> ReverseCall:
        arriving = self._arriving(call)
        return ReverseCall(
            call,
            self.rules[call],
            name,
            self.dtype,
            num_multipliers=arriving,
            signed=self._signed(call),
        )

    def _signed(self, call: Call) -> bool:
        """Tells whether D+ >= 0 and D- <= 0 at the inputs: those of the model, and sums."""
        producers = [self._producers.get(node) for node in call.inputs if node.floating]
        return all(
            made is None or isinstance(self._difference_rules[made], LinearDifference)
            for made in producers
        )

    def _multipliers_of(self, node: Node) -> int:
        """Returns how many multipliers a tensor has."""
        return self._num_multipliers.get(node, 1)

    def _arriving(self, call: Call) -> int:
        """Returns how many multipliers arrive at a call."""
        return max(self._multipliers_of(node) for node in call.outputs)

    # --- forward, twice ---

    @property
    def input_specs(self) -> list[tf.TensorSpec]:
        """Shapes and dtypes of the inputs, then of all tensors of the pass at the baseline."""
        return [*super().input_specs, *map(self._spec, self._baseline_nodes)]

    @property
    def _keras_inputs(self) -> dict[str, Node]:
        baselines = {f"baseline_{index}": node for index, node in enumerate(self._sources)}
        return {**super()._keras_inputs, **baselines}

    @property
    def record_specs(self) -> list[tf.TensorSpec]:
        """Shapes and dtypes of all tensors of both passes."""
        # One baseline may serve all samples, but for what follows from the samples.
        return [*super().record_specs, *map(self._spec, self._baseline_nodes)]

    def _replay(self, inputs: Sequence) -> TwoPasses:
        count = len(self.graph.inputs)
        # The baselines come first, and what follows from them is given or computed.
        baseline = dict(zip(self._baseline_nodes, inputs[count:], strict=False))
        tensors = super()._replay(inputs[:count])
        given = {node: tensors[node] for node in self.operands}
        return TwoPasses(tensors, self._at_baseline({**given, **baseline}))

    def _at_baseline(self, tensors: dict[Node, Tensor]) -> dict[Node, Tensor]:
        for call in self.graph.calls:
            if not isinstance(call.operation, Bystander) and call.outputs[0] not in tensors:
                self._run(call, tensors)
        return {node: tensors[node] for node in self._baseline_nodes}

    def baseline_pass(
        self, baselines: Sequence[Tensor], operands: Sequence[Tensor]
    ) -> list[Tensor]:
        """Runs forward at the baseline; returns every tensor from the baselines on.

        Args:
            baselines: One for each input, tokens by their vectors.
            operands: Those of the samples.
        """
        tensors = dict(zip(self._sources, baselines, strict=True))
        tensors.update(zip(self.operands, operands, strict=True))
        tensors = self._at_baseline(tensors)
        return [tensors[node] for node in self._baseline_nodes]

    def _recorded(self, tensors: TwoPasses) -> list[Tensor]:
        baseline = [tensors.baseline[node] for node in self._baseline_nodes]
        return [*super()._recorded(tensors), *baseline]

    def _restored(self, records: Sequence[Tensor]) -> TwoPasses:
        count = len(self.nodes)
        baseline = zip(self._baseline_nodes, records[count:], strict=True)
        return TwoPasses(super()._restored(records[:count]), dict(baseline))

    # --- parts of differences ---

    def _parts(self, node: Node, tensors: TwoPasses) -> SignedParts:
        """Returns D+ and D- of a tensor, made when they are first asked for."""
        if node not in tensors.parts:
            call = self._producers.get(node)
            if call is not None and isinstance(call.operation, Bystander):
                made = {node: self._parts_of_input(tensors[node], tensors[node])}
            elif call is None or node in self._sources:
                made = {node: self._parts_of_input(tensors[node], tensors.baseline[node])}
            else:
                known = {"parts": self._parts_of_inputs(call, tensors)}
                parts = self._parts_of_outputs[call]({**self._both_passes(call, tensors), **known})
                made = dict(zip(call.outputs, parts, strict=True))
            tensors.parts.update(made)
        return tensors.parts[node]

    def _parts_of_inputs(self, call: Call, tensors: TwoPasses) -> list[SignedParts]:
        return [self._parts(node, tensors) for node in call.inputs if node.floating]

    # --- the way back ---

    def nonlinear(self) -> str:
        """Returns why relevance is not linear in the output relevance; empty if it is."""
        scaled = "multipliers are divided by their largest magnitude on the way"
        return scaled if self._bottlenecks else super().nonlinear()

    def _gathered(self, call: Call, tensors: TwoPasses) -> dict[str, list]:
        gathered = self._both_passes(call, tensors)
        # Only where m+ and m- leave or arrive does a rule read parts.
        if self.rules[call].leaving(1) == 2 or self._arriving(call) == 2:
            gathered["parts"] = self._parts_of_inputs(call, tensors)
        return gathered

    def _both_passes(self, call: Call, tensors: TwoPasses) -> dict[str, list]:
        return {
            **super()._gathered(call, tensors),
            "baseline_inputs": [tensors.at_baseline(node) for node in call.inputs],
            "baseline_outputs": [tensors.at_baseline(node) for node in call.outputs],
        }

    def visit(self, call: Call, tensors: TwoPasses, relevance: Sequence) -> Sequence:
        """Returns the multipliers of each input of a call, as many as it has."""
        arriving = self._arriving(call)
        given = [
            self._both_signs(part) if self._multipliers_of(node) < arriving else part
            for node, part in zip(call.outputs, relevance, strict=True)
        ]
        results = self._reverse_calls[call](given, **self._gathered(call, tensors))
        leaving = self.rules[call].leaving(arriving)
        return [
            self._both_signs(result) if self._multipliers_of(node) > leaving else result
            for node, result in zip(call.inputs, results, strict=True)
        ]

    def _settle(self, node: Node, relevance: Any) -> Any:
        if node not in self._bottlenecks:
            return relevance
        return self._unit[self._multipliers_of(node)](relevance)

    def _read(self, node: Node, tensors: TwoPasses, relevance: Any) -> Any:
        if not node.floating:
            return relevance
        parts = self._parts(node, tensors) if self._multipliers_of(node) == 2 else None
        return self._contribution(relevance, tensors[node], tensors.baseline[node], parts=parts)

    def _amount(self, nodes: Sequence[Node], tensors: TwoPasses, relevance: Sequence) -> Tensor:
        """Returns the contributions of all elements of some tensors, (batch, num_vectors)."""
        parts = zip(nodes, relevance, strict=True)
        return sum(of_sample(node, total(self._read(node, tensors, part))) for node, part in parts)


def _num_multipliers(
    graph: Graph, rules: Mapping[Call, DifferenceRule], start: Node
) -> dict[Node, int]:
    """Returns how many multipliers each tensor has, for those that get some."""
    counts = {start: 1}
    for call in reversed(graph.calls):
        arriving = [counts[node] for node in call.outputs if node in counts]
        if arriving and not isinstance(call.operation, Bystander):
            for node in call.inputs:
                counts[node] = max(counts.get(node, 1), rules[call].leaving(max(arriving)))
    return counts


def _bottlenecks(graph: Graph, start: Node) -> frozenset[Node]:
    """Returns the tensors that carry everything that goes back, the start excepted."""
    producers, bottlenecks = graph.producer(), set()
    waiting = {start}
    for call in reversed(graph.calls):
        here = waiting.intersection(call.outputs)
        if not here:
            continue
        if len(waiting) == 1 and start not in waiting:
            # Where their axis is not the first one, samples cannot be told apart.
            bottlenecks |= {node for node in waiting if not node.internal}
        waiting -= here
        waiting.update(node for node in call.inputs if node in producers or node.floating)
    return frozenset(bottlenecks)
