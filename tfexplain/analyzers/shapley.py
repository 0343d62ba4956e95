"""Shapley values by sampling: features are removed one by one, in random orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import LARGEST_SEED, Inputs, tensors
from tfexplain.analyzers.baselines import BackgroundLike, Baseline, BaselineLike
from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.reversed import GraphAnalyzer
from tfexplain.checks import integer
from tfexplain.compilation import Compiled
from tfexplain.composites import RuleAssignment
from tfexplain.graph import Graph, channels_last, has_graph, opaque_graph
from tfexplain.numerics import Tensor, random_permutation, shape_of
from tfexplain.operations import WholeModel

# Bytes that the largest tensor of one call of the model may take, beyond a single step for each
# sample. More is no faster: the calls no longer fit into the caches.
CALL_BYTES = 2**26
# Only the inputs and outputs of a model that is one call are seen. The largest tensor between them
# is taken to be this many times larger; in VGG-16 it is 21 times the input.
UNSEEN = 16

# Maps outputs (n, p, outputs) to what they are worth for each vector, (n, p, num_vectors).
Worth = Callable[[Tensor], Tensor]


class ShapleySampling(GraphAnalyzer):
    """Shapley values of the features, averaged over random orders ([castro2009polynomial]).

    In each cycle all features are removed (set to the baseline x0) one by one, in a random order;
    the contribution of a feature is what the output loses when it goes. The relevances of an output
    add up to f(x) - f(x0) for any number of cycles, up to rounding, because the losses of a cycle
    do; the error of each falls as 1 / sqrt(cycles). First used for classifiers by
    [strumbelj2010efficient]. Needs no gradient: it takes every model that can be called, subclassed
    ones too. Masks are made anew where features are removed, as the model itself would make them.

    The order of a cycle is the same for every sample, baseline and output, so results do not depend
    on batches, and all outputs share the calls of the model: cycles * features of them for each
    sample and baseline.

    Args:
        model: See `Analyzer`.
        cycles: Number of random orders.
        baseline: A number, an array of input_shape or (1, …) (shared), (batch, …) (one per
            sample), or a function of x; for several inputs a dict by name, or a list with one entry
            per input. For tokens it holds tokens.
        background: Several baselines, over which maps are averaged: rows (n, *input_shape), for
            several inputs a dict of such by name.
        features: "elements": every number or token is a feature; those of several inputs are
            removed in one order. Or the size of square patches, for one input with two spatial
            axes: all channels of size x size pixels (fewer at the right and lower border) are one
            feature. The value of a patch is shared equally by its elements, so that maps still add
            up to f(x) - f(x0); the sum over a patch is its Shapley value.
        seed: The order of cycle i is keyed by (seed, i).
        **common: See `Analyzer`.

    Raises:
        ValueError: For a wrong number or baseline, or patches of another kind of input.

    Example:
        >>> ShapleySampling(model, cycles=3).analyze(x).shape
        (2, 4)
    """

    name = "shapley_sampling"
    reduction: ClassVar[str] = "sum"
    takes_start: ClassVar[str] = "output"
    _no_network: ClassVar[str] = (
        "averages over many inputs and is no single reversed network; the gradient is."
    )

    def __init__(
        self,
        model: keras.Model,
        *,
        cycles: int = 25,
        baseline: BaselineLike = 0,
        background: BackgroundLike = None,
        features: str | int = "elements",
        seed: int = 0,
        **common: Any,
    ) -> None:
        self.cycles = integer("cycles", cycles, 1)
        self.baseline = Baseline(baseline, background)
        self.features = _features(features)
        self.seed = integer("seed", seed, 0, LARGEST_SEED)
        super().__init__(model, **common)
        self.graph = self.graph.upstream([self.start])
        for node in self.graph.inputs:
            if node.dtype in ("bool", "string") or "complex" in node.dtype:
                raise ValueError(f"Inputs of dtype {node.dtype} cannot be explained.")
        if self.features != "elements" and [len(n.shape) for n in self.graph.inputs] != [4]:
            raise ValueError(
                f"features={self.features} are patches of one input of shape (batch, height, "
                f"width, channels); this model has {[n.shape for n in self.graph.inputs]}. Use "
                "features='elements'."
            )
        self._channels_last = channels_last(model)
        self.baseline.check(self.inputs)
        _check_tokens(self.baseline, self.inputs)
        inputs = [tf.TensorSpec(n.shape, n.dtype_in(self.dtype)) for n in self.inputs.nodes]
        relevance = tf.TensorSpec((None, None, *self.start.shape[1:]), self.dtype)
        targets = tf.TensorSpec((None, None), "int32")

        def compiled(function: Callable, *signature: Any) -> Compiled:
            return Compiled(function, list(signature), self.execution, by_samples=True)

        self._run_outputs = compiled(lambda given: self._forward(given)[0], inputs)
        self._run_explain = compiled(self._explain_from, inputs, targets, inputs)
        self._run_send = compiled(self._send_from, inputs, relevance, inputs)

    def _trace(self, fold_batch_norm: bool) -> Graph:
        if not has_graph(self.user_model):
            return opaque_graph(self.user_model)
        return super()._trace(fold_batch_norm)

    def describe(self) -> RuleAssignment:
        """Returns the table of calls and operations, which have no rules; it prints."""
        rules = dict.fromkeys(self.graph.calls, "forward only")
        return RuleAssignment(self.graph, rules, self.execution)

    def passes(self, shape: Sequence[int], outputs: int = 1) -> float:
        """Returns how many forward passes the maps of one sample take: outputs share them."""
        features = int(np.prod(shape, dtype=int))
        if isinstance(self.features, int):
            sides = sorted(shape)[-2:]
            features = math.prod(-(-side // self.features) for side in sides)
        return self.cycles * features

    # --- the game ---

    def _forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor | int]:
        """Returns the explained tensor, and the elements of a sample in the largest tensor."""
        records = dict(zip(self.graph.inputs, inputs, strict=True))
        for call in self.graph.calls:
            records.update(zip(call.outputs, call.run(records), strict=True))
        sizes = [_size(shape_of(tensor)[1:]) for tensor in records.values()]
        largest = max(sizes) if all(isinstance(s, int) for s in sizes) else tf.reduce_max(sizes)
        if any(isinstance(call.operation, WholeModel) for call in self.graph.calls):
            largest *= UNSEEN
        return tf.cast(records[self.start], self.dtype), largest

    def _values(
        self, inputs: list, starts: list, outputs: Tensor, largest: Tensor | int, worth: Worth
    ) -> list[Tensor]:
        """Returns the sampled Shapley values of the elements of each input.

        Args:
            inputs: (n, *shape) each.
            starts: What they become when they are removed, (n or 1, *shape) each.
            outputs: Explained tensor of the inputs, (n, *output_shape).
            largest: Elements of a sample in the largest tensor of the model.
            worth: What outputs are worth.

        Returns:
            (n, num_vectors, *shape) each.
        """
        count, players = shape_of(inputs[0])[0], self._players(inputs)
        at_once = self._at_once(count, largest, players)
        whole = worth(tf.reshape(outputs, [count, 1, -1]))
        # In float64, because many small losses are summed; and for the places behind the last
        # feature, to which the last steps of a cycle write.
        sums = tf.zeros([players + 1, count, shape_of(whole)[2]], tf.float64)
        any_size = tf.TensorShape([None, None, None])

        def cycle(number: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
            order = random_permutation(players, tf.stack([tf.constant(self.seed), number]))
            rank = tf.math.invert_permutation(order)
            order = tf.concat([order, tf.fill([at_once], players)], 0)

            def remove(first: Tensor, before: Tensor, sums: Tensor) -> tuple:
                """Removes the next features of the order; `before` is worth what was left."""
                places = first + tf.range(at_once)
                stays = rank > places[:, None]  # (places, players)
                left = self._mixed(inputs, starts, stays)
                after = worth(tf.reshape(self._forward(left)[0], [count, at_once, -1]))
                losses = tf.concat([before, after[:, :-1]], axis=1) - after
                gone = tf.gather(order, places)
                losses = tf.transpose(losses, [1, 0, 2])
                sums = tf.tensor_scatter_nd_add(sums, gone[:, None], losses)
                return first + at_once, after[:, -1:], sums

            _, _, sums = tf.while_loop(
                lambda first, before, sums: first < players,
                remove,
                (tf.constant(0), whole, sums),
                shape_invariants=(tf.TensorShape([]), any_size, any_size),
                parallel_iterations=1,
            )
            return number + 1, sums

        _, sums = tf.while_loop(
            lambda number, sums: number < self.cycles,
            cycle,
            (tf.constant(0), sums),
            shape_invariants=(tf.TensorShape([]), any_size),
            parallel_iterations=1,
        )
        values = tf.transpose(sums[:players], [1, 2, 0]) / self.cycles
        return [tf.cast(part, self.dtype) for part in self._shared(values, inputs)]

    def _players(self, inputs: Sequence[Tensor]) -> int | Tensor:
        """Returns the number of features."""
        if self.features == "elements":
            return sum(_size(shape_of(x)[1:]) for x in inputs)
        height, width = self._spatial(shape_of(inputs[0])[1:])
        return -(-height // self.features) * -(-width // self.features)

    def _at_once(self, *sizes: int | Tensor) -> Tensor:
        """Returns how many steps of a cycle one call of the model takes: memory is bounded.

        Args:
            *sizes: Samples, elements of a sample in the largest tensor, and features.
        """
        # Bytes do not fit into int32.
        count, largest, players = (tf.cast(size, tf.int64) for size in sizes)
        fitting = CALL_BYTES // (count * largest * tf.as_dtype(self.dtype).size)
        calls = -(-players // tf.clip_by_value(fitting, 1, players))
        # Equal parts, so that no call is for a small rest.
        return tf.cast(-(-players // calls), tf.int32)

    def _mixed(
        self, inputs: Sequence[Tensor], starts: Sequence[Tensor], stays: Tensor
    ) -> list[Tensor]:
        """Returns inputs of which some features are removed, (n * places, *shape) each.

        Args:
            inputs: (n, *shape) each.
            starts: (n or 1, *shape) each.
            stays: Which features are left, (places, players).
        """
        mixtures, offset = [], 0
        for x, start in zip(inputs, starts, strict=True):
            count, *shape = shape_of(x)
            if self.features == "elements":
                size = _size(shape)
                kept, offset = stays[:, offset : offset + size], offset + size
            else:
                kept = tf.gather(stays, self._patches(shape)[0], axis=1)
            places = shape_of(stays)[0]
            kept = tf.reshape(kept, [1, places, *shape])
            mixed = tf.where(kept, tf.expand_dims(x, 1), tf.expand_dims(start, 1))
            mixtures.append(tf.reshape(mixed, [count * places, *shape]))
        return mixtures

    def _shared(self, values: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the values of features, (n, num_vectors, players), at their elements."""
        shared, offset = [], 0
        for x in inputs:
            shape = shape_of(x)[1:]
            if self.features == "elements":
                size = _size(shape)
                part, offset = values[..., offset : offset + size], offset + size
            else:
                patches, sizes = self._patches(shape)
                part = tf.gather(values, patches, axis=2) / tf.cast(sizes, values.dtype)
            shared.append(tf.reshape(part, [*shape_of(values)[:2], *shape]))
        return shared

    def _spatial(self, shape: Sequence) -> Sequence:
        return shape[:2] if self._channels_last else shape[1:]

    def _patches(self, shape: Sequence) -> tuple[Tensor, Tensor]:
        """Returns the patch of each element of an image, and how many elements that has, flat."""
        height, width = self._spatial(shape)
        rows, columns = tf.range(height) // self.features, tf.range(width) // self.features
        patches = rows[:, None] * -(-width // self.features) + columns
        tall, wide = (
            tf.minimum(self.features, size - place * self.features)
            for size, place in ((height, rows), (width, columns))
        )
        channels = shape[2] if self._channels_last else shape[0]
        axis = 2 if self._channels_last else 0
        return tuple(
            tf.reshape(tf.broadcast_to(tf.expand_dims(part, axis), shape), [-1])
            for part in (patches, tall[:, None] * wide * channels)
        )

    # --- targets and given relevance ---

    def _explain_from(self, inputs: list, targets: Tensor, starts: list) -> list[Tensor]:
        """Returns [explained tensor, *relevance], for one baseline."""
        outputs, largest = self._forward(inputs)
        flat = tf.reshape(outputs, [shape_of(outputs)[0], -1])
        best = tf.argmax(flat, axis=1, output_type=tf.int32)
        chosen = tf.where(targets < 0, best[:, None], targets)

        def worth(outputs: Tensor) -> Tensor:
            # Chosen, not multiplied by ones and zeros, which is quadratic for all targets.
            return tf.cast(tf.gather(outputs, chosen, axis=2, batch_dims=1), tf.float64)

        values = self._values(inputs, starts, outputs, largest, worth)
        if self.head == "logit":
            logits = tf.gather(flat, chosen, batch_dims=1)
            values = [
                part * tf.reshape(logits, [*shape_of(logits), *(1 for _ in part.shape[2:])])
                for part in values
            ]
        return [outputs, *values]

    def _send_from(self, inputs: list, relevance: Tensor, starts: list) -> list[Tensor]:
        """Returns [relevance, *relevance of the inputs] of weighted sums, for one baseline."""
        outputs, largest = self._forward(inputs)
        count, vectors = shape_of(relevance)[:2]
        # In float64: GPUs round factors of float32 to ten bits, and losses are small differences.
        weights = tf.cast(tf.reshape(relevance, [count, vectors, -1]), tf.float64)

        def worth(outputs: Tensor) -> Tensor:
            return tf.matmul(tf.cast(outputs, tf.float64), weights, transpose_b=True)

        return [relevance, *self._values(inputs, starts, outputs, largest, worth)]

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, *relevance], averaged over the baselines."""
        of_baselines = []
        for starts in self.baseline.constants(self.inputs, inputs):
            starts = [
                _as_given(start, node.dtype_in(self.dtype))
                for start, node in zip(starts, self.inputs.nodes, strict=True)
            ]
            of_baselines.append(self._explain_from(inputs, targets, starts))
        outputs = of_baselines[0][0]
        parts = zip(*(values for _, *values in of_baselines), strict=True)
        return [outputs, *(tf.add_n(list(part)) / len(of_baselines) for part in parts)]

    def _outputs(self, arrays: list[np.ndarray]) -> np.ndarray:
        return self._run_outputs(tensors(arrays)).numpy()

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        return self._averaged(self._run_explain, arrays, targets, place)

    def send(
        self, arrays: list[np.ndarray], relevance: np.ndarray, place: Place
    ) -> list[np.ndarray]:
        """Explains the weighted sums of outputs of one batch, averaged over the baselines."""
        return self._averaged(self._run_send, arrays, relevance, place)[1]

    def _averaged(
        self, run: Compiled, arrays: list[np.ndarray], columns: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Runs once for each baseline; `columns` are targets or relevance."""
        baselines = self.baseline.arrays(self.inputs, arrays, place)
        of_baselines = []
        for parts in baselines:
            starts = [
                part.astype(self.dtype) if node.floating else _tokens(part, node.dtype, name)
                for part, node, name in zip(
                    parts, self.inputs.nodes, self.inputs.names, strict=True
                )
            ]
            outputs, *values = run(tensors(arrays), tf.constant(columns), tensors(starts))
            of_baselines.append([value.numpy() for value in values])
        return outputs.numpy(), [
            sum(part) / len(of_baselines) for part in zip(*of_baselines, strict=True)
        ]


def _features(value: Any) -> str | int:
    if isinstance(value, str) and value == "elements":
        return value
    return integer("features", value, 1, hint="Or 'elements'; a number is the size of patches.")


def _check_tokens(baseline: Baseline, inputs: Inputs) -> None:
    """Refuses what is no token before anything runs; what functions return is seen later."""
    for value in baseline.values:
        for node, name in zip(inputs.nodes, inputs.names, strict=True):
            given = value.get(name, 0) if isinstance(value, Mapping) else value
            if not node.floating and not callable(given):
                given = np.asarray(given)
                if given.dtype.kind in "iuf":
                    _tokens(given, node.dtype, name)


def _tokens(value: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Returns a baseline of tokens in the dtype of the input.

    Raises:
        ValueError: If it holds other numbers.
    """
    with np.errstate(invalid="ignore"):
        tokens = value.astype(dtype)
    if not np.array_equal(tokens, value):
        raise ValueError(
            f"baseline of {name!r} must hold tokens, whole numbers of {dtype}, received "
            f"{value.ravel()[:5].tolist()}. Removed tokens become those of the baseline."
        )
    return tokens


def _as_given(start: Tensor, dtype: str) -> Tensor:
    """Returns a baseline in the dtype of its input."""
    if start.dtype.is_floating and not tf.as_dtype(dtype).is_floating:
        start = tf.round(start)
    return tf.cast(start, dtype)


def _size(shape: Sequence) -> int | Tensor:
    """Returns the number of elements; a tensor where sizes are unknown."""
    size = 1
    for part in shape:
        size = size * part
    return size
