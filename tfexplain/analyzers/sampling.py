"""Methods that average gradients: integrated gradients and SmoothGrad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import slices, tensors
from tfexplain.analyzers.base import Analyzer, BackwardPass, Place, check_relevance
from tfexplain.analyzers.baselines import Baseline, BaselineLike, as_vectors
from tfexplain.analyzers.gradients import GradientAnalyzer
from tfexplain.analyzers.reversed import CompiledAnalyzer
from tfexplain.checks import choice, flag, integer, real
from tfexplain.errors import UnsupportedModelError
from tfexplain.graph import Graph, token_lookups
from tfexplain.numerics import Compiled, Tensor, expand, random_normal
from tfexplain.reverse import ReversedNetwork, start_relevance

# TensorFlow's seeds are int32.
LARGEST_SEED = 2**31 - 1


class InputAverage(Analyzer):
    """Base of methods that average over many inputs, so that they have no single backward chain."""

    takes_start: ClassVar[str] = "output"

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
            x: As for `analyze`, but no Dataset.
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
        arrays = self.checked(x)
        relevance = check_relevance(output_relevance, len(arrays[0]), self.output_shape, self.dtype)
        found = []
        for part in slices(len(arrays[0]), batch_size):
            batch = [array[part] for array in arrays]
            place = Place(part, len(arrays[0]))
            found.append(self.send(batch, relevance[part], place))
        names = list(self.inputs.names) if len(self.inputs.names) > 1 else ["input"]
        return {
            name: np.concatenate(parts)
            for name, parts in zip(names, zip(*found, strict=True), strict=True)
        }

    @property
    def model(self) -> keras.Model:
        """No single reversed network exists."""
        raise UnsupportedModelError(
            f"{self.name} averages over many inputs and is no single reversed network; "
            "the gradient is."
        )


class Path(NamedTuple):
    """The inputs that gradients are averaged over, for one batch.

    Attributes:
        point: Function of a number 0, 1, ... that returns one tensor (batch, *shape) per input.
        weights: Of the gradients at these points.
        factors: What the average is multiplied with, one tensor per input; None for nothing.
    """

    point: Callable[[Tensor], list[Tensor]]
    weights: np.ndarray
    factors: list[Tensor] | None


class SampledGradient(InputAverage, CompiledAnalyzer, GradientAnalyzer):
    """Base of methods that average the gradient over many inputs near each sample.

    Integer inputs are moved in the space of their embedding vectors. The output relevance is that
    of the sample itself at every input of the average.
    """

    def __init__(self, model: keras.Model, **common: Any) -> None:
        super().__init__(model, **common)
        self._tokens = token_lookups(self.graph, self.name)
        cut = self._cut()
        self.gradient_network = ReversedNetwork(
            cut,
            self.assignment,
            start=self.start,
            readouts={},
            dtype=self.dtype,
            jit_compile=self.jit_compile,
        )
        self._compile_explain(self.network())

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

    def paths(self, arrays: list[np.ndarray], place: Place) -> list[Path]:
        """Returns the paths of a batch, over which results are averaged, in the space of vectors.

        Args:
            arrays: One array (n, *shape) per input.
            place: Where the batch lies.
        """
        raise NotImplementedError

    def _averaged(self, path: Path, relevance: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Returns factor * sum_i weights_i gradient(point(i)), one by one: bounded memory."""
        number, point = len(path.weights), path.point
        weights = tf.constant(path.weights, self.dtype)
        vectors = tf.shape(relevance)[1]
        zeros = [
            tf.zeros(tf.concat([[tf.shape(x)[0], vectors], tf.shape(x)[1:]], 0), x.dtype)
            for x in like
        ]

        def step(index: Tensor, sums: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            found = self.gradient_network.propagate(point(index), relevance)
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
        if path.factors is None:
            return sums
        return [expand(f) * part for f, part in zip(path.factors, sums, strict=True)]

    def average(self, vectors: list, relevance: Tensor) -> list[Tensor]:
        """Returns the averaged gradient of each input, (batch, num_vectors, *shape)."""
        raise NotImplementedError

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, *relevance]."""
        vectors = self._embed(inputs)
        outputs = self._outputs_of(vectors)
        relevance = start_relevance(outputs, targets, self.head)
        return [outputs, *self._collect(self.average(vectors, relevance))]

    def _outputs_of(self, vectors: list) -> Tensor:
        return self.gradient_network.forward_pass(vectors)[self.gradient_network.start_index]

    def nonlinear(self, start: str | None = None) -> str:
        """An average of gradients is linear; that of tokens sums vectors, which no pass does."""
        return "" if self._continuous else super().nonlinear(start)

    @property
    def _continuous(self) -> bool:
        """Whether maps are sums of backward passes: there is one input, and it holds no tokens."""
        return len(self.inputs.nodes) == 1 and self.inputs.nodes[0].floating

    def backward_passes(
        self, arrays: list[np.ndarray], place: Place, start: str | None = None
    ) -> list[BackwardPass]:
        """Returns one pass for each point of each path; see `Analyzer`."""
        found: list[BackwardPass] = []
        paths = self.paths(arrays, place) if self._continuous else []
        network = self.gradient_network
        for path in paths:
            factor = None if path.factors is None else path.factors[0].numpy()[:, None]
            for index, weight in enumerate(path.weights):
                records = network.run_records(path.point(tf.constant(index)))
                found.append(BackwardPass(network, records, float(weight) / len(paths), factor))
        return found

    def send(
        self, arrays: list[np.ndarray], relevance: np.ndarray, place: Place
    ) -> list[np.ndarray]:
        """Sends given relevance back."""
        if not hasattr(self, "_run_send"):

            def send(inputs: list, relevance: Tensor) -> list[Tensor]:
                vectors = self._embed(inputs)
                return [relevance, *self._collect(self.average(vectors, relevance))]

            signature = [self._input_specs(), self._relevance_spec()]
            self._run_send = Compiled(send, signature, self.jit_compile)
        return self._chunked(arrays, relevance, self._run_send)[1]

    def _input_specs(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec(n.shape, n.dtype_in(self.dtype)) for n in self.graph.inputs]

    def _relevance_spec(self) -> tf.TensorSpec:
        return tf.TensorSpec((None, None, *self.start.shape[1:]), self.dtype)

    def ledger(self, x: Any, target: Any = None, **options: Any) -> Any:
        """Averages have no single chain whose relevance could be accounted for."""
        return Analyzer.ledger(self, x, target)


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
        self.samples = integer("samples", samples, 1)
        # innvestigate draws with standard deviation 1.
        compat = common.get("compat") is not None
        noise_scale = (1.0 if compat else 0.15) if noise_scale is None else noise_scale
        self.noise_scale = real("noise_scale", noise_scale, 0)
        self.noise_range = ((0, 1) if compat else "sample") if noise_range is None else noise_range
        if not isinstance(self.noise_range, str) or self.noise_range != "sample":
            self.noise_range = _range(self.noise_range)
        self.times_input = flag("times_input", times_input)
        self.seed = integer("seed", seed, 0, LARGEST_SEED)
        super().__init__(model, **common)

    def passes(self, shape: Sequence[int], outputs: int = 1) -> float:
        """Returns about how many forward passes of the model the maps of one sample take."""
        return super().passes(shape, outputs) * self.samples

    def paths(self, arrays: list[np.ndarray], place: Place) -> list[Path]:
        """Returns the noisy copies."""
        return [self._copies(self._embed(tensors(arrays)))]

    def average(self, vectors: list, relevance: Tensor) -> list[Tensor]:
        """Averages over the noisy copies."""
        return self._averaged(self._copies(vectors), relevance, vectors)

    def _copies(self, vectors: list) -> Path:
        deviations = [self._deviation(x) for x in vectors]

        def point(index: Tensor) -> list[Tensor]:
            return [
                x + deviation * self._noise(index, place, x)
                for place, (x, deviation) in enumerate(zip(vectors, deviations, strict=True))
            ]

        weights = np.full(self.samples, 1 / self.samples)
        return Path(point, weights, vectors if self.times_input else None)

    def _noise(self, index: Tensor, place: int, x: Tensor) -> Tensor:
        """Draws (1, *shape): every sample gets the same, so batches do not matter."""
        seed = tf.stack([tf.constant(self.seed + 1000003 * place), index])
        return random_normal(tf.concat([[1], tf.shape(x)[1:]], 0), seed, x.dtype)

    def _deviation(self, x: Tensor) -> Tensor:
        if isinstance(self.noise_range, tuple):
            low, high = self.noise_range
            return tf.constant(self.noise_scale * (high - low), x.dtype)
        axes = list(range(1, len(x.shape)))
        span = tf.reduce_max(x, axes, keepdims=True) - tf.reduce_min(x, axes, keepdims=True)
        return self.noise_scale * span


QUADRATURES = ("gauss_legendre", "midpoint", "trapezoid", "right", "innvestigate")


def quadrature_rule(name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes in [0, 1] and weights of a quadrature.

    Args:
        name: One of `QUADRATURES`; "innvestigate" takes the left end of each step.
        steps: Number of nodes.

    Raises:
        ValueError: For an unknown name, or too few steps.
    """
    choice("quadrature", name, QUADRATURES)
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
    reduction: ClassVar[str] = "sum"

    def __init__(
        self,
        model: keras.Model,
        *,
        steps: int = 64,
        baseline: BaselineLike = 0.0,
        quadrature: str | None = None,
        **common: Any,
    ) -> None:
        self.steps = integer("steps", steps, 1)
        default = "innvestigate" if common.get("compat") is not None else "gauss_legendre"
        self.quadrature = default if quadrature is None else quadrature
        self.nodes, self.weights = quadrature_rule(self.quadrature, self.steps)
        self.baseline = Baseline(baseline)
        super().__init__(model, **common)
        self._compiled: dict[tuple, Compiled] = {}

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, *relevance], averaged over the baselines."""
        vectors = self._embed(inputs)
        outputs = self._outputs_of(vectors)
        relevance = start_relevance(outputs, targets, self.head)
        baselines = self.baseline.constants(self.inputs, inputs)
        found = [self._integrate(vectors, relevance, parts) for parts in baselines]
        return [
            outputs,
            *(tf.add_n(list(parts)) / len(found) for parts in zip(*found, strict=True)),
        ]

    def passes(self, shape: Sequence[int], outputs: int = 1) -> float:
        """Returns about how many forward passes of the model the maps of one sample take."""
        return super().passes(shape, outputs) * self.steps

    def paths(self, arrays: list[np.ndarray], place: Place) -> list[Path]:
        """Returns the straight paths from each baseline."""
        vectors = self._embed(tensors(arrays))
        baselines = self.baseline.arrays(self.inputs, arrays, place)
        return [self._straight(vectors, tensors(parts)) for parts in baselines]

    def _integrate(self, vectors: list, relevance: Tensor, baselines: list) -> list[Tensor]:
        """Integrates from one baseline per input to the inputs."""
        path = self._straight(vectors, baselines)
        return self._collect(self._averaged(path, relevance, vectors))

    def _straight(self, vectors: list, baselines: list) -> Path:
        starts = [
            as_vectors(self._tokens.get(node), baseline, self.dtype)
            for node, baseline in zip(self.graph.inputs, baselines, strict=True)
        ]
        nodes = tf.constant(self.nodes, self.dtype)

        def point(index: Tensor) -> list[Tensor]:
            return [
                start + nodes[index] * (x - start) for start, x in zip(starts, vectors, strict=True)
            ]

        factors = [x - start for x, start in zip(vectors, starts, strict=True)]
        return Path(point, self.weights, factors)

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        def start(outputs: Tensor, targets: Tensor) -> Tensor:
            return start_relevance(outputs, targets, self.head)

        spec = tf.TensorSpec((None, None), "int32")
        return self._from_baselines(arrays, targets, place, "explain", spec, start)

    def send(
        self, arrays: list[np.ndarray], relevance: np.ndarray, place: Place
    ) -> list[np.ndarray]:
        """Explains the weighted sums of outputs of one batch, averaged over the baselines."""

        def start(outputs: Tensor, relevance: Tensor) -> Tensor:
            return relevance

        spec = self._relevance_spec()
        return self._from_baselines(arrays, relevance, place, "send", spec, start)[1]

    def _from_baselines(
        self,
        arrays: list[np.ndarray],
        columns: np.ndarray,
        place: Place,
        kind: str,
        spec: tf.TensorSpec,
        start: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Integrates from each baseline and averages.

        Args:
            arrays: The batch.
            columns: Targets or relevance, (n, num_vectors, ...), from which `start` makes the
                output relevance.
            place: Where the batch lies.
            kind: Name of what is compiled.
            spec: Of `columns`.
            start: Function of the outputs and the columns.
        """

        def run(inputs: list, columns: Tensor, baselines: list) -> list[Tensor]:
            vectors = self._embed(inputs)
            outputs = self._outputs_of(vectors)
            return [outputs, *self._integrate(vectors, start(outputs, columns), baselines)]

        sums, outputs = None, None
        baselines = self.baseline.arrays(self.inputs, arrays, place)
        for parts in baselines:
            given = [p if p.dtype.kind in "iu" else p.astype(self.dtype) for p in parts]
            # Baselines of tokens may be integers (tokens) or floating (entries of vectors).
            key = (kind, *(part.dtype.name for part in given))
            if key not in self._compiled:
                specs = self._input_specs()
                starts = [
                    tf.TensorSpec(s.shape, g.dtype) for s, g in zip(specs, given, strict=True)
                ]
                self._compiled[key] = Compiled(run, [specs, spec, starts], self.jit_compile)
            function = self._compiled[key]
            outputs, found = self._chunked(
                arrays,
                columns,
                lambda inputs, part, given=given, function=function: function(
                    inputs, part, tensors(given)
                ),
            )
            sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
        return outputs, [part / len(baselines) for part in sums]


def _range(value: Any) -> tuple[float, float]:
    """Returns (low, high) as numbers.

    Raises:
        ValueError: If it is no such pair.
    """
    if isinstance(value, tuple | list | np.ndarray) and len(value) == 2:
        try:
            low, high = (real("noise_range", end, -np.inf) for end in value)
        except ValueError:
            low, high = 0.0, 0.0
        if low < high:
            return low, high
    raise ValueError(f"noise_range must be 'sample' or (low, high), received {value!r}.")
