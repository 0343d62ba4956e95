"""Relevance through single operations against numbers that were computed elsewhere."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers.networks import assert_same
from tfexplain import create_analyzer


def normalized(x, gamma, beta):
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + 1e-3)
    return centred / deviation * gamma + beta


def lambda_of(function):
    return lambda inputs, _: layers.Lambda(lambda given: function(*given))(inputs)


def layer_norm(inputs, arrays):
    layer = layers.LayerNormalization(epsilon=1e-3)
    result = layer(inputs[0])
    layer.set_weights([arrays["gamma"], arrays["beta"]])
    return result


class Normalized(layers.Layer):
    """A normalisation by hand, with variables of its own."""

    def __init__(self, gamma, beta, **options):
        super().__init__(**options)
        self.gamma, self.beta = (
            tf.Variable(gamma, dtype="float32"),
            tf.Variable(beta, dtype="float32"),
        )

    def call(self, x):
        return normalized(x, self.gamma, self.beta)


# Operation -> inputs in order, and what computes it, in ways that are opened.
WAYS = {
    ("layernorm", "Keras"): (["x"], layer_norm),
    ("layernorm", "by hand"): (
        ["x"],
        lambda inputs, arrays: Normalized(arrays["gamma"], arrays["beta"])(inputs[0]),
    ),
    ("gelu", "by hand"): (["x"], lambda_of(lambda x: 0.5 * x * tf.math.erfc(-x * 0.5**0.5))),
    ("add", "TensorFlow"): (["a", "b"], lambda_of(lambda a, b: a + b)),
    ("mean_pool", "TensorFlow"): (["x"], lambda_of(lambda x: tf.reduce_mean(x, 1))),
    ("multiply", "TensorFlow"): (["a", "b"], lambda_of(lambda a, b: a * b)),
    ("matmul", "TensorFlow"): (["A", "B"], lambda_of(lambda a, b: a @ b)),
    ("matmul", "einsum"): (
        ["A", "B"],
        lambda_of(lambda a, b: tf.einsum("...ij,...jk->...ik", a, b)),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_reference_numbers(data_dir, way, dtype):
    (name, _), (order, make) = way, WAYS[way]
    with np.load(data_dir / "relevance_reference" / "operations.npz") as stored:
        arrays = {
            key.split("/", 2)[2]: stored[key]
            for key in stored.files
            if key.startswith(f"{name}/in/")
        }
        expected = {key: stored[f"{name}/out/R_{key}"] for key in order}
    inputs = [keras.Input(arrays[key].shape[1:], name=key) for key in order]
    model = keras.Model(inputs, make(inputs, arrays))
    given = [arrays[key] for key in order]
    analyzer = create_analyzer("lrp.z", model, dtype=dtype)
    found = analyzer.propagate(given if len(given) > 1 else given[0], arrays["R"][:, None])
    for key in order:
        part = found["input" if len(order) == 1 else key][:, 0]
        # The weights of a model of float32 are rounded.
        assert_same(part, expected[key], 2e-5 if dtype == "float32" else 1e-6)
