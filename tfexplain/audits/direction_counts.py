"""Backward chains that count, at every layer, how similar the relevance of random vectors is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfexplain import metrics
from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.arrays import places
from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.reversed import CHUNK_BYTES, ReversedAnalyzer
from tfexplain.compilation import Compiled
from tfexplain.graph import Node, channels_last
from tfexplain.numerics import Tensor
from tfexplain.reverse import ReversedNetwork

BINS = len(metrics.BIN_EDGES) - 1
# Variables that are numbers of locations or pairs.
NUMBERS = ("dead", "dropped", "one_channel")
# Name of a layer -> its tensor, for one start.
Readouts = dict[str, Node]


class Chain:
    """The backward chain of one analyzer from one start, with the counts made inside it.

    Attributes:
        start: Name of the start tensor.
        readouts: Name of each tensor that is read -> the tensor; from the start to the input.
    """

    def __init__(
        self,
        analyzer: ReversedAnalyzer,
        start: str | None,
        layers: Sequence[str] | None,
        num_vectors: int,
        quantity: str,
    ) -> None:
        self._analyzer, self._num_vectors = analyzer, int(num_vectors)
        node = analyzer.start if start is None else analyzer.readout(start)
        names = _names(analyzer, node)
        self.start = start or names[node]
        if layers is None:
            layers = [name for key, name in names.items() if key is not node]
        # What is read of the others is all that they have.
        options = {"quantity": quantity} if len(analyzer.quantities) > 1 else {}
        read = [*dict.fromkeys([self.start, *layers])]
        network = analyzer.network(start, read, **options)
        self._network: ReversedNetwork = network
        inputs = len(analyzer.inputs.names)
        readouts = list(network.readouts.items())
        input_names = ["input"] if inputs == 1 else list(analyzer.inputs.names)
        ordered = sorted(readouts[inputs:], key=lambda item: -_depth(analyzer, item[1]))
        self.readouts: Readouts = {
            **dict(ordered),
            **dict(zip(input_names, (tensor for _, tensor in readouts[:inputs]), strict=True)),
        }
        # The network's read-outs in the order of `readouts`.
        self._order = [[node for _, node in readouts].index(n) for n in self.readouts.values()]
        self._channels = [_channel_axis(analyzer, node) for node in self.readouts.values()]

    def dimensions(self, layer: str) -> int | None:
        """Returns in how many dimensions vectors are compared at a layer, if that is known."""
        node = self.readouts[layer]
        axis = self._channels[list(self.readouts).index(layer)]
        sizes = node.shape[1:] if axis is None else (node.shape[1 + axis],)
        return None if None in sizes else int(np.prod(sizes, dtype=int))

    def measure(
        self,
        arrays: Sequence[np.ndarray],
        block: slice,
        seed: int,
        batch_size: int,
        per_location: bool,
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray]]:
        """Sends vectors of some samples back.

        Args:
            arrays: All samples, one checked array (n, *shape) per input.
            block: Which samples, as a slice with start and stop.
            seed: The seed of the vectors.
            batch_size: Samples that are computed together, at most.
            per_location: Return every single value too.

        Returns:
            By layer: counts (bins,), those of negative cosine, and (*NUMBERS, not finite);
            by layer: every 1 - |cos| (samples, pairs, locations) if asked for.
        """
        analyzer, count = self._analyzer, len(arrays[0])
        measured = [array[block] for array in arrays]
        analyzer.checked(measured[0] if len(measured) == 1 else measured)
        network = self._network
        first = Place(slice(0, 1), count)
        (one,) = analyzer.chain_inputs(network, [array[:1] for array in arrays], first)
        fit = network.vectors_at_once(one, CHUNK_BYTES)
        size = max(1, min(batch_size, fit // self._num_vectors))
        total: dict[str, list[np.ndarray]] = {}
        single: dict[str, list[np.ndarray]] = {}
        for place in places(block, count, size):
            batch = [array[place.positions] for array in arrays]
            (given,) = analyzer.chain_inputs(network, batch, place)
            vectors = self._vectors(given, place.positions, seed)
            for layer, (counts, negative, others, *values) in zip(
                self.readouts,
                self._compiled(per_location)(given, tf.constant(vectors)),
                strict=True,
            ):
                new = [counts.numpy(), negative.numpy(), others.numpy()]
                if new[2][-1]:
                    raise ValueError(
                        f"The relevance of {analyzer.name} overflows at layer {layer!r} (samples "
                        f"{place.positions.start} to {place.positions.stop - 1}). Create the "
                        'analyzer with dtype="float64".'
                    )
                known = total.setdefault(layer, [np.zeros_like(value) for value in new])
                for value, more in zip(known, new, strict=True):
                    value += more
                if per_location:
                    single.setdefault(layer, []).append(values[0].numpy())
        return total, {layer: np.concatenate(values) for layer, values in single.items()}

    def _vectors(self, given: list[Tensor], place: slice, seed: int) -> np.ndarray:
        """Returns (samples, num_vectors, *shape of the start), keyed by seed, start, position.

        The start counts by its place among the layers of the model: names that Keras makes differ
        from one copy of a model to the next.
        """
        shape = self._network.start.shape[1:]
        if None in shape:
            records = self._network.run_records(given)
            shape = records[self._network.start_index].shape[1:]
        key = list(self._analyzer.graph.readouts).index(self.start)
        return np.stack(
            [
                np.random.default_rng([seed, key, position])
                .standard_normal((self._num_vectors, *shape))
                .astype(self._analyzer.dtype)
                for position in range(place.start, place.stop)
            ]
        )

    def _compiled(self, per_location: bool) -> Compiled:
        network = self._network
        # Kept with the network, so that the next audit does not trace it again.
        key = (__name__, self._num_vectors, per_location, tuple(self._order))
        if key not in network.derived:

            def run(inputs: Sequence[Tensor], vectors: Tensor) -> list[list[Tensor]]:
                relevance = network.propagate(inputs, vectors)
                return [
                    _counts(relevance[index], axis, per_location)
                    for index, axis in zip(self._order, self._channels, strict=True)
                ]

            vectors = (None, self._num_vectors, *network.start.shape[1:])
            signature = [network.input_specs, tf.TensorSpec(vectors, network.dtype)]
            network.derived[key] = Compiled(run, signature, network.execution)
        return network.derived[key]


def _counts(relevance: Tensor, channels: int | None, per_location: bool) -> list[Tensor]:
    """Counts the pairs of vectors of one tensor by 1 - |cos|.

    Args:
        relevance: (samples, num_vectors, *shape).
        channels: Axis of `shape` that holds channels; None if all of it is one vector.
        per_location: Return every value too.
    """
    num_vectors = relevance.shape[1]
    if channels is not None:
        axis = 2 + channels
        rank = len(relevance.shape)
        relevance = tf.transpose(relevance, [*(i for i in range(rank) if i != axis), axis])
        size = tf.shape(relevance)[-1]
    else:
        size = tf.reduce_prod(tf.shape(relevance)[2:])
    relevance = tf.reshape(relevance, [tf.shape(relevance)[0], num_vectors, -1, size])
    vectors = tf.cast(relevance, "float64")
    if relevance.dtype == "float64":
        # Squares of its largest and smallest numbers are infinite or zero; those of float32 fit.
        largest = tf.reduce_max(tf.abs(vectors), axis=-1, keepdims=True)
        vectors = tf.math.divide_no_nan(vectors, largest)
    distances, negative, alive = _distances(vectors)
    first, second = np.triu_indices(num_vectors, 1)
    valid = tf.logical_and(tf.gather(alive, first, axis=1), tf.gather(alive, second, axis=1))
    logarithm = tf.math.log(tf.maximum(distances, 1e-300)) / np.log(10.0)
    place = tf.floor((logarithm + metrics.DECADES) * metrics.BINS_PER_DECADE)
    place = tf.cast(tf.clip_by_value(place + 1, 0, BINS - 1), "int32")
    # What is not counted goes into one bin more.
    place = tf.where(valid, place, BINS)

    def counted(places: Tensor) -> Tensor:
        # Unlike tf.math.bincount also under XLA.
        places = tf.reshape(places, [-1])
        ones = tf.ones_like(places, "int64")
        return tf.math.unsorted_segment_sum(ones, places, BINS + 1)[:BINS]

    def number(flags: Tensor) -> Tensor:
        return tf.reduce_sum(tf.cast(flags, "int64"))

    dead = number(tf.logical_not(tf.reduce_any(alive, axis=1)))
    dropped = number(tf.logical_not(valid))
    bad = number(tf.logical_not(tf.math.is_finite(relevance)))
    used = tf.reduce_any(tf.not_equal(vectors, 0), axis=1)
    alone = tf.equal(tf.reduce_sum(tf.cast(used, "int32"), axis=-1), 1)
    one_channel = number(tf.logical_and(valid, alone[:, None]))
    results = [
        counted(place),
        counted(tf.where(negative, place, BINS)),
        tf.stack([dead, dropped, one_channel, bad]),
    ]
    if per_location:
        nothing = tf.constant(np.nan, "float64")
        results.append(tf.where(valid, distances, nothing))
    return results


def _distances(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compares each two vectors at each location.

    Args:
        vectors: (samples, num_vectors, locations, channels), float64.

    Returns:
        1 - |cos| (samples, pairs, locations), whether cos < 0, and which vectors are not zero
        (samples, num_vectors, locations). Pairs are in the order of `np.triu_indices`.
    """
    norm = tf.sqrt(tf.reduce_sum(tf.square(vectors), axis=-1))
    # Turned to the side of the first vector, so that opposite vectors are close as well.
    side = tf.reduce_sum(vectors * vectors[:, :1], axis=-1)
    sign = tf.where(side < 0, tf.constant(-1, "float64"), tf.constant(1, "float64"))
    units = vectors * tf.math.divide_no_nan(sign, norm)[..., None]
    distances, negative = [], []
    for first, second in zip(*np.triu_indices(vectors.shape[1], 1), strict=True):
        apart = tf.math.squared_difference(units[:, first], units[:, second])
        apart = tf.reduce_sum(apart, axis=-1) / 2
        distances.append(tf.minimum(apart, 2 - apart))
        turned = sign[:, first] != sign[:, second]
        negative.append(tf.math.logical_xor(apart > 1, turned))
    return tf.stack(distances, axis=1), tf.stack(negative, axis=1), norm > 0


def _names(analyzer: ReversedAnalyzer, start: Node) -> dict[Node, str]:
    """Returns one name, the first, of each tensor on the way from the start to the inputs."""
    graph = analyzer.graph.upstream([start])
    reached = {start}.union(*(call.outputs for call in graph.calls))
    names: dict[Node, str] = {}
    for name, node in analyzer.graph.readouts.items():
        if node in reached and node.floating:
            names.setdefault(node, name)
    return names


def _depth(analyzer: ReversedAnalyzer, node: Node) -> int:
    """Returns the place of the call that makes a tensor in the order of the calls."""
    for place, call in enumerate(analyzer.graph.calls):
        if node in call.outputs:
            return place
    return -1


def _channel_axis(analyzer: Analyzer, node: Node) -> int | None:
    """Returns the axis of channels among the axes of a tensor's samples."""
    if len(node.shape) < 3:
        return None
    return len(node.shape) - 2 if channels_last(analyzer.user_model) else 0
