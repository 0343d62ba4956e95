"""The experiment on random logits: switches of the protocols, numbers by hand, verdicts."""

import dataclasses
import json

import numpy as np
import pytest
import xarray as xr

from experiments import networks
from experiments.claim_table import CONFIRMED, NOT_TESTED, REFUTED
from experiments.runs import Request, Task
from experiments.sixt2020 import maps, random_logit
from experiments.sixt2020 import methods as table
from experiments.sixt2020.protocol import CORRECTED, PROTOCOLS, PUBLISHED, methods
from tfexplain import audits, metrics

FEW = ("GuidedBP", "PatternAttr.", "LRP 1/0", "Gradient")


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(table, "TINY_METHODS", FEW)


def tiny_task(tmp_path, protocol="published", seed=0, images=3):
    request = Request(("tiny",), images=images, out=tmp_path, seed=seed)
    return Task(request, "tiny", protocol, "random_logit")


# --- what is computed ----------------------------------------------------------------------------


def test_a_smoke_run(few, tmp_path, capsys):
    assert random_logit.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert "GuidedBP: median SSIM" in capsys.readouterr().out
    datasets = random_logit.EXPERIMENT.saved(tmp_path)
    assert [d.attrs["protocol"] for d in datasets] == ["published", "corrected"]
    assert all(tuple(d["analyzer"].values) == FEW for d in datasets)
    (config, _) = json.loads((tmp_path / "random_logit.json").read_text(encoding="utf-8"))
    assert config["claim"] == "S6" and len(config["criteria"]) == len(FEW)
    assert (tmp_path / "random_logit.png").is_file()
    # T14: a class for each method, or the same for all.
    apart, shared = (d["other_class"].values for d in datasets)
    assert (shared == shared[0]).all() and not (apart == apart[0]).all()
    for dataset in datasets:
        assert (dataset["other_class"] != dataset["target"]).all()
    _check_by_hand(datasets[0], "inverted_percentile", 2.0, {"LRP 1/0": True, "Gradient": True})
    _check_by_hand(datasets[1], "percentile", 1.0, {"LRP 1/0": True, "Gradient": False})


def _check_by_hand(dataset, normalization, data_range, flips):
    """The similarities from maps, in the form of the protocol."""
    protocol = PROTOCOLS[dataset.attrs["protocol"]]
    task = Task(Request(("tiny",), images=3), "tiny", protocol.name)
    x, y = table.images(task, protocol)
    model = networks.load(task)
    normalize = metrics.NORMALIZATIONS[normalization]
    for name, flip in flips.items():
        method = methods(protocol)[name]
        reduce = metrics.REDUCTIONS[method.reduction]
        analyzer = method.create(model)
        others = dataset["other_class"].sel(analyzer=name).values
        first, second = (
            [reduce(r.astype("float64")) for r in analyzer.analyze(x, target=classes)]
            for classes in (y, others)
        )
        for found, a, b in zip(
            dataset["ssim"].sel(analyzer=name).values, first, second, strict=True
        ):
            expected = [
                metrics.ssim(normalize(a), normalize(sign * b), data_range)
                for sign in ((1, -1) if flip else (1,))
            ]
            assert found == pytest.approx(np.max(expected), rel=1e-6, nan_ok=True), name


@pytest.mark.parametrize("protocol", [PUBLISHED, CORRECTED])
def test_switches_reach_the_audit(protocol, monkeypatch, tmp_path):
    calls = {}

    def recorded(analyzers, x, y, **options):
        ((name, analyzer),) = analyzers.items()
        calls[name] = analyzer, options
        shape = (1, len(x), 1)
        return xr.Dataset(
            {
                "ssim": (("analyzer", "sample", "draw"), np.full(shape, 0.5)),
                "other_class": (("sample", "draw"), np.zeros(shape[1:], int)),
            }
        )

    monkeypatch.setattr(table, "TINY_METHODS", tuple(methods(protocol)))
    monkeypatch.setattr(audits, "random_logit", recorded)
    dataset = random_logit.compute(tiny_task(tmp_path, protocol.name))
    assert tuple(dataset["analyzer"].values) == tuple(calls) == tuple(methods(protocol))
    published = protocol is PUBLISHED
    assert {options["data_range"] for _, options in calls.values()} == {2.0 if published else 1.0}
    start = "inverted_" if published else ""
    found = {name: options["normalization"] for name, (_, options) in calls.items()}
    assert found.pop("RectGrad") == f"{start}minmax"
    assert set(found.values()) == {f"{start}percentile"}
    flipped = {name for name, (_, options) in calls.items() if options["flip"]}
    assert flipped == (set(calls) if published else {"DTD", "LRP 1/0"})
    assert calls["Gradient"][1]["reduction"] == ("abs_max" if published else "abs_sum")
    assert calls["LRP 1/0"][1]["reduction"] == "sum"
    assert calls["GuidedBP"][0].head == ("logit" if published else "one")
    assert len({options["seed"] for _, options in calls.values()}) == (17 if published else 1)
    assert len({options["path"] for _, options in calls.values()}) == 17
    first, second = (calls[name][0].patterns for name in ("PatternAttr.", "PatternNet"))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_raw_bytes_for_the_network_of_the_paper_only(monkeypatch):
    """T1, and drawing with replacement (T14)."""
    asked = []

    def images(task, *, replace):
        asked.append(replace)
        return np.full((2, 4, 4, 3), 51 / 255, "float32"), np.zeros(2, int)

    monkeypatch.setattr(networks, "images", images)
    for model, expected in (("cifar_cnn", 51.0), ("cifar_resnet20", 0.2)):
        task = Task(Request((model,)), model, "published")
        assert table.images(task, PUBLISHED)[0][0, 0, 0, 0] == np.float32(expected)
        assert table.images(task, CORRECTED)[0][0, 0, 0, 0] == np.float32(0.2)
    assert asked == [True, False] * 2


def test_the_photograph_is_prepared_as_the_images():
    task = Task(Request(("squeezenet",)), "squeezenet", "corrected")
    pixels, x = maps.photograph(task, CORRECTED, 227)
    assert pixels.shape == (227, 227, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(x[0, ..., ::-1] + np.array([123, 117, 104]), pixels)
    task = Task(Request(("cifar_cnn",)), "cifar_cnn", "published")
    pixels, x = maps.photograph(task, PUBLISHED, 32)
    np.testing.assert_array_equal(x[0], pixels)
    np.testing.assert_allclose(maps.photograph(task, CORRECTED, 32)[1][0], pixels / 255, rtol=1e-6)


def test_other_runs_have_other_scratch_files(tmp_path):
    method = methods(CORRECTED)["LRP CMP 1/0"]
    tasks = [tiny_task(tmp_path), tiny_task(tmp_path, images=4), tiny_task(tmp_path, seed=1)]
    names = [maps.scratch(task, method.name).name for task in tasks]
    assert names[0] == "random_logit-tiny-published-LRP_CMP_1_0-3-0.nc"
    assert len(set(names)) == 3


def test_patterns_are_fitted_to_many_small_images(monkeypatch, tmp_path):
    sizes = []

    def fitted(model, x, output_mean, batch_size):
        sizes.append((len(x), output_mean))
        return {}

    monkeypatch.setattr(table, "TINY_METHODS", ("PatternNet", "PatternAttr."))
    monkeypatch.setattr(table, "fitted_patterns", fitted)
    monkeypatch.setattr(table.Method, "create", lambda self, model, **options: options)
    task, model = tiny_task(tmp_path), networks.tiny_network()
    x, _ = table.images(task, CORRECTED)
    assert len(list(table.analyzers(task, CORRECTED, model, x))) == 2
    large = np.zeros((2, 100, 100, 3), "float32")
    assert len(list(table.analyzers(task, PUBLISHED, model, large))) == 2
    assert sizes == [(table.FITTED, "active"), (2, "all")]


# --- what is concluded ---------------------------------------------------------------------------

AS_PUBLISHED = {"GuidedBP": 0.97, "LRP 1/0": 0.999, "LRP z": 0.45, "Gradient": 0.75}


def scores(values, protocol=CORRECTED):
    """A Dataset of five images; a value, or five."""
    ssim = np.stack([np.broadcast_to(value, 5) for value in values.values()]).astype(float)
    return xr.Dataset(
        {
            "ssim": (("analyzer", "sample"), ssim),
            "missing": (("analyzer",), np.isnan(ssim).sum(axis=1)),
        },
        {"analyzer": list(values)},
        {
            "images": 5,
            "count_missing": int(protocol.count_constant_maps),
            "experiment": "random_logit",
            "protocol": protocol.name,
            "network": "net",
            "command": "",
        },
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, CONFIRMED),
        ({"GuidedBP": 0.94}, REFUTED),
        ({"LRP z": 0.39}, REFUTED),
        ({"Gradient": 0.81}, REFUTED),
        ({"Gradient": 0.8, "LRP z": 0.4, "GuidedBP": 0.95}, CONFIRMED),
        # The median, not the mean.
        ({"GuidedBP": (0.1, 0.1, 0.96, 0.96, 0.96)}, CONFIRMED),
        ({"LRP 1/0": np.nan}, NOT_TESTED),
        ({"LRP 1/0": np.nan, "GuidedBP": 0.9}, REFUTED),
    ],
)
def test_verdicts(changes, expected):
    (found,) = random_logit.judge(scores(AS_PUBLISHED | changes))
    assert found.claim == "S6" and found.verdict == expected
    assert len(found.criteria) == 4


def test_missing_similarities():
    """T19: they are counted, or take the median with them."""
    values = AS_PUBLISHED | {"GuidedBP": (0.96, np.nan, 0.97, 0.99, 0.2)}
    (found,) = random_logit.judge(scores(values))
    assert found.verdict == CONFIRMED
    assert found.numbers["median SSIM, GuidedBP"] == pytest.approx(0.965)
    (found,) = random_logit.judge(scores(values, PUBLISHED))
    assert found.verdict == NOT_TESTED and "GuidedBP 1 of 5" in found.reason
    assert found.numbers["median SSIM, GuidedBP"] == pytest.approx(0.965)


def test_figures_of_missing_methods():
    values = AS_PUBLISHED | {"LRP z": np.nan, "Gradient": -0.3}
    dataset = scores(values)
    figure = random_logit.draw([dataset, scores(AS_PUBLISHED, PUBLISHED)])["random_logit"]
    first, second = figure.axes
    assert first.get_ylim()[0] < -0.3 and second.get_ylim()[0] == pytest.approx(-0.05)
    assert [text.get_text() for text in first.texts] == ["5\nmissing"]
    labels = [label.get_text() for label in first.get_xticklabels()]
    assert labels == list(values)


def test_markers():
    found = {method.name: maps.marker(method.letter) for method in methods(CORRECTED).values()}
    assert (found["LRP z"], found["LRP 1/0"], found["Deconv"]) == ("$Z$", "$1$", "$V$")
    assert (found["SmoothGrad"], found["Gradient"], found["LRP CMP 2/1"]) == ("o", "v", "+")


def test_single_switches(monkeypatch, tmp_path):
    """The range of SSIM alone changes the numbers, and in the known direction."""
    found = []
    for number, data_range in enumerate((1.0, 2.0)):
        protocol = dataclasses.replace(CORRECTED, ssim_range=data_range)
        monkeypatch.setitem(PROTOCOLS, "corrected", protocol)
        monkeypatch.setattr(table, "TINY_METHODS", ("LRP z",))
        task = tiny_task(tmp_path / str(number), "corrected")
        found.append(random_logit.compute(task)["ssim"].values)
    assert (found[1] > found[0]).all()
