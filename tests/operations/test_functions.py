"""Functions of single elements against NumPy's long doubles, for every family of methods."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from keras import layers, ops

import tests.helpers.deep_lift_networks as deep_lift
from tests.helpers.networks import assert_same, create, set_random_weights, tape_gradient
from tests.helpers.single_calls import F64, network, rules_of, single_operation
from tfexplain import UnsupportedLayerError
from tfexplain.operations import Activation
from tfexplain.rules import Gradient, GuidedReLU, Pass, Rescale, RevealCancel
from tfexplain.rules.chords import chord

BOTH, ABOVE, UNIT = (-3.0, 3.0), (0.05, 4.0), (-0.95, 0.95)
# Name -> where it is defined, what Keras computes, the same in NumPy.
FUNCTIONS = {
    "exp": (BOTH, ops.exp, np.exp),
    "expm1": (BOTH, ops.expm1, np.expm1),
    "exp2": (BOTH, ops.exp2, np.exp2),
    "log": (ABOVE, ops.log, np.log),
    "log2": (ABOVE, ops.log2, np.log2),
    "log10": (ABOVE, ops.log10, np.log10),
    "log1p": ((-0.9, 4.0), ops.log1p, np.log1p),
    "sqrt": (ABOVE, ops.sqrt, np.sqrt),
    "rsqrt": (ABOVE, ops.rsqrt, lambda x: 1 / np.sqrt(x)),
    "cbrt": (ABOVE, ops.cbrt, np.cbrt),
    "reciprocal": (ABOVE, ops.reciprocal, lambda x: 1 / x),
    "one_over": (ABOVE, lambda x: -2.0 / x, lambda x: -2 / x),
    "sin": (BOTH, ops.sin, np.sin),
    "cos": (BOTH, ops.cos, np.cos),
    "tan": (UNIT, ops.tan, np.tan),
    "sinh": (BOTH, ops.sinh, np.sinh),
    "cosh": (BOTH, ops.cosh, np.cosh),
    "arcsin": (UNIT, ops.arcsin, np.arcsin),
    "arccos": (UNIT, ops.arccos, np.arccos),
    "arctan": (BOTH, ops.arctan, np.arctan),
    "arcsinh": (BOTH, ops.arcsinh, np.arcsinh),
    "arccosh": ((1.1, 4.0), ops.arccosh, np.arccosh),
    "arctanh": (UNIT, ops.arctanh, np.arctanh),
    "erf": (BOTH, ops.erf, None),
    "erfc": (BOTH, lambda x: ops.erfc(x), None),
    "cube": (BOTH, lambda x: x**3, lambda x: x**3),
    "square": (BOTH, lambda x: x**2, lambda x: x**2),
    "power": (ABOVE, lambda x: ops.power(x, 1.7), lambda x: x ** np.longdouble(1.7)),
    "powers": (ABOVE, lambda x: ops.power(x, np.array([0.5, -2.0, 3.0])), None),
    "root": (ABOVE, lambda x: x**0.5, np.sqrt),
    "inverse_square": (ABOVE, lambda x: x**-2, lambda x: x**-2),
    "of_a_base": (BOTH, lambda x: 2.0**x, np.exp2),
    "clip": (
        BOTH,
        lambda x: ops.clip(x, -0.5, 1.2),
        lambda x: np.clip(x, -0.5, np.longdouble(1.2)),
    ),
    "clip_at_zero": (BOTH, lambda x: ops.clip(x, 0, 1), lambda x: np.clip(x, 0, 1)),
    "maximum": (BOTH, lambda x: ops.maximum(x, 0.5), lambda x: np.maximum(x, 0.5)),
    "maximum_of_zero": (BOTH, lambda x: ops.maximum(0.0, x), lambda x: np.maximum(x, 0)),
    "minimum": (BOTH, lambda x: ops.minimum(x, np.array([0.5])), lambda x: np.minimum(x, 0.5)),
    "threshold": (BOTH, lambda x: ops.threshold(x, 0.5, -1.0), lambda x: np.where(x > 0.5, x, -1)),
    "sparse_plus": (BOTH, ops.sparse_plus, None),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)


def uniform(name, *shape, seed=0):
    return np.random.default_rng(seed).uniform(*FUNCTIONS[name][0], shape)


def operation_of(name):
    return single_operation([(3,)], FUNCTIONS[name][1])


@functions
def test_it_is_an_activation(name):
    operation = operation_of(name)
    assert type(operation) is Activation and not operation.joint
    x, expected = uniform(name, 5, 3), FUNCTIONS[name][2]
    y = operation.forward(tf.constant(x)).numpy()
    if expected is not None:
        np.testing.assert_allclose(y, expected(x), rtol=1e-12)
    model = network([(3,)], FUNCTIONS[name][1])
    np.testing.assert_array_equal(y, model(x).numpy())
    _, found = create("gradient", model).explain([tf.constant(x)], tf.tile([range(3)], [5, 1]))
    for index, row in enumerate(np.eye(3)):
        expected = tape_gradient(model, x, row)
        np.testing.assert_allclose(found.numpy()[:, index], expected, rtol=1e-12)


@functions
def test_marks_of_signs(name):
    """From the smallest to the largest numbers it is defined for."""
    operation, (low, high) = operation_of(name), FUNCTIONS[name][0]
    x = np.linspace(low, high, 300).reshape(-1, 3)
    for known in (False, True):
        y = operation.forward(tf.constant(np.abs(x) if known else x)).numpy()
        assert not operation.is_nonnegative((known,)) or np.nanmin(y) >= 0


EXACT = [name for name, (_, _, value) in FUNCTIONS.items() if value is not None]


@pytest.mark.parametrize("name", EXACT)
def test_chord(name):
    """Against long doubles, from differences of order one down to where they vanish."""
    operation, value = operation_of(name), FUNCTIONS[name][2]
    x = uniform(name, 400, 3)
    for size in (1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10):
        x0 = x + size * (uniform(name, 400, 3, seed=1) - x)
        found = chord(operation, tf.constant(x0), tf.constant(x)).numpy()
        end, start = x.astype(np.longdouble), x0.astype(np.longdouble)
        expected = ((value(end) - value(start)) / (end - start)).astype("float64")
        # Long doubles round small rises too, and corners have no other form than the quotient.
        corner = ("clip", "clip_at_zero", "maximum", "maximum_of_zero", "minimum", "threshold")
        eps = np.finfo("float64" if name in corner else np.longdouble).eps
        rounding = 4 * eps * np.abs(value(end) / (end - start)) + 1e-10 * np.abs(expected)
        assert (np.abs(found - expected) <= rounding + 1e-10).all(), size


@pytest.mark.parametrize("name", ["cube", "tan", "sinh", "arcsin"])
def test_chord_through_a_point_of_symmetry(name):
    """The derivatives at the ends are the same, and that in the middle is another."""
    operation, value = operation_of(name), FUNCTIONS[name][2]
    x = np.geomspace(1e-9, 0.9, 300).reshape(-1, 3)
    found = chord(operation, tf.constant(-x), tf.constant(x)).numpy()
    np.testing.assert_allclose(found, value(x) / x, rtol=1e-10)


@functions
def test_where_nothing_differs_the_chord_is_the_derivative(name):
    operation, x = operation_of(name), tf.constant(uniform(name, 50, 3))
    found = chord(operation, x, x).numpy()
    np.testing.assert_allclose(found, operation.derivative(x).numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", ["sqrt", "root", "power", "cbrt"])
def test_an_infinite_slope_at_rest_counts_as_zero(name):
    zero = tf.zeros((2, 3), "float64")
    operation = single_operation(
        [(3,)], lambda x: x**0.3 if name == "power" else FUNCTIONS[name][1](x)
    )
    np.testing.assert_array_equal(chord(operation, zero, zero), 0)
    # From there to another point it is a quotient as any other.
    one = tf.ones((2, 3), "float64")
    np.testing.assert_allclose(chord(operation, zero, one), 1, rtol=1e-12)


def test_logarithms_of_numbers_far_apart():
    x, x0 = np.array([[1e-10, 1.0, 1e200]]), np.array([[1.0, 1e-10, 1e-200]])
    found = chord(operation_of("log"), tf.constant(x0), tf.constant(x)).numpy()
    np.testing.assert_allclose(found, (np.log(x) - np.log(x0)) / (x - x0), rtol=1e-13)


def inside(name):
    """A network with the function between dense layers; what it reads is in its domain."""
    (low, high), function, _ = FUNCTIONS[name]

    def apply(x):
        h = layers.Dense(3, activation="tanh", **F64)(x)
        h = function(h * ((high - low) / 2) + (high + low) / 2)
        return layers.Dense(2, **F64)(h)

    model = network([(4,)], apply)
    set_random_weights(model, np.random.default_rng(0))
    return model


@pytest.mark.parametrize("variant", deep_lift.NAMES)
@functions
def test_deep_lift_is_complete(name, variant):
    model, (x, x0) = inside(name), np.random.default_rng(1).normal(size=(2, 3, 4))
    x0[0, :2] = x[0, :2]
    for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-5)):
        analyzer = create(variant, model, dtype=dtype)
        found = deep_lift.contributions(analyzer, x, x0)
        deep_lift.assert_complete(found, deep_lift.difference(model, x, x0), tolerance)


@functions
def test_relevance_passes(name):
    analyzer = create("lrp.z", inside(name))
    (rule,) = [
        rules_of(analyzer)[call.name]
        for call in analyzer.graph.calls
        if isinstance(call.operation, Activation) and call.operation.name != "tanh"
    ]
    assert rule == Pass()


PARTIAL = (
    "log log2 log10 log1p sqrt rsqrt reciprocal one_over tan arcsin arccos arccosh arctanh power "
    "powers root inverse_square"
).split()


@functions
def test_functions_that_are_not_defined_everywhere_are_rescaled(name):
    """Of D+ alone, such a function may have no value."""
    operation = operation_of(name)
    assert Rescale().handles(operation)
    assert RevealCancel().handles(operation) == (name not in PARTIAL)


def test_reveal_cancel_of_a_logarithm_stays_finite():
    """x0 + D- is negative, though x and x0 are not."""
    model = network([(2,)], lambda x: ops.log(layers.Dense(1, **F64)(x)))
    model.layers[1].set_weights([np.array([[1.0], [-1.0]]), np.array([1.0])])
    x, x0 = np.array([[5.0, 4.0]]), np.array([[0.0, 0.0]])
    found = deep_lift.contributions(create("deep_lift.reveal_cancel", model), x, x0)
    deep_lift.assert_complete(found, deep_lift.difference(model, x, x0))


# --- rectifiers ----------------------------------------------------------------------------------

RECTIFIERS = {
    "maximum": lambda x: ops.maximum(x, 0),
    "constant_first": lambda x: ops.maximum(0.0, x),
    "array": lambda x: ops.maximum(x, np.zeros(6)),
    "clip": lambda x: ops.clip(x, 0, 1e9),
}


@pytest.mark.parametrize(
    "name", ["guided_backprop", "deconvnet", "rect_grad", "lrp.alpha_2_beta_1"]
)
@pytest.mark.parametrize("kind", RECTIFIERS)
def test_a_limit_at_zero_is_a_rectifier(kind, name):
    """Every method treats it as the layer ReLU."""
    maps = []
    for rectifier in (RECTIFIERS[kind], layers.ReLU(**F64)):

        def function(x, rectifier=rectifier):
            h = rectifier(layers.Dense(6, **F64)(x))
            return layers.Dense(2, **F64)(layers.Dense(6, activation="tanh", **F64)(h))

        model = network([(5,)], function)
        set_random_weights(model, np.random.default_rng(0))
        analyzer = create(name, model, **({"percentile": 30} if name == "rect_grad" else {}))
        x = tf.constant(np.random.default_rng(1).normal(size=(3, 5)))
        maps.append(analyzer.explain([x], tf.constant([[0, 1]] * 3))[1].numpy())
        (call,) = [c for c in analyzer.graph.calls if c.operation.rectifies]
        assert call.operation.is_relu == (kind != "clip" or rectifier is not RECTIFIERS[kind])
        if name == "guided_backprop":
            assert rules_of(analyzer)[call.name] == GuidedReLU()
    assert_same(*maps)


@pytest.mark.parametrize("name", ["clip", "maximum", "minimum"])
def test_other_limits_are_no_rectifiers(name):
    operation = operation_of(name)
    assert operation.name == "clip" and not operation.rectifies
    analyzer = create("guided_backprop", inside(name))
    assert set(rules_of(analyzer).values()) == {Gradient()}


# --- what has no rule ----------------------------------------------------------------------------

STEPS = {
    "Round": ops.round,
    "Floor": ops.floor,
    "Ceil": ops.ceil,
    "Trunc": ops.trunc,
    "Sign": ops.sign,
    "Power": lambda x: x**x,
    "longer": lambda x: ops.maximum(x[:, :1], np.zeros(3)),
}


@pytest.mark.parametrize("kind", STEPS)
def test_others_are_refused_by_name_and_have_the_gradient_of_the_tape(kind):
    model = network([(3,)], lambda x: layers.Dense(2, **F64)(STEPS[kind](x)))
    set_random_weights(model.layers[-1], np.random.default_rng(0))
    label = {"longer": "Maximum", "Trunc": "Floor", "Power": "Pow"}.get(kind, kind)
    for name in ("lrp.z", "deep_taylor", "excitation_bp", "deep_lift.rescale", "pattern.net"):
        with pytest.raises(UnsupportedLayerError, match=rf"\({label}\)"):
            create(name, model)
    x = np.random.default_rng(0).uniform(0.2, 2, (2, 3))
    _, found = create("gradient", model).explain([tf.constant(x)], tf.constant([[0], [0]]))
    expected = tape_gradient(lambda x: model(x)[:, 0], x, 1.0) if kind in ("Power", "longer") else 0
    np.testing.assert_allclose(found.numpy()[:, 0], expected, rtol=1e-12)


def test_error_function_against_scipy():
    x = uniform("erf", 20, 3)
    for name, expected in (("erf", scipy.special.erf), ("erfc", scipy.special.erfc)):
        y = operation_of(name).forward(tf.constant(x)).numpy()
        np.testing.assert_allclose(y, expected(x), rtol=1e-12)
