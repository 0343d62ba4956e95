"""DeepLIFT against an independent derivation, its sums, its limits and max pooling."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st
from keras import layers

from tests.helpers import reference_deep_lift as reference
from tests.helpers.deep_lift_networks import (
    NAMES,
    RULES,
    activation,
    assert_complete,
    chain_of,
    contributions,
    conv,
    create,
    dense,
    difference,
    eagerly,
    mlp,
    multipliers,
    normal,
    sequential,
)
from tests.helpers.layers import CASES
from tests.helpers.layers import network as case_network
from tests.helpers.networks import assert_same, set_random_weights, tape_gradient
from tests.helpers.random_graphs import (
    Linear,
    Nested,
    Pool,
    Recipe,
    Residual,
    Scale,
    build,
    examples,
    recipes,
)

# --- an independent derivation --------------------------------------------------------------------


def cnn():
    return sequential(
        (5, 4, 2),
        conv(3, 2, name="z1"),
        activation("relu", name="a1"),
        conv(2, 2, strides=2, name="z2"),
        activation("tanh", name="a2"),
        layers.Flatten(dtype="float64"),
        dense(4, name="z3"),
        activation("relu", name="a3"),
        dense(2, name="z4"),
    )


def assert_like_the_reference(model, name, rule_of, x, x0):
    analyzer = create(name, model)
    read = [layer.name for layer in model.layers if layer.name[0] in "za"][:-1]
    steps = chain_of(model, rule_of)
    # Any multipliers, of both signs and zero.
    relevance = normal(len(x), 3, model.output_shape[1], seed=5)
    relevance[:, 0] = np.eye(relevance.shape[2])[0]
    for quantity in ("contribution", "multiplier"):
        found = eagerly(analyzer, x, x0, relevance, read, quantity=quantity)
        assert list(found)[1:] == read
        for sample, vector in np.ndindex(relevance.shape[:2]):
            readings = reference.deep_lift(
                steps, x[sample].ravel(), x0[sample].ravel(), relevance[sample, vector]
            )
            for key, reading in zip(found, readings, strict=True):
                expected = getattr(reading, quantity)
                got = found[key][sample, vector].ravel()
                scale = np.abs(expected).max()
                np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("name", ["deep_lift.rescale", "deep_lift.reveal_cancel"])
@pytest.mark.parametrize("order", [("relu", "tanh"), ("tanh", "relu")])
def test_mlp_like_the_reference(name, order):
    x, x0 = normal(4, 5, seed=2), normal(4, 5, seed=3)
    x[0, 1], x[1] = x0[0, 1], x0[1]  # some differences are zero, and all of one sample
    model = mlp(*order)
    # One hidden unit whose positive and negative parts cancel, whatever x is.
    kernel, bias = model.get_layer("z1").get_weights()
    kernel[:, 0] = [1, -1, 0, 0, 0]
    x[2, :2] = x0[2, :2] + 0.5
    model.get_layer("z1").set_weights([kernel, bias])
    assert_like_the_reference(model, name, RULES[name], x, x0)


@pytest.mark.parametrize("name", NAMES)
def test_cnn_like_the_reference(name):
    x, x0 = normal(2, 5, 4, 2, seed=2), normal(2, 5, 4, 2, seed=3)
    x[0, 1:3, 1] = x0[0, 1:3, 1]
    model = cnn()
    assert_like_the_reference(model, name, RULES[name], x, x0)
    # The reference is no copy of plain gradients: the variants differ.
    one, other = (
        reference.deep_lift(chain_of(model, RULES[n]), x[0].ravel(), x0[0].ravel(), np.eye(2)[0])[
            0
        ].contribution
        for n in ("deep_lift.rescale", "deep_lift.reveal_cancel")
    )
    assert np.abs(one - other).max() > 0.01 * np.abs(one).max()


# --- contributions add up -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@examples(4)
@given(recipe=recipes(min_blocks=3), batch_norm=st.sampled_from(("fold", "rule")))
def test_contributions_add_up_on_random_graphs(name, recipe, batch_norm):
    built = build(recipe)
    x0 = normal(*built.x.shape, seed=recipe.seed + 1)
    analyzer = create(name, built.model, batch_norm=batch_norm)
    assert_complete(contributions(analyzer, built.x, x0), difference(built.model, built.x, x0))


SMOOTH_BLOCKS = (
    Linear("conv", 3, norm="before", activation="layer"),
    Residual((Linear("conv", 3, norm="after"),), True, "Add"),
    Scale(-1.5),
    Nested((Linear("separable", 2, activation="fused"),), False, 1),
    Pool("max", 2, 1, "same"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", ["tanh", "gelu"])
def test_contributions_add_up_through_smooth_functions(name, function):
    # gelu falls and rises, so that slopes have both signs.
    built = build(Recipe("image", SMOOTH_BLOCKS, 3, "flatten", activation=function))
    x0 = normal(*built.x.shape, seed=9)
    analyzer = create(name, built.model, batch_norm="rule")
    assert_complete(contributions(analyzer, built.x, x0), difference(built.model, built.x, x0))


def merging():
    """Products, differences, means and concatenations; one layer is called three times."""
    inputs = keras.Input((6,), dtype="float64")
    shared = dense(4, activation="relu", name="shared")
    first = dense(4, activation="sigmoid")(inputs)
    second = shared(first)
    third = layers.Multiply(dtype="float64")([first, second, shared(shared(second))])
    joined = layers.Concatenate(dtype="float64")(
        [third, layers.Subtract(dtype="float64")([first, second])]
    )
    mean = layers.Average(dtype="float64")([joined, joined * -2.0, dense(8)(joined)])
    gate = dense(8, activation="hard_sigmoid")(mean)
    model = keras.Model(inputs, dense(3)(mean * gate))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        set_random_weights(layer, generator)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_contributions_add_up_through_merges(name):
    model = merging()
    x, x0 = normal(3, 6), normal(3, 6, seed=2)
    read = ("shared", "shared@1", "shared@2")
    found = eagerly(create(name, model), x, x0, read=read)
    assert_complete(next(iter(found.values())), difference(model, x, x0))
    assert all(found[key].shape == (3, 3, 4) and np.ptp(found[key]) > 0 for key in read)


@keras.saving.register_keras_serializable(package="tests")
class SharedScale(layers.Layer):
    """Divides by what all elements share, and declares that relevance passes."""

    relevance_policy = "pass"

    def call(self, inputs):
        return inputs / (1 + keras.ops.sum(inputs**2, axis=-1, keepdims=True))


@pytest.mark.parametrize("name", [*NAMES, "deep_lift.ablation"])
def test_contributions_pass_layers_that_declare_it(name):
    model = sequential(
        (4,),
        dense(5, activation="tanh", name="z1"),
        SharedScale(dtype="float64", name="declared"),
        dense(3, name="z2"),
    )
    x, x0 = normal(3, 4), normal(3, 4, seed=2)
    analyzer = create(name, model)
    before, behind = (eagerly(analyzer, x, x0, read=[read])[read] for read in ("z1", "declared"))
    # The ablation rescales multipliers on their way, each vector by a factor of its own.
    if name not in NAMES:
        before, behind = (
            part / np.abs(part).max(axis=2, keepdims=True) for part in (before, behind)
        )
    assert np.abs(behind).max() > 0
    np.testing.assert_allclose(before, behind, rtol=1e-12)
    if name in NAMES:
        assert_complete(contributions(analyzer, x, x0), difference(model, x, x0))
    # By hand, from the last layer; nothing moves the first two elements.
    tail = sequential((5,), SharedScale(dtype="float64"), dense(3, name="z2"))
    kernel = tail.get_layer("z2").kernel.numpy()
    x, x0 = normal(3, 5), normal(3, 5, seed=2)
    x[:, :2] = x0[:, :2]
    differences = x / (1 + (x**2).sum(1, keepdims=True)) - x0 / (1 + (x0**2).sum(1, keepdims=True))
    expected = np.repeat(kernel.T[None], 3, axis=0)
    expected[..., 2:] *= (differences[:, 2:] / (x - x0)[:, 2:])[:, None]
    if name in NAMES:
        np.testing.assert_allclose(multipliers(create(name, tail), x, x0), expected, rtol=1e-12)


REFUSED = ("log_softmax_fused",)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.id) for c in CASES if c.id not in REFUSED and not c.needs_xla]
)
def test_contributions_add_up_through_every_layer(case):
    model, x = case_network(case)
    x0 = normal(*x.shape, seed=4)
    expected = difference(model, x, x0)
    for name in ("deep_lift.rescale", "deep_lift.reveal_cancel"):
        assert_complete(contributions(create(name, model), x, x0), expected, case.tolerance)


# Normalisations with factors of both signs, between linear layers and rectifiers.
NORMALISED = Recipe(
    "image", (Linear("conv", 3, norm="after", activation="layer"),) * 2, seed=5, head="average"
)


@pytest.mark.parametrize("name", NAMES)
@example(recipe=NORMALISED)
@examples(2)
@given(recipe=recipes(min_blocks=3))
def test_ledger_loses_nothing(name, recipe):
    built = build(recipe)
    x0 = normal(1, *built.x.shape[1:], seed=7)
    analyzer = create(name, built.model, baseline=x0, batch_norm="rule")
    ledger = analyzer.ledger(built.x, target=1)
    expected = difference(built.model, built.x, x0)[:, 1]
    np.testing.assert_allclose(ledger.received.values[0], expected, rtol=1e-9, atol=1e-12)
    scale = np.abs(ledger.received.values).max()
    for part in ("lost", "absorbed_by_bias", "absorbed_by_stabilizer"):
        assert np.abs(ledger[part].values).max() <= 1e-10 * scale


@pytest.mark.parametrize("name", [*NAMES, "deep_lift.ablation"])
def test_batches_and_vectors_do_not_matter(name):
    blocks = (Linear("conv", 3, activation="layer"), *SMOOTH_BLOCKS[1:4])
    built = build(Recipe("image", blocks, 5, "max"), samples=4)
    x, x0 = built.x, normal(*built.x.shape, seed=2)
    analyzer = create(name, built.model)
    relevance = normal(4, 3, 3, seed=6)
    whole = contributions(analyzer, x, x0, relevance=relevance)
    for index in range(4):
        part = slice(index, index + 1)
        one = contributions(analyzer, x[part], x0[part], relevance=relevance[part])
        assert_same(whole[part], one, 1e-12)
    for index in range(3):
        one = contributions(analyzer, x, x0, relevance=relevance[:, index : index + 1])
        assert_same(whole[:, index], one[:, 0], 1e-12)


# Tensors that rectifiers read, so that RevealCancel sends two multipliers back through these.
BEHIND = {
    "subtract": lambda h, g: layers.Subtract(dtype="float64")([h, g]),
    "average": lambda h, g: layers.Average(dtype="float64")([h, -g, g]),
    "multiply": lambda h, g: layers.Multiply(dtype="float64")([h, g, h]),
    "softmax": lambda h, g: layers.Softmax(dtype="float64")(h + g),
    "max_pool": lambda h, g: layers.MaxPooling1D(2, 1, dtype="float64")(h),
    "global_max_pool": lambda h, g: layers.GlobalMaxPooling1D(dtype="float64")(h),
    "concatenate": lambda h, g: layers.Concatenate(dtype="float64")([h, g, h]),
    "scale": lambda h, g: h * np.array([-1.0, 2, -3]),
    "itself": lambda h, g: h - 0.5 * h,
}


@pytest.mark.parametrize("kind", BEHIND)
def test_contributions_add_up_where_two_multipliers_arrive(kind):
    inputs = keras.Input((4, 3), dtype="float64")
    h = BEHIND[kind](dense(3)(inputs), dense(3, activation="tanh")(inputs))
    h = layers.Flatten(dtype="float64")(layers.ReLU(dtype="float64")(h - 0.1))
    model = keras.Model(inputs, dense(2)(h))
    generator = np.random.default_rng(1)
    for layer in model.layers:
        set_random_weights(layer, generator)
    x, x0 = normal(6, 4, 3), normal(6, 4, 3, seed=2)
    analyzer = create("deep_lift.reveal_cancel", model)
    assert_complete(contributions(analyzer, x, x0), difference(model, x, x0))


def test_a_rectifier_of_the_input_itself_has_the_parts_of_the_difference():
    """One of D+ and D- is 0 at each element, so that its whole difference is its own share."""
    model = sequential((5,), layers.ReLU(dtype="float64"), dense(2))
    set_random_weights(model.layers[-1], np.random.default_rng(3))
    x, x0 = normal(6, 5), normal(6, 5, seed=2)
    opened = np.maximum(x, 0) - np.maximum(x0, 0)
    expected = opened[:, None] * model.layers[-1].kernel.numpy().T
    assert_same(contributions(create("deep_lift.reveal_cancel", model), x, x0), expected, 1e-12)


# --- the gradient as a special case and as a limit ------------------------------------------------


@examples(5)
@given(recipe=recipes(bias=False, shift=False))
def test_rescale_is_gradient_times_input_without_biases(recipe):
    built = build(recipe)
    analyzer = create("deep_lift.rescale", built.model, max_pool="gradient")
    found = contributions(analyzer, built.x, 0 * built.x)
    expected = create("input_t_gradient", built.model, head="one").analyze(built.x, target="all")
    assert_same(found, expected, 1e-10)


def gradient_of(model, x):
    network = create("gradient", model).network()
    vectors = np.repeat(np.eye(model.output_shape[1])[None], len(x), axis=0)
    return network.propagate([tf.constant(x)], tf.constant(vectors))[0].numpy()


SMOOTH = (
    "sigmoid tanh softplus gelu silu mish softsign exponential log_sigmoid squareplus tanh_shrink "
    "softmax"
).split()


def bending(function):
    chain = [dense(5, activation=function), dense(4, activation=function), dense(2)]
    model = sequential((4,), *chain, seed=3)
    model.set_weights([weight / 2 for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("function", [*SMOOTH, "relu", "relu6", "soft_shrink"])
def test_multipliers_tend_to_the_gradient(name, function):
    model = bending(function)
    x, direction = normal(4, 4), normal(4, 4, seed=8)
    gradient = gradient_of(model, x)
    bends = 0.0 if function not in SMOOTH else 20.0  # piecewise linear: exactly the gradient
    steps = {"float64": (1e-3, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12), "float32": (1e-3, 1e-5, 1e-6)}
    for dtype, sizes in steps.items():
        analyzer, rounding = create(name, model, dtype=dtype), 20 * np.finfo(dtype).eps
        for size in sizes:
            found = multipliers(analyzer, x, x - size * direction)
            error = np.abs(found - gradient).max() / np.abs(gradient).max()
            assert error <= bends * size + rounding, (dtype, size, error)
        # Where nothing differs, multipliers are the gradient too.
        found = multipliers(analyzer, x, x)
        assert np.abs(found - gradient).max() <= rounding * np.abs(gradient).max()


@pytest.mark.parametrize("function", ["elu", "selu", "celu", "leaky_relu", "hard_sigmoid"])
def test_small_differences_of_functions_with_corners(function):
    """Their quotients are rounded, but contributions add up to what the outputs differ by."""
    model = bending(function)
    x, direction = normal(4, 4), normal(4, 4, seed=8)
    gradient = gradient_of(model, x)
    analyzer = create("deep_lift.rescale", model)
    for size in (1e-3, 1e-6, 1e-9, 1e-12):
        x0 = x - size * direction
        found = multipliers(analyzer, x, x0)
        error = np.abs(found - gradient).max() / np.abs(gradient).max()
        assert error <= 20 * size + 1e-13 / size, (size, error)
        total = contributions(analyzer, x, x0).sum(axis=2)
        np.testing.assert_allclose(total, difference(model, x, x0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [5.0, 20.0, 100.0, 1000.0])
def test_softmax_inside_of_large_logits(dtype, size):
    """Logits far from those of the baseline: nothing overflows or cancels."""
    model = sequential((3,), activation("softmax"), dense(2))
    analyzer = create("deep_lift.rescale", model, dtype=dtype)
    x = size * np.array([[1.0, 0, 0.2], [-1, 0, 0.5], [1, 1, 1], [0, 0, 0]])
    for ends in ((x, 0 * x), (0 * x, x)):
        found = contributions(analyzer, *ends)
        assert np.isfinite(found).all()
        error = found.sum(axis=2) - difference(model, *ends)
        assert np.abs(error).max() <= 1e3 * np.finfo(dtype).eps, error


# --- max pooling ----------------------------------------------------------------------------------


def test_max_pool_routes_like_the_gradient_on_request():
    model = sequential((6, 6, 2), layers.MaxPooling2D(3, 2, dtype="float64"))
    x, x0 = normal(3, 6, 6, 2), normal(3, 6, 6, 2, seed=2)
    analyzer = create("deep_lift.rescale", model, max_pool="gradient")
    relevance = normal(3, 1, *model.output_shape[1:], seed=3)
    found = multipliers(analyzer, x, x0, relevance=relevance)[:, 0]
    np.testing.assert_array_equal(found, tape_gradient(model, x, relevance[:, 0]))
    # By differences, other elements move too.
    other = multipliers(create("deep_lift.rescale", model), x, x0, relevance=relevance)[:, 0]
    assert np.any((other != 0) & (found == 0))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_window_adds_up_to_its_difference(size):
    """Windows side by side, and windows that overlap; D > 0 and D < 0 and D = 0."""
    model = sequential((6, 2), layers.MaxPooling1D(3, size, dtype="float64"))
    x, x0 = normal(4, 6, 2), normal(4, 6, 2, seed=2)
    x[0] = x0[0]
    x[1] += 10  # everything rises
    x[2] -= 10
    count = int(np.prod(model.output_shape[1:]))
    found = contributions(create("deep_lift.rescale", model), x, x0)
    assert found.shape == (4, count, 6, 2)
    expected = difference(model, x, x0)
    assert_complete(found, expected)
    for index, (position, channel) in enumerate(np.ndindex(*model.output_shape[1:])):
        outside = found[:, index].copy()
        outside[:, size * position : size * position + 3, channel] = 0
        assert not outside.any()


def test_max_pool_gives_rises_to_the_new_and_falls_to_the_old_winner():
    model = sequential((3, 1), layers.GlobalMaxPooling1D(dtype="float64"))
    x = np.array([[1.0, 5, 2], [1, 2, 0], [4, 4, 1]])[..., None]
    x0 = np.array([[3.0, 0, 1], [1, 2, 6], [4, 3, 1]])[..., None]
    found = contributions(create("deep_lift.rescale", model), x, x0)[:, 0, :, 0]
    np.testing.assert_array_equal(found, [[0, 2, 0], [0, 0, -4], [0, 0, 0]])
