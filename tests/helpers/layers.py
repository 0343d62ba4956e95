"""Layers for tests: single linear ones, and small networks with one piece each.

`ENTRIES` are linear layers for comparisons with dense matrices, `CASES` networks of every layer,
merge, activation and operation.

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

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.helpers.networks import set_random_weights

# --- single linear layers -------------------------------------------------------------------------


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


ENTRIES = (
    # Dense: rank of the tensor with its batch axis
    _entry("dense_rank2", layers.Dense, (6,), 4),
    _entry("dense_rank2_no_bias", layers.Dense, (6,), 4, use_bias=False),
    _entry("dense_rank3", layers.Dense, (3, 4), 5),
    _entry("dense_rank4_no_bias", layers.Dense, (2, 3, 4), 3, use_bias=False),
    _entry("dense_rank4", layers.Dense, (2, 3, 4), 3),
    # EinsumDense
    _entry(
        "einsum_dense_last_axis",
        layers.EinsumDense,
        (3, 4),
        "abc,cd->abd",
        output_shape=(None, 5),
        bias_axes="d",
    ),
    _entry(
        "einsum_dense_two_axes",
        layers.EinsumDense,
        (3, 2, 4),
        "abcd,cde->abe",
        output_shape=(None, 5),
        bias_axes="e",
    ),
    _entry(
        "einsum_dense_per_position_no_bias",
        layers.EinsumDense,
        (3, 4),
        "abc,bcd->abd",
        output_shape=(3, 2),
    ),
    # Conv1D
    _entry("conv1d_valid", layers.Conv1D, (7, 2), 3, 3),
    _entry("conv1d_same_no_bias", layers.Conv1D, (7, 2), 3, 4, padding="same", use_bias=False),
    _entry("conv1d_same_strides", layers.Conv1D, (8, 2), 3, 3, strides=2, padding="same"),
    _entry("conv1d_valid_dilation", layers.Conv1D, (9, 2), 3, 3, dilation_rate=2),
    _entry("conv1d_causal", layers.Conv1D, (6, 2), 3, 3, padding="causal"),
    _entry(
        "conv1d_causal_dilation_no_bias",
        layers.Conv1D,
        (7, 2),
        3,
        3,
        padding="causal",
        dilation_rate=2,
        use_bias=False,
    ),
    _entry("conv1d_causal_strides", layers.Conv1D, (7, 2), 2, 3, strides=2, padding="causal"),
    _entry("conv1d_groups", layers.Conv1D, (6, 4), 6, 3, groups=2),
    # Conv2D
    _entry("conv2d_valid", layers.Conv2D, (4, 5, 2), 3, (3, 2)),
    _entry("conv2d_valid_no_bias", layers.Conv2D, (4, 5, 2), 3, 3, use_bias=False),
    _entry("conv2d_same", layers.Conv2D, (4, 5, 2), 3, 3, padding="same"),
    _entry("conv2d_valid_strides", layers.Conv2D, (6, 5, 2), 3, 3, strides=(2, 1)),
    _entry("conv2d_same_strides", layers.Conv2D, (5, 6, 2), 3, 3, strides=2, padding="same"),
    _entry(
        "conv2d_strides_beyond_kernel_no_bias",
        layers.Conv2D,
        (6, 5, 2),
        3,
        2,
        strides=3,
        use_bias=False,
    ),
    _entry("conv2d_valid_dilation", layers.Conv2D, (6, 5, 2), 2, 2, dilation_rate=(2, 3)),
    _entry(
        "conv2d_same_dilation_no_bias",
        layers.Conv2D,
        (5, 5, 2),
        2,
        3,
        padding="same",
        dilation_rate=2,
        use_bias=False,
    ),
    _entry("conv2d_groups", layers.Conv2D, (4, 4, 4), 4, 3, groups=2, padding="same"),
    _entry(
        "conv2d_groups_strides_no_bias",
        layers.Conv2D,
        (5, 4, 3),
        6,
        2,
        groups=3,
        strides=2,
        use_bias=False,
    ),
    _entry(
        "conv2d_channels_first",
        layers.Conv2D,
        (2, 4, 7),
        3,
        3,
        data_format="channels_first",
        flags=["needs_xla"],
    ),
    _entry(
        "conv2d_channels_first_same_strides",
        layers.Conv2D,
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
        layers.Conv2D,
        (4, 4, 3),
        4,
        3,
        groups=2,
        padding="same",
        use_bias=False,
        data_format="channels_first",
    ),
    # Conv3D
    _entry("conv3d_valid", layers.Conv3D, (3, 4, 3, 2), 2, 2),
    _entry(
        "conv3d_same_strides_no_bias",
        layers.Conv3D,
        (3, 4, 3, 2),
        2,
        (2, 3, 2),
        strides=(1, 2, 2),
        padding="same",
        use_bias=False,
    ),
    _entry("conv3d_valid_dilation", layers.Conv3D, (3, 4, 3, 2), 2, 2, dilation_rate=2),
    _entry("conv3d_groups", layers.Conv3D, (3, 2, 3, 4), 2, 2, groups=2),
    # transposed convolutions
    _entry("conv1d_transpose_valid", layers.Conv1DTranspose, (4, 3), 2, 3),
    _entry(
        "conv1d_transpose_same_strides",
        layers.Conv1DTranspose,
        (4, 3),
        2,
        3,
        strides=2,
        padding="same",
    ),
    _entry("conv2d_transpose_valid_strides", layers.Conv2DTranspose, (3, 4, 2), 3, 2, strides=2),
    _entry(
        "conv2d_transpose_same_no_bias",
        layers.Conv2DTranspose,
        (3, 4, 2),
        3,
        3,
        padding="same",
        use_bias=False,
    ),
    _entry(
        "conv2d_transpose_same_strides",
        layers.Conv2DTranspose,
        (3, 2, 3),
        2,
        3,
        strides=(2, 3),
        padding="same",
    ),
    _entry(
        "conv2d_transpose_same_output_padding",
        layers.Conv2DTranspose,
        (3, 3, 2),
        2,
        3,
        strides=2,
        padding="same",
        output_padding=0,
    ),
    _entry(
        "conv2d_transpose_dilation",
        layers.Conv2DTranspose,
        (3, 4, 2),
        2,
        2,
        dilation_rate=2,
        flags=["needs_xla"],
    ),
    _entry(
        "conv2d_transpose_channels_first",
        layers.Conv2DTranspose,
        (2, 3, 4),
        3,
        3,
        strides=2,
        data_format="channels_first",
        flags=["needs_xla"],
    ),
    _entry("conv3d_transpose_valid", layers.Conv3DTranspose, (2, 3, 2, 2), 2, 2),
    _entry(
        "conv3d_transpose_same_strides_no_bias",
        layers.Conv3DTranspose,
        (2, 2, 2, 2),
        2,
        3,
        strides=2,
        padding="same",
        use_bias=False,
    ),
    # depthwise convolutions
    _entry("depthwise_conv1d_valid", layers.DepthwiseConv1D, (6, 3), 3),
    _entry(
        "depthwise_conv1d_same_strides_no_bias",
        layers.DepthwiseConv1D,
        (7, 3),
        3,
        strides=2,
        padding="same",
        depth_multiplier=2,
        use_bias=False,
    ),
    _entry("depthwise_conv1d_dilation", layers.DepthwiseConv1D, (7, 3), 3, dilation_rate=2),
    _entry("depthwise_conv2d_valid_no_bias", layers.DepthwiseConv2D, (4, 5, 3), 3, use_bias=False),
    _entry(
        "depthwise_conv2d_same_strides",
        layers.DepthwiseConv2D,
        (4, 5, 2),
        3,
        strides=2,
        padding="same",
        depth_multiplier=2,
    ),
    _entry(
        "depthwise_conv2d_dilation",
        layers.DepthwiseConv2D,
        (5, 5, 2),
        3,
        padding="same",
        dilation_rate=2,
    ),
    _entry(
        "depthwise_conv2d_strides_dilation",
        layers.DepthwiseConv2D,
        (6, 6, 2),
        2,
        strides=2,
        dilation_rate=2,
    ),
    _entry(
        "depthwise_conv2d_unequal_strides",
        layers.DepthwiseConv2D,
        (6, 5, 2),
        3,
        strides=(2, 1),
        padding="same",
        flags=["needs_xla"],
    ),
    _entry(
        "depthwise_conv2d_channels_first",
        layers.DepthwiseConv2D,
        (2, 4, 5),
        3,
        depth_multiplier=2,
        data_format="channels_first",
    ),
    # separable convolutions
    _entry(
        "separable_conv1d_valid", layers.SeparableConv1D, (6, 2), 3, 3, flags=["composite_kernel"]
    ),
    _entry(
        "separable_conv1d_same_strides_no_bias",
        layers.SeparableConv1D,
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
        layers.SeparableConv2D,
        (4, 4, 2),
        3,
        3,
        padding="same",
        depth_multiplier=2,
        flags=["composite_kernel"],
    ),
    _entry(
        "separable_conv2d_valid_strides_no_bias",
        layers.SeparableConv2D,
        (5, 5, 2),
        3,
        3,
        strides=2,
        use_bias=False,
        flags=["composite_kernel"],
    ),
    _entry(
        "separable_conv2d_dilation",
        layers.SeparableConv2D,
        (5, 5, 2),
        3,
        2,
        dilation_rate=2,
        flags=["composite_kernel"],
    ),
)


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


# --- networks with one piece each -----------------------------------------------------------------

TAYLOR = "deep_taylor"


@dataclasses.dataclass(frozen=True)
class Case:
    """A piece of a network; without biases, all methods but `loses` conserve relevance.

    The model itself runs on a CPU by XLA alone where `needs_xla`; the analyzers run anyway.
    What alpha-beta loses where contributions have one sign, `test_layers.py` adds up.
    """

    id: str
    shape: tuple[int, ...]
    apply: Callable
    loses: tuple[str, ...] = ()
    needs_xla: bool = False
    tolerance: float = 1e-10


def _layer(cls, shape, *args, id=None, loses=(), case=None, **options):
    name = id or "-".join([cls.__name__, *(f"{k}={v}" for k, v in options.items())])
    options = {"dtype": "float64", **options}
    return Case(name, shape, lambda h: cls(*args, **options)(h), loses, **case or {})


def dense(units=4, **options):
    return layers.Dense(units, dtype="float64", **options)


SEQUENCE, IMAGE, VOLUME = (6, 3), (5, 6, 2), (4, 3, 4, 2)


def _zoo(entry, h):
    layer = entry.factory()
    shape = layer(np.zeros((1, *entry.input_shape))).shape[1:] if not entry.needs_xla else None
    y = layer(h)
    # The equation of EinsumDense leaves axes open.
    return layers.Reshape(shape, dtype="float64")(y) if None in y.shape[1:] else y


LINEAR = [
    Case(entry.id, entry.input_shape, functools.partial(_zoo, entry), needs_xla=entry.needs_xla)
    for entry in ENTRIES
]

NORMALISATION = [
    _layer(layers.BatchNormalization, SEQUENCE, id="batch_norm"),
    Case(
        "batch_norm_axis_1",
        IMAGE,
        lambda h: layers.BatchNormalization(axis=1, dtype="float64")(h),
    ),
    Case(
        "batch_norm_before_and_after",
        SEQUENCE,
        lambda h: layers.BatchNormalization(dtype="float64")(
            layers.Conv1D(3, 2, dtype="float64")(layers.BatchNormalization(dtype="float64")(h))
        ),
    ),
    Case(
        "batch_norm_without_scale_and_center",
        SEQUENCE,
        lambda h: layers.BatchNormalization(scale=False, center=False, dtype="float64")(dense()(h)),
    ),
    Case("rescaling", IMAGE, lambda h: layers.Rescaling(0.5, 0.25, dtype="float64")(h)),
    Case(
        "normalization",
        SEQUENCE,
        lambda h: layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 1, 9], dtype="float64")(h),
    ),
]

POOLING = []
for _rank, _shape in ((1, (7, 3)), (2, (5, 6, 2)), (3, (4, 3, 5, 2))):
    for _kind in ("Max", "Average"):
        _cls = getattr(layers, f"{_kind}Pooling{_rank}D")
        _more = {}
        if _rank == 3:
            # TensorFlow pools volumes on a CPU in float32 only; our own pooling does both.
            _more = {"dtype": "float32", "case": {"tolerance": 1e-6}}
        POOLING += [
            _layer(_cls, _shape, 2, **_more),
            _layer(_cls, _shape, 3, strides=2, padding="same", **_more),
            _layer(_cls, _shape, 2, strides=1, padding="valid", **_more),
        ]
        _cls = getattr(layers, f"Global{_kind}Pooling{_rank}D")
        POOLING += [_layer(_cls, _shape), _layer(_cls, _shape, keepdims=True)]

POOLING += [
    _layer(layers.AdaptiveAveragePooling1D, (7, 3), 3),
    _layer(layers.AdaptiveAveragePooling2D, (5, 6, 2), (3, 4)),
    _layer(layers.AdaptiveMaxPooling1D, (7, 3), 3),
    _layer(layers.AdaptiveMaxPooling2D, (5, 6, 2), (3, 4)),
]

STRUCTURE = [
    # w^2 at the next layer gives the padded zeros a share.
    _layer(layers.ZeroPadding1D, SEQUENCE, (1, 2), id="zero_padding_1d", loses=(TAYLOR,)),
    _layer(layers.ZeroPadding2D, IMAGE, ((1, 0), (2, 1)), id="zero_padding_2d", loses=(TAYLOR,)),
    _layer(layers.ZeroPadding3D, VOLUME, 1, id="zero_padding_3d", loses=(TAYLOR,)),
    _layer(layers.Cropping1D, SEQUENCE, (1, 2), id="cropping_1d"),
    _layer(layers.Cropping2D, IMAGE, ((1, 0), (2, 1)), id="cropping_2d"),
    _layer(layers.Cropping3D, VOLUME, 1, id="cropping_3d"),
    _layer(layers.UpSampling1D, SEQUENCE, 2, id="up_sampling_1d"),
    _layer(layers.UpSampling2D, IMAGE, (2, 3), id="up_sampling_2d"),
    # Keras interpolates in float32.
    Case(
        "up_sampling_2d_bilinear",
        IMAGE,
        lambda h: layers.UpSampling2D(2, interpolation="bilinear", dtype="float64")(h),
        tolerance=1e-6,
    ),
    _layer(layers.UpSampling3D, VOLUME, 2, id="up_sampling_3d"),
    _layer(layers.CenterCrop, IMAGE, 3, 4, id="center_crop"),
    _layer(layers.Reshape, SEQUENCE, (2, 9), id="reshape"),
    _layer(layers.Reshape, SEQUENCE, (-1, 2), id="reshape_inferred"),
    _layer(layers.Flatten, IMAGE, id="flatten"),
    _layer(layers.Permute, IMAGE, (3, 1, 2), id="permute"),
    _layer(layers.RepeatVector, (5,), 3, id="repeat_vector"),
]


# Keras interpolates in float32.
RESIZING = [
    Case(
        f"resizing_{interpolation}",
        IMAGE,
        lambda h, i=interpolation: layers.Resizing(7, 4, interpolation=i, dtype="float64")(h),
        tolerance=1e-6,
    )
    for interpolation in ("nearest", "bilinear", "bicubic")
]


def _merge(cls, count=2, **options):
    def apply(h):
        return cls(dtype="float64", **options)([dense()(h) for _ in range(count)])

    return apply


MERGES = [
    Case("add", SEQUENCE, _merge(layers.Add)),
    Case("add_three", SEQUENCE, _merge(layers.Add, 3)),
    Case("subtract", SEQUENCE, _merge(layers.Subtract)),
    Case("average", SEQUENCE, _merge(layers.Average, 3)),
    Case("multiply", SEQUENCE, _merge(layers.Multiply)),
    Case("dot", SEQUENCE, lambda h: layers.Dot(1, dtype="float64")([dense()(h), dense()(h)])),
    Case("concatenate", SEQUENCE, _merge(layers.Concatenate)),
    Case("concatenate_axis_1", SEQUENCE, _merge(layers.Concatenate, 3, axis=1)),
    Case(
        "squeeze_and_excitation",
        IMAGE,
        lambda h: layers.Multiply(dtype="float64")(
            [h, layers.Dense(2, "sigmoid", dtype="float64")(ops.mean(h, (1, 2), keepdims=True))]
        ),
    ),
    Case(
        "add_broadcasts",
        IMAGE,
        lambda h: layers.Add(dtype="float64")(
            [h, layers.GlobalAveragePooling2D(keepdims=True, dtype="float64")(h)]
        ),
    ),
]

IDENTITIES = [
    _layer(layers.Dropout, SEQUENCE, 0.5, id="dropout"),
    _layer(layers.SpatialDropout1D, SEQUENCE, 0.5, id="spatial_dropout_1d"),
    _layer(layers.SpatialDropout2D, IMAGE, 0.5, id="spatial_dropout_2d"),
    _layer(layers.AlphaDropout, SEQUENCE, 0.5, id="alpha_dropout"),
    _layer(layers.GaussianDropout, SEQUENCE, 0.5, id="gaussian_dropout"),
    _layer(layers.GaussianNoise, SEQUENCE, 0.5, id="gaussian_noise"),
    _layer(layers.ActivityRegularization, SEQUENCE, 0.1, id="activity_regularization"),
    _layer(layers.Identity, SEQUENCE, id="identity"),
    _layer(layers.Activation, SEQUENCE, "linear", id="activation_linear"),
]


def _activated(activation):
    return lambda h: activation(dense(6)(h))


ACTIVATIONS = [
    *(
        Case(f"{name}_fused", SEQUENCE, lambda h, name=name: dense(6, activation=name)(h))
        for name in (
            "relu relu6 leaky_relu elu selu celu gelu silu mish hard_silu sigmoid hard_sigmoid "
            "log_sigmoid softplus softsign softmax log_softmax tanh hard_tanh exponential"
        ).split()
    ),
    *(
        Case(f"ops.{name}", SEQUENCE, _activated(getattr(ops, name)))
        for name in (
            "relu relu6 leaky_relu elu selu celu gelu silu hard_silu sigmoid hard_sigmoid "
            "log_sigmoid softplus softsign softmax tanh hard_tanh squareplus exp expm1 sin cos "
            "sinh cosh arctan arcsinh erf cbrt"
        ).split()
    ),
    Case("ops.maximum_of_zero", SEQUENCE, _activated(lambda h: ops.maximum(h, 0.0))),
    Case("ops.minimum_of_constant", SEQUENCE, _activated(lambda h: ops.minimum(0.5, h))),
    Case("ops.clip", SEQUENCE, _activated(lambda h: ops.clip(h, -1.0, 0.5))),
    Case("ops.power", SEQUENCE, _activated(lambda h: h**3)),
    Case("ops.log_of_square", SEQUENCE, _activated(lambda h: ops.log(h**2 + 0.1))),
    *(
        Case(id_, SEQUENCE, lambda h, make=make: make()(dense(6)(h)))
        for id_, make in {
            "relu_layer": lambda: layers.ReLU(dtype="float64"),
            "relu_with_options": lambda: layers.ReLU(
                max_value=1.5, negative_slope=0.1, threshold=0.2, dtype="float64"
            ),
            "leaky_relu_layer": lambda: layers.LeakyReLU(negative_slope=0.2, dtype="float64"),
            "prelu": lambda: layers.PReLU(dtype="float64"),
            "prelu_shared_axes": lambda: layers.PReLU(shared_axes=[1], dtype="float64"),
            "elu_layer": lambda: layers.ELU(alpha=0.7, dtype="float64"),
            "softmax_layer": lambda: layers.Softmax(dtype="float64"),
            "softmax_layer_axis_1": lambda: layers.Softmax(axis=1, dtype="float64"),
            "activation_layer": lambda: layers.Activation("mish", dtype="float64"),
        }.items()
    ),
]

OPERATIONS = [
    Case(id_, shape, apply, loses)
    for id_, shape, apply, loses in [
        ("add_constant", SEQUENCE, lambda h: dense()(h) + 1.0, ()),
        ("constant_minus", SEQUENCE, lambda h: 1.0 - dense()(h), ()),
        ("divide_by_constant", IMAGE, lambda h: h / 255, ()),
        ("times_constant", IMAGE, lambda h: 2.0 * h, ()),
        ("times_array", SEQUENCE, lambda h: h * np.array([1.0, -2.0, 3.0]), ()),
        ("minus_array", SEQUENCE, lambda h: h - np.array([0.1, 0.2, 0.3]), ()),
        ("negative", SEQUENCE, lambda h: -h, ()),
        ("mean_spatial", IMAGE, lambda h: ops.mean(h, axis=(1, 2)), ()),
        ("mean_keepdims", IMAGE, lambda h: ops.mean(h, axis=-1, keepdims=True), ()),
        ("sum", SEQUENCE, lambda h: ops.sum(h, axis=1), ()),
        ("max", IMAGE, lambda h: ops.max(h, axis=(1, 2)), ()),
        ("max_keepdims", IMAGE, lambda h: ops.max(h, axis=2, keepdims=True), ()),
        ("min", IMAGE, lambda h: ops.min(h, axis=(1, 2)), ()),
        ("amin_keepdims", IMAGE, lambda h: ops.amin(h, axis=2, keepdims=True), ()),
        ("amax", IMAGE, lambda h: ops.amax(h, axis=-1), ()),
        ("getitem_slice", SEQUENCE, lambda h: h[:, 1:5:2], ()),
        ("getitem_index", IMAGE, lambda h: h[:, 2, ..., 0], ()),
        ("concatenate", SEQUENCE, lambda h: ops.concatenate([h, dense()(h)], axis=-1), ()),
        ("reshape", SEQUENCE, lambda h: ops.reshape(h, (-1, 9, 2)), ()),
        ("pad", SEQUENCE, lambda h: ops.pad(h, [[0, 0], [1, 2], [0, 0]]), (TAYLOR,)),
        ("pad_reflect", SEQUENCE, lambda h: ops.pad(h, [[0, 0], [1, 2], [0, 0]], "reflect"), ()),
        ("where", SEQUENCE, lambda h: ops.where(np.arange(3) == 1, h, dense(3)(h)), ()),
        ("transpose", IMAGE, lambda h: ops.transpose(h, (0, 3, 1, 2)), ()),
        ("swapaxes", IMAGE, lambda h: ops.swapaxes(h, 1, 3), ()),
        ("moveaxis", IMAGE, lambda h: ops.moveaxis(h, 1, -1), ()),
        ("expand_dims", SEQUENCE, lambda h: ops.expand_dims(h, 2), ()),
        ("squeeze", (6, 1, 2), lambda h: ops.squeeze(h, 2), ()),
        ("flip", SEQUENCE, lambda h: ops.flip(h, axis=1), ()),
        ("roll", SEQUENCE, lambda h: ops.roll(h, 2, axis=1), ()),
        ("repeat", SEQUENCE, lambda h: ops.repeat(h, 2, axis=1), ()),
        ("tile", SEQUENCE, lambda h: ops.tile(h, (1, 2, 1)), ()),
        ("take", SEQUENCE, lambda h: ops.take(h, [0, 3, 3], axis=1), ()),
        ("split", (4, 4), lambda h: ops.split(dense()(h), 2, axis=-1)[1], ()),
        ("stack", SEQUENCE, lambda h: ops.stack([h, dense(3)(h)], axis=2), ()),
        ("add_tensors", SEQUENCE, lambda h: ops.add(h, dense(3)(h)), ()),
        ("subtract_tensors", SEQUENCE, lambda h: h - dense(3)(h), ()),
        (
            "matmul",
            SEQUENCE,
            lambda h: ops.matmul(dense(3)(h), ops.swapaxes(dense(3)(h), 1, 2)),
            (),
        ),
        ("einsum", SEQUENCE, lambda h: ops.einsum("bti,bsi->bst", h, dense(3)(h)), ()),
        ("divide_tensors", SEQUENCE, lambda h: h / (1.5 + ops.softplus(dense(3)(h))), ()),
        ("logsumexp", SEQUENCE, lambda h: ops.logsumexp(h, axis=1), ()),
        ("matmul_constant", SEQUENCE, lambda h: ops.matmul(h, np.diag([1.0, -2.0, 3.0])), ()),
        ("multiply_tensors", SEQUENCE, lambda h: h * ops.sigmoid(dense(3)(h)), ()),
    ]
]

CONSERVED = [
    *LINEAR,
    *NORMALISATION,
    *POOLING,
    *STRUCTURE,
    *RESIZING,
    *MERGES,
    *OPERATIONS,
]
CASES = [*CONSERVED, *IDENTITIES, *ACTIVATIONS]


@functools.cache
def network(case):
    """Returns model and samples of a case: the piece, Flatten, Dense(3)."""
    generator = np.random.default_rng(sum(map(ord, case.id)))
    inputs = keras.Input(case.shape, dtype="float64")
    h = layers.Flatten(dtype="float64")(case.apply(inputs))
    model = keras.Model(inputs, dense(3)(h))
    for layer in model.layers:
        set_random_weights(layer, generator)
    return model, generator.normal(size=(3, *case.shape))


@contextlib.contextmanager
def without_biases(model):
    """Sets to zero what is added to weighted sums, and puts it back."""
    added = [w for w in model.weights if w.name in ("bias", "beta", "moving_mean")]
    values = [weight.numpy() for weight in added]
    for weight in added:
        weight.assign(np.zeros(weight.shape))
    try:
        yield
    finally:
        for weight, value in zip(added, values, strict=True):
            weight.assign(value)
