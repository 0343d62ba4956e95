"""Small networks with one piece each: every layer, merge, activation and operation."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

from tests.layer_zoo import ENTRIES
from tests.networks import set_random_weights

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
    _layer(layers.Reshape, SEQUENCE, (2, 9), id="reshape"),
    _layer(layers.Reshape, SEQUENCE, (-1, 2), id="reshape_inferred"),
    _layer(layers.Flatten, IMAGE, id="flatten"),
    _layer(layers.Permute, IMAGE, (3, 1, 2), id="permute"),
    _layer(layers.RepeatVector, (5,), 3, id="repeat_vector"),
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
            "log_sigmoid softplus softsign softmax tanh hard_tanh squareplus"
        ).split()
    ),
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
        ("getitem_slice", SEQUENCE, lambda h: h[:, 1:5:2], ()),
        ("getitem_index", IMAGE, lambda h: h[:, 2, ..., 0], ()),
        ("concatenate", SEQUENCE, lambda h: ops.concatenate([h, dense()(h)], axis=-1), ()),
        ("reshape", SEQUENCE, lambda h: ops.reshape(h, (-1, 9, 2)), ()),
        ("pad", SEQUENCE, lambda h: ops.pad(h, [[0, 0], [1, 2], [0, 0]]), (TAYLOR,)),
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
        ("multiply_tensors", SEQUENCE, lambda h: h * ops.sigmoid(dense(3)(h)), ()),
    ]
]

CONSERVED = [*LINEAR, *NORMALISATION, *POOLING, *STRUCTURE, *MERGES, *OPERATIONS]
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
