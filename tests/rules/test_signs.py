"""Soundness of the sign analysis: what is marked as >= 0 is >= 0, whatever weights and inputs.

Deep Taylor chooses its rules by these marks and all rules skip work where they are set, so that a
wrong mark is a wrong map.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers, ops

from tests.helpers.layers import (
    ACTIVATIONS,
    CASES,
    ENTRIES,
    IMAGE,
    LINEAR,
    POOLING,
    SEQUENCE,
    STRUCTURE,
)
from tests.helpers.networks import set_random_weights
from tests.helpers.random_graphs import build, recipes
from tfexplain import create_analyzer
from tfexplain.canonizers import canonize
from tfexplain.graph import trace
from tfexplain.layer_types import OPERATIONS
from tfexplain.operations import Activation, Product, Sum
from tfexplain.operations.elementwise import KNOWN_ACTIVATIONS, activation_of
from tfexplain.rules import WSquare, ZPlus

F64 = {"dtype": "float64"}


def check_marks(model, x, fold=True):
    """Runs the canonical network; returns the calls whose outputs are marked, and the output.

    Every marked tensor has to be >= 0 on the way.
    """
    graph = canonize(trace(model), fold)
    tensors = dict(zip(graph.inputs, [tf.constant(x)], strict=True))
    marked = set()
    for call in graph.calls:
        inputs = [tensors[node] for node in call.inputs]
        for tensor, sign in zip(inputs, call.nonnegative, strict=True):
            assert not sign or tf.reduce_min(tensor) >= 0, f"an input of {call.name}"
        results = call.operation.forward(*inputs)
        results = list(results) if isinstance(results, list | tuple) else [results]
        tensors.update(zip(call.outputs, results, strict=True))
        if call.operation.is_nonnegative(call.nonnegative):
            marked.add(call)
            for tensor in results:
                assert tf.reduce_min(tensor) >= 0, f"the output of {call.name}"
    return graph, marked, tensors[graph.outputs[0]].numpy()


def behind_relu(function, shape, samples=3):
    """A network that applies a function to a tensor of known sign; random weights."""
    inputs = keras.Input(shape, batch_size=samples, **F64)
    model = keras.Model(inputs, function(layers.ReLU(name="known", **F64)(inputs)))
    generator = np.random.default_rng(1)
    for layer in model.layers:
        set_random_weights(layer, generator)
    return model, 2 * generator.normal(size=(samples, *shape))


# --- random networks and every layer -------------------------------------------------------------


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    recipe=recipes(),
    fold=st.booleans(),
    size=st.sampled_from((0.1, 1.0, 30.0)),
)
def test_marks_of_random_networks(recipe, fold, size):
    built = build(recipe)
    # Weights of the recipe lean to open rectifiers; these do not.
    generator = np.random.default_rng(recipe.seed)
    for layer in built.model.layers:
        set_random_weights(layer, generator)
    graph, marked, _ = check_marks(built.model, size * built.x, fold)
    rectifiers = {
        call
        for call in graph.calls
        if isinstance(call.operation, Activation) and call.operation.name == "relu"
    }
    assert rectifiers <= marked


@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in LINEAR], ids=lambda case: case.id
)
def test_marks_of_a_piece_behind_a_rectifier(case):
    model, x = behind_relu(case.apply, case.shape)
    graph, marked, _ = check_marks(model, x)
    if case in POOLING or case in STRUCTURE:
        # The analysis is not silent where it can know: a maximum, an average, a copy.
        assert graph.calls[-1] in marked


@pytest.mark.parametrize("case", ACTIVATIONS, ids=lambda case: case.id)
def test_marks_of_an_activation_of_any_sign(case):
    """Here the input is a dense layer whose outputs spread over a wide range."""
    inputs = keras.Input(case.shape, **F64)
    model = keras.Model(inputs, case.apply(inputs))
    generator = np.random.default_rng(2)
    for layer in model.layers:
        set_random_weights(layer, generator)
    x = generator.normal(size=(4, *case.shape)) * np.reshape([0.01, 1, 5, 50], (4, 1, 1))
    check_marks(model, x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [name for name in KNOWN_ACTIVATIONS if name != "prelu"])
def test_marks_of_every_known_activation(name, dtype):
    """From values that vanish in rounding to some that overflow."""
    function = getattr(keras.activations, name, None) or getattr(ops, name)
    options = (0.5, -0.3) if name == "threshold" else ()  # the limit, and what is below it
    # Some functions have no value for some numbers.
    activation = activation_of(function, None, 2, lambda x: function(x, *options))
    size = np.concatenate([[0.0], np.logspace(-9, 3, 61)]).astype(dtype)
    for x, known in ((np.concatenate([-size, size]), False), (size, True)):
        y = activation.forward(tf.constant(x[None])).numpy()
        assert not activation.is_nonnegative((known,)) or np.nanmin(y) >= 0


def test_linear_layers_are_never_marked():
    """Their kernels may have any sign."""
    for entry in ENTRIES:
        layer = entry.factory()
        assert not OPERATIONS[type(layer)].kind(layer).is_nonnegative((True,)), entry.id


# --- traps ---------------------------------------------------------------------------------------


def dense(h, activation=None):
    return layers.Dense(h.shape[-1], activation=activation, **F64)(h)


class ShiftedReLU(layers.ReLU):
    """Inherits the name and the options of a rectifier, but not what it computes."""

    def call(self, x):
        return super().call(x) - 1


def named(name, function):
    """A user's function with the name of one that Keras has."""
    function.__name__ = name
    return layers.Activation(function, **F64)


def resized(interpolation):
    return lambda h: layers.UpSampling2D(2, interpolation=interpolation, **F64)(h)


def shifted_norm(h):
    """Scales of both signs, as training makes them."""
    return layers.BatchNormalization(**F64)(h)


# Functions of a tensor that is >= 0, which make negative numbers from it.
TRAPS = {
    # kernels of interpolation that overshoot
    "bicubic": (resized("bicubic"), IMAGE),
    "lanczos3": (resized("lanczos3"), IMAGE),
    "lanczos5": (resized("lanczos5"), IMAGE),
    # merges
    "subtract": (lambda h: layers.Subtract(**F64)([h, dense(h, "relu")]), SEQUENCE),
    "ops.subtract": (lambda h: h - dense(h, "relu"), SEQUENCE),
    "add_of_one_signed": (lambda h: layers.Add(**F64)([h, dense(h)]), SEQUENCE),
    "average_of_one_signed": (lambda h: layers.Average(**F64)([h, dense(h)]), SEQUENCE),
    "multiply_by_one_signed": (lambda h: layers.Multiply(**F64)([h, dense(h)]), SEQUENCE),
    "concatenate_one_signed": (lambda h: layers.Concatenate(**F64)([h, dense(h)]), SEQUENCE),
    "stack_one_signed": (lambda h: ops.stack([h, dense(h)], axis=1), SEQUENCE),
    "stack_a_constant": (
        lambda h: ops.stack([h, -np.ones((3, *SEQUENCE))], axis=1),
        SEQUENCE,
    ),
    "concatenate_a_constant": (
        lambda h: ops.concatenate([h, -np.ones((3, *SEQUENCE))], axis=1),
        SEQUENCE,
    ),
    # scalings
    "rescaling_offset": (lambda h: layers.Rescaling(1.0, offset=-0.5, **F64)(h), SEQUENCE),
    "rescaling_factor": (lambda h: layers.Rescaling(-1.0, **F64)(h), SEQUENCE),
    "normalization": (
        lambda h: layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 1, 9], **F64)(h),
        SEQUENCE,
    ),
    "batch_norm": (shifted_norm, SEQUENCE),
    "batch_norm_of_pooling": (
        lambda h: shifted_norm(layers.MaxPooling1D(2, **F64)(h)),
        SEQUENCE,
    ),
    "minus_constant": (lambda h: h - 0.5, SEQUENCE),
    "constant_minus": (lambda h: 1.0 - h, SEQUENCE),
    "times_array": (lambda h: h * np.array([1.0, -2.0, 3.0]), SEQUENCE),
    "negative": (lambda h: -h, SEQUENCE),
    "padding_with_minus_one": (
        lambda h: ops.pad(h, [[0, 0], [1, 1], [0, 0]], constant_values=-1.0),
        SEQUENCE,
    ),
    # activations
    "leaky_relu": (lambda h: layers.LeakyReLU(**F64)(dense(h)), SEQUENCE),
    "prelu": (lambda h: layers.PReLU(**F64)(dense(h)), SEQUENCE),
    "relu_with_a_slope": (lambda h: layers.ReLU(negative_slope=0.1, **F64)(dense(h)), SEQUENCE),
    # Below its threshold it is slope (x - threshold) < 0, also for x > 0.
    "relu_with_slope_and_threshold": (
        lambda h: layers.ReLU(negative_slope=0.5, threshold=1.0, **F64)(h),
        SEQUENCE,
    ),
    "function_with_slope_and_threshold": (
        lambda h: keras.activations.relu(h, negative_slope=0.5, threshold=1.0),
        SEQUENCE,
    ),
    "function_with_a_threshold_below_zero": (
        lambda h: keras.activations.relu(dense(h), threshold=-1.0),
        SEQUENCE,
    ),
    "fused_layer_with_a_slope": (
        lambda h: dense(h, layers.LeakyReLU(negative_slope=0.1, **F64)),
        SEQUENCE,
    ),
    "elu": (lambda h: layers.ELU(**F64)(dense(h)), SEQUENCE),
    "silu": (lambda h: ops.silu(dense(h)), SEQUENCE),
    "subclass_of_relu": (lambda h: ShiftedReLU(**F64)(h), SEQUENCE),
    "own_function_named_relu": (
        lambda h: named("relu", lambda x: keras.activations.relu(x) - 1)(h),
        SEQUENCE,
    ),
    # As in SchNet, whose shifted softplus is 0 at 0.
    "own_function_named_softplus": (
        lambda h: named("softplus", lambda x: ops.softplus(x) - np.log(2.0))(dense(h)),
        SEQUENCE,
    ),
    "a_dense_layer": (dense, SEQUENCE),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_makes_negative_numbers_is_not_marked(trap):
    function, shape = TRAPS[trap]
    model, x = behind_relu(function, shape)
    graph = canonize(trace(model))
    last = graph.calls[-1]
    assert not last.operation.is_nonnegative(last.nonnegative)
    _, _, output = check_marks(model, x)
    assert output.min() < -1e-3  # or it would be no trap


def test_coefficients_of_a_sum():
    assert Sum("Average", [0.5, 0.5], None).is_nonnegative((True, True))
    assert not Sum("Average", [0.5, 0.5], None).is_nonnegative((True, False))
    assert not Sum("Average", [0.5, -0.5], None).is_nonnegative((True, True))
    assert not Product("Multiply", None).is_nonnegative((False, False))


# --- what has to be known ------------------------------------------------------------------------

# Functions of a tensor >= 0 that keep its sign, or make any tensor >= 0.
KNOWN = {
    "bilinear": (resized("bilinear"), IMAGE),
    "nearest": (resized("nearest"), IMAGE),
    "add": (lambda h: layers.Add(**F64)([h, dense(h, "relu")]), SEQUENCE),
    "average": (lambda h: layers.Average(**F64)([h, dense(h, "sigmoid")]), SEQUENCE),
    "multiply": (lambda h: layers.Multiply(**F64)([h, dense(h, "softplus")]), SEQUENCE),
    "concatenate": (lambda h: layers.Concatenate(**F64)([h, dense(h, "softmax")]), SEQUENCE),
    "rescaling": (lambda h: layers.Rescaling(2.0, offset=0.5, **F64)(h), SEQUENCE),
    "leaky_relu": (lambda h: layers.LeakyReLU(**F64)(h), SEQUENCE),
    "relu": (lambda h: layers.ReLU(threshold=0.5, max_value=2.0, **F64)(dense(h)), SEQUENCE),
    "mean": (functools.partial(ops.mean, axis=1), SEQUENCE),
    "padding": (lambda h: ops.pad(h, [[0, 0], [1, 1], [0, 0]]), SEQUENCE),
}


@pytest.mark.parametrize("known", KNOWN)
def test_what_keeps_the_sign_is_marked(known):
    function, shape = KNOWN[known]
    graph, marked, _ = check_marks(*behind_relu(function, shape))
    assert graph.calls[-1] in marked


@pytest.mark.parametrize(
    ("between", "rule"),
    [
        (lambda h: layers.ReLU(**F64)(h), ZPlus()),
        (lambda h: layers.LeakyReLU(**F64)(h), WSquare()),
        (lambda h: layers.Rescaling(1.0, -1.0, **F64)(layers.ReLU(**F64)(h)), WSquare()),
        # Folded into the layer behind it, the normalisation has an input >= 0.
        (lambda h: layers.BatchNormalization(**F64)(layers.ReLU(**F64)(h)), ZPlus()),
        (lambda h: layers.ReLU(**F64)(layers.BatchNormalization(**F64)(h)), ZPlus()),
    ],
    ids=["relu", "leaky_relu", "rescaling", "relu_then_norm", "norm_then_relu"],
)
def test_deep_taylor_follows_the_marks(between, rule):
    inputs = keras.Input((3,), **F64)
    last = layers.Dense(2, name="last", **F64)
    model = keras.Model(inputs, last(between(dense(inputs))))
    analyzer = create_analyzer("deep_taylor", model)
    rules = {call.name: rule for call, rule in analyzer.assignment.rules.items()}
    assert rules["last"] == rule
