"""Where libraries differ, what this one does: conventions of rules.

The numbers are worked out by hand, or come from the formulas of tests/helpers/reference_rules.py.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tests.helpers.reference_rules as reference
from tests.helpers.networks import assert_same, set_random_weights, small_cnn
from tests.helpers.single_calls import F64, conv, dense, network, rules_of
from tfexplain import create_analyzer
from tfexplain.canonizers import canonize
from tfexplain.graph import trace
from tfexplain.rules import (
    RULES,
    AlphaBeta,
    ClippedAddition,
    ContrastiveZPlus,
    Epsilon,
    Flat,
    Pass,
    RecordedCall,
    ZPlus,
)


def dense_network(kernel, bias=None):
    """One dense layer with given weights."""
    kernel = np.asarray(kernel, "float64")
    layer = layers.Dense(kernel.shape[1], use_bias=bias is not None, name="dense", **F64)
    model = network([kernel.shape[:1]], layer)
    layer.set_weights([kernel] if bias is None else [kernel, np.asarray(bias, "float64")])
    return model


def backward(analyzer, x, R):
    """Relevance of the one input for any relevance of the outputs, without compiling."""
    x, R = np.asarray(x, "float64"), np.asarray(R, "float64")
    (found,) = analyzer.network().propagate([tf.constant(x)], tf.constant(R))
    return found.numpy()


def propagate(rule, model, inputs, R):
    """Runs a rule on the only call of a network."""
    (call,) = canonize(trace(model)).calls
    inputs = tuple(tf.constant(x, tf.float64) for x in inputs)
    outputs = (call.operation.forward(*inputs),)
    recorded = RecordedCall(call.operation, inputs, outputs, (False,) * len(inputs))
    return [r.numpy() for r in rule.propagate(recorded, (tf.constant(R, tf.float64),))]


# --- denominators of zero ------------------------------------------------------------------------

# z = (0, 2): the contributions to the first output cancel.
CANCELLING = [[1.0, 1.0], [-1.0, 1.0]]


def test_z_gives_nothing_where_z_is_zero():
    found = backward(create_analyzer("lrp.z", dense_network(CANCELLING)), [[1, 1]], [[[5, 4]]])
    np.testing.assert_array_equal(found, [[[2, 2]]])


@pytest.mark.parametrize("options", [{}, {"add": "proportional"}], ids=str)
def test_z_gives_nothing_where_summands_cancel(options):
    model = network([(2,)], lambda x: layers.Add(**F64)([x, layers.ReLU(**F64)(-x)]))
    # 4 + 0 passes its relevance on; -2 + 2 = 0 has no shares.
    found = backward(create_analyzer("lrp.z", model, **options), [[4, -2]], [[[7, 7]]])
    np.testing.assert_array_equal(found, [[[7, 0]]])


def test_averages_of_zero_give_nothing():
    model = network([(2, 2)], layers.GlobalAveragePooling1D(**F64))
    found = backward(create_analyzer("lrp.z", model), [[[1, 1], [-1, 3]]], [[[5, 4]]])
    np.testing.assert_array_equal(found, [[[[0, 1], [0, 3]]]])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # z = 0 + 0.5
        ("lrp.epsilon", {"epsilon": 0.5}, (2, -2)),
        # contributions 1.5 and -1 of 0.5
        ("lrp.gamma", {"gamma": 0.5}, (3, -2)),
        ("lrp.gamma", {"gamma": 0.5, "bias": "ignore"}, (3, -2)),
    ],
)
def test_zero_counts_as_positive(name, options, expected):
    analyzer = create_analyzer(name, dense_network([[1], [-1]]), **options)
    np.testing.assert_allclose(backward(analyzer, [[1, 1]], [[[1]]]), [[expected]], rtol=1e-12)


def test_epsilon_has_the_sign_of_z():
    """It damps outputs of both signs."""
    analyzer = create_analyzer("lrp.epsilon", dense_network([[1, -1]]), epsilon=1.0)
    np.testing.assert_allclose(backward(analyzer, [[3]], [[[4, 4]]]), [[[6]]], rtol=1e-12)


@pytest.fixture(scope="module")
def signed():
    """One dense layer of both signs, with biases of both signs, and inputs of both signs."""
    generator = np.random.default_rng(3)
    model = dense_network(generator.normal(size=(7, 6)), [0.5, -0.5, 1.0, -1.0, 0.25, -0.25])
    return model, generator.normal(size=(4, 7)), generator.normal(size=(4, 3, 6))


def test_epsilon_tends_to_z(signed):
    """Of first order in epsilon; with 0 it is the z rule itself."""
    model, x, R = signed
    limit = backward(create_analyzer("lrp.z", model), x, R)
    errors = [
        np.abs(backward(create_analyzer("lrp.epsilon", model, epsilon=e), x, R) - limit).max()
        for e in (1e-4, 1e-6, 1e-8, 0)
    ]
    assert 0 < errors[1] < 2e-2 * errors[0] and 0 < errors[2] < 2e-2 * errors[1]
    assert errors[3] == 0


# --- what the bias absorbs -----------------------------------------------------------------------


def kept(name, signed, **options):
    """How much of one unit of relevance at each output reaches the inputs: (sample, output)."""
    model, x, _ = signed
    R = np.tile(np.eye(6), (len(x), 1, 1))
    return backward(create_analyzer(name, model, **options), x, R).sum(axis=2)


def test_alpha_1_beta_0_absorbs_in_positive_biases_only(signed):
    model, x, _ = signed
    kernel, bias = model.get_weights()
    above = np.maximum(x[:, :, None] * kernel, 0).sum(axis=1)
    found = kept("lrp.alpha_1_beta_0", signed)
    np.testing.assert_allclose(found, above / (above + np.maximum(bias, 0)), rtol=1e-12)
    assert (found[:, bias > 0] < 0.99).all() and (found > 0).all()
    np.testing.assert_allclose(found[:, bias < 0], 1, rtol=1e-12)


@pytest.mark.parametrize("name", ["lrp.alpha_1_beta_0", "lrp.alpha_2_beta_1", "lrp.z", "lrp.gamma"])
def test_rules_without_bias_conserve(name, signed):
    np.testing.assert_allclose(kept(name, signed, bias="ignore"), 1, rtol=1e-9)
    assert np.abs(kept(name, signed) - 1).max() > 0.01


@pytest.mark.parametrize("name", ["lrp.z_plus", "lrp.w_square", "lrp.flat"])
def test_rules_that_leave_the_bias_out_conserve(name, signed):
    np.testing.assert_allclose(kept(name, signed), 1, rtol=1e-12)
    with pytest.raises(ValueError, match="bias"):
        create_analyzer(name, signed[0], bias="split")


# --- single rules --------------------------------------------------------------------------------


@pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "nonnegative"])
def test_contrastive_z_plus_at_a_convolution(nonnegative):
    """z+ of the kernel minus z+ of its negative."""
    conv = layers.Conv2D(3, 2, strides=(1, 2), padding="same", **F64)
    model = network([(3, 4, 2)], conv)
    generator = np.random.default_rng(2)
    set_random_weights(conv, generator)
    x, R = generator.normal(size=(2, 3, 4, 2)), generator.normal(size=(2, 3, 3, 2, 3))
    x = np.abs(x) if nonnegative else x
    (found,) = propagate(ContrastiveZPlus(), model, [x], R)
    expected = reference.relevance_of_batch("z_plus", conv, x, R)
    expected = expected - reference.relevance_of_batch("z_plus", lambda x: -conv(x), x, R)
    assert_same(found, expected, 1e-9)


def test_contrastive_excitation_backprop_uses_it_at_the_last_layer_alone():
    def function(x):
        h = layers.Conv1D(2, 2, activation="relu", name="first", **F64)(x)
        h = layers.Conv1D(2, 1, name="last", **F64)(h)
        return layers.GlobalAveragePooling1D(name="average", **F64)(h)

    rules = rules_of(create_analyzer("excitation_bp.contrastive", network([(4, 2)], function)))
    assert rules["last"] == ContrastiveZPlus() and rules["first"] == ZPlus()


def test_excitation_backprop_is_z_plus_started_with_one():
    model = small_cnn(dtype="float64")
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 8, 8, 3)))
    targets = tf.constant([[0, 2]] * 3)
    _, found = create_analyzer("excitation_bp", model).explain([x], targets)
    _, expected = create_analyzer("lrp.z_plus", model, head="one").explain([x], targets)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found).sum(axis=(2, 3, 4)).min() > 0


def test_max_pooling_as_winner_and_as_average():
    # Windows (1, 3), (3, 1) and (1, 1), the last one a tie.
    model = network([(4, 1)], layers.MaxPooling1D(2, 1, **F64))
    x, R = np.reshape([1, 3, 1, 1], (1, 4, 1)), np.reshape([4, 8, 6], (1, 1, 3, 1))
    for max_pool, expected in (("winner", (0, 12, 6, 0)), ("average", (1, 9, 5, 3))):
        found = backward(create_analyzer("lrp.z", model, max_pool=max_pool), x, R)
        np.testing.assert_allclose(found.ravel(), expected, rtol=1e-12)


def test_clipped_addition_clips_shares():
    model = network([(3,), (3,)], lambda a, b: layers.Add(**F64)([a, b]))
    inputs, R = ([[1.0, 1.0, -1.0]], [[3.0, 3.0, 2.0]]), [[[40.0, -4.0, 8.0]]]
    first, second = propagate(ClippedAddition(Epsilon(0.0), -0.5, 20.0), model, inputs, R)
    np.testing.assert_allclose(first, [[[10, -0.5, -0.5]]], rtol=1e-12)
    np.testing.assert_allclose(second, [[[20, -0.5, 16]]], rtol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh", "softmax"])
def test_activations_and_scalings_pass_relevance(activation):
    """Also where a rectifier is closed: what arrives there is 0 in a network."""
    for layer in (layers.Activation(activation, **F64), layers.Rescaling(-2.0, 0.5, **F64)):
        (found,) = propagate(Pass(), network([(3,)], layer), [[[-1.0, 0.0, 2.0]]], [[[5, 6, 7]]])
        np.testing.assert_array_equal(found, [[[5, 6, 7]]])


# Rule -> its formula in tests/helpers/reference_rules.py, or why it has none.
ORACLES = {
    "Epsilon": reference.epsilon,
    "Gamma": reference.gamma,
    "AlphaBeta": reference.alpha_beta,
    "ZPlus": reference.z_plus,
    "WSquare": reference.w_square,
    "Flat": reference.flat,
    "ZBox": reference.z_box,
    "Gradient": reference.gradient,
    "GuidedReLU": reference.guided,
    "DeconvReLU": reference.deconvnet,
    "RectGrad": reference.rect_grad,
    "Winner": reference.max_pool_winner,
    "Proportional": reference.average_pool,
    "AverageOfWindow": reference.average_pool,
    "HeldDeviation": "dense matrices: tests/operations/test_normalizations.py",
    "NoRelevance": "nothing: tests/operations/test_masks.py",
    "ContrastiveZPlus": "the difference of two z_plus: test_contrastive_z_plus_at_a_convolution",
    "EqualShares": "by hand and loops: tests/operations/test_merges_and_pools.py, test_products.py",
    "Pass": "the identity: test_activations_and_scalings_pass_relevance",
    "ClippedAddition": "another rule, clipped: test_clipped_addition_clips_shares",
    **dict.fromkeys(
        (
            "AblatedLinear",
            "LinearDifference",
            "MaxDifference",
            "Rescale",
            "RevealCancel",
        ),
        "multipliers from two passes: tests/helpers/reference_deep_lift.py",
    ),
    "AffineDifference": "a diagonal layer: test_deep_lift.py, with batch_norm='rule'",
    "ProductDifference": "by hand: tests/operations/test_products.py, test_quotients.py",
    "NormalizationDifference": "the difference, and the gradient of a small step: "
    "tests/operations/test_normalizations.py",
    "LogSumExpDifference": "exp, sum and log by hand: tests/operations/test_quotients.py",
    "PassDifference": "contributions by hand: tests/analyzers/test_deep_lift.py",
    "Transport": "the gradient for both signs: tests/analyzers/test_deep_lift.py",
    "SignalTakesAll": "everything for the first of two: tests/operations/test_recurrent.py",
    "ThroughTime": "reference numbers, and cells by hand: tests/operations/test_recurrent.py",
    "DifferenceThroughTime": "contributions add up: tests/operations/test_recurrent.py",
    "PatternRule": "brute-force matrices: tests/analyzers/test_pattern_analyzers.py",
}


def test_every_rule_has_an_oracle_or_a_reason():
    """A new rule needs a row here, and a comparison with what the row says."""
    ours = {name for name, cls in RULES.items() if cls.__module__.startswith("tfexplain.")}
    assert ours == set(ORACLES)
    known = [
        *reference.REFERENCE_RULES.values(),
        *reference.REFERENCE_RELU_RULES.values(),
        *reference.REFERENCE_POOL_RULES.values(),
    ]
    formulas = [value for value in ORACLES.values() if callable(value)]
    # The z rule is epsilon with 0, the gradient of a ReLU is that of any operation.
    assert {f.__name__ for f in known} - {f.__name__ for f in formulas} == {"z", "relu_gradient"}


# --- the box rule --------------------------------------------------------------------------------


def same(value):
    return value


# What lies before the convolution: layers, the same in NumPy, and the way back of relevance.
FRONTS = {
    "nothing": (same, same, same),
    "zero_padding": (
        layers.ZeroPadding1D((1, 2), **F64),
        lambda v: np.pad(v, [(0, 0), (1, 2), (0, 0)]),
        lambda r: r[:, :, 1:-2],
    ),
    "negative_rescaling": (layers.Rescaling(-0.5, offset=1.0, **F64), lambda v: 1 - v / 2, same),
    "normalization": (
        layers.Normalization(mean=[1.0, -2.0], variance=[4.0, 0.25], **F64),
        lambda v: (v - [1, -2]) / [2, 0.5],
        same,
    ),
    "constants": (lambda h: 1.0 - h / 4, lambda v: 1 - v / 4, same),
    "reshape": (
        layers.Reshape((3, 4), **F64),
        lambda v: v.reshape(-1, 3, 4),
        lambda r: r.reshape(*r.shape[:2], 6, 2),
    ),
    "rescaling_then_padding": (
        lambda h: layers.ZeroPadding1D(1, **F64)(layers.Rescaling(-2.0, 1.0, **F64)(h)),
        lambda v: np.pad(1 - 2 * v, [(0, 0), (1, 1), (0, 0)]),
        lambda r: r[:, :, 1:-1],
    ),
}
_generator = np.random.default_rng(8)
BOUNDS = {
    "numbers": (-4.0, 5.0),
    "per_channel": (np.array([-4.0, -3.5]), np.array([5.0, 3.5])),
    "per_element": (_generator.uniform(-5, -3, (6, 2)), _generator.uniform(3, 5, (6, 2))),
}


def check_box(before, mapping, back, low, high, **options):
    """Compares the box rule at a convolution with its formula on what the convolution reads."""
    conv = layers.Conv1D(3, 3, **F64)
    model = network([(6, 2)], lambda x: conv(before(x)))
    generator = np.random.default_rng(4)
    set_random_weights(conv, generator)
    x = np.clip(generator.normal(size=(2, 6, 2)), -3, 3)
    R = generator.normal(size=(2, 3, *model.output_shape[1:]))
    # w^2 passes relevance through scalings as it is.
    analyzer = create_analyzer("lrp.w_square", model, input_rule=("box", low, high), **options)
    found = backward(analyzer, x, R)
    ends = [mapping(np.broadcast_to(end, (1, 6, 2)))[0] for end in (low, high)]
    bounds = {"low": np.minimum(*ends), "high": np.maximum(*ends)}
    expected = reference.relevance_of_batch("z_box", conv, mapping(x), R, **bounds)
    assert_same(found, back(expected), 1e-9)
    # Zeros that a ZeroPadding layer makes are inputs, but get nothing: their box is empty.
    np.testing.assert_allclose(found.sum(axis=(2, 3)), R.sum(axis=(2, 3)), rtol=1e-9)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("front", FRONTS)
def test_box_rule(front, bounds):
    """The bounds are in units of the model's input, and follow it to the first layer."""
    check_box(*FRONTS[front], *BOUNDS[bounds])


def test_box_rule_behind_a_normalisation_that_is_not_folded():
    """One channel's factor is negative, so that its bounds change places."""
    norm = layers.BatchNormalization(epsilon=0.0, **F64)
    norm.build((None, 6, 2))
    norm.set_weights([np.array([-2.0, 0.5]), np.array([1.0, -1.0]), np.zeros(2), np.ones(2)])
    check_box(norm, lambda v: v * [-2, 0.5] + [1, -1], same, -4.0, 5.0, batch_norm="rule")


def test_bounded_deep_taylor_has_the_same_box():
    model = dense_network([[1.0], [-2.0]], [3.0])
    analyzer = create_analyzer("deep_taylor.bounded", model, low=[-1, 0], high=[1, 2])
    # q = (1/2 + 1, -2 + 4): the positive weight is measured from low, the negative one from high.
    found = backward(analyzer, [[0.5, 1.0]], [[[7.0]]])
    np.testing.assert_allclose(found, [[[3, 4]]], rtol=1e-12)


# --- the first layer -----------------------------------------------------------------------------


def _behind_structure(x):
    h = layers.Normalization(mean=0.5, variance=2.0, **F64)(x)
    h = layers.ZeroPadding1D(1, **F64)(layers.Reshape((3, 4), **F64)(h))
    return conv("second")(conv("first", activation="relu")(h))


def _behind_constants(x):
    return dense("second")(dense("first")(layers.Dropout(0.5, **F64)(x / 255 - 0.5)))


def _two_inputs(a, b):
    joined = layers.Concatenate(**F64)([dense("a")(a), dense("b")(layers.Rescaling(2, **F64)(b))])
    return dense("both")(joined)


def _joined_inputs(a, b):
    return dense("second")(dense("first")(layers.Concatenate(**F64)([a, b])))


def _skip(x):
    return dense("second")(layers.Concatenate(**F64)([x, dense("first")(x)]))


def _shared(a, b):
    shared = dense("shared")
    return dense("last")(layers.Add(name="sum", **F64)([shared(a), shared(b)]))


def _nested(x):
    start = keras.Input((6, 2), **F64)
    inner = keras.Model(start, conv("second")(conv("first")(start)), name="inner")
    return inner(x)


def _norm(x):
    return dense("second")(dense("first")(layers.BatchNormalization(name="norm", **F64)(x)))


@pytest.mark.parametrize(
    ("function", "options", "expected"),
    [
        (_behind_structure, {}, {"first"}),
        (_behind_constants, {}, {"first"}),
        (_two_inputs, {}, {"a", "b"}),
        (_joined_inputs, {}, {"first"}),
        # The path x -> Concatenate -> second meets no other linear layer.
        (_skip, {}, {"first", "second"}),
        (_shared, {}, {"shared", "shared@1"}),
        (_nested, {}, {"inner/first"}),
        (_norm, {}, {"first"}),
        # Folded or not, the normalisation is not what is looked for.
        (_norm, {"batch_norm": "rule"}, {"first"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_first_layer(function, options, expected):
    shapes = [(6, 2)] * len(inspect.signature(function).parameters)
    model = network(shapes, function)
    analyzer = create_analyzer("lrp.epsilon", model, input_rule="flat", **options)
    assert {name for name, rule in rules_of(analyzer).items() if rule == Flat()} == expected


def test_texts_of_numpy_are_those_of_python():
    for rule in (Epsilon(bias=np.str_("ignore")), AlphaBeta(2, bias=np.str_("ignore"))):
        assert type(rule.bias) is str and "np.str_" not in repr(rule)
