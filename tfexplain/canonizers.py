"""Turns a traced graph into an equal graph of canonical operations.

Fused activations are split off, identities dropped, batch normalisation folded into a neighbouring
linear layer, and a final softmax or sigmoid left out. Each step returns a new graph.
"""

from __future__ import annotations

import types
from collections.abc import Collection
from dataclasses import replace

import keras
import tensorflow as tf
from keras import layers

from tfexplain.errors import Unopened, UnsupportedLayerError, UnsupportedModelError
from tfexplain.graph import Call, Graph, Node, check_stateless
from tfexplain.layer_types import IDENTITY, entry_of, unwrapped
from tfexplain.masks import with_masks
from tfexplain.opening import opened
from tfexplain.operations import (
    Activation,
    Additive,
    Affine,
    Bystander,
    Linear,
    Lookup,
    Opaque,
    Operation,
    Product,
    Quotient,
    Rearrangement,
    Replay,
    Scaling,
    Slot,
    TensorProduct,
)
from tfexplain.operations.elementwise import activation_of
from tfexplain.operations.structure import MergedTime
from tfexplain.wrappers import without_wrappers


def canonize(graph: Graph, fold_batch_norm: bool = True) -> Graph:
    """Returns the equal graph of canonical operations, with signs of its tensors known.

    Args:
        graph: A traced graph.
        fold_batch_norm: Fold batch normalisation into a neighbouring linear layer.
    """
    graph = replace(graph, calls=tuple(map(unwrapped, graph.calls)))
    graph = to_canonical(settle_inputs(without_wrappers(with_masks(graph))))
    if fold_batch_norm:
        graph = fold_batch_norms(graph)
    return analyse_signs(graph)


def settle_inputs(graph: Graph) -> Graph:
    """Makes inputs that embeddings read integers, and those that are computed with floating.

    Keras gives tokens floating inputs where nothing else is said, and images may be integers.
    """
    readers = graph.readers()

    def is_numeric(call: Call) -> bool:
        kind = _kind(call)
        return kind is IDENTITY or kind.numeric

    def is_looked_up(node: Node) -> bool:
        return any(
            issubclass(_kind(call) or Operation, Lookup)
            or (not node.floating and any(map(is_looked_up, call.outputs)))
            for call in readers[node]
        )

    def is_number(node: Node) -> bool:
        # Tokens that are clipped or shifted first are tokens.
        return (
            bool(readers[node]) and all(map(is_numeric, readers[node])) and not is_looked_up(node)
        )

    def is_token(node: Node) -> bool:
        return bool(readers[node]) and all(
            issubclass(kind, Lookup)
            or (issubclass(kind, Rearrangement | MergedTime) and all(map(is_token, call.outputs)))
            for call in readers[node]
            for kind in [_kind(call) or Operation]
        )

    settled = {}
    for node in graph.inputs:
        dtype = node.dtype
        if node.floating and is_token(node):
            dtype = "int32"
        elif not node.floating and is_number(node):
            dtype = "float32"
        settled[node] = node if dtype == node.dtype else replace(node, dtype=dtype)

    def new(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        return tuple(settled.get(node, node) for node in nodes)

    calls = []
    for call in graph.calls:
        inputs = new(call.inputs)
        if inputs != call.inputs and is_numeric(call) and all(node.floating for node in inputs):
            # What is computed with floating numbers is floating.
            for node in call.outputs:
                settled[node] = node if node.floating else replace(node, dtype="float32")
        operands = new(call.operands)
        calls.append(replace(call, inputs=inputs, operands=operands, outputs=new(call.outputs)))
    return replace(
        graph,
        inputs=new(graph.inputs),
        outputs=new(graph.outputs),
        calls=tuple(calls),
        readouts={name: settled.get(node, node) for name, node in graph.readouts.items()},
    )


def _kind(call: Call) -> type[Operation] | None:
    """Returns the canonical operation that a call is, or usually becomes."""
    own = isinstance(call.operation, Operation)
    return type(call.operation) if own else entry_of(call.operation).kind


def to_canonical(graph: Graph) -> Graph:
    """Replaces Keras operations by canonical ones, splits activations off, drops identities."""
    renamed: dict[Node, Node] = {}
    calls: list[Call] = []
    names: dict[str, Node] = {}
    # What no relevance goes through, and of that what is computed of tensors with relevance.
    beside: set[Node] = set()
    moving: set[Node] = set()
    for call in graph.calls:
        inputs = tuple(renamed.get(node, node) for node in call.inputs)
        operands = tuple(renamed.get(node, node) for node in call.operands)
        call = replace(call, inputs=inputs, operands=operands)
        made = _canonical(call, beside)
        if made is IDENTITY:
            renamed[call.outputs[0]] = inputs[0]
            continue
        calls += made
        for inner in made:
            moves = inner.operation.follows_signal or not moving.isdisjoint(inner.reads)
            if isinstance(inner.operation, Bystander):
                beside.update(inner.outputs)
                moving.update(inner.outputs if moves else ())
            elif moves:
                inner.operation.follows_signal = True
        # The layers and operations inside of what was opened have names too.
        for inner in made:
            output = inner.outputs[0]
            if len(inner.outputs) == 1 and output.floating and not output.internal:
                names[inner.name.partition(":")[0]] = output
    return replace(
        graph,
        calls=tuple(calls),
        outputs=tuple(renamed.get(node, node) for node in graph.outputs),
        readouts={
            **names,
            **{name: renamed.get(node, node) for name, node in graph.readouts.items()},
        },
    )


def _canonical(call: Call, beside: Collection[Node] = ()) -> list[Call] | None:
    """Returns the canonical calls of a call of Keras; `IDENTITY` if it does nothing.

    Args:
        call: The call.
        beside: Tensors that no relevance goes through.
    """
    operation: Operation | None
    if isinstance(call.operation, Operation):
        return [call]
    if getattr(call.operation, "relevance_policy", None) is not None:
        operation = _declared(call)
    else:
        operation = entry_of(call.operation).operation(call)
    if operation is IDENTITY:
        return IDENTITY
    if operation.numeric and not any(node.floating for node in call.inputs + call.outputs):
        # These are numbers of tokens: what is computed of integers alone is floating by now.
        operation = Opaque.from_call(call)
    if isinstance(operation, Opaque):
        return _opened(call, operation, beside)
    multiplies = isinstance(operation, Product | Quotient | TensorProduct)
    if multiplies and any(node in beside for node in call.inputs):
        # The factor that has no relevance is one of the sample, and no half of it.
        return _opened(call, Opaque.from_call(call), beside)
    activation = operation.activation
    if activation in (None, keras.activations.linear):
        return [replace(call, operation=operation)]
    result = call.outputs[0]
    between = Node(result.shape, result.dtype, internal=result.internal)
    function = activation_of(activation, None, len(between.shape))
    name = f"{call.name}:{function.label}"
    after = Call(name, function, (between,), call.outputs)
    calls = [replace(call, operation=operation, outputs=(between,))]
    if isinstance(function, Opaque):
        source = types.SimpleNamespace(call=activation)
        return calls + _opened(
            replace(after, operation=source, arguments=((Slot(0),), {})), function
        )
    return [*calls, after]


def _opened(call: Call, opaque: Operation, beside: Collection[Node] = ()) -> list[Call]:
    """Returns what a call without a rule computes inside; itself where it cannot be opened."""

    def canonical(inner: Call) -> list[Call]:
        made = _canonical(inner)
        if made is IDENTITY:
            identity = Scaling("Identity", tf.identity, keeps_sign=True)
            return [replace(inner, operation=identity)]
        return made

    try:
        places = [place for place, node in enumerate(call.reads) if node in beside]
        return opened(call, _has_rule, canonical, places)
    except Unopened as error:
        if not call.name:
            # A whole model as one call would have the rules of gradients in silence.
            model = call.operation
            raise UnsupportedModelError(
                f"The model {model.name!r} ({type(model).__name__}) is subclassed, and cannot be "
                f"opened: {error}. The gradient methods and shapley_sampling take it (gradient, "
                "input_t_gradient, integrated_gradients, smoothgrad); for the others, build the "
                "same layers as a Functional model."
            ) from None
        opaque.refusal = str(error)
        return [replace(call, operation=opaque)]
    except UnsupportedLayerError as error:
        name = f"{call.name or call.operation.name} ({type(call.operation).__name__})"
        raise UnsupportedLayerError(f"{name} cannot be explained: {error}.") from None


def _has_rule(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer inside of another one has a rule of its own."""
    if getattr(layer, "relevance_policy", None) is not None:
        return True
    kind = entry_of(layer).kind
    return kind is not IDENTITY and not issubclass(kind, Opaque)


def _declared(call: Call) -> Operation:
    """Returns the operation of a layer that declares how relevance passes it.

    Raises:
        UnsupportedLayerError: If it declares something else than "pass", or changes the shape.
    """
    layer = call.operation
    shapes = {node.shape for node in (*call.inputs, *call.outputs)}
    if layer.relevance_policy != "pass" or len(shapes) != 1 or len(call.inputs) != 1:
        raise UnsupportedLayerError(
            f"{call.name} ({type(layer).__name__}) declares relevance_policy = "
            f'{layer.relevance_policy!r}. It can be "pass", for a layer of one tensor that keeps '
            f"its shape; shapes here: {[node.shape for node in (*call.inputs, *call.outputs)]}."
        )
    function = Replay(layer, call.arguments)
    return Activation(type(layer).__name__, function, layer, joint=True, declared=True)


def drop_output_activation(graph: Graph, output: Node) -> tuple[Graph, Node, Operation | None]:
    """Leaves out a softmax or sigmoid that makes `output`.

    Returns:
        The graph, the logits (or `output`), and the activation that was left out, if any. Where
        other calls read the probabilities too, the activation stays in the graph for them.
    """
    call = graph.producer().get(output)
    if (
        call is None
        or not isinstance(call.operation, Activation)
        or call.operation.name not in ("softmax", "sigmoid")
    ):
        return graph, output, None
    logits = call.inputs[0]
    if not graph.consumers()[output]:
        graph = replace(
            graph,
            calls=tuple(c for c in graph.calls if c is not call),
            readouts={k: logits if n is output else n for k, n in graph.readouts.items()},
        )
    return graph, logits, call.operation


def sigmoid_at_the_end(graph: Graph, output: Node) -> Graph:
    """Returns the graph in which the sigmoid of one unit comes behind what only reshapes it.

    Args:
        graph: A canonical graph.
        output: The tensor that may be such a reshaped sigmoid. It stays what it is.
    """
    producer, consumers = graph.producer(), graph.consumers()
    reshape = producer.get(output)
    if reshape is None or not isinstance(reshape.operation, Rearrangement):
        return graph
    inputs = reshape.inputs
    if len(inputs) > 1 or not _is_one_element(inputs[0]) or not _is_one_element(output):
        return graph
    (probability,) = inputs
    graph = sigmoid_at_the_end(graph, probability)
    sigmoid = graph.producer().get(probability)
    read_elsewhere = len(consumers[probability]) > 1 or probability in graph.outputs
    if sigmoid is None or not _is_sigmoid(sigmoid.operation) or read_elsewhere:
        return graph
    (logit,) = sigmoid.inputs
    between = Node(output.shape, output.dtype, output.batch)
    reshape = graph.producer()[output]
    swapped = {
        sigmoid: replace(reshape, inputs=(logit,), outputs=(between,)),
        reshape: replace(sigmoid, inputs=(between,), outputs=(output,)),
    }
    graph = replace(
        graph,
        calls=tuple(swapped.get(call, call) for call in graph.calls),
        readouts={k: logit if n is probability else n for k, n in graph.readouts.items()},
    )
    return analyse_signs(graph)


def _is_one_element(node: Node) -> bool:
    return all(size == 1 for size in node.shape[1:])


def _is_sigmoid(operation: Operation | None) -> bool:
    return isinstance(operation, Activation) and operation.name == "sigmoid"


def is_sigmoid_unit(graph: Graph, start: Node, dropped: Operation | None) -> bool:
    """Tells whether what is explained is one sigmoid unit, or its logit.

    Args:
        graph: A canonical graph.
        start: The explained tensor.
        dropped: The activation that was left out behind it, if any.
    """
    call = graph.producer().get(start)
    operation = dropped or (call.operation if call is not None else None)
    return _is_one_element(start) and _is_sigmoid(operation)


def opposite_side(graph: Graph, start: Node, kept: bool) -> tuple[Graph, Node, list[Call]]:
    """Returns the graph of what explains the other class of a sigmoid unit.

    The linear layers that the logit is made of get -W and -b, so that rules that treat signs apart
    speak for the other class. What lies between them and the logit may scale, shift, add, move or
    average: it becomes -f(-x). A tensor that comes from something else, or that is read elsewhere
    too, is multiplied by -1.

    Args:
        graph: A canonical graph.
        start: The logit, or the probability.
        kept: Whether it is the probability, which becomes 1 - p.

    Returns:
        The graph of the explained output alone, its start, and the sums whose summands have changed
        their signs: where a rule sees none of that, the logit alone is negated.
    """
    # Other outputs may read the logit: they have no part in this.
    graph = graph.upstream([start])
    consumers = graph.consumers()
    # What comes in the place of calls: of those that read negated tensors, and of linear layers.
    readers: dict[Call, Call] = {}
    negated_layers: dict[Call, Call] = {}
    to_negate = {start}
    if kept:
        sigmoid = graph.producer()[start]
        readers[sigmoid], to_negate = sigmoid, set(sigmoid.inputs)
    for call in reversed(graph.calls):
        reading = [reader for node in call.outputs for reader in consumers[node]]
        if to_negate.isdisjoint(call.outputs) or not all(reader in readers for reader in reading):
            continue
        mirrored = call.operation.mirrored()
        if isinstance(call.operation, Linear):
            negated_layers[call] = replace(call, operation=call.operation.opposite())
        elif mirrored is not None:
            readers[call] = replace(call, operation=mirrored)
            to_negate.update(call.inputs)
        else:
            continue
        to_negate.difference_update(call.outputs)
    negatives: dict[Node, Node] = {}

    def negatives_of(nodes: tuple[Node, ...]) -> list[Call]:
        """Returns the calls that multiply by -1 what is left to negate."""
        turning = []
        for node in nodes:
            if node in to_negate:
                name = f"opposite@{len(negatives)}" if negatives else "opposite"
                negatives[node] = Node(node.shape, node.dtype, node.batch)
                operation = Scaling("opposite", tf.negative)
                turning.append(Call(name, operation, (node,), (negatives[node],)))
        return turning

    calls = negatives_of(graph.inputs)
    for call in graph.calls:
        if call in readers:
            inputs = tuple(negatives.get(node, node) for node in call.inputs)
            calls.append(replace(readers[call], inputs=inputs))
        else:
            calls.append(negated_layers.get(call, call))
        calls += negatives_of(call.outputs)
    changed = {call.name for call in (*readers, *negated_layers)}
    start = negatives.get(start, start)
    graph = analyse_signs(replace(graph, calls=tuple(calls), outputs=(start,)))
    sums = [c for c in graph.calls if c.name in changed and isinstance(c.operation, Additive)]
    return graph, start, sums


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
        if before is not None:
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
            and after.operation.folds_norm_before
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
    rank = len(tensor.shape)
    return norm.axis % rank == operation.channel_axis(rank)


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
    """Refuses calls of a traced graph that cannot run again sample by sample, all in one message.

    Raises:
        UnsupportedLayerError: For operations across samples and results without a batch axis.
        UnsupportedModelError: For layers with a state, which a replay would change.
    """
    offenders = []
    for call in graph.calls:
        source = call.operation
        check_stateless(source, call.name)
        name = f"{call.name} ({type(source).__name__})"
        if any(node.batch not in (None, graph.inputs[0].batch) for node in call.outputs):
            offenders.append(f"{name}: its result has no batch axis")
        elif entry_of(source).crosses_samples(call):
            offenders.append(f"{name}: it works across samples")
    if offenders:
        raise UnsupportedLayerError(
            f"These calls cannot be replayed in a reversed network: {'; '.join(offenders)}. "
            "Relevance needs every sample by itself; explain a copy of the model without them."
        )
