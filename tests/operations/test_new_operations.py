"""A new operation is a class of a family and one row of a table: every method then knows it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tests.helpers.networks import DIFFERENCES, RELEVANCE, assert_same, create, set_random_weights
from tests.helpers.single_calls import rules_of
from tfexplain import UnsupportedLayerError
from tfexplain.layer_types import OPERATIONS, Entry, register
from tfexplain.operations import Movement, Selection, SumOfTensors
from tfexplain.operations.elementwise import Activation
from tfexplain.rules import Gradient, GuidedReLU, Winner

F64 = {"dtype": "float64"}
METHODS = {
    "gradient": {},
    "guided_backprop": {},
    "deconvnet": {},
    "rect_grad": {"percentile": 50},
    **RELEVANCE,
    **DIFFERENCES,
}


@keras.saving.register_keras_serializable("tests_new_operations")
class Blend(layers.Layer):
    """2 a - b / 2, as a layer that the library does not know."""

    def call(self, inputs):
        return 2 * inputs[0] - inputs[1] / 2

    def compute_output_shape(self, input_shape):
        return input_shape[0]


class Blending(SumOfTensors):
    """2 a - b / 2."""

    @classmethod
    def from_call(cls, call):
        return cls("Blend", source=call.operation)

    def forward(self, first, second):
        return 2 * first - second / 2

    def factors(self, inputs):
        return (2.0, -0.5)

    def bias(self, inputs):
        return None

    def equal_shares(self, inputs, outputs, relevance):
        return relevance / 2, relevance / 2


def spelled_out(inputs):
    """The same by layers that are known."""
    first, second = inputs
    scaled = layers.Rescaling(2.0, **F64)(first), layers.Rescaling(0.5, **F64)(second)
    return layers.Subtract(**F64)(scaled)


@pytest.fixture
def row():
    """Enters a row for the duration of a test."""
    before = dict(OPERATIONS)
    yield register
    OPERATIONS.clear()
    OPERATIONS.update(before)


def network(merging, seed=0):
    """Two branches, one of them rectified, that are merged."""
    inputs = keras.Input((5,), **F64)
    branches = [layers.Dense(6, activation=a, **F64)(inputs) for a in ("relu", "tanh")]
    h = layers.ReLU(**F64)(merging(branches))
    model = keras.Model(inputs, layers.Dense(3, **F64)(h))
    set_random_weights(model, np.random.default_rng(seed))
    return model


def explained(name, model, **options):
    """Relevance of two outputs, without compiling."""
    x = np.random.default_rng(1).normal(size=(3, 5))
    analyzer = create(name, model, **options)
    targets = tf.constant(np.tile([0, 2], (len(x), 1)), tf.int32)
    return analyzer.explain([tf.constant(x)], targets)[1].numpy()


class Looping(Blend):
    """The same, halved in a loop."""

    def call(self, inputs):
        blended = super().call(inputs)
        return tf.while_loop(lambda i, y: i < 1, lambda i, y: (i + 1, y / 2), (0, blended))[1]


@pytest.mark.parametrize("name", METHODS)
def test_without_a_row_it_is_opened(name):
    found = explained(name, network(Blend(**F64)), **METHODS[name])
    assert_same(found, explained(name, network(spelled_out), **METHODS[name]))


def test_what_cannot_be_opened_is_refused_without_a_row():
    with pytest.raises(UnsupportedLayerError, match=r"blend \(Looping: it holds a loop"):
        create("lrp.z", network(Looping(name="blend", **F64)))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_knows_an_additive_operation(name, row):
    """It is explained as what it computes is, written down by layers that are known."""
    row(Entry([Blend], Blending))
    found = explained(name, network(Blend(**F64)), **METHODS[name])
    assert_same(found, explained(name, network(spelled_out), **METHODS[name]))


@pytest.mark.parametrize("name", ["pattern.net", "pattern.attribution"])
def test_an_additive_operation_has_fitted_patterns(name, row):
    row(Entry([Blend], Blending))
    model = network(Blend(name="blend", **F64))
    x = np.random.default_rng(2).normal(size=(200, 5))
    analyzer = create(name, model).fit(x)
    pattern = analyzer.patterns["blend"]
    assert pattern.shape == (2, 6)
    # w . a = 1 for each unit.
    np.testing.assert_allclose(2 * pattern[0] - pattern[1] / 2, 1, rtol=1e-9)
    assert np.abs(explained(name, model, patterns=analyzer.patterns)).max() > 0


class Mirror(layers.Layer):
    """Turns the last axis round."""

    def call(self, x):
        return ops.flip(x, axis=-1)


class Turning(Movement):
    """The last axis, turned round."""


class Cube(layers.Layer):
    """A function of single elements."""

    def call(self, x):
        return x**3


class Cubing(Activation):
    """x^3, whose slope is known."""

    @classmethod
    def from_call(cls, call):
        return cls("cube", lambda x: x**3, call.operation, keeps_sign=True)


class Median(layers.Layer):
    """The middle one of three tensors."""

    def call(self, inputs):
        a, b, c = inputs
        return ops.maximum(ops.minimum(a, b), ops.minimum(ops.maximum(a, b), c))

    def compute_output_shape(self, input_shape):
        return input_shape[0]


class Choosing(Selection):
    """The middle one of three tensors."""

    def route(self, inputs, outputs, relevance):
        taken, shares = tf.zeros_like(outputs[0], tf.bool), []
        for x in inputs:
            wins = tf.equal(x, outputs[0]) & ~taken
            taken |= wins
            shares.append(tf.cast(wins, relevance.dtype)[:, None] * relevance)
        return tuple(shares)


def test_families_join_their_rows(row):
    row(Entry([Mirror], Turning))
    row(Entry([Cube], Cubing))
    row(Entry([Median], Choosing))

    def merging(branches):
        first, second = branches
        turned = Mirror(name="mirror", **F64)(first)
        cubed = Cube(name="cube", **F64)(second)
        return Median(name="median", **F64)([turned, cubed, second])

    model = network(merging)
    rules = rules_of(create("lrp.z", model))
    assert rules["mirror"] == Gradient() and rules["median"] == Winner()
    assert str(rules["cube"]) == "Pass()"
    for name in ("guided_backprop", "deconvnet"):
        rules = rules_of(create(name, model))
        assert {rules["mirror"], rules["cube"], rules["median"]} == {Gradient()}
    assert GuidedReLU() in rules_of(create("guided_backprop", model)).values()
    # LRP-z conserves but what the biases absorb.
    for layer in model.layers:
        if isinstance(layer, layers.Dense):
            layer.bias.assign(np.zeros(layer.units))
    x = np.random.default_rng(3).normal(size=(3, 5))
    analyzer = create("lrp.z", model)
    outputs, found = analyzer.explain([tf.constant(x)], tf.ones([3, 1], tf.int32))
    np.testing.assert_allclose(found.numpy().sum(axis=(1, 2)), outputs.numpy()[:, 1], rtol=1e-9)
    rescale = explained("deep_lift.rescale", model, max_pool="gradient")
    assert np.isfinite(rescale).all() and np.abs(rescale).max() > 0
