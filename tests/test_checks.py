"""Checks of options: what counts as an integer, a number, a flag or a choice."""

import numpy as np
import pytest
import tensorflow as tf

from tfexplain import checks

FLAGS = [True, False, np.True_, np.False_]


@pytest.mark.parametrize("value", [3, np.int32(3), np.int64(3), np.uint8(3)])
def test_integers(value):
    found = checks.integer("count", value, 1, 3)
    assert found == 3 and type(found) is int
    assert checks.optional_integer("count", value, 3) == 3
    assert checks.is_integer(value)


@pytest.mark.parametrize("value", [*FLAGS, 3.0, "3", None, np.float64(3), np.array([3]), 2, 6])
def test_what_is_no_integer_in_range(value):
    with pytest.raises(ValueError, match=r"count must be an integer in 3\.\.5, received .* Why\.$"):
        checks.integer("count", value, 3, 5, hint="Why.")


def test_messages_of_integers():
    with pytest.raises(ValueError, match=r"count must be a positive integer, received 0\.$"):
        checks.integer("count", 0, 1)
    with pytest.raises(ValueError, match=r"count must be an integer >= 2, received True\.$"):
        checks.integer("count", True, 2)
    with pytest.raises(ValueError, match=r"count must be a positive integer, received 0\. Or None"):
        checks.optional_integer("count", 0, 1)
    assert checks.optional_integer("count", None, 1) is None


def test_numbers():
    assert checks.real("epsilon", np.float32(0.5), 0) == 0.5
    assert type(checks.real("epsilon", 1, 0)) is float
    for value in (*FLAGS, "1", None, np.nan, np.inf, -1):
        with pytest.raises(ValueError, match="epsilon must be a finite number >= 0, received"):
            checks.real("epsilon", value, 0)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\), received 1"):
        checks.real("share", 1, 0, 1)


def test_flags():
    for value in FLAGS:
        assert type(checks.flag("rescale", value)) is bool
    for value in (0, 1, "yes", None, np.array([True])):
        with pytest.raises(ValueError, match="rescale must be True or False, received"):
            checks.flag("rescale", value)


def test_choices():
    assert checks.choice("mode", "b", ("a", "b")) == "b"
    assert checks.choice("head", None, (None, "one")) is None
    with pytest.raises(ValueError, match=r"mode must be one of fast, slow, received 'fats'\. Did"):
        checks.choice("mode", "fats", {"fast": 1, "slow": 2})
    with pytest.raises(ValueError, match=r"head must be one of None, 'one', received 1\.$"):
        checks.choice("head", 1, (None, "one"))
    for value in (1, np.array(["a", "b"]), ["a"]):
        with pytest.raises(ValueError, match="mode must be one of a, b, received"):
            checks.choice("mode", value, ("a", "b"))


def test_texts_of_numpy_are_texts():
    known = ("a", "b", 1)
    found = checks.choice("mode", np.str_("b"), known)
    assert found == "b" and type(found) is str
    for value in (np.str_("c"), True, np.int64(1), 1.0):
        with pytest.raises(ValueError, match="mode must be one of 'a', 'b', 1, received"):
            checks.choice("mode", value, known)


@pytest.mark.parametrize("value", ["float32", np.str_("float32"), np.dtype("float32"), tf.float32])
def test_a_dtype_counts_as_its_name(value):
    found = checks.precision_or_none("dtype", value)
    assert found == "float32" and type(found) is str


@pytest.mark.parametrize("value", ["float16", np.dtype("int32"), float, np.float32, 32, tf.int32])
def test_what_is_no_precision(value):
    assert checks.precision_or_none("dtype", None) is None
    with pytest.raises(ValueError, match="dtype must be one of None, 'float32', 'float64', rec"):
        checks.precision_or_none("dtype", value)


def test_frozen_values():
    assert checks.frozen([np.arange(2), np.float32(0.5), "a", None]) == ((0, 1), 0.5, "a", None)
    assert checks.frozen(np.float32) is np.float32
    assert type(checks.frozen(np.str_("a"))) is str


@pytest.mark.parametrize("value", [True, np.True_])
def test_true_is_no_count(value):
    """Audits, draws and batches answer alike."""
    import keras

    import tfexplain
    from tfexplain import audits

    model = keras.Sequential(
        [keras.Input((5, 5, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    x = np.ones((2, 5, 5, 1), "float32")
    gradient = tfexplain.create_analyzer("gradient", model)
    for call in (
        lambda: gradient.analyze(x, batch_size=value),
        lambda: tfexplain.create_analyzer("smoothgrad", model, samples=value),
        lambda: tfexplain.create_analyzer("smoothgrad", model, seed=value),
        lambda: audits.entropy(gradient, x, block_size=value),
        lambda: audits.entropy(gradient, x, batch_size=value),
        lambda: audits.cosine_convergence(gradient, x, num_vectors=value),
        lambda: audits.cosine_convergence(gradient, x, batch_size=value),
        lambda: audits.spectral_terms(gradient, x, num_terms=value),
        lambda: audits.spectrum(gradient, x, num_values=value),
        lambda: audits.random_logit(gradient, x, num_classes=value),
        lambda: audits.pixel_flipping(gradient, x, fill="constant", steps=value),
        lambda: audits.layer_norms(gradient, x, columns=value),
    ):
        with pytest.raises(ValueError, match="integer.*received (np\\.)?True"):
            call()
