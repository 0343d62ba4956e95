"""PatternNet and PatternAttribution: fitting, propagation, and what the patterns mean."""

import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from keras import layers

import tfexplain
from tests.layer_zoo import ENTRIES, make_model
from tests.networks import assert_same, set_random_weights, small_cnn
from tests.random_graphs import build, recipes
from tests.test_graphs import _snapshot as snapshot
from tests.test_graphs import examples
from tfexplain.patterns import ESTIMATORS, OUTPUT_MEANS, PatternFit

# NumPy warns about Keras' variables when Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = ("pattern.net", "pattern.attribution")
OPTIONS = [(e, m) for e in ESTIMATORS for m in OUTPUT_MEANS]
F64 = {"dtype": "float64"}


def fitted(model, x, name="pattern.net", batch_size=32, **options):
    return tfexplain.create_analyzer(name, model, **options).fit(x, batch_size=batch_size)


def sequential(shape, *parts, seed=0):
    model = keras.Sequential([keras.Input(shape, **F64), *parts])
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        set_random_weights(layer, generator)
    return model


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


# --- against NumPy -------------------------------------------------------------------------------


def reference(x, kernel, bias, estimator="relu", output_mean="active"):
    """Patterns (inputs, units) of all samples at once: c / (w . c), unit by unit, in two passes.

    x: (samples, inputs); kernel: (inputs, units).
    """
    y = x @ kernel
    patterns = np.zeros_like(kernel)
    for unit in range(kernel.shape[1]):
        on = y[:, unit] + bias[unit] > 0 if estimator == "relu" else np.ones(len(y), bool)
        if not on.any():
            continue
        seen, of = x[on], y[on, unit]
        mean = (of if output_mean == "active" else y[:, unit]).mean()
        c = ((seen - seen.mean(0)) * (of - of.mean())[:, None]).mean(0)
        c = c + seen.mean(0) * (of.mean() - mean)
        patterns[:, unit] = c / (kernel[:, unit] @ c)
    return patterns


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
            for moments in fit.found
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
    assert fits[0].found[0].total == 23 * 13 * 64


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


# --- propagation ---------------------------------------------------------------------------------


def residual(seed=0, norm=True, activation="relu", dtype="float64"):
    """A residual network with what ResNets have."""
    options = {"dtype": dtype}
    inputs = keras.Input((8, 8, 3), dtype=dtype, name="pixels")

    def convolution(h, name, filters=4, size=3, activation=activation, **given):
        h = layers.Conv2D(filters, size, padding="same", name=name, **given, **options)(h)
        if norm:
            h = layers.BatchNormalization(name=f"{name}_norm", **options)(h)
        return layers.Activation(activation, name=f"{name}_out", **options)(h)

    h = convolution(inputs, "stem", strides=2)
    inner = convolution(convolution(h, "one"), "two", activation="linear")
    h = layers.Activation(activation, **options)(layers.Add(name="add1", **options)([h, inner]))
    inner = convolution(h, "three", 5, activation="linear")
    short = convolution(h, "short", 5, 1, activation="linear")
    h = layers.Add(name="add2", **options)([short, inner])
    h = layers.Activation(activation, name="last", **options)(h)
    h = layers.GlobalAveragePooling2D(name="average", **options)(h)
    model = keras.Model(inputs, layers.Dense(3, name="scores", activation="softmax", **options)(h))
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        set_random_weights(layer, generator)
        if isinstance(layer, layers.Conv2D):
            layer.kernel.assign(layer.kernel.numpy() / 3)
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_norm", ["fold", "rule"])
def test_residual_networks(batch_norm, name):
    model = residual()
    x = normal(20, 8, 8, 3)
    analyzer = fitted(model, x, name, batch_norm=batch_norm, batch_size=6)
    linear = {"stem", "one", "two", "three", "short", "scores"}
    assert set(analyzer.patterns) == linear | {"add1", "add2"}
    relevance = analyzer.analyze(x, target="all")
    assert relevance.shape == (20, 3, 8, 8, 3)
    assert np.isfinite(relevance).all() and relevance.any(axis=(2, 3, 4)).all()
    found = str(analyzer.describe())
    assert found.count("Pattern") >= 8 + (5 if batch_norm == "rule" else 0)
    # Any start, any layers.
    found = analyzer.propagate(x[:2], normal(2, 3, 4, 4, 4), start="add1", layers=("stem", "one"))
    assert found["one"].shape == (2, 3, 4, 4, 4) and found["input"].any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_shares_of_an_addition(estimator):
    model = residual()
    x = normal(20, 8, 8, 3)
    analyzer = fitted(model, x, estimator=estimator)
    added = model.get_layer("add1").input
    first, second = (part.numpy().reshape(-1, 4) for part in keras.Model(model.inputs, added)([x]))
    shares = analyzer.patterns["add1"]
    assert shares.shape == (2, 4)
    np.testing.assert_allclose(shares.sum(axis=0), 1, rtol=1e-12)
    for channel in range(4):
        parts = np.stack([first[:, channel], second[:, channel]], axis=1)
        expected = reference(parts, np.ones((2, 1)), [0], estimator)
        np.testing.assert_allclose(shares[:, [channel]], expected, rtol=1e-9)


def test_shares_of_weighted_and_broadcast_summands():
    inputs = keras.Input((5, 3), **F64)
    other = layers.Dense(3, **F64)(inputs)
    mean = layers.GlobalAveragePooling1D(keepdims=True, **F64)(inputs)
    h = layers.Subtract(name="minus", **F64)([inputs, other])
    h = layers.Average(name="mean", **F64)([h, inputs])
    h = keras.ops.add(h, mean)
    model = keras.Model(inputs, layers.Dense(2, **F64)(layers.Flatten(**F64)(h)))
    analyzer = fitted(model, normal(30, 5, 3))
    patterns = analyzer.patterns
    (added,) = [name for name in patterns if name.startswith("add")]
    for name, coefficients in (("minus", (1, -1)), ("mean", (0.5, 0.5)), (added, (1, 1))):
        assert patterns[name].shape == (2, 3)
        np.testing.assert_allclose(coefficients @ patterns[name], 1, rtol=1e-10)
    found = analyzer.analyze(normal(2, 5, 3), target="all")
    assert found.shape == (2, 2, 5, 3) and np.isfinite(found).all()


def test_a_linear_residual_network_is_the_product_of_its_pattern_matrices():
    inputs = keras.Input((4,), **F64)
    h = layers.Dense(5, name="first", **F64)(inputs)
    inner = layers.Dense(5, name="inner", **F64)(h)
    h = layers.Add(name="add", **F64)([inner, h])
    model = keras.Model(inputs, layers.Dense(3, name="last", **F64)(h))
    set_random_weights(model, np.random.default_rng(0))
    x = normal(50, 4)
    for name in NAMES:
        analyzer = fitted(model, x, name, estimator="linear")
        matrix = dict(analyzer.patterns)
        if name == "pattern.attribution":
            for layer in ("first", "inner", "last"):
                matrix[layer] = matrix[layer] * model.get_layer(layer).kernel.numpy()
        through, past = (np.diag(share) for share in matrix["add"])
        chain = matrix["first"] @ (matrix["inner"] @ through + past) @ matrix["last"]
        expected = model(x[:6]).numpy()[:, :, None] * chain.T
        assert_same(analyzer.analyze(x[:6], target="all"), expected)


@pytest.mark.parametrize("name", NAMES)
def test_folded_normalisation_and_its_rule_agree_where_activity_does_not_count(name):
    model = residual(norm=True, activation="linear")
    x = normal(20, 8, 8, 3)
    found = [
        fitted(model, x, name, estimator="linear", batch_norm=batch_norm).analyze(x[:4])
        for batch_norm in ("fold", "rule")
    ]
    assert_same(found[0], found[1], 1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_layer_conserves_under_attribution(name):
    model = sequential((6,), layers.Dense(4, use_bias=False, **F64))
    x = normal(30, 6)
    analyzer = fitted(model, x, name)
    relevance, y = analyzer.analyze(x, target="all"), model(x).numpy()
    if name == "pattern.attribution":
        assert_same(relevance.sum(axis=2), y)
    else:
        # w . (a y) = y
        assert_same(np.einsum("nki,ik->nk", relevance, model.layers[0].kernel.numpy()), y)


def test_masks_are_those_of_the_gradient():
    for model in (small_cnn(dtype="float64"), residual(norm=False)):
        x = normal(5, 8, 8, 3)
        net = tfexplain.create_analyzer("pattern.net", model, head="one", patterns=weights(model))
        gradient = tfexplain.create_analyzer("gradient", model)
        assert_same(net.analyze(x, target="all"), gradient.analyze(x, target="all"))


def weights(model):
    """The weights as patterns, by the names of the calls."""
    analyzer = tfexplain.create_analyzer("pattern.net", model)
    return {
        name: np.broadcast_to(call.weights(tf.zeros([], tf.float64)), analyzer.pattern_shapes[name])
        for name, call in analyzer._fitted.items()
    }


def test_attribution_is_the_net_of_patterns_times_weights():
    model = residual()
    x = normal(20, 8, 8, 3)
    attribution = fitted(model, x, "pattern.attribution")
    a, w = attribution.patterns, weights(model)
    product = {name: a[name] * w[name] for name in a}
    net = tfexplain.create_analyzer("pattern.net", model, patterns=product)
    assert_same(attribution.analyze(x, target=1), net.analyze(x, target=1))


def test_new_weights_count_and_patterns_stay():
    """Trap T4: A * W is computed with the new W, A is frozen."""
    model = residual()
    x = normal(20, 8, 8, 3)
    attribution = fitted(model, x, "pattern.attribution")
    before = attribution.analyze(x, target=1)
    a = {name: pattern.copy() for name, pattern in attribution.patterns.items()}
    generator = np.random.default_rng(9)
    for name in ("one", "scores"):
        kernel = model.get_layer(name).kernel
        kernel.assign(generator.normal(size=kernel.shape))
    model.get_layer("two_norm").gamma.assign([0.5, -1, 2, 3])
    after = attribution.analyze(x, target=1)
    for name, pattern in a.items():
        np.testing.assert_array_equal(attribution.patterns[name], pattern)
    w = weights(model)
    net = tfexplain.create_analyzer(
        "pattern.net", model, patterns={name: a[name] * w[name] for name in a}
    )
    assert_same(after, net.analyze(x, target=1))
    assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()


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


# --- given patterns ------------------------------------------------------------------------------


def test_given_patterns_are_as_good_as_fitted_ones(tmp_path):
    model = small_cnn()
    x = normal(20, 8, 8, 3).astype("float32")
    analyzer = fitted(model, x, "pattern.attribution")
    arrays, path = list(analyzer.patterns.values()), tmp_path / "patterns.npz"
    np.savez(path, *arrays)
    np.savez(tmp_path / "named.npz", **analyzer.patterns)
    with np.load(path) as listed, np.load(tmp_path / "named.npz") as named:
        for given in (arrays, tuple(arrays), listed, named, analyzer.patterns, path, str(path)):
            other = tfexplain.create_analyzer("pattern.attribution", model, patterns=given)
            assert list(other.patterns) == ["conv1", "conv2", "hidden", "scores"]
            for found, array in zip(other.patterns.values(), arrays, strict=True):
                np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(other.analyze(x), analyzer.analyze(x))


def test_a_list_leaves_the_additions_open():
    model = residual()
    arrays = [a for n, a in fitted(model, normal(9, 8, 8, 3)).patterns.items() if "add" not in n]
    with pytest.raises(ValueError, match="There is no pattern for add1, add2; call fit"):
        tfexplain.create_analyzer("pattern.net", model, patterns=arrays)


def changed(patterns, name, array):
    return {**patterns, name: array}


def test_wrong_patterns_are_refused():
    model = small_cnn()
    patterns = {
        name: np.ones(shape)
        for name, shape in tfexplain.create_analyzer("pattern.net", model).pattern_shapes.items()
    }
    missing = {name: array for name, array in patterns.items() if name != "conv2"}
    broken = np.where(np.arange(3) == 1, np.nan, np.ones((5, 3)))
    arrays = list(patterns.values())
    for wrong, message in (
        (arrays[:3], r"3 patterns for 4 linear layers \(conv1, conv2, hidden, scores\)"),
        ([*arrays, arrays[0]], "5 patterns for 4 linear layers"),
        (
            arrays[::-1],
            r"The pattern of 'conv1' has shape \(5, 3\), expected \(3, 3, 3, 4\)",
        ),
        (
            changed(patterns, "hidden", np.ones((5, 4))),
            r"'hidden' has shape \(5, 4\), expected \(4, 5\)",
        ),
        (missing, "There is no pattern for conv2"),
        (changed(patterns, "scores", broken), "The pattern of 'scores' holds NaN or infinity"),
        (changed(patterns, "scores", broken * np.inf), "'scores' holds NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            tfexplain.create_analyzer("pattern.net", model, patterns=wrong)


def test_names_and_things_that_are_no_patterns_are_refused():
    model = small_cnn()
    shapes = tfexplain.create_analyzer("pattern.net", model).pattern_shapes
    patterns = {name: np.ones(shape) for name, shape in shapes.items()}
    arrays = list(patterns.values())
    gap = {f"arr_{index}": array for index, array in zip((0, 1, 2, 4), arrays, strict=True)}
    text = [np.array(["a"]), *arrays[1:]]
    for wrong, error, message in (
        (
            changed(patterns, "conv_2", arrays[1]),
            ValueError,
            "patterns for conv_2, which no call is named. Calls with patterns: conv1, conv2, hid",
        ),
        (gap, ValueError, "patterns for arr_0, arr_1, arr_2, arr_4, which no call is named"),
        (5, TypeError, "name of an .npz file; received int"),
        (np.zeros(4), TypeError, "received ndarray"),
        (text, TypeError, "The pattern of 'conv1' is no array of numbers"),
        (changed(patterns, "conv1", "a"), TypeError, "The pattern of 'conv1' is no array"),
        ({}, ValueError, "patterns? for"),
    ):
        with pytest.raises(error, match=message):
            tfexplain.create_analyzer("pattern.net", model, patterns=wrong)


def test_unknown_options_are_refused():
    for options, message in (
        ({"estimator": "mean"}, "estimator must be one of relu, linear, received 'mean'"),
        ({"output_mean": None}, "output_mean must be one of active, all, received None"),
    ):
        with pytest.raises(ValueError, match=message):
            tfexplain.create_analyzer("pattern.net", small_cnn(), **options)


# --- life of an analyzer -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_computed_before_fit(name, tmp_path):
    model = small_cnn()
    analyzer = tfexplain.create_analyzer(name, model)
    x = normal(2, 8, 8, 3)
    for use in (
        lambda: analyzer.analyze(x),
        lambda: analyzer.attribute(x),
        lambda: analyzer.propagate(x, np.ones((2, 1, 3))),
        lambda: analyzer.ledger(x),
        lambda: analyzer.model,
        lambda: analyzer.export(tmp_path / "exported"),
    ):
        with pytest.raises(
            ValueError, match=rf"{name} has no patterns yet: call analyzer.fit\(x\)"
        ):
            use()
    assert not analyzer._networks and not list(tmp_path.iterdir())
    # The table is there beforehand.
    assert "Pattern" in str(analyzer.describe())
    # Unfitted, it can be saved and fitted later.
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    with pytest.raises(ValueError, match="no patterns yet"):
        again.analyze(x)
    assert np.isfinite(again.fit(x).analyze(x)).all()


def test_fit_returns_the_analyzer_and_replaces_the_patterns():
    model = small_cnn(dtype="float64")
    x, other = normal(20, 8, 8, 3), normal(20, 8, 8, 3, seed=5) ** 2
    analyzer = tfexplain.create_analyzer("pattern.net", model)
    assert analyzer.fit(x) is analyzer
    first = analyzer.analyze(x)
    assert analyzer.fit(other) is analyzer
    second = analyzer.analyze(x)
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()
    np.testing.assert_array_equal(second, fitted(model, other).analyze(x))


def test_wrong_data_leave_the_patterns_alone():
    analyzer = fitted(small_cnn(), normal(20, 8, 8, 3))
    before = dict(analyzer.patterns)
    good = normal(4, 8, 8, 3)
    empty = tf.data.Dataset.from_tensor_slices(good).batch(2).take(0)
    late = tf.data.Dataset.from_tensor_slices(np.stack([good, good * np.nan]))
    for data, message in (
        (good[..., :2], r"shape \(4, 8, 8, 2\), expected"),
        (good * np.nan, "NaN or infinity"),
        (good[:0], "no samples"),
        (empty, "no batches"),
        (late, "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            analyzer.fit(data)
        assert all(analyzer.patterns[name] is array for name, array in before.items())
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        analyzer.fit(good, batch_size=0)


def test_several_inputs():
    first, second = keras.Input((4,), name="a", **F64), keras.Input((3,), name="b", **F64)
    h = layers.Concatenate(**F64)([layers.Dense(3, activation="relu", **F64)(first), second])
    model = keras.Model([first, second], layers.Dense(2, **F64)(h))
    set_random_weights(model, np.random.default_rng(0))
    x = [normal(30, 4), normal(30, 3, seed=2)]
    expected = fitted(model, x).patterns
    dataset = tf.data.Dataset.from_tensor_slices((tuple(x), np.zeros(30)))
    named = tf.data.Dataset.from_tensor_slices({"a": x[0], "b": x[1]})
    for data in (dict(zip("ab", x, strict=True)), dataset.batch(7), named.batch(7)):
        found = fitted(model, data)
        for name, pattern in expected.items():
            assert_same(found.patterns[name], pattern)
    assert [part.shape for part in found.analyze(x)] == [(30, 4), (30, 3)]


def test_a_layer_called_twice_has_a_pattern_for_each_call():
    inputs = keras.Input((4,), **F64)
    shared = layers.Dense(4, activation="relu", name="shared", **F64)
    model = keras.Model(inputs, layers.Dense(2, **F64)(shared(shared(inputs))))
    set_random_weights(model, np.random.default_rng(0))
    shared.bias.assign(np.full(4, 2.0))
    x = normal(40, 4)
    patterns = fitted(model, x).patterns
    seen = x
    for name in ("shared", "shared@1"):
        assert_same(patterns[name], reference(seen, *shared.get_weights()))
        seen = shared(seen).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_save_load_and_export(name, tmp_path):
    model = residual(dtype="float32")
    x = normal(12, 8, 8, 3).astype("float32")
    analyzer = fitted(model, x, name, estimator="linear", output_mean="all")
    expected = analyzer.analyze(x, target=1)
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    assert (again.estimator, again.output_mean) == ("linear", "all")
    assert again.patterns.keys() == analyzer.patterns.keys()
    for key, pattern in analyzer.patterns.items():
        np.testing.assert_array_equal(again.patterns[key], pattern)
    np.testing.assert_array_equal(again.analyze(x, target=1), expected)
    analyzer.export(tmp_path / "exported")
    served = tf.saved_model.load(str(tmp_path / "exported")).signatures["explain"]
    found = served(pixels=tf.constant(x), target=tf.ones(12, tf.int32))
    assert_same(found["relevance"].numpy(), expected, 1e-5)


def test_nested_names_survive_saving(tmp_path):
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, activation="relu", name="dense")], name="inner"
    )
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="dense")(inner(inner(inputs))))
    x = normal(20, 4).astype("float32")
    analyzer = fitted(model, x)
    assert set(analyzer.patterns) == {"inner/dense", "inner/dense@1", "dense"}
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    np.testing.assert_array_equal(again.analyze(x), analyzer.analyze(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_never_changed(name):
    model = residual()
    x = normal(10, 8, 8, 3)
    before = snapshot(model)
    analyzer = tfexplain.create_analyzer(name, model)
    with pytest.raises(ValueError):
        analyzer.analyze(x)
    assert snapshot(model) == before
    analyzer.fit(x, batch_size=4)
    assert snapshot(model) == before
    with pytest.raises(ValueError):
        analyzer.fit(x * np.nan)
    analyzer.analyze(x, target="all")
    analyzer.propagate(x, np.ones((10, 1, 3)), layers=("add1",))
    assert snapshot(model) == before


def test_rows_of_batches_do_not_matter_to_the_maps():
    model = small_cnn(dtype="float64")
    x = normal(9, 8, 8, 3)
    analyzer = fitted(model, x)
    whole = analyzer.analyze(x)
    assert_same(analyzer.analyze(x, batch_size=2), whole)
    linear = analyzer.propagate(x, np.stack([np.eye(3)] * 9))["input"]
    outputs = analyzer.outputs(x)
    top = outputs.argmax(axis=1)
    rows = np.arange(9)
    assert_same(linear[rows, top] * outputs[rows, top][:, None, None, None], whole)
