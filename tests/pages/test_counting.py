"""Multiply-adds of tiny networks, against those by hand."""

import keras
import pytest
import tensorflow as tf

import tfexplain
from benchmarks import counting
from benchmarks.counting import Work
from tfexplain.compilation import for_one_vector

BATCH = 2
# Multiply-adds of the layers of `network`: elements of the output times fan-in.
FIRST, DEPTHWISE, SECOND = BATCH * 8 * 8 * 4 * 27, BATCH * 6 * 6 * 4 * 9, BATCH * 4 * 4 * 5 * 36
DENSE = BATCH * 5 * 80
ALL = FIRST + DEPTHWISE + SECOND + DENSE


def network(activation="relu"):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, padding="same", activation=activation),
            keras.layers.DepthwiseConv2D(3, activation=activation),
            keras.layers.Conv2D(5, 3, activation=activation),
            keras.layers.Flatten(),
            keras.layers.Dense(5, activation="softmax"),
        ]
    )


def images():
    return tf.TensorSpec((BATCH, 8, 8, 3), "float32")


def explaining(name, model, **options):
    analyzer = tfexplain.create_analyzer(name, model, **options)
    targets = tf.TensorSpec((BATCH, 1), "int32")
    return analyzer, counting.traced(for_one_vector(analyzer.explain), [images()], targets)


def test_a_forward_pass_is_counted_by_hand():
    model = network()
    assert counting.multiply_adds(counting.traced(model, images())) == Work(forward=ALL)


@pytest.mark.parametrize(
    ("name", "first", "later", "logits"),
    [
        ("gradient", (0, 1), (0, 1), (0, 1)),
        ("lrp.z", (0, 1), (0, 1), (0, 1)),
        ("lrp.z_plus", (2, 2), (1, 1), (1, 1)),
        ("lrp.gamma", (2, 2), (1, 1), (1, 2)),
        ("lrp.alpha_2_beta_1", (2, 4), (1, 2), (2, 2)),
        ("lrp.w_square", (0, 1), (0, 1), (0, 1)),
        ("deep_lift.rescale", (0, 1), (0, 1), (0, 1)),
    ],
)
def test_passes_needed_depend_on_rules_and_signs(name, first, later, logits):
    analyzer = tfexplain.create_analyzer(name, network())
    limit = counting.limit(analyzer.network(), BATCH)
    work = FIRST, DEPTHWISE + SECOND, DENSE
    forward, transposed = (
        sum(amount * times for amount, times in zip(work, of_kind, strict=True))
        for of_kind in zip(first, later, logits, strict=True)
    )
    assert limit.forward == pytest.approx(1 + forward / ALL)
    assert limit.transposed == pytest.approx(transposed / ALL)


def test_signed_inputs_of_hidden_layers_need_more():
    analyzer = tfexplain.create_analyzer("lrp.z_plus", network("silu"))
    limit = counting.limit(analyzer.network(), BATCH)
    assert (limit.forward, limit.transposed) == pytest.approx((3, 2))


def test_reveal_cancel_needs_a_sum_and_both_multipliers():
    analyzer = tfexplain.create_analyzer("deep_lift.reveal_cancel", network())
    limit = counting.limit(analyzer.network(), BATCH)
    # Behind the dense layer nothing reveals.
    hidden = (ALL - DENSE) / ALL
    assert limit.forward == pytest.approx(1 + hidden)
    assert limit.transposed == pytest.approx(1 + hidden)


REDISTRIBUTING = ["lrp.z_plus", "lrp.gamma", "lrp.alpha_2_beta_1"]


@pytest.mark.parametrize("name", ["gradient", "lrp.z", "deep_lift.reveal_cancel", *REDISTRIBUTING])
def test_no_method_runs_less_than_it_needs(name):
    analyzer, function = explaining(name, network())
    counted = counting.multiply_adds(function) / ALL
    limit = counting.limit(analyzer.network(), BATCH)
    assert counted.forward >= limit.forward - 1e-9
    assert counted.transposed >= limit.transposed - 1e-9


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("name", REDISTRIBUTING)
def test_signs_cost_what_they_need(name, activation):
    analyzer, function = explaining(name, network(activation))
    counted = counting.multiply_adds(function) / ALL
    limit = counting.limit(analyzer.network(), BATCH)
    assert (counted.forward, counted.transposed) == pytest.approx((limit.forward, limit.transposed))


def test_the_gradient_runs_what_it_needs():
    _, function = explaining("gradient", network())
    assert counting.multiply_adds(function) / ALL == Work(1, 1)


def test_loops_are_not_counted():
    _, function = explaining("smoothgrad", network())
    with pytest.raises(ValueError, match="runs functions"):
        counting.multiply_adds(function)


def test_unknown_products_are_not_counted():
    function = counting.traced(lambda x: tf.einsum("bijc,bijd->bcd", x, x), images())
    with pytest.raises(ValueError, match="Einsum .* are not known"):
        counting.multiply_adds(function)


def test_rules_without_an_entry_are_refused():
    network_ = tfexplain.create_analyzer("gradient", network()).network()
    call = next(call for call in network_.graph.calls if call.operation.layers)
    network_.rules = {**network_.rules, call: tfexplain.rules.GuidedReLU()}
    with pytest.raises(ValueError, match="GuidedReLU.*is not known"):
        counting.needed(network_, call)


def test_derived_kernels_are_those_that_the_model_does_not_have():
    model = network()
    kernels = sum(4 * layer.kernel.numpy().size for layer in model.layers if layer.weights)
    assert counting.derived_bytes(explaining("gradient", model)[1], model) == 0
    first = 4 * model.layers[0].kernel.numpy().size
    # The first layer has inputs of both signs, and so W- beside W+.
    assert counting.derived_bytes(explaining("lrp.z_plus", model)[1], model) == kernels + first
