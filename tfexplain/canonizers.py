"""Turns a traced graph into an equal graph of canonical operations.

Fused activations are split off, identities dropped, batch normalisation folded into a neighbouring
linear layer, and a final softmax or sigmoid left out. Each step returns a new graph.
"""

from __future__ import annotations

from dataclasses import replace

import keras
from keras import layers

from tfexplain.errors import UnsupportedLayerError
from tfexplain.graph import Call, Graph, Node
from tfexplain.layer_types import IDENTITY, OPERATIONS, activation_of, listed_class, opaque, replay
from tfexplain.operations import (
    Activation,
    Affine,
    ConvolutionLinear,
    EinsumLinear,
    Linear,
    Operation,
)
from tfexplain.operations.linear import DepthwiseLinear, SeparableLinear, TransposedLinear


def canonize(graph: Graph, fold_batch_norm: bool = True) -> Graph:
    """Returns the equal graph of canonical operations, with signs of its tensors known.

    Args:
        graph: A traced graph.
        fold_batch_norm: Fold batch normalisation into a neighbouring linear layer.
    """
    graph = to_canonical(graph)
    if fold_batch_norm:
        graph = fold_batch_norms(graph)
    return analyse_signs(graph)


def to_canonical(graph: Graph) -> Graph:
    """Replaces Keras operations by canonical ones, splits activations off, drops identities."""
    renamed: dict[Node, Node] = {}
    calls: list[Call] = []
    for call in graph.calls:
        inputs = tuple(renamed.get(node, node) for node in call.inputs)
        call = replace(call, inputs=inputs)
        declared = getattr(call.operation, "relevance_policy", None)
        cls = listed_class(call.operation, OPERATIONS)
        if declared == "pass" and len(inputs) == 1:
            label = type(call.operation).__name__
            operation = Activation(label, replay(call), call.operation, joint=True)
        else:
            operation = OPERATIONS[cls](call) if cls else opaque(call)
        if operation is IDENTITY:
            renamed[call.outputs[0]] = inputs[0]
            continue
        activation = None
        if isinstance(operation, Linear):
            activation = getattr(call.operation, "activation", None)
        if activation in (None, keras.activations.linear):
            calls.append(replace(call, operation=operation))
            continue
        between = Node(call.outputs[0].shape, call.outputs[0].dtype)
        calls.append(replace(call, operation=operation, outputs=(between,)))
        function = activation_of(activation, None)
        calls.append(Call(f"{call.name}:{function.label}", function, (between,), call.outputs))
    return replace(
        graph,
        calls=tuple(calls),
        outputs=tuple(renamed.get(node, node) for node in graph.outputs),
        readouts={name: renamed.get(node, node) for name, node in graph.readouts.items()},
    )


def drop_output_activation(graph: Graph, output: Node) -> tuple[Graph, Node]:
    """Leaves out a softmax or sigmoid that makes `output`; returns the logits in its place."""
    call = graph.producer().get(output)
    if (
        call is None
        or not isinstance(call.operation, Activation)
        or call.operation.name not in ("softmax", "sigmoid")
        or graph.consumers()[output]
    ):
        return graph, output
    logits = call.inputs[0]
    readouts = {name: logits if node is output else node for name, node in graph.readouts.items()}
    return replace(
        graph, calls=tuple(c for c in graph.calls if c is not call), readouts=readouts
    ), logits


def fold_batch_norms(graph: Graph) -> Graph:
    """Folds batch normalisation into the linear layer before it, else into the one after it."""
    consumers, producer = graph.consumers(), graph.producer()
    outputs = set(graph.outputs)
    folded: dict[Call, Call | None] = {}
    merged: dict[Node, Node] = {}
    for call in graph.calls:
        if not isinstance(call.operation, Affine):
            continue
        norm = call.operation.source
        (source,), (target,) = call.inputs, call.outputs
        before = producer.get(source)
        before = folded.get(before, before)
        if (
            before is not None
            and isinstance(before.operation, Linear)
            and len(consumers[source]) == 1
            and source not in outputs
            and before.operation.norm_after is None
            and _on_channels(before.operation, norm, target)
        ):
            operation = type(before.operation)(
                before.operation.source, before.operation.norm_before, norm
            )
            original = producer[source]
            folded[original] = replace(before, operation=operation, outputs=(target,))
            folded[call] = None
            merged[source] = target
            continue
        after = consumers[target][0] if len(consumers[target]) == 1 else None
        if (
            after is not None
            and isinstance(after.operation, Linear)
            and target not in outputs
            and _pads_nothing(after.operation)
            and _on_channels(after.operation, norm, source)
        ):
            operation = type(after.operation)(after.operation.source, norm_before=norm)
            folded[after] = replace(after, operation=operation, inputs=(source,))
            folded[call] = None
            # The name of the normalisation means what the name of the layer means.
            merged[target] = graph.readouts.get(after.name, after.outputs[0])
    calls = [folded.get(call, call) for call in graph.calls]
    readouts = {}
    for name, node in graph.readouts.items():
        while node in merged:
            node = merged[node]
        readouts[name] = node
    return replace(
        graph, calls=tuple(call for call in calls if call is not None), readouts=readouts
    )


def _on_channels(operation: Linear, norm: layers.BatchNormalization, tensor: Node) -> bool:
    """Tells whether the normalised axis is the layer's channel axis."""
    if isinstance(operation, EinsumLinear):
        return False
    axis = norm.axis % len(tensor.shape)
    return axis == (len(tensor.shape) - 1 if operation.channels_last else 1)


def _pads_nothing(operation: Linear) -> bool:
    if isinstance(operation, SeparableLinear | TransposedLinear | EinsumLinear):
        return False
    if isinstance(operation, ConvolutionLinear | DepthwiseLinear):
        return operation.source.padding == "valid"
    return True


def analyse_signs(graph: Graph) -> Graph:
    """Notes for each call which of its inputs are >= 0 for certain, whatever the weights."""
    known: dict[Node, bool] = {}
    calls = []
    for call in graph.calls:
        signs = tuple(known.get(node, False) for node in call.inputs)
        calls.append(replace(call, nonnegative=signs))
        sign = call.operation.is_nonnegative(signs)
        known.update(dict.fromkeys(call.outputs, sign))
    return replace(graph, calls=tuple(calls))


def check_replayable(graph: Graph) -> None:
    """Refuses calls that cannot run again sample by sample, all in one message.

    Raises:
        UnsupportedLayerError: For masks, layers with a state of their own and results without a
            batch axis.
    """
    offenders = []
    for call in graph.calls:
        operation = call.operation
        source = operation.source if isinstance(operation, Operation) else operation
        if getattr(source, "mask_zero", False) or isinstance(source, layers.Masking):
            offenders.append(f"{call.name} ({type(source).__name__}): it makes a mask")
        elif any(node.batch not in (None, graph.inputs[0].batch) for node in call.outputs):
            offenders.append(f"{call.name} ({type(source).__name__}): its result has no batch axis")
    if offenders:
        raise UnsupportedLayerError(
            "These calls cannot be replayed in a reversed network: "
            + "; ".join(offenders)
            + ". Explain a copy of the model without masks (mask_zero=False); with "
            "a single floating input, the gradient methods take it as it is."
        )
