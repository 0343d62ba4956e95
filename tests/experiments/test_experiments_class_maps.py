"""Maps of two classes and their difference, against numbers worked out by hand."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.sixt2020 import class_maps

# Percentiles of 0, 1, ..., 200 are the numbers / 2.
RAMP = np.arange(201.0)


def relevance(seed=0, shape=(2, 6, 8, 3)):
    return np.random.default_rng(seed).normal(size=shape)


# --- magnitudes ----------------------------------------------------------------------------------


def test_both_signs_have_percentiles_of_their_own():
    # -100, ..., 300: the percentiles 0.5 and 99.5 are -98 and 298.
    values = np.random.default_rng(0).permutation(np.arange(-100.0, 301))
    expected = np.where(values > 0, values / 298, -values / 98)
    found = class_maps.magnitudes(values)
    np.testing.assert_allclose(found, np.minimum(expected, 1), atol=1e-15)
    assert found.max() == 1 and (found == 1).sum() == 3 + 3
    # The percentiles change sides with the signs.
    np.testing.assert_allclose(class_maps.magnitudes(-values), found, atol=1e-15)
    np.testing.assert_allclose(class_maps.magnitudes(7 * values), found, atol=1e-15)
    np.testing.assert_array_equal(class_maps.magnitudes(values.reshape(1, 401)).ravel(), found)


def test_one_strict_sign_is_not_clipped():
    values = RAMP + 1
    found = class_maps.magnitudes(values)
    np.testing.assert_allclose(found, values / 200)
    assert found.max() == 201 / 200
    np.testing.assert_allclose(class_maps.magnitudes(-values), found)
    # A single 0 makes it a map of two signs, which is clipped.
    np.testing.assert_allclose(class_maps.magnitudes(RAMP), np.minimum(RAMP / 199, 1))


def test_a_few_values_of_the_other_sign():
    # The 0.5th percentile of -1, 1, 2, ..., 400 is 2: positive, its magnitude counts.
    values = np.array([-1.0, *range(1, 401)])
    found = class_maps.magnitudes(values)
    assert found[0] == 1 / 2
    np.testing.assert_allclose(found[1:], np.minimum(np.arange(1, 401) / 398, 1))


def test_sparse_maps_fall_back_to_their_largest_value():
    values = np.zeros(1001)
    values[:3] = 4, 1, -2
    np.testing.assert_array_equal(class_maps.magnitudes(values)[:4], [1, 0.25, 1, 0])


@pytest.mark.parametrize("values", [np.zeros(5), [1.0, np.nan], [1.0, np.inf]], ids=str)
def test_maps_without_a_scale_are_missing(values):
    found = class_maps.magnitudes(values)
    assert found.shape == np.shape(values) and np.isnan(found).all()


# --- preparation ---------------------------------------------------------------------------------


def test_prepared_maps():
    given = relevance()
    before = given.copy()
    first, second, difference, distance = class_maps.two_class_maps(given)
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(first, class_maps.magnitudes(given[0].sum(-1)))
    np.testing.assert_array_equal(second, class_maps.magnitudes(given[1].sum(-1)))
    apart = class_maps.magnitudes(given[0]) - class_maps.magnitudes(given[1])
    assert distance == pytest.approx(np.abs(apart).mean(), rel=1e-12)
    total = apart.sum(-1)
    np.testing.assert_allclose(difference, np.clip(total, *np.percentile(total, [1, 99])))
    assert difference.max() < total.max() and difference.min() > total.min()


def test_opposite_maps_look_the_same():
    given = relevance()[0]
    found = class_maps.two_class_maps(np.stack([given, -3 * given]))
    np.testing.assert_allclose(found.first, found.second)
    assert found.distance == pytest.approx(0, abs=1e-15)
    assert not found.difference.round(12).any()


def test_zero_stays_zero():
    found = class_maps.two_class_maps(np.stack([np.zeros((6, 8, 3)), np.ones((6, 8, 3))]))
    assert not found.first.any() and (found.second == 1).all()
    assert found.distance == 1 and (found.difference == -3).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 4, 4, 3)), r"relevance has shape \(3, 4, 4, 3\). Expected \(2, height"),
        (np.zeros((2, 4, 4)), r"relevance has shape \(2, 4, 4\)"),
        (np.zeros((2, 0, 4, 3)), r"relevance has shape \(2, 0, 4, 3\)"),
        (np.full((2, 4, 4, 3), np.nan), "relevance has NaN"),
    ],
)
def test_wrong_relevance(values, message):
    with pytest.raises(ValueError, match=message):
        class_maps.two_class_maps(values)


# --- drawing -------------------------------------------------------------------------------------


def test_two_classes(tmp_path):
    given = {"lrp.z": relevance(), "gradient": relevance(1)}
    image = relevance(2)[0]
    figure = class_maps.draw_two_classes(given, image, titles=("cat", "dog"))
    cells = np.array(figure.axes[:8]).reshape(2, 4)
    assert [ax.get_title() for ax in cells[0]] == ["", "cat", "dog", "difference"]
    assert [row[1].get_ylabel() for row in cells] == list(given)
    assert len(cells[0, 0].images) == 1 and not cells[1, 0].images
    for row, values in zip(cells, given.values(), strict=True):
        prepared = class_maps.two_class_maps(values)
        for ax, map in zip(row[1:], prepared[:3], strict=True):
            (shown,) = ax.images
            np.testing.assert_array_equal(shown.get_array(), map)
            assert shown.norm.vmin == -shown.norm.vmax
        assert [ax.images[0].norm.vmax for ax in row[1:3]] == [1, 1]
        limit = np.abs(prepared.difference).max()
        assert row[3].images[0].norm.vmax == limit
        expected = f"\N{PLUS-MINUS SIGN}{limit:.2g} ({prepared.distance:.2g})"
        assert row[3].get_xlabel() == expected
    figure.savefig(tmp_path / "a.png")
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_given_axes():
    figure = Figure()
    axes = figure.subplots(1, 3)
    assert class_maps.draw_two_classes(relevance(), ax=axes) is figure
    assert all(len(ax.images) == 1 for ax in axes)
    with pytest.raises(ValueError, match=r"ax has 3 Axes. Expected \(1, 4\): .* the image, both"):
        class_maps.draw_two_classes(relevance(), relevance()[0], ax=axes)


@pytest.mark.parametrize(
    ("given", "titles"), [({}, ("a", "b")), ({"a": relevance()}, ("a",))], ids=["empty", "titles"]
)
def test_wrong_numbers(given, titles):
    with pytest.raises(ValueError, match="Expected at least one method, and two titles"):
        class_maps.draw_two_classes(given, titles=titles)
