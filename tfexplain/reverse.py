"""Builds reversed networks: Keras models from (inputs, output relevance) to relevance.

`ForwardCall` replays one call of the user's model and `ReverseLayer` runs its rule. The networks
stand on tensors of their own, so Keras records nothing on the user's layers.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfexplain.composites import RuleAssignment, bounded_path, is_transparent, uses_bounds
from tfexplain.graph import Call, Graph, Node
from tfexplain.numerics import Compiled, Tensor, expand, shape_of
from tfexplain.operations import Affine, Lookup, Operation, Scaling
from tfexplain.rules import RecordedCall, Rule
from tfexplain.rules.base import total


class _CallLayer(keras.layers.Layer):
    """A layer around a canonical operation; the user's layers in it are shared, not copied."""

    def __init__(self, operation: Operation, name: str, dtype: str) -> None:
        super().__init__(name=name, dtype=dtype, autocast=False)
        self.operation = operation
        self.sources = list(operation.layers)
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns what the layer does, for printing; `Analyzer.save` stores the method."""
        return {"name": self.name, "operation": self.operation.label}


class ForwardCall(_CallLayer):
    """Replays one call of the user's model.

    Args:
        call: The call.
        name: Name of this layer.
        dtype: Precision of floating tensors.
    """

    def __init__(self, call: Call, name: str, dtype: str) -> None:
        super().__init__(call.operation, name, dtype)
        self.results = call.outputs

    def call(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the outputs of the operation, each (batch, *shape)."""
        results = self.operation.forward(*inputs)
        return list(results) if isinstance(results, list | tuple) else [results]

    def compute_output_spec(self, inputs: Sequence) -> list[keras.KerasTensor]:
        """Takes the shapes from the user's model: nothing is traced twice."""
        return [keras.KerasTensor(n.shape, n.dtype_in(self.compute_dtype)) for n in self.results]


class ReverseLayer(_CallLayer):
    """Redistributes the relevance of one call by its rule.

    Args:
        call: The call.
        rule: The rule.
        name: Name of this layer.
        dtype: Precision.
    """

    def __init__(self, call: Call, rule: Rule, name: str, dtype: str) -> None:
        super().__init__(call.operation, name, dtype)
        self.rule = rule
        self.nonnegative = call.nonnegative
        self.arguments = call.inputs

    def call(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        relevance: Sequence[Tensor],
        bounds: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Returns one (batch, num_vectors, *shape) for each input of the call."""
        recorded = RecordedCall(
            self.operation,
            tuple(inputs),
            tuple(outputs),
            tuple(self.nonnegative),
            None if bounds is None else tuple(bounds),
        )
        return list(self.rule.propagate(recorded, tuple(relevance)))

    def compute_output_spec(
        self, inputs: Sequence, outputs: Sequence, relevance: Sequence, bounds: Any = None
    ) -> list[keras.KerasTensor]:
        """Relevance has the shape of the tensor, with the axis of vectors."""
        return [
            keras.KerasTensor((None, None, *n.shape[1:]), self.compute_dtype)
            for n in self.arguments
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns operation and rule."""
        return {**super().get_config(), "rule": self.rule.to_config()}


class Bounds(keras.layers.Layer):
    """Lowest and highest values of a first layer's input, from those of the model's input."""

    def __init__(self, rule: Rule, graph: Graph, call: Call, name: str, dtype: str) -> None:
        super().__init__(name=name, dtype=dtype, autocast=False)
        self.rule, self.graph, self.target = rule, graph, call.inputs[0]
        self.steps = bounded_path(graph, self.target)
        self.sources = [layer for step in self.steps for layer in step.operation.layers]
        self.built = True

    def call(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns [low, high], each (1, *shape of the first layer's input)."""
        ends = []
        for value in (self.rule.low, self.rule.high):
            tensors = {
                node: tf.zeros_like(x[:1]) + tf.constant(value, x.dtype)
                for node, x in zip(self.graph.inputs, inputs, strict=True)
                if x.dtype.is_floating
            }
            ends.append(tensors)
        for step in self.steps:
            results = []
            for tensors in ends:
                result = step.operation.forward(*(tensors[node] for node in step.inputs))
                results.append(result if isinstance(result, list | tuple) else [result])
            for node, first, second in zip(step.outputs, *results, strict=True):
                if isinstance(step.operation, Scaling | Affine):
                    # A negative factor exchanges the ends.
                    first, second = tf.minimum(first, second), tf.maximum(first, second)
                ends[0][node], ends[1][node] = first, second
        return [tensors[self.target] for tensors in ends]

    def compute_output_spec(self, inputs: Sequence) -> list[keras.KerasTensor]:
        """One sample of the first layer's input."""
        # Two tensors: the same one twice would be one output of the layer.
        shape = (1, *self.target.shape[1:])
        return [keras.KerasTensor(shape, self.compute_dtype) for _ in ("low", "high")]


class _Zeros(keras.layers.Layer):
    """Zero relevance for a tensor that the explained output does not depend on."""

    def call(self, x: Tensor, relevance: Tensor) -> Tensor:
        batch, vectors = shape_of(relevance)[:2]
        return tf.zeros([batch, vectors, *shape_of(x)[1:]], relevance.dtype)

    def compute_output_spec(self, x, relevance) -> keras.KerasTensor:
        return keras.KerasTensor((None, None, *x.shape[1:]), self.compute_dtype)


class _TimesActivation(keras.layers.Layer):
    """Relevance times the activation at the same tensor."""

    def call(self, x: Tensor, relevance: Tensor) -> Tensor:
        return expand(tf.cast(x, relevance.dtype)) * relevance

    def compute_output_spec(self, x, relevance) -> keras.KerasTensor:
        return keras.KerasTensor(relevance.shape, self.compute_dtype)


def check_bounds(graph: Graph, assignment: RuleAssignment) -> None:
    """Refuses box rules whose bounds are unknown or have another shape than the input.

    Raises:
        ValueError: If a first layer also reads computed tensors, or bounds do not broadcast.
    """
    for call, rule in assignment.rules.items():
        if not uses_bounds(rule):
            continue
        source = graph.upstream([call.inputs[0]])
        inside = [c.name for c in source.calls if not is_transparent(c.operation)]
        if inside:
            raise ValueError(
                f"The box rule at {call.name!r} needs the bounds of its input, but that also "
                f"depends on computed tensors ({', '.join(inside)}). Use input_rule='w_square'."
            )
        for node in graph.inputs:
            sizes = node.shape[1:]
            for name in ("low", "high"):
                given = np.shape(getattr(rule, name))
                pairs = zip(reversed(given), reversed(sizes), strict=False)
                if len(given) > len(sizes) or any(g not in (1, s) and s for g, s in pairs):
                    raise ValueError(
                        f"{name} has shape {given}, which does not broadcast to the input's "
                        f"{sizes}; give a number, one per channel, or an array of that shape."
                    )


Visit = Callable[[Call, Sequence, Sequence, Sequence, Any], Sequence]


class ReversedNetwork:
    """The reversed network of a graph, as Keras models and as compiled functions.

    Args:
        graph: A canonical graph.
        assignment: Rule of each call.
        start: The tensor that receives the output relevance.
        readouts: Name -> tensor, in addition to the inputs.
        dtype: "float32" or "float64".
        head: Start relevance of `explain`: "logit" (the value of the output), "positive_logit"
            (its positive part) or "one".
        times_activation: Multiply every result by the activation (input times gradient).
        jit_compile: Compile by XLA.

    Attributes:
        model: keras.Model of [*inputs, output_relevance] -> relevance of the input; a dict by
            name if there are several read-outs.
    """

    def __init__(
        self,
        graph: Graph,
        assignment: RuleAssignment,
        *,
        start: Node,
        readouts: Mapping[str, Node],
        dtype: str,
        head: str = "logit",
        times_activation: bool = False,
        jit_compile: bool = False,
    ) -> None:
        self.graph = graph.upstream([start])
        self.rules = assignment.rules
        self.start = start
        self.dtype = dtype
        self.head = head
        self.times_activation = times_activation
        self._largest: dict[tuple, int] = {}
        for node in self.graph.inputs:
            if node.dtype not in ("bool", "string") and "complex" not in node.dtype:
                continue
            raise ValueError(f"Inputs of dtype {node.dtype} cannot be explained.")
        self.readouts = {**dict(zip(graph.input_names, graph.inputs, strict=True)), **readouts}
        names = _LayerNames()
        self._forward_layers = {
            call: ForwardCall(call, names("forward", call), dtype) for call in self.graph.calls
        }
        self._reverse_layers = {
            call: ReverseLayer(call, self.rules[call], names("reverse", call), dtype)
            for call in self.graph.calls
        }
        self._bounds_layers = {call: self._bounds_layer(call, names) for call in self.graph.calls}
        self._zeros = _Zeros(name="zeros", dtype=dtype, autocast=False)
        self._times = _TimesActivation(name="times_activation", dtype=dtype, autocast=False)
        self._build()
        self._compile(jit_compile)

    def _bounds_layer(self, call: Call, names: _LayerNames) -> Bounds | None:
        if not uses_bounds(self.rules[call]):
            return None
        return Bounds(self.rules[call], self.graph, call, names("bounds", call), self.dtype)

    # --- the Keras models ---

    def _inputs(self) -> list[keras.KerasTensor]:
        return [
            keras.Input(node.shape[1:], dtype=node.dtype_in(self.dtype), name=_keras_name(name))
            for node, name in zip(self.graph.inputs, self.graph.input_names, strict=True)
        ]

    def _relevance_input(self) -> keras.KerasTensor:
        return keras.Input((None, *self.start.shape[1:]), dtype=self.dtype, name="output_relevance")

    def _replay(self, inputs: Sequence) -> dict[Node, Any]:
        tensors = dict(zip(self.graph.inputs, inputs, strict=True))
        for call in self.graph.calls:
            results = self._forward_layers[call]([tensors[node] for node in call.inputs])
            tensors.update(zip(call.outputs, results, strict=True))
        return tensors

    def _visit(
        self, call: Call, inputs: Sequence, outputs: Sequence, relevance: Sequence, bounds: Any
    ) -> Sequence:
        arguments = {} if bounds is None else {"bounds": bounds}
        return self._reverse_layers[call](inputs, outputs, relevance, **arguments)

    def _walk(self, tensors: Mapping[Node, Any], relevance: Any, visit: Visit) -> list:
        """Walks from the start to the inputs; returns the relevance of every read-out."""
        zeros, times = self._zeros, self._times
        arriving: dict[Node, list] = collections.defaultdict(list)
        arriving[self.start].append(relevance)

        def summed(node: Node) -> Any:
            parts = arriving[node]
            if not parts:
                return zeros(tensors[node], relevance)
            whole = parts[0]
            for part in parts[1:]:
                whole = keras.ops.add(whole, part)
            arriving[node] = [whole]
            return whole

        for call in reversed(self.graph.calls):
            if not any(arriving[node] for node in call.outputs):
                continue
            outgoing = [summed(node) for node in call.outputs]
            if self.times_activation and isinstance(call.operation, Lookup):
                # The tokens of an integer input are explained at their vectors.
                outgoing = [times(tensors[call.outputs[0]], outgoing[0])]
            bounds = self._bounds_layers[call]
            results = visit(
                call,
                [tensors[node] for node in call.inputs],
                [tensors[node] for node in call.outputs],
                outgoing,
                None if bounds is None else bounds([tensors[n] for n in self.graph.inputs]),
            )
            for node, result in zip(call.inputs, results, strict=True):
                arriving[node].append(result)
        found = []
        for node in self.readouts.values():
            result = summed(node)
            if self.times_activation and node.floating:
                result = times(tensors[node], result)
            found.append(result)
        return found

    def _build(self) -> None:
        inputs, relevance = self._inputs(), self._relevance_input()
        tensors = self._replay(inputs)
        results = self._walk(tensors, relevance, self._visit)
        named = dict(zip(self.readouts, results, strict=True))
        outputs = results[0] if len(results) == 1 else named
        self.model = keras.Model([*inputs, relevance], outputs, name="reversed")
        # The same layers as two models, so that one forward pass can serve many chunks of vectors.
        self._nodes = list(tensors)
        self.start_index = self._nodes.index(self.start)
        self.forward = keras.Model(inputs, [tensors[node] for node in self._nodes])
        records = [
            keras.Input(node.shape[1:], dtype=node.dtype_in(self.dtype)) for node in self._nodes
        ]
        relevance = self._relevance_input()
        results = self._walk(dict(zip(self._nodes, records, strict=True)), relevance, self._visit)
        self.backward = keras.Model([*records, relevance], results)

    def vectors_at_once(self, arrays: Sequence[np.ndarray], limit: int) -> int:
        """Returns how many vectors fit into `limit` bytes at the largest tensor.

        Args:
            arrays: The batch, one (n, *shape) per input.
            limit: Bytes.
        """
        shapes = tuple(array.shape[1:] for array in arrays)
        if shapes not in self._largest:
            sizes = [node.shape[1:] for node in self._nodes]
            if any(None in size for size in sizes):
                # The sizes of the tensors follow those of this batch.
                sample = [tf.constant(array[:1]) for array in arrays]
                sizes = [tensor.shape[1:] for tensor in self.run_records(sample)]
            self._largest[shapes] = max(int(np.prod(size)) for size in sizes)
        item = np.dtype(self.dtype).itemsize
        return max(1, limit // (len(arrays[0]) * self._largest[shapes] * item))

    # --- compiled functions ---

    def _compile(self, jit_compile: bool) -> None:
        inputs = [
            tf.TensorSpec(node.shape, node.dtype_in(self.dtype)) for node in self.graph.inputs
        ]
        relevance = tf.TensorSpec((None, None, *self.start.shape[1:]), self.dtype)
        records = [tf.TensorSpec(node.shape, node.dtype_in(self.dtype)) for node in self._nodes]
        targets = tf.TensorSpec((None, None), "int32")

        def outputs(inputs: Sequence[Tensor]) -> Tensor:
            return self._records(inputs)[self.start_index]

        def compiled(function: Callable, *signature: Any) -> Compiled:
            return Compiled(function, list(signature), jit_compile)

        self.run_outputs = compiled(outputs, inputs)
        self.run_propagate = compiled(self.propagate, inputs, relevance)
        self.run_records = compiled(self._records, inputs)
        self.run_backward = compiled(self._backward, records, relevance)
        self.run_explain = compiled(self.explain, inputs, targets)
        self.run_ledger = compiled(self._ledger, records, relevance)

    def _records(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs forward; returns every tensor of the graph."""
        return list(self.forward(list(inputs)))

    def _backward(self, records: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        """Runs backward on the tensors of a forward pass."""
        results = self.backward([*records, relevance])
        return list(results) if isinstance(results, list | tuple) else [results]

    def propagate(self, inputs: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        """Returns the relevance of each read-out, (batch, num_vectors, *shape).

        Args:
            inputs: One (batch, *shape) for each input of the model.
            relevance: (batch, num_vectors, *shape of the start tensor).
        """
        return self._backward(self._records(inputs), relevance)

    def explain(self, inputs: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """Runs forward, starts at the targets with the method's head, and runs backward.

        Args:
            inputs: One (batch, *shape) for each input.
            targets: Flat output indices (batch, num_vectors); negative for the largest output.

        Returns:
            The start tensor (batch, *shape), then the relevance of each read-out.
        """
        records = self._records(inputs)
        outputs = records[self.start_index]
        relevance = start_relevance(outputs, targets, self.head)
        return [outputs, *self._backward(records, relevance)]

    def _ledger(self, records: Sequence[Tensor], relevance: Tensor) -> dict[str, list[Tensor]]:
        """Accounts for the relevance of each call; one (batch, num_vectors) per quantity."""
        rows = {}

        def visit(call, inputs, outputs, arriving, bounds):
            rule = self.rules[call]
            recorded = RecordedCall(
                call.operation, tuple(inputs), tuple(outputs), call.nonnegative, bounds
            )
            results = rule.propagate(recorded, tuple(arriving))
            kept = sum(total(result) for result in results)
            received = sum(total(r) for r in arriving)
            rows[call.name] = [
                received,
                kept,
                *rule.absorbed(recorded, tuple(arriving), kept),
            ]
            return results

        self._walk(dict(zip(self._nodes, records, strict=True)), relevance, visit)
        return rows


def start_relevance(outputs: Tensor, targets: Tensor, head: str) -> Tensor:
    """Returns the output relevance (batch, num_vectors, *shape) that explains `targets`.

    Args:
        outputs: The explained tensor, (batch, *shape).
        targets: Flat indices (batch, num_vectors); negative for the largest output.
        head: "logit", "positive_logit" or "one".
    """
    shape = shape_of(outputs)
    flat = tf.reshape(outputs, [shape[0], -1])
    largest = tf.argmax(flat, axis=1, output_type=tf.int32)
    targets = tf.where(targets < 0, expand(largest), targets)
    relevance = tf.one_hot(targets, shape_of(flat)[1], dtype=outputs.dtype)
    if head == "logit":
        relevance *= expand(flat)
    elif head == "positive_logit":
        relevance *= expand(tf.nn.relu(flat))
    return tf.reshape(relevance, [*shape_of(targets), *shape[1:]])


class _LayerNames:
    """Makes unique Keras names, which hold no slash."""

    def __init__(self) -> None:
        self.used: collections.Counter = collections.Counter()

    def __call__(self, prefix: str, call: Call) -> str:
        name = f"{prefix}_{_keras_name(call.name)}"
        self.used[name] += 1
        return name if self.used[name] == 1 else f"{name}__{self.used[name]}"


def _keras_name(name: str) -> str:
    return name.replace("/", "__").replace(":", "__").replace("@", "__")
