"""Feature weights of "Credit Assignment for Trained Neural Networks": measured, judged, drawn."""

import keras
import numpy as np
import pytest
import xarray as xr

import models
from experiments.claim_table import CONFIRMED, NOT_TESTED, REFUTED
from experiments.koopman2022 import blocks, feature_weights
from experiments.runs import Request, Task
from tests.helpers.koopman_experiments import attributes, task_of, verdicts
from tfexplain import koopman


def test_auc_and_correlation():
    weight = np.array([[3.0, 1.0], [2.0, 0.0]])
    stroke = np.array([[True, False], [True, False]])
    assert feature_weights.auc(weight, stroke) == 1
    assert feature_weights.auc(-weight, stroke) == 0
    assert feature_weights.auc(np.array([[1.0, 1.0], [0.0, 0.0]]), stroke) == 0.5
    assert np.isnan(feature_weights.auc(np.ones((2, 2)), stroke))
    assert np.isnan(feature_weights.auc(weight, np.ones((2, 2), bool)))
    among = np.array([[True, True], [False, False]])
    assert feature_weights.auc(np.array([[0.0, 1.0], [9.0, 0.0]]), stroke, among) == 0
    assert feature_weights.correlation(weight, 2 * weight + 1) == pytest.approx(1)
    assert np.isnan(feature_weights.correlation(weight, np.ones((2, 2))))


def test_control_images():
    task = task_of(images=5)
    x = blocks.digits(task).x
    random = feature_weights.random_images(task, x)
    np.testing.assert_array_equal(np.sort(random, axis=None), np.sort(x, axis=None))
    moved = feature_weights.permuted(task, x)
    # One permutation: each place has the same values over images.
    before, after = (values.reshape(5, 36).T for values in (x, moved))
    np.testing.assert_array_equal(np.unique(before, axis=0), np.unique(after, axis=0))
    assert not np.array_equal(moved, x)


def test_least_squares_of_a_linear_network():
    model = keras.Sequential(
        [keras.Input((3, 3, 1)), keras.layers.Flatten(), keras.layers.Dense(4, use_bias=False)]
    )
    x = np.random.default_rng(0).normal(size=(30, 3, 3, 1)).astype("float32")
    found = feature_weights.whole(model, x[:20], x[20:]).sel(operator="whole")
    kernel = model.layers[-1].kernel.numpy()
    np.testing.assert_allclose(
        found["feature_weight"].values.reshape(4, 9), kernel.T, rtol=1e-3, atol=1e-5
    )
    assert found["agreement"] == 1 and found["output_error"] < 1e-5


def test_one_trajectory_copies_its_image():
    """K11: whatever the image is, the weights of the trained network resemble it."""
    model = models.pooled_mlp("mnist")
    image = np.random.default_rng(0).integers(0, 2, size=(1, 9, 9, 1)).astype("float32")
    task = Task(Request(("pooled_mlp",)), "pooled_mlp", "published")
    options = blocks.options(task, model, 1)
    fitted = koopman.credit(model, image, kernels=(), **options)
    weights = fitted["feature_weight"].sel(operator="mean").values
    found = [abs(feature_weights.correlation(weight, image[0])) for weight in weights]
    assert np.mean(found) > 0.6


STROKES = {0: [0, 1, 2, 3], 1: [5, 6, 10], 2: [12, 13, 14, 15]}


def maps(weights, agreement=0.9, protocol="published"):
    """A Dataset as `feature_weights.compute` makes it, of three digits and one condition."""
    digit = np.zeros((3, 16))
    for place, pixels in STROKES.items():
        digit[place, pixels] = 1
    digit = digit.reshape(3, 4, 4)
    image = ("shown", "row", "column")
    return xr.Dataset(
        {
            "weight": (("condition", *image), np.asarray(weights, float)[None]),
            "fitted_image": (("condition", *image), digit[None]),
            "agreement": (("condition", "shown"), np.full((1, 3), agreement)),
            "output_error": (("condition", "shown"), np.full((1, 3), 0.5)),
            "digit": (image, digit),
            "mean_digit": (image, digit),
            "gradient": (image, digit),
            "inked": (("row", "column"), np.ones((4, 4))),
        },
        {
            "condition": ["one digit"],
            "single": ("condition", [1]),
            "label": ("shown", [0, 1, 2]),
            "target": ("shown", [0, 1, 2]),
        },
        attributes("feature_weights", protocol),
    )


def own():
    return maps(np.zeros((3, 4, 4)))["digit"].values


@pytest.mark.parametrize(
    ("weights", "agreement", "expected"),
    [
        (own(), 0.9, (CONFIRMED, CONFIRMED)),
        (own(), 0.79, (CONFIRMED, REFUTED)),
        # Bright where no digit has strokes.
        (1 - own(), 0.9, (REFUTED, CONFIRMED)),
        # The same map for all digits highlights strokes of all.
        (np.tile(own().sum(axis=0), (3, 1, 1)), 0.9, (REFUTED, CONFIRMED)),
        (np.zeros((3, 4, 4)), np.nan, (NOT_TESTED, NOT_TESTED)),
    ],
)
def test_verdicts_on_feature_weights(weights, agreement, expected):
    found = verdicts(feature_weights.judge(maps(weights, agreement)))
    assert (found["K-C3", "one digit"], found["K-C10", "one digit"]) == expected


def test_feature_weights_are_drawn():
    (figure,) = feature_weights.draw([maps(own())]).values()
    assert len(figure.axes) == 3 * 3
    changed = maps(own())
    changed["fitted_image"] = 1 - changed["fitted_image"]
    (figure,) = feature_weights.draw([changed]).values()
    assert len(figure.axes) == 4 * 3
