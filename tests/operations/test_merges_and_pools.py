"""Merges and poolings against the formulas of tests/helpers/reference_rules.py.

Rules run on single calls with any relevance; which rule an analyzer gives a call is read from its
assignment, so that nearly nothing has to be compiled.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tests.helpers.networks import assert_same
from tests.helpers.reference_rules import REFERENCE_POOL_RULES, addition, dense_form, pool_windows
from tests.helpers.single_calls import (
    F64,
    FORMULAS,
    assert_formula,
    assert_linear,
    draw,
    network,
    propagate,
    relevance_for,
    rules_of,
    signs,
    single_operation,
)
from tfexplain import UnsupportedModelError, create_analyzer
from tfexplain.rules import (
    AlphaBeta,
    AverageOfWindow,
    DifferenceCall,
    Epsilon,
    EqualShares,
    Flat,
    Gamma,
    MaxDifference,
    Proportional,
    Winner,
    WSquare,
    ZPlus,
)

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
    "2d_large_tiles": ((9, 9, 1), (9, 9), (9, 9), "valid"),
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


def multipliers_of_maxima(x, x0, m, inside):
    """DeepLIFT's m at max pooling: a rise belongs to the winner of x, a fall to that of x0."""
    values, before = (np.where(inside, flat[:, None], -np.inf) for flat in (x, x0))
    difference = values.max(axis=0) - before.max(axis=0)
    winner, winner_before = values.argmax(axis=0), before.argmax(axis=0)
    contributions, limits = np.zeros((2, *x.shape))
    np.add.at(contributions, np.where(difference > 0, winner, winner_before), m * difference)
    np.add.at(limits, winner, m * (difference == 0))
    moved = x - x0
    return np.divide(contributions, moved, out=limits, where=moved != 0)


@windows
@pytest.mark.parametrize("channels", ["channels_last", "channels_first"])
def test_difference_of_max_pooling_from_a_baseline(window, channels):
    shape, *rest = WINDOWS[window]
    inside, first = pool_windows(*WINDOWS[window]), channels == "channels_first"
    moved = (shape[-1], *shape[:-1]) if first else shape
    operation = pool_operation("Max", moved, *rest, data_format=channels)
    generator = np.random.default_rng(8)
    for ends, samples in (
        (generator.integers(0, 3, (2, 2, *shape)).astype("float64"), 2),
        (generator.normal(size=(2, 2, *shape)), 2),
        (np.maximum(generator.normal(size=(2, 2, *shape)), 0), 1),
    ):
        x, x0 = ends[0], ends[1][:samples]
        tensors = [tf.constant(np.moveaxis(end, -1, 1) if first else end) for end in (x, x0)]
        y, y0 = map(operation.forward, tensors)
        call = DifferenceCall(
            operation,
            inputs=tensors[:1],
            outputs=(y,),
            baseline_inputs=tensors[1:],
            baseline_outputs=(y0,),
        )
        m = relevance_for(y)
        (found,) = MaxDifference().propagate(call, (tf.constant(m),))
        found, m = ((np.moveaxis(np.asarray(r), 2, -1) if first else r) for r in (found, m))
        expected = np.empty((*m.shape[:2], *shape))
        for n, k in np.ndindex(m.shape[:2]):
            flat = x[n].ravel(), x0[n % samples].ravel(), np.ravel(m[n, k])
            expected[n, k] = multipliers_of_maxima(*flat, inside).reshape(shape)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


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


# --- integers among merged tensors ---

MIXED = {
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "add": ops.add,
    "subtract": ops.subtract,
    "Average": lambda *tensors: layers.Average()(tensors),
    "Maximum": lambda *tensors: layers.Maximum()(tensors),
}


@pytest.mark.parametrize("kind", MIXED)
def test_integers_of_a_tensor_are_read_beside_it(kind):
    """As in the gradient, all relevance of the result is that of the floating tensor."""
    keras.utils.set_random_seed(0)
    given = keras.Input((4,))
    hidden = layers.Dense(4, name="hidden")(given)
    merged = MIXED[kind](hidden, ops.cast(hidden, "int32"))
    model = keras.Model(given, layers.Dense(2)(merged))
    x = np.random.default_rng(0).normal(0, 3, (8, 4)).astype("float32")
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        chosen = model(variable)[:, 1]
    expected = tape.gradient(chosen, variable)
    assert np.ptp(expected) > 0
    found = create_analyzer("gradient", model).analyze(x, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    of_hidden, of_merged = (
        keras.Model(given, tensor)(x).numpy().astype("float64") for tensor in (hidden, merged)
    )
    arriving = of_merged * model.layers[-1].kernel.numpy()[:, 1]
    kernel = model.get_layer("hidden").kernel.numpy()
    expected = x * ((arriving / of_hidden) @ kernel.T)
    found = create_analyzer("lrp.z", model).analyze(x, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_that_makes_integers_floating_is_told():
    given = keras.Input((4,), dtype="int32")
    merged = layers.Maximum()([given, ops.flip(given, axis=1)])
    model = keras.Model(given, layers.Dense(2)(ops.cast(merged, "float32")))
    with pytest.raises(UnsupportedModelError, match="No relevance reaches the inputs"):
        create_analyzer("gradient", model)
