"""Random weights: distributions, seeds, what is left alone, copies."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers.networks import randomize, sequential, small_cnn
from tfexplain.audits.random_weights import RandomizedCopy, RandomWeights, copied
from tfexplain.errors import UnsupportedModelError


def drawn(model, kind="initializer", statistics="randomized", seed=0):
    """Path of a weight -> its random values."""
    random = RandomWeights(model, kind, statistics, seed)
    places = random.places(model)
    random.check(places)
    return {random.name(place): np.asarray(random.draw(place)) for place in places}


def test_initializers_have_their_distributions():
    model = randomize(
        sequential(
            (300,),
            layers.Dense(200, name="glorot"),
            layers.Dense(200, name="again"),
            layers.Dense(200, name="third"),
            layers.Dense(
                100, kernel_initializer="he_normal", bias_initializer="random_normal", name="he"
            ),
        )
    )
    found = drawn(model)
    limit = np.sqrt(6 / 500)
    kernel = found["glorot/kernel"]
    assert np.abs(kernel).max() == pytest.approx(limit, rel=1e-3)
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.01)
    assert abs(kernel.mean()) < 3 * limit / np.sqrt(3 * kernel.size)
    assert found["he/kernel"].std() == pytest.approx(np.sqrt(2 / 200), rel=0.03)
    assert (found["glorot/bias"] == 0).all()
    assert found["he/bias"].std() == pytest.approx(0.05, rel=0.3)
    # Weights of one shape are not the same numbers.
    twins = found["again/kernel"], found["third/kernel"]
    assert abs(np.corrcoef(*map(np.ravel, twins))[0, 1]) < 0.03


def test_numbers_are_keyed_by_seed_and_weight():
    model = small_cnn()
    first, again, other = drawn(model), drawn(model), drawn(model, seed=1)
    assert len(first) == len(model.weights)
    for path, values in first.items():
        np.testing.assert_array_equal(values, again[path])
        if path.endswith("kernel"):
            assert (values != other[path]).all()
    # A model of the same layers with other weights: initializers know nothing of these.
    for path, values in drawn(small_cnn(seed=5)).items():
        np.testing.assert_array_equal(values, first[path])


def test_normalisations_start_anew_or_keep_their_statistics():
    model = small_cnn()
    found = drawn(model)
    expected = {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": 1}
    for name, value in expected.items():
        assert (found[f"norm/{name}"] == value).all()
    for kind in ("initializer", "permutation"):
        random = RandomWeights(model, kind, "kept", 0)
        paths = {random.name(place) for place in random.places(model)}
        everything = {random.name(place) for place in range(len(model.weights))}
        assert everything - paths == {"norm/moving_mean", "norm/moving_variance"}
        (note,) = random.notes()
        assert note == 'left as trained: norm/moving_mean, norm/moving_variance (statistics="kept")'


def test_permutations_keep_the_entries():
    model = small_cnn()
    found = drawn(model, "permutation")
    moved = 0
    for weight in model.weights:
        trained, values = np.asarray(weight), found["/".join(weight.path.split("/")[-2:])]
        assert values.shape == trained.shape and values.dtype == trained.dtype
        np.testing.assert_array_equal(np.sort(values, axis=None), np.sort(trained, axis=None))
        moved += (values != trained).sum()
    assert moved > 0.8 * model.count_params()
    other = drawn(model, "permutation", seed=1)
    assert (other["conv1/kernel"] != found["conv1/kernel"]).any()


def test_other_layers_have_their_own_initializers():
    ones, normal = "ones", keras.initializers.RandomNormal(3.0, 0.1)
    inputs = keras.Input((6, 6, 4))
    x = layers.DepthwiseConv2D(3, depthwise_initializer=normal, name="depthwise")(inputs)
    x = layers.SeparableConv2D(
        5, 3, depthwise_initializer=ones, pointwise_initializer=normal, name="separable"
    )(x)
    x = layers.PReLU(alpha_initializer=normal, name="prelu")(x)
    x = layers.LayerNormalization(gamma_initializer=normal, name="layer_norm")(x)
    x = layers.Flatten()(x)
    model = randomize(keras.Model(inputs, layers.Dense(2, name="dense")(x)))
    found = drawn(model)
    paths = (
        "depthwise/kernel",
        "separable/pointwise_kernel",
        "prelu/alpha",
        "layer_norm/gamma",
    )
    for path in paths:
        assert found[path].mean() == pytest.approx(3, abs=0.15)
        assert found[path].std() > 0.01
    assert (found["separable/depthwise_kernel"] == 1).all()
    assert (found["layer_norm/beta"] == 0).all()


def test_recurrent_cells_and_embeddings():
    tokens = keras.Input((7,), dtype="int32")
    x = layers.Embedding(30, 8, embeddings_initializer="uniform", name="table")(tokens)
    x = layers.Bidirectional(layers.LSTM(5, name="lstm"), name="both")(x)
    model = randomize(keras.Model(tokens, layers.Dense(2)(x)))
    found = {
        path.split("/", 1)[1] if "both" in path else path: v for path, v in drawn(model).items()
    }
    assert np.abs(found["table/embeddings"]).max() == pytest.approx(0.05, rel=0.05)
    sides = [
        {path.split("/")[-1]: v for path, v in found.items() if path.startswith(f"{side}_lstm")}
        for side in ("forward", "backward")
    ]
    for side in sides:
        # The forget gate starts open: the second quarter of the biases.
        np.testing.assert_array_equal(side["bias"], np.repeat([0, 1, 0, 0], 5))
        recurrent = side["recurrent_kernel"]
        np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(5), atol=1e-5)
    assert (sides[0]["kernel"] != sides[1]["kernel"]).all()


def test_attention_has_kernels_of_the_right_scale():
    inputs = keras.Input((5, 16))
    attention = layers.MultiHeadAttention(4, 8, name="attention")
    model = keras.Model(inputs, layers.Dense(2)(attention(inputs, inputs)))
    found = {path: values for path, values in drawn(model).items() if path.endswith("kernel")}
    trained = {weight.path: np.asarray(weight) for weight in model.weights}
    kernels = [path for path in found if "attention" in path]
    assert len(kernels) == 4
    for path in kernels:
        # The model has just been initialized by Keras itself: uniform, with the same limit.
        limit = np.abs(trained[path]).max()
        assert np.abs(found[path]).max() == pytest.approx(limit, rel=0.02)
    assert (found[kernels[0]] != found[kernels[1]]).all()


def test_statistics_of_the_data_are_left_alone():
    normalize = layers.Normalization(name="normalize")
    normalize.adapt(np.random.default_rng(0).normal(3, 7, (50, 4)))
    model = sequential((4,), normalize, layers.Dense(2, name="dense"))
    for kind in ("initializer", "permutation"):
        random = RandomWeights(model, kind, "randomized", 0)
        assert {random.name(p) for p in random.places(model)} == {"dense/kernel", "dense/bias"}
        (note,) = random.notes()
        assert "normalize/mean" in note and note.endswith("(statistics of the data)")
    x = np.random.default_rng(1).normal(3, 7, (3, 4)).astype("float32")
    np.testing.assert_array_equal(copied(model)(x), model(x))


@keras.saving.register_keras_serializable("tests")
class Scaled(layers.Layer):
    """Two weights of its own: one with an initializer as attribute, one without."""

    def __init__(self, start=None, **options):
        super().__init__(**options)
        self.start = start
        self.factor_initializer = start or keras.initializers.RandomUniform(1, 2)

    def build(self, shape):
        self.factor = self.add_weight(name="factor", initializer="ones", shape=shape[1:])
        self.shift = self.add_weight(name="shift", initializer="zeros", shape=shape[1:])

    def call(self, x):
        return x * self.factor + self.shift


class NoSeed(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, dtype=dtype)


def test_unknown_initializers_are_all_named():
    def function(shape, dtype=None):
        return keras.ops.ones(shape, dtype)

    model = sequential(
        (3,),
        Scaled(name="own"),
        layers.Dense(2, kernel_initializer=function, name="first"),
        layers.Dense(2, kernel_initializer=NoSeed(), name="second"),
    )
    random = RandomWeights(model, "initializer", "randomized", 0)
    message = (
        r"cannot be drawn again: own/shift \(Scaled: no initializer of that name\); first/kernel "
        r"\(Dense: its initializer is a function, which has no seed\); second/kernel \(Dense: "
        r'NoSeed has no seed\). Use weights="permutation", or choose layers=... without them'
    )
    with pytest.raises(ValueError, match=message):
        random.check(random.places(model))
    random.check(random.places(model.layers[0]) & frozenset({0}))
    factor = np.asarray(random.draw(0))
    assert ((factor > 1) & (factor < 2)).all()
    RandomWeights(model, "permutation", "randomized", 0).check(random.places(model))
    # An initializer may be given by name.
    named = sequential((3,), Scaled("he_normal", name="own"))
    assert np.asarray(RandomWeights(named, "initializer", "kept", 0).draw(0)).std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("normal", "kept"), "weights must be one of initializer, permutation, received 'normal'"),
        (("permutation", True), "statistics must be one of randomized, kept, received True"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        RandomWeights(small_cnn(), *options, 0)


def state(model):
    """What a copy must not change: weights, nodes and attributes of all operations."""
    return (
        [np.asarray(weight).tolist() for weight in model.weights],
        [
            (
                op.name,
                sorted(vars(op)),
                [*map(id, op._inbound_nodes)],
                [*map(id, op._outbound_nodes)],
            )
            for op in (getattr(model, "_functional", None) or model).operations
        ],
    )


def mixed():
    """Nested, shared, compiled with a loss of its own, operations, a Lambda with a closure."""
    factor = 2.5
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.ReLU()], name="inner")
    x = inner(shared(inputs)) + shared(keras.ops.relu(inputs))
    x = layers.Lambda(lambda t: t * factor, name="lambda")(x)
    model = keras.Model(inputs, layers.Dense(3, name="scores")(x))
    model.compile(loss=lambda y, z: keras.ops.mean(y - z), optimizer="sgd")
    return randomize(model)


@pytest.mark.parametrize("make", [small_cnn, mixed])
def test_a_copy_is_the_same_and_apart(make):
    model = make()
    x = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:])).astype("float32")
    model(x)
    before = state(model)
    copy = copied(model)
    np.testing.assert_array_equal(copy(x), model(x))
    names = [[w.path.split("/")[-2:] for w in one.weights] for one in (copy, model)]
    assert names[0] == names[1]
    for weight in copy.weights:
        weight.assign(weight + 1)
    assert not copy.compiled
    assert state(model) == before


def test_a_copy_goes_to_and_fro():
    model = small_cnn()
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    random = RandomWeights(model, "initializer", "randomized", 3)
    copy = RandomizedCopy(random, [x])
    values = {place: np.asarray(random.draw(place)) for place in random.places(model)}
    for chosen in ({0, 3, 5}, {5, 1}, set(), set(values)):
        copy.set(frozenset(chosen))
        for place, weight in enumerate(copy.model.weights):
            expected = values[place] if place in chosen else np.asarray(model.weights[place])
            np.testing.assert_array_equal(np.asarray(weight), expected)


def test_lower_precision_is_copied_and_permuted():
    model = randomize(sequential((6,), layers.Dense(5, dtype="bfloat16", name="dense")))
    found = drawn(model, "permutation")["dense/kernel"].astype("float32")
    trained = np.asarray(model.weights[0]).astype("float32")
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(trained, axis=None))
    assert drawn(model)["dense/kernel"].dtype == np.asarray(model.weights[0]).dtype


class Forgetful(layers.Layer):
    """Its configuration leaves an option out."""

    def __init__(self, factor=1.0, units=None, **options):
        super().__init__(**options)
        self.factor, self.units = factor, units

    def build(self, shape):
        if self.units:
            self.kernel = self.add_weight(name="kernel", shape=(self.units,))

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return layers.Layer.get_config(self)


class Unmakeable(Forgetful):
    def __init__(self, needed, **options):
        super().__init__(**options)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Forgetful(2.0), "gives other outputs than the model; they differ by"),
        (Forgetful(units=3), r"has other weights than the model \(2 of 3, or other shapes\)"),
        (
            Unmakeable(1),
            r"cannot be copied, .* need get_config and from_config. TypeError",
        ),
    ],
)
def test_unfaithful_copies_are_refused(layer, message):
    model = sequential((3,), layer, layers.Dense(2))
    random = RandomWeights(model, "permutation", "randomized", 0)
    with pytest.raises(UnsupportedModelError, match=message):
        RandomizedCopy(random, [np.ones((2, 3), "float32")])
