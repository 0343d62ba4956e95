"""Identities that hold on every network, checked on small random ones."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.helpers.networks import assert_same
from tests.helpers.random_graphs import (
    EVERY,
    Linear,
    Nested,
    Padding,
    Pool,
    Recipe,
    Shared,
    build,
    examples,
    recipes,
)
from tfexplain import create_analyzer
from tfexplain.operations import Affine, AveragePooling, Sum
from tfexplain.operations import Linear as LinearOperation

# Largest error relative to the largest value.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}

# Every LRP method that is linear in the output relevance, with options that need no input range.
LINEAR_METHODS = {
    "lrp.z": {},
    "lrp.epsilon": {"epsilon": 0.01},
    "lrp.gamma": {},
    "lrp.alpha_1_beta_0": {},
    "lrp.alpha_2_beta_1": {},
    "lrp.z_plus": {},
    "lrp.w_square": {},
    "lrp.flat": {},
    "lrp.sequential_preset_a": {},
    "lrp.sequential_preset_b_flat": {},
    "lrp.composite": {"composite": "epsilon_gamma_box", "low": -5.0, "high": 5.0},
    "deep_taylor": {},
    "excitation_bp": {},
}


def network_for(name, recipe):
    """Builds a network of a method's own; where its first layer has a rule, there is one."""
    # The name enters the seed, so that each method meets a network of its own.
    blocks = recipe.blocks
    if "low" in LINEAR_METHODS[name]:
        blocks = (Linear("dense", 3), *blocks)
    return build(replace(recipe, seed=recipe.seed + sum(map(ord, name)), blocks=blocks))


def assert_same_if_open(found, expected, tolerance):
    """Compares maps of a network that was drawn, unless all its rectifiers are closed."""
    assume(np.any(expected))
    assert_same(found, expected, tolerance)


def vectors(built, analyzer, count=3, seed=0):
    shape = (len(built.x), count, *analyzer.output_shape)
    return np.random.default_rng(seed).normal(size=shape).astype(built.x.dtype)


def logits(recipe):
    """The network of a recipe without its softmax: same layers, same weights."""
    return build(replace(recipe, softmax=False)).model


def tape_gradients(model, x):
    """Gradients of all outputs by TensorFlow: (batch, num_outputs, *shape)."""
    x = tf.constant(x)
    found = []
    for index in range(model.output_shape[1]):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(model(x, training=False)[:, index])
        found.append(tape.gradient(value, x))
    return np.stack(found, axis=1)


@examples(8)
@given(recipe=recipes(dtype=None), softmax=st.booleans())
def test_gradient_is_that_of_tensorflow(recipe, softmax):
    built = build(replace(recipe, softmax=softmax))
    plain = logits(recipe)
    analyzer = create_analyzer("gradient", built.model)
    tolerance = TOLERANCE[recipe.dtype]
    # The canonical network, with folded normalisations, computes what the model computes.
    assert_same(analyzer.outputs(built.x), plain(built.x).numpy(), tolerance)
    found = analyzer.analyze(built.x, target="all")
    assert found.dtype == recipe.dtype
    assert_same_if_open(found, tape_gradients(plain, built.x), tolerance)


@pytest.mark.parametrize("name", ["gradient", "guided_backprop"])
@examples(4)
@given(recipe=recipes())
def test_folding_does_not_change_gradients(name, recipe):
    built = build(recipe)
    found = [
        create_analyzer(name, built.model, batch_norm=option).analyze(built.x, target=1)
        for option in ("fold", "rule")
    ]
    assert_same_if_open(found[0], found[1], 1e-10)


@example(recipe=EVERY, inner="depthwise", calls=1)
@examples(5)
@given(
    recipe=recipes(min_blocks=1),
    inner=st.sampled_from(("conv", "depthwise")),
    calls=st.integers(1, 2),
)
def test_nested_equals_flat(recipe, inner, calls):
    # At least one nested model in every example, of one or of two calls.
    layer = "dense" if recipe.kind == "vector" or calls == 2 else inner
    block = Nested((Linear(layer, 2, norm="after", activation="layer"),), calls == 2, calls)
    recipe = replace(recipe, blocks=(*recipe.blocks, block))
    nested, flat = build(recipe), build(replace(recipe, nested=False))
    assert any(isinstance(layer, keras.Model) for layer in nested.model.layers)
    for name in ("lrp.alpha_2_beta_1", "deep_taylor"):
        found, expected = (
            create_analyzer(name, built.model).analyze(built.x, target=1)
            for built in (nested, flat)
        )
        assert_same_if_open(found, expected, 1e-10)


@pytest.mark.parametrize("name", LINEAR_METHODS)
@example(recipe=EVERY, seed=0)
@examples(4)
@given(recipe=recipes(min_blocks=3), seed=st.integers(0, 99))
def test_linear_in_the_output_relevance(name, recipe, seed):
    built = network_for(name, recipe)
    analyzer = create_analyzer(name, built.model, **LINEAR_METHODS[name])
    given_ = vectors(built, analyzer, 2, seed)
    v, w = given_[:, :1], given_[:, 1:]
    many = np.concatenate([v, w, -v, 2.0 * v - 0.5 * w], axis=1)
    r = analyzer.propagate(built.x, many)["input"]
    scale = 1e-10 * np.abs(r).max()
    assume(scale > 0)  # not where every rectifier is closed
    np.testing.assert_allclose(r[:, 2], -r[:, 0], rtol=1e-10, atol=scale)
    np.testing.assert_allclose(r[:, 3], 2.0 * r[:, 0] - 0.5 * r[:, 1], rtol=1e-10, atol=scale)
    for index in (0, 3):
        one = analyzer.propagate(built.x, many[:, index : index + 1])["input"]
        assert_same_if_open(r[:, index], one[:, 0], 1e-10)


BATCHED = (*LINEAR_METHODS, "gradient", "guided_backprop", "deconvnet", "rect_grad", "smoothgrad")


@pytest.mark.parametrize("name", BATCHED)
def test_batches_do_not_matter(name):
    built = build(EVERY, samples=5)
    options = {"samples": 4} if name == "smoothgrad" else LINEAR_METHODS.get(name, {})
    analyzer = create_analyzer(name, built.model, **options)
    targets = [0, 1, 2, 1, 0]
    whole = analyzer.analyze(built.x, target=targets)
    assert_same(analyzer.analyze(built.x, target=targets, batch_size=2), whole)
    ones = [
        analyzer.analyze(built.x[index : index + 1], target=target)[0]
        for index, target in enumerate(targets)
    ]
    assert_same(np.stack(ones), whole)
    order = [3, 0, 4, 2, 1]
    moved = analyzer.analyze(built.x[order], target=[targets[index] for index in order])
    assert_same(moved, whole[order])


@examples(10)
@given(recipe=recipes())
def test_z_rule_is_input_times_gradient(recipe):
    # With biases too, since these are in the denominators: R = a dy/da goes from layer to layer.
    built = build(recipe)
    z = create_analyzer("lrp.z", built.model).analyze(built.x, target="all")
    product = create_analyzer("input_t_gradient", built.model, head="one")
    expected = product.analyze(built.x, target="all")
    assert_same_if_open(z, expected, 1e-9)


@examples(8)
@given(recipe=recipes())
def test_z_rule_of_folded_and_separate_normalisation(recipe):
    # x W s / (u s + t) comes from one step as well as from two, over u = x W + b: the biases only
    # absorb in other places.
    built = build(recipe)
    found = [
        create_analyzer("lrp.z", built.model, batch_norm=option).analyze(built.x, target=2)
        for option in ("fold", "rule")
    ]
    assert_same_if_open(found[0], found[1], 1e-8)


@example(recipe=EVERY)
@examples(4)
@given(recipe=recipes(min_blocks=3))
def test_special_cases_of_rules(recipe):
    built = build(recipe)
    pairs = [
        # One table of the same numbers: this compares which calls the rules are given to.
        (("lrp.z_plus", {}), ("lrp.alpha_1_beta_0", {"bias": "ignore"})),
        (("lrp.gamma", {"gamma": 0.0}), ("lrp.z", {})),
    ]
    for pair in pairs:
        found, expected = (
            create_analyzer(name, built.model, **options).analyze(built.x, target=0)
            for name, options in pair
        )
        assert_same_if_open(found, expected, 1e-10)


# Method -> the only operations that may lose relevance: where contributions have one sign, on
# padded zeros, and in windows of zeros. Rules in proportion to x send nothing to the latter.
SUMS = (LinearOperation, Affine, Sum)
LEDGERS = {
    "lrp.z": (),
    "lrp.epsilon": (),
    "lrp.gamma": (),
    "lrp.alpha_2_beta_1": SUMS,
    "lrp.z_plus": SUMS,
    "lrp.w_square": (keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, AveragePooling),
    "lrp.composite": (),
}


@pytest.mark.parametrize("name", LEDGERS)
@example(recipe=EVERY)
@examples(4)
@given(recipe=recipes(min_blocks=3))
def test_ledger_accounts_for_all_relevance(name, recipe):
    allowed = LEDGERS[name]
    built = network_for(name, recipe)
    analyzer = create_analyzer(name, built.model, **LINEAR_METHODS[name])
    ledger = analyzer.ledger(built.x, target=1)
    away = ledger.absorbed_by_bias + ledger.absorbed_by_stabilizer + ledger.undefined + ledger.lost
    kept = ledger.kept + away
    start = analyzer.outputs(built.x)[:, 1]
    relevance = analyzer.analyze(built.x, target=1).reshape(len(built.x), -1)
    scale = np.abs(relevance).sum(axis=1) + np.abs(ledger.received.values).max(axis=0)
    assert (np.abs(ledger.received - kept).values <= 1e-9 * scale).all()
    assert ledger.conserves.values.all()
    assert (np.abs(ledger.lost).values <= 1e-9 * scale).all()
    for call in analyzer.graph.calls:
        operation = call.operation
        if not isinstance(operation, allowed) and not isinstance(operation.source, allowed):
            undefined = np.abs(ledger.undefined.sel(call=call.name).values)
            assert (undefined <= 1e-9 * scale).all(), call.name
    error = np.abs(relevance.sum(axis=1) + away.sum("call").values - start)
    assert (error <= 1e-9 * scale).all(), error / scale
    assert ledger.received.values[0] == pytest.approx(start, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ledger_of_a_contribution_far_below_its_bias(dtype):
    # One positive contribution below the rounding of the bias: the negative group is empty, and
    # rounding must not fill it.
    norm = keras.layers.BatchNormalization(epsilon=0.0, dtype=dtype)
    model = keras.Sequential([keras.Input((400,), dtype=dtype), norm])
    generator = np.random.default_rng(0)
    scale, shift = generator.uniform(0.5, 1, 400), generator.uniform(1, 3, 400)
    norm.set_weights([scale, shift, np.zeros(400), np.ones(400)])
    x = generator.uniform(0.001, 0.01, (1, 400)).astype(dtype)
    analyzer = create_analyzer("lrp.alpha_2_beta_1", model)
    for index in range(0, 400, 40):
        row = analyzer.ledger(x, target=index).isel(call=0, sample=0)
        start = analyzer.outputs(x)[0, index]
        assert float(row.undefined) == pytest.approx(-start, rel=1e-5)
        assert float(row.kept + row.absorbed_by_bias) == pytest.approx(2 * start, rel=1e-5)


@pytest.mark.parametrize("name", ["lrp.flat", "lrp.w_square"])
@examples(6)
@given(recipe=recipes(pools=("max",), heads=("flatten", "max"), pads=False))
def test_weight_rules_conserve_relevance(name, recipe):
    built = build(recipe)
    analyzer = create_analyzer(name, built.model)
    given_ = vectors(built, analyzer)
    found = analyzer.propagate(built.x, given_)["input"]
    sums = found.reshape(*found.shape[:2], -1).sum(axis=2)
    np.testing.assert_allclose(sums, given_.sum(axis=2), rtol=1e-10, atol=1e-10)


@examples(8)
@given(recipe=recipes(pools=("max",), heads=("flatten", "max"), pads=False), padding=st.booleans())
def test_box_rule_conserves_and_is_positive_inside_the_box(recipe, padding):
    if padding and recipe.kind != "vector":
        # Zeros in front of the first layer are inside no box, and get nothing.
        front = (Padding(1), Linear("conv", 2, "valid", activation="fused"))
        recipe = replace(recipe, blocks=(*front, *recipe.blocks))
    built = build(recipe)
    model, x = built.model, built.x
    low, high = x.min() - 0.5, x.max() + 0.5
    analyzer = create_analyzer("lrp.w_square", model, input_rule=("box", low, high))
    given_ = np.random.default_rng(1).uniform(0.1, 1, (len(x), 2, 3))
    found = analyzer.propagate(x, given_)["input"]
    assert found.min() >= -1e-12
    sums = found.reshape(*found.shape[:2], -1).sum(axis=2)
    np.testing.assert_allclose(sums, given_.sum(axis=2), rtol=1e-9)


@examples(8)
@given(recipe=recipes(), activation=st.sampled_from(("layer", "separate")))
def test_guided_backprop_is_nonnegative_below_rectifiers(recipe, activation):
    plain = tuple(b for b in recipe.blocks if not isinstance(b, Shared | Nested))
    layer = "dense" if recipe.kind == "vector" else "conv"
    recipe = replace(recipe, blocks=(*plain, Linear(layer, 3, activation=activation)))
    built = build(recipe)
    assert built.rectified
    analyzer = create_analyzer("guided_backprop", built.model)
    found = analyzer.propagate(built.x, vectors(built, analyzer), layers=built.rectified)
    assume(found["input"].any())  # not where every rectifier is closed
    for name in built.rectified:
        assert found[name].min() >= 0, name


def test_guided_backprop_has_both_signs_below_the_first_layer():
    # The same networks: it is the rectifier that takes negative values away, not the method.
    built = build(Recipe("image", (Linear("conv", 3, activation="layer"),), 3, "flatten"))
    analyzer = create_analyzer("guided_backprop", built.model)
    found = analyzer.propagate(built.x, vectors(built, analyzer))["input"]
    assert found.min() < 0 < found.max()


@examples(4)
@given(recipe=recipes(pools=("average",), heads=("flatten", "average"), activation="softplus"))
def test_integrated_gradients_are_complete(recipe):
    # Without kinks the quadrature converges faster than any power of the number of steps.
    built = build(recipe)
    baseline = np.full(built.x.shape[1:], 0.25)
    analyzer = create_analyzer("integrated_gradients", built.model, steps=96, baseline=baseline)
    found = analyzer.analyze(built.x, target=2).reshape(len(built.x), -1).sum(axis=1)
    model = logits(recipe)
    difference = (model(built.x) - model(baseline[None]))[:, 2]
    np.testing.assert_allclose(found, difference, rtol=1e-8, atol=1e-8)


def test_integrated_gradients_error_falls_with_the_steps_at_kinks():
    recipe = Recipe("image", (Linear("conv", 3, activation="fused"), Pool("max", 2, 2)), 3, "max")
    built = build(recipe)
    baseline = np.zeros(built.x.shape[1:])
    difference = (built.model(built.x) - built.model(baseline[None]))[:, 0]
    errors = []
    for steps in (8, 512):
        analyzer = create_analyzer("integrated_gradients", built.model, steps=steps)
        found = analyzer.analyze(built.x, target=0).reshape(len(built.x), -1).sum(axis=1)
        errors.append(np.abs(found - difference).max())
    # Each kink costs at most a step: first order, up to a factor 2 for where the kinks fall.
    assert errors[1] < errors[0] * (8 / 512) * 2
    assert errors[1] < 1e-3 * np.abs(difference).max()


def _rectified_network(seed):
    """x -> Dense -> relu -> Dense -> relu -> Dense, all last kernels >= 0, some units closed."""
    generator = np.random.default_rng(seed)
    dense = [
        keras.layers.Dense(8, activation="relu", dtype="float64"),
        keras.layers.Dense(6, activation="relu", dtype="float64"),
        keras.layers.Dense(2, dtype="float64"),
    ]
    model = keras.Sequential([keras.Input((5,), dtype="float64"), *dense])
    for layer in dense:
        kernel, bias = (generator.normal(size=weight.shape) for weight in layer.weights)
        layer.set_weights([kernel if layer is dense[0] else np.abs(kernel), bias])
    # One unit of each hidden layer is closed on every sample.
    for layer in dense[:2]:
        kernel, bias = layer.get_weights()
        bias[0] = -1000.0
        layer.set_weights([kernel, bias])
    return model, generator.normal(size=(4, 5))


def test_rect_grad_with_percentile_zero_is_the_gradient_where_a_unit_is_closed():
    # tau is the least a R; with a closed unit and kernels >= 0 above that is 0, and only what
    # the derivative stops anyway is held back.
    model, x = _rectified_network(0)
    found = create_analyzer("rect_grad", model, percentile=0).analyze(x, target="all")
    expected = create_analyzer("gradient", model).analyze(x, target="all")
    assert_same(found, expected, 1e-12)
    held = create_analyzer("rect_grad", model, percentile=60).analyze(x, target="all")
    assert np.abs(held - expected).max() > 1e-3 * np.abs(expected).max()


def test_rect_grad_with_percentile_zero_holds_back_the_least_product_only():
    generator = np.random.default_rng(5)
    first = keras.layers.Dense(7, activation="relu", dtype="float64")
    last = keras.layers.Dense(1, dtype="float64")
    model = keras.Sequential([keras.Input((4,), dtype="float64"), first, last])
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    x = generator.normal(size=(6, 4))
    kernel, bias = first.get_weights()
    weights = last.get_weights()[0][:, 0]
    hidden = np.maximum(x @ kernel + bias, 0)
    product = hidden * weights
    passing = (product > product.min(axis=1, keepdims=True)) & (hidden > 0)
    expected = (passing * weights) @ kernel.T
    found = create_analyzer("rect_grad", model, percentile=0).analyze(x)
    assert_same(found, expected, 1e-12)
    assert (product.min(axis=1) < 0).any()


# --- the user's model stays as it is -------------------------------------------------------------


def _all_operations(model):
    """Every operation and layer of a model, nested ones too."""
    found = {}
    for operation in [model, *getattr(model, "operations", [])]:
        found[id(operation)] = operation
        if isinstance(operation, keras.Model) and operation is not model:
            found.update(_all_operations(operation))
    return found


SIMPLE = (bool, int, float, str, tuple, type(None))


def _snapshot(model):
    state = {
        "weights": [weight.numpy().tobytes() for weight in model.weights],
        "config": repr(model.get_config()),
        "losses": len(model.losses),
        "metrics": len(model.metrics),
    }
    for identity, operation in _all_operations(model).items():
        state[identity] = (
            [id(node) for node in operation._inbound_nodes],
            [id(node) for node in operation._outbound_nodes],
            {
                key: value if isinstance(value, SIMPLE) else type(value)
                for key, value in vars(operation).items()
                if key != "_jit_compile"  # Keras decides it when it is first asked, as by saving
            },
        )
    return state


TOUCHING = {
    "gradient": {},
    "guided_backprop": {},
    "smoothgrad": {"samples": 2},
    "integrated_gradients": {"steps": 2},
    "lrp.composite": {"composite": "epsilon_plus_flat"},
    "lrp.alpha_2_beta_1": {"batch_norm": "rule"},
    "deep_taylor.bounded": {"low": -9, "high": 9},
    "lrp.contrastive": {},
    "excitation_bp": {},
    "excitation_bp.contrastive": {},
    "rect_grad": {},
    "deconvnet": {},
    "grad_cam": {"layer": "conv2d_1"},
}


def _all_kinds():
    return build(replace(EVERY, dtype="float32"))


# Keras 3.15 copies its variables for saving in a way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_model_is_unchanged_by_every_kind_of_analyzer(tmp_path):
    built = _all_kinds()
    before = _snapshot(built.model)
    for name, options in TOUCHING.items():
        analyzer = create_analyzer(name, built.model, **options)
        assert _snapshot(built.model) == before, f"creating {name} changed the model"
        assert np.isfinite(analyzer.analyze(built.x)).all()
        assert _snapshot(built.model) == before, f"analyzing with {name} changed the model"
    analyzer = create_analyzer("lrp.epsilon", built.model)
    analyzer.ledger(built.x)
    analyzer.propagate(built.x, vectors(built, analyzer), layers=("conv2d_1",))
    assert analyzer.model.count_params() >= 0
    repr(analyzer.describe())
    analyzer.save(tmp_path / "analyzer")
    assert _snapshot(built.model) == before


def test_model_is_unchanged_by_failing_calls():
    built = _all_kinds()
    before = _snapshot(built.model)
    analyzer = create_analyzer("lrp.epsilon", built.model)
    fails = [
        lambda: create_analyzer("lrp.epsilom", built.model),
        lambda: create_analyzer("lrp.alpha_beta", built.model, alpha=2, beta=2),
        lambda: create_analyzer("lrp.z", built.model, output=7),
        lambda: create_analyzer("deep_taylor.bounded", built.model, low=2, high=1),
        lambda: analyzer.analyze(built.x[:, :3]),
        lambda: analyzer.analyze(built.x * np.nan),
        lambda: analyzer.analyze(built.x, target=99),
        lambda: analyzer.propagate(built.x, np.zeros((3, 1, 9))),
        lambda: analyzer.propagate(built.x, np.zeros((3, 1, 3)), layers=("nothing",)),
    ]
    for fail in fails:
        with pytest.raises(ValueError):
            fail()
        assert _snapshot(built.model) == before


def test_model_is_unchanged_by_an_unsupported_layer():
    inputs = keras.Input((6, 2))
    h = keras.layers.Conv1D(2, 3, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.ops.sort(h, axis=1)))
    before = _snapshot(model)
    with pytest.raises(ValueError, match="sort"):
        create_analyzer("lrp.z", model)
    assert _snapshot(model) == before


def test_model_trains_after_it_was_explained():
    built = _all_kinds()
    analyzer = create_analyzer("lrp.epsilon", built.model)
    first = analyzer.analyze(built.x, target=0)
    built.model.compile("sgd", "mse")
    built.model.fit(built.x, np.ones((3, 3)), epochs=1, verbose=0)
    second = analyzer.analyze(built.x, target=0)
    # The analyzer explains the current weights.
    fresh = create_analyzer("lrp.epsilon", built.model).analyze(built.x, target=0)
    np.testing.assert_array_equal(second, fresh)
    assert np.abs(first - second).max() > 0


def test_several_analyzers_live_on_one_model():
    blocks = (Linear("conv", 3, norm="after", activation="layer"), Pool("max", 2, 2))
    built = build(Recipe("image", blocks, 12, "average", "float32"))
    names = ("gradient", "lrp.z_plus", "lrp.alpha_2_beta_1")
    alone = [create_analyzer(name, built.model).analyze(built.x) for name in names]
    together = [create_analyzer(name, built.model) for name in names]
    for _ in range(2):
        for analyzer, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(analyzer.analyze(built.x), expected)
