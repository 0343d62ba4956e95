"""Small numerical helpers that rules share."""

import numpy as np
import pytest
import tensorflow as tf

from tfexplain.numerics import Stabilizer, negative, positive, weighted

FACTORS = [(1, 1), (0, 0), (2, 2), (1, 0), (0, 1), (3, 0), (0, -2), (1.25, 1), (1, 1.25)]


@pytest.mark.parametrize("runs", ["eagerly", "compiled"])
@pytest.mark.parametrize(("above", "below"), [*FACTORS, (3, 0.5), (-1, 2), (2, -1)])
def test_each_part_has_its_factor(above, below, runs):
    """TensorFlow took max(x, 1.25 x) for a leaky ReLU of slope 1.25, where it is compiled."""
    x = np.array([-3, -1e-3, -0.0, 0, 2e-3, 5, np.nan], "float32")
    expected = above * np.maximum(x, 0) + below * np.minimum(x, 0)

    def function(x):
        return weighted(x, above, below)

    if runs == "compiled":
        function = tf.function(function, input_signature=[tf.TensorSpec([None], "float32")])
    np.testing.assert_array_equal(function(tf.constant(x)), expected)


def test_parts_add_up():
    x = tf.constant([-3.0, 0.0, 2.0])
    np.testing.assert_array_equal(positive(x), [0, 0, 2])
    np.testing.assert_array_equal(negative(x), [-3, 0, 0])


@pytest.mark.parametrize("relative", [False, True])
def test_above_zero_epsilon_needs_no_sign(relative):
    z = tf.constant([[0.5, 1.0, 4.0]])
    stabilizer = Stabilizer(0.25, relative)
    np.testing.assert_array_equal(stabilizer(z, is_above=True), stabilizer(z))
    assert (stabilizer(z) > z).numpy().all()
