"""innvestigate's analyzers on single layers against closed formulas in NumPy.

Its reference files follow these formulas; they hold for any weights, so that they can be checked
without the files.
"""

import keras
import numpy as np
import pytest

from tests.helpers.networks import create, sequential
from tests.helpers.single_calls import LAYERS, NOISY, Field, check_draws

SHAPE = (6, 6, 3)


def positive(values):
    """Returns the positive part."""
    return np.maximum(values, 0)


def alpha_beta(field, alpha):
    """Returns the two shares, without one whose sum is 0."""
    above, below = positive(field.z), positive(-field.z)
    return alpha * field.share(above) - (alpha - 1) * field.share(below)


def epsilon_rule(field, epsilon):
    """Returns the damped shares."""
    total = field.z.sum()
    return field.z * field.y / (total + epsilon * (1 if total >= 0 else -1))


def preset(field, alpha):
    """Returns epsilon for dense layers, alpha-beta for convolutions."""
    return epsilon_rule(field, 0.1) if "Dense" in field.layer else alpha_beta(field, alpha)


def box(field, low, high):
    """Returns the shares of the box rule."""
    return field.share(field.z - low * positive(field.w) + high * positive(-field.w))


def integrated(field):
    """Returns z; at the first of 64 points the input is 0 and the ReLU is closed."""
    return field.z * (63 / 64 if "relu" in field.layer else 1)


def even(field):
    """Returns equal shares."""
    return np.full(field.x.shape, field.y / field.x.size)


def gradient(field):
    """Returns the weights; the ReLU at the largest output is open."""
    return field.w


def contributions(field):
    """Returns z."""
    return field.z


def times_output(field):
    """Returns the weights times the output: the logit is the start relevance."""
    return field.y * field.w


# Key -> name, options, formula of Dense and Conv2D, and which kind of start and pooling it has.
FORMULAS = {
    "gradient": ("gradient", {}, gradient, "gradient"),
    "input_t_gradient": ("input_t_gradient", {}, contributions, "relevance"),
    "guided_backprop": ("guided_backprop", {}, times_output, "gradient times y"),
    "deconvnet": ("deconvnet", {}, times_output, "gradient times y"),
    "integrated_gradients": ("integrated_gradients", {"steps": 64}, integrated, "path"),
    "smoothgrad": ("smoothgrad", {"samples": 64}, gradient, "gradient"),
    "z": ("lrp.z", {}, contributions, "relevance"),
    "z_ib": ("lrp.z_IB", {}, contributions, "relevance"),
    "z_flat": ("lrp.z", {"input_rule": "flat"}, even, "relevance"),
    "z_box": ("lrp.z", {"input_rule": ("box", -1, 2)}, lambda f: box(f, -1, 2), "relevance"),
    "epsilon": ("lrp.epsilon", {}, lambda f: epsilon_rule(f, 1e-7), "relevance"),
    "epsilon_ib": ("lrp.epsilon_IB", {}, lambda f: epsilon_rule(f, 1e-7), "relevance"),
    "z_plus": ("lrp.z_plus", {}, lambda f: alpha_beta(f, 1), "relevance"),
    "z_plus_fast": ("lrp.z_plus_fast", {}, lambda f: alpha_beta(f, 1), "relevance"),
    "alpha_1_beta_0": ("lrp.alpha_1_beta_0", {}, lambda f: alpha_beta(f, 1), "relevance"),
    "alpha_1_beta_0_ib": ("lrp.alpha_1_beta_0_IB", {}, lambda f: alpha_beta(f, 1), "relevance"),
    "alpha_2_beta_1": ("lrp.alpha_2_beta_1", {}, lambda f: alpha_beta(f, 2), "relevance"),
    "w_square": ("lrp.w_square", {}, lambda f: f.share(f.w**2), "relevance"),
    "flat": ("lrp.flat", {}, even, "relevance"),
    "preset_a": ("lrp.sequential_preset_a", {}, lambda f: preset(f, 1), "relevance"),
    "preset_b": ("lrp.sequential_preset_b", {}, lambda f: preset(f, 2), "relevance"),
    "preset_a_flat": ("lrp.sequential_preset_a_flat", {}, even, "relevance"),
    "deep_taylor": ("deep_taylor", {}, lambda f: alpha_beta(f, 1), "gradient times y"),
}


def pooling_formula(field, kind):
    """Returns the attribution of the window of a pooling layer."""
    if field.layer == "AveragePooling2D":
        return {
            "gradient": np.full(4, 0.25),
            "gradient times y": np.full(4, field.y / 4),
            # The z rule, whatever rule the kernels or the input have.
            "relevance": field.x / 4,
            "path": field.x / 4,
        }[kind]
    winner = field.x == field.y
    if kind == "gradient":
        return winner.astype("float64")
    if kind == "path":
        # At the first of 64 points all inputs are 0, and the first cell of the window wins.
        return winner * field.x * 63 / 64 + (np.arange(4) == 0) * field.x / 64
    return winner * field.y


@pytest.fixture(scope="module")
def inputs():
    """Three samples in [0, 1)."""
    return np.random.default_rng(17).uniform(size=(3, *SHAPE))


@pytest.fixture(scope="module")
def single_layers():
    """Layer -> (model, kernel), with random kernels of both signs and zero biases."""
    generator, found = np.random.default_rng(18), {}
    for name, layer in LAYERS.items():
        model = sequential(SHAPE, layer(), keras.layers.Flatten())
        kernel = None
        if model.weights:
            kernel = generator.normal(size=model.weights[0].shape).astype("float32")
            model.set_weights([kernel, np.zeros(5)])
            kernel = kernel.astype("float64")
        found[name] = model, kernel
    return found


def fields_of(layer, inputs, kernel):
    """Returns the receptive field of each sample."""
    return [Field(layer, x, kernel) for x in inputs]


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        (key, layer)
        for key in FORMULAS
        for layer in LAYERS
        if key != "smoothgrad" or layer not in NOISY
    ],
)
def test_formula(key, layer, inputs, single_layers):
    """Every formula on every single layer, with innvestigate's conventions."""
    name, options, formula, kind = FORMULAS[key]
    model, kernel = single_layers[layer]
    expected = np.zeros_like(inputs)
    for field, place in zip(fields_of(layer, inputs, kernel), expected, strict=True):
        values = pooling_formula(field, kind) if kernel is None else formula(field)
        place[field.place] = values.reshape(place[field.place].shape)
    relevance = create(name, model, compat="innvestigate", **options).analyze(inputs)
    np.testing.assert_allclose(relevance, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", NOISY)
def test_smoothgrad_behind_gates(layer, inputs, single_layers):
    """The share of open gates, or of wins, is that of 64 draws of standard deviation 1."""
    model, kernel = single_layers[layer]
    analyzer = create("smoothgrad", model, samples=64, compat="innvestigate")
    found, fields = analyzer.analyze(inputs), fields_of(layer, inputs, kernel)
    for relevance, field in zip(found, fields, strict=True):
        check_draws(relevance, field)
