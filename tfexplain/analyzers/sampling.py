"""Methods that average gradients: integrated gradients and SmoothGrad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.base import Analyzer, check_relevance
from tfexplain.analyzers.baselines import Baseline, BaselineLike
from tfexplain.analyzers.gradients import GradientAnalyzer
from tfexplain.analyzers.reversed import tensors
from tfexplain.errors import UnsupportedModelError
from tfexplain.graph import Graph, Node
from tfexplain.numerics import Compiled, Tensor, expand, random_normal
from tfexplain.operations import Lookup
from tfexplain.reverse import ReversedNetwork


class SampledGradient(GradientAnalyzer):
    """Base of methods that average the gradient over many inputs near each sample.

    Integer inputs are moved in the space of their embedding vectors.
    """

    def __init__(self, model: keras.Model, **common: Any) -> None:
        super().__init__(model, **common)
        self._tokens = self._token_calls()
        cut = self._cut()
        self.gradient_network = ReversedNetwork(
            cut,
            self.assignment,
            start=self.start,
            readouts={},
            dtype=self.dtype,
            head=self.head,
            jit_compile=self.jit_compile,
        )

    def _token_calls(self) -> dict[Node, Any]:
        """Maps each integer input to the embedding that reads it."""
        found = {}
        consumers = self.graph.consumers()
        for node, name in zip(self.graph.inputs, self.graph.input_names, strict=True):
            if "float" in node.dtype:
                continue
            readers = consumers[node]
            if len(readers) != 1 or not isinstance(readers[0].operation, Lookup):
                raise UnsupportedModelError(
                    f"{self.name} moves inputs continuously; the integer input {name!r} has to be "
                    "read by exactly one Embedding layer."
                )
            found[node] = readers[0]
        return found

    def _cut(self) -> Graph:
        """Returns the graph behind the embeddings, whose vectors are its inputs."""
        tokens = self._tokens
        inputs = tuple(
            tokens[node].outputs[0] if node in tokens else node for node in self.graph.inputs
        )
        lookups = set(tokens.values())
        return Graph(
            inputs,
            self.graph.input_names,
            (self.start,),
            self.graph.output_names,
            tuple(call for call in self.graph.calls if call not in lookups),
            self.graph.readouts,
        )

    def _embed(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Replaces tokens by their vectors."""
        return [
            self._tokens[node].operation.forward(x) if node in self._tokens else x
            for node, x in zip(self.graph.inputs, inputs, strict=True)
        ]

    def _collect(self, relevance: Sequence[Tensor]) -> list[Tensor]:
        """Sums the relevance of vectors to that of their tokens."""
        return [
            tf.reduce_sum(part, axis=-1) if node in self._tokens else part
            for node, part in zip(self.graph.inputs, relevance, strict=True)
        ]

    def _fix_targets(self, vectors: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the outputs of the clean inputs, and the targets that these decide."""
        outputs = self.gradient_network._records(vectors)[self.gradient_network.start_index]
        flat = tf.reshape(outputs, [tf.shape(outputs)[0], -1])
        largest = tf.argmax(flat, axis=1, output_type=tf.int32)
        return outputs, tf.where(targets < 0, expand(largest), targets)

    def _average(
        self,
        number: int,
        point: Callable[[Tensor], list[Tensor]],
        weights: np.ndarray,
        targets: Tensor,
        like: Sequence[Tensor],
    ) -> list[Tensor]:
        """Returns sum_i weights_i gradient(point(i)), one after the other: bounded memory."""
        weights = tf.constant(weights, self.dtype)
        vectors = tf.shape(targets)[1]
        zeros = [
            tf.zeros(tf.concat([[tf.shape(x)[0], vectors], tf.shape(x)[1:]], 0), x.dtype)
            for x in like
        ]

        def step(index: Tensor, sums: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            found = self.gradient_network.explain(point(index), targets)[1:]
            sums = [total + weights[index] * part for total, part in zip(sums, found, strict=True)]
            return index + 1, sums

        shapes = [tf.TensorShape((None, None, *x.shape[1:])) for x in like]
        _, sums = tf.while_loop(
            lambda index, sums: index < number,
            step,
            (tf.constant(0), zeros),
            shape_invariants=(tf.TensorShape([]), shapes),
            parallel_iterations=1,
        )
        return sums

    def propagate(
        self,
        x: Any,
        output_relevance: Any,
        *,
        start: str | None = None,
        layers: Sequence[str] = (),
        batch_size: int = 32,
    ) -> dict[str, np.ndarray]:
        """Explains the weighted sum of outputs that the relevance stands for.

        Args:
            x: As for `analyze`.
            output_relevance: (batch, num_vectors, *output shape): weights of the outputs.
            start: Only None: averaging needs the whole network.
            layers: Only (): results exist for inputs alone.
            batch_size: As for `analyze`.

        Raises:
            ValueError: For another start, or layers.
        """
        if start is not None or tuple(layers):
            raise ValueError(
                f"{self.name} averages over inputs: only start=None and layers=() are possible, "
                f"received start={start!r}, layers={tuple(layers)!r}."
            )
        # The methods are linear in the output, so vectors are weighted sums of all outputs.
        arrays = self.inputs.arrays(x)
        weights = check_relevance(output_relevance, len(arrays[0]), self.output_shape, self.dtype)
        weights = weights.reshape(*weights.shape[:2], -1)
        if self.head == "logit":
            # `analyze` starts with the logit, given relevance does not.
            values = self.outputs(x, batch_size=batch_size).reshape(len(weights), 1, -1)
            weights = np.divide(weights, values, out=np.zeros_like(weights), where=values != 0)
        _, relevance, _, _ = self._run(x, "all", batch_size)
        names = list(self.inputs.names) if len(self.inputs.names) > 1 else ["input"]
        return {
            name: np.einsum("nko,no...->nk...", weights, part)
            for name, part in zip(names, relevance, strict=True)
        }

    def ledger(self, x: Any, target: Any = None, **options: Any) -> Any:
        """Averages have no single chain whose relevance could be accounted for."""
        return Analyzer.ledger(self, x, target)

    @property
    def model(self) -> keras.Model:
        """No single reversed network exists."""
        raise UnsupportedModelError(
            f"{self.name} averages over many inputs and is no single reversed network; "
            "the gradient is."
        )


class SmoothGrad(SampledGradient):
    """The gradient averaged over noisy copies of the input ([smilkov2017smoothgrad]).

    Args:
        model: See `Analyzer`.
        samples: Number of noisy copies.
        noise_scale: Standard deviation of the noise in units of the range.
        noise_range: "sample" (max - min of each sample) or (low, high).
        times_input: Multiply the result by the input.
        seed: Draw number i is keyed by (seed, i) and the same for every sample.
        **common: See `Analyzer`.

    Raises:
        ValueError: For a wrong number or range.
    """

    name = "smoothgrad"

    def __init__(
        self,
        model: keras.Model,
        *,
        samples: int = 64,
        noise_scale: float | None = None,
        noise_range: str | tuple[float, float] | None = None,
        times_input: bool = False,
        seed: int = 0,
        **common: Any,
    ) -> None:
        self.samples = _count("samples", samples)
        # innvestigate draws with standard deviation 1.
        compat = common.get("compat") is not None
        self.noise_scale = (1.0 if compat else 0.15) if noise_scale is None else noise_scale
        self.noise_range = ((0, 1) if compat else "sample") if noise_range is None else noise_range
        if not 0 <= self.noise_scale < np.inf:
            raise ValueError(f"noise_scale must be a finite number >= 0, received {noise_scale!r}.")
        if self.noise_range != "sample":
            bounds = self.noise_range
            if not (
                isinstance(bounds, tuple | list) and len(bounds) == 2 and bounds[0] < bounds[1]
            ):
                raise ValueError(
                    f"noise_range must be 'sample' or (low, high), received {noise_range!r}."
                )
        self.times_input = times_input
        self.seed = seed
        super().__init__(model, **common)
        self._run_explain = Compiled(self.explain, _signature(self), self.jit_compile)

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, *relevance]."""
        vectors = self._embed(inputs)
        outputs, targets = self._fix_targets(vectors, targets)
        deviations = [self._deviation(x) for x in vectors]

        def point(index: Tensor) -> list[Tensor]:
            return [
                x + deviation * self._noise(index, place, x)
                for place, (x, deviation) in enumerate(zip(vectors, deviations, strict=True))
            ]

        weights = np.full(self.samples, 1 / self.samples)
        result = self._average(self.samples, point, weights, targets, vectors)
        if self.times_input:
            result = [expand(x) * part for x, part in zip(vectors, result, strict=True)]
        return [outputs, *self._collect(result)]

    def _noise(self, index: Tensor, place: int, x: Tensor) -> Tensor:
        """Draws (1, *shape): every sample gets the same, so batches do not matter."""
        seed = tf.stack([tf.constant(self.seed + 1000003 * place), index])
        return random_normal(tf.concat([[1], tf.shape(x)[1:]], 0), seed, x.dtype)

    def _deviation(self, x: Tensor) -> Tensor:
        if self.noise_range != "sample":
            low, high = self.noise_range
            return tf.constant(self.noise_scale * (high - low), x.dtype)
        axes = list(range(1, len(x.shape)))
        span = tf.reduce_max(x, axes, keepdims=True) - tf.reduce_min(x, axes, keepdims=True)
        return self.noise_scale * span

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, positions: slice
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        outputs, *relevance = self._run_explain(tensors(arrays), tf.constant(targets))
        return outputs.numpy(), [part.numpy() for part in relevance]


QUADRATURES = ("gauss_legendre", "midpoint", "trapezoid", "right", "innvestigate")


def quadrature_rule(name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes in [0, 1] and weights of a quadrature.

    Args:
        name: One of `QUADRATURES`; "innvestigate" takes the left end of each step.
        steps: Number of nodes.

    Raises:
        ValueError: For an unknown name, or too few steps.
    """
    if name not in QUADRATURES:
        raise ValueError(f"quadrature must be one of {', '.join(QUADRATURES)}, received {name!r}.")
    if name == "trapezoid" and steps < 2:
        raise ValueError(f"quadrature={name!r} needs at least 2 steps, received {steps}.")
    equal = np.full(steps, 1 / steps)
    if name == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return (nodes + 1) / 2, weights / 2
    if name == "midpoint":
        return (np.arange(steps) + 0.5) / steps, equal
    if name == "right":
        return (np.arange(steps) + 1) / steps, equal
    if name == "innvestigate":
        return np.arange(steps) / steps, equal
    nodes = np.linspace(0, 1, steps)
    weights = np.full(steps, 1 / (steps - 1))
    weights[[0, -1]] /= 2
    return nodes, weights


class IntegratedGradients(SampledGradient):
    """(x - x0) times the gradient averaged along the straight path from a baseline x0.

    The relevances add up to f(x) - f(x0), up to the quadrature ([sundararajan2017axiomatic]).

    Args:
        model: See `Analyzer`.
        steps: Number of points on the path.
        baseline: A number, an array of input_shape or (1, …) (shared), (batch, …) (one per
            sample), a list of these (averaged), or a function of x.
        quadrature: "gauss_legendre", "midpoint", "trapezoid", "right" or "innvestigate".
        **common: See `Analyzer`.

    Raises:
        ValueError: For a wrong number, baseline or quadrature.
    """

    name = "integrated_gradients"

    def __init__(
        self,
        model: keras.Model,
        *,
        steps: int = 64,
        baseline: BaselineLike = 0.0,
        quadrature: str | None = None,
        **common: Any,
    ) -> None:
        self.steps = _count("steps", steps)
        default = "innvestigate" if common.get("compat") is not None else "gauss_legendre"
        self.quadrature = quadrature or default
        self.nodes, self.weights = quadrature_rule(self.quadrature, self.steps)
        self.baseline = Baseline(baseline)
        self._count: int | None = None
        super().__init__(model, **common)
        self._compiled: dict[tuple[str, ...], Compiled] = {}

    def _run_integrate(self, inputs: list, targets: Tensor, baselines: list) -> list[Tensor]:
        """Runs `integrate`; baselines of tokens may be integers (tokens) or floating."""
        kinds = tuple(part.dtype.name for part in baselines)
        if kinds not in self._compiled:
            specs, target = _signature(self)
            starts = [
                tf.TensorSpec(spec.shape, kind) for spec, kind in zip(specs, kinds, strict=True)
            ]
            self._compiled[kinds] = Compiled(
                self.integrate, [specs, target, starts], self.jit_compile
            )
        return self._compiled[kinds](inputs, targets, baselines)

    def integrate(self, inputs: list, targets: Tensor, baselines: list) -> list[Tensor]:
        """Integrates from one baseline per input to the inputs."""
        vectors = self._embed(inputs)
        outputs, targets = self._fix_targets(vectors, targets)
        starts = [
            self._start(node, x, baseline)
            for node, x, baseline in zip(self.graph.inputs, vectors, baselines, strict=True)
        ]
        nodes = tf.constant(self.nodes, self.dtype)

        def point(index: Tensor) -> list[Tensor]:
            return [
                start + nodes[index] * (x - start) for start, x in zip(starts, vectors, strict=True)
            ]

        result = self._average(self.steps, point, self.weights, targets, vectors)
        result = [
            expand(x - start) * part for x, start, part in zip(vectors, starts, result, strict=True)
        ]
        return [outputs, *self._collect(result)]

    def _start(self, node: Node, x: Tensor, baseline: Tensor) -> Tensor:
        """Returns the baseline in the space in which the input moves."""
        if node not in self._tokens:
            return baseline
        if baseline.dtype.is_integer:
            return self._tokens[node].operation.forward(baseline)
        # A number stands for a constant vector: 0 is the absence of every token.
        return tf.zeros_like(x[:1]) + tf.expand_dims(tf.cast(baseline, x.dtype), -1)

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, *relevance], averaged over the baselines."""
        found = []
        for parts in self._constant_baselines(inputs):
            found.append(self.integrate(inputs, targets, parts))
        return [
            found[0][0],
            *(
                tf.add_n([result[place] for result in found]) / len(found)
                for place in range(1, len(found[0]))
            ),
        ]

    def _constant_baselines(self, inputs: list) -> list[list[Tensor]]:
        """Returns baselines as tensors, for `export`."""
        results = []
        for value in self.baseline.values:
            if callable(value):
                value = value(inputs[0] if len(inputs) == 1 else inputs)
                if isinstance(value, dict):
                    value = [value[name] for name in self.inputs.names]
                value = list(value) if isinstance(value, list | tuple) else [value]
                results.append([tf.cast(v, x.dtype) for v, x in zip(value, inputs, strict=True)])
                continue
            like = [
                np.zeros((1, *(s or 1 for s in node.shape[1:])), _numpy_dtype(node, self.dtype))
                for node in self.graph.inputs
            ]
            (arrays,) = Baseline([value]).arrays(self.inputs, like, slice(0, 1), 1)
            results.append([tf.constant(array) for array in arrays])
        return results

    def _run(self, x: Any, target: Any, batch_size: int) -> tuple:
        self._count = None if not hasattr(x, "__len__") else _samples(x)
        return super()._run(x, target, batch_size)

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, positions: slice
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        baselines = self.baseline.arrays(self.inputs, arrays, positions, self._count)
        sums, outputs = None, None
        for parts in baselines:
            given = [
                part if np.issubdtype(part.dtype, np.integer) else part.astype(self.dtype)
                for part in parts
            ]
            outputs, *found = self._run_integrate(
                tensors(arrays), tf.constant(targets), tensors(given)
            )
            found = [part.numpy() for part in found]
            sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
        return outputs.numpy(), [part / len(baselines) for part in sums]


def _samples(x: Any) -> int | None:
    first = next(iter(x.values())) if isinstance(x, dict) else x
    if isinstance(first, list | tuple) and first and hasattr(first[0], "shape"):
        first = first[0]
    return len(first)


def _numpy_dtype(node: Node, dtype: str) -> str:
    return dtype if "float" in node.dtype else node.dtype


def _signature(analyzer: SampledGradient) -> list:
    """Returns the signature of a function of inputs and targets."""
    nodes = analyzer.graph.inputs
    specs = [tf.TensorSpec(n.shape, _numpy_dtype(n, analyzer.dtype)) for n in nodes]
    return [specs, tf.TensorSpec((None, None), "int32")]


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, received {value!r}.")
    return int(value)
