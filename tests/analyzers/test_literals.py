"""Numbers that others worked out by hand: captum, deeplift, xplique.

The small networks are those of captum's (BSD-3), deeplift's and xplique's (MIT) own tests.
"""

import keras
import numpy as np
import pytest

from tests.helpers.networks import create, sequential
from tfexplain.composites import Composite, relevance_rows
from tfexplain.rules import Gamma

EXACT = {"rtol": 1e-9, "atol": 1e-9}

# --- captum: one convolution with a bias that is not zero --------------------------------------

IMAGE = np.arange(16.0).reshape(1, 4, 4, 1)


@pytest.fixture(scope="module")
def one_conv():
    """Convolution of ones with biases -50 and -75, ReLU, dense, ReLU; the output is 54."""
    model = sequential(
        (4, 4, 1),
        keras.layers.Conv2D(2, 3, activation="relu", name="conv"),
        keras.layers.Flatten(),
        keras.layers.Dense(4),
        keras.layers.ReLU(),
    )
    # Flattened with channels last, the weights of a position are (+, +) once, then (+, -).
    column = np.array([1, 1, 1, -1, 1, -1, 1, -1.0])
    model.set_weights(
        [
            np.ones((3, 3, 1, 2)),
            np.array([-50, -75]),
            np.repeat(column[:, None], 4, axis=1),
            np.zeros(4),
        ]
    )
    return model


def test_captum_one_conv_epsilon(one_conv):
    """Epsilon-LRP conserves the output and leaves the last row without relevance."""
    analyzer = create("lrp.epsilon", one_conv, epsilon=1e-9)
    np.testing.assert_allclose(analyzer.outputs(IMAGE), [[54] * 4], **EXACT)
    relevance = analyzer.analyze(IMAGE, target=0)
    expected = [[0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]]
    np.testing.assert_allclose(relevance[0, ..., 0], expected, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(relevance.sum(), 54, rtol=1e-9)


def test_captum_one_conv_layer(one_conv):
    """The relevance of the convolution's two channels."""
    analyzer = create("lrp.epsilon", one_conv, epsilon=1e-9)
    start = [[[54, 0, 0, 0]]]
    found = analyzer.propagate(IMAGE, start, layers=("conv",))["conv"][0, 0]
    np.testing.assert_allclose(found[..., 0], [[0, 4], [31, 40]], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found[..., 1], [[0, 0], [-6, -15]], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("guided_backprop", [[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]]),
        ("deconvnet", [[2, 3, 3, 1], [3, 5, 5, 2], [3, 5, 5, 2], [1, 2, 2, 1]]),
    ],
)
def test_captum_one_conv_rectified(name, expected, one_conv):
    """Guided backpropagation and deconvnet start with one."""
    relevance = create(name, one_conv).analyze(IMAGE, target=0)
    np.testing.assert_allclose(relevance[0, ..., 0], expected, **EXACT)


# --- captum: two dense layers ------------------------------------------------------------------

ROW = np.array([[1.0, 2.0, 3.0]])


@pytest.fixture
def two_dense():
    """Returns a function: first weight -> Linear 3 (all 2), ReLU, Linear 1 (all 3), no biases."""

    def build(first_weight=2.0):
        model = sequential(
            (3,),
            keras.layers.Dense(3, use_bias=False, activation="relu", name="first"),
            keras.layers.Dense(1, use_bias=False, name="second"),
        )
        kernel = np.full((3, 3), 2.0)
        kernel[0, 0] = first_weight
        model.set_weights([kernel, np.full((3, 1), 3.0)])
        return model

    return build


def test_captum_two_dense_epsilon(two_dense):
    """Also for several samples, and equal to input times gradient."""
    x = np.concatenate([ROW, 3 * ROW])
    expected = [[18, 36, 54], [54, 108, 162]]
    for name in ("lrp.epsilon", "lrp.z", "input_t_gradient"):
        relevance = create(name, two_dense()).analyze(x, target=0)
        np.testing.assert_allclose(relevance, expected, rtol=1e-7)


def test_captum_two_dense_gamma(two_dense):
    """Gamma 1 in the first layer, 0.25 in the second."""
    model = two_dense(-2.0)
    rows = relevance_rows(Gamma(0.25), Gamma(0.25))
    composite = Composite("gammas", (("first", Gamma(1.0)), *rows))
    relevance = create("lrp.composite", model, composite=composite).analyze(ROW)
    np.testing.assert_allclose(relevance, [[28 / 3, 104 / 3, 52]], **EXACT)


def test_captum_two_dense_alpha_beta(two_dense):
    """Alpha 1 beta 0 in both layers."""
    relevance = create("lrp.alpha_1_beta_0", two_dense(-2.0)).analyze(ROW)
    np.testing.assert_allclose(relevance, [[12, 33.6, 50.4]], **EXACT)


def test_captum_two_dense_hidden(two_dense):
    """What captum's identity rule at the first layer returns is the hidden relevance."""
    analyzer = create("lrp.epsilon", two_dense(-2.0))
    found = analyzer.propagate(ROW, [[[96.0]]], layers=("first",))
    np.testing.assert_allclose(found["first"], [[[24, 36, 36]]], rtol=1e-7)


def test_captum_tanh_passes():
    """Relevance passes an activation unchanged."""
    model = sequential(
        (3,),
        keras.layers.Dense(3, use_bias=False, activation="tanh"),
        keras.layers.Dense(1, use_bias=False),
    )
    model.set_weights([np.full((3, 3), 0.1), np.full((3, 1), 0.1)])
    relevance = create("lrp.epsilon", model).analyze(ROW)
    np.testing.assert_allclose(relevance, [[0.0269, 0.0537, 0.0806]], rtol=0, atol=5e-5)


def test_captum_skip_connection():
    """y = W x + x: the sum shares in proportion to its summands."""
    x = keras.Input((2,))
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Model(x, keras.layers.Add()([dense(x), x]))
    dense.set_weights([np.full((2, 2), 5.0)])
    for options in ({}, {"add": "proportional"}):
        analyzer = create("lrp.epsilon", model, **options)
        relevance = analyzer.analyze(np.array([[2.0, 3.0]]), target=1)
        np.testing.assert_allclose(relevance, [[10, 18]], rtol=1e-7)


def test_captum_reused_layer():
    """A layer that is called twice, which captum refuses: W W x with all weights 2."""
    x = keras.Input((3,))
    shared = keras.layers.Dense(3, use_bias=False, activation="relu", name="shared")
    last = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(x, last(shared(shared(x))))
    shared.set_weights([np.full((3, 3), 2.0)])
    last.set_weights([np.ones((3, 1))])
    analyzer = create("lrp.epsilon", model)
    np.testing.assert_allclose(analyzer.analyze(ROW), [[36, 72, 108]], rtol=1e-6)
    found = analyzer.propagate(ROW, [[[216.0]]], layers=("shared", "shared@1"))
    np.testing.assert_allclose(found["shared"], [[[72, 72, 72]]], rtol=1e-6)
    np.testing.assert_allclose(found["shared@1"], [[[72, 72, 72]]], rtol=1e-6)


# --- captum: max pooling in one to three dimensions --------------------------------------------


def test_captum_max_pool_1d():
    """The two features of a position are equal, and the first one wins."""
    model = sequential(
        (2, 2),
        keras.layers.Dense(2, use_bias=False),
        keras.layers.Permute((2, 1), name="permute"),
        keras.layers.MaxPooling1D(2),
    )
    kernel = np.array([[2.0, 2.0], [2.0, 2.0]])
    model.set_weights([kernel])
    x = np.array([[[1.0, 2.0], [5.0, 6.0]]])
    analyzer = create("lrp.epsilon", model)
    relevance = analyzer.analyze(x, target=(0, 1))
    np.testing.assert_allclose(relevance, [[[0, 0], [10, 12]]], rtol=1e-7)
    # Which of the equal features won shows when the second one's weights count apart.
    found = analyzer.propagate(x, [[[[0.0, 22.0]]]], layers=("permute",))["permute"]
    np.testing.assert_allclose(found[0, 0], [[0, 22], [0, 0]], **EXACT)


@pytest.mark.parametrize(
    ("layer", "values", "expected"),
    [
        (keras.layers.MaxPooling2D, [[1, 2], [5, 6]], [[0, 0], [0, 6]]),
        (
            keras.layers.MaxPooling3D,
            [[[1, 2], [5, 6]], [[3, 4], [7, 8]]],
            [[[0, 0], [0, 0]], [[0, 0], [0, 8]]],
        ),
    ],
    ids=("2d", "3d"),
)
def test_captum_max_pool(layer, values, expected):
    """All relevance goes to the largest element of the window."""
    x = np.array(values, dtype="float64")[None, ..., None]
    relevance = create("lrp.epsilon", sequential(x.shape[1:], layer(2))).analyze(x)
    np.testing.assert_array_equal(relevance[0, ..., 0], expected)


# --- captum: several inputs --------------------------------------------------------------------


def test_captum_multi_input():
    """Two inputs that are added: captum gives each of them what their sum gets.

    Its (16, 32, 48) for either one exceeds the output 88 by 104. Here the sum gets (16, 32, 48),
    and its summands share that; what is left, 88 - 96 = -8, are the biases.
    """
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    total = keras.layers.Add(name="total")([a, b])
    first = keras.layers.Dense(4, activation="relu")
    second = keras.layers.Dense(2)
    model = keras.Model([a, b], second(first(total)))
    first.set_weights([np.ones((3, 4)), np.array([-10, 1, 1, 1])])
    second.set_weights([np.ones((4, 2)), np.array([-1, 1])])
    analyzer = create("lrp.epsilon", model)
    np.testing.assert_allclose(analyzer.outputs([ROW, 3 * ROW]), [[88, 90]], **EXACT)
    found = analyzer.propagate([ROW, 3 * ROW], [[[88.0, 0.0]]], layers=("total",))
    np.testing.assert_allclose(found["total"], [[[16, 32, 48]]], rtol=1e-6)
    relevance = analyzer.analyze([ROW, 3 * ROW], target=0)
    np.testing.assert_allclose(relevance[0], [[4, 8, 12]], rtol=1e-6)
    np.testing.assert_allclose(relevance[1], [[12, 24, 36]], rtol=1e-6)


# --- captum, deeplift: integrated gradients ----------------------------------------------------


@pytest.fixture(scope="module")
def difference_of_relus():
    """relu(relu(a) - 1 - relu(b)): on the way to (3, 1) the gradient is 0 up to half way."""
    a, b = keras.Input((1,), name="a"), keras.Input((1,), name="b")
    positive = [keras.layers.ReLU()(tensor) for tensor in (a, b)]
    joined = keras.layers.Concatenate()(positive)
    dense = keras.layers.Dense(1, activation="relu")
    model = keras.Model([a, b], dense(joined))
    dense.set_weights([np.array([[1.0], [-1.0]]), np.array([-1.0])])
    return model


@pytest.mark.parametrize(
    ("quadrature", "share"),
    [
        ("gauss_legendre", 1 / 2),
        ("midpoint", 1 / 2),
        ("right", 1 / 2),
        # At the left ends one point more lies on the closed side.
        ("innvestigate", 1 / 2 - 1 / 50),
        ("trapezoid", 1 / 2),
    ],
)
def test_captum_integrated_gradients(quadrature, share, difference_of_relus):
    """(1.5, -0.5) with all quadratures, exactly, since the points lie evenly about the kink."""
    x = [np.array([[3.0]]), np.array([[1.0]])]
    analyzer = create("integrated_gradients", difference_of_relus, steps=50, quadrature=quadrature)
    first, second = analyzer.analyze(x, target=0)
    np.testing.assert_allclose([first[0, 0], second[0, 0]], [3 * share, -1 * share], **EXACT)


def test_deeplift_integrated_gradients():
    """relu(2.5 - a - 4 b) from 0.1 to 1.1 is open for 4 of 10 midpoints."""
    model = sequential((2,), keras.layers.Dense(1, activation="relu"))
    model.set_weights([np.array([[-1.0], [-4.0]]), np.array([2.5])])
    analyzer = create("integrated_gradients", model, steps=10, quadrature="midpoint", baseline=0.1)
    relevance = analyzer.analyze(np.array([[1.1, 1.1]]), target=0)
    np.testing.assert_allclose(relevance, [[-0.4, -1.6]], rtol=1e-6)


# --- deeplift: gradients of dense layers, convolutions, pooling --------------------------------


def test_deeplift_dense_gradient():
    """w1 where the ReLU is open, 0 where it is closed, w2 without it."""
    weights = [np.array([[1, -1], [2, -2], [3, -3], [4, -4.0]]), np.array([-1.0, 1.0])]
    x = np.array([[1.0] * 4, [2.0] * 4])
    gated = sequential((4,), keras.layers.Dense(2, activation="relu"))
    linear = sequential((4,), keras.layers.Dense(2))
    gated.set_weights(weights)
    linear.set_weights(weights)
    gradient = create("gradient", gated)
    np.testing.assert_allclose(gradient.outputs(x), [[9, 0], [19, 0]], **EXACT)
    relevance = gradient.analyze(x, target="all")
    np.testing.assert_allclose(relevance, [[[1, 2, 3, 4], [0] * 4]] * 2, **EXACT)
    relevance = create("gradient", linear).analyze(x, target="all")
    np.testing.assert_allclose(relevance, [[[1, 2, 3, 4], [-1, -2, -3, -4]]] * 2, **EXACT)


@pytest.mark.parametrize(
    ("stride", "outputs", "expected"),
    [
        (1, [[19, 17, 15], [3, 1, -1]], [[-4, -6, -6, -2], [0, 2, 2, 2]]),
        (2, [[19, 15], [3, -1]], [[-4, -2, -4, -2], [0, 2, 0, 2]]),
    ],
)
def test_deeplift_conv1d_gradient(stride, outputs, expected):
    """Kernels 0..3 - 2 and their negative, biases -1 and 1, read by +1 and -1."""
    model = sequential(
        (4, 2),
        keras.layers.Conv1D(2, 2, strides=stride, name="conv"),
        keras.layers.Flatten(),
        keras.layers.Dense(1),
    )
    kernel = np.arange(4.0).reshape(2, 2) - 2  # (channel, position)
    steps = len(outputs[0])
    model.set_weights(
        [
            np.stack([kernel, -kernel]).transpose(2, 1, 0),
            np.array([-1.0, 1.0]),
            np.tile([[1.0], [-1.0]], (steps, 1)),
            np.array([1.0]),
        ]
    )
    x = np.arange(16.0).reshape(2, 2, 4).transpose(0, 2, 1) - 8
    analyzer = create("gradient", model)
    # The second channel is the negative of the first one, so that the output is twice its sum.
    np.testing.assert_allclose(analyzer.outputs(x)[:, 0], 2 * np.sum(outputs, 1) + 1, **EXACT)
    found = analyzer.analyze(x, target=0)
    np.testing.assert_allclose(found, np.stack([np.transpose(expected)] * 2), **EXACT)


def pooled(layer, shape, outputs):
    """Pooling with stride 1, read with weight 2 in the first channel and 3 in the second."""
    model = sequential(shape, layer, keras.layers.Flatten(), keras.layers.Dense(1))
    model.set_weights([np.tile([[2.0], [3.0]], (outputs, 1)), np.array([1.0])])
    return model


def test_deeplift_pool_1d_gradient():
    """Overlapping windows: an element wins as often as it is the largest of one."""
    channels = [[[0, 1, 4, 3], [3, 2, 1, 0]], [[0, -1, -2, -3], [-3, -2, -1, 0]]]
    x = np.array(channels, dtype="float64").transpose(0, 2, 1)
    model = pooled(keras.layers.MaxPooling1D(2, strides=1), (4, 2), 3)
    wins = np.array([[[0, 1, 2, 0], [1, 1, 1, 0]], [[1, 1, 1, 0], [0, 1, 1, 1]]])
    expected = wins.transpose(0, 2, 1) * [2, 3]
    np.testing.assert_allclose(create("gradient", model).analyze(x), expected, **EXACT)
    model = pooled(keras.layers.AveragePooling1D(2, strides=1), (4, 2), 3)
    expected = np.array([[1, 2, 2, 1]] * 2).T * [1.0, 1.5]
    relevance = create("gradient", model).analyze(x)
    np.testing.assert_allclose(relevance, [expected, expected], **EXACT)


def test_deeplift_pool_2d_gradient():
    """Overlapping windows in two dimensions."""
    first = [[2, 0, 2, 3], [0, 1, 4, 0], [7, 6, 5, 0], [6, 0, 8, 9]]
    second = [[0, 0, 2, 3], [0, 1, 0, 0], [0, 5, 4, 0], [6, 0, 7, 8]]
    # The second sample has the channels exchanged and one added everywhere.
    x = np.array([[first, second], [second, first]], dtype="float64").transpose(0, 2, 3, 1)
    x[1] += 1
    model = pooled(keras.layers.MaxPooling2D(2, strides=1), (4, 4, 2), 9)
    wins = np.array(
        [
            [[1, 0, 0, 0], [0, 0, 2, 0], [2, 1, 1, 0], [0, 0, 1, 1]],
            [[0, 0, 1, 1], [0, 1, 0, 0], [0, 2, 1, 0], [1, 0, 1, 1]],
        ]
    )
    expected = np.stack([wins, wins[::-1]]).transpose(0, 2, 3, 1) * [2, 3]
    np.testing.assert_allclose(create("gradient", model).analyze(x), expected, **EXACT)
    model = pooled(keras.layers.AveragePooling2D(2, strides=1), (4, 4, 2), 9)
    counts = np.outer([1, 2, 2, 1], [1, 2, 2, 1])[..., None] * [0.5, 0.75]
    relevance = create("gradient", model).analyze(x)
    np.testing.assert_allclose(relevance, [counts, counts], **EXACT)


# --- xplique: the gate of guided backpropagation -----------------------------------------------


def test_xplique_guided_gate():
    """-relu(x)^2 has a gradient <= 0 everywhere, so that guided backpropagation gives 0."""
    x = keras.Input((4,))
    rectified = keras.layers.ReLU()(x)
    square = keras.layers.Multiply()([rectified, rectified])
    dense = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(x, dense(square))
    dense.set_weights([-np.ones((4, 1))])
    values = np.array([[5.0, 0.0, -5.0, 10.0]])
    plain = create("gradient", model).analyze(values)
    np.testing.assert_allclose(plain, [[-10, 0, 0, -20]], **EXACT)
    guided = create("guided_backprop", model).analyze(values)
    np.testing.assert_array_equal(guided, np.zeros((1, 4)))
