"""The experiment on random parameters: steps, frozen patterns, numbers of maps, verdicts."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import xarray as xr

import models
import tfexplain
from experiments import frequencies, networks
from experiments.claim_table import CONFIRMED, NOT_TESTED, REFUTED
from experiments.runs import Request, Task
from experiments.sixt2020 import maps, sanity_checks
from experiments.sixt2020 import methods as table
from experiments.sixt2020.protocol import CORRECTED, PROTOCOLS, PUBLISHED, methods
from tfexplain import audits
from tfexplain.analyzers.patterns import PatternAttribution, PatternNet
from tfexplain.analyzers.relevance import LRPAnalyzer

FEW = ("PatternAttr.", "LRP 1/0", "Gradient")
SMALL = {"vgg16": {"input_shape": (32, 32, 3)}, "resnet50": {"input_shape": (32, 32, 3)}}


def tiny_task(tmp_path, protocol):
    request = Request(("tiny",), images=3, out=tmp_path)
    return Task(request, "tiny", protocol, "sanity_checks")


# --- steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sanity_checks.STEPS)
def test_steps_go_from_the_last_layer_to_everything(name):
    if name == networks.TINY:
        model = networks.tiny_network()
    else:
        model = getattr(models, name)(**SMALL.get(name, {}))
    order = [layer.name for layer in model.layers]
    weighted = [layer.name for layer in model.layers if layer.weights]
    places = [order.index(step) for step in sanity_checks.STEPS[name]]
    assert places == sorted(places, reverse=True)
    assert order[places[0]] == weighted[-1] and order[places[-1]] == weighted[0]
    # Each step makes more of them random.
    counts = [sum(order.index(layer) >= place for layer in weighted) for place in places]
    assert counts == sorted(set(counts)) and counts[-1] == len(weighted)
    dense = {"tiny": "fc3", "cifar_cnn": "fc5", "vgg16": "fc1", "resnet50": "dense"}
    dense |= dict.fromkeys(("squeezenet", "mobilenet"), "")
    dense |= {"googlenet": "loss3_classifier"}
    found = sanity_checks._dense_step(model, sanity_checks.STEPS[name])
    assert found == dense.get(name, "linear")


def test_every_network_has_steps():
    known = sanity_checks.EXPERIMENT.known_models
    assert set(sanity_checks.STEPS) == {networks.TINY, *known}


# --- what is computed ----------------------------------------------------------------------------


def test_a_smoke_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table, "TINY_METHODS", FEW)
    assert sanity_checks.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert "LRP 1/0: median SSIM at conv2" in capsys.readouterr().out
    datasets = sanity_checks.EXPERIMENT.saved(tmp_path)
    steps = ["fc4", "fc3", "conv2", "conv1"]
    for dataset in datasets:
        assert tuple(dataset["analyzer"].values) == FEW
        assert dataset["step"].values.tolist() == steps
        assert dataset["shown"].values.tolist() == ["trained", *steps]
        assert dataset["relevance"].shape == (3, 5, 8, 8) and dataset["pixels"].shape == (8, 8, 3)
        assert (dataset.attrs["dense_step"], dataset.attrs["flattened"]) == ("fc3", 1)
        assert dataset.attrs["lowest_logit"] < 0
        # Gradient maps are those of the network with this photograph.
        protocol = PROTOCOLS[dataset.attrs["protocol"]]
        model = networks.tiny_network()
        _, x = maps.photograph(tiny_task(tmp_path, protocol.name), protocol, 8)
        relevance = tfexplain.create_analyzer("gradient", model).analyze(x)[0]
        expected = np.abs(relevance).max(-1) if protocol is PUBLISHED else np.abs(relevance).sum(-1)
        shown = dataset["relevance"].sel(analyzer="Gradient", shown="trained").values
        np.testing.assert_allclose(shown, expected, rtol=1e-5)
    names = {path.name for path in tmp_path.glob("*.png")}
    cascades = {f"sanity_checks_tiny_{protocol}.png" for protocol in PROTOCOLS}
    assert names == {"sanity_checks.png", *cascades}
    found = json.loads((tmp_path / "sanity_checks.json").read_text(encoding="utf-8"))
    assert [config["claim"] for config in found] == ["S7", "S15", "S18", "S21", "S23"] * 2


def test_a_method_with_infinite_relevance_is_counted(monkeypatch, tmp_path):
    """It is left out of medians, and the others are there."""
    monkeypatch.setattr(table, "TINY_METHODS", ("LRP z", "Gradient"))
    original = LRPAnalyzer.explain_part

    def overflowing(self, *arguments):
        outputs, relevance = original(self, *arguments)
        return outputs, [part * np.float32(np.inf) for part in relevance]

    monkeypatch.setattr(LRPAnalyzer, "explain_part", overflowing)
    dataset = sanity_checks.compute(tiny_task(tmp_path, "corrected"))
    assert dataset["missing"].sel(analyzer="LRP z").values.tolist() == [3] * 4
    assert np.isnan(dataset["median"].sel(analyzer="LRP z")).all()
    assert np.isfinite(dataset["median"].sel(analyzer="Gradient")).all()
    named = {"model": "tiny", "experiment": "sanity_checks", "protocol": "corrected"}
    dataset.attrs |= {**named, "network": "tiny", "command": ""}
    assert "LRP z 12 of 12" in sanity_checks.judge(dataset)[0].note
    assert set(sanity_checks.draw([dataset])) == {"sanity_checks", "sanity_checks_tiny_corrected"}


@pytest.mark.parametrize("protocol", [PUBLISHED, CORRECTED])
def test_switches_reach_the_audit(protocol, monkeypatch, tmp_path):
    calls, cascades = {}, {}
    steps = sanity_checks.STEPS["tiny"]

    def scored(analyzers, x, y, **options):
        ((name, analyzer),) = analyzers.items()
        calls.setdefault(name, []).append((analyzer, options))
        dims, own = ("analyzer", "step", "similarity"), options["layers"]
        # One map of the first step has no structural similarity.
        missing = [[[int(step == steps[0]), 0, 0] for step in own]]
        return xr.Dataset(
            {
                **{
                    n: (("analyzer", "step", "sample"), np.full((1, len(own), len(x)), 0.5))
                    for n in sanity_checks.SIMILARITIES
                },
                **{n: (dims, np.full((1, len(own), 3), 0.5)) for n in ("median", "low", "high")},
                "missing": (dims, np.array(missing)),
            },
            {"analyzer": [name], "step": own, "similarity": list(sanity_checks.SIMILARITIES)},
            {"notes": ""},
        )

    def cascaded(analyzers, x, y, **options):
        cascades.setdefault(next(iter(analyzers)), []).append(options)
        shape = (1, 1 + len(options["layers"]), len(x), 8, 8)
        return xr.Dataset({"relevance": (tuple("asnhw"), np.random.default_rng(0).random(shape))})

    permuted = dataclasses.replace(protocol, random_weights="permutation")
    monkeypatch.setitem(PROTOCOLS, protocol.name, permuted)
    monkeypatch.setattr(table, "TINY_METHODS", tuple(methods(protocol)))
    monkeypatch.setattr(audits, "parameter_randomization", scored)
    monkeypatch.setattr(audits, "cascade_maps", cascaded)
    dataset = sanity_checks.compute(tiny_task(tmp_path, protocol.name))
    assert tuple(calls) == tuple(cascades) == tuple(methods(protocol))
    published = protocol is PUBLISHED
    for name, runs in calls.items():
        assert [options["layers"] for _, options in runs] == (
            [[step] for step in steps] if published and "DeepLIFT" in name else [list(steps)]
        )
        for (_, options), shown in zip(runs, cascades[name], strict=True):
            assert options["weights"] == "permutation"
            assert options["data_range"] == (2.0 if published else 1.0)
            # The cascades show the same random networks.
            assert shown == {key: options[key] for key in sanity_checks.SHARED}
    # T14: a random network for each of 14 methods, and for each of 4 steps of 3 methods.
    options = [options for runs in calls.values() for _, options in runs]
    assert len({one["seed"] for one in options}) == (14 + 4 * 3 if published else 1)
    assert len({one["path"] for one in options}) == len(options)
    attribution = PatternNet if published else PatternAttribution
    assert type(calls["PatternAttr."][0][0]) is attribution
    # T19: one missing map is counted, or takes the median with it.
    missing = np.isnan(dataset["median"].values)
    assert missing[:, 0].all() == published and not missing[:, 1].any()


def test_each_step_of_deep_lift_has_a_random_network(monkeypatch, tmp_path):
    """T14, as published: a step is that of a cascade of all steps with the seed of this one."""
    name, steps = "DeepLIFT Resc", sanity_checks.STEPS["tiny"]
    monkeypatch.setattr(table, "TINY_METHODS", (name,))
    task = tiny_task(tmp_path, "published")
    dataset = sanity_checks.compute(task).sel(analyzer=name)
    assert dataset["step"].values.tolist() == list(steps)
    method, model = methods(PUBLISHED)[name], networks.load(task)
    x, y = table.images(task, PUBLISHED)
    _, photograph = maps.photograph(task, PUBLISHED, x.shape[1])
    classes = model(photograph).numpy().argmax(axis=1)
    similar = maps.options(task, PUBLISHED, method, x) | {"path": None}
    before = None
    for step in steps:
        options = {"layers": list(steps), "seed": maps.draw_seed(task, PUBLISHED, method, step)}
        analyzer = method.create(model)
        whole = audits.parameter_randomization(analyzer, x, y, **{**similar, **options})
        found = whole.isel(analyzer=0).sel(step=step)
        np.testing.assert_allclose(dataset["cosine"].sel(step=step), found["cosine"], rtol=1e-5)
        cascade = audits.cascade_maps(analyzer, photograph, classes, reduction="sum", **options)
        shown = cascade["relevance"].isel(analyzer=0, sample=0)
        np.testing.assert_allclose(
            dataset["relevance"].sel(shown=step), shown.sel(step=step), rtol=1e-4, atol=1e-7
        )
        if before is not None:
            assert not np.allclose(dataset["relevance"].sel(shown=step), before.sel(step=step))
        before = shown
    np.testing.assert_allclose(
        dataset["relevance"].sel(shown="trained"), shown.sel(step="trained"), rtol=1e-4, atol=1e-7
    )


def test_frozen_patterns():
    """T4: the products stay, whatever the weights become; else they follow the weights."""
    model = networks.tiny_network()
    x = np.random.default_rng(0).uniform(size=(200, 8, 8, 3)).astype("float32")
    current = tfexplain.create_analyzer("pattern.attribution", model).fit(x)
    frozen = sanity_checks.frozen(current)
    np.testing.assert_allclose(frozen.analyze(x[:3]), current.analyze(x[:3]), rtol=1e-5, atol=1e-9)
    for layer in model.layers:
        if layer.weights:
            product = current.patterns[layer.name] * layer.kernel.numpy()
            np.testing.assert_allclose(frozen.patterns[layer.name], product, rtol=1e-6)
    doubled = networks.tiny_network()
    kernel, bias = doubled.get_layer("fc4").get_weights()
    doubled.get_layer("fc4").set_weights([2 * kernel, 2 * bias])
    before = [a.analyze(x[:3], target=1) for a in (frozen, current)]
    after = [a.on(doubled).analyze(x[:3], target=1) for a in (frozen, current)]
    # The logit doubles; the product with the weights of now doubles once more.
    np.testing.assert_allclose(after[0], 2 * before[0], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(after[1], 4 * before[1], rtol=1e-5, atol=1e-9)


def test_frozen_patterns_of_branches():
    """Additions have patterns too, and normalisations are folded."""
    inputs = keras.Input((6, 6, 2))
    h = keras.layers.Conv2D(3, 3, padding="same")(inputs)
    h = keras.layers.ReLU()(keras.layers.BatchNormalization()(h))
    h = keras.layers.Add()([h, keras.layers.Conv2D(3, 3, padding="same")(h)])
    h = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(h))
    model = keras.Model(inputs, keras.layers.Dense(4)(h))
    x = np.random.default_rng(0).normal(size=(100, 6, 6, 2)).astype("float32")
    model.layers[2].moving_variance.assign([0.5, 2, 3])
    current = tfexplain.create_analyzer("pattern.attribution", model).fit(x)
    frozen = sanity_checks.frozen(current)
    np.testing.assert_allclose(frozen.analyze(x[:3]), current.analyze(x[:3]), rtol=1e-4, atol=1e-8)


# --- numbers of maps -----------------------------------------------------------------------------


def test_local_factors():
    generator = np.random.default_rng(0)
    map = generator.normal(size=(33, 32))
    factors = np.kron(generator.uniform(-3, 3, (8, 8)), np.ones((4, 4)))
    rescaled = map.copy()
    rescaled[:32] *= factors
    assert sanity_checks.local_cosine(map, rescaled) == pytest.approx(1)
    assert sanity_checks.local_cosine(map, generator.normal(size=map.shape)) < 0.4
    # Within patches of 4 x 4 the factors differ.
    rows = map * generator.uniform(-3, 3, (33, 1))
    assert sanity_checks.local_cosine(map, rows) < 0.9
    assert sanity_checks.local_cosine(map, 1e300 * map) == pytest.approx(1)
    map[:, :16] = 0
    assert sanity_checks.local_cosine(map, map) == pytest.approx(1)
    assert np.isnan(sanity_checks.local_cosine(map, 0 * map))
    assert np.isnan(sanity_checks.local_cosine(map, map + np.inf))


def test_noise():
    noise = np.random.default_rng(0).normal(size=(64, 64))
    # All frequencies are equally strong: the share of their square outside of a quarter circle.
    share = 1 - np.pi * frequencies.CYCLES_PER_PIXEL**2
    assert frequencies.high_frequencies(noise) == pytest.approx(share, abs=0.03)
    assert frequencies.high_frequencies(1e-30 * noise + 1e-25) == pytest.approx(share, abs=0.03)
    wave = np.sin(2 * np.pi * np.arange(64) / 16)
    assert frequencies.high_frequencies(np.outer(wave, wave)) < 1e-20
    assert frequencies.high_frequencies(np.indices((8, 8)).sum(0) % 2) == pytest.approx(1)
    assert np.isnan(frequencies.high_frequencies(np.ones((8, 8))))
    assert np.isnan(frequencies.high_frequencies(noise * np.inf))


# --- what is concluded ---------------------------------------------------------------------------

STEPS = ["fc", "conv2", "conv1"]
AS_PUBLISHED = {
    "GuidedBP": (0.999, 0.97, 0.9),
    "DTD": (0.99, 0.98, 0.4),
    "LRP z": (0.5, 0.4, 0.3),
    "LRP 1/0": (0.99, 0.98, 0.4),
    "LRP 5/4": (0.97, 0.96, 0.3),
    "LRP CMP 1/0": (0.7, 0.96, 0.3),
    "LRP CMP 2/1": (0.7, 0.96, 0.3),
    "Gradient": (0.5, 0.4, 0.3),
}


def results(changes=(), *, cosine=-0.9, rescaled=0.95, noisy=0.5, drop=(), **attributes):
    """What `compute` returns of four images, with numbers as the paper has them."""
    medians = {n: v for n, v in (AS_PUBLISHED | dict(changes)).items() if n not in drop}
    names = list(medians)
    values = np.array(list(medians.values()))
    cosines = np.ones((len(names), len(STEPS), 4))
    cosines[:, 0, 3] = cosine
    noise = np.full((len(names), 4), 0.1)
    noise[[name == "LRP 5/4" for name in names]] = noisy
    local = np.full(cosines.shape, rescaled)
    each, images = ("analyzer", "step", "sample"), ("analyzer", "step", "image")
    attributes = {"dense_step": "fc", "flattened": 1, "lowest_logit": -1.0, **attributes}
    return xr.Dataset(
        {
            "median": (each[:2], values),
            "cosine": (each, cosines),
            "missing": (each[:2], 4 * np.isnan(values).astype(int)),
            "rescaled": (images, local),
            "noise": (("analyzer", "image"), noise),
        },
        {"analyzer": names, "step": STEPS},
        {
            "images": 4,
            "experiment": "sanity_checks",
            "protocol": "corrected",
            "network": "net",
            "command": "",
            **attributes,
        },
    )


def verdict(claim, dataset):
    (found,) = (f for f in sanity_checks.judge(dataset) if f.claim == claim)
    return found


def test_as_published_all_are_confirmed():
    found = sanity_checks.judge(results())
    assert [f.claim for f in found] == ["S7", "S15", "S18", "S21", "S23"]
    assert {f.verdict for f in found} == {CONFIRMED}


@pytest.mark.parametrize(
    ("claim", "options", "expected"),
    [
        # At the middle step; what happens at the others does not count.
        ("S7", {"changes": {"DTD": (0.1, 0.95, 0.1)}}, CONFIRMED),
        ("S7", {"changes": {"DTD": (0.99, 0.94, 0.99)}}, REFUTED),
        ("S7", {"changes": {"Gradient": (0.1, 0.81, 0.1)}}, REFUTED),
        ("S7", {"changes": {"LRP 1/0": (0.99, np.nan, 0.1)}}, NOT_TESTED),
        ("S15", {"changes": {"GuidedBP": (0.98, 1, 1)}}, REFUTED),
        ("S15", {"drop": ["GuidedBP"]}, NOT_TESTED),
        ("S18", {"cosine": 0.1}, REFUTED),
        ("S18", {"drop": ["DTD"]}, NOT_TESTED),
        ("S18", {"cosine": 0.1, "drop": ["DTD"]}, REFUTED),
        ("S18", {"lowest_logit": 0.0}, NOT_TESTED),
        ("S21", {"rescaled": 0.8}, REFUTED),
        ("S21", {"changes": {"LRP CMP 2/1": (0.96, 1, 1)}}, REFUTED),
        ("S21", {"flattened": 0}, REFUTED),
        (
            "S21",
            {"flattened": 0, "changes": dict.fromkeys(sanity_checks.CMP, (0.96, 0.5, 0.5))},
            CONFIRMED,
        ),
        ("S21", {"dense_step": ""}, NOT_TESTED),
        ("S21", {"drop": sanity_checks.CMP}, NOT_TESTED),
        ("S23", {"noisy": 0.09}, REFUTED),
        ("S23", {"noisy": np.nan}, NOT_TESTED),
        ("S23", {"drop": ["LRP 5/4"]}, NOT_TESTED),
    ],
)
def test_verdicts(claim, options, expected):
    found = verdict(claim, results(**options))
    assert found.verdict == expected
    assert bool(found.reason) or expected != NOT_TESTED


def test_numbers_and_reasons():
    found = verdict("S18", results())
    assert found.criteria[0].value == 0.25
    found = verdict("S18", results(lowest_logit=0.0))
    assert found.reason == "no logit of this network is ever negative"
    found = verdict("S7", results({"LRP 1/0": (0.99, np.nan, 0.1)}))
    assert "LRP 1/0 4 of 12" in found.reason
