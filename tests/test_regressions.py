"""Faults of other libraries that must not be ours, one test per case, named after it.

The prefix of a name is the library in which the fault was found.
"""

import concurrent.futures
import inspect
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfexplain
from tfexplain.analyzers import ANALYZERS
from tfexplain.errors import UnsupportedLayerError

# Keras 3.15 copies its variables for saving in a way that NumPy 2 deprecates.
KERAS_SAVES = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

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


def create(name, model, **options):
    """Creates an analyzer in float64."""
    return tfexplain.create_analyzer(name, model, **{"dtype": "float64", **options})


def randomize(model, seed=0):
    """Gives a model weights of both signs, and variances > 0."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        value = generator.normal(size=variable.shape)
        if "variance" in variable.path:
            value = generator.uniform(0.2, 3, size=variable.shape)
        variable.assign(value)
    return model


def samples(model, count=3, seed=1):
    """Draws inputs of both signs."""
    return np.random.default_rng(seed).normal(size=(count, *model.input_shape[1:]))


def tape_gradient(model, x, target):
    """Returns the gradient of an output, with TensorFlow alone and in float32."""
    x = tf.constant(x, "float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = model(x, training=False)[:, target]
    return tape.gradient(value, x).numpy()


def assert_same(first, second, rtol=1e-9):
    """Compares two maps relative to the largest value."""
    scale = np.max(np.abs(second))
    assert scale > 0
    np.testing.assert_allclose(first, second, rtol=0, atol=rtol * scale)


def differ(first, second):
    """Tells whether two maps differ by more than a hundredth of the largest value."""
    return np.max(np.abs(first - second)) > 0.01 * np.max(np.abs(second))


@pytest.fixture(scope="module")
def dense_relu():
    """Two dense layers with ReLU layers of their own, then logits, with biases of both signs."""
    layers = keras.layers
    return randomize(
        keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(6),
                layers.ReLU(),
                layers.Dense(6, activation="relu"),
                layers.Dense(3, name="logits"),
            ]
        )
    )


# --- innvestigate ------------------------------------------------------------------------------


def test_innvestigate_fused_batch_norm():
    """Batch normalisation, folded or not, gives the analytic z rule, and its own presets too."""
    norm = keras.layers.BatchNormalization(epsilon=0.05)
    dense = keras.layers.Dense(4)
    model = randomize(keras.Sequential([keras.Input((5,)), norm, dense]))
    gamma, beta, mean, variance = (w.astype("float64") for w in norm.get_weights())
    kernel, bias = (w.astype("float64") for w in dense.get_weights())
    x = samples(model).astype("float32").astype("float64")
    scale = gamma / np.sqrt(variance + 0.05)
    expected = x * scale * kernel[:, 2]
    for batch_norm in ("fold", "rule"):
        analyzer = create("lrp.z", model, batch_norm=batch_norm)
        assert_same(analyzer.analyze(x, target=2), expected, 1e-6)
    wrong = x * gamma / np.sqrt(variance**2 + 0.05) * kernel[:, 2]
    assert differ(wrong, expected)
    # Every preset equals that of the network folded by hand.
    folded = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, dtype="float64")])
    shift = beta - mean * scale
    folded.set_weights([kernel * scale[:, None], bias + shift @ kernel])
    for name in ("lrp.alpha_2_beta_1", "lrp.sequential_preset_b", "deep_taylor"):
        assert_same(
            create(name, model).analyze(x, target=2),
            create(name, folded).analyze(x, target=2),
            1e-6,
        )


def test_innvestigate_alpha_beta_bias():
    """Only the bias of a denominator's own sign belongs in it."""
    x = np.array([[1.0, 2.0, 0.5, 1.5]])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    kernel = np.array([[1.0], [-0.5], [2.0], [-0.25]])
    for bias, name, textbook, peer in (
        (-0.5, "lrp.alpha_1_beta_0", (0.0625, 0, 0.0625, 0), (0.0833, 0, 0.0833, 0)),
        (0.5, "lrp.alpha_2_beta_1", (0.9, -0.8182, 0.9, -0.3068), (0.9, -1.2857, 0.9, -0.4821)),
    ):
        model.set_weights([kernel, np.array([bias])])
        relevance = create(name, model).analyze(x)
        np.testing.assert_allclose(relevance, [textbook], rtol=0, atol=5e-5)
        relevance = create(name, model, compat="innvestigate").analyze(x)
        np.testing.assert_allclose(relevance, [peer], rtol=0, atol=5e-5)


def test_innvestigate_deep_taylor_w_square():
    """A linear first layer of signed inputs gets w^2; where inputs are >= 0 for certain, z+."""
    model = randomize(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")]))
    w = model.layers[0].get_weights()[0][:, 1].astype("float64")
    x = samples(model)
    analyzer = create("deep_taylor", model)
    y = analyzer.outputs(x)[:, 1:2]
    assert "WSquare" in str(analyzer.describe())
    assert_same(analyzer.analyze(x, target=1), w**2 / np.sum(w**2) * y)

    stack = [keras.Input((4,)), keras.layers.ReLU(), model.layers[0]]
    rectified = keras.Sequential(stack)
    analyzer = create("deep_taylor", rectified)
    y = analyzer.outputs(x)[:, 1:2]
    assert "ZPlus" in str(analyzer.describe())
    above = np.maximum(np.maximum(x, 0) * w, 0)
    total = above.sum(axis=1, keepdims=True)
    shares = np.divide(above, total, out=np.zeros_like(above), where=total > 0)
    assert_same(analyzer.analyze(x, target=1), shares * y)

    # The peer's convention: z+ also at the first layer.
    analyzer = create("deep_taylor", model, compat="innvestigate")
    y = np.maximum(analyzer.outputs(x)[:, 1:2], 0)
    above = np.maximum(x * w, 0)
    total = above.sum(axis=1, keepdims=True)
    shares = np.divide(above, total, out=np.zeros_like(above), where=total > 0)
    assert_same(analyzer.analyze(x, target=1), shares * y)
    assert differ(analyzer.analyze(x, target=1), create("deep_taylor", model).analyze(x, target=1))


def test_innvestigate_smoothgrad_noise_scale():
    """SmoothGrad tends to the gradient as the noise tends to 0, also with compat."""
    model = randomize(
        keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2)]
        )
    )
    x = samples(model)
    gradient = create("gradient", model).analyze(x, target=0)

    def error(scale, **options):
        analyzer = create("smoothgrad", model, samples=8, noise_scale=scale, **options)
        return np.max(np.abs(analyzer.analyze(x, target=0) - gradient)) / np.max(np.abs(gradient))

    assert error(1.0) > 0.05
    assert 1e-5 < error(1e-4) < 1e-2
    assert error(1e-6) < 1e-4
    assert error(1e-6, compat="innvestigate") < 1e-4


@pytest.mark.parametrize("name", ["smoothgrad", "integrated_gradients", "gradient", "lrp.epsilon"])
def test_innvestigate_positional_target(name, dense_relu):
    """The target is accepted in every documented form, by position and by name."""
    analyzer = create(name, dense_relu, **GRADIENTS.get(name, {}))
    x = samples(dense_relu)
    every = analyzer.analyze(x, "all")
    assert every.shape == (3, 3, 5)
    np.testing.assert_array_equal(every, analyzer.analyze(x, target="all"))
    for target in (2, np.int64(2), [2, 2, 2], np.array([2, 2, 2])):
        assert_same(analyzer.analyze(x, target), every[:, 2])
        assert_same(analyzer.analyze(x, target=target), every[:, 2])
    assert_same(analyzer.analyze(x, [2, 0, 1]), every[[0, 1, 2], [2, 0, 1]])
    largest = analyzer.outputs(x).argmax(axis=1)
    for relevance in (analyzer.analyze(x), analyzer.analyze(x, None)):
        assert_same(relevance, every[[0, 1, 2], largest])


@pytest.fixture(scope="module")
def nested():
    """Returns (nested, flat): the same layers inside a model inside a model, and in a row."""
    layers = keras.layers
    rows = [
        layers.Dense(6, activation="relu"),
        layers.BatchNormalization(),
        layers.Dense(6),
        layers.ReLU(),
        layers.Dense(3),
    ]
    x = keras.Input((5,))
    inner = keras.Sequential([keras.Input((6,)), rows[2], rows[3]], name="inner")
    middle_input = keras.Input((5,))
    middle = keras.Model(middle_input, inner(rows[1](rows[0](middle_input))), name="middle")
    model = randomize(keras.Model(x, rows[4](middle(x))))
    return model, keras.Sequential([keras.Input((5,)), *rows])


@pytest.mark.parametrize("name", [*GRADIENTS, *RELEVANCE])
def test_innvestigate_nested_models(name, nested):
    """Nested and flattened networks give the same numbers, whatever the method."""
    model, flat = nested
    options = {**GRADIENTS, **RELEVANCE}[name]
    x = samples(model)
    expected = create(name, flat, **options).analyze(x)
    assert_same(create(name, model, **options).analyze(x), expected)


def test_innvestigate_fatal_warnings():
    """LRP takes ReLU layers and depthwise convolutions; what it refuses, it names."""
    layers = keras.layers
    model = randomize(
        keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.DepthwiseConv2D(3),
                layers.ReLU(),
                layers.Flatten(),
                layers.Dense(2, use_bias=False),
            ]
        )
    )
    model.layers[0].bias.assign(np.zeros(2))
    x = samples(model)
    analyzer = create("lrp.z", model)
    relevance = analyzer.analyze(x)
    np.testing.assert_allclose(
        relevance.sum(axis=(1, 2, 3)), analyzer.outputs(x).max(axis=1), rtol=1e-9
    )

    recurrent = keras.Sequential(
        [keras.Input((4, 2)), layers.LSTM(3, name="memory"), layers.Dense(2)]
    )
    with pytest.raises(UnsupportedLayerError) as caught:
        create("lrp.z", recurrent)
    message = str(caught.value)
    assert "memory" in message  # the layer
    assert "LSTM" in message
    assert "no rule" in message  # the reason
    assert "gradient" in message  # the remedy
    x = samples(recurrent)
    found = tfexplain.create_analyzer("gradient", recurrent).analyze(x, target=1)
    assert_same(found, tape_gradient(recurrent, x, 1), 1e-5)


def test_innvestigate_gradient_batch_norm(nested):
    """The gradient family works with batch normalisation and equals TensorFlow's gradient."""
    model, _ = nested
    x = samples(model).astype("float32")
    expected = tape_gradient(model, x, 1)
    for name, options, wanted in (
        ("gradient", {}, expected),
        ("input_t_gradient", {}, x * expected),
        ("smoothgrad", {"samples": 2, "noise_scale": 0.0}, expected),
    ):
        analyzer = tfexplain.create_analyzer(name, model, **options)
        assert_same(analyzer.analyze(x, target=1), wanted, 1e-5)
    analyzer = create("integrated_gradients", model, steps=2000, quadrature="midpoint")
    outputs = analyzer.outputs(np.concatenate([x, np.zeros_like(x)]))[:, 1]
    relevance = analyzer.analyze(x, target=1)
    np.testing.assert_allclose(
        relevance.sum(axis=1), outputs[:3] - outputs[3:], rtol=0, atol=0.005 * np.ptp(outputs)
    )


@KERAS_SAVES
def test_innvestigate_npz_roundtrip(tmp_path, dense_relu):
    """What `save` writes, `load_analyzer` reads, arrays too, and nothing is pickled."""
    low, high = np.linspace(-6, -5, 5), np.linspace(5, 6, 5)
    analyzer = create("deep_taylor.bounded", dense_relu, low=low, high=high)
    x = samples(dense_relu)
    path = tmp_path / "analyzer.tfx"
    analyzer.save(path)
    loaded = tfexplain.load_analyzer(path)
    np.testing.assert_array_equal(loaded.analyze(x), analyzer.analyze(x))
    assert differ(
        create("deep_taylor.bounded", dense_relu, low=-6, high=6).analyze(x), analyzer.analyze(x)
    )
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".pkl", ".pickle"))]
        arrays = [name for name in archive.namelist() if name.endswith(".npz")]
        assert arrays
        for name in arrays:
            with archive.open(name) as file, np.load(file, allow_pickle=False) as stored:
                kept = [stored[key] for key in stored.files]
        assert all(array.dtype != object for array in kept)
        assert any(np.array_equal(array, low) for array in kept)


# Options that are not the defaults; together they are all options that there are.
SAVED = [
    (
        "lrp.epsilon",
        {
            "epsilon": 0.7,
            "relative": True,
            "bias": "ignore",
            "output": "second",
            "head": "one",
            "dtype": "float64",
        },
    ),
    (
        "lrp.gamma",
        {
            "gamma": 2.0,
            "input_rule": ("box", -5.0, 5.0),
            "max_pool": "average",
            "batch_norm": "rule",
            "output": 1,
            "jit_compile": False,
        },
    ),
    ("lrp.alpha_beta", {"alpha": 3, "beta": 2, "output": 1, "add": "proportional"}),
    ("lrp.sequential_preset_a", {"epsilon": 0.9, "until": 0, "output": 1}),
    ("lrp.composite", {"composite": "epsilon_gamma_box", "low": -5, "high": 5, "output": 1}),
    ("deep_taylor.bounded", {"low": -4.5, "high": 5.5, "output": 1, "compat": "innvestigate"}),
    ("integrated_gradients", {"steps": 3, "baseline": 0.4, "quadrature": "right", "output": 1}),
    (
        "smoothgrad",
        {
            "samples": 3,
            "noise_scale": 0.4,
            "noise_range": (-1, 1),
            "times_input": True,
            "seed": 5,
            "output": 1,
        },
    ),
    ("rect_grad", {"percentile": 40, "output": 1}),
    ("gradient", {"output": 0, "output_activation": "keep"}),
    (
        "lrp.contrastive",
        {"rule": {"name": "lrp.gamma", "gamma": 1.0}, "rectify": False, "output": 1},
    ),
    ("grad_cam", {"layer": "conv", "output": 1}),
]


@pytest.fixture(scope="module")
def two_outputs():
    """A network with a convolution, normalisation, an addition, pooling and two outputs."""
    layers = keras.layers
    x = keras.Input((6, 6, 2))
    stem = layers.Conv2D(3, 3, padding="same", name="conv")(x)
    stem = layers.ReLU()(layers.BatchNormalization()(stem))
    joined = layers.Add()([stem, layers.Conv2D(3, 1)(stem)])
    pooled = layers.Flatten()(layers.MaxPooling2D(2)(joined))
    hidden = layers.Dense(4, activation="relu")(pooled)
    first = layers.Dense(3, activation="softmax", name="first")(hidden)
    second = layers.Dense(2, name="second")(hidden)
    # With this seed every sample has open rectifiers and positive contributions everywhere.
    model = randomize(keras.Model(x, [first, second]), seed=8)
    kernel = model.get_layer("first").kernel
    kernel.assign(0.02 * kernel)  # a softmax that is not saturated
    return model


@KERAS_SAVES
@pytest.mark.parametrize("number", range(len(SAVED)))
def test_innvestigate_epsilon_roundtrip(number, tmp_path, two_outputs):
    """Equal numbers after reload, for every option; losing one of them would show."""
    name, options = SAVED[number]
    if number == 0:
        offered = {(n, option) for n, entry in ANALYZERS.items() for option in entry.options}
        tested = {option for _, given in SAVED for option in given}
        assert {option for _, option in offered} == tested
    x = samples(two_outputs)
    analyzer = tfexplain.create_analyzer(name, two_outputs, **options)
    relevance = analyzer.analyze(x, target=1)
    assert np.all(np.abs(relevance).max(axis=(1, 2, 3)) > 0)
    analyzer.save(tmp_path / "analyzer")
    loaded = tfexplain.load_analyzer(tmp_path / "analyzer")
    assert loaded.get_config() == analyzer.get_config()
    assert set(loaded.get_config()["options"]) == set(options)
    np.testing.assert_array_equal(loaded.analyze(x, target=1), relevance)
    required = [k for k, v in ANALYZERS[name].options.items() if v is inspect.Parameter.empty]
    kept = {key: value for key, value in options.items() if key in ("output", *required)}
    default = tfexplain.create_analyzer(name, two_outputs, **kept)
    assert differ(default.analyze(x, target=1), relevance)


def test_innvestigate_input_rule_lost_on_reuse(dense_relu):
    """The rule of the input holds however many analyzers the model had before."""
    x = samples(dense_relu)
    rules = ("flat", "w_square", ("box", -5, 5), None)
    # One network for each rule, which no other analyzer has seen.
    expected = []
    for rule in rules:
        fresh = keras.models.clone_model(dense_relu)
        fresh.set_weights(dense_relu.get_weights())
        expected.append(create("lrp.epsilon", fresh, input_rule=rule).analyze(x))
    alive = [create("lrp.epsilon", dense_relu, input_rule=rule) for rule in rules]
    for analyzer, wanted in zip(alive, expected, strict=True):
        assert_same(analyzer.analyze(x), wanted)
    for first, second in zip(expected, expected[1:], strict=False):
        assert differ(first, second)


def test_innvestigate_alpha_beta_explodes():
    """Where biases almost cancel contributions, relevance stays bounded, and is accounted for."""
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(2, activation="relu"), layers.Dense(1, use_bias=False)]
    )
    x = np.array([[1.0, 1.0]])
    # The first unit: contributions 2 and -1.98, bias 1.99; the whole bias in the negative
    # denominator leaves 0.01 there.
    model.set_weights(
        [np.array([[2.0, 1.0], [-1.98, 1.0]]), np.array([1.99, 0.5]), np.array([[0.5], [0.25]])]
    )
    output = create("lrp.z", model).outputs(x)[0, 0]
    exploding = create("lrp.alpha_2_beta_1", model, compat="innvestigate").analyze(x)
    assert abs(exploding.sum()) > 50 * output
    analyzer = create("lrp.alpha_2_beta_1", model)
    relevance = analyzer.analyze(x)
    assert np.abs(relevance).sum() <= 3 * output
    ledger = analyzer.ledger(x)
    absorbed = ledger.absorbed_by_bias + ledger.absorbed_by_stabilizer + ledger.lost
    np.testing.assert_allclose(ledger.received, ledger.kept + absorbed, rtol=1e-9, atol=1e-12)
    assert np.all(np.abs(ledger.kept) <= 3 * np.abs(ledger.received))
    np.testing.assert_allclose(relevance.sum() + absorbed.sum(), output, rtol=1e-9)
    assert float(abs(absorbed).sum()) > 0.1 * output


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad"])
def test_innvestigate_integrated_gradients_index(name, dense_relu):
    """With an integer target every sample of the batch is explained, as one by one."""
    x = samples(dense_relu, 5)
    analyzer = create(name, dense_relu, **GRADIENTS[name])
    together = analyzer.analyze(x, target=1)
    alone = np.concatenate([analyzer.analyze(x[i : i + 1], target=1) for i in range(5)])
    assert_same(together, alone)
    assert np.all(np.abs(together).max(axis=1) > 0)
    assert_same(analyzer.analyze(x, target=1, batch_size=2), alone)


# --- xplique -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(dense_relu):
    """The network with logits, and a softmax behind them."""
    x = keras.Input((5,))
    return keras.Model(x, keras.layers.Softmax(name="probabilities")(dense_relu(x)))


def test_xplique_output_layer(classifier, dense_relu):
    """The logits are explained, and `describe` and `outputs` say so; "keep" gives the softmax."""
    x = samples(dense_relu).astype("float32")
    logits = tfexplain.create_analyzer("input_t_gradient", classifier)
    assert_same(logits.analyze(x, target=1), x * tape_gradient(dense_relu, x, 1), 1e-5)
    np.testing.assert_allclose(logits.outputs(x), dense_relu(x), rtol=1e-5, atol=1e-5)
    assert "probabilities" not in str(logits.describe())
    kept = tfexplain.create_analyzer("input_t_gradient", classifier, output_activation="keep")
    expected = x * tape_gradient(classifier, x, 1)
    assert_same(kept.analyze(x, target=1), expected, 1e-4)
    assert "probabilities" in str(kept.describe())
    assert differ(logits.analyze(x, target=1), expected)


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_xplique_nested_guided(name, nested):
    """Rectifiers inside nested models are rectifiers."""
    model, flat = nested
    x = samples(model)
    relevance = create(name, model).analyze(x, target=0)
    assert_same(relevance, create(name, flat).analyze(x, target=0))
    assert differ(relevance, create("gradient", model).analyze(x, target=0))


@pytest.mark.parametrize("form", ["layer", "relu6"])
def test_xplique_relu_max_value(form):
    """The gate of guided backpropagation closes above `max_value` too."""
    gate = keras.layers.ReLU(max_value=6.0) if form == "layer" else keras.layers.Activation("relu6")
    model = keras.Sequential([keras.Input((4,)), gate, keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[1.0], [2.0], [3.0], [-4.0]])])
    x = np.array([[-1.0, 5.0, 7.0, 5.0]])
    relevance = create("guided_backprop", model).analyze(x)
    np.testing.assert_allclose(relevance, [[0, 2, 0, 0]], rtol=1e-9)
    plain = create("gradient", model).analyze(x)
    np.testing.assert_allclose(plain, [[0, 2, 0, -4]], rtol=1e-9)


# --- tf-explain --------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_tf_explain_integrated_gradients_factor(baseline):
    """Integrated gradients have the factor x - x0: they add up to f(x) - f(x0)."""
    model = randomize(
        keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2)]
        )
    )
    x = samples(model)
    analyzer = create("integrated_gradients", model, baseline=baseline)
    outputs = analyzer.outputs(np.concatenate([x, np.full((1, 4), baseline)]))[:, 0]
    relevance = analyzer.analyze(x, target=0)
    np.testing.assert_allclose(relevance.sum(axis=1), outputs[:3] - outputs[3], rtol=1e-7)


def test_tf_explain_smoothgrad_of_loss():
    """SmoothGrad differentiates the logit, whose gradient in a linear model is the weights."""
    model = randomize(
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    )
    kernel = model.get_weights()[0].astype("float64")
    x = samples(model)
    relevance = create("smoothgrad", model, samples=4).analyze(x, target=2)
    assert_same(relevance, np.tile(kernel[:, 2], (3, 1)))
    # The gradient of the cross-entropy is another: it mixes the weights of all classes.
    probabilities = model.predict(x, verbose=0)
    assert differ((probabilities - np.eye(3)[2]) @ kernel.T, relevance)


# --- shap --------------------------------------------------------------------------------------

LAYERS = keras.layers
UNLISTED = {
    "gelu": ((4,), lambda: [LAYERS.Dense(5, activation="gelu")]),
    "leaky_relu": ((4,), lambda: [LAYERS.Dense(5), LAYERS.LeakyReLU()]),
    "prelu": ((4,), lambda: [LAYERS.Dense(5), LAYERS.PReLU()]),
    "relu6": ((4,), lambda: [LAYERS.Dense(5, activation="relu6")]),
    "hard_sigmoid": ((4,), lambda: [LAYERS.Dense(5, activation="hard_sigmoid")]),
    "swish": ((4,), lambda: [LAYERS.Dense(5, activation="swish")]),
    "depthwise": ((5, 5, 2), lambda: [LAYERS.DepthwiseConv2D(3)]),
    "separable": ((5, 5, 2), lambda: [LAYERS.SeparableConv2D(3, 3)]),
    "transpose": ((3, 3, 2), lambda: [LAYERS.Conv2DTranspose(2, 3)]),
    "conv3d": ((4, 4, 4, 1), lambda: [LAYERS.Conv3D(2, 3)]),
    "global_max_pool": ((4, 4, 2), lambda: [LAYERS.Conv2D(3, 2), LAYERS.GlobalMaxPooling2D()]),
    "layer_norm": ((4,), lambda: [LAYERS.Dense(5), LAYERS.LayerNormalization(name="culprit")]),
    "lstm": ((4, 2), lambda: [LAYERS.LSTM(3, name="culprit")]),
    "gru": ((4, 2), lambda: [LAYERS.GRU(3, name="culprit")]),
    "attention": ((4, 4), None),
}
REFUSED = ("layer_norm", "lstm", "gru", "attention")


@pytest.mark.parametrize("case", UNLISTED)
def test_shap_unlisted_operations(case):
    """The gradient works on every layer; LRP works and accounts for its sum, or refuses by name."""
    shape, layers = UNLISTED[case]
    if layers is None:
        x = keras.Input(shape)
        attended = LAYERS.MultiHeadAttention(2, 3, name="culprit")(x, x)
        model = keras.Model(x, LAYERS.Dense(2)(LAYERS.Flatten()(attended)))
    else:
        model = keras.Sequential(
            [keras.Input(shape), *layers(), LAYERS.Flatten(), LAYERS.Dense(2, name="logits")]
        )
    randomize(model)
    x = samples(model).astype("float32")
    gradient = tfexplain.create_analyzer("gradient", model).analyze(x, target=1)
    assert_same(gradient, tape_gradient(model, x, 1), 1e-4)
    if case in REFUSED:
        with pytest.raises(UnsupportedLayerError, match="culprit"):
            create("lrp.epsilon", model)
        return
    analyzer = create("lrp.epsilon", model)
    relevance = analyzer.analyze(x, target=1)
    ledger = analyzer.ledger(x, target=1)
    absorbed = (ledger.absorbed_by_bias + ledger.absorbed_by_stabilizer + ledger.lost).sum("call")
    total = relevance.reshape(3, -1).sum(axis=1) + absorbed.values
    np.testing.assert_allclose(total, analyzer.outputs(x)[:, 1], rtol=1e-6)
    assert np.all(np.abs(relevance).reshape(3, -1).max(axis=1) > 0)


def test_shap_global_registry(dense_relu):
    """Nothing is global: many analyzers at once, made and run in threads, and plain gradients."""
    x = samples(dense_relu).astype("float32")
    names = ["gradient", "guided_backprop", "deconvnet", "rect_grad", "lrp.epsilon", "lrp.flat"]
    options = {**GRADIENTS, **RELEVANCE}
    plain = tape_gradient(dense_relu, x, 0)
    expected = {}
    for name in names:
        expected[name] = create(name, dense_relu, **options[name]).analyze(x, target=0)

    def fresh(name):
        analyzer = create(name, dense_relu, **options[name])
        return name, analyzer, analyzer.analyze(x, target=0)

    def again(pair):
        name, analyzer = pair
        return name, [analyzer.analyze(x, target=0) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        made = list(pool.map(fresh, names))
        for name, _, relevance in made:
            assert_same(relevance, expected[name])
        # Every analyzer is used by two threads.
        pairs = [(name, analyzer) for name, analyzer, _ in made] * 2
        for name, found in pool.map(again, pairs):
            for relevance in found:
                assert_same(relevance, expected[name])
    assert differ(expected["guided_backprop"], plain)
    np.testing.assert_array_equal(tape_gradient(dense_relu, x, 0), plain)


# --- zennit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_zennit_batch_norm_epsilon(epsilon):
    """The folded network equals the original to rounding, and epsilon is in it once."""
    layers = keras.layers
    conv, norm = layers.Conv1D(3, 2), layers.BatchNormalization(epsilon=epsilon)
    dense = layers.Dense(2)
    model = randomize(
        keras.Sequential([keras.Input((6, 2)), conv, norm, layers.ReLU(), layers.Flatten(), dense])
    )
    norm.moving_variance.assign(np.full(3, 1e-2))
    x = samples(model).astype("float32").astype("float64")
    gamma, beta, mean, variance = (w.astype("float64") for w in norm.get_weights())
    scale = gamma / np.sqrt(variance + epsilon)
    folded = keras.Sequential(
        [
            keras.Input((6, 2), dtype="float64"),
            layers.Conv1D(3, 2, dtype="float64", activation="relu"),
            layers.Flatten(dtype="float64"),
            layers.Dense(2, dtype="float64"),
        ]
    )
    kernel, bias = (w.astype("float64") for w in conv.get_weights())
    folded.set_weights([kernel * scale, (bias - mean) * scale + beta, *dense.get_weights()])
    analyzer = create("lrp.alpha_1_beta_0", model)
    assert_same(analyzer.outputs(x), folded(x).numpy(), 1e-6)
    assert_same(analyzer.outputs(x), model(x).numpy(), 1e-5)
    assert_same(analyzer.analyze(x), create("lrp.alpha_1_beta_0", folded).analyze(x), 1e-6)
