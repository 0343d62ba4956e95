"""One relevance vector takes other kernels than several: the maps are the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import assert_same, fitted, randomize
from tests.test_contract import OPTIONS
from tfexplain.compilation import CompiledByVectors

NAMES = sorted(set(tfexplain.ANALYZERS) - {"shapley_sampling", "smoothgrad"})


@pytest.fixture(scope="module")
def model():
    """Activations of several kinds, pooling over windows that overlap and that do not, a sum."""
    inputs = keras.Input((8, 8, 2))
    h = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    h = layers.MaxPooling2D(2)(h)
    a = layers.Conv2D(4, 1, activation="tanh")(h)
    h = layers.ReLU()(layers.Add()([a, layers.Conv2D(4, 3, padding="same")(h)]))
    h = layers.MaxPooling2D(3, 2, padding="same")(h)
    h = layers.Dense(5, activation="elu")(layers.Flatten()(h))
    return randomize(keras.Model(inputs, layers.Dense(3)(h)))


@pytest.fixture(scope="module")
def x():
    """Whole numbers with a border of zeros: maxima have ties, differences are 0."""
    x = np.random.default_rng(0).integers(-2, 3, size=(4, 8, 8, 2)).astype("float32")
    x[:, :2] = x[:, :, 6:] = 0
    return x


@pytest.mark.parametrize("name", NAMES)
def test_one_vector_is_the_same_as_one_of_several(name, model, x):
    noise = np.random.default_rng(1).normal(size=(60, 8, 8, 2))
    analyzer = fitted(tfexplain.create_analyzer(name, model, **OPTIONS.get(name, {})), noise)
    every = analyzer.analyze(x, target="all")
    one = np.stack([analyzer.analyze(x, target=target) for target in range(3)], axis=1)
    assert_same(one, every, 2e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_first_winner_of_a_tie_gets_everything(size, padding):
    """In row-major order of a window, for one vector as for several."""
    pooled = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.MaxPooling2D(size, padding=padding), layers.Flatten()]
    )
    x = np.ones((2, 6, 6, 1), "float32")
    expected = np.zeros((2, 6, 6, 1))
    expected[:, ::size, ::size] = 1
    sums = np.ones((2, 1, pooled.output_shape[1]), "float32")
    for name in ("gradient", "lrp.z"):
        analyzer = tfexplain.create_analyzer(name, pooled)
        one = analyzer.propagate(x, sums)["input"]
        several = analyzer.propagate(x, np.repeat(sums, 2, axis=1))["input"]
        np.testing.assert_array_equal(one[:, 0], expected)
        np.testing.assert_array_equal(several, np.repeat(one, 2, axis=1))


@pytest.mark.compiled
def test_each_number_of_vectors_is_compiled_once():
    traced = []

    def function(inputs, columns):
        traced.append(columns.shape.as_list())
        return inputs[0] * tf.reduce_sum(columns, axis=1)

    given = [tf.TensorSpec([None], "float32")], tf.TensorSpec([None, None], "float32")
    run = CompiledByVectors(function, list(given))
    for count in (1, 3, 1, 2):
        result = run([tf.ones([4])], tf.ones([4, count]))
        np.testing.assert_array_equal(result, np.full(4, count))
    assert traced == [[None, 1], [None, None]]
