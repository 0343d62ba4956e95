"""Mixed precision, float64 and float32: precision of the network and of the result."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers.networks import assert_same, fitted, small_cnn
from tests.test_contract import OPTIONS
from tfexplain import ANALYZERS, create_analyzer
from tfexplain.compilation import Compiled


@pytest.mark.parametrize("name", ["gradient", "lrp.epsilon", "lrp.alpha_2_beta_1", "deep_taylor"])
def test_mixed_precision_is_explained_in_float32(cnn, pixels, name):
    mixed = small_cnn(dtype="mixed_float16")
    assert mixed.get_layer("conv1").compute_dtype == "float16"
    mixed.set_weights(cnn.get_weights())
    found = create_analyzer(name, mixed).analyze(pixels, target=2)
    assert found.dtype == "float32"
    assert_same(found, create_analyzer(name, cnn).analyze(pixels, target=2), 1e-6)


@pytest.mark.parametrize("attention", [False, True], ids=["normalisation", "attention"])
def test_mixed_precision_of_opaque_layers(attention):
    def build(dtype):
        inputs = keras.Input((5, 4))
        h = layers.LayerNormalization(dtype=dtype)(layers.Dense(4, dtype=dtype)(inputs))
        if attention:
            h = layers.MultiHeadAttention(2, 3, dtype=dtype, name="attention")(h, h)
        return keras.Model(inputs, layers.Dense(2, dtype=dtype)(layers.Flatten(dtype=dtype)(h)))

    plain, mixed = build("float32"), build("mixed_float16")
    generator = np.random.default_rng(0)
    plain.set_weights([generator.normal(size=weight.shape) for weight in plain.weights])
    mixed.set_weights(plain.get_weights())
    x = generator.normal(size=(3, 5, 4)).astype("float32")
    found, expected = (
        create_analyzer("gradient", model).analyze(x, target=0) for model in (mixed, plain)
    )
    assert found.dtype == "float32"
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["gradient", "lrp.alpha_2_beta_1", "smoothgrad"])
def test_float64_of_a_float32_model(cnn, pixels, name):
    double = small_cnn(dtype="float64")
    double.set_weights(cnn.get_weights())
    options = {"samples": 4} if name == "smoothgrad" else {}
    found = create_analyzer(name, cnn, dtype="float64", **options).analyze(pixels, target=0)
    assert found.dtype == "float64"
    expected = create_analyzer(name, double, **options).analyze(pixels, target=0)
    # The noise is drawn in the precision of the result, float64, for both.
    assert_same(found, expected, 1e-12)
    narrow = create_analyzer(name, double, dtype="float32", **options).analyze(pixels, target=0)
    assert narrow.dtype == "float32"
    assert_same(narrow, expected, 1e-4)


def test_precision_of_a_model_without_weights():
    inputs = keras.Input((3, 2), dtype="float64")
    model = keras.Model(inputs, layers.Flatten(dtype="float64")(inputs))
    found = create_analyzer("gradient", model).analyze(np.ones((1, 3, 2)), target=4)
    assert found.dtype == "float64"
    np.testing.assert_array_equal(found.ravel(), np.eye(6)[4])


@pytest.mark.compiled
@pytest.mark.parametrize("name", sorted(set(ANALYZERS) - {"shapley_sampling"}))
def test_compiled_in_float32_is_eager_in_float64(cnn, pixels, name, monkeypatch):
    """What TensorFlow makes of a graph, such as fused operations of oneDNN, changes no map."""
    noise = np.random.default_rng(0).normal(size=(60, 8, 8, 3))
    # The tiny network has few units: of its default 2 % none reaches the input.
    options = {"percentile": 50.0} if name == "rect_grad" else OPTIONS.get(name, {})
    narrow, wide = (
        fitted(create_analyzer(name, cnn, dtype=dtype, **options), noise)
        for dtype in ("float32", "float64")
    )
    found = narrow.analyze(pixels, target=1)
    monkeypatch.setattr(Compiled, "__call__", lambda self, *given: self.function(*given))
    assert_same(found, wide.analyze(pixels, target=1), 1e-4)
