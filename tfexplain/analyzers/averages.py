"""What integrated gradients and SmoothGrad share: a gradient averaged over a path of points."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import tensors
from tfexplain.analyzers.capabilities import BackwardPass, Place
from tfexplain.analyzers.derived import TARGETS, DerivedAnalyzer, in_chunks
from tfexplain.analyzers.gradients import GradientAnalyzer
from tfexplain.compilation import Compiled, CompiledByVectors
from tfexplain.graph import Graph, sources_of, token_lookups
from tfexplain.numerics import Tensor, expand, shape_of
from tfexplain.operations import Bystander
from tfexplain.reverse import ReversedNetwork, start_relevance


class Points(NamedTuple):
    """The inputs that gradients are averaged over, for one batch.

    Attributes:
        at: Function of a number 0, 1, ... that returns one tensor (batch, *shape) per input.
        weights: The weights of the gradients at these points.
        factors: What the average is multiplied with, one tensor per input; None for nothing.
    """

    at: Callable[[Tensor], list[Tensor]]
    weights: np.ndarray
    factors: list[Tensor] | None


class GradientAverage(DerivedAnalyzer):
    """Base of methods that average the gradient over many inputs near each sample.

    factor * sum_i weight_i gradient(point_i), averaged over the paths of points if there are
    several. Integer inputs are moved in the space of their embedding vectors. The output relevance
    and the masks are those of the sample itself at every point.

    Args:
        model: See `Analyzer`.
        batch_norm: See `GraphAnalyzer`.
        **common: See `Analyzer`.
    """

    takes_start: ClassVar[str] = "output"
    _no_network: ClassVar[str] = (
        "averages over many inputs and is no single reversed network; the gradient is."
    )

    def __init__(self, model: keras.Model, *, batch_norm: str = "fold", **common: Any) -> None:
        super().__init__(model, **common)
        options = {"batch_norm": batch_norm, **common}
        self.inner = GradientAnalyzer.named(
            self.name, model, {}, options, self.side, self.execution
        )
        network = self.inner.network()
        tokens = token_lookups(network.graph, self.name)
        self._sources = sources_of(network.graph, tokens)
        # Masks and what else has no relevance: that of the samples, wherever they are moved.
        self._operands = network.operands
        # Built now: Keras layers are not made while a function is traced.
        self._gradient = network
        if tokens or self._operands:
            # The gradient behind the embeddings, whose vectors are its inputs.
            self._gradient = ReversedNetwork(
                self._behind_embeddings(network.graph),
                self.inner.assignment,
                start=self.inner.start,
                readouts={},
                fixed=len(self._operands),
                dtype=self.dtype,
                execution=self.execution,
            )
        self._functions: dict[tuple, CompiledByVectors] = {}

    # --- what subclasses define ---

    @abc.abstractmethod
    def points(self, vectors: list[Tensor], ends: list[Tensor]) -> Points:
        """Returns a path of points, in the space of vectors.

        Args:
            vectors: The samples, one (batch, *shape) for each of `_sources`.
            ends: What the path depends on beside them, one of `ends`.
        """

    def ends(self, arrays: list[np.ndarray], place: Place) -> list[list[np.ndarray]]:
        """Returns what each path of a batch depends on beside the samples.

        Args:
            arrays: The batch, one checked array (n, *shape) per input.
            place: Where the batch lies.
        """
        return [[]]

    def constant_ends(self, inputs: list[Tensor]) -> list[list[Tensor]]:
        """Returns what each path depends on, with TensorFlow alone, for `export`."""
        return [[]]

    # --- the space of vectors ---

    def _behind_embeddings(self, graph: Graph) -> Graph:
        """Returns the graph whose inputs are the vectors of tokens, and the operands."""
        sources = tuple(source.node for source in self._sources)
        lookups = {source.lookup for source in self._sources}
        calls = tuple(
            call
            for call in graph.calls
            if call not in lookups and not isinstance(call.operation, Bystander)
        )
        names = [f"source_{place}" for place in range(len(sources))]
        names += [f"operand_{place}" for place in range(len(self._operands))]
        return replace(
            graph,
            inputs=(*sources, *self._operands),
            input_names=tuple(names),
            outputs=(self.inner.start,),
            calls=calls,
        )

    def _embed(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Replaces tokens by their vectors."""
        return [
            x if source.lookup is None else source.lookup.operation.forward(x)
            for source, x in ((source, inputs[source.place]) for source in self._sources)
        ]

    def _fixed(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns what stays that of the samples."""
        return self.inner.network().operands_at(inputs) if self._operands else []

    def _collect(self, relevance: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Sums the relevance of vectors to that of their tokens; masks have none."""
        vectors = tf.shape(relevance[0])[1]
        parts: list[list[Tensor]] = [[] for _ in inputs]
        for source, part in zip(self._sources, relevance, strict=True):
            whole = part if source.lookup is None else tf.reduce_sum(part, axis=-1)
            parts[source.place].append(whole)
        return [
            sum(of_input[1:], of_input[0])
            if of_input
            else tf.zeros([shape_of(x)[0], vectors, *shape_of(x)[1:]], self.dtype)
            for of_input, x in zip(parts, inputs, strict=True)
        ]

    # --- one path, with TensorFlow alone ---

    def _along(self, inputs: list[Tensor], ends: list[Tensor], relevance: Tensor) -> list[Tensor]:
        """Returns the relevance of each input along one path, (batch, num_vectors, *shape)."""
        vectors, fixed = self._embed(inputs), self._fixed(inputs)
        averaged = self._averaged(self.points(vectors, ends), relevance, vectors, fixed)
        return self._collect(averaged, inputs)

    def _averaged(
        self,
        points: Points,
        relevance: Tensor,
        like: Sequence[Tensor],
        fixed: Sequence[Tensor],
    ) -> list[Tensor]:
        """Returns factor * sum_i weight_i gradient(point_i), one by one: bounded memory."""
        number = len(points.weights)
        weights = tf.constant(points.weights, self.dtype)
        vectors = tf.shape(relevance)[1]
        zeros = [
            tf.zeros(tf.concat([[tf.shape(x)[0], vectors], tf.shape(x)[1:]], 0), x.dtype)
            for x in like
        ]

        def step(index: Tensor, sums: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            gradients = self._gradient.propagate([*points.at(index), *fixed], relevance)
            sums = [
                total + weights[index] * part for total, part in zip(sums, gradients, strict=True)
            ]
            return index + 1, sums

        shapes = [tf.TensorShape((None, None, *x.shape[1:])) for x in like]
        _, sums = tf.while_loop(
            lambda index, sums: index < number,
            step,
            (tf.constant(0), zeros),
            shape_invariants=(tf.TensorShape([]), shapes),
            parallel_iterations=1,
        )
        if points.factors is None:
            return sums
        return [expand(f) * part for f, part in zip(points.factors, sums, strict=True)]

    def _started(self, inputs: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the explained tensor and the output relevance that explains targets."""
        given = [*self._embed(inputs), *self._fixed(inputs)]
        outputs = self._gradient.forward_pass(given)[self._gradient.start_index]
        return outputs, start_relevance(outputs, targets, self.head)

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, *relevance], averaged over the paths."""
        outputs, relevance = self._started(inputs, targets)
        of_paths = [self._along(inputs, ends, relevance) for ends in self.constant_ends(inputs)]
        return [outputs, *(tf.add_n(list(p)) / len(of_paths) for p in zip(*of_paths, strict=True))]

    # --- batches ---

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        def run(inputs: list, targets: Tensor, ends: list) -> list[Tensor]:
            outputs, relevance = self._started(inputs, targets)
            return [outputs, *self._along(inputs, ends, relevance)]

        return self._over_paths(arrays, targets, place, run, TARGETS)

    def send(
        self, arrays: list[np.ndarray], relevance: np.ndarray, place: Place
    ) -> list[np.ndarray]:
        """Explains weighted sums of outputs, averaged over the paths; see `Analyzer`."""

        def run(inputs: list, relevance: Tensor, ends: list) -> list[Tensor]:
            return [relevance, *self._along(inputs, ends, relevance)]

        spec = tf.TensorSpec((None, None, *self.inner.start.shape[1:]), self.dtype)
        return self._over_paths(arrays, relevance, place, run, spec)[1]

    def _over_paths(
        self,
        arrays: list[np.ndarray],
        columns: np.ndarray,
        place: Place,
        run: Callable[[list, Tensor, list], list[Tensor]],
        spec: tf.TensorSpec,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Runs once for each path and averages.

        Args:
            arrays: The batch.
            columns: Targets or relevance, (n, num_vectors, ...).
            place: Where the batch lies.
            run: Function of inputs, columns and ends that returns [anything, *relevance].
            spec: The specification of `columns`.
        """
        sums: list[np.ndarray] = []
        paths = self.ends(arrays, place)
        for ends in paths:
            given = [e if e.dtype.kind in "iu" else e.astype(self.dtype) for e in ends]
            # Ends of tokens may be integers (tokens) or floating (entries of vectors).
            key = (spec, *(end.dtype.name for end in given))
            if key not in self._functions:
                shapes = [node.shape for node in self.inputs.nodes]
                # There is an end per input, or none.
                specs = [tf.TensorSpec(s, e.dtype) for s, e in zip(shapes, given, strict=False)]
                self._functions[key] = self._compiled(run, spec, specs)
            function = self._functions[key].for_count(columns.shape[1])
            made = tensors(given)

            def towards(
                inputs: list[Tensor],
                part: Tensor,
                function: Compiled = function,
                made: list[Tensor] = made,
            ) -> list[Tensor]:
                return function(inputs, part, made)

            first, relevance = in_chunks(self.inner.network(), arrays, columns, towards)
            sums = [a + b for a, b in zip(sums, relevance, strict=True)] if sums else relevance
        return first, [part / len(paths) for part in sums]

    # --- what the method can do ---

    @property
    def _continuous(self) -> bool:
        """Whether maps are sums of backward passes: there is one input, and it holds no tokens."""
        return len(self.inputs.nodes) == 1 and self.inputs.nodes[0].floating

    def nonlinear(self, start: str | None = None) -> str:
        """An average of gradients is linear; that of tokens sums vectors, which no pass does."""
        return "" if self._continuous else super().nonlinear(start)

    def backward_passes(
        self, arrays: list[np.ndarray], place: Place, start: str | None = None
    ) -> list[BackwardPass]:
        """Returns one pass for each point of each path; see `Analyzer`."""
        if not self._continuous:
            return []
        network, passes = self._gradient, []
        inputs, paths = tensors(arrays), self.ends(arrays, place)
        vectors, fixed = self._embed(inputs), self._fixed(inputs)
        for ends in paths:
            points = self.points(vectors, tensors(ends))
            factor = None if points.factors is None else points.factors[0].numpy()[:, None]
            for index, weight in enumerate(points.weights):
                records = network.run_records([*points.at(tf.constant(index)), *fixed])
                passes.append(BackwardPass(network, records, float(weight) / len(paths), factor))
        return passes
