"""What a function computes that is given as an activation, found by trying it on numbers.

No name says it: `tf.nn.softmax`, a partial of `tf.nn.leaky_relu` and `lambda x: tf.maximum(x, 0)`
work as the activations that they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.special
import tensorflow as tf

# Signs, zeros, and sizes at which functions part that agree near 0, such as ReLU and ReLU6.
_SIZES = np.array([0, 1e-3, 0.4, 1, 2.9, 6.5, 40, 900, 1e6])
VALUES = np.concatenate([_SIZES, -_SIZES])


def probed(function: Callable, rank: int) -> str | None:
    """Returns which activation a function is, if it is one of four.

    Args:
        function: Maps a tensor to one of the same shape. It is called twice, and traced.
        rank: The number of axes of the tensor, with that of the batch; softmax is over the last.

    Returns:
        "relu", "leaky_relu" (with a slope between 0 and 1), "sigmoid", "softmax", or None, also
        for a function that reads a variable: it can become another one.
    """
    generator = np.random.default_rng(0)
    # Of two sizes: a function may depend on them.
    kinds = {_kind(function, _numbers(generator, rank, width)) for width in (4, 5)}
    if len(kinds) > 1 or None in kinds:
        return None
    shape = _numbers(generator, rank, 4).shape[1:]
    return None if _reads_variables(function, shape) else kinds.pop()


def _reads_variables(function: Callable, shape: tuple[int, ...]) -> bool:
    """Tells whether a function reads variables, or cannot be traced."""
    try:
        traced = tf.function(function, autograph=False).get_concrete_function(
            tf.TensorSpec([None, *shape], "float32")
        )
    except Exception:  # whatever a function of the user's raises for tensors without numbers
        return True
    return any(outside.dtype == tf.resource for outside, _ in traced.graph.captures)


def _numbers(generator: np.random.Generator, rank: int, width: int) -> np.ndarray:
    """Returns (rows, 3, 3, ..., width) with all of `VALUES` and as many random numbers."""
    values = np.concatenate([VALUES, 3 * generator.normal(size=len(VALUES))])
    inner = (3,) * (rank - 2) + (width,) if rank > 1 else ()
    rows = -(-len(values) // int(np.prod(inner, dtype=int)))
    numbers = generator.permutation(np.resize(values, rows * int(np.prod(inner, dtype=int))))
    return numbers.reshape(rows, *inner).astype("float32")


def _kind(function: Callable, x: np.ndarray) -> str | None:
    try:
        y = np.asarray(function(tf.constant(x)), "float64")
    except Exception:  # whatever a function of the user's raises for numbers it does not expect
        return None
    if y.shape != x.shape:
        return None
    x = x.astype("float64")
    slope = float(y[x == x.min()].flat[0] / x.min())
    expected = {
        "relu": np.maximum(x, 0),
        "sigmoid": scipy.special.expit(x),
        "softmax": scipy.special.softmax(x, axis=-1),
    }
    if 0 < slope < 1:
        expected["leaky_relu"] = np.where(x < 0, slope * x, x)
    for name, value in expected.items():
        if np.allclose(y, value, rtol=1e-5, atol=1e-6):
            return name
    return None
