"""Traces a Keras model into a flat graph of calls. Only this module reads Keras' private graph.

Nested models are inlined, a shared layer gives one call per use, and operations of `keras.ops`
count like layers (they are in `model.operations`, not in `model.layers`).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import keras
from keras import tree

from tfexplain.errors import UnsupportedModelError
from tfexplain.operations import Bystander, Call, Lookup, Movement, Node, Slot, WholeModel
from tfexplain.operations.calls import MaskGiven


@dataclass(frozen=True, eq=False)
class Graph:
    """A directed acyclic graph of calls in an order in which they can run.

    Attributes:
        inputs: The input tensors.
        input_names: Their names in the model.
        outputs: The output tensors.
        output_names: Their names in the model.
        calls: All calls.
        readouts: Name of a layer or call -> the tensor that this name means.
    """

    inputs: tuple[Node, ...]
    input_names: tuple[str, ...]
    outputs: tuple[Node, ...]
    output_names: tuple[str, ...]
    calls: tuple[Call, ...]
    readouts: dict[str, Node] = field(default_factory=dict)

    def producer(self) -> dict[Node, Call]:
        """Maps each tensor to the call that makes it."""
        return {node: call for call in self.calls for node in call.outputs}

    def consumers(self) -> dict[Node, list[Call]]:
        """Maps each tensor to the calls that read it."""
        consumers = collections.defaultdict(list)
        for call in self.calls:
            for node in call.reads:
                consumers[node].append(call)
        return consumers

    def readers(self) -> dict[Node, list[Call]]:
        """Maps each tensor to the calls that can send relevance to it."""
        readers = collections.defaultdict(list)
        for call in self.calls:
            for node in () if isinstance(call.operation, Bystander) else call.inputs:
                readers[node].append(call)
        return readers

    def upstream(self, nodes: Iterable[Node]) -> Graph:
        """Returns the graph with only the calls that `nodes` depend on."""
        producer, needed = self.producer(), set()
        waiting = list(nodes)
        while waiting:
            call = producer.get(waiting.pop())
            if call is not None and call not in needed:
                needed.add(call)
                waiting.extend(call.reads)
        kept = tuple(call for call in self.calls if call in needed)
        return replace(self, calls=kept)


def has_graph(model: keras.Model) -> bool:
    """Tells whether the model is Functional or a built Sequential."""
    return _function(model) is not None


def _function(model: keras.Operation) -> Any:
    """Returns the Functional graph of a model; None where it has none, or a `call` of its own."""
    functional = keras.src.models.functional.Functional
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None) if _inherits(model, keras.Sequential) else None
    if isinstance(model, functional):
        return model if _inherits(model, functional) else None
    return None


def _inherits(model: keras.Operation, cls: Any) -> bool:
    return type(model).call is cls.call


def uncompiled(model: keras.Model) -> keras.Model:
    """Returns a model of the same layers, without optimizer and losses; it has to have a graph."""
    function = _function(model)
    return keras.Model(function._inputs_struct, function._outputs_struct, name=model.name)


def all_layers(operation: keras.Operation) -> list[keras.layers.Layer]:
    """Returns a layer or model and all layers inside it."""
    return list(operation._flatten_layers()) if isinstance(operation, keras.layers.Layer) else []


def channels_last(model: keras.Model) -> bool:
    """Tells whether the last axis holds channels: no layer of the model has them first."""
    formats = (getattr(layer, "data_format", None) for layer in all_layers(model))
    return "channels_first" not in formats


def call_model(model: keras.Model, tensors: Sequence) -> list:
    """Calls a model at inference with one tensor per input; returns its outputs as a list."""
    return tree.flatten(model(_packed(model, tensors), **_inference(model)))


def call_unchanged(model: keras.Model, tensors: Sequence) -> list:
    """As `call_model`, but the model does not even note that it was called."""
    values = [
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    outputs, _ = model.stateless_call(*values, _packed(model, tensors), **_inference(model))
    return tree.flatten(outputs)


def _inference(model: keras.Model) -> dict[str, bool]:
    """Returns the argument that says that nothing is trained; nothing if a model takes none."""
    return {"training": False} if model._call_has_training_arg else {}


def _packed(model: keras.Model, tensors: Sequence) -> Any:
    struct = getattr(model, "_inputs_struct", None)
    return tensors[0] if struct is None else tree.pack_sequence_as(struct, list(tensors))


def check_stateless(operation: keras.Operation, name: str) -> None:
    """Refuses layers that keep a state from call to call, which explaining would change.

    Raises:
        UnsupportedModelError: For a stateful layer, also inside of others.
    """
    stateful = [layer.name for layer in all_layers(operation) if getattr(layer, "stateful", False)]
    if stateful:
        raise UnsupportedModelError(
            f"{name} keeps a state between batches ({', '.join(stateful)}), which explaining would "
            "change. Explain a copy of the model with stateful=False."
        )


def check_built(model: keras.Model) -> None:
    """Refuses what is no built Keras model.

    Raises:
        TypeError: If it is no Keras model.
        UnsupportedModelError: If it is not built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"A Keras model is needed, received {type(model).__name__!r}. "
            "Load a saved file with keras.models.load_model first."
        )
    if not model.built or (isinstance(model, keras.Sequential) and not has_graph(model)):
        raise UnsupportedModelError(
            f"The model {model.name!r} is not built: its input shape is unknown. Start it with "
            "keras.Input(shape), call it once on data, or call model.build(input_shape)."
        )


def trace(model: keras.Model) -> Graph:
    """Returns the graph of a built model, which stays as it is; a subclassed one is one call.

    Raises:
        TypeError: If `model` is no Keras model.
        UnsupportedModelError: If it is not built or has no graph.
    """
    check_built(model)
    function = _function(model)
    if function is None:
        return _whole(model)
    inputs = tuple(_node(tensor) for tensor in function.inputs)
    tracer = _Tracer()
    outputs = tracer.run(function, inputs, "")
    return Graph(
        inputs=inputs,
        input_names=_names_of_inputs(function),
        outputs=tuple(outputs),
        output_names=tuple(function.output_names),
        calls=tuple(tracer.calls),
        readouts=tracer.readouts,
    )


def traced_inside(
    layer: keras.layers.Layer, given: Node, result: Node, prefix: str
) -> tuple[Call, ...]:
    """Returns the calls of a layer or model that a wrapper calls.

    Args:
        layer: The layer.
        given: The tensor that it reads, whose first axis is not that of the samples.
        result: The tensor that it makes.
        prefix: What the names of the calls start with.
    """
    function = _function(layer) if isinstance(layer, keras.Model) else None
    if function is None:
        return (Call(prefix + layer.name, layer, (given,), (result,), ((Slot(0),), {})),)
    tracer = _Tracer()
    (output,) = tracer.run(function, (given,), f"{prefix}{layer.name}/")
    renamed = {output: result}
    calls = []
    for call in tracer.calls:
        outputs = tuple(renamed.get(node, node) for node in call.outputs)
        reads = [renamed.get(node, node) for node in call.inputs]
        calls.append(replace(call, inputs=tuple(reads), outputs=outputs))
    return tuple(calls)


def _whole(model: keras.Model) -> Graph:
    """Returns the graph of a model without one: it is one call, which has no name."""
    given = keras.KerasTensor(_known_input_shape(model), dtype=model.input_dtype)
    results = tree.flatten(model.compute_output_spec(given))
    inputs, outputs = (_node(given),), tuple(_node(tensor) for tensor in results)
    names = tuple(f"output_{index}" for index in range(len(outputs)))
    call = Call("", model, inputs, outputs, ((Slot(0),), {}))
    return Graph(inputs, ("input",), outputs, names, (call,))


def opaque_graph(model: keras.Model) -> Graph:
    """Returns a graph with the whole model as one call, for models without a graph of layers.

    Raises:
        UnsupportedModelError: If its input shape is unknown, or it keeps a state.
    """
    check_stateless(model, model.name)
    known = _function(model)
    if known is None:
        shape = _known_input_shape(model)
        given = [keras.KerasTensor(shape, dtype=model.input_dtype)]
        results = tree.flatten(model.compute_output_spec(given[0]))
    else:
        given, results = known.inputs, known.outputs
    inputs = tuple(_node(tensor) for tensor in given)
    outputs = tuple(_node(tensor) for tensor in results)

    def function(*tensors: Any) -> list:
        if known is None:
            computed = tree.flatten(model(tensors[0], **_inference(model)))
        else:
            computed = call_model(model, tensors)
        floating = [tensor.dtype for tensor in tensors if tensor.dtype.is_floating]
        # The model computes in its own precision, whatever the analysis asks for.
        return [keras.ops.cast(part, floating[0]) for part in computed] if floating else computed

    operation = WholeModel(type(model).__name__, function, model)
    names = tuple(f"output_{index}" for index in range(len(outputs)))
    call = Call(model.name, operation, inputs, outputs, nonnegative=(False,) * len(inputs))
    input_names = ("input",) if len(inputs) == 1 else _names_of_inputs(known)
    return Graph(inputs, input_names, outputs, names, (call,))


def _names_of_inputs(function: keras.Model) -> tuple[str, ...]:
    if isinstance(function._inputs_struct, dict):
        # `tree` flattens a dict in the order of its sorted keys, as Keras does.
        return tuple(sorted(function._inputs_struct))
    return tuple(tensor._keras_history.operation.name for tensor in function.inputs)


def _known_input_shape(model: keras.Model) -> tuple[int | None, ...]:
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) == 1:
        return inputs[0].shape
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if len(shapes) == 1:
        (shape,) = shapes.values()
        if isinstance(shape, tuple | list) and all(s is None or isinstance(s, int) for s in shape):
            return (None, *shape[1:])
    raise UnsupportedModelError(
        f"The subclassed model {model.name!r} does not tell the shape of its one input. Call it "
        "once on data, or call model.build(input_shape)."
    )


def _node(
    tensor: keras.KerasTensor, batches: Mapping[int | None, int | None] | None = None
) -> Node:
    """Returns the node of a tensor.

    Args:
        tensor: The tensor.
        batches: Batch size inside of a nested model -> that of the model around it: one that was
            built by a call on one sample takes any.
    """
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not tensor.shape:
        return Node((), dtype, -1)
    batch = tensor.shape[0]
    return Node((None, *tensor.shape[1:]), dtype, (batches or {}).get(batch, batch))


class _Tracer:
    """Collects calls while it walks through a model and the models inside it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.readouts: dict[str, Node] = {}
        self.uses: collections.Counter = collections.Counter()

    def name(
        self, prefix: str, step: Any, before: collections.Counter, order: dict[int, int]
    ) -> str:
        """Returns the name of a call: numbers follow the order in which the user called."""
        name = prefix + step.operation.name
        use = before[name] + order[id(step)]
        self.uses[name] += 1
        return f"{name}@{use}" if use else name

    def run(self, function: keras.Model, inputs: tuple[Node, ...], prefix: str) -> list[Node]:
        """Walks through `function`, applied to `inputs`, and returns its outputs."""
        before, order = self.uses.copy(), _order_of_uses(function)
        known = {id(tensor): node for tensor, node in zip(function.inputs, inputs, strict=True)}
        batches = {
            tensor.shape[0]: node.batch
            for tensor, node in zip(function.inputs, inputs, strict=True)
            if tensor.shape
        }
        for depth in sorted(function._nodes_by_depth, reverse=True):
            for step in function._nodes_by_depth[depth]:
                if step.is_input or step.operation is None:
                    continue
                if any(id(tensor) not in known for tensor in step.input_tensors):
                    continue
                name = self.name(prefix, step, before, order)
                outputs = self.visit(step, name, known, prefix, batches)
                for tensor, node in zip(step.outputs, outputs, strict=True):
                    known[id(tensor)] = node
        return [known[id(tensor)] for tensor in function.outputs]

    def visit(
        self,
        step: Any,
        name: str,
        known: dict[int, Node],
        prefix: str,
        batches: Mapping[int | None, int | None],
    ) -> list[Node]:
        """Records one call, or all calls of a nested model."""
        operation = step.operation
        inner = _function(operation) if isinstance(operation, keras.Model) else None
        if inner is not None:
            # Only the first argument carries data.
            given = _given(inner, step.arguments)
            nodes = tuple(known[id(tensor)] for tensor in given)
            masks = [
                known[id(leaf)] if isinstance(leaf, keras.KerasTensor) else None
                for leaf in tree.flatten(step.arguments.kwargs.get("mask"))
            ]
            if any(masks):
                nodes = self.with_masks(name, nodes, masks)
            outputs = self.run(inner, nodes, prefix + operation.name + "/")
        else:
            read: list[Node] = []

            def slot(leaf: Any) -> Any:
                if not isinstance(leaf, keras.KerasTensor):
                    return leaf
                read.append(known[id(leaf)])
                return Slot(len(read) - 1)

            arguments = tree.map_structure(slot, (step.arguments.args, step.arguments.kwargs))
            outputs = [_node(tensor, batches) for tensor in step.outputs]
            self.calls.append(Call(name, operation, tuple(read), tuple(outputs), arguments))
        if len(outputs) == 1:
            self.readouts[name] = outputs[0]
        return outputs

    def with_masks(
        self, name: str, nodes: Sequence[Node], masks: Sequence[Node | None]
    ) -> tuple[Node, ...]:
        """Records that the tensors have given masks inside of a nested model; returns these."""
        attached = []
        for place, (node, mask) in enumerate(zip(nodes, masks, strict=True)):
            if mask is not None:
                copy = Node(node.shape, node.dtype, node.batch)
                arguments = ((Slot(0),), {"mask": Slot(1)})
                call = Call(f"{name}:mask_{place}", MaskGiven(), (node, mask), (copy,), arguments)
                self.calls.append(call)
                node = copy
            attached.append(node)
        return tuple(attached)


def unexplained_inputs(graph: Graph, start: Node) -> tuple[list[str], bool]:
    """Returns the inputs that the explained output depends on without relevance reaching them.

    They are read as masks and indices, or as integers that no embedding looks up.

    Args:
        graph: A canonical graph.
        start: The explained tensor.

    Returns:
        The names of these inputs, and whether any other input has relevance.
    """
    graph = graph.upstream([start])
    reached = {start}
    for call in reversed(graph.calls):
        if isinstance(call.operation, Bystander) or reached.isdisjoint(call.outputs):
            continue
        whole = isinstance(call.operation, Lookup | WholeModel | Movement)
        reached.update(node for node in call.inputs if node.floating or whole)
    readers = graph.consumers()
    named = list(zip(graph.inputs, graph.input_names, strict=True))
    without = [name for node, name in named if readers[node] and node not in reached]
    return without, any(node in reached for node, _ in named)


def token_lookups(graph: Graph, method: str) -> dict[Node, tuple[Call, ...]]:
    """Maps each integer input of a canonical graph to the embeddings that read it.

    An input that only masks are made of is left out: it is the same in every pass.

    Raises:
        UnsupportedModelError: If something else reads it too.
    """
    lookups, readers = {}, graph.readers()
    for node, name in zip(graph.inputs, graph.input_names, strict=True):
        if node.floating or (not readers[node] and graph.consumers()[node]):
            continue
        if not readers[node] or any(not isinstance(c.operation, Lookup) for c in readers[node]):
            raise UnsupportedModelError(
                f"{method} moves inputs continuously; the integer input {name!r} has to be read by "
                "Embedding layers alone."
            )
        lookups[node] = tuple(readers[node])
    return lookups


class Source(NamedTuple):
    """A tensor that a method moves continuously: a floating input, or the vectors of tokens.

    Attributes:
        place: Which input of the model it belongs to.
        node: The tensor.
        lookup: The embedding that makes it; None for an input.
    """

    place: int
    node: Node
    lookup: Call | None


def sources_of(graph: Graph, tokens: Mapping[Node, Sequence[Call]]) -> list[Source]:
    """Returns what stands for the inputs of a graph where these move continuously.

    Args:
        graph: A canonical graph.
        tokens: Those of `token_lookups`. Tokens have vectors of every embedding.
    """
    sources = []
    for place, node in enumerate(graph.inputs):
        if node.floating:
            sources.append(Source(place, node, None))
        for lookup in tokens.get(node, ()):
            sources.append(Source(place, lookup.outputs[0], lookup))
    return sources


def _order_of_uses(function: keras.Model) -> dict[int, int]:
    """Maps each step of a model to how many uses of the same operation came before it."""
    uses = collections.defaultdict(list)
    for steps in function._nodes_by_depth.values():
        for step in steps:
            if step.operation is not None:
                uses[id(step.operation)].append(step)
    order = {}
    for steps in uses.values():
        place = {id(step): index for index, step in enumerate(steps[0].operation._inbound_nodes)}
        steps.sort(key=lambda step: place.get(id(step), len(place)))
        order.update({id(step): index for index, step in enumerate(steps)})
    return order


def _given(inner: keras.Model, arguments: Any) -> list:
    """Returns the tensors that a nested model is called with, in the order of its inputs."""
    if not arguments.args:
        return list(arguments.keras_tensors)
    value = arguments.args[0]
    if isinstance(value, dict) and not isinstance(inner._inputs_struct, dict):
        # Keras wires a dict by the names of the inputs then.
        return [value[tensor._keras_history.operation.name] for tensor in inner.inputs]
    return tree.flatten(value)
