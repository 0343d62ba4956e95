"""Numbers of DeepLIFT that others worked out by hand, and what RevealCancel is for."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers.deep_lift_networks import (
    NAMES,
    activation,
    contributions,
    conv,
    create,
    dense,
    multipliers,
    normal,
    sequential,
)
from tests.helpers.networks import assert_same

# --- numbers that others worked out by hand -------------------------------------------------------


def weighted(model, *weights):
    model.set_weights([np.asarray(weight, "float64") for weight in weights])
    return model


def test_captum_relu_of_two_inputs():
    # 2 relu(x1) + 2 relu(x2 - 1.5)
    model = weighted(
        sequential((2,), dense(2, activation="relu"), dense(1)),
        *(np.eye(2), [0, -1.5], [[2], [2]], [0]),
    )
    analyzer, x, x0 = create("deep_lift.rescale", model), [[1.0, 2.0]], [[0.0, 0.0]]
    np.testing.assert_allclose(contributions(analyzer, x, x0), [[[2, 1]]], rtol=1e-12)
    np.testing.assert_allclose(multipliers(analyzer, x, x0), [[[2, 0.5]]], rtol=1e-12)


def test_captum_max_pool():
    model = sequential((4, 1), layers.MaxPooling1D(4, dtype="float64"))
    x0 = np.array([[1.0, 2, 3, 9], [4, 8, 6, 7]])[..., None]
    found = contributions(create("deep_lift.rescale", model), np.ones((2, 4, 1)), x0)
    np.testing.assert_array_equal(found[:, 0, :, 0], [[0, 0, 0, -8], [0, -7, 0, 0]])


def test_captum_reused_modules():
    """captum raises for a ReLU that is called twice."""
    inputs = keras.Input((2,), dtype="float64")
    relu, first, second = layers.ReLU(dtype="float64", name="relu"), dense(3), dense(2)
    model = keras.Model(inputs, relu(second(relu(first(inputs)))))
    unrolled = sequential((2,), dense(3), activation("relu"), dense(2), activation("relu"), seed=4)
    model.set_weights(unrolled.get_weights())
    x, x0 = normal(3, 2), normal(3, 2, seed=2)
    found, expected = (
        contributions(create("deep_lift.reveal_cancel", m), x, x0) for m in (model, unrolled)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.ptp(found) > 0


def test_deeplift_dense():
    w = np.array([1.0, 2, 3, 4])
    model = weighted(sequential((4,), dense(2), activation("relu")), np.stack([w, -w], 1), [-1, 1])
    x = np.array([[1.0] * 4, [2.0] * 4])
    analyzer = create("deep_lift.rescale", model)
    expected = [[0.9 * w, -0.1 * w], [0.95 * w, -0.05 * w]]
    np.testing.assert_allclose(multipliers(analyzer, x, 0 * x), expected, rtol=1e-12)
    gradient = create("gradient", model).analyze(x, target="all")
    np.testing.assert_array_equal(gradient, [[w, 0 * w]] * 2)


def one_dimensional(stride):
    kernel = np.array([[-2.0, 0], [-1, 1]])
    model = sequential(
        (4, 2),
        layers.Conv1D(2, 2, strides=stride, dtype="float64", name="conv"),
        layers.Flatten(dtype="float64"),
        dense(1),
    )
    signs = np.tile([1.0, -1.0], 3 if stride == 1 else 2)[:, None]
    return weighted(model, np.stack([kernel, -kernel], axis=2), [-1, 1], signs, [1])


SEQUENCES = np.arange(-8.0, 8).reshape(2, 2, 4).transpose(0, 2, 1)


@pytest.mark.parametrize(
    ("stride", "expected"),
    [(1, [[-4, -6, -6, -2], [0, 2, 2, 2]]), (2, [[-4, -2, -4, -2], [0, 2, 0, 2]])],
)
def test_deeplift_conv1d_multipliers(stride, expected):
    analyzer = create("deep_lift.rescale", one_dimensional(stride))
    found = multipliers(analyzer, SEQUENCES, 0 * SEQUENCES)
    np.testing.assert_array_equal(found[:, 0].transpose(0, 2, 1), [expected] * 2)


def test_deeplift_conv1d_parts():
    """Read through RevealCancel of a function that passes everything: y+ = D+ and y- = D-."""
    network = create("deep_lift.reveal_cancel", one_dimensional(1)).network()
    (call,) = (c for c in network.graph.calls if c.name.startswith("conv"))
    outputs = [tf.constant(part) for part in (SEQUENCES, np.ones_like(SEQUENCES))]
    tensors = {
        "inputs": outputs[:1],
        "outputs": [call.operation.forward(outputs[0])],
        "baseline_inputs": outputs[1:],
        "baseline_outputs": [call.operation.forward(outputs[1])],
    }
    (parts,) = network._parts_of_outputs[call](tensors)
    above, below = (part.numpy().transpose(0, 2, 1) for part in parts)
    np.testing.assert_array_equal(above, [[[26, 23, 20], [4, 3, 2]], [[6, 5, 6], [0, 1, 4]]])
    np.testing.assert_array_equal(
        below, [[[-4, -3, -2], [-26, -23, -20]], [[0, -1, -4], [-6, -5, -6]]]
    )


def pooled(layer, shape, count):
    model = sequential(shape, layer, layers.Flatten(dtype="float64"), dense(1))
    return weighted(model, np.tile([2.0, 3.0], count)[:, None], [1])


PAIRS = np.array([[[0.0, 1, 4, 3], [3, 2, 1, 0]], [[0, -1, -2, -3], [-3, -2, -1, 0]]])
PAIRS = PAIRS.transpose(0, 2, 1)


def test_deeplift_pool1d():
    """Its max pooling is the gradient; the first of two equal elements wins."""
    cases = (
        (layers.MaxPooling1D, [[[0, 2, 4, 0], [3, 3, 3, 0]], [[2, 2, 2, 0], [0, 3, 3, 3]]]),
        (layers.AveragePooling1D, [[[1, 2, 2, 1], [1.5, 3, 3, 1.5]]] * 2),
    )
    for cls, expected in cases:
        model = pooled(cls(2, strides=1, dtype="float64"), (4, 2), 3)
        analyzer = create("deep_lift.rescale", model, max_pool="gradient")
        found = multipliers(analyzer, PAIRS, 0 * PAIRS)[:, 0].transpose(0, 2, 1)
        np.testing.assert_array_equal(found, expected)


def test_deeplift_pool2d():
    low = np.array([[0.0, 0, 2, 3], [0, 1, 0, 0], [0, 5, 4, 0], [6, 0, 7, 8]])
    high = np.array([[2.0, 0, 2, 3], [0, 1, 4, 0], [7, 6, 5, 0], [6, 0, 8, 9]])
    x = np.stack([np.stack([high, low], -1), np.stack([low + 1, high + 1], -1)])
    x0 = np.stack([np.stack([low, low + 1], -1)] * 2)
    of_high = np.array([[1, 0, 0, 0], [0, 0, 2, 0], [2, 1, 1, 0], [0, 0, 1, 1]])
    of_low = np.array([[0, 0, 1, 1], [0, 1, 0, 0], [0, 2, 1, 0], [1, 0, 1, 1]])
    expected = [[2 * of_high, 3 * of_low], [2 * of_low, 3 * of_high]]
    model = pooled(layers.MaxPooling2D(2, strides=1, dtype="float64"), (4, 4, 2), 9)
    analyzer = create("deep_lift.rescale", model, max_pool="gradient")
    found = multipliers(analyzer, x, x0)[:, 0].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, expected)

    model = pooled(layers.AveragePooling2D(2, strides=1, dtype="float64"), (4, 4, 2), 9)
    found = multipliers(create("deep_lift.rescale", model), x, x0)[:, 0].transpose(0, 3, 1, 2)
    ones = np.outer([1, 2, 2, 1], [1, 2, 2, 1])
    np.testing.assert_array_equal(found, [[ones * 0.5, ones * 0.75]] * 2)


def test_deeplift_functional_concatenation():
    """Two convolutions of one input, joined: Rescale is gradient times input without biases."""
    inputs = keras.Input((6, 5, 2), dtype="float64")
    chains = [conv(2, 2, activation="relu")(inputs), conv(3, 2, activation="relu")(inputs)]
    h = layers.Concatenate(dtype="float64")(chains)
    h = layers.Flatten(dtype="float64")(layers.AveragePooling2D(2, dtype="float64")(h))
    model = keras.Model(inputs, dense(2)(dense(4, activation="relu")(h)))
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape) if weight.name == "bias" else normal(*weight.shape))
    x = normal(3, 6, 5, 2, seed=3)
    found = contributions(create("deep_lift.rescale", model), x, 0 * x)
    expected = create("input_t_gradient", model).analyze(x, target="all")
    assert_same(found, expected, 1e-12)


def test_deeplift_resolves_the_genomics_mode():
    """RevealCancel behind dense layers and Rescale behind convolutions, through batch norm."""
    model = sequential(
        (5, 5, 2),
        conv(2, 2, name="conv"),
        layers.BatchNormalization(dtype="float64"),
        layers.Dropout(0.5, dtype="float64"),
        layers.ReLU(dtype="float64", name="after_conv"),
        layers.Flatten(dtype="float64"),
        dense(3, name="dense"),
        layers.BatchNormalization(dtype="float64"),
        layers.Dropout(0.5, dtype="float64"),
        layers.ReLU(dtype="float64", name="after_dense"),
        dense(3, activation="relu", name="fused"),
        dense(2, activation="sigmoid"),
    )
    for batch_norm in ("fold", "rule"):
        analyzer = create("deep_lift.genomics", model, batch_norm=batch_norm)
        rules = {row[0]: row[2] for row in analyzer.describe().rows if row[1] == "relu"}
        found = [rule.split("(")[0] for rule in rules.values()]
        assert found == ["Rescale", "RevealCancel", "RevealCancel"], rules


# --- what RevealCancel is for ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def minimum():
    """min(i1, i2) = i1 - relu(i1 - i2)."""
    inputs = keras.Input((2,), dtype="float64")
    first, apart = dense(1, use_bias=False), dense(1, use_bias=False, activation="relu")
    outputs = layers.Subtract(dtype="float64")([first(inputs), apart(inputs)])
    model = keras.Model(inputs, outputs)
    first.set_weights([np.array([[1.0], [0.0]])])
    apart.set_weights([np.array([[1.0], [-1.0]])])
    return model


def test_minimum_of_two_inputs(minimum):
    """Shrikumar et al. (2017), section 3.5.3: both inputs matter, each half of the minimum."""
    x = np.array([[10.0, 6], [6, 10], [1, 1], [7, 0], [0, 7]])
    found = contributions(create("deep_lift.reveal_cancel", minimum), x, 0 * x)[:, 0]
    np.testing.assert_allclose(found, [[3, 3], [3, 3], [0.5, 0.5], [0, 0], [0, 0]], atol=1e-12)
    # Rescale and gradients give everything to the smaller one.
    found = contributions(create("deep_lift.rescale", minimum), x[:2], 0 * x[:2])[:, 0]
    np.testing.assert_allclose(found, [[0, 6], [6, 0]], atol=1e-12)


def test_minimum_from_another_baseline(minimum):
    x, x0 = np.array([[10.0, 6]]), np.array([[1.0, 3]])
    # D+ = 9 of i1, D- = -3 of i2, from relu(-2): (f(7) - f(-2) + f(4) - f(-5)) / 2 = 5.5 and
    # (f(-5) - f(-2) + f(4) - f(7)) / 2 = -1.5.
    found = contributions(create("deep_lift.reveal_cancel", minimum), x, x0)
    np.testing.assert_allclose(found, [[[9 - 5.5, 1.5]]], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("gate", ["and", "or"])
def test_gates_of_binary_inputs(name, gate):
    """AND = relu(i1 + i2 - 1), OR = i1 + i2 - AND: both inputs share what they do together."""
    inputs = keras.Input((2,), dtype="float64")
    both, either = dense(1, activation="relu"), dense(1)
    outputs = both(inputs)
    if gate == "or":
        outputs = layers.Subtract(dtype="float64")([either(inputs), outputs])
        either.set_weights([np.ones((2, 1)), np.zeros(1)])
    both.set_weights([np.ones((2, 1)), -np.ones(1)])
    x = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    found = contributions(create(name, keras.Model(inputs, outputs)), x, 0 * x)[:, 0]
    expected = 0.5 * x[:, :1] * x[:, 1:] * np.ones(2)
    if gate == "or":
        expected = x - expected
    np.testing.assert_allclose(found, expected, atol=1e-12)
