"""Faults of innvestigate that must not be ours, one test per case, named after it."""

import inspect
import zipfile

import keras
import numpy as np
import pytest

import tfexplain
from tests.helpers.networks import (
    DIFFERENCES,
    GRADIENTS,
    PERTURBATIONS,
    RELEVANCE,
    Loop,
    assert_same,
    create,
    differ,
    randomize,
    samples,
    sequential,
    tape_gradient,
)
from tfexplain.analyzers import ANALYZERS, GradCAM
from tfexplain.errors import UnsupportedLayerError

# Keras 3.15 copies its variables for saving in a way that NumPy 2 deprecates.
KERAS_SAVES = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_innvestigate_fused_batch_norm():
    """Batch normalisation gives the analytic z rule; three methods equal the network folded."""
    norm = keras.layers.BatchNormalization(epsilon=0.05)
    dense = keras.layers.Dense(4)
    model = randomize(sequential((5,), norm, dense))
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
    # The network folded by hand.
    folded = sequential((5,), keras.layers.Dense(4, dtype="float64"))
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
    model = sequential((4,), keras.layers.Dense(1))
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
    model = randomize(sequential((4,), keras.layers.Dense(3, name="dense")))
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
        sequential((4,), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2))
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
    """A target of two-dimensional outputs is accepted in every form, by position and by name."""
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


@pytest.mark.parametrize("name", [*GRADIENTS, *RELEVANCE, *DIFFERENCES, *PERTURBATIONS])
def test_innvestigate_nested_models(name, nested):
    """Nested and flattened networks give the same numbers, whatever the class of the analyzer."""
    model, flat = nested
    options = {**GRADIENTS, **RELEVANCE, **DIFFERENCES, **PERTURBATIONS}[name]
    x = samples(model)
    expected = create(name, flat, **options).analyze(x)
    assert_same(create(name, model, **options).analyze(x), expected)


def test_innvestigate_nested_models_of_every_class():
    """The methods above are all but Grad-CAM, which needs a convolution, and those to be fitted."""
    names = (*GRADIENTS, *RELEVANCE, *DIFFERENCES, *PERTURBATIONS)
    classes = {ANALYZERS[name].cls for name in names}
    others = {entry.cls for entry in ANALYZERS.values() if not entry.fits} - classes
    assert others == {GradCAM}


def test_innvestigate_fatal_warnings():
    """LRP takes ReLU layers and depthwise convolutions; what it refuses, it names."""
    layers = keras.layers
    model = randomize(
        sequential(
            (6, 6, 2),
            layers.DepthwiseConv2D(3),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(2, use_bias=False),
        )
    )
    model.layers[0].bias.assign(np.zeros(2))
    x = samples(model)
    analyzer = create("lrp.z", model)
    relevance = analyzer.analyze(x)
    np.testing.assert_allclose(
        relevance.sum(axis=(1, 2, 3)), analyzer.outputs(x).max(axis=1), rtol=1e-9
    )

    looped = sequential((4,), Loop(name="memory"), layers.Dense(2))
    with pytest.raises(UnsupportedLayerError) as caught:
        create("lrp.z", looped)
    message = str(caught.value)
    assert "memory" in message  # the layer
    assert "Loop" in message
    assert "no rule" in message  # the reason
    assert "gradient" in message  # the remedy
    x = samples(looped).astype("float32")
    found = tfexplain.create_analyzer("gradient", looped).analyze(x, target=1)
    assert_same(found, tape_gradient(looped, x, [0, 1]), 1e-5)


def test_innvestigate_gradient_batch_norm(nested):
    """The gradient family works with batch normalisation and equals TensorFlow's gradient."""
    model, _ = nested
    x = samples(model).astype("float32")
    expected = tape_gradient(model, x, [0, 1, 0])
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


# Options with other values than their defaults; together they are all options that there are.
ROWS = np.linspace(-1, 1, 144).reshape(2, 6, 6, 2)
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
            "jit_compile": True,
            "precision": "highest",
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
    ("shapley_sampling", {"cycles": 2, "baseline": 0.4, "features": 3, "seed": 5, "output": 1}),
    ("deep_lift.rescale", {"baseline": 0.2, "max_pool": "gradient", "output": 1}),
    ("deep_lift.ablation", {"definition": "as_written", "output": 1}),
    ("deep_lift.genomics", {"background": ROWS.tolist(), "output": 1}),
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
    """Equal options and numbers after reload, which are not those of the defaults."""
    name, options = SAVED[number]
    x = samples(two_outputs)
    analyzer = tfexplain.create_analyzer(name, two_outputs, **options)
    relevance = analyzer.analyze(x, target=1)
    assert np.all(np.abs(relevance).max(axis=(1, 2, 3)) > 0)
    analyzer.save(tmp_path / "analyzer")
    loaded = tfexplain.load_analyzer(tmp_path / "analyzer")
    assert loaded.get_config() == analyzer.get_config()
    assert set(options) <= set(loaded.get_config()["options"])
    np.testing.assert_array_equal(loaded.analyze(x, target=1), relevance)
    required = [k for k, v in ANALYZERS[name].options.items() if v is inspect.Parameter.empty]
    kept = {key: value for key, value in options.items() if key in ("output", *required)}
    default = tfexplain.create_analyzer(name, two_outputs, **kept)
    assert differ(default.analyze(x, target=1), relevance)


def test_innvestigate_epsilon_roundtrip_of_every_option():
    """`SAVED` holds every option, no default; test_pattern_analyzers.py saves fitted ones."""
    entries = [entry for entry in ANALYZERS.values() if not entry.fits]
    offered = {option for entry in entries for option in entry.options}
    assert {option for _, options in SAVED for option in options} == offered
    for name, options in SAVED:
        defaults = ANALYZERS[name].options
        assert all(defaults.get(key) != value for key, value in options.items()), name


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
    model = sequential((2,), layers.Dense(2, activation="relu"), layers.Dense(1, use_bias=False))
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
    absorbed = ledger.absorbed_by_bias + ledger.absorbed_by_stabilizer + ledger.undefined
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
