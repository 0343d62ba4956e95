"""Where relevance vanishes for certain: what is left out there changes no number."""

import keras
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keras import layers

from tests.helpers.networks import assert_same, create, randomize, samples, sequential
from tests.helpers.random_graphs import EVERY, build, examples, recipes
from tests.reverse.test_graphs import vectors
from tfexplain.reverse import network as module


def names(analyzer, start=None):
    network = analyzer.network(start)
    return {call.name for call in network.vanishing}


@pytest.fixture(scope="module")
def network():
    return randomize(
        sequential(
            (8, 8, 2),
            layers.Conv2D(4, 3, activation="relu", name="fused"),
            layers.Conv2D(4, 2, name="pooled_first"),
            layers.MaxPooling2D(2, name="pool"),
            layers.ReLU(name="relu"),
            layers.ReLU(negative_slope=0.1, name="leaky"),
            layers.Conv2D(3, 1, name="before_tanh"),
            layers.Activation("tanh", name="tanh"),
            layers.Flatten(name="flatten"),
            layers.Dense(6, name="before_relu6"),
            layers.ReLU(max_value=6, name="relu6"),
            layers.Dense(3, name="logits"),
        )
    )


def test_calls_in_front_of_a_relu(network):
    found = names(create("lrp.gamma", network))
    assert {"fused", "before_relu6"} <= found
    assert not {"before_tanh", "logits", "tanh"} & found


def test_a_leaky_relu_behind_lets_relevance_of_zeros_through(network):
    """At 0 it is 0, so that "pass" hands on what arrives there."""
    assert "pooled_first" not in names(create("lrp.gamma", network))
    straight = sequential(
        (8, 8, 2),
        layers.Conv2D(4, 2, name="conv"),
        layers.MaxPooling2D(2, name="pool"),
        layers.ReLU(name="relu"),
        layers.Flatten(name="flatten"),
        layers.Dense(3, name="logits"),
    )
    assert {"conv", "pool"} <= names(create("lrp.gamma", straight))
    # Flat shares do not depend on the value of an input.
    assert "conv" not in names(create("lrp.flat", straight))
    assert "conv" not in names(create("lrp.gamma", straight), start="relu")


def test_relevance_given_at_zeros_is_not_lost(network):
    """From inside the network anything may be given, also where a unit is closed."""
    x = samples(network, 2)
    analyzer = create("lrp.gamma", network)
    assert "fused" not in names(analyzer, start="fused")
    relevance = np.ones((2, 1, 6, 6, 4))
    found = analyzer.propagate(x, relevance, start="fused")["input"]
    kernel, bias = network.get_layer("fused").get_weights()
    z = keras.ops.conv(x, kernel.astype("float64")) + bias
    assert (np.asarray(z) < 0).any()
    open_ = np.where(np.asarray(z) > 0, 1.0, 0.0)[:, None]
    part = analyzer.propagate(x, open_, start="fused")["input"]
    assert np.abs(found - part).max() > 0.01 * np.abs(found).max()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 3.0, "bias": "ignore"},
        {"bias": "full", "max_pool": "average"},
        {"add": "proportional", "batch_norm": "rule"},
        {"input_rule": "w_square"},
    ],
    ids=str,
)
@example(recipe=EVERY, seed=0)
@examples(3)
@given(recipe=recipes(min_blocks=3), seed=st.integers(0, 99))
def test_left_out_branches_change_nothing(options, recipe, seed):
    built = build(recipe)
    analyzer = create("lrp.gamma", built.model, **options)
    given_ = vectors(built, analyzer, 2, seed)
    found = analyzer.propagate(built.x, given_)["input"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "vanishing_below_zero", lambda *_: set())
        whole = create("lrp.gamma", built.model, **options)
        expected = whole.propagate(built.x, given_)["input"]
    if np.any(expected):
        assert_same(found, expected, 1e-9)
