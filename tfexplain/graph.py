"""Traces a Keras model into a flat graph of calls. Only this module reads Keras' private graph.

Nested models are inlined, a shared layer gives one call per use, and operations of `keras.ops`
count like layers (they are in `model.operations`, not in `model.layers`).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import keras
from keras import tree

from tfexplain.errors import UnsupportedModelError
from tfexplain.operations import Opaque, Operation, Slot


@dataclass(eq=False)
class Node:
    """A tensor of the graph, compared by identity.

    Attributes:
        shape: (None, *sizes), the batch axis always unknown.
        dtype: Name of the dtype in the user's model.
        batch: Size of the first axis in the user's model: None, or a fixed batch size.
    """

    shape: tuple[int | None, ...]
    dtype: str
    batch: int | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """One use of an operation.

    Attributes:
        name: Unique in the graph: "conv", "conv@1" for the second use, "outer/conv" if nested.
        operation: A Keras operation after tracing, a canonical `Operation` after canonizing.
        inputs: The tensors it reads, in the order of its `Slot`s.
        outputs: The tensors it makes.
        arguments: (args, kwargs) of the call with a `Slot` for each input.
        names: All names under which a user may ask for this call's output.
    """

    name: str
    operation: keras.Operation | Operation
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    arguments: tuple = ((), {})
    nonnegative: tuple[bool, ...] = ()


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
        found = collections.defaultdict(list)
        for call in self.calls:
            for node in call.inputs:
                found[node].append(call)
        return found

    def upstream(self, nodes: Iterable[Node]) -> Graph:
        """Returns the graph of the calls that `nodes` depend on, with them as outputs."""
        producer, needed = self.producer(), set()
        waiting = list(nodes)
        while waiting:
            call = producer.get(waiting.pop())
            if call is not None and call not in needed:
                needed.add(call)
                waiting.extend(call.inputs)
        kept = tuple(call for call in self.calls if call in needed)
        return replace(self, calls=kept)


def has_graph(model: keras.Model) -> bool:
    """Tells whether the model is Functional or a built Sequential."""
    return _function(model) is not None


def _function(model: keras.Operation):
    """Returns the Functional graph of a model, or None."""
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None)
    if isinstance(model, keras.src.models.functional.Functional):
        return model
    return None


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
    """Returns the graph of a built Functional or Sequential model, which stays as it is.

    Raises:
        TypeError: If `model` is no Keras model.
        UnsupportedModelError: If it is not built or has no graph.
    """
    check_built(model)
    function = _function(model)
    if function is None:
        raise UnsupportedModelError(
            f"The model {model.name!r} ({type(model).__name__}) is subclassed: it has no graph of "
            "layers to reverse. The gradient methods take it (gradient, input_t_gradient, "
            "integrated_gradients, smoothgrad); for the others, build the same layers as a "
            "Functional model."
        )
    inputs = tuple(_node(tensor) for tensor in function.inputs)
    tracer = _Tracer()
    outputs = tracer.run(function, inputs, "")
    names = tuple(tensor._keras_history.operation.name for tensor in function.inputs)
    if isinstance(function._inputs_struct, dict):
        # `tree` flattens a dict in the order of its sorted keys, as Keras does.
        names = tuple(sorted(function._inputs_struct))
    return Graph(
        inputs=inputs,
        input_names=names,
        outputs=tuple(outputs),
        output_names=tuple(function.output_names),
        calls=tuple(tracer.calls),
        readouts=tracer.readouts,
    )


def opaque_graph(model: keras.Model) -> Graph:
    """Returns a graph with the whole model as one call, for models without a graph of layers.

    Raises:
        UnsupportedModelError: If its input shape is unknown.
    """
    shape = _known_input_shape(model)
    result = model.compute_output_spec(keras.KerasTensor(shape, dtype=model.input_dtype))
    results = tree.flatten(result)
    inputs = (Node((None, *shape[1:]), keras.backend.standardize_dtype(model.input_dtype)),)
    outputs = tuple(_node(tensor) for tensor in results)

    def function(x):
        found = tree.flatten(model(x, training=False))
        # The model computes in its own precision, whatever the analysis asks for.
        return [keras.ops.cast(tensor, x.dtype) for tensor in found]

    operation = Opaque(function, type(model).__name__, model)
    names = tuple(f"output_{index}" for index in range(len(outputs)))
    call = Call(model.name, operation, inputs, outputs, nonnegative=(False,))
    return Graph(inputs, ("input",), outputs, names, (call,))


def _known_input_shape(model: keras.Model) -> tuple[int | None, ...]:
    if has_graph(model):
        return model.inputs[0].shape
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if len(shapes) == 1:
        (shape,) = shapes.values()
        if isinstance(shape, tuple | list) and all(s is None or isinstance(s, int) for s in shape):
            return (None, *shape[1:])
    raise UnsupportedModelError(
        f"The subclassed model {model.name!r} does not tell the shape of its one input. Call it "
        "once on data, or call model.build(input_shape)."
    )


def _node(tensor) -> Node:
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not tensor.shape:
        return Node((), dtype, -1)
    return Node((None, *tensor.shape[1:]), dtype, tensor.shape[0])


class _Tracer:
    """Collects calls while it walks through a model and the models inside it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.readouts: dict[str, Node] = {}
        self.uses: collections.Counter = collections.Counter()

    def name(self, prefix: str, operation: keras.Operation) -> str:
        name = prefix + operation.name
        use = self.uses[name]
        self.uses[name] += 1
        return f"{name}@{use}" if use else name

    def run(self, function, inputs: tuple[Node, ...], prefix: str) -> list[Node]:
        """Walks through `function`, applied to `inputs`, and returns its outputs."""
        known = {id(tensor): node for tensor, node in zip(function.inputs, inputs, strict=True)}
        for depth in sorted(function._nodes_by_depth, reverse=True):
            for step in function._nodes_by_depth[depth]:
                if step.is_input or step.operation is None:
                    continue
                if any(id(tensor) not in known for tensor in step.input_tensors):
                    continue
                outputs = self.visit(step, known, prefix)
                for tensor, node in zip(step.outputs, outputs, strict=True):
                    known[id(tensor)] = node
        return [known[id(tensor)] for tensor in function.outputs]

    def visit(self, step, known: dict[int, Node], prefix: str) -> list[Node]:
        """Records one call, or all calls of a nested model."""
        operation = step.operation
        name = self.name(prefix, operation)
        inner = _function(operation) if isinstance(operation, keras.Model) else None
        if inner is not None:
            # Only the first argument carries data; masks and flags are no inputs of the graph.
            given = tree.flatten(step.arguments.args[0] if step.arguments.args else [])
            if not step.arguments.args:
                given = [t for t in step.arguments.keras_tensors]
            nodes = tuple(known[id(tensor)] for tensor in given)
            outputs = self.run(inner, nodes, prefix + operation.name + "/")
        else:
            nodes = []

            def slot(leaf):
                if not isinstance(leaf, keras.KerasTensor):
                    return leaf
                nodes.append(known[id(leaf)])
                return Slot(len(nodes) - 1)

            arguments = tree.map_structure(slot, (step.arguments.args, step.arguments.kwargs))
            outputs = [_node(tensor) for tensor in step.outputs]
            self.calls.append(Call(name, operation, tuple(nodes), tuple(outputs), arguments))
        if len(outputs) == 1:
            self.readouts[name] = outputs[0]
        return outputs
