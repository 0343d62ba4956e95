"""Plots of cosine convergence: what is drawn, from hand-made counts."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from tfexplain import metrics, plotting

LAYERS = ["logits", "conv", "input"]


@pytest.fixture
def dataset():
    """Two analyzers, two starts; all cosines of a cell lie in one bin."""
    bins = len(metrics.BIN_EDGES) - 1
    count = np.zeros((2, 2, 3, bins), int)
    # 1 - |cos| of analyzer (row), start, layer.
    distances = {
        (0, 0): (0.5, 5e-4, 1e-9),
        (1, 0): (0.5, 0.3, 0.2),
        (0, 1): (None, 0.05, 0.0),
        (1, 1): (None, 0.4, 0.4),
    }
    for place, row in distances.items():
        for layer, distance in enumerate(row):
            if distance is not None:
                found = np.searchsorted(metrics.BIN_EDGES, distance, side="right") - 1
                count[(*place, layer, found)] = 10
    q = np.array([0.0, 0.5, 1.0])
    dimensions = ("analyzer", "start", "layer")
    return xr.Dataset(
        {
            "count": ((*dimensions, "bin"), count),
            "quantile": ((*dimensions, "q"), metrics.histogram_quantiles(count, q)),
            "baseline": (dimensions, np.full((2, 2, 3), 0.1)),
        },
        coords={
            "analyzer": ["converges", "does not"],
            "start": ["logits", "conv"],
            "layer": LAYERS,
            "bin": metrics.BIN_EDGES[1:],
            "bin_low": ("bin", metrics.BIN_EDGES[:-1]),
            "q": q,
        },
    )


def test_lines_hold_what_was_measured(dataset):
    names, lines = plotting.convergence_lines(dataset)
    assert names == LAYERS
    np.testing.assert_allclose(1 - lines["converges"], [0.5, 5e-4, 1e-9], rtol=0.05)
    names, lines = plotting.convergence_lines(dataset, "conv")
    assert names == ["conv", "input"]
    assert lines["converges"][1] == 1


@pytest.mark.parametrize("logarithmic", [False, True])
def test_curves(dataset, logarithmic):
    ax = plotting.convergence_curves(dataset, logarithmic=logarithmic, colors={"does not": "k"})
    drawn = {line.get_label(): line for line in ax.get_lines()}
    assert set(drawn) == {"converges", "does not", "random directions"}
    assert drawn["does not"].get_color() == "k"
    values = drawn["converges"].get_ydata()
    expected = [0.5, 5e-4, 1e-9]
    found = values if logarithmic else 1 - values
    np.testing.assert_allclose(found, expected, rtol=0.05)
    assert [label.get_text() for label in ax.get_xticklabels()] == LAYERS
    low, high = ax.get_ylim()
    if logarithmic:
        # 1 is at the top, and the best value is visible.
        assert low > 1 > 1e-9 > high
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert labels[0] == "0" and labels[1] == "$1-10^{-1}$"
    else:
        assert low < 0 and high > 1


def test_shares_and_histogram(dataset):
    shares = plotting.convergence_shares(dataset, "conv")
    np.testing.assert_array_equal(shares["converges"], [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(shares["does not"], [1, 0, 0, 0, 0])
    shares = plotting.convergence_shares(dataset, "input", "conv")
    np.testing.assert_array_equal(shares["converges"], [0, 0, 0, 0, 1])
    figure = Figure()
    ax = plotting.convergence_histogram(dataset, layer="conv", ax=figure.subplots())
    heights = np.array([[bar.get_height() for bar in bars] for bars in ax.containers])
    np.testing.assert_array_equal(heights, [[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["converges", "does not"]
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["[0, 0.9)", "[0.9, 0.99)", "[0.99, 0.999)", "[0.999, 0.9999)", "[0.9999, 1]"]


def test_edges_of_bins_belong_to_the_larger_cosine(dataset):
    # 1 - |cos| of a tenth is the edge of two bins.
    count = np.zeros_like(dataset["count"])
    above = np.searchsorted(metrics.BIN_EDGES, 0.1 * (1 + 1e-9))
    count[..., above - 1] = 1  # from 0.1 upward
    count[..., above - 2] = 3  # up to 0.1
    changed = dataset.assign(count=(dataset["count"].dims, count))
    shares = plotting.convergence_shares(changed, "conv")["converges"]
    np.testing.assert_allclose(shares, [0.25, 0.75, 0, 0, 0])


def test_what_is_missing_is_refused_or_left_out(dataset):
    with pytest.raises(ValueError, match="no start 'conv9'.*logits, conv"):
        plotting.convergence_lines(dataset, "conv9")
    with pytest.raises(ValueError, match="no layer 'conv9'.*logits, conv, input"):
        plotting.convergence_shares(dataset, "conv9")
    ax = plotting.convergence_histogram(dataset, layer="logits", start="conv")
    assert not ax.containers


def test_of_many_layers_some_are_named(dataset):
    names = [f"layer_{place}" for place in range(100)]
    many = dataset.isel(layer=[0] * 100).assign_coords(layer=names)
    ax = plotting.convergence_curves(many)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == names[0::3] and list(ax.get_xticks()) == list(range(0, 100, 3))


def test_the_axis_can_end_before_one(dataset):
    # The first analyzer ends at 1 - 1e-9.
    ax = plotting.convergence_curves(dataset, logarithmic=True, closest=1e-4)
    heights = [line.get_ydata() for line in ax.lines]
    assert min(map(np.nanmin, heights)) == 1e-4
    assert ax.get_ylim()[1] == pytest.approx(10**-4.3)
    free = plotting.convergence_curves(dataset, logarithmic=True)
    assert min(np.nanmin(line.get_ydata()) for line in free.lines) < 1e-8
