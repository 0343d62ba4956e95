"""Plots of Koopman credits, from Datasets made by hand."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tfexplain import plotting
from tfexplain.plotting import koopman

OPERATORS = ["mean", "products", "least_squares"]
DIMENSIONS = {1: ("feature",), 2: ("step", "feature"), 3: ("height", "width", "channel")}


def made(blocks=3, kernels=None, shape=(4, 5, 1), outputs=(0, 1, 2), samples=4):
    """A Dataset with the variables that are drawn; all values differ."""
    generator = np.random.default_rng(0)
    kernels = {"block_0": 6} if kernels is None else kernels
    owners = [name for name, number in kernels.items() for _ in range(number)]
    channels = [channel for number in kernels.values() for channel in range(number)]
    variables = {name: ("block", generator.normal(size=blocks)) for name in koopman.CREDITS}
    variables |= {
        "log_volume_std": ("block", generator.uniform(0.1, 1, blocks)),
        "rank": ("block", np.arange(blocks) + 7.0),
        "residual": ("block", np.geomspace(0.5, 1e-5, blocks)),
        "energy_lost": ("block", np.zeros(blocks)),
        **{name: ("kernel", generator.normal(size=len(owners))) for name in koopman.KERNEL_CREDITS},
        "feature_weight": (
            ("operator", "output", *DIMENSIONS[len(shape)]),
            generator.normal(size=(3, len(outputs), *shape)),
        ),
        "agreement": ("operator", [0.93, 0.5, np.nan]),
        "network_output": (("sample", "logit"), generator.normal(size=(samples, 3))),
    }
    coordinates = {
        "block": [f"block_{place}" for place in range(blocks)],
        "input_size": ("block", np.arange(blocks) + 20),
        "output_size": ("block", np.arange(blocks) + 30),
        "kernel_block": ("kernel", np.array(owners, dtype=str)),
        "kernel_channel": ("kernel", np.array(channels, dtype=int)),
        "operator": OPERATORS,
        "output": list(outputs),
    }
    return xr.Dataset(variables, coordinates)


def drawn_texts(figure):
    """Boxes of all texts that are drawn, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = []
    for ax in figure.axes:
        if not ax.axison:
            texts += ax.texts
            continue
        texts += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [t for tick in ticks for t in (tick.label1, tick.label2) if t.get_visible()]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text().strip()]


def overlapping(figure):
    """Pairs of texts that lie over each other, and texts that leave the figure."""
    names, boxes = zip(*drawn_texts(figure), strict=True)
    low, high = np.array([(box.min, box.max) for box in boxes]).transpose(1, 0, 2)
    over = (low[:, None] + 1 < high - 1).all(2) & (low + 1 < high[:, None] - 1).all(2)
    pairs = [(names[i], names[j]) for i, j in np.argwhere(np.triu(over, 1))]
    outside = ((low < -1) | (high > np.array(figure.bbox.size) + 1)).any(1)
    return pairs, [names[i] for i in np.flatnonzero(outside)]


# --- blocks --------------------------------------------------------------------------------------


def test_bars_are_the_credits_in_the_order_of_the_network():
    dataset = made()
    *panels, text = plotting.block_credits(dataset).axes
    assert len(panels) == len(koopman.CREDITS) == 5
    for panel, name in zip(panels, koopman.CREDITS, strict=True):
        bars = sorted(panel.patches, key=lambda bar: bar.get_y())
        np.testing.assert_allclose([bar.get_width() for bar in bars], dataset[name])
        low, high = panel.get_ylim()
        assert low > high  # the first block is at the top
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == ["block_0", "block_1", "block_2"]
    written = {t.get_text() for t in text.texts}
    assert {"rank", "7", "8", "9", "residual", "0.5", "1e-05", "20\N{RIGHTWARDS ARROW}30"} < written
    assert "left out" not in written
    (lines,) = [c for panel in panels for c in panel.containers if hasattr(c, "has_xerr")]
    (segments,) = [part.get_segments() for part in lines[2]]
    np.testing.assert_allclose(
        [s[1, 0] - s[0, 0] for s in segments], 2 * dataset["log_volume_std"], rtol=1e-12
    )


def test_what_a_reduction_leaves_out_is_written():
    dataset = made()
    dataset["energy_lost"][1] = 0.123
    written = [text.get_text() for text in plotting.block_credits(dataset).axes[-1].texts]
    assert "left out" in written and "12.3%" in written


def test_a_block_without_a_credit_has_no_bar():
    dataset = made()
    dataset["log_volume"][1] = -np.inf
    dataset["log_volume_fixed_rank"][:] = np.nan
    panels = plotting.block_credits(dataset).axes
    assert [len(panel.patches) for panel in panels[:5]] == [2, 3, 0, 3, 3]
    assert [text.get_text() for text in panels[0].texts] == [" none"]
    assert panels[0].texts[0].get_position()[1] == 1
    assert len(panels[2].texts) == 3


@pytest.mark.parametrize("blocks", [1, 7, 50])
def test_texts_of_blocks_do_not_overlap(blocks):
    dataset = made(blocks).assign_coords(
        block=[f"conv{place}_block3_a_name_that_is_long_{place}" for place in range(blocks)]
    )
    figure = plotting.block_credits(dataset)
    assert overlapping(figure) == ([], [])
    width, height = figure.get_size_inches()
    assert width < 15 and height < 12


def test_given_axes_of_blocks():
    axes = Figure().subplots(1, 6)
    assert plotting.block_credits(made(), ax=axes) is axes[0].figure
    assert len(axes[4].patches) == 3
    with pytest.raises(ValueError, match="ax has 2 Axes. Expected 6: one per normalisation"):
        plotting.block_credits(made(), ax=axes[:2])


# --- kernels -------------------------------------------------------------------------------------


def test_kernels_are_grouped_and_in_the_order_of_channels():
    dataset = made(kernels={"second": 3, "first": 2})
    mixed = dataset.isel(kernel=[2, 4, 0, 3, 1])
    groups = koopman.kernel_groups(mixed)
    assert list(groups) == ["second", "first"]
    name = "kernel_rows_log_volume_per_dimension"
    np.testing.assert_array_equal(groups["second"][name], dataset[name][:3])
    np.testing.assert_array_equal(groups["first"][name], dataset[name][3:])


def test_few_kernels_are_bars_and_many_a_falling_curve():
    dataset = made(kernels={"few": 64, "many": 65})
    figure = plotting.kernel_credits(dataset)
    for column, name in enumerate(koopman.KERNEL_CREDITS):
        few, many = figure.axes[column], figure.axes[2 + column]
        np.testing.assert_allclose([bar.get_height() for bar in few.patches], dataset[name][:64])
        (curve,) = many.get_lines()
        np.testing.assert_allclose(curve.get_ydata(), np.sort(dataset[name][64:])[::-1])
        assert not many.patches
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[:2] == ["few: rows of K", "few: block of its own"]


def test_kernels_without_a_credit_are_shown():
    dataset = made(kernels={"few": 5, "many": 100})
    values = dataset["kernel_rows_log_volume_per_dimension"]
    values[[1, 7, 8]] = np.nan
    few, _, many, _ = plotting.kernel_credits(dataset).axes
    assert len(few.patches) == 4
    crosses = [line for line in few.get_lines() if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[1]]
    assert len(many.get_lines()[0].get_ydata()) == 98
    assert many.get_xlabel() == "kernels, sorted; 2 without a credit"


@pytest.mark.parametrize("convolutions", [1, 7, 19])
def test_texts_of_kernels_do_not_overlap(convolutions):
    kernels = {f"conv{i}_block3_2_conv": 4 if i % 2 else 80 for i in range(convolutions)}
    figure = plotting.kernel_credits(made(kernels=kernels))
    assert len(figure.axes) == 2 * convolutions
    assert overlapping(figure) == ([], [])
    titles = [panel.get_title() for panel in figure.axes]
    assert sorted(titles) == sorted(
        f"{name}: {title}" for name in kernels for title in koopman.KERNEL_CREDITS.values()
    )


def test_a_definition_that_is_missing_is_left_out():
    dataset = made(kernels={"a": 3, "b": 2}).drop_vars("kernel_block_log_volume_per_dimension")
    figure = plotting.kernel_credits(dataset)
    assert [panel.get_title() for panel in figure.axes] == ["a: rows of K", "b: rows of K"]


def test_kernels_that_cannot_be_drawn():
    dataset = made()
    for without in (dataset.drop_vars(koopman.KERNEL_CREDITS), dataset.drop_dims("kernel")):
        with pytest.raises(ValueError, match="The Dataset has no kernels: the model has no convol"):
            plotting.kernel_credits(without)
    with pytest.raises(ValueError, match=r"ax has 3 Axes. Expected \(1, 2\): a row for each conv"):
        plotting.kernel_credits(made(), ax=Figure().subplots(1, 3))


# --- feature weights -----------------------------------------------------------------------------


def test_maps_are_those_of_the_class_of_each_sample():
    dataset = made()
    classes = dataset["network_output"].values.argmax(1)
    assert len(set(classes)) > 1
    x = np.random.default_rng(1).uniform(size=(4, 4, 5, 1))
    figure = plotting.feature_weights(dataset, x)
    cells = np.array(figure.axes[:16]).reshape(4, 4)
    for row, output in enumerate(classes):
        assert cells[row, 0].get_ylabel() == f"output {output}"
        for cell, operator in zip(cells[row, 1:], OPERATORS, strict=True):
            expected = dataset["feature_weight"].sel(operator=operator, output=output)[..., 0]
            (image,) = cell.get_images()
            np.testing.assert_array_equal(image.get_array(), expected)
            limit = np.abs(expected).max()
            assert image.get_clim() == (-limit, limit)
            assert image.get_cmap().name == plotting.COLORMAP
            assert cell.get_xlabel() == f"\N{PLUS-MINUS SIGN}{limit:.2g}"
            assert image.cmap(image.norm(0.0))[:3] == pytest.approx((1, 1, 1), abs=0.05)
    assert [cell.get_title() for cell in cells[0]] == [
        "input",
        "mean operators\nagrees: 93%",
        "mean of products\nagrees: 50%",
        "least squares",
    ]
    assert overlapping(figure) == ([], [])


def test_outputs_and_labels_can_be_chosen():
    dataset = made(outputs=(5, 2))
    x = np.zeros((2, 4, 5, 1))
    figure = plotting.feature_weights(dataset, x, [2, 5], row_labels=["two", "five"])
    assert [figure.axes[place].get_ylabel() for place in (0, 4)] == ["two", "five"]
    expected = dataset["feature_weight"].sel(operator="products", output=2)[..., 0]
    np.testing.assert_array_equal(figure.axes[2].get_images()[0].get_array(), expected)
    axes = Figure().subplots(2, 4)
    assert plotting.feature_weights(dataset, x, [2, 5], ax=axes) is axes[0, 0].figure


def test_channels_of_images_are_reduced():
    dataset = made(shape=(4, 5, 3))
    figure = plotting.feature_weights(dataset, np.zeros((1, 4, 5, 3)), [1], reduction="max_abs")
    expected = dataset["feature_weight"].sel(operator="mean", output=1).values
    shown = figure.axes[1].get_images()[0].get_array()
    np.testing.assert_array_equal(shown, plotting.reduce_channels(expected, "max_abs"))


def test_a_percentile_limits_maps_alone():
    dataset = made()
    figure = plotting.feature_weights(dataset, np.zeros((1, 4, 5, 1)), [1], percentile=80)
    values = dataset["feature_weight"].sel(operator="mean", output=1)
    limit = np.percentile(np.abs(values), 80)
    assert figure.axes[1].get_images()[0].get_clim() == pytest.approx((-limit, limit))
    assert figure.axes[1].get_xlabel() == f"80% within \N{PLUS-MINUS SIGN}{limit:.2g}"
    assert overlapping(figure) == ([], [])
    for shape in ((5,), (9, 2)):
        dataset = made(shape=shape)
        one, other = (
            plotting.feature_weights(dataset, np.zeros((1, *shape)), [1], percentile=percentile)
            for percentile in (80, None)
        )
        assert one.axes[1].get_ylim() == other.axes[1].get_ylim()
        assert one.axes[1].get_xlabel() == other.axes[1].get_xlabel()


def test_many_rows_are_small():
    dataset = made(samples=10)
    few, many = (plotting.feature_weights(dataset, np.zeros((n, 4, 5, 1))) for n in (4, 10))
    assert many.get_size_inches()[1] < 1.7 * few.get_size_inches()[1]
    assert overlapping(many) == ([], [])


def test_tables_have_bars():
    dataset = made(shape=(5,))
    figure = plotting.feature_weights(dataset, np.ones((2, 5)), [0, 1])
    expected = dataset["feature_weight"].sel(operator="mean", output=1).values
    bars = figure.axes[5].patches
    np.testing.assert_allclose([bar.get_height() for bar in bars], expected)
    colour = plotting.pictures.matplotlib.colormaps[plotting.COLORMAP]
    limit = np.abs(expected).max()
    for bar, value in zip(bars, expected, strict=True):
        assert bar.get_facecolor() == pytest.approx(colour(Normalize(-limit, limit)(value)))
    assert overlapping(figure) == ([], [])


def test_sequences_have_lines_and_wide_ones_strips():
    dataset = made(shape=(9, 2))
    figure = plotting.feature_weights(dataset, np.ones((1, 9, 2)), [1])
    assert len(figure.axes) == 4  # lines have no scale of colours
    cell = figure.axes[1]
    expected = dataset["feature_weight"].sel(operator="mean", output=1).values
    lines = [line.get_ydata() for line in cell.get_lines() if len(line.get_ydata()) == 9]
    np.testing.assert_array_equal(np.transpose(lines), expected)
    low, high = cell.get_ylim()
    assert low == -high and high > np.abs(expected).max()
    assert overlapping(figure) == ([], [])
    wide = plotting.feature_weights(made(shape=(9, 5)), np.ones((1, 9, 5)), [1])
    assert wide.axes[1].get_images()[0].get_array().shape == (5, 9)


def test_weights_that_cannot_be_drawn():
    dataset = made(outputs=(0, 1))
    x = np.zeros((2, 4, 5, 1))
    for given, message in (
        (((x[0],)), "outputs has|inputs have shape"),
        ((np.zeros((9, 4, 5, 1)),), "There are 9 inputs, but the Dataset has 4 held-out samples"),
        ((x, [0]), "outputs has 1 entries. Expected 2, one per input"),
        ((x, [0, 2]), r"no feature weights of the outputs \[2\]. It has those of 0, 1; give"),
        ((x[:, :3], [0, 1]), r"inputs have shape \(2, 3, 5, 1\), the feature weights \(4, 5, 1\)"),
        ((x[:0], []), r"inputs have shape \(0, 4, 5, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            plotting.feature_weights(dataset, *given)
    with pytest.raises(ValueError, match="row_labels has 1 entries. Expected 2."):
        plotting.feature_weights(dataset, x, [0, 1], row_labels=["one"])


@pytest.mark.parametrize("draw", [plotting.block_credits, plotting.kernel_credits])
def test_other_datasets_are_refused(draw):
    with pytest.raises(ValueError, match="Dataset has no .* Expected one that koopman.credit ret"):
        draw(xr.Dataset({"ssim": ("sample", [1.0])}))
    with pytest.raises(ValueError, match="Dataset has no feature_weight, network_output. Expected"):
        plotting.feature_weights(xr.Dataset(), np.zeros((1, 2)))
