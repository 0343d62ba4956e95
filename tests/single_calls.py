"""Rules on single calls with any relevance, against the formulas of tests/reference_rules.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.reference_rules import relevance_of_batch
from tfexplain.canonizers import canonize
from tfexplain.graph import trace
from tfexplain.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Proportional,
    RecordedCall,
    WSquare,
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
    return {call.name: rule for call, rule in analyzer.describe().rules.items()}


def rows_of(analyzer):
    """Pairs of call and operation, as `describe` prints them."""
    return [(call, operation) for call, operation, _ in analyzer.describe().rows]


def conv(name, **options):
    return layers.Conv1D(2, 2, name=name, **F64, **options)


def dense(name, **options):
    return layers.Dense(2, name=name, **F64, **options)
