"""Images of another size: interpolation and cropping, which are linear in the elements."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfexplain.numerics import Tensor
from tfexplain.operations.base import Operation
from tfexplain.operations.calls import Call, Replay
from tfexplain.operations.opaque import Opaque
from tfexplain.operations.pooling import AveragePooling
from tfexplain.operations.structure import Rearrangement

# Numbers that are interpolated at once where weights are read off.
_AT_ONCE = 2**24


class Overshooting(AveragePooling):
    """A linear map with fixed weights, some of them negative: bicubic and Lanczos interpolation."""

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds for no input: next to a step such an interpolation overshoots."""
        return False


# What an interpolation does with the elements.
_KINDS: dict[str, type[AveragePooling] | type[Rearrangement]] = {
    "nearest": Rearrangement,
    "bilinear": AveragePooling,
    "area": AveragePooling,
    "bicubic": Overshooting,
    "lanczos3": Overshooting,
    "lanczos5": Overshooting,
}


def up_sampling(call: Call) -> Operation:
    """The layers UpSampling."""
    interpolation = getattr(call.operation, "interpolation", "nearest")
    if interpolation in ("nearest", "bilinear"):
        return _KINDS[interpolation].from_call(call)
    return _interpolating(call, interpolation)


def resizing(call: Call) -> Operation:
    """The layer Resizing and `keras.ops.image.resize`."""
    operation = call.operation
    # A number that fills what an image does not cover would be a bias.
    filled = operation.pad_to_aspect_ratio and operation.fill_value != 0
    return Opaque.from_call(call) if filled else _interpolating(call, operation.interpolation)


def center_crop(call: Call) -> Operation:
    """Crops, or interpolates where the image is smaller than what is asked for."""
    sizes = _sizes(call)
    if sizes is None:
        return Opaque.from_call(call)
    covers = sizes[0] >= call.operation.height and sizes[1] >= call.operation.width
    return Rearrangement.from_call(call) if covers else _interpolating(call, "bilinear")


def _interpolating(call: Call, interpolation: str) -> Operation:
    """Returns what an interpolation does with batches of images.

    Where their size is known it is a matrix along each of both axes, which runs in every precision
    and has a gradient: TensorFlow interpolates in float32 alone, and knows no gradient of some.
    """
    kind, sizes = _KINDS.get(interpolation), _sizes(call)
    antialias = getattr(call.operation, "antialias", False)
    if kind is None or len(call.inputs[0].shape) != 4:
        return Opaque.from_call(call)
    if issubclass(kind, Rearrangement):
        return kind.from_call(call)
    if sizes is None:
        replayed = interpolation in ("bilinear", "bicubic") and not antialias
        return kind.from_call(call) if replayed else Opaque.from_call(call)
    rows, columns = _matrices(call, *sizes)
    equation = "Hh,bhwc,Ww->bHWc" if _channels_last(call) else "Hh,bchw,Ww->bcHW"

    def function(x: Tensor) -> Tensor:
        return tf.einsum(equation, tf.constant(rows, x.dtype), x, tf.constant(columns, x.dtype))

    return kind(type(call.operation).__name__, function, call.operation)


def _channels_last(call: Call) -> bool:
    return call.operation.data_format == "channels_last"


def _sizes(call: Call) -> tuple[int, int] | None:
    """Returns the height and width of a batch of images; None where they are not known."""
    shape = call.inputs[0].shape
    height, width = shape[1:3] if _channels_last(call) else shape[2:4]
    return None if len(shape) != 4 or None in (height, width) else (height, width)


def _matrices(call: Call, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the matrices A and B of y = A x B^T, read off what Keras makes of rows and columns.

    Of a row i of ones it makes (A e_i) (B 1)^T, of a column (A 1) (B e_j)^T. At one place of an
    image of ones, both sums are known as a product.
    """
    replay, axis = Replay(call.operation, call.arguments), -1 if _channels_last(call) else 1

    def of(images: np.ndarray) -> np.ndarray:
        given = tf.constant(np.expand_dims(images, axis), "float32")
        return np.squeeze(np.asarray(replay(given), "float64"), axis)

    def of_each(size: int, along: int) -> np.ndarray:
        parts = []
        step = max(1, _AT_ONCE // (height * width))
        for start in range(0, size, step):
            ones = np.eye(size)[start : start + step]
            shape = [len(ones), 1, 1]
            shape[along] = size
            parts.append(of(np.broadcast_to(ones.reshape(shape), (len(ones), height, width))))
        return np.concatenate(parts)

    with tf.init_scope():
        whole = of(np.ones((1, height, width)))[0]
        row, column = np.unravel_index(np.argmax(whole), whole.shape)
        rows = of_each(height, 1)[:, :, column].T
        columns = of_each(width, 2)[:, row, :].T
    return rows, columns / whole[row, column]
