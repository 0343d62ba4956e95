"""Wrappers of Keras, which hold layers, as calls of these and of what is done around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf
from keras import layers, tree

from tfexplain.errors import UnsupportedLayerError
from tfexplain.graph import Call, Graph, Node, traced_inside
from tfexplain.layer_types import entry_of
from tfexplain.masks import reads_masks, with_masks
from tfexplain.operations import (
    Bystander,
    Concatenation,
    Operation,
    Product,
    Rearrangement,
    Slot,
    Sum,
)
from tfexplain.operations.calls import listed_class
from tfexplain.operations.structure import MergedTime, SplitTime


def without_wrappers(graph: Graph) -> Graph:
    """Returns the graph with calls of layers in the place of `Bidirectional`, `TimeDistributed`.

    Args:
        graph: A traced graph, whose masks are operands.
    """
    return replace(graph, calls=tuple(_without_wrappers(graph.calls)))


def _without_wrappers(calls: Iterable[Call]) -> list[Call]:
    kinds: dict[type, Callable[[Call], list[Call]]] = {
        layers.Bidirectional: _both_ways,
        layers.TimeDistributed: _at_each_time,
    }
    made = []
    for call in calls:
        own = isinstance(call.operation, Operation)
        kind = None if own else listed_class(call.operation, kinds)
        made += [call] if kind is None else kinds[kind](call)
    return made


def _at_each_time(call: Call) -> list[Call]:
    """Returns the calls of a `TimeDistributed`: its layer, with time merged into the samples.

    Raises:
        UnsupportedLayerError: If a call inside works across samples.
    """
    layer: Any = call.operation.layer
    sequence, result = call.inputs[0], call.outputs[0]
    if len(call.inputs) > 1 or (call.operands and reads_masks(layer)):
        return [call]
    sizes = Node((2,), "int32", internal=True)
    merged = Node((None, *sequence.shape[2:]), sequence.dtype, internal=True)
    apart = Node((None, *result.shape[2:]), result.dtype, internal=True)
    graph = Graph((merged,), ("x",), (apart,), ("y",), ())
    inside = traced_inside(layer, merged, apart, f"{call.name}/")
    graph = with_masks(replace(graph, calls=inside))
    crossing = [
        f"{c.name} ({type(c.operation).__name__})"
        for c in graph.calls
        if not isinstance(c.operation, Operation) and entry_of(c.operation).crosses_samples(c)
    ]
    if crossing:
        raise UnsupportedLayerError(
            f"These calls inside of {call.name} work across samples: {', '.join(crossing)}."
        )
    calls = _without_wrappers(graph.calls)
    for inner in calls:
        for node in inner.outputs:
            node.internal = True
    measure = Bystander("samples and time", lambda x: tf.shape(x)[:2])
    return [
        Call(f"{call.name}/sizes", measure, (sequence,), (sizes,)),
        Call(f"{call.name}/merge", MergedTime("merged time"), (sequence,), (merged,)),
        *calls,
        Call(f"{call.name}/split", SplitTime("split time"), (apart,), (result,), operands=(sizes,)),
    ]


def _both_ways(call: Call) -> list[Call]:
    """Returns the calls of a `Bidirectional`: both layers, a flip, and what merges them."""
    layer: Any = call.operation
    args, kwargs = call.arguments
    named = {**dict(zip(("sequences", "initial_state", "mask"), args, strict=False)), **kwargs}
    slots = [named.get("sequences"), *_leaves(named.get("initial_state"))]
    if not all(isinstance(slot, Slot) for slot in slots):
        return [call]
    sequence, *states = (call.reads[slot.index] for slot in slots)
    mask = tuple(call.reads[slot.index] for slot in _leaves(named.get("mask")))
    merged = call.outputs[: 2 if layer.merge_mode is None else 1]
    last_states = call.outputs[len(merged) :]
    calls, ways = [], []
    for place, inner in enumerate((layer.forward_layer, layer.backward_layer)):
        output = merged[place] if len(merged) == 2 else _output_of(inner, sequence)
        made = _half(last_states, place)
        name = f"{call.name}/{inner.name}"
        if place == 1 and layer.return_sequences:
            # The backward layer returns its outputs from the last position to the first.
            flipped, output = output, Node(output.shape, output.dtype)
            calls.append(_recurrent(name, inner, sequence, _half(states, 1), mask, (output, *made)))
            flip = Rearrangement("Flip", lambda x: tf.reverse(x, [1]))
            calls.append(Call(f"{call.name}/flip", flip, (output,), (flipped,)))
            output = flipped
        else:
            own = _half(states, place)
            calls.append(_recurrent(name, inner, sequence, own, mask, (output, *made)))
        ways.append(output)
    if len(merged) == 1:
        name = f"{call.name}/{layer.merge_mode}"
        calls.append(Call(name, _merge(layer), tuple(ways), merged))
    return calls


def _leaves(value: Any) -> list:
    return [leaf for leaf in tree.flatten(value) if leaf is not None]


def _half(nodes: Sequence[Node], place: int) -> tuple[Node, ...]:
    """Returns the first or the second half of some tensors."""
    middle = len(nodes) // 2
    return tuple(nodes[middle:] if place else nodes[:middle])


def _output_of(layer: Any, sequence: Node) -> Node:
    shape = layer.compute_output_shape(sequence.shape)
    shape = shape[0] if layer.return_state else shape
    return Node((None, *shape[1:]), sequence.dtype)


def _recurrent(
    name: str,
    layer: layers.Layer,
    sequence: Node,
    states: tuple[Node, ...],
    mask: tuple[Node, ...],
    outputs: tuple[Node, ...],
) -> Call:
    """Returns the call of one of both layers.

    Args:
        name: The name of the call.
        layer: The layer.
        sequence: What it reads.
        states: Its first states, if they are given.
        mask: The mask of the sequence, if there is one.
        outputs: What it makes.
    """
    kwargs: dict[str, Any] = {}
    if states:
        kwargs["initial_state"] = [Slot(1 + place) for place in range(len(states))]
    if mask:
        kwargs["mask"] = Slot(1 + len(states))
    arguments = ((Slot(0),), kwargs)
    return Call(name, layer, (sequence, *states), outputs, arguments, operands=mask)


def _merge(layer: Any) -> Operation:
    """Returns the operation that merges both ways."""
    if layer.merge_mode == "concat":
        return Concatenation("Concatenate", -1, layer)
    if layer.merge_mode == "mul":
        return Product("Multiply", source=layer)
    factor = 0.5 if layer.merge_mode == "ave" else 1.0
    return Sum("Average" if factor < 1 else "Add", (factor, factor), layer)
