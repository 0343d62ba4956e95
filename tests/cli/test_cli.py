import errno
import inspect
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tfexplain import cli, demo, files, report, results
from tfexplain.errors import DamagedFileError, InUseError, NotWritableError
from tfexplain.names import ANALYZERS
from tfexplain.report.folder import SCHEMA, SCHEMA_VERSION

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COMMANDS = ("demo", "explain", "audit", "methods", "describe", "export", "koopman")
HEAVY = ("tensorflow", "keras", "xarray", "matplotlib", "sklearn", "scipy")


class FakeAnalyzer:
    """Follows the public calls of an analyzer; its relevance is the input, times `scale`."""

    def __init__(self, name, model, scale=1.0, output_activation="drop", fail=""):
        self.name, self.model, self.scale, self.fail = name, model, scale, fail
        self.output_activation = output_activation
        self.output_shape = model.output_shape[1:]

    def get_config(self):
        return {"name": self.name, "options": {"scale": self.scale}}

    def describe(self):
        return types.SimpleNamespace(
            rows=[("conv", "Conv2D", "Rule[a]")], __str__=lambda self: "conv"
        )

    def attribute(self, x, target=None, batch_size=32):
        if self.fail == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.fail:
            raise RuntimeError(self.fail)
        outputs = self.model.predict(x, verbose=0)
        chosen = outputs.argmax(1) if target is None else np.broadcast_to(target, len(x))
        return results.attribution_dataset(
            self.scale * x[:, None],
            x,
            outputs,
            chosen[:, None],
            analyzer=self.name,
            config=self.get_config(),
            assignment=self.describe().rows,
        )

    def export(self, path):
        if self.fail:
            raise RuntimeError(self.fail)
        (path / "variables").mkdir()
        (path / "saved_model.pb").write_text("saved")


def fake_create(name, model, **options):
    if name not in FAKES:
        raise ValueError(f"There is no analyzer {name!r}. Did you mean lrp.z?")
    return FakeAnalyzer(name, model, **options)


def entry(summary, required=None, **options):
    return types.SimpleNamespace(
        summary=summary,
        options=options,
        references=(),
        fits=False,
        for_samples=lambda x: required or {},
    )


FAKES = {
    "lrp.z": entry("The z rule.", scale=1.0, dtype=None),
    "gradient": entry("The gradient [d out / d in].", dtype=None, steps=inspect.Parameter.empty),
}


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """Runs the command line in an empty folder with a model, two images and fake analyzers."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("tfexplain.analyzers")
    module.ANALYZERS, module.create_analyzer = FAKES, fake_create
    monkeypatch.setitem(sys.modules, "tfexplain.analyzers", module)
    monkeypatch.setattr("tfexplain.names.ANALYZERS", FAKES)
    initializer = keras.initializers.GlorotUniform(seed=0)
    keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(4, kernel_initializer=initializer),
        ]
    ).save("m.keras")
    generator = np.random.default_rng(0)
    for name in ("cat.png", "dog.png"):
        Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8)).save(name)

    def run(*arguments, code=0):
        result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return run


def plain(text):
    """Output without wrapping and colours."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


# help


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from tfexplain.cli import app\n"
        f"for command in ([], *([c] for c in {COMMANDS})):\n"
        "    app([*command, '--help'], standalone_mode=False)\n"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("HEAVY []")
    for command in COMMANDS:
        assert command in done.stdout


def test_python_dash_m():
    command = [sys.executable, "-X", "importtime", "-m", "tfexplain", "explain", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "IMAGES" in done.stdout
    assert not [name for name in HEAVY if re.search(rf"\| +{name}\n", done.stderr)]


def test_methods_imports_nothing_heavy():
    """Not while the methods are listed, and the list is that of the analyzers."""
    program = (
        "import sys\n"
        "from tfexplain.cli import app\n"
        "app(['methods'], standalone_mode=False)\n"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    *lines, heavy = done.stdout.splitlines()
    assert heavy == "HEAVY []"
    assert [line.split()[0] for line in lines] == list(ANALYZERS)


# options


def test_parse_options():
    texts = ["alpha=2", "low=-1.5", 'input_rule=("box", 0, 1)', "bias=ignore", "a=true", "b=none"]
    texts += ["lrp.z:path=a=b", "c=[0, 1]", "d=1e-3"]
    options = cli.parse_options(texts, ["gradient", "lrp.z"])
    common = {
        "alpha": 2,
        "low": -1.5,
        "input_rule": ("box", 0, 1),
        "bias": "ignore",
        "a": True,
        "b": None,
        "c": [0, 1],
        "d": 1e-3,
    }
    assert list(options) == ["gradient", "lrp.z"]
    assert options == {"gradient": common, "lrp.z": common | {"path": "a=b"}}


@pytest.mark.parametrize(
    ("texts", "methods", "message"),
    [
        (["alpha"], ["a"], "--option is 'alpha'. Expected KEY=VALUE or METHOD:KEY=VALUE"),
        (["a b=1"], ["a"], "--option is 'a b=1'"),
        (["b:c=1"], ["a"], "--option 'b:c=1' is for 'b', but --method is a"),
        (["c=1", "a:c=2"], ["a"], "--option c is given twice for a"),
        ([], ["a", "b", "a"], "--method a is given twice"),
    ],
)
def test_parse_options_errors(texts, methods, message):
    with pytest.raises(ValueError, match=message):
        cli.parse_options(texts, methods)


# commands


def test_explain(runner, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    arguments = ["--method", "lrp.z", "--method", "gradient", "--option", "lrp.z:scale=2"]
    done = runner("explain", "m.keras", "cat.png", "dog.png", *arguments, "--out", "out")
    pictures = [
        f"{image}_{method}{kind}.png"
        for image in ("cat", "dog")
        for method in ("lrp.z", "gradient")
        for kind in ("", "_overlay")
    ]
    assert sorted(os.listdir("out")) == sorted([*pictures, "gradient.nc", "lrp.z.nc", "mine.txt"])
    assert "out: 8 pictures" in plain(done.stdout)
    dataset = results.load("out/lrp.z.nc")
    assert list(dataset["sample"].values) == ["cat", "dog"]
    assert dataset.attrs["model"] == "m.keras"
    np.testing.assert_array_equal(dataset["relevance"][:, 0], 2 * dataset["input"])
    np.testing.assert_array_equal(dataset["target"][:, 0], dataset["output"].argmax("output_index"))
    for name in pictures:
        with Image.open(f"out/{name}") as picture:
            assert min(picture.size) > 300
    assert sorted(os.listdir()) == ["cat.png", "dog.png", "m.keras", "out"]


def test_explain_batches_and_target(runner):
    arguments = ["explain", "m.keras", "cat.png", "dog.png", "--method", "lrp.z", "--target", 3]
    runner(*arguments, "--out", "one", "--batch-size", 1, "--preprocess", "scale=0.5")
    runner(*arguments, "--out", "two", "--preprocess", "scale=0.5")
    one, two = results.load("one/lrp.z.nc"), results.load("two/lrp.z.nc")
    np.testing.assert_array_equal(one["target"], 3)
    np.testing.assert_allclose(one["relevance"], two["relevance"])
    assert one["input"].max() <= 127.5
    assert one.attrs["preprocess"] == "scale=0.5"


def test_explain_a_table(runner):
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)]).save("t.keras")
    np.save("x.npy", np.random.default_rng(0).normal(size=(3, 5)))
    runner("explain", "t.keras", "x.npy", "--method", "lrp.z", "--out", "out")
    assert sorted(os.listdir("out")) == ["lrp.z.nc", *(f"x_{i}_lrp.z.png" for i in range(3))]


def test_a_failure_leaves_nothing_behind(runner, tmp_path):
    arguments = ["--method", "lrp.z", "--method", "gradient", "--option", "gradient:fail=no memory"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lrp.z.nc").write_text("mine")
    before = sorted(os.listdir())
    for folder in ("out", "new/deep"):
        done = runner("explain", "m.keras", "cat.png", *arguments, "--out", folder, code=1)
        assert "error: RuntimeError: no memory" in plain(done.stderr)
        assert "Traceback" not in done.output
    assert sorted(os.listdir()) == before
    assert os.listdir("out") == ["lrp.z.nc"]
    assert (tmp_path / "out" / "lrp.z.nc").read_text() == "mine"
    done = runner("explain", "m.keras", "cat.png", *arguments, "--out", "out", "--debug", code=1)
    assert "Traceback" in done.stderr


RESOURCES = {
    "memory": (MemoryError("40 bytes more."), "not enough memory: 40 bytes more. A smaller"),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "size": (OSError(errno.EFBIG, "File too large"), "File too large"),
    "writing": (
        NotWritableError("a.nc", OSError(errno.EACCES, "Permission denied"), "Choose another."),
        "Cannot write a.nc: Permission denied. Choose another.",
    ),
    "in use": (InUseError("The folder a is in use."), "The folder a is in use."),
    "damage": (
        DamagedFileError("a.tfx", "it is cut", "Save again."),
        "a.tfx is damaged: it is cut",
    ),
}


@pytest.mark.parametrize("case", RESOURCES)
def test_resources_and_damage_are_no_bad_input(case, runner, monkeypatch):
    """Before the work starts too, where another error means wrong arguments."""
    error, message = RESOURCES[case]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("tfexplain.loading.load_model", fail)
    for arguments in (
        ["explain", "m.keras", "cat.png", "--method", "lrp.z"],
        ["describe", "m.keras", "--method", "lrp.z"],
        ["export", "m.keras", "served", "--method", "lrp.z"],
        ["koopman", "m.keras", "cat.png"],
    ):
        done = runner(*arguments, code=1)
        assert message in plain(done.stderr)
    assert sorted(os.listdir()) == ["cat.png", "dog.png", "m.keras"]


def test_a_sigmoid_unit_is_explained_for_a_class(runner):
    """The words are checked before anything is computed."""
    arguments = ["explain", "m.keras", "cat.png", "--method", "lrp.z", "--out", "out"]
    done = runner(*arguments, "--target", "both", code=2)
    assert "--target is 'both'. Expected the index of an output, or positive" in plain(done.stderr)


def test_termination_leaves_nothing_behind(runner):
    handler = signal.getsignal(signal.SIGTERM)
    before = sorted(os.listdir())
    arguments = ["--method", "lrp.z", "--option", "fail=terminated"]
    runner("explain", "m.keras", "cat.png", *arguments, code=128 + signal.SIGTERM)
    assert sorted(os.listdir()) == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_tensorflow_starts_silently(tmp_path):
    quiet = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "tfexplain", "describe", "no.keras", "--method", "lrp.z"]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: The model file no.keras does not exist.*\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.keras", "cat.png"], "Missing option '--method'"),
        (["m.keras", "--method", "lrp.z"], "Missing argument 'IMAGES'"),
        (["m.keras", "cat.png", "--method", "lrp.y"], "error: There is no analyzer 'lrp.y'. Did"),
        (["m.keras", "owl.png", "--method", "lrp.z"], "error: The image owl.png does not exist."),
        (["n.keras", "cat.png", "--method", "lrp.z"], "n.keras does not exist. Did you mean 'm.ke"),
        (["m.keras", "bad.png", "--method", "lrp.z"], "bad.png cannot be read as an image"),
        (["m.keras", "x.npy", "--method", "lrp.z"], "The model takes (n, 6, 6, 3)."),
        (["two.keras", "x.npy", "--method", "lrp.z"], "has 2 inputs. The command line explains"),
        (
            ["m.keras", "cat.png", "--method", "lrp.z", "--target", "4"],
            "4 outputs: expected 0 to 3",
        ),
        (
            ["m.keras", "cat.png", "--method", "lrp.z", "--target", "a"],
            "--target is 'a'. Expected the index",
        ),
        (["m.keras", "cat.png", "--method", "lrp.z", "--option", "a"], "--option is 'a'. Expected"),
        (["m.keras", "cat.png", "--method", "lrp.z", "--option", "b=1"], "error: lrp.z: "),
        (
            ["m.keras", "cat.png", "--method", "lrp.z", "--batch-size", "0"],
            "Invalid value for '--batch-size'",
        ),
        (["m.keras", "cat.png", "--method", "lrp.z", "--out", "m.keras"], "m.keras is a file."),
        (["m.keras", "cat.png", "--method", "lrp.z", "--preprocess", "vgg"], "Did you mean 'vgg"),
    ],
)
def test_bad_input(runner, tmp_path, arguments, message):
    np.save("x.npy", np.zeros((2, 5)))
    (tmp_path / "bad.png").write_bytes(b"damaged")
    a, b = keras.Input((5,)), keras.Input((5,))
    keras.Model([a, b], keras.layers.Add()([a, b])).save("two.keras")
    before = sorted(os.listdir())
    done = runner("explain", *arguments, code=2)
    boxless = plain(re.sub("[│╭╮╰╯─]", " ", done.stderr))
    assert message in boxless
    assert "Traceback" not in done.output
    assert len(done.output.splitlines()) < 40
    assert sorted(os.listdir()) == before


def test_another_backend_is_refused():
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-m", "tfexplain", "methods"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: tfexplain needs Keras with the TensorFlow backend")
    assert len(done.stderr.splitlines()) == 1


def test_long_errors_fit_one_screen(runner, monkeypatch):
    def create(name, model, **options):
        raise ValueError("\n".join(f"lrp.z: layer {i} has no rule" for i in range(500)))

    monkeypatch.setattr(sys.modules["tfexplain.analyzers"], "create_analyzer", create)
    done = runner("describe", "m.keras", "--method", "lrp.z", code=2)
    assert "... 470 more lines, see --debug" in done.stderr
    assert len(done.stderr.splitlines()) < 40


def test_methods(runner):
    text = plain(runner("methods", "--options").stdout)
    for word in ("lrp.z", "The z rule.", "scale=1.0", "[d out / d in]", "steps (required)"):
        assert word in text
    assert "Most methods also take dtype=None." in text


def test_describe(runner, monkeypatch):
    monkeypatch.setattr(FakeAnalyzer, "describe", lambda self: "conv  Conv2D  Rule[a]")
    done = runner("describe", "m.keras", "--method", "lrp.z", "--option", "scale=3")
    assert done.stdout == "conv  Conv2D  Rule[a]\n"


def test_export(runner, tmp_path):
    done = runner("export", "m.keras", "served", "--method", "lrp.z")
    assert sorted(os.listdir("served")) == ["saved_model.pb", "variables"]
    assert "served: SavedModel of lrp.z" in plain(done.stdout)
    done = runner("export", "m.keras", "served", "--method", "lrp.z", code=2)
    assert "The folder served is not empty" in plain(done.stderr)
    runner("export", "m.keras", "new", "--method", "lrp.z", "--option", "fail=full", code=1)
    assert sorted(os.listdir()) == ["cat.png", "dog.png", "m.keras", "served"]


def test_random_weights_are_said(runner, monkeypatch):
    monkeypatch.setattr(
        "tfexplain.loading.load_model", lambda *_: keras.models.load_model("m.keras")
    )
    done = runner("explain", "keras.applications:VGG16", "cat.png", "--method", "lrp.z")
    assert "warning: keras.applications:VGG16 has random weights" in plain(done.stderr)


# demo


@pytest.fixture
def quick_demo(monkeypatch):
    """The demonstration without waiting for the audit."""
    audited = types.SimpleNamespace(verdict=lambda: report.judge({}))
    monkeypatch.setattr(demo, "audit", lambda *_, **__: audited)


def test_demo(runner, quick_demo):
    done = runner("demo", "--out", "out")
    assert sorted(os.listdir("out")) == ["digits.nc", "digits.png"]
    dataset = results.load("out/digits.nc")
    assert dataset["relevance"].dims == ("analyzer", "sample", "height", "width", "channel")
    assert list(dataset["analyzer"].values) == list(FAKES)
    np.testing.assert_array_equal(dataset["target"], np.arange(10))
    np.testing.assert_array_equal(dataset["output"].argmax("output_index"), np.arange(10))
    assert dataset.sizes["sample"] == 10
    assert "out/digits.png" in plain(done.stdout)
    assert "out/report.html: which of these explanations" in plain(done.stdout)
    done = runner("demo", "--out", "m.keras", code=2)
    assert "m.keras is a file. Choose another folder" in plain(done.stderr)


def test_demo_refuses_the_folder_of_another_audit(runner, quick_demo, monkeypatch):
    monkeypatch.setattr(demo, "run", lambda *_, **__: pytest.fail("worked before it checked"))
    folder = pathlib.Path("out")
    folder.mkdir()
    record = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "model": "m", "explained": ""}
    keys = ("audits", "reasons", "seconds", "methods", "left_out", "thresholds")
    record |= {**dict.fromkeys(keys, {}), "notes": [], "samples": {"given": 0, "positions": []}}
    record["hardware"] = {"system": "", "processor": "", "cpus": 1, "gpus": []}
    for data, versions, message in (
        ("photos/", {}, "out holds another audit, of photos/. Choose another folder"),
        (demo.DATA, {"keras": "1.0"}, "other versions of keras. Choose another folder"),
    ):
        versions = {**results.versions(), **versions}
        settings = {"versions": versions, "analyzers": {}, "preset": "quick", "seed": 0}
        whole = {**record, "settings": settings, "about": {"data": data}}
        whole[files.DIGEST] = files.checksum(whole)
        (folder / "audit.json").write_text(json.dumps(whole))
        assert message in plain(runner("demo", "--out", "out", code=2).stderr)
    (folder / "audit.json").unlink()
    (folder / "report.html").write_text("mine")
    done = runner("demo", "--out", "out", code=2)
    assert "holds report.html and no audit.json" in plain(done.stderr)


def test_demo_that_is_stopped_says_how_to_continue(runner, quick_demo, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt("the same call continues")

    monkeypatch.setattr(demo, "audit", stopped)
    done = runner("demo", "--out", "out", code=130)
    assert "the same call continues" in plain(done.stderr)
    assert sorted(os.listdir("out")) == ["digits.nc", "digits.png"]


def test_demo_left_out_and_options(runner, quick_demo, monkeypatch):
    from tfexplain.errors import UnsupportedLayerError

    seen = {}

    def create(name, model, **options):
        seen[name] = options
        if name == "gradient":
            raise UnsupportedLayerError("no rule for conv1")
        return FakeAnalyzer(name, model)

    module = sys.modules["tfexplain.analyzers"]
    monkeypatch.setattr(module, "create_analyzer", create)
    monkeypatch.setattr(
        module, "ANALYZERS", FAKES | {"lrp.alpha_beta": entry("Apart.", {"alpha": 3})}
    )
    result = demo.run("out")
    assert seen["lrp.alpha_beta"] == {"alpha": 3} and seen["lrp.z"] == {}
    assert result.left_out == {"gradient": "no rule for conv1"}
    assert "left out gradient: no rule for conv1" in result.dataset.attrs["notes"]
    assert "Left out: gradient" in result.report()
