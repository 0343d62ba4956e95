"""The two leading singular values of patterns, weights, their products and of what lies between."""

import importlib
import json

import keras
import numpy as np
import pytest
import scipy.linalg
import xarray as xr
from keras import layers

import tfexplain
from tfexplain.audits import pattern_spectrum

# The module; the package has a function of that name.
SPECTRUM = importlib.import_module("tfexplain.audits.rank_one")
KERNELS = ("conv1", "conv2", "hidden", "scores")


def chain():
    """Two convolutions and two Dense layers: the second has more inputs, the last fewer outputs."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((7, 6, 2), dtype="float64"),
            layers.Conv2D(5, 3, padding="same", activation="relu", name="conv1", dtype="float64"),
            layers.Conv2D(4, (2, 3), activation="relu", name="conv2", dtype="float64"),
            layers.MaxPooling2D(2, dtype="float64"),
            layers.Flatten(dtype="float64"),
            layers.Dense(8, activation="relu", name="hidden", dtype="float64"),
            layers.Dropout(0.5, dtype="float64"),
            layers.Dense(3, activation="softmax", name="scores", dtype="float64"),
        ]
    )


def random_patterns(model, seed=0):
    generator = np.random.default_rng(seed)
    return [
        generator.normal(size=layer.kernel.shape)
        for layer in model.layers
        if hasattr(layer, "kernel")
    ]


def made(model, patterns=None, name="pattern.attribution", **options):
    patterns = random_patterns(model) if patterns is None else patterns
    return tfexplain.create_analyzer(name, model, patterns=patterns, **options)


def sliced(kernels):
    """The slices of `chain` by hand."""
    conv1, conv2, hidden, scores = kernels
    # The map before Flatten is (3, 2, 4); its centre is (1, 0).
    return [conv1[1, 1], conv2[0, 1], hidden.reshape(3, 2, 4, 8)[1, 0], scores]


def ratio(matrix):
    s = np.linalg.svd(matrix, compute_uv=False)
    return s[0] / s[1]


@pytest.mark.parametrize("limit", [None, 10], ids=["svd", "gram"])
def test_ratios_are_those_of_numpy(limit, monkeypatch):
    if limit:
        monkeypatch.setattr(SPECTRUM, "GRAM_ENTRIES", limit)
    model = chain()
    patterns = random_patterns(model)
    found = pattern_spectrum(made(model, patterns))
    weights = [model.get_layer(name).kernel.numpy() for name in KERNELS]
    products = [a * w for a, w in zip(patterns, weights, strict=True)]
    assert found.layer.values.tolist() == list(KERNELS)
    assert found["quantity"].values.tolist() == ["A", "W", "A*W"]
    expected = {
        "A": [a.reshape(-1, a.shape[-1]) for a in patterns],
        "W": sliced(weights),
        "A*W": sliced(products),
    }
    for quantity, matrices in expected.items():
        row = found.sel(quantity=quantity)
        np.testing.assert_allclose(row.ratio, [ratio(m) for m in matrices], rtol=1e-8)
        values = [np.linalg.svd(m, compute_uv=False)[:2] for m in matrices]
        np.testing.assert_allclose(row.singular_value, values, rtol=1e-8)


def interlayer(first, second):
    """Section 7 as it stands: full square U and V, S padded with zeros to square matrices."""
    _, s, v = np.linalg.svd(first)
    u, s_next, _ = np.linalg.svd(second)
    left, right = np.zeros((len(v), len(v))), np.zeros((len(u), len(u)))
    np.fill_diagonal(left[: len(s), : len(s)], np.sqrt(s))
    np.fill_diagonal(right[: len(s_next), : len(s_next)], np.sqrt(s_next))
    return left @ v @ u @ right


@pytest.mark.parametrize("limit", [None, 1], ids=["svd", "gram"])
def test_interlayer_matrices_are_those_of_the_protocol(limit, monkeypatch):
    if limit:
        monkeypatch.setattr(SPECTRUM, "GRAM_ENTRIES", limit)
    model = chain()
    patterns = random_patterns(model)
    found = pattern_spectrum(made(model, patterns))
    weights = [model.get_layer(name).kernel.numpy() for name in KERNELS]
    pairs = list(zip(found["first"].values, found["second"].values, strict=True))
    assert pairs == list(zip(KERNELS, KERNELS[1:], strict=False))
    products = [a * w for a, w in zip(patterns, weights, strict=True)]
    for quantity, kernels in (("W", weights), ("A*W", products)):
        cut = sliced(kernels)
        expected = [interlayer(*pair) for pair in zip(cut, cut[1:], strict=False)]
        row = found.sel(quantity=quantity)
        np.testing.assert_allclose(row.interlayer_ratio, [ratio(m) for m in expected], rtol=1e-8)
        values = [np.linalg.svd(m, compute_uv=False)[:2] for m in expected]
        np.testing.assert_allclose(row.interlayer_singular_value, values, rtol=1e-8)
    assert np.isnan(found.interlayer_ratio.sel(quantity="A")).all()


def with_ratio(rows, columns, value, generator):
    """A matrix with the singular values 1, 1 / value, 1 / value / 2, ..."""
    u = scipy.linalg.qr(generator.normal(size=(rows, columns)), mode="economic")[0]
    v = scipy.linalg.qr(generator.normal(size=(columns, columns)))[0]
    return (u * np.append(1.0, 1 / value / np.arange(1, columns))) @ v


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)], ids=["tall", "wide"])
@pytest.mark.parametrize(("value", "tolerance"), [(1.5, 1e-12), (6, 1e-12), (1e3, 1e-8)])
def test_the_gram_matrix_is_as_accurate_as_stated(shape, value, tolerance, monkeypatch):
    generator = np.random.default_rng(0)
    pattern = with_ratio(max(shape), min(shape), value, generator).reshape(max(shape), min(shape))
    pattern = pattern if pattern.shape == shape else pattern.T
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((shape[0],), dtype="float64"), layers.Dense(shape[1], dtype="float64")]
    )
    exact = pattern_spectrum(made(model, [pattern]))
    np.testing.assert_allclose(exact.ratio.sel(quantity="A"), [value], rtol=1e-11)
    monkeypatch.setattr(SPECTRUM, "GRAM_ENTRIES", 10)
    found = pattern_spectrum(made(model, [pattern]))
    np.testing.assert_allclose(found.ratio, exact.ratio, rtol=tolerance)
    np.testing.assert_allclose(found.singular_value, exact.singular_value, rtol=tolerance)


@pytest.mark.parametrize(("limit", "least"), [(None, 1e12), (10, 1e6)], ids=["svd", "gram"])
def test_rank_one_gives_a_huge_ratio(limit, least, monkeypatch):
    if limit:
        monkeypatch.setattr(SPECTRUM, "GRAM_ENTRIES", limit)
    model = chain()
    patterns = random_patterns(model)
    generator = np.random.default_rng(2)
    shape = patterns[1].shape
    one = np.outer(generator.normal(size=30), generator.normal(size=4)).reshape(shape)
    found = pattern_spectrum(made(model, [patterns[0], one, *patterns[2:]]))
    rows = found.ratio.sel(quantity="A")
    assert rows.sel(layer="conv2") > least
    assert (rows.drop_sel(layer="conv2") < 10).all()
    # Times weights of full rank it is of rank one no more.
    assert found.ratio.sel(layer="conv2", quantity="A*W") < 100


def test_the_round_trip_through_a_file(tmp_path):
    found = pattern_spectrum(made(chain()))
    found.to_netcdf(tmp_path / "spectrum.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "spectrum.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), found)
    assert all(isinstance(value, str) for value in found.attrs.values())


def test_attributes():
    model = chain()
    analyzer = tfexplain.create_analyzer(
        "pattern.net", model, estimator="linear", output_mean="all"
    )
    x = np.random.default_rng(0).normal(size=(40, 7, 6, 2))
    found = pattern_spectrum(analyzer.fit(x))
    assert found.attrs["analyzer"] == "pattern.net"
    assert (found.attrs["estimator"], found.attrs["output_mean"]) == ("linear", "all")
    assert json.loads(found.attrs["versions"])["tfexplain"] == tfexplain.__version__
    assert (found.attrs["seed"], found.attrs["notes"]) == ("none", "")
    assert np.isfinite(found.ratio).all() and (found.ratio >= 1).all()


def test_both_methods_have_the_same_spectrum():
    model = chain()
    net = pattern_spectrum(made(model, name="pattern.net"))
    attribution = pattern_spectrum(made(model))
    xr.testing.assert_equal(net, attribution)


def test_the_current_weights_count():
    model = chain()
    analyzer = made(model)
    before = pattern_spectrum(analyzer)
    kernel = model.get_layer("scores").kernel
    kernel.assign(np.random.default_rng(5).normal(size=kernel.shape))
    after = pattern_spectrum(analyzer)
    np.testing.assert_array_equal(after.ratio.sel(quantity="A"), before.ratio.sel(quantity="A"))
    changed = (after.ratio != before.ratio).any("quantity")
    assert changed.values.tolist() == [False, False, False, True]
    expected = ratio(kernel.numpy())
    assert after.ratio.sel(quantity="W", layer="scores") == pytest.approx(expected, rel=1e-12)
    moved = (after.interlayer_ratio != before.interlayer_ratio).sel(quantity=["W", "A*W"])
    assert moved.any("quantity").values.tolist() == [False, False, True]


def test_branches_and_other_layers_are_left_out_with_reasons(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2), name="pixels")
    h = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    inner = layers.Conv2D(4, 3, padding="same", use_bias=False, name="inner")(h)
    inner = layers.BatchNormalization(name="norm")(inner)
    inner = layers.ReLU()(inner)
    inner = layers.Conv2D(4, 1, name="last")(inner)
    h = layers.Add(name="add")([h, inner])
    h = layers.ReLU()(h)
    h = layers.DepthwiseConv2D(3, name="depthwise")(h)
    h = layers.SeparableConv2D(4, 3, name="separable")(h)
    h = layers.Conv2DTranspose(4, 3, name="transposed")(h)
    h = layers.Conv2D(4, 3, groups=2, name="grouped")(h)
    h = layers.Conv2D(1, 3, name="single")(h)
    h = layers.Flatten()(h)
    model = keras.Model(inputs, layers.Dense(3, name="scores")(h))
    model.get_layer("norm").moving_variance.assign([0.5, 1, 2, 3])
    analyzer = tfexplain.create_analyzer("pattern.net", model)
    found = pattern_spectrum(
        analyzer.fit(np.random.default_rng(0).normal(size=(10, 8, 8, 2)).astype("float32"))
    )
    assert found.layer.values.tolist() == ["first", "inner", "last", "single", "scores"]
    left_out, between = found.attrs["notes"].split("\n")
    assert left_out == (
        "left out: add (an addition); depthwise (a depthwise convolution); separable (a separable "
        "convolution); transposed (a transposed convolution); grouped (a grouped convolution)"
    )
    assert between == "no matrix between layers: single (behind grouped)"
    pairs = zip(found["first"].values, found["second"].values, strict=True)
    assert list(pairs) == [("first", "inner"), ("inner", "last"), ("single", "scores")]
    # The normalisation counts as part of the convolution before it.
    kernel = model.get_layer("inner").kernel.numpy()[1, 1].astype("float64")
    kernel = kernel / np.sqrt(model.get_layer("norm").moving_variance.numpy() + 1e-3)
    assert found.ratio.sel(quantity="W", layer="inner") == pytest.approx(ratio(kernel), rel=1e-6)
    # One channel has no second singular value.
    assert np.isnan(found.ratio.sel(layer="single")).all()
    assert np.isfinite(found.singular_value.sel(layer="single", rank=1)).all()
    found.to_netcdf(tmp_path / "spectrum.nc", engine="h5netcdf")


def test_one_layer_has_no_pair(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    found = pattern_spectrum(made(model))
    assert found.sizes == {"quantity": 3, "layer": 1, "rank": 2, "pair": 0}
    found.to_netcdf(tmp_path / "spectrum.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "spectrum.nc", engine="h5netcdf") as again:
        xr.testing.assert_equal(again.load(), found)


def test_dead_patterns_are_not_a_number():
    model = chain()
    patterns = random_patterns(model)
    patterns[0][:] = 0
    found = pattern_spectrum(made(model, patterns))
    assert np.isnan(found.ratio.sel(layer="conv1", quantity=["A", "A*W"])).all()
    assert np.isfinite(found.ratio.sel(layer="conv1", quantity="W"))


def test_channels_first_maps_stay_whole():
    model = keras.Sequential(
        [
            keras.Input((2, 6, 5), dtype="float64"),
            layers.Conv2D(4, 3, data_format="channels_first", dtype="float64", name="conv"),
            layers.Flatten(data_format="channels_last", dtype="float64"),
            layers.Dense(3, dtype="float64", name="scores"),
        ]
    )
    found = pattern_spectrum(made(model))
    weights = model.get_layer("scores").kernel.numpy()
    value = found.ratio.sel(quantity="W", layer="scores")
    assert value == pytest.approx(ratio(weights), rel=1e-10)
    assert "scores (reads 48 channels, conv makes 4)" in found.attrs["notes"]


def test_refusals():
    model = chain()
    with pytest.raises(ValueError, match=r"pattern.net has no patterns yet: call analyzer.fit"):
        pattern_spectrum(tfexplain.create_analyzer("pattern.net", model))
    for wrong in (tfexplain.create_analyzer("gradient", model), {"pattern.net": made(model)}, None):
        with pytest.raises(TypeError, match=f"received {type(wrong).__name__}"):
            pattern_spectrum(wrong)
    inputs = keras.Input((4, 4, 2))
    alone = keras.Model(inputs, layers.DepthwiseConv2D(3, name="only")(inputs))
    patterns = [np.ones((3, 3, 2, 1))]
    with pytest.raises(ValueError, match=r"No layer has a matrix .*: only \(a depthwise"):
        pattern_spectrum(made(alone, patterns))
