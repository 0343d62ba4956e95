"""Small numerical helpers that rules share: the vector axis, safe division, parts, pull-backs.

Also random numbers that are the same on every device.

Relevance has the axes (batch, num_vectors, *shape), activations (batch, *shape). `fold` merges the
first two axes so that an ordinary operation serves all vectors, `unfold` takes them apart again,
and `expand` gives an activation the axis of length one that broadcasts over the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from tfexplain.checks import flag, real

Tensor: TypeAlias = tf.Tensor


def shape_of(tensor: Tensor) -> list:
    """Returns the shape as a list: integers where they are known, scalar tensors elsewhere."""
    static = tensor.shape.as_list()
    if None not in static:
        return static
    dynamic = tf.shape(tensor)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(static)]


def fold(relevance: Tensor) -> Tensor:
    """Merges (batch, num_vectors, *shape) into (batch * num_vectors, *shape)."""
    shape = shape_of(relevance)

    return tf.reshape(relevance, [shape[0] * shape[1], *shape[2:]])


def unfold(folded: Tensor, relevance: Tensor) -> Tensor:
    """Splits the first axis of `folded` into the (batch, num_vectors) of `relevance`."""
    batch, vectors = shape_of(relevance)[:2]
    return tf.reshape(folded, [batch, vectors, *shape_of(folded)[1:]])


def expand(activation: Tensor) -> Tensor:
    """Adds the axis that broadcasts an activation over the relevance vectors."""
    return tf.expand_dims(activation, 1)


def positive(tensor: Tensor) -> Tensor:
    """Returns the positive part max(x, 0)."""
    return tf.nn.relu(tensor)


def negative(tensor: Tensor) -> Tensor:
    """Returns the negative part min(x, 0)."""
    return tf.minimum(tensor, tf.zeros((), tensor.dtype))


def weighted(tensor: Tensor, above: float, below: float) -> Tensor:
    """Returns above x^+ + below x^-, the parts of x with a factor each."""
    if above == below:
        return tensor if above == 1 else above * tensor
    if not (above and below):
        factor, part = (above, positive) if above else (below, negative)
        return part(tensor) if factor == 1 else factor * part(tensor)
    # No maximum of both: TensorFlow with oneDNN takes max(x, 2 x) for a leaky ReLU of slope 2.
    return tf.where(tensor > 0, above * tensor, below * tensor)


def select(difference: Tensor, above: Tensor, below: Tensor, between: Tensor) -> Tensor:
    """Returns `above` where a difference is > 0, `below` where it is < 0, else `between`.

    Args:
        difference: (batch, *shape).
        above: (batch, num_vectors, *shape), as the others.
        below: What negative differences get.
        between: What no difference gets.
    """
    sign = expand(difference)
    return tf.where(sign > 0, above, tf.where(sign < 0, below, between))


def only_where(condition: Tensor, relevance: Tensor) -> Tensor:
    """Returns relevance (batch, num_vectors, *shape) where a condition holds, and 0 elsewhere.

    Args:
        condition: Boolean, (batch or 1, *shape).
        relevance: What is kept.
    """
    return tf.where(expand(condition), relevance, tf.zeros((), relevance.dtype))


def repeat(activation: Tensor, vectors: int | Tensor) -> Tensor:
    """Copies each sample once per relevance vector, for operations without a vector axis."""
    if isinstance(vectors, int) and vectors == 1:
        # A tensor of its own: an operation that reads one tensor twice has two gradients.
        return tf.identity(activation)
    return tf.repeat(activation, vectors, axis=0)


def sum_to_shape(tensor: Tensor, shape: Sequence) -> Tensor:
    """Sums a (batch, num_vectors, *big) tensor to what broadcast up to it, (…, *shape[1:]).

    `shape` is the shape (batch, *sizes) of the activation that was broadcast, of the same rank.
    """
    axes = [
        axis
        for axis, size in enumerate(shape)
        if axis > 0 and isinstance(size, int) and size == 1 and tensor.shape[axis + 1] != 1
    ]
    if axes:
        tensor = tf.reduce_sum(tensor, axis=[axis + 1 for axis in axes], keepdims=True)
    return tensor


class DisconnectedError(ValueError):
    """A function does not depend on its inputs in a way that has a gradient."""


def pull_back(
    function: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor],
    relevances: Sequence[Tensor],
    linear: bool = False,
    connected: bool = False,
) -> tuple[Tensor, ...]:
    """Pulls K relevance vectors back through `function` (vector-Jacobian product).

    Args:
        function: Maps tensors (batch, *shape) to one tensor or a sequence of tensors.
        inputs: Its arguments, each (batch, *shape).
        relevances: One (batch, num_vectors, *output_shape) for each of its results.
        linear: The Jacobian does not depend on the inputs; then they are not copied K times.
        connected: Refuse inputs that the results do not depend on, instead of returning zeros.

    Returns:
        One (batch, num_vectors, *shape) for each input; zeros for integer inputs.

    Raises:
        DisconnectedError: If `connected`, and there is no gradient.
    """
    dtype = relevances[0].dtype
    vectors = shape_of(relevances[0])[1]
    copies = []
    for tensor in inputs:
        if linear:
            sizes = shape_of(tensor)
            copies.append(tf.zeros([sizes[0] * vectors, *sizes[1:]], dtype))
        else:
            copies.append(repeat(tensor, vectors))
    with tf.GradientTape() as tape:
        tape.watch([tensor for tensor in copies if tensor.dtype.is_floating])
        results = function(*copies)
    results = list(results) if isinstance(results, list | tuple) else [results]
    gradients = tape.gradient(
        results,
        [tensor for tensor in copies if tensor.dtype.is_floating],
        output_gradients=[
            tf.cast(fold(relevance), result.dtype)
            for relevance, result in zip(relevances, results, strict=True)
        ],
        unconnected_gradients=tf.UnconnectedGradients("none" if connected else "zero"),
    )
    if any(gradient is None for gradient in gradients):
        raise DisconnectedError
    of_floating = iter(gradients)
    pulled = []
    for tensor in copies:
        if tensor.dtype.is_floating:
            gradient = next(of_floating)
        else:
            gradient = tf.zeros(shape_of(tensor), dtype)
        pulled.append(unfold(tf.cast(gradient, dtype), relevances[0]))
    return tuple(pulled)


def pull_each(
    function: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor],
    relevances: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Pulls relevance vectors back through a function of whole batches, one after the other.

    As `pull_back`, but the function may depend on how many samples there are, and its first axis
    need not be theirs.
    """
    # Tensors of their own: one that is read twice would have the gradients of both places twice.
    inputs = [tf.identity(tensor) for tensor in inputs]
    floating = [tensor for tensor in inputs if tensor.dtype.is_floating]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(floating)
        results = function(*inputs)
    results = list(results) if isinstance(results, list | tuple) else [results]

    def pulled(vectors: Sequence[Tensor]) -> list[Tensor]:
        return tape.gradient(
            results, floating, list(vectors), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    if relevances[0].shape[1] == 1:
        gradients = [expand(part) for part in pulled([r[:, 0] for r in relevances])]
    else:
        stacked = tf.map_fn(
            pulled,
            [swapped(r) for r in relevances],
            fn_output_signature=[tf.TensorSpec(x.shape, x.dtype) for x in floating],
        )
        gradients = [swapped(part) for part in stacked]
    of_floating = iter(gradients)
    vectors = shape_of(relevances[0])[1]
    return tuple(
        next(of_floating)
        if x.dtype.is_floating
        else tf.zeros([shape_of(x)[0], vectors, *shape_of(x)[1:]], relevances[0].dtype)
        for x in inputs
    )


def swapped(tensor: Tensor) -> Tensor:
    """Exchanges the axes of samples and vectors."""
    return tf.transpose(tensor, [1, 0, *range(2, len(tensor.shape))])


def rounding(dtype: tf.DType) -> float:
    """Returns the error of a sum relative to its terms below which a difference is noise."""
    return 8 * float(np.finfo(dtype.as_numpy_dtype).eps)


@dataclass(frozen=True)
class Stabilizer:
    """Adds epsilon to a denominator, with its sign (sign(0) = +1).

    Args:
        epsilon: Float >= 0, in the unit of the denominator, or of its standard deviation.
        relative: Measure epsilon in standard deviations of each sample's denominator.

    Raises:
        ValueError: If `epsilon` is negative or not finite.
    """

    epsilon: float = 0.0
    relative: bool = False

    def __post_init__(self) -> None:
        """Checks the value."""
        hint = "Typical values lie between 1e-9 and 1."
        object.__setattr__(self, "epsilon", real("epsilon", self.epsilon, 0, hint=hint))
        object.__setattr__(self, "relative", flag("relative", self.relative))

    def added(self, denominator: Tensor, is_above: bool = False) -> Tensor:
        """Returns what is added to `denominator`, (batch, *shape).

        Args:
            denominator: (batch, *shape).
            is_above: Only what is > 0 matters.
        """
        epsilon = tf.constant(self.epsilon, denominator.dtype)
        if self.relative:
            axes = list(range(1, len(denominator.shape)))
            epsilon = epsilon * tf.math.reduce_std(denominator, axis=axes, keepdims=True)
        return epsilon if is_above else tf.where(denominator >= 0, epsilon, -epsilon)

    def __call__(self, denominator: Tensor, is_above: bool = False) -> Tensor:
        """Returns the stabilized denominator; arguments as for `added`."""
        return denominator + self.added(denominator, is_above) if self.epsilon else denominator


def random_normal(shape: Tensor, seed: Tensor, dtype: tf.DType) -> Tensor:
    """Draws standard normal numbers, the same on every device and under XLA.

    `tf.random.stateless_normal` makes other floats of the same bits under XLA; integers agree
    everywhere, and Box and Muller's formula in float64 makes the rest.

    Args:
        shape: Shape of the result.
        seed: Two integers.
        dtype: Precision of the result.
    """
    bits = tf.random.stateless_uniform(
        tf.concat([[2], shape], 0), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    # 24 bits each, in (0, 1]: the logarithm stays finite.
    uniform = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 8), 0xFFFFFF)
    uniform = (tf.cast(uniform, tf.float64) + 1) / 2**24
    normal = tf.sqrt(-2 * tf.math.log(uniform[0])) * tf.cos(2 * math.pi * uniform[1])
    return tf.cast(normal, dtype)


def random_permutation(count: int | Tensor, seed: Tensor) -> Tensor:
    """Draws an order of 0..count-1, the same on every device and under XLA.

    The numbers are sorted by random integers; the place decides between equal ones, because
    devices do not agree on which of them comes first.

    Args:
        count: How many numbers.
        seed: Two integers.

    Returns:
        Shape (count,), int32.
    """
    bits = tf.random.stateless_uniform(
        [count], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    keys = tf.cast(bits, tf.int64) * 2**32 + tf.range(tf.cast(count, tf.int64))
    return tf.math.top_k(keys, count).indices
