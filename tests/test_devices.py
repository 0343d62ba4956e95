"""The same numbers by XLA and on a GPU."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.layers import LINEAR, POOLING, network
from tests.helpers.networks import assert_same, fitted, set_random_weights
from tests.test_contract import OPTIONS
from tfexplain import create_analyzer
from tfexplain.compilation import Compiled

pytestmark = pytest.mark.compiled

# The tiny networks have few units: with the default one of them would pass.
OPTIONS = {**OPTIONS, "rect_grad": {"percentile": 60}}


@pytest.fixture(scope="module")
def tiny():
    """Convolution, normalisation, both poolings, an addition and two dense layers, in few calls."""
    generator = np.random.default_rng(12)
    inputs = keras.Input((6, 6, 2), name="pixels")
    h = layers.Conv2D(4, 3, activation="relu")(inputs)
    h = layers.BatchNormalization()(layers.MaxPooling2D(2)(h))
    h = layers.Add()([h, layers.Conv2D(4, 1, padding="same", activation="relu")(h)])
    h = layers.GlobalAveragePooling2D()(h)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(h))
    for layer in model.layers:
        set_random_weights(layer, generator)
    return model, generator.normal(size=(3, 6, 6, 2)).astype("float32")


@pytest.mark.parametrize("name", tfexplain.ANALYZERS)
def test_xla_compiles_every_method(tiny, name, monkeypatch):
    model, x = tiny
    options = OPTIONS.get(name, {})
    ran, call = [], Compiled.__call__

    def recording(function, *arguments):
        ran.append(function)
        return call(function, *arguments)

    monkeypatch.setattr(Compiled, "__call__", recording)
    # Of the largest output, where methods of one sign have something to show.
    many = np.random.default_rng(13).normal(size=(30, *x.shape[1:]))
    compiled = fitted(create_analyzer(name, model, jit_compile=True, **options), many).analyze(x)
    # TensorFlow marks what XLA has to compile; without the mark it would run it in its own way.
    assert ran and all(f._concrete[True].function_def.attr["_XlaMustCompile"].b for f in ran)
    largest = tf.fill([len(x), 1], -1)
    plain = fitted(create_analyzer(name, model, **options), many)
    plain = plain.explain([tf.constant(x)], largest)[1][:, 0]
    assert np.abs(plain).max() > 0
    assert_same(compiled, plain, 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="no GPU")
@pytest.mark.parametrize("name", tfexplain.ANALYZERS)
def test_gpu_equals_cpu(cnn, pixels, name):
    found = []
    for device in ("/CPU:0", "/GPU:0"):
        with tf.device(device):
            analyzer = create_analyzer(name, cnn, dtype="float64", **OPTIONS.get(name, {}))
            found.append(fitted(analyzer, pixels).analyze(pixels, target=1))
    assert_same(found[1], found[0], 1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="no GPU")
@pytest.mark.parametrize("name", ["gradient", "lrp.epsilon", "lrp.alpha_2_beta_1"])
def test_gpu_has_all_bits_where_they_are_asked_for(cnn, pixels, name):
    exact = create_analyzer(name, cnn, dtype="float64").analyze(pixels, target=1)
    precise = create_analyzer(name, cnn, precision="highest")
    assert precise.execution.is_highest and precise.execution.by_xla
    assert_same(precise.analyze(pixels, target=1), exact, 1e-5)
    assert not precise.execution.refusal


@pytest.mark.gpu
@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="no GPU")
@pytest.mark.parametrize("case", LINEAR + POOLING, ids=lambda case: case.id)
def test_gpu_runs_every_linear_layer_and_pooling(case):
    model, x = network(case)
    for name in ("gradient", "lrp.alpha_2_beta_1"):
        found = []
        for device in ("/CPU:0", "/GPU:0"):
            with tf.device(device):
                found.append(create_analyzer(name, model).analyze(x, target=1))
        assert_same(found[1], found[0], 1e-9)
