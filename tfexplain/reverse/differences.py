"""Reversed networks of DeepLIFT, with a second forward pass at the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfexplain.composites import RuleAssignment
from tfexplain.graph import Call, Graph, Node
from tfexplain.numerics import Tensor, expand
from tfexplain.operations import Lookup
from tfexplain.reverse.layers import CallLayer, ReverseLayer
from tfexplain.reverse.network import ReversedNetwork, Tensors
from tfexplain.rules import DifferenceRule, RecordedCall
from tfexplain.rules.base import total

CONTRIBUTION, MULTIPLIER = "contribution", "multiplier"


class Parts(CallLayer):
    """Positive and negative part of the difference of each output of a call."""

    def __init__(self, call: Call, rule: DifferenceRule, name: str, dtype: str) -> None:
        super().__init__(call.operation, name, dtype)
        self.rule, self.results = rule, call.outputs

    def call(self, tensors: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
        """Returns D+ and D- of each output, (batch, *shape)."""
        given = {name: tuple(value) for name, value in tensors.items()}
        return list(self.rule.parts(RecordedCall(self.operation, nonnegative=(), **given)))

    def compute_output_spec(self, tensors: Any) -> list[keras.KerasTensor]:
        """Two tensors of the shape of each output."""
        return [keras.KerasTensor(n.shape, self.compute_dtype) for n in self.results for _ in "+-"]


class SignParts(keras.layers.Layer):
    """Positive and negative part of the difference of an input of the model."""

    def call(self, x: Tensor, x0: Tensor) -> list[Tensor]:
        """Returns max(x - x0, 0) and min(x - x0, 0)."""
        return [tf.nn.relu(x - x0), -tf.nn.relu(x0 - x)]

    def compute_output_spec(self, x: Any, x0: Any) -> list[keras.KerasTensor]:
        """Two tensors of the shape of x."""
        return [keras.KerasTensor(x.shape, self.compute_dtype) for _ in "+-"]


class Widen(keras.layers.Layer):
    """Makes two equal streams of one."""

    def call(self, relevance: Tensor) -> Tensor:
        """Returns the vectors twice."""
        return tf.concat([relevance, relevance], axis=1)

    def compute_output_spec(self, relevance: Any) -> keras.KerasTensor:
        """Unknown numbers of vectors stay unknown."""
        return keras.KerasTensor(relevance.shape, self.compute_dtype)


class UnitMaximum(keras.layers.Layer):
    """Divides the multipliers of each sample and vector by the largest magnitude."""

    def __init__(self, streams: int, **options: Any) -> None:
        super().__init__(**options)
        self.streams = streams

    def call(self, relevance: Tensor) -> Tensor:
        """Returns the multipliers; both streams of a vector have one divisor."""
        axes = list(range(2, len(relevance.shape)))
        largest = tf.reduce_max(tf.abs(relevance), axis=axes, keepdims=True)
        if self.streams == 2:
            first, second = tf.split(largest, 2, axis=1)
            largest = tf.maximum(first, second)
            largest = tf.concat([largest, largest], axis=1)
        return tf.math.divide_no_nan(relevance, largest)

    def compute_output_spec(self, relevance: Any) -> keras.KerasTensor:
        """The same shape."""
        return keras.KerasTensor(relevance.shape, self.compute_dtype)


class Contribution(keras.layers.Layer):
    """What is read: contributions, or contributions per difference."""

    def __init__(self, quantity: str, **options: Any) -> None:
        super().__init__(**options)
        self.quantity = quantity

    def call(
        self, relevance: Tensor, x: Tensor, x0: Tensor, parts: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Returns m (x - x0), or m; with two streams m+ D+ + m- D-, or that by D+ + D-."""
        difference = expand(x - x0)
        if parts is None:
            return relevance if self.quantity == MULTIPLIER else relevance * difference
        above, below = tf.split(relevance, 2, axis=1)
        contribution = above * expand(parts[0]) + below * expand(parts[1])
        if self.quantity == CONTRIBUTION:
            return contribution
        mean = (above + below) / 2
        quotient = tf.math.divide_no_nan(contribution, difference)
        return tf.where(tf.equal(difference, 0), mean, quotient)

    def compute_output_spec(
        self, relevance: Any, x: Any, x0: Any, parts: Any = None
    ) -> keras.KerasTensor:
        """The shape of the relevance."""
        return keras.KerasTensor(relevance.shape, self.compute_dtype)


class DifferenceNetwork(ReversedNetwork):
    """A reversed network that sends multipliers, from inputs and their baselines.

    Its inputs are those of the model and then as many baselines, (batch or 1, *shape); the baseline
    of tokens is given at their vectors.

    Args:
        graph: A canonical graph.
        assignment: Rule of each call, all of them `DifferenceRule`s.
        tokens: Integer input -> the call that looks its vectors up.
        quantity: What is read: "contribution" or "multiplier".
        rescale: Divide multipliers by their largest magnitude wherever one tensor carries all of
            them, so that long chains stay finite; results then have an arbitrary positive unit.
        **options: See `ReversedNetwork`.
    """

    def __init__(
        self,
        graph: Graph,
        assignment: RuleAssignment,
        *,
        tokens: Mapping[Node, Call],
        start: Node,
        quantity: str = CONTRIBUTION,
        rescale: bool = False,
        dtype: str,
        **options: Any,
    ) -> None:
        upstream = graph.upstream([start])
        self._sources = [
            tokens[node].outputs[0] if node in tokens else node for node in graph.inputs
        ]
        rules = {call: assignment.rules[call] for call in upstream.calls}
        self._producers = upstream.producer()
        self._streams = _streams(upstream, rules, start)
        self._cuts = _cuts(upstream, start) if rescale else frozenset()
        plain = {"dtype": dtype, "autocast": False}
        self._part_layers = {
            call: Parts(call, rules[call], f"parts_{index}", dtype)
            for index, call in enumerate(upstream.calls)
        }
        self._sign_parts = SignParts(name="sign_parts", **plain)
        self._widen = Widen(name="widen", **plain)
        self._unit = {n: UnitMaximum(n, name=f"unit_maximum_{n}", **plain) for n in (1, 2)}
        self._contribution = Contribution(quantity, name="contribution", **plain)
        super().__init__(graph, assignment, start=start, dtype=dtype, **options)

    def _reverse_layer(self, call: Call, name: str) -> ReverseLayer:
        return ReverseLayer(call, self.rules[call], name, self.dtype, self._arriving(call))

    def _arriving(self, call: Call) -> int:
        """Returns how many streams arrive at a call."""
        return max(self._streams.get(node, 1) for node in call.outputs)

    # --- two forward passes ---

    def _inputs(self) -> list[keras.KerasTensor]:
        baselines = [
            keras.Input(node.shape[1:], dtype=self.dtype, name=f"baseline_{index}")
            for index, node in enumerate(self._sources)
        ]
        return [*super()._inputs(), *baselines]

    def _replay(self, inputs: Sequence) -> Tensors:
        count = len(self.graph.inputs)
        tensors = super()._replay(inputs[:count])
        baseline = dict(zip(self._sources, inputs[count:], strict=True))
        for call in self.graph.calls:
            if call.outputs[0] in baseline:
                continue
            results = self._forward_layers[call]([baseline[node] for node in call.inputs])
            baseline.update(zip(call.outputs, results, strict=True))
        return {**tensors, **{(node, "baseline"): value for node, value in baseline.items()}}

    # --- the way back ---

    def nonlinear(self) -> str:
        """Returns why relevance is not linear in the output relevance; empty if it is."""
        cuts = "multipliers are divided by their largest magnitude on the way"
        return cuts if self._cuts else super().nonlinear()

    def _gathered(self, call: Call, tensors: Tensors) -> dict[str, list]:
        gathered = {**super()._gathered(call, tensors), **self._baselines(call, tensors)}
        if self.rules[call].streams(1) == 2 or self._arriving(call) == 2:
            gathered["parts"] = self._input_parts(call, tensors)
        return gathered

    def _baselines(self, call: Call, tensors: Tensors) -> dict[str, list]:
        return {
            f"baseline_{kind}": [tensors.get((node, "baseline"), tensors[node]) for node in nodes]
            for kind, nodes in (("inputs", call.inputs), ("outputs", call.outputs))
        }

    def _input_parts(self, call: Call, tensors: Tensors) -> list:
        return [
            part for node in call.inputs if node.floating for part in self._parts(node, tensors)
        ]

    def _parts(self, node: Node, tensors: Tensors) -> list:
        """Returns D+ and D- of a tensor, made when they are first asked for."""
        if (node, "parts") not in tensors:
            call = self._producers.get(node)
            if call is None or node in self._sources:
                made = {node: self._sign_parts(tensors[node], tensors[node, "baseline"])}
            else:
                gathered = {
                    **ReversedNetwork._gathered(self, call, tensors),
                    **self._baselines(call, tensors),
                    "parts": self._input_parts(call, tensors),
                }
                parts = self._part_layers[call](gathered)
                pairs = zip(parts[::2], parts[1::2], strict=True)
                made = dict(zip(call.outputs, pairs, strict=True))
            tensors.update({(key, "parts"): list(value) for key, value in made.items()})
        return tensors[node, "parts"]

    def visit(self, call: Call, tensors: Tensors, relevance: Sequence) -> Sequence:
        """Returns the multipliers of each input of a call, with as many streams as it has."""
        leaving = self.rules[call].streams(self._arriving(call))
        arriving = self._widened(relevance, call)
        results = self._reverse_layers[call](arriving, **self._gathered(call, tensors))
        return [
            self._widen(result) if self._streams.get(node, 1) > leaving else result
            for node, result in zip(call.inputs, results, strict=True)
        ]

    def _widened(self, relevance: Sequence, call: Call) -> list:
        """Returns what arrives at the outputs of a call with the same number of streams."""
        return [
            self._widen(part) if self._streams.get(node, 1) < self._arriving(call) else part
            for node, part in zip(call.outputs, relevance, strict=True)
        ]

    def _account(
        self, call: Call, tensors: Tensors, arriving: Sequence, results: Sequence
    ) -> list[Tensor]:
        """Accounts for contributions; none are absorbed."""

        def amount(nodes: Sequence[Node], relevance: Sequence) -> Tensor:
            parts = zip(nodes, relevance, strict=True)
            return sum(total(self._read(node, tensors, part)) for node, part in parts)

        # What arrives at tokens' vectors has been read already.
        read = isinstance(call.operation, Lookup)
        received = total(arriving[0]) if read else amount(call.outputs, arriving)
        kept = amount(call.inputs, results)
        return [received, kept, tf.zeros_like(kept), tf.zeros_like(kept), received - kept]

    def _settle(self, node: Node, relevance: Any) -> Any:
        if node not in self._cuts:
            return relevance
        return self._unit[self._streams.get(node, 1)](relevance)

    def _read(self, node: Node, tensors: Tensors, relevance: Any) -> Any:
        if not node.floating:
            return relevance
        parts = self._parts(node, tensors) if self._streams.get(node, 1) == 2 else None
        ends = tensors[node], tensors[node, "baseline"]
        return self._contribution(relevance, *ends, parts=parts)


def _streams(graph: Graph, rules: Mapping[Call, DifferenceRule], start: Node) -> dict[Node, int]:
    """Returns how many streams the multipliers of each tensor are, for those that get some."""
    found = {start: 1}
    for call in reversed(graph.calls):
        arriving = [found[node] for node in call.outputs if node in found]
        if arriving:
            for node in call.inputs:
                found[node] = max(found.get(node, 1), rules[call].streams(max(arriving)))
    return found


def _cuts(graph: Graph, start: Node) -> frozenset[Node]:
    """Returns the tensors that carry everything that goes back, the start excepted."""
    producers, cuts = graph.producer(), set()
    waiting = {start}
    for call in reversed(graph.calls):
        here = waiting.intersection(call.outputs)
        if not here:
            continue
        if len(waiting) == 1 and start not in waiting:
            cuts |= waiting
        waiting -= here
        waiting.update(node for node in call.inputs if node in producers or node.floating)
    return frozenset(cuts)
