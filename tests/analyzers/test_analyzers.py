"""What single analyzers compute, against their definitions."""

import keras
import numpy as np
import pytest
import scipy.integrate
import tensorflow as tf
from keras import layers

import tfexplain
from tfexplain.analyzers.integrated_gradients import QUADRATURES, quadrature_rule
from tfexplain.composites import COMPOSITES, Composite, First, Last
from tfexplain.numerics import random_normal
from tfexplain.rules import (
    AlphaBeta,
    AverageOfWindow,
    ClippedAddition,
    Epsilon,
    Flat,
    Gamma,
    Pass,
    ZBox,
    ZPlus,
    rule_from_config,
)


@pytest.fixture(scope="module")
def network():
    """A float64 network with biases, and signed inputs."""
    keras.utils.set_random_seed(1)
    options = {"bias_initializer": "random_normal", "dtype": "float64"}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2), dtype="float64"),
            layers.Conv2D(4, 3, activation="relu", name="first", **options),
            layers.Conv2D(5, 3, activation="relu", name="second", **options),
            layers.MaxPooling2D(2, name="pool", dtype="float64"),
            layers.Flatten(name="flat", dtype="float64"),
            layers.Dense(3, activation="softmax", name="last", **options),
        ]
    )
    x = np.random.default_rng(2).normal(size=(3, 8, 8, 2))
    return model, x


def run(model, x, first=0, last=None):
    """Runs layers in float64; a float64 model as a whole would cast its input to float32."""
    for layer in model.layers[first:last]:
        x = layer(x)
    return x


def logits(model, x, first=0):
    """Returns what the softmax of the last layer gets."""
    layer = model.layers[-1]
    return run(model, x, first, -1) @ layer.kernel + layer.bias


def test_grad_cam_is_the_weighted_sum_of_activations(network):
    model, x = network
    analyzer = tfexplain.create_analyzer("grad_cam", model)
    assert analyzer.layer == "second"
    found = analyzer.analyze(x, target=1)
    activation = run(model, x, last=2)
    with tf.GradientTape() as tape:
        tape.watch(activation)
        y = logits(model, activation, first=2)[:, 1]
    weights = tf.reduce_mean(tape.gradient(y, activation), axis=(1, 2), keepdims=True)
    cam = tf.nn.relu(tf.reduce_sum(weights * activation, axis=-1, keepdims=True))
    cam = tf.image.resize(cam, (8, 8))
    assert np.abs(cam).max() > 0
    np.testing.assert_allclose(found, np.repeat(cam, 2, axis=-1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rectify", [True, False])
def test_contrastive_lrp_is_the_difference_of_normalised_maps(network, rectify):
    model, x = network
    plain = tfexplain.create_analyzer("lrp.alpha_1_beta_0", model)
    y = plain.outputs(x)
    starts = np.stack([y * [0, 1, 0], y * [1, 0, 1]], axis=1)
    maps = plain.propagate(x, starts)["input"]
    maps = maps / maps.sum(axis=(2, 3, 4), keepdims=True)
    expected = maps[:, 0] - maps[:, 1]
    expected = np.maximum(expected, 0) if rectify else expected
    analyzer = tfexplain.create_analyzer("lrp.contrastive", model, rectify=rectify)
    np.testing.assert_allclose(analyzer.analyze(x, target=1), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "beside"),
    [
        ({"bias": "ignore"}, {"bias": "full"}),
        ({"dtype": "float32"}, {}),
        ({"jit_compile": True}, {}),
    ],
)
def test_options_of_contrastive_lrp_are_given_once(network, rule, beside):
    rule = {"name": "lrp.alpha_1_beta_0", **rule}
    with pytest.raises(ValueError, match="rule holds the option.* give them beside rule"):
        tfexplain.create_analyzer("lrp.contrastive", network[0], rule=rule, **beside)


def test_contrastive_excitation_subtracts_the_negated_last_layer(network):
    model, x = network
    flat = run(model, x, last=-1).numpy()
    w = model.get_layer("last").kernel.numpy()[:, 1]
    plus, minus = (flat * np.maximum(part, 0) for part in (w, -w))
    contrast = plus / plus.sum(1, keepdims=True) - minus / minus.sum(1, keepdims=True)
    below = tfexplain.create_analyzer("excitation_bp", model)
    expected = below.propagate(x, contrast[:, None], start="flat")["input"][:, 0]
    found = tfexplain.create_analyzer("excitation_bp.contrastive", model).analyze(x, target=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_smoothgrad_is_the_mean_gradient_of_its_draws(network):
    model, x = network
    total = 0
    spans = x.max(axis=(1, 2, 3), keepdims=True) - x.min(axis=(1, 2, 3), keepdims=True)
    for index in range(5):
        noise = random_normal([1, *x.shape[1:]], [7, index], tf.float64)
        point = tf.constant(x + 0.2 * spans * noise.numpy())
        with tf.GradientTape() as tape:
            tape.watch(point)
            y = logits(model, point)[:, 2]
        total = total + tape.gradient(y, point).numpy() / 5
    options = {"samples": 5, "noise_scale": 0.2, "seed": 7}
    analyzer = tfexplain.create_analyzer("smoothgrad", model, **options)
    np.testing.assert_allclose(analyzer.analyze(x, target=2), total, rtol=1e-9, atol=1e-12)
    # The draws do not depend on batch size or order.
    backward = analyzer.analyze(x[::-1], target=2, batch_size=1)
    np.testing.assert_allclose(backward[::-1], total, rtol=1e-9, atol=1e-12)
    times = tfexplain.create_analyzer("smoothgrad", model, times_input=True, **options)
    np.testing.assert_allclose(times.analyze(x, target=2), total * x, rtol=1e-9, atol=1e-12)


def test_random_numbers_are_standard_normal():
    draws = random_normal([200_000], [3, 4], tf.float64).numpy()
    moments = [draws.mean(), draws.var(), (draws**3).mean(), (draws**4).mean()]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.05)
    assert not np.array_equal(draws, random_normal([200_000], [3, 5], tf.float64))
    compiled = tf.function(random_normal, jit_compile=True)
    shape, seed = tf.constant([50]), tf.constant([3, 4])
    again = random_normal(shape, seed, tf.float64)
    np.testing.assert_allclose(compiled(shape, seed, tf.float64), again, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "order"), [("gauss_legendre", 9), ("midpoint", 1), ("trapezoid", 1), ("right", 0)]
)
def test_quadrature_is_exact_to_its_order(name, order):
    nodes, weights = quadrature_rule(name, 5)
    for power in range(order + 1):
        assert weights @ nodes**power == pytest.approx(1 / (power + 1), abs=1e-12)
    assert abs(weights @ nodes ** (order + 1) - 1 / (order + 2)) > 1e-6


def test_the_ends_of_trapezoids_count_half():
    nodes, weights = quadrature_rule("trapezoid", 6)
    values = np.random.default_rng(0).normal(size=6)
    assert weights @ values == pytest.approx(scipy.integrate.trapezoid(values, nodes), rel=1e-12)


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_integrated_gradients_complete_as_steps_grow(network, quadrature):
    model, x = network
    baseline = np.full(x.shape[1:], 0.3)
    gaps = []
    for steps in (8, 128):
        analyzer = tfexplain.create_analyzer(
            "integrated_gradients", model, steps=steps, quadrature=quadrature, baseline=baseline
        )
        difference = analyzer.outputs(x) - analyzer.outputs(baseline[None])
        total = analyzer.analyze(x, target=0).sum(axis=(1, 2, 3))
        gaps.append(np.abs(total - difference[:, 0]).max())
    assert gaps[1] < gaps[0] / 3


def test_baselines_of_every_form_agree(network):
    model, x = network

    def relevance(baseline, data=x):
        analyzer = tfexplain.create_analyzer(
            "integrated_gradients", model, steps=6, baseline=baseline
        )
        return analyzer.analyze(data, target=0, batch_size=2)

    shared = np.random.default_rng(0).normal(size=x.shape[1:])
    expected = relevance(shared)
    for same in (shared[None], np.repeat(shared[None], 3, 0), lambda x: 0 * x + shared):
        np.testing.assert_allclose(relevance(same), expected, rtol=1e-12, atol=1e-14)
    per_sample = np.random.default_rng(1).normal(size=x.shape)
    singly = [relevance(per_sample[i], x[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(relevance(per_sample), singly, rtol=1e-12, atol=1e-14)
    mean = (expected + relevance(0.5)) / 2
    rows = np.stack([shared, np.full_like(shared, 0.5)])
    several = tfexplain.create_analyzer("integrated_gradients", model, steps=6, background=rows)
    np.testing.assert_allclose(several.analyze(x, target=0), mean, rtol=1e-12, atol=1e-14)


def test_head_and_output_activation(network):
    model, x = network
    one = tfexplain.create_analyzer("lrp.z", model, head="one").analyze(x, target=1)
    plain = tfexplain.create_analyzer("lrp.z", model)
    values = plain.outputs(x)[:, 1].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(plain.analyze(x, target=1), one * values, rtol=1e-9, atol=1e-12)
    kept = tfexplain.create_analyzer("gradient", model, output_activation="keep")
    np.testing.assert_allclose(kept.outputs(x), run(model, x), rtol=1e-12)
    point = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(point)
        y = run(model, point)[:, 1]
    np.testing.assert_allclose(
        kept.analyze(x, target=1), tape.gradient(y, point), rtol=1e-9, atol=1e-12
    )


def test_box_bounds_pass_through_padding_and_rescaling():
    keras.utils.set_random_seed(3)
    conv = layers.Conv2D(3, 3, dtype="float64", use_bias=False)
    inputs = keras.Input((4, 4, 1), dtype="float64")
    scaled = layers.Rescaling(-1 / 128, offset=0.5, dtype="float64")(inputs)
    outputs = layers.Flatten()(conv(layers.ZeroPadding2D(1)(scaled)))
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).uniform(0, 255, size=(2, 4, 4, 1))
    analyzer = tfexplain.create_analyzer("lrp.z", model, input_rule=("box", 0, 255))
    found = analyzer.analyze(x, target=5)
    # The bounds change places under the negative factor, and are 0 on the padding.
    w = conv.kernel.numpy()
    below, above = -255 / 128 + 0.5, 0.5
    inside = np.pad(np.ones((1, 4, 4, 1)), [(0, 0), (1, 1), (1, 1), (0, 0)])
    z = np.pad(-x / 128 + 0.5, [(0, 0), (1, 1), (1, 1), (0, 0)])
    row, column, channel = np.unravel_index(5, (4, 4, 3))
    window = np.s_[:, row : row + 3, column : column + 3]
    k = w[None, ..., channel]
    q = z[window] * k - inside[window] * (below * np.maximum(k, 0) + above * np.minimum(k, 0))
    y = (z[window] * k).sum(axis=(1, 2, 3), keepdims=True)
    expected = np.zeros_like(z)
    expected[window] = q / q.sum(axis=(1, 2, 3), keepdims=True) * y
    np.testing.assert_allclose(found, expected[:, 1:-1, 1:-1], rtol=1e-9, atol=1e-12)
    assert analyzer.ledger(x, target=5)["lost"].values == pytest.approx(0, abs=1e-12)


def test_first_and_last_and_user_rows(network):
    model, _ = network
    mine = Composite(
        "mine",
        [
            (First(), Flat()),
            (Last(), Epsilon(0.5)),
            ("sec*", Gamma(0.1)),
            ((layers.MaxPooling2D,), AverageOfWindow()),
            *COMPOSITES["epsilon_plus"]().rows,
        ],
    )
    analyzer = tfexplain.create_analyzer("lrp.composite", model, composite=mine)
    rules = {call: rule for call, _, rule in analyzer.describe().rows}
    assert rules["first"] == "Flat()"
    assert rules["second"].startswith("Gamma(gamma=0.1")
    assert rules["pool"] == "AverageOfWindow()"
    assert rules["last"].startswith("Epsilon(epsilon=0.5")
    assert Composite.from_config(mine.to_config()) == mine


# Preset -> rules of the first convolution, the second one and the dense layer.
PRESETS = {
    "epsilon_plus": (ZPlus(), ZPlus(), Epsilon(1e-6)),
    "epsilon_plus_flat": (Flat(), ZPlus(), Epsilon(1e-6)),
    "epsilon_gamma_box": (ZBox(-5.0, 5.0), Gamma(0.25), Epsilon(1e-6)),
    "epsilon_alpha2_beta1": (AlphaBeta(2, 1), AlphaBeta(2, 1), Epsilon(1e-6)),
    "epsilon_alpha2_beta1_flat": (Flat(), AlphaBeta(2, 1), Epsilon(1e-6)),
    "cmp_alpha1_beta0": (AlphaBeta(1, 0), AlphaBeta(1, 0), Epsilon(1e-10)),
    "cmp_alpha2_beta1": (AlphaBeta(2, 1), AlphaBeta(2, 1), Epsilon(1e-10)),
    "excitation": (ZPlus(), ZPlus(), ZPlus()),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_presets_give_their_rules_and_round_trip(network, name):
    model, _ = network
    options = {"low": -5.0, "high": 5.0} if name == "epsilon_gamma_box" else {}
    analyzer = tfexplain.create_analyzer("lrp.composite", model, composite=name, **options)
    composite = analyzer.composite()
    assert Composite.from_config(composite.to_config()) == composite
    first, second, last = map(str, PRESETS[name])
    assert [(operation, rule) for _, operation, rule in analyzer.describe().rows] == [
        ("Conv2D", first),
        ("relu", "Pass()"),
        ("Conv2D", second),
        ("relu", "Pass()"),
        ("MaxPooling2D", "Winner()"),
        ("Flatten", "Gradient()"),
        ("Dense", last),
    ]


def test_until_gives_the_flat_rule_to_the_first_linear_layers(network):
    model, _ = network
    name = "lrp.sequential_preset_b_flat_until_idx"
    rows = tfexplain.create_analyzer(name, model, until=1).describe().rows
    rules = {call: rule for call, _, rule in rows}
    assert (rules["first"], rules["second"]) == ("Flat()", "Flat()")
    assert rules["last"].startswith("Epsilon(epsilon=0.1")


def test_max_pool_average_shares_in_proportion():
    model = keras.Sequential(
        [keras.Input((2, 2, 1), dtype="float64"), layers.MaxPooling2D(2), layers.Flatten()]
    )
    x = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    found = tfexplain.create_analyzer("lrp.z", model, max_pool="average").analyze(x)
    np.testing.assert_allclose(found.ravel(), np.array([1, 2, 3, 4]) / 10 * 4, rtol=1e-12)


def test_clipped_addition_deletes_negative_and_large_relevance():
    inputs = keras.Input((2,), dtype="float64")
    model = keras.Model(inputs, layers.Add()([inputs, layers.ReLU()(inputs)]))
    rows = [("add*", ClippedAddition(AlphaBeta(2, 1)))]
    composite = COMPOSITES["excitation"]().prepend(rows, name="published")
    analyzer = tfexplain.create_analyzer("lrp.composite", model, composite=composite)
    # The summands are (3, 3) and (-1, 0). Positive ones get R, each half of 2 R; negative ones -R.
    x = np.array([[3.0, -1.0]])
    starts = np.array([[[-4.0, -4.0], [4.0, 4.0], [5000.0, 5000.0]]])
    relevance = analyzer.propagate(x, starts)["input"]
    # Opposite starts have no opposite maps, and each summand gets 1000 at most.
    np.testing.assert_allclose(relevance, [[[0, 4], [8, 0], [2000, 0]]], rtol=1e-12)
    plain = COMPOSITES["excitation"]().prepend([("add*", AlphaBeta(2, 1))])
    free = tfexplain.create_analyzer("lrp.composite", model, composite=plain)
    relevance = free.propagate(x, starts)["input"]
    np.testing.assert_allclose(relevance, [[[-8, 4], [8, -4], [10000, -5000]]], rtol=1e-12)
    rule = ClippedAddition(AlphaBeta(2, 1))
    assert rule_from_config(rule.to_config()) == rule


@pytest.mark.parametrize(
    "rule", [Epsilon(0.3, True), AlphaBeta(3), ZBox([0.0, 1.0], 2.0), ZPlus(), Pass()]
)
def test_rules_are_values(rule):
    assert rule_from_config(rule.to_config()) == rule
    assert hash(rule_from_config(rule.to_config())) == hash(rule)
    assert eval(repr(rule), vars(tfexplain.rules)) == rule  # noqa: S307


@keras.saving.register_keras_serializable("tests")
class Halve(layers.Layer):
    """A custom layer that says how relevance treats it."""

    relevance_policy = "pass"

    def call(self, x):
        return x / 2


def test_a_custom_layer_may_declare_its_policy():
    model = keras.Sequential([keras.Input((3,), dtype="float64"), Halve(dtype="float64")])
    analyzer = tfexplain.create_analyzer("lrp.z_plus", model)
    found = analyzer.analyze([[2.0, 4.0, 6.0]], target=1)
    np.testing.assert_allclose(found, [[0, 2, 0]])
    gradient = tfexplain.create_analyzer("gradient", model).analyze([[2.0, 4.0, 6.0]], target=1)
    np.testing.assert_allclose(gradient, [[0, 0.5, 0]])


def test_many_vectors_run_in_chunks(network, monkeypatch):
    model, x = network
    analyzer = tfexplain.create_analyzer("lrp.gamma", model)
    relevance = np.random.default_rng(0).normal(size=(3, 7, 3))
    whole = analyzer.propagate(x, relevance, layers=("first",))
    every = analyzer.analyze(x, target="all")
    monkeypatch.setattr("tfexplain.analyzers.reversed.CHUNK_BYTES", 1)
    sizes = []
    for network in (analyzer.network(), analyzer.network(None, ("first",))):

        def counting(records, relevance, run=network.run_backward):
            sizes.append(relevance.shape[1])
            return run(records, relevance)

        monkeypatch.setattr(network, "run_backward", counting)
    found = analyzer.propagate(x, relevance, layers=("first",))
    for name, expected in whole.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(analyzer.analyze(x, target="all"), every, rtol=1e-12, atol=1e-14)
    assert sizes == [1] * (7 + 3)


def test_attribute_is_a_labelled_dataset(network, tmp_path):
    model, x = network
    analyzer = tfexplain.create_analyzer("deep_taylor.bounded", model, low=-5, high=5)
    dataset = analyzer.attribute(x)
    assert dataset["relevance"].dims == ("sample", "vector", "height", "width", "channel")
    assert dataset["target"].values.ravel().tolist() == analyzer.outputs(x).argmax(1).tolist()
    total = dataset["relevance"].sum(("height", "width", "channel")).values.ravel()
    error = total - analyzer.outputs(x).max(1)
    np.testing.assert_allclose(dataset["conservation_error"].values.ravel(), error, atol=1e-9)
    tfexplain.results.save(dataset, tmp_path / "maps.nc")
    assert tfexplain.results.load(tmp_path / "maps.nc").identical(dataset)
