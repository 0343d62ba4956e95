"""Networks and comparisons that several files of tests use."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def set_random_weights(layer, generator):
    """Normal weights; variances stay positive."""
    for weight in layer.weights:
        value = generator.normal(size=weight.shape)
        if weight.name == "moving_variance":
            value = np.abs(value) + 0.3
        weight.assign(value)


def tape_gradient(function, x, weights):
    """Gradient of sum(function(x) * weights) with respect to x."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(function(x) * tf.cast(weights, x.dtype))
    return tape.gradient(value, x).numpy()


def assert_same(found, expected, tolerance=1e-10):
    """Compares relative to each entry and to the largest of all."""
    np.testing.assert_allclose(
        found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
    )


def small_cnn(shape=(8, 8, 3), dtype=None, seed=0, final="softmax"):
    """Two convolutions with normalisation and poolings, two dense layers; random weights."""
    generator = np.random.default_rng(seed)
    model = keras.Sequential(
        [
            keras.Input(shape, dtype=None if dtype == "mixed_float16" else dtype, name="pixels"),
            layers.Conv2D(4, 3, padding="same", activation="relu", dtype=dtype, name="conv1"),
            layers.BatchNormalization(dtype=dtype, name="norm"),
            layers.Conv2D(4, 3, strides=2, dtype=dtype, name="conv2"),
            layers.Activation("relu", dtype=dtype, name="relu"),
            layers.MaxPooling2D(2, 1, dtype=dtype, name="pool"),
            layers.GlobalAveragePooling2D(dtype=dtype, name="average"),
            layers.Dense(5, activation="relu", dtype=dtype, name="hidden"),
            layers.Dense(3, activation=final, dtype=dtype, name="scores"),
        ]
    )
    for layer in model.layers:
        for weight in layer.weights:
            value = generator.normal(size=weight.shape) * (0.2 if weight.name == "bias" else 0.5)
            weight.assign(np.abs(value) + 0.3 if weight.name == "moving_variance" else value)
    # The hidden layer stays open.
    model.get_layer("hidden").bias.assign(np.full(5, 0.5))
    return model
