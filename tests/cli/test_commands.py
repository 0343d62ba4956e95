"""The command line with nothing replaced: real models, analyzers and files."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import typer
from PIL import Image
from typer.testing import CliRunner

from tfexplain import cli, demo, results
from tfexplain.analyzers import ANALYZERS, create_analyzer

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = ("cat.png", "dog.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model and two images."""
    path = tmp_path_factory.mktemp("commands")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(3, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax", name="scores"),
        ]
    ).save(path / "m.keras")
    generator = np.random.default_rng(0)
    for name in IMAGES:
        Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8)).save(path / name)
    return path


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs a command; the current folder is empty but for links to the model and the images."""
    for file in ("m.keras", *IMAGES):
        (tmp_path / file).symlink_to(folder / file)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def model(folder):
    return keras.models.load_model(folder / "m.keras")


@pytest.fixture
def x(folder):
    """The images after scale=0.01."""
    pixels = np.stack([np.asarray(Image.open(folder / name), "float32") for name in IMAGES])
    return pixels * np.float32(0.01)


# --- commands ------------------------------------------------------------------------------------


def test_explain_writes_the_numbers_of_analyze(run, model, x):
    methods = {"lrp.epsilon": {"epsilon": 0.5}, "input_t_gradient": {}}
    run(
        *("explain", "m.keras", *IMAGES, "--preprocess", "scale=0.01", "--target", 2),
        *(part for name in methods for part in ("--method", name)),
        *("--option", "lrp.epsilon:epsilon=0.5", "--out", "out"),
    )
    expected = {f"{name}.nc" for name in methods}
    for image in ("cat", "dog"):
        for name in methods:
            expected |= {f"{image}_{name}.png", f"{image}_{name}_overlay.png"}
    assert set(os.listdir("out")) == expected
    for name, options in methods.items():
        dataset = results.load(f"out/{name}.nc")
        analyzer = create_analyzer(name, model, **options)
        relevance = analyzer.analyze(x, target=2)
        assert np.abs(relevance).max() > 0
        np.testing.assert_allclose(dataset["relevance"][:, 0], relevance, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(dataset["input"], x, rtol=1e-6)
        np.testing.assert_allclose(dataset["output"], analyzer.outputs(x), rtol=1e-4, atol=1e-6)
        assert (dataset["target"] == 2).all()
        assert list(dataset["sample"].values) == ["cat", "dog"]
    pictures = [np.asarray(Image.open(f"out/{name}")) for name in sorted(expected) if "png" in name]
    assert all(np.ptp(picture) > 100 for picture in pictures)
    # Each shows something else: the image below the map, another image, another method.
    assert len({picture.tobytes() for picture in pictures}) == len(pictures) == 8


def test_explain_the_probability(run, model, x):
    arguments = ("m.keras", *IMAGES, "--preprocess", "scale=0.01", "--method", "gradient")
    run("explain", *arguments, "--output-activation", "keep", "--out", "kept")
    run("explain", *arguments, "--out", "dropped")
    kept, dropped = (results.load(f"{name}/gradient.nc") for name in ("kept", "dropped"))
    np.testing.assert_allclose(kept["output"], model(x), rtol=1e-4, atol=1e-6)
    analyzer = create_analyzer("gradient", model, output_activation="keep")
    np.testing.assert_allclose(kept["relevance"][:, 0], analyzer.analyze(x), rtol=1e-4, atol=1e-7)
    ratio = np.abs(kept["relevance"]).max() / np.abs(dropped["relevance"]).max()
    assert ratio < 0.5  # the softmax flattens


def test_explain_refuses_before_it_writes(run, tmp_path):
    inputs = keras.Input((6, 6, 3))
    h = keras.layers.Flatten()(keras.ops.sort(inputs, axis=1))
    keras.Model(inputs, keras.layers.Dense(2)(h)).save("sorting.keras")
    before = sorted(os.listdir())
    for arguments, message in (
        (("m.keras", "--method", "lrp.epsilom"), "Did you mean 'lrp.epsilon'"),
        (("m.keras", "--method", "lrp.z", "--option", "epsilon=1"), "no option 'epsilon'"),
        (("sorting.keras", "--method", "lrp.z"), "(TopKV2)"),
    ):
        done = run("explain", arguments[0], "cat.png", *arguments[1:], "--out", "out", code=2)
        assert message in " ".join(done.stderr.split())
    assert sorted(os.listdir()) == before


def test_describe_prints_the_table_before_anything_is_computed(run, model, monkeypatch):
    def computes(*arguments, **options):
        raise AssertionError("describe built a reversed network")

    monkeypatch.setattr("tfexplain.analyzers.reversed.ReversedNetwork", computes)
    done = run("describe", "m.keras", "--method", "lrp.gamma", "--option", "gamma=0.5")
    rows = create_analyzer("lrp.gamma", model, gamma=0.5).describe().rows
    head, _, *lines = done.stdout.splitlines()
    assert head.split() == ["call", "operation", "rule"]
    assert [re.split(r"  +", line) for line in lines] == [list(row) for row in rows]
    assert "Gamma(gamma=0.5, bias='split')" in done.stdout


def test_export_writes_a_saved_model(run, model, x):
    pathlib.Path("served").mkdir()
    run("export", "m.keras", "served", "--method", "lrp.epsilon", "--option", "epsilon=0.1")
    signatures = tf.saved_model.load("served").signatures
    found = signatures["serving_default"](tf.constant(x))
    analyzer = create_analyzer("lrp.epsilon", model, epsilon=0.1)
    np.testing.assert_allclose(found["prediction"], model(x), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["relevance"], analyzer.analyze(x), rtol=1e-4, atol=1e-6)


def test_export_keeps_what_is_in_the_folder(run):
    folder = pathlib.Path("mine")
    folder.mkdir()
    for name in ("thesis.txt", "saved_model.pb"):
        (folder / name).write_text("mine")
        done = run("export", "m.keras", "mine", "--method", "lrp.z", code=2)
        assert "The folder mine is not empty. Give a new or an empty folder." in done.stderr
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "thesis.txt": "mine",
        "saved_model.pb": "mine",
    }
    done = run("export", "m.keras", "mine/thesis.txt", "--method", "lrp.z", code=2)
    assert "mine/thesis.txt is a file. Choose another folder" in " ".join(done.stderr.split())


def test_methods_prints_one_line_for_each(run):
    lines = run("methods").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(ANALYZERS)
    for line, entry in zip(lines, ANALYZERS.values(), strict=True):
        assert line.endswith(f"  {entry.summary}")


# --- help ----------------------------------------------------------------------------------------


def commands():
    return typer.main.get_command(cli.app).commands


HELP = """
import sys
from tfexplain.__main__ import main
for name in sys.argv[1:]:
    sys.argv[1:] = [name, "--help"]
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code, name
print("imported:", *sys.modules)
"""


def test_help_of_every_command_imports_nothing_that_takes_long():
    names = list(commands())
    assert set(names) >= {"demo", "explain", "methods", "describe", "export"}
    command = [sys.executable, "-c", HELP, *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(names)
    imported = set(done.stdout.split("imported:")[1].split())
    assert "typer" in imported  # the list is what it should be
    heavy = {"numpy", "tensorflow", "keras", "xarray", "matplotlib", "tfexplain.audits"}
    assert not imported & heavy


# --- demo ----------------------------------------------------------------------------------------


def test_samples_give_every_option_that_a_method_requires():
    (x_train, _), _ = demo.load_digits()
    for name, entry in ANALYZERS.items():
        assert set(entry.for_samples(x_train)) == set(entry.required), name
    assert ANALYZERS["deep_taylor.bounded"].for_samples(x_train) == {"low": 0.0, "high": 1.0}
    assert ANALYZERS["lrp.alpha_beta"].for_samples(x_train) == {"alpha": 3}


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    """The demonstration with every analyzer."""
    return demo.run(tmp_path_factory.mktemp("demo") / "out")


def test_demo_explains_by_every_analyzer(demonstration):
    assert demonstration.left_out == {}
    dataset = demonstration.dataset
    assert list(dataset["analyzer"].values) == list(ANALYZERS)
    relevance = dataset["relevance"].values
    assert relevance.shape == (len(ANALYZERS), 10, 8, 8, 1)
    assert np.isfinite(relevance).all()
    assert (np.abs(relevance).max(axis=(1, 2, 3, 4)) > 0).all()
    assert results.load(demonstration.data).identical(dataset)
    with Image.open(demonstration.picture) as picture:
        # A column for each method and one for the digits, a row for each digit.
        width, height = picture.size
        assert width / height == pytest.approx((len(ANALYZERS) + 1) / 10, rel=0.5)
        assert np.ptp(np.asarray(picture)) > 100


def test_what_the_demo_says_about_its_maps(demonstration):
    dataset = demonstration.dataset
    maps = {name: dataset["relevance"].sel(analyzer=name).values for name in ANALYZERS}
    product, z = maps["input_t_gradient"], maps["lrp.z"]
    logit = dataset["output"].values[np.arange(10), dataset["target"].values]
    np.testing.assert_allclose(z, product, atol=1e-4 * np.abs(product).max())
    error = np.abs(dataset["conservation_error"])
    for name in ("deep_taylor", "lrp.w_square", "lrp.flat"):
        assert (error.sel(analyzer=name) < 1e-4 * np.abs(logit)).all(), name
    assert (error.sel(analyzer="lrp.z") > 1e-3).any()


def test_the_demo_audits_its_explanations(demonstration, tmp_path):
    few = {name: demonstration.analyzers[name] for name in ("lrp.z", "lrp.z_plus")}
    plans = []
    found = demo.audit(
        demonstration._replace(analyzers=few), tmp_path / "out", announce=plans.append
    )
    assert plans[0].methods == tuple(few)
    assert found.record["samples"] == {"given": 10, "positions": list(range(10))}
    verdict = found.verdict()
    assert verdict["lrp.z"].trust == "trustworthy"
    # Positive contributions alone forget the class.
    assert verdict["lrp.z_plus"].cells["class"].word == "insensitive"
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "explained is digit 0" in text
    assert f"tfexplain demo --out {tmp_path / 'out'}" in text
