"""Chords of functions: (f(b) - f(a)) / (b - a), by which DeepLIFT multiplies.

Rounding spoils the quotient where a and b are nearly equal. What takes its place there depends on
the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfexplain.numerics import Tensor, expand, positive
from tfexplain.operations import Activation

# Functions with a derivative everywhere: near a point the chord is the derivative in the middle.
SMOOTH = (
    "sigmoid tanh softplus gelu silu mish softsign exponential log_sigmoid squareplus tanh_shrink "
    "square expm1 exp2 sin cos sinh cosh arctan arcsinh erf erfc sinc"
).split()
# Smooth where they are defined, and as steep as one likes: near is where the derivatives at the
# ends and in the middle hardly differ in proportion. Simpson's rule makes the chord of the three.
STEEP = "power cbrt tan arcsin arccos arccosh arctanh erfinv".split()


def _of_logarithm(x: Tensor, y: Tensor, shift: float = 0.0) -> Tensor:
    """Returns (log(y + shift) - log(x + shift)) / (y - x), from log(1 + u) of their ratio 1 + u."""
    low, high = tf.minimum(x, y), tf.maximum(x, y)
    moved, low = high - low, low + shift
    ratio = moved / low
    share = tf.math.divide_no_nan(tf.math.log1p(ratio), ratio)
    near = tf.where(tf.equal(ratio, 0), tf.ones_like(share), share) / low
    # Far apart nothing cancels, and the ratio may overflow.
    far = (tf.math.log(high + shift) - tf.math.log(low)) / moved
    return tf.where(ratio > 1, far, near)


def _of_root(x: Tensor, y: Tensor) -> Tensor:
    return 1 / (tf.sqrt(x) + tf.sqrt(y))


def _of_inverse_root(x: Tensor, y: Tensor) -> Tensor:
    return -_of_root(x, y) * tf.math.rsqrt(x) * tf.math.rsqrt(y)


# Chords in a form in which nothing cancels.
CLOSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log": _of_logarithm,
    "log2": lambda x, y: _of_logarithm(x, y) / math.log(2),
    "log10": lambda x, y: _of_logarithm(x, y) / math.log(10),
    "log1p": lambda x, y: _of_logarithm(x, y, 1.0),
    "sqrt": _of_root,
    "rsqrt": _of_inverse_root,
}


def chord(
    operation: Activation,
    start: Tensor,
    end: Tensor,
    rise: Tensor | None = None,
    ascends: bool = False,
) -> Tensor:
    """Returns (f(end) - f(start)) / (end - start), with the derivative as limit.

    Rounding would spoil the quotient of nearly equal values. There the derivative in the middle
    takes its place, with an error of the third order, if the function is smooth between them: it is
    everywhere, or the derivative hardly changes from end to end. At a corner the quotient stays.
    Where both ends are the same point and the slope there is infinite, as that of a root at 0,
    nothing is multiplied: it counts as 0.

    Args:
        operation: The function of single elements.
        start: Where the chord begins.
        end: Where it ends.
        rise: f(end) - f(start), where it is known.
        ascends: No end is below its start; the chord is the same the other way round.
    """
    difference = end - start
    if operation.is_relu:
        # Between a < b it is b / (b - a), cut to [0, 1]. That is the limit too: b / 0 is infinite
        # with the sign of b, and 0 / 0 counts as 0.
        above = end if ascends else tf.maximum(start, end)
        share = tf.math.xdivy(above, difference if ascends else tf.abs(difference))
        return tf.minimum(positive(share), tf.ones((), end.dtype))
    if operation.name in CLOSED or operation.name == "reciprocal":
        # c / x has the chord -c / (x y).
        slope = (
            CLOSED[operation.name](start, end)
            if operation.name in CLOSED
            else -operation.forward(end) / start
        )
        return _finite_at_rest(slope, difference)
    if rise is None:
        rise = operation.forward(end) - operation.forward(start)
    quotient = tf.math.divide_no_nan(rise, difference)
    if operation.rectifies:
        # Its values are those of the inputs or of its ends: the quotient is exact.
        return tf.where(tf.equal(difference, 0), operation.derivative(end), quotient)
    size = tf.abs(difference)
    limit = float(np.finfo(end.dtype.as_numpy_dtype).eps) ** (1 / 3)
    between = operation.derivative((start + end) / 2)
    near = size < limit
    if operation.name in SMOOTH:
        return tf.where(near, between, quotient)
    first, last = operation.derivative(start), operation.derivative(end)
    if operation.name in STEEP:
        change = tf.maximum(tf.abs(first - between), tf.abs(last - between))
        near = change <= limit * tf.abs(between)
        return tf.where(near, (first + 4 * between + last) / 6, quotient)
    near &= tf.abs(last - first) <= 2 * size
    return tf.where(near, between, quotient)


def _finite_at_rest(slope: Tensor, difference: Tensor) -> Tensor:
    """Returns the slope, and 0 where it is infinite and nothing differs."""
    infinite = tf.equal(difference, 0) & tf.math.is_inf(slope)
    return tf.where(infinite, tf.zeros_like(slope), slope)


def through_softmax(operation: Activation, x: Tensor, x0: Tensor, arriving: Tensor) -> Tensor:
    """Sends multipliers through exp(x - log sum exp x): a difference, and what is subtracted.

    In this form nothing overflows, and a shift of all inputs has no effect.
    """
    axis = _axis_of(operation) % len(x.shape)
    logs = _LogSums(x, x0, axis)
    direct = arriving * expand(chord(_EXPONENTIAL, logs.less(x0, 1), logs.less(x, 0)))
    subtracted = tf.reduce_sum(direct, axis=axis + 1, keepdims=True)
    return direct - expand(logs.shares()) * subtracted


def shares_of_log_sum(x: Tensor, x0: Tensor, axes: Sequence[int]) -> Tensor:
    """Returns by what DeepLIFT multiplies at log sum exp x: the chord of each of its inputs."""
    return _LogSums(x, x0, list(axes)).shares()


class _LogSums:
    """log sum exp z at an input and at its baseline, as the largest z and the rest."""

    def __init__(self, x: Tensor, x0: Tensor, axes: int | list[int]) -> None:
        self.x, self.x0 = x, x0
        self.tops = [tf.reduce_max(z, axis=axes, keepdims=True) for z in (x, x0)]
        self.logs = [
            tf.reduce_logsumexp(z - top, axis=axes, keepdims=True)
            for z, top in zip((x, x0), self.tops, strict=True)
        ]

    def less(self, z: Tensor, place: int) -> Tensor:
        """Returns z - log sum exp, of the input (0) or of the baseline (1)."""
        # By two small differences: large logits keep their digits.
        return (z - self.tops[place]) - self.logs[place]

    def shares(self) -> Tensor:
        """Returns the chords: of the exponentials, their sum, and the inverse of exp in turn."""
        (top, top0), (log, log0) = self.tops, self.logs
        rise = (top - top0) + (log - log0)
        grows = rise > 0
        ends = [tf.where(grows, self.less(z, 0), self.less(z, 1)) for z in (self.x0, self.x)]
        ends_of_log = [tf.where(grows, -rise, tf.zeros_like(rise)), tf.where(grows, 0 * rise, rise)]
        return chord(_EXPONENTIAL, *ends) / chord(_EXPONENTIAL, *ends_of_log)


def _axis_of(operation: Activation) -> int:
    """Returns the axis of a softmax; functions without one use the last."""
    axis = getattr(operation.source, "axis", -1)
    return axis if isinstance(axis, int) else -1


def _exponential() -> Activation:
    function: Callable[[Tensor], Tensor] = tf.exp
    return Activation("exponential", function)


_EXPONENTIAL = _exponential()
