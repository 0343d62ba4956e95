"""Networks and read-outs for the tests of DeepLIFT."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers import reference_deep_lift as reference
from tests.helpers.networks import set_random_weights

NAMES = ("deep_lift.rescale", "deep_lift.reveal_cancel", "deep_lift.genomics")
KERAS_SAVES = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def create(name, model, **options):
    return tfexplain.create_analyzer(name, model, **options)


def sequential(shape, *chain, seed=0, dtype="float64"):
    """A model of these layers with signed random weights and biases."""
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *chain])
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        set_random_weights(layer, generator)
    return model


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def eagerly(analyzer, x, x0, relevance=None, read=(), start=None, **options):
    """Returns read-out -> (batch, num_vectors, *shape); by default for every output."""
    network = analyzer.network(start, read, **options)
    given_ = [tf.constant(np.asarray(part, analyzer.dtype)) for part in (x, x0)]
    if relevance is None:
        size = int(np.prod(network.start.shape[1:]))
        relevance = np.eye(size).reshape(1, size, *network.start.shape[1:])
        relevance = np.repeat(relevance, len(x), axis=0)
    found = network.propagate(given_, tf.constant(relevance.astype(analyzer.dtype)))
    return {name: part.numpy() for name, part in zip(network.readouts, found, strict=True)}


def contributions(analyzer, x, x0, **options):
    """Contributions of the only input to every output."""
    (found,) = eagerly(analyzer, x, x0, **options).values()
    return found


def multipliers(analyzer, x, x0, **options):
    return contributions(analyzer, x, x0, quantity="multiplier", **options)


def difference(model, x, x0):
    """f(x) - f(x0) of the model itself, flat."""
    found = (model(part, training=False).numpy() for part in (x, x0))
    return np.subtract(*found).reshape(len(x), -1)


def assert_complete(found, expected, tolerance=1e-10):
    """Contributions (batch, num_outputs, *shape) add up to the difference of each output."""
    flat = found.reshape(*found.shape[:2], -1)
    scale = np.abs(flat).sum(axis=2).max() + np.abs(expected).max()
    np.testing.assert_allclose(flat.sum(axis=2), expected, rtol=0, atol=tolerance * scale)


def up_to(model, name):
    """The part of a model that computes the output of a layer."""
    return keras.Model(model.inputs[0], model.get_layer(name).output)


def activation(function, **options):
    return layers.Activation(function, dtype="float64", **options)


def dense(units, **options):
    return layers.Dense(units, dtype="float64", **options)


def conv(filters, size, **options):
    return layers.Conv2D(filters, size, dtype="float64", **options)


TANH = {"value": np.tanh, "slope": lambda x: 1 - np.tanh(x) ** 2}


def mlp(first="relu", second="tanh"):
    return sequential(
        (5,),
        dense(6, name="z1"),
        activation(first, name="a1"),
        dense(5, name="z2"),
        activation(second, name="a2"),
        dense(3, name="z3"),
    )


def chain_of(model, rule_of):
    """The layers of a model as steps of the reference; `rule_of(position)` is of functions."""
    steps, shape = [], model.input_shape[1:]
    for layer in model.layers:
        weights = [weight.numpy() for weight in layer.weights]
        if isinstance(layer, layers.Conv2D):
            steps.append(reference.convolution_matrix(*weights, shape, layer.strides[0]))
        elif isinstance(layer, layers.Dense):
            steps.append(reference.Linear(*weights))
        elif isinstance(layer, layers.Activation):
            options = TANH if layer.activation is keras.activations.tanh else {}
            steps.append(reference.Function(rule_of(len(steps)), **options))
        shape = layer.output.shape[1:]
    return steps


def genomics(step):
    return reference.RESCALE if step < 4 else reference.REVEAL_CANCEL


RULES = {
    "deep_lift.rescale": lambda step: reference.RESCALE,
    "deep_lift.reveal_cancel": lambda step: reference.REVEAL_CANCEL,
    "deep_lift.genomics": genomics,
}
