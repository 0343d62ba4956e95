"""Networks, methods and comparisons that several files of tests use."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfexplain

# Name -> options that it needs.
GRADIENTS = {
    "gradient": {},
    "input_t_gradient": {},
    "integrated_gradients": {"steps": 4},
    "smoothgrad": {"samples": 4},
    "guided_backprop": {},
    "deconvnet": {},
    "rect_grad": {"percentile": 50},
}
RELEVANCE = {
    "excitation_bp": {},
    "excitation_bp.contrastive": {},
    "deep_taylor": {},
    "deep_taylor.bounded": {"low": -5, "high": 5},
    "lrp.z": {},
    "lrp.epsilon": {"epsilon": 0.1},
    "lrp.gamma": {},
    "lrp.alpha_beta": {"alpha": 3},
    "lrp.z_plus": {},
    "lrp.w_square": {},
    "lrp.flat": {},
    "lrp.sequential_preset_b_flat": {},
    "lrp.composite": {},
    "lrp.contrastive": {},
}


PERTURBATIONS = {"shapley_sampling": {"cycles": 2, "baseline": 0.3}}
DIFFERENCES = {
    "deep_lift.rescale": {"baseline": 0.3},
    "deep_lift.reveal_cancel": {},
    "deep_lift.genomics": {},
    "deep_lift.ablation": {},
}


def create(name, model, **options):
    """Creates an analyzer in float64."""
    return tfexplain.create_analyzer(name, model, **{"dtype": "float64", **options})


def fitted(analyzer, x):
    """Fits an analyzer to x if it needs that."""
    return analyzer.fit(x) if tfexplain.ANALYZERS[analyzer.name].fits else analyzer


def sequential(shape, *stack):
    """Builds a Sequential model."""
    return keras.Sequential([keras.Input(shape), *stack])


class Loop(layers.Layer):
    """Halves three times, in a loop of TensorFlow: it has a gradient, and cannot be opened."""

    def call(self, x):
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y / 2), (0, x))[1]


def set_random_weights(layer, generator):
    """Normal weights of a layer or model; variances stay positive."""
    for weight in layer.weights:
        value = generator.normal(size=weight.shape)
        if weight.name == "moving_variance":
            value = np.abs(value) + 0.3
        weight.assign(value)


def randomize(model, seed=0):
    """Gives a model weights of both signs, and variances > 0."""
    set_random_weights(model, np.random.default_rng(seed))
    return model


def samples(model, count=3, seed=1):
    """Draws inputs of both signs."""
    return np.random.default_rng(seed).normal(size=(count, *model.input_shape[1:]))


def tape_gradient(function, x, weights):
    """Gradient of sum(function(x) * weights) with respect to x."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(function(x) * tf.cast(weights, x.dtype))
    return tape.gradient(value, x).numpy()


def assert_same(found, expected, tolerance=1e-10):
    """Compares relative to each entry and to the largest of all, which is not 0."""
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


def differ(first, second):
    """Tells whether two maps differ by more than a hundredth of the largest value."""
    return np.max(np.abs(first - second)) > 0.01 * np.max(np.abs(second))


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
