"""Wrappers of Keras, which hold layers, as calls of these and of what is done around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf
from keras import layers, tree

from tfexplain.graph import Call, Graph, Node
from tfexplain.operations import (
    Concatenation,
    Operation,
    Product,
    Rearrangement,
    Slot,
    Sum,
)
from tfexplain.operations.calls import listed_class


def without_wrappers(graph: Graph) -> Graph:
    """Returns the graph with the calls that `Bidirectional` is made of in its place.

    Args:
        graph: A traced graph, whose masks are operands.
    """
    calls: list[Call] = []
    for call in graph.calls:
        is_known = not isinstance(call.operation, Operation)
        both = is_known and listed_class(call.operation, (layers.Bidirectional,)) is not None
        calls += _both_ways(call) if both else [call]
    return replace(graph, calls=tuple(calls))


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
