"""Every layer and operation: gradients against TensorFlow, relevance finite and conserved."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfexplain
from tests.layer_zoo import ENTRIES
from tfexplain import UnsupportedLayerError, UnsupportedModelError, create_analyzer
from tfexplain.reverse import start_relevance

# --- the cases -----------------------------------------------------------------------------------

# Epsilon small enough to be seen in no digit that is compared.
METHODS = {
    "lrp.epsilon": {"epsilon": 1e-15},
    "lrp.alpha_2_beta_1": {},
    "deep_taylor": {},
}
TAYLOR = "deep_taylor"


@dataclasses.dataclass(frozen=True)
class Case:
    """A piece of a network; without biases, all methods but `loses` conserve relevance.

    The model itself runs on a CPU by XLA alone where `needs_xla`; the analyzers run anyway.
    What alpha-beta loses where contributions have one sign, the ledger tells.
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


def _dense(units=4, **options):
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
        lambda h: layers.BatchNormalization(scale=False, center=False, dtype="float64")(
            _dense()(h)
        ),
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
        return cls(dtype="float64", **options)([_dense()(h) for _ in range(count)])

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
    return lambda h: activation(_dense(6)(h))


ACTIVATIONS = [
    *(
        Case(f"{name}_fused", SEQUENCE, lambda h, name=name: _dense(6, activation=name)(h))
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
        Case(id_, SEQUENCE, lambda h, make=make: make()(_dense(6)(h)))
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
        ("add_constant", SEQUENCE, lambda h: _dense()(h) + 1.0, ()),
        ("constant_minus", SEQUENCE, lambda h: 1.0 - _dense()(h), ()),
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
        ("concatenate", SEQUENCE, lambda h: ops.concatenate([h, _dense()(h)], axis=-1), ()),
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
        ("split", (4, 4), lambda h: ops.split(_dense()(h), 2, axis=-1)[1], ()),
        ("stack", SEQUENCE, lambda h: ops.stack([h, _dense(3)(h)], axis=2), ()),
        ("add_tensors", SEQUENCE, lambda h: ops.add(h, _dense(3)(h)), ()),
        ("subtract_tensors", SEQUENCE, lambda h: h - _dense(3)(h), ()),
        ("multiply_tensors", SEQUENCE, lambda h: h * ops.sigmoid(_dense(3)(h)), ()),
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
    model = keras.Model(inputs, _dense(3)(h))
    for layer in model.layers:
        set_random_weights(layer, generator)
    return model, generator.normal(size=(3, *case.shape))


def set_random_weights(layer, generator):
    for weight in layer.weights:
        value = generator.normal(size=weight.shape)
        if weight.name == "moving_variance":
            value = np.abs(value) + 0.3
        weight.assign(value)


def without_biases(model):
    """Sets to zero what is added to weighted sums; returns the biases to put back."""
    kept = {}
    for weight in model.weights:
        if weight.name in ("bias", "beta", "moving_mean"):
            kept[weight.path] = (weight, weight.numpy())
            weight.assign(np.zeros(weight.shape))
    return kept.values()


def tape_gradient(function, x, weights):
    """Gradient of sum(function(x) * weights) with respect to x."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(function(x) * tf.cast(weights, x.dtype))
    return tape.gradient(value, x).numpy()


def assert_same(found, expected, tolerance=1e-10):
    np.testing.assert_allclose(
        found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradient(case):
    model, x = network(case)
    function = tf.function(lambda x: model(x), jit_compile=True) if case.needs_xla else model
    found = create_analyzer("gradient", model).attribute(x, target="all")
    expected = [tape_gradient(function, x, row) for row in np.eye(3)]
    assert_same(found.relevance.values, np.stack(expected, axis=1), case.tolerance)
    assert_same(found.output.values, function(tf.constant(x)).numpy(), case.tolerance)


def eager_loss(analyzer, x):
    """What the ledger calls lost, summed over all calls; without tracing, which takes longest."""
    network = analyzer.network()
    records = network._records([tf.constant(x)])
    start = start_relevance(
        records[network.start_index], tf.ones([len(x), 1], tf.int32), analyzer.head
    )
    rows = network._ledger(records, start).values()
    return sum(np.broadcast_to(lost, start.shape[:2])[:, 0] for *_, lost in rows)


def check_relevance(model, x, loses=(), tolerance=1e-10, compiled=True):
    """Checks that all relevance arrives at the input, or where the ledger says it is lost."""
    for name, options in METHODS.items():
        analyzer = create_analyzer(name, model, **options)
        # Eager, which is quick for networks of this size.
        outputs, relevance = analyzer.explain([tf.constant(x)], tf.ones([len(x), 1], tf.int32))
        start, relevance = outputs.numpy()[:, 1], relevance.numpy()[:, 0]
        assert relevance.shape == x.shape and relevance.dtype == "float64"
        if compiled and name == "lrp.epsilon":
            assert_same(analyzer.analyze(x, target=1), relevance)
        assert np.isfinite(relevance).all(), name
        assert np.abs(relevance).max() > 0, name
        relevance = relevance.reshape(len(x), -1)
        sums, scale = relevance.sum(axis=1), np.abs(relevance).sum(axis=1) + np.abs(start)
        missing = start - sums
        if name == "lrp.alpha_2_beta_1" and (np.abs(missing) > tolerance * scale).any():
            missing -= eager_loss(analyzer, x)
        if name in loses:
            assert (np.abs(missing) > 1e-6 * scale).any(), f"{name} loses nothing"
        else:
            assert (np.abs(missing) <= tolerance * scale).all(), f"{name} loses {missing}"


@pytest.mark.parametrize("case", CONSERVED, ids=lambda case: case.id)
def test_relevance(case):
    model, x = network(case)
    biases = without_biases(model)
    try:
        # tests/test_rules.py compiles the rules of linear layers.
        check_relevance(model, x, case.loses, case.tolerance, compiled=case not in LINEAR)
    finally:
        for weight, value in biases:
            weight.assign(value)


def test_relevance_of_activations_and_identities():
    # Side by side in one network, which costs less than one network each.
    separate = [case for case in ACTIVATIONS if not case.id.endswith("_fused")]
    inputs = keras.Input(SEQUENCE, dtype="float64")
    h = layers.Concatenate(dtype="float64")([case.apply(inputs) for case in separate])
    for case in IDENTITIES:
        if case.shape == SEQUENCE:
            h = case.apply(h)
    model = keras.Model(inputs, _dense(3)(layers.Flatten(dtype="float64")(h)))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        set_random_weights(layer, generator)
    without_biases(model)
    check_relevance(model, generator.normal(size=(3, *SEQUENCE)))


def test_division_by_a_tensor_is_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(1.0 / inputs + layers.Dense(4)(inputs)))
    with pytest.raises(UnsupportedLayerError, match="[Dd]ivide"):
        create_analyzer("lrp.z", model)
    x = np.random.default_rng(0).uniform(1, 2, (3, 4)).astype("float32")
    found = create_analyzer("gradient", model).analyze(x, target=0)
    assert_same(found, tape_gradient(model, x, [1.0, 0.0]), 1e-5)


# --- sizes, formats and precisions ---------------------------------------------------------------


def _small_cnn(shape=(8, 8, 3), dtype=None, seed=0, final="softmax"):
    generator = np.random.default_rng(seed)
    model = keras.Sequential(
        [
            keras.Input(shape, dtype=None if dtype == "mixed_float16" else dtype, name="pixels"),
            layers.Conv2D(4, 3, padding="same", activation="relu", dtype=dtype, name="conv1"),
            layers.BatchNormalization(dtype=dtype, name="norm"),
            layers.Conv2D(4, 3, strides=2, dtype=dtype, name="conv2"),
            layers.Activation("relu", dtype=dtype, name="relu"),
            layers.MaxPooling2D(2, 1, dtype=dtype, name="pool"),
            layers.GlobalAveragePooling2D(dtype=dtype, name="average"),
            layers.Dense(5, activation="relu", dtype=dtype, name="hidden"),
            layers.Dense(3, activation=final, dtype=dtype, name="scores"),
        ]
    )
    for layer in model.layers:
        for weight in layer.weights:
            value = generator.normal(size=weight.shape) * (0.2 if weight.name == "bias" else 0.5)
            weight.assign(np.abs(value) + 0.3 if weight.name == "moving_variance" else value)
    # The hidden layer stays open.
    model.get_layer("hidden").bias.assign(np.full(5, 0.5))
    return model


@pytest.fixture(scope="module")
def cnn():
    return _small_cnn()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype("float32")


@pytest.mark.parametrize("name", ["gradient", "lrp.alpha_2_beta_1", "lrp.flat"])
def test_unknown_image_size(cnn, pixels, name):
    free = _small_cnn((None, None, 3))
    free.set_weights(cnn.get_weights())
    found = create_analyzer(name, free)
    assert_same(
        found.analyze(pixels, target=1),
        create_analyzer(name, cnn).analyze(pixels, target=1),
        1e-6,
    )
    larger = np.random.default_rng(3).normal(size=(2, 11, 9, 3)).astype("float32")
    sized = _small_cnn((11, 9, 3))
    sized.set_weights(cnn.get_weights())
    assert_same(
        found.analyze(larger, target=1),
        create_analyzer(name, sized).analyze(larger, target=1),
        1e-6,
    )


@pytest.mark.parametrize("name", ["gradient", "lrp.alpha_2_beta_1", "lrp.w_square"])
def test_unknown_sequence_length(name):
    def build(length):
        generator = np.random.default_rng(2)
        inputs = keras.Input((length, 4), dtype="float64")
        h = layers.Conv1D(5, 3, padding="same", activation="relu", dtype="float64")(inputs)
        h = layers.MaxPooling1D(3, 2, "same", dtype="float64")(h)
        h = layers.Add(dtype="float64")([h, layers.Conv1D(5, 1, dtype="float64")(h)])
        h = layers.Concatenate(axis=1, dtype="float64")([h, layers.ZeroPadding1D(1)(h)])
        h = layers.GlobalMaxPooling1D(dtype="float64")(h)
        model = keras.Model(inputs, _dense(3)(h))
        model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
        return model

    free = create_analyzer(name, build(None))
    for length in (4, 7):
        x = np.random.default_rng(length).normal(size=(3, length, 4))
        expected = create_analyzer(name, build(length)).analyze(x, target=2)
        assert_same(free.analyze(x, target=2), expected)


FORMATS = (
    "gradient",
    "guided_backprop",
    "lrp.epsilon",
    "lrp.alpha_2_beta_1",
    "lrp.gamma",
    "lrp.flat",
    "deep_taylor",
)


@pytest.fixture(scope="module")
def formats():
    """The same network with channels last and with channels first."""

    def build(form):
        first = form == "channels_first"
        inputs = keras.Input((2, 7, 6) if first else (7, 6, 2), dtype="float64")
        options = {"data_format": form, "dtype": "float64"}
        h = layers.ZeroPadding2D(((1, 0), (0, 1)), **options)(inputs)
        h = layers.Conv2D(4, 3, activation="relu", **options)(h)
        h = layers.MaxPooling2D(2, **options)(h)
        h = layers.DepthwiseConv2D(3, padding="same", **options)(h)
        h = layers.BatchNormalization(axis=1 if first else -1, dtype="float64")(h)
        h = layers.Activation("relu", dtype="float64")(h)
        h = layers.AveragePooling2D(2, 1, **options)(h)
        h = layers.BatchNormalization(axis=1 if first else -1, dtype="float64")(h)
        h = layers.Conv2D(3, 2, strides=2, padding="same", use_bias=False, **options)(h)
        pooled = layers.GlobalMaxPooling2D(**options)(h)
        mean = layers.GlobalAveragePooling2D(**options)(h)
        h = layers.Concatenate(dtype="float64")([pooled, mean])
        return keras.Model(inputs, _dense(3)(h))

    models = {form: build(form) for form in ("channels_last", "channels_first")}
    generator = np.random.default_rng(4)
    for layer in models["channels_last"].layers:
        set_random_weights(layer, generator)
    models["channels_first"].set_weights(models["channels_last"].get_weights())
    return models


@pytest.mark.parametrize("name", FORMATS)
def test_channels_first_equals_channels_last(formats, name):
    x = np.random.default_rng(5).normal(size=(3, 7, 6, 2))
    last = create_analyzer(name, formats["channels_last"]).analyze(x, target="all")
    moved = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    first = create_analyzer(name, formats["channels_first"]).analyze(moved, target="all")
    assert_same(np.moveaxis(first, 2, -1), last)


@pytest.mark.parametrize("name", ["gradient", "lrp.epsilon", "lrp.alpha_2_beta_1", "deep_taylor"])
def test_mixed_precision_is_explained_in_float32(cnn, pixels, name):
    mixed = _small_cnn(dtype="mixed_float16")
    assert mixed.get_layer("conv1").compute_dtype == "float16"
    mixed.set_weights(cnn.get_weights())
    found = create_analyzer(name, mixed).analyze(pixels, target=2)
    assert found.dtype == "float32"
    assert_same(found, create_analyzer(name, cnn).analyze(pixels, target=2), 1e-6)


@pytest.mark.parametrize("attention", [False, True], ids=["normalisation", "attention"])
def test_mixed_precision_of_opaque_layers(attention):
    def build(dtype):
        inputs = keras.Input((5, 4))
        h = layers.LayerNormalization(dtype=dtype)(layers.Dense(4, dtype=dtype)(inputs))
        if attention:
            h = layers.MultiHeadAttention(2, 3, dtype=dtype, name="attention")(h, h)
        return keras.Model(inputs, layers.Dense(2, dtype=dtype)(layers.Flatten(dtype=dtype)(h)))

    plain, mixed = build("float32"), build("mixed_float16")
    generator = np.random.default_rng(0)
    plain.set_weights([generator.normal(size=weight.shape) for weight in plain.weights])
    mixed.set_weights(plain.get_weights())
    x = generator.normal(size=(3, 5, 4)).astype("float32")
    found, expected = (
        create_analyzer("gradient", model).analyze(x, target=0) for model in (mixed, plain)
    )
    assert found.dtype == "float32"
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["gradient", "lrp.alpha_2_beta_1", "smoothgrad"])
def test_float64_of_a_float32_model(cnn, pixels, name):
    double = _small_cnn(dtype="float64")
    double.set_weights(cnn.get_weights())
    options = {"samples": 4} if name == "smoothgrad" else {}
    found = create_analyzer(name, cnn, dtype="float64", **options).analyze(pixels, target=0)
    assert found.dtype == "float64"
    expected = create_analyzer(name, double, **options).analyze(pixels, target=0)
    # The noise is drawn in float32 for both.
    assert_same(found, expected, 1e-12)
    narrow = create_analyzer(name, double, dtype="float32", **options).analyze(pixels, target=0)
    assert narrow.dtype == "float32"
    assert_same(narrow, expected, 1e-4)


def test_precision_of_a_model_without_weights():
    inputs = keras.Input((3, 2), dtype="float64")
    model = keras.Model(inputs, layers.Flatten(dtype="float64")(inputs))
    found = create_analyzer("gradient", model).analyze(np.ones((1, 3, 2)), target=4)
    assert found.dtype == "float64"
    np.testing.assert_array_equal(found.ravel(), np.eye(6)[4])


# --- several inputs and outputs ------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_inputs():
    """A model of a sequence and a vector, its inputs in the order (b_sequence, a_vector)."""
    sequence = keras.Input((4, 3), dtype="float64", name="b_sequence")
    vector = keras.Input((5,), dtype="float64", name="a_vector")
    h = layers.Flatten(dtype="float64")(
        layers.Conv1D(4, 2, activation="relu", dtype="float64")(sequence)
    )
    h = layers.Concatenate(dtype="float64")([h, _dense(4, activation="relu")(vector)])
    outputs = _dense(3)(h)
    as_list = keras.Model([sequence, vector], outputs)
    as_dict = keras.Model({"b_sequence": sequence, "a_vector": vector}, outputs)
    generator = np.random.default_rng(6)
    as_list.set_weights([generator.normal(size=weight.shape) for weight in as_list.weights])
    x = [generator.normal(size=(3, 4, 3)), generator.normal(size=(3, 5))]
    return as_list, as_dict, x


INPUT_METHODS = {
    "gradient": {},
    "input_t_gradient": {},
    "integrated_gradients": {"steps": 8},
    "smoothgrad": {"samples": 3},
    "lrp.epsilon": {},
    "lrp.alpha_2_beta_1": {},
    "deep_taylor": {},
    "lrp.contrastive": {},
}


@pytest.mark.parametrize("name", INPUT_METHODS)
def test_several_inputs(two_inputs, name):
    as_list, as_dict, x = two_inputs
    named = {"b_sequence": x[0], "a_vector": x[1]}
    options = INPUT_METHODS[name]
    analyzer = create_analyzer(name, as_list, **options)
    found = analyzer.analyze(x, target=1)
    assert isinstance(found, list)
    assert [part.shape for part in found] == [(3, 4, 3), (3, 5)]
    assert all(np.abs(part).max() > 0 for part in found)
    by_name = analyzer.analyze(named, target=1)
    assert list(by_name) == ["b_sequence", "a_vector"] or set(by_name) == set(named)
    other = create_analyzer(name, as_dict, **options)
    for key, part in zip(("b_sequence", "a_vector"), found, strict=True):
        np.testing.assert_array_equal(by_name[key], part)
        if name != "smoothgrad":  # its draws are keyed by the place of the input
            assert_same(other.analyze(named, target=1)[key], part, 1e-12)
    everything = analyzer.analyze(x, target="all")
    assert [part.shape for part in everything] == [(3, 3, 4, 3), (3, 3, 5)]
    for part, whole in zip(found, everything, strict=True):
        assert_same(whole[:, 1], part, 1e-12)


def test_several_inputs_gradient_is_that_of_tensorflow(two_inputs):
    model, _, x = two_inputs
    tensors = [tf.constant(part) for part in x]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = tf.reduce_sum(model(tensors)[:, 2])
    expected = tape.gradient(value, tensors)
    found = create_analyzer("gradient", model).analyze(x, target=2)
    for part, reference in zip(found, expected, strict=True):
        assert_same(part, reference.numpy())
    sent = create_analyzer("gradient", model).propagate(x, np.tile([[[0, 0, 1.0]]], (3, 1, 1)))
    assert set(sent) == {"b_sequence", "a_vector"}
    assert_same(sent["a_vector"][:, 0], expected[1].numpy())


@pytest.fixture(scope="module")
def two_outputs():
    inputs = keras.Input((5, 2), dtype="float64")
    h = layers.Conv1D(4, 3, activation="relu", dtype="float64", name="trunk")(inputs)
    steps = layers.Dense(3, activation="softmax", dtype="float64", name="steps")(h)
    score = _dense(1, activation="sigmoid", name="score")(layers.Flatten(dtype="float64")(h))
    model = keras.Model(inputs, [steps, score])
    generator = np.random.default_rng(7)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    # The same without the final activations, which are left out by default.
    plain = keras.models.clone_model(model)
    plain.get_layer("steps").activation = plain.get_layer("score").activation = (
        keras.activations.linear
    )
    plain.set_weights(model.get_weights())
    return model, plain, generator.normal(size=(3, 5, 2))


@pytest.mark.parametrize("name", ["gradient", "lrp.epsilon", "deep_taylor", "smoothgrad"])
def test_several_outputs(two_outputs, name):
    model, plain, x = two_outputs
    options = {"samples": 3} if name == "smoothgrad" else {}
    for index, key in enumerate(("steps", "score")):
        alone = keras.Model(plain.inputs, plain.outputs[index])
        expected = create_analyzer(name, alone, **options).analyze(x, target=0)
        for output in (key, index):
            found = create_analyzer(name, model, output=output, **options).analyze(x, target=0)
            assert_same(found, expected)


def test_targets_of_outputs_of_rank_three(two_outputs):
    model, plain, x = two_outputs
    analyzer = create_analyzer("gradient", model, output="steps")
    by_tuple = analyzer.analyze(x, target=(1, 2))
    weights = np.zeros((3, 3))
    weights[1, 2] = 1
    assert_same(by_tuple, tape_gradient(lambda x: plain(x)[0], x, weights))
    np.testing.assert_array_equal(analyzer.analyze(x, target=5), by_tuple)
    np.testing.assert_array_equal(analyzer.analyze(x, target=[(1, 2), (1, 2), 5]), by_tuple)
    mixed = analyzer.analyze(x, target=[(0, 0), (1, 2), (2, 1)])
    np.testing.assert_array_equal(mixed[1], by_tuple[1])
    everything = analyzer.analyze(x, target="all")
    assert everything.shape == (3, 9, 5, 2)
    for sample, flat in enumerate((0, 5, 7)):
        assert_same(everything[sample, flat], mixed[sample], 1e-12)


def test_single_logit_keeps_its_sign(two_outputs):
    model, plain, x = two_outputs
    analyzer = create_analyzer("lrp.z", model, output="score", bias="ignore")
    logit = plain(x)[1].numpy()[:, 0]
    np.testing.assert_allclose(analyzer.outputs(x)[:, 0], logit, rtol=1e-12)
    ledger = analyzer.ledger(x)
    np.testing.assert_allclose(ledger.received[0], logit, rtol=1e-12)


def test_kept_output_activation(two_outputs):
    model, _, x = two_outputs
    analyzer = create_analyzer("gradient", model, output="score", output_activation="keep")
    assert_same(analyzer.outputs(x), model(x)[1].numpy())
    assert_same(analyzer.analyze(x), tape_gradient(lambda x: model(x)[1], x, np.ones(1)))


# --- integer inputs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens():
    """A text model, the same model behind its embedding, and tokens."""
    inputs = keras.Input((6,), dtype="int32", name="tokens")
    embedding = layers.Embedding(11, 4, dtype="float64", name="embedding")
    vectors = keras.Input((6, 4), dtype="float64")
    convolution = layers.Conv1D(5, 3, activation="relu", dtype="float64", name="convolution")
    scores = _dense(3, name="scores")

    def tail(h):
        return scores(layers.GlobalMaxPooling1D(dtype="float64")(convolution(h)))

    model = keras.Model(inputs, tail(embedding(inputs)))
    behind = keras.Model(vectors, tail(vectors))
    generator = np.random.default_rng(8)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    x = generator.integers(0, 11, (3, 6))
    return model, behind, x, embedding.embeddings.numpy()[x]


TOKEN_METHODS = {
    "gradient": {},
    "input_t_gradient": {},
    "integrated_gradients": {"steps": 8},
    "smoothgrad": {"samples": 4},
    "lrp.epsilon": {},
    "lrp.z_plus": {},
    "lrp.alpha_2_beta_1": {},
}


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_relevance_of_a_token_is_the_sum_over_its_vector(tokens, name):
    model, behind, x, vectors = tokens
    options = TOKEN_METHODS[name]
    found = create_analyzer(name, model, **options).analyze(x, target="all")
    assert found.shape == (3, 3, 6) and found.dtype == "float64"
    expected = create_analyzer(name, behind, **options).analyze(vectors, target="all")
    assert_same(found, expected.sum(axis=-1))


def test_token_gradient_is_that_of_tensorflow(tokens):
    model, behind, x, vectors = tokens
    found = create_analyzer("gradient", model).analyze(x, target=1)
    assert_same(found, tape_gradient(behind, vectors, [0.0, 1, 0]).sum(axis=-1))


def test_embedding_at_other_precision(tokens):
    model, _, x, _ = tokens
    wide = create_analyzer("lrp.epsilon", model).analyze(x, target=0)
    narrow = create_analyzer("lrp.epsilon", model, dtype="float32").analyze(x, target=0)
    assert narrow.dtype == "float32"
    assert_same(narrow, wide, 1e-5)


# --- what only gradients explain -----------------------------------------------------------------


@pytest.fixture(scope="module")
def recurrent():
    inputs = keras.Input((6, 3), dtype="float64")
    h = layers.Dense(4, dtype="float64")(inputs)
    h = layers.LayerNormalization(dtype="float64", name="norm")(h)
    h = layers.MultiHeadAttention(2, 3, dtype="float64", name="attention")(h, h)
    h = layers.LSTM(4, return_sequences=True, dtype="float64", name="lstm")(h)
    h = layers.Bidirectional(layers.GRU(3, dtype="float64"), dtype="float64", name="both")(h)
    model = keras.Model(inputs, layers.Dense(2, dtype="float64")(h))
    return model, np.random.default_rng(9).normal(size=(3, 6, 3))


def test_gradient_family_explains_recurrence_and_attention(recurrent):
    model, x = recurrent
    expected = np.stack([tape_gradient(model, x, row) for row in np.eye(2)], axis=1)
    gradient = create_analyzer("gradient", model).analyze(x, target="all")
    assert_same(gradient, expected)
    product = create_analyzer("input_t_gradient", model).analyze(x, target=0)
    assert_same(product, x * expected[:, 0])
    # A short path, along which the outputs are smooth.
    baseline = 0.9 * x
    integrated = create_analyzer("integrated_gradients", model, steps=32, baseline=baseline)
    sums = integrated.analyze(x, target=0).reshape(3, -1).sum(axis=1)
    np.testing.assert_allclose(sums, (model(x) - model(baseline))[:, 0], rtol=1e-8, atol=1e-10)
    smooth = create_analyzer("smoothgrad", model, samples=2, noise_scale=0.0)
    assert_same(smooth.analyze(x, target=1), expected[:, 1])


def test_lrp_refuses_recurrence_and_names_every_call(recurrent):
    model, _ = recurrent
    with pytest.raises(UnsupportedLayerError) as caught:
        create_analyzer("lrp.epsilon", model)
    for name in ("norm", "attention", "lstm", "both"):
        assert name in str(caught.value)
    assert "dense" not in str(caught.value).split("Relevance is not")[0]
    assert "4 call(s)" in str(caught.value)


@keras.saving.register_keras_serializable("test_layers")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.hidden = layers.Dense(6, activation="tanh")
        self.scores = layers.Dense(3)

    def call(self, x):
        return self.scores(self.hidden(x))


@pytest.fixture(scope="module")
def subclassed():
    model = Subclassed(name="mine")
    x = np.random.default_rng(10).normal(size=(4, 5)).astype("float32")
    model(x)
    functional = keras.Sequential(
        [keras.Input((5,)), layers.Dense(6, activation="tanh"), layers.Dense(3)]
    )
    functional.set_weights(model.get_weights())
    return model, functional, x


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradient", {}),
        ("input_t_gradient", {}),
        ("integrated_gradients", {"steps": 8, "baseline": 0.5}),
        ("smoothgrad", {"samples": 4}),
    ],
)
def test_gradient_family_explains_subclassed_models(subclassed, name, options):
    model, functional, x = subclassed
    found, expected = (
        create_analyzer(name, each, **options).analyze(x, target="all")
        for each in (model, functional)
    )
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize(
    "name", ["guided_backprop", "rect_grad", "lrp.epsilon", "deep_taylor", "excitation_bp"]
)
def test_other_methods_refuse_subclassed_models(subclassed, name):
    with pytest.raises(UnsupportedModelError, match=r"'mine' \(Subclassed\) is subclassed"):
        create_analyzer(name, subclassed[0])


def test_gradient_explains_a_model_with_masking():
    inputs = keras.Input((None, 3))
    h = layers.Masking(mask_value=0.0, name="masking")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(h)))
    x = np.random.default_rng(11).normal(size=(3, 5, 3)).astype("float32")
    x[:, 3:] = 0
    assert np.abs(model(x) - model(x[:, :3])).max() < 1e-6  # the mask acts
    found = create_analyzer("gradient", model).analyze(x, target=1)
    assert_same(found, tape_gradient(model, x, [0.0, 1.0]), 1e-5)
    assert not found[:, 3:].any()
    with pytest.raises(UnsupportedLayerError, match=r"masking \(Masking\): it makes a mask"):
        create_analyzer("lrp.epsilon", model)


@pytest.mark.parametrize("name", ["gradient", "lrp.epsilon"])
def test_masks_of_embeddings_are_refused(name):
    inputs = keras.Input((5,), dtype="int32")
    h = layers.Embedding(9, 4, mask_zero=True, name="words")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(h)))
    with pytest.raises(UnsupportedLayerError, match=r"words \(Embedding\): it makes a mask"):
        create_analyzer(name, model)


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_fixed_batch_size(cnn, pixels, nested):
    h = inputs = keras.Input(batch_shape=(2, 8, 8, 3))
    for layer in [cnn] if nested else cnn.layers:
        h = layer(h)
    fixed = keras.Model(inputs, h)
    for name in ("gradient", "lrp.epsilon"):
        expected = create_analyzer(name, cnn).analyze(pixels, target=1)
        analyzer = create_analyzer(name, fixed)
        # Chunks of samples and of vectors have sizes of their own.
        assert_same(analyzer.analyze(pixels[:3], target=1), expected[:3], 1e-6)
        assert_same(analyzer.analyze(pixels[:2], target="all")[:, 1], expected[:2], 1e-6)


@pytest.mark.parametrize("labels", [False, True], ids=["x", "x_and_y"])
def test_dataset_of_batches(cnn, pixels, labels):
    dataset = tf.data.Dataset.from_tensor_slices((pixels, [0, 1, 2, 0]) if labels else pixels)
    analyzer = create_analyzer("lrp.epsilon", cnn)
    for target in (None, 1, "all"):
        found = analyzer.analyze(dataset.batch(3), target=target)
        assert_same(found, analyzer.analyze(pixels, target=target), 1e-6)


def test_dataset_of_several_inputs(two_inputs):
    model, _, x = two_inputs
    named = {"b_sequence": x[0], "a_vector": x[1]}
    analyzer = create_analyzer("gradient", model)
    expected = analyzer.analyze(x, target=0)
    found = analyzer.analyze(tf.data.Dataset.from_tensor_slices(named).batch(2), target=0)
    parts = list(found.values()) if isinstance(found, dict) else found
    for part, reference in zip(parts, expected, strict=True):
        assert_same(part, reference, 1e-12)


def test_array_likes(cnn, pixels):
    analyzer = create_analyzer("gradient", cnn)
    expected = analyzer.analyze(pixels, target=0)
    for x in (pixels.tolist(), tf.constant(pixels), pixels.astype("float64")):
        found = analyzer.analyze(x, target=0)
        assert isinstance(found, np.ndarray) and found.dtype == "float32"
        np.testing.assert_array_equal(found, expected)


# --- XLA and GPU ---------------------------------------------------------------------------------

OPTIONS = {
    "lrp.alpha_beta": {"alpha": 2},
    "deep_taylor.bounded": {"low": -5.0, "high": 5.0},
    "integrated_gradients": {"steps": 3},
    "smoothgrad": {"samples": 3},
    "rect_grad": {"percentile": 60},
}


@pytest.fixture(scope="module")
def tiny():
    """Convolution, normalisation, both poolings, an addition and two dense layers, in few calls."""
    generator = np.random.default_rng(12)
    inputs = keras.Input((6, 6, 2), name="pixels")
    h = layers.Conv2D(4, 3, activation="relu")(inputs)
    h = layers.BatchNormalization()(layers.MaxPooling2D(2)(h))
    h = layers.Add()([h, layers.Conv2D(4, 1, padding="same", activation="relu")(h)])
    h = layers.GlobalAveragePooling2D()(h)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(h))
    for layer in model.layers:
        set_random_weights(layer, generator)
    return model, generator.normal(size=(3, 6, 6, 2)).astype("float32")


@pytest.mark.parametrize("name", tfexplain.ANALYZERS)
def test_xla_compiles_every_method(tiny, name):
    model, x = tiny
    options = OPTIONS.get(name, {})
    # Of the largest output, where methods of one sign have something to show.
    compiled = create_analyzer(name, model, jit_compile=True, **options).analyze(x)
    largest = tf.fill([len(x), 1], -1)
    plain = create_analyzer(name, model, **options).explain([tf.constant(x)], largest)[1][:, 0]
    assert np.abs(plain).max() > 0
    assert_same(compiled, plain, 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="no GPU")
@pytest.mark.parametrize("name", tfexplain.ANALYZERS)
def test_gpu_equals_cpu(cnn, pixels, name):
    found = []
    for device in ("/CPU:0", "/GPU:0"):
        with tf.device(device):
            analyzer = create_analyzer(name, cnn, dtype="float64", **OPTIONS.get(name, {}))
            found.append(analyzer.analyze(pixels, target=1))
    assert_same(found[1], found[0], 1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="no GPU")
@pytest.mark.parametrize("case", LINEAR + POOLING, ids=lambda case: case.id)
def test_gpu_runs_every_linear_layer_and_pooling(case):
    model, x = network(case)
    for name in ("gradient", "lrp.alpha_2_beta_1"):
        found = []
        for device in ("/CPU:0", "/GPU:0"):
            with tf.device(device):
                found.append(create_analyzer(name, model).analyze(x, target=1))
        assert_same(found[1], found[0], 1e-9)
