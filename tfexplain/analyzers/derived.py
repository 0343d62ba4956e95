"""Analyzers that compute their maps from the networks of another analyzer, which they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import Inputs, slices, tensors
from tfexplain.analyzers.base import Analyzer
from tfexplain.analyzers.reversed import ReversedAnalyzer, vectors_at_once
from tfexplain.compilation import CompiledByVectors
from tfexplain.composites import RuleAssignment
from tfexplain.numerics import Tensor
from tfexplain.reverse import ReversedNetwork

TARGETS = tf.TensorSpec((None, None), "int32")


class DerivedAnalyzer(Analyzer):
    """Base of methods that hold a reversed analyzer: its graph, its networks, its checks.

    A subclass makes `inner` under its own name, so that messages are about the method.

    Attributes:
        inner: The analyzer that is held.
    """

    inner: ReversedAnalyzer

    @property
    def has_sides(self) -> bool:
        """Whether one sigmoid unit is explained, which speaks for two classes."""
        return self.inner.has_sides

    @property
    def _sees_signs(self) -> bool:
        return self.inner._sees_signs

    @property
    def inputs(self) -> Inputs:
        """The inputs of the model."""
        return self.inner.inputs

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of the explained tensor, without the batch axis."""
        return self.inner.output_shape

    def describe(self) -> RuleAssignment:
        """Returns the table of the analyzer that is held; it prints."""
        return self.inner.describe()

    def checked(self, x: Any) -> list[np.ndarray]:
        """Returns the checked inputs; the replay is compared with the model once."""
        return self.inner.checked(x)

    @property
    def variables(self) -> list[tf.Variable]:
        """Those of the analyzer that is held."""
        return self.inner.variables

    def _outputs(self, arrays: list[np.ndarray]) -> np.ndarray:
        return self.inner._outputs(arrays)

    def _check_replay(self, arrays: list[np.ndarray], outputs: np.ndarray) -> None:
        self.inner._check_replay(arrays, outputs)

    def _compiled(
        self, function: Callable, columns: tf.TensorSpec, *others: Any
    ) -> CompiledByVectors:
        """Compiles a function of (inputs, columns, *others)."""
        inputs = [tf.TensorSpec(n.shape, n.dtype_in(self.dtype)) for n in self.inputs.nodes]
        return CompiledByVectors(function, [inputs, columns, *others], self.execution)


def in_chunks(
    network: ReversedNetwork,
    arrays: list[np.ndarray],
    columns: np.ndarray,
    run: Callable[[list[Tensor], Tensor], list[Tensor]],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Runs a compiled function for as many vectors at once as fit into memory.

    Args:
        network: The network that it runs, which has the largest tensors.
        arrays: The batch, one (n, *shape) per input.
        columns: Targets or relevance, (n, num_vectors, ...).
        run: Function of the inputs and some columns that returns [anything, *relevance].

    Returns:
        The first result of the last call, and one relevance (n, num_vectors, *shape) per input.
    """
    chunks = []
    for part in slices(columns.shape[1], vectors_at_once(network, arrays)):
        first, *relevance = run(tensors(arrays), tf.constant(columns[:, part]))
        chunks.append([result.numpy() for result in relevance])
    return first.numpy(), [np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True)]
