"""The command `koopman` on a tiny saved model, in the process, and what it writes and refuses."""

import inspect
import os
import re
import sys

import keras
import numpy as np
import pytest
import typer
import xarray as xr
from PIL import Image
from typer.testing import CliRunner

from tfexplain import cli, koopman

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUICK = ("--repeats", 2, "--steps", 3)
WRITTEN = ["block_credits.png", "feature_weights.png", "kernel_credits.png", "koopman.nc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a convolutional network, a network for tables, and inputs of both."""
    path = tmp_path_factory.mktemp("koopman")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(2, 3, activation="relu", name="conv"),
            layers.Flatten(name="flat"),
            layers.Dense(3, activation="softmax", name="scores"),
        ]
    ).save(path / "m.keras")
    keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(1)]).save(path / "t.keras")
    generator = np.random.default_rng(0)
    np.save(path / "x.npy", generator.normal(size=(40, 4, 4, 1)))
    np.save(path / "held.npy", generator.normal(size=(7, 4, 4, 1)))
    np.save(path / "few.npy", generator.normal(size=(2, 4, 4, 1)))
    np.save(path / "table.npy", generator.normal(size=(30, 5)))
    return path


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs the command; the current folder is empty but for links to models and inputs."""
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir())

    def run(*arguments, code=0):
        result = CliRunner().invoke(
            cli.app, ["koopman", *map(str, arguments)], catch_exceptions=False
        )
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        if code:
            assert set(os.listdir()) == before
        return result

    return run


def plain(text):
    """Output without wrapping, colours and boxes."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


# --- results -------------------------------------------------------------------------------------


def test_it_writes_what_the_library_returns(run, folder):
    done = run(
        *("m.keras", "x.npy", "--held-out", "held.npy", "--out", "out", *QUICK),
        *("--alignment", "gaussian", "--normalize", "--intercept", "--seed", 3, "--batch-size", 16),
        *("--output-activation", "keep", "--max-snapshots", 90, "--preprocess", "scale=0.5"),
    )
    assert sorted(os.listdir("out")) == WRITTEN
    dataset = xr.load_dataset("out/koopman.nc", engine="h5netcdf")
    expected = koopman.credit(
        keras.models.load_model(folder / "m.keras"),
        np.load("x.npy").astype("float32") / 2,
        held_out=np.load("held.npy").astype("float32") / 2,
        repeats=2,
        steps=3,
        alignment="gaussian",
        normalize=True,
        intercept=True,
        seed=3,
        batch_size=16,
        output_activation="keep",
        max_snapshots=90,
    )
    names = [f"held_{i}" for i in range(7)]
    xr.testing.assert_allclose(dataset, expected.assign_coords(sample=names), rtol=1e-6)
    for name in ("fit_alignment", "normalize", "fit_intercept", "seed", "output_activation"):
        assert dataset.attrs[name] == expected.attrs[name]
    assert dataset.attrs["model"] == "m.keras" and dataset.attrs["preprocess"] == "scale=0.5"
    for name in WRITTEN[:3]:
        with Image.open(f"out/{name}") as picture:
            assert min(picture.size) > 100 and np.ptp(np.asarray(picture)) > 100
    text = plain(done.stdout)
    for place, block in enumerate(("conv", "scores")):
        one = dataset.isel(block=place)
        row = (
            f"{block} {one.kind.item()} {('16→8', '8→3')[place]} {one.log_volume:.3g} "
            f"{one.log_volume_per_dimension:.3g} {one.log_volume_fixed_rank:.3g} "
            f"{one['rank']:.3g} {one.residual:.3g} {one.one_step_error:.3g}"
        )
        assert row in text
    share = f"{dataset.agreement[0].item():.0%} (mean operators)"
    assert share in text and "of 7 held-out inputs." in text
    assert f"out: {', '.join(WRITTEN)}." in text


def test_the_fit_itself_is_tested_without_held_out_inputs(run):
    done = run("m.keras", "x.npy", *QUICK)
    assert sorted(os.listdir("tfexplain-koopman")) == WRITTEN
    assert "of 40 inputs of the fit itself." in plain(done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        ("layers", ["conv", "flat", "scores"]),
        ("conv,scores", ["conv", "scores"]),
        ("flat", ["flat", "scores"]),
    ],
)
def test_partitions(run, partition, expected):
    run("m.keras", "x.npy", "--partition", partition, "--kernels", "none", *QUICK)
    dataset = xr.load_dataset("tfexplain-koopman/koopman.nc", engine="h5netcdf")
    assert dataset["block"].values.tolist() == expected


def test_kernels_and_reduction_can_be_chosen(run):
    done = run("m.keras", "x.npy", "--kernels", "none", "--out", "none", *QUICK)
    assert sorted(os.listdir("none")) == [WRITTEN[0], *WRITTEN[1::2]]
    assert "There are no credits of kernels." in plain(done.stdout)
    run("m.keras", "x.npy", "--kernels", "rows", "--max-dimension", 6, "--out", "rows", *QUICK)
    reduced = xr.load_dataset("rows/koopman.nc", engine="h5netcdf")
    assert "kernel_block_log_volume" not in reduced and "kernel_rows_log_volume" in reduced
    assert reduced["input_coordinates"].values.tolist() == [6, 6]
    run("m.keras", "x.npy", "--max-dimension", 0, "--out", "full", *QUICK)
    full = xr.load_dataset("full/koopman.nc", engine="h5netcdf")
    assert full["input_coordinates"].values.tolist() == [16, 8]


def test_a_table_and_a_single_output(run):
    done = run("t.keras", "table.npy", *QUICK)
    assert sorted(os.listdir("tfexplain-koopman")) == [WRITTEN[0], *WRITTEN[1::2]]
    # A single output is always the largest.
    assert "same largest output" not in done.stdout


def test_too_few_inputs(run):
    arguments = ("m.keras", "few.npy", "--kernels", "none", *QUICK)
    done = run(*arguments, code=2)
    text = plain(done.stderr)
    assert "error: Too few inputs: block 'conv' takes 16 numbers to 8" in text
    assert "max_dimension=2" in text and 'underdetermined="minimum_norm"' in text
    done = run(*arguments, "--underdetermined", "minimum_norm")
    text = plain(done.stderr)
    assert "warning: block 'conv' takes 16 numbers to 8" in text
    assert "2 inputs do not determine the operator, 8 are needed" in text
    notes = xr.load_dataset("tfexplain-koopman/koopman.nc", engine="h5netcdf").attrs["notes"]
    assert len(notes.splitlines()) == text.count("warning: ") == 2


def test_notes_fit_on_a_screen(run, monkeypatch):
    real = koopman.credit

    def noted(*arguments, **options):
        dataset = real(*arguments, **options)
        return dataset.assign_attrs(notes="\n".join(f"note {i}" for i in range(40)))

    monkeypatch.setattr(koopman, "credit", noted)
    done = run("m.keras", "x.npy", *QUICK)
    assert len(done.stderr.splitlines()) == 6
    assert "warning: 35 more notes are in the Dataset's attributes" in plain(done.stderr)


# --- continuing and failing ----------------------------------------------------------------------


def test_a_killed_run_continues(run, monkeypatch):
    module = sys.modules["tfexplain.koopman.credit"]
    real, computed = module.measure, []

    def measure(block, *rest):
        computed.append(block.name)
        if computed == ["conv", "scores"]:
            raise RuntimeError("no memory")
        return real(block, *rest)

    monkeypatch.setattr(module, "measure", measure)
    arguments = ("m.keras", "x.npy", *QUICK)
    done = CliRunner().invoke(cli.app, ["koopman", *map(str, arguments), "--resume", "run.nc"])
    assert done.exit_code == 1
    assert plain(done.stderr) == "error: RuntimeError: no memory"
    assert not os.path.exists("tfexplain-koopman")
    run(*arguments, "--resume", "run.nc")
    assert computed == ["conv", "scores", "scores"]
    run(*arguments, "--resume", "run.nc", "--out", "again")  # reads what is finished
    assert computed == ["conv", "scores", "scores"]
    run(*arguments, "--out", "fresh")
    continued, again, fresh = (
        xr.load_dataset(f"{name}/koopman.nc", engine="h5netcdf")
        for name in ("tfexplain-koopman", "again", "fresh")
    )
    xr.testing.assert_identical(continued, again)
    xr.testing.assert_equal(continued, fresh)
    done = CliRunner().invoke(
        cli.app, ["koopman", *map(str, arguments), "--resume", "run.nc", "--seed", "1"]
    )
    assert done.exit_code == 2
    assert "run.nc holds a run with other settings; they differ in seed." in plain(done.stderr)


def test_a_failure_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise ValueError("no fonts")

    monkeypatch.setattr("tfexplain.plotting.block_credits", fails)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "koopman.nc").write_text("mine")
    for out in ("out", "new/deep"):
        arguments = ["m.keras", "x.npy", "--out", out, *QUICK]
        done = CliRunner().invoke(cli.app, ["koopman", *map(str, arguments)])
        assert done.exit_code == 1
        assert plain(done.stderr) == "error: no fonts"
    assert os.listdir("out") == ["koopman.nc"] and not os.path.exists("new")
    assert (tmp_path / "out" / "koopman.nc").read_text() == "mine"


def test_debug_shows_the_traceback(run, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no memory")

    monkeypatch.setattr(koopman, "credit", fails)
    done = CliRunner().invoke(cli.app, ["koopman", "m.keras", "x.npy", "--debug"])
    assert done.exit_code == 1 and "Traceback" in done.stderr
    run("m.keras", "x.npy", code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'MODEL'"),
        (["m.keras"], "Missing argument 'DATA'"),
        (["n.keras", "x.npy"], "error: The model file n.keras does not exist. Did you mean"),
        (["m.keras", "y.npy"], "error: The image y.npy does not exist."),
        (["m.keras", "table.npy"], "The model takes (n, 4, 4, 1)."),
        (["m.keras", "x.npy", "--held-out", "table.npy"], "The model takes (n, 4, 4, 1)."),
        (["m.keras", "x.npy", "--partition", "weigths"], "Did you mean 'weights'"),
        (["m.keras", "x.npy", "--partition", "residual"], "the model has no layers beside each"),
        (["m.keras", "x.npy", "--partition", "conf,scores"], "no layer 'conf'. Did you mean 'conv"),
        (["m.keras", "x.npy", "--partition", "scores,conv"], "in the order in which they run"),
        (["m.keras", "x.npy", "--steps", "0"], "Invalid value for '--steps'"),
        (["m.keras", "x.npy", "--max-snapshots", "0"], "Invalid value for '--max-snapshots'"),
        (["m.keras", "x.npy", "--max-dimension", "-1"], "Invalid value for '--max-dimension'"),
        (["m.keras", "x.npy", "--repeats", "0"], "Invalid value for '--repeats'"),
        (["m.keras", "x.npy", "--alignment", "none"], "Invalid value for '--alignment'"),
        (["m.keras", "x.npy", "--kernels", "all"], "Invalid value for '--kernels'"),
        (["m.keras", "x.npy", "--underdetermined", "a"], "Invalid value for '--underdetermined'"),
        (["m.keras", "x.npy", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["m.keras", "x.npy", "--seed", "-1"], "Invalid value for '--seed'"),
        (["m.keras", "x.npy", "--out", "x.npy"], "x.npy is a file."),
        (["m.keras", "x.npy", "--resume", "no/run.nc"], "the folder no does not exist. Make it"),
        (["m.keras", "x.npy", "--preprocess", "vgg"], "Did you mean 'vgg"),
    ],
)
def test_bad_input(run, arguments, message):
    done = run(*arguments, code=2)
    assert message in plain(done.stderr)
    assert len(done.output.splitlines()) < 40


# --- help ----------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_library():
    library = inspect.signature(koopman.credit).parameters
    command = {
        parameter.name: parameter.default
        for parameter in typer.main.get_command(cli.app).commands["koopman"].params
    }
    same = set(command) & set(library)
    assert same > {"partition", "max_dimension", "repeats", "alignment", "seed", "normalize"}
    for name in same - {"model"}:
        default = command[name]
        assert getattr(default, "value", default) == library[name].default, name


def test_help_names_every_option():
    done = CliRunner().invoke(cli.app, ["koopman", "--help"], terminal_width=100)
    assert done.exit_code == 0
    for option in (
        *("--out", "--weights", "--preprocess", "--partition", "--held-out", "--steps"),
        *("--max-snapshots", "--max-dimension", "--repeats", "--alignment", "--normalize"),
        *("--intercept", "--kernels", "--underdetermined", "--output-activation"),
        *("--batch-size", "--seed", "--resume", "--debug"),
    ):
        assert option in done.stdout
