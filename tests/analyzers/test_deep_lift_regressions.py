"""Faults of other DeepLIFT implementations that must not be ours, one test per case.

The prefix of a name is the library in which the fault was found.
"""

import concurrent.futures

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.analyzers.test_deep_lift import (
    NAMES,
    assert_complete,
    bending,
    contributions,
    conv,
    create,
    dense,
    difference,
    multipliers,
    normal,
    sequential,
)
from tests.helpers.networks import Loop, assert_same, set_random_weights


def pooling_network(shape=(6, 6, 2)):
    """A ReLU layer that max pooling follows at once."""
    return sequential(
        shape,
        conv(3, 2),
        layers.ReLU(dtype="float64"),
        layers.MaxPooling2D(2, dtype="float64"),
        layers.Flatten(dtype="float64"),
        dense(2),
    )


def gap(model, x, x0, **options):
    """The largest lack of completeness of Rescale, relative to the outputs' differences."""
    found = contributions(create("deep_lift.rescale", model, **options), x, x0)
    expected = difference(model, x, x0)
    return np.abs(found.sum(axis=(2, 3, 4)) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_captum_deeplift_relu_before_max_pool(name):
    """The pool's own differences count, behind a ReLU too: nothing is missing."""
    x, x0 = normal(4, 6, 6, 2), normal(4, 6, 6, 2, seed=2)
    model = pooling_network()
    for baseline in (x0, 0 * x0):
        found = contributions(create(name, model), x, baseline)
        assert_complete(found, difference(model, x, baseline))


def test_deeplift_max_pool_gradient_only():
    """Differences by default; the gradient on request, which leaves a gap."""
    x, x0 = normal(4, 6, 6, 2), normal(4, 6, 6, 2, seed=2)
    model = pooling_network()
    assert gap(model, x, x0) < 1e-12 and gap(model, x, 0 * x0) < 1e-12
    assert gap(model, x, x0, max_pool="gradient") > 0.1


def test_deeplift_pseudocount_near_zero():
    """A part that is zero has the derivative as factor, where the peer divides rounding by 1e-7.

    The factor counts where the half rule adds both: at units that did not move.
    """
    # Unit 1 of the first layer is closed, and unit 0 rises: behind them, D- = 0.
    first, second, last = dense(2, activation="relu"), dense(1, activation="tanh"), dense(1)
    model = sequential((2,), first, second, last)
    first.set_weights([np.eye(2), np.array([0.0, -5.0])])
    second.set_weights([np.array([[0.7], [0.4]]), np.array([0.3])])
    last.set_weights([np.ones((1, 1)), np.zeros(1)])
    x, x0 = np.array([[1.0, 1.0]]), np.array([[0.2, 0.5]])
    z0, z = 0.3 + 0.7 * 0.2, 0.3 + 0.7
    up = (np.tanh(z) - np.tanh(z0)) / (z - z0)
    down = (2 - np.tanh(z0) ** 2 - np.tanh(z) ** 2) / 2
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-6)):
        analyzer = create("deep_lift.reveal_cancel", model, dtype=dtype)
        network = analyzer.network(None, (model.layers[0].name,), quantity="multiplier")
        given = [tf.constant(part.astype(dtype)) for part in (x, x0)]
        _, hidden = network.propagate(given, tf.ones((1, 1, 1), dtype))
        expected = [0.7 * up, 0.4 * (up + down) / 2]
        np.testing.assert_allclose(hidden[0, 0], expected, rtol=tolerance)


def test_deeplift_add():
    """#112: additions, which the peer's converter refuses."""
    inputs = keras.Input((5, 5, 2), dtype="float64")
    h = conv(2, 3, padding="same", activation="relu")(inputs)
    h = layers.Add(dtype="float64")([inputs, h, conv(2, 1)(h)])
    model = keras.Model(inputs, dense(2)(layers.Flatten(dtype="float64")(h)))
    for layer in model.layers:
        set_random_weights(layer, np.random.default_rng(len(layer.name)))
    x, x0 = normal(2, 5, 5, 2), normal(2, 5, 5, 2, seed=2)
    for name in NAMES:
        assert_complete(contributions(create(name, model), x, x0), difference(model, x, x0))


UNLISTED = {
    "gelu": lambda: layers.Activation("gelu", dtype="float64"),
    "leaky_relu": lambda: layers.LeakyReLU(dtype="float64"),
    "prelu": lambda: layers.PReLU(dtype="float64"),
    "relu6": lambda: layers.ReLU(6.0, dtype="float64"),
    "hard_sigmoid": lambda: layers.Activation("hard_sigmoid", dtype="float64"),
    "depthwise": lambda: layers.DepthwiseConv2D(2, dtype="float64"),
    "separable": lambda: layers.SeparableConv2D(3, 2, dtype="float64"),
    "transposed": lambda: layers.Conv2DTranspose(2, 2, strides=2, dtype="float64"),
    "global_max": lambda: layers.GlobalMaxPooling2D(keepdims=True, dtype="float64"),
    "volume": lambda: keras.Sequential(
        [
            layers.Reshape((4, 4, 2, 1), dtype="float64"),
            layers.Conv3D(2, 2, activation="relu", dtype="float64"),
        ]
    ),
}


@pytest.mark.parametrize("kind", UNLISTED)
def test_shap_unlisted_operations(kind):
    """What stops shap's DeepExplainer is explained."""
    model = sequential((4, 4, 2), UNLISTED[kind](), layers.Flatten(dtype="float64"), dense(3))
    x, x0 = normal(3, 4, 4, 2), normal(3, 4, 4, 2, seed=2)
    for name in NAMES[:2]:
        assert_complete(contributions(create(name, model), x, x0), difference(model, x, x0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Loop(name="culprit"),
        lambda: layers.Lambda(lambda h: keras.ops.sort(h, axis=1), name="culprit"),
    ],
    ids=["loop", "sort"],
)
def test_shap_unlisted_operations_refused(make):
    """What has no rule is refused when the analyzer is made, by name."""
    model = keras.Sequential([keras.Input((4, 3)), make(), layers.Flatten(), layers.Dense(2)])
    for name in (*NAMES, "deep_lift.ablation"):
        with pytest.raises(tfexplain.UnsupportedLayerError, match="culprit"):
            create(name, model)


@pytest.mark.parametrize("name", NAMES[:2])
def test_shap_unlisted_operations_attention(name):
    inputs = keras.Input((4, 3), dtype="float64")
    h = layers.MultiHeadAttention(2, 3, dtype="float64")(inputs, inputs)
    h = layers.Flatten(dtype="float64")(layers.LayerNormalization(dtype="float64")(h))
    model = keras.Model(inputs, dense(2)(h))
    x, x0 = normal(3, 4, 3), normal(3, 4, 3, seed=2)
    assert_complete(contributions(create(name, model), x, x0), difference(model, x, x0))


@pytest.mark.parametrize("name", NAMES)
def test_shap_swish_additivity(name):
    """swish and its kin: the sum is the difference of the outputs."""
    for function in ("silu", "swish", "hard_silu", "mish"):
        model = bending(function)
        x, x0 = 3 * normal(4, 4), 3 * normal(4, 4, seed=2)
        found = contributions(create(name, model), x, x0)
        assert_complete(found, difference(model, x, x0), 1e-12)


def test_shap_global_registry():
    """Several analyzers are alive at once, in several threads, and gradients stay gradients."""
    model = sequential((4,), dense(5, activation="relu"), dense(4, activation="tanh"), dense(2))
    x, x0 = normal(3, 4), normal(3, 4, seed=2)

    def gradient():
        value = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(value)
            result = tf.reduce_sum(model(value)[:, 1])
        return tape.gradient(result, value).numpy()

    before = gradient()
    analyzers = [create(name, model) for name in (*NAMES[:2], "gradient") for _ in range(2)]

    def run(analyzer):
        if analyzer.name == "gradient":
            return analyzer.analyze(x, target=1)
        return contributions(analyzer, x, x0)[:, 1]

    expected = [run(analyzer) for analyzer in analyzers]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, analyzers * 3))
    for index, result in enumerate(found):
        np.testing.assert_array_equal(result, expected[index % len(expected)])
    np.testing.assert_array_equal(gradient(), before)
    assert_same(expected[-1], before, 1e-12)


def test_shap_sample_and_output_loop():
    """All outputs of all samples from one call equal one call for each."""
    model = sequential((4,), dense(5, activation="relu"), dense(3))
    x, x0 = normal(3, 4), normal(1, 4, seed=2)
    analyzer = create("deep_lift.rescale", model, baseline=x0)
    every = analyzer.analyze(x, target="all")
    for sample, target in np.ndindex(3, 3):
        one = analyzer.analyze(x[sample : sample + 1], target=target)
        assert_same(one[0], every[sample, target], 1e-12)


def test_captum_deeplift_small_differences():
    """No jump where a threshold switches from the chord to the derivative."""
    model = sequential((1,), dense(1, activation="tanh"))
    model.set_weights([np.ones((1, 1)), np.array([0.4])])
    analyzer = create("deep_lift.rescale", model)
    sizes = np.geomspace(1e-2, 1e-9, 400)[:, None]
    x0 = np.zeros_like(sizes)
    found = multipliers(analyzer, sizes, x0)[:, 0, 0]
    slope, bend = 1 - np.tanh(0.4) ** 2, -np.tanh(0.4) * (1 - np.tanh(0.4) ** 2)
    third = (found - slope - bend * sizes[:, 0]) / slope
    assert np.abs(third).max() < 1e-4 and np.abs(third[sizes[:, 0] < 1e-4]).max() < 1e-8


@pytest.mark.parametrize(
    ("options", "bias", "slope"),
    [
        ({}, -2, 0),
        ({}, 2, 1),
        ({"negative_slope": 0.3}, -2, 0.3),
        ({"max_value": 1.0}, 5, 0),
        ({"threshold": 1.0}, 0.5, 0),
        ({"threshold": 1.0}, 2, 1),
    ],
    ids=str,
)
def test_at_rest_a_rectifier_has_its_own_slope(options, bias, slope):
    """Differences that cancel in front of it: the limit is its derivative, not that of a ReLU."""
    model = sequential(
        (2,), dense(1), layers.ReLU(dtype="float64", **options), dense(1, use_bias=False)
    )
    model.set_weights([np.ones((2, 1)), np.array([bias]), np.ones((1, 1))])
    for name in ("deep_lift.rescale", "deep_lift.reveal_cancel"):
        found = create(name, model).analyze(np.array([[1.0, -1.0]]), target=0)
        if name == "deep_lift.rescale":
            np.testing.assert_allclose(found, [[slope, -slope]], atol=1e-12)
        assert abs(found.sum()) < 1e-12
