"""Norms of layers under LRP-gamma against brute force, their closed form and the bound."""

import numpy as np
import pytest
from keras import layers

from tests.helpers.networks import create, randomize, samples, sequential
from tfexplain.audits import layer_norms

GAMMAS = (0.0, 0.1, 1.0, 50.0)


def chain(use_bias):
    return randomize(
        sequential(
            (7, 7, 2),
            layers.Conv2D(4, 3, activation="relu", use_bias=use_bias, name="conv1"),
            layers.MaxPooling2D(2, padding="same", name="pool"),
            layers.Conv2D(5, 2, padding="same", use_bias=use_bias, name="conv2"),
            layers.ReLU(name="relu2"),
            layers.AveragePooling2D(1, name="average"),
            layers.Flatten(name="flatten"),
            layers.Dense(9, activation="relu", use_bias=use_bias, name="hidden"),
            layers.Dense(4, use_bias=use_bias, name="logits"),
        )
    )


@pytest.fixture(scope="module")
def network():
    return chain(False)


@pytest.fixture(scope="module")
def x(network):
    return np.abs(samples(network, count=4))


@pytest.fixture(scope="module")
def found(network, x):
    return layer_norms({str(g): create("lrp.gamma", network, gamma=g) for g in GAMMAS}, x)


def test_closed_form_is_what_the_rule_does(found):
    assert found.measured.shape == (4, 4, 4)
    np.testing.assert_allclose(found.measured, found.closed_form, rtol=1e-10)
    assert (found.measured > 1.01).any()


def test_brute_force(network, x, found):
    """The dense layer before the last, from its weights alone."""
    analyzer = create("lrp.gamma", network, gamma=1.0)
    a = analyzer.propagate(x, np.zeros((4, 1, 4)), layers=["flatten"])["flatten"]
    assert a.shape == (4, 1, 45)
    values = [
        layer(x) for layer in [lambda v: _up_to(network, "flatten")(v), _up_to(network, "hidden")]
    ]
    flat, hidden = (np.asarray(v, "float64") for v in values)
    contributions = flat[:, :, None] * network.get_layer("hidden").kernel.numpy()
    weighted = contributions + np.maximum(contributions, 0)
    shares = np.abs(weighted).sum(1) / np.abs(weighted.sum(1))
    expected = np.where(hidden > 0, shares, 0).max(axis=1)
    np.testing.assert_allclose(
        found.measured.sel(analyzer="1.0", layer="hidden"), expected, rtol=1e-5
    )
    np.testing.assert_array_equal(
        found.active.sel(analyzer="1.0", layer="hidden"), (hidden > 0).sum(1)
    )


def _up_to(network, name):
    import keras

    return keras.Model(network.inputs[0], network.get_layer(name).output)


def test_norms_fall_with_gamma_and_the_worst_output_stays(found):
    assert (found.closed_form.diff("analyzer") < 0).all()
    assert (found.worst == found.worst[0]).all() and (found.c == found.c[0]).all()
    # The norms of what the rule returns are largest at the same outputs.
    np.testing.assert_array_equal(found.measured_worst, found.worst)
    assert (found.closed_form.sel(analyzer="50.0") < 1.05).all()


def test_the_bound_holds_and_is_the_product(found):
    np.testing.assert_allclose(found.bound, found.closed_form.prod("layer"))
    assert (found.norm <= found.bound * (1 + 1e-12)).all()
    assert (found.bound.diff("analyzer") < 0).all()


def test_the_norm_is_that_of_all_maps(network, x, found):
    maps = create("lrp.gamma", network, gamma=1.0, head="one").analyze(x, target="all")
    expected = np.abs(maps).reshape(4, 4, -1).sum(axis=2).max(axis=1)
    np.testing.assert_allclose(found.norm.sel(analyzer="1.0"), expected, rtol=1e-10)


def test_a_bias_makes_the_closed_form_a_bound(x):
    network = chain(True)
    found = layer_norms(create("lrp.gamma", network), x)
    assert (found.measured <= found.closed_form * (1 + 1e-10)).all()
    assert (found.measured < 0.99 * found.closed_form).any()
    ignored = layer_norms(create("lrp.gamma", network, bias="ignore"), x)
    np.testing.assert_allclose(ignored.measured, ignored.closed_form, rtol=1e-10)


def test_some_columns_hold_the_worst(network, x, found):
    few = layer_norms(create("lrp.gamma", network, gamma=1.0), x, columns=2)
    np.testing.assert_allclose(few.measured[0], found.measured.sel(analyzer="1.0"), rtol=1e-10)


def test_outputs_that_are_all_bias_are_not_active(x):
    """Black corners of digits: without the bias p = n = 0, which is no number for c."""
    network, black = chain(True), x.copy()
    network.get_layer("conv1").bias.assign([0.5, 0.5, -0.5, 0.0])
    black[:, :5] = 0
    found = layer_norms(create("lrp.gamma", network, bias="ignore"), black)
    assert np.isfinite(found.c).all() and np.isfinite(found.bound).all()
    np.testing.assert_allclose(found.measured, found.closed_form, rtol=1e-10)
    counted = layer_norms(create("lrp.gamma", network), black)
    first = {"analyzer": 0, "layer": 0}
    assert (found.active[first] < counted.active[first]).all()


def test_other_rules_have_no_closed_form(network, x):
    found = layer_norms({"z": create("lrp.z", network), "plus": create("lrp.z_plus", network)}, x)
    assert np.isfinite(found.closed_form.sel(analyzer="z")).all()
    assert found.closed_form.sel(analyzer="plus").isnull().all()
    assert found.bound.sel(analyzer="plus").isnull().all()
    # Positive shares add up to one.
    np.testing.assert_allclose(found.measured.sel(analyzer="plus"), 1, rtol=1e-10)


def test_branches_have_no_product(x):
    import keras

    inputs = keras.Input((7, 7, 2))
    h = layers.Conv2D(3, 3, padding="same", activation="relu", name="conv1")(inputs)
    h = layers.Add()([h, layers.Conv2D(3, 3, padding="same", activation="relu", name="conv2")(h)])
    model = randomize(keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten()(h))))
    found = layer_norms(create("lrp.gamma", model), x)
    assert found.bound.isnull().all() and np.isfinite(found.measured).all()


def test_wrong_calls(network, x):
    with pytest.raises(ValueError, match="columns must be a positive integer"):
        layer_norms(create("lrp.gamma", network), x, columns=0)
    with pytest.raises(ValueError, match="no single reversed network"):
        layer_norms(create("smoothgrad", network), x)


def test_a_relu_behind_a_pooling_closes_negative_outputs(x):
    model = randomize(
        sequential(
            (7, 7, 2),
            layers.Conv2D(4, 3, use_bias=False, name="conv"),
            layers.MaxPooling2D(2, name="pool"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flatten"),
            layers.Dense(4, use_bias=False, name="logits"),
        )
    )
    found = layer_norms(create("lrp.gamma", model), x)
    np.testing.assert_allclose(found.measured, found.closed_form, rtol=1e-10)
    outputs = model.get_layer("conv")(x).numpy()
    assert (outputs < 0).any()
    np.testing.assert_array_equal(
        found.active.sel(layer="conv")[0], (outputs > 0).sum(axis=(1, 2, 3))
    )


def test_several_baselines_have_several_chains(network, x):
    analyzer = create("deep_lift.rescale", network, background=x[:2])
    with pytest.raises(ValueError, match="averages over 2 baselines"):
        layer_norms(analyzer, x)
