"""Maps of randomized networks, against fresh analyzers on models with weights set by hand."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from keras import layers
from skimage.metrics import structural_similarity

import tfexplain
from tests.helpers.networks import create, randomize, sequential
from tests.helpers.randomization_networks import images, small
from tfexplain import compilation, metrics
from tfexplain.audits import cascade_maps, parameter_randomization
from tfexplain.audits.random_weights import RandomWeights
from tfexplain.metrics import median_interval

ROOT = pathlib.Path(__file__).parents[2]
# From the last layer with weights to the first.
STEPS = ["scores", "conv2", "norm", "conv1"]


def with_random(model, layer_names, kind="initializer", statistics="randomized", seed=0):
    """A model whose named layers got their random weights by hand."""
    random = RandomWeights(model, kind, statistics, seed)
    other = small(seed=99)
    for place, (weight, trained) in enumerate(zip(other.weights, model.weights, strict=True)):
        chosen = weight.path.split("/")[-2] in layer_names
        kept = statistics == "kept" and weight.name.startswith("moving")
        weight.assign(random.draw(place) if chosen and not kept else trained)
    return other


def scaled(map, percent):
    low, high = np.percentile(map, [100 - percent, percent])
    return np.clip((map - low) / (high - low), 0, 1)


def compared(first, second, percent):
    """SSIM, rank correlation and cosine of two maps, by other libraries."""
    assert np.ptp(first) > 0 and np.ptp(second) > 0
    ssim = structural_similarity(
        scaled(first, percent), scaled(second, percent), win_size=5, data_range=1.0
    )
    a, b = first.ravel(), second.ravel()
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return ssim, scipy.stats.spearmanr(a, b)[0], a @ b / norms


METHODS = ("guided_backprop", "lrp.epsilon", "pattern.attribution")
MAGNITUDES = ("gradient", "guided_backprop")


def made(model, names=("gradient",), **options):
    """Analyzers in float64; the pattern methods are fitted to the model as it is."""
    found = {name: create(name, model, **options) for name in names}
    for name, analyzer in found.items():
        if name.startswith("pattern"):
            analyzer.fit(images(20, seed=7))
    return found


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def analyzers(model):
    return made(model, METHODS)


@pytest.fixture(scope="module")
def found(analyzers):
    return parameter_randomization(analyzers, images())


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_brute_force(model, analyzers, found, mode):
    if mode == "independent":
        analyzers = {"lrp.epsilon": analyzers["lrp.epsilon"]}
        found = parameter_randomization(analyzers, images(), mode=mode)
    x, y = images(), found.target.values.tolist()
    assert found.step.values.tolist() == STEPS
    np.testing.assert_array_equal(y, model(x.astype("float32")).numpy().argmax(1))

    def map_of(name, analyzer):
        relevance = analyzer.analyze(x, target=y)
        return (np.abs(relevance) if name in MAGNITUDES else relevance).sum(-1)

    trained = {name: map_of(name, analyzer) for name, analyzer in analyzers.items()}
    for index, step in enumerate(STEPS):
        behind = STEPS[: index + 1] if mode == "cascading" else [step]
        network = with_random(model, behind)
        for name in analyzers:
            # The patterns stay, the weights that they are multiplied by do not.
            fitted = name.startswith("pattern")
            options = {"patterns": analyzers[name].patterns} if fitted else {}
            maps = map_of(name, create(name, network, **options))
            for sample, (a, b) in enumerate(zip(trained[name], maps, strict=True)):
                row = found.sel(analyzer=name, step=step, sample=sample)
                expected = compared(a, b, 99.5)
                given = [float(row[kind]) for kind in ("ssim", "spearman", "cosine")]
                np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)


def test_the_weights_of_pattern_attribution_are_random(model, analyzers):
    analyzer = analyzers["pattern.attribution"]
    network = with_random(model, ["conv1"], kind="permutation")
    patterns = analyzer.patterns
    x = images()
    maps = cascade_maps(
        analyzer, x, 0, layers="conv1", mode="independent", weights="permutation"
    ).relevance.sel(step="conv1")[0]
    fresh = create("pattern.attribution", network, patterns=patterns)
    np.testing.assert_allclose(maps, fresh.analyze(x, target=0).sum(-1), rtol=1e-9)
    # With its products frozen the first layer would not matter, but for the masks behind it.
    frozen = {**patterns, "conv1": patterns["conv1"] * 0}
    assert np.abs(maps).max() > 0
    assert not create("pattern.attribution", network, patterns=frozen).analyze(x, target=0).any()


def test_kept_maps_are_those_of_the_cascade(model, tmp_path):
    analyzer, x = create("lrp.z", model), images(3)
    options = {"layers": ["scores", "conv1"], "seed": 5}
    maps = cascade_maps(analyzer, x, [0, 1, 2], **options).isel(sample=[0, 2])
    for block_size, path in ((1, tmp_path / "run.nc"), (32, None)):
        found = parameter_randomization(
            analyzer, x, [0, 1, 2], keep=[2, 0], block_size=block_size, path=path, **options
        )
        assert found.relevance.dims == ("analyzer", "map_step", "kept", "height", "width")
        assert found.map_step.values.tolist() == maps.step.values.tolist()
        assert found.kept.values.tolist() == [0, 2]
        np.testing.assert_allclose(found.relevance, maps.relevance, rtol=1e-6)
    assert "relevance" not in parameter_randomization(analyzer, x, 0, **options)
    for wrong in ([-1], [3], [0.5], 1, ["a"]):
        with pytest.raises(ValueError, match="keep must be positions of the 3 samples"):
            parameter_randomization(analyzer, x, 0, keep=wrong)


def test_guided_backprop_on_a_random_network(model):
    x = images()
    maps = cascade_maps(create("guided_backprop", model), x, 1, layers=["conv1"], seed=5)
    assert maps.step.values.tolist() == ["trained", "conv1"]
    network = with_random(model, STEPS, seed=5)
    for step, one in (("trained", model), ("conv1", network)):
        expected = np.abs(create("guided_backprop", one).analyze(x, target=1)).sum(-1)
        np.testing.assert_allclose(maps.relevance.sel(step=step)[0], expected, rtol=1e-9)
    np.testing.assert_array_equal(maps.input, x)
    assert maps.relevance.dims == ("analyzer", "step", "sample", "height", "width")
    assert (maps.target == 1).all()


@pytest.mark.parametrize(
    ("kind", "statistics"),
    [("permutation", "randomized"), ("permutation", "kept"), ("initializer", "kept")],
)
def test_permutations_and_statistics(model, kind, statistics):
    analyzer = create("input_t_gradient", model)
    options = {"weights": kind, "statistics": statistics}
    maps = cascade_maps(analyzer, images(), 2, layers=["norm", "scores"], seed=3, **options)
    assert maps.step.values.tolist() == ["trained", "scores", "norm"]
    for step, behind in (("scores", STEPS[:1]), ("norm", STEPS[:3])):
        network = with_random(model, behind, kind, statistics, 3)
        expected = create("input_t_gradient", network).analyze(images(), target=2).sum(-1)
        np.testing.assert_allclose(maps.relevance.sel(step=step)[0], expected, rtol=1e-8)
    assert (maps.attrs["weights"], maps.attrs["statistics"]) == (kind, statistics)
    assert ("moving_variance" in maps.attrs["notes"]) == (statistics == "kept")


def test_the_order_of_layers_does_not_matter(analyzers, found):
    some = {name: analyzers[name] for name in ("guided_backprop", "lrp.epsilon")}
    mixed = parameter_randomization(some, images(), layers=["norm", "scores", "conv2"])
    assert mixed.step.values.tolist() == ["scores", "conv2", "norm"]
    expected = found.sel(analyzer=list(some), step=mixed.step)
    # Other layers in between, one analyzer less: the same random network.
    for name in ("ssim", "spearman", "cosine", "median", "low", "high"):
        np.testing.assert_allclose(mixed[name], expected[name], rtol=1e-9)
    other = parameter_randomization(some, images(), layers="conv2", seed=1)
    assert (other.cosine != expected.sel(step=["conv2"]).cosine).all()


def test_flip_and_options_concern_the_structural_similarity(model):
    analyzer = create("input_t_gradient", model)
    options = {"layers": ["conv2"], "normalization": "inverted_minmax", "data_range": 2.0}
    found = parameter_randomization(analyzer, images(), 0, flip=True, **options)
    plain = parameter_randomization(analyzer, images(), 0, layers="conv2")
    for name in ("spearman", "cosine"):
        np.testing.assert_array_equal(found[name], plain[name])
    maps = cascade_maps(analyzer, images(), 0, layers="conv2").relevance[0].values
    for sample, (first, second) in enumerate(zip(*maps, strict=True)):
        first, *others = (1 - scaled(map, 100) for map in (first, second, -second))
        scores = [
            structural_similarity(first, other, win_size=5, data_range=2.0) for other in others
        ]
        assert float(found.ssim[0, 0, sample]) == pytest.approx(max(scores), rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_do_not_matter(model, batch_size):
    analyzers = made(model, ("lrp.gamma", "smoothgrad"), dtype="float32")
    options = {"layers": ["scores", "conv1"]}
    first = parameter_randomization(analyzers, images(9), batch_size=32, **options)
    found = parameter_randomization(
        analyzers, images(9), batch_size=batch_size, block_size=4, **options
    )
    for name in ("ssim", "spearman", "cosine", "median"):
        np.testing.assert_allclose(found[name], first[name], atol=2e-3)
    for name in ("missing", "target"):
        xr.testing.assert_identical(found[name], first[name])


# --- one copy, one network, no traces ---


@pytest.mark.compiled
def test_each_function_is_traced_once(model, monkeypatch):
    traces, analyzers = [], made(model, ("gradient", "deep_lift.rescale"))
    call = compilation.Compiled.__call__

    def counted(compiled, *arguments):
        if not compiled._concrete:
            traces.append(compiled)
        return call(compiled, *arguments)

    monkeypatch.setattr(compilation.Compiled, "__call__", counted)
    made_again = []
    on = tfexplain.Analyzer.on
    monkeypatch.setattr(tfexplain.Analyzer, "on", lambda a, m: made_again.append(m) or on(a, m))
    parameter_randomization(analyzers, images(), 0, batch_size=3, block_size=3)
    # One for each analyzer, over two blocks and five networks, and the pass at the baseline.
    assert len(traces) == len(analyzers) + 1
    assert len(made_again) == len(analyzers) and len({id(m) for m in made_again}) == 1
    assert made_again[0] is not model


def state(model):
    operations = getattr(model, "_functional", model).operations
    return (
        [np.asarray(weight).tolist() for weight in model.weights],
        [
            (op.name, sorted(vars(op)), list(map(id, op._inbound_nodes)), len(op._outbound_nodes))
            for op in operations
        ],
    )


@pytest.mark.parametrize("error", [None, RuntimeError], ids=["done", "error"])
def test_the_model_stays_as_it_is(error, monkeypatch):
    model = small()
    analyzers = made(model, ("gradient", "lrp.epsilon"))
    x = images()
    expected = {name: analyzer.analyze(x) for name, analyzer in analyzers.items()}
    before = state(model)
    if error:
        calls = []

        def failing(first, second):
            calls.append(1)
            if len(calls) > 5:
                raise error("in the middle")
            return 0.5

        monkeypatch.setattr(metrics, "cosine", failing)
        with pytest.raises(error, match="in the middle"):
            parameter_randomization(analyzers, x)
    else:
        parameter_randomization(analyzers, x)
    assert state(model) == before
    for name, analyzer in analyzers.items():
        np.testing.assert_array_equal(analyzer.analyze(x), expected[name])


def test_later_weights_of_the_model_count():
    model = small()
    analyzer = create("gradient", model)
    first = parameter_randomization(analyzer, images(), 0, layers="scores")
    kernel = model.get_layer("conv1").kernel
    kernel.assign(-kernel)
    second = parameter_randomization(analyzer, images(), 0, layers="scores")
    assert (first.cosine != second.cosine).all()


# --- kinds of inputs ---


@pytest.mark.parametrize("kind", ["table", "short", "sequence", "tokens"])
def test_inputs_that_are_no_images(kind):
    generator = np.random.default_rng(0)
    if kind == "tokens":
        stack, x = [layers.Embedding(9, 4)], generator.integers(0, 9, (5, 6))
    else:
        shape = {"table": (6,), "short": (4, 3), "sequence": (9, 3)}[kind]
        stack, x = [layers.Dense(4, activation="relu")], generator.normal(size=(5, *shape))
    model = randomize(sequential(x.shape[1:], *stack, layers.Flatten(), layers.Dense(3)))
    analyzer = create("input_t_gradient", model)
    found = parameter_randomization(analyzer, x, 1)
    assert found["median"].sel(similarity=["spearman", "cosine"]).notnull().all()
    maps = cascade_maps(analyzer, x, 1)
    size = {"table": 6, "short": 4, "sequence": 9, "tokens": 6}[kind]
    assert maps.relevance.shape[3:] == (size,)
    first, last = maps.relevance[0, 0, 0].values, maps.relevance[0, -1, 0].values
    expected = scipy.stats.spearmanr(first, last)[0]
    assert float(found.spearman[0, -1, 0]) == pytest.approx(expected, rel=1e-9)
    structural = kind in ("sequence", "tokens")
    assert found.ssim.notnull().all() == structural
    assert (found.missing.sel(similarity="ssim") == (0 if structural else 5)).all()
    reason = {"table": "have no spatial axis", "short": "are smaller than its window of 5"}
    assert reason.get(kind, "") in found.attrs["notes"]
    assert ("no structural similarity: " in found.attrs["notes"]) == (not structural)
    assert ("inputs are sequences" in found.attrs["notes"]) == (kind in ("short", "sequence"))


def test_constant_maps_are_missing():
    # All weights of the last layer are negative: guided backpropagation sends nothing back.
    model = small()
    scores = model.get_layer("scores")
    scores.kernel.assign(-np.abs(scores.kernel))
    analyzer = create("guided_backprop", model)
    found = parameter_randomization(analyzer, images(), 0, layers="conv1")
    assert (found.missing == 4).all() and found["median"].isnull().all()
    assert found.low.isnull().all() and found.high.isnull().all()


# --- medians ---


def test_medians_and_intervals_are_those_of_scipy(found):
    values = found.cosine.sel(analyzer="lrp.epsilon", step="conv2").values
    row = found.sel(analyzer="lrp.epsilon", step="conv2", similarity="cosine")
    assert float(row["median"]) == np.median(values)
    generator = np.random.default_rng(0)
    resampled = np.median(values[generator.integers(0, 4, (10_000, 4))], axis=1)
    low, high = np.percentile(resampled, [0.5, 99.5])
    assert [float(row.low), float(row.high)] == pytest.approx([low, high], rel=1e-12)
    assert low < np.median(values) < high


def test_intervals_of_many_values():
    values = np.random.default_rng(3).normal(size=51)
    values[7] = np.nan
    found = median_interval(values, seed=4)
    rest = np.delete(values, 7)
    interval = scipy.stats.bootstrap(
        (rest,),
        np.median,
        vectorized=True,
        n_resamples=10_000,
        confidence_level=0.99,
        method="percentile",
        random_state=np.random.default_rng(4),
    ).confidence_interval
    np.testing.assert_allclose(found, [np.median(rest), interval.low, interval.high], rtol=1e-12)


def test_intervals_of_few_and_of_equal_values():
    np.testing.assert_array_equal(median_interval(np.array([0.3])), [0.3, np.nan, np.nan])
    np.testing.assert_array_equal(median_interval(np.array([np.nan, 0.3])), [0.3, np.nan, np.nan])
    np.testing.assert_array_equal(median_interval(np.full(3, np.nan)), [np.nan] * 3)
    np.testing.assert_allclose(median_interval(np.array([0.2, 0.6])), [0.4, 0.2, 0.6])
    np.testing.assert_array_equal(median_interval(np.full(7, 0.9)), [0.9, 0.9, 0.9])


def test_one_sample(model):
    found = parameter_randomization(create("gradient", model), images(1), layers="conv1")
    assert found["median"].sel(similarity="cosine").item() == found.cosine.item()
    assert found.low.isnull().all()


# --- files ---


@pytest.mark.parametrize("function", [parameter_randomization, cascade_maps])
def test_the_round_trip_through_a_file(model, function, tmp_path):
    found = function(create("gradient", model), images(), layers=["scores", "conv1"])
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "found.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), found)


def test_attributes(found):
    assert found.attrs["audit"] == "parameter_randomization"
    names = ("mode", "weights", "statistics", "seed", "data_range", "flip", "resamples")
    expected = ["cascading", "initializer", "randomized", 0, 1.0, 0, 10_000]
    assert [found.attrs[name] for name in names] == expected
    assert json.loads(found.attrs["layers"]) == STEPS
    assert json.loads(found.attrs["reduction"])["guided_backprop"] == "abs_sum"
    assert json.loads(found.attrs["versions"])["tfexplain"] == tfexplain.__version__
    assert all(isinstance(value, str | int | float) for value in found.attrs.values())


def test_an_interrupted_run_continues(model, tmp_path, monkeypatch):
    path = tmp_path / "run.nc"
    options = {"layers": ["conv2", "conv1"], "block_size": 2, "path": path}
    expected = parameter_randomization(
        made(model), images(6), **{**options, "path": tmp_path / "whole.nc"}
    )
    calls, rank = [], metrics.spearman

    def interrupted(first, second):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return rank(first, second)

    monkeypatch.setattr(metrics, "spearman", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parameter_randomization(made(model), images(6), **options)
    kept = sorted(file.name for file in (tmp_path / "run.nc.blocks").glob("*.npz"))
    assert kept == ["00000000-00000002.npz", "00000002-00000004.npz"]
    found = parameter_randomization(made(model), images(6), **options)
    # Two blocks of two samples and two steps, half a step, and the last block again.
    assert len(calls) == 8 + 1 + 4
    xr.testing.assert_identical(found, expected)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.nc", "whole.nc"]
    # The finished file is read.
    xr.testing.assert_identical(
        parameter_randomization(made(model), images(6), **options), expected
    )
    assert len(calls) == 13
    for change in ({"seed": 1}, {"layers": ["conv1"]}, {"y": 0}, {"flip": True}):
        keys = {"y": "targets_sha256"}
        name = keys.get(*change) or next(iter(change))
        with pytest.raises(ValueError, match=f"other settings; they differ in {name}"):
            parameter_randomization(made(model), images(6), **{**options, **change})


KILLED = """
import os, signal
from tests.audits.test_parameter_randomization import *
calls, rank = [], metrics.spearman
def deadly(first, second):
    calls.append(1)
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return rank(first, second)
metrics.spearman = deadly
parameter_randomization(
    made(small()), images(6), layers=["conv2", "conv1"], block_size=2,
    path=os.environ["RUN"],
)
"""


def test_a_killed_run_continues(model, tmp_path, monkeypatch):
    path = tmp_path / "run.nc"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=ROOT,
        env={**os.environ, "RUN": str(path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((tmp_path / "run.nc.blocks").glob("*.npz"))) == 2
    options = {"layers": ["conv2", "conv1"], "block_size": 2}
    expected = parameter_randomization(
        made(model), images(6), path=tmp_path / "whole.nc", **options
    )
    blocks = []
    monkeypatch.setattr(
        metrics, "spearman", lambda a, b, rank=metrics.spearman: blocks.append(1) or rank(a, b)
    )
    found = parameter_randomization(made(model), images(6), path=path, **options)
    assert len(blocks) == 4
    xr.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.attrs == expected.attrs
    assert not (tmp_path / "run.nc.blocks").exists()
