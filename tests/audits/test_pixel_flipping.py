"""Pixel flipping against curves and areas made by hand, with OpenCV itself for the inpainting."""

import json
import sys

import cv2
import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers

import tfexplain
from tests.helpers.networks import create, randomize, sequential, small_cnn
from tfexplain.audits import pixel_flipping
from tfexplain.audits.pixel_flipping import (
    area,
    most_relevant_first,
    random_order,
)
from tfexplain.audits.removal import removed_pixels

SHAPE = (8, 9, 3)


def preprocess(pixels):
    """What keras.applications does to images: another order of channels, means subtracted."""
    return pixels[..., ::-1].astype("float32") / 64 - np.array([1.5, 2.0, 0.5], "float32")


@pytest.fixture(scope="module")
def pixels():
    """Smooth images with some noise, so that inpainting has something to go on."""
    generator = np.random.default_rng(2)
    rows, columns = np.mgrid[:8, :9]
    smooth = 12 * rows[..., None] + 9 * columns[..., None] + np.array([0, 30, 60])
    return (smooth + generator.integers(0, 40, (5, *SHAPE))).astype("uint8")


@pytest.fixture(scope="module")
def model():
    return randomize(
        sequential(
            SHAPE,
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        )
    )


@pytest.fixture(scope="module")
def analyzers(model):
    return {name: create(name, model) for name in ("gradient", "lrp.z")}


@pytest.fixture(scope="module")
def found(analyzers, pixels):
    return pixel_flipping(
        analyzers,
        preprocess(pixels),
        pixels=pixels,
        preprocess=preprocess,
        fraction=0.15,
        steps=4,
        radius=2,
    )


def order_of(map, position, seed=0):
    """Places from the largest value on; ties by a random order of the sample."""
    ties = np.random.default_rng([seed, position]).permutation(map.size)
    rank = np.empty(map.size, int)
    rank[ties] = np.arange(map.size)
    return sorted(range(map.size), key=lambda place: (-map.flat[place], rank[place]))


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def curve_of(outputs, target):
    return np.stack([outputs[:, target] / outputs[0, target], softmax(outputs)[:, target]], axis=-1)


def area_of(curve, removed):
    return (
        np.array([np.sum((c[1:] + c[:-1]) / 2 * np.diff(removed)) for c in curve.T]) / removed[-1]
    )


def inpainted(image, order, count, radius):
    mask = np.zeros(image.shape[:2], "uint8")
    mask[np.unravel_index(np.array(order[:count], int), mask.shape)] = 1
    return cv2.inpaint(image, mask, radius, cv2.INPAINT_TELEA)


# --- which pixels ---


@pytest.mark.parametrize(
    ("sizes", "fraction", "steps", "expected"),
    [
        ((28, 28), 0.05, 50, list(range(40))),
        ((28, 28), 0.05, 3, [0, 13, 26, 39]),
        ((10, 10), 1.0, 4, [0, 25, 50, 75, 100]),
        ((10, 10), 0.07, 2, [0, 4, 7]),
        ((3, 3), 0.01, 5, [0, 1]),
    ],
)
def test_numbers_of_removed_pixels(sizes, fraction, steps, expected):
    assert removed_pixels(sizes, fraction, steps).tolist() == expected


def test_about_as_many_pixels_in_each_step():
    removed = removed_pixels((224, 224), 0.05, 50)
    assert (removed[0], removed[-1], len(removed)) == (0, 2509, 51)
    assert set(np.diff(removed)) == {50, 51}


def test_the_most_relevant_pixels_go_first_and_ties_at_random():
    generator = np.random.default_rng(0)
    map = generator.normal(size=(4, 5))
    ties = random_order(3, 7, 4, 5)
    assert sorted(ties) == list(range(20))
    order = most_relevant_first(map, ties)
    assert (np.diff(map.ravel()[order]) < 0).all()
    # Three values, and zeros of both signs.
    map = np.array([[0.0, -0.0, 2, 2], [-0.0, 0.0, -1, 2]])
    ties = random_order(3, 7, 2, 4)
    order = most_relevant_first(map, ties).tolist()
    rank = {place: number for number, place in enumerate(ties)}
    assert order == [
        *sorted([2, 3, 7], key=rank.get),
        *sorted([0, 1, 4, 5], key=rank.get),
        6,
    ]
    assert most_relevant_first(np.zeros((2, 4)), ties).tolist() == ties.tolist()
    assert most_relevant_first(np.asfortranarray(map), ties).tolist() == order
    # Many equal values, which only stable sorts keep in order.
    map, ties = generator.integers(0, 3, (30, 40)), random_order(1, 2, 30, 40)
    rank = np.argsort(ties)
    order = most_relevant_first(map, ties)
    assert order.tolist() == np.lexsort([rank, -map.ravel()]).tolist()
    assert {tuple(random_order(0, place, 2, 4)) for place in range(6)} != {tuple(ties)}


def test_areas_are_means_over_the_removed_pixels():
    curves = np.array([[[1.0, 0.5], [0.0, 0.5], [0.5, 0.5]]])
    np.testing.assert_allclose(area(curves, np.array([0, 1, 4])), [[(0.5 + 3 * 0.25) / 4, 0.5]])


# --- curves ---


def test_a_linear_model_falls_by_its_products():
    """Removing a pixel takes away exactly what input times gradient gives to it."""
    model = randomize(sequential((6, 7, 2), layers.Flatten(), layers.Dense(3, dtype="float64")))
    x = np.random.default_rng(1).uniform(0.5, 1, (4, 6, 7, 2))
    analyzer = create("input_t_gradient", model)
    found = pixel_flipping(analyzer, x, [0, 2, 1, 1], fill="constant", fraction=0.3, steps=6)
    assert found.removed.values.tolist() == [0, 2, 4, 6, 9, 11, 13]
    kernel, bias = (w.astype("float64") for w in model.layers[-1].get_weights())
    for place, target in enumerate([0, 2, 1, 1]):
        logits = x[place].ravel() @ kernel + bias
        products = (x[place].ravel() * kernel[:, target]).reshape(42, 2).sum(1)
        falling = np.concatenate([[0], np.cumsum(np.sort(products)[::-1])])
        logit = logits[target] - falling[found.removed]
        chosen = found.curve.sel(analyzer="input_t_gradient", sample=place)
        np.testing.assert_allclose(chosen.sel(output="logit"), logit / logits[target], rtol=1e-9)
        np.testing.assert_allclose(found.start[0, place], logits[target], rtol=1e-12)
        # No order can fall faster; the random one is no better.
        assert (logit <= logits[target] - 1e-9)[1:].all()
        random = found.random_curve.sel(output="logit", sample=place) * logits[target]
        assert (random >= logit - 1e-9).all() and (random > logit).any()
    np.testing.assert_array_equal(found.target, [0, 2, 1, 1])


def test_telea_inpaints_the_original_with_all_removed_pixels(analyzers, found, pixels):
    assert found.removed.values.tolist() == [0, 3, 6, 8, 11]
    x = preprocess(pixels)
    for name, reduce in (("gradient", np.abs), ("lrp.z", np.asarray)):
        maps = reduce(analyzers[name].analyze(x)).sum(-1)
        for place in range(len(x)):
            order = order_of(maps[place], place)
            images = np.stack([inpainted(pixels[place], order, n, 2) for n in found.removed.values])
            assert (images[0] == pixels[place]).all() and (images[-1] != pixels[place]).any()
            outputs = analyzers[name].outputs(preprocess(images))
            expected = curve_of(outputs, int(found.target[place]))
            chosen = found.sel(analyzer=name, sample=place)
            np.testing.assert_allclose(chosen.curve, expected, rtol=1e-9)
            np.testing.assert_allclose(
                chosen.auc, area_of(expected, found.removed.values), rtol=1e-9
            )
    np.testing.assert_array_equal(found.target, analyzers["lrp.z"].outputs(x).argmax(1))
    assert (found.curve.sel(output="logit", step=0) == 1).all()
    assert ((found.curve > 0) & (found.curve < 1)).sel(output="probability").all()


def test_the_random_order_is_that_of_a_map_without_a_choice(model, analyzers, found, pixels):
    x = preprocess(pixels)
    outputs = []
    for place in range(len(x)):
        order = np.random.default_rng([0, place]).permutation(72)
        images = [inpainted(pixels[place], order, n, 2) for n in found.removed.values]
        outputs.append(analyzers["lrp.z"].outputs(preprocess(np.stack(images))))
    targets = found.target.values
    expected = np.stack([curve_of(o, t) for o, t in zip(outputs, targets, strict=True)])
    np.testing.assert_allclose(found.random_curve, expected, rtol=1e-9)
    areas = np.stack([area_of(curve, found.removed.values) for curve in expected])
    np.testing.assert_allclose(found.random_auc, areas, rtol=1e-9)
    # Nothing passes the only rectifier: the map is zero everywhere.
    dead = create("rect_grad", model, percentile=99.99)
    assert not dead.analyze(x).any()
    options = {"pixels": pixels, "preprocess": preprocess, "fraction": 0.15, "steps": 4}
    again = pixel_flipping(dead, x, radius=2, **options)
    np.testing.assert_allclose(again.curve[0], found.random_curve, rtol=1e-9)
    other = pixel_flipping(dead, x, radius=2, seed=1, **options)
    assert (other.random_curve.isel(step=-1) != found.random_curve.isel(step=-1)).all()


@pytest.mark.parametrize("value", [0, 255])
def test_constant_fill_of_pixels_passes_through_preprocess(analyzers, pixels, value):
    x = preprocess(pixels)
    options = {"fill": "constant", "value": value, "fraction": 0.1, "seed": 5}
    found = pixel_flipping(
        analyzers["lrp.z"], x, 1, pixels=pixels, preprocess=preprocess, **options
    )
    maps = analyzers["lrp.z"].analyze(x, target=1).sum(-1)
    for place in range(len(x)):
        order = order_of(maps[place], place, seed=5)
        images = np.repeat(pixels[place][None], 8, axis=0)
        for count in range(8):
            images[count].reshape(72, 3)[order[:count]] = value
        expected = curve_of(analyzers["lrp.z"].outputs(preprocess(images)), 1)
        np.testing.assert_allclose(found.curve[0, place], expected, rtol=1e-9)


def test_grey_images_with_and_without_an_axis_of_channels():
    model = randomize(sequential((8, 9, 1), layers.Flatten(), layers.Dense(3)))
    analyzer = create("input_t_gradient", model)
    grey = np.random.default_rng(3).integers(0, 256, (3, 8, 9)).astype("uint8")
    x = grey[..., None] / 255.0
    found = pixel_flipping(
        analyzer, x, pixels=grey, preprocess=lambda p: p[..., None] / 255.0, fraction=0.1
    )
    again = pixel_flipping(
        analyzer, x, pixels=grey[..., None], preprocess=lambda p: p / 255.0, fraction=0.1
    )
    xr.testing.assert_equal(found, again)
    order = order_of(analyzer.analyze(x)[1, ..., 0], 1)
    images = [inpainted(grey[1], order, count, 3) for count in range(8)]
    outputs = analyzer.outputs(np.stack(images)[..., None] / 255.0)
    np.testing.assert_allclose(found.curve[0, 1], curve_of(outputs, int(found.target[1])))


def test_channels_first_equals_channels_last(pixels):
    last = randomize(sequential(SHAPE, layers.Flatten(), layers.Dense(3)))
    first = sequential(
        (3, 8, 9),
        # It only tells where the channels are.
        layers.AveragePooling2D(1, data_format="channels_first"),
        layers.Flatten(data_format="channels_last"),
        layers.Dense(3),
    )
    kernel, bias = last.get_weights()
    first.set_weights([kernel.reshape(*SHAPE, 3).transpose(2, 0, 1, 3).reshape(-1, 3), bias])
    x = preprocess(pixels)

    def moved(pixels):
        return preprocess(pixels).transpose(0, 3, 1, 2)

    pair = [create("input_t_gradient", each) for each in (last, first)]
    options = {"pixels": pixels, "fraction": 0.1}
    expected = pixel_flipping(pair[0], x, preprocess=preprocess, **options)
    found = pixel_flipping(pair[1], moved(pixels), preprocess=moved, **options)
    np.testing.assert_allclose(found.curve, expected.curve, rtol=1e-9)
    options = {"fill": "constant", "value": -1, "fraction": 0.1}
    expected = pixel_flipping(pair[0], x, **options)
    found = pixel_flipping(pair[1], moved(pixels), **options)
    np.testing.assert_allclose(found.curve, expected.curve, rtol=1e-9)


@pytest.mark.parametrize(("batch_size", "block_size"), [(1, 2), (3, 1), (50, 50)])
def test_batches_do_not_matter(analyzers, found, pixels, batch_size, block_size):
    again = pixel_flipping(
        analyzers,
        preprocess(pixels),
        pixels=pixels,
        preprocess=preprocess,
        fraction=0.15,
        steps=4,
        radius=2,
        batch_size=batch_size,
        block_size=block_size,
    )
    for name in ("curve", "auc", "random_curve", "random_auc", "start"):
        np.testing.assert_allclose(again[name], found[name], rtol=1e-9)


def test_what_is_not_defined_is_missing_and_counted(pixels):
    x = preprocess(pixels)
    model = randomize(sequential(SHAPE, layers.Flatten(), layers.Dense(3)))
    kernel, bias = model.get_layer(index=-1).weights
    # The logits are 0, x.w and a negative number.
    kernel.assign(np.stack([0 * kernel[:, 1], kernel[:, 1], 0 * kernel[:, 1]], axis=1))
    bias.assign([0, 0, -100])
    analyzer = create("gradient", model)
    found = pixel_flipping(analyzer, x, [0, 0, 1, 1, 2], fill="constant")
    assert np.isnan(found.auc.sel(output="logit")).values.tolist() == [[True] * 2 + [False] * 3]
    assert found.missing.values.tolist() == [[2, 0]]
    assert found.random_auc.isnull().sum("sample").values.tolist() == [2, 0]
    assert "of 5 logits are negative at the start" in found.attrs["notes"]
    assert int(found.attrs["notes"].split()[0]) == (found.start < 0).sum() >= 1
    assert found.start[0, 4] == -100 and found.curve[0, 4, -1, 0] == 1


def test_maps_that_are_not_finite_are_missing(analyzers, pixels, monkeypatch):
    explain = analyzers["lrp.z"].explain_part

    def broken(arrays, targets, part, batch_size):
        outputs, (relevance,) = explain(arrays, targets, part, batch_size)
        relevance[1, 0, 2, 3] = np.nan
        return outputs, [relevance]

    monkeypatch.setattr(analyzers["lrp.z"], "explain_part", broken)
    found = pixel_flipping(analyzers, preprocess(pixels), fill="constant")
    assert found.missing.values.tolist() == [[0, 0], [1, 1]]
    assert np.isnan(found.auc.sel(analyzer="lrp.z", sample=1)).all()
    assert np.isfinite(found.random_auc).all()


# --- files and attributes ---


def test_a_stopped_run_continues(analyzers, pixels, tmp_path, monkeypatch):
    path, calls = tmp_path / "run.nc", []
    explain = analyzers["lrp.z"].explain_part

    def failing(arrays, targets, part, batch_size):
        calls.append((part.start, part.stop))
        if len(calls) == 2:
            raise RuntimeError("no power")
        return explain(arrays, targets, part, batch_size)

    monkeypatch.setattr(analyzers["lrp.z"], "explain_part", failing)
    options = {"pixels": pixels, "preprocess": preprocess, "block_size": 3}
    x = preprocess(pixels)
    with pytest.raises(RuntimeError, match="no power"):
        pixel_flipping(analyzers, x, path=path, **options)
    assert len(list((tmp_path / "run.nc.blocks").glob("*.npz"))) == 1
    found = pixel_flipping(analyzers, x, path=path, **options)
    assert calls == [(0, 3), (3, 5), (3, 5)]
    xr.testing.assert_equal(found, pixel_flipping(analyzers, x, **options))
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        xr.testing.assert_identical(stored.load(), found)
    for changed, names in (({"radius": 4}, "radius"), ({"seed": 2}, "seed")):
        with pytest.raises(ValueError, match=f"other settings; they differ in {names}"):
            pixel_flipping(analyzers, x, path=path, **options, **changed)


def test_attributes(found):
    assert found.attrs["audit"] == "pixel_flipping"
    expected = {"fraction": 0.15, "fill": "telea", "radius": 2, "steps": 4, "seed": 0, "pixels": 1}
    assert {key: found.attrs[key] for key in expected} == expected
    assert json.loads(found.attrs["reduction"]) == {"gradient": "abs_sum", "lrp.z": "sum"}
    assert json.loads(found.attrs["versions"])["opencv"] == cv2.__version__
    assert found.curve.dims == ("analyzer", "sample", "step", "output")
    assert found.output.values.tolist() == ["logit", "probability"]


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": "black"}, "fill must be one of telea, constant, received 'black'"),
        ({}, r'give pixels=\.\.\. and preprocess=\.\.\..*or use fill="constant" with value'),
        ({"preprocess": preprocess}, "give pixels"),
        ({"fill": "constant", "preprocess": preprocess}, "belong together.* pixels is missing"),
        ({"fill": "constant", "fraction": 0}, r"fraction must be in \(0, 1\], received 0"),
        ({"fill": "constant", "fraction": 1.5}, r"fraction must be in \(0, 1\], received 1.5"),
        ({"fill": "constant", "fraction": "all"}, "fraction must be .* received 'all'"),
        ({"fill": "constant", "steps": 0}, "steps must be a positive integer, received 0"),
        ({"fill": "constant", "steps": 2.5}, "steps must be a positive integer, received 2.5"),
        ({"fill": "constant", "value": np.nan}, "value must be a finite number, received nan"),
        ({"fill": "constant", "radius": 0}, "radius must be a number > 0, received 0"),
        ({"fill": "constant", "reduction": "mean"}, "reduction must be one of"),
        ({"fill": "constant", "seed": -1}, "seed must be an integer >= 0"),
        ({"fill": "constant", "y": [0]}, "1 targets for 5 samples"),
        ({"fill": "constant", "batch_size": 0}, "batch_size must be a positive integer"),
        ({"fill": "constant", "block_size": 0}, "block_size must be a positive integer"),
    ],
)
def test_wrong_options(analyzers, pixels, options, message):
    with pytest.raises(ValueError, match=message):
        pixel_flipping(analyzers, preprocess(pixels), **options)


@pytest.fixture
def without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)


def test_without_opencv_inpainting_is_refused_before_the_work(
    analyzers, pixels, without_opencv, monkeypatch
):
    for analyzer in analyzers.values():
        monkeypatch.setattr(analyzer, "explain_part", None)
    message = r'fill="telea".* OpenCV.*pip install "tfexplain\[inpainting\]".*fill="constant"'
    with pytest.raises(ImportError, match=message):
        pixel_flipping(analyzers, preprocess(pixels), pixels=pixels, preprocess=preprocess)


def test_without_opencv_pixels_can_become_constant(analyzers, pixels, without_opencv):
    options = {"pixels": pixels, "preprocess": preprocess, "fill": "constant", "value": 7}
    found = pixel_flipping(analyzers, preprocess(pixels), **options)
    assert np.isfinite(found.curve.sel(output="probability")).all()
    assert "opencv" not in json.loads(found.attrs["versions"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocess": None}, "belong together.* preprocess is missing"),
        ({"preprocess": "caffe"}, "preprocess must be a function of pixels, received 'caffe'"),
        ({"fill": "constant", "value": 0.5}, "an integer in 0..255, received 0.5"),
        ({"fill": "constant", "value": 256}, "an integer in 0..255, received 256"),
        ({"fraction": 1.0}, "fraction removes all 72 of them; choose a smaller"),
        ({"preprocess": lambda p: p / 255.0}, "x is not preprocess.pixels.: they differ by"),
        ({"preprocess": lambda p: preprocess(p)[:, 1:]}, r"has shape \(5, 7, 9, 3\), x has"),
        ({"preprocess": lambda p: preprocess(p) * np.nan}, "they differ by nan"),
    ],
)
def test_pixels_have_to_make_x(analyzers, pixels, change, message):
    options = {"pixels": pixels, "preprocess": preprocess, **change}
    with pytest.raises(ValueError, match=message):
        pixel_flipping(analyzers, preprocess(pixels), **options)


def test_wrong_pixels(analyzers, pixels):
    x = preprocess(pixels)
    for wrong in (pixels / 255.0, pixels[1:], pixels[..., :2], pixels[:, 1:], pixels.astype(int)):
        with pytest.raises(ValueError, match=r"pixels must be uint8 of shape \(5, 8, 9\) or "):
            pixel_flipping(analyzers, x, pixels=wrong, preprocess=preprocess)
    # One grey level apart is another image.
    with pytest.raises(ValueError, match="x is not preprocess"):
        pixel_flipping(analyzers, x, pixels=pixels + np.uint8(1), preprocess=preprocess)


def test_one_grey_level_is_seen_and_half_precision_is_rounding(analyzers, pixels):
    x = preprocess(pixels).astype("float16")
    pixel_flipping(analyzers, x, pixels=pixels, preprocess=preprocess, fraction=0.02)


def test_the_users_arrays_are_not_changed(analyzers, pixels):
    def careless(given):
        made = preprocess(given)
        given[:] = 0
        return made

    x, before = preprocess(pixels), pixels.copy()
    kept = x.copy()
    pixel_flipping(analyzers, x, pixels=pixels, preprocess=careless, fraction=0.02)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(x, kept)


def test_wrong_models(analyzers, pixels):
    def refused(model, x, message, **options):
        analyzer = tfexplain.create_analyzer("gradient", model, **options)
        with pytest.raises(ValueError, match=message):
            pixel_flipping(analyzer, x, fill="constant")

    image = np.ones((2, 6, 6, 1))
    single = sequential((6, 6, 1), layers.Flatten(), layers.Dense(1))
    refused(single, image, r"one output per class, and this one has outputs of shape \(1,\)")
    refused(sequential((6, 6, 1), layers.Dense(2)), image, r"outputs of shape \(6, 6, 2\)")
    table = sequential((6,), layers.Dense(3))
    refused(table, np.ones((2, 6)), r"pixels of images .* inputs have the shape \(6,\)")
    sequence = sequential((6, 2), layers.Flatten(), layers.Dense(3))
    refused(sequence, np.ones((2, 6, 2)), r"pixels of images .* shape \(6, 2\)")
    tokens = sequential((6,), layers.Embedding(9, 2), layers.Flatten(), layers.Dense(3))
    refused(tokens, np.ones((2, 6), int), r"pixels of images .* shape \(6,\)")
    refused(
        small_cnn(), np.ones((2, 8, 8, 3)), "'gradient' explains are prob", output_activation="keep"
    )
    a, b = keras.Input((6, 6, 1), name="a"), keras.Input((6, 6, 1), name="b")
    both = keras.Model([a, b], layers.Dense(3)(layers.Flatten()(layers.Add()([a, b]))))
    refused(both, [image, image], r"the model has 2 \(a, b\)")
