"""What becomes of each Keras layer and operation: classes -> canonical operations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfexplain.graph import Call
from tfexplain.operations import (
    LINEAR_LAYERS,
    Activation,
    Affine,
    AveragePooling,
    Concatenation,
    GlobalMaxPooling,
    Linear,
    Lookup,
    MaxPooling,
    Opaque,
    Operation,
    Product,
    Rearrangement,
    Replay,
    Reshaping,
    Scaling,
    Slot,
    Sum,
)
from tfexplain.operations.pooling import channels_to_first, channels_to_last, pool

IDENTITY = None
Factory = Callable[[Call], Operation | None]


def _linear(call: Call) -> Operation:
    layer = call.operation
    if getattr(layer, "quantization_mode", None):
        return opaque(call)
    return LINEAR_LAYERS[listed_class(layer, LINEAR_LAYERS)](layer)


def opaque(call: Call) -> Operation:
    """Returns the operation of which only the gradient is known."""
    return Opaque(replay(call), type(call.operation).__name__, call.operation)


def replay(call: Call) -> Replay:
    """Returns what runs the call again."""
    return Replay(call.operation, call.arguments)


def _rearrangement(call: Call) -> Operation:
    if len(call.inputs) > 1 and not all(node.floating for node in call.inputs):
        # Indices that are tensors themselves.
        return opaque(call)
    if listed_class(call.operation, STACKS) and not _all_tensors(call):
        return opaque(call)
    # Flatten moves the channels first where they come first.
    moves = getattr(call.operation, "_channels_first", False)
    reshapes = listed_class(call.operation, RESHAPES) and not moves
    kind = Reshaping if reshapes else Rearrangement
    return kind(type(call.operation).__name__, replay(call), call.operation)


def _average(call: Call) -> Operation:
    return AveragePooling(type(call.operation).__name__, replay(call), call.operation)


def _average_pooling(call: Call) -> Operation:
    layer = call.operation
    last = layer.data_format == "channels_last"

    def function(x: tf.Tensor) -> tf.Tensor:
        y = x if last else channels_to_last(x)
        y = pool(tf.nn.avg_pool, y, layer.pool_size, layer.strides, layer.padding)
        return y if last else channels_to_first(y)

    return AveragePooling(type(layer).__name__, function, layer)


def _up_sampling(call: Call) -> Operation:
    interpolation = getattr(call.operation, "interpolation", "nearest")
    # Others overshoot: some of their weights are negative.
    known = {"nearest": _rearrangement, "bilinear": _average}
    return known.get(interpolation, opaque)(call)


def _max_pooling(call: Call) -> Operation:
    layer = call.operation
    return MaxPooling(
        type(layer).__name__,
        layer.pool_size,
        layer.strides,
        layer.padding,
        layer.data_format == "channels_last",
        layer,
    )


def _global_max(call: Call) -> Operation:
    layer = call.operation
    rank = len(call.inputs[0].shape)
    axes = range(1, rank - 1) if layer.data_format == "channels_last" else range(2, rank)
    return GlobalMaxPooling(type(layer).__name__, tuple(axes), replay(call), layer)


def _reduction(call: Call) -> Operation:
    """`keras.ops.mean`, `sum` and `max`, if the batch axis stays."""
    axes = getattr(call.operation, "axis", None)
    rank = len(call.inputs[0].shape)
    axes = [axes] if isinstance(axes, int) else axes
    if axes is None or any(axis % rank == 0 for axis in axes):
        return opaque(call)
    if isinstance(call.operation, keras.src.ops.numpy.Max):
        return GlobalMaxPooling("Max", tuple(axes), replay(call), call.operation)
    return _average(call)


def _sum(coefficients: Callable[[int], list[float]]) -> Factory:
    def factory(call: Call) -> Operation:
        if not _same_rank(call) or not _all_tensors(call):
            return opaque(call)
        return Sum(type(call.operation).__name__, coefficients(len(_leaves(call))), call.operation)

    return factory


def _binary(coefficients: list[float] | None) -> Factory:
    """`a + b`, `a - b` and `a * b`; a constant makes it a scaling of single elements."""

    def factory(call: Call) -> Operation:
        if _all_tensors(call) and _same_rank(call):
            if coefficients is None:
                return Product(type(call.operation).__name__, call.operation)
            return Sum(type(call.operation).__name__, coefficients, call.operation)
        return _with_constant(call)

    return factory


def _product(call: Call) -> Operation:
    merges = _same_rank(call) and _all_tensors(call)
    return Product("Multiply", call.operation) if merges else opaque(call)


def _all_tensors(call: Call) -> bool:
    return all(isinstance(leaf, Slot) for leaf in _leaves(call))


def _same_rank(call: Call) -> bool:
    """Merges of tensors of different rank broadcast in ways of their own."""
    return len({len(node.shape) for node in call.inputs}) == 1


def _with_constant(call: Call) -> Operation:
    """An elementwise operation of one tensor and a constant, such as `x / 255`."""
    same = len(call.inputs) == 1 and call.inputs[0].shape == call.outputs[0].shape
    constant_first = not isinstance(_leaves(call)[0], Slot)
    division = type(call.operation).__name__ in ("Divide", "TrueDivide")
    if not same or (division and constant_first):
        return opaque(call)
    return Scaling(type(call.operation).__name__, replay(call), call.operation)


def _division(call: Call) -> Operation:
    return _with_constant(call) if len(call.inputs) == 1 else opaque(call)


def _scaling(call: Call) -> Operation:
    return Scaling(type(call.operation).__name__, replay(call), call.operation)


def _rescaling(call: Call) -> Operation:
    layer = call.operation

    def function(x: tf.Tensor) -> tf.Tensor:
        # The layer computes in its own dtype; the analysis may ask for another one.
        scale, offset = (tf.constant(value, x.dtype) for value in (layer.scale, layer.offset))
        return x * scale + offset

    parts = [np.asarray(value) for value in (layer.scale, layer.offset)]
    if parts[0].ndim and keras.config.image_data_format() == "channels_first":
        # Keras gives the scale other axes then.
        return opaque(call)
    return Scaling("Rescaling", function, layer, bool(all(np.all(part >= 0) for part in parts)))


def _normalization(call: Call) -> Operation:
    layer = call.operation

    def function(x: tf.Tensor) -> tf.Tensor:
        mean, variance = layer.mean, layer.variance
        if layer.input_mean is None:
            # The variables behind `mean`, which `adapt` may set again.
            mean = tf.reshape(layer.adapt_mean, mean.shape)
            variance = tf.reshape(layer.adapt_variance, variance.shape)
        mean, variance = tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)
        deviation = tf.maximum(tf.sqrt(variance), keras.config.epsilon())
        return x * deviation + mean if layer.invert else (x - mean) / deviation

    return Scaling("Normalization", function, layer)


def _batch_norm(call: Call) -> Operation:
    layer = call.operation
    return Affine(layer) if isinstance(layer.axis, int) else opaque(call)


def _concatenation(call: Call) -> Operation:
    axis = getattr(call.operation, "axis", -1)
    if axis is None or axis % len(call.outputs[0].shape) == 0:
        return opaque(call)
    if not _all_tensors(call):
        return opaque(call)
    return Concatenation(type(call.operation).__name__, axis, call.operation)


def _identity(call: Call) -> None:
    return IDENTITY


def _cast(call: Call) -> Operation | None:
    """Floating numbers stay what they are, in the precision of the analysis."""
    floating = call.inputs[0].floating and call.outputs[0].floating
    return IDENTITY if floating else opaque(call)


KNOWN_ACTIVATIONS = (
    "relu relu6 leaky_relu prelu elu selu celu gelu silu hard_silu mish sigmoid hard_sigmoid "
    "log_sigmoid sparse_sigmoid softplus sparse_plus softsign softmax log_softmax sparsemax tanh "
    "hard_tanh tanh_shrink soft_shrink hard_shrink squareplus exponential threshold square "
    "absolute"
).split()
ALIASES = {
    "re_lu": "relu",
    "leaky_re_lu": "leaky_relu",
    "p_re_lu": "prelu",
    "swish": "silu",
    "hard_swish": "hard_silu",
}


def _activation_layer(call: Call) -> Operation | None:
    layer = call.operation
    if layer.activation is keras.activations.linear:
        return IDENTITY
    return activation_of(layer.activation, layer)


def _activation_op(call: Call) -> Operation:
    return activation_of(call.operation, call.operation, replay(call))


def activation_of(
    parameters: object, source: keras.Operation | None, function: Callable | None = None
) -> Operation:
    """Returns the activation, or an opaque operation for a function that is not known.

    Args:
        parameters: The function, layer or operation that has the name and the parameters.
        source: The Keras operation of the call, None for a fused activation.
        function: What computes it, if not `parameters`.
    """
    if function is None:
        layer = isinstance(parameters, layers.Layer)
        function = Replay(parameters, ((Slot(0),), {})) if layer else parameters
    name = getattr(parameters, "__name__", type(parameters).__name__)
    name = ALIASES.get(_snake_case(name), _snake_case(name))
    if name not in KNOWN_ACTIVATIONS or not _is_theirs(parameters):
        operation = Opaque(function, name, source)
        if isinstance(parameters, layers.Layer):
            operation.layers = (parameters,)
        return operation
    nonnegative = keeps_sign = None
    if name == "relu":
        slope = getattr(parameters, "negative_slope", 0)
        threshold = getattr(parameters, "threshold", 0)
        nonnegative = not slope and threshold >= 0
        # Below the threshold, the slope starts at zero and leads down.
        keeps_sign = not (slope and threshold)
    activation = Activation(name, function, source, nonnegative, keeps_sign=keeps_sign)
    if isinstance(parameters, layers.Layer):
        activation.layers = (parameters,)
    return activation


def _is_theirs(function: object) -> bool:
    """Tells whether a function, layer or operation is that of Keras or TensorFlow.

    A user's own of the same name may compute something else.
    """
    named = function if hasattr(function, "__name__") else type(function)
    return str(named.__module__).split(".")[0] in ("keras", "tensorflow")


def _lookup(call: Call) -> Operation:
    return Lookup(call.operation)


def _ops(*names: str) -> list[type]:
    """Returns the classes behind functions of `keras.ops`, those that this Keras has."""
    modules = (keras.src.ops.numpy, keras.src.ops.nn, keras.src.ops.core)
    return [getattr(module, name) for name in names for module in modules if hasattr(module, name)]


def _classes(module: object, *names: str) -> list[type]:
    return [getattr(module, name) for name in names if hasattr(module, name)]


def _layers(*names: str) -> list[type]:
    return _classes(layers, *names)


RESHAPES = tuple(_layers("Reshape", "Flatten") + _ops("Reshape", "Squeeze", "ExpandDims"))

# What moves or joins elements along an axis, which must not be that of the samples.
ACROSS_AXES = tuple(
    _layers("Softmax", "Concatenate")
    + _ops("Concatenate")
    + _ops("Flip", "Roll", "Repeat", "Take", "Softmax", "LogSoftmax", "Split", "Sort", "Cumsum")
)

TILES, STACKS = tuple(_ops("Tile")), tuple(_ops("Stack"))

# Keras class -> what makes its canonical operation, and of which kind that usually is.
OPERATIONS: dict[type, Factory] = {}
KINDS: dict[type, type[Operation] | None] = {}


def _register(classes: Iterable[type], factory: Factory, kind: type[Operation] | None) -> None:
    OPERATIONS.update(dict.fromkeys(classes, factory))
    KINDS.update(dict.fromkeys(classes, kind))


_register(LINEAR_LAYERS, _linear, Linear)
_register([layers.BatchNormalization], _batch_norm, Affine)
_register([layers.Rescaling], _rescaling, Scaling)
_register([layers.Normalization], _normalization, Scaling)
_register([layers.Embedding], _lookup, Lookup)
_register(_layers("MaxPooling1D", "MaxPooling2D", "MaxPooling3D"), _max_pooling, MaxPooling)
_register(
    _layers("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"),
    _global_max,
    GlobalMaxPooling,
)
_register(
    _layers(
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
    ),
    _average,
    AveragePooling,
)
_register(
    _layers("AveragePooling1D", "AveragePooling2D", "AveragePooling3D"),
    _average_pooling,
    AveragePooling,
)
_register(_ops("Mean", "Sum"), _reduction, AveragePooling)
_register(_ops("Max"), _reduction, GlobalMaxPooling)
_register(_layers("UpSampling1D", "UpSampling2D", "UpSampling3D"), _up_sampling, Rearrangement)
_register(
    [
        *RESHAPES,
        *_layers(
            "ZeroPadding1D",
            "ZeroPadding2D",
            "ZeroPadding3D",
            "Cropping1D",
            "Cropping2D",
            "Cropping3D",
            "Permute",
            "RepeatVector",
        ),
        *_ops(
            "Transpose",
            "Swapaxes",
            "Moveaxis",
            "GetItem",
            "Flip",
            "Repeat",
            "Tile",
            "Roll",
            "Split",
            "Stack",
            "Take",
            "BroadcastTo",
            "Slice",
            "Unstack",
        ),
    ],
    _rearrangement,
    Rearrangement,
)
_register([layers.Concatenate, *_ops("Concatenate")], _concatenation, Concatenation)
_register([layers.Add], _sum(lambda count: [1.0] * count), Sum)
_register([layers.Subtract], _sum(lambda count: [1.0, -1.0]), Sum)
_register([layers.Average], _sum(lambda count: [1.0 / count] * count), Sum)
_register([layers.Multiply], _product, Product)
_register(_ops("Add"), _binary([1.0, 1.0]), Sum)
_register(_ops("Subtract"), _binary([1.0, -1.0]), Sum)
_register(_ops("Multiply"), _binary(None), Product)
_register(_ops("Divide", "TrueDivide"), _division, Scaling)
_register(_ops("Negative"), _scaling, Scaling)
_register(
    _layers(
        "Dropout",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "AlphaDropout",
        "GaussianDropout",
        "GaussianNoise",
        "ActivityRegularization",
        "Identity",
        "RandomBrightness",
        "RandomContrast",
        "RandomFlip",
        "RandomRotation",
        "RandomTranslation",
        "RandomZoom",
        "RandomShear",
    )
    + _ops("Copy"),
    _identity,
    IDENTITY,
)
_register(_ops("Cast"), _cast, IDENTITY)
_register([layers.Activation], _activation_layer, Activation)
_register(
    _layers("ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax")
    # What functions of `keras.activations` record.
    + _classes(keras.src.activations.activations, "ReLU", "Mish")
    + _ops(
        "Relu",
        "Relu6",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "Gelu",
        "Silu",
        "HardSilu",
        "Sigmoid",
        "HardSigmoid",
        "LogSigmoid",
        "Softplus",
        "Softsign",
        "Softmax",
        "LogSoftmax",
        "Tanh",
        "HardTanh",
        "TanhShrink",
        "SoftShrink",
        "HardShrink",
        "Squareplus",
        "Absolute",
        "Square",
    ),
    _activation_op,
    Activation,
)


def _pad_op(call: Call) -> Operation:
    constant = call.operation.mode == "constant"
    value = _leaves(call)[1:]
    return _rearrangement(call) if constant and not any(value) else opaque(call)


_register(_ops("Pad"), _pad_op, Rearrangement)


def _leaves(call: Call) -> list:
    """Returns the arguments that carry data: tensors (as slots) and constants, in order."""
    args, kwargs = call.arguments
    given = {key: value for key, value in kwargs.items() if key not in ("training", "mask")}
    leaves = keras.tree.flatten(args) + keras.tree.flatten(given)
    return [leaf for leaf in leaves if leaf is not None]


def listed_class(operation: keras.Operation, classes: Iterable[type]) -> type | None:
    """Returns the listed class of an operation.

    A subclass may compute something else, so only one that inherits what computes counts.
    """
    for cls in type(operation).__mro__:
        if cls in classes:
            parts = ("call", "convolution_op")
            own = type(operation)
            return cls if all(getattr(own, p, 0) is getattr(cls, p, 0) for p in parts) else None
    return None


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
