"""The command `audit`, in the process: data of all kinds, exit statuses, what it writes."""

import json
import os
import pathlib
import re

import keras
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tfexplain import audits, cli, report

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUICK = ("--quick", "--methods", "gradient,lrp.z", "--audits", "entropy")
FUNCTIONS = """
import numpy as np
import tensorflow as tf

x = np.arange(60, dtype="float32").reshape(12, 5)
y = np.arange(12) % 3

def batches():
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(5)

def one_hot():
    return tf.data.Dataset.from_tensor_slices((x, np.eye(3)[y]))

def inputs():
    return tf.data.Dataset.from_tensor_slices(x).repeat()

def empty():
    return tf.data.Dataset.from_tensor_slices((x, y)).take(0)

def triple():
    return tf.data.Dataset.from_tensor_slices((x, y, y))

def arrays():
    return x, y

def text():
    return "nothing"

def broken():
    raise RuntimeError("no disk")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network for images, one for tables, and data of all kinds."""
    path = tmp_path_factory.mktemp("audit")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(4, "relu"), layers.Dense(3)]
    ).save(path / "images.keras")
    keras.Sequential([keras.Input((5,)), layers.Dense(6, "relu"), layers.Dense(3, "softmax")]).save(
        path / "table.keras"
    )
    generator = np.random.default_rng(0)
    for place, name in enumerate(("cat", "dog", "eel")):
        (path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            pixels = generator.integers(0, 255, (6, 6), "uint8")
            Image.fromarray(pixels).save(path / "photos" / name / f"{place}{number}.png")
    x = generator.normal(size=(4, 5)).astype("float32")
    np.save(path / "x.npy", x)
    np.savez(path / "xy.npz", x=x, y=[2, 1, 0, 0])
    rows = ["a,b,label,c,d,e"]
    rows += [
        ",".join([*map(str, row[:2]), name, *map(str, row[2:])])
        for row, name in zip(x, "usvu", strict=True)
    ]
    (path / "named.csv").write_text("\n".join(rows))
    (path / "plain.csv").write_text("\n".join(",".join(map(str, [*row, 1])) for row in x))
    (path / "functions_of_audits.py").write_text(FUNCTIONS)
    return path


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs the command in a folder of links to models and data."""
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0, settings=QUICK):
        result = CliRunner().invoke(
            cli.app, ["audit", *map(str, arguments), *settings], catch_exceptions=False
        )
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return plain(result.output)

    return run


def plain(text):
    """Output without wrapping, colours and boxes."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


# --- what it writes ---


def test_it_writes_results_record_and_verdict(run, folder):
    said = run("table.keras", "xy.npz", "--out", "out", "--seed", 3)
    assert sorted(os.listdir("out")) == ["audit.json", "report.html", "results", "verdict.json"]
    assert os.listdir("out/results") == ["entropy.nc"]
    assert "2 methods, 1 parts, about" in said and "seconds here" in said
    found = report.load("out")
    model = keras.saving.load_model(folder / "table.keras")
    x = np.load(folder / "x.npy")
    expected = report.audit(
        model, x, [2, 1, 0, 0], methods=["gradient", "lrp.z"], audits="entropy", preset="quick"
    )
    np.testing.assert_array_equal(
        found.datasets["entropy"].entropy, expected.datasets["entropy"].entropy
    )
    assert found.record["settings"]["seed"] == 3
    assert found.record["about"]["data"] == "xy.npz"
    verdict = json.loads(pathlib.Path("out/verdict.json").read_text())
    assert [row["method"] for row in verdict["methods"]] == ["gradient", "lrp.z"]


def test_a_stopped_command_says_how_to_continue(run, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(audits, "entropy", stop)
        said = run("table.keras", "x.npy", "--out", "out", code=130)
    assert "stopped in the part 'entropy'" in said and "continues" in said
    run("table.keras", "x.npy", "--out", "out")


def test_what_does_not_fit_is_listed(run):
    settings = ("--quick", "--methods", "gradient,grad_cam", "--audits", "random_logit,entropy")
    said = run("table.keras", "x.npy", "--images", 2, settings=settings)
    assert "left out: grad_cam: grad_cam needs" in said
    assert "2 of 4 samples, drawn at random (seed 0), are audited" in said
    assert "left out: the part random_logit: the structural similarity needs maps" in said
    assert os.path.exists("tfexplain-audit/results/entropy.nc")


# --- a check in somebody's CI ---


DECIDED = ("--quick", "--methods", "gradient,grad_cam", "--audits", "cosine_convergence")


def test_a_method_that_is_not_trusted_fails_the_command(run):
    arguments = ("table.keras", "x.npy", "--out", "out", "--fail-on", "gradient")
    run(*arguments, "--directions", 1, settings=DECIDED)
    said = run(*arguments, "--directions", 0, code=3, settings=DECIDED)
    assert "gradient is not trustworthy: directions (" in said
    assert json.loads(pathlib.Path("out/verdict.json").read_text())["thresholds"]["directions"] == 0


def test_a_method_that_is_not_known_to_be_trusted_fails_the_command(run):
    said = run("table.keras", "x.npy", "--fail-on", "lrp.z", code=3)
    assert "lrp.z is undecided: no test was measured" in said
    arguments = ("table.keras", "x.npy", "--out", "two", "--fail-on", "grad_cam")
    said = run(*arguments, code=3, settings=DECIDED)
    assert "grad_cam was not audited: grad_cam needs" in said


# --- data ---


def targets(source, model="table.keras", **options):
    """The labels that are read from a source."""
    given = {"count": 8, **options}
    shape, outputs = ((6, 6, 1), 3) if model == "images.keras" else ((5,), 3)
    return report.load_data(source, shape, outputs, **given)


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("here")
def test_class_folders_are_labels():
    data = targets("photos", "images.keras")
    assert data.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.x.shape == (6, 6, 6, 1) and data.pixels.dtype == np.uint8
    np.testing.assert_array_equal(data.preprocess(data.pixels), data.x)
    scaled = targets("photos", "images.keras", preprocess="scale=0.5,mean=1")
    np.testing.assert_allclose(scaled.x, data.x / 2 - 1)
    np.testing.assert_allclose(scaled.preprocess(scaled.pixels), scaled.x)
    assert targets("photos", "images.keras", labels="none").y is None
    some = targets("photos", "images.keras", count=2, seed=1)
    assert len(some.x) == 2 and "2 of 6 images, drawn at random" in some.notes[0]
    places = [next(i for i in range(6) if (data.x[i] == image).all()) for image in some.x]
    np.testing.assert_array_equal(some.y, data.y[places])


@pytest.mark.usefixtures("here")
def test_class_folders_follow_the_names_of_the_labels(tmp_path):
    (tmp_path / "names.txt").write_text("eel\nnewt\ncat\ndog\n")
    data = report.load_data("photos", (6, 6, 1), 4, labels=str(tmp_path / "names.txt"), count=8)
    assert data.y.tolist() == [2, 2, 3, 3, 0, 0]
    unknown = report.load_data("photos", (6, 6, 1), 4, count=8)
    assert unknown.y is None and "are 3, and the model has 4 outputs" in unknown.notes[0]
    (tmp_path / "names.json").write_text('["eel", "cat"]')
    with pytest.raises(ValueError, match="dog are not among the names"):
        targets("photos", "images.keras", labels=str(tmp_path / "names.json"))


@pytest.mark.usefixtures("here")
def test_tables_hold_labels_in_a_column(folder):
    x = np.load("x.npy")
    named = targets("named.csv")
    np.testing.assert_allclose(named.x, x)
    assert named.y.tolist() == [1, 0, 2, 1]
    plain_table = targets("plain.csv")
    np.testing.assert_allclose(plain_table.x, x)
    assert plain_table.y.tolist() == [1] * 4
    scaled = targets("plain.csv", preprocess="scale=2")
    np.testing.assert_allclose(scaled.x, 2 * x)


@pytest.mark.usefixtures("here")
def test_functions_return_datasets():
    for name in ("batches", "one_hot", "arrays"):
        data = targets(f"functions_of_audits:{name}")
        count = 12 if name == "arrays" else 8
        np.testing.assert_array_equal(data.x, np.arange(60).reshape(12, 5)[:count])
        assert data.y.tolist() == [place % 3 for place in range(count)]
    inputs = targets("functions_of_audits:inputs", preprocess="scale=0.5")
    assert inputs.y is None and inputs.x[0, 1] == 0.5
    assert "the first 8 samples" in inputs.notes[0]


@pytest.mark.usefixtures("here")
def test_labels_of_arrays(tmp_path):
    assert targets("xy.npz").y.tolist() == [2, 1, 0, 0]
    assert targets("x.npy").y is None
    np.save(tmp_path / "y.npy", [1, 1, 2, 0])
    assert targets("x.npy", labels=str(tmp_path / "y.npy")).y.tolist() == [1, 1, 2, 0]
    np.save(tmp_path / "y.npy", np.eye(3)[[1, 1, 2, 0]])
    assert targets("x.npy", labels=str(tmp_path / "y.npy")).y.tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("nothing", {}, ValueError, "There is no such file. Expected a folder of images"),
        ("x.txt", {}, ValueError, "Expected a folder of images"),
        ("empty", {}, ValueError, "holds no image"),
        ("missing.csv", {}, FileNotFoundError, "missing.csv does not exist"),
        ("bad.csv", {}, ValueError, "row 2 of the data has 'none', no number"),
        ("narrow.csv", {}, ValueError, "1 rows of 2 columns. The model takes 5"),
        ("functions_of_audits:empty", {}, ValueError, "an empty Dataset"),
        ("functions_of_audits:triple", {}, TypeError, "elements of 3 parts"),
        ("functions_of_audits:text", {}, TypeError, "returned str"),
        ("functions_of_audits:broken", {}, ValueError, "RuntimeError: no disk"),
        ("functions_of_audits:absent", {}, ValueError, "no function 'absent'"),
        ("x.npy", {"labels": "cats"}, ValueError, "The labels are 'cats'"),
        ("x.npy", {"labels": "cats.txt"}, FileNotFoundError, "cats.txt does not exist"),
        ("x.npy", {"labels": "short.npy"}, ValueError, "4 samples and labels of shape"),
        ("x.npy", {"labels": "large.npy"}, ValueError, "go from 0 to 3. Expected"),
        ("x.npy", {"labels": "real.npy"}, ValueError, "are float64. Expected class indices"),
        ("x.npy", {"labels": "list.json"}, ValueError, "no list of names"),
        ("x.npy", {"labels": "twice.txt"}, ValueError, "must be different names"),
        ("photos", {"labels": "short.npy"}, ValueError, "one label per sample, and the samples"),
    ],
)
def test_wrong_data(folder, tmp_path, monkeypatch, source, options, error, message):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("1,2,3,4,5\n1,2,none,4,5\n")
    (tmp_path / "narrow.csv").write_text("1,2\n")
    (tmp_path / "list.json").write_text('{"cat": 1}')
    (tmp_path / "twice.txt").write_text("cat\ncat\n")
    np.save("short.npy", [1, 2])
    np.save("large.npy", [0, 1, 2, 3])
    np.save("real.npy", [0.5, 1, 2, 0])
    model = "images.keras" if source == "photos" else "table.keras"
    with pytest.raises(error, match=message):
        targets(source, model, **options)


@pytest.mark.usefixtures("here")
def test_a_table_for_images_is_refused():
    with pytest.raises(ValueError, match="is a table, and the model takes inputs of shape"):
        targets("plain.csv", "images.keras")


# --- bad arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.keras", "x.npy"), "nothing.keras does not exist"),
        (("table.keras", "nothing.npy"), "nothing.npy does not exist"),
        (("table.keras", "x.npy", "--thorough"), "--quick and --thorough are given"),
        (("table.keras", "x.npy", "--fail-on", "deconvnet"), "is not among --methods"),
        (("table.keras", "x.npy", "--images", 0), "--images"),
        (("table.keras", "x.npy", "--directions", 2), "--directions"),
        (("table.keras", "x.npy", "--seed", -1), "--seed"),
        (("table.keras", "x.npy", "--labels", "cats"), "The labels are 'cats'"),
        (("table.keras", "x.npy", "--preprocess", "vgg"), "The preprocessing is 'vgg'"),
        (("table.keras", "x.npy", "--out", "x.npy"), "is a file"),
        (("images.keras", "x.npy"), "The model takes (n, 6, 6, 1)"),
    ],
)
def test_bad_arguments_are_refused_before_work(run, arguments, message):
    assert message in run(*arguments, code=2)
    assert not os.path.exists("tfexplain-audit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--methods", "gradeint"), "no analyzer 'gradeint'. Did you mean 'gradient'"),
        (("--audits", "spectra"), "no part 'spectra' of an audit. Did you mean 'spectrum'"),
        (("--fail-on", "gradeint"), "no analyzer 'gradeint'"),
        (("--methods", ","), "methods is empty"),
    ],
)
def test_unknown_names_are_refused_before_work(run, settings, message):
    assert message in run("table.keras", "x.npy", code=2, settings=settings)
    assert not os.path.exists("tfexplain-audit")


def test_another_audit_in_the_folder_is_refused(run):
    run("table.keras", "x.npy", "--out", "out")
    said = run("table.keras", "x.npy", "--out", "out", "--seed", 1, code=2)
    assert "holds another audit; they differ in seed" in said


def test_images_of_a_folder_are_audited_with_inpainting(run):
    settings = ("--quick", "--methods", "gradient", "--audits", "pixel_flipping,maps")
    run("images.keras", "photos", "--preprocess", "scale=0.004", settings=settings)
    found = report.load("tfexplain-audit")
    assert found.datasets["pixel_flipping"].attrs["fill"] == "telea"
    assert found.datasets["maps"].target.values.tolist() == [0, 0, 1, 1, 2, 2]
