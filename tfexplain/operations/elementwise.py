"""Operations on single elements: activations, scalings by constants and batch normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfexplain.numerics import Tensor, expand, negative, positive, sum_to_shape
from tfexplain.operations.base import Operation

# Rectifiers pass a positive signal and hold back a negative one: what guided backpropagation,
# deconvnet and RectGrad change.
RECTIFIERS = ("relu", "relu6", "leaky_relu", "prelu")
KEEPING_SIGN = ("relu", "relu6", "leaky_relu")
NONNEGATIVE = (
    "relu",
    "relu6",
    "sigmoid",
    "hard_sigmoid",
    "softplus",
    "softmax",
    "exponential",
    "squareplus",
    "sparse_plus",
    "sparse_sigmoid",
    "sparsemax",
    "square",
    "absolute",
)
# Outputs of these depend on several inputs.
JOINT = ("softmax", "log_softmax", "sparsemax")


class Activation(Operation):
    """A non-linear function of single elements (or softmax and its kin).

    Args:
        name: Lower-case name of the function, such as "relu".
        function: Maps a tensor to one of the same shape.
        source: The Keras operation, or None for the fused activation of a layer.
        nonnegative: The function never returns a negative value.
        joint: Each output depends on several inputs, as with softmax.
        keeps_sign: x >= 0 gives y >= 0.
        declared: The layer declares `relevance_policy = "pass"`.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Tensor], Tensor],
        source: keras.Operation | None = None,
        nonnegative: bool | None = None,
        joint: bool | None = None,
        keeps_sign: bool | None = None,
        declared: bool = False,
    ) -> None:
        self.name = self.label = name
        self.forward = function
        self.source = source
        self.layers = (source,) if isinstance(source, keras.layers.Layer) else ()
        self.joint = name in JOINT if joint is None else joint
        self.declared = declared
        self.nonnegative = name in NONNEGATIVE if nonnegative is None else nonnegative
        self.keeps_sign = name in KEEPING_SIGN if keeps_sign is None else keeps_sign

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """ReLU, sigmoid, softmax and the like are >= 0; relu-like ones keep x >= 0."""
        return self.nonnegative or (self.keeps_sign and inputs[0])

    @property
    def rectifies(self) -> bool:
        """Whether it is 0 for every x <= 0."""
        return self.name in ("relu", "relu6") and self.nonnegative and not self.declared

    def derivative(self, x: Tensor) -> Tensor:
        """Returns f'(x), the same for all relevance vectors."""
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self.forward(x)
        return tape.gradient(y, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Multiplies by the derivative, computed once per sample."""
        if self.joint:
            return super().gradient(inputs, outputs, relevances)
        return (relevances[0] * expand(self.derivative(inputs[0])),)


class Scaling(Operation):
    """Constants added to or multiplied with single elements: Rescaling, Normalization, `x / 255`.

    Args:
        label: What `describe` prints.
        function: The affine map of single elements.
        source: The Keras operation.
        keeps_sign: Whether x >= 0 gives y >= 0.
    """

    def __init__(
        self,
        label: str,
        function: Callable[[Tensor], Tensor],
        source: keras.Operation,
        keeps_sign: bool = False,
    ) -> None:
        self.label = label
        self.forward = function
        self.source = source
        self.layers = (source,) if isinstance(source, keras.layers.Layer) else ()
        self.keeps_sign = keeps_sign

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds for a positive factor without offset."""
        return self.keeps_sign and inputs[0]

    def factor(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the factor of each element, which the derivative of an affine map is."""
        with tf.GradientTape() as tape:
            tape.watch(inputs[0])
            y = self.forward(inputs[0])
        return tape.gradient(y, inputs[0])

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Multiplies by the factors."""
        return (relevances[0] * expand(self.factor(inputs)),)


class Affine(Operation):
    """Batch normalisation at inference, y = x * scale + shift, where it could not be folded."""

    def __init__(self, layer: keras.layers.BatchNormalization) -> None:
        self.label = "BatchNormalization"
        self.source = layer
        self.layers = (layer,)
        self.axis = layer.axis

    def scale_and_shift(self, rank: int, dtype: tf.DType) -> tuple[Tensor, Tensor]:
        """Returns both, shaped to broadcast against a tensor of `rank` axes."""
        scale, shift = batch_norm_affine(self.source, dtype)
        shape = [1] * rank
        shape[self.axis % rank] = -1
        return tf.reshape(scale, shape), tf.reshape(shift, shape)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x * scale + shift."""
        scale, shift = self.scale_and_shift(len(x.shape), x.dtype)
        return x * scale + shift

    def factor(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the scale."""
        return self.scale_and_shift(len(inputs[0].shape), inputs[0].dtype)[0]

    def bias(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the shift."""
        return self.scale_and_shift(len(inputs[0].shape), inputs[0].dtype)[1]

    def _contribution(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] * self.factor(inputs)

    def weighted_sum(
        self, inputs: Sequence[Tensor], nonnegative: Sequence[bool], above: float, below: float
    ) -> Tensor:
        """Returns above c^+ + below c^- of the only contribution c = x * scale."""
        return weighted(self._contribution(inputs), above, below)

    def pull_weighted(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        share: Tensor,
        above: float,
        below: float,
    ) -> tuple[Tensor, ...]:
        """Returns (above c^+ + below c^-) share."""
        return (expand(weighted(self._contribution(inputs), above, below)) * share,)

    def pull_contributions(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        to_positive: Tensor | None,
        to_negative: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Returns c^+ to_positive + c^- to_negative per input element."""
        return (combine(self._contribution(inputs), to_positive, to_negative),)

    def equal_shares(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Every output has one input, which gets everything."""
        return (relevance,)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Multiplies by the scale."""
        return (relevances[0] * expand(self.factor(inputs)),)


def batch_norm_affine(layer: keras.layers.BatchNormalization, dtype) -> tuple[Tensor, Tensor]:
    """Returns scale and shift, (channels,), of batch normalisation at inference.

    scale = gamma / sqrt(variance + epsilon), shift = beta - mean * scale.
    """
    mean = tf.cast(layer.moving_mean, dtype)
    variance = tf.cast(layer.moving_variance, dtype)
    scale = tf.math.rsqrt(variance + layer.epsilon)
    if layer.scale:
        scale = scale * tf.cast(layer.gamma, dtype)
    shift = -mean * scale
    if layer.center:
        shift = shift + tf.cast(layer.beta, dtype)
    return scale, shift


def weighted(contribution: Tensor, above: float, below: float) -> Tensor:
    """Returns above c^+ + below c^- for contributions c of single elements."""
    if above == below:
        return contribution if above == 1 else above * contribution
    parts = [(above, positive), (below, negative)]
    found = [f * part(contribution) if f != 1 else part(contribution) for f, part in parts if f]
    return found[0] if len(found) == 1 else found[0] + found[1]


def combine(contribution: Tensor, to_positive: Tensor | None, to_negative: Tensor | None) -> Tensor:
    """Returns c^+ to_positive + c^- to_negative for contributions c of single elements.

    A missing factor counts as zero. The result is summed to the contribution's shape, where the
    forward pass broadcast it.
    """
    if to_positive is to_negative:
        total = expand(contribution) * to_positive
    else:
        total = 0
        if to_positive is not None:
            total = total + expand(positive(contribution)) * to_positive
        if to_negative is not None:
            total = total + expand(negative(contribution)) * to_negative
    return sum_to_shape(total, contribution.shape.as_list())
