"""Integrated gradients: the gradient averaged along a straight path from a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import tensors
from tfexplain.analyzers.averages import GradientAverage, Points
from tfexplain.analyzers.baselines import BackgroundLike, Baseline, BaselineLike, as_vectors
from tfexplain.analyzers.capabilities import Place
from tfexplain.checks import choice, integer
from tfexplain.errors import warn
from tfexplain.numerics import Tensor
from tfexplain.reverse import start_relevance

# By which part of f(x) - f(x0) a map of a masked model may miss it without a warning.
ADDS_UP = 0.05

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


class IntegratedGradients(GradientAverage):
    """(x - x0) times the gradient averaged along the straight path from a baseline x0.

    The relevances add up to f(x) - f(x0), up to the quadrature ([sundararajan2017axiomatic]). Masks
    are those of x on the whole path; where maps of a masked model miss f(x) - f(x0) by more than
    5 %, a warning says by how much.

    Args:
        model: See `Analyzer`.
        steps: Number of points on the path.
        baseline: A number, an array of input_shape or (1, …) (shared), (batch, …) (one per
            sample), or a function of x; for several inputs a dict by name, or a list with one entry
            per input.
        background: Several baselines, over which maps are averaged: rows (n, *input_shape), for
            several inputs a dict of such by name.
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
        background: BackgroundLike = None,
        quadrature: str | None = None,
        **common: Any,
    ) -> None:
        self.steps = integer("steps", steps, 1)
        default = "innvestigate" if common.get("compat") is not None else "gauss_legendre"
        self.quadrature = default if quadrature is None else quadrature
        self.nodes, self.weights = quadrature_rule(self.quadrature, self.steps)
        self.baseline = Baseline(baseline, background)
        super().__init__(model, **common)
        self.baseline.check(self.inputs)

    def passes(self, shape: Sequence[int], outputs: int = 1) -> float:
        """Returns about how many forward passes of the model the maps of one sample take."""
        return super().passes(shape, outputs) * self.steps

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        outputs, maps = super()._explain(arrays, targets, place)
        if self._operands:
            self._check_sum(arrays, targets, place, outputs, maps)
        return outputs, maps

    def _check_sum(
        self,
        arrays: list[np.ndarray],
        targets: np.ndarray,
        place: Place,
        outputs: np.ndarray,
        maps: list[np.ndarray],
    ) -> None:
        """Warns if maps do not add up to the difference of the output, masked as the sample is."""
        inputs, paths = tensors(arrays), self.ends(arrays, place)
        vectors, fixed = self._embed(inputs), self._fixed(inputs)
        start = start_relevance(tf.constant(outputs), tf.constant(targets), self.head).numpy()
        expected = np.zeros(start.shape[:2])
        for ends in paths:
            starts = [
                tf.broadcast_to(at, tf.shape(x))
                for at, x in zip(self._starts(tensors(ends)), vectors, strict=True)
            ]
            before = self._gradient.run_outputs([*starts, *fixed]).numpy()
            change = start * (outputs - before)[:, None]
            expected += change.reshape(*start.shape[:2], -1).sum(axis=-1) / len(paths)
        sums, sizes = (
            sum(part.reshape(*start.shape[:2], -1).sum(axis=-1, dtype=float) for part in parts)
            for parts in (maps, [np.abs(part) for part in maps])
        )
        gaps = np.abs(sums - expected)
        rounding = 1e3 * np.finfo(outputs.dtype).eps * sizes
        missing = gaps > ADDS_UP * np.abs(expected) + rounding
        if missing.any():
            share = np.max(gaps[missing] / np.maximum(np.abs(expected[missing]), rounding[missing]))
            warn(
                f"{self.name}: {int(missing.sum())} of {missing.size} map(s) of a batch do not add "
                f"up to f(x) - f(x0); the farthest misses it by {100 * share:.3g} %. The path has "
                f"{self.steps} steps: take more (steps=...), or a baseline nearer to x."
            )

    def ends(self, arrays: list[np.ndarray], place: Place) -> list[list[np.ndarray]]:
        """Returns the baselines."""
        return self.baseline.arrays(self.inputs, arrays, place)

    def constant_ends(self, inputs: list[Tensor]) -> list[list[Tensor]]:
        """Returns the baselines, with TensorFlow alone."""
        return self.baseline.constants(self.inputs, inputs)

    def _starts(self, ends: list[Tensor]) -> list[Tensor]:
        """Returns a baseline in the space of vectors."""
        return [
            as_vectors(source.lookup, ends[source.place], self.dtype) for source in self._sources
        ]

    def points(self, vectors: list[Tensor], ends: list[Tensor]) -> Points:
        """Returns the nodes of the quadrature on the straight path from one baseline."""
        starts = self._starts(ends)
        nodes = tf.constant(self.nodes, self.dtype)

        def at(index: Tensor) -> list[Tensor]:
            return [
                start + nodes[index] * (x - start) for start, x in zip(starts, vectors, strict=True)
            ]

        return Points(at, self.weights, [x - s for x, s in zip(vectors, starts, strict=True)])
