"""Cosine similarity convergence: whether a backward chain forgets what it started from."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import xarray as xr

from tfexplain import metrics
from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.arrays import tensors
from tfexplain.analyzers.base import Place
from tfexplain.analyzers.deep_lift import DeepLIFT
from tfexplain.analyzers.reversed import CHUNK_BYTES, ReversedAnalyzer
from tfexplain.audits import common
from tfexplain.audits.blocks import in_blocks
from tfexplain.checks import choice, integer
from tfexplain.graph import Node, channels_last, has_graph
from tfexplain.numerics import Compiled, Tensor
from tfexplain.reverse import ReversedNetwork

BINS = len(metrics.BIN_EDGES) - 1
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0)
# Of one start: name of a layer -> the tensor.
Readouts = dict[str, Node]


def cosine_convergence(
    analyzers: Analyzer | Mapping[str, Analyzer],
    x: Any,
    *,
    start: str | Sequence[str | None] | None = None,
    layers: Sequence[str] | None = None,
    num_vectors: int = 5,
    quantity: str = "contribution",
    per_location: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    block_size: int = 16,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Measures how similar the relevance of random output vectors becomes on its way back.

    Gaussian vectors v ~ N(0, 1) are sent backward from a tensor; at every layer the relevance of
    each two of them is compared by its cosine (section 3 of [sixt2020when], there CSC). Where |cos|
    is 1 for all pairs, the direction of what is below no longer depends on what is above: a map can
    then change by a factor only, which for tensors with locations may be another one at each
    location. Compare with `baseline`: a tensor with one channel has |cos| = 1 always.

    Tensors with locations (height, width, channels; steps, features) are compared location by
    location over their channels, all others as whole vectors. 1 - |cos| is half the squared
    distance of the normalised vectors, in float64: without cancellation. Float32 relevance itself
    resolves about 1e-14; analyzers with dtype="float64" go further. 1 - |cos| is counted in 50 bins
    per decade from 1e-16 to 1 as it is computed, and nothing else is kept.

    The vectors of a sample depend on the seed, its position in x and the start, and are the same
    for all analyzers. All vectors of a sample share one forward pass. Batch sizes change the
    results by rounding only.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer; with a backward chain (LRP, pattern
            methods, excitation, DeepLIFT, gradients and their modifications).
        x: Samples, as for `analyze`.
        start: Name of the layer whose output receives the vectors, or a list of these; None is the
            explained output.
        layers: Names of layers to read; None reads every layer. The input is always read.
        num_vectors: Vectors per sample, >= 2.
        quantity: What is read of DeepLIFT: "contribution" or "multiplier".
        per_location: Also return every single value, in variables `one_minus_abs_cosine_<layer>`
            (analyzer, start, sample, pair, location), which are large.
        seed: Of the vectors.
        batch_size: Samples that are computed together, at most; fewer where they are large.
        block_size: Samples that are finished and stored together.
        path: NetCDF file for the result. Finished blocks are kept beside it until the end, and a
            run that was killed continues with the next one.

    Returns:
        Dataset with, all without a unit,

        * `count` (analyzer, start, layer, bin): pairs by 1 - |cos|; `negative`: those of them with
          cos < 0. The coordinate `bin` is the upper edge, `bin_low` the lower one; the first bin
          holds everything below 1e-16;
        * `quantile` (analyzer, start, layer, q): of |cos| over all pairs, from the bins;
        * `baseline` (analyzer, start, layer): median |cos| of random directions with the number of
          dimensions of that layer;
        * `dead` (analyzer, start, layer): locations where no vector arrives, over all samples;
        * `dropped` (analyzer, start, layer): pairs without a cosine, because at least one of the
          two is zero there;
        * `one_channel` (analyzer, start, layer): counted pairs at locations where all vectors lie
          in one and the same channel, so that |cos| is 1 whatever the method (first bin).

        Layers go from the start to the input. Where an analyzer does not have a layer, counts are
        0 and the others not a number.

    Raises:
        TypeError: If `analyzers` is something else.
        ValueError: For wrong samples, layers or options; for an analyzer without a backward chain;
            if relevance overflows.
    """
    named = common.named_analyzers(analyzers)
    common.check_common(1.0, False, seed)
    _check(named, num_vectors, quantity, batch_size)
    num_vectors, seed, layers = int(num_vectors), int(seed), _listed(layers)
    starts = [start] if start is None or isinstance(start, str) else list(start)
    if not starts:
        raise ValueError("start is an empty list; give names of layers, or None for the output.")
    by_type: dict[str, list[np.ndarray]] = {}
    for analyzer in named.values():
        if analyzer.inputs.dtype not in by_type:
            by_type[analyzer.inputs.dtype] = analyzer.inputs.arrays(x)
    arrays = {name: by_type[analyzer.inputs.dtype] for name, analyzer in named.items()}
    widest = max(arrays.values(), key=lambda parts: sum(part.nbytes for part in parts))
    chains = {
        name: [_Chain(analyzer, place, layers, num_vectors, quantity) for place in starts]
        for name, analyzer in named.items()
    }
    first = next(iter(chains.values()))
    start_names = [chain.start for chain in first]
    for name, row in chains.items():
        if [chain.start for chain in row] != start_names:
            raise ValueError(
                f"{name!r} starts at {', '.join(chain.start for chain in row)}, the first analyzer "
                f"at {', '.join(start_names)}. Name the layers to start from."
            )
    if len(set(start_names)) < len(start_names):
        raise ValueError(f"start names the same tensor twice: {', '.join(start_names)}.")
    order = common.merged_orders([list(chain.readouts) for row in chains.values() for chain in row])
    options = {
        "start": start_names,
        "layers": order,
        "num_vectors": num_vectors,
        "quantity": quantity,
        "per_location": bool(per_location),
        "seed": seed,
    }
    settings = common.settings(
        "cosine_convergence", named, widest, with_data=path is not None, **options
    )
    shape = (len(named), len(starts), len(order))

    def compute(part: slice, advance: Callable[[], None]) -> dict[str, np.ndarray]:
        found = {
            "count": np.zeros((*shape, BINS), "int64"),
            "negative": np.zeros((*shape, BINS), "int64"),
            "dead": np.zeros(shape, "int64"),
            "dropped": np.zeros(shape, "int64"),
            "one_channel": np.zeros(shape, "int64"),
        }
        for row, analyzer in enumerate(chains):
            for column, chain in enumerate(chains[analyzer]):
                measured, single = chain.measure(
                    arrays[analyzer], part, seed, batch_size, per_location
                )
                for layer, values in measured.items():
                    place = (row, column, order.index(layer))
                    for name, value in zip(("count", "negative"), values[:2], strict=True):
                        found[name][place] += value
                    for name, value in zip(_NUMBERS, values[2], strict=False):
                        found[name][place] = value
                for layer, value in single.items():
                    found[f"single/{row}/{column}/{layer}"] = value
                advance()
        return found

    def combine(blocks: list[dict[str, np.ndarray]]) -> xr.Dataset:
        return _dataset(blocks, chains, start_names, order, settings, per_location)

    return in_blocks(
        compute,
        combine,
        title="cosine convergence",
        count=len(widest[0]),
        block_size=block_size,
        steps=len(named) * len(starts),
        settings=settings,
        path=path,
    )


def _listed(layers: str | Sequence[str] | None) -> Sequence[str] | None:
    return [layers] if isinstance(layers, str) else layers


def _check(
    analyzers: Mapping[str, Analyzer], num_vectors: int, quantity: str, batch_size: int
) -> None:
    integer("batch_size", batch_size, 1)
    integer("num_vectors", num_vectors, 2, hint="Pairs of vectors are compared.")
    choice("quantity", quantity, ("contribution", "multiplier"))
    for name, analyzer in analyzers.items():
        if not common.has_chain(analyzer):
            raise ValueError(
                f"{name!r} ({analyzer.name}) has no single backward chain to send vectors through: "
                "it averages over several, or subtracts one from another. Leave it out."
            )
        if not has_graph(analyzer.user_model):
            raise ValueError(
                f"{name!r} explains {analyzer.user_model.name!r} as a whole: the model is "
                "subclassed and has no layers to read. Build the same layers as a Functional model."
            )
        common.check_one_baseline(name, analyzer)


# Variables that are numbers of locations or pairs.
_NUMBERS = ("dead", "dropped", "one_channel")


class _Chain:
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
        options = {"quantity": quantity} if isinstance(analyzer, DeepLIFT) else {}
        read = [*dict.fromkeys([self.start, *layers])]
        network = analyzer.network(start, read, **options)
        self._network: ReversedNetwork = network
        inputs = len(analyzer.inputs.names)
        found = list(network.readouts.items())
        input_names = ["input"] if inputs == 1 else list(analyzer.inputs.names)
        ordered = sorted(found[inputs:], key=lambda item: -_depth(analyzer, item[1]))
        self.readouts: Readouts = {
            **dict(ordered),
            **dict(zip(input_names, (tensor for _, tensor in found[:inputs]), strict=True)),
        }
        # The network's read-outs in the order of `readouts`.
        self._order = [[node for _, node in found].index(n) for n in self.readouts.values()]
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
        part: slice,
        seed: int,
        batch_size: int,
        per_location: bool,
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray]]:
        """Sends vectors of some samples back.

        Returns:
            By layer: counts (bins,), those of negative cosine, and (*_NUMBERS, not finite);
            by layer: every 1 - |cos| (samples, pairs, locations) if asked for.
        """
        analyzer, count = self._analyzer, len(arrays[0])
        analyzer.checked(self._as_given([array[part] for array in arrays]))
        (one,) = analyzer.chain_inputs([array[:1] for array in arrays], Place(slice(0, 1), count))
        fit = self._network.vectors_at_once(one, CHUNK_BYTES)
        size = max(1, min(batch_size, fit // self._num_vectors))
        total: dict[str, list[np.ndarray]] = {}
        single: dict[str, list[np.ndarray]] = {}
        for begin in range(part.start, part.stop, size):
            place = slice(begin, min(begin + size, part.stop))
            (given,) = analyzer.chain_inputs([a[place] for a in arrays], Place(place, count))
            vectors = self._vectors(given, place, seed)
            for layer, (counts, negative, others, *values) in zip(
                self.readouts,
                self._compiled(per_location)(tensors(given), tf.constant(vectors)),
                strict=True,
            ):
                new = [counts.numpy(), negative.numpy(), others.numpy()]
                if new[2][-1]:
                    raise ValueError(
                        f"The relevance of {analyzer.name} overflows at layer {layer!r} (samples "
                        f"{place.start} to {place.stop - 1}). Create the analyzer with "
                        'dtype="float64".'
                    )
                known = total.setdefault(layer, [np.zeros_like(value) for value in new])
                for value, more in zip(known, new, strict=True):
                    value += more
                if per_location:
                    single.setdefault(layer, []).append(values[0].numpy())
        return total, {layer: np.concatenate(values) for layer, values in single.items()}

    def _as_given(self, arrays: list[np.ndarray]) -> Any:
        return arrays[0] if len(arrays) == 1 else arrays

    def _vectors(self, given: list[np.ndarray], place: slice, seed: int) -> np.ndarray:
        """Returns (samples, num_vectors, *shape of the start), keyed by seed, start, position."""
        shape = self._network.start.shape[1:]
        if None in shape:
            records = self._network.run_records(tensors(given))
            shape = records[self._network.start_index].shape[1:]
        key = zlib.crc32(self.start.encode())
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
                found = network.propagate(inputs, vectors)
                return [
                    _counts(found[index], axis, per_location)
                    for index, axis in zip(self._order, self._channels, strict=True)
                ]

            inputs = [tf.TensorSpec(t.shape, t.dtype) for t in network.forward.inputs]
            vectors = (None, self._num_vectors, *network.start.shape[1:])
            signature = [inputs, tf.TensorSpec(vectors, network.dtype)]
            network.derived[key] = Compiled(run, signature, self._analyzer.jit_compile)
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
    found: dict[Node, str] = {}
    for name, node in analyzer.graph.readouts.items():
        if node in reached and node.floating:
            found.setdefault(node, name)
    return found


def _depth(analyzer: ReversedAnalyzer, node: Node) -> int:
    """Returns the place of the call that makes a tensor in the order of the calls."""
    for place, call in enumerate(analyzer.graph.calls):
        if node in call.outputs:
            return place
    return -1


def _channel_axis(analyzer: ReversedAnalyzer, node: Node) -> int | None:
    """Returns the axis of channels among the axes of a tensor's samples."""
    if len(node.shape) < 3:
        return None
    return len(node.shape) - 2 if channels_last(analyzer.user_model) else 0


def _dataset(
    blocks: list[dict[str, np.ndarray]],
    chains: Mapping[str, list[_Chain]],
    starts: list[str],
    order: list[str],
    settings: Mapping[str, Any],
    per_location: bool,
) -> xr.Dataset:
    pooled = {
        name: sum(block[name] for block in blocks) for name in ("count", "negative", *_NUMBERS)
    }
    baseline = np.full(pooled["dead"].shape, np.nan)
    for row, analyzer in enumerate(chains):
        for column, chain in enumerate(chains[analyzer]):
            for layer in chain.readouts:
                size = chain.dimensions(layer)
                if size is not None:
                    place = (row, column, order.index(layer))
                    baseline[place] = metrics.random_direction_cosine(size)
    dimensions = ("analyzer", "start", "layer")
    variables = {
        "count": ((*dimensions, "bin"), pooled["count"]),
        "negative": ((*dimensions, "bin"), pooled["negative"]),
        "quantile": (
            (*dimensions, "q"),
            metrics.histogram_quantiles(pooled["count"], np.array(QUANTILES)),
        ),
        "baseline": (dimensions, baseline),
        **{name: (dimensions, pooled[name]) for name in _NUMBERS},
    }
    if per_location:
        variables |= _single(blocks, chains, order)
    return xr.Dataset(
        variables,
        coords={
            "analyzer": list(chains),
            "start": starts,
            "layer": order,
            "bin": metrics.BIN_EDGES[1:],
            "bin_low": ("bin", metrics.BIN_EDGES[:-1]),
            "q": list(QUANTILES),
        },
        attrs=common.attributes(settings),
    )


def _single(
    blocks: list[dict[str, np.ndarray]], chains: Mapping[str, list[_Chain]], order: list[str]
) -> dict[str, tuple]:
    """Returns the variables that hold every single value."""
    found = {}
    for layer in order:
        parts = {}
        for row, analyzer in enumerate(chains):
            for column in range(len(chains[analyzer])):
                key = f"single/{row}/{column}/{layer}"
                if key in blocks[0]:
                    parts[row, column] = np.concatenate([block[key] for block in blocks])
        shape = (len(chains), len(next(iter(chains.values()))), *next(iter(parts.values())).shape)
        values = np.full(shape, np.nan)
        for place, part in parts.items():
            values[place] = part
        name = layer.replace("/", "_")
        dimensions = ("analyzer", "start", "sample", "pair", f"location_{name}")
        found[f"one_minus_abs_cosine_{name}"] = (dimensions, values)
    return found
