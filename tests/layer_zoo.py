"""Tiny linear Keras layers for tests that compare rules with dense matrices.

Every layer is float64, has no activation and at most 150 inputs, so that its dense form is exact
and quick. Kernels and biases are signed normal numbers of a seeded generator.

What a CPU runs (Keras 3.15, TensorFlow 2.21; eagerly and inside `tf.function` alike): all entries,
those with `needs_xla` by XLA alone. These are convolutions and transposed convolutions with
channels first, depthwise 2-D convolutions whose two strides differ, and transposed convolutions
with dilation. Grouped convolutions run everywhere because Keras compiles them by XLA itself, with
channels first too; for the same reason a vectorised map (`batch_jacobian`, `vectorized_map`) over
their gradient fails outside XLA. Left out, since Keras refuses to build them: Conv1D, 2D and 3D
with strides and dilation at once (depthwise and separable convolutions take both).
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class ZooEntry:
    """One layer of the zoo; `factory()` makes a fresh, unbuilt layer."""

    id: str
    factory: Callable[[], keras.Layer]
    input_shape: tuple[int, ...]
    needs_xla: bool = False
    # The dense form is that of the product of two kernels, with one bias at the end.
    composite_kernel: bool = False


def _entry(id, cls, input_shape, *args, flags=(), **kwargs):
    def factory():
        return cls(*args, dtype="float64", **kwargs)

    return ZooEntry(id, factory, input_shape, **{flag: True for flag in flags})


_layers = keras.layers

ENTRIES = (
    # Dense: rank of the tensor with its batch axis
    _entry("dense_rank2", _layers.Dense, (6,), 4),
    _entry("dense_rank2_no_bias", _layers.Dense, (6,), 4, use_bias=False),
    _entry("dense_rank3", _layers.Dense, (3, 4), 5),
    _entry("dense_rank4_no_bias", _layers.Dense, (2, 3, 4), 3, use_bias=False),
    _entry("dense_rank4", _layers.Dense, (2, 3, 4), 3),
    # EinsumDense
    _entry(
        "einsum_dense_last_axis",
        _layers.EinsumDense,
        (3, 4),
        "abc,cd->abd",
        output_shape=(None, 5),
        bias_axes="d",
    ),
    _entry(
        "einsum_dense_two_axes",
        _layers.EinsumDense,
        (3, 2, 4),
        "abcd,cde->abe",
        output_shape=(None, 5),
        bias_axes="e",
    ),
    _entry(
        "einsum_dense_per_position_no_bias",
        _layers.EinsumDense,
        (3, 4),
        "abc,bcd->abd",
        output_shape=(3, 2),
    ),
    # Conv1D
    _entry("conv1d_valid", _layers.Conv1D, (7, 2), 3, 3),
    _entry("conv1d_same_no_bias", _layers.Conv1D, (7, 2), 3, 4, padding="same", use_bias=False),
    _entry("conv1d_same_strides", _layers.Conv1D, (8, 2), 3, 3, strides=2, padding="same"),
    _entry("conv1d_valid_dilation", _layers.Conv1D, (9, 2), 3, 3, dilation_rate=2),
    _entry("conv1d_causal", _layers.Conv1D, (6, 2), 3, 3, padding="causal"),
    _entry(
        "conv1d_causal_dilation_no_bias",
        _layers.Conv1D,
        (7, 2),
        3,
        3,
        padding="causal",
        dilation_rate=2,
        use_bias=False,
    ),
    _entry("conv1d_causal_strides", _layers.Conv1D, (7, 2), 2, 3, strides=2, padding="causal"),
    _entry("conv1d_groups", _layers.Conv1D, (6, 4), 6, 3, groups=2),
    # Conv2D
    _entry("conv2d_valid", _layers.Conv2D, (4, 5, 2), 3, (3, 2)),
    _entry("conv2d_valid_no_bias", _layers.Conv2D, (4, 5, 2), 3, 3, use_bias=False),
    _entry("conv2d_same", _layers.Conv2D, (4, 5, 2), 3, 3, padding="same"),
    _entry("conv2d_valid_strides", _layers.Conv2D, (6, 5, 2), 3, 3, strides=(2, 1)),
    _entry("conv2d_same_strides", _layers.Conv2D, (5, 6, 2), 3, 3, strides=2, padding="same"),
    _entry(
        "conv2d_strides_beyond_kernel_no_bias",
        _layers.Conv2D,
        (6, 5, 2),
        3,
        2,
        strides=3,
        use_bias=False,
    ),
    _entry("conv2d_valid_dilation", _layers.Conv2D, (6, 5, 2), 2, 2, dilation_rate=(2, 3)),
    _entry(
        "conv2d_same_dilation_no_bias",
        _layers.Conv2D,
        (5, 5, 2),
        2,
        3,
        padding="same",
        dilation_rate=2,
        use_bias=False,
    ),
    _entry("conv2d_groups", _layers.Conv2D, (4, 4, 4), 4, 3, groups=2, padding="same"),
    _entry(
        "conv2d_groups_strides_no_bias",
        _layers.Conv2D,
        (5, 4, 3),
        6,
        2,
        groups=3,
        strides=2,
        use_bias=False,
    ),
    _entry(
        "conv2d_channels_first",
        _layers.Conv2D,
        (2, 4, 7),
        3,
        3,
        data_format="channels_first",
        flags=["needs_xla"],
    ),
    _entry(
        "conv2d_channels_first_same_strides",
        _layers.Conv2D,
        (2, 5, 4),
        3,
        3,
        strides=2,
        padding="same",
        data_format="channels_first",
        flags=["needs_xla"],
    ),
    _entry(
        "conv2d_channels_first_groups_no_bias",
        _layers.Conv2D,
        (4, 4, 3),
        4,
        3,
        groups=2,
        padding="same",
        use_bias=False,
        data_format="channels_first",
    ),
    # Conv3D
    _entry("conv3d_valid", _layers.Conv3D, (3, 4, 3, 2), 2, 2),
    _entry(
        "conv3d_same_strides_no_bias",
        _layers.Conv3D,
        (3, 4, 3, 2),
        2,
        (2, 3, 2),
        strides=(1, 2, 2),
        padding="same",
        use_bias=False,
    ),
    _entry("conv3d_valid_dilation", _layers.Conv3D, (3, 4, 3, 2), 2, 2, dilation_rate=2),
    _entry("conv3d_groups", _layers.Conv3D, (3, 2, 3, 4), 2, 2, groups=2),
    # transposed convolutions
    _entry("conv1d_transpose_valid", _layers.Conv1DTranspose, (4, 3), 2, 3),
    _entry(
        "conv1d_transpose_same_strides",
        _layers.Conv1DTranspose,
        (4, 3),
        2,
        3,
        strides=2,
        padding="same",
    ),
    _entry("conv2d_transpose_valid_strides", _layers.Conv2DTranspose, (3, 4, 2), 3, 2, strides=2),
    _entry(
        "conv2d_transpose_same_no_bias",
        _layers.Conv2DTranspose,
        (3, 4, 2),
        3,
        3,
        padding="same",
        use_bias=False,
    ),
    _entry(
        "conv2d_transpose_same_strides",
        _layers.Conv2DTranspose,
        (3, 2, 3),
        2,
        3,
        strides=(2, 3),
        padding="same",
    ),
    _entry(
        "conv2d_transpose_same_output_padding",
        _layers.Conv2DTranspose,
        (3, 3, 2),
        2,
        3,
        strides=2,
        padding="same",
        output_padding=0,
    ),
    _entry(
        "conv2d_transpose_dilation",
        _layers.Conv2DTranspose,
        (3, 4, 2),
        2,
        2,
        dilation_rate=2,
        flags=["needs_xla"],
    ),
    _entry(
        "conv2d_transpose_channels_first",
        _layers.Conv2DTranspose,
        (2, 3, 4),
        3,
        3,
        strides=2,
        data_format="channels_first",
        flags=["needs_xla"],
    ),
    _entry("conv3d_transpose_valid", _layers.Conv3DTranspose, (2, 3, 2, 2), 2, 2),
    _entry(
        "conv3d_transpose_same_strides_no_bias",
        _layers.Conv3DTranspose,
        (2, 2, 2, 2),
        2,
        3,
        strides=2,
        padding="same",
        use_bias=False,
    ),
    # depthwise convolutions
    _entry("depthwise_conv1d_valid", _layers.DepthwiseConv1D, (6, 3), 3),
    _entry(
        "depthwise_conv1d_same_strides_no_bias",
        _layers.DepthwiseConv1D,
        (7, 3),
        3,
        strides=2,
        padding="same",
        depth_multiplier=2,
        use_bias=False,
    ),
    _entry("depthwise_conv1d_dilation", _layers.DepthwiseConv1D, (7, 3), 3, dilation_rate=2),
    _entry("depthwise_conv2d_valid_no_bias", _layers.DepthwiseConv2D, (4, 5, 3), 3, use_bias=False),
    _entry(
        "depthwise_conv2d_same_strides",
        _layers.DepthwiseConv2D,
        (4, 5, 2),
        3,
        strides=2,
        padding="same",
        depth_multiplier=2,
    ),
    _entry(
        "depthwise_conv2d_dilation",
        _layers.DepthwiseConv2D,
        (5, 5, 2),
        3,
        padding="same",
        dilation_rate=2,
    ),
    _entry(
        "depthwise_conv2d_strides_dilation",
        _layers.DepthwiseConv2D,
        (6, 6, 2),
        2,
        strides=2,
        dilation_rate=2,
    ),
    _entry(
        "depthwise_conv2d_unequal_strides",
        _layers.DepthwiseConv2D,
        (6, 5, 2),
        3,
        strides=(2, 1),
        padding="same",
        flags=["needs_xla"],
    ),
    _entry(
        "depthwise_conv2d_channels_first",
        _layers.DepthwiseConv2D,
        (2, 4, 5),
        3,
        depth_multiplier=2,
        data_format="channels_first",
    ),
    # separable convolutions
    _entry(
        "separable_conv1d_valid", _layers.SeparableConv1D, (6, 2), 3, 3, flags=["composite_kernel"]
    ),
    _entry(
        "separable_conv1d_same_strides_no_bias",
        _layers.SeparableConv1D,
        (7, 2),
        3,
        3,
        strides=2,
        padding="same",
        depth_multiplier=2,
        use_bias=False,
        flags=["composite_kernel"],
    ),
    _entry(
        "separable_conv2d_same",
        _layers.SeparableConv2D,
        (4, 4, 2),
        3,
        3,
        padding="same",
        depth_multiplier=2,
        flags=["composite_kernel"],
    ),
    _entry(
        "separable_conv2d_valid_strides_no_bias",
        _layers.SeparableConv2D,
        (5, 5, 2),
        3,
        3,
        strides=2,
        use_bias=False,
        flags=["composite_kernel"],
    ),
    _entry(
        "separable_conv2d_dilation",
        _layers.SeparableConv2D,
        (5, 5, 2),
        3,
        2,
        dilation_rate=2,
        flags=["composite_kernel"],
    ),
)

LAYER_ZOO = [pytest.param(entry, id=entry.id) for entry in ENTRIES]


def make_model(entry, seed=0, nonnegative_input=False):
    """Returns `(model, layer, x)`: Functional model of the one layer, and two samples.

    `layer(x)` itself runs only where `entry.needs_xla` is false, see `runnable`.
    """
    rng = np.random.default_rng(seed)
    inputs = keras.Input(entry.input_shape, dtype="float64", name="input")
    layer = entry.factory()
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    x = rng.normal(size=(2, *entry.input_shape))
    return model, layer, np.abs(x) if nonnegative_input else x


def runnable(entry, function):
    """`function` of one tensor (a layer or model), compiled by XLA where the entry needs it."""
    return tf.function(function, jit_compile=True) if entry.needs_xla else function
