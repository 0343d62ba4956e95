"""What is read is what was written, and a file that is damaged says so."""

import copy
import io
import json
import os
import pathlib
import pickle
import zipfile

import keras
import numpy as np
import psutil
import pytest
import xarray as xr
from keras import layers

import tfexplain
from tests.helpers.deep_lift_networks import KERAS_SAVES
from tests.helpers.folders import changes, dataset, listed, rewritten
from tests.helpers.networks import randomize, sequential
from tfexplain import files, netcdf, results
from tfexplain.audits import entropy
from tfexplain.errors import DamagedFileError, NotWritableError

pytestmark = KERAS_SAVES


@pytest.fixture(scope="module")
def model():
    return randomize(sequential((6,), layers.Dense(5, activation="relu"), layers.Dense(3)))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(9, 6)).astype("float32")


@pytest.fixture(scope="module")
def analyzer(model):
    return tfexplain.create_analyzer("lrp.epsilon", model, epsilon=0.25)


# --- what is read is what was written ---


def test_a_dataset_comes_back_as_it_was(tmp_path):
    netcdf.write(dataset(), tmp_path / "a.nc")
    found = netcdf.read(tmp_path / "a.nc", "")
    xr.testing.assert_identical(found, dataset())
    # Other programs read it too, and what they write is read with a notice.
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as opened:
        xr.testing.assert_identical(opened.load(), dataset())
    dataset().to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.warns(UserWarning, match="b.nc has no checksum"):
        xr.testing.assert_identical(netcdf.read(tmp_path / "b.nc", ""), dataset())


def flips(path, count, seed=0):
    """Yields the content of a file with one bit flipped, at random places."""
    content = path.read_bytes()
    generator = np.random.default_rng(seed)
    for place in generator.integers(0, len(content), count):
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        yield bytes(changed)


def readers(folder, analyzer, x):
    """Files of all kinds that are written, each with a function that reads its numbers."""
    analyzer.save(folder / "a.tfx")
    results.save(analyzer.attribute(x), folder / "a.nc")
    return {
        folder / "a.tfx": lambda path: tfexplain.load_analyzer(path).analyze(x),
        folder / "a.nc": lambda path: results.load(path)["relevance"].values,
    }


@pytest.mark.filterwarnings("ignore:.*has no checksum")
def test_a_flipped_bit_is_seen_or_without_effect(analyzer, x, tmp_path):
    for path, read in readers(tmp_path, analyzer, x).items():
        expected, seen = read(path), 0
        for content in flips(path, 12):
            path.write_bytes(content)
            try:
                np.testing.assert_array_equal(read(path), expected)
            except DamagedFileError as error:
                assert error.path == path and str(path) in str(error)
                seen += 1
        assert seen >= 11


@pytest.mark.parametrize("length", [0, 10, 1000, -1, -100])
def test_a_file_that_was_cut_is_damaged(length, analyzer, x, tmp_path):
    for path, read in readers(tmp_path, analyzer, x).items():
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(DamagedFileError):
            read(path)


def test_a_changed_block_is_computed_again(analyzer, x, tmp_path, monkeypatch):
    path = tmp_path / "entropy.nc"
    expected = entropy({"a": analyzer}, x, block_size=3)
    rename = os.replace

    def stop_before_the_result(source, target):
        if str(target) == str(path):
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(os, "replace", stop_before_the_result)
    with pytest.raises(KeyboardInterrupt):
        entropy({"a": analyzer}, x, block_size=3, path=path)
    monkeypatch.undo()
    blocks = sorted((tmp_path / "entropy.nc.blocks").glob("*.npz"))
    assert len(blocks) == 3
    # Other numbers in a valid archive, which no checksum of zip tells.
    with np.load(blocks[1]) as stored:
        arrays = {key: array + 1 for key, array in stored.items()}
    seal = blocks[1].read_bytes()[-files._SEAL_SIZE :]
    np.savez(blocks[1], **arrays)
    blocks[1].write_bytes(blocks[1].read_bytes() + seal)
    with pytest.warns(UserWarning, match="is damaged.*computed again"):
        found = entropy({"a": analyzer}, x, block_size=3, path=path)
    np.testing.assert_array_equal(found["entropy"], expected["entropy"])


# --- damaged analyzers ---


@pytest.mark.filterwarnings("ignore:.*b.tfx has no checksum")
def test_every_wrong_key_of_a_configuration_is_damage(model, x, tmp_path):
    composite = tfexplain.create_analyzer(
        "lrp.composite", model, composite="epsilon_plus", dtype="float64"
    )
    path, target = tmp_path / "a.tfx", tmp_path / "b.tfx"
    composite.save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("analyzer.json"))
    tried = damaged = 0
    for changed in changes(config):
        rewritten(path, target, **{"analyzer.json": json.dumps(changed)})
        tried += 1
        try:
            found = tfexplain.load_analyzer(target)
        except DamagedFileError as error:
            assert error.path == target and "safe_mode" not in str(error)
            damaged += 1
        except ValueError as error:
            # A number of the format, or an option that says itself what is wrong.
            assert "format" in str(error)
        else:
            # Nothing but an option that has this value too.
            assert found.analyze(x).shape == x.shape
    assert tried > 60 and damaged > 0.6 * tried


def test_a_deep_configuration_ends_in_an_error(analyzer, tmp_path):
    analyzer.save(tmp_path / "a.tfx")
    for text in ("[" * 100_000, '{"format": ' * 50_000, "\x00", '{"a": NaN}'):
        target = rewritten(tmp_path / "a.tfx", tmp_path / "b.tfx", **{"analyzer.json": text})
        with pytest.raises(DamagedFileError, match="analyzer.json"):
            tfexplain.load_analyzer(target)


def test_a_damaged_model_names_the_file_that_was_given(analyzer, tmp_path):
    analyzer.save(tmp_path / "a.tfx")
    with zipfile.ZipFile(tmp_path / "a.tfx") as archive:
        (tmp_path / "m.keras").write_bytes(archive.read("model.keras"))
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        config = archive.read("config.json").decode()
    for members in (
        {"config.json": config.replace('"units": 5', '"units": "q"')},
        {"config.json": config.replace('"class_name": "Dense"', '"class_name": "Q"')},
        {"config.json": "[]"},
        {"config.json": None},
        {"model.weights.h5": b"no HDF5"},
        {"model.weights.h5": None},
    ):
        rewritten(tmp_path / "m.keras", tmp_path / "n.keras", **members)
        content = (tmp_path / "n.keras").read_bytes()
        target = rewritten(tmp_path / "a.tfx", tmp_path / "b.tfx", **{"model.keras": content})
        with pytest.raises(DamagedFileError) as error:
            tfexplain.load_analyzer(target)
        assert "b.tfx" in str(error.value)
        assert "/tmp" not in str(error.value).replace(str(tmp_path), "")


def with_layer(layer):
    inputs = keras.Input((6,))
    return keras.Model(inputs, layer(layers.Dense(2)(inputs)))


# As one that is typed into a console, its text is not known.
TYPED = eval("lambda v: 2 * v")
LAMBDAS = {
    "layer": lambda: layers.Lambda(lambda v: 2 * v, name="double"),
    "activation": lambda: layers.Dense(2, activation=lambda v: 2 * v, name="double"),
    "function": lambda: layers.Activation(lambda v: 2 * v, name="double"),
    "initializer": lambda: layers.Dense(
        2, kernel_initializer=lambda shape, dtype: np.ones(shape, dtype), name="double"
    ),
}


@pytest.mark.parametrize("kind", [*LAMBDAS, "typed"])
def test_a_lambda_that_could_not_be_read_is_refused_when_it_is_saved(kind, tmp_path, recwarn):
    made = LAMBDAS.get(kind, lambda: layers.Dense(2, activation=TYPED))()
    analyzer = tfexplain.create_analyzer("gradient", with_layer(made))
    message = "cannot be saved: of a lambda .* decorated with @keras.saving.register_keras"
    message = message if kind == "typed" else f" with double {message}"
    for action in (lambda: analyzer.save(tmp_path / "a.tfx"), lambda: pickle.dumps(analyzer)):
        with pytest.raises(ValueError, match=message) as error:
            action()
        assert not isinstance(error.value, DamagedFileError)
    assert listed(tmp_path) == []
    assert not [one for one in recwarn if "safe_mode" in str(one.message)]


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize("kind", LAMBDAS)
def test_a_lambda_is_not_run_from_a_file(analyzer, kind, tmp_path):
    analyzer.save(tmp_path / "a.tfx")
    with_layer(LAMBDAS[kind]()).save(tmp_path / "m.keras")
    # Every letter of JSON can be written as its number.
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        config = archive.read("config.json").decode().replace("__lambda__", "\\u005f_lambda__")
    rewritten(tmp_path / "m.keras", tmp_path / "n.keras", **{"config.json": config})
    content = (tmp_path / "n.keras").read_bytes()
    target = rewritten(tmp_path / "a.tfx", tmp_path / "b.tfx", **{"model.keras": content})
    with pytest.raises(ValueError, match="Python code in double.*create_analyzer") as error:
        tfexplain.load_analyzer(target)
    assert "safe_mode" not in str(error.value)
    assert not isinstance(error.value, DamagedFileError)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_loss_that_is_a_lambda_is_not_loaded(model, x, tmp_path):
    compiled = keras.models.clone_model(model)
    compiled.compile(loss=lambda a, b: a - b)
    analyzer = tfexplain.create_analyzer("gradient", compiled)
    analyzer.save(tmp_path / "a.tfx")
    again = tfexplain.load_analyzer(tmp_path / "a.tfx")
    np.testing.assert_array_equal(again.analyze(x), analyzer.analyze(x))


def doubled(v):
    return 2 * v


class Twice(layers.Layer):
    """A layer that Keras does not know by itself."""

    def call(self, v):
        return 2 * v


@pytest.mark.parametrize(
    ("made", "known"),
    [
        (lambda: layers.Dense(2, activation=doubled), {"doubled": doubled}),
        (lambda: layers.Activation(doubled), {"doubled": doubled}),
        (Twice, {"Twice": Twice}),
    ],
    ids=["activation", "function", "class"],
)
def test_a_healthy_file_of_what_is_not_known_here_is_not_damaged(made, known, x, tmp_path):
    analyzer = tfexplain.create_analyzer("gradient", with_layer(made()))
    analyzer.save(tmp_path / "a.tfx")
    (name,) = known
    with pytest.raises(ValueError, match=f"a.tfx' has '{name}', .*custom_objects") as error:
        tfexplain.load_analyzer(tmp_path / "a.tfx")
    assert not isinstance(error.value, DamagedFileError)
    again = tfexplain.load_analyzer(tmp_path / "a.tfx", custom_objects=known)
    np.testing.assert_array_equal(again.analyze(x), analyzer.analyze(x))


def test_an_analyzer_without_its_checksum_is_loaded_with_a_notice(analyzer, x, tmp_path):
    path = tmp_path / "a.tfx"
    analyzer.save(path)
    path.write_bytes(path.read_bytes()[: -files._SEAL_SIZE])
    with pytest.warns(UserWarning, match="a.tfx has no checksum"):
        again = tfexplain.load_analyzer(path)
    np.testing.assert_array_equal(again.analyze(x), analyzer.analyze(x))
    function, (content,) = analyzer.__reduce__()
    with pytest.warns(UserWarning, match="the pickle of an analyzer has no checksum"):
        function(content[: -files._SEAL_SIZE])


def test_a_flipped_bit_in_a_pickle_is_damage(analyzer):
    function, (content,) = analyzer.__reduce__()
    changed = bytearray(content)
    # The time of its first member, which no checksum of zip covers.
    changed[10] ^= 1
    with pytest.raises(DamagedFileError, match="the pickle of an analyzer is damaged.*checksum"):
        function(bytes(changed))


@pytest.mark.parametrize("member", ["model.keras", "analyzer.json", "arrays.npz"])
def test_what_says_that_it_is_larger_than_memory_is_not_unpacked(
    analyzer, member, tmp_path, monkeypatch
):
    analyzer.save(tmp_path / "a.tfx")
    packed = tmp_path / "b.tfx"
    with zipfile.ZipFile(tmp_path / "a.tfx") as archive:
        names = archive.namelist()
        contents = {name: archive.read(name) for name in names}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content + bytes(10**7) if name == member else content)
    assert packed.stat().st_size < 10**5
    free = psutil.virtual_memory()._replace(available=10**6)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(MemoryError, match=r"b.tfx holds .* needs 10,\d+,\d+ bytes, and 1,000,000"):
        tfexplain.load_analyzer(packed)


def test_arrays_that_are_larger_than_memory_are_not_read(analyzer, tmp_path):
    analyzer.save(tmp_path / "a.tfx")
    header, stored = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)}
    )
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("low.npy", header.getvalue())
    target = rewritten(tmp_path / "a.tfx", tmp_path / "b.tfx", **{"arrays.npz": stored.getvalue()})
    with pytest.raises(MemoryError, match="b.tfx holds the arrays of an analyzer, .* available"):
        tfexplain.load_analyzer(target)


def test_a_model_in_a_file_is_not_unpacked_where_it_is_larger_than_memory(analyzer, tmp_path):
    analyzer.save(tmp_path / "a.tfx")
    model = io.BytesIO()
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"")
    # What the archive says of the size of the second member.
    content = bytearray(model.getvalue())
    place = content.rindex(b"PK\x01\x02") + 24
    content[place : place + 4] = b"\xf0\xff\xff\xff"
    free = psutil.virtual_memory()._replace(available=10**9)
    target = rewritten(tmp_path / "a.tfx", tmp_path / "b.tfx", **{"model.keras": bytes(content)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: free)
        with pytest.raises(MemoryError, match="b.tfx holds an analyzer, which needs 4,29"):
            tfexplain.load_analyzer(target)


# --- pickle ---


def test_pickle_joblib_and_deepcopy_carry_what_save_does(model, analyzer, x, tmp_path):
    joblib = pytest.importorskip("joblib")
    pattern = tfexplain.create_analyzer("pattern.net", model).fit(x)
    for one in (analyzer, pattern):
        joblib.dump(one, tmp_path / "a.joblib")
        for again in (
            pickle.loads(pickle.dumps(one)),
            copy.deepcopy(one),
            joblib.load(tmp_path / "a.joblib"),
        ):
            np.testing.assert_array_equal(again.analyze(x), one.analyze(x))
            assert again.user_model is not model and again.options.keys() == one.options.keys()


def test_what_cannot_be_saved_cannot_be_pickled(model):
    analyzer = tfexplain.create_analyzer("integrated_gradients", model, baseline=lambda x: 0 * x)
    for action in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ValueError, match="baseline=.*cannot be saved.*register_keras"):
            action(analyzer)


def test_a_damaged_pickle_says_so(analyzer):
    function, (content,) = analyzer.__reduce__()
    with pytest.raises(DamagedFileError, match="the pickle of an analyzer"):
        function(content[:200])
    for error in (DamagedFileError("a", "b", "c"), NotWritableError("a", OSError(28, "full"), "d")):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error) and again.path == pathlib.Path("a")
