"""Products of tensors that sum over axes, and products with constants, against plain loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tests.helpers.deep_lift_networks as deep_lift
from tests.helpers.networks import (
    DIFFERENCES,
    GRADIENTS,
    RELEVANCE,
    assert_same,
    create,
    set_random_weights,
    tape_gradient,
)
from tests.helpers.single_calls import (
    F64,
    assert_formula,
    draw,
    network,
    propagate,
    relevance_for,
    rules_of,
    single_operation,
)
from tfexplain import UnsupportedLayerError
from tfexplain.operations import ConstantProduct, TensorProduct
from tfexplain.rules import EqualShares, Gradient, ProductDifference, RecordedCall

# Name -> shapes, what Keras computes, and letters without the samples for the loops below: an axis
# of length one that broadcasts has a letter of its own.
PRODUCTS = {
    "matmul": ([(2, 3), (3, 4)], ops.matmul, "ij,jk->ik"),
    "matmul_of_matrices": ([(2, 2, 3), (2, 3, 2)], ops.matmul, "hij,hjk->hik"),
    "matmul_broadcasts": ([(2, 2, 3), (1, 3, 2)], ops.matmul, "hij,xjk->hik"),
    "matmul_broadcasts_both": ([(1, 2, 3), (2, 3, 2)], ops.matmul, "xij,hjk->hik"),
    "einsum": (
        [(2, 3, 2), (4, 3, 2)],
        lambda a, b: ops.einsum("bqhd,bkhd->bhqk", a, b),
        "qhd,khd->hqk",
    ),
    "einsum_sums_alone": (
        [(2, 3), (3, 4)],
        lambda a, b: ops.einsum("bxj,bjk->bk", a, b),
        "xj,jk->k",
    ),
    "einsum_dots": (
        [(2, 3), (3, 2)],
        lambda a, b: ops.einsum("...ij,...jk->...ik", a, b),
        "ij,jk->ik",
    ),
    "einsum_of_pairs": ([(2,), (3,)], lambda a, b: ops.einsum("bi,bj->bij", a, b), "i,j->ij"),
    "elementwise": ([(2, 3), (2, 3)], lambda a, b: ops.einsum("bij,bij->bij", a, b), "ij,ij->ij"),
    "Dot": ([(2, 3), (4, 3)], lambda a, b: layers.Dot(2, **F64)([a, b]), "ij,kj->ik"),
    "Dot_two_axes": (
        [(3, 2), (4, 3)],
        lambda a, b: layers.Dot((1, -1), **F64)([a, b]),
        "ji,kj->ik",
    ),
    "Dot_of_vectors": ([(3,), (3,)], lambda a, b: layers.Dot(1, **F64)([a, b]), "j,j->x"),
    "Dot_of_vector_and_matrix": (
        [(3,), (2, 3)],
        lambda a, b: layers.Dot(-1, **F64)([a, b]),
        "j,kj->k",
    ),
}
products = pytest.mark.parametrize("name", PRODUCTS)


def terms(name, inputs):
    """Yields sample, place in A, in B and in the result, for each product that is summed."""
    _, _, equation = PRODUCTS[name]
    given, result = equation.split("->")
    first, second = given.split(",")
    sizes = {"x": 1}
    for letters, x in zip((first, second), inputs, strict=True):
        sizes.update(zip(letters, x.shape[1:], strict=True))
    used = sorted(set(first + second + result))
    for sample in range(len(inputs[0])):
        for index in np.ndindex(*(sizes[letter] for letter in used)):
            at = dict(zip(used, index, strict=True))
            places = [tuple(at[letter] for letter in part) for part in (first, second, result)]
            yield sample, *places


def halves(name, inputs, y, R):
    """Each product a b gets its share a b / y of R, half of which each factor keeps."""
    found = [np.zeros((*R.shape[:2], *x.shape[1:])) for x in inputs]
    for sample, here, there, to in terms(name, inputs):
        part = inputs[0][sample][here] * inputs[1][sample][there] / y[sample][to] / 2
        for vector in range(R.shape[1]):
            share = part * R[sample, vector][to]
            found[0][sample, vector][here] += share
            found[1][sample, vector][there] += share
    return found


def multiplied(name, inputs):
    """The product itself."""
    shapes, function, _ = PRODUCTS[name]
    y = np.zeros(network(shapes, function)(inputs).shape)
    for sample, here, there, to in terms(name, inputs):
        y[sample][to] += inputs[0][sample][here] * inputs[1][sample][there]
    return y


@products
def test_half_of_the_relevance_goes_to_each_factor(name):
    shapes, function, _ = PRODUCTS[name]
    operation = single_operation(shapes, function)
    assert isinstance(operation, TensorProduct)
    inputs = [draw(shape, seed=place) for place, shape in enumerate(shapes)]
    y = multiplied(name, inputs)
    assert_formula(operation.forward(*map(tf.constant, inputs)).numpy(), y, name)
    R = relevance_for(y)
    found = propagate(EqualShares(), operation, inputs, R)
    for got, expected in zip(found, halves(name, inputs, y, R), strict=True):
        assert_formula(got, expected, name)


@products
def test_gradient_is_that_of_tensorflow(name):
    shapes, function, _ = PRODUCTS[name]
    inputs = [draw(shape, seed=place) for place, shape in enumerate(shapes)]
    model = network(shapes, function)
    operation = single_operation(shapes, function)
    R = relevance_for(model(inputs).numpy())
    found = propagate(Gradient(), operation, inputs, R)
    for vector in range(R.shape[1]):
        tensors = [tf.constant(x) for x in inputs]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y = model(tensors)
        gradients = tape.gradient(y, tensors, output_gradients=tf.constant(R[:, vector]))
        for got, expected in zip(found, gradients, strict=True):
            assert_formula(got[:, vector], expected.numpy(), name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_reference_numbers(data_dir, dtype):
    """Those of Prop. 3.3 of [achtibat2024attnlrp], made by another implementation."""
    with np.load(data_dir / "relevance_reference" / "operations.npz") as stored:
        given = {key.removeprefix("matmul/"): stored[key] for key in stored if key[:7] == "matmul/"}
    inputs = [tf.constant(given[f"in/{name}"], dtype) for name in "AB"]
    operation = TensorProduct("matmul", "bhij,bhjk->bhik")
    y = operation.forward(*inputs)
    record = RecordedCall(operation, tuple(inputs), (y,))
    R = tf.constant(given["in/R"][:, None], dtype)
    found = EqualShares().propagate(record, (R,))
    tolerance = {"float64": 1e-12, "float32": 2e-5}[dtype]
    for name, part in (("y", y), ("R_A", found[0][:, 0]), ("R_B", found[1][:, 0])):
        expected = given[f"out/{name}"]
        atol = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(part.numpy(), expected, rtol=0, atol=atol, err_msg=name)


def test_what_sums_of_products_that_are_zero_absorb():
    operation = TensorProduct("matmul", "bij,bjk->bik")
    # The first row is orthogonal to the first column.
    a, b = np.array([[[1.0, 2], [3, 1]]]), np.array([[[2.0, 1], [-1, 4]]])
    inputs = (tf.constant(a), tf.constant(b))
    call = RecordedCall(operation, inputs, (operation.forward(*inputs),))
    R = np.array([[[[5.0, -1], [2, 3]]]])
    kept = sum(part.numpy().sum() for part in EqualShares().propagate(call, (tf.constant(R),)))
    absorbed = EqualShares().absorbed(call, (tf.constant(R),))
    assert absorbed.undefined.numpy() == 5 and absorbed.bias == absorbed.stabilizer == 0
    np.testing.assert_allclose(kept, R.sum() - 5, rtol=1e-12)


# --- networks -------------------------------------------------------------------------------------


def attention(x, softmax=True):
    """Attention of one head, spelled out."""
    q, k, v = (layers.Dense(3, **F64)(x) for _ in range(3))
    scores = ops.matmul(q, ops.transpose(k, (0, 2, 1))) / 3**0.5
    weights = ops.softmax(scores) if softmax else scores
    return ops.einsum("bqk,bkd->bqd", weights, v)


def attending(softmax=True):
    model = network(
        [(4, 2)],
        lambda x: layers.Dense(2, **F64)(layers.Flatten(**F64)(attention(x, softmax))),
    )
    set_random_weights(model, np.random.default_rng(0))
    return model


RULES = {
    **{name: (options, Gradient()) for name, options in GRADIENTS.items()},
    **{name: (options, EqualShares()) for name, options in RELEVANCE.items()},
    **{name: (options, ProductDifference()) for name, options in DIFFERENCES.items()},
    "pattern.net": ({}, Gradient()),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_of_methods(name):
    options, expected = RULES[name]
    rules = rules_of(create(name, attending(), **options))
    named = {call: rule for call, rule in rules.items() if "matmul" in call or "einsum" in call}
    assert len(named) == 2 and set(named.values()) == {expected}


def test_gradient_of_attention():
    model, x = attending(), draw((4, 2))
    _, found = create("gradient", model).explain([tf.constant(x)], tf.constant([[0, 1]] * 2))
    for index, row in enumerate(np.eye(2)):
        assert_same(found.numpy()[:, index], tape_gradient(model, x, row))


@pytest.mark.parametrize("name", ["lrp.z", "lrp.gamma", "lrp.alpha_2_beta_1", "lrp.composite"])
def test_ledger_balances(name):
    model, x = attending(softmax=False), draw((4, 2))
    analyzer = create(name, model)
    ledger = analyzer.ledger(x, target=1)
    scale = np.abs(ledger.received).max().values + np.abs(ledger.kept).max().values
    assert np.abs(ledger.lost).max() <= 1e-10 * scale


def test_relevance_of_products_is_conserved():
    """Without biases, all of the output reaches the input."""
    model = attending(softmax=False)
    for layer in model.layers:
        if isinstance(layer, layers.Dense):
            layer.bias.assign(np.zeros(layer.units))
    x = tf.constant(draw((4, 2)))
    outputs, found = create("lrp.z", model).explain([x], tf.constant([[0], [1]]))
    expected = outputs.numpy()[range(2), range(2)]
    np.testing.assert_allclose(found.numpy().sum(axis=(1, 2, 3)), expected, rtol=1e-9)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("name", deep_lift.NAMES)
def test_deep_lift_is_complete(name, softmax):
    model, (x, x0) = attending(softmax), np.random.default_rng(1).normal(size=(2, 3, 4, 2))
    found = deep_lift.contributions(create(name, model), x, x0)
    deep_lift.assert_complete(found, deep_lift.difference(model, x, x0))


@pytest.mark.parametrize("shared", [False, True])
def test_deep_lift_averages_both_orders(shared):
    """First A changes and then B, and the other way round; of one baseline for all too."""
    model = network([(2, 3), (3, 2)], ops.matmul)
    generator = np.random.default_rng(3)
    ends = [generator.normal(size=(2, 4, *shape)) for shape in ((2, 3), (3, 2))]
    m = generator.normal(size=(4, 2, 2, 2))
    (a, a0), (b, b0) = (
        (end, np.repeat(before[:1], 4, axis=0) if shared else before) for end, before in ends
    )
    analyzer = create("deep_lift.rescale", model)
    given = [a, b, a0[:1], b0[:1]] if shared else [a, b, a0, b0]
    found = analyzer.network().propagate([tf.constant(part) for part in given], tf.constant(m))
    of_a = np.einsum("bvik,bij,bjk->bvij", m, a - a0, b + b0) / 2
    of_b = np.einsum("bvik,bij,bjk->bvjk", m, a + a0, b - b0) / 2
    for got, expected in zip(found, (of_a, of_b), strict=True):
        assert_formula(got.numpy(), expected, "contribution")


# --- constants ------------------------------------------------------------------------------------

MATRIX = np.random.default_rng(5).normal(size=(3, 4))
CONSTANTS = {
    "matmul": lambda x: ops.matmul(x, MATRIX),
    "einsum": lambda x: ops.einsum("bti,io->bto", x, MATRIX),
    "tensordot": lambda x: ops.tensordot(x, MATRIX, axes=1),
    "dot": lambda x: ops.dot(x, MATRIX),
    "inner": lambda x: ops.inner(x, MATRIX.T),
    "constant_first": lambda x: ops.einsum("io,bti->bto", MATRIX, x),
    "transposed": lambda x: ops.transpose(
        ops.matmul(MATRIX.T, ops.transpose(x, (0, 2, 1))), (0, 2, 1)
    ),
    "variable": lambda x: ops.matmul(x, tf.Variable(MATRIX)),
    "keras_variable": lambda x: ops.matmul(x, keras.Variable(MATRIX, dtype="float64")),
}


@pytest.mark.parametrize("name", [*RELEVANCE, "deep_lift.reveal_cancel", "gradient"])
@pytest.mark.parametrize("kind", CONSTANTS)
def test_a_constant_is_the_kernel_of_a_dense_layer(kind, name):
    options = {**RELEVANCE, "deep_lift.reveal_cancel": {"baseline": 0.2}, "gradient": {}}[name]

    def around(function):
        def apply(x):
            h = layers.Activation("tanh", **F64)(layers.Dense(3, **F64)(x))
            h = layers.ReLU(**F64)(function(h))
            return layers.Dense(2, **F64)(layers.Flatten(**F64)(h))

        model = network([(2, 3)], apply)
        generator = np.random.default_rng(0)
        for layer in model.layers:
            if layer.name != "kernel":
                set_random_weights(layer, generator)
        return model

    dense = layers.Dense(4, use_bias=False, name="kernel", **F64)
    models = around(CONSTANTS[kind]), around(dense)
    dense.set_weights([MATRIX])
    x, target = tf.constant(draw((2, 3))), tf.constant([[0, 1]] * 2)
    found, expected = (create(name, m, **options).explain([x], target)[1] for m in models)
    assert_same(found.numpy(), expected.numpy(), 1e-9)


@pytest.mark.parametrize("cls", [tf.Variable, keras.Variable])
def test_a_variable_is_read_at_each_call(cls):
    matrix = cls(MATRIX, dtype="float64")
    model = network([(3,)], lambda x: ops.matmul(x, matrix))
    analyzer, x = create("lrp.z", model), np.abs(draw((3,)))
    before = analyzer.analyze(x, target=2)
    assert_same(before, x * MATRIX[:, 2])
    matrix.assign(2 * MATRIX)
    assert_same(analyzer.analyze(x, target=2), 2 * before)


def test_a_constant_that_broadcasts():
    """Axes of length one of the constant or of the tensor; the batch is that of the tensor."""
    for shape, constant in (((2, 2, 3), (1, 3, 2)), ((1, 2, 3), (2, 3, 2)), ((2, 3), (1, 3, 2))):
        kernel = draw(constant)[0]
        operation = single_operation([shape], lambda x, kernel=kernel: ops.matmul(x, kernel))
        assert isinstance(operation, ConstantProduct)
        x = draw(shape)
        np.testing.assert_allclose(operation.forward(tf.constant(x)), x @ kernel, rtol=1e-12)


# --- what is refused ------------------------------------------------------------------------------

ACROSS = {
    "matmul": ([(3,), (3,)], ops.matmul),
    "other_rank": ([(2, 3, 3), (3, 2)], ops.matmul),
    "einsum": ([(3,), (3,)], lambda a, b: ops.einsum("bi,cj->bc", a, b)),
    "tensordot": ([(3, 2), (2, 4)], lambda a, b: ops.tensordot(a, b, axes=1)),
    "dot": ([(2, 3), (3, 4)], ops.dot),
}


@pytest.mark.parametrize("kind", ACROSS)
@pytest.mark.parametrize("name", ["gradient", "lrp.z", "deep_lift.rescale"])
def test_products_across_samples_are_refused(kind, name):
    shapes, function = ACROSS[kind]
    model = network(shapes, function)
    with pytest.raises(UnsupportedLayerError, match="across samples|no batch axis"):
        create(name, model)


OTHERS = {
    "cosine": ([(3,), (3,)], lambda a, b: layers.Dot(1, normalize=True, **F64)([a, b])),
    "three": ([(3,)] * 3, lambda a, b, c: ops.einsum("bi,bi,bi->bi", a, b, c)),
    "diagonal": ([(3, 3), (3, 2)], lambda a, b: ops.einsum("bii,bij->bj", a, b)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_gradient_of_other_products(kind):
    shapes, function = OTHERS[kind]
    model = network(shapes, function)
    inputs = [tf.constant(draw(shape, seed=place)) for place, shape in enumerate(shapes)]
    _, *found = create("gradient", model).explain(inputs, tf.constant([[0], [0]]))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = model(inputs)[:, 0]
    for got, expected in zip(found, tape.gradient(y, inputs), strict=True):
        assert_same(got.numpy()[:, 0], expected.numpy())


def test_products_of_a_diagonal_are_refused():
    model = network(*OTHERS["diagonal"])
    for name in ("lrp.z", "deep_lift.rescale"):
        with pytest.raises(UnsupportedLayerError, match=r"1 call.*\n.*\(Einsum\)"):
            create(name, model)


def test_relevance_of_a_cosine_and_of_three_factors():
    """The norms are held; a product of three is one of a product and a factor."""
    for kind, count in (("cosine", 1), ("three", 3)):
        shapes, function = OTHERS[kind]
        model = network(shapes, function)
        inputs = [draw(shape, seed=place) for place, shape in enumerate(shapes)]
        targets = tf.constant([range(count)] * 2)
        outputs, *found = create("lrp.z", model).explain([tf.constant(x) for x in inputs], targets)
        if kind == "cosine":
            a, b = inputs
            share = outputs.numpy() * a * b / (a * b).sum(axis=1, keepdims=True) / 2
            for part in found:
                assert_same(part.numpy()[:, 0], share)
        else:
            diagonal = [np.einsum("bii->bi", part.numpy()) for part in found]
            parts = np.sort(np.stack(diagonal) / outputs.numpy(), axis=0)
            expected = np.broadcast_to(np.reshape([0.25, 0.25, 0.5], (3, 1, 1)), parts.shape)
            np.testing.assert_allclose(parts, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["cosine", "three"])
def test_deep_lift_of_other_products_is_complete(kind):
    shapes, function = OTHERS[kind]
    model = network(shapes, function)
    generator = np.random.default_rng(8)
    x, x0 = ([generator.normal(size=(2, *shape)) for shape in shapes] for _ in "ab")
    analyzer = create("deep_lift.rescale", model)
    m = generator.normal(size=(2, 1, *model.output_shape[1:]))
    found = analyzer.network().propagate([tf.constant(part) for part in x + x0], tf.constant(m))
    expected = (m[:, 0] * (model(x) - model(x0)).numpy()).sum(axis=1)
    total = sum(part.numpy().sum(axis=(1, 2)) for part in found)
    np.testing.assert_allclose(total, expected, rtol=1e-10)


def test_one_tensor_moves_or_is_summed():
    for equation, expected in (("bij->bji", "Rearrangement"), ("bij->bi", "AveragePooling")):
        operation = single_operation([(2, 3)], lambda x, e=equation: ops.einsum(e, x))
        assert type(operation).__name__ == expected
