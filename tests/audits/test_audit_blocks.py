"""Runs in blocks: kept, continued, refused; and what audits share."""

import json
import math
import warnings

import numpy as np
import pytest
import xarray as xr

from tests.helpers.networks import create, small_cnn
from tfexplain import files, metrics, netcdf, runs
from tfexplain.audits.case import Case, structural_similarity
from tfexplain.errors import DamagedFileError
from tfexplain.runs import digest, in_blocks

SETTINGS = {"audit": "squares", "seed": 0, "names": ["a", "b"], "scale": 0.5}


class Squares:
    """Squares of ten numbers; counts its blocks, and fails at one of them."""

    def __init__(self, fail_at=None):
        self.blocks, self.fail_at = [], fail_at

    def compute(self, block, advance):
        if len(self.blocks) == self.fail_at:
            raise RuntimeError("no power")
        self.blocks.append((block.start, block.stop))
        advance()
        return {"square": np.arange(block.start, block.stop) ** 2.0, "odd": np.array(True)}

    def combine(self, parts):
        square = np.concatenate([part["square"] for part in parts])
        return xr.Dataset({"square": ("sample", square)}, attrs={"note": "as counted"})

    def run(self, path=None, settings=SETTINGS, block_size=4):
        return in_blocks(
            self.compute,
            self.combine,
            title="squares",
            count=10,
            block_size=block_size,
            steps=1,
            settings=settings,
            path=path,
        )


BLOCKS = [(0, 4), (4, 8), (8, 10)]


def interrupted(path, at=2):
    with pytest.raises(RuntimeError, match="no power"):
        Squares(fail_at=at).run(path)
    return path.with_name(path.name + ".blocks")


def test_blocks_without_a_path():
    squares = Squares()
    found = squares.run()
    np.testing.assert_array_equal(found.square, np.arange(10) ** 2)
    assert squares.blocks == BLOCKS
    assert found.attrs == {"note": "as counted"}
    one = Squares()
    xr.testing.assert_identical(one.run(block_size=100), found)
    assert one.blocks == [(0, 10)]


def test_a_finished_file_is_reused(tmp_path):
    path = tmp_path / "squares.nc"
    found = Squares().run(path)
    assert [file.name for file in tmp_path.iterdir()] == ["squares.nc"]
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        xr.testing.assert_identical(stored.load(), found)
    again = Squares()
    xr.testing.assert_identical(again.run(str(path)), found)
    assert again.blocks == []
    assert json.loads(found.attrs["settings"]) == {**SETTINGS, "block_size": 4}


def test_an_interrupted_run_continues(tmp_path):
    path = tmp_path / "squares.nc"
    folder = interrupted(path)
    assert len(list(folder.glob("*.npz"))) == 2 and not path.exists()
    rest = Squares()
    found = rest.run(path)
    assert rest.blocks == BLOCKS[2:]
    xr.testing.assert_identical(found, Squares().run(tmp_path / "whole.nc"))
    assert path.exists() and not folder.exists()


def test_names_of_a_finished_file_are_not_cut_when_it_is_joined_with_others(tmp_path):
    # xarray writes a coordinate with the encoding of the file from which its first part came.
    parts = []
    for name in ("ab", "ab", "abcdef"):

        def combine(blocks, name=name):
            values = np.zeros((1, 2))
            return xr.Dataset(
                {"value": (("analyzer", "step"), values)}, {"analyzer": [name], "step": ["a", "b"]}
            )

        path = tmp_path / f"{name}.nc"
        parts.append(
            in_blocks(
                lambda block, advance: {},
                combine,
                title="",
                count=1,
                block_size=1,
                steps=1,
                settings={},
                path=path,
            )
        )
    options = {"data_vars": "minimal", "coords": "minimal", "compat": "override"}
    joined = xr.concat(parts[1:], "analyzer", join="override", **options)
    joined.to_netcdf(tmp_path / "joined.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "joined.nc", engine="h5netcdf") as stored:
        assert stored["analyzer"].values.tolist() == ["ab", "abcdef"]


def test_blocks_left_beside_a_finished_file_are_removed(tmp_path):
    # Killed between writing the result and removing the blocks.
    path = tmp_path / "squares.nc"
    Squares().run(path)
    folder = tmp_path / "squares.nc.blocks"
    folder.mkdir()
    (folder / "00000000-00000004.npz").write_bytes(b"old")
    Squares().run(path)
    assert not folder.exists()


@pytest.mark.parametrize("finished", [False, True], ids=["blocks", "file"])
@pytest.mark.parametrize(
    ("settings", "block_size", "names"),
    [
        ({**SETTINGS, "seed": 1}, 4, "seed"),
        ({**SETTINGS, "seed": 1, "names": ["a"]}, 4, "names, seed"),
        ({**SETTINGS, "more": None, "scale": 1.0}, 4, "scale"),
        (SETTINGS, 5, "block_size"),
    ],
)
def test_other_settings_are_refused(tmp_path, finished, settings, block_size, names):
    path = tmp_path / "squares.nc"
    place = interrupted(path).name
    if finished:
        Squares().run(path)
        place = path.name
    other = Squares()
    message = rf"{place} holds a run with other settings; they differ in .*{names}\. Choose another"
    with pytest.raises(ValueError, match=message):
        other.run(path, settings, block_size)
    assert other.blocks == []
    # What was there is still there.
    assert Squares().run(path).square.sum() == 285


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"0123"], ids=len)
def test_damaged_blocks_are_computed_again(tmp_path, content):
    path = tmp_path / "squares.nc"
    folder = interrupted(path)
    (folder / "00000000-00000004.npz").write_bytes(content)
    rest = Squares()
    with pytest.warns(UserWarning, match="00000000-00000004.npz is damaged .* computed again"):
        found = rest.run(path)
    assert rest.blocks == [BLOCKS[0], BLOCKS[2]]
    np.testing.assert_array_equal(found.square, np.arange(10) ** 2)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_truncated_blocks_are_computed_again(tmp_path, kept):
    path = tmp_path / "squares.nc"
    file = interrupted(path) / "00000004-00000008.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])
    with pytest.warns(UserWarning, match="is damaged"):
        found = Squares().run(path)
    np.testing.assert_array_equal(found.square, np.arange(10) ** 2)


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "squares.nc"
    file = interrupted(path) / "00000004-00000008.npz"
    whole = bytearray(file.read_bytes())
    whole[whole.index(np.float64(36.0).tobytes()) + 7] ^= 1
    file.write_bytes(whole)
    with pytest.warns(UserWarning, match="is damaged"):
        found = Squares().run(path)
    np.testing.assert_array_equal(found.square, np.arange(10) ** 2)


def test_the_warning_of_a_damaged_block_says_it_once(tmp_path):
    path = tmp_path / "squares.nc"
    file = interrupted(path) / "00000000-00000004.npz"
    file.write_bytes(b"no archive" + file.read_bytes()[10:])
    with pytest.warns(UserWarning) as warned:
        Squares().run(path)
    said = "its content does not have the checksum at its end"
    assert [str(one.message) for one in warned] == [
        f"{file} is damaged ({said}) and is computed again."
    ]


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (b'{"audit": ', "it is no JSON"),
        (b'{"audit": "\xff"}', "it is no JSON"),
        (b"[1]", "it is a list"),
        (b"", "it is no JSON"),
        ((b'"seed": 0', b'"seed": 8'), "its content does not have the checksum in it"),
        ((b'"settings"', b'"sett!ngs"'), "its content does not have the checksum in it"),
        ((b'"sha256"', b'"sha257"'), "it has no sha256"),
    ],
    ids=["cut", "no text", "a list", "empty", "altered", "other key", "no checksum"],
)
def test_damaged_settings_of_blocks_are_no_other_settings(tmp_path, content, missing):
    path = tmp_path / "squares.nc"
    folder = interrupted(path)
    file = folder / "settings.json"
    damaged = file.read_bytes().replace(*content) if isinstance(content, tuple) else content
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    names = sorted(one.name for one in folder.iterdir())
    with pytest.raises(DamagedFileError, match=f"{missing}.*Remove it, and the blocks") as error:
        Squares().run(path)
    assert error.value.path == file and file.read_bytes() == damaged
    assert sorted(one.name for one in folder.iterdir()) == names
    # As the message says: nothing tells of which settings the blocks are.
    file.unlink()
    again = Squares()
    with pytest.warns(UserWarning, match="2 block.* computed again: settings.json, which says"):
        np.testing.assert_array_equal(again.run(path).square, np.arange(10) ** 2)
    assert again.blocks == BLOCKS


def test_blocks_of_earlier_versions_continue_with_a_notice(tmp_path):
    path = tmp_path / "squares.nc"
    file = interrupted(path) / "settings.json"
    file.write_text(json.dumps({**SETTINGS, "block_size": 4}, sort_keys=True))
    rest = Squares()
    with pytest.warns(UserWarning, match="settings.json has no checksum, because an earlier"):
        rest.run(path)
    assert rest.blocks == BLOCKS[2:]


@pytest.mark.parametrize("settings", ["{", "3", 3, "[" * 9999], ids=["cut", "text", "3", "deep"])
def test_damaged_settings_of_a_result_are_no_other_settings(tmp_path, settings):
    path = tmp_path / "squares.nc"
    netcdf.write(xr.Dataset({"square": 1.0}, attrs={"settings": settings}), path)
    with pytest.raises(DamagedFileError, match="its settings cannot be read.*Choose another path"):
        Squares().run(path)
    assert path.exists()


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "text.nc"
    path.write_text("no NetCDF")
    with pytest.raises(ValueError, match="text.nc is damaged: .*NetCDF.*Choose another"):
        Squares().run(path)
    assert path.read_text() == "no NetCDF"
    foreign = tmp_path / "foreign.nc"
    xr.Dataset({"a": 1}).to_netcdf(foreign, engine="h5netcdf")
    with (
        pytest.warns(UserWarning, match="foreign.nc has no checksum"),
        pytest.raises(ValueError, match="foreign.nc holds a run with other settings"),
    ):
        Squares().run(foreign)
    with pytest.raises(FileNotFoundError, match="the folder .*nowhere does not exist"):
        Squares().run(tmp_path / "nowhere" / "squares.nc")


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_wrong_block_sizes(size):
    with pytest.raises(ValueError, match=f"positive integer, received {size}"):
        Squares().run(block_size=size)


def test_a_failed_write_leaves_no_half_block(tmp_path, monkeypatch):
    def failing(path, content):
        def half(name):
            name.write_bytes(content[: len(content) // 2])
            raise OSError("disk full")

        files.write_atomically(path, half)

    path = tmp_path / "squares.nc"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(files, "write_sealed", failing)
        Squares().run(path)
    folder = tmp_path / "squares.nc.blocks"
    assert [file.name for file in folder.iterdir()] == ["settings.json"]
    assert Squares().run(path).sizes == {"sample": 10}


def test_large_results_are_packed_and_the_same(tmp_path):
    values = np.random.default_rng(0).integers(0, 3, 5000)

    def combine(parts):
        return xr.Dataset({"many": ("x", values), "name": ("y", np.array(["b", "c"]))})

    path = tmp_path / "many.nc"
    found = in_blocks(
        lambda block, advance: {},
        combine,
        title="",
        count=1,
        block_size=1,
        steps=1,
        settings={"long": "x" * 100_000},
        path=path,
    )
    assert path.stat().st_size < values.nbytes // 2 + 110_000
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        xr.testing.assert_identical(stored.load(), found)


def test_checksums():
    a = np.arange(6.0)
    digests = {
        digest([a]),
        digest([a.reshape(2, 3)]),
        digest([a.astype("float32")]),
        digest([a, a]),
        digest([a[::-1]]),
        digest([]),
        digest([np.zeros((0, 3))]),
        digest([np.float64(3.0)]),
    }
    assert len(digests) == 8
    assert digest([a[::-1]]) == digest([np.array([5.0, 4, 3, 2, 1, 0])])
    assert digest(iter([a])) == digest([a])


# --- what audits share ---


@pytest.fixture(scope="module")
def model():
    return small_cnn()


def test_settings_have_checksums_only_where_they_are_needed(model):
    analyzers, x = {"gradient": create("gradient", model)}, np.ones((1, 8, 8, 3))
    short = runs.settings("any", analyzers, x, {"seed": 1}, with_data=False)
    full = runs.settings("any", analyzers, x, {"seed": 1}, with_data=True)
    assert set(full) - set(short) == {"samples_sha256", "weights_sha256", "architecture_sha256"}
    other = runs.settings("any", analyzers, x + 1, {"seed": 1}, with_data=True)
    differing = {key for key in full if full[key] != other[key]}
    assert differing == {"samples_sha256"}
    json.dumps(full)
    changed = {"gradient": create("gradient", small_cnn(seed=1))}
    other = runs.settings("any", changed, x, {"seed": 1}, with_data=True)
    assert {key for key in full if full[key] != other[key]} == {"weights_sha256"}


def test_attributes_are_text_and_numbers():
    found = runs.attributes(
        {"a": None, "b": True, "c": [1, "x"], "d": 0.5, "e": "text", "f": {"k": None}},
        ["one", "two"],
    )
    expected = {"a": "none", "b": 1, "c": '[1, "x"]', "d": 0.5, "e": "text", "f": '{"k": null}'}
    assert found == {**expected, "notes": "one\ntwo"}


def test_typed_samples_are_shared(model):
    analyzers = {
        "wide": create("gradient", model),
        "narrow": create("gradient", model, dtype="float32"),
        "again": create("lrp.z", model, dtype="float32"),
    }
    case = Case(analyzers, np.ones((2, 8, 8, 3)))
    found = {name: case.arrays(name)[0] for name in analyzers}
    assert found["wide"] is case.samples and case.samples.dtype == "float64"
    assert found["narrow"] is found["again"] and found["narrow"].dtype == "float32"


def test_similarity_with_flip_is_the_larger():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 9, 9))
    scaled = metrics.percentile(first)
    plain = structural_similarity(scaled, second, "percentile", 1.0, False)
    opposite = structural_similarity(scaled, -second, "percentile", 1.0, False)
    for map in (second, -second):
        found = structural_similarity(scaled, map, "percentile", 1.0, True)
        assert found == max(plain, opposite)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a, b in ((scaled * np.nan, second), (scaled, np.ones((9, 9)))):
            found = structural_similarity(a, b, "percentile", 1.0, True)
            assert math.isnan(found)
