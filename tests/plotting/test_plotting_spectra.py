"""Plots of spectra and of the terms of explanations, from Datasets made by hand."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tfexplain import plotting


@pytest.fixture
def values():
    found = np.array([[[4.0, 2.0, 1.0], [8.0, 2.0, np.nan]], [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    return xr.Dataset(
        {
            "singular_value": (("analyzer", "sample", "rank"), found),
            "ssm": (("analyzer", "sample"), np.array([[1.2, 1.4], [1.7, 1.7]])),
        },
        {"analyzer": ["gamma", "flat"], "sample": [0, 1], "rank": [1, 2, 3]},
    )


@pytest.fixture
def terms():
    term = np.zeros((2, 3, 4, 5))
    term[:, 0] = 2.0
    term[:, 1, 0, 0] = -7.0
    rest = np.full((2, 4, 5), 0.5)
    return xr.Dataset(
        {
            "term": (("sample", "rank", "row", "column"), term),
            "rest": (("sample", "row", "column"), rest),
            "explanation": (("sample", "row", "column"), term.sum(1) + rest),
            "singular_value": (("sample", "rank"), [[2.0, 1.0, np.nan]] * 2),
        },
        {"sample": [0, 1], "rank": [1, 2, 3]},
    )


def test_medians_of_singular_values(values):
    ax = plotting.singular_values(values)
    first, second = ax.get_lines()
    np.testing.assert_allclose(first.get_ydata(), [6, 2, 1])
    np.testing.assert_allclose(second.get_ydata(), [1, 1, 1])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "gamma: SSM 1.30",
        "flat: SSM 1.70",
    ]
    assert ax.get_yscale() == "log" and ax.get_xscale() == "linear"


def test_what_is_rounding_is_not_drawn(values):
    small = values.copy(deep=True)
    small["singular_value"][1, :, 2] = 1e-30
    first, second = plotting.singular_values(small).get_lines()
    np.testing.assert_allclose(first.get_ydata(), [6, 2, 1])
    np.testing.assert_allclose(second.get_ydata(), [1, 1, np.nan])


def test_an_analyzer_without_values_is_left_out(values):
    values["singular_value"][0] = np.nan
    (line,) = plotting.singular_values(values).get_lines()
    assert line.get_label() == "flat: SSM 1.70"


def test_lines_of_many_methods_differ(values):
    many = xr.concat([values.isel(analyzer=0)] * 40, "analyzer")
    many = many.assign_coords(analyzer=[f"m{place}" for place in range(40)])
    lines = plotting.singular_values(many).get_lines()
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in lines}) == 40


def test_many_methods_have_no_quartiles_and_a_legend_beside(values):
    few, many = plotting.singular_values(values), values.isel(analyzer=[0, 1] * 6)
    many = plotting.singular_values(many.assign_coords(analyzer=[f"m{n}" for n in range(12)]))
    assert len(few.collections) == 2 and len(many.collections) == 0
    many.figure.canvas.draw()
    assert many.get_legend().get_window_extent().x0 > many.get_window_extent().x1


def test_given_axes_are_used(values):
    ax = Figure().subplots()
    assert plotting.singular_values(values, ax=ax) is ax


def test_maps_of_a_row_share_their_limits(terms):
    figure = plotting.term_maps(terms)
    images = [image for ax in figure.axes for image in ax.get_images()]
    assert len(images) == 2 * 5
    assert {image.get_clim() for image in images} == {(-7.0, 7.0)}
    np.testing.assert_array_equal(images[0].get_array(), terms["explanation"][0])
    np.testing.assert_array_equal(images[4].get_array(), terms["rest"][0])
    titles = [ax.get_title() for ax in figure.axes[:5]]
    assert titles == ["explanation", "term 1", "term 2", "term 3", "rest"]
    labels = [ax.get_xlabel() for ax in figure.axes[:5]]
    assert labels == ["", "σ = 2", "σ = 1", "", ""]


def test_other_maps_and_too_few_axes_are_refused(terms):
    with pytest.raises(ValueError, match="only images are drawn"):
        plotting.term_maps(terms.rename(row="axis_0", column="axis_1"))
    with pytest.raises(ValueError, match="ax has 4 Axes"):
        plotting.term_maps(terms, ax=Figure().subplots(2, 2))
