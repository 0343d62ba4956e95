"""Every layer and operation: gradients against TensorFlow, relevance finite and conserved."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers.layers import (
    ACTIVATIONS,
    CASES,
    CONSERVED,
    IDENTITIES,
    LINEAR,
    SEQUENCE,
    dense,
    network,
    without_biases,
)
from tests.helpers.networks import assert_same, set_random_weights, tape_gradient
from tfexplain import create_analyzer
from tfexplain.operations import Affine, Linear, Sum
from tfexplain.reverse import start_relevance

# Epsilon small enough to be seen in no digit that is compared.
METHODS = {
    "lrp.epsilon": {"epsilon": 1e-15},
    "lrp.alpha_2_beta_1": {},
    "deep_taylor": {},
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradient(case):
    model, x = network(case)
    function = tf.function(lambda x: model(x), jit_compile=True) if case.needs_xla else model
    found = create_analyzer("gradient", model).attribute(x, target="all")
    expected = [tape_gradient(function, x, row) for row in np.eye(3)]
    assert_same(found.relevance.values, np.stack(expected, axis=1), case.tolerance)
    assert_same(found.output.values, function(tf.constant(x)).numpy(), case.tolerance)


def contributions(operation, inputs):
    """What each input element of one sample alone gives each output: (inputs, outputs)."""
    found = []
    for place, value in enumerate(inputs):
        arguments = [tf.zeros((1, *other.shape), other.dtype) for other in inputs]
        arguments[place] = tf.constant(np.diag(value.ravel()).reshape(-1, *value.shape))
        found.append(operation.forward(*arguments).numpy().reshape(value.size, -1))
    return np.concatenate(found)


def one_signed_loss(analyzer, x):
    """What alpha 2 beta 1 loses, of biases 0: shares of sums that are 0, over all calls.

    That is 2 R_j where no contribution to j is positive, -R_j where none is negative.
    """
    network, lost = analyzer.network(), np.zeros(len(x))
    records = network.forward_pass([tf.constant(x)])
    target = tf.ones([len(x), 1], tf.int32)
    start = start_relevance(records[network.start_index], target, analyzer.head)

    def visit(call, tensors, relevance):
        if isinstance(call.operation, Linear | Affine | Sum):
            inputs = [tensors[node] for node in call.inputs]
            for sample in range(len(x)):
                parts = contributions(call.operation, [part[sample].numpy() for part in inputs])
                r = relevance[0][sample, 0].numpy().ravel()
                lost[sample] += 2 * r[(parts <= 0).all(axis=0)].sum()
                lost[sample] -= r[(parts >= 0).all(axis=0)].sum()
        return network.visit(call, tensors, relevance)

    network._walk(dict(zip(network.nodes, records, strict=True)), start, visit)
    return lost


def check_relevance(model, x, loses=(), tolerance=1e-10, compiled=True):
    """Checks that all relevance arrives at the input but what sums of one sign lose."""
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
        if name == "lrp.alpha_2_beta_1":
            missing -= one_signed_loss(analyzer, x)
        if name in loses:
            assert (np.abs(missing) > 1e-6 * scale).any(), f"{name} loses nothing"
        else:
            assert (np.abs(missing) <= tolerance * scale).all(), f"{name} loses {missing}"


@pytest.mark.parametrize("case", CONSERVED, ids=lambda case: case.id)
def test_relevance(case):
    model, x = network(case)
    with without_biases(model):
        # tests/rules/test_rules.py compiles the rules of linear layers.
        check_relevance(model, x, case.loses, case.tolerance, compiled=case not in LINEAR)


def test_relevance_of_activations_and_identities():
    # Side by side in one network, which costs less than one network each.
    separate = [case for case in ACTIVATIONS if not case.id.endswith("_fused")]
    inputs = keras.Input(SEQUENCE, dtype="float64")
    h = layers.Concatenate(dtype="float64")([case.apply(inputs) for case in separate])
    for case in IDENTITIES:
        if case.shape == SEQUENCE:
            h = case.apply(h)
    model = keras.Model(inputs, dense(3)(layers.Flatten(dtype="float64")(h)))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        set_random_weights(layer, generator)
    with without_biases(model):
        check_relevance(model, generator.normal(size=(3, *SEQUENCE)))
