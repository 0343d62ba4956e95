"""Similarity of the maps of two classes, against maps and scores made by hand."""

import json

import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers
from skimage.metrics import structural_similarity

import tfexplain
from tests.helpers.networks import create, randomize, sequential
from tfexplain.audits import random_logit
from tfexplain.audits.random_logit import other_classes

METHODS = ("gradient", "lrp.z", "rect_grad")


def images(count=6, shape=(7, 9, 3), seed=3):
    return np.random.default_rng(seed).normal(size=(count, *shape))


def convolutional(shape=(7, 9, 3), classes=5, dtype="float32"):
    """Convolution, ReLU and logits; nothing sums maps up, so they differ from class to class."""
    return randomize(
        sequential(
            shape,
            layers.Conv2D(6, 3, activation="relu", name="conv", dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(classes, name="scores", dtype=dtype),
        )
    )


@pytest.fixture(scope="module")
def model():
    return convolutional()


@pytest.fixture(scope="module")
def analyzers(model):
    options = {"rect_grad": {"percentile": 60}}
    return {name: create(name, model, **options.get(name, {})) for name in METHODS}


@pytest.fixture(scope="module")
def found(analyzers):
    return random_logit(analyzers, images(), num_classes=3)


def scaled(map, percent):
    low, high = np.percentile(map, [100 - percent, percent])
    return np.clip((map - low) / (high - low), 0, 1)


def score(first, second, data_range=1.0):
    return structural_similarity(
        first,
        second,
        win_size=5,
        gaussian_weights=False,
        use_sample_covariance=True,
        K1=0.01,
        K2=0.03,
        data_range=data_range,
    )


def by_hand(analyzer, x, target, other, compare):
    """Scores of one map per class, each class explained in a call of its own."""
    first = analyzer.analyze(x, target=list(target))
    second = analyzer.analyze(x, target=list(other))
    return [compare(a, b) for a, b in zip(first, second, strict=True)]


def published(percent, reduce, data_range=1.0):
    def compare(first, second):
        first, second = (scaled(reduce(r), percent) for r in (first, second))
        return score(first, second, data_range)

    return compare


def magnitudes(relevance):
    return np.abs(relevance).sum(-1)


def total(relevance):
    return relevance.sum(-1)


def test_scores_are_those_of_scikit_image(analyzers, found):
    own = {"gradient": (99.5, magnitudes), "lrp.z": (99.5, total), "rect_grad": (100, magnitudes)}
    for name, analyzer in analyzers.items():
        for draw in range(3):
            other = found.other_class.sel(draw=draw).values
            expected = by_hand(
                analyzer, images(), found.target.values, other, published(*own[name])
            )
            np.testing.assert_allclose(
                found.ssim.sel(analyzer=name, draw=draw), expected, rtol=1e-9, atol=1e-12
            )
    assert found.ssim.std("sample").min() > 0.01
    assert (found.missing == 0).all()


def test_the_target_is_the_largest_output(model, found):
    expected = model(images().astype("float32")).numpy().argmax(1)
    np.testing.assert_array_equal(found.target, expected)
    assert len(set(expected)) > 1


def test_given_classes_and_options(analyzers):
    x, y = images(), np.array([0, 1, 2, 3, 4, 0])

    def compare(first, second):
        # The published numbers: inverted maps, a range of 2, the better of two signs.
        first = 1 - scaled(np.abs(first).max(-1), 100)
        seconds = [1 - scaled(sign * np.abs(second).max(-1), 100) for sign in (1, -1)]
        return max(score(first, each, 2.0) for each in seconds)

    found = random_logit(
        analyzers,
        x,
        y[:, None],
        reduction="abs_max",
        normalization={name: "inverted_minmax" for name in analyzers},
        data_range=2.0,
        flip=True,
    )
    np.testing.assert_array_equal(found.target, y)
    for name, analyzer in analyzers.items():
        expected = by_hand(analyzer, x, y, found.other_class.values[:, 0], compare)
        np.testing.assert_allclose(found.ssim.sel(analyzer=name, draw=0), expected, rtol=1e-9)
    same = random_logit(analyzers, x, 2)
    assert (same.target == 2).all() and (same.other_class != 2).all()


def test_a_flipped_map_is_found_by_flip():
    # Two classes with opposite weights: the maps differ by their sign only.
    model = convolutional(classes=2)
    kernel, bias = model.get_layer("scores").weights
    kernel.assign(np.stack([kernel[:, 0], -kernel[:, 0]], axis=1))
    bias.assign([1.0, 1.0])
    analyzer = create("input_t_gradient", model)
    plain = random_logit(analyzer, images())
    flipped = random_logit(analyzer, images(), flip=True)
    assert (plain.ssim < 0.5).all()
    np.testing.assert_allclose(flipped.ssim, 1)


def test_classes_are_the_same_for_all_and_keyed_by_position(analyzers, found):
    alone = random_logit(analyzers["lrp.z"], images(), num_classes=3, batch_size=2, block_size=4)
    np.testing.assert_array_equal(alone.other_class, found.other_class)
    np.testing.assert_allclose(alone.ssim[0], found.ssim.sel(analyzer="lrp.z"), rtol=1e-9)
    fewer = random_logit(analyzers["lrp.z"], images()[:4])
    np.testing.assert_array_equal(fewer.other_class[:, 0], found.other_class[:4, 0])
    another = random_logit(analyzers["lrp.z"], images(), num_classes=3, seed=1)
    assert (another.other_class != found.other_class).any()


def test_other_classes_are_uniform_without_replacement():
    targets = np.repeat(np.arange(4), 3000).astype("int32")
    drawn = other_classes(targets, 4, 2, seed=0)
    assert (drawn != targets[:, None]).all()
    assert (drawn[:, 0] != drawn[:, 1]).all()
    for draw in (0, 1):
        for target in range(4):
            counts = np.bincount(drawn[targets == target, draw], minlength=4)
            assert counts[target] == 0
            others = np.delete(counts, target)
            # Three classes, 3000 samples: the standard deviation is 26.
            assert (np.abs(others - 1000) < 120).all()
    everything = other_classes(targets, 4, 3, seed=0)
    assert (np.sort(everything, axis=1) == [sorted({0, 1, 2, 3} - {t}) for t in targets]).all()
    np.testing.assert_array_equal(everything[:, :2], drawn)


@pytest.mark.parametrize(("batch_size", "block_size"), [(1, 3), (7, 32), (32, 5)])
def test_batches_do_not_matter(model, batch_size, block_size):
    names = ("gradient", "lrp.alpha_2_beta_1", "smoothgrad")
    analyzers = {name: tfexplain.create_analyzer(name, model) for name in names}
    x = images(9)
    expected = random_logit(analyzers, x, num_classes=2)
    found = random_logit(analyzers, x, num_classes=2, batch_size=batch_size, block_size=block_size)
    np.testing.assert_allclose(found.ssim, expected.ssim, atol=2e-4)
    xr.testing.assert_equal(found.drop_vars("ssim"), expected.drop_vars("ssim"))


def test_one_forward_pass_serves_all_classes(model, monkeypatch):
    analyzer = create("lrp.epsilon", model)
    shapes = []
    explain = analyzer._explain

    def counted(arrays, targets, place):
        shapes.append(targets.shape)
        return explain(arrays, targets, place)

    monkeypatch.setattr(analyzer, "_explain", counted)
    random_logit(analyzer, images(), num_classes=4, batch_size=3)
    assert shapes == [(3, 5), (3, 5)]


def test_constant_maps_are_missing_and_counted(model):
    # The only ReLU passes nothing: every map is zero.
    dead = create("rect_grad", model, percentile=99.99)
    alive = create("gradient", model)
    found = random_logit({"dead": dead, "alive": alive}, images(), num_classes=2)
    assert found.missing.sel(analyzer=["dead", "alive"]).values.tolist() == [12, 0]
    assert np.isnan(found.ssim.sel(analyzer="dead")).all()


def test_the_round_trip_through_a_file(found, tmp_path):
    found.to_netcdf(tmp_path / "logit.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "logit.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), found)


def test_attributes(found):
    assert found.attrs["audit"] == "random_logit"
    assert (found.attrs["seed"], found.attrs["num_classes"], found.attrs["flip"]) == (0, 3, 0)
    assert json.loads(found.attrs["normalization"])["rect_grad"] == "minmax"
    assert json.loads(found.attrs["reduction"])["lrp.z"] == "sum"
    assert json.loads(found.attrs["analyzers"])["rect_grad"]["options"]["percentile"] == 60
    versions = json.loads(found.attrs["versions"])
    assert versions["tfexplain"] == tfexplain.__version__ and versions["scikit-image"]
    assert found.attrs["notes"] == ""


def test_sequences_and_tokens_are_compared_along_their_steps():
    sequence = randomize(
        sequential(
            (11, 2), layers.Conv1D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)
        )
    )
    analyzer = create("input_t_gradient", sequence)
    x = images(4, (11, 2))
    found = random_logit(analyzer, x)
    other = found.other_class.values[:, 0]
    expected = by_hand(analyzer, x, found.target.values, other, published(99.5, total))
    np.testing.assert_allclose(found.ssim[0, :, 0], expected, rtol=1e-9)

    words = randomize(
        sequential((8,), layers.Embedding(20, 3), layers.Flatten(), layers.Dense(3)), seed=2
    )
    analyzer = create("lrp.epsilon", words)
    x = np.random.default_rng(0).integers(0, 20, (4, 8))
    found = random_logit(analyzer, x)
    other = found.other_class.values[:, 0]
    expected = by_hand(analyzer, x, found.target.values, other, published(99.5, np.asarray))
    np.testing.assert_allclose(found.ssim[0, :, 0], expected, rtol=1e-9)


def test_volumes_and_channels_first():
    volume = randomize(
        sequential((5, 6, 5, 2), layers.Conv3D(3, 3), layers.Flatten(), layers.Dense(3))
    )
    analyzer = create("gradient", volume)
    x = images(3, (5, 6, 5, 2))
    found = random_logit(analyzer, x)
    other = found.other_class.values[:, 0]
    expected = by_hand(analyzer, x, found.target.values, other, published(99.5, magnitudes))
    np.testing.assert_allclose(found.ssim[0, :, 0], expected, rtol=1e-9)

    first = sequential(
        (2, 6, 7),
        layers.AveragePooling2D(1, data_format="channels_first"),
        layers.Flatten(data_format="channels_last"),
        layers.Dense(4),
    )
    analyzer = create("input_t_gradient", randomize(first))
    x = images(3, (2, 6, 7))
    found = random_logit(analyzer, x)
    other = found.other_class.values[:, 0]
    reduce = published(99.5, lambda relevance: relevance.sum(0))
    expected = by_hand(analyzer, x, found.target.values, other, reduce)
    np.testing.assert_allclose(found.ssim[0, :, 0], expected, rtol=1e-9)


def test_analyzers_of_two_precisions(model):
    pair = {dtype: create("lrp.z", model, dtype=dtype) for dtype in ("float32", "float64")}
    found = random_logit(pair, images())
    np.testing.assert_allclose(found.ssim[0], found.ssim[1], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 5}, r"num_classes must be an integer in 1\.\.4, received 5"),
        ({"num_classes": 0}, "received 0"),
        ({"num_classes": 1.0}, "received 1.0"),
        ({"y": "all"}, "y must be one index per sample, received 'all'"),
        ({"y": np.eye(3)[[0, 1, 2, 0]]}, "give y.argmax"),
        ({"y": np.eye(3, dtype=int)[[0, 1, 2, 0]]}, "give y.argmax"),
        ({"y": [0, 1]}, "2 targets for 6 samples"),
        ({"y": 5}, "target 5 is out of range"),
        ({"reduction": "mean"}, "reduction must be one of abs_sum, abs_max, sum, received 'mean'"),
        (
            {"reduction": {"lrp": "sum"}},
            "reduction names lrp, which is no analyzer. Analyzers: ",
        ),
        ({"normalization": "minimax"}, "received 'minimax'. Did you mean 'minmax'"),
        ({"normalization": ["minmax"]}, r"received \('minmax',\)"),
        ({"data_range": 0}, "data_range must be a number > 0, received 0"),
        ({"flip": "yes"}, "flip must be True or False, received 'yes'"),
        ({"seed": -1}, "seed must be an integer >= 0, received -1"),
        ({"batch_size": 0}, "batch_size must be a positive integer, received 0"),
        ({"block_size": 0}, "block_size must be a positive integer, received 0"),
    ],
)
def test_wrong_options(analyzers, options, message):
    with pytest.raises(ValueError, match=message):
        random_logit(analyzers, images(), **options)


def test_wrong_models_and_inputs_are_refused_before_any_work(model, analyzers, monkeypatch):
    for wrong in (model, None, [analyzers["gradient"]], {"gradient": "gradient"}):
        with pytest.raises(TypeError, match=f"received {type(wrong).__name__}"):
            random_logit(wrong, images())
    with pytest.raises(ValueError, match="There is no analyzer"):
        random_logit({}, images())

    def explained(*arguments):
        raise AssertionError("work has begun")

    def refused(stack_or_model, x, message):
        given = stack_or_model
        if isinstance(given, keras.Model):
            given = create("gradient", given)
        monkeypatch.setattr(type(given), "_explain", explained)
        with pytest.raises(ValueError, match=message):
            random_logit(given, x)

    single = sequential((6, 6, 1), layers.Flatten(), layers.Dense(1))
    refused(single, images(2, (6, 6, 1)), "The model has a single output")
    table = sequential((6,), layers.Dense(3))
    refused(table, images(2, (6,)), r"inputs of shape \(6,\) have no spatial axis. Give images")
    small = sequential((6, 4, 1), layers.Flatten(), layers.Dense(3))
    refused(small, images(2, (6, 4, 1)), r"maps of shape \(6, 4\) are smaller than its window of 5")
    a, b = keras.Input((6, 6, 1), name="a"), keras.Input((6, 6, 1), name="b")
    both = keras.Model([a, b], layers.Dense(3)(layers.Flatten()(layers.Add()([a, b]))))
    refused(both, [images(2, (6, 6, 1))] * 2, r"the model has 2 \(a, b\)")
    refused(analyzers["gradient"], images()[:, :-1], "has shape")
    patterns = create("pattern.net", model)
    refused(patterns, images(), "pattern.net has no patterns yet: call analyzer.fit")
    other = create("gradient", convolutional(classes=3))
    with pytest.raises(ValueError, match=r"same outputs: 'a' has \[\(5,\)\], 'b' \[\(3,\)\]"):
        random_logit({"a": analyzers["gradient"], "b": other}, images())
