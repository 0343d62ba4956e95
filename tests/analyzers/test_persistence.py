"""Analyzers as files: the same numbers after a round trip, clear errors, nothing half written."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import fitted
from tests.test_contract import OPTIONS
from tfexplain.analyzers.persistence import FORMAT, option_value
from tfexplain.analyzers.relevance import LRPSequentialPreset
from tfexplain.composites import First, Last, epsilon_plus
from tfexplain.rules import AlphaBeta, Epsilon, Flat, WSquare, ZPlus

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (6, 6, 2)
RNG = np.random.default_rng(0)
LOW = RNG.uniform(-5, -4, SHAPE).astype("float32")


@keras.saving.register_keras_serializable("tests")
def wide(call):
    """Selects the calls of the second convolution."""
    return call.name == "second"


@keras.saving.register_keras_serializable("tests")
def mean_image(x):
    return tf.reduce_mean(tf.convert_to_tensor(x), axis=(1, 2), keepdims=True) * tf.ones(
        SHAPE, x.dtype
    )


class Doubled(layers.Layer):
    """A layer of the user's that Keras does not know by itself."""

    relevance_policy = "pass"

    def call(self, x):
        return 2 * x


def composite():
    rows = [
        (First(), Flat()),
        (wide, AlphaBeta(3, 2)),
        ("den*", Epsilon(0.01)),
        (Last(), Epsilon(0.1)),
        (keras.layers.Conv2D, WSquare()),
        ((keras.layers.Dense, keras.layers.Conv1D), ZPlus()),
    ]
    return epsilon_plus().prepend(rows, name="mine")


# Name in the test's id -> (name of the analyzer, options)
CASES = {name: (name, OPTIONS.get(name, {})) for name in tfexplain.ANALYZERS} | {
    "box with arrays": ("lrp.epsilon", {"input_rule": ("box", LOW, np.float32(4))}),
    "bounded with arrays": ("deep_taylor.bounded", {"low": LOW, "high": LOW + 9}),
    "composite": ("lrp.composite", {"composite": composite()}),
    "composite with options": (
        "lrp",
        {"composite": "epsilon_gamma_box", "low": LOW.min(), "high": 5, "gamma": 0.5},
    ),
    "one baseline": ("integrated_gradients", {"steps": 3, "baseline": LOW[None]}),
    "baselines": ("integrated_gradients", {"steps": 3, "background": np.stack([LOW, LOW + 0.5])}),
    "baseline per sample": ("integrated_gradients", {"steps": 3, "baseline": np.stack([LOW] * 3)}),
    "baseline function": ("integrated_gradients", {"steps": 3, "baseline": mean_image}),
    "shapley patches": ("shapley_sampling", {"cycles": 2, "features": 3, "seed": 7}),
    "shapley baselines": ("shapley_sampling", {"cycles": 1, "background": LOW[None]}),
    "noise range": ("smoothgrad", {"samples": 2, "noise_range": (0, 2), "seed": 7}),
    "contrastive rule": ("lrp.contrastive", {"rule": {"name": "lrp.gamma", "gamma": 0.5}}),
    "contrastive arrays": (
        "lrp.contrastive",
        {"rule": {"name": "deep_taylor.bounded", "low": LOW, "high": 4}, "rectify": False},
    ),
    "without bias": ("lrp.alpha_beta_IB", {"alpha": 3, "beta": 2}),
    "until": ("lrp.sequential_preset_b_until_idx", {"until": 1}),
    "common options": (
        "lrp.z",
        {"dtype": "float64", "head": "one", "output_activation": "keep", "batch_norm": "rule"},
    ),
    "compat": ("lrp.alpha_1_beta_0", {"compat": "innvestigate", "output": 0}),
}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(3, 3, activation="relu", name="first"),
            layers.BatchNormalization(),
            layers.Conv2D(4, 2, activation="relu", name="second"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", name="dense"),
        ]
    )


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(3, *SHAPE)).astype("float32")


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, model, x, tmp_path):
    name, options = CASES[case]
    analyzer = tfexplain.create_analyzer(name, model, **options)
    if name in tfexplain.ANALYZERS:
        fitted(analyzer, np.random.default_rng(2).normal(size=(30, *SHAPE)))
    expected = analyzer.analyze(x, target=1)
    assert np.abs(expected).max() > 0
    path = tmp_path / "analyzer.tfx"
    analyzer.save(path)
    again = tfexplain.load_analyzer(path)
    assert type(again) is type(analyzer) and again.name == name
    assert again.user_model is not model
    np.testing.assert_array_equal(again.analyze(x, target=1), expected)
    assert str(again.describe()) == str(analyzer.describe())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]

    config = json.loads(json.dumps(analyzer.get_config()))
    assert config == analyzer.get_config() == again.get_config()
    given = {key: option_value(value, {}, {}) for key, value in config["options"].items()}
    rebuilt = tfexplain.create_analyzer(config["analyzer"], model, **given)
    np.testing.assert_array_equal(rebuilt.analyze(x, target=1), expected)


def test_saved_again(model, x, tmp_path):
    analyzer = tfexplain.create_analyzer("lrp.composite", model, composite=composite())
    for number in range(3):
        path = tmp_path / f"{number}.tfx"
        analyzer.save(path)
        analyzer = tfexplain.load_analyzer(path)
    expected = tfexplain.create_analyzer("lrp.composite", model, composite=composite())
    np.testing.assert_array_equal(analyzer.analyze(x), expected.analyze(x))


def test_instances_made_from_a_class(model, x, tmp_path):
    analyzer = LRPSequentialPreset(model, alpha=2)
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    np.testing.assert_array_equal(again.analyze(x), analyzer.analyze(x))


def test_classes_without_a_name_are_refused(model, tmp_path):
    class Mine(LRPSequentialPreset):
        """An analyzer that no process finds by name."""

    with pytest.raises(ValueError, match="Mine is none of the analyzers"):
        Mine(model).save(tmp_path / "analyzer.tfx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mine", "gradient", None])
def test_a_name_that_stands_for_something_else_is_refused(model, tmp_path, name):
    analyzer = tfexplain.create_analyzer("lrp.z", model)
    analyzer.name = name
    with pytest.raises(ValueError, match=f"and {name!r} does not stand for LRPZ. .* of lrp.z"):
        analyzer.save(tmp_path / "analyzer.tfx")
    assert not list(tmp_path.iterdir())
    analyzer.name = "lrp.z_IB"
    analyzer.save(tmp_path / "analyzer.tfx")
    assert tfexplain.load_analyzer(tmp_path / "analyzer.tfx").name == "lrp.z_IB"


def test_dtypes_and_texts_of_numpy_are_saved(model, x, tmp_path):
    options = {"dtype": np.dtype("float64"), "head": np.str_("one")}
    analyzer = tfexplain.create_analyzer("lrp.z", model, **options)
    assert (analyzer.dtype, analyzer.head) == ("float64", "one")
    assert type(analyzer.dtype) is type(analyzer.head) is str
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    np.testing.assert_array_equal(again.analyze(x, 0), analyzer.analyze(x, 0))
    assert again.analyze(x, 0).dtype == np.float64


def test_no_pickle_is_written(model, tmp_path):
    path = tmp_path / "analyzer.tfx"
    tfexplain.create_analyzer("integrated_gradients", model, baseline=[LOW]).save(path)
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["analyzer.json", "arrays.npz", "model.keras"]
        archive.extract("arrays.npz", tmp_path)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as stored:
        assert [stored[key].tolist() for key in stored.files] == [LOW.tolist()]


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("integrated_gradients", {"baseline": lambda x: 0 * x}, "baseline=<function"),
        (
            "lrp.composite",
            {"composite": epsilon_plus().prepend([(lambda call: True, Flat())])},
            "'<lambda>' is not registered",
        ),
    ],
)
def test_functions_have_to_be_registered(name, options, named, model, tmp_path):
    path = tmp_path / "analyzer.tfx"
    path.write_text("older")
    analyzer = tfexplain.create_analyzer(name, model, **options)
    with pytest.raises(ValueError, match=named) as error:
        analyzer.save(path)
    assert "register_keras_serializable" in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "older"


def test_functions_from_custom_objects(model, x, tmp_path, monkeypatch):
    paths = tmp_path / "selector.tfx", tmp_path / "baseline.tfx"
    made = (
        tfexplain.create_analyzer("lrp.composite", model, composite=composite()),
        tfexplain.create_analyzer("integrated_gradients", model, steps=2, baseline=mean_image),
    )
    for analyzer, path in zip(made, paths, strict=True):
        analyzer.save(path)
    # As in a process that does not import this module.
    known = keras.saving.get_custom_objects()
    for function in (wide, mean_image):
        monkeypatch.delitem(known, f"tests>{function.__name__}")
    custom = {"wide": wide, "mean_image": mean_image}
    for analyzer, path, name in zip(made, paths, custom, strict=True):
        with pytest.raises(ValueError, match=f"tests>{name}"):
            tfexplain.load_analyzer(path)
        again = tfexplain.load_analyzer(path, custom_objects=custom)
        np.testing.assert_array_equal(again.analyze(x), analyzer.analyze(x))


def test_custom_layers(x, tmp_path):
    model = keras.Sequential(
        [layers.Input(SHAPE), Doubled(), layers.Flatten(), layers.Dense(2, name="dense")]
    )
    rows = [(Doubled, epsilon_plus().rows[-1][1])]
    own = epsilon_plus().prepend(rows, name="mine")
    for options in ({}, {"composite": own}):
        analyzer = tfexplain.create_analyzer("lrp.composite", model, **options)
        path = tmp_path / "analyzer.tfx"
        analyzer.save(path)
        with pytest.raises((TypeError, ValueError), match="Doubled"):
            tfexplain.load_analyzer(path)
        again = tfexplain.load_analyzer(path, custom_objects={"Doubled": Doubled})
        np.testing.assert_array_equal(again.analyze(x), analyzer.analyze(x))


def test_missing_files(model, tmp_path):
    for path in (tmp_path / "none.tfx", tmp_path):
        with pytest.raises(FileNotFoundError, match="no analyzer file"):
            tfexplain.load_analyzer(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        tfexplain.create_analyzer("gradient", model).save(tmp_path / "none" / "analyzer.tfx")


def test_foreign_and_damaged_files(model, tmp_path):
    good = tmp_path / "good.tfx"
    tfexplain.create_analyzer("deep_taylor.bounded", model, low=LOW, high=4).save(good)
    whole = good.read_bytes()
    model.save(tmp_path / "model.keras")
    damaged = {
        "empty": b"",
        "text": b"no archive",
        "model": (tmp_path / "model.keras").read_bytes(),
        **{f"first {share}": whole[: int(share * len(whole))] for share in (0.1, 0.5, 0.99)},
    }
    # Within the stored model, where every byte counts.
    for share in (0.3, 0.6):
        changed = bytearray(whole)
        place = int(share * len(whole))
        changed[place : place + 8] = (255 - byte for byte in changed[place : place + 8])
        damaged[f"changed at {share}"] = bytes(changed)
    for name, content in damaged.items():
        path = tmp_path / "damaged.tfx"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged: .*Write it with analyzer.save") as error:
            tfexplain.load_analyzer(path)
        assert str(path) in str(error.value), name


@pytest.mark.parametrize("missing", ["model.keras", "analyzer.json", "arrays.npz"])
def test_file_with_a_part_missing(missing, model, tmp_path):
    good, partial = tmp_path / "good.tfx", tmp_path / "partial.tfx"
    tfexplain.create_analyzer("gradient", model).save(good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(partial, "w") as archive:
        assert missing in source.namelist()
        for name in source.namelist():
            if name != missing:
                archive.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="no complete analyzer file"):
        tfexplain.load_analyzer(partial)


@pytest.mark.filterwarnings("ignore:.*other.tfx has no checksum")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "no complete analyzer file"),
        ("{}", "no complete analyzer file"),
        ("{", "no complete analyzer file"),
        (
            json.dumps({"format": FORMAT + 1, "analyzer": "gradient", "options": {}}),
            f"has format {FORMAT + 1}, this tfexplain reads format {FORMAT}",
        ),
        (
            json.dumps({"format": FORMAT, "analyzer": "gradeint", "options": {}}),
            "There is no analyzer 'gradeint'",
        ),
    ],
)
def test_other_configurations(config, message, model, tmp_path):
    good, other = tmp_path / "good.tfx", tmp_path / "other.tfx"
    tfexplain.create_analyzer("gradient", model).save(good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(other, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, config if name == "analyzer.json" else source.read(name))
    with pytest.raises(ValueError, match=message):
        tfexplain.load_analyzer(other)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_save_changes_nothing(failure, model, tmp_path, monkeypatch):
    path = tmp_path / "analyzer.tfx"
    analyzer = tfexplain.create_analyzer("gradient", model)
    original = zipfile.ZipFile.writestr

    def fails(archive, name, *args):
        original(archive, name, *args)
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "writestr", fails)
        with pytest.raises(failure):
            analyzer.save(path)
        assert not list(tmp_path.iterdir())
        path.write_text("older")
        with pytest.raises(failure):
            analyzer.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "older"
    analyzer.save(path)
    assert tfexplain.load_analyzer(path).name == "gradient"
