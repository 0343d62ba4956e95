"""Patterns: how they are fitted, and what they mean."""

import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from keras import layers

import tfexplain
from tests.helpers.layers import ENTRIES, make_model
from tests.helpers.networks import assert_same, set_random_weights, small_cnn
from tests.helpers.pattern_networks import (
    F64,
    NAMES,
    OPTIONS,
    fitted,
    normal,
    reference,
    sequential,
)
from tests.helpers.random_graphs import build, examples, recipes
from tfexplain.patterns import ESTIMATORS, PatternFit

# NumPy warns about Keras' variables when Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# --- against NumPy -------------------------------------------------------------------------------


def same_patches(x, size, stride):
    """Every patch that a convolution with padding "same" sees, (samples, size^2 * channels)."""
    pads = []
    for length in x.shape[1:3]:
        need = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads.append((need // 2, need - need // 2))
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    patches = [x[:, r : r + size, c : c + size] for r in rows for c in columns]
    return np.stack(patches, axis=1).reshape(-1, size * size * x.shape[3])


def given_as(x, form):
    """The samples as an array, or as a Dataset with labels and a smaller last batch."""
    if form == "array":
        return x
    return tf.data.Dataset.from_tensor_slices((x, np.arange(len(x)))).batch(16)


@pytest.mark.parametrize(
    ("form", "batch_size"), [("array", 1), ("array", 7), ("array", 64), ("dataset", 32)]
)
@pytest.mark.parametrize(("estimator", "output_mean"), OPTIONS)
def test_streaming_is_the_covariance_of_all_samples(estimator, output_mean, form, batch_size):
    model = sequential(
        (6,), layers.Dense(5, activation="relu", name="hidden", **F64), layers.Dense(3, **F64)
    )
    x = normal(45, 6) + 0.5
    analyzer = fitted(
        model,
        given_as(x, form),
        batch_size=batch_size,
        estimator=estimator,
        output_mean=output_mean,
    )
    options = {"estimator": estimator, "output_mean": output_mean}
    hidden = model.layers[0](x).numpy()
    for seen, layer in zip((x, hidden), model.layers, strict=True):
        expected = reference(seen, *layer.get_weights(), **options)
        assert_same(analyzer.patterns[layer.name], expected, 1e-10)


@pytest.mark.parametrize("form", ["array", "dataset"])
@pytest.mark.parametrize(("estimator", "output_mean"), OPTIONS)
def test_convolutions_count_every_patch(estimator, output_mean, form):
    layer = layers.Conv2D(
        4, 3, strides=2, padding="same", activation="relu", name="convolution", **F64
    )
    head = layers.Dense(2, name="scores", **F64)
    model = sequential((6, 7, 2), layer, layers.GlobalAveragePooling2D(**F64), head)
    x = normal(21, 6, 7, 2) + 0.3
    options = {"estimator": estimator, "output_mean": output_mean}
    analyzer = fitted(model, given_as(x, form), batch_size=8, **options)
    kernel, bias = layer.get_weights()
    patches = same_patches(x, 3, 2)
    # The patches are those of the layer.
    responses = patches @ kernel.reshape(-1, 4) + bias
    after = np.maximum(responses, 0).reshape(21, -1, 4)
    np.testing.assert_allclose(layer(x).numpy().reshape(after.shape), after, atol=1e-12)
    expected = reference(patches, kernel.reshape(-1, 4), bias, **options)
    assert_same(analyzer.patterns["convolution"], expected.reshape(kernel.shape), 1e-10)
    expected = reference(after.mean(1), *head.get_weights(), **options)
    assert_same(analyzer.patterns["scores"], expected, 1e-10)


def test_the_options_differ():
    model = sequential((6,), layers.Dense(5, **F64))
    x = normal(45, 6) + 0.5
    found = [
        fitted(model, x, estimator=e, output_mean=m).patterns[model.layers[0].name]
        for e, m in OPTIONS
    ]
    relu_active, relu_all, linear_active, linear_all = found
    np.testing.assert_array_equal(linear_active, linear_all)
    for other in (relu_all, linear_active):
        assert np.abs(relu_active - other).max() > 1e-2


def test_the_order_of_samples_does_not_matter():
    model = small_cnn(dtype="float64")
    x = normal(30, 8, 8, 3)
    expected = fitted(model, x).patterns
    order = np.random.default_rng(2).permutation(30)
    for other in (fitted(model, x[order], batch_size=4), fitted(model, x[::-1], batch_size=11)):
        for name, pattern in expected.items():
            assert_same(other.patterns[name], pattern, 1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("batch_size", [5, 60])
def test_a_large_mean_does_not_cancel(estimator, batch_size):
    model = sequential((6,), layers.Dense(4, **F64))
    kernel = model.layers[0].kernel.numpy()
    kernel -= kernel.mean(0)  # the mean of the input drops out of the output
    model.layers[0].set_weights([kernel, np.zeros(4)])
    x = normal(60, 6)
    expected = reference(x, kernel, np.zeros(4), estimator)
    # 2^13 + x is exact up to 2^-40.
    shifted = (np.round(x * 2**38) / 2**38) + 2**13
    found = fitted(model, shifted, batch_size=batch_size, estimator=estimator)
    assert_same(found.patterns[model.layers[0].name], expected, 1e-8)


def test_models_of_float32_are_fitted_in_float64():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(2)])
    model.layers[0].bias.assign(np.full(4, 100.0))
    x = normal(200, 6).astype("float32")
    analyzer = fitted(model, x, estimator="linear")
    assert analyzer.analyze(x[:2]).dtype == np.float32
    seen = x.astype("float64")
    for layer in model.layers:
        kernel, bias = (w.astype("float64") for w in layer.get_weights())
        pattern = analyzer.patterns[layer.name]
        assert pattern.dtype == np.float64
        assert_same(pattern, reference(seen, kernel, bias, "linear"), 1e-9)
        seen = seen @ kernel + bias


def test_memory_does_not_grow_with_the_data(monkeypatch):
    model = small_cnn(dtype="float64")
    fits, batches = [], []
    add = PatternFit.add

    def watched(fit, records):
        fits.append(fit)
        batches.append(weakref.ref(records[0]))
        # The batches before are forgotten but for the one that a loop still names.
        assert sum(batch() is not None for batch in batches) <= 2
        add(fit, records)
        shapes = {
            part.shape
            for moments in fit.moments
            for part in map(np.asarray, moments)
            if part.ndim  # the number of samples has none
        }
        kernels = {tuple(call.weights(tf.zeros([], "float64")).shape) for call in fit.calls}
        assert shapes == kernels | {shape[-1:] for shape in kernels}

    monkeypatch.setattr(PatternFit, "add", watched)
    drawn = iter(range(23))
    dataset = tf.data.Dataset.from_generator(
        lambda: (normal(13, 8, 8, 3, seed=i) for i in drawn),
        output_signature=tf.TensorSpec((None, 8, 8, 3), "float64"),
    )
    fitted(model, dataset)
    # One pass.
    assert len(fits) == 23 and len(set(map(id, fits))) == 1
    assert fits[0].moments[0].total == 23 * 13 * 64


# --- w . a = 1 -----------------------------------------------------------------------------------


def along(layer, pattern):
    """w . a of each unit with the layer's own kernel, by the layout that Keras documents."""
    if isinstance(layer, layers.SeparableConv1D | layers.SeparableConv2D):
        depthwise, pointwise = layer.get_weights()[:2]
        channels, multiplier = depthwise.shape[-2:]
        pointwise = pointwise.reshape(channels, multiplier, -1)
        kernel = np.einsum("...cm,cmo->...co", depthwise, pointwise)
    else:
        kernel = layer.get_weights()[0]
    product = kernel * pattern
    name = type(layer).__name__
    if name.startswith("Depthwise"):
        return product.sum(axis=tuple(range(product.ndim - 2))).ravel()
    units = product.ndim - (2 if name.endswith("Transpose") else 1)
    return product.sum(axis=tuple(axis for axis in range(product.ndim) if axis != units))


# Their units are no channels: these are refused, see below.
REFUSED = ("einsum_dense_two_axes", "einsum_dense_per_position_no_bias")


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.id not in REFUSED], ids=lambda e: e.id)
def test_weights_times_pattern_is_one(entry):
    model, layer, _ = make_model(entry)
    x = normal(8, *entry.input_shape)
    analyzer = fitted(model, x, batch_size=3)
    (pattern,) = analyzer.patterns.values()
    first = getattr(layer, "data_format", "") == "channels_first"
    outputs = np.moveaxis(analyzer.outputs(x), 1 if first else -1, -1)
    counts = (outputs > 0).reshape(-1, outputs.shape[-1]).sum(axis=0)
    alive = counts > 1
    assert alive.any()
    np.testing.assert_allclose(along(layer, pattern), np.where(alive, 1, 0), atol=1e-9)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.id in REFUSED], ids=lambda e: e.id)
def test_einsum_with_several_axes_of_units_is_refused(entry):
    model, layer, _ = make_model(entry)
    with pytest.raises(ValueError, match=rf"{layer.name} \(EinsumDense\) has the equation"):
        tfexplain.create_analyzer("pattern.net", model)


@pytest.mark.parametrize(
    ("equation", "shape", "output_shape"),
    [
        ("ab,cb->ac", (4,), (4,)),
        ("abc,bc->abc", (3, 4), (3, 4)),
        ("abc,cd->adb", (3, 4), (3, 3)),
    ],
)
def test_einsum_with_the_units_elsewhere_is_refused(equation, shape, output_shape):
    inputs = keras.Input(shape, **F64)
    layer = layers.EinsumDense(equation, output_shape=output_shape, **F64)
    model = keras.Model(inputs, layer(inputs))
    with pytest.raises(
        ValueError, match=rf"{layer.name} \(EinsumDense\) has the equation '{equation}'"
    ):
        tfexplain.create_analyzer("pattern.net", model)


@given(recipe=recipes())
@examples(5)
def test_random_graphs(recipe):
    built = build(recipe, samples=24)
    whole = fitted(built.model, built.x)
    parts = fitted(built.model, built.x, batch_size=5)
    assert whole.patterns.keys() == whole._fitted.keys()
    for name, pattern in whole.patterns.items():
        call = whole._fitted[name]
        products = pattern * call.weights(tf.zeros([], tf.float64)).numpy()
        sums = call.summed(tf.constant(products)).numpy()
        assert (np.isclose(sums, 1, atol=1e-8) | (sums == 0)).all(), name
        # Some units of these networks are never active.
        np.testing.assert_allclose(parts.patterns[name], pattern, 1e-6, 1e-9)
    for name in NAMES:
        again = tfexplain.create_analyzer(name, built.model, patterns=whole.patterns)
        assert np.isfinite(again.analyze(built.x)).all()


# --- units without a pattern ---------------------------------------------------------------------


def test_units_that_are_never_active_have_zero_patterns():
    model = small_cnn(dtype="float64")
    hidden = model.get_layer("hidden")
    kernel, bias = hidden.get_weights()
    hidden.set_weights([kernel, np.where(np.arange(5) == 2, -1e3, bias)])
    x = normal(40, 8, 8, 3)
    for options in OPTIONS:
        analyzer = fitted(model, x, estimator=options[0], output_mean=options[1])
        pattern = analyzer.patterns["hidden"]
        if options[0] == "relu":
            np.testing.assert_array_equal(pattern[:, 2], 0)
            assert np.abs(pattern).max(axis=0).any()
            # Nothing comes from the unit, so it has no pattern in the next layer either.
            np.testing.assert_array_equal(analyzer.patterns["scores"][2], 0)
        assert all(np.isfinite(p).all() for p in analyzer.patterns.values())
        assert np.isfinite(analyzer.analyze(x)).all() and analyzer.analyze(x).any()


def test_a_unit_that_becomes_active_in_a_later_batch():
    model = sequential((3,), layers.Dense(2, use_bias=False, **F64))
    kernel = np.array([[1.0, 1], [0.5, 0], [0, -1]])
    model.layers[0].set_weights([kernel])
    x = normal(20, 3)
    x[np.argsort(x @ kernel[:, 1])] = x.copy()  # the second unit is active in the end only
    expected = reference(x, kernel, np.zeros(2))
    assert_same(fitted(model, x, batch_size=4).patterns[model.layers[0].name], expected)


def test_samples_that_are_active_once_have_no_covariance():
    model = sequential((3,), layers.Dense(4, use_bias=False, **F64))
    patterns = fitted(model, normal(1, 3)).patterns
    np.testing.assert_array_equal(patterns[model.layers[0].name], 0)


@pytest.mark.parametrize("batch_size", [3, 11])
@pytest.mark.parametrize(
    "output_mean",
    ["active", "all"],
)
def test_outputs_that_never_change_have_zero_patterns(output_mean, batch_size):
    model = sequential((50,), layers.Dense(40, **F64))
    x = np.repeat(normal(1, 50), 11, axis=0)
    options = {"estimator": "linear", "output_mean": output_mean}
    patterns = fitted(model, x, batch_size=batch_size, **options).patterns
    np.testing.assert_array_equal(patterns[model.layers[0].name], 0)


# --- signal and distractor -----------------------------------------------------------------------


def cosine(a, b):
    a, b = np.ravel(a), np.ravel(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_the_linear_example_of_kindermans():
    """x = a_s y + a_d eps; the filter w has w . a_s = 1 and w . a_d = 0 (their figure 2)."""
    signal, distractor = np.array([1.0, 0]), np.array([1.0, 1])
    filter = np.array([1.0, -1])
    generator = np.random.default_rng(0)
    y, noise = generator.normal(size=(2, 20000, 1))
    x = y * signal + noise * distractor
    model = sequential((2,), layers.Dense(1, use_bias=False, **F64))
    model.layers[0].set_weights([filter[:, None]])
    np.testing.assert_allclose(model(x), y, atol=1e-12)
    net = fitted(model, x, estimator="linear", batch_size=5000)
    (pattern,) = net.patterns.values()
    # cov(x, y) / var(y) = a_s + a_d cov(eps, y) / var(y), an error of 1 / sqrt(n).
    np.testing.assert_allclose(pattern[:, 0], signal, atol=4 / np.sqrt(len(x)))
    np.testing.assert_allclose(filter @ pattern, 1, rtol=1e-12)
    maps = net.analyze(x[:5])
    assert_same(maps, y[:5] * pattern[:, 0])
    assert cosine(maps[0], signal) ** 2 > 0.999
    gradient = tfexplain.create_analyzer("gradient", model).analyze(x[:5])
    assert_same(gradient, np.tile(filter, (5, 1)))
    assert cosine(gradient[0], signal) ** 2 == pytest.approx(0.5)
    # The attribution says which dimension carries the signal.
    attribution = fitted(model, x, "pattern.attribution", estimator="linear").analyze(x[:5])
    assert_same(attribution, y[:5] * pattern[:, 0] * filter)


def test_mnist_as_the_distractor(data_dir):
    """The filter of least squares answers to everything; the pattern is the signal alone."""
    with np.load(data_dir / "mnist" / "mnist.npz") as data:
        images = data["x_train"][:400].astype("float64") / 255
    images = images.reshape(400, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(400, 196)
    signal, stripes = np.zeros((2, 14, 14))
    signal[4:9, 4:9] = np.eye(5)
    stripes[::2] = 1
    # Source and noise are uncorrelated with the images, exactly: no error of sampling.
    directions = np.linalg.qr(np.column_stack([np.ones(400), images, normal(400, 2)]))[0]
    source, noise = 20 * directions[:, -2:].T
    x = images + np.outer(source, signal) + np.outer(2 * noise, stripes)
    centred = x - x.mean(0)
    filter = np.linalg.lstsq(centred, source, rcond=1e-8)[0]
    model = sequential((196,), layers.Dense(1, **F64))
    model.layers[0].set_weights([filter[:, None], -(x.mean(0) @ filter[:, None])])
    assert np.corrcoef(model(x).numpy()[:, 0], source)[0, 1] > 0.9
    net = fitted(model, x, estimator="linear", batch_size=64)
    (pattern,) = net.patterns.values()
    assert cosine(pattern, signal) > 1 - 1e-9
    # The filter has to cancel the distractors, and so looks like neither.
    assert abs(filter @ stripes.ravel()) < 1e-2 * np.linalg.norm(filter) * np.linalg.norm(stripes)
    assert cosine(filter, signal) < 0.9
    top = np.argmax(np.abs(source))
    assert abs(cosine(net.analyze(x[[top]]), signal)) > 1 - 1e-9
    gradient = tfexplain.create_analyzer("gradient", model)
    assert cosine(gradient.analyze(x[[top]]), filter) == pytest.approx(1)


# --- which outputs are active --------------------------------------------------------------------


def activated(*after, fused=None):
    return sequential(
        (5,),
        layers.Dense(4, activation=fused, name="hidden", **F64),
        *after,
        layers.Dense(2, **F64),
    )


def relu_layer(**options):
    return layers.ReLU(**options, **F64)


def test_fused_and_separate_activations_have_the_same_activity():
    x = normal(40, 5)
    expected = fitted(activated(fused="relu"), x).patterns["hidden"]
    kernel, bias = activated(fused="relu").get_layer("hidden").get_weights()
    assert_same(expected, reference(x, kernel, bias))
    for after in (relu_layer(), layers.Activation("relu", **F64), layers.LeakyReLU(**F64)):
        found = fitted(activated(after), x).patterns["hidden"]
        np.testing.assert_array_equal(found, expected)
    # Normalisation is part of the unit where it is folded.
    norm = layers.BatchNormalization(**F64)
    model = activated(norm, relu_layer())
    scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    kernel, bias = model.get_layer("hidden").get_weights()
    shift = (bias - norm.moving_mean.numpy()) * scale + norm.beta.numpy()
    assert (scale < 0).any() and (scale > 0).any()
    assert_same(fitted(model, x).patterns["hidden"], reference(x, kernel * scale, shift))


def test_the_activation_that_follows_decides():
    x = normal(60, 5)
    # Open above 0.7 only.
    model = activated(relu_layer(threshold=0.7))
    kernel, bias = model.get_layer("hidden").get_weights()
    found = fitted(model, x).patterns["hidden"]
    assert_same(found, reference(x, kernel, bias - 0.7))
    # Open everywhere.
    model = activated(layers.Activation("softplus", **F64))
    found = fitted(model, x).patterns["hidden"]
    assert_same(found, reference(x, kernel, bias, "linear"))
    # The logits have none: what is positive is active, whatever the softmax says.
    model = sequential((5,), layers.Dense(3, activation="softmax", name="scores", **F64))
    kernel, bias = model.get_layer("scores").get_weights()
    assert_same(fitted(model, x).patterns["scores"], reference(x, kernel, bias))


def test_a_normalisation_with_a_rule_does_not_hide_the_activation():
    norm = layers.BatchNormalization(**F64)
    model = activated(norm, relu_layer())
    x = normal(60, 5)
    fold, rule = (
        fitted(model, x, batch_norm=batch_norm).patterns["hidden"]
        for batch_norm in ("fold", "rule")
    )
    scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    assert_same(rule, fold * scale)


def test_additions_are_active_where_the_activation_after_them_is():
    inputs = keras.Input((5,), **F64)
    other = layers.Dense(5, name="other", **F64)(inputs)
    total = layers.Add(name="add", **F64)([inputs, other])
    h = layers.ReLU(threshold=0.5, **F64)(total)
    model = keras.Model(inputs, layers.Dense(2, **F64)(h))
    set_random_weights(model, np.random.default_rng(0))
    x = normal(60, 5)
    parts = np.stack([x, keras.Model(inputs, other)(x).numpy()], axis=1)
    found = fitted(model, x).patterns["add"]
    for unit in range(5):
        expected = reference(parts[:, :, unit], np.ones((2, 1)), [-0.5])
        assert_same(found[:, [unit]], expected)
