"""Which canonical operation each operation of TensorFlow is: one function for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfexplain.errors import Unopened, UnsupportedLayerError
from tfexplain.numerics import Tensor
from tfexplain.opening import affine, recognition
from tfexplain.opening.equations import attributes_of, equation_of
from tfexplain.opening.parts import Part
from tfexplain.opening.plans import Made
from tfexplain.opening.steps import Step, Value
from tfexplain.operations import (
    Activation,
    AveragePooling,
    Concatenation,
    ConvolutionLinear,
    DenseLinear,
    GlobalMaxPooling,
    Linear,
    Lookup,
    MaxPooling,
    Operation,
    Product,
    Quotient,
    Scaling,
    Sum,
    TensorProduct,
)
from tfexplain.operations.linear import DepthwiseLinear
from tfexplain.operations.merges import Maximum, Minimum
from tfexplain.operations.normalizations import Normalization
from tfexplain.operations.opened import (
    Moved,
    OpenedOpaque,
    Recoding,
    Reshaped,
    Shift,
    StopGradient,
    Transposed,
)
from tfexplain.operations.probing import probed
from tfexplain.operations.products import ConstantProduct
from tfexplain.operations.weights import Weight, Weights

# Names under which rules know functions of single elements.
ACTIVATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "LeakyRelu": "leaky_relu",
    "Exp": "exponential",
    "Abs": "absolute",
}
NO_GRADIENT = ("Floor", "Ceil", "Round", "Rint", "Sign", "FloorDiv", "FloorMod")
MOVES = (
    "StridedSlice Slice Pad PadV2 MirrorPad ConcatV2 Pack Unpack Split SplitV Tile BroadcastTo "
    "GatherV2 Gather GatherNd ReverseV2 ReverseSequence Roll SpaceToBatchND BatchToSpaceND "
    "SpaceToDepth DepthToSpace MatrixDiagPartV3 MatrixBandPart SelectV2 Select Fill "
    "InvertPermutation ResizeNearestNeighbor"
).split()
LINEAR = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")


def identity() -> Operation:
    """Returns what hands its input on."""
    return Scaling("Identity", tf.identity, keeps_sign=True)


class Planner:
    """Says how the values of a step are made.

    Args:
        part: All steps.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.normalizations = {n.y: n for n in recognition.normalizations(part)}

    def plan(self, step: Step) -> list[Any]:
        """Returns what makes the results of a step, in order.

        Raises:
            UnsupportedLayerError: If it mixes samples.
        """
        part = self.part
        if step.kind == "Keras":
            if not part.is_lookup(step):
                return [Made(identity(), list(step.inputs), list(step.outputs))]
            number = part.uncast(step.inputs[0])
            made = [Made(identity(), [number], list(step.outputs))]
            token = part.token_of(number)
            if token is None or token is number:
                return made
            recoding = Recoding(number.step.kind, part.function([number], [token]))
            return [Made(recoding, [token], [number]), *made]
        value = step.outputs[0]
        if value in self.normalizations:
            return [self._normalization(self.normalizations[value])]
        logits = recognition.logits_of(part, value)
        if logits is not None:
            function = part.function([value], [logits])
            return [Made(Activation("softmax", function), [logits], [value], kind="softmax")]
        element = recognition.element_of(part, value)
        if element is not None:
            return [self._function_of(value, element)]
        if step.kind in NO_GRADIENT:
            return [self._replayed(step, OpenedOpaque)]
        if part.is_lookup(step):
            return [self._lookup(step)]
        for kinds, plan in (
            (recognition.AFFINE, self._affine),
            (recognition.ELEMENTWISE, self._elementwise),
            (LINEAR, self._linear),
            (("Conv2D", "Conv3D", "DepthwiseConv2dNative"), self._linear),
            (("Mean", "Sum", "Max", "Min"), self._reduction),
            (("Cumsum", "ResizeBilinear"), self._average),
            (("Softmax", "LogSoftmax"), self._softmax),
            (("MaxPool", "MaxPool3D", "AvgPool", "AvgPool3D"), self._pooling),
            (("Reshape", "ExpandDims", "Squeeze"), self._reshape),
            (("Transpose",), self._transpose),
            (("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), self._batch_norm),
            (MOVES, self._move),
        ):
            if step.kind in kinds:
                return plan(step)
        return [self._replayed(step, OpenedOpaque)]

    # --- what is common ---

    def _replayed(
        self, step: Step, kind: Callable[..., Operation], inputs: list[Value] | None = None
    ) -> Made:
        """Returns an operation that runs a step as it is."""
        inputs = self.part.signals(step) if inputs is None else inputs
        operands = self.part.operands(step.outputs, inputs)
        function = self.part.function(step.outputs, [*inputs, *operands])
        return Made(kind(step.kind, function), inputs, list(step.outputs), operands)

    def _function_of(self, value: Value, element: Value) -> Made:
        """Returns one function of single elements."""
        operands = self.part.operands([value], [element], through=recognition.OF_ELEMENTS)
        function = self.part.function([value], [element, *operands], any_shape=True)
        name = None
        if not operands:
            name = probed(function, max(len(element.shape or ()), 1))
        operation = Activation(name or "function", function)
        operation.is_relu = name == "relu"
        if name is None:
            operation.label = _written(self.part, value, element)
        return Made(operation, [element], [value], operands, kind=name or "function")

    def _spread(self, source: Value, result: Value, others: Sequence[Value]) -> list[Made]:
        """Returns a copy of a value in the shape of a result; nothing where it has that already.

        The last of `outputs` of what is returned stands for the source.
        """
        if source.shape == result.shape and source.leads == result.leads:
            return []
        part = self.part
        # The shapes of all that is merged say how far a tensor is copied.
        inputs = [v for v in dict.fromkeys(others) if v is not source and not part.is_constant(v)]
        operands = part.operands([result], [source, *inputs])

        whole = part.function([result], [source, *inputs, *operands])

        def function(x: Tensor, *more: Tensor) -> Tensor:
            return tf.broadcast_to(x, tf.shape(whole(x, *more)))

        copy = Value(result.step, -1, source.dtype, result.shape, result.leads)
        part.kinds[copy] = part.kinds[source]
        return [Made(Moved("BroadcastTo", function), [source], [copy], [*inputs, *operands])]

    # --- single elements ---

    def _affine(self, step: Step) -> list[Made]:
        part, (value,) = self.part, step.outputs
        signals = part.signals(step)
        if len(signals) > 1 or len([v for v in step.inputs if part.is_signal(v)]) > 1:
            return self._merge(step)
        if step.kind == "Neg":
            return [self._replayed(step, Scaling)]
        (x,) = signals
        other = next(v for v in step.inputs if v is not x)
        if step.kind in ("RealDiv", "Div") and other is step.inputs[0]:
            return self._elementwise(step)
        adds = step.kind in ("AddV2", "Add", "BiasAdd") and part.is_constant(other)
        linear = self._linear_before(step, x) if adds else []
        # What is learned is a weight; scalings by numbers are units, and no parameters.
        if linear or not part.is_parameter(other):
            return linear or self._scaling(step, x)
        return self._shift(value)

    def _scaling(self, step: Step, x: Value) -> list[Made]:
        (value,) = step.outputs
        copies = self._spread(x, value, [x])
        x = copies[-1].outputs[0] if copies else x
        part, original = self.part, self.part.signals(step)[0]
        operands = part.operands([value], [original])
        function = part.function([value], [original, *operands])
        return [*copies, Made(Scaling(step.kind, function), [x], [value], operands)]

    def _shift(self, value: Value) -> list[Made]:
        """Returns the scale and shift of a chain of them."""
        part, chain = self.part, [value.step]
        x = part.signals(value.step)[0]
        while self._continues(x):
            chain.append(x.step)
            x = part.signals(x.step)[0]
        copies = self._spread(x, value, [x])
        inside = copies[-1].outputs[0] if copies else x

        def at(number: float) -> Weight:
            def function(dtype: Any) -> Tensor:
                return affine.through(part, chain, number, dtype)

            return function

        shifts = any(step.kind in ("AddV2", "Add", "BiasAdd", "Sub") for step in chain)
        scales = any(step.kind in ("Mul", "RealDiv", "Div", "Neg") for step in chain) or any(
            step.kind == "Sub" and part.is_constant(step.inputs[0]) for step in chain
        )

        def scale(dtype: Any) -> Tensor:
            return affine.factor(part, chain, dtype)

        operation = Shift("scale and shift", scale if scales else None, at(0) if shifts else None)
        return [*copies, Made(operation, [inside], [value], kind="affine")]

    def _continues(self, value: Value) -> bool:
        """Tells whether a value is one more scale or shift in front of others."""
        part, step = self.part, value.step
        if step.kind not in recognition.AFFINE or value in part.outputs:
            return False
        if len(part.readers[value]) != 1 or len(part.signals(step)) != 1:
            return False
        (x,) = part.signals(step)
        others = [v for v in step.inputs if v is not x]
        if len(step.inputs) - len(others) > 1 or x.shape != value.shape:
            return False
        if step.kind in ("RealDiv", "Div") and step.inputs[0] is not x:
            return False
        if value in self.normalizations or not all(map(part.is_constant, others)):
            return False
        # A bias belongs to the layer in front of it.
        bias = step.kind in ("AddV2", "Add", "BiasAdd")
        return not (bias and self._linear_before(step, x))

    def _merge(self, step: Step) -> list[Made]:
        """Returns a sum or product of several tensors."""
        (value,) = step.outputs
        made, inputs = [], []
        for x in step.inputs:
            if not self.part.is_signal(x):
                # More than two, some of them without relevance.
                return [self._replayed(step, OpenedOpaque)]
            copies = self._spread(x, value, step.inputs)
            made += copies
            inputs.append(copies[-1].outputs[0] if copies else x)
        operation = _merged(step, len(inputs))
        if operation is None:
            return [self._replayed(step, OpenedOpaque)]
        return [*made, Made(operation, inputs, [value])]

    def _elementwise(self, step: Step) -> list[Made]:
        part, (value,) = self.part, step.outputs
        signals = [v for v in step.inputs if part.is_signal(v)]
        if step.kind == "StopGradient":
            return [Made(StopGradient(), signals, [value])]
        if step.kind in ("SelectV2", "Select"):
            return self._move(step)
        if len(signals) > 1:
            return self._merge(step)
        (x,) = signals
        if x.shape != value.shape:
            return [self._replayed(step, OpenedOpaque)]
        operands = part.operands([value], [x])
        function = part.function([value], [x, *operands])
        known = ACTIVATIONS.get(step.kind)
        if known is None and step.kind in recognition.BINARY and not operands:
            return [self._function_of(value, x)]
        slope = step.attributes.get("alpha", 1)
        if known == "leaky_relu" and not 0 <= slope:
            known = None
        operation = Activation(known or step.kind.lower(), function)
        operation.is_relu = known == "relu"
        return [Made(operation, [x], [value], operands)]

    # --- linear layers ---

    def _linear_before(self, step: Step, x: Value) -> list[Made]:
        """Returns the linear layer to which a step adds its bias; nothing if there is none.

        Convolutions of sequences are those of images with one row, which is left out before the
        bias is added.
        """
        part, (value,) = self.part, step.outputs
        (bias,) = (v for v in step.inputs if v is not x)
        if part.readers[x] != [step] or x in part.outputs or value.shape != x.shape:
            return []
        squeezed: list[Made] = []
        if x.step.kind == "Squeeze":
            squeezed = [replace(self._reshape(x.step)[-1], outputs=[value], kind="Squeeze")]
            (inner,) = x.step.inputs
            same = inner.shape and x.shape and inner.shape[-1] == x.shape[-1]
            if part.readers[inner] != [x.step] or inner in part.outputs or not same:
                return []
            x = inner
        made = self._layer(x)
        if made is None or not isinstance(made.operation, Linear):
            return []
        sizes = bias.shape or ()
        channels = value.shape[-1] if value.shape else None
        if not sizes or sizes[-1] != channels or any(size != 1 for size in sizes[:-1]):
            return []
        weight = part.weight(bias)
        weights = made.operation.source
        if not isinstance(weights, Weights):
            return []
        weights.bias = lambda dtype: tf.reshape(weight(dtype), [-1])
        layer = Made(made.operation, made.inputs, [x if squeezed else value], kind=made.kind)
        return [layer, *squeezed]

    def _linear(self, step: Step) -> list[Made]:
        made = self._layer(step.outputs[0])
        return [made] if made is not None else [self._replayed(step, OpenedOpaque)]

    def _layer(self, value: Value) -> Made | None:
        """Returns the linear layer, or product of tensors, that makes a value."""
        step = value.step
        if step.kind == "Reshape":
            return self._tensordot(value)
        if step.kind in ("Conv2D", "Conv3D", "DepthwiseConv2dNative"):
            return self._convolution(value)
        if step.kind not in LINEAR:
            return None
        equation = equation_of(step)
        if equation is None:
            return None
        part, (first, second) = self.part, step.inputs
        left, right, result = equation
        if part.is_signal(first) and part.is_signal(second):
            keeps = left[0] == right[0] == result[0] and first.leads == second.leads
            if not keeps:
                return None
            product = TensorProduct(step.kind, f"{left},{right}->{result}")
            return Made(product, [first, second], [value], kind="product")
        x, letters, weight, others = (first, left, second, right)
        if not part.is_signal(first):
            x, letters, weight, others = second, right, first, left
        if letters[0] != result[0] or letters[0] in others:
            return None
        if not part.is_constant(weight):
            # What samples hold beside the signal, such as a matrix of who may see whom.
            return None
        kernel = part.weight(weight)
        plain = len(others) == 2 and letters[:-1] + others[1] == result and letters[-1] == others[0]
        if plain:
            weights = Weights("Dense", kernel)
            return Made(DenseLinear(weights), [x], [value], kind="dense")
        flipped = len(others) == 2 and letters[:-1] + others[0] == result
        if flipped and letters[-1] == others[1]:
            weights = Weights("Dense", lambda dtype: tf.transpose(kernel(dtype)))
            return Made(DenseLinear(weights), [x], [value], kind="dense")
        operation = ConstantProduct(step.kind, f"{letters},{others}->{result}", kernel)
        return Made(operation, [x], [value], kind="dense")

    def _tensordot(self, value: Value) -> Made | None:
        """Returns the Dense layer on the last axis that merges all others on its way."""
        part = self.part
        product = value.step.inputs[0]
        if product.step.kind != "MatMul" or part.readers[product] != [value.step]:
            return None
        rows = product.step.inputs[0]
        if rows.step.kind != "Reshape" or part.readers[rows] != [product.step]:
            return None
        x = rows.step.inputs[0]
        made = self._layer(product)
        if made is None or not part.is_signal(x) or x.shape is None or value.shape is None:
            return None
        if not isinstance(made.operation, DenseLinear):
            return None
        same = len(x.shape) == len(value.shape) and x.shape[:-1] == value.shape[:-1]
        weight = product.step.inputs[1].shape
        inner = weight[1 if product.step.attributes["transpose_b"] else 0] if weight else None
        width = inner == x.shape[-1] is not None
        return Made(made.operation, [x], [value], kind="dense") if same and width else None

    def _convolution(self, value: Value) -> Made | None:
        part, step = self.part, value.step
        x, kernel = step.inputs
        get = attributes_of(step)
        last = get("data_format", b"NHWC") in (b"NHWC", b"NDHWC")
        padding = get("padding", b"").decode().lower()
        if not part.is_signal(x) or not part.is_constant(kernel) or not last or not x.shape:
            return None
        if padding not in ("same", "valid") or kernel.shape is None or None in kernel.shape:
            return None
        depthwise = step.kind == "DepthwiseConv2dNative"
        channels, filters = x.shape[-1], kernel.shape[-2]
        if channels is None or filters is None:
            return None
        settings = {
            "rank": len(x.shape) - 2,
            "strides": tuple(get("strides")[1:-1]),
            "dilation_rate": tuple(get("dilations")[1:-1]),
            "padding": padding,
            "kernel_size": tuple(kernel.shape[:-2]),
            "data_format": "channels_last",
            "groups": 1 if depthwise else channels // filters,
        }
        weights = Weights(step.kind, part.weight(kernel), **settings)
        operation = DepthwiseLinear(weights) if depthwise else ConvolutionLinear(weights)
        return Made(operation, [x], [value])

    # --- reductions, poolings ---

    def _reduction(self, step: Step) -> list[Made]:
        part, x = self.part, step.inputs[0]
        axes = part.literal(step.inputs[1])
        rank = len(x.shape or ())
        if axes is None or not rank:
            return [self._replayed(step, OpenedOpaque)]
        places = sorted({int(axis) % rank for axis in np.ravel(axes)})
        if 0 in places:
            if x.leads:
                raise UnsupportedLayerError(f"it works across samples ({step.kind})")
            return [self._replayed(step, OpenedOpaque)]
        function = part.function(step.outputs, [x])
        operation: Operation
        if step.kind in ("Mean", "Sum"):
            operation = AveragePooling(step.kind, function)
        elif step.kind == "Max":
            operation = GlobalMaxPooling(step.kind, places, function, None)
        else:
            return [self._replayed(step, OpenedOpaque)]
        return [Made(operation, [x], list(step.outputs))]

    def _average(self, step: Step) -> list[Made]:
        """Returns a linear map whose weights are >= 0."""
        part, x = self.part, step.inputs[0]
        axis = part.literal(step.inputs[1]) if step.kind == "Cumsum" else np.int64(1)
        if axis is None or not part.is_constant(step.inputs[1]):
            return [self._replayed(step, OpenedOpaque)]
        if int(axis) % len(x.shape or (1,)) == 0:
            raise UnsupportedLayerError(f"it works across samples ({step.kind})")
        return [
            Made(AveragePooling(step.kind, part.function(step.outputs, [x])), [x], step.outputs)
        ]

    def _softmax(self, step: Step) -> list[Made]:
        (x,) = step.inputs
        if len(x.shape or ()) < 2:
            raise UnsupportedLayerError(f"it works across samples ({step.kind})")
        name = "softmax" if step.kind == "Softmax" else "log_softmax"
        function = self.part.function(step.outputs, [x])
        return [Made(Activation(name, function), [x], list(step.outputs))]

    def _pooling(self, step: Step) -> list[Made]:
        (x,) = step.inputs
        get = attributes_of(step)
        if get("data_format", b"NHWC") not in (b"NHWC", b"NDHWC"):
            return [self._replayed(step, OpenedOpaque)]
        size, strides = get("ksize")[1:-1], get("strides")[1:-1]
        padding = get("padding").decode().lower()
        outside = {get(name)[place] for name in ("ksize", "strides") for place in (0, -1)}
        if outside != {1} or padding not in ("same", "valid"):
            return [self._replayed(step, OpenedOpaque)]
        operation: Operation
        if step.kind.startswith("Max"):
            operation = MaxPooling(step.kind, size, strides, padding, True, None)
        else:
            operation = AveragePooling(step.kind, self.part.function(step.outputs, [x]))
        return [Made(operation, [x], list(step.outputs))]

    def _batch_norm(self, step: Step) -> list[Made]:
        part, (x, *weights) = self.part, step.inputs
        if step.attributes["is_training"] or not all(map(part.is_constant, weights)):
            raise UnsupportedLayerError("it normalises by the statistics of a batch")
        if step.attributes["data_format"] != b"NHWC":
            return [self._replayed(step, OpenedOpaque)]
        scale, offset, mean, variance = map(part.weight, weights)
        epsilon = step.attributes["epsilon"]

        def factor(dtype: Any) -> Tensor:
            return scale(dtype) * tf.math.rsqrt(variance(dtype) + epsilon)

        operation = Shift(
            "BatchNormalization", factor, lambda dtype: offset(dtype) - mean(dtype) * factor(dtype)
        )
        return [Made(operation, [x], step.outputs[:1], kind="affine")]

    # --- what moves ---

    def _reshape(self, step: Step) -> list[Made]:
        made = self._layer(step.outputs[0]) if step.kind == "Reshape" else None
        if made is not None:
            return [made]
        x = step.inputs[0]
        if not self.part.is_signal(x):
            return [self._replayed(step, OpenedOpaque)]
        return [self._replayed(step, Reshaped, [x])]

    def _transpose(self, step: Step) -> list[Made]:
        order = self.part.literal(step.inputs[1])
        if order is None or not self.part.is_signal(step.inputs[0]):
            return [self._replayed(step, Moved)]
        return [Made(Transposed([int(a) for a in order]), step.inputs[:1], list(step.outputs))]

    def _move(self, step: Step) -> list[Made]:
        part = self.part
        if step.kind == "ConcatV2":
            *parts, axis = step.inputs
            place = part.literal(axis)
            rank = len(step.outputs[0].shape or ())
            whole = all(map(part.is_signal, parts)) and len(set(parts)) == len(parts)
            if place is not None and whole and rank and int(place) % rank:
                operation = Concatenation("Concatenate", int(place), None)
                return [Made(operation, parts, list(step.outputs))]
        return [self._replayed(step, Moved)]

    # --- the rest ---

    def _lookup(self, step: Step) -> Made:
        part, (table, indices) = self.part, step.inputs[:2]
        axis = part.literal(step.inputs[2]) if step.kind == "GatherV2" else np.int64(0)
        if axis is None or int(axis) or step.attributes.get("batch_dims", 0):
            raise Unopened("it looks up along another axis than the first")
        token = part.token_of(indices) or indices
        recoded = None if token is indices else part.function([indices], [token])
        # Where a variable is read in place, its shape is not known here.
        rows = table.shape[0] if table.shape else None
        kernel = part.weight(table)
        if step.kind == "ResourceGather":
            dtype = step.attributes["dtype"]

            def kernel(dtype_: Any, handle: Any = table.step.held) -> Tensor:
                return tf.cast(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype), dtype_)

        weights = Weights("Embedding", embeddings=kernel, input_dim=rows)
        operation = Lookup(weights, recoded)
        return Made(operation, [token], list(step.outputs), kind="embedding")

    def _normalization(self, found: recognition.Normalization) -> Made:
        part = self.part
        operands = part.operands([found.y], [found.x, found.root])
        more = part.operands([found.statistic], [found.x])
        if more or part.operands([found.root], [found.statistic]):
            return self._replayed(found.y.step, OpenedOpaque)
        operation = Normalization(
            _label(part, found),
            statistic=part.function([found.statistic], [found.x]),
            deviation=part.function([found.root], [found.statistic]),
            divides=found.divides,
            result=part.function([found.y], [found.x, found.root, *operands]),
        )
        return Made(operation, [found.x], [found.y], operands, kind="normalization")


def _label(part: Part, found: recognition.Normalization) -> str:
    return "normalization"


def _merged(step: Step, count: int) -> Operation | None:
    """Returns the sum or product of several tensors that a step is; None if it is none."""
    if step.kind in ("AddV2", "Add", "AddN", "BiasAdd"):
        return Sum("Add", [1.0] * count, None)
    if step.kind == "Sub":
        return Sum("Subtract", [1.0, -1.0], None)
    if step.kind == "Mul":
        return Product("Multiply")
    if step.kind in ("RealDiv", "Div"):
        return Quotient(step.kind)
    if step.kind in ("Maximum", "Minimum"):
        return (Maximum if step.kind == "Maximum" else Minimum)(step.kind)
    return None


def _written(part: Part, value: Value, element: Value) -> str:
    """Returns the operations of a function of single elements, for printing."""
    kinds: list[str] = []
    waiting, seen = [value], {element}
    while waiting:
        current = waiting.pop(0)
        if current in seen or part.is_constant(current):
            continue
        seen.add(current)
        kinds.append(current.step.kind)
        waiting.extend(current.step.inputs)
    return " ".join(reversed(kinds[:6])) + (" ..." if len(kinds) > 6 else "")
