"""Batch normalisation against the formulas of tests/helpers/reference_rules.py.

Rules run on single calls with any relevance; which rule an analyzer gives a call is read from its
assignment, so that nearly nothing has to be compiled.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers.networks import assert_same, set_random_weights
from tests.helpers.reference_rules import dense_form
from tests.helpers.single_calls import (
    F64,
    FORMULAS,
    assert_linear,
    draw,
    network,
    propagate,
    relevance_for,
    rows_of,
    signs,
    single_operation,
)
from tfexplain import create_analyzer
from tfexplain.canonizers import canonize
from tfexplain.graph import trace
from tfexplain.rules import Epsilon, Flat, WSquare, ZBox, ZPlus

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
    # A name means the activated output; with closed units the tensor before it has less relevance.
    readout = create_analyzer("gradient", pairs).readout
    assert readout("norm_2") is readout("hidden")
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
