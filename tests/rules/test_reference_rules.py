"""Tests of the oracle itself: outside literals, identities and the layer zoo."""

import functools

import keras
import numpy as np
import pytest

from tests.helpers.layers import ENTRIES, make_model, runnable
from tests.helpers.reference_rules import (
    REFERENCE_POOL_RULES,
    REFERENCE_RELU_RULES,
    REFERENCE_RULES,
    addition,
    addition_matrix,
    connectivity,
    dense_form,
    ones_copy,
    pool_windows,
    relevance_of_batch,
)

TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def explain(rule, x, W, R, b=None, **options):
    W = np.asarray(W, np.float64)
    b = np.zeros(W.shape[1]) if b is None else np.asarray(b, np.float64)
    x, R = np.asarray(x, np.float64), np.asarray(R, np.float64)
    return REFERENCE_RULES[rule](x, W, b, R, **options)


@pytest.fixture(params=range(3))
def layer(request):
    """x, W, b, R of a signed layer whose every output has contributions of both signs."""
    rng = np.random.default_rng(request.param)
    x, W, b, R = (rng.normal(size=size) for size in (9, (9, 6), 6, 6))
    c = x[:, None] * W
    assert (c > 0).any(axis=0).all() and (c < 0).any(axis=0).all()
    return x, W, b, R


# Literals of captum ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first_weight, rule, options, expected",
    [
        (2, "epsilon", {"epsilon": 1e-9}, (18, 36, 54)),
        (-2, "gamma", {"gamma": 1}, (28 / 3, 104 / 3, 52)),
        (-2, "alpha_beta", {"alpha": 1}, (12, 33.6, 50.4)),
        (-2, "z_plus", {}, (12, 33.6, 50.4)),
    ],
)
def test_captum_two_linear_layers(first_weight, rule, options, expected):
    x = np.array([1.0, 2.0, 3.0])
    W1, W2 = np.full((3, 3), 2.0), np.full((3, 1), 3.0)
    W1[0, 0] = first_weight
    hidden = np.maximum(x @ W1, 0)
    second_options = {"gamma": 0.25} if rule == "gamma" else options
    r_hidden = explain(rule, hidden, W2, hidden @ W2, **second_options)
    if first_weight == -2:
        np.testing.assert_allclose(r_hidden, (24, 36, 36), rtol=1e-9)
    r = explain(rule, x, W1, r_hidden, **options)
    np.testing.assert_allclose(r, expected, rtol=1e-9)


def test_captum_skip_connection():
    x = np.array([2.0, 3.0])
    W = np.full((2, 2), 5.0)
    branch = x @ W
    R = np.array([0.0, 28.0])
    r_branch, r_skip = addition("epsilon", [branch, x], R, epsilon=1e-9)
    r = explain("epsilon", x, W, r_branch, epsilon=1e-9) + r_skip
    np.testing.assert_allclose(r, (10, 18), rtol=1e-9)


def test_captum_convolution_with_bias():
    conv = keras.layers.Conv2D(2, 3, dtype="float64")
    conv.build((None, 4, 4, 1))
    conv.set_weights([np.ones((3, 3, 1, 2)), np.array([-50.0, -75.0])])
    x = np.arange(16.0)
    W, b = dense_form(conv, x.reshape(4, 4, 1))
    hidden = np.maximum(x @ W + b, 0)
    dense = np.array([1.0, 1, 1, -1, 1, -1, 1, -1]).reshape(8, 1)  # channels last
    np.testing.assert_allclose(hidden @ dense, 54, **TIGHT)
    r_hidden = explain("epsilon", hidden, dense, hidden @ dense, epsilon=1e-9)
    expected = np.array([[[0, 4], [31, 40]], [[0, 0], [-6, -15]]])
    np.testing.assert_allclose(np.moveaxis(r_hidden.reshape(2, 2, 2), -1, 0), expected, atol=1e-7)
    r = explain("epsilon", x, W, r_hidden, b, epsilon=1e-9)
    expected = [[0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]]
    np.testing.assert_allclose(r.reshape(4, 4), expected, atol=1e-7)
    for rule, expected in {
        "guided": [[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]],
        "deconvnet": [[2, 3, 3, 1], [3, 5, 5, 2], [3, 5, 5, 2], [1, 2, 2, 1]],
    }.items():
        r = W @ REFERENCE_RELU_RULES[rule](x @ W + b, dense[:, 0])
        np.testing.assert_allclose(r.reshape(4, 4), expected, **TIGHT)


# Literals of the fault `innvestigate_alpha_beta_bias` --------------------------------------------


@pytest.mark.parametrize(
    "b, alpha, bias, expected",
    [
        (-0.5, 1, "split", (0.0625, 0, 0.0625, 0)),
        (0.5, 2, "split", (0.9, -0.8182, 0.9, -0.3068)),
        (-0.5, 1, "full", (0.0833, 0, 0.0833, 0)),
        (0.5, 2, "full", (0.9, -1.2857, 0.9, -0.4821)),
        (0.5, 2, "ignore", (1.125, -0.8182, 1.125, -0.3068)),
    ],
)
def test_innvestigate_alpha_beta_bias(b, alpha, bias, expected):
    x = np.array([1, 2, 0.5, 1.5])
    W = np.array([[1], [-0.5], [2], [-0.25]])
    r = explain("alpha_beta", x, W, x @ W + b, [b], alpha=alpha, bias=bias)
    np.testing.assert_allclose(r, expected, atol=5e-5)


# Identities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1, 2, 5])
def test_alpha_beta_conserves_without_bias(layer, alpha):
    x, W, b, R = layer
    r = explain("alpha_beta", x, W, R, b, alpha=alpha, bias="ignore")
    np.testing.assert_allclose(r.sum(), R.sum(), **TIGHT)
    assert np.all(np.isfinite(r)) and np.ptp(r) > 0


def test_alpha_beta_loses_the_part_of_an_absent_sign():
    r = explain("alpha_beta", [1.0, 2.0], [[1.0], [1.0]], [3.0], alpha=2)
    np.testing.assert_allclose(r, (2, 4), **TIGHT)


@pytest.mark.parametrize("alpha, beta", [(1, 1), (2, 0), (3, 1)])
def test_alpha_beta_scales_by_alpha_minus_beta(layer, alpha, beta):
    x, W, _, R = layer
    r = explain("alpha_beta", x, W, R, alpha=alpha, beta=beta)
    np.testing.assert_allclose(r.sum(), (alpha - beta) * R.sum(), **TIGHT)


@pytest.mark.parametrize(
    "rule, options",
    [
        ("z", {}),
        ("epsilon", {"epsilon": 0.1}),
        ("gamma", {"gamma": 0.5}),
        ("alpha_beta", {"alpha": 1}),
        ("alpha_beta", {"alpha": 2}),
    ],
)
def test_split_bias_is_an_input_of_constant_one(layer, rule, options):
    x, W, b, R = layer
    r = explain(rule, x, W, R, b, **options)
    absorbed = explain(rule, np.append(x, 1.0), np.vstack([W, b]), R, **options)
    np.testing.assert_allclose(r, absorbed[:-1], **TIGHT)
    assert abs(absorbed[-1]) > 1e-3  # so the bias took part


@pytest.mark.parametrize("rule, options", [("z", {}), ("epsilon", {}), ("gamma", {"gamma": 0.5})])
def test_ignored_bias_equals_no_bias(layer, rule, options):
    x, W, b, R = layer
    r = explain(rule, x, W, R, b, bias="ignore", **options)
    np.testing.assert_allclose(r, explain(rule, x, W, R, **options), **TIGHT)
    assert not np.allclose(r, explain(rule, x, W, R, b, **options))


def test_full_bias_equals_split_for_epsilon_and_scales_for_gamma(layer):
    x, W, b, R = layer
    for rule in ("z", "epsilon"):
        full, split = (explain(rule, x, W, R, b, bias=bias) for bias in ("full", "split"))
        np.testing.assert_array_equal(full, split)
    r = explain("gamma", [1.0, 1.0], [[3.0], [-1.0]], [2.0], [-1.0], gamma=1, bias="full")
    np.testing.assert_allclose(r, (4, -2 / 3), **TIGHT)  # 6 and -1 of 6 - 1 - 2
    r = explain("gamma", [1.0, 1.0], [[3.0], [-1.0]], [2.0], [-1.0], gamma=1)
    np.testing.assert_allclose(r, (3, -1 / 2), **TIGHT)  # 6 and -1 of 6 - 1 - 1


def test_epsilon_tends_to_z(layer):
    x, W, b, R = layer
    limit = explain("z", x, W, R, b)
    errors = [
        np.abs(explain("epsilon", x, W, R, b, epsilon=e) - limit).max() for e in (1e-3, 1e-6, 1e-9)
    ]
    assert 0 < errors[1] < 2e-3 * errors[0] and 0 < errors[2] < 2e-3 * errors[1]


def test_z_conserves_without_bias_and_epsilon_absorbs(layer):
    x, W, _, R = layer
    np.testing.assert_allclose(explain("z", x, W, R).sum(), R.sum(), **TIGHT)
    positive = np.abs(R)
    assert 0 < explain("epsilon", x, W, positive, epsilon=0.5).sum() < positive.sum() - 0.1


def test_z_with_the_outputs_as_relevance_is_input_times_gradient(layer):
    x, W, b, _ = layer
    out = x @ W + b
    r = explain("z", x, W, out, b)
    np.testing.assert_allclose(r, x * explain("gradient", x, W, np.ones(6), b), **TIGHT)


def test_zero_denominators():
    x, W = [1.0, -1.0], [[1.0], [1.0]]
    np.testing.assert_array_equal(explain("z", x, W, [3.0]), (0, 0))
    np.testing.assert_allclose(explain("epsilon", x, W, [3.0], epsilon=0.5), (6, -6), **TIGHT)
    zeros = np.zeros((2, 1))
    for rule, options in {
        "z": {},
        "gamma": {},
        "alpha_beta": {"alpha": 2},
        "z_plus": {},
        "w_square": {},
        "flat": {"connected": zeros},
        "z_box": {"low": -1, "high": 1},
    }.items():
        np.testing.assert_array_equal(explain(rule, x, zeros, [3.0], **options), (0, 0))


def test_gamma_takes_zero_as_positive():
    r = explain("gamma", [1.0, -1.0], [[1.0], [1.0]], [1.0], gamma=0.5)
    np.testing.assert_allclose(r, (3, -2), **TIGHT)  # 1.5 and -1 of 0.5


def test_relative_epsilon_scales_with_the_layer(layer):
    x, W, b, R = layer
    small, large = (
        explain("epsilon", x, c * W, R, c * b, epsilon=0.2, relative=True) for c in (1, 50)
    )
    np.testing.assert_allclose(small, large, **TIGHT)
    absolute = explain("epsilon", x, 50 * W, R, 50 * b, epsilon=0.2)
    # A wide tolerance makes this stricter: they have to differ by more than a hundredth.
    assert not np.allclose(absolute, large, rtol=1e-2)
    # z = (1, 3) has the standard deviation 1
    r = explain("epsilon", [1.0], [[1.0, 3.0]], [1.0, 0.0], epsilon=1.0, relative=True)
    np.testing.assert_allclose(r, [0.5], **TIGHT)


def test_gamma_limits(layer):
    x, W, b, R = layer
    zero = explain("gamma", x, W, R, b, gamma=0)
    np.testing.assert_allclose(zero, explain("z", x, W, R, b), **TIGHT)
    W = W * np.where(x @ W > 0, 1, -1)
    infinite = explain("gamma", x, W, R, gamma=1e9)
    np.testing.assert_allclose(infinite, explain("z_plus", x, W, R), rtol=1e-6, atol=1e-6)


def test_gamma_mirrors_negative_outputs(layer):
    x, W, b, R = layer
    for bias in ("split", "ignore", "full"):
        r = explain("gamma", x, W, R, b, gamma=0.5, bias=bias)
        mirrored = explain("gamma", x, -W, R, -b, gamma=0.5, bias=bias)
        np.testing.assert_allclose(r, mirrored, **TIGHT)
    wrong = W @ (R / ((x @ W) + 0.5 * np.maximum(x[:, None] * W, 0).sum(axis=0)))
    assert not np.allclose(explain("gamma", x, W, R, gamma=0.5), x * wrong)


@pytest.mark.parametrize("gamma", [0.25, 1.0, 8.0])
def test_gamma_column_norm_has_the_closed_form(gamma):
    rng = np.random.default_rng(5)
    a, W = rng.uniform(size=12), rng.normal(size=(12, 20))
    W = W[:, a @ W > 0.1]
    c = a[:, None] * W
    ratio = np.abs(np.minimum(c, 0).sum(axis=0)) / np.maximum(c, 0).sum(axis=0)
    columns = [explain("gamma", a, W, R, gamma=gamma) for R in np.eye(W.shape[1])]
    norms = np.abs(columns).sum(axis=1)
    np.testing.assert_allclose(norms, 1 + 2 * ratio / (1 + gamma - ratio), **TIGHT)
    assert len(norms) > 3


def test_alpha_one_without_bias_is_z_plus(layer):
    x, W, b, R = layer
    r = explain("z_plus", x, W, R, b)
    np.testing.assert_allclose(
        r, explain("alpha_beta", x, W, R, b, alpha=1, bias="ignore"), **TIGHT
    )
    assert np.all(explain("z_plus", x, W, np.abs(R), b) >= 0)


def test_z_box_conserves_and_is_nonnegative_inside_the_box(layer):
    x, W, b, R = layer
    low, high = x - np.linspace(0.1, 1, 9), x + np.linspace(2, 0.2, 9)
    r = explain("z_box", x, W, R, b, low=low, high=high)
    np.testing.assert_allclose(r.sum(), R.sum(), **TIGHT)
    R = np.abs(R)
    assert np.all(explain("z_box", x, W, R, b, low=low, high=high) >= 0)
    outside = explain("z_box", high + 5, W, R, b, low=low, high=high)
    assert np.any(outside < 0)


def test_z_box_literal():
    # q = (1 + 1, -1 + 2): the positive weight is measured from low, the negative one from high
    r = explain("z_box", [1.0, 1.0], [[1.0], [-1.0]], [6.0], [9.0], low=-1, high=2)
    np.testing.assert_allclose(r, (4, 2), **TIGHT)


def test_z_box_from_zero_with_positive_weights_is_z_plus(layer):
    x, W, _, R = layer
    W = np.abs(W)
    r = explain("z_box", np.abs(x), W, R, low=0, high=1)
    np.testing.assert_allclose(r, explain("z_plus", np.abs(x), W, R), **TIGHT)


def test_w_square_literal_and_conservation(layer):
    r = explain("w_square", [5.0, -7.0], [[1.0, 3.0], [-2.0, 0.0]], [10.0, 1.0], [3.0, 4.0])
    np.testing.assert_allclose(r, (3, 8), **TIGHT)
    x, W, b, R = layer
    np.testing.assert_allclose(explain("w_square", x, W, R, b).sum(), R.sum(), **TIGHT)


def test_flat_counts_connected_inputs_even_of_weight_zero():
    W = np.array([[0.0, 2.0], [1.0, 0.0], [5.0, 1.0]])
    connected = [[True, True], [True, False], [True, True]]
    r = explain("flat", [1.0, 2.0, 3.0], W, [3.0, 8.0], connected=connected)
    np.testing.assert_allclose(r, (5, 1, 5), **TIGHT)


def test_unknown_bias_is_refused(layer):
    x, W, b, R = layer
    with pytest.raises(ValueError, match="bias is 'drop'"):
        explain("z", x, W, R, b, bias="drop")


# Additions ---------------------------------------------------------------------------------------


def test_addition_matrix():
    x1, x2, x3 = np.arange(6.0).reshape(3, 2)
    W = addition_matrix(3, 2, signs=(1, -1, 2))
    np.testing.assert_array_equal(np.concatenate([x1, x2, x3]) @ W, x1 - x2 + 2 * x3)


def test_addition_rules():
    a, b = np.array([3.0, 2.0]), np.array([-1.0, 2.0])
    R = np.array([4.0, 4.0])
    for rule, options, expected in [
        ("z", {}, ((6, 2), (-2, 2))),
        ("alpha_beta", {"alpha": 1}, ((4, 2), (0, 2))),
        ("alpha_beta", {"alpha": 2}, ((8, 4), (-4, 4))),
        ("z_plus", {}, ((4, 2), (0, 2))),
        ("gamma", {"gamma": 1}, ((4.8, 2), (-0.8, 2))),
        ("flat", {}, ((2, 2), (2, 2))),
        ("w_square", {}, ((2, 2), (2, 2))),
    ]:
        np.testing.assert_allclose(addition(rule, [a, b], R, **options), expected, **TIGHT)
    difference = addition("z_plus", [a, b], R, signs=(1, -1))
    np.testing.assert_allclose(difference, ((3, 4), (1, 0)), **TIGHT)


# ReLU --------------------------------------------------------------------------------------------


def test_relu_rules():
    x = np.array([2.0, 1.0, 0.0, -1.0, -3.0])
    R = np.array([1.0, -2.0, 3.0, 4.0, -5.0])
    for rule, expected in {
        "gradient": (1, -2, 0, 0, 0),
        "guided": (1, 0, 0, 0, 0),
        "deconvnet": (1, 0, 3, 4, 0),
    }.items():
        np.testing.assert_array_equal(REFERENCE_RELU_RULES[rule](x, R), expected)


@pytest.mark.parametrize("percentile", [0, 12.5, 37.5, 50, 90, 98, 100])
@pytest.mark.parametrize("size", [5, 8, 26, 101])
def test_rect_grad_has_the_nearest_percentile_of_numpy(percentile, size):
    rng = np.random.default_rng(size)
    x, R = rng.normal(size=(2, size))
    s = np.maximum(x, 0) * R
    tau = np.percentile(s, percentile, method="nearest")
    expected = np.where((s > tau) & (x > 0), R, 0)
    r = REFERENCE_RELU_RULES["rect_grad"](x, R, percentile=percentile)
    np.testing.assert_array_equal(r, expected)


def test_rect_grad_literal():
    x = np.array([1.0, 2.0, 3.0, 4.0, -5.0])
    R = np.array([1.0, 1.0, 1.0, -1.0, 9.0])
    # s = (1, 2, 3, -4, 0), sorted (-4, 0, 1, 2, 3); 62.5 percent is index 2.5, half to even 2
    for percentile, expected in {
        0: (1, 1, 1, 0, 0),
        50: (0, 1, 1, 0, 0),
        62.5: (0, 1, 1, 0, 0),
        75: (0, 0, 1, 0, 0),
        98: (0, 0, 0, 0, 0),
    }.items():
        r = REFERENCE_RELU_RULES["rect_grad"](x, R, percentile=percentile)
        np.testing.assert_array_equal(r, expected)


# Pooling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("pool_size, strides", [((2, 2), None), ((3, 2), (2, 1)), ((2, 3), (3, 3))])
def test_pool_windows_are_those_of_keras(pool_size, strides, padding):
    shape = (5, 6, 2)
    pool = keras.layers.AveragePooling2D(pool_size, strides, padding, dtype="float64")
    W, b = dense_form(pool, np.zeros(shape))
    windows = pool_windows(shape, pool_size, strides, padding)
    np.testing.assert_array_equal(windows, W > 0)
    np.testing.assert_array_equal(b, 0)

    x = np.random.default_rng(1).normal(size=shape)
    maxima = keras.layers.MaxPooling2D(pool_size, strides, padding, dtype="float64")(x[None])
    winners = REFERENCE_POOL_RULES["max_pool_winner"](x.ravel(), windows, np.ones(len(b)))
    expected = np.zeros(x.size)
    for maximum in np.ravel(maxima):
        expected[x.ravel() == maximum] += 1
    np.testing.assert_array_equal(winners, expected)


def test_pool_rules():
    x = np.array([1.0, 3.0, 3.0, 2.0, 0.0, 0.0])
    windows = pool_windows((6, 1), (2,), (1,))
    R = np.array([4.0, 6.0, 5.0, 2.0, 7.0])
    r = REFERENCE_POOL_RULES["average_pool"](x, windows, R)
    np.testing.assert_allclose(r, (1, 6, 6, 4, 0, 0), **TIGHT)
    r = REFERENCE_POOL_RULES["max_pool_winner"](x, windows, R)
    np.testing.assert_array_equal(r, (0, 10, 5, 2, 7, 0))


# Dense forms and the zoo -------------------------------------------------------------------------


def test_dense_form_refuses_what_is_not_affine():
    with pytest.raises(ValueError, match="not affine"):
        dense_form(keras.ops.relu, np.array([1.0, -2.0]))


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (
            keras.layers.Conv2D(1, 3, padding="same", dtype="float64"),
            (3, 3, 1),
            (4, 6, 4, 6, 9, 6, 4, 6, 4),
        ),
        (keras.layers.Conv1D(1, 3, padding="causal", dtype="float64"), (4, 2), (2, 4, 6, 6)),
        (keras.layers.Conv1D(4, 1, groups=2, dtype="float64"), (1, 6), (3, 3, 3, 3)),
        (keras.layers.Conv1DTranspose(1, 3, dtype="float64"), (3, 1), (1, 2, 3, 2, 1)),
    ],
    ids=["same", "causal", "groups", "transpose"],
)
def test_connectivity_leaves_the_padding_out(layer, shape, expected):
    layer.build((None, *shape))
    layer.set_weights([np.zeros(weight.shape) for weight in layer.weights])
    connected = connectivity(layer, np.ones(shape))
    np.testing.assert_array_equal(connected.sum(axis=0), expected)
    R = np.arange(1.0, 1 + len(expected))
    r = explain(
        "flat", np.ones(connected.shape[0]), np.zeros(connected.shape), R, connected=connected
    )
    np.testing.assert_allclose(r.sum(), R.sum(), **TIGHT)


def test_ones_copy_leaves_the_layer_alone_and_refuses_other_weights():
    layer = keras.layers.Dense(3, activation="tanh", dtype="float64")
    layer.build((None, 2))
    before = [np.copy(weight) for weight in layer.get_weights()]
    copy = ones_copy(layer)
    np.testing.assert_allclose(copy(np.array([[3.0, 4.0]])), [[7.0, 7.0, 7.0]], **TIGHT)
    for weight, value in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    normalization = keras.layers.BatchNormalization()
    normalization.build((None, 2))
    with pytest.raises(ValueError, match="BatchNormalization has a weight 'gamma'"):
        ones_copy(normalization)


def test_relevance_of_batch_goes_sample_by_sample():
    x = np.array([[[1.0, 2.0]], [[3.0, -1.0]]])
    R = np.array([[[2.0], [4.0], [0.0]], [[1.0], [-1.0], [6.0]]])

    def total(x):
        return keras.ops.sum(x, axis=(1, 2))[:, None]

    r = relevance_of_batch("z", total, x, R)
    expected = [
        [[[2 / 3, 4 / 3]], [[4 / 3, 8 / 3]], [[0, 0]]],
        [[[1.5, -0.5]], [[-1.5, 0.5]], [[9, -3]]],
    ]
    np.testing.assert_allclose(r, expected, **TIGHT)
    r = relevance_of_batch("z_box", total, x, R, low=[[-1.0, -2.0]], high=4.0)
    np.testing.assert_allclose(r[:, 0], [[[2 / 3, 4 / 3]], [[0.8, 0.2]]], **TIGHT)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_dense_form_of_the_zoo(entry):
    model, layer, x = make_model(entry, seed=3)
    assert model.input_shape == (None, *entry.input_shape) and x.dtype == np.float64
    assert np.prod(entry.input_shape) <= 150 and (x < 0).any()
    weights = layer.get_weights()
    assert all((weight != 0).all() for weight in weights)
    assert (weights[0] < 0).any() and (weights[0] > 0).any()

    function = runnable(entry, layer)
    W, b = dense_form(function, x[0])
    outputs = np.asarray(function(x))
    assert outputs.dtype == np.float64
    np.testing.assert_allclose(x[1].ravel() @ W + b, outputs[1].ravel(), rtol=1e-10, atol=1e-10)
    assert (b == 0).all() if entry.id.endswith("no_bias") else (b != 0).all()
    connected = connectivity(layer, x[0], functools.partial(runnable, entry))
    np.testing.assert_array_equal(connected, W != 0)


def test_make_model_is_reproducible():
    entry = ENTRIES[0]
    _, first, x = make_model(entry, seed=1)
    _, second, y = make_model(entry, seed=1, nonnegative_input=True)
    _, other, _ = make_model(entry, seed=2)
    np.testing.assert_array_equal(first.get_weights()[0], second.get_weights()[0])
    assert (first.get_weights()[0] != other.get_weights()[0]).all()
    np.testing.assert_array_equal(np.abs(x), y)


def test_zoo_names_are_unique():
    assert len({entry.id for entry in ENTRIES}) == len(ENTRIES)
