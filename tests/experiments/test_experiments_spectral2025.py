"""Experiments of "Uncovering the Structure of Explanation Quality": what is measured, verdicts."""

import json

import keras
import numpy as np
import pytest
import xarray as xr

from experiments import networks
from experiments.claim_table import CONFIRMED, NOT_TESTED, REFUTED, Finding
from experiments.runs import Experiment, Request, Task
from experiments.spectral2025 import figures, imagenet, judging, mnist, representation, sweep
from experiments.spectral2025.__main__ import PAPER
from experiments.spectral2025.claims import CLAIMS
from experiments.spectral2025.protocol import (
    CORRECTED,
    IMAGENET,
    MNIST,
    PUBLISHED,
    TINY_IMAGENET,
    TINY_MNIST,
)
from tfexplain import create_analyzer
from tfexplain.rules import Epsilon, Gamma, ZBox

GAMMAS = (0.0, 0.1, 1.0, 16.0, 1024.0)
NOISES = (0.0, 0.1, 0.3, 1.0)
IMAGES, ENTRIES, OUTPUTS = 4, 100, 10


# --- the whole paper -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    """A smoke run of everything: its folder, and how often each task ran Shapley's sampling."""
    out, calls, counts = tmp_path_factory.mktemp("spectral2025"), [], {}
    measured, made = sweep.RememberedShapley._explain, Experiment._dataset

    def counted(experiment, task):
        before = len(calls)
        dataset = made(experiment, task)
        counts[experiment.name, task.protocol] = len(calls) - before
        return dataset

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sweep.RememberedShapley, "_explain", lambda *given: calls.append(1) or measured(*given)
        )
        patch.setattr(Experiment, "_dataset", counted)
        assert PAPER.main(["--tiny", "--out", str(out)]) == 0
    return out, counts


@pytest.fixture(scope="module")
def smoke(smoke_run):
    return smoke_run[0]


def test_smoke_run_of_everything(smoke):
    assert "**A smoke run" in (smoke / "claims.md").read_text(encoding="utf-8")
    claims = json.loads((smoke / "claims.json").read_text(encoding="utf-8"))["claims"]
    assert [claim["id"] for claim in claims] == [f"M{number}" for number in range(1, 13)]
    assert all(claim["findings"] for claim in claims)
    assert all(claim["reason"] for claim in claims if claim["verdict"] == NOT_TESTED)
    names = {path.stem for path in smoke.glob("*.png")}
    terms = {f"mnist_terms_{name}" for name in ("published", "corrected")}
    others = {"imagenet", "mnist", "mnist_bound", "mnist_maps", "representation"}
    assert names == {*others, *terms}
    for name, experiment in PAPER.experiments().items():
        for config in json.loads((smoke / f"{name}.json").read_text(encoding="utf-8")):
            Finding.from_config(config)
        assert [d.attrs["protocol"] for d in experiment.saved(smoke)] == ["published", "corrected"]
    # What both protocols share is removed in the end.
    assert not list((smoke / "scratch").iterdir())


def test_claims_and_experiments():
    names = {"mnist", "imagenet", "representation"}
    assert set(PAPER.experiments()) == names
    assert {e for claim in CLAIMS for e in claim.experiments} == names


@pytest.mark.parametrize("name", ["mnist", "imagenet", "representation"])
def test_help(name, capsys):
    assert PAPER.experiments()[name].main(["--help"]) == 0
    assert f"python -m experiments.spectral2025.{name}" in capsys.readouterr().out


def test_protocols_differ_in_spectra_alone(smoke):
    for experiment in (mnist.EXPERIMENT, imagenet.EXPERIMENT):
        published, corrected = experiment.saved(smoke)
        for name in ("entropy", "auc", "random_auc", "class_cosine", "noise"):
            xr.testing.assert_identical(published[name], corrected[name])
        propagated = published["method"] == sweep.LRP
        assert (published["columns"] > corrected["columns"])[propagated].all()
        assert (published["ssm"] != corrected["ssm"])[propagated].any()
    # SmoothGrad and integrated gradients of photographs have few columns in both.
    for dataset in imagenet.EXPERIMENT.saved(smoke):
        assert (dataset["columns"][dataset["method"] != sweep.LRP] == 1).all()


def test_numbers_by_hand(smoke):
    """Spectra of one setting of each method from its maps."""
    (published, _) = mnist.EXPERIMENT.saved(smoke)
    task = Task(Request(("tiny",), images=3, tiny=True), "tiny", "published", "mnist")
    pixels, y = networks.pixels(task)
    x = networks.preprocess("tiny")(pixels)
    np.testing.assert_array_equal(published["label"], y)
    model = networks.load(task)
    settings = sweep.analyzers(task, model, TINY_MNIST, sweep.gamma_everywhere)
    assert [setting.name for setting in settings] == published["analyzer"].values.tolist()
    for place in (1, 5, 7, 8):
        maps = settings[place].analyzer.analyze(x, target="all").astype("float64").sum(axis=-1)
        r = maps.reshape(3, 5, -1)
        r = r / r.sum(axis=2, keepdims=True)
        sigma = np.linalg.svd(r, compute_uv=False)
        found = published.isel(analyzer=place)
        np.testing.assert_allclose(found["stability"], 1 / sigma[:, 0], rtol=1e-3)
        np.testing.assert_allclose(
            found["ssm"], np.sqrt((sigma**2).sum(1)) / sigma[:, 0], rtol=1e-3
        )
    assert published.attrs["entries"] == 64 and published.attrs["outputs"] == 5
    assert published.attrs["removed"] == 3
    # The figure's digit and its maps.
    example = published.attrs["example"]
    one = settings[3].analyzer.analyze(x[example : example + 1]).sum(axis=-1)[0]
    np.testing.assert_allclose(published["maps"][3, 0], one / one.sum(), rtol=1e-3, atol=1e-6)
    logit = published["logit"][example].max()
    np.testing.assert_allclose(
        published["explanation"][2], one / one.sum() * logit.item(), rtol=1e-3
    )


def test_representation_by_hand(smoke):
    """Columns of the units that fc4 reads, from relevance that starts there."""
    published, corrected = representation.EXPERIMENT.saved(smoke)
    assert published.attrs["layer"] == "relu3" and (published["columns"] == 12).all()
    assert (corrected["columns"] < 12).all() and (corrected["columns"] > 0).all()
    task = Task(Request(("tiny",), images=3, tiny=True), "tiny", "corrected", "representation")
    model, x = networks.load(task), networks.images(task)[0]
    analyzer = create_analyzer("lrp.composite", model, composite=sweep.gamma_everywhere(1))
    sent = np.tile(np.eye(12, dtype="float32"), (3, 1, 1))
    maps = analyzer.propagate(x, sent, start="relu3")["input"].astype("float64").sum(axis=-1)
    units = keras.Model(model.inputs[0], model.get_layer("relu3").output)(x).numpy()
    for sample in range(3):
        r = maps[sample][units[sample] > 0].reshape(-1, 64)
        sigma = np.linalg.svd(r / r.sum(axis=1, keepdims=True), compute_uv=False)
        found = corrected.isel(analyzer=2, sample=sample)
        assert found["columns"] == (units[sample] > 0).sum()
        assert found["stability"] == pytest.approx(1 / sigma[0], rel=1e-3)
        assert found["ssm"] == pytest.approx(np.linalg.norm(sigma) / sigma[0], rel=1e-3)


def test_shared_numbers_are_computed_once(smoke_run):
    """For both protocols: each audit's analyzers run in the first part only."""
    _, counts = smoke_run
    assert counts["mnist", "published"] > 0 and counts["mnist", "corrected"] == 0


def test_shapley_is_computed_once_for_each_sample(monkeypatch):
    task = Task(Request(("tiny",), images=3), "tiny", "published")
    model, x = networks.load(task), networks.images(task)[0]
    remembered = sweep.RememberedShapley(model, cycles=1)
    plain = create_analyzer("shapley_sampling", model, cycles=1)
    runs, explain = [], sweep.ShapleySampling._explain
    monkeypatch.setattr(
        sweep.ShapleySampling,
        "_explain",
        lambda self, arrays, *given: runs.append(len(arrays[0])) or explain(self, arrays, *given),
    )
    every = remembered.analyze(x, target="all")
    for target in (None, 2, "all"):
        np.testing.assert_allclose(
            remembered.analyze(x[::-1], target=target),
            plain.analyze(x[::-1], target=target),
            rtol=1e-5,
        )
    assert every.shape == (3, 5, 8, 8, 3)
    # Once by the one that remembers, three times by the other.
    assert runs == [3, 3, 3, 3]


# --- methods -------------------------------------------------------------------------------------


def rules(composite, model):
    analyzer = create_analyzer("lrp.composite", model, composite=composite)
    return {call.name: rule for call, rule in analyzer.assignment.rules.items()}


def test_composites():
    model = networks.tiny_network()
    found = rules(sweep.gamma_everywhere(0.5), model)
    assert {found[name] for name in ("conv1", "conv2", "fc3")} == {Gamma(0.5)}
    assert found["fc4"] == Epsilon(0)
    assert rules(sweep.gamma_everywhere(0.5, "ignore"), model)["conv2"] == Gamma(0.5, "ignore")
    found = rules(sweep.gamma_in_front(0.5, model, np.zeros(3), np.ones(3)), model)
    assert found["conv1"] == ZBox(np.zeros(3), np.ones(3)) and found["conv2"] == Gamma(0.5)
    assert found["fc3"] == found["fc4"] == Epsilon(0)


def test_composite_of_photographs():
    """In SqueezeNet 14 of 26 convolutions, as 7 of 13 in VGG-16."""
    import models

    model = models.squeezenet()
    found = rules(sweep.gamma_in_front(0.5, model, -np.ones(3), np.ones(3)), model)
    linear = [rule for rule in found.values() if isinstance(rule, ZBox | Gamma | Epsilon)]
    assert isinstance(linear[0], ZBox) and linear[-1] == Epsilon(0)
    assert linear[1:14] == [Gamma(0.5)] * 13
    assert linear[14:-1] == [Epsilon(0.25, relative=True)] * 11


def test_settings():
    task = Task(Request(("tiny",), images=1, seed=3), "tiny", "published")
    settings = sweep.analyzers(task, networks.load(task), TINY_MNIST, sweep.gamma_everywhere)
    assert [s.name for s in settings[:4]] == [f"LRP-gamma {g}" for g in ("0", "0.1", "1", "1024")]
    noisy, integrated, shapley = settings[5].analyzer, settings[-2].analyzer, settings[-1].analyzer
    assert (noisy.noise_scale, noisy.noise_range, noisy.times_input) == (0.1, (0.0, 1.0), True)
    assert (noisy.samples, noisy.seed) == (3, 3)
    assert (integrated.steps, integrated.quadrature) == (3, "midpoint")
    assert (shapley.cycles, shapley.seed) == (2, 3)
    without = sweep.analyzers(task, networks.load(task), TINY_IMAGENET, sweep.gamma_everywhere)
    assert without[-1].method == sweep.INTEGRATED


def test_grids():
    for grid in (MNIST, IMAGENET, TINY_MNIST, TINY_IMAGENET):
        for values in (grid.gammas, grid.noises):
            assert values[0] == 0 and (np.diff(values) > 0).all()
    assert (PUBLISHED.policy, CORRECTED.policy, CORRECTED.quantile) == ("literal", "quantile", 0.5)
    assert str(PUBLISHED) == "all outputs"
    assert "quantile 0.5" in str(CORRECTED)


def test_pixels_make_the_inputs():
    task = Task(Request(("tiny",), images=2), "tiny", "published")
    pixels, y = networks.pixels(task)
    x, labels = networks.images(task)
    assert pixels.dtype == np.uint8 and pixels.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(y, labels)
    np.testing.assert_allclose(networks.preprocess("tiny")(pixels), x, atol=0.5 / 255 + 1e-6)


def test_the_uniform_matrix():
    sigma, ssm = sweep.uniform(50, 4)
    assert sigma == pytest.approx(np.sqrt(4 / 50), abs=1e-14) and ssm == pytest.approx(1, abs=1e-14)


def test_class_numbers():
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(2, 2, 3, 8, 8))
    maps[1, 1] = 2 * maps[1, 0]
    found = sweep.class_numbers(maps)
    np.testing.assert_allclose(found["class_cosine"][1][1], 1)
    first, second = maps[0, :, 2].reshape(2, -1)
    expected = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert found["class_cosine"][1][0, 2] == pytest.approx(expected)
    assert found["noise"][1].shape == (2, 3) and (found["noise"][1] > 0.5).all()


# --- what is concluded ---------------------------------------------------------------------------


def spread(values):
    """Gives every image the value, up to factors with the mean 1."""
    return np.multiply.outer(np.asarray(values, float), np.array([0.5, 1.5, 0.8, 1.2]))


# Curves as the paper has them.
AS_PUBLISHED = {
    "lrp_sigma": (50.0, 20.0, 5.0, 2.0, 1.0),
    "lrp_sensitivity": (60.0, 30.0, 8.0, 2.5, 1.02),
    "lrp_ssm": (1.2, 1.5, 1.6, 1.25, 1.02),
    "lrp_entropy": (5.2, 5.0, 4.9, 5.1, 5.3),
    "lrp_auc": (0.5, 0.4, 0.42, 0.45, 0.47),
    "noise_sigma": (20.0, 10.0, 5.0, 2.0),
    "noise_sensitivity": (25.0, 13.0, 7.0, 2.5),
    "noise_ssm": (1.25, 1.3, 1.28, 1.25),
    "noise_entropy": (4.0, 4.5, 4.8, 5.0),
    "cosine": (0.2, 0.4, 0.7, 0.9, 0.995),
    "noise": (0.6, 0.5, 0.4, 0.2, 0.1),
    "columns": 10,
}


def digits(**changes):
    """A Dataset as `mnist.compute` makes it."""
    given = AS_PUBLISHED | changes
    single = [2.0, 3.0]

    def joined(name):
        return spread([*given[f"lrp_{name}"], *given[f"noise_{name}"], *single])

    count = len(GAMMAS) + len(NOISES) + 2
    auc = spread([*given["lrp_auc"], *(0.5 for _ in NOISES), 0.5, 0.5])
    each = ("analyzer", "sample")
    dataset = xr.Dataset(
        {
            # Stability has no mean of its own: those of sigma_1 and of 1 / sigma_1 differ.
            "stability": (each, 1 / joined("sigma")),
            "sensitivity": (each, joined("sensitivity")),
            "ssm": (each, joined("ssm")),
            "entropy": (each, joined("entropy")),
            "ssm_error": (each, np.full((count, IMAGES), changes.get("ssm_error", 0.0))),
            "columns": (each, np.full((count, IMAGES), given["columns"])),
            "near_zero": (each, np.zeros((count, IMAGES), int)),
            "smallest_sum": (each, np.full((count, IMAGES), 0.1)),
            "auc": (("fill", *each, "output"), np.tile(auc[None, :, :, None], (2, 1, 1, 2))),
            "random_auc": (("fill", "sample", "output"), np.full((2, IMAGES, 2), 0.9)),
            "class_cosine": (("gamma", "sample"), np.repeat([given["cosine"]], IMAGES, axis=0).T),
            "noise": (("gamma", "sample"), np.repeat([given["noise"]], IMAGES, axis=0).T),
        },
        {
            "analyzer": [str(number) for number in range(count)],
            "method": (
                ("analyzer",),
                [sweep.LRP] * len(GAMMAS)
                + [sweep.SMOOTHGRAD] * len(NOISES)
                + [sweep.INTEGRATED, sweep.SHAPLEY],
            ),
            "value": (("analyzer",), [*GAMMAS, *NOISES, np.nan, np.nan]),
            "gamma": list(GAMMAS),
            "fill": ["telea", "constant"],
            "output": ["logit", "probability"],
        },
        {
            "images": IMAGES,
            "entries": ENTRIES,
            "outputs": OUTPUTS,
            "removed": 5,
            "policy": "all outputs",
            "experiment": "mnist",
            "protocol": "published",
            "network": "net",
            "model": "net",
            "command": "",
            "accuracy": changes.get("accuracy", 0.982),
            "tested_images": 1000,
            "notes": "",
            "top5": 1.0,
        },
    )
    return with_norms(dataset, **changes)


# c of three layers; the last one has LRP-0.
CS = (0.1, 0.9, 0.5)


def with_norms(dataset, **changes):
    """Adds norms of layers that follow the closed form, of two images."""
    c = np.array(changes.get("c", CS))
    gammas = np.array(GAMMAS)[:, None] * np.array([1, 1, 0])
    form = 1 + 2 * c / (1 + gammas - c)  # (gamma, layer)
    form = np.tile(form[None, :, None], (2, 1, 2, 1))
    measured = form * np.array(changes.get("measured", (0.9, 1.0)))[:, None, None, None]
    worst = np.full(form.shape, 7)
    worst[1, 2, 0, 1] = changes.get("worst", 7)
    bound = form.prod(axis=-1) * np.array(changes.get("bound", np.ones(5)))[:, None]
    dims = ("bias", "gamma", "image")
    return dataset.assign(
        {
            "layer_measured": ((*dims, "layer"), measured),
            "layer_closed_form": ((*dims, "layer"), form),
            "layer_c": ((*dims, "layer"), np.broadcast_to(c, form.shape)),
            "layer_worst": ((*dims, "layer"), np.full(form.shape, 7)),
            "layer_measured_worst": ((*dims, "layer"), worst),
            "norm": (dims, bound * changes.get("norm", 0.5)),
            "bound": (dims, bound),
        }
    ).assign_coords(bias=["split", "ignore"], layer=["conv1", "conv2", "fc3"])


def verdicts(dataset, experiment=mnist):
    return {found.claim: found.verdict for found in experiment.judge(dataset)}


def test_what_the_paper_has_is_confirmed():
    assert verdicts(digits()) == {f"M{number}": CONFIRMED for number in range(1, 13)}


@pytest.mark.parametrize(
    ("claim", "changes", "expected"),
    [
        ("M1", {"lrp_sigma": (50, 60, 5, 2, 1)}, REFUTED),
        ("M1", {"lrp_sensitivity": (60, 30, 2, 2.5, 1)}, REFUTED),
        ("M1", {"lrp_sigma": (5, 5, 5, 5, 5)}, NOT_TESTED),
        ("M2", {"lrp_ssm": (1.7, 1.5, 1.6, 1.25, 1.02)}, REFUTED),
        ("M2", {"lrp_ssm": (1.2, 1.3, 1.4, 1.5, 1.6)}, REFUTED),
        ("M2", {"lrp_ssm": (1.59, 1.5, 1.6, 1.25, 1.02)}, REFUTED),
        ("M3", {"noise_sigma": (20, 10, 12, 2)}, REFUTED),
        ("M3", {"noise_sensitivity": (25, 30, 7, 2.5)}, REFUTED),
        ("M3", {"noise_ssm": (1.2, 1.5, 1.5, 1.2)}, REFUTED),
        ("M4", {"lrp_auc": (0.4, 0.4, 0.42, 0.45, 0.47)}, REFUTED),
        ("M4", {"lrp_entropy": (5.2, 5.1, 5.0, 4.9, 4.8)}, REFUTED),
        ("M5", {"noise_entropy": (4.8, 4.5, 4.8, 5.0)}, REFUTED),
        ("M5", {"noise_sigma": (9.0, 10.0, 5.0, 2.0)}, REFUTED),
        ("M6", {"lrp_ssm": (1.2, 1.6, 1.5, 1.3, 1), "lrp_entropy": (5, 4, 5, 5, 5)}, REFUTED),
        ("M6", {"lrp_entropy": (np.nan,) * 5}, NOT_TESTED),
        ("M7", {"norm": 1.01}, REFUTED),
        ("M7", {"bound": (1, 1, 1, 1, 1.3)}, REFUTED),
        ("M7", {"c": (0.1, 0.3, 0.2)}, REFUTED),
        ("M7", {"measured": (0.9, 1.0001)}, REFUTED),
        ("M7", {"worst": 8}, REFUTED),
        ("M8", {"c": (0.3, 0.9, 0.5)}, REFUTED),
        ("M8", {"c": (0.6, 0.9, 0.5)}, NOT_TESTED),
        ("M8", {"c": (0.1, 0.1, 0.5)}, REFUTED),
        ("M9", {"cosine": (0.99, 0.4, 0.7, 0.9, 0.98)}, REFUTED),
        ("M9", {"cosine": (0.2, 0.4, 0.7, 0.9, 0.98)}, REFUTED),
        ("M9", {"noise": (0.1, 0.5, 0.4, 0.2, 0.2)}, REFUTED),
        ("M10", {"columns": 900}, REFUTED),
        ("M11", {"accuracy": 0.965}, REFUTED),
        ("M11", {"accuracy": 0.99}, CONFIRMED),
        ("M11", {"accuracy": np.nan}, NOT_TESTED),
        ("M12", {"lrp_ssm": (1.2, 1.5, 1.6, 1.25, 1.06)}, REFUTED),
    ],
)
def test_verdicts(claim, changes, expected):
    assert verdicts(digits(**changes))[claim] == expected


def test_photographs_have_an_optimum_of_noise():
    clear = digits(noise_ssm=(1.2, 1.5, 1.4, 1.25))
    assert verdicts(clear, imagenet)["M3"] == CONFIRMED and verdicts(clear)["M3"] == REFUTED
    assert verdicts(digits(noise_ssm=(1.2, 1.3, 1.4, 1.5)), imagenet)["M3"] == REFUTED
    # LRP-gamma is in some of the layers only, so that maps need not become the same.
    near = digits(cosine=(0.2, 0.4, 0.7, 0.9, 0.98))
    assert verdicts(near, imagenet)["M9"] == CONFIRMED
    assert verdicts(near, imagenet)["M11"] == NOT_TESTED
    assert set(verdicts(near, imagenet)) == {f"M{n}" for n in (1, 2, 3, 4, 5, 6, 9, 10, 11)}


def test_representations():
    def units(**changes):
        dataset = judging.of_method(digits(**changes), sweep.LRP)
        return dataset.assign_attrs(experiment="representation", layer="relu3")

    def found(**changes):
        return verdicts(units(**changes), representation)

    assert found() == {"M1": CONFIRMED, "M2": CONFIRMED, "M12": CONFIRMED}
    assert {f.network for f in representation.judge(units())} == {"net: units of relu3"}
    assert found(lrp_sigma=(50, 60, 5, 2, 1))["M1"] == REFUTED
    assert found(lrp_ssm=(1.2, 1.3, 1.4, 1.5, 1.6)) == {
        "M1": CONFIRMED,
        "M2": REFUTED,
        "M12": REFUTED,
    }
    (figure,) = representation.draw([units()]).values()
    assert len(figure.axes) == 3 and len(figure.axes[2].lines) == 3


def test_means_count_and_medians_stand_beside():
    dataset = digits()
    # One image in which a column explodes at gamma = 1.
    dataset["stability"][2, 0] = 1e-6
    found = {finding.claim: finding for finding in mnist.judge(dataset)}
    assert found["M1"].verdict == REFUTED
    text = "Spearman correlation of gamma and median sigma_1"
    assert found["M1"].numbers[text] == pytest.approx(-1)


def test_estimates_say_their_error():
    text = "largest standard error of the estimate of a mean SSM"
    for error in (0.0, 0.02):
        (found,) = [f for f in mnist.judge(digits(ssm_error=error)) if f.claim == "M2"]
        assert found.numbers.get(text, 0) == pytest.approx(error / 2)  # of four images


def test_table_one():
    found = {finding.claim: finding for finding in mnist.judge(digits())}["M6"].numbers
    assert found["SSM, LRP-gamma"] == pytest.approx(1.6)
    assert found["SSM, LRP-gamma, its gamma"] == 1
    assert found["PF-AUC, LRP-gamma, its gamma"] == 0.1
    assert found["SSM, SmoothGrad, its noise"] == 0.1
    assert found["entropy, Shapley sampling"] == found["SSM, Shapley sampling"]
    assert "SSM, integrated gradients, its noise" not in found


def test_missing_maps_are_counted_and_left_out():
    dataset = digits()
    dataset["entropy"][0, 0] = np.nan
    expected = np.nanmean(dataset["entropy"][0])
    assert judging.averaged(judging.of_method(dataset, sweep.LRP), "entropy")[0] == expected
    (found,) = [f for f in mnist.judge(dataset) if f.claim == "M4"]
    assert f"1 of {dataset['entropy'].size} maps" in found.note


# --- figures -------------------------------------------------------------------------------------


def test_curves():
    published = digits()
    corrected = digits(lrp_ssm=(1.1, 1.2, 1.4, 1.5, 1.0))
    corrected.attrs |= {"protocol": "corrected", "policy": "half"}
    figure = figures.curves([published, corrected])
    cells = np.array(figure.axes).reshape(5, 3)
    ssm = cells[2, 0]
    # Mean and median of two protocols, with a dot at each best mean.
    dots = [line.get_xdata()[0] for line in ssm.lines if line.get_marker() == "o"]
    assert len(ssm.lines) == 6 and dots == [1.0, 16.0]
    assert [tick.get_text() for tick in cells[4, 2].get_xticklabels()] == ["IG", "Shapley"]
    # One curve for both protocols where these agree, and the random order.
    assert {line.get_color() for line in cells[2, 1].lines} == {figures.SAME}
    assert len(cells[3, 0].lines) == 4 and len(cells[4, 0].lines) == 3


def test_figures_of_several_networks():
    second = digits()
    second.attrs["model"] = "second"
    assert set(imagenet.draw([digits(), second])) == {"imagenet_net", "imagenet_second"}
    assert set(imagenet.draw([digits()])) == {"imagenet"}


def test_the_bound_is_drawn_above_the_norms():
    figure = figures.bound([digits()])
    left, right = figure.axes
    bound, norm = left.lines[0].get_ydata(), left.lines[1].get_ydata()
    assert (bound > norm).all()
    assert len(right.lines) == 6  # closed form and measured, of three layers
