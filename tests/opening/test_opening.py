"""Custom layers, lambdas and subclassed models are opened into their operations."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tests.helpers.networks import assert_same, tape_gradient
from tfexplain import UnsupportedLayerError, UnsupportedModelError, create_analyzer, load_analyzer
from tfexplain.composites import Composite, epsilon_plus


@keras.saving.register_keras_serializable("tests")
class Computed(layers.Layer):
    """A layer that computes a function of its input and of one matrix."""

    def __init__(self, function="tanh", **options):
        super().__init__(**options)
        self.function = function

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 5), name="matrix")
        self.vector = self.add_weight(shape=(shape[-1],), name="vector")

    def call(self, x):
        return FUNCTIONS[self.function](x, self.matrix, self.vector)

    def get_config(self):
        return {**super().get_config(), "function": self.function}


def split_gate(x, w, v):
    signal, gate = tf.split(x, 2, axis=-1)
    return signal * tf.sigmoid(gate)


# Each maps (batch, 4, 6) to (batch, ...): what is opened, in TensorFlow's words.
FUNCTIONS = {
    "tensordot": lambda x, w, v: tf.nn.relu(tf.tensordot(x, w, 1) + 1.0),
    "merged with the samples": lambda x, w, v: tf.reshape(
        tf.nn.relu(tf.reshape(x, [-1, 6]) @ tf.convert_to_tensor(w)), [-1, 4, 5]
    ),
    "time first": lambda x, w, v: tf.transpose(
        tf.nn.relu(tf.matmul(tf.transpose(x, [1, 0, 2]), w)), [1, 0, 2]
    ),
    "windows": lambda x, w, v: tf.reshape(
        tf.transpose(tf.nn.tanh(tf.reshape(x, [-1, 2, 2, 6])), [0, 2, 1, 3]), [-1, 4, 6]
    ),
    "where": lambda x, w, v: tf.where(x > 0, x, 0.2 * x),
    "silu": lambda x, w, v: tf.nn.silu(x),
    "tanh": lambda x, w, v: tf.nn.gelu(x, approximate=True),
    "gate": split_gate,
    "reflected": lambda x, w, v: tf.pad(x, [[0, 0], [1, 1], [0, 0]], mode="REFLECT"),
    "joined with ones": lambda x, w, v: tf.concat([x, tf.ones_like(x), x[:, :, :2]], -1),
    "masked softmax": lambda x, w, v: tf.nn.softmax(
        x + (tf.linalg.band_part(tf.ones((4, 6)), -1, 0) - 1) * 1e9
    ),
    "softmax by hand": lambda x, w, v: tf.exp(x) / tf.reduce_sum(tf.exp(x), -1, keepdims=True),
    "deviation": lambda x, w, v: (
        (x - tf.reduce_mean(x, -1, keepdims=True))
        / (tf.math.reduce_std(x, -1, keepdims=True) + 1e-3)
    ),
    "unit length": lambda x, w, v: tf.math.l2_normalize(x, -1),
    "clipped": lambda x, w, v: tf.clip_by_value(x, -0.5, 0.5),
    "powers": lambda x, w, v: tf.abs(x) ** 1.5 + tf.math.log1p(x * x),
    "sums": lambda x, w, v: tf.cumsum(x, 1),
    "quotient": lambda x, w, v: x[:, :2] / (1 + x[:, 2:] ** 2),
    "largest": lambda x, w, v: tf.maximum(x[:, :2], x[:, 2:]),
    "einsum": lambda x, w, v: tf.einsum("bij,bkj->bik", x, x),
    "scale and shift": lambda x, w, v: x * v + 0.5 * v,
}


def model_of(function, rng, dtype="float32"):
    inputs = keras.Input((4, 6), dtype=dtype)
    h = Computed(function, name="opened", dtype=dtype)(inputs)
    model = keras.Model(inputs, layers.Dense(3, dtype=dtype)(layers.Flatten(dtype=dtype)(h)))
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    return model


@pytest.fixture(scope="module")
def opened():
    """Returns the model of a function, in float64, with samples and a baseline."""
    models, rng = {}, np.random.default_rng(3)
    x, baseline = rng.normal(size=(3, 4, 6)), rng.normal(size=(4, 6))

    def get(function):
        if function not in models:
            models[function] = model_of(function, rng)
        return models[function], x, baseline

    return get


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_those_of_the_tape(opened, function):
    model, x, _ = opened(function)
    found = create_analyzer("gradient", model).analyze(x, target="all")
    x = x.astype("float32")
    expected = np.stack([tape_gradient(model, x, row) for row in np.eye(3)], axis=1)
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_deep_lift_is_complete(opened, function):
    model, x, baseline = opened(function)
    for name in ("deep_lift.rescale", "deep_lift.reveal_cancel"):
        analyzer = create_analyzer(name, model, baseline=baseline, dtype="float64")
        found = analyzer.analyze(x, target="all")
        difference = analyzer.outputs(x) - analyzer.outputs(baseline[None])
        magnitude = np.abs(found).sum(axis=(2, 3))
        assert (np.abs(found.sum(axis=(2, 3)) - difference) <= 1e-10 * magnitude).all()


@pytest.mark.parametrize("name", ["lrp.epsilon", "lrp.alpha_2_beta_1", "lrp.gamma"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_relevance_is_accounted_for(opened, function, name):
    model, x, _ = opened(function)
    analyzer = create_analyzer(name, model, dtype="float64")
    ledger = analyzer.ledger(x, 1)
    scale = np.abs(ledger["received"]).max() + np.abs(ledger["kept"]).max()
    assert float(np.abs(ledger["lost"]).max()) <= 1e-10 * float(scale)
    # A sample alone, and one vector of several, have the same map.
    together = analyzer.analyze(x, target="all")
    assert_same(analyzer.analyze(x[1:2], target=1), together[1:2, 1], 1e-12)


# The same computed in three ways: a Keras layer, its function as a layer, TensorFlow by hand.
def by_hand(x):
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    return centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + 1e-3)


THREE_WAYS = {
    "gelu": (
        lambda x: layers.Activation("gelu")(x),
        lambda x: layers.Lambda(lambda z: keras.activations.gelu(z))(x),
        lambda x: layers.Lambda(lambda z: 0.5 * z * tf.math.erfc(-z / 2**0.5))(x),
    ),
    "silu": (
        lambda x: layers.Activation("silu")(x),
        lambda x: layers.Lambda(tf.nn.silu)(x),
        lambda x: layers.Lambda(lambda z: z * tf.sigmoid(z))(x),
    ),
    "softmax": (
        lambda x: layers.Softmax()(x),
        lambda x: layers.Lambda(tf.nn.softmax)(x),
        lambda x: layers.Lambda(FUNCTIONS["softmax by hand"].__call__, arguments={"w": 0, "v": 0})(
            x
        ),
    ),
    "layer normalisation": (
        lambda x: layers.LayerNormalization(center=False, scale=False)(x),
        lambda x: layers.Lambda(
            lambda z: (
                (z - tf.reduce_mean(z, -1, keepdims=True))
                / tf.sqrt(tf.math.reduce_variance(z, -1, keepdims=True) + 1e-3)
            )
        )(x),
        lambda x: layers.Lambda(by_hand)(x),
    ),
    "relu": (
        lambda x: layers.ReLU()(x),
        lambda x: layers.Lambda(lambda z: tf.maximum(z, 0.0))(x),
        lambda x: layers.Lambda(lambda z: tf.where(z > 0, z, 0.0 * z))(x),
    ),
}


@pytest.mark.parametrize(
    "name",
    ["gradient", "guided_backprop", "lrp.epsilon", "lrp.alpha_2_beta_1", "deep_lift.rescale"],
)
@pytest.mark.parametrize("function", THREE_WAYS)
def test_three_ways_to_write_a_function_give_equal_maps(function, name):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 3, 5))
    options = {"baseline": rng.normal(size=(3, 5))} if name.startswith("deep_lift") else {}
    maps, weights = [], None
    for way in THREE_WAYS[function]:
        inputs = keras.Input((3, 5))
        h = way(layers.Dense(5)(inputs))
        model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))
        if weights is None:
            weights = [rng.normal(size=weight.shape) for weight in model.weights]
        model.set_weights(weights)
        analyzer = create_analyzer(name, model, dtype="float64", **options)
        maps.append(analyzer.analyze(x, target=1))
    assert np.abs(maps[0]).max() > 1e-3
    assert_same(maps[1], maps[0], 1e-7)
    assert_same(maps[2], maps[0], 1e-7)


@keras.saving.register_keras_serializable("tests")
class Small(keras.Model):
    """A subclassed model with layers that have rules, and one that has none."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv = layers.Conv2D(4, 3, padding="same", name="conv")
        self.norm = layers.BatchNormalization(name="norm")
        self.rectify = layers.PReLU(name="rectify")
        self.pool = layers.MaxPooling2D(name="pool")
        self.flat = layers.Flatten(name="flat")
        self.drop = layers.Dropout(0.5, name="drop")
        self.scores = layers.Dense(3, name="scores")

    def call(self, x, training=None):
        h = self.rectify(self.norm(self.conv(x / 2.0), training=training))
        return self.scores(self.drop(self.flat(self.pool(h)), training=training))


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(7)
    model, x = Small(name="small"), rng.normal(size=(3, 6, 6, 2)).astype("float32")
    model(x)
    for weight in model.weights:
        weight.assign(weight + 0.1 * np.abs(rng.normal(size=weight.shape)))
    inputs = keras.Input((6, 6, 2))
    h = inputs
    for layer in (
        layers.Rescaling(0.5),
        layers.Conv2D(4, 3, padding="same"),
        layers.BatchNormalization(),
        layers.PReLU(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(3),
    ):
        h = layer(h)
    functional = keras.Model(inputs, h)
    functional.set_weights(model.get_weights())
    return model, functional, x


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradient", {}),
        ("guided_backprop", {}),
        ("deconvnet", {}),
        ("rect_grad", {}),
        ("lrp.epsilon", {}),
        ("lrp.alpha_2_beta_1", {}),
        ("lrp.z_plus", {}),
        ("lrp.sequential_preset_a", {}),
        ("deep_lift.rescale", {"baseline": 0.3}),
        ("excitation_bp", {}),
    ],
)
def test_subclassed_models_have_the_maps_of_functional_ones(small, name, options):
    model, functional, x = small
    found, expected = (
        create_analyzer(name, each, dtype="float64", **options).analyze(x, target=1)
        for each in (model, functional)
    )
    assert_same(found, expected, 1e-7)


def test_layers_of_subclassed_models_have_names(small):
    model, functional, x = small
    analyzer = create_analyzer("lrp.epsilon", model, dtype="float64")
    relevance = np.random.default_rng(0).normal(size=(3, 2, 3))
    found = analyzer.propagate(x, relevance, layers=("conv", "pool"))
    other = create_analyzer("lrp.epsilon", functional, dtype="float64")
    names = [layer.name for layer in functional.layers]
    expected = other.propagate(x, relevance, layers=(names[2], names[5]))
    assert_same(found["conv"], expected[names[2]], 1e-7)
    assert_same(found["pool"], expected[names[5]], 1e-7)
    assert "conv" in str(analyzer.describe())


def test_names_do_not_depend_on_the_process(small):
    model, _, _ = small
    names = [row[0] for row in create_analyzer("gradient", model).describe().rows]
    assert names == [row[0] for row in create_analyzer("gradient", model).describe().rows]
    assert len(set(names)) == len(names)


def test_current_weights_are_explained(opened):
    model, x, _ = opened("scale and shift")
    model = keras.models.clone_model(model)
    analyzer = create_analyzer("lrp.epsilon", model)
    before = analyzer.analyze(x, target=0)
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.weights])
    after = analyzer.analyze(x, target=0)
    assert np.abs(after - before).max() > 1e-2
    assert_same(create_analyzer("lrp.epsilon", model).analyze(x, target=0), after, 1e-6)


@pytest.mark.parametrize("function", ["merged with the samples", "tanh"])
def test_an_opened_layer_is_left_as_it_is(opened, function):
    model, x, _ = opened(function)
    layer = model.get_layer("opened")
    nodes, call = len(layer._inbound_nodes), keras.layers.Layer.__call__
    keys = set(vars(layer))
    create_analyzer("lrp.epsilon", model).analyze(x)
    assert len(layer._inbound_nodes) == nodes
    assert keras.layers.Layer.__call__ is call
    assert set(vars(layer)) == keys


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_saved_analyzers_of_opened_models_give_the_same(opened, tmp_path):
    model, x, _ = opened("merged with the samples")
    analyzer = create_analyzer("lrp.epsilon", model)
    expected = analyzer.analyze(x, target=2)
    analyzer.save(tmp_path / "one.tfx")
    del analyzer
    assert_same(load_analyzer(tmp_path / "one.tfx").analyze(x, target=2), expected, 1e-7)


@pytest.mark.compiled
def test_exports_of_opened_models_run_without_the_library(opened, tmp_path):
    model, x, _ = opened("merged with the samples")
    analyzer = create_analyzer("lrp.epsilon", model)
    expected = analyzer.analyze(x.astype("float32"), target=2)
    analyzer.export(tmp_path / "served")
    np.save(tmp_path / "x.npy", x.astype("float32"))
    script = textwrap.dedent(f"""
        import sys, numpy as np, tensorflow as tf
        served = tf.saved_model.load({str(tmp_path / "served")!r})
        x = np.load({str(tmp_path / "x.npy")!r})
        explain = served.signatures["explain"]
        name = next(k for k in explain.structured_input_signature[1] if k != "target")
        found = explain(**{{name: tf.constant(x), "target": tf.constant([2] * len(x))}})
        assert "tfexplain" not in sys.modules
        np.save({str(tmp_path / "found.npy")!r}, found["relevance"].numpy())
    """)
    subprocess.run([sys.executable, "-c", script], check=True)
    assert_same(np.load(tmp_path / "found.npy"), expected, 1e-5)


# --- what is refused -----------------------------------------------------------------------------

REFUSED = {
    "samples": (lambda x: x - tf.reduce_mean(x, 0, keepdims=True), "it works across samples"),
    "random": (lambda x: x + tf.random.normal(tf.shape(x)), "it draws random numbers"),
    "no samples": (lambda x: tf.reshape(x, [-1, 6]), "no batch axis in front"),
}


@pytest.mark.parametrize("name", ["gradient", "lrp.epsilon", "deep_lift.rescale"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_explained_is_refused_by_name(case, name):
    function, message = REFUSED[case]
    inputs = keras.Input((4, 6))
    h = layers.Lambda(function, name="inside")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(h))
    with pytest.raises(UnsupportedLayerError, match=rf"inside \(Lambda\).*{message}"):
        create_analyzer(name, model)


class InTraining(layers.Layer):
    """Normalises by the batch, whatever is asked of it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm = layers.BatchNormalization()

    def call(self, x):
        return self.norm(x, training=True)


def test_statistics_of_a_batch_are_refused():
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, layers.Dense(2)(InTraining(name="inside")(inputs)))
    with pytest.raises(UnsupportedLayerError, match="inside.*works across samples"):
        create_analyzer("gradient", model)


def test_loops_have_a_gradient_and_no_rule():
    inputs = keras.Input((4,))
    looped = layers.Lambda(
        lambda x: tf.while_loop(lambda i, s: i < 3, lambda i, s: (i + 1, s * 2.0), (0, x))[1],
        name="looped",
    )
    model = keras.Model(inputs, layers.Dense(2)(looped(inputs)))
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    found = create_analyzer("gradient", model).analyze(x, target=0)
    assert_same(found, tape_gradient(model, x, [1.0, 0.0]), 1e-6)
    with pytest.raises(UnsupportedLayerError, match="looped.*a loop or a branch"):
        create_analyzer("lrp.epsilon", model)


def test_rounding_has_no_rule():
    inputs = keras.Input((4,))
    rounded = layers.Lambda(lambda x: x + tf.stop_gradient(tf.round(x) - x), name="rounded")
    model = keras.Model(inputs, layers.Dense(2)(rounded(inputs)))
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    # The straight-through estimator: its gradient is that of x.
    found = create_analyzer("gradient", model).analyze(x, target=0)
    assert_same(found, np.tile(model.weights[0][:, 0], (2, 1)), 1e-6)
    with pytest.raises(UnsupportedLayerError, match=r"rounded/round \(Round\)"):
        create_analyzer("lrp.epsilon", model)


def test_thresholds_of_a_sample_need_samples_in_front(opened):
    model, x, _ = opened("merged with the samples")
    for name, options in (("rect_grad", {}), ("lrp.epsilon", {"relative": True})):
        with pytest.raises(UnsupportedLayerError, match="compares all elements of a sample"):
            create_analyzer(name, model, **options)
    # Where layers keep the samples in front it is fine.
    create_analyzer("rect_grad", opened("tensordot")[0]).analyze(x)


def test_a_row_of_a_composite_names_what_is_inside(opened):
    model, x, _ = opened("tensordot")
    rows = [("opened/relu*", __import__("tfexplain").rules.Gradient())]
    composite = epsilon_plus().prepend(rows, name="mine")
    assert isinstance(composite, Composite)
    analyzer = create_analyzer("lrp.composite", model, composite=composite)
    assert ("opened/relu", "relu", "Gradient()") in analyzer.describe().rows


# --- integers ------------------------------------------------------------------------------------


class Words(layers.Layer):
    """Token and position embeddings from one matrix of a layer of its own."""

    def build(self, shape):
        self.table = self.add_weight(shape=(9, 4), name="table")
        self.places = self.add_weight(shape=(8, 4), name="places")

    def call(self, tokens):
        vectors = tf.gather(tf.convert_to_tensor(self.table), tokens)
        return vectors + self.places[: tf.shape(tokens)[1]]


def test_lookups_by_integers_are_lookups():
    rng = np.random.default_rng(2)
    inputs = keras.Input((5,), dtype="int32")
    h = layers.Dense(3, activation="relu")(Words(name="words")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    tokens = rng.integers(0, 9, (3, 5)).astype("int32")
    table, places, w, b, last, _ = [weight.numpy() for weight in model.weights]
    hidden = (table[tokens] + places[:5]) @ w + b
    gradient = ((hidden > 0) * last.reshape(5, 3, 2)[..., 1]) @ w.T
    found = create_analyzer("gradient", model).analyze(tokens, target=1)
    assert_same(found, gradient.sum(axis=-1), 1e-5)
    assert np.abs(found).max() > 0.1
    for name in ("lrp.epsilon", "deep_lift.rescale", "integrated_gradients"):
        assert np.abs(create_analyzer(name, model).analyze(tokens, target=1)).max() > 1e-2


def test_integers_that_nothing_looks_up_are_not_given_zeros_in_silence():
    inputs = keras.Input((5,), dtype="int32")
    h = layers.Lambda(lambda x: tf.one_hot(x, 4), output_shape=(5, 4))(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))
    with pytest.raises(UnsupportedModelError, match="No relevance reaches the inputs"):
        create_analyzer("gradient", model)


def test_an_input_that_is_a_mask_is_told():
    x, mask = keras.Input((4, 3), name="x"), keras.Input((4,), dtype="int32", name="kept")
    h = layers.Lambda(lambda both: both[0] * tf.cast(both[1], "float32")[:, :, None])([x, mask])
    model = keras.Model([x, mask], layers.Dense(2)(layers.Flatten()(h)))
    rng = np.random.default_rng(4)
    given = [rng.normal(size=(2, 4, 3)), np.array([[1, 1, 0, 1], [0, 1, 1, 1]], "int32")]
    with pytest.warns(UserWarning, match="kept of .*Their relevance is 0"):
        analyzer = create_analyzer("lrp.epsilon", model)
    of_x, of_mask = analyzer.analyze(given, target=0)
    assert not of_mask.any() and not of_x[given[1] == 0].any()
    assert np.abs(of_x[given[1] == 1]).min() > 0


@pytest.mark.parametrize("length", [None, 6])
def test_attention_of_keras_is_opened(length):
    rng = np.random.default_rng(6)
    inputs = keras.Input((length, 4))
    h = layers.LayerNormalization()(inputs)
    h = inputs + layers.MultiHeadAttention(2, 3, name="attention")(h, h)
    h = layers.GlobalAveragePooling1D()(h + layers.Dense(4, activation="gelu")(h))
    model = keras.Model(inputs, layers.Dense(2)(h))
    for weight in model.weights:
        weight.assign(weight + 0.2 * rng.normal(size=weight.shape))
    x, baseline = rng.normal(size=(2, 6, 4)), rng.normal(size=(1, 6, 4))
    found = create_analyzer("gradient", model).analyze(x, target=1)
    assert_same(found, tape_gradient(model, x.astype("float32"), [0.0, 1.0]), 1e-5)
    lrp = create_analyzer("lrp.epsilon", model, dtype="float64")
    assert float(np.abs(lrp.ledger(x, 1)["lost"]).max()) < 1e-12
    lift = create_analyzer("deep_lift.rescale", model, dtype="float64", baseline=baseline)
    difference = lift.outputs(x) - lift.outputs(baseline)
    found = lift.analyze(x, target=1)
    gap = np.abs(found.sum(axis=(1, 2)) - difference[:, 1])
    assert (gap <= 1e-10 * np.abs(found).sum(axis=(1, 2))).all()
    assert ops.shape(found) == x.shape
