"""What becomes of each Keras layer and operation: one row of a table for each kind.

A new operation is a class of the family that fits (see `tfexplain.operations.base`) and one `Entry`
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import layers

from tfexplain.operations import (
    Activation,
    Affine,
    AveragePooling,
    Call,
    Choice,
    Concatenation,
    Condition,
    ConvolutionLinear,
    DenseLinear,
    EinsumLinear,
    GlobalMaxPooling,
    LogSumExp,
    Lookup,
    Masked,
    MaxPooling,
    Opaque,
    Operation,
    Product,
    Quotient,
    Rearrangement,
    Reshaping,
    Scaling,
    Scan,
    Sum,
    TensorProduct,
)
from tfexplain.operations.adaptive import AdaptiveMaxPooling, adaptive_averaging
from tfexplain.operations.calls import MaskGiven, listed_class
from tfexplain.operations.cells import scan_of
from tfexplain.operations.elementwise import named_activation, normalization, rescaling
from tfexplain.operations.functions import clip, power
from tfexplain.operations.linear import DepthwiseLinear, SeparableLinear, TransposedLinear
from tfexplain.operations.merges import Maximum, Minimum
from tfexplain.operations.pooling import (
    GlobalMinPooling,
    averaging,
    maximum_over_axes,
    minimum_over_axes,
    window_average,
)
from tfexplain.operations.products import mixes_samples, product
from tfexplain.operations.resizing import center_crop, resizing, up_sampling
from tfexplain.operations.structure import choosing, padding, pads_samples, renaming, stacking

IDENTITY = None
Factory = Callable[[Call], Operation | None]


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Args:
        classes: Classes of Keras layers and operations.
        kind: The canonical operation that they usually become; `IDENTITY` if they are left out.
        make: What makes the operation of a call, if not `kind.from_call`.
        crosses_samples: Tells whether a call mixes or moves samples although the batch axis seems
            to stay.
        reads_mask: Masks change what it computes at inference, as for everything `Opaque`.
    """

    classes: Sequence[type]
    kind: type[Operation] | None
    make: Factory | None = None
    crosses_samples: Callable[[Call], bool] = lambda call: False
    reads_mask: bool = False

    def operation(self, call: Call) -> Operation | None:
        """Returns the canonical operation of a call; `IDENTITY` if it is left out."""
        if self.make is not None:
            return self.make(call)
        return IDENTITY if self.kind is IDENTITY else self.kind.from_call(call)


def _ops(*names: str) -> list[type]:
    """Returns the classes behind functions of `keras.ops`, those that this Keras has."""
    modules = (keras.src.ops.numpy, keras.src.ops.nn, keras.src.ops.core, keras.src.ops.math)
    return [getattr(module, name) for name in names for module in modules if hasattr(module, name)]


def _classes(module: object, *names: str) -> list[type]:
    return [getattr(module, name) for name in names if hasattr(module, name)]


def _layers(*names: str, ranks: Sequence[int] = ()) -> list[type]:
    """Returns classes of layers, those that this Keras has; `name` and the rank and "D" of some."""
    return _classes(layers, *(f"{n}{rank}D" for n in names for rank in ranks) if ranks else names)


def _along_batch(call: Call) -> bool:
    """Tells whether an operation along an axis works along that of the samples."""
    axes, rank = getattr(call.operation, "axis", ()), len(call.inputs[0].shape)
    axes = [axes] if axes is None or isinstance(axes, int) else list(axes)
    return any(axis is None or axis % rank == 0 for axis in axes)


def _tiles_batch(call: Call) -> bool:
    """Tells whether samples are repeated."""
    repeats, rank = call.operation.repeats, len(call.inputs[0].shape)
    repeats = repeats if isinstance(repeats, tuple | list) else ()
    return len(repeats) >= rank and repeats[len(repeats) - rank] != 1


def unless_it_resizes(call: Call) -> Operation | None:
    """The identity, for an augmentation whose result has the shape of its input."""
    same = call.inputs[0].shape == call.outputs[0].shape
    return IDENTITY if same else Opaque.from_call(call)


def _resizes(call: Call) -> bool:
    """Tells whether a sample has another number of elements than before."""
    sizes: list[Any] = [node.shape[1:] for node in (call.inputs[0], call.outputs[0])]
    known = not any(None in part for part in sizes)
    return known and np.prod(sizes[0]) != np.prod(sizes[1])


TABLE = (
    # Linear layers and normalisations.
    Entry([layers.Dense], DenseLinear),
    Entry([layers.EinsumDense], EinsumLinear),
    Entry(_layers("Conv", ranks=(1, 2, 3)), ConvolutionLinear),
    Entry(_layers("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), TransposedLinear),
    Entry(_layers("DepthwiseConv", ranks=(1, 2)), DepthwiseLinear),
    Entry(_layers("SeparableConv", ranks=(1, 2)), SeparableLinear),
    Entry([layers.BatchNormalization], Affine),
    # Single elements and a constant.
    Entry([layers.Rescaling], Scaling, rescaling),
    Entry([layers.Normalization], Scaling, normalization),
    Entry(_ops("Negative"), Scaling),
    # Tokens.
    Entry([layers.Embedding], Lookup),
    # Poolings.
    Entry(_layers("MaxPooling", ranks=(1, 2, 3)), MaxPooling),
    Entry(_layers("GlobalMaxPooling", ranks=(1, 2, 3)), GlobalMaxPooling),
    Entry(_ops("Max", "Amax"), GlobalMaxPooling, maximum_over_axes),
    Entry(_ops("Min", "Amin"), GlobalMinPooling, minimum_over_axes),
    Entry([layers.GlobalAveragePooling1D], AveragePooling, reads_mask=True),
    Entry(_layers("GlobalAveragePooling", ranks=(2, 3)), AveragePooling),
    Entry(_layers("AveragePooling", ranks=(1, 2, 3)), AveragePooling, window_average),
    Entry(_ops("Mean", "Sum"), AveragePooling, averaging),
    Entry(_ops("Logsumexp"), LogSumExp, crosses_samples=_along_batch),
    Entry(_layers("AdaptiveMaxPooling", ranks=(1, 2, 3)), AdaptiveMaxPooling),
    Entry(_layers("AdaptiveAveragePooling", ranks=(1, 2, 3)), AveragePooling, adaptive_averaging),
    Entry(_layers("Resizing") + _classes(keras.src.ops.image, "Resize"), AveragePooling, resizing),
    # What moves elements.
    Entry(
        _layers("Reshape", "Flatten") + _ops("Reshape", "Squeeze", "ExpandDims"),
        Reshaping,
        crosses_samples=_resizes,
    ),
    Entry(_layers("UpSampling", ranks=(1, 2, 3)), Rearrangement, up_sampling),
    Entry(_layers("ZeroPadding", "Cropping", ranks=(1, 2, 3)), Rearrangement),
    Entry(_layers("CenterCrop"), Rearrangement, center_crop),
    Entry(_layers("Permute", "RepeatVector"), Rearrangement),
    Entry(
        _ops("Transpose", "Swapaxes", "Moveaxis", "GetItem", "BroadcastTo", "Slice", "Unstack"),
        Rearrangement,
    ),
    Entry(
        _ops("Flip", "Roll", "Repeat", "Take", "Split"),
        Rearrangement,
        crosses_samples=_along_batch,
    ),
    Entry(_ops("Tile"), Rearrangement, crosses_samples=_tiles_batch),
    Entry(_ops("Stack"), Rearrangement, stacking),
    Entry(_ops("Pad"), Rearrangement, padding, crosses_samples=pads_samples),
    Entry(_ops("Where"), Choice, choosing),
    Entry(
        _ops("Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual")
        + _ops("LogicalAnd", "LogicalOr", "LogicalXor", "LogicalNot"),
        Condition,
    ),
    Entry([layers.Concatenate, *_ops("Concatenate")], Concatenation, crosses_samples=_along_batch),
    # Recurrent layers.
    Entry(_layers("SimpleRNN", "LSTM", "GRU", "RNN"), Scan, scan_of, reads_mask=True),
    Entry(_layers("ConvLSTM", ranks=(1, 2, 3)), Scan, scan_of, reads_mask=True),
    # Merges of tensors.
    Entry([layers.Add, *_ops("Add")], Sum, Sum.of(lambda count: [1.0] * count)),
    Entry([layers.Subtract, *_ops("Subtract")], Sum, Sum.of(lambda count: [1.0, -1.0])),
    Entry([layers.Average], Sum, Sum.of(lambda count: [1.0 / count] * count)),
    Entry([layers.Multiply, *_ops("Multiply")], Product, reads_mask=True),
    Entry(_ops("Divide", "TrueDivide"), Quotient),
    Entry([layers.Maximum, *_ops("Maximum")], Maximum, reads_mask=True),
    Entry([layers.Minimum, *_ops("Minimum")], Minimum, reads_mask=True),
    # Products that sum over axes.
    Entry(
        [layers.Dot, *_ops("Matmul", "Einsum", "Dot", "Tensordot", "Inner")],
        TensorProduct,
        product,
        crosses_samples=mixes_samples,
    ),
    # What does nothing at inference.
    Entry(_layers("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"), IDENTITY),
    Entry(_layers("SpatialDropout", ranks=(1, 2, 3)), IDENTITY),
    Entry(_layers("ActivityRegularization", "Identity"), IDENTITY),
    Entry(
        _layers("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "RandomShear")
        + _layers("RandomPerspective", "RandomElasticTransform", "RandomErasing")
        + _layers("RandomBrightness", "RandomContrast", "RandomHue", "RandomSaturation")
        + _layers("RandomColorJitter", "RandomColorDegeneration", "RandomGrayscale")
        + _layers("RandomSharpness", "RandomGaussianBlur", "RandomPosterization", "RandomInvert")
        + _layers("Solarization", "AugMix", "CutMix", "MixUp", "RandAugment"),
        IDENTITY,
    ),
    Entry(_layers("RandomCrop"), IDENTITY, unless_it_resizes),
    Entry(_ops("Copy"), IDENTITY),
    Entry(_ops("Cast"), IDENTITY, renaming),
    # Non-linear functions of single elements, and softmax.
    Entry([layers.Activation], Activation, named_activation),
    Entry(_layers("ReLU", "LeakyReLU", "PReLU", "ELU"), Activation),
    # What functions of `keras.activations` record.
    Entry(_classes(keras.src.activations.activations, "ReLU", "Mish"), Activation),
    Entry(_ops("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu"), Activation),
    Entry(_ops("Silu", "HardSilu", "Sigmoid", "HardSigmoid", "LogSigmoid"), Activation),
    Entry(_ops("Softplus", "Softsign", "Squareplus", "Absolute", "Square"), Activation),
    Entry(_ops("Tanh", "HardTanh", "TanhShrink", "SoftShrink", "HardShrink"), Activation),
    Entry(_ops("Threshold", "SparsePlus", "SparseSigmoid"), Activation),
    Entry(_ops("Exp", "Expm1", "Exp2", "Log", "Log2", "Log10", "Log1p"), Activation),
    Entry(_ops("Sqrt", "Rsqrt", "Cbrt", "Reciprocal", "Abs", "Fabs"), Activation),
    Entry(_ops("Sin", "Cos", "Tan", "Sinh", "Cosh", "Sinc", "Arctan"), Activation),
    Entry(_ops("Arcsin", "Arccos", "Arcsinh", "Arccosh", "Arctanh"), Activation),
    Entry(_ops("Erf", "Erfc", "Erfinv"), Activation),
    Entry(_ops("Power"), Activation, power),
    Entry(_ops("Clip"), Activation, clip),
    Entry(
        _layers("Softmax") + _ops("Softmax", "LogSoftmax"),
        Activation,
        crosses_samples=_along_batch,
        reads_mask=True,
    ),
    # What masks do, where they are part of a layer.
    Entry([layers.Masking], Masked),
    Entry([MaskGiven], IDENTITY),
    # Only the gradient of these is known, as of everything that has no row.
    Entry(_ops("Sort", "Cumsum"), Opaque, crosses_samples=_along_batch),
)

# Layers that do at inference what the layer inside of them does.
WRAPPERS = (layers.SpectralNormalization,)

# Keras class -> its row.
OPERATIONS: dict[type, Entry] = {}
_OTHERS = Entry((), Opaque)


def register(entry: Entry) -> None:
    """Enters a row, which takes the place of earlier ones for the same classes."""
    OPERATIONS.update(dict.fromkeys(entry.classes, entry))


for _entry in TABLE:
    register(_entry)


def unwrapped(call: Call) -> Call:
    """Returns the call of the layer inside of a wrapper that only acts in training."""
    declared = getattr(call.operation, "relevance_policy", None) is not None
    # Of integers they make integers, whatever the layer inside returns.
    floating = all(node.floating for node in call.inputs)
    if declared or not floating or listed_class(call.operation, WRAPPERS) is None:
        return call
    return unwrapped(replace(call, operation=call.operation.layer))


def entry_of(operation: keras.Operation) -> Entry:
    """Returns the row of a Keras layer or operation; what none covers is opaque."""
    cls = listed_class(operation, OPERATIONS)
    return OPERATIONS[cls] if cls else _OTHERS
