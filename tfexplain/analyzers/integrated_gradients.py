"""Integrated gradients: the gradient averaged along a straight path from a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.averages import GradientAverage, Points
from tfexplain.analyzers.baselines import BackgroundLike, Baseline, BaselineLike, as_vectors
from tfexplain.analyzers.capabilities import Place
from tfexplain.checks import choice, integer
from tfexplain.numerics import Tensor

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

    The relevances add up to f(x) - f(x0), up to the quadrature ([sundararajan2017axiomatic]).

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

    def ends(self, arrays: list[np.ndarray], place: Place) -> list[list[np.ndarray]]:
        """Returns the baselines."""
        return self.baseline.arrays(self.inputs, arrays, place)

    def constant_ends(self, inputs: list[Tensor]) -> list[list[Tensor]]:
        """Returns the baselines, with TensorFlow alone."""
        return self.baseline.constants(self.inputs, inputs)

    def points(self, vectors: list[Tensor], ends: list[Tensor]) -> Points:
        """Returns the nodes of the quadrature on the straight path from one baseline."""
        starts = [
            as_vectors(self._tokens.get(node), baseline, self.dtype)
            for node, baseline in zip(self.inputs.nodes, ends, strict=True)
        ]
        nodes = tf.constant(self.nodes, self.dtype)

        def at(index: Tensor) -> list[Tensor]:
            return [
                start + nodes[index] * (x - start) for start, x in zip(starts, vectors, strict=True)
            ]

        return Points(at, self.weights, [x - s for x, s in zip(vectors, starts, strict=True)])
