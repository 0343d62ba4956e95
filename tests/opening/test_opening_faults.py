"""Faults that were found in what is opened; each test states the right value."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers.networks import assert_same, tape_gradient
from tfexplain import UnsupportedLayerError, UnsupportedModelError, create_analyzer


def network(function, shape=(4, 6), hidden=None, seed=0):
    """Returns a model of a function between Dense layers, with weights that are all drawn."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input(shape)
    h = inputs if hidden is None else layers.Dense(hidden, activation="tanh")(inputs)
    layer = function if isinstance(function, layers.Layer) else layers.Lambda(function)
    h = layers.Dense(3)(layers.Flatten()(layer(h)))
    model = keras.Model(inputs, h)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    return model, rng.normal(size=(3, *shape))


def assert_complete(model, x, name="deep_lift.rescale"):
    baseline = np.random.default_rng(9).normal(size=(1, *x.shape[1:]))
    analyzer = create_analyzer(name, model, dtype="float64", baseline=baseline)
    found = analyzer.analyze(x, target=1)
    difference = (analyzer.outputs(x) - analyzer.outputs(baseline))[:, 1]
    rest = tuple(range(1, x.ndim))
    assert (np.abs(found.sum(rest) - difference) <= 1e-10 * np.abs(found).sum(rest)).all()


class Masked(layers.Layer):
    """Averages the vectors of words that are not padding."""

    def __init__(self, **options):
        super().__init__(**options)
        self.words = layers.Embedding(9, 4, mask_zero=True)
        self.pool = layers.GlobalAveragePooling1D()

    def call(self, tokens):
        return self.pool(self.words(tokens))


def test_masks_that_layers_inside_make_go_on():
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(2)(Masked()(inputs)))
    tokens = np.array([[1, 2, 3, 4], [3, 1, 2, 5], [1, 2, 0, 0]], "int32")
    analyzer = create_analyzer("lrp.epsilon", model)
    assert_same(analyzer.outputs(tokens), model(tokens).numpy(), 1e-5)
    found = analyzer.analyze(tokens, target=0)
    assert not found[2, 2:].any() and np.abs(found[2, :2]).min() > 0


class ScaleAndShift(layers.Layer):
    """One factor and one summand for each channel, or one of both."""

    def __init__(self, scales, shifts, **options):
        super().__init__(**options)
        self.scales, self.shifts = scales, shifts

    def build(self, shape):
        self.v = self.add_weight(shape=(shape[-1],))
        self.b = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        x = x * self.v if self.scales else x
        return tf.nn.relu(x + self.b if self.shifts else x)


@pytest.mark.parametrize("shape", [(5,), (6, 5), (4, 5)], ids=str)
@pytest.mark.parametrize("kinds", [(True, True), (True, False), (False, True)], ids=str)
def test_parts_of_differences_are_scaled_along_the_right_axis(kinds, shape):
    model, x = network(ScaleAndShift(*kinds), shape, hidden=6)
    for name in ("deep_lift.rescale", "deep_lift.reveal_cancel"):
        assert_complete(model, x, name)


class Twice(layers.Layer):
    """Looks tokens up as they are, and shifted by one."""

    def __init__(self, **options):
        super().__init__(**options)
        self.words = layers.Embedding(9, 4)

    def call(self, tokens):
        return self.words(tokens) + self.words((tokens + 1) % 9)


def test_shifted_tokens_are_looked_up_too():
    inputs = keras.Input((3,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(Twice()(inputs))))
    tokens = np.array([[1, 8, 3], [0, 2, 7]], "int32")
    kernel = model.layers[-1].kernel.numpy().reshape(3, 4)
    found = create_analyzer("gradient", model).analyze(tokens)
    assert_same(found, np.tile(2 * kernel.sum(axis=1), (2, 1)), 1e-5)


def test_complex_numbers_have_a_gradient_and_no_rule():
    model, x = network(lambda z: z + tf.abs(tf.signal.fft(tf.cast(z, tf.complex64))))
    x = x.astype("float32")
    found = create_analyzer("gradient", model).analyze(x, target=1)
    assert_same(found, tape_gradient(model, x, [0.0, 1.0, 0.0]), 1e-4)
    with pytest.raises(UnsupportedLayerError, match="complex numbers"):
        create_analyzer("lrp.epsilon", model)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: z * tf.cast(z > 0, z.dtype),
        lambda z: z + (1 - tf.cast(z > 0, z.dtype)) * -3,
        lambda z: tf.where(z > 0, z, 0.1 * z),
    ],
)
def test_conditions_on_single_elements_belong_to_their_function(function):
    model, x = network(function)
    assert_complete(model, x)


def test_a_rectifier_is_one_however_it_is_written():
    model, x = network(lambda z: z * tf.cast(z > 0, z.dtype), hidden=6)
    relu, _ = network(layers.ReLU(), hidden=6)
    relu.set_weights(model.get_weights())
    found, expected = (
        create_analyzer("guided_backprop", each).analyze(x, target=1) for each in (model, relu)
    )
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: tf.where(z[:, :2] > z[:, 2:], z[:, :2], z[:, 2:]),
        lambda z: tf.gather(z, tf.argmax(z, axis=1), axis=1, batch_dims=1),
    ],
    ids=["where", "argmax"],
)
def test_deep_lift_refuses_conditions_that_differ_at_the_baseline(function):
    model, x = network(function)
    with pytest.raises(UnsupportedLayerError, match="conditions or integers that are computed"):
        create_analyzer("deep_lift.rescale", model)
    found = create_analyzer("gradient", model).analyze(x, target=1)
    expected = tape_gradient(model, x.astype("float32"), [0.0, 1.0, 0.0])
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: z * tf.math.rsqrt(tf.reduce_sum(tf.square(z) * z, -1, keepdims=True) + 99),
        lambda z: z / tf.sqrt(tf.square(tf.reduce_sum(z**2 * z, -1, keepdims=True)) + 1),
        lambda z: z / tf.sqrt(tf.reduce_sum(tf.square(tf.square(z)), -1, keepdims=True) + 1),
    ],
)
def test_statistics_that_are_not_quadratic_are_no_normalisation(function):
    model, x = network(function)
    assert_complete(model, x)


def test_maps_do_not_depend_on_how_large_a_constant_is():
    numbers = np.random.default_rng(3).normal(size=(600, 6)).astype("float32")
    large = tf.constant(numbers)  # more than TensorFlow keeps in its graph
    maps = []
    for summand in (large[:4], tf.constant(numbers[:4])):
        model, x = network(lambda z, summand=summand: z + summand)
        maps.append(create_analyzer("lrp.epsilon", model).analyze(x, target=1))
    assert_same(maps[0], maps[1], 1e-6)


def test_a_constant_behind_a_product_is_its_bias():
    rng = np.random.default_rng(5)
    kernel, bias = rng.normal(size=(6, 5)), rng.normal(size=5)
    model, x = network(lambda z: tf.matmul(z, tf.cast(kernel, z.dtype)) + tf.cast(bias, z.dtype))
    dense = layers.Dense(5)
    other, _ = network(dense)
    dense.set_weights([kernel, bias])
    other.layers[-1].set_weights(model.layers[-1].get_weights())
    for name in ("lrp.epsilon", "lrp.alpha_2_beta_1", "lrp.z_plus"):
        found, expected = (
            create_analyzer(name, each).analyze(x, target=1) for each in (model, other)
        )
        assert_same(found, expected, 1e-4)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "function", [lambda z: z - z[:1], lambda z: tf.reverse(z, [0])], ids=["first", "reversed"]
)
def test_layers_that_mix_samples_are_found_by_numbers(function, count):
    model, x = network(function)
    with pytest.raises((UnsupportedModelError, UnsupportedLayerError), match="other samples"):
        create_analyzer("gradient", model).analyze(x[:count])


class Tracked(layers.Layer):
    """Adds a loss, as regularisers do."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.Dense(4, activity_regularizer="l2")

    def call(self, x):
        self.add_loss(tf.reduce_mean(x))
        return self.inner(x)


def test_losses_of_the_user_stay_as_they_are():
    model, x = network(Tracked())
    model(x)
    before = [float(loss) for loss in model.losses]
    create_analyzer("lrp.epsilon", model)
    assert len(before) == 2 and [float(loss) for loss in model.losses] == before


def test_windows_over_channels_are_no_pooling_of_positions():
    model, x = network(
        lambda z: tf.nn.max_pool2d(z, [1, 1, 1, 2], [1, 1, 1, 2], "VALID"), shape=(4, 4, 6)
    )
    # TensorFlow has no gradient of these on CPUs.
    outputs = create_analyzer("gradient", model).outputs(x)
    assert_same(outputs, model(x.astype("float32")).numpy(), 1e-5)
    with pytest.raises(UnsupportedLayerError, match="MaxPool"):
        create_analyzer("lrp.epsilon", model)


class Usual(keras.Model):
    """Hands `training` to layers that do not know it, as many models do."""

    def __init__(self, **options):
        super().__init__(**options)
        self.flat, self.scores = layers.Flatten(), layers.Dense(2)

    def call(self, x, training=None):
        return self.scores(self.flat(x, training=training))


def test_training_is_taken_from_everyone():
    model, x = Usual(), np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    model(x)
    found = create_analyzer("lrp.z", model).analyze(x, target=0)
    assert_same(found.reshape(2, -1), x.reshape(2, -1) * model.scores.kernel.numpy()[:, 0], 1e-5)


def test_a_factor_without_relevance_takes_no_half_of_it():
    x, kept = keras.Input((4, 3), name="x"), keras.Input((4, 3), dtype="int32", name="kept")
    h = layers.Multiply()([x, keras.ops.cast(kept != 0, "float32")])
    model = keras.Model([x, kept], layers.Dense(2, use_bias=False)(layers.Flatten()(h)))
    rng = np.random.default_rng(1)
    given = [rng.normal(size=(2, 4, 3)), rng.integers(0, 3, (2, 4, 3)).astype("int32")]
    with pytest.warns(UserWarning, match="kept"):
        analyzer = create_analyzer("lrp.z", model, dtype="float64")
    of_x, _ = analyzer.analyze(given, target=1)
    np.testing.assert_allclose(of_x.sum((1, 2)), analyzer.outputs(given)[:, 1], rtol=1e-9)


def test_deep_lift_with_comparisons_of_keras_is_refused_by_name():
    x = keras.Input((4,))
    h = keras.ops.where(x > layers.Dense(4)(x), x, 0.1 * x)
    model = keras.Model(x, layers.Dense(2)(h))
    with pytest.raises(UnsupportedLayerError, match="conditions or integers that are computed"):
        create_analyzer("deep_lift.rescale", model)


class Positions(layers.Layer):
    """Returns the vectors of positions alone, which another layer adds."""

    def build(self, shape):
        self.table = self.add_weight(shape=(9, shape[-1]))

    def call(self, x):
        return tf.broadcast_to(self.table[: tf.shape(x)[1]], tf.shape(x))


@pytest.mark.parametrize("name", ["deep_lift.rescale", "deep_lift.reveal_cancel"])
def test_positions_make_no_difference(name):
    inputs = keras.Input((None, 4))
    h = layers.Add()([inputs, Positions()(inputs)])
    h = layers.GlobalAveragePooling1D()(layers.Dense(5, activation="relu")(h))
    model = keras.Model(inputs, layers.Dense(3)(h))
    rng = np.random.default_rng(8)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    assert_complete(model, rng.normal(size=(2, 6, 4)), name)
    lrp = create_analyzer("lrp.epsilon", model, dtype="float64")
    assert float(np.abs(lrp.ledger(rng.normal(size=(2, 6, 4)), 1)["lost"]).max()) < 1e-12


def test_masks_of_sizes_are_the_same_at_the_baseline():
    def causal(z):
        length = tf.shape(z)[1]
        places = tf.range(length)
        scores = tf.einsum("bid,bjd->bij", z, z)
        return tf.nn.softmax(tf.where(places[None] <= places[:, None], scores, -1e9)) @ z

    model, x = network(causal)
    assert_complete(model, x)
