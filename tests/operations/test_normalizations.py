"""Normalisations by statistics of each sample, against dense formulas in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tests.helpers.deep_lift_networks as deep_lift
from tests.helpers.networks import assert_same, create, set_random_weights, tape_gradient
from tests.helpers.single_calls import F64, assert_formula, draw, network, relevance_for, rules_of
from tfexplain.canonizers import canonize
from tfexplain.graph import trace
from tfexplain.operations import Normalization
from tfexplain.rules import HeldDeviation, NormalizationDifference, RecordedCall

SIZE = 5


def centred(x):
    return x - x.mean()


# Name -> layer, and for one position: its matrix without gamma, given the deviation of x.
NORMALISATIONS = {
    "LayerNormalization": (
        lambda: layers.LayerNormalization(epsilon=0.1, **F64),
        lambda x: (np.eye(SIZE) - 1 / SIZE) / np.sqrt(centred(x).dot(centred(x)) / SIZE + 0.1),
    ),
    "RMSNormalization": (
        lambda: layers.RMSNormalization(epsilon=0.1, **F64),
        lambda x: np.eye(SIZE) / np.sqrt(x.dot(x) / SIZE + 0.1),
    ),
    "UnitNormalization": (
        lambda: layers.UnitNormalization(**F64),
        lambda x: np.eye(SIZE) / np.sqrt(x.dot(x)),
    ),
}
normalisations = pytest.mark.parametrize("name", NORMALISATIONS)


def normalised(name):
    """A network of the layer alone, its canonical operation, gamma and beta."""
    layer = NORMALISATIONS[name][0]()
    model = network([(3, SIZE)], layer)
    weights = [np.ones(SIZE), np.zeros(SIZE)]
    for place, weight in enumerate(layer.weights):
        # The last unit is always 0.
        weights[place] = np.append(draw((SIZE - 1,), seed=place)[0], 0.0)
        weight.assign(weights[place])
    (call,) = canonize(trace(model)).calls
    assert type(call.operation) is Normalization
    return model, call.operation, *weights


def shares(name, x, R, gamma, beta):
    """The relevance of one position, and what its bias and its outputs of 0 absorb."""
    W = NORMALISATIONS[name][1](x) * gamma
    y = x @ W + beta
    s = np.divide(R, y, out=np.zeros(SIZE), where=y != 0)
    return x * (W @ s), beta @ s, R[y == 0].sum()


@normalisations
def test_the_deviation_is_held(name):
    model, operation, gamma, beta = normalised(name)
    x = draw((3, SIZE))
    y = operation.forward(tf.constant(x))
    assert_formula(y.numpy(), model(x).numpy(), name)
    R = relevance_for(y)
    call = RecordedCall(operation, (tf.constant(x),), (y,))
    (found,) = HeldDeviation().propagate(call, (tf.constant(R),))
    bias, undefined = np.zeros((2, *R.shape[:2]))
    expected = np.zeros_like(R)
    for n, k, t in np.ndindex(R.shape[:3]):
        part, of_bias, of_zeros = shares(name, x[n, t], R[n, k, t], gamma, beta)
        expected[n, k, t] = part
        bias[n, k] += of_bias
        undefined[n, k] += of_zeros
    assert_formula(found.numpy(), expected, name)
    absorbed = HeldDeviation().absorbed(call, (tf.constant(R),))
    assert_formula(absorbed.bias + np.zeros_like(bias), bias, "bias")
    assert_formula(absorbed.undefined + np.zeros_like(bias), undefined, "undefined")
    assert absorbed.stabilizer == 0
    kept = expected.sum(axis=(2, 3)) + bias + undefined
    np.testing.assert_allclose(kept, R.sum(axis=(2, 3)), rtol=1e-10)
    # Gamma of the last unit is 0 where there is one.
    assert (undefined != 0).any() == bool(model.weights)


def around(name):
    """The layer between dense layers."""

    def function(x):
        h = NORMALISATIONS[name][0]()(layers.Dense(SIZE, **F64)(x))
        return layers.Dense(2, name="scores", **F64)(layers.Flatten(**F64)(h))

    model = network([(3, 4)], function)
    set_random_weights(model, np.random.default_rng(2))
    return model


@normalisations
def test_gradient_is_that_of_tensorflow(name):
    model, x = around(name), draw((3, 4))
    _, found = create("gradient", model).explain([tf.constant(x)], tf.constant([[0, 1]] * 2))
    for index, row in enumerate(np.eye(2)):
        assert_same(found.numpy()[:, index], tape_gradient(model, x, row))


@pytest.mark.parametrize("method", ["lrp.z", "lrp.gamma", "lrp.alpha_2_beta_1", "lrp.composite"])
@normalisations
def test_ledger_balances(name, method):
    model, x = around(name), draw((3, 4))
    analyzer = create(method, model)
    assert HeldDeviation() in rules_of(analyzer).values()
    ledger = analyzer.ledger(x, target=1)
    scale = np.abs(ledger.received).max().values + np.abs(ledger.kept).max().values
    assert np.abs(ledger.lost).max() <= 1e-10 * scale


@pytest.mark.parametrize("method", deep_lift.NAMES)
@normalisations
def test_deep_lift_is_complete(name, method):
    model, (x, x0) = around(name), np.random.default_rng(1).normal(size=(2, 3, 3, 4))
    analyzer = create(method, model)
    assert NormalizationDifference() in rules_of(analyzer).values()
    found = deep_lift.contributions(analyzer, x, x0)
    deep_lift.assert_complete(found, deep_lift.difference(model, x, x0))


@normalisations
def test_contributions_of_a_small_step_are_the_gradient(name):
    """Through the deviation too, as the step becomes small."""
    model, _, _, _ = normalised(name)
    x0 = draw((3, SIZE))
    step = 1e-6 * draw((3, SIZE), seed=1)
    m = np.random.default_rng(3).normal(size=(2, 1, 3, SIZE))
    analyzer = create("deep_lift.rescale", model)
    (found,) = deep_lift.eagerly(analyzer, x0 + step, x0, m).values()
    tensor = tf.constant(x0 + step / 2)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = tf.reduce_sum(model(tensor) * m[:, 0])
    expected = tape.gradient(y, tensor).numpy() * step
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_groups_are_normalised_each():
    """A group normalisation is that of layers over its groups of channels."""
    models = []
    for grouped in (True, False):
        inputs = keras.Input((4, 6), **F64)
        if grouped:
            h = layers.GroupNormalization(2, epsilon=0.1, **F64)(inputs)
        else:
            h = layers.Reshape((4, 2, 3), **F64)(inputs)
            norm = layers.LayerNormalization((1, 3), 0.1, center=False, scale=False, **F64)
            h = layers.Reshape((4, 6), **F64)(norm(h))
        scores = layers.Dense(2, name="scores", **F64)
        models.append(keras.Model(inputs, scores(layers.Flatten(**F64)(h))))
    set_random_weights(models[1], np.random.default_rng(4))
    last = models[1].get_layer("scores").get_weights()
    models[0].get_layer("scores").set_weights(last)
    x = draw((4, 6))
    for method in ("gradient", "lrp.z", "lrp.alpha_2_beta_1", "deep_lift.rescale"):
        options = {"baseline": draw((4, 6), seed=3)[:1]} if "lift" in method else {}
        first, second = (create(method, m, **options).analyze(x, target=1) for m in models)
        assert np.abs(second).max() > 0
        assert_same(first, second, 1e-9)
