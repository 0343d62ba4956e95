"""Quotients of tensors, and log sum exp, against formulas in NumPy, for every family of methods."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from keras import layers, ops

import tests.helpers.deep_lift_networks as deep_lift
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
    assert_formula,
    draw,
    network,
    propagate,
    relevance_for,
    single_operation,
)
from tfexplain import UnsupportedLayerError
from tfexplain.operations import LogSumExp, Quotient
from tfexplain.rules import (
    EqualShares,
    Gradient,
    LogSumExpDifference,
    ProductDifference,
    RecordedCall,
)

SHAPES = {
    "equal": [(2, 3), (2, 3)],
    "divisor_broadcasts": [(2, 3), (2, 1)],
    "both_broadcast": [(1, 3), (2, 1)],
}
shapes = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


def divide(a, b):
    return a / b


def drawn(shapes, seed=0):
    """Tensors of both signs, whose magnitudes are not small."""
    tensors = [draw(shape, seed=seed + place) for place, shape in enumerate(shapes)]
    return [np.sign(x) * (0.3 + np.abs(x)) for x in tensors]


def summed_to(relevance, x):
    axes = tuple(a for a in range(2, relevance.ndim) if x.shape[a - 1] < relevance.shape[a])
    return relevance.sum(axis=axes, keepdims=True)


@shapes
def test_half_of_the_relevance_goes_to_each_tensor(shapes):
    operation = single_operation(shapes, divide)
    assert type(operation) is Quotient
    inputs = drawn(shapes)
    y = operation.forward(*map(tf.constant, inputs)).numpy()
    np.testing.assert_array_equal(y, inputs[0] / inputs[1])
    R = relevance_for(y)
    found = propagate(EqualShares(), operation, inputs, R)
    for part, x in zip(found, inputs, strict=True):
        assert_formula(part, summed_to(R / 2, x), "half")
    record = RecordedCall(operation, tuple(map(tf.constant, inputs)), (tf.constant(y),))
    assert EqualShares().absorbed(record, (tf.constant(R),)) == (0, 0, 0)


@pytest.mark.parametrize("name", [*RELEVANCE, "deep_lift.rescale"])
def test_it_is_the_product_with_the_reciprocal(name):
    """Every method explains it as that, written down by operations that are known."""
    options = {**RELEVANCE, "deep_lift.rescale": {"baseline": 0.3}}[name]

    shared = [
        layers.Dense(n, activation=f, **F64) for n, f in ((3, None), (3, "softplus"), (2, None))
    ]

    def around(function):
        def apply(x):
            h = layers.Activation("tanh", **F64)(function(shared[0](x), shared[1](x)))
            return shared[2](h)

        return network([(4,)], apply)

    models = around(divide), around(lambda a, b: a * ops.reciprocal(b))
    set_random_weights(models[0], np.random.default_rng(0))
    x, target = tf.constant(draw((4,))), tf.constant([[0, 1]] * 2)
    maps = [create(name, m, **options).explain([x], target)[1].numpy() for m in models]
    assert_same(*maps)


@shapes
def test_gradient_of_a_quotient(shapes):
    operation, inputs = single_operation(shapes, divide), drawn(shapes)
    R = relevance_for(operation.forward(*map(tf.constant, inputs)))
    a, b = (x[:, None] for x in inputs)
    found = propagate(Gradient(), operation, inputs, R)
    assert_formula(found[0], summed_to(R / b, inputs[0]), "a")
    assert_formula(found[1], summed_to(-R * a / b**2, inputs[1]), "b")


@shapes
def test_contributions_to_a_quotient(shapes):
    """First a changes and then b, and the other way round; the two are averaged."""
    model = network(shapes, divide)
    ends = drawn(shapes), drawn(shapes, seed=5)
    # No divisor passes through 0.
    ends[1][1] = np.sign(ends[0][1]) * np.abs(ends[1][1])
    (a, b), (a0, b0) = ends
    m = relevance_for(model([a, b]).numpy())
    network_ = create("deep_lift.rescale", model).network()
    found = network_.propagate([tf.constant(x) for x in (a, b, a0, b0)], tf.constant(m))
    first = ((a - a0) / b0 + (a - a0) / b) / 2
    second = ((a0 / b - a0 / b0) + (a / b - a / b0)) / 2
    for part, expected, x in zip(found, (first, second), (a, b), strict=True):
        assert_formula(part.numpy(), summed_to(m * expected[:, None], x), "contribution")


def test_other_quotients_are_functions_of_single_elements():
    x = tf.constant(drawn([(3,)])[0])
    scaled = single_operation([(3,)], lambda x: x / 4.0)
    assert type(scaled).__name__ == "Scaling"
    inverse = single_operation([(3,)], lambda x: 4.0 / x)
    np.testing.assert_array_equal(inverse.forward(x).numpy(), 4.0 / x.numpy())
    assert inverse.is_nonnegative((True,)) and not inverse.is_nonnegative((False,))
    assert not single_operation([(3,)], lambda x: -4.0 / x).is_nonnegative((True,))


# --- log sum exp ----------------------------------------------------------------------------------

AXES = {"last": (-1, False), "kept": (1, True), "both": ((1, 2), False)}
axes = pytest.mark.parametrize(("axis", "keepdims"), AXES.values(), ids=AXES)


def of(axis, keepdims):
    return lambda x: ops.logsumexp(x, axis=axis, keepdims=keepdims)


@axes
def test_relevance_of_log_sum_exp_goes_by_the_softmax(axis, keepdims):
    """Through log, then in proportion to the exponentials, then through exp."""
    operation = single_operation([(2, 4)], of(axis, keepdims))
    assert type(operation) is LogSumExp
    x = draw((2, 4)) * 3
    y = operation.forward(tf.constant(x)).numpy()
    np.testing.assert_allclose(y, scipy.special.logsumexp(x, axis, keepdims=keepdims), rtol=1e-12)
    R = relevance_for(y)
    places = tuple(a % 3 for a in np.atleast_1d(axis))
    exponentials = np.exp(x)
    share = exponentials / exponentials.sum(axis=places, keepdims=True)
    kept = R if keepdims else np.expand_dims(R, tuple(place + 1 for place in places))
    (found,) = propagate(Gradient(), operation, [x], R)
    assert_formula(found, share[:, None] * kept, "softmax")
    assert Gradient().conserves(operation)
    sums = found.reshape(2, 3, -1).sum(axis=-1), R.reshape(2, 3, -1).sum(axis=-1)
    np.testing.assert_allclose(*sums, rtol=1e-10)


@axes
def test_contributions_to_log_sum_exp(axis, keepdims):
    """exp, sum and log, each by its chord."""
    model = network([(2, 4)], of(axis, keepdims))
    x, x0 = draw((2, 4)) * 3, draw((2, 4), seed=3) * 3
    x0[0, 0, :2] = x[0, 0, :2]
    y, y0 = (model(end).numpy() for end in (x, x0))
    m = relevance_for(y)
    (found,) = deep_lift.eagerly(create("deep_lift.rescale", model), x, x0, m).values()
    places = tuple(a % 3 for a in np.atleast_1d(axis))
    summed = [np.exp(end).sum(axis=places, keepdims=True) for end in (x, x0)]
    of_log = (np.log(summed[0]) - np.log(summed[1])) / (summed[0] - summed[1])
    kept = m if keepdims else np.expand_dims(m, tuple(place + 1 for place in places))
    expected = kept * (of_log * (np.exp(x) - np.exp(x0)))[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    whole = (m * (y - y0)[:, None]).reshape(2, 3, -1).sum(axis=-1)
    np.testing.assert_allclose(found.reshape(2, 3, -1).sum(axis=-1), whole, rtol=1e-10)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 0.0])
def test_contributions_to_log_sum_exp_tend_to_the_gradient(size):
    model = network([(4,)], lambda x: ops.logsumexp(x, axis=-1, keepdims=True))
    x, step = draw((4,)), draw((4,), seed=2)
    found = deep_lift.multipliers(create("deep_lift.rescale", model), x, x - size * step)
    expected = tape_gradient(model, x, 1.0)
    np.testing.assert_allclose(found[:, 0], expected, rtol=3 * size + 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_numbers_do_not_overflow(dtype):
    model = network([(3,)], lambda x: ops.logsumexp(x, axis=-1, keepdims=True))
    x = np.array([[900.0, 1000, -1000], [0, 0, 0]])
    x0 = np.array([[0.0, 0, 0], [-2000, 500, 1000]])
    found = deep_lift.contributions(create("deep_lift.rescale", model, dtype=dtype), x, x0)
    deep_lift.assert_complete(found, deep_lift.difference(model, x, x0), 1e-6)
    gradient = create("gradient", model, dtype=dtype).analyze(x.astype(dtype), target=0)
    np.testing.assert_allclose(gradient, scipy.special.softmax(x, axis=-1), atol=1e-6)


def test_log_sum_exp_across_samples_is_refused():
    for axis in (None, 0, (0, 1)):
        function = lambda x, axis=axis: ops.logsumexp(x, axis=axis, keepdims=True)  # noqa: E731
        with pytest.raises(UnsupportedLayerError, match="across samples|no batch axis"):
            create("lrp.z", network([(3,)], function))


# --- networks -------------------------------------------------------------------------------------


def mixture():
    """A quotient, a log sum exp, and a maximum that broadcasts."""

    def apply(x):
        a, b = (layers.Dense(3, activation=f, **F64)(x) for f in ("tanh", "softplus"))
        h = a / (b + 0.1)
        top = ops.logsumexp(h, axis=-1, keepdims=True)
        return layers.Dense(2, **F64)(layers.Maximum(**F64)([h - 0.5, top - 1.0]))

    model = network([(4,)], apply)
    set_random_weights(model, np.random.default_rng(0))
    return model


RULES = {
    **{name: (options, Gradient(), Gradient()) for name, options in GRADIENTS.items()},
    **{name: (options, EqualShares(), Gradient()) for name, options in RELEVANCE.items()},
    **{
        name: (options, ProductDifference(), LogSumExpDifference())
        for name, options in DIFFERENCES.items()
    },
    "pattern.net": ({}, Gradient(), Gradient()),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_of_methods(name):
    options, of_quotient, of_log = RULES[name]
    assigned = create(name, mixture(), **options).describe().rules
    rules = {type(call.operation): rule for call, rule in assigned.items()}
    assert (rules[Quotient], rules[LogSumExp]) == (of_quotient, of_log)


@pytest.mark.parametrize("name", deep_lift.NAMES)
def test_deep_lift_is_complete(name):
    model, (x, x0) = mixture(), np.random.default_rng(1).normal(size=(2, 5, 4))
    for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-5)):
        found = deep_lift.contributions(create(name, model, dtype=dtype), x, x0)
        deep_lift.assert_complete(found, deep_lift.difference(model, x, x0), tolerance)


@pytest.mark.parametrize("name", ["lrp.z", "lrp.gamma", "lrp.alpha_2_beta_1", "lrp.composite"])
def test_ledger_balances(name):
    model, x = mixture(), draw((4,))
    ledger = create(name, model).ledger(x, target=1)
    scale = np.abs(ledger.received).max().values + np.abs(ledger.kept).max().values
    assert np.abs(ledger.lost).max() <= 1e-10 * scale


def test_gradient_of_the_network():
    model, x = mixture(), draw((4,))
    _, found = create("gradient", model).explain([tf.constant(x)], tf.constant([[0, 1]] * 2))
    for index, row in enumerate(np.eye(2)):
        assert_same(found.numpy()[:, index], tape_gradient(model, x, row))
