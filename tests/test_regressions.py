"""Faults of other libraries that must not be ours, one test per case, named after it.

The prefix of a name is the library in which the fault was found; innvestigate's are in
`test_innvestigate_regressions.py`.
"""

import concurrent.futures

import keras
import numpy as np
import pytest

import tfexplain
from tests.helpers.networks import (
    GRADIENTS,
    RELEVANCE,
    assert_same,
    create,
    differ,
    randomize,
    samples,
    sequential,
    tape_gradient,
)

# --- xplique -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(dense_relu):
    """A copy of the network with logits, and a softmax behind them."""
    x = keras.Input((5,))
    logits = keras.models.clone_model(dense_relu)
    logits.set_weights(dense_relu.get_weights())
    return keras.Model(x, keras.layers.Softmax(name="probabilities")(logits(x)))


def test_xplique_output_layer(classifier, dense_relu):
    """The logits are explained, and `describe` and `outputs` say so; "keep" gives the softmax."""
    x = samples(dense_relu).astype("float32")
    logits = tfexplain.create_analyzer("input_t_gradient", classifier)
    assert_same(logits.analyze(x, target=1), x * tape_gradient(dense_relu, x, [0, 1, 0]), 1e-5)
    np.testing.assert_allclose(logits.outputs(x), dense_relu(x), rtol=1e-5, atol=1e-5)
    assert "probabilities" not in str(logits.describe())
    kept = tfexplain.create_analyzer("input_t_gradient", classifier, output_activation="keep")
    expected = x * tape_gradient(classifier, x, [0, 1, 0])
    assert_same(kept.analyze(x, target=1), expected, 1e-4)
    assert "probabilities" in str(kept.describe())
    assert differ(logits.analyze(x, target=1), expected)


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_xplique_nested_guided(name, nested):
    """Rectifiers inside nested models are rectifiers."""
    model, flat = nested
    x = samples(model)
    relevance = create(name, model).analyze(x, target=0)
    assert_same(relevance, create(name, flat).analyze(x, target=0))
    assert differ(relevance, create("gradient", model).analyze(x, target=0))


@pytest.mark.parametrize("form", ["layer", "relu6"])
def test_xplique_relu_max_value(form):
    """The gate of guided backpropagation closes above `max_value` too."""
    gate = keras.layers.ReLU(max_value=6.0) if form == "layer" else keras.layers.Activation("relu6")
    model = sequential((4,), gate, keras.layers.Dense(1, use_bias=False))
    model.set_weights([np.array([[1.0], [2.0], [3.0], [-4.0]])])
    x = np.array([[-1.0, 5.0, 7.0, 5.0]])
    relevance = create("guided_backprop", model).analyze(x)
    np.testing.assert_allclose(relevance, [[0, 2, 0, 0]], rtol=1e-9)
    plain = create("gradient", model).analyze(x)
    np.testing.assert_allclose(plain, [[0, 2, 0, -4]], rtol=1e-9)


# --- tf-explain --------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_tf_explain_integrated_gradients_factor(baseline):
    """Integrated gradients have the factor x - x0: they add up to f(x) - f(x0)."""
    model = randomize(
        sequential((4,), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2))
    )
    x = samples(model)
    analyzer = create("integrated_gradients", model, baseline=baseline)
    outputs = analyzer.outputs(np.concatenate([x, np.full((1, 4), baseline)]))[:, 0]
    relevance = analyzer.analyze(x, target=0)
    np.testing.assert_allclose(relevance.sum(axis=1), outputs[:3] - outputs[3], rtol=1e-7)


def test_tf_explain_smoothgrad_of_loss():
    """SmoothGrad differentiates the logit, whose gradient in a linear model is the weights."""
    model = randomize(sequential((4,), keras.layers.Dense(3, activation="softmax")))
    kernel = model.get_weights()[0].astype("float64")
    x = samples(model)
    relevance = create("smoothgrad", model, samples=4).analyze(x, target=2)
    assert_same(relevance, np.tile(kernel[:, 2], (3, 1)))
    # The gradient of the cross-entropy is another: it mixes the weights of all classes.
    probabilities = model.predict(x, verbose=0)
    assert differ((probabilities - np.eye(3)[2]) @ kernel.T, relevance)


# --- shap --------------------------------------------------------------------------------------

LAYERS = keras.layers
UNLISTED = {
    "gelu": ((4,), lambda: [LAYERS.Dense(5, activation="gelu")]),
    "leaky_relu": ((4,), lambda: [LAYERS.Dense(5), LAYERS.LeakyReLU()]),
    "prelu": ((4,), lambda: [LAYERS.Dense(5), LAYERS.PReLU()]),
    "relu6": ((4,), lambda: [LAYERS.Dense(5, activation="relu6")]),
    "hard_sigmoid": ((4,), lambda: [LAYERS.Dense(5, activation="hard_sigmoid")]),
    "swish": ((4,), lambda: [LAYERS.Dense(5, activation="swish")]),
    "depthwise": ((5, 5, 2), lambda: [LAYERS.DepthwiseConv2D(3)]),
    "separable": ((5, 5, 2), lambda: [LAYERS.SeparableConv2D(3, 3)]),
    "transpose": ((3, 3, 2), lambda: [LAYERS.Conv2DTranspose(2, 3)]),
    "conv3d": ((4, 4, 4, 1), lambda: [LAYERS.Conv3D(2, 3)]),
    "global_max_pool": ((4, 4, 2), lambda: [LAYERS.Conv2D(3, 2), LAYERS.GlobalMaxPooling2D()]),
    "layer_norm": ((4,), lambda: [LAYERS.Dense(5), LAYERS.LayerNormalization(name="culprit")]),
    "lstm": ((4, 2), lambda: [LAYERS.LSTM(3, name="culprit")]),
    "gru": ((4, 2), lambda: [LAYERS.GRU(3, name="culprit")]),
    "attention": ((4, 4), None),
}


@pytest.mark.parametrize("case", UNLISTED)
def test_shap_unlisted_operations(case):
    """The gradient works on every layer; LRP works and accounts for its sum."""
    shape, layers = UNLISTED[case]
    if layers is None:
        x = keras.Input(shape)
        attended = LAYERS.MultiHeadAttention(2, 3, name="culprit")(x, x)
        model = keras.Model(x, LAYERS.Dense(2)(LAYERS.Flatten()(attended)))
    else:
        model = keras.Sequential(
            [keras.Input(shape), *layers(), LAYERS.Flatten(), LAYERS.Dense(2, name="logits")]
        )
    randomize(model)
    x = samples(model).astype("float32")
    gradient = tfexplain.create_analyzer("gradient", model).analyze(x, target=1)
    assert_same(gradient, tape_gradient(model, x, [0, 1]), 1e-4)
    analyzer = create("lrp.epsilon", model)
    relevance = analyzer.analyze(x, target=1)
    ledger = analyzer.ledger(x, target=1)
    absorbed = (ledger.absorbed_by_bias + ledger.absorbed_by_stabilizer).sum("call")
    total = relevance.reshape(3, -1).sum(axis=1) + absorbed.values
    np.testing.assert_allclose(total, analyzer.outputs(x)[:, 1], rtol=1e-6)
    # No denominator is 0: what is lost would be a leak.
    assert np.abs(ledger.lost).max() <= 1e-9 * np.abs(ledger.received).max()
    assert np.all(np.abs(relevance).reshape(3, -1).max(axis=1) > 0)


def test_shap_global_registry(dense_relu):
    """Nothing is global: many analyzers at once, made and run in threads, and plain gradients."""
    x = samples(dense_relu).astype("float32")
    names = ["gradient", "guided_backprop", "deconvnet", "rect_grad", "lrp.epsilon", "lrp.flat"]
    options = {**GRADIENTS, **RELEVANCE}
    plain = tape_gradient(dense_relu, x, [1, 0, 0])
    expected = {}
    for name in names:
        expected[name] = create(name, dense_relu, **options[name]).analyze(x, target=0)

    def fresh(name):
        analyzer = create(name, dense_relu, **options[name])
        return name, analyzer, analyzer.analyze(x, target=0)

    def again(pair):
        name, analyzer = pair
        return name, [analyzer.analyze(x, target=0) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        made = list(pool.map(fresh, names))
        for name, _, relevance in made:
            assert_same(relevance, expected[name])
        # Every analyzer is used by two threads.
        pairs = [(name, analyzer) for name, analyzer, _ in made] * 2
        for name, found in pool.map(again, pairs):
            for relevance in found:
                assert_same(relevance, expected[name])
    assert differ(expected["guided_backprop"], plain)
    np.testing.assert_array_equal(tape_gradient(dense_relu, x, [1, 0, 0]), plain)


# --- zennit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_zennit_batch_norm_epsilon(epsilon):
    """The folded network equals the original to rounding, and epsilon is in it once."""
    layers = keras.layers
    conv, norm = layers.Conv1D(3, 2), layers.BatchNormalization(epsilon=epsilon)
    dense = layers.Dense(2)
    model = randomize(sequential((6, 2), conv, norm, layers.ReLU(), layers.Flatten(), dense))
    norm.moving_variance.assign(np.full(3, 1e-2))
    x = samples(model).astype("float32").astype("float64")
    gamma, beta, mean, variance = (w.astype("float64") for w in norm.get_weights())
    scale = gamma / np.sqrt(variance + epsilon)
    folded = keras.Sequential(
        [
            keras.Input((6, 2), dtype="float64"),
            layers.Conv1D(3, 2, dtype="float64", activation="relu"),
            layers.Flatten(dtype="float64"),
            layers.Dense(2, dtype="float64"),
        ]
    )
    kernel, bias = (w.astype("float64") for w in conv.get_weights())
    folded.set_weights([kernel * scale, (bias - mean) * scale + beta, *dense.get_weights()])
    analyzer = create("lrp.alpha_1_beta_0", model)
    assert_same(analyzer.outputs(x), folded(x).numpy(), 1e-6)
    assert_same(analyzer.outputs(x), model(x).numpy(), 1e-5)
    assert_same(analyzer.analyze(x), create("lrp.alpha_1_beta_0", folded).analyze(x), 1e-6)
