"""Merges, poolings and batch normalisation against the formulas of tests/reference_rules.py.

Rules run on single calls with any relevance; which rule an analyzer gives a call is read from its
assignment, so that nearly nothing has to be compiled.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tests.networks import assert_same, set_random_weights
from tests.reference_rules import (
    REFERENCE_POOL_RULES,
    addition,
    dense_form,
    pool_windows,
    relevance_of_batch,
)
from tfexplain import create_analyzer
from tfexplain.canonizers import canonize
from tfexplain.graph import trace
from tfexplain.rules import (
    AlphaBeta,
    AverageOfWindow,
    Epsilon,
    EqualShares,
    Flat,
    Gamma,
    Proportional,
    RecordedCall,
    Winner,
    WSquare,
    ZBox,
    ZPlus,
)

F64 = {"dtype": "float64"}
BIAS = ("split", "ignore", "full")

# Name -> rule, its formula, the options of the formula.
FORMULAS = {
    "z": (Epsilon(0.0), "z", {}),
    "z_ignore": (Epsilon(0.0, bias="ignore"), "z", {"bias": "ignore"}),
    "epsilon": (Epsilon(0.1), "epsilon", {"epsilon": 0.1}),
    "epsilon_relative": (Epsilon(0.2, True), "epsilon", {"epsilon": 0.2, "relative": True}),
    "z_plus": (ZPlus(), "z_plus", {}),
    "w_square": (WSquare(), "w_square", {}),
    "flat": (Flat(), "flat", {}),
}
for _bias in BIAS:
    _option = {"bias": _bias}
    FORMULAS[f"gamma_{_bias}"] = (Gamma(0.5, _bias), "gamma", {"gamma": 0.5, **_option})
    for _alpha in (1, 2):
        _rule = AlphaBeta(_alpha, bias=_bias)
        FORMULAS[f"alpha_{_alpha}_{_bias}"] = (_rule, "alpha_beta", {"alpha": _alpha, **_option})
FORMULAS["proportional"] = (Proportional(), "z", {})

signs = pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "nonnegative"])


def network(shapes, function):
    """A Functional model in float64; a Sequential one would cast its input to float32."""
    inputs = [keras.Input(shape, **F64) for shape in shapes]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], function(*inputs))


def single_operation(shapes, function, fold=True):
    """Returns what the analyzers make of a network of one call."""
    (call,) = canonize(trace(network(shapes, function)), fold).calls
    return call.operation


def draw(shape, nonnegative=False, seed=0):
    """Two samples, of both signs or >= 0."""
    x = np.random.default_rng([seed, *shape]).normal(size=(2, *shape))
    return np.abs(x) if nonnegative else x


def relevance_for(outputs):
    """Three vectors of both signs per sample."""
    return np.random.default_rng(7).normal(size=(len(outputs), 3, *outputs.shape[1:]))


def propagate(rule, operation, inputs, R, nonnegative=False):
    """Runs a rule on one call; returns one array (batch, num_vectors, *shape) per input."""
    inputs = tuple(tf.constant(x) for x in inputs)
    outputs = (operation.forward(*inputs),)
    call = RecordedCall(operation, inputs, outputs, (nonnegative,) * len(inputs))
    return [r.numpy() for r in rule.propagate(call, (tf.constant(R),))]


def assert_formula(found, expected, name):
    """Compares to 1e-9 of the largest value."""
    atol = 1e-9 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=atol, err_msg=name)


def assert_linear(name, found, W, b, x, R, formulas=FORMULAS):
    """Compares the relevance of one tensor with a formula for z = x W + b."""
    _, reference, options = formulas[name]
    if reference == "flat":
        # What the dense form rounds to is no connection.
        options = {"connected": np.abs(W) > 1e-12 * np.abs(W).max()}
    expected = relevance_of_batch(reference, (W, b), x, R, **options)
    assert_formula(found, expected, name)


def rules_of(analyzer):
    """Name of a call -> its rule."""
    return {call.name: rule for call, rule in analyzer.assignment.rules.items()}


def rows_of(analyzer):
    """Pairs of call and operation, as `describe` prints them."""
    return [(call, operation) for call, operation, _ in analyzer.describe().rows]


# --- additions -----------------------------------------------------------------------------------


def merge(cls):
    return lambda *tensors: cls(**F64)(list(tensors))


ADDITIONS = {
    "Add": (merge(layers.Add), (1, 1)),
    "Add_of_three": (merge(layers.Add), (1, 1, 1)),
    "Subtract": (merge(layers.Subtract), (1, -1)),
    "Average": (merge(layers.Average), (0.5, 0.5)),
    "Average_of_three": (merge(layers.Average), (1 / 3, 1 / 3, 1 / 3)),
    "ops.add": (ops.add, (1, 1)),
    "ops.subtract": (ops.subtract, (1, -1)),
}


@signs
@pytest.mark.parametrize("kind", ADDITIONS)
def test_addition(kind, nonnegative):
    function, factors = ADDITIONS[kind]
    operation = single_operation([(2, 3)] * len(factors), function)
    inputs = [draw((2, 3), nonnegative, seed) for seed in range(len(factors))]
    R = relevance_for(inputs[0])
    for name, (rule, reference, options) in FORMULAS.items():
        found = np.stack(propagate(rule, operation, inputs, R, nonnegative))
        expected = np.empty_like(found)
        for n, k in np.ndindex(2, 3):
            summands = [x[n] for x in inputs]
            parts = addition(reference, summands, R[n, k], factors, **options)
            expected[:, n, k] = np.reshape(parts, (-1, 2, 3))
        assert_formula(found, expected, name)


@signs
@pytest.mark.parametrize("function", [merge(layers.Add), ops.add], ids=["Add", "ops.add"])
@pytest.mark.parametrize(
    "shapes", [[(2, 3, 2), (1, 1, 2)], [(2, 1, 2), (1, 3, 2)], [(1, 2), (3, 1)]], ids=str
)
def test_addition_that_broadcasts(shapes, function, nonnegative):
    """What was copied by the forward pass gets the sum of what its copies get."""
    operation = single_operation(shapes, function)
    inputs = [draw(shape, nonnegative) for shape in shapes]
    sizes = [x[0].size for x in inputs]

    def joined(flat):
        parts = tf.split(flat, sizes, axis=1)
        return sum(tf.reshape(p, [-1, *s]) for p, s in zip(parts, shapes, strict=True))

    samples = np.concatenate([x.reshape(2, -1) for x in inputs], axis=1)
    W, b = dense_form(joined, samples[0])
    R = relevance_for(operation.forward(*map(tf.constant, inputs)))
    for name, (rule, _, _) in FORMULAS.items():
        found = propagate(rule, operation, inputs, R, nonnegative)
        assert [r.shape for r in found] == [(2, 3, *shape) for shape in shapes]
        flat = np.concatenate([r.reshape(2, 3, -1) for r in found], axis=2)
        assert_linear(name, flat, W, b, samples, R)


@pytest.fixture(scope="module")
def residual():
    def function(x):
        h = layers.Dense(4, name="branch", **F64)(x)
        return layers.Dense(2, name="last", **F64)(layers.Add(name="sum", **F64)([x, h]))

    return network([(4,)], function)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lrp.z", Epsilon(0.0)),
        ("lrp.z_IB", Epsilon(0.0, bias="ignore")),
        ("lrp.epsilon", Epsilon(1e-7)),
        ("lrp.gamma", Gamma(0.25)),
        ("lrp.alpha_1_beta_0", AlphaBeta(1, 0)),
        ("lrp.alpha_2_beta_1", AlphaBeta(2, 1)),
        ("lrp.z_plus", ZPlus()),
        ("lrp.w_square", WSquare()),
        ("lrp.flat", Flat()),
        ("lrp.sequential_preset_a", AlphaBeta(1, 0)),
        ("lrp.sequential_preset_b", AlphaBeta(2, 1)),
        ("lrp.composite", ZPlus()),
        ("excitation_bp", ZPlus()),
    ],
)
def test_option_add(name, expected, residual):
    """By default additions follow the method's rule (that of convolutions, where two differ)."""
    for options in ({}, {"add": "rule"}):
        assert rules_of(create_analyzer(name, residual, **options))["sum"] == expected
    analyzer = create_analyzer(name, residual, add="proportional")
    assert rules_of(analyzer)["sum"] == Proportional()
    assert rules_of(analyzer)["last"] == rules_of(create_analyzer(name, residual))["last"]


def test_addition_in_a_network():
    """What the summands get is summed where they come from one tensor."""
    model = network([(3,)], lambda x: layers.Add(**F64)([x, x, layers.ReLU(**F64)(-x)]))
    x = np.array([[2.0, -3.0, 1.0]])
    R = np.array([[[5.0, 4.0, 6.0]]])
    # 2 + 2 + 0 and 1 + 1 + 0 have no negative summands, so that -beta takes nothing away.
    for options, expected in (({}, (10, 4, 12)), ({"add": "proportional"}, (5, 4, 6))):
        analyzer = create_analyzer("lrp.alpha_2_beta_1", model, **options)
        (found,) = analyzer.network().propagate([tf.constant(x)], tf.constant(R))
        np.testing.assert_allclose(found[0, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("second", ["relu", None])
def test_deep_taylor_at_an_addition(second):
    """z+ needs every summand to be >= 0 for certain."""

    def function(x):
        first = layers.Dense(3, activation="relu", **F64)(x)
        other = layers.Dense(3, activation=second, **F64)(x)
        return layers.Add(name="sum", **F64)([first, other])

    rule = rules_of(create_analyzer("deep_taylor", network([(4,)], function)))["sum"]
    assert rule == (ZPlus() if second else WSquare())


# --- pooling -------------------------------------------------------------------------------------

# Name -> input shape, window, strides, padding.
WINDOWS = {
    "1d_tiles": ((6, 2), (2,), (2,), "valid"),
    "1d_tiles_and_a_rest": ((7, 2), (3,), (3,), "valid"),
    "1d_overlapping": ((6, 2), (3,), (1,), "valid"),
    "1d_overlapping_same": ((8, 2), (3,), (2,), "same"),
    "1d_gaps": ((8, 1), (2,), (3,), "valid"),
    "2d_tiles": ((4, 6, 2), (2, 3), (2, 3), "valid"),
    "2d_tiles_and_a_rest": ((5, 5, 1), (2, 2), (2, 2), "valid"),
    "2d_tiles_same": ((5, 5, 1), (2, 2), (2, 2), "same"),
    "2d_overlapping": ((5, 5, 2), (3, 2), (2, 1), "valid"),
    "2d_overlapping_same": ((5, 6, 2), (3, 3), (2, 2), "same"),
    "3d_tiles": ((4, 2, 5, 1), (2, 2, 2), (2, 2, 2), "valid"),
    "3d_overlapping": ((3, 3, 4, 1), (2, 2, 3), (1, 1, 1), "valid"),
    "3d_overlapping_same": ((3, 4, 3, 2), (2, 3, 2), (1, 2, 2), "same"),
}
windows = pytest.mark.parametrize("window", WINDOWS)


def pool_operation(kind, shape, size, strides, padding, **options):
    cls = getattr(layers, f"{kind}Pooling{len(size)}D")
    layer = cls(size, strides, padding, **F64, **options)
    return single_operation([shape], layer)


def assert_pooled(rule, reference, operation, x, inside, nonnegative=False):
    """Compares a rule of pooling with its formula."""
    R = relevance_for(operation.forward(tf.constant(x)))
    (found,) = propagate(rule, operation, [x], R, nonnegative)
    expected = np.empty((2, 3, *x.shape[1:]))
    for n, k in np.ndindex(2, 3):
        flat = REFERENCE_POOL_RULES[reference](x[n].ravel(), inside, R[n, k].ravel())
        expected[n, k] = flat.reshape(x.shape[1:])
    assert_formula(found, expected, str(rule))


def with_ties(shape):
    """Small integers: most windows hold their maximum several times, some hold nothing else."""
    x = np.random.default_rng([1, *shape]).integers(-1, 2, (2, *shape)).astype("float64")
    x[1] = np.minimum(x[1], 0)
    return x


@signs
@windows
def test_average_pooling_shares_in_proportion(window, nonnegative):
    shape, *rest = WINDOWS[window]
    operation = pool_operation("Average", shape, *rest)
    x = draw(shape, nonnegative)
    assert_pooled(Proportional(), "average_pool", operation, x, pool_windows(*WINDOWS[window]))


@windows
def test_max_pooling_gives_all_to_the_first_winner(window):
    shape, *rest = WINDOWS[window]
    operation = pool_operation("Max", shape, *rest)
    inside = pool_windows(*WINDOWS[window])
    x = with_ties(shape)
    highest = np.where(inside, x[0].reshape(-1, 1), -np.inf)
    assert ((highest == highest.max(axis=0)).sum(axis=0) > 1).any()  # or it would prove nothing
    for values in (x, draw(shape), np.zeros((2, *shape))):
        assert_pooled(Winner(), "max_pool_winner", operation, values, inside)


@signs
@windows
def test_max_pooling_as_average(window, nonnegative):
    shape, *rest = WINDOWS[window]
    operation = pool_operation("Max", shape, *rest)
    x = draw(shape, nonnegative)
    assert_pooled(AverageOfWindow(), "average_pool", operation, x, pool_windows(*WINDOWS[window]))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("how", ["layer", "ops"])
@pytest.mark.parametrize("shape", [(4, 2), (3, 2, 2), (2, 3, 2, 2)], ids=["1d", "2d", "3d"])
def test_pooling_of_all_positions(shape, how, keepdims):
    inside = pool_windows(shape, shape[:-1])  # one window per channel
    axes = tuple(range(1, len(shape)))

    def operation(kind):
        if how == "layer":
            cls = getattr(layers, f"Global{kind}Pooling{len(shape) - 1}D")
            return single_operation([shape], cls(keepdims=keepdims, **F64))
        function = {"Max": ops.max, "Average": ops.mean, "Sum": ops.sum}[kind]
        return single_operation([shape], lambda x: function(x, axis=axes, keepdims=keepdims))

    for kind in ("Average", "Sum") if how == "ops" else ("Average",):
        assert_pooled(Proportional(), "average_pool", operation(kind), draw(shape), inside)
    for x in (with_ties(shape), draw(shape)):
        assert_pooled(Winner(), "max_pool_winner", operation("Max"), x, inside)
    assert_pooled(AverageOfWindow(), "average_pool", operation("Max"), draw(shape), inside)


@pytest.mark.parametrize("window", ["2d_tiles", "2d_overlapping", "2d_overlapping_same"])
def test_pooling_with_channels_first(window):
    """The same numbers as with channels last, at the moved axis."""
    shape, *rest = WINDOWS[window]
    for kind, rule, x in (
        ("Average", Proportional(), draw(shape)),
        ("Max", Winner(), with_ties(shape)),
        ("Max", AverageOfWindow(), draw(shape)),
    ):
        last = pool_operation(kind, shape, *rest)
        moved = np.moveaxis(x, -1, 1)
        first = pool_operation(kind, moved.shape[1:], *rest, data_format="channels_first")
        R = relevance_for(last.forward(tf.constant(x)))
        (expected,) = propagate(rule, last, [x], R)
        (found,) = propagate(rule, first, [moved], np.moveaxis(R, -1, 2))
        assert_same(found, np.moveaxis(expected, -1, 2), 1e-12)


@pytest.mark.parametrize("name", ["lrp.z", "lrp.flat", "deep_taylor", "lrp.composite"])
def test_pooling_has_its_own_rules_whatever_the_method(name):
    def function(x):
        h = layers.MaxPooling1D(2, 1, name="max", **F64)(x)
        h = layers.AveragePooling1D(2, 1, name="average", **F64)(h)
        h = layers.GlobalMaxPooling1D(name="global_max", keepdims=True, **F64)(h)
        return layers.GlobalAveragePooling1D(name="global_average", **F64)(h)

    model = network([(6, 2)], function)
    averages = {"average": Proportional(), "global_average": Proportional()}
    for options, rule in (({}, Winner()), ({"max_pool": "average"}, AverageOfWindow())):
        expected = {"max": rule, "global_max": rule, **averages}
        assert rules_of(create_analyzer(name, model, **options)) == expected


# --- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [2, 3])
def test_factors_get_the_same_share(factors):
    """Whatever their values, 0 too."""
    operation = single_operation([(3,)] * factors, merge(layers.Multiply))
    inputs = [np.array([[2.0, 0.0, -5.0]]) * (m + 1) for m in range(factors)]
    R = np.array([[[6.0, -3.0, 0.0], [12.0, 9.0, -6.0]]])
    expected = {
        2: [[3, -1.5, 0], [6, 4.5, -3]],
        3: [[2, -1, 0], [4, 3, -2]],
    }[factors]
    for found in propagate(EqualShares(), operation, inputs, R):
        np.testing.assert_allclose(found, [expected], rtol=1e-12)


def test_a_gate_gets_the_sum_of_its_shares():
    """As in squeeze and excitation: one factor per channel for all positions."""
    operation = single_operation([(2, 2, 2), (1, 1, 2)], ops.multiply)
    R = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]).reshape(1, 1, 2, 2, 2)
    h, gate = np.ones((1, 2, 2, 2)), np.ones((1, 1, 1, 2))
    first, second = propagate(EqualShares(), operation, [h, gate], R)
    np.testing.assert_allclose(first, R / 2, rtol=1e-12)
    np.testing.assert_allclose(second.ravel(), (5, 50), rtol=1e-12)


def test_a_square_keeps_its_relevance():
    """Both factors are the same tensor, whose shares are summed."""
    model = network([(3,)], lambda x: layers.Multiply(name="square", **F64)([x, x]))
    analyzer = create_analyzer("lrp.alpha_2_beta_1", model)
    assert rules_of(analyzer) == {"square": EqualShares()}
    _, found = analyzer.explain([tf.constant([[2.0, -3.0, 1.0]], tf.float64)], tf.constant([[1]]))
    np.testing.assert_allclose(found, [[[0, 9, 0]]], rtol=1e-12)


# --- batch normalisation by itself ---------------------------------------------------------------


@signs
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("parts", [{}, {"scale": False}, {"center": False}], ids=str)
def test_unfolded_batch_norm_is_a_diagonal_matrix_with_bias(parts, axis, nonnegative):
    norm = layers.BatchNormalization(axis=axis, **parts, **F64)
    operation = single_operation([(4, 3)], norm, fold=False)
    set_random_weights(norm, np.random.default_rng(3))
    weights = {weight.name: weight.numpy() for weight in norm.weights}
    scale = weights.get("gamma", 1) / np.sqrt(weights["moving_variance"] + norm.epsilon)
    shift = weights.get("beta", 0) - weights["moving_mean"] * scale
    spread = [np.broadcast_to(v[:, None] if axis == 1 else v, (4, 3)) for v in (scale, shift)]
    W, b = np.diag(spread[0].ravel()), spread[1].ravel()
    x = draw((4, 3), nonnegative)
    R = relevance_for(x)
    formulas = {**FORMULAS, "z_box": (ZBox(-9, 9), "z_box", {"low": -9, "high": 9})}
    for name in set(formulas) - {"proportional"}:
        (found,) = propagate(formulas[name][0], operation, [x], R, nonnegative)
        assert_linear(name, found, W, b, x, R, formulas)


def test_a_channel_that_batch_norm_switches_off_loses_its_relevance():
    """Its weight is 0, and a ratio 0/0 is 0; the flat rule counts it as connected."""
    norm = layers.BatchNormalization(**F64)
    operation = single_operation([(2,)], norm, fold=False)
    norm.set_weights([np.array([0.0, 2.0]), np.ones(2), np.zeros(2), np.ones(2)])
    x, R = np.array([[3.0, 3.0]]), np.array([[[5.0, 7.0]]])
    for rule, expected in (
        (Epsilon(0.0, bias="ignore"), (0, 7)),
        (ZPlus(), (0, 7)),
        (WSquare(), (0, 7)),
        (Flat(), (5, 7)),
    ):
        (found,) = propagate(rule, operation, [x], R)
        np.testing.assert_allclose(found[0, 0], expected, rtol=1e-12, err_msg=str(rule))


# --- batch normalisation folded into a neighbour -------------------------------------------------

# Name -> layer, input shape; what pads nothing can take a normalisation before it as well.
NEIGHBOURS = {
    "dense": (lambda o: layers.Dense(3, **o), (4,)),
    "dense_rank_3": (lambda o: layers.Dense(2, **o), (3, 3)),
    "conv1d": (lambda o: layers.Conv1D(3, 2, **o), (4, 2)),
    "conv1d_groups": (lambda o: layers.Conv1D(4, 2, groups=2, **o), (4, 4)),
    "conv2d": (lambda o: layers.Conv2D(2, (2, 3), strides=2, **o), (4, 5, 2)),
    "conv2d_dilation": (lambda o: layers.Conv2D(2, 2, dilation_rate=2, **o), (4, 3, 2)),
    "conv2d_groups": (lambda o: layers.Conv2D(6, 2, groups=2, **o), (3, 3, 4)),
    "conv3d": (lambda o: layers.Conv3D(2, 2, **o), (3, 2, 3, 2)),
    "channels_first": (
        lambda o: layers.Conv2D(4, 2, groups=2, data_format="channels_first", **o),
        (4, 3, 3),
    ),
    # Windows of one pad nothing, whatever their padding is called.
    "conv2d_of_one": (lambda o: layers.Conv2D(3, 1, 2, padding="same", **o), (3, 4, 2)),
    "conv1d_of_one": (lambda o: layers.Conv1D(3, 1, padding="causal", **o), (3, 2)),
    "depthwise1d": (lambda o: layers.DepthwiseConv1D(2, depth_multiplier=2, **o), (4, 2)),
    "depthwise2d": (lambda o: layers.DepthwiseConv2D(2, depth_multiplier=2, **o), (3, 3, 2)),
}
PADDING_NEIGHBOURS = {
    "conv2d_same": (lambda o: layers.Conv2D(2, 3, padding="same", **o), (3, 3, 2)),
    "conv1d_causal": (lambda o: layers.Conv1D(2, 2, padding="causal", **o), (4, 2)),
    "conv1d_transpose": (lambda o: layers.Conv1DTranspose(3, 2, strides=2, **o), (3, 2)),
    "conv2d_transpose": (lambda o: layers.Conv2DTranspose(3, 2, padding="same", **o), (3, 2, 2)),
    "conv3d_transpose": (lambda o: layers.Conv3DTranspose(3, 2, **o), (2, 2, 2, 2)),
    "separable1d": (lambda o: layers.SeparableConv1D(3, 2, depth_multiplier=2, **o), (4, 2)),
    "separable2d": (lambda o: layers.SeparableConv2D(3, 2, **o), (3, 3, 2)),
}
FOLDS = [
    *((name, places) for name in NEIGHBOURS for places in ("before", "after", "before and after")),
    *((name, "after") for name in PADDING_NEIGHBOURS),
]


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(("neighbour", "places"), FOLDS)
def test_folded_batch_norm_is_the_effective_kernel_and_bias(neighbour, places, use_bias):
    make, shape = {**NEIGHBOURS, **PADDING_NEIGHBOURS}[neighbour]
    layer = make({"use_bias": use_bias, **F64})
    axis = 1 if neighbour == "channels_first" else -1
    before, after = (layers.BatchNormalization(axis=axis, **F64) for _ in range(2))

    def function(x):
        x = before(x) if "before" in places else x
        x = layer(x)
        return after(x) if "after" in places else x

    model = network([shape], function)
    generator = np.random.default_rng(5)
    for part in model.layers:
        set_random_weights(part, generator)
    (call,) = canonize(trace(model)).calls
    x = draw(shape)
    # The normalised layer is affine: its matrix is read off the model, which knows no folding.
    W, b = dense_form(model, x[0])
    outputs = call.operation.forward(tf.constant(x))
    assert_same(outputs.numpy(), model(tf.constant(x)).numpy(), 1e-12)
    R = relevance_for(outputs)
    chosen = ("z", "gamma_split", "alpha_1_ignore", "alpha_2_split", "z_plus", "w_square", "flat")
    for name in chosen if use_bias else ("z", "alpha_2_split"):
        (found,) = propagate(FORMULAS[name][0], call.operation, [x], R)
        assert_linear(name, found, W, b, x, R)


def conv(name="conv", **options):
    return layers.Conv1D(2, 2, name=name, **F64, **options)


def norm(name="norm", **options):
    return layers.BatchNormalization(name=name, **F64, **options)


def dense(name="dense", **options):
    return layers.Dense(2, name=name, **F64, **options)


BEFORE, AFTER = "{} + BatchNormalization", "{} (BatchNormalization before)"
# Name -> layers in a row, and what `describe` has to say of them.
CHOICES = {
    "the one before": ([conv(), norm()], [("conv", BEFORE.format("Conv1D"))]),
    "before rather than after": (
        [conv(), norm(), dense()],
        [("conv", BEFORE.format("Conv1D")), ("dense", "Dense")],
    ),
    "the one after": ([norm(), conv()], [("conv", AFTER.format("Conv1D"))]),
    "after a rectifier": (
        [conv(), layers.ReLU(name="relu", **F64), norm(), dense()],
        [("conv", "Conv1D"), ("relu", "relu"), ("dense", AFTER.format("Dense"))],
    ),
    "after a fused rectifier": (
        [conv(activation="relu"), norm(), dense()],
        [("conv", "Conv1D"), ("conv:relu", "relu"), ("dense", AFTER.format("Dense"))],
    ),
    "into one with a fused rectifier": (
        [norm(), dense(activation="relu")],
        [("dense", AFTER.format("Dense")), ("dense:relu", "relu")],
    ),
    "through dropout": (
        [conv(), layers.Dropout(0.5, **F64), norm()],
        [("conv", BEFORE.format("Conv1D"))],
    ),
    "into a window of one, which pads nothing": (
        [norm(), layers.Conv1D(2, 1, padding="same", name="conv", **F64)],
        [("conv", AFTER.format("Conv1D"))],
    ),
    "not into what pads": (
        [norm(), conv(padding="same")],
        [("norm", "BatchNormalization"), ("conv", "Conv1D")],
    ),
    "not into what pads before": (
        [norm(), conv(padding="causal")],
        [("norm", "BatchNormalization"), ("conv", "Conv1D")],
    ),
    "not into what has a border": (
        [norm(), layers.Conv1DTranspose(2, 2, name="conv", **F64)],
        [("norm", "BatchNormalization"), ("conv", "Conv1DTranspose")],
    ),
    "not along another axis": (
        [conv(), norm(axis=1)],
        [("conv", "Conv1D"), ("norm", "BatchNormalization")],
    ),
    "not through a reshape": (
        [norm(), layers.Flatten(name="flat", **F64), dense()],
        [("norm", "BatchNormalization"), ("flat", "Flatten"), ("dense", "Dense")],
    ),
    "not into an equation": (
        [layers.EinsumDense("abc,cd->abd", (None, 2), name="einsum", **F64), norm()],
        [("einsum", "EinsumDense"), ("norm", "BatchNormalization")],
    ),
    "two in a row": (
        [conv(), norm(), norm("second"), dense()],
        [("conv", BEFORE.format("Conv1D")), ("dense", AFTER.format("Dense"))],
    ),
    "only the nearer one of two": (
        [norm(), norm("second"), dense()],
        [("norm", "BatchNormalization"), ("dense", AFTER.format("Dense"))],
    ),
}


def in_a_row(*stack):
    def function(h):
        for layer in stack:
            h = layer(h)
        return h

    return function


@pytest.mark.parametrize("choice", CHOICES)
def test_neighbour_of_batch_norm(choice):
    """The linear layer directly before, else the one directly after if that pads nothing."""
    stack, expected = CHOICES[choice]
    model = network([(4, 2)], in_a_row(*stack))
    assert rows_of(create_analyzer("lrp.z", model)) == expected
    unfolded = dict(rows_of(create_analyzer("lrp.z", model, batch_norm="rule")))
    assert unfolded["norm"] == "BatchNormalization"


def test_describe_names_both_norms_of_one_layer():
    model = network([(4, 2)], in_a_row(norm(), conv(), norm("second")))
    ((_, operation),) = rows_of(create_analyzer("lrp.z", model))
    assert operation.count("BatchNormalization") == 2


@pytest.mark.parametrize("reader", ["another layer", "the model's output"])
def test_batch_norm_is_not_folded_where_its_input_is_read_elsewhere(reader):
    """Folded, the tensor between would not exist any more."""

    def function(x):
        h = conv()(x)
        y = norm()(h)
        return [h, y] if reader == "the model's output" else layers.Add(**F64)([h, y])

    analyzer = create_analyzer(
        "lrp.z", network([(4, 2)], function), output=1 if reader != "another layer" else None
    )
    assert dict(rows_of(analyzer))["norm"] == "BatchNormalization"
    assert dict(rows_of(analyzer))["conv"] == "Conv1D"


def test_each_call_of_a_shared_layer_is_folded():
    shared, shared_norm = dense(), norm()
    model = network([(2,)], in_a_row(shared, shared_norm, shared, shared_norm))
    label = BEFORE.format("Dense")
    assert rows_of(create_analyzer("lrp.z", model)) == [("dense", label), ("dense@1", label)]


def test_names_of_folded_layers_that_are_shared_or_nested():
    """Each use has its pair, also inside a model; three names where two norms are folded."""
    start = keras.Input((4, 2), **F64)
    inner = keras.Model(start, in_a_row(norm("first"), conv(), norm("second"))(start), name="inner")
    shared = [dense(), norm()]
    model = network([(4, 2)], in_a_row(inner, *shared, *shared, dense("last")))
    readout = create_analyzer("lrp.z", model).readout
    assert len({readout(f"inner/{name}") for name in ("first", "conv", "second")}) == 1
    assert readout("dense") is readout("norm") and readout("dense@1") is readout("norm@1")
    assert len({readout(name) for name in ("inner/conv", "dense", "dense@1", "last")}) == 4


@pytest.fixture(scope="module")
def pairs():
    """A convolution with a normalisation after it, a dense layer with one before it."""
    stack = [conv(), norm(), layers.ReLU(**F64), layers.Flatten(**F64)]
    stack += [norm("norm_2"), dense("hidden", activation="relu"), dense("logits")]
    model = network([(4, 2)], in_a_row(*stack))
    generator = np.random.default_rng(11)
    for layer in model.layers:
        set_random_weights(layer, generator)
    model.get_layer("hidden").bias.assign([3.0, 3.0])  # open
    return model


def eager(analyzer, x, R, start=None, layers=()):
    """`propagate` without compiling it."""
    reversed_network = analyzer.network(start, layers)
    found = reversed_network.propagate([tf.constant(x)], tf.constant(R))
    return dict(zip(reversed_network.readouts, (r.numpy() for r in found), strict=True))


def test_either_name_means_the_output_of_the_pair(pairs):
    x, R = draw((4, 2)), np.random.default_rng(1).normal(size=(2, 3, 2))
    names = ("conv", "norm", "norm_2", "hidden")
    found = create_analyzer("lrp.z", pairs).propagate(x, R, layers=names)
    separate = create_analyzer("lrp.z", pairs, batch_norm="rule")
    expected = eager(separate, x, R, layers=names)
    assert_same(found["conv"], expected["norm"])
    np.testing.assert_array_equal(found["norm"], found["conv"])
    assert_same(found["hidden"], expected["hidden"])
    np.testing.assert_array_equal(found["norm_2"], found["hidden"])
    # Unfolded, the other two names mean other tensors.
    assert np.abs(expected["conv"] - found["conv"]).max() > 0.01
    assert expected["norm_2"].shape != found["norm_2"].shape


def test_either_name_of_a_pair_may_be_the_start(pairs):
    x = draw((4, 2))
    folded, separate = (
        create_analyzer("lrp.z", pairs, batch_norm=option) for option in ("fold", "rule")
    )
    for names, end in ((("conv", "norm"), "norm"), (("norm_2", "hidden"), "hidden")):
        shape = (3, 2) if end == "norm" else (2,)
        R = np.random.default_rng(2).normal(size=(2, 3, *shape))
        (expected,) = eager(separate, x, R, start=end).values()
        for name in names:
            (found,) = eager(folded, x, R, start=name).values()
            assert_same(found, expected, 1e-9)
