import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfexplain import plotting


def images(n=2, shape=(6, 8, 3), seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def shown_images(figure):
    """Images on the axes of maps, without the colour scale."""
    return [image for ax in figure.axes for image in ax.images]


def test_reduce_channels():
    relevance = np.array([[[1.0, -3.0, 1.0]]])
    expected = {"sum": -1.0, "mean": -1 / 3, "max_abs": -3.0, "norm": np.sqrt(11)}
    assert set(expected) == set(plotting.REDUCTIONS)
    for name, value in expected.items():
        np.testing.assert_allclose(plotting.reduce_channels(relevance, name), [[value]])
    with pytest.raises(ValueError, match="reduction is 'max'. Expected one of sum, mean"):
        plotting.reduce_channels(relevance, "max")


def test_symmetric_limits():
    assert plotting.symmetric_limits([-3.0, 1.0]) == (-3.0, 3.0)
    assert plotting.symmetric_limits(np.zeros((2, 2))) == (-1.0, 1.0)
    assert plotting.symmetric_limits(np.arange(-100, 1), percentile=90) == (-90.0, 90.0)
    assert plotting.symmetric_limits([0.0] * 99 + [2.0], percentile=50) == (-2.0, 2.0)


@pytest.mark.parametrize(
    ("values", "percentile", "message"),
    [
        ([np.nan, np.inf, 1.0], None, "map has 2 NaN or infinite values of 3"),
        ([], None, "map is empty"),
        ([1.0], 0, r"percentile is 0. Expected a number in \(0, 100\]"),
        ([1.0], 101, "percentile is 101"),
    ],
)
def test_symmetric_limits_errors(values, percentile, message):
    with pytest.raises(ValueError, match=message):
        plotting.symmetric_limits(values, percentile)


def test_display_image():
    image = 300 * images()[0] - 100
    shown = plotting.display_image(image)
    assert (shown.shape, shown.min(), shown.max()) == (image.shape, 0, 1)
    assert plotting.display_image(image[..., :1]).shape == image.shape[:2]
    assert (plotting.display_image(np.full((2, 2, 1), 7)) == 0.5).all()
    with pytest.raises(ValueError, match="The image has NaN"):
        plotting.display_image(np.full((2, 2, 1), np.nan))


def test_overlay_shows_the_image_where_relevance_is_zero():
    image = images(1)[0]
    map = np.zeros((6, 8))
    map[0, 0], map[0, 1] = 2.0, -2.0
    blended = plotting.overlay(image, map)
    assert blended.shape == (6, 8, 3)
    assert blended.min() >= 0 and blended.max() <= 1
    assert np.ptp(blended[1:], axis=-1).max() < 1e-12  # grey
    assert blended[0, 0, 0] > blended[0, 0, 2] + 0.2  # red
    assert blended[0, 1, 2] > blended[0, 1, 0] + 0.2  # blue
    with pytest.raises(ValueError, match=r"map has shape \(8,\). Expected \(height, width\)"):
        plotting.overlay(image, map[0])


@pytest.mark.parametrize("shape", [(6, 8, 3), (6, 8, 1), (20, 2), (20, 9), (5,), (200,)])
def test_maps_draw_every_kind_of_input(shape, tmp_path):
    x, relevance = images(shape=shape), images(shape=shape, seed=1)
    before = x.copy(), relevance.copy()
    figure = plotting.maps(x, {"lrp.z": relevance, "gradient": -relevance}, row_labels=["a", "b"])
    assert isinstance(figure, Figure)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["input", "lrp.z", "gradient"]
    figure.savefig(tmp_path / "a.png")
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(relevance, before[1])


def test_maps_are_symmetric_about_zero_and_show_their_limit():
    x = images(shape=(6, 8, 1))
    relevance = np.stack([x[0] - 5, np.zeros_like(x[0])])
    figure = plotting.maps(x, relevance)
    first, second = shown_images(figure)[1], shown_images(figure)[3]
    largest = np.abs(relevance[0]).max()
    assert first.get_clim() == pytest.approx((-largest, largest))
    np.testing.assert_array_equal(first.get_array(), relevance[0, ..., 0])
    assert second.get_clim() == (-1, 1)
    zero = np.array(second.to_rgba(np.zeros(1))[0][:3])
    assert np.ptp(zero) < 0.01 and zero.min() > 0.95  # neutral
    assert first.axes.get_xlabel() == f"±{largest:.2g}"
    scale = figure.axes[-1]
    assert [label.get_text() for label in scale.get_yticklabels()] == ["−limit", "0", "+limit"]


def test_bars_have_symmetric_limits():
    figure = plotting.maps(images(shape=(5,)), images(shape=(5,)) + 3)
    low, high = figure.axes[1].get_ylim()
    assert low == -high


def test_percentile_and_reduction_reach_the_map():
    relevance = images(1)
    figure = plotting.maps(relevance, relevance, reduction="norm", percentile=50)
    norm = np.linalg.norm(relevance[0], axis=-1)
    shown = shown_images(figure)[1]
    np.testing.assert_allclose(shown.get_array(), norm)
    assert shown.get_clim()[1] == pytest.approx(np.percentile(norm, 50))


def test_maps_on_given_axes():
    x = images()
    figure = Figure()
    axes = figure.subplots(2, 2)
    assert plotting.maps(x, x, ax=axes) is figure
    assert len(figure.axes) == 4
    with pytest.raises(ValueError, match=r"ax has 3 Axes. Expected \(2, 2\)"):
        plotting.maps(x, x, ax=axes.ravel()[:3])


@pytest.mark.parametrize(
    ("x", "relevance", "options", "message"),
    [
        (images(), images(3), {}, r"x has shape \(2, 6, 8, 3\), but relevance has"),
        (images(), {}, {}, "relevance 0 methods"),
        (images(0), images(0), {}, "x has 0 samples"),
        (images(shape=(2, 2, 2, 2)), images(shape=(2, 2, 2, 2)), {}, "One input has shape"),
        (images(), images(), {"titles": ["one"]}, "titles has 1 entries. Expected 2"),
        (images(), images(), {"row_labels": ["one"]}, "row_labels has 1 entries. Expected 2"),
        (images(), images() * np.nan, {}, "map has 48 NaN"),
        (images(), images(), {"reduction": "all"}, "reduction is 'all'"),
    ],
)
def test_maps_errors(x, relevance, options, message):
    with pytest.raises(ValueError, match=message):
        plotting.maps(x, relevance, **options)


def overlaps(boxes):
    return [
        (a, b)
        for i, (a, first) in enumerate(boxes)
        for b, second in boxes[i + 1 :]
        if first.overlaps(second)
    ]


@pytest.mark.parametrize("shape", [(8, 8, 1), (30, 2), (6,)])
def test_labels_do_not_overlap(shape):
    names = ["lrp.sequential_preset_a_flat", "excitation_bp.contrastive", "integrated_gradients"]
    names += [f"{name}_{i}" for i in range(5) for name in ("input_t_gradient", "lrp.alpha_1_beta")]
    x = images(3, shape)
    labels = ["a photograph of a cat", "dog", "7"]
    figure = plotting.maps(x, dict.fromkeys(names, x), row_labels=labels)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [ax.title for ax in figure.axes if ax.get_title()]
    texts += [ax.xaxis.label for ax in figure.axes if ax.get_xlabel()]
    texts += [ax.yaxis.label for ax in figure.axes if ax.get_ylabel()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    assert not overlaps(boxes)
    inside = figure.bbox
    assert all(inside.x0 <= b.x0 and b.x1 <= inside.x1 and b.y1 <= inside.y1 for _, b in boxes)


def test_picture():
    relevance, image = images()
    plain = plotting.picture(relevance, title="cat: lrp.z")
    blended = plotting.picture(relevance, image)
    assert plain.axes[0].get_title() == "cat: lrp.z"
    np.testing.assert_allclose(
        blended.axes[0].images[0].get_array(), plotting.overlay(image, relevance)
    )
    limit = np.abs(relevance.sum(-1)).max()
    for figure in (plain, blended):
        assert figure.axes[1].get_ylim() == pytest.approx((-limit, limit))
    clipped = plotting.picture(relevance, image, percentile=90).axes[1]
    labels = [label.get_text() for label in clipped.get_yticklabels()]
    assert labels[0].startswith("≤ −") and labels[2].startswith("≥ +")
    assert clipped.get_ylim()[1] < limit


def test_no_global_state():
    before = dict(matplotlib.rcParams)
    plotting.maps(images(), images())
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
