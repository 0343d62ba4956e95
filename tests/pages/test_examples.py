"""The scripts of `examples/` do what they promise, and their mistakes are explained."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import xarray as xr
from PIL import Image
from typer.testing import CliRunner

import tfexplain
from tests.analyzers.test_serving import several
from tests.helpers.networks import small_cnn
from tfexplain import cli, report, results
from tfexplain.rules import RULES

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

# Runs commands of a script, given as JSON, where tfexplain and Keras are not installed, as far as
# any import can tell.
HIDING = """
import json, runpy, sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in ("tfexplain", "keras", "tf_keras")
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
for name in ("tfexplain", "keras"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " is there")
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
loaded = {name.split(".")[0] for name in sys.modules}
print(sorted(loaded & {"tfexplain", "keras", "tf_keras"}))
"""


def load(name):
    """Imports a script as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for the module of their fields there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def serving():
    return load("serve_saved_model")


@pytest.fixture(scope="module")
def rule_example():
    """The module of the custom rule, which other tests do not see."""
    yield load("custom_rule")
    del RULES["Magnitude"]


# --- what is written about them ------------------------------------------------------------------


def test_the_readme_names_the_scripts():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.py)` .*`python EXAMPLES/(\w+\.py)[ `]", text, re.MULTILINE)
    assert all(name == command for name, command in rows)
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert sorted(name for name, _ in rows) == scripts


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_say_how_to_run_them(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert f"python {path.name}" in text


def test_options_in_the_texts_exist():
    """The command of the audit in the docstring is one that the command line takes."""
    text = load("audit_keras_application").__doc__.replace("\\\n", " ")
    (command,) = re.findall(r"^ *tfexplain (audit .*)$", text, re.MULTILINE)
    listed = CliRunner().invoke(cli.app, ["audit", "--help"], env={"COLUMNS": "200"}).output
    options = re.findall(r"--[\w-]+", command)
    assert {"--weights", "--preprocess", "--quick"} <= set(options)
    assert all(option in listed for option in options)


# --- serve_saved_model.py ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder with two SavedModels and their inputs; and analyzers, by the names of the models."""
    folder = tmp_path_factory.mktemp("exported")
    generator = np.random.default_rng(0)
    single = small_cnn()
    single.save(folder / "model.keras")
    arguments = ["export", str(folder / "model.keras"), "--method", "lrp.epsilon"]
    run = CliRunner().invoke(cli.app, [*arguments, str(folder / "single")])
    assert run.exit_code == 0, run.output
    pixels = generator.normal(size=(7, 8, 8, 3)).astype("float32")
    targets = np.array([2, 0, 1, 1, 2, 0, 2])
    np.save(folder / "pixels.npy", pixels)
    np.savez(folder / "pixels.npz", x=pixels, target=targets)

    keras.utils.set_random_seed(1)
    double = several()
    analyzer = tfexplain.create_analyzer("lrp.z", double, output="place")
    analyzer.export(folder / "double")
    inputs = {
        "image": generator.normal(size=(5, 6, 6, 2)).astype("float32"),
        "numbers": generator.normal(size=(5, 3)),
    }
    np.savez(folder / "inputs.npz", **inputs)
    first = tfexplain.create_analyzer("lrp.epsilon", single)
    return folder, {"single": (first, pixels, targets), "double": (analyzer, inputs)}


@pytest.fixture(scope="module")
def answers(exported, tmp_path_factory):
    """What the script wrote in one fresh process without tfexplain and Keras."""
    folder, _ = exported
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    script = str(EXAMPLES / "serve_saved_model.py")
    commands = [
        [script, str(folder / "single"), str(folder / source), "--out", *options]
        for source, *options in (
            ("pixels.npy", "largest.nc", "--batch-size", "3"),
            ("pixels.npy", "whole.nc", "--batch-size", "100"),
            ("pixels.npz", "given.nc", "--batch-size", "2"),
            ("pixels.npz", "ignored.nc", "--target", "none"),
            ("pixels.npz", "one.nc", "--target", "1"),
        )
    ]
    options = ["--out", "double.nc", "--target", "3", "--batch-size", "2"]
    commands.append([script, str(folder / "double"), str(folder / "inputs.npz"), *options])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", HIDING, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env=environment,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    *lines, modules = run.stdout.splitlines()
    assert modules == "[]"
    assert lines[0] == "largest.nc: 7 samples, relevance, input, prediction"
    names = sorted(path.name for path in elsewhere.iterdir())
    assert names == sorted(command[4] for command in commands)
    return {name: xr.load_dataset(elsewhere / name, engine="h5netcdf") for name in names}


def assert_close(found, expected):
    """Compares to what another order of summation changes in float32."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


def test_served_relevance_is_that_of_the_analyzer(answers, exported):
    analyzer, pixels, targets = exported[1]["single"]
    predicted = analyzer.user_model.predict(pixels, verbose=0)
    ones = [1] * len(pixels)
    cases = {"largest.nc": None, "whole.nc": None, "ignored.nc": None}
    for name, target in {**cases, "given.nc": targets, "one.nc": ones}.items():
        expected = analyzer.attribute(pixels, target=target)
        found = answers[name]
        assert found["relevance"].dims == expected["relevance"].dims
        assert_close(found["relevance"], expected["relevance"])
        xr.testing.assert_identical(found["input"].drop_attrs(), expected["input"])
        assert_close(found["prediction"], predicted)
        if target is None:
            assert "target" not in found
        else:
            xr.testing.assert_identical(found["target"], expected["target"])
    # The maps of given outputs are others.
    different = np.abs(answers["given.nc"]["relevance"] - answers["largest.nc"]["relevance"])
    assert float(different.max()) > 0.01


def test_served_numbers_do_not_depend_on_the_batch_size(answers):
    whole, parts = answers["whole.nc"], answers["largest.nc"]
    for name in ("relevance", "prediction"):
        assert_close(parts[name], whole[name])


def test_several_inputs_and_outputs(answers, exported):
    analyzer, inputs = exported[1]["double"]
    found = answers["double.nc"]
    expected = analyzer.attribute(list(inputs.values()), target=3)
    predicted = analyzer.user_model.predict(list(inputs.values()), verbose=0)
    for name in inputs:
        for variable in (f"relevance_{name}", f"input_{name}"):
            assert found[variable].dims == expected[variable].dims
            assert_close(found[variable], expected[variable])
    for name, value in zip(("kind", "place"), predicted, strict=True):
        assert found[f"prediction_{name}"].dims == ("sample", f"output_index_{name}")
        assert_close(found[f"prediction_{name}"], value)


def test_attributes_say_where_the_numbers_come_from(answers, exported):
    attributes = answers["given.nc"].attrs
    assert attributes["saved_model"] == str(exported[0] / "single")
    fingerprint = tf.saved_model.experimental.read_fingerprint(str(exported[0] / "single"))
    assert attributes["fingerprint"] == fingerprint.singleprint()
    assert attributes["signature"] == "explain"
    dataset = exported[1]["single"][0].attribute(np.zeros((1, 8, 8, 3)))
    assert dataset.attrs["analyzer"] == "lrp.epsilon"
    for name in ("analyzer", "config", "assignment"):
        assert attributes[name] == dataset.attrs[name]
    assert attributes["exported_by"] == dataset.attrs["versions"]
    assert answers["largest.nc"].attrs["signature"] == "serving_default"
    versions = json.loads(attributes["versions"])
    ours = results.versions()
    assert versions == {name: ours[name] for name in ("python", "tensorflow", "numpy", "xarray")}
    assert "conservation_error" in attributes["notes"]
    assert attributes["fingerprint"] != answers["double.nc"].attrs["fingerprint"]


def test_a_saved_model_that_does_not_say_what_it_is(serving, tmp_path):
    attributes = serving.describe(object(), tmp_path, "serving_default")
    assert attributes["analyzer"] == "unknown" and attributes["fingerprint"] == "none"
    assert json.loads(attributes["config"]) == {}


@pytest.fixture
def ask(serving, exported, tmp_path, monkeypatch, capsys):
    """Runs the script in this process on arrays; returns the message of its error."""
    monkeypatch.chdir(tmp_path)

    def ask(*options, model="single", out="out.nc", source="given.npz", **arrays):
        if arrays:
            np.savez("given.npz", **arrays)
        with pytest.raises(SystemExit) as stopped:
            serving.main([str(exported[0] / model), str(source), "--out", str(out), *options])
        assert not pathlib.Path("out.nc").exists()
        assert not list(tmp_path.glob(".out*"))
        return str(stopped.value)

    return ask


def test_what_is_no_saved_model(ask, exported, tmp_path):
    np.save("x.npy", np.zeros((1, 8, 8, 3)))
    message = ask(source="x.npy", model="nowhere")
    assert "nowhere is no SavedModel: there is no such folder" in message
    assert "`tfexplain export` wrote" in message
    (tmp_path / "empty").mkdir()
    assert "it holds no saved_model.pb" in ask(source="x.npy", model=tmp_path / "empty")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "saved_model.pb").write_bytes(b"\x00damaged")
    assert "damaged cannot be loaded" in ask(source="x.npy", model=damaged)
    other = tf.Module()
    other.function = tf.function(lambda x: x, input_signature=[tf.TensorSpec((None, 3))])
    tf.saved_model.save(other, tmp_path / "other", signatures=other.function)
    message = ask(source="x.npy", model=tmp_path / "other")
    assert "has the signatures ['serving_default'], and 'serving_default' with an output" in message


def test_what_does_not_fit_the_model(ask):
    good = np.zeros((2, 8, 8, 3))
    message = ask(x=np.zeros((2, 9, 8, 3)))
    assert "'pixels' has shape (2, 9, 8, 3); the model takes (n, 8, 8, 3). Reshape" in message
    assert "A single sample x needs the axis of samples in front, x[None]" in ask(x=good[0])
    bad = good.copy()
    bad[1, 3, 3, 0] = np.nan
    assert "sample 1 of 'pixels' holds NaN" in ask(x=bad)
    assert "not finite in float32" in ask(x=good + 1e300)
    assert "is complex128. Expected numbers" in ask(x=good + 1j)
    assert "so many samples: {'pixels': 0}" in ask(x=good[:0])
    message = ask(image=good[:, :6, :6, :2], other=good, model="double")
    assert "expected ['image', 'numbers'], the inputs of the model. numbers is missing" in message
    message = ask(image=good[:, :6, :6, :2], numbers=np.zeros((3, 3)), model="double")
    assert "{'image': 2, 'numbers': 3}. Expected as many of each input" in message


def test_targets_that_do_not_exist(ask):
    x = np.zeros((2, 8, 8, 3))
    assert "Targets go from 3 to 3. Expected indices of outputs, 0 to 2" in ask(
        "--target", "3", x=x
    )
    assert "Targets go from -1 to -1" in ask("--target=-1", x=x)
    assert "--target is 'cat'. Expected the index" in ask("--target", "cat", x=x)
    assert "go from 0 to 7" in ask(x=x, target=[0, 7])
    message = ask(x=x, target=[0, 1, 2])
    assert "'target' is int64 of shape (3,). Expected one integer for each of the 2" in message
    assert "'target' is float64" in ask(x=x, target=[0.0, 1.0])


def test_files_that_cannot_be_read_or_written(ask, tmp_path):
    x = np.zeros((2, 8, 8, 3))
    assert "There is no file given.npz" in ask()
    pathlib.Path("given.npz").write_text("no archive")
    assert "given.npz cannot be read" in ask()
    np.save("objects.npy", np.array([None]))
    assert "objects.npy cannot be read" in ask(source="objects.npy")
    assert "the folder missing does not exist. Make it first" in ask(x=x, out="missing/out.nc")
    assert "it is a folder" in ask(x=x, out=tmp_path)
    assert "given.npz is the file of inputs" in ask(x=x, out="./given.npz")
    assert "--batch-size is 0. Expected at least 1" in ask("--batch-size", "0", x=x)


def test_a_failure_while_writing_leaves_nothing(serving, exported, tmp_path, monkeypatch):
    out = tmp_path / "out.nc"
    out.write_text("older")

    def fails(self, path, engine):
        pathlib.Path(path).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fails)
    with pytest.raises(SystemExit, match="no space left"):
        serving.main(
            [str(exported[0] / "single"), str(exported[0] / "pixels.npy"), "--out", f"{out}"]
        )
    assert out.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["out.nc"]


def test_progress_goes_to_stderr(serving, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serving, "PROGRESS", 0.0)
    inputs = [str(exported[0] / "single"), str(exported[0] / "pixels.npy")]
    serving.main([*inputs, "--out", str(tmp_path / "out.nc"), "--batch-size", "4"])
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-2:] == ["4 of 7 samples", "7 of 7 samples"]
    assert "of 7 samples" not in shown.out


def test_dtypes_that_netcdf_has_not(serving):
    inputs = {"x": np.ones((2, 4), "int32")}
    relevance = tf.constant([[0.5] * 4] * 2, "bfloat16").numpy()
    found = {"relevance": relevance, "prediction": np.ones((2, 3, 3), "float16")}
    dataset = serving.as_dataset(inputs, None, found, {})
    assert dataset["relevance"].dims == ("sample", "vector", "feature")
    assert dataset["relevance"].dtype == dataset["prediction"].dtype == np.float32
    assert dataset["prediction"].shape == (2, 9)
    assert float(dataset["relevance"].min()) == 0.5


# --- migrate_innvestigate.py ---------------------------------------------------------------------


def test_migration(tmp_path, capsys):
    module = load("migrate_innvestigate")
    out = tmp_path / "maps.png"
    found = module.main(["--out", str(out)])
    with Image.open(out) as picture:
        assert min(picture.size) > 200
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50
    assert found["explained logit of the first digit"] > 1 > found["its probability"]
    assert found["change by naming the largest output"] < 1e-6
    assert found["sum over all outputs, against one start from all"] < 1e-5
    assert found["negative values of the absolute gradient"] == 0
    assert 0.5 < found["relevance at the layer dense, as a share of the logit"] < 2
    assert found["change by saving and loading"] == 0
    assert found["change of gradient by compat"] < 1e-5
    assert found["change of lrp.alpha_2_beta_1 by compat"] > 0.01
    shown = capsys.readouterr().out
    assert all(title in shown for title in found) and "maps of 3 digits" in shown


def test_migration_names_each_renamed_option():
    """What `create_analyzer` says of innvestigate's options stands in the example as well."""
    from tfexplain.analyzers.registry import RENAMED

    text = (EXAMPLES / "migrate_innvestigate.py").read_text(encoding="utf-8")
    assert not [name for name in RENAMED if name not in text]


# --- custom_rule.py ------------------------------------------------------------------------------


def test_custom_rule_is_its_formula(rule_example):
    """Dense layers, by the formula; two inputs of either sign."""
    generator = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    kernel, bias = generator.normal(size=(6, 4)), generator.normal(size=4)
    model.set_weights([kernel, bias])
    x = generator.normal(size=(3, 6))
    composite = tfexplain.composites.Composite(
        "mine", [((keras.layers.Dense,), rule_example.Magnitude())]
    )
    analyzer = tfexplain.create_analyzer(
        "lrp.composite", model, composite=composite, dtype="float64"
    )
    magnitude = np.abs(x[:, :, None] * kernel)  # (n, i, j)
    weights = model.get_weights()
    logits = x.astype("float64") @ weights[0].astype("float64") + weights[1]
    shares = magnitude / magnitude.sum(axis=1, keepdims=True) * logits[:, None]
    found = analyzer.analyze(x, target="all")
    np.testing.assert_allclose(found, shares.swapaxes(1, 2), rtol=1e-5, atol=1e-6)


def test_custom_rule(rule_example, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "folder"
    dataset = rule_example.main(["--out", str(out)])
    shown = capsys.readouterr().out
    assert re.search(r"^conv1 +Conv2D +Magnitude\(\)$", shown, re.MULTILINE)
    assert re.search(r"^dense +Dense +Epsilon", shown, re.MULTILINE)
    assert "maps differ by 0." in shown
    rules = {row[0]: row[2] for row in json.loads(dataset.attrs["assignment"])}
    assert rules["conv2"] == "Magnitude()"
    # What the first layer keeps, in the printed account, is what the map of the digit adds up to.
    (kept,) = re.findall(r"^conv1 +[\d.]+ +([\d.]+) ", shown, re.MULTILINE)
    total = float(dataset["relevance"].isel(sample=0).sum())
    assert abs(float(kept) - total) < 1e-4  # four decimals are printed
    with Image.open(out / "custom_rule.png") as picture:
        assert min(picture.size) > 200

    x = dataset["input"].values
    served = tf.saved_model.load(str(out / "custom_rule.served")).signatures["serving_default"]
    found = served(digit=tf.constant(x))["relevance"].numpy()
    expected = dataset["relevance"].squeeze("vector").values
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    # Where the rule is not defined, loading says what to do.
    monkeypatch.delitem(RULES, "Magnitude")
    message = "no rule 'Magnitude'.*import the module that defines it"
    with pytest.raises(ValueError, match=message):
        tfexplain.load_analyzer(out / "custom_rule.tfx")


# --- custom_audit.py -----------------------------------------------------------------------------


@pytest.fixture
def audit_example():
    """The module of the custom audit, which other tests do not see."""
    yield load("custom_audit")
    del tfexplain.AUDITS["border"]


def test_custom_audit(audit_example, tmp_path, capsys):
    found = audit_example.main(["--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert shown.split()[:3] == ["method", "trust", "tests"] and "report.html" in shown
    dataset, examples = found.datasets["border"], found.datasets["examples"]
    maps = np.abs(examples.relevance.sel(analyzer="lrp.epsilon").sum("channel"))
    inside = maps[:, 1:-1, 1:-1].sum(("height", "width"))
    expected = 1 - (inside / maps.sum(("height", "width"))).values
    shares = dataset.border.sel(analyzer="lrp.epsilon").values[examples.example.values]
    np.testing.assert_allclose(shares, expected, rtol=1e-6)
    verdict = found.verdict()
    for row in verdict.rows:
        median = float(dataset.border.sel(analyzer=row.method).median())
        assert row.trust == ("trustworthy" if median < 0.5 else "not trustworthy")
    page = (tmp_path / "custom_audit" / "report.html").read_text(encoding="utf-8")
    assert "Relevance at the border" in page and "share of the relevance at the border" in page


# --- audit_keras_application.py ------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A folder with three photographs of noise."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.jpg"):
        Image.fromarray(generator.integers(0, 256, (50, 40, 3), np.uint8)).save(folder / name)
    return folder


def tiny(weights, input_shape):
    """In place of an application: what the audits need of it, built in no time."""
    assert weights is None
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            # All logits are positive: maps of lrp.flat are alike but for a factor.
            keras.layers.Dense(5, activation="softmax", bias_initializer="ones", name="scores"),
        ],
        name="tiny",
    )
    model.build((None, *input_shape))
    return model


def test_audit_of_an_application(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(keras.applications, "Tiny", tiny, raising=False)
    module = load("audit_keras_application")
    out = tmp_path / "audit"
    arguments = [str(photos), "--application", "Tiny", "--preprocess", "mobilenet"]
    arguments += ["--weights", "none", "--size", "16", "--images", "2", "--out", str(out)]
    arguments += ["--methods", "gradient, lrp.flat", "--audits", "random_logit,entropy"]
    found = module.main(arguments)
    shown = capsys.readouterr().out
    assert "methods: 2, audits: 2" in shown and str(out / "report.html") in shown
    assert shown.startswith("note: 2 of 3 images, drawn at random")
    head, *rows = shown.splitlines()[2:5]
    assert head.split()[:3] == ["method", "trust", "tests"]
    trust = {row.method: row.trust for row in found.verdict().rows}
    short = {"trustworthy": "yes", "not trustworthy": "no"}
    for row, (name, word) in zip(rows, trust.items(), strict=True):
        assert re.match(rf"{re.escape(name)} +{short[word]} +\d/1 ", row)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "2 methods were audited on 2 of 3 samples" in text and str(photos) in text
    kept = report.load(out)
    assert kept.verdict().methods == found.verdict().methods
    assert kept.record["samples"]["positions"] == [0, 1]
    assert trust == {"gradient": "trustworthy", "lrp.flat": "not trustworthy"}
    assert module.main([*arguments, "--fail-on", "gradient"]).verdict().methods == list(trust)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        module.main([*arguments, "--fail-on", "gradient", "--fail-on", "lrp.flat"])
    assert stopped.value.code == 3
    assert capsys.readouterr().err.strip() == "not trusted: lrp.flat"


def test_audit_of_mobilenet(photos, tmp_path):
    """The network of the docstring, with its own preprocessing, on the smallest input it takes."""
    module = load("audit_keras_application")
    arguments = [str(photos), "--weights", "none", "--size", "32", "--images", "1"]
    arguments += ["--methods", "gradient", "--audits", "entropy", "--out", str(tmp_path / "audit")]
    found = module.main(arguments)
    assert found.datasets["entropy"].sizes["sample"] == 1
    assert (tmp_path / "audit" / "report.html").is_file()


def test_a_stopped_audit_says_how_to_continue(photos, monkeypatch, capsys):
    monkeypatch.setattr(keras.applications, "Tiny", tiny, raising=False)

    def stopped(*arguments, **options):
        raise KeyboardInterrupt("stopped; the same call continues")

    monkeypatch.setattr(tfexplain, "audit", stopped)
    known = ["--application", "Tiny", "--preprocess", "mobilenet", "--size", "16"]
    with pytest.raises(SystemExit) as ended:
        load("audit_keras_application").main([str(photos), "--weights", "none", *known])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "stopped; the same call continues"


def test_mistakes_of_the_audit(photos, monkeypatch, tmp_path):
    monkeypatch.setattr(keras.applications, "Tiny", tiny, raising=False)
    module = load("audit_keras_application")
    monkeypatch.chdir(tmp_path)

    def message(*options, data=photos):
        with pytest.raises(SystemExit) as stopped:
            module.main([str(data), "--weights", "none", *options])
        return str(stopped.value)

    known = ["--application", "Tiny", "--preprocess", "mobilenet", "--size", "16"]
    assert "has no 'MobilNet'" in message("--application", "MobilNet", "--preprocess", "mobilenet")
    assert "preprocessing of Tiny is not known. Give --preprocess" in message(*known[:2])
    assert "There is no analyzer 'lrp.zz'" in message("--methods", "lrp.zz")
    assert "--fail-on lrp.z is not among --methods" in message("--fail-on", "lrp.z")
    assert "inputs of size 3 cannot be built" in message("--size", "3")
    assert "The data are 'nowhere'. There is no such file" in message(*known, data="nowhere")
    assert not pathlib.Path("audit").exists()
