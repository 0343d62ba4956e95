"""Pictures of audits: what is prepared, and what is on the axes."""

import io

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from tfexplain import plotting
from tfexplain.plotting import audits, class_contrasts

NAMES = ["gradient", "lrp.alpha_1_beta_0", "rect_grad"]
STEPS = ["scores", "block_out", "conv1"]


def logit_dataset(seed=0):
    ssim = np.random.default_rng(seed).beta(2, 1, (3, 20, 2))
    ssim[1, 3:5, 0] = np.nan
    ssim[2] = np.nan
    missing = np.isnan(ssim).sum((1, 2))
    return xr.Dataset(
        {"ssim": (("analyzer", "sample", "draw"), ssim), "missing": ("analyzer", missing)},
        coords={"analyzer": NAMES},
        attrs={"audit": "random_logit"},
    )


def randomization_dataset(names=NAMES, similarities=("ssim", "cosine"), low=0.1):
    generator = np.random.default_rng(0)
    median = generator.uniform(low, 0.9, (len(names), len(STEPS), len(similarities)))
    dims = ("analyzer", "step", "similarity")
    return xr.Dataset(
        {
            "median": (dims, median),
            "low": (dims, median - 0.05),
            "high": (dims, median + 0.08),
        },
        coords={"analyzer": list(names), "step": STEPS, "similarity": list(similarities)},
        attrs={"audit": "parameter_randomization", "mode": "cascading", "confidence": 0.99},
    )


def cascade_dataset(sizes=(6, 8), dims=("height", "width"), channels=3):
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(3, 4, 2, *sizes))
    channel = () if channels is None else (channels,)
    return xr.Dataset(
        {
            "relevance": (("analyzer", "step", "sample", *dims), maps),
            "input": (
                ("sample", *dims, *(("channel",) * len(channel))),
                generator.normal(size=(2, *sizes, *channel)),
            ),
        },
        coords={"analyzer": NAMES, "step": ["trained", *STEPS]},
        attrs={"audit": "cascade_maps"},
    )


def entropy_dataset():
    values = np.random.default_rng(0).uniform(1, 4, (3, 20))
    values[1, :2] = np.nan
    return xr.Dataset(
        {
            "entropy": (("analyzer", "sample"), values),
            "missing": ("analyzer", np.isnan(values).sum(1)),
        },
        coords={"analyzer": NAMES},
        attrs={"audit": "entropy", "maximum": 4.5},
    )


def flipping_dataset(names=NAMES):
    generator = np.random.default_rng(0)
    removed = np.arange(0, 40, 3)
    speed = np.linspace(0.03, 0.06, len(names))[:, None, None]
    curve = np.exp(-speed * removed * generator.uniform(0.5, 1.5, (len(names), 20, 1)))
    random = np.exp(-0.01 * removed * generator.uniform(0.5, 1.5, (20, 1)))
    curve = np.stack([curve, curve**2], axis=-1)
    random = np.stack([random, random**2], axis=-1)
    curve[1, :2, :, 0] = np.nan
    return xr.Dataset(
        {
            "curve": (("analyzer", "sample", "step", "output"), curve),
            "random_curve": (("sample", "step", "output"), random),
            "auc": (("analyzer", "sample", "output"), curve.mean(2)),
            "random_auc": (("sample", "output"), random.mean(1)),
        },
        coords={
            "analyzer": list(names),
            "removed": ("step", removed),
            "output": ["logit", "probability"],
        },
        attrs={"audit": "pixel_flipping"},
    )


def rendered(figure):
    """Draws everything, which warns of missing glyphs and of layouts that do not fit."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def test_box_statistics():
    values = [[0.0, 1.0, 2.0, np.nan], [3.0, 4.0, 20.0, -15.0]]
    found = audits.box_statistics(values)
    # Sorted: -15 0 1 2 3 4 20. The whiskers reach 1.5 * 3 below 0.5 and above 3.5.
    assert (found["q1"], found["med"], found["q3"]) == (0.5, 2.0, 3.5)
    assert (found["whislo"], found["whishi"]) == (0.0, 4.0)
    assert found["fliers"].tolist() == [-15.0, 20.0]
    assert audits.box_statistics(np.full(3, np.nan)) is None


def test_boxes():
    dataset = logit_dataset()
    figure = rendered(plotting.random_logit_boxes(dataset))
    (ax,) = figure.axes
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["gradient", "lrp.alpha_1_beta_0 (2 missing)", "rect_grad (40 missing)"]
    # Two boxes, one per analyzer with values, at their places.
    assert len(ax.patches) == 2
    centres = [patch.get_path().get_extents().x0 for patch in ax.patches]
    np.testing.assert_allclose(np.array(centres) + 0.3, [0, 1])
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_color() == "tab:red"]
    np.testing.assert_allclose(medians, dataset.ssim.median(["sample", "draw"])[:2])
    assert ax.get_ylim() == (-0.05, 1.05)


def test_boxes_on_given_axes_and_below_zero():
    figure = Figure()
    ax = figure.add_subplot()
    dataset = logit_dataset()
    dataset["ssim"] = dataset.ssim - 0.5
    assert plotting.random_logit_boxes(dataset, ax=ax) is figure
    assert ax.get_ylim()[0] == pytest.approx(float(dataset.ssim.min()) - 0.05)


def test_curves_are_medians_with_intervals():
    dataset = randomization_dataset()
    dataset["median"].loc[{"analyzer": "rect_grad"}] = np.nan
    dataset["low"].loc[{"analyzer": "gradient", "step": "conv1"}] = np.nan
    found = audits.curves(dataset, "cosine")
    assert [curve.name for curve in found] == NAMES[:2]
    expected = dataset.sel(analyzer=NAMES[0], similarity="cosine")
    np.testing.assert_array_equal(found[0].median, expected["median"])
    np.testing.assert_array_equal(found[0].low, expected.low)
    (ax,) = rendered(plotting.randomization_curves(dataset, "cosine")).axes
    assert [line.get_label() for line in ax.lines] == NAMES[:2]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), expected["median"])
    assert [label.get_text() for label in ax.get_xticklabels()] == STEPS
    assert len(ax.collections) == 2
    band = ax.collections[1].get_paths()[0].vertices
    second = dataset.sel(analyzer=NAMES[1], similarity="cosine")
    for step, (low, high) in enumerate(zip(second.low.values, second.high.values, strict=True)):
        assert {low, high} <= set(band[band[:, 0] == step, 1])
    assert "99 % interval" in ax.get_ylabel() and "cosine" in ax.get_ylabel()
    assert ax.get_xlabel() == "randomized: from the output down to ..."


def test_many_curves_look_different():
    names = [f"method_{index}" for index in range(25)]
    dataset = randomization_dataset(names, low=-0.8).assign_attrs(mode="independent")
    (ax,) = rendered(plotting.randomization_curves(dataset)).axes
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.lines}
    assert len(looks) == 25
    # Their bands would hide one another.
    assert not ax.collections and "interval" not in ax.get_ylabel()
    assert ax.get_xlabel() == "randomized layer"
    assert -1.05 <= ax.get_ylim()[0] < -0.05


def test_a_similarity_without_values_is_refused():
    dataset = randomization_dataset()
    dataset["median"].loc[{"similarity": "ssim"}] = np.nan
    dataset.attrs["notes"] = "no structural similarity: too small"
    message = r"no value of 'ssim' \(no structural similarity: too small.*Choose another"
    with pytest.raises(ValueError, match=message):
        plotting.randomization_curves(dataset)
    with pytest.raises(ValueError, match="similarity is 'SSIM'. Expected one of ssim, cosine"):
        plotting.randomization_curves(dataset, "SSIM")


def test_cascades():
    dataset = cascade_dataset()
    figure = rendered(plotting.cascade(dataset, 1, percentile=None))
    cells = np.array(figure.axes[:15]).reshape(3, 5)
    assert [ax.get_title() for ax in cells[0]] == [
        "input",
        "trained",
        "scores",
        "block_out",
        "conv1",
    ]
    assert [ax.get_ylabel() for ax in cells[:, 0]] == NAMES
    assert [len(ax.images) for ax in cells[:, 0]] == [1, 0, 0]
    for row in range(3):
        for column in range(4):
            (image,) = cells[row, 1 + column].images
            map = dataset.relevance[row, column, 1]
            np.testing.assert_array_equal(image.get_array(), map)
            limit = float(np.abs(map).max())
            assert image.get_clim() == (-limit, limit)
            assert cells[row, 1 + column].get_xlabel() == f"\N{PLUS-MINUS SIGN}{limit:.2g}"


def test_cascades_of_sequences_and_of_maps_that_are_not_finite():
    dataset = cascade_dataset((9,), ("position",))
    dataset["relevance"][1, 2, 0, 4] = np.inf
    figure = rendered(plotting.cascade(dataset))
    cells = np.array(figure.axes[:15]).reshape(3, 5)
    assert [text.get_text() for text in cells[1, 3].texts] == ["not finite"]
    heights = [bar.get_height() for bar in cells[0, 1].patches]
    np.testing.assert_array_equal(heights, dataset.relevance[0, 0, 0])
    tokens = cascade_dataset((9,), ("position",), channels=None)
    assert len(rendered(plotting.cascade(tokens)).axes[0].patches) == 9


def test_channels_first_inputs_are_shown_as_images():
    dataset = cascade_dataset()
    turned = dataset.assign(input=dataset.input.transpose("sample", "channel", "height", "width"))
    images = [plotting.cascade(one).axes[0].images[0].get_array() for one in (dataset, turned)]
    np.testing.assert_array_equal(*images)


def test_cascades_on_given_axes():
    figure = Figure()
    axes = figure.subplots(3, 5)
    assert plotting.cascade(cascade_dataset(), ax=axes) is figure
    with pytest.raises(ValueError, match=r"ax has 14 Axes. Expected \(3, 5\)"):
        plotting.cascade(cascade_dataset(), ax=axes.ravel()[:14])
    with pytest.raises(ValueError, match="sample is 2. Expected 0 to 1"):
        plotting.cascade(cascade_dataset(), 2)


def pair(shape=(6, 8, 3), seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape)
    first = {name: generator.normal(size=shape) for name in NAMES}
    return x, first, {name: generator.normal(size=shape) for name in NAMES}


def test_scaled_maps():
    np.testing.assert_allclose(class_contrasts.scaled([[-4.0, 1.0]], None), [[-1, 0.25]])
    np.testing.assert_allclose(
        class_contrasts.scaled(np.arange(101.0), 50), np.minimum(np.arange(101) / 50, 1)
    )
    assert (class_contrasts.scaled(np.zeros(3)) == 0).all()


def test_class_difference():
    _, first, second = pair()
    a, b = first["gradient"].sum(-1), second["gradient"].sum(-1)
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    found = class_contrasts.class_difference(first["gradient"], second["gradient"], percentile=None)
    np.testing.assert_allclose(found, (a, b, a - b))
    # A factor makes no difference, a sign does unless it is turned.
    same = class_contrasts.class_difference(first["gradient"], 7 * first["gradient"])
    np.testing.assert_allclose(same[2], 0, atol=1e-12)
    for flip, expected in ((False, 2 * same[0]), (True, 0 * a)):
        found = class_contrasts.class_difference(first["gradient"], -first["gradient"], flip=flip)
        np.testing.assert_allclose(found[2], expected, atol=1e-12)


def test_two_classes():
    x, first, second = pair()
    second["rect_grad"] = -3 * first["rect_grad"]
    figure = rendered(plotting.two_classes(x, first, second, titles=("cat", "dog"), flip=True))
    cells = np.array(figure.axes[:12]).reshape(3, 4)
    assert [ax.get_title() for ax in cells[0]] == ["input", "cat", "dog", "difference"]
    assert [ax.get_ylabel() for ax in cells[:, 0]] == NAMES
    for row, name in enumerate(NAMES):
        panels = class_contrasts.class_difference(first[name], second[name], flip=True)
        for ax, panel in zip(cells[row, 1:], panels, strict=True):
            np.testing.assert_array_equal(ax.images[0].get_array(), panel)
            assert ax.images[0].get_clim() == (-1, 1)
        limit = np.percentile(np.abs(second[name].sum(-1)), 99.5)
        sign = "\N{MINUS-OR-PLUS SIGN}" if name == "rect_grad" else "\N{PLUS-MINUS SIGN}"
        assert cells[row, 2].get_xlabel()[1:] == f"{limit:.2g}"
        assert name != "rect_grad" or cells[row, 2].get_xlabel()[0] == sign
        mean = np.abs(panels[2]).mean()
        assert cells[row, 3].get_xlabel() == f"mean {mean:.2g}"


@pytest.mark.parametrize("shape", [(7,), (9, 3)])
def test_two_classes_of_tables_and_sequences(shape):
    figure = rendered(plotting.two_classes(*pair(shape)))
    drawn = figure.axes[3]
    if len(shape) == 1:
        assert len(drawn.patches) == 7
    else:
        # A row per feature, as in `maps`.
        assert drawn.images[0].get_array().shape == (3, 9)


def test_wrong_pairs():
    x, first, second = pair()
    with pytest.raises(ValueError, match="of the two classes are gradient, .* and gradient. Give"):
        plotting.two_classes(x, first, {"gradient": second["gradient"]})
    with pytest.raises(ValueError, match="are none and none"):
        plotting.two_classes(x, {}, {})
    with pytest.raises(ValueError, match="titles has 1 entries. Expected 2"):
        plotting.two_classes(x, first, second, titles=["cat"])
    with pytest.raises(ValueError, match=r"x has shape \(5, 8, 3\), but relevance has"):
        plotting.two_classes(x[1:], first, second)
    with pytest.raises(ValueError, match=r"have shapes \(6, 8, 3\) and \(5, 8, 3\)"):
        class_contrasts.class_difference(x, x[1:])
    with pytest.raises(ValueError, match="NaN or infinite"):
        class_contrasts.class_difference(x, x * np.nan)


@pytest.mark.parametrize(
    ("draw", "audit"),
    [
        (plotting.random_logit_boxes, "random_logit"),
        (plotting.randomization_curves, "parameter_randomization"),
        (plotting.cascade, "cascade_maps"),
    ],
)
def test_other_datasets_are_refused(draw, audit):
    with pytest.raises(ValueError, match=rf"of the audit 'none'. Expected one that audits.{audit}"):
        draw(xr.Dataset({"a": 1}))
    with pytest.raises(ValueError, match=f"of the audit '{audit}'. Expected"):
        draw(xr.Dataset(attrs={"audit": audit}))


def test_nothing_global_is_changed():
    before = dict(matplotlib.rcParams)
    dataset = cascade_dataset()
    copy = dataset.copy(deep=True)
    plotting.cascade(dataset)
    plotting.two_classes(*pair())
    plotting.random_logit_boxes(logit_dataset())
    plotting.randomization_curves(randomization_dataset())
    xr.testing.assert_identical(dataset, copy)
    assert dict(matplotlib.rcParams) == before


def test_entropy_boxes():
    dataset = entropy_dataset()
    (ax,) = rendered(plotting.entropy_boxes(dataset)).axes
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["gradient", "lrp.alpha_1_beta_0 (2 missing)", "rect_grad"]
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_color() == "tab:red"]
    np.testing.assert_allclose(medians, dataset.entropy.median("sample"))
    assert [line for line in ax.lines if set(line.get_ydata()) == {4.5}]
    assert ax.get_ylim()[0] < 0 and ax.get_ylim()[1] > 4.5
    with pytest.raises(ValueError, match="is of the audit 'random_logit'. Expected .*entropy"):
        plotting.entropy_boxes(logit_dataset())


def test_flipping_curves_are_medians_and_quartiles():
    dataset = flipping_dataset()
    found = audits.flipping_curves(dataset, "probability")
    assert [curve.name for curve in found] == [*NAMES, "random order"]
    chosen = dataset.curve.sel(analyzer=NAMES[2], output="probability")
    for part, q in (("low", 0.25), ("median", 0.5), ("high", 0.75)):
        np.testing.assert_allclose(getattr(found[2], part), chosen.quantile(q, "sample"))
    random = dataset.random_curve.sel(output="probability")
    np.testing.assert_allclose(found[3].median, random.median("sample"))
    # Samples without a value are left out.
    second = audits.flipping_curves(dataset)[1]
    expected = dataset.curve.sel(analyzer=NAMES[1], output="logit")[2:]
    np.testing.assert_allclose(second.median, expected.median("sample"))


def test_flipping_curves_on_axes():
    dataset = flipping_dataset()
    (ax,) = rendered(plotting.pixel_flipping_curves(dataset)).axes
    lines = {line.get_label().split(" (")[0]: line for line in ax.lines}
    assert set(lines) == {*NAMES, "random order"}
    for name in NAMES:
        line = lines[name]
        np.testing.assert_array_equal(line.get_xdata(), dataset.removed)
        values = dataset.curve.sel(analyzer=name, output="logit").dropna("sample")
        np.testing.assert_allclose(line.get_ydata(), values.median("sample"))
        area = np.nanmedian(dataset.auc.sel(analyzer=name, output="logit"))
        assert line.get_label() == f"{name} ({area:.2f})"
    assert lines["random order"].get_color() == "0.5"
    assert len({line.get_color() for line in ax.lines}) == 4
    assert len(ax.collections) == 4
    assert "logit" in ax.get_ylabel() and "removed pixels" in ax.get_xlabel()
    assert len(ax.get_legend().get_texts()) == 4
    figure = Figure()
    given = figure.add_subplot()
    assert plotting.pixel_flipping_curves(dataset, "probability", ax=given) is figure
    assert "probability" in given.get_ylabel()


def test_flipping_curves_without_values_are_refused():
    dataset = flipping_dataset()
    with pytest.raises(ValueError, match="output is 'logits'. Expected one of logit, probability"):
        plotting.pixel_flipping_curves(dataset, "logits")
    with pytest.raises(ValueError, match="Expected .*pixel_flipping returned"):
        plotting.pixel_flipping_curves(entropy_dataset())
    dataset["curve"].loc[{"output": "logit", "analyzer": NAMES[0]}] = np.nan
    assert [curve.name for curve in audits.flipping_curves(dataset)][0] == NAMES[1]
    dataset["curve"].loc[{"output": "logit"}] = np.nan
    dataset["random_curve"].loc[{"output": "logit"}] = np.nan
    with pytest.raises(ValueError, match="no value of 'logit'. Choose another"):
        plotting.pixel_flipping_curves(dataset)
    assert audits.flipping_curves(dataset, "probability")
