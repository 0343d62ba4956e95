"""What credits mean, beside "Credit Assignment for Trained Neural Networks": measured, judged."""

import keras
import numpy as np
import pytest

from experiments.claim_table import CONFIRMED, NOT_TESTED, REFUTED
from experiments.koopman2022 import blocks, meaning
from experiments.koopman2022.protocol import DEFINITIONS
from tests.helpers.koopman_experiments import attributes, layers, task_of, verdicts
from tfexplain import koopman


def test_kernels_of_lower_rank():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 6))
    found = meaning.of_rank(kernel, 0.25)
    assert found.shape == kernel.shape
    assert np.linalg.matrix_rank(found.reshape(18, 6)) == 2
    np.testing.assert_allclose(meaning.of_rank(kernel, 1.0), kernel)


def test_losses_of_accuracy():
    """Against a network that is changed by hand; the network itself stays."""
    task = task_of()
    model = blocks.load(task)
    x = blocks.digits(task_of(images=30)).x
    y = blocks.predicted(model, x)
    found = koopman.blocks(model)
    weights = [weight.copy() for weight in model.get_weights()]
    noise, reduced = meaning.changed_kernels(task, model, found, x, y, 1)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert noise.shape == (4, 5) and np.isnan(noise[:, 1]).all() and np.isnan(reduced[:, 1]).all()
    copy = blocks.load(task_of())
    kernel = copy.get_layer("fc3").kernel
    kernel.assign(meaning.of_rank(kernel.numpy(), 0.125))
    assert reduced[0, 3] == pytest.approx(1 - (blocks.predicted(copy, x) == y).mean())
    losses = meaning.output_noise(task, found, x, y, 1)
    assert losses.shape == (4, 5) and (losses >= 0).all() and (losses[-1, 1:] > 0).all()


def test_attributions_at_blocks():
    """By hand at the last block: z = 0 gives x_i w_ij, and the gradient is the kernel."""
    model = blocks.load(task_of())
    x = blocks.digits(task_of(images=3)).x
    found = meaning.attributions(model, koopman.blocks(model), x)
    units = keras.Model(model.inputs[0], model.get_layer("relu3").output)(x).numpy()
    logits = model(x).numpy()
    targets = logits.argmax(axis=1)
    kernel = model.get_layer("fc4").kernel.numpy()[:, targets].T
    np.testing.assert_allclose(found["gradient"][-1], np.abs(kernel).sum(axis=1).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        found["relevance"][-1], np.abs(units * kernel).sum(axis=1).mean(), rtol=1e-3
    )


def test_rank_correlations():
    value, p, count = meaning.ranked(np.arange(4.0), np.array([1.0, 2.0, 3.0, 4.0]))
    assert (value, p, count) == (pytest.approx(1), pytest.approx(1 / 24), 4)
    value, p, _ = meaning.ranked(np.arange(4.0), np.array([4.0, 3.0, 2.0, 1.0]))
    assert (value, p) == (pytest.approx(-1), 1)
    value, p, count = meaning.ranked(np.arange(4.0), np.array([1.0, np.nan, 3.0, 4.0]))
    assert np.isnan([value, p]).all() and count == 3
    assert np.isnan(meaning.ranked(np.arange(4.0), np.ones(4))[0])


def meant(credit=(1, 2, 3, 4, 5.0), noise=(1, 2, 3, 4, 5.0), kernel=(1, np.nan, 3, 4, 5.0)):
    """A Dataset as `meaning.compute` makes it."""
    return (
        layers(credit)
        .assign(
            {
                "output_noise": (("level", "block"), np.tile(noise, (2, 1))),
                "kernel_noise": (("level", "block"), np.tile(kernel, (2, 1))),
                "rank_reduced": (("part_of_rank", "block"), np.tile(kernel, (2, 1))),
                "relevance": ("block", [1, 2, 3, 4, 5.0]),
                "gradient": ("block", [5, 4, 3, 2, 1.0]),
            }
        )
        .assign_coords(input_size=("block", [5, 1, 1, 1, 1]))
        .assign_attrs(attributes("meaning", accuracy=0.9, draws=1))
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, CONFIRMED),
        ({"credit": (5, 4, 3, 2, 1.0)}, REFUTED),
        ({"noise": (5, 4, 3, 2, 1.0)}, REFUTED),
        ({"kernel": (5, np.nan, 4, 3, 2.0)}, REFUTED),
        ({"kernel": (1, np.nan, np.nan, 4, 5.0)}, NOT_TESTED),
        ({"noise": (1, 1, 1, 1, 1.0)}, NOT_TESTED),
    ],
)
def test_verdicts_on_meaning(changes, expected):
    found = verdicts(meaning.judge(meant(**changes)))
    assert found["K-C11", "log-volume"] == expected
    assert len(found) == len(DEFINITIONS)


def test_other_methods_stand_beside_credit():
    (found, second, *_) = meaning.judge(meant())
    assert found.numbers["Spearman correlation with the sum of |gradient|"] == pytest.approx(-1)
    assert found.numbers["conv1: mean |gradient|"] == 1
    assert found.numbers["accuracy"] == 0.9 and "accuracy" not in second.numbers


def test_meaning_is_drawn():
    (figure,) = meaning.draw([meant()]).values()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "credit: log-volume" and labels[-1] == "mean |gradient|"
    assert len(labels) == len(DEFINITIONS) + 7
