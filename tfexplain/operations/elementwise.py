"""Operations on single elements: activations, scalings by constants and batch normalisation."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfexplain.compilation import is_one_vector
from tfexplain.numerics import (
    Tensor,
    expand,
    negative,
    positive,
    select,
    sum_to_shape,
    weighted,
)
from tfexplain.operations.base import ALL, PART_OF, Additive, Diagonal, Operation
from tfexplain.operations.calls import Call, Replay, Slot
from tfexplain.operations.opaque import Opaque
from tfexplain.operations.probing import probed

# Rectifiers pass a positive signal and hold back a negative one: what guided backpropagation,
# deconvnet and RectGrad change.
RECTIFIERS = ("relu", "relu6", "leaky_relu", "prelu")
KEEPING_SIGN = (
    "relu relu6 leaky_relu expm1 log1p sinh arcsin arcsinh arctan arctanh erf erfinv cbrt "
    "rsqrt reciprocal"
).split()
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
    "exp2",
    "sqrt",
    "cosh",
    "arccos",
    "arccosh",
    "erfc",
)
# Some numbers have no value, or an infinite one.
PARTIAL = (
    "log log2 log10 log1p sqrt rsqrt reciprocal power tan arcsin arccos arccosh arctanh erfinv"
).split()
# Outputs of these depend on several inputs.
JOINT = ("softmax", "log_softmax", "sparsemax")
KNOWN_ACTIVATIONS = (
    "relu relu6 leaky_relu prelu elu selu celu gelu silu hard_silu mish sigmoid hard_sigmoid "
    "log_sigmoid sparse_sigmoid softplus sparse_plus softsign softmax log_softmax sparsemax tanh "
    "hard_tanh tanh_shrink soft_shrink hard_shrink squareplus exponential threshold square "
    "absolute expm1 exp2 log log2 log10 log1p sqrt rsqrt cbrt reciprocal sin cos tan sinh cosh "
    "arcsin arccos arctan arcsinh arccosh arctanh erf erfc erfinv sinc"
).split()
ALIASES = {
    "re_lu": "relu",
    "leaky_re_lu": "leaky_relu",
    "p_re_lu": "prelu",
    "swish": "silu",
    "hard_swish": "hard_silu",
    "exp": "exponential",
    "abs": "absolute",
    "fabs": "absolute",
}


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

    Attributes:
        is_relu: It is max(x, 0) and nothing else.
        partial: Some numbers have no value, or an infinite one.
        rectifies: A ReLU, with or without an upper end.
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
        super().__init__(name, function, source)
        self.name = name
        self.layers = (source,) if isinstance(source, layers.Layer) else ()
        self.joint = name in JOINT if joint is None else joint
        self.declared = declared
        self.nonnegative = name in NONNEGATIVE if nonnegative is None else nonnegative
        self.keeps_sign = name in KEEPING_SIGN if keeps_sign is None else keeps_sign
        self.is_relu = False
        self.partial = name in PARTIAL
        self.rectifies = name in ("relu", "relu6") and self.nonnegative and not declared

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Looks the function up by the name of the layer or operation."""
        operation = call.operation
        rank = len(call.outputs[0].shape)
        return activation_of(operation, operation, rank, Replay(operation, call.arguments))

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """ReLU, sigmoid, softmax and the like are >= 0; relu-like ones keep x >= 0."""
        return self.nonnegative or (self.keeps_sign and inputs[0])

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
        if self.joint or is_one_vector(relevances[0]):
            return super().gradient(inputs, outputs, relevances)
        return (relevances[0] * expand(self.derivative(inputs[0])),)


class Scaling(Diagonal):
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
        source: keras.Operation | None = None,
        keeps_sign: bool = False,
    ) -> None:
        super().__init__(label, function, source)
        self.layers = (source,) if isinstance(source, layers.Layer) else ()
        self.keeps_sign = keeps_sign

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Takes an operation of one tensor and perhaps a constant, element by element."""
        same = len(call.inputs) == 1 and call.inputs[0].shape == call.outputs[0].shape
        constant_first = not isinstance(call.data[0], Slot)
        division = type(call.operation).__name__ in ("Divide", "TrueDivide")
        if not same or (division and constant_first):
            return Opaque.from_call(call)
        return super().from_call(call)

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds for a positive factor without offset."""
        return self.keeps_sign and inputs[0]

    def mirrored(self) -> Operation:
        """It has the same factor, and the shift times -1."""
        return MirroredScaling(self)

    def factor(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the factor of each element, which the derivative of an affine map is."""
        with tf.GradientTape() as tape:
            tape.watch(inputs[0])
            y = self.forward(inputs[0])
        return tape.gradient(y, inputs[0])


class MirroredScaling(Scaling):
    """x -> -f(-x) of a scaling f.

    Args:
        scaling: f.
    """

    def __init__(self, scaling: Scaling) -> None:
        super().__init__(scaling.label, lambda x: -scaling.forward(-x), scaling.source)
        self.scaling = scaling

    def prepare(self, dtype: str) -> None:
        """Makes f ready, which it runs."""
        self.scaling.prepare(dtype)


class SumOfTensors(Additive):
    """z = sum_m f_m x_m + b, element by element: one contribution of each input tensor."""

    def factors(self, inputs: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """Returns f, for each input one number or tensor that broadcasts against it."""
        raise NotImplementedError

    def contributions(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns f_m x_m for each input x_m."""
        return [_times(f, x) for f, x in zip(self.factors(inputs), inputs, strict=True)]

    def weighted_sum(
        self, inputs: Sequence[Tensor], nonnegative: Sequence[bool], above: float, below: float
    ) -> Tensor:
        """Returns sum_m above c_m^+ + below c_m^-."""
        return sum(weighted(c, above, below) for c in self.contributions(inputs))

    def magnitude_sum(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns sum_m |c_m|."""
        return sum(tf.abs(c) for c in self.contributions(inputs))

    def pull_weighted(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        share: Tensor,
        above: float,
        below: float,
    ) -> tuple[Tensor, ...]:
        """Returns (above c_m^+ + below c_m^-) share for each input."""
        return tuple(
            sum_to_shape(expand(weighted(c, above, below)) * share, c.shape.as_list())
            for c in self.contributions(inputs)
        )

    def pull_contributions(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        to_positive: Tensor | None,
        to_negative: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Returns c_m^+ to_positive + c_m^- to_negative for each input."""
        return tuple(combine(c, to_positive, to_negative) for c in self.contributions(inputs))

    def weights(self, inputs: Sequence[Tensor], part: str = ALL) -> Tensor:
        """Returns the factors, stacked; each broadcasts against the last axes of relevance."""
        factors = [tf.convert_to_tensor(f, inputs[0].dtype) for f in self.factors(inputs)]
        return PART_OF[part](tf.stack([f if f.shape.rank else f[None] for f in factors]))

    def pull_weights(
        self, inputs: Sequence[Tensor], relevance: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns v_m R for each input."""
        return tuple(
            sum_to_shape(weights[place] * relevance, x.shape.as_list())
            for place, x in enumerate(inputs)
        )

    def pull_differences(
        self,
        inputs: Sequence[Tensor],
        differences: Sequence[Tensor],
        above: Tensor,
        below: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns f_m m^+ where f_m D_m > 0 and f_m m^- where it is < 0."""
        mean = (above + below) / 2
        return tuple(
            sum_to_shape(f * select(f * d, above, below, mean), x.shape.as_list())
            for f, d, x in zip(self.factors(inputs), differences, inputs, strict=True)
        )

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Multiplies by the factors."""
        return tuple(
            sum_to_shape(_times(f, relevances[0]), x.shape.as_list())
            for f, x in zip(self.factors(inputs), inputs, strict=True)
        )

    def summed(self, pattern: Tensor, units: int) -> Tensor:
        """Returns the sum over the inputs."""
        return tf.reduce_sum(pattern, axis=0)

    def collected(self, inputs: Sequence[Tensor], values: Tensor) -> Tensor:
        """Returns the sum of each input times `values` over samples and positions."""
        axes = list(range(len(values.shape) - 1))
        return tf.stack([tf.reduce_sum(x * values, axis=axes) for x in inputs])


class Affine(SumOfTensors, Diagonal):
    """Batch normalisation at inference, y = x * scale + shift, where it could not be folded."""

    fitted = False

    def __init__(self, layer: keras.layers.BatchNormalization) -> None:
        super().__init__("BatchNormalization", source=layer)
        self.layers = (layer,)
        self.axis = layer.axis
        self.shift_sign = 1.0

    def mirrored(self) -> Operation:
        """It has the same scale, and the shift times -1."""
        operation = copy.copy(self)
        operation.shift_sign = -self.shift_sign
        return operation

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Takes a layer that normalises one axis."""
        one = isinstance(call.operation.axis, int)
        return cls(call.operation) if one else Opaque.from_call(call)

    def scale_and_shift(self, rank: int, dtype: tf.DType) -> tuple[Tensor, Tensor]:
        """Returns both, shaped to broadcast against a tensor of `rank` axes."""
        scale, shift = batch_norm_affine(self.source, dtype)
        shape = [1] * rank
        shape[self.axis % rank] = -1
        return tf.reshape(scale, shape), tf.reshape(self.shift_sign * shift, shape)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x * scale + shift."""
        scale, shift = self.scale_and_shift(len(x.shape), x.dtype)
        return x * scale + shift

    def factor(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the scale."""
        return self.scale_and_shift(len(inputs[0].shape), inputs[0].dtype)[0]

    def factors(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the scale, the factor of the only input."""
        return (self.factor(inputs),)

    def bias(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the shift."""
        return self.scale_and_shift(len(inputs[0].shape), inputs[0].dtype)[1]

    def equal_shares(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Every output has one input, which gets everything."""
        return (relevance,)


def batch_norm_affine(
    layer: keras.layers.BatchNormalization, dtype: tf.DType
) -> tuple[Tensor, Tensor]:
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


def _times(factor: Tensor | float, tensor: Tensor) -> Tensor:
    return tensor if isinstance(factor, float) and factor == 1 else factor * tensor


def named_activation(call: Call) -> Operation | None:
    """The layer `Activation`, by its function."""
    function = call.operation.activation
    is_identity = function is keras.activations.linear
    rank = len(call.outputs[0].shape)
    return None if is_identity else activation_of(function, call.operation, rank)


def activation_of(
    parameters: Any, source: keras.Operation | None, rank: int, function: Callable | None = None
) -> Operation:
    """Returns the activation, or an opaque operation for a function that is not known.

    Args:
        parameters: The function, layer or operation that has the name and the parameters.
        source: The Keras operation of the call, None for a fused activation.
        rank: The number of axes of the tensor.
        function: What computes it, if not `parameters`.
    """
    if function is None:
        layer = isinstance(parameters, layers.Layer)
        function = Replay(parameters, ((Slot(0),), {})) if layer else parameters
    name = getattr(parameters, "__name__", type(parameters).__name__)
    name = ALIASES.get(_snake_case(name), _snake_case(name))
    if name not in KNOWN_ACTIVATIONS or not _is_theirs(parameters):
        is_layer = isinstance(parameters, layers.Layer)
        known = None if is_layer else probed(function, rank)
        if known is not None:
            activation = Activation(known, function, source)
            activation.is_relu = known == "relu"
            return activation
        # A lambda has a name that is none.
        operation = Opaque(re.sub(r"\W+", "_", name).strip("_") or "function", function, source)
        if isinstance(parameters, layers.Layer):
            operation.layers = (parameters,)
        return operation
    nonnegative = keeps_sign = None
    is_relu = name == "relu"
    if is_relu:
        slope = getattr(parameters, "negative_slope", 0)
        threshold = getattr(parameters, "threshold", 0)
        is_relu = not (slope or threshold) and getattr(parameters, "max_value", None) is None
        nonnegative = not slope and threshold >= 0
        # Below the threshold, the slope starts at zero and leads down.
        keeps_sign = not (slope and threshold)
    activation = Activation(name, function, source, nonnegative, keeps_sign=keeps_sign)
    activation.is_relu = is_relu
    if isinstance(parameters, layers.Layer):
        activation.layers = (parameters,)
    return activation


def _is_theirs(function: object) -> bool:
    """Tells whether a function, layer or operation is that of Keras or TensorFlow.

    A user's own of the same name may compute something else.
    """
    named = function if hasattr(function, "__name__") else type(function)
    return str(named.__module__).split(".")[0] in ("keras", "tensorflow")


def rescaling(call: Call) -> Operation:
    """Rescaling, in the precision of the analysis."""
    layer = call.operation

    def function(x: Tensor) -> Tensor:
        # The layer computes in its own dtype; the analysis may ask for another one. Keras makes
        # float32 of a Python number first.
        scale, offset = (
            layer.backend.cast(value, x.dtype.name) for value in (layer.scale, layer.offset)
        )
        return x * scale + offset

    parts = [np.asarray(value) for value in (layer.scale, layer.offset)]
    if parts[0].ndim and keras.config.image_data_format() == "channels_first":
        # Keras gives the scale other axes then.
        return Opaque.from_call(call)
    return Scaling("Rescaling", function, layer, bool(all(np.all(part >= 0) for part in parts)))


def normalization(call: Call) -> Operation:
    """Normalization, by what its last `adapt` found."""
    layer = call.operation

    def function(x: Tensor) -> Tensor:
        mean, variance = layer.mean, layer.variance
        if layer.input_mean is None:
            # The variables behind `mean`, which `adapt` may set again.
            mean = tf.reshape(layer.adapt_mean, mean.shape)
            variance = tf.reshape(layer.adapt_variance, variance.shape)
        mean, variance = tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)
        deviation = tf.maximum(tf.sqrt(variance), keras.config.epsilon())
        return x * deviation + mean if layer.invert else (x - mean) / deviation

    return Scaling("Normalization", function, layer)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
