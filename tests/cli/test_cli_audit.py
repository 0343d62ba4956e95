"""The command `audit`, in the process: data of all kinds, exit statuses, what it writes."""

import json
import os
import pathlib
import re

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.helpers.audit_networks import write_data
from tfexplain import audits, cli, report

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUICK = ("--quick", "--methods", "gradient,lrp.z", "--audits", "entropy")


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
    write_data(path)
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
    assert "methods: 2, audits: 1, passes of the model: about" in said and " s here" in said
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
        patch.setattr(audits.Entropy, "run", stop)
        said = run("table.keras", "x.npy", "--out", "out", code=130)
    assert "stopped in 'entropy'" in said and "continues" in said
    run("table.keras", "x.npy", "--out", "out")


def test_what_does_not_fit_is_listed(run):
    settings = ("--quick", "--methods", "gradient,grad_cam", "--audits", "random_logit,entropy")
    said = run("table.keras", "x.npy", "--images", 2, settings=settings)
    assert "left out: grad_cam: grad_cam needs" in said
    assert "2 of 4 samples, drawn at random (seed 0), are audited" in said
    assert "left out: the audit random_logit: the structural similarity compares maps" in said
    assert os.path.exists("tfexplain-audit/results/entropy.nc")


# --- a check in somebody's CI ---


DECIDED = ("--quick", "--methods", "gradient,grad_cam", "--audits", "cosine_convergence")


def test_one_of_several_outputs_is_audited(run):
    inputs = keras.Input((5,))
    heads = [keras.layers.Dense(n, name=name)(inputs) for name, n in (("few", 2), ("7", 4))]
    keras.Model(inputs, heads).save("heads.keras")
    options = ("--methods", "gradient", "--audits", "examples")
    for index, (name, count) in enumerate((("few", 2), ("1", 4), ("7", 4))):
        run("heads.keras", "x.npy", "--output", name, *options, "--out", index, settings=())
        found = report.load(pathlib.Path(str(index))).datasets["examples"]
        assert found.sizes["output_index"] == count
    wanted = "has 2 outputs (few, 7); choose one with"
    assert wanted in run("heads.keras", "x.npy", *options, code=2)
    assert "has no output 'many'" in run("heads.keras", "x.npy", "--output", "many", code=2)


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
        (("--audits", "spectra"), "no audit 'spectra'. Did you mean 'spectrum'"),
        (("--fail-on", "gradeint"), "no analyzer 'gradeint'"),
        (("--fail-on", "lrp"), "--fail-on lrp is another name of a method"),
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
    settings = ("--quick", "--methods", "gradient", "--audits", "pixel_flipping,examples")
    run("images.keras", "photos", "--preprocess", "scale=0.004", settings=settings)
    found = report.load("tfexplain-audit")
    about = found.record["about"]
    assert about["given"] == 6 and about["names"][2:4] == ["dog/10.png", "dog/11.png"]
    assert found.datasets["pixel_flipping"].attrs["fill"] == "telea"
    assert found.datasets["examples"].target.values.tolist() == [0, 0, 1, 1, 2, 2]
