"""Refusals of nonsense that would otherwise pass unnoticed, and messages of rare cases."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfexplain
from tfexplain import UnsupportedLayerError, UnsupportedModelError, create_analyzer
from tfexplain.composites import Composite, First, epsilon_plus
from tfexplain.rules import Epsilon, Flat, rule_from_config

# NumPy warns about Keras' variables when Keras saves them
KERAS_SAVES = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    return keras.Sequential(
        [
            keras.Input((4, 2), name="steps"),
            layers.Conv1D(3, 2, activation="relu", name="conv"),
            layers.MaxPooling1D(3, name="pool"),
            layers.Flatten(),
            layers.Dense(2, name="scores"),
        ]
    )


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(2, 4, 2)).astype("float32")


@pytest.fixture(scope="module")
def two_outputs():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [layers.Dense(2, name="a")(inputs), layers.Dense(3)(inputs)])


# --- options -------------------------------------------------------------------------------------

NONSENSE = [
    ("lrp.sequential_preset_a", {"until": -1}, r"until must be .*received -1"),
    ("lrp.sequential_preset_a", {"until": 1.5}, r"until must be .*received 1\.5"),
    ("lrp.sequential_preset_a", {"until": "2"}, r"until must be .*received '2'"),
    ("lrp.sequential_preset_a", {"until": True}, r"until must be .*received True"),
    ("smoothgrad", {"seed": "a"}, r"seed must be .*received 'a'"),
    ("smoothgrad", {"seed": 1.5}, r"seed must be .*received 1\.5"),
    ("smoothgrad", {"times_input": 3}, r"times_input must be .*received 3"),
    ("smoothgrad", {"times_input": "no"}, r"times_input must be .*received 'no'"),
    ("smoothgrad", {"noise_scale": "big"}, r"noise_scale must be .*received 'big'"),
    ("smoothgrad", {"noise_scale": np.nan}, r"noise_scale must be .*received nan"),
    ("smoothgrad", {"noise_range": ("a", "b")}, r"noise_range must be .*received \('a', 'b'\)"),
    ("smoothgrad", {"noise_range": (0, np.inf)}, r"noise_range must be .*received \(0, inf\)"),
    ("lrp.contrastive", {"rectify": "yes"}, r"rectify must be .*received 'yes'"),
    ("lrp.contrastive", {"rule": {"alpha": 2}}, r"rule names the LRP analyzer .*received None"),
    ("lrp.contrastive", {"rule": 3}, r"rule names the LRP analyzer .*received 3"),
    ("lrp.contrastive", {"rule": "lrp.contrastive"}, r"'lrp.contrastive' cannot be contrasted"),
    ("lrp.contrastive", {"rule": "lrp.alpha_beta"}, r"lrp.alpha_beta needs the option\(s\) alpha"),
    ("lrp.epsilon", {"relative": "x"}, r"relative must be .*received 'x'"),
    ("lrp.epsilon", {"relative": 2}, r"relative must be .*received 2"),
    ("lrp.gamma", {"gamma": "x"}, r"gamma must be .*received 'x'"),
    ("lrp.gamma", {"gamma": True}, r"gamma must be .*received True"),
    ("lrp.alpha_beta", {"alpha": "2"}, r"alpha must be .*'2'"),
    ("lrp.alpha_beta", {"alpha": 2, "beta": "1"}, r"beta.*'1'"),
    ("rect_grad", {"percentile": "high"}, r"percentile must be .*received 'high'"),
    ("rect_grad", {"percentile": np.nan}, r"percentile must be .*received nan"),
    ("gradient", {"jit_compile": "no"}, r"jit_compile must be .*received 'no'"),
    ("lrp.z", {"jit_compile": 1}, r"jit_compile must be .*received 1"),
    ("lrp.z", {"add": ""}, r"add must be one of rule, proportional, received ''"),
    ("lrp.z", {"bias": ""}, r"bias must be .*received ''"),
    ("gradient", {"head": ""}, r"head must be one of .*received ''"),
    ("gradient", {"dtype": ""}, r"dtype must be one of .*received ''"),
    ("grad_cam", {"layer": 3}, r"no layer 3"),
    ("integrated_gradients", {"quadrature": ""}, r"quadrature must be one of .*received ''"),
]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    NONSENSE,
    ids=[f"{name}-{options}" for name, options, _ in NONSENSE],
)
def test_nonsense_is_refused_when_the_analyzer_is_made(model, name, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        create_analyzer(name, model, **options)


@pytest.mark.parametrize("output", [1.5, 0.5, 1.0, True, (0,)])
def test_an_output_is_a_name_or_an_integer(model, two_outputs, output):
    for each in (model, two_outputs):
        with pytest.raises((ValueError, TypeError), match=r"output.*(received|output=)"):
            create_analyzer("gradient", each, output=output)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lrp.epsilon", {"epsilon": np.float32(0.25)}),
        ("lrp.epsilon", {"epsilon": np.int64(1)}),
        ("lrp.epsilon", {"relative": np.bool_(True)}),
        ("lrp.gamma", {"gamma": np.float32(0.5)}),
        ("lrp.alpha_beta", {"alpha": np.int64(2), "beta": np.float32(1)}),
        ("lrp.sequential_preset_a", {"until": np.int64(0)}),
        ("rect_grad", {"percentile": np.float32(50)}),
    ],
    ids=str,
)
def test_numbers_of_numpy_are_numbers(model, name, options):
    plain = {key: value.item() for key, value in options.items()}
    found, expected = (create_analyzer(name, model, **each) for each in (options, plain))
    assert found.describe().rows == expected.describe().rows
    configs = [json.dumps(each.composite().to_config()) for each in (found, expected)]
    assert configs[0] == configs[1]


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [("lrp.z", {"input_rule": ("box", -1, 1)}), ("deep_taylor.bounded", {"low": -1, "high": 1})],
)
def test_box_behind_computed_tensors(name, options):
    inputs = keras.Input((4,))
    h = layers.Dense(3, activation="relu", name="hidden")(inputs)
    h = layers.Concatenate(name="joined")([inputs, h])
    net = keras.Model(inputs, layers.Dense(2, name="scores")(h))
    message = "box rule at 'scores' needs the bounds of its input.*hidden.*input_rule='w_square'"
    with pytest.raises(ValueError, match=message):
        create_analyzer(name, net, **options)


@pytest.mark.parametrize("keepdims", [True, False])
def test_results_without_a_batch_axis(keepdims):
    inputs = keras.Input((4,))
    h = layers.Dense(3, name="hidden")(inputs)
    h = h - ops.mean(h, axis=0, keepdims=keepdims)
    net = keras.Model(inputs, layers.Dense(2)(h))
    with pytest.raises(UnsupportedLayerError, match=r"mean\w* \(Mean\): its result has no batch"):
        create_analyzer("lrp.epsilon", net)


@pytest.mark.parametrize("name", ["smoothgrad", "integrated_gradients"])
def test_tokens_that_are_no_rows_cannot_move(name):
    inputs = keras.Input((3,), dtype="int32", name="tokens")
    h = layers.Embedding(5, 2)(ops.minimum(inputs, 4))
    net = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))
    message = f"{name} moves inputs continuously; the integer input 'tokens' .* Embedding layers"
    with pytest.raises(UnsupportedModelError, match=message):
        create_analyzer(name, net)


def test_tokens_of_two_embeddings_move():
    inputs = keras.Input((3,), dtype="int32", name="tokens")
    embeddings = [layers.Embedding(5, 2) for _ in range(2)]
    h = layers.Add()([embedding(inputs) for embedding in embeddings])
    net = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))
    x = np.array([[0, 4, 2], [1, 1, 3]])
    found = create_analyzer("integrated_gradients", net).analyze(x, target=1)
    # It is linear in the vectors, whose baseline is 0.
    table = sum(embedding.embeddings.numpy() for embedding in embeddings)
    kernel = net.layers[-1].kernel.numpy()[:, 1].reshape(3, 2)
    np.testing.assert_allclose(found, (table[x] * kernel).sum(axis=-1), rtol=1e-5)


def test_targets_of_an_output_with_an_unknown_size():
    inputs = keras.Input((None, 2))
    analyzer = create_analyzer("gradient", keras.Model(inputs, layers.Dense(3)(inputs)))
    x = np.ones((1, 4, 2))
    with pytest.raises(ValueError, match=r"\(4, 0\) is no index into an output of shape \(4, 3\)"):
        analyzer.analyze(x, target=(4, 0))
    with pytest.raises(ValueError, match=r"shape \(None, 3\).*only target=None"):
        analyzer.ledger(x, target=0)


def test_grad_cam_needs_one_input_with_spatial_axes():
    left, right = keras.Input((6, 2)), keras.Input((6, 2))
    h = layers.Flatten()(layers.Conv1D(2, 2)(layers.Add()([left, right])))
    two = keras.Model([left, right], layers.Dense(2)(h))
    table = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    for net, shapes in ((two, r"\[\(None, 6, 2\), \(None, 6, 2\)\]"), (table, r"\[\(None, 4\)\]")):
        with pytest.raises(UnsupportedModelError, match=f"grad_cam needs one input.*{shapes}"):
            create_analyzer("grad_cam", net)


def test_inputs_that_are_no_numbers():
    inputs = keras.Input((4,), dtype="bool", name="flags")
    net = keras.Model(inputs, layers.Dense(2)(ops.where(inputs, 1.0, -1.0)))
    with pytest.raises(ValueError, match="Inputs of dtype bool cannot be explained"):
        create_analyzer("gradient", net).analyze(np.zeros((1, 4), bool))


class Several(keras.Model):
    """Takes a list of tensors."""

    def __init__(self):
        super().__init__(name="several")
        self.scores = layers.Dense(2)

    def call(self, inputs):
        return self.scores(inputs[0] + inputs[1])


def test_subclassed_models_with_several_inputs():
    net = Several()
    net([tf.zeros((1, 3)), tf.zeros((1, 3))])
    message = "subclassed model 'several' does not tell the shape of its one input"
    with pytest.raises(UnsupportedModelError, match=message):
        create_analyzer("gradient", net)


class Unrebuildable(layers.Layer):
    """Has an argument that its configuration does not know."""

    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return {"name": self.name}


class UnrebuildableLoop(Unrebuildable):
    """Cannot be opened either."""

    def call(self, x):
        one = lambda i, y: (i + 1, self.factor * y)  # noqa: E731
        return tf.while_loop(lambda i, y: i < 1, one, (0, x))[1]


def test_opened_layers_compute_in_every_precision():
    inputs = keras.Input((3,))
    net = keras.Model(inputs, layers.Dense(2)(Unrebuildable(2.1, name="mine")(inputs)))
    found = create_analyzer("gradient", net, dtype="float64").analyze(np.ones((1, 3)), target=1)
    # The number is a constant of the layer, which computes in float32.
    expected = float(np.float32(2.1)) * net.layers[-1].kernel.numpy()[:, 1].astype("float64")
    np.testing.assert_allclose(found[0], expected, rtol=1e-15)


def test_layers_that_cannot_compute_in_another_precision():
    inputs = keras.Input((3,))
    net = keras.Model(inputs, layers.Dense(2)(UnrebuildableLoop(2.0, name="mine")(inputs)))
    message = r"mine \(UnrebuildableLoop\) may compute in float32 inside, not in float64"
    with pytest.warns(UserWarning, match=message):
        create_analyzer("gradient", net, dtype="float64")


# --- composites ----------------------------------------------------------------------------------


def mine(**options):
    rows = [("scores", Epsilon(0.5)), (First(), Flat())]
    return epsilon_plus(**options).prepend(rows, name="mine")


def test_a_composite_keeps_its_rules_under_compat(model, x):
    plain = create_analyzer("lrp.composite", model, composite=mine())
    compat = create_analyzer("lrp.composite", model, composite=mine(), compat="innvestigate")
    assert compat.describe().rows == plain.describe().rows
    np.testing.assert_array_equal(compat.analyze(x), plain.analyze(x))


@pytest.mark.parametrize(
    "options",
    [
        {"add": "proportional"},
        {"add": "rule"},
        {"max_pool": "average"},
        {"max_pool": "winner"},
        {"bias": "ignore"},
        {"gamma": 0.1},
        {"low": 0, "high": 1},
    ],
    ids=str,
)
def test_options_of_presets_beside_a_composite(model, options):
    message = rf"(?s){', '.join(options)} .*Composite"
    with pytest.raises(ValueError, match=message):
        create_analyzer("lrp.composite", model, composite=mine(), **options)


def test_the_input_rule_comes_before_a_composite(model):
    analyzer = create_analyzer("lrp.composite", model, composite=mine(), input_rule="w_square")
    rules = {call: rule for call, _, rule in analyzer.describe().rows}
    assert rules["conv"] == "WSquare()"
    assert rules["scores"].startswith("Epsilon(epsilon=0.5")


@pytest.mark.parametrize("composite", [None, 3, ["epsilon_plus"], Flat()], ids=str)
def test_what_is_no_composite(model, composite):
    with pytest.raises((ValueError, TypeError), match="no composite .*Known: .*epsilon_plus"):
        create_analyzer("lrp.composite", model, composite=composite)


def test_unknown_rules():
    message = "There is no rule 'Golden'; known rules: .*Epsilon.* import the module that defines"
    with pytest.raises(ValueError, match=message):
        rule_from_config({"rule": "Golden"})
    with pytest.raises(ValueError, match="There is no rule None"):
        rule_from_config({})


class Unregistered(layers.Layer):
    """A layer that Keras does not know by name."""


def test_selectors_that_this_process_does_not_know():
    config = mine().to_config()
    config["rows"].insert(0, [{"function": "elsewhere>selector"}, Flat().to_config()])
    message = "selector function 'elsewhere>selector' is not registered in this process"
    with pytest.raises(ValueError, match=message):
        Composite.from_config(config)


@KERAS_SAVES
def test_layer_classes_that_this_process_does_not_know(model, tmp_path):
    # The class is in a row only, not in the model, whose loading Keras would refuse itself.
    rows = [((Unregistered, layers.Dense), Epsilon(0.5))]
    analyzer = create_analyzer("lrp.composite", model, composite=epsilon_plus().prepend(rows))
    path = tmp_path / "analyzer.tfx"
    analyzer.save(path)
    with pytest.raises(ValueError, match="layer class 'Unregistered' is not known; register it"):
        tfexplain.load_analyzer(path)
    again = tfexplain.load_analyzer(path, custom_objects={"Unregistered": Unregistered})
    assert again.composite() == analyzer.composite()
