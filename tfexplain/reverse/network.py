"""Builds reversed networks, which go from (inputs, output relevance) to relevance.

They are compiled functions, and a Keras model where one is asked for. Both stand on tensors of
their own, so Keras records nothing on the user's layers.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfexplain.compilation import PLAIN, TRACING, Compiled, CompiledByVectors, Execution
from tfexplain.composites import RuleAssignment
from tfexplain.graph import Call, Graph, Node
from tfexplain.numerics import Tensor, expand, shape_of
from tfexplain.operations import Bystander, Lookup
from tfexplain.reverse.steps import Bounds, ForwardCall, ReverseCall, TimesActivation, Zeros
from tfexplain.reverse.vanishing import vanishing_below_zero
from tfexplain.rules import BoundedCall
from tfexplain.rules.base import total

# The tensors of a forward pass by their nodes: a mapping, or what a kind of network makes of it.
Tensors = Any
# What happens to the relevance that a call receives, as `Analyzer.ledger` reports it.
TERMS = ("received", "kept", "absorbed_by_bias", "absorbed_by_stabilizer", "undefined", "lost")
Visit = Callable[[Call, Tensors, Sequence], Sequence]


class ReversedNetwork:
    """The reversed network of a graph, as compiled functions and as a Keras model.

    Args:
        graph: A canonical graph.
        assignment: Rule of each call.
        start: The tensor that receives the output relevance.
        readouts: Name -> tensor, in addition to the inputs.
        dtype: "float32" or "float64".
        head: Start relevance of `explain`: "logit" (the value of the output), "positive_logit"
            (its positive part) or "one".
        times_activation: Multiply every result by the activation (input times gradient).
        fixed: How many of the last inputs are operands, of which no relevance is read.
        parameters: Arrays that belong to the rules of some calls.
        execution: How its compiled functions run.

    The list of all tensors of a forward pass, which `run_records` returns and `run_backward` takes,
    is called its records here; what a rule reads of one call is a `RecordedCall`.

    Attributes:
        graph: The calls between the inputs and the start.
        rules: Call -> rule.
        start: The tensor that receives the output relevance.
        readouts: Name -> tensor of all that is read: the inputs first.
        nodes: The tensors in the order of the records.
        start_index: Place of the start among the records.
        operands: What calls read that gets no relevance: masks, indices, sizes.
        vanishing: Calls at whose negative outputs no relevance arrives.
        derived: Compiled functions that others made of this network, to be freed with it.
    """

    # Whether what arrives at bystanders, such as positions, is more than nothing.
    sees_bystanders: ClassVar[bool] = True

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
        fixed: int = 0,
        parameters: Mapping[Call, Sequence[np.ndarray]] | None = None,
        execution: Execution = PLAIN,
    ) -> None:
        self._parameters = parameters or {}
        self.derived: dict[str | tuple, Compiled] = {}
        self.graph = graph.upstream([start])
        self.rules = assignment.rules
        self.start = start
        self.dtype = dtype
        self.execution = execution
        self.head = head
        self.times_activation = times_activation
        self._largest: dict[tuple, int] = {}
        self._model: keras.Model | None = None
        for node in self.graph.inputs:
            # Booleans that are read as masks alone get no relevance.
            is_mask = node.dtype == "bool" and not self._is_read_as_numbers(node)
            if not is_mask and node.dtype.startswith(("bool", "string", "complex")):
                raise ValueError(f"Inputs of dtype {node.dtype} cannot be explained.")
        beside = [call for call in self.graph.calls if not isinstance(call.operation, Bystander)]
        # Sizes may be read off a tensor that has relevance.
        signals = {node for call in beside for node in call.outputs}
        signals.update(node for node in self.graph.inputs if node.floating)
        aside = {node for call in self.graph.calls for node in call.outputs} - signals
        read = dict.fromkeys(
            node for call in beside for node in (*call.operands, *aside.intersection(call.inputs))
        )
        self.operands = [node for node in read if node not in signals]
        explained = len(graph.inputs) - fixed
        inputs = zip(graph.input_names[:explained], graph.inputs[:explained], strict=True)
        self.readouts = {**dict(inputs), **readouts}
        names = _LayerNames()
        self.vanishing = vanishing_below_zero(self.graph, self.rules, start)
        self._forward_calls = {
            call: ForwardCall(call, names("forward", call), dtype) for call in self.graph.calls
        }
        self._reverse_calls = {
            call: self._reverse_call(call, names("reverse", call)) for call in self.graph.calls
        }
        self._bounds = {call: self._bounds_of(call, names) for call in self.graph.calls}
        self._zeros = Zeros("zeros", dtype)
        self._times = TimesActivation("times_activation", dtype)
        made = [node for call in self.graph.calls for node in call.outputs]
        self.nodes = list(dict.fromkeys([*self.graph.inputs, *made]))
        self.start_index = self.nodes.index(start)
        self._compile()

    def _is_read_as_numbers(self, node: Node) -> bool:
        """Tells whether relevance arrives at a tensor, or at what is computed of it."""
        consumers = self.graph.consumers()
        waiting, seen = [node], {node}
        while waiting:
            part = waiting.pop()
            for call in consumers[part]:
                if isinstance(call.operation, Bystander):
                    waiting += [made for made in call.outputs if made not in seen]
                    seen.update(call.outputs)
                elif part in call.inputs:
                    return True
        return False

    def _reverse_call(self, call: Call, name: str) -> ReverseCall:
        return ReverseCall(
            call,
            self.rules[call],
            name,
            self.dtype,
            self._parameters.get(call, ()),
            vanishing=call in self.vanishing,
        )

    def _bounds_of(self, call: Call, names: _LayerNames) -> Bounds | None:
        if not issubclass(self.rules[call].record, BoundedCall):
            return None
        return Bounds(self.rules[call], self.graph, call, names("bounds", call), self.dtype)

    # --- the walk forward and backward ---

    @property
    def input_specs(self) -> list[tf.TensorSpec]:
        """Shapes and dtypes of what the compiled functions take as inputs."""
        return [self._spec(node) for node in self.graph.inputs]

    @property
    def _keras_inputs(self) -> dict[str, Node]:
        """Name -> tensor of each input of the Keras model."""
        return dict(zip(map(_keras_name, self.graph.input_names), self.graph.inputs, strict=True))

    @property
    def record_specs(self) -> list[tf.TensorSpec]:
        """Shapes and dtypes of the records."""
        return [self._spec(node) for node in self.nodes]

    def _spec(self, node: Node) -> tf.TensorSpec:
        shape = node.shape if node.internal else (None, *node.shape[1:])
        return tf.TensorSpec(shape, node.dtype_in(self.dtype))

    def _replay(self, inputs: Sequence) -> Tensors:
        return self._forward(dict(zip(self.graph.inputs, inputs, strict=True)))

    def _forward(self, tensors: dict[Node, Tensor]) -> dict[Node, Tensor]:
        """Runs the calls whose outputs are not given; returns all tensors."""
        for call in self.graph.calls:
            if call.outputs[0] not in tensors:
                self._run(call, tensors)
        return tensors

    def _run(self, call: Call, tensors: dict[Node, Tensor]) -> None:
        """Runs a call on the tensors, to which its results are added."""
        given = [tensors[node] for node in call.inputs]
        results = self._forward_calls[call](given, **_operands(call, tensors))
        tensors.update(zip(call.outputs, results, strict=True))

    def operands_at(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the operands of the calls at given inputs."""
        tensors = dict(zip(self.graph.inputs, inputs, strict=True))
        for call in self.graph.upstream(self.operands).calls:
            self._run(call, tensors)
        return [tensors[node] for node in self.operands]

    def _recorded(self, tensors: Tensors) -> list[Tensor]:
        """Returns all tensors of a pass in one list, which a function can return."""
        return [tensors[node] for node in self.nodes]

    def _restored(self, records: Sequence[Tensor]) -> Tensors:
        """Returns the tensors of a pass, given their list."""
        return dict(zip(self.nodes, records, strict=True))

    def _gathered(self, call: Call, tensors: Tensors) -> dict[str, list]:
        """Returns the tensors of a call, named as the fields of its rule's record."""
        gathered = {
            "inputs": [tensors[node] for node in call.inputs],
            "outputs": [tensors[node] for node in call.outputs],
            **_operands(call, tensors),
        }
        bounds = self._bounds[call]
        if bounds is not None:
            gathered["bounds"] = bounds([tensors[node] for node in self.graph.inputs])
        return gathered

    def visit(self, call: Call, tensors: Tensors, relevance: Sequence) -> Sequence:
        """Returns the relevance of each input of a call."""
        return self._reverse_calls[call](relevance, **self._gathered(call, tensors))

    def _settle(self, node: Node, relevance: Any) -> Any:
        """Changes the whole relevance of a tensor before it goes on."""
        return relevance

    def _read(self, node: Node, tensors: Tensors, relevance: Any) -> Any:
        """Returns what is read of the relevance of a tensor."""
        if self.times_activation and node.floating:
            return self._times(tensors[node], relevance)
        return relevance

    def _walk(self, tensors: Tensors, relevance: Any, visit: Visit) -> list:
        """Walks from the start to the inputs; returns the relevance of every read-out."""
        arriving: dict[Node, list] = collections.defaultdict(list)
        arriving[self.start].append(relevance)

        def summed(node: Node) -> Any:
            parts = arriving[node]
            if not parts:
                return self._zeros(tensors[node], relevance)
            whole = parts[0]
            for part in parts[1:]:
                whole = whole + part
            arriving[node] = [whole]
            return whole

        for call in reversed(self.graph.calls):
            if not any(arriving[node] for node in call.outputs):
                continue
            if not self.sees_bystanders and isinstance(call.operation, Bystander):
                continue
            outgoing = []
            for node in call.outputs:
                arriving[node] = [self._settle(node, summed(node))]
                outgoing += arriving[node]
            if isinstance(call.operation, Lookup):
                # The tokens of an integer input are explained at their vectors.
                outgoing = [self._read(call.outputs[0], tensors, outgoing[0])]
            for node, result in zip(call.inputs, visit(call, tensors, outgoing), strict=True):
                arriving[node].append(result)
        return [self._read(node, tensors, summed(node)) for node in self.readouts.values()]

    @property
    def model(self) -> keras.Model:
        """A keras.Model of [*inputs, output_relevance] -> relevance of the input.

        It is made when it is first asked for. If there are several read-outs, it returns a dict by
        their names.
        """
        if self._model is None:
            with TRACING:
                if self._model is None:
                    self._model = self._keras_model()
        return self._model

    def _keras_model(self) -> keras.Model:
        inputs = [
            keras.Input(node.shape[1:], dtype=node.dtype_in(self.dtype), name=name)
            for name, node in self._keras_inputs.items()
        ]
        shape = (None, *self.start.shape[1:])
        relevance = keras.Input(shape, dtype=self.dtype, name="output_relevance")
        results = self._walk(self._replay(inputs), relevance, self.visit)
        named = dict(zip(self.readouts, results, strict=True))
        outputs = results[0] if len(results) == 1 else named
        return keras.Model([*inputs, relevance], outputs, name="reversed")

    @property
    def is_internal(self) -> bool:
        """Whether some tensors have another first axis than that of the samples."""
        return any(
            node.internal and node.floating
            for call in self.graph.calls
            if not isinstance(call.operation, Bystander)
            for node in call.outputs
        )

    def nonlinear(self) -> str:
        """Returns why relevance is not linear in the output relevance; empty if it is."""
        for call in self.graph.calls:
            if not self.rules[call].linear:
                return f"{self.rules[call]} at {call.name} is not linear in the relevance"
        return ""

    @property
    def variables(self) -> list[tf.Variable]:
        """The arrays that belong to the rules."""
        return [v for step in self._reverse_calls.values() for v in step.parameters]

    def vectors_at_once(self, arrays: Sequence[np.ndarray | Tensor], limit: int) -> int:
        """Returns how many vectors fit into `limit` bytes at the largest tensor.

        Args:
            arrays: The batch, all inputs of the compiled functions; those of the model are first.
            limit: Bytes.
        """
        shapes = tuple(tuple(array.shape[1:]) for array in arrays[: len(self.graph.inputs)])
        if shapes not in self._largest:
            sizes = [node.shape[1:] for node in self.nodes]
            if self.is_internal:
                # Only all samples together tell how large its tensors are.
                records = self.run_records([tf.convert_to_tensor(array) for array in arrays])
                share = -(-_entries([tensor.shape for tensor in records]) // len(arrays[0]))
                sizes = [(share,)]
            elif any(None in size for size in sizes):
                # The sizes of the tensors follow those of this batch.
                sample = [tf.constant(array[:1]) for array in arrays]
                sizes = [tensor.shape[1:] for tensor in self.run_records(sample)]
            self._largest[shapes] = _entries(sizes)
        return self._fitting(len(arrays[0]) * self._largest[shapes], limit)

    def vectors_beside(self, records: Sequence[Tensor], limit: int) -> int:
        """Returns how many vectors of one sample fit into `limit` bytes at the largest tensor.

        Args:
            records: The tensors of a forward pass.
            limit: Bytes.
        """
        return self._fitting(_entries([record.shape[1:] for record in records]), limit)

    def _fitting(self, entries: int, limit: int) -> int:
        return max(1, limit // (entries * np.dtype(self.dtype).itemsize))

    # --- compiled functions ---

    def _compile(self) -> None:
        inputs, records = self.input_specs, self.record_specs
        relevance = tf.TensorSpec((None, None, *self.start.shape[1:]), self.dtype)
        targets = tf.TensorSpec((None, None), "int32")

        def outputs(inputs: Sequence[Tensor]) -> Tensor:
            return self._forward(dict(zip(self.graph.inputs, inputs, strict=True)))[self.start]

        def compiled(function: Callable, *signature: Any) -> Compiled:
            return Compiled(function, list(signature), self.execution, by_samples=True)

        def by_vectors(function: Callable, *signature: Any) -> CompiledByVectors:
            return CompiledByVectors(function, list(signature), self.execution)

        # It needs those of the model alone.
        self.run_outputs = compiled(outputs, [self._spec(node) for node in self.graph.inputs])
        self.run_propagate = by_vectors(self.propagate, inputs, relevance)
        self.run_records = compiled(self.forward_pass, inputs)
        # It sends chunks.
        self.run_backward = compiled(self.backward_pass, records, relevance)
        self.run_explain = by_vectors(self.explain, inputs, targets)
        self.run_ledger = compiled(self._ledger, records, relevance)

    def forward_pass(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs forward; returns every tensor of the graph."""
        return self._recorded(self._replay(inputs))

    def backward_pass(self, records: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        """Runs backward on the tensors of a forward pass."""
        return self._walk(self._restored(records), relevance, self.visit)

    def propagate(self, inputs: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        """Returns the relevance of each read-out, (batch, num_vectors, *shape).

        Args:
            inputs: One (batch, *shape) for each input of the model.
            relevance: (batch, num_vectors, *shape of the start tensor).
        """
        return self.backward_pass(self.forward_pass(inputs), relevance)

    def explain(self, inputs: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """Runs forward, starts at the targets with the method's head, and runs backward.

        Args:
            inputs: One (batch, *shape) for each input.
            targets: Flat output indices (batch, num_vectors); negative for the largest output.

        Returns:
            The start tensor (batch, *shape), then the relevance of each read-out.
        """
        records = self.forward_pass(inputs)
        outputs = records[self.start_index]
        relevance = start_relevance(outputs, targets, self.head)
        return [outputs, *self.backward_pass(records, relevance)]

    def _ledger(self, records: Sequence[Tensor], relevance: Tensor) -> dict[str, dict[str, Tensor]]:
        """Accounts for the relevance of each call: its terms, each (batch, num_vectors)."""
        rows = {}

        def visit(call: Call, tensors: Tensors, arriving: Sequence) -> Sequence:
            results = self.visit(call, tensors, arriving)
            rows[call.name] = self._account(call, tensors, arriving, results)
            return results

        self._walk(self._restored(records), relevance, visit)
        return rows

    def _account(
        self, call: Call, tensors: Tensors, arriving: Sequence, results: Sequence
    ) -> dict[str, Tensor]:
        """Returns what a call did with its relevance, by the names in `TERMS`.

        Only `lost` is a difference: what neither reached an input nor follows from the formula of
        what the rule absorbs.
        """
        step = self._reverse_calls[call]
        recorded = step.recorded(**self._gathered(call, tensors))
        if isinstance(call.operation, Lookup):
            # The walk has read it already.
            received = sum(total(part) for part in arriving)
        else:
            received = self._amount(call.outputs, tensors, arriving)
        kept = tf.zeros_like(received) + self._amount(call.inputs, tensors, results)
        absorbed = []
        for term in step.rule.absorbed(recorded, tuple(arriving)):
            term = tf.convert_to_tensor(term, received.dtype)
            if call.outputs[0].internal and term.shape.rank:
                term = tf.reduce_sum(term, axis=0, keepdims=True)
            absorbed.append(tf.zeros_like(received) + term)
        terms = [received, kept, *absorbed]
        return dict(zip(TERMS, [*terms, received - sum(terms[1:])], strict=True))

    def _amount(self, nodes: Sequence[Node], tensors: Tensors, relevance: Sequence) -> Tensor:
        """Returns the relevance of all elements of some tensors, (batch, num_vectors)."""
        return sum(of_sample(n, total(r)) for n, r in zip(nodes, relevance, strict=True))


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


def of_sample(node: Node, amount: Tensor) -> Tensor:
    """Returns the amount of each sample; where theirs is not the first axis, of the only one."""
    return tf.reduce_sum(amount, axis=0, keepdims=True) if node.internal else amount


def _operands(call: Call, tensors: Tensors) -> dict[str, list]:
    """Returns the operands of a call by the name of that argument; nothing if it has none."""
    operands = [tensors[node] for node in call.operands]
    return {"operands": operands} if operands else {}


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


def _entries(shapes: Iterable[Sequence[int]]) -> int:
    """Returns the number of entries of the largest tensor."""
    return max(int(np.prod(shape)) for shape in shapes)
