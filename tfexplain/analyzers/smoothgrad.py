"""SmoothGrad: the gradient averaged over noisy copies of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import LARGEST_SEED
from tfexplain.analyzers.averages import GradientAverage, Points
from tfexplain.checks import flag, integer, real
from tfexplain.numerics import Tensor, random_normal


class SmoothGrad(GradientAverage):
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
    reduction: ClassVar[str] = "abs_sum"

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
        self.seed: int = integer("seed", seed, 0, LARGEST_SEED)
        super().__init__(model, **common)

    def passes(self, shape: Sequence[int], outputs: int = 1) -> float:
        """Returns about how many forward passes of the model the maps of one sample take."""
        return super().passes(shape, outputs) * self.samples

    def points(self, vectors: list[Tensor], ends: list[Tensor]) -> Points:
        """Returns the noisy copies."""
        deviations = [self._deviation(x) for x in vectors]

        def at(index: Tensor) -> list[Tensor]:
            return [
                x + deviation * self._noise(index, place, x)
                for place, (x, deviation) in enumerate(zip(vectors, deviations, strict=True))
            ]

        weights = np.full(self.samples, 1 / self.samples)
        return Points(at, weights, vectors if self.times_input else None)

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
