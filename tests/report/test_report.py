"""The audit of a whole model: what runs, which methods and samples, inputs that are wrong."""

import json
import sys

import numpy as np
import pytest
from keras import layers

import tfexplain
from tests.helpers.audit_networks import table_columns, table_network
from tests.helpers.networks import randomize, sequential
from tfexplain import report


@pytest.fixture(scope="module")
def table():
    return table_network()


@pytest.fixture(scope="module")
def columns():
    return table_columns()


METHODS = ["gradient", "lrp.z"]


@pytest.fixture(scope="module")
def audited(table, columns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "run"
    plans = []
    found = tfexplain.audit(
        table, columns, methods=METHODS, preset="quick", folder=folder, announce=plans.append
    )
    return found, folder, plans[0]


def test_a_table_gets_the_audits_that_make_sense(audited):
    found, _, _ = audited
    assert set(found.datasets) == {
        "examples",
        "cosine_convergence",
        "parameter_randomization",
        "spectrum",
        "entropy",
        "koopman",
    }
    assert "no spatial axis" in found.record["reasons"]["random_logit"][""]
    assert "pixels of images" in found.record["reasons"]["pixel_flipping"][""]
    cells = found.verdict()["lrp.z"].cells
    assert cells["last_layers"].measure == "|rank correlation|"
    assert "no spatial axis" in cells["class"].word
    assert {name for name, cell in cells.items() if not cell.measured} == {"class", "flipping"}


def test_the_plan_is_announced(audited):
    found, _, plan = audited
    assert plan.methods == tuple(METHODS)
    assert set(plan.passes) == set(found.datasets)
    # Five samples, two methods of one forward and one backward pass.
    assert plan.passes["entropy"] == 5 * 2 * 3
    assert plan.passes["examples"] < plan.passes["parameter_randomization"]
    assert 0 < plan.seconds < 60


def test_the_conservation_error_is_that_of_the_maps(audited, table, columns):
    found, _, _ = audited
    dataset = found.datasets["examples"]
    analyzer = tfexplain.create_analyzer("lrp.z", table)
    single = analyzer.attribute(columns)
    np.testing.assert_allclose(
        dataset.conservation_error.sel(analyzer="lrp.z"),
        single.conservation_error[:, 0],
        rtol=1e-5,
        atol=1e-6,
    )
    kept = dataset.example.values
    assert len(kept) == 3 and len(set(dataset.target.values[kept])) == len(
        set(dataset.target.values)
    )
    np.testing.assert_allclose(
        dataset.relevance.sel(analyzer="lrp.z"), single.relevance[kept, 0], rtol=1e-5
    )
    rows = json.loads(dataset.attrs["assignment"])["lrp.z"]
    assert [str(cell) for cell in analyzer.describe().rows[0]] == rows[0]


def test_a_sequence_model():
    model = randomize(
        sequential(
            (12, 2),
            layers.Conv1D(4, 3, activation="relu", name="conv"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, name="scores"),
        )
    )
    x = np.random.default_rng(2).normal(size=(4, 12, 2)).astype("float32")
    found = tfexplain.audit(
        model,
        x,
        [0, 1, 2, 0],
        methods=["gradient", "grad_cam"],
        audits=[
            "random_logit",
            "cosine_convergence",
            "pixel_flipping",
            "parameter_randomization",
            "examples",
        ],
        preset="quick",
    )
    done = {"random_logit", "cosine_convergence", "parameter_randomization", "examples"}
    assert set(found.datasets) == done
    assert found.datasets["examples"].target.values.tolist() == [0, 1, 2, 0]
    assert found.datasets["examples"].relevance.dims == ("analyzer", "example", "step", "feature")
    assert found.datasets["parameter_randomization"].relevance.dims[-1] == "position"
    verdict = found.verdict()
    assert verdict["gradient"].cells["class"].measured
    assert "no single backward chain" in verdict["grad_cam"].cells["directions"].word


def test_images_flip_pixels_with_inpainting_where_pixels_are_given():
    model = randomize(
        sequential((6, 6, 1), layers.Flatten(), layers.Dense(5, "relu"), layers.Dense(3))
    )
    pixels = np.random.default_rng(4).integers(0, 255, size=(3, 6, 6, 1)).astype("uint8")

    def preprocess(images):
        return images.astype("float32") / 255

    options = {"methods": "gradient", "audits": "pixel_flipping", "preset": "quick"}
    found = tfexplain.audit(
        model, preprocess(pixels), pixels=pixels, preprocess=preprocess, **options
    )
    assert found.datasets["pixel_flipping"].attrs["fill"] == "telea"
    plain = tfexplain.audit(model, preprocess(pixels), **options)
    assert plain.datasets["pixel_flipping"].attrs["fill"] == "constant"
    value = plain.datasets["pixel_flipping"].attrs["value"]
    assert value == pytest.approx(preprocess(pixels).mean())
    with pytest.raises(ValueError, match="pixels and preprocess belong together"):
        tfexplain.audit(model, preprocess(pixels), pixels=pixels, **options)


def test_without_opencv_pixel_flipping_is_left_out_where_it_would_inpaint(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    model = randomize(sequential((6, 6, 1), layers.Flatten(), layers.Dense(3)))
    pixels = np.random.default_rng(4).integers(0, 255, size=(3, 6, 6, 1)).astype("uint8")
    x = pixels.astype("float32")
    options = {"methods": "gradient", "audits": ["pixel_flipping", "entropy"], "preset": "quick"}
    found = tfexplain.audit(model, x, pixels=pixels, preprocess=np.float32, **options)
    assert list(found.datasets) == ["entropy"]
    assert 'pip install "tfexplain[inpainting]"' in found.record["reasons"]["pixel_flipping"][""]
    plain = tfexplain.audit(model, x, **options)
    assert plain.datasets["pixel_flipping"].attrs["fill"] == "constant"


def test_a_single_output_has_no_classes_and_no_directions(columns):
    model = randomize(sequential((6,), layers.Dense(4, "relu"), layers.Dense(1)))
    found = tfexplain.audit(
        model,
        columns,
        methods="gradient",
        audits=["random_logit", "cosine_convergence", "spectrum", "entropy"],
    )
    assert list(found.datasets) == ["entropy"]
    for part in ("random_logit", "cosine_convergence", "spectrum"):
        assert "single output" in found.record["reasons"][part][""]


def test_methods_that_do_not_fit_are_listed(table, columns):
    found = report.methods.choose(table, None, columns)
    assert "grad_cam needs" in found.left_out["grad_cam"]
    assert set(found.analyzers) | set(found.left_out) == set(tfexplain.ANALYZERS)
    assert {"lrp.alpha_beta", "deep_taylor.bounded", "pattern.net"} <= set(found.analyzers)
    assert found.analyzers["deep_taylor.bounded"].get_config()["options"]["low"] == columns.min()
    (note,) = found.notes
    assert note.startswith("pattern.net, pattern.attribution: fitted to the audited samples")
    assert not report.methods.choose(table, None, columns, fit_data=columns).notes


def test_a_method_without_a_map_is_left_out(table, columns):
    methods = ["gradient", "grad_cam"]
    found = tfexplain.audit(table, columns, methods=methods, audits="entropy", preset="quick")
    assert found.verdict().methods == ["gradient"]
    assert "grad_cam needs" in found.verdict().left_out["grad_cam"]
    with pytest.raises(KeyError, match="grad_cam was not audited: grad_cam needs"):
        found.verdict()["grad_cam"]


def test_costly_methods_are_audited_only_if_named():
    model = randomize(sequential((2000,), layers.Dense(3)))
    x = np.random.default_rng(0).normal(size=(1, 2000)).astype("float32")
    left_out = report.methods.choose(model, None, x, preset="quick").left_out
    assert "more than the preset 'quick' has by itself" in left_out["shapley_sampling"]
    named = report.methods.choose(model, "shapley_sampling", x, preset="quick")
    assert list(named.analyzers) == ["shapley_sampling"]


def test_too_many_samples_are_drawn_by_the_seed(table, columns):
    options = {"methods": "gradient", "audits": "examples", "images": 2}
    first, again, other = (
        tfexplain.audit(table, columns, [0, 1, 2, 0, 1], seed=seed, **options) for seed in (0, 0, 1)
    )
    positions = first.record["samples"]["positions"]
    assert len(positions) == 2 and first.record["samples"]["given"] == 5
    assert positions == again.record["samples"]["positions"]
    assert positions != other.record["samples"]["positions"]
    expected = np.array([0, 1, 2, 0, 1])[positions]
    np.testing.assert_array_equal(first.datasets["examples"].target, expected)
    assert "2 of 5 samples, drawn at random" in first.record["notes"][0]


def test_analyzers_and_options_can_be_given(table, columns):
    own = tfexplain.create_analyzer("lrp.epsilon", table, epsilon=0.5)
    methods = {"mine": own, "integrated_gradients": {"steps": 3}}
    found = tfexplain.audit(table, columns, methods=methods, audits="entropy")
    configs = found.record["settings"]["analyzers"]
    assert configs["mine"]["options"]["epsilon"] == 0.5
    assert configs["integrated_gradients"]["options"]["steps"] == 3


def test_the_record_keeps_what_it_is_told(table, columns):
    options = {"methods": "gradient", "audits": "entropy"}
    found = tfexplain.audit(table, columns, about={"data": "columns"}, **options)
    assert found.record["about"] == {"data": "columns"}
    with pytest.raises(TypeError, match="about must be a dict of JSON-able data"):
        tfexplain.audit(table, columns, about={"data": columns}, **options)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"preset": "fast"}, ValueError, "preset must be one of quick, default, thorough"),
        ({"audits": "spectra"}, ValueError, "no audit 'spectra'.*Did you mean 'spectrum'"),
        ({"audits": []}, ValueError, "audits is empty"),
        ({"methods": "gradeint"}, ValueError, "no analyzer 'gradeint'.*Did you mean 'gradient'"),
        ({"methods": []}, ValueError, "methods is empty"),
        ({"methods": 3}, TypeError, "methods must be names"),
        ({"methods": [3]}, TypeError, "methods must be names"),
        ({"methods": {"gradient": 3}}, TypeError, "gives 'gradient' a int"),
        ({"methods": {"gradient": {"nonsense": 3}}}, ValueError, "no option 'nonsense'"),
        ({"methods": "grad_cam"}, ValueError, "No method fits the model.*grad_cam"),
        ({"images": 0}, ValueError, "images must be a positive integer"),
        ({"images": True}, ValueError, "images must be a positive integer"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
        ({"thresholds": 0.9}, TypeError, "thresholds must be tfexplain.report.Thresholds"),
        ({"announce": 1}, TypeError, "announce must be a function"),
        ({"x": np.ones((2, 5))}, ValueError, "shape"),
        ({"x": np.zeros((0, 6))}, ValueError, "at least one sample"),
        ({"x": 3.0}, ValueError, "x must be an array"),
        ({"x": np.full((2, 6), np.nan)}, ValueError, "NaN"),
        ({"y": [0, 1]}, ValueError, "x has 5 samples and y 2"),
        ({"y": [0.5] * 5}, ValueError, "one class index per sample"),
        ({"y": 7}, ValueError, "7"),
        ({"model": "model"}, TypeError, "Keras model"),
        ({"pixels": np.zeros((2, 6))}, ValueError, "x has 5 samples and pixels 2"),
        ({"output": 5}, ValueError, "output"),
    ],
)
def test_wrong_arguments(table, columns, changes, error, message):
    given = {"model": table, "x": columns, "methods": "gradient", "audits": "entropy", **changes}
    with pytest.raises(error, match=message):
        tfexplain.audit(given.pop("model"), given.pop("x"), **given)


def test_an_analyzer_of_another_model_is_refused(table, columns):
    other = tfexplain.create_analyzer("gradient", sequential((6,), layers.Dense(3)))
    with pytest.raises(ValueError, match="another model than the audited one"):
        tfexplain.audit(table, columns, methods={"one": other})
