import json
import os

import numpy as np
import pytest
import xarray as xr

from tfexplain import files, results


def make(shape=(4, 5, 3), n=3, k=2, draw=0, **changes):
    generator = np.random.default_rng(draw)
    arguments = {
        "relevance": generator.normal(size=(n, k, *shape)).astype(np.float32),
        "inputs": generator.normal(size=(n, *shape)).astype(np.float32),
        "outputs": generator.normal(size=(n, 6)).astype(np.float32),
        "targets": generator.integers(0, 6, (n, k)),
        "analyzer": "lrp.z",
        "config": {"name": "lrp.z", "options": {"epsilon": 1e-7}},
        "assignment": [("conv", "Conv2D", "Epsilon()"), ("dense", "Dense", "Epsilon()")],
        **changes,
    }
    positional = [arguments.pop(name) for name in ("relevance", "inputs", "outputs", "targets")]
    return results.attribution_dataset(*positional, **arguments)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((7,), ("feature",)),
        ((5, 2), ("step", "feature")),
        ((4, 5, 3), ("height", "width", "channel")),
        ((2, 4, 5, 3), ("axis_1", "axis_2", "axis_3", "axis_4")),
        ((), ()),
    ],
)
def test_variables_and_dimensions(shape, names):
    dataset = make(shape)
    assert set(dataset.data_vars) == {
        "relevance",
        "input",
        "output",
        "target",
        "conservation_error",
    }
    assert dataset["relevance"].dims == ("sample", "vector", *names)
    assert dataset["input"].dims == ("sample", *names)
    assert dataset["output"].dims == ("sample", "output_index")
    assert dataset["target"].dims == dataset["conservation_error"].dims == ("sample", "vector")
    assert set(dataset.coords) == set(dataset.dims)
    results.check(dataset)


def test_conservation_error_is_sum_minus_explained_output():
    relevance = np.arange(24.0).reshape(2, 3, 4)
    outputs = np.array([[1.0, 2.0], [3.0, 5.0]])
    targets = np.array([[0, 1, 0], [1, 1, 0]])
    dataset = make(relevance=relevance, inputs=np.zeros((2, 4)), outputs=outputs, targets=targets)
    expected = relevance.sum(2) - [[1, 2, 1], [5, 5, 3]]
    np.testing.assert_array_equal(dataset["conservation_error"], expected)


def test_conservation_error_is_summed_in_float64():
    relevance = np.array([[[1e8, 1.0, -1e8]]], np.float32)
    dataset = make(
        relevance=relevance,
        inputs=np.zeros((1, 3), np.float32),
        outputs=np.array([[0.25]], np.float32),
        targets=np.array([[0]]),
    )
    assert dataset["conservation_error"].item() == 0.75
    assert dataset["relevance"].dtype == np.float32


def test_several_inputs():
    dataset = make(
        relevance={"image": np.ones((2, 1, 4, 4, 1)), "outer/age": np.ones((2, 1, 3))},
        inputs={"image": np.ones((2, 4, 4, 1)), "outer/age": np.ones((2, 3), int)},
        outputs=np.full((2, 2), 5.0),
        targets=np.array([[0], [1]]),
    )
    assert dataset["relevance_image"].dims[2:] == ("height_image", "width_image", "channel_image")
    assert dataset["input_outer_age"].dims == ("sample", "feature_outer_age")
    np.testing.assert_array_equal(dataset["conservation_error"], 16 + 3 - 5)
    results.check(dataset)


def test_attributes_are_text_or_numbers():
    dataset = make(seed=7, notes=["one", "two"])
    assert dataset.attrs["seed"] == 7 and make().attrs["seed"] == "none"
    attributes = dataset.attrs
    assert all(isinstance(value, (str, int)) for value in attributes.values())
    assert json.loads(attributes["config"])["options"] == {"epsilon": 1e-7}
    assert json.loads(attributes["assignment"])[1] == ["dense", "Dense", "Epsilon()"]
    assert set(json.loads(attributes["versions"])) >= {"python", "tensorflow", "keras", "numpy"}
    assert attributes["notes"] == "one\ntwo"


def test_dtypes_that_netcdf_has():
    dataset = make(
        relevance=np.ones((1, 1, 2), np.float16),
        inputs=np.array([[True, False]]),
        outputs=np.ones((1, 1), np.float16),
        targets=np.array([[0]], np.uint8),
    )
    kinds = [dataset[name].dtype for name in ("relevance", "input", "output", "target")]
    assert kinds == [np.float32, np.int8, np.float32, np.int64]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": np.zeros((3, 1), int)}, r"relevance has shape \(3, 2, 4, 5, 3\)"),
        ({"targets": np.full((3, 2), 6)}, r"targets go from 6 to 6.*0 to 5"),
        ({"targets": np.zeros(3, int)}, r"targets \(3,\). Expected \(n, num_outputs\)"),
        ({"relevance": {"a": np.zeros((3, 2, 1))}}, "relevance is a dict and inputs a ndarray"),
        (
            {"relevance": {"a": np.zeros((3, 2, 1))}, "inputs": {"b": np.zeros((3, 1))}},
            r"inputs \['a'\] and inputs has \['b'\]",
        ),
        ({"config": {"f": object()}}, "config cannot be written as JSON"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_targets_must_be_integers():
    with pytest.raises(TypeError, match="targets are float64. Give integers"):
        make(targets=np.zeros((3, 2)))


def test_round_trip_is_identical(tmp_path):
    dataset = make(notes="left out: Größe", config={"text": "x" * 100_000})
    results.save(dataset, tmp_path / "a.nc")
    loaded = results.load(tmp_path / "a.nc")
    assert loaded.identical(dataset)
    assert os.listdir(tmp_path) == ["a.nc"]
    results.save(loaded, tmp_path / "a.nc")  # the file is not held open


def test_comparison_round_trip(tmp_path):
    first, second = make(k=1), make(k=1)
    second["relevance"] = 2 * second["relevance"]
    comparison = results.comparison_dataset({"lrp.z": first, "other": second}, notes="left: out")
    assert comparison["relevance"].dims == ("analyzer", "sample", "height", "width", "channel")
    assert comparison["conservation_error"].dims == ("analyzer", "sample")
    assert comparison["target"].dims == ("sample",)
    np.testing.assert_array_equal(
        comparison["relevance"].sel(analyzer="other"), second["relevance"][:, 0]
    )
    assert set(json.loads(comparison.attrs["config"])) == {"lrp.z", "other"}
    assert comparison.attrs["notes"] == "left: out"
    results.save(comparison, tmp_path / "c.nc")
    assert results.load(tmp_path / "c.nc").identical(comparison)


def test_comparison_refuses_what_does_not_fit():
    first = make(k=1)
    with pytest.raises(ValueError, match="attributions is empty"):
        results.comparison_dataset({})
    with pytest.raises(ValueError, match="'a' has 2 vectors per sample"):
        results.comparison_dataset({"a": make()})
    with pytest.raises(ValueError, match="'b' and 'a' differ in 'input'"):
        results.comparison_dataset({"a": first, "b": make(k=1, inputs=np.zeros((3, 4, 5, 3)))})
    with pytest.raises(ValueError, match="'b' and 'a' differ in 'output'"):
        results.comparison_dataset({"a": first, "b": first.assign(output=first["output"] + 1)})
    with pytest.raises(ValueError, match="'b' is no attribution of a model with one input"):
        comparison = results.comparison_dataset({"a": first})
        results.comparison_dataset({"a": first, "b": comparison})


def test_a_comparison_keeps_the_side_and_refuses_different_ones(tmp_path):
    sides = ["positive", "negative", "positive"]
    first, second = make(k=1, sides=sides), make(k=1, sides=sides)
    comparison = results.comparison_dataset({"a": first, "b": second})
    assert comparison["side"].dims == ("sample",)
    assert comparison["side"].values.tolist() == sides
    assert comparison.attrs["side"] == "by sample"
    results.save(comparison, tmp_path / "c.nc")
    assert results.load(tmp_path / "c.nc").identical(comparison)
    assert results.comparison_dataset({"a": make(k=1)}).attrs.keys().isdisjoint({"side"})
    for other in (make(k=1), make(k=1, sides=["positive"] * 3)):
        for pair in ({"a": first, "b": other}, {"a": other, "b": first}):
            with pytest.raises(ValueError, match="'b' and 'a' differ in 'side'"):
                results.comparison_dataset(pair)


def test_the_attribute_side_says_for_which_class_the_maps_speak():
    assert "side" not in make().attrs
    positive, negative = (make(sides=[side] * 3) for side in ("positive", "negative"))
    assert (positive.attrs["side"], negative.attrs["side"]) == ("positive", "negative")
    assert results.concatenate([negative, negative]).attrs["side"] == "negative"
    assert results.concatenate([negative, positive]).attrs["side"] == "by sample"
    # Earlier versions said it only where they were asked for a class.
    for pair in ([positive, make()], [make(), positive]):
        joined = results.concatenate(pair)
        assert joined.attrs["side"] == "positive" and set(joined["side"].values) == {"positive"}
    first, second = make(k=1), make(k=1, sides=["positive"] * 3)
    for pair in ({"a": first, "b": second}, {"a": second, "b": first}):
        assert results.comparison_dataset(pair).attrs["side"] == "positive"
    with pytest.raises(ValueError, match="variable 'side' has"):
        results.check(positive.assign(side=positive["target"]))


def test_concatenate():
    whole = make(n=5)
    parts = [whole.isel(sample=slice(0, 2)), whole.isel(sample=slice(2, 5))]
    assert results.concatenate(parts).identical(whole)
    with pytest.raises(ValueError, match="attributions is empty"):
        results.concatenate([])
    with pytest.raises(ValueError, match="differ in 'config'"):
        results.concatenate([whole, make(config={})])


def test_save_refuses_another_dataset(tmp_path):
    with pytest.raises(ValueError, match="schema None; expected 'attribution' or 'comparison'"):
        results.save(xr.Dataset(), tmp_path / "a.nc")
    broken = make().drop_vars("target").rename_dims(output_index="class").assign_attrs(seed=True)
    with pytest.raises(ValueError, match="'target' is missing; .*'class'.*'seed' is a bool"):
        results.save(broken, tmp_path / "a.nc")
    assert not os.listdir(tmp_path)


@pytest.mark.filterwarnings("ignore:.* has no checksum")
def test_load_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*none.nc"):
        results.load(tmp_path / "none.nc")
    (tmp_path / "damaged.nc").write_bytes(b"no netcdf")
    with pytest.raises(ValueError, match="damaged.nc is damaged: it cannot be read as NetCDF"):
        results.load(tmp_path / "damaged.nc")
    results.save(make(), tmp_path / "cut.nc")
    content = (tmp_path / "cut.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cut.nc is damaged: it cannot be read as NetCDF"):
        results.load(tmp_path / "cut.nc")
    xr.Dataset({"a": 1}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="other.nc is damaged: The Dataset has the schema None"):
        results.load(tmp_path / "other.nc")
    make().assign_attrs(schema_version=99).to_netcdf(tmp_path / "new.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="schema version 99; this tfexplain reads version 1"):
        results.load(tmp_path / "new.nc")


def test_nothing_half_written_remains(tmp_path, monkeypatch):
    results.save(make(), tmp_path / "a.nc")
    before = (tmp_path / "a.nc").read_bytes()

    def fail(source, target):
        assert source.exists()
        raise RuntimeError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        results.save(make(draw=1), tmp_path / "a.nc")
    assert os.listdir(tmp_path) == ["a.nc"]
    assert (tmp_path / "a.nc").read_bytes() == before


def test_write_atomically_keeps_the_suffix_and_checks_the_place(tmp_path):
    seen = []
    files.write_atomically(tmp_path / "a.png", lambda p: (seen.append(p), p.write_text("x")))
    assert seen[0].suffix == ".png" and seen[0].parent == tmp_path and seen[0].name != "a.png"
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist. Make it first"):
        files.write_atomically(tmp_path / "no" / "a.png", lambda p: None)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        files.write_atomically(tmp_path / "folder", lambda p: None)


def test_output_folder_moves_everything_at_the_end(tmp_path):
    target = tmp_path / "deep" / "out"
    with files.output_folder(target) as folder:
        (folder / "new.txt").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "inner.txt").write_text("inner")
        assert not target.exists()
    assert (target / "sub" / "inner.txt").read_text() == "inner"
    (target / "mine.txt").write_text("mine")
    with files.output_folder(target) as folder:
        (folder / "new.txt").write_text("newer")
    assert sorted(os.listdir(target)) == ["mine.txt", "new.txt", "sub"]
    assert (target / "new.txt").read_text() == "newer"
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_output_folder_leaves_nothing_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError), files.output_folder(tmp_path / "a" / "b") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    (tmp_path / "out" / "taken").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="Cannot write taken into"):
        with files.output_folder(tmp_path / "out") as folder:
            (folder / "taken").write_text("x")
            (folder / "also").write_text("x")
    assert os.listdir(tmp_path / "out") == ["taken"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file is a file. Choose another folder"):
        files.check_folder(tmp_path / "file" / "out")
