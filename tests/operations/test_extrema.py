"""Maximum and Minimum of tensors against formulas in NumPy, for every family of methods."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tests.helpers.deep_lift_networks import NAMES, assert_complete, difference, eagerly
from tests.helpers.networks import (
    DIFFERENCES,
    GRADIENTS,
    RELEVANCE,
    assert_same,
    create,
    set_random_weights,
    tape_gradient,
)
from tests.helpers.single_calls import (
    F64,
    network,
    propagate,
    relevance_for,
    rules_of,
    single_operation,
)
from tfexplain.reverse import network as reverse_network
from tfexplain.rules import AverageOfWindow, Gradient, MaxDifference, Transport, Winner

EXTREMA = {
    "Maximum": (lambda *tensors: layers.Maximum(**F64)(list(tensors)), np.argmax),
    "Minimum": (lambda *tensors: layers.Minimum(**F64)(list(tensors)), np.argmin),
    "ops.maximum": (lambda *tensors: _folded(ops.maximum, tensors), np.argmax),
    "ops.minimum": (lambda *tensors: _folded(ops.minimum, tensors), np.argmin),
}
SHAPES = {
    "two": [(2, 3), (2, 3)],
    "broadcast": [(2, 3, 2), (1, 1, 2)],
    "both_broadcast": [(1, 2), (3, 1)],
}
extrema = pytest.mark.parametrize("kind", EXTREMA)
shapes = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


def _folded(function, tensors):
    first, *others = tensors
    for other in others:
        first = function(first, other)
    return first


def tied(shapes, seed=0):
    """Small integers, of which many are equal; two samples of each tensor."""
    generator = np.random.default_rng(seed)
    return [generator.integers(-1, 2, (2, *shape)).astype("float64") for shape in shapes]


def winners(inputs, choose):
    """Which tensor wins each output, the first of equal ones: (batch, *shape)."""
    return choose(np.stack(np.broadcast_arrays(*inputs)), axis=0)


def summed_to(relevance, x):
    """Sums (batch, vectors, *shape) over the axes along which x was broadcast."""
    axes = tuple(a for a in range(2, relevance.ndim) if x.shape[a - 1] < relevance.shape[a])
    return relevance.sum(axis=axes, keepdims=True)


def routed(inputs, R, choose):
    """All of R to the first winner."""
    won = winners(inputs, choose)
    return [summed_to(R * (won == m)[:, None], x) for m, x in enumerate(inputs)]


def in_proportion(inputs, R):
    """R_m = x_m / sum_m x_m R; 0 / 0 is 0."""
    total = sum(np.broadcast_arrays(*inputs))
    ratio = np.divide(R, total[:, None], out=np.zeros_like(R), where=total[:, None] != 0)
    return [summed_to(x[:, None] * ratio, x) for x in inputs]


def assert_each(found, expected):
    for first, second in zip(found, expected, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-12)


@extrema
@shapes
def test_winner_average_and_gradient(kind, shapes):
    function, choose = EXTREMA[kind]
    operation = single_operation(shapes, function)
    inputs = tied(shapes)
    equal = np.equal(*np.broadcast_arrays(*inputs))
    assert equal.any() and not equal.all()  # or it would prove nothing
    outputs = operation.forward(*map(tf.constant, inputs))
    R = relevance_for(outputs)
    expected = routed(inputs, R, choose)
    assert_each(propagate(Winner(), operation, inputs, R), expected)
    sums = sum(part.reshape(2, 3, -1).sum(axis=-1) for part in expected)
    np.testing.assert_allclose(sums, R.reshape(2, 3, -1).sum(axis=-1), rtol=1e-12)
    assert_each(propagate(Gradient(), operation, inputs, R), expected)
    assert_each(propagate(AverageOfWindow(), operation, inputs, R), in_proportion(inputs, R))


@pytest.mark.parametrize("kind", ["Maximum", "Minimum"])
def test_three_tensors(kind):
    function, choose = EXTREMA[kind]
    operation = single_operation([(2, 3)] * 3, function)
    inputs = tied([(2, 3)] * 3)
    R = relevance_for(inputs[0])
    assert_each(propagate(Winner(), operation, inputs, R), routed(inputs, R, choose))
    found = propagate(AverageOfWindow(), operation, inputs, R)
    assert_each(found, in_proportion(inputs, R))


@extrema
def test_gradient_on_ties_is_that_of_tensorflow(kind):
    """The first of equal tensors gets everything."""
    model = network([(2, 6)], lambda x: EXTREMA[kind][0](x[:, 0], x[:, 1]))
    x = np.stack(tied([(6,), (6,)]), axis=1)
    _, found = create("gradient", model).explain([tf.constant(x)], tf.tile([range(6)], [2, 1]))
    for index, row in enumerate(np.eye(6)):
        assert_same(found.numpy()[:, index], tape_gradient(model, x, row))


# --- DeepLIFT ------------------------------------------------------------------------------------


def contributions_of(inputs, baselines, m, choose):
    """What each tensor contributes to m (y - y0), one (batch, vectors, *shape) for each.

    A rise of a maximum belongs to the winner of the input, a fall to that of the baseline; of a
    minimum the other way round.
    """
    values, before = (np.stack(np.broadcast_arrays(*parts)) for parts in (inputs, baselines))
    won, won_before = choose(values, axis=0), choose(before, axis=0)
    y, y0 = (np.take_along_axis(v, w[None], 0)[0] for v, w in ((values, won), (before, won_before)))
    to_input = (y > y0) if choose is np.argmax else (y < y0)
    owner = np.where(to_input, won, won_before)
    shares = m * (y - y0)[:, None]
    return [summed_to(shares * (owner == place)[:, None], x) for place, x in enumerate(inputs)]


@pytest.mark.parametrize("ties", [False, True])
@extrema
@pytest.mark.parametrize("rows", [1, 2], ids=["broadcast", "equal_shapes"])
def test_difference_from_a_baseline(rows, kind, ties):
    """Contributions add up to the difference, tensor by tensor as the formula says."""
    function, choose = EXTREMA[kind]
    model = network([(2 + rows, 3)], lambda x: function(x[:, :2], x[:, 2:]))
    generator = np.random.default_rng(5)
    if ties:
        x, x0 = (generator.integers(-1, 2, (4, 2 + rows, 3)).astype("float64") for _ in "ab")
    else:
        x, x0 = generator.normal(size=(2, 4, 2 + rows, 3))
    m = generator.normal(size=(4, 2, 2, 3))
    analyzer = create("deep_lift.rescale", model)
    (found,) = eagerly(analyzer, x, x0, m).values()
    parts = [[end[:, :2], end[:, 2:]] for end in (x, x0)]
    expected = np.concatenate(contributions_of(*parts, m, choose), axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    y, y0 = (model(part).numpy() for part in (x, x0))
    whole = (m * (y - y0)[:, None]).reshape(4, 2, -1).sum(axis=-1)
    np.testing.assert_allclose(found.reshape(4, 2, -1).sum(axis=-1), whole, atol=1e-12)


@extrema
def test_multiplier_where_nothing_differs_is_the_gradient(kind):
    function, choose = EXTREMA[kind]
    model = network([(2, 3)], lambda x: function(x[:, 0], x[:, 1]))
    x = np.stack(tied([(3,), (3,)], seed=3), axis=1)
    m = np.random.default_rng(6).normal(size=(2, 2, 3))
    analyzer = create("deep_lift.rescale", model)
    (found,) = eagerly(analyzer, x, x, m, quantity="multiplier").values()
    expected = routed([x[:, 0], x[:, 1]], m, choose)
    np.testing.assert_allclose(found, np.stack(expected, axis=2), rtol=1e-12)


def maxout(merging, shape=(5,)):
    """Branches of any sign, merged twice, between dense layers."""

    def function(x):
        h = merging(*(layers.Dense(6, **F64)(x) for _ in range(2)))
        h = merging(layers.Dense(4, activation="relu", **F64)(h), layers.Dense(4, **F64)(h))
        return layers.Dense(3, name="logits", **F64)(h)

    model = network([shape], function)
    set_random_weights(model, np.random.default_rng(0))
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["Maximum", "Minimum"])
def test_deep_lift_is_complete(kind, name):
    model = maxout(EXTREMA[kind][0])
    x, x0 = np.random.default_rng(1).normal(size=(2, 3, 5))
    analyzer = create(name, model)
    (found,) = eagerly(analyzer, x, x0).values()
    assert_complete(found, difference(model, x, x0))


# --- networks ------------------------------------------------------------------------------------

# Analyzer and options -> the rule of each maximum.
RULES = {
    **{name: (options, Gradient()) for name, options in GRADIENTS.items()},
    **{name: (options, Winner()) for name, options in RELEVANCE.items()},
    **{name: (options, MaxDifference()) for name, options in DIFFERENCES.items()},
    "gradient": ({}, Gradient()),
    "guided_backprop": ({}, Gradient()),
    "deconvnet": ({}, Gradient()),
    "rect_grad": ({}, Gradient()),
    "lrp.z": ({}, Winner()),
    "lrp.gamma": ({"max_pool": "average"}, AverageOfWindow()),
    "lrp.alpha_2_beta_1": ({}, Winner()),
    "lrp.flat": ({}, Winner()),
    "lrp.w_square": ({}, Winner()),
    "lrp.composite": ({}, Winner()),
    "excitation_bp": ({}, Winner()),
    "excitation_bp.contrastive": ({}, Winner()),
    "deep_taylor": ({}, Winner()),
    "deep_lift.rescale": ({}, MaxDifference()),
    "deep_lift.reveal_cancel": ({"max_pool": "gradient"}, Transport()),
    "pattern.net": ({}, Gradient()),
    "pattern.attribution": ({}, Gradient()),
}


def against_its_mean(merging):
    """A tensor, and one number of each sample that broadcasts against it."""

    def function(x):
        h = layers.Dense(6, **F64)(x)
        h = merging(h, ops.mean(h, axis=-1, keepdims=True))
        return layers.Dense(3, **F64)(merging(ops.max(h, axis=-1, keepdims=True) - 0.5, h))

    model = network([(5,)], function)
    set_random_weights(model, np.random.default_rng(0))
    return model


NETWORKS = {"equal_shapes": maxout, "broadcasts": against_its_mean}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("kind", ["Maximum", "Minimum"])
@pytest.mark.parametrize("name", RULES)
def test_rules_of_methods(name, kind, build):
    options, expected = RULES[name]
    model = build(EXTREMA[kind][0])
    analyzer = create(name, model, **options)
    names = [layer.name for layer in model.layers if type(layer).__name__ == kind]
    assert {rules_of(analyzer)[n] for n in names} == {expected} and len(names) == 2


@pytest.mark.parametrize("name", [*RELEVANCE, *DIFFERENCES])
@pytest.mark.parametrize("kind", ["Maximum", "Minimum"])
def test_maps_of_a_tensor_and_of_copies_are_the_same(kind, name):
    """What broadcasts is explained as if it were repeated first."""
    options = {**RELEVANCE, **DIFFERENCES}[name]
    merging = EXTREMA[kind][0]
    dense = [layers.Dense(units, **F64) for units in (6, 1, 3)]
    networks = [
        network(
            [(5,)], lambda x, spread=spread: dense[2](merging(dense[0](x), spread(dense[1](x))))
        )
        for spread in (lambda h: h, lambda h: ops.repeat(h, 6, axis=-1))
    ]
    set_random_weights(networks[0], np.random.default_rng(0))
    x, target = tf.constant(np.random.default_rng(1).normal(size=(3, 5))), tf.constant([[0, 2]] * 3)
    maps = [create(name, n, **options).explain([x], target)[1].numpy() for n in networks]
    assert_same(*maps)


@pytest.mark.parametrize("name", ["lrp.z", "lrp.flat", "lrp.w_square", "lrp.contrastive"])
def test_a_network_of_winners_is_a_linear_network(name):
    """LRP of a maximum is that of a network with the winners alone."""
    generator = np.random.default_rng(2)
    first, second = generator.normal(size=(2, 4, 3))
    last = generator.normal(size=(3, 2))

    def function(x):
        branches = [layers.Dense(3, use_bias=False, **F64)(x) for _ in range(2)]
        h = layers.Maximum(**F64)(branches)
        return layers.Dense(2, use_bias=False, **F64)(h)

    model = network([(4,)], function)
    model.set_weights([first, second, last])
    x = generator.normal(size=(1, 4))
    wins = (x @ first)[0] >= (x @ second)[0]
    assert wins.any() and not wins.all()
    plain = network(
        [(4,)],
        lambda x: layers.Dense(2, use_bias=False, **F64)(layers.Dense(3, use_bias=False, **F64)(x)),
    )
    plain.set_weights([np.where(wins, first, second), last])
    target = tf.constant([[0, 1]])
    found, expected = (create(name, m).explain([tf.constant(x)], target)[1] for m in (model, plain))
    assert_same(found.numpy(), expected.numpy())


@pytest.mark.parametrize("max_pool", ["winner", "average"])
@pytest.mark.parametrize("kind", ["Maximum", "Minimum"])
def test_left_out_branches_change_nothing(kind, max_pool, monkeypatch):
    """In front of a ReLU no relevance arrives at negative winners."""

    def function(x):
        h = EXTREMA[kind][0](*(layers.Dense(6, **F64)(x) for _ in range(2)))
        return layers.Dense(3, **F64)(layers.ReLU(**F64)(h))

    model = network([(5,)], function)
    set_random_weights(model, np.random.default_rng(3))
    x = np.random.default_rng(4).normal(size=(3, 5))

    def explained():
        analyzer = create("lrp.gamma", model, max_pool=max_pool)
        targets = tf.constant([[0, 1, 2]] * 3)
        return len(analyzer.network().vanishing), analyzer.explain([tf.constant(x)], targets)[1]

    count, found = explained()
    assert (count > 1) == (max_pool == "winner")
    monkeypatch.setattr(reverse_network, "vanishing_below_zero", lambda *_: set())
    assert_same(found.numpy(), explained()[1].numpy())


@pytest.mark.parametrize("kind", EXTREMA)
def test_signs(kind):
    """A maximum is >= 0 if one tensor is, a minimum if all are."""
    operation = single_operation([(3,), (3,)], EXTREMA[kind][0])
    either = EXTREMA[kind][1] is np.argmax
    assert operation.is_nonnegative((True, True))
    assert operation.is_nonnegative((True, False)) == either
    assert not operation.is_nonnegative((False, False))


def test_an_initial_value_may_be_the_largest():
    model = network([(4,)], lambda x: ops.max(x, axis=-1, keepdims=True, initial=1.0))
    x = np.array([[0.5, 2.0, -1.0, 1.5], [0.5, 0.2, -1.0, 0.9]])
    found = create("lrp.z", model).analyze(x, target=0)
    # The number that is larger limits a function of the winner, which keeps its relevance.
    assert (np.abs(found).argmax(axis=1) == [1, 3]).all()
    assert np.count_nonzero(found) == 2
    assert not create("gradient", model).analyze(x, target=0)[1].any()


def test_the_smallest_over_axes():
    """The first of equal elements in row-major order."""
    operation = single_operation([(2, 3)], lambda x: ops.min(x, axis=(1, 2), keepdims=True))
    x = np.random.default_rng(0).integers(0, 3, (2, 2, 3)).astype("float64")
    R = relevance_for(np.zeros((2, 1, 1)))
    expected = np.zeros((2, 3, 6))
    first = x.reshape(2, 6).argmin(axis=1)
    expected[range(2), :, first] = R[..., 0, 0]
    assert (np.sum(x == x.min(axis=(1, 2), keepdims=True), axis=(1, 2)) > 1).any()  # some are equal
    (found,) = propagate(Winner(), operation, [x], R)
    np.testing.assert_array_equal(found, expected.reshape(2, 3, 2, 3))


def test_other_ranks():
    """Keras gives the smaller one axes behind the samples."""
    inputs = [keras.Input((2, 3), **F64), keras.Input((3,), **F64)]
    spread = [inputs[0], layers.Reshape((1, 3), **F64)(inputs[1])]
    models = [
        keras.Model(inputs, layers.Flatten(**F64)(layers.Maximum(**F64)(tensors)))
        for tensors in (inputs, spread)
    ]
    x = [tf.constant(part) for part in tied([(2, 3), (3,)])]
    for name in ("gradient", "lrp.z", "lrp.alpha_beta", "deep_lift.rescale"):
        options = {**RELEVANCE, **DIFFERENCES, "gradient": {}}[name]
        found, expected = (
            create(name, model, **options).explain(x, tf.constant([range(6)] * 2))[1:]
            for model in models
        )
        for first, second in zip(found, expected, strict=True):
            assert np.abs(second).max() > 0
            assert_same(first.numpy(), second.numpy())
