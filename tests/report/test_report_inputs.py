"""What an audit is given: models, samples and options that do not fit are refused at the start."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfexplain
from tests.helpers.networks import randomize, sequential
from tfexplain import audits
from tfexplain.report import methods

QUICK = {"methods": "gradient", "audits": "entropy", "preset": "quick"}


@pytest.fixture(scope="module")
def table():
    return randomize(sequential((4,), layers.Dense(5, "relu"), layers.Dense(3, "softmax")))


@pytest.fixture(scope="module")
def columns():
    return np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


@pytest.fixture(scope="module")
def two_outputs():
    x = keras.Input((4,))
    return randomize(
        keras.Model(x, {"a": layers.Dense(3, name="a")(x), "b": layers.Dense(3, name="b")(x)})
    )


@pytest.fixture(scope="module")
def words():
    """A model of tokens, and four samples."""
    model = sequential(
        (7,), layers.Embedding(9, 4), layers.GlobalAveragePooling1D(), layers.Dense(3)
    )
    return randomize(model), np.random.default_rng(1).integers(0, 9, size=(4, 7))


# --- methods that do not fit ---


def test_of_all_methods_those_that_do_not_fit_are_left_out(words, table):
    model, x = words
    found = methods.choose(model, None, x)
    assert "gradient" in found.analyzers
    assert "no linear layer follows the input" in found.left_out["deep_taylor.bounded"]
    # Between equal bounds there is no box.
    constant = methods.choose(table, None, np.ones((2, 4), "float32"))
    assert "low must be <= high" in constant.left_out["deep_taylor.bounded"]
    assert set(constant.analyzers) | set(constant.left_out) == set(tfexplain.ANALYZERS)


def test_wrong_training_data_are_an_error_and_no_reason(table, columns):
    for given in (None, "pattern.net"):
        with pytest.raises(ValueError, match=r"has shape \(5, 2\), expected"):
            methods.choose(table, given, columns, fit_data=columns[:, :2])


def test_wrong_options_are_an_error_and_no_reason(table, columns):
    with pytest.raises(ValueError, match="low must be <= high"):
        methods.choose(table, {"deep_taylor.bounded": {"low": 1, "high": 0}}, columns)


def test_a_method_that_runs_out_of_memory_is_left_out(table, columns, monkeypatch):
    def fails(*args):
        raise MemoryError

    own = {name: tfexplain.create_analyzer(name, table) for name in ("gradient", "lrp.z")}
    monkeypatch.setattr(own["lrp.z"], "explain_part", fails)
    found = tfexplain.audit(table, columns, methods=own, audits="entropy", preset="quick")
    assert found.verdict().left_out == {"lrp.z": "MemoryError"}


# --- samples and outputs ---


def test_parts_that_take_few_samples_see_all_classes():
    # Folders of classes are read one after another.
    model = sequential((4,), layers.Dense(3))
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    found = tfexplain.audit(
        model, x, methods="input_t_gradient", audits=["spectrum", "parameter_randomization"]
    ).datasets
    analyzer = tfexplain.create_analyzer("input_t_gradient", model)
    expected = audits.spectrum(analyzer, x[[0, 4, 7, 11]]).singular_value.values
    np.testing.assert_allclose(found["spectrum"].singular_value, expected, rtol=1e-6)
    assert found["parameter_randomization"].kept.values.tolist() == [0, 11]


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.full((2, 4), np.nan), ValueError, "holds NaN or infinity in sample"),
        (np.ones((2, 5)), ValueError, r"has shape \(2, 5\), expected \(batch, 4\)"),
        (np.array([["a"] * 4]), TypeError, "must be an array of numbers"),
        (np.array([[None] * 4]), TypeError, "must be an array of numbers"),
        ({"x": np.ones((2, 4))}, ValueError, "x must be an array.*received dict"),
    ],
)
def test_wrong_samples_are_refused_before_there_are_methods(table, monkeypatch, x, error, message):
    monkeypatch.setattr(methods, "create_analyzer", None)
    with pytest.raises(error, match=message):
        tfexplain.audit(table, x, audits="entropy")


def test_models_of_several_inputs_are_refused_before_there_are_methods(columns, monkeypatch):
    monkeypatch.setattr(methods, "create_analyzer", None)
    inputs = [keras.Input((4,), name="left"), keras.Input((4,), name="right")]
    model = keras.Model(inputs, layers.Dense(3)(layers.Add()(inputs)))
    with pytest.raises(ValueError, match=r"one input; .* has 2 \(left, right\)"):
        tfexplain.audit(model, columns)


def test_one_of_several_outputs_is_audited(two_outputs, columns, tmp_path):
    with pytest.raises(ValueError, match="2 outputs.*choose one with output="):
        tfexplain.audit(two_outputs, columns)
    found = tfexplain.audit(two_outputs, columns, output=np.int64(1), folder=tmp_path, **QUICK)
    assert found.record["settings"]["output"] == 1
    assert json.loads((tmp_path / "audit.json").read_text())["settings"]["output"] == 1


def test_an_analyzer_of_another_output_is_refused(two_outputs, columns):
    one = tfexplain.create_analyzer("gradient", two_outputs, output="a")
    options = {"audits": "entropy", "preset": "quick", "methods": {"one": one, "lrp.z": {}}}
    assert tfexplain.audit(two_outputs, columns, output=0, **options).verdict().methods
    with pytest.raises(ValueError, match="'one' explains the output 'a'.*output='b' is audited"):
        tfexplain.audit(two_outputs, columns, output="b", **options)


def test_each_method_conserves_the_output_that_it_explains(table, columns):
    own = {
        activation: tfexplain.create_analyzer("lrp.z", table, output_activation=activation)
        for activation in ("keep", "drop")
    }
    dataset = tfexplain.audit(table, columns, methods=own, audits="examples").datasets["examples"]
    targets = dataset.target.values[:, None]
    for name, analyzer in own.items():
        expected = np.take_along_axis(analyzer.outputs(columns), targets, 1)[:, 0]
        np.testing.assert_allclose(dataset.explained.sel(analyzer=name), expected, rtol=1e-5)


def test_tokens_have_no_koopman_credit(words):
    model, x = words
    found = tfexplain.audit(model, x, methods="gradient", audits=["koopman", "entropy"])
    assert list(found.datasets) == ["entropy"]
    assert "inputs are tokens" in found.record["reasons"]["koopman"][""]


@pytest.mark.parametrize(
    ("pixels", "preprocess", "message"),
    [
        (np.zeros((3, 6, 6, 1)), np.float32, "pixels must be uint8"),
        (np.zeros((3, 5, 6, 1), "uint8"), np.float32, "pixels must be uint8 of shape"),
        (np.ones((3, 6, 6, 1), "uint8"), np.float32, r"x is not preprocess\(pixels\)"),
        (np.zeros((3, 6, 6, 1), "uint8"), 3, "preprocess must be a function"),
        (3, np.float32, "pixels must be uint8 images, received 3"),
    ],
)
def test_pixels_that_do_not_fit_are_refused_before_the_work(
    monkeypatch, pixels, preprocess, message
):
    monkeypatch.setattr(audits.Entropy, "run", None)
    model = randomize(sequential((6, 6, 1), layers.Flatten(), layers.Dense(3)))
    x = np.zeros((3, 6, 6, 1), "float32")
    with pytest.raises(ValueError, match=message):
        tfexplain.audit(model, x, pixels=pixels, preprocess=preprocess, **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": {"notes": None}}, "notes None"),
        ({"about": {"notes": "one"}}, "notes 'one'"),
        ({"about": {"names": "one"}}, "names 'one'"),
        ({"about": {"classes": ["cat"]}}, r"classes \['cat'\]"),
        ({"about": {"classes": {"0": 1}}}, "about has 1 where the report prints text"),
        ({"about": {"command": ["a"]}}, "where the report prints text"),
        ({"about": {"score": float("nan")}}, "JSON-able"),
        ({"audits": 3}, "audits must be names of audits, received 3"),
    ],
)
def test_what_the_report_cannot_print_is_refused(table, columns, changes, message):
    with pytest.raises(TypeError, match=message):
        tfexplain.audit(table, columns, **{**QUICK, **changes})


@pytest.mark.parametrize("about", [{"names": ["a"]}, {"given": 4}, {"given": "many"}])
def test_names_and_numbers_of_samples_must_fit(table, columns, about):
    with pytest.raises(ValueError, match="for 5 samples. Expected a name for each"):
        tfexplain.audit(table, columns, about=about, **QUICK)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.eye(3)[[0, 1, 2, 0, 1]], "one class index per sample.*give y.argmax"),
        ([0, 1, 9, 0, 1], "9"),
        ("cat", "y must be one index per sample, received 'cat'"),
    ],
)
def test_wrong_targets_are_an_error_of_the_call(table, columns, y, message):
    with pytest.raises(ValueError, match=message) as error:
        tfexplain.audit(table, columns, y, **QUICK)
    assert "No method fits" not in str(error.value)


@keras.saving.register_keras_serializable("tests")
class Incomplete(keras.initializers.Initializer):
    """Cannot be made of its configuration."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, shape, dtype=None, **options):
        return keras.random.normal(shape, dtype=dtype, seed=1) * self.scale

    def get_config(self):
        return {}


def test_an_initializer_that_cannot_be_made_again_leaves_one_audit_out(columns):
    kernel = Incomplete(0.5)
    model = sequential((4,), layers.Dense(3, kernel_initializer=kernel, name="scores"))
    asked = {**QUICK, "audits": ["entropy", "parameter_randomization"]}
    found = tfexplain.audit(model, columns, **asked)
    assert list(found.datasets) == ["entropy"]
    assert "missing 1 required" in found.record["reasons"]["parameter_randomization"][""]
