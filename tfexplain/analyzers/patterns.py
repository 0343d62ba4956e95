"""PatternNet and PatternAttribution, fitted to data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import keras
import numpy as np
from rich.console import Console
from rich.progress import track

from tfexplain.analyzers.arrays import dataset_batches, finite, is_dataset, slices, tensors
from tfexplain.analyzers.reversed import ReversedAnalyzer
from tfexplain.checks import choice
from tfexplain.compilation import Execution
from tfexplain.composites import (
    ACTIVATION,
    ADDITIVE,
    AVERAGE_POOLING,
    LOG_SUM_EXP,
    MAX_POOLING,
    PRODUCT,
    SCALING,
    STRUCTURE,
    Composite,
)
from tfexplain.operations import Linear, Sum
from tfexplain.patterns import ESTIMATORS, OUTPUT_MEANS, PatternFit, fitted_calls
from tfexplain.reverse import ReversedNetwork
from tfexplain.rules import Gradient, PatternRule, Rule


class PatternAnalyzer(ReversedAnalyzer):
    """Base of the pattern methods: fitted patterns replace the weights on the way back.

    Linear layers and additions have patterns; everything else, so poolings and rectifiers, sends
    relevance back by its gradient.

    Args:
        model: See `Analyzer`.
        patterns: Fitted patterns: what `fit` leaves in `analyzer.patterns` (name of a call ->
            array), or arrays in the order of the linear layers, shaped as their kernels, as in
            innvestigate's pattern files (a list, what `numpy.load` returns, or the name of such a
            file). None: call `fit`.
        estimator: "relu" (a unit counts where it is active) or "linear" (everywhere).
        output_mean: "active": the mean of a unit's output over its active samples, as the
            derivation needs; "all": over all samples, as the published patterns were computed.
        **common: See `GraphAnalyzer`.

    Raises:
        ValueError: For patterns of other shapes, or an unknown option.
    """

    default_head: ClassVar[str] = "logit"
    fits: ClassVar[bool] = True
    attribution: ClassVar[bool] = False

    def __init__(
        self,
        model: keras.Model,
        *,
        patterns: Any = None,
        estimator: str = "relu",
        output_mean: str = "active",
        **common: Any,
    ) -> None:
        for name, value, known in (
            ("estimator", estimator, ESTIMATORS),
            ("output_mean", output_mean, OUTPUT_MEANS),
        ):
            choice(name, value, known)
        self.estimator, self.output_mean = estimator, output_mean
        super().__init__(model, **common)
        self.patterns: dict[str, np.ndarray] | Any = None
        self._fitted = {f.call.name: f for f in fitted_calls(self.graph.upstream([self.start]))}
        if patterns is not None:
            self._set(self._named(patterns))

    @property
    def is_fitted(self) -> bool:
        """Whether it has patterns."""
        return self.patterns is not None

    def composite(self) -> Composite:
        """Patterns at linear layers and additions, the gradient elsewhere."""
        return Composite(self.name, pattern_rows(self.attribution))

    def fit(self, dataset: Any, *, batch_size: int = 32) -> PatternAnalyzer:
        """Fits the patterns in one streaming pass; memory does not grow with the data.

        Args:
            dataset: Array (n, *input_shape), a list or dict of such for several inputs, or a
                `tf.data.Dataset` of batches (labels beside the inputs are left out).
            batch_size: Samples that are computed together, for arrays.

        Returns:
            The analyzer.

        Raises:
            ValueError: For a wrong shape, NaN or infinity, or an empty dataset.
        """
        execution = Execution(self.execution.jit_compile, dtype="float64")
        forward = ReversedNetwork(
            self.graph,
            self.assignment,
            start=self.start,
            readouts={},
            dtype="float64",
            parameters=self._placeholders(),
            execution=execution,
        )
        fit = PatternFit(
            forward.graph,
            forward.nodes,
            forward.record_specs,
            estimator=self.estimator,
            output_mean=self.output_mean,
            execution=execution,
        )
        console = Console(stderr=True)
        batches = self._batches(dataset, batch_size)
        for arrays in track(
            batches, "fitting patterns", console=console, transient=True, disable=not _seen(console)
        ):
            fit.add(forward.run_records(tensors([_wide(array) for array in arrays])))
        self._set(fit.patterns())
        return self

    def _batches(self, dataset: Any, batch_size: int) -> Iterator[list[np.ndarray]]:
        if is_dataset(dataset):
            for batch in dataset_batches(dataset):
                yield self.inputs.arrays(batch)
            return
        arrays = self.inputs.arrays(dataset)
        for part in slices(len(arrays[0]), batch_size):
            yield [array[part] for array in arrays]

    def _set(self, patterns: dict[str, np.ndarray]) -> None:
        self.patterns = patterns
        self._opposite = self._precise = None
        # What `save` writes.
        self._options["patterns"] = patterns
        self._networks.clear()

    @property
    def pattern_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the pattern of each call that has one, by its name."""
        shapes = {}
        for name, fitted in self._fitted.items():
            if isinstance(fitted.operation, Linear):
                shapes[name] = tuple(fitted.operation.kernel("float32").shape)
            else:
                shapes[name] = (len(fitted.call.inputs), fitted.call.outputs[0].shape[-1])
        return shapes

    def _placeholders(self) -> dict:
        # The forward pass reads none of them.
        return {
            fitted.call: [np.zeros(shape, "float32")]
            for fitted, shape in zip(
                self._fitted.values(), self.pattern_shapes.values(), strict=True
            )
        }

    def _named(self, patterns: Any) -> dict[str, np.ndarray]:
        """Returns given patterns by the names of their calls, checked."""
        shapes = self.pattern_shapes
        if isinstance(patterns, str | os.PathLike):
            with np.load(patterns, allow_pickle=False) as stored:
                patterns = dict(stored)
        if isinstance(patterns, Mapping) and set(patterns) == {
            f"arr_{index}" for index in range(len(patterns))
        }:
            patterns = [patterns[f"arr_{index}"] for index in range(len(patterns))]
        if not isinstance(patterns, Mapping | list | tuple):
            raise TypeError(
                "patterns are a dict by the names of calls, a list in the order of the linear "
                f"layers, or the name of an .npz file; received {type(patterns).__name__}."
            )
        if not isinstance(patterns, Mapping):
            names = [n for n, f in self._fitted.items() if not isinstance(f.operation, Sum)]
            if len(names) != len(patterns):
                raise ValueError(
                    f"{len(patterns)} patterns for {len(names)} linear layers "
                    f"({', '.join(names[:8])}{' ...' if len(names) > 8 else ''})."
                )
            patterns = dict(zip(names, patterns, strict=True))
        missing = [name for name in shapes if name not in patterns]
        unknown = [str(name) for name in patterns if name not in shapes]
        if unknown:
            raise ValueError(
                f"There are patterns for {', '.join(unknown[:8])}, which no call is named. Calls "
                f"with patterns: {', '.join(shapes)}."
            )
        if missing:
            raise ValueError(
                f"There is no pattern for {', '.join(missing)}; call fit, or give one for each."
            )
        checked = {}
        for name, shape in shapes.items():
            array = np.asarray(patterns[name])
            if array.dtype.kind not in "biuf":
                raise TypeError(f"The pattern of {name!r} is no array of numbers.")
            finite(array, f"The pattern of {name!r}")
            if array.shape != shape:
                raise ValueError(
                    f"The pattern of {name!r} has shape {array.shape}, expected {shape}."
                )
            checked[name] = array
        return checked

    def _new_network(self, **options: Any) -> ReversedNetwork:
        if not self.is_fitted:
            raise ValueError(
                f"{self.name} has no patterns yet: call analyzer.fit(x) on training data first, or "
                "pass patterns=..."
            )
        parameters = {}
        for name, array in self.patterns.items():
            fitted = self._fitted[name]
            # Patterns are those of the model. What a unit times -1 detects is their opposite.
            turned = isinstance(fitted.operation, Linear) and fitted.operation.negated
            parameters[fitted.call] = [(-array if turned else array).astype(self.dtype)]
        return super()._new_network(parameters=parameters, **options)


def pattern_rows(attribution: bool = False) -> tuple[tuple[Any, Rule], ...]:
    """Returns the rows of the pattern methods."""
    pooling = AVERAGE_POOLING + MAX_POOLING + LOG_SUM_EXP
    others = ACTIVATION + SCALING + STRUCTURE + pooling + PRODUCT
    return ((ADDITIVE, PatternRule(attribution)), (others, Gradient()))


class PatternNet(PatternAnalyzer):
    """PatternNet: the signal in the input that an output detects ([kindermans2018learning])."""

    name = "pattern.net"


class PatternAttribution(PatternAnalyzer):
    """PatternAttribution: how much each dimension of the signal adds ([kindermans2018learning])."""

    name = "pattern.attribution"
    attribution: ClassVar[bool] = True


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype("float64") if array.dtype.kind == "f" else array


def _seen(console: Console) -> bool:
    return console.is_terminal
