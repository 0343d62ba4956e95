"""Turns a traced graph into an equal graph of canonical operations.

Fused activations are split off, identities dropped, batch normalisation folded into a neighbouring
linear layer, and a final softmax or sigmoid left out. Each step returns a new graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfexplain.errors import UnsupportedLayerError
from tfexplain.graph import Call, Graph, Node
from tfexplain.operations import (
    LINEAR_LAYERS,
    Activation,
    Affine,
    AveragePooling,
    Concatenation,
    ConvolutionLinear,
    EinsumLinear,
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
from tfexplain.operations.linear import DepthwiseLinear, SeparableLinear, TransposedLinear
from tfexplain.operations.pooling import channels_to_first, channels_to_last, pool

IDENTITY = None
Factory = Callable[[Call], Operation | None]

# --- what becomes of each Keras layer and operation -------------------------------------------


def _linear(call: Call) -> Operation:
    layer = call.operation
    if getattr(layer, "quantization_mode", None):
        return _opaque(call)
    return LINEAR_LAYERS[_listed_class(layer, LINEAR_LAYERS)](layer)


def _opaque(call: Call) -> Operation:
    return Opaque(_replay(call), type(call.operation).__name__, call.operation)


def _replay(call: Call) -> Replay:
    return Replay(call.operation, call.arguments)


def _rearrangement(call: Call) -> Operation:
    kind = Reshaping if _listed_class(call.operation, RESHAPES) else Rearrangement
    return kind(type(call.operation).__name__, _replay(call), call.operation)


def _average(call: Call) -> Operation:
    return AveragePooling(type(call.operation).__name__, _replay(call), call.operation)


def _average_pooling(call: Call) -> Operation:
    layer = call.operation
    last = layer.data_format == "channels_last"

    def function(x: tf.Tensor) -> tf.Tensor:
        y = x if last else channels_to_last(x)
        y = pool(tf.nn.avg_pool, y, layer.pool_size, layer.strides, layer.padding)
        return y if last else channels_to_first(y)

    return AveragePooling(type(layer).__name__, function, layer)


def _up_sampling(call: Call) -> Operation:
    nearest = getattr(call.operation, "interpolation", "nearest") == "nearest"
    return _rearrangement(call) if nearest else _average(call)


def _max_pooling(call: Call) -> Operation:
    layer = call.operation
    rank = len(layer.pool_size)
    return MaxPooling(
        type(layer).__name__,
        layer.pool_size,
        layer.strides if isinstance(layer.strides, tuple | list) else (layer.strides,) * rank,
        layer.padding,
        layer.data_format == "channels_last",
        layer,
    )


def _global_max(call: Call) -> Operation:
    layer = call.operation
    rank = len(call.inputs[0].shape)
    axes = range(1, rank - 1) if layer.data_format == "channels_last" else range(2, rank)
    return GlobalMaxPooling(type(layer).__name__, tuple(axes), _replay(call), layer)


def _reduction(call: Call) -> Operation:
    """`keras.ops.mean`, `sum` and `max`, if the batch axis stays."""
    axes = getattr(call.operation, "axis", None)
    rank = len(call.inputs[0].shape)
    axes = [axes] if isinstance(axes, int) else axes
    if axes is None or any(axis % rank == 0 for axis in axes):
        return _opaque(call)
    if isinstance(call.operation, keras.src.ops.numpy.Max):
        return GlobalMaxPooling("Max", tuple(axes), _replay(call), call.operation)
    return _average(call)


def _sum(coefficients: Callable[[int], list[float]]) -> Factory:
    def factory(call: Call) -> Operation:
        if not _same_rank(call):
            return _opaque(call)
        return Sum(type(call.operation).__name__, coefficients(len(_leaves(call))), call.operation)

    return factory


def _binary(coefficients: list[float] | None) -> Factory:
    """`a + b`, `a - b` and `a * b`; a constant makes it a scaling of single elements."""

    def factory(call: Call) -> Operation:
        leaves = _leaves(call)
        if all(isinstance(leaf, Slot) for leaf in leaves) and _same_rank(call):
            if coefficients is None:
                return Product(type(call.operation).__name__, call.operation)
            return Sum(type(call.operation).__name__, coefficients, call.operation)
        return _with_constant(call)

    return factory


def _product(call: Call) -> Operation:
    return Product("Multiply", call.operation) if _same_rank(call) else _opaque(call)


def _same_rank(call: Call) -> bool:
    """Merges of tensors of different rank broadcast in ways of their own."""
    return len({len(node.shape) for node in call.inputs}) == 1


def _with_constant(call: Call) -> Operation:
    """An elementwise operation of one tensor and a constant, such as `x / 255`."""
    same = len(call.inputs) == 1 and call.inputs[0].shape == call.outputs[0].shape
    constant_first = not isinstance(_leaves(call)[0], Slot)
    division = type(call.operation).__name__ in ("Divide", "TrueDivide")
    if not same or (division and constant_first):
        return _opaque(call)
    return Scaling(type(call.operation).__name__, _replay(call), call.operation)


def _division(call: Call) -> Operation:
    return _with_constant(call) if len(call.inputs) == 1 else _opaque(call)


def _scaling(call: Call) -> Operation:
    return Scaling(type(call.operation).__name__, _replay(call), call.operation)


def _rescaling(call: Call) -> Operation:
    layer = call.operation

    def function(x: tf.Tensor) -> tf.Tensor:
        # The layer computes in its own dtype; the analysis may ask for another one.
        scale, offset = (tf.constant(value, x.dtype) for value in (layer.scale, layer.offset))
        return x * scale + offset

    monotone = bool(np.all(np.asarray(layer.scale) >= 0) and np.all(np.asarray(layer.offset) >= 0))
    return Scaling("Rescaling", function, layer, monotone)


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
    return Affine(layer) if isinstance(layer.axis, int) else _opaque(call)


def _concatenation(call: Call) -> Operation:
    axis = getattr(call.operation, "axis", -1)
    if axis is None or axis % len(call.outputs[0].shape) == 0:
        return _opaque(call)
    if not all(isinstance(leaf, Slot) for leaf in _leaves(call)):
        return _opaque(call)
    if len(_leaves(call)) != len(call.inputs):
        return _opaque(call)
    return Concatenation(type(call.operation).__name__, axis, call.operation)


def _identity(call: Call) -> None:
    return IDENTITY


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
    return _activation(layer.activation, layer)


def _activation_op(call: Call) -> Operation:
    return _activation(call.operation, call.operation, _replay(call))


def _activation(
    parameters: object, source: keras.Operation | None, function: Callable | None = None
) -> Operation:
    """Returns the activation, or an opaque operation for a function that is not known.

    Args:
        parameters: The function, layer or operation that has the name and the parameters.
        source: The Keras operation of the call, None for a fused activation.
        function: What computes it, if not `parameters`.
    """
    function = parameters if function is None else function
    name = getattr(parameters, "__name__", type(parameters).__name__)
    name = ALIASES.get(_snake_case(name), _snake_case(name))
    if name not in KNOWN_ACTIVATIONS:
        operation = Opaque(function, name, source)
        if isinstance(parameters, layers.Layer):
            operation.layers = (parameters,)
        return operation
    nonnegative = None
    if name == "relu":
        slope = getattr(parameters, "negative_slope", 0)
        nonnegative = not slope and getattr(parameters, "threshold", 0) >= 0
    activation = Activation(name, function, source, nonnegative)
    if isinstance(parameters, layers.Layer):
        activation.layers = (parameters,)
    return activation


def _lookup(call: Call) -> Operation:
    return Lookup(call.operation)


def _ops(*names: str) -> list[type]:
    """Returns the classes behind functions of `keras.ops`, those that this Keras has."""
    modules = (keras.src.ops.numpy, keras.src.ops.nn, keras.src.ops.core)
    return [getattr(module, name) for name in names for module in modules if hasattr(module, name)]


def _layers(*names: str) -> list[type]:
    return [getattr(layers, name) for name in names if hasattr(layers, name)]


RESHAPES = tuple(_layers("Reshape", "Flatten") + _ops("Reshape", "Squeeze", "ExpandDims", "Ravel"))

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
_register([layers.Activation], _activation_layer, Activation)
_register(
    _layers("ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax")
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
    return _rearrangement(call) if constant and not any(value) else _opaque(call)


_register(_ops("Pad"), _pad_op, Rearrangement)


def _leaves(call: Call) -> list:
    """Returns the arguments that carry data: tensors (as slots) and constants, in order."""
    args, kwargs = call.arguments
    leaves = keras.tree.flatten(args) + [
        value for key, value in kwargs.items() if key not in ("training", "mask")
    ]
    return [leaf for leaf in leaves if leaf is not None]


def _listed_class(operation: keras.Operation, classes: Iterable[type]) -> type | None:
    """Returns the listed class of an operation.

    A subclass may compute something else, so only one that inherits `call` counts.
    """
    for cls in type(operation).__mro__:
        if cls in classes:
            return cls if type(operation).call is cls.call else None
    return None


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


# --- the canonizers -----------------------------------------------------------------------------


def canonize(graph: Graph, fold_batch_norm: bool = True) -> Graph:
    """Returns the equal graph of canonical operations, with signs of its tensors known.

    Args:
        graph: A traced graph.
        fold_batch_norm: Fold batch normalisation into a neighbouring linear layer.
    """
    graph = to_canonical(graph)
    if fold_batch_norm:
        graph = fold_batch_norms(graph)
    return analyse_signs(graph)


def to_canonical(graph: Graph) -> Graph:
    """Replaces Keras operations by canonical ones, splits activations off, drops identities."""
    renamed: dict[Node, Node] = {}
    calls: list[Call] = []
    for call in graph.calls:
        inputs = tuple(renamed.get(node, node) for node in call.inputs)
        call = replace(call, inputs=inputs)
        declared = getattr(call.operation, "relevance_policy", None)
        cls = _listed_class(call.operation, OPERATIONS)
        if declared == "pass" and len(inputs) == 1:
            label = type(call.operation).__name__
            operation = Activation(label, _replay(call), call.operation, joint=True)
        else:
            operation = OPERATIONS[cls](call) if cls else _opaque(call)
        if operation is IDENTITY:
            renamed[call.outputs[0]] = inputs[0]
            continue
        activation = None
        if isinstance(operation, Linear):
            activation = getattr(call.operation, "activation", None)
        if activation in (None, keras.activations.linear):
            calls.append(replace(call, operation=operation))
            continue
        between = Node(call.outputs[0].shape, call.outputs[0].dtype)
        calls.append(replace(call, operation=operation, outputs=(between,)))
        function = _activation(activation, None)
        calls.append(Call(f"{call.name}:{function.label}", function, (between,), call.outputs))
    return replace(
        graph,
        calls=tuple(calls),
        outputs=tuple(renamed.get(node, node) for node in graph.outputs),
        readouts={name: renamed.get(node, node) for name, node in graph.readouts.items()},
    )


def drop_output_activation(graph: Graph, output: Node) -> tuple[Graph, Node]:
    """Leaves out a softmax or sigmoid that makes `output`; returns the logits in its place."""
    call = graph.producer().get(output)
    if (
        call is None
        or not isinstance(call.operation, Activation)
        or call.operation.name not in ("softmax", "sigmoid")
        or graph.consumers()[output]
    ):
        return graph, output
    logits = call.inputs[0]
    readouts = {name: logits if node is output else node for name, node in graph.readouts.items()}
    return replace(
        graph, calls=tuple(c for c in graph.calls if c is not call), readouts=readouts
    ), logits


def fold_batch_norms(graph: Graph) -> Graph:
    """Folds batch normalisation into the linear layer before it, else into the one after it."""
    consumers, producer = graph.consumers(), graph.producer()
    outputs = set(graph.outputs)
    folded: dict[Call, Call | None] = {}
    merged: dict[Node, Node] = {}
    for call in graph.calls:
        if not isinstance(call.operation, Affine):
            continue
        norm = call.operation.source
        (source,), (target,) = call.inputs, call.outputs
        before = producer.get(source)
        before = folded.get(before, before)
        if (
            before is not None
            and isinstance(before.operation, Linear)
            and len(consumers[source]) == 1
            and source not in outputs
            and before.operation.norm_after is None
            and _on_channels(before.operation, norm, target)
        ):
            operation = type(before.operation)(
                before.operation.source, before.operation.norm_before, norm
            )
            original = producer[source]
            folded[original] = replace(before, operation=operation, outputs=(target,))
            folded[call] = None
            merged[source] = target
            continue
        after = consumers[target][0] if len(consumers[target]) == 1 else None
        if (
            after is not None
            and isinstance(after.operation, Linear)
            and target not in outputs
            and _pads_nothing(after.operation)
            and _on_channels(after.operation, norm, source)
        ):
            operation = type(after.operation)(after.operation.source, norm_before=norm)
            folded[after] = replace(after, operation=operation, inputs=(source,))
            folded[call] = None
            # The name of the normalisation means what the name of the layer means.
            merged[target] = graph.readouts.get(after.name, after.outputs[0])
    calls = [folded.get(call, call) for call in graph.calls]
    readouts = {}
    for name, node in graph.readouts.items():
        while node in merged:
            node = merged[node]
        readouts[name] = node
    return replace(
        graph, calls=tuple(call for call in calls if call is not None), readouts=readouts
    )


def _on_channels(operation: Linear, norm: layers.BatchNormalization, tensor: Node) -> bool:
    """Tells whether the normalised axis is the layer's channel axis."""
    if isinstance(operation, EinsumLinear):
        return False
    axis = norm.axis % len(tensor.shape)
    return axis == (len(tensor.shape) - 1 if operation.channels_last else 1)


def _pads_nothing(operation: Linear) -> bool:
    if isinstance(operation, SeparableLinear | TransposedLinear | EinsumLinear):
        return False
    if isinstance(operation, ConvolutionLinear | DepthwiseLinear):
        return operation.source.padding == "valid"
    return True


def analyse_signs(graph: Graph) -> Graph:
    """Notes for each call which of its inputs are >= 0 for certain, whatever the weights."""
    known: dict[Node, bool] = {}
    calls = []
    for call in graph.calls:
        signs = tuple(known.get(node, False) for node in call.inputs)
        calls.append(replace(call, nonnegative=signs))
        sign = call.operation.is_nonnegative(signs)
        known.update(dict.fromkeys(call.outputs, sign))
    return replace(graph, calls=tuple(calls))


def check_replayable(graph: Graph) -> None:
    """Refuses calls that cannot run again sample by sample, all in one message.

    Raises:
        UnsupportedLayerError: For masks, layers with a state of their own and results without a
            batch axis.
    """
    offenders = []
    for call in graph.calls:
        operation = call.operation
        source = operation.source if isinstance(operation, Operation) else operation
        if getattr(source, "mask_zero", False) or isinstance(source, layers.Masking):
            offenders.append(f"{call.name} ({type(source).__name__}): it makes a mask")
        elif any(node.batch not in (None, graph.inputs[0].batch) for node in call.outputs):
            offenders.append(f"{call.name} ({type(source).__name__}): its result has no batch axis")
    if offenders:
        raise UnsupportedLayerError(
            "These calls cannot be replayed in a reversed network: "
            + "; ".join(offenders)
            + ". Explain a copy of the model without masks (mask_zero=False); with "
            "a single floating input, the gradient methods take it as it is."
        )
