"""Networks of one call: rules against their formulas, and layers against their receptive field.

The formulas are those of `reference_rules.py`. innvestigate's reference files explain the layers of
`LAYERS`; `test_closed_formulas.py` checks the same without the files.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers.reference_rules import relevance_of_batch
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


# --- the receptive field of one layer -------------------------------------------------------------

LAYERS = {
    "Dense": lambda: layers.Dense(5),
    "Dense_relu": lambda: layers.Dense(5, activation="relu"),
    "Conv2D": lambda: layers.Conv2D(5, 3),
    "Conv2D_relu": lambda: layers.Conv2D(5, 3, activation="relu"),
    "AveragePooling2D": lambda: layers.AveragePooling2D(2),
    "MaxPooling2D": lambda: layers.MaxPooling2D(2),
}
# Noise of standard deviation 1 opens and closes gates and moves the maximum, so that SmoothGrad
# depends on the draws; `check_draws` says what can be said.
NOISY = ("Conv2D_relu", "Dense_relu", "MaxPooling2D")


class Field:
    """The receptive field of the largest output of one sample.

    Attributes:
        x: Its inputs, flat.
        w: Their weights (kernel layers only).
        y: The output.
        place: Index of the field in the input.
    """

    def __init__(self, layer, x, kernel):
        self.layer = layer
        if layer.startswith("Dense"):
            size, self.kernels = 1, kernel.reshape(1, 1, *kernel.shape)
        elif layer.startswith("Conv"):
            size, self.kernels = 3, kernel
        else:
            size, self.kernels = 2, None
        step = size if self.kernels is None else 1
        best = None
        for row in range(0, x.shape[0] - size + 1, step):
            for column in range(0, x.shape[1] - size + 1, step):
                window = (slice(row, row + size), slice(column, column + size))
                outputs = self._outputs(x[window])
                index = int(np.argmax(outputs))
                if best is None or outputs[index] > best[0]:
                    best = (outputs[index], window, index)
        self.y, window, index = best
        if self.kernels is None:
            self.place = (*window, slice(index, index + 1))
            self.w = None
        else:
            self.place = (*window, slice(None))
            self.w = self.kernels[..., index].reshape(-1)
        self.x = x[self.place].reshape(-1)
        self.z = None if self.w is None else self.x * self.w

    def _outputs(self, window):
        if self.layer == "AveragePooling2D":
            return window.mean(axis=(0, 1))
        if self.layer == "MaxPooling2D":
            return window.max(axis=(0, 1))
        return np.tensordot(window, self.kernels, axes=3)

    def share(self, parts):
        """Returns y shared in proportion to `parts`; 0 where they add up to 0."""
        total = parts.sum()
        return parts * 0 if total == 0 else parts * self.y / total


def check_draws(relevance, field):
    """Checks SmoothGrad of 64 draws of standard deviation 1 at one of the layers `NOISY`.

    The share of open gates, or of wins, has a standard deviation of at most 1/16, so that it lies
    within 1/4 of its expectation.
    """
    inside = relevance[field.place].reshape(-1)
    assert np.count_nonzero(relevance) == np.count_nonzero(inside)
    generator = np.random.default_rng(19)
    if field.w is None:
        shares = inside
        draws = field.x + generator.normal(size=(20000, 4))
        expected = np.bincount(draws.argmax(axis=1), minlength=4) / len(draws)
        np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
    else:
        # All weights of the field pass the same gate.
        shares = inside / field.w
        np.testing.assert_allclose(shares, shares[0], rtol=1e-5)
        noise = generator.normal(size=20000)
        expected = np.mean(field.y + noise * np.linalg.norm(field.w) > 0)
        assert shares[0] < 1
    np.testing.assert_allclose(64 * shares, np.round(64 * shares), rtol=0, atol=1e-4)
    np.testing.assert_allclose(shares, expected, rtol=0, atol=0.25)
