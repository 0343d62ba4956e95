"""Models that hold what gradients alone explain, and subclassed models."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers.networks import Loop, assert_same, tape_gradient
from tfexplain import UnsupportedLayerError, UnsupportedModelError, create_analyzer


@pytest.fixture(scope="module")
def recurrent():
    inputs = keras.Input((6, 3), dtype="float64")
    h = layers.Dense(4, dtype="float64")(inputs)
    h = layers.LayerNormalization(dtype="float64", name="norm")(h)
    h = layers.MultiHeadAttention(2, 3, dtype="float64", name="attention")(h, h)
    h = layers.LSTM(4, return_sequences=True, dtype="float64", name="lstm")(h)
    h = layers.Bidirectional(layers.GRU(3, dtype="float64"), dtype="float64", name="both")(h)
    model = keras.Model(inputs, layers.Dense(2, dtype="float64")(h))
    return model, np.random.default_rng(9).normal(size=(3, 6, 3))


def test_gradient_family_explains_recurrence_and_attention(recurrent):
    model, x = recurrent
    expected = np.stack([tape_gradient(model, x, row) for row in np.eye(2)], axis=1)
    gradient = create_analyzer("gradient", model).analyze(x, target="all")
    assert_same(gradient, expected)
    product = create_analyzer("input_t_gradient", model).analyze(x, target=0)
    assert_same(product, x * expected[:, 0])
    # A short path, along which the outputs are smooth.
    baseline = 0.9 * x
    integrated = create_analyzer("integrated_gradients", model, steps=32, baseline=baseline)
    sums = integrated.analyze(x, target=0).reshape(3, -1).sum(axis=1)
    np.testing.assert_allclose(sums, (model(x) - model(baseline))[:, 0], rtol=1e-8, atol=1e-10)
    smooth = create_analyzer("smoothgrad", model, samples=2, noise_scale=0.0)
    assert_same(smooth.analyze(x, target=1), expected[:, 1])


def test_lrp_explains_recurrence_and_attention(recurrent):
    model, x = recurrent
    analyzer = create_analyzer("lrp.epsilon", model)
    ledger = analyzer.ledger(x, 1)
    assert np.abs(ledger["lost"]).max() < 1e-12
    calls = [row[0] for row in analyzer.describe().rows]
    for name in ("norm", "attention", "lstm", "both"):
        assert any(call.startswith(name) for call in calls)
    assert np.abs(analyzer.analyze(x, target=1)).max() > 1e-6


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.hidden = layers.Dense(6, activation="tanh")
        self.scores = layers.Dense(3)

    def call(self, x):
        return self.scores(self.hidden(x))


@pytest.fixture(scope="module")
def subclassed():
    model = Subclassed(name="mine")
    x = np.random.default_rng(10).normal(size=(4, 5)).astype("float32")
    model(x)
    functional = keras.Sequential(
        [keras.Input((5,)), layers.Dense(6, activation="tanh"), layers.Dense(3)]
    )
    functional.set_weights(model.get_weights())
    return model, functional, x


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradient", {}),
        ("input_t_gradient", {}),
        ("integrated_gradients", {"steps": 8, "baseline": 0.5}),
        ("smoothgrad", {"samples": 4}),
        ("shapley_sampling", {"cycles": 3, "baseline": 0.5}),
        ("guided_backprop", {}),
        ("rect_grad", {}),
        ("lrp.epsilon", {}),
        ("lrp.alpha_2_beta_1", {}),
        ("deep_taylor", {}),
        ("excitation_bp", {}),
        ("deep_lift.rescale", {"baseline": 0.5}),
    ],
)
def test_subclassed_models_are_explained_as_functional_ones(subclassed, name, options):
    model, functional, x = subclassed
    found, expected = (
        create_analyzer(name, each, **options).analyze(x, target="all")
        for each in (model, functional)
    )
    assert_same(found, expected, 1e-5)


class Looping(Subclassed):
    """Cannot be opened."""

    def __init__(self, **options):
        super().__init__(**options)
        self.loop = Loop()

    def call(self, x):
        return self.loop(super().call(x))


@pytest.mark.parametrize(
    "name", ["guided_backprop", "rect_grad", "lrp.epsilon", "deep_taylor", "excitation_bp"]
)
def test_other_methods_refuse_subclassed_models_that_cannot_be_opened(subclassed, name):
    model, x = Looping(name="mine"), subclassed[2]
    model(x)
    assert_same(
        create_analyzer("gradient", model).analyze(x, target=1),
        tape_gradient(model, x, [0.0, 1.0, 0.0]),
        1e-5,
    )
    message = r"'mine' \(Looping\) is subclassed, and cannot be opened: it holds a loop"
    with pytest.raises(UnsupportedModelError, match=message):
        create_analyzer(name, model)


def test_gradient_explains_a_model_with_masking():
    inputs = keras.Input((None, 3))
    h = layers.Masking(mask_value=0.0, name="masking")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(h)))
    x = np.random.default_rng(11).normal(size=(3, 5, 3)).astype("float32")
    x[:, 3:] = 0
    assert np.abs(model(x) - model(x[:, :3])).max() < 1e-6  # the mask acts
    found = create_analyzer("gradient", model).analyze(x, target=1)
    assert_same(found, tape_gradient(model, x, [0.0, 1.0]), 1e-5)
    assert not found[:, 3:].any()


def test_division_by_a_tensor():
    """A reciprocal is a function of one tensor, which keeps its relevance."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(1.0 / inputs + layers.Dense(4)(inputs)))
    x = np.random.default_rng(0).uniform(1, 2, (3, 4)).astype("float32")
    found = create_analyzer("gradient", model).analyze(x, target=0)
    assert_same(found, tape_gradient(model, x, [1.0, 0.0]), 1e-5)
    hidden, scores = (layer.kernel.numpy() for layer in model.layers if layer.weights)
    expected = scores[:, 0] / x + x * (scores[:, 0] @ hidden.T)
    assert_same(create_analyzer("lrp.z", model).analyze(x, target=0), expected, 1e-5)


class Noisy(layers.Layer):
    """Draws random numbers, at inference too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


@pytest.mark.parametrize("name", ["gradient", "lrp.z", "deep_lift.rescale"])
def test_random_numbers_are_refused(name):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(Noisy(name="noisy")(inputs)))
    message = r"noisy \(Noisy\) cannot be explained: it draws random numbers"
    with pytest.raises(UnsupportedLayerError, match=message):
        create_analyzer(name, model)


class Counting(layers.Layer):
    """Gives other numbers each time."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize("verb", ["analyze", "propagate"])
def test_a_replay_that_gives_other_outputs_is_refused(verb):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(Counting()(inputs)))
    analyzer = create_analyzer("gradient", model)
    given = [np.ones((2, 3))] + ([np.ones((2, 1, 2))] if verb == "propagate" else [])
    with pytest.raises(UnsupportedModelError, match="give other outputs than the model"):
        getattr(analyzer, verb)(*given)
