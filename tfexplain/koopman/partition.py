"""Splits a model into blocks that follow each other, each a function of one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import Inputs, slices
from tfexplain.analyzers.replay import check_replay, dtype_of
from tfexplain.analyzers.reversed import explained_output
from tfexplain.canonizers import check_replayable, drop_output_activation, to_canonical
from tfexplain.checks import choice, precision_or_none
from tfexplain.compilation import Compiled, Execution
from tfexplain.errors import UnsupportedLayerError, UnsupportedModelError, nearest
from tfexplain.graph import Call, Graph, Node, trace
from tfexplain.masks import with_masks
from tfexplain.operations import Activation, Affine, Operation, Rearrangement, Scaling

PARTITIONS = ("weights", "layers", "residual")
_MOST_NAMES = 30  # in an error: one screen


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive layers of a model as a function f: R^p -> R^q of flattened tensors.

    Attributes:
        name: Unique among the blocks of a model.
        layers: Names of its layers, in order.
        calls: Its calls.
        input: The tensor that it reads.
        output: The tensor that it makes.
        dtype: Precision in which it computes.
    """

    name: str
    layers: tuple[str, ...]
    calls: tuple[Call, ...] = field(repr=False)
    input: Node = field(repr=False)
    output: Node = field(repr=False)
    dtype: str = "float32"
    _compiled: list[Compiled] = field(default_factory=list, init=False, repr=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return self.input.shape[1:]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output, without the batch axis."""
        return self.output.shape[1:]

    @property
    def input_size(self) -> int:
        """The number p of input dimensions."""
        return math.prod(self.input_shape)

    @property
    def output_size(self) -> int:
        """The number q of output dimensions."""
        return math.prod(self.output_shape)

    @property
    def kind(self) -> str:
        """Type of the block: S2L (p < q), L2S (p > q) or E2E (p = q)."""
        return kind(self.input_size, self.output_size)

    @property
    def narrowest(self) -> int:
        """The least number of dimensions of the tensors inside the block and at its ends."""
        nodes = [self.input, *(node for call in self.calls for node in call.outputs)]
        return min(math.prod(node.shape[1:]) for node in nodes)

    def __call__(self, x: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """Computes the block.

        Args:
            x: Shape (n, *input_shape).
            batch_size: Samples that are computed together.

        Returns:
            Shape (n, *output_shape).
        """
        x = np.asarray(x)
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"Block {self.name!r} takes inputs of shape (n, "
                f"{', '.join(map(str, self.input_shape))}), received {x.shape}."
            )
        parts = [self.run(tf.constant(x[part], self.dtype)) for part in slices(len(x), batch_size)]
        return np.concatenate([part.numpy() for part in parts])

    def run(self, tensor: tf.Tensor) -> tf.Tensor:
        """Computes one batch, compiled."""
        if not self._compiled:
            signature = [tf.TensorSpec(self.input.shape, self.dtype)]
            execution = Execution(precision="highest", dtype=self.dtype)
            self._compiled.append(Compiled(self._forward, signature, execution))
        return self._compiled[0](tensor)

    def _forward(self, tensor: tf.Tensor) -> tf.Tensor:
        tensors = {self.input: tensor}
        for call in self.calls:
            tensors.update(zip(call.outputs, call.run(tensors), strict=True))
        return tensors[self.output]


def kind(p: int, q: int) -> str:
    """Returns the type of a block from R^p to R^q (section III.B of [liang2022credit])."""
    return "E2E" if p == q else "S2L" if p < q else "L2S"


def blocks(
    model: keras.Model,
    partition: str | Sequence[str] = "weights",
    *,
    output: str | int | None = None,
    output_activation: str = "drop",
    dtype: str | None = None,
) -> list[Block]:
    """Splits a model into blocks B_1 ... B_m, so that the model is B_m o ... o B_1.

    A block can end at a tensor through which everything passes. Layers that run beside each other,
    as in a residual block, belong to one block.

    Args:
        model: A built Functional or Sequential model with one floating input of known shape.
        partition: How to split:

            * "weights": each layer with weights, with the normalisations and activations behind it.
              Poolings are blocks of their own. What only moves values (Flatten, Reshape, padding)
              belongs to the block behind it.
            * "layers": each layer; those that do nothing at inference (Dropout) are left out.
            * "residual": each group of layers between two such tensors that branches, with the
              normalisations and activations behind it; what lies between two of them is one block.
            * a list of names of layers, at whose output a block ends. The last block ends at the
              model's output.
        output: Name or index of the explained output, for a model with several.
        output_activation: "drop" leaves a final softmax or sigmoid out, "keep" has it in the last
            block.
        dtype: "float32" or "float64"; None: the model's.

    Returns:
        The blocks in the order in which they run.

    Raises:
        TypeError: If `model` is no Keras model.
        UnsupportedModelError: If it has no graph, several inputs, integer inputs or unknown sizes,
            or does not compute what its layers compute one by one.
        ValueError: For an unknown partition or layer, or a name inside of branches.
    """
    choice("output_activation", output_activation, ("drop", "keep"))
    dtype = precision_or_none("dtype", dtype)
    traced = trace(model)
    check_replayable(traced)
    graph = to_canonical(with_masks(traced))
    _check_unmasked(graph)
    end = explained_output(graph, output)
    position, dropped = graph.outputs.index(end), None
    if output_activation == "drop":
        graph, end, dropped = drop_output_activation(graph, end)
    graph = graph.upstream([end])
    _check_tensors(model, graph, end)
    dtype = dtype or dtype_of(model)
    for call in graph.calls:
        call.operation.prepare(dtype)
    segments = list(_segments(graph, end))
    all_blocks = _grouped(segments, graph, partition, dtype)
    few = np.random.default_rng(0).random((2, *graph.inputs[0].shape[1:])).astype(dtype)
    outputs = few
    for block in all_blocks:
        outputs = block(outputs)
    if np.isfinite(outputs).all():
        check_replay(model, [few], outputs, position, dropped, is_highest=True)
    return all_blocks


def inputs_of(all_blocks: Sequence[Block]) -> Inputs:
    """Returns what checks arrays against the first block's input."""
    return Inputs([all_blocks[0].input], ["x"], all_blocks[0].dtype)


def _check_unmasked(graph: Graph) -> None:
    masked = [call.name for call in graph.calls if call.operands]
    if masked:
        raise UnsupportedLayerError(
            f"Blocks are functions of one tensor, and {', '.join(masked)} read a mask too. Give a "
            "copy of the model without masks."
        )


def _check_tensors(model: keras.Model, graph: Graph, end: Node) -> None:
    start = "Koopman operators need a model with one floating input of known shape; "
    if len(graph.inputs) != 1:
        raise UnsupportedModelError(
            f"{start}{model.name!r} has {len(graph.inputs)} inputs "
            f"({', '.join(graph.input_names)})."
        )
    if not graph.inputs[0].floating:
        raise UnsupportedModelError(
            f"{start}{model.name!r} takes integers. Give the part of it behind the embedding."
        )
    nodes = [*graph.inputs, *(node for call in graph.calls for node in call.outputs)]
    unknown = [node.shape for node in nodes if None in node.shape[1:]]
    if unknown:
        raise UnsupportedModelError(
            f"{start}{model.name!r} has a tensor of shape {unknown[0]}. Call it on a keras.Input "
            "of fixed size and make a keras.Model of that."
        )
    if not graph.calls or end is graph.inputs[0]:
        raise UnsupportedModelError(f"{model.name!r} computes nothing between input and output.")


@dataclass(frozen=True, eq=False)
class _Segment:
    """Calls between two tensors through which everything passes, which hold no third one."""

    calls: tuple[Call, ...]
    layer: str
    output: Node

    @property
    def branches(self) -> bool:
        return len(self.calls) > 1

    @property
    def pointwise(self) -> bool:
        """Whether it works on each value by itself: an activation or a normalisation."""
        return self._is(Activation, Affine, Scaling)

    @property
    def moves(self) -> bool:
        """Whether it only moves values."""
        return self._is(Rearrangement)

    def _is(self, *kinds: type[Operation]) -> bool:
        return not self.branches and isinstance(self.calls[0].operation, kinds)


def _segments(graph: Graph, end: Node) -> Iterator[_Segment]:
    """Cuts a graph wherever a single tensor crosses."""
    names = {call.name for call in graph.calls}

    def layer(call: Call) -> str:
        # A fused activation is a call of its own: "conv:relu".
        owner = call.name.rpartition(":")[0]
        return owner if owner in names else call.name

    remaining = {node: len(readers) for node, readers in graph.consumers().items()}
    remaining[end] = remaining.get(end, 0) + 1  # the user reads it
    live, calls = set(graph.inputs), []
    for call in graph.calls:
        calls.append(call)
        for node in call.reads:
            remaining[node] -= 1
            if not remaining[node]:
                live.discard(node)
        live.update(node for node in call.outputs if remaining.get(node))
        if len(live) == 1 and live <= set(call.outputs):
            yield _Segment(tuple(calls), layer(call), *live)
            calls = []


def _grouped(
    segments: list[_Segment], graph: Graph, partition: str | Sequence[str], dtype: str
) -> list[Block]:
    """Makes blocks of segments."""
    if not isinstance(partition, str):
        groups = _by_names(segments, graph, list(partition))
    elif partition == "layers":
        groups = _by_layers(segments)
    elif partition == "weights":
        groups = _by_weights(segments)
    elif partition == "residual":
        groups = _by_branches(segments)
    else:
        raise ValueError(
            f"partition must be one of {', '.join(PARTITIONS)}, or a list of names of layers; "
            f"received {partition!r}." + nearest(partition, PARTITIONS)
        )
    all_blocks, start = [], graph.inputs[0]
    for name, group in groups:
        calls = tuple(call for segment in group for call in segment.calls)
        layers = tuple(dict.fromkeys(_layers(group)))
        all_blocks.append(Block(name, layers, calls, start, group[-1].output, dtype))
        start = group[-1].output
    return all_blocks


_Groups = list[tuple[str, list[_Segment]]]


def _layers(group: list[_Segment]) -> Iterator[str]:
    for segment in group:
        yield from (call.name for call in segment.calls) if segment.branches else (segment.layer,)


def _by_layers(segments: list[_Segment]) -> _Groups:
    groups: _Groups = []
    for segment in segments:
        if groups and groups[-1][0] == segment.layer:
            groups[-1][1].append(segment)
        else:
            groups.append((segment.layer, [segment]))
    return groups


def _by_weights(segments: list[_Segment]) -> _Groups:
    groups: _Groups = []
    waiting: list[_Segment] = []
    for segment in segments:
        if segment.pointwise and groups and not waiting:
            groups[-1][1].append(segment)
        elif segment.moves or segment.pointwise:
            waiting.append(segment)
        else:
            groups.append((segment.layer, [*waiting, segment]))
            waiting = []
    if waiting and groups:
        groups[-1][1].extend(waiting)
    elif waiting:
        groups.append((waiting[-1].layer, waiting))
    return groups


def _by_branches(segments: list[_Segment]) -> _Groups:
    if not any(segment.branches for segment in segments):
        raise ValueError(
            "partition is 'residual', and the model has no layers beside each other: use 'weights' "
            "or 'layers'."
        )
    groups: _Groups = []
    branched = False
    for segment in segments:
        joins = segment.pointwise if branched else not segment.branches
        if groups and joins:
            groups[-1][1].append(segment)
            continue
        groups.append((segment.layer, [segment]))
        branched = segment.branches
    return [(_span(group), group) for _, group in groups]


def _span(group: list[_Segment]) -> str:
    """Names a block of the partition "residual": by its end, or by both ends without branches."""
    branching = [segment.layer for segment in group if segment.branches]
    if branching:
        return branching[0]
    names = list(dict.fromkeys(segment.layer for segment in group))
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _by_names(segments: list[_Segment], graph: Graph, names: list[str]) -> _Groups:
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"partition is a list of names of layers, at whose output a block ends; received "
            f"{names!r}."
        )
    ends = {segment.output: place for place, segment in enumerate(segments)}
    possible = [n for n, node in graph.readouts.items() if node in ends]
    places = []
    for name in names:
        node = graph.readouts.get(name)
        if node is None:
            raise ValueError(
                f"The model has no layer {name!r}."
                + nearest(name, [*PARTITIONS, *graph.readouts])
                + _listed("A block can end at", possible)
            )
        if node not in ends:
            raise ValueError(
                f"No block can end at {name!r}: other layers run beside it, or it is behind the "
                "output." + _listed("A block can end at", possible)
            )
        places.append(ends[node])
    if any(second <= first for first, second in zip(places, places[1:], strict=False)):
        raise ValueError(
            f"The layers of a partition must come in the order in which they run, each end once; "
            f"received {', '.join(names)}."
        )
    if places[-1] != len(segments) - 1:
        places.append(len(segments) - 1)
        names = [*names, segments[-1].layer]
    starts = [0, *(place + 1 for place in places[:-1])]
    return [
        (name, segments[first : last + 1])
        for name, first, last in zip(names, starts, places, strict=True)
    ]


def _listed(start: str, names: list[str]) -> str:
    more = f" ... ({len(names)} in all)" if len(names) > _MOST_NAMES else ""
    return f" {start}: {', '.join(names[:_MOST_NAMES])}{more}."
