"""The entropy of maps, against the formula."""

import json
import math

import numpy as np
import pytest
import xarray as xr
from keras import layers

from tests.helpers.networks import create, randomize, samples, sequential, small_cnn
from tfexplain import metrics
from tfexplain.audits import entropy


def formula(map):
    """-sum p log p over the locations that have relevance."""
    share = np.abs(map[map != 0]).ravel() / np.abs(map).sum()
    return -(share * np.log(share)).sum()


@pytest.fixture(scope="module")
def analyzers(cnn):
    return {name: create(name, cnn) for name in ("gradient", "lrp.gamma")}


@pytest.fixture(scope="module")
def found(analyzers, pixels):
    return entropy(analyzers, pixels)


def test_the_formula():
    map = np.random.default_rng(0).normal(size=(5, 6))
    map[2] = 0
    assert metrics.entropy(map) == pytest.approx(formula(map), rel=1e-12)
    assert metrics.entropy(-map) == metrics.entropy(map)
    for scale in (1e-300, 1e300):
        assert metrics.entropy(scale * map) == pytest.approx(formula(map), rel=1e-9)


def test_extremes():
    assert metrics.entropy(np.full((4, 5), -0.3)) == pytest.approx(math.log(20), rel=1e-12)
    one = np.zeros(7)
    one[3] = 1e-20
    assert metrics.entropy(one) == 0
    assert metrics.entropy(np.array([[1, 1], [0, 0]])) == pytest.approx(math.log(2))
    for undefined in (np.zeros(3), np.array([1, np.nan]), np.array([np.inf, 1]), np.zeros(0)):
        assert math.isnan(metrics.entropy(undefined))


def test_maps_are_reduced_as_each_analyzer_says(analyzers, found, pixels):
    for name, reduce in (("gradient", np.abs), ("lrp.gamma", np.asarray)):
        maps = reduce(analyzers[name].analyze(pixels)).sum(-1)
        expected = [formula(map) for map in maps]
        np.testing.assert_allclose(found.entropy.sel(analyzer=name), expected, rtol=1e-12)
    assert found.attrs["maximum"] == pytest.approx(math.log(64))
    assert (found.entropy < found.attrs["maximum"]).all() and (found.entropy > 0).all()
    np.testing.assert_array_equal(found.target, analyzers["gradient"].outputs(pixels).argmax(1))
    assert (found.missing == 0).all() and found.missing.dims == ("analyzer",)
    largest = entropy(analyzers, pixels, reduction={"lrp.gamma": "abs_max"})
    maps = np.abs(analyzers["lrp.gamma"].analyze(pixels)).max(-1)
    np.testing.assert_allclose(largest.entropy[1], [formula(map) for map in maps], rtol=1e-12)
    xr.testing.assert_equal(largest.entropy[0], found.entropy[0])


def test_given_classes(analyzers, pixels):
    found = entropy(analyzers, pixels, [2, 0, 1, 1])
    maps = analyzers["lrp.gamma"].analyze(pixels, target=[2, 0, 1, 1]).sum(-1)
    expected = [formula(map) for map in maps]
    np.testing.assert_allclose(found.entropy.sel(analyzer="lrp.gamma"), expected, rtol=1e-12)
    assert found.target.values.tolist() == [2, 0, 1, 1]


def test_maps_without_relevance_are_missing_and_counted(cnn, pixels):
    # With this percentile no rectifier lets anything pass.
    given = {"dead": create("rect_grad", cnn, percentile=99.99), "alive": create("lrp.z", cnn)}
    found = entropy(given, pixels)
    assert found.missing.values.tolist() == [4, 0]
    assert np.isnan(found.entropy[0]).all() and np.isfinite(found.entropy[1]).all()


@pytest.mark.parametrize("shape", [(6,), (7, 3), (4, 5, 3, 2)])
def test_tables_sequences_and_volumes(shape):
    # A single output is enough: no second class is needed.
    model = randomize(sequential(shape, layers.Flatten(), layers.Dense(1)))
    analyzer, x = create("input_t_gradient", model), samples(model)
    found = entropy(analyzer, x)
    maps = analyzer.analyze(x)
    maps = maps if len(shape) == 1 else maps.sum(-1)
    np.testing.assert_allclose(found.entropy[0], [formula(map) for map in maps], rtol=1e-12)
    assert found.attrs["maximum"] == pytest.approx(math.log(maps[0].size))


@pytest.mark.parametrize(("batch_size", "block_size"), [(1, 3), (3, 1)])
def test_batches_do_not_matter(analyzers, found, pixels, batch_size, block_size):
    again = entropy(analyzers, pixels, batch_size=batch_size, block_size=block_size)
    np.testing.assert_allclose(again.entropy, found.entropy, rtol=1e-9)


def test_a_stopped_run_continues(analyzers, pixels, tmp_path, monkeypatch):
    path, calls = tmp_path / "run.nc", []
    explain = analyzers["lrp.gamma"]._explain

    def failing(arrays, targets, place):
        calls.append(place.positions)
        if len(calls) == 2:
            raise RuntimeError("no power")
        return explain(arrays, targets, place)

    monkeypatch.setattr(analyzers["lrp.gamma"], "_explain", failing)
    with pytest.raises(RuntimeError, match="no power"):
        entropy(analyzers, pixels, block_size=2, path=path)
    assert len(list((tmp_path / "run.nc.blocks").glob("*.npz"))) == 1
    found = entropy(analyzers, pixels, block_size=2, path=path)
    # The first block is not computed again.
    assert calls == [slice(0, 2), slice(2, 4), slice(2, 4)]
    xr.testing.assert_equal(found, entropy(analyzers, pixels, block_size=2))
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        xr.testing.assert_identical(stored.load(), found)
    with pytest.raises(ValueError, match="other settings; they differ in seed"):
        entropy(analyzers, pixels, block_size=2, path=path, seed=1)


def test_attributes(found):
    assert (found.attrs["audit"], found.attrs["seed"]) == ("entropy", 0)
    assert json.loads(found.attrs["reduction"]) == {"gradient": "abs_sum", "lrp.gamma": "sum"}
    assert json.loads(found.attrs["versions"])["tfexplain"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "mean"}, "reduction must be one of"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"y": [0]}, "1 targets for 4 samples"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"block_size": 0}, "block_size must be a positive integer"),
    ],
)
def test_wrong_options(analyzers, pixels, options, message):
    with pytest.raises(ValueError, match=message):
        entropy(analyzers, pixels, **options)


def test_wrong_analyzers(pixels):
    with pytest.raises(TypeError, match="analyzers must be an analyzer"):
        entropy(small_cnn(), pixels)
