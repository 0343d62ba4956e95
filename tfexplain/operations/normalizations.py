"""Normalisations by statistics of each sample: of layers, groups, root mean squares, norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfexplain.numerics import Tensor, expand, pull_each
from tfexplain.operations.base import Operation


class Normalization(Operation):
    """y = A(x, u), affine in x and in u, with u = h(Q(x)) for a quadratic Q.

    Of a layer normalisation Q(x) is the variance, u = 1 / sqrt(Q(x) + epsilon) the inverse of the
    deviation, and A(x, u) = (x - mean(x)) u gamma + beta.

    Args:
        label: What `describe` prints.
        statistic: Q.
        deviation: Function of Q(x), element by element: u, or its reciprocal.
        divides: It is the reciprocal.
        result: Function of x, of what `deviation` returns, and of operands, that returns y.
    """

    def __init__(
        self,
        label: str,
        statistic: Callable[[Tensor], Tensor],
        deviation: Callable[[Tensor], Tensor],
        divides: bool,
        result: Callable[..., Tensor],
    ) -> None:
        super().__init__(label)
        self.statistic, self._deviation, self._divides = statistic, deviation, divides
        self._result = result

    def forward(self, x: Tensor) -> Tensor:
        """Returns y."""
        return self.scaled_by(x, self.inverse_deviation(self.statistic(x)))

    def inverse_deviation(self, statistic: Tensor) -> Tensor:
        """Returns u."""
        deviation = self._deviation(statistic)
        return 1 / deviation if self._divides else deviation

    def scaled_by(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Returns A(x, u)."""
        root = 1 / inverse if self._divides else inverse
        return self._result(x, root, *self.operands)

    def bias(self, x: Tensor) -> Tensor:
        """Returns what A(x, u) is at x = 0 for the u of x."""
        inverse = self.inverse_deviation(self.statistic(x))
        return self.scaled_by(tf.zeros_like(x), inverse)

    def pull_held(self, x: Tensor, relevance: Tensor) -> Tensor:
        """Pulls relevance back through A(x, u) with u held.

        Args:
            x: (batch, *shape).
            relevance: (batch, num_vectors, *shape of y).
        """
        inverse = tf.stop_gradient(self.inverse_deviation(self.statistic(x)))
        return pull_each(lambda z: self.scaled_by(z, inverse), [x], [relevance])[0]

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns the vector-Jacobian product, the statistic's part included."""
        return pull_each(self.forward, inputs, relevances)

    def pull_differences(self, x: Tensor, x0: Tensor, multipliers: Tensor) -> Tensor:
        """Returns multipliers that add up to the difference of y exactly.

        With d for differences, dy is the mean of A(dx, u) and A(dx, u0), plus that of A(x, du) and
        A(x0, du). du is shared out by the chord of h, and dQ is the derivative of Q in the middle
        of x and x0 times dx, because Q is quadratic.

        Args:
            x: (batch, *shape).
            x0: The same at the baseline.
            multipliers: (batch, num_vectors, *shape of y).
        """
        v, v0 = self.statistic(x), self.statistic(x0)
        u, u0 = self.inverse_deviation(v), self.inverse_deviation(v0)
        parts = [
            pull_each(lambda z, w=w: self.scaled_by(z, w), [x], [multipliers])[0] for w in (u, u0)
        ]
        of_inverse = [
            pull_each(lambda w, z=z: self.scaled_by(z, w), [u], [multipliers])[0] for z in (x, x0)
        ]
        moved = v - v0
        middle = (v + v0) / 2
        with tf.GradientTape() as tape:
            tape.watch(middle)
            inverse = self.inverse_deviation(middle)
        near = tf.abs(moved) <= 1e-6 * tf.abs(middle)
        slope = tf.where(near, tape.gradient(inverse, middle), tf.math.divide_no_nan(u - u0, moved))
        of_statistic = (of_inverse[0] + of_inverse[1]) / 2 * expand(slope)
        through = pull_each(self.statistic, [(x + x0) / 2], [of_statistic])[0]
        return (parts[0] + parts[1]) / 2 + through
