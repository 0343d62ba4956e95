"""Sums of one sign that are small against those of the other: as exact as when summed directly."""

from dataclasses import dataclass

import keras
import numpy as np
import pytest
from keras import layers

import tfexplain
from tfexplain.composites import Composite
from tfexplain.rules import ContributionRule, Group

RATIOS = (0.5, 0.1, 1e-2, 1e-3, 1e-5, 5e-7, 2e-7, 1e-10)


def dense(kernel, *more):
    """Dense layers without bias, all but the last with a ReLU."""
    kernels = [kernel, *more]
    stack = [layers.Dense(k.shape[1], use_bias=False, activation="relu") for k in kernels[:-1]]
    stack.append(layers.Dense(kernels[-1].shape[1], use_bias=False))
    model = keras.Sequential([keras.Input((len(kernel),)), *stack])
    for layer, weights in zip(model.layers, kernels, strict=True):
        layer.set_weights([weights.astype("float32")])
    return model


def positive(*shape, seed):
    return np.random.default_rng(seed).uniform(0.1, 1, shape)


def with_few_negative(rows, columns, size, seed, count=2):
    """A positive kernel with a few small negative weights in each column."""
    generator = np.random.default_rng(seed)
    kernel = positive(rows, columns, seed=seed) / rows
    for column in range(columns):
        kernel[generator.choice(rows, count, replace=False), column] = -size
    return kernel


def of_direct_sums(x, kernels, alpha, beta):
    """alpha-beta of the first output by sums of each sign themselves, in the precision of x."""
    activations = [x]
    for kernel in kernels[:-1]:
        activations.append(np.maximum(activations[-1] @ kernel, 0))
    relevance = np.zeros((len(x), kernels[-1].shape[1]), x.dtype)
    relevance[:, 0] = (activations[-1] @ kernels[-1])[:, 0]
    for a, kernel in zip(activations[::-1], kernels[::-1], strict=True):
        found = np.zeros_like(a)
        for factor, part in ((alpha, np.maximum(kernel, 0)), (-beta, np.minimum(kernel, 0))):
            sums = a @ part
            share = np.divide(relevance, sums, out=np.zeros_like(sums), where=sums != 0)
            found += np.asarray(factor, x.dtype) * a * (share @ part.T)
        relevance = found
    return relevance


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def errors(x, kernels, alpha=2, beta=1):
    """The error of the library in float32, and that of direct sums in float32."""
    kernels = [kernel.astype("float32") for kernel in kernels]
    expected = of_direct_sums(
        x.astype("float64"), [k.astype("float64") for k in kernels], alpha, beta
    )
    direct = of_direct_sums(x.astype("float32"), kernels, alpha, beta)
    options = {"alpha": alpha, "beta": beta}
    analyzer = tfexplain.create_analyzer("lrp.alpha_beta", dense(*kernels), **options)
    found = analyzer.analyze(x.astype("float32"), target=0)
    return error(found, expected), max(error(direct, expected), 1e-7)


@pytest.mark.parametrize("ratio", RATIOS)
def test_one_neuron(ratio):
    """The share of the negative sum is all of -beta R, however small the sum is."""
    model = dense(np.array([[1.0], [-ratio]]))
    found = tfexplain.create_analyzer("lrp.alpha_2_beta_1", model).analyze(np.ones((1, 2), "f4"))
    np.testing.assert_allclose(found / (1 - np.float32(ratio)), [[2, -1]], rtol=3e-7)


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("alpha", [2, 5])
def test_few_small_negative_weights(size, alpha):
    kernels = [with_few_negative(784, 64, size, 2), with_few_negative(64, 5, size, 3)]
    x = positive(4, 784, seed=4)
    found, direct = errors(x, kernels, alpha, alpha - 1)
    assert found <= 10 * direct


def test_negative_contributions_that_are_small_where_the_input_is():
    """Weights of both signs alike: it is the activations that make the negative sum small."""
    generator = np.random.default_rng(5)
    kernel = generator.normal(size=(200, 40)) / 14
    x = np.where(kernel[:, :1].T > 0, 1.0, 1e-5) * generator.uniform(0.5, 1, (3, 200))
    kernels = [kernel, np.abs(generator.normal(size=(40, 3)))]
    found, direct = errors(x, kernels)
    assert found <= 10 * direct


def test_outputs_of_both_signs_that_no_relu_follows():
    kernels = [with_few_negative(300, 6, 1e-5, 7)]
    kernels[0][:, 3:] *= -1
    x = positive(3, 300, seed=8)
    analyzer = tfexplain.create_analyzer("lrp.alpha_2_beta_1", dense(*kernels))
    exact = tfexplain.create_analyzer("lrp.alpha_2_beta_1", dense(*kernels), dtype="float64")
    for target in (0, 3):
        found, expected = (a.analyze(x, target=target) for a in (analyzer, exact))
        assert error(found, expected) < 2e-6


@dataclass(frozen=True)
class Smaller(ContributionRule):
    """A rule of a user's own: to outputs > 0 negative contributions, and the other way round."""

    @property
    def groups(self):
        return (Group(0, 1, gate="positive"), Group(1, 0, gate="negative"))


def test_a_rule_that_shares_the_smaller_sum():
    kernels = [with_few_negative(300, 6, 1e-5, 7)]
    kernels[0][:, 3:] *= -1
    x = positive(3, 300, seed=8)
    options = {"composite": Composite("smaller", (((layers.Dense,), Smaller()),))}
    model = dense(*kernels)
    analyzer = tfexplain.create_analyzer("lrp.composite", model, **options)
    exact = tfexplain.create_analyzer("lrp.composite", model, dtype="float64", **options)
    for target in (0, 3):
        found, expected = (a.analyze(x, target=target) for a in (analyzer, exact))
        assert error(found, expected) < 2e-6


@pytest.mark.parametrize("bias", ["split", "ignore", "full"])
def test_biases_that_hide_one_of_the_sums(bias):
    """Large biases of both signs in front of a ReLU."""
    model = keras.Sequential(
        [
            keras.Input((50,)),
            layers.Dense(30, activation="relu"),
            layers.Dense(4),
        ]
    )
    generator = np.random.default_rng(9)
    kernel = generator.normal(size=(50, 30)) * np.where(generator.random((50, 30)) < 0.1, 1e-4, 1)
    offsets = generator.choice([-20.0, 0.0, 20.0], 30)
    model.set_weights([kernel, offsets, generator.normal(size=(30, 4)), generator.normal(size=4)])
    x = generator.uniform(0, 1, (5, 50)).astype("float32")
    options = {"alpha": 2, "beta": 1, "bias": bias}
    found, expected = (
        tfexplain.create_analyzer("lrp.alpha_beta", model, dtype=dtype, **options).analyze(x, 1)
        for dtype in ("float32", "float64")
    )
    assert error(found, expected) < 1e-4 if bias == "full" else error(found, expected) < 1e-5


def test_a_sample_alone_is_as_in_a_batch():
    kernels = [with_few_negative(784, 64, 1e-6, 2), with_few_negative(64, 5, 1e-6, 3)]
    x = positive(30, 784, seed=4).astype("float32")
    analyzer = tfexplain.create_analyzer("lrp.alpha_2_beta_1", dense(*kernels))
    whole = analyzer.analyze(x, target=1)
    alone = np.concatenate([analyzer.analyze(x[i : i + 1], target=1) for i in range(30)])
    assert error(alone, whole) < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_the_ledger_closes(dtype, tolerance):
    kernels = [with_few_negative(784, 256, 1e-5, 2), np.random.default_rng(3).normal(size=(256, 5))]
    model = dense(*kernels)
    x = positive(4, 784, seed=4).astype("float32")
    ledger = tfexplain.create_analyzer("lrp.alpha_2_beta_1", model, dtype=dtype).ledger(x, target=1)
    scale = np.maximum(np.abs(ledger.received), np.abs(ledger.kept))
    assert (np.abs(ledger.lost) <= tolerance * scale).all()


def test_the_ledger_of_a_convolution_closes():
    inputs = keras.Input((12, 12, 3))
    h = layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.MaxPooling2D()(h))))
    generator = np.random.default_rng(1)
    kernel, offset = model.get_layer("conv").get_weights()
    kernel = np.abs(kernel)
    kernel[generator.random(kernel.shape) < 0.05] *= -1e-5
    model.get_layer("conv").set_weights([kernel, offset])
    x = generator.uniform(0.1, 1, (3, 12, 12, 3)).astype("float32")
    maps = {}
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
        analyzer = tfexplain.create_analyzer("lrp.alpha_2_beta_1", model, dtype=dtype)
        ledger = analyzer.ledger(x, target=1)
        scale = np.maximum(np.abs(ledger.received), np.abs(ledger.kept))
        assert (np.abs(ledger.lost) <= tolerance * scale).all()
        maps[dtype] = analyzer.analyze(x, target=1)
    assert error(maps["float32"], maps["float64"]) < 1e-5


@pytest.mark.compiled
def test_xla_and_an_export_keep_the_digits(tmp_path):
    import tensorflow as tf

    kernels = [with_few_negative(100, 20, 1e-6, 2), with_few_negative(20, 3, 1e-6, 3)]
    x = positive(4, 100, seed=4).astype("float32")
    model = dense(*kernels)
    create = tfexplain.create_analyzer
    expected = create("lrp.alpha_2_beta_1", model, dtype="float64").analyze(x, target=1)
    found = create("lrp.alpha_2_beta_1", model, jit_compile=True).analyze(x, target=1)
    assert error(found, expected) < 2e-6
    create("lrp.alpha_2_beta_1", model).export(tmp_path / "served")
    served = tf.saved_model.load(tmp_path / "served").signatures["explain"]
    (name,) = set(served.structured_input_signature[1]) - {"target"}
    relevance = served(**{name: x, "target": np.ones(4, "int32")})["relevance"].numpy()
    assert error(relevance.reshape(expected.shape), expected) < 2e-6


def test_inputs_near_the_bounds_of_the_box():
    """x - low is summed itself, not z - low W+ - high W-, of which the digits cancel."""
    generator = np.random.default_rng(6)
    kernels = [generator.normal(size=(60, 20)), generator.normal(size=(20, 3))]
    x = np.where(generator.random((4, 60)) < 0.5, -1 + 1e-4, 1 - 1e-4).astype("float32")
    x[0] = np.float32(-1 + 1e-4)
    options = {"low": -1.0, "high": 1.0}
    found, expected = (
        tfexplain.create_analyzer("deep_taylor.bounded", dense(*kernels), dtype=d, **options)
        for d in ("float32", "float64")
    )
    assert error(found.analyze(x, 1)[0], expected.analyze(x, 1)[0]) < 2e-6
