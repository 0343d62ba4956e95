"""Files that the system does not let write or read: full disks, limits, permissions."""

import errno
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import xarray as xr

import tfexplain
from tests.helpers.deep_lift_networks import KERAS_SAVES
from tests.helpers.folders import dataset, listed
from tfexplain import netcdf, results
from tfexplain.audits import entropy
from tfexplain.errors import NotWritableError

pytestmark = KERAS_SAVES


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(9, 5)).astype("float32")


@pytest.fixture(scope="module")
def analyzer(dense_relu):
    return tfexplain.create_analyzer("lrp.epsilon", dense_relu, epsilon=0.25)


@pytest.fixture
def full_disk(monkeypatch):
    """Every file is too large for the disk but those of settings and blocks."""
    opened = pathlib.Path.open

    class Full:
        def __init__(self, file):
            self.file, self.room = file, 4000

        def write(self, content):
            self.room -= len(content)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(content)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    def limited(path, mode="r", *arguments, **options):
        file = opened(path, mode, *arguments, **options)
        return Full(file) if "w" in mode else file

    monkeypatch.setattr(pathlib.Path, "open", limited)


def test_a_full_disk_leaves_what_was_there(analyzer, x, tmp_path, full_disk):
    kept = tmp_path / "a.nc"
    kept.write_bytes(b"before")
    for write in (
        lambda: results.save(analyzer.attribute(x), kept),
        lambda: analyzer.save(tmp_path / "a.tfx"),
        lambda: entropy({"a": analyzer}, x, path=tmp_path / "e.nc", block_size=3),
    ):
        with pytest.raises(NotWritableError, match=r"No space.* needs [\d,]+ bytes.*Free space"):
            write()
    assert kept.read_bytes() == b"before"
    blocks = [f"e.nc.blocks/{i:08d}-{i + 3:08d}.npz" for i in (0, 3, 6)]
    assert listed(tmp_path) == ["a.nc", "e.nc.blocks", *blocks, "e.nc.blocks/settings.json"]


def test_a_full_folder_for_temporary_files_is_named(analyzer, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    analyzer.save(tmp_path / "a.tfx")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = "Cannot write .*/temporary: No space.*the folder for temporary files.*TMPDIR"
    for owner, name, action in (
        (type(analyzer.user_model), "save", lambda: analyzer.save(tmp_path / "b.tfx")),
        (zipfile.ZipFile, "extract", lambda: tfexplain.load_analyzer(tmp_path / "a.tfx")),
    ):
        with monkeypatch.context() as patch, pytest.raises(NotWritableError, match=message):
            patch.setattr(owner, name, full)
            action()
    assert listed(tmp_path) == ["a.tfx", "temporary"]


LIMITED = """
import resource, sys
import numpy as np, keras
import tfexplain
from keras import layers
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(3)])
x = np.random.default_rng(0).normal(size=(40, 6, 6, 1)).astype("float32")
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    tfexplain.audit(model, x, methods=["gradient"], audits=["entropy", "examples"], images=40,
                    preset="quick", folder=sys.argv[1])
except OSError as error:
    print(type(error).__name__, error)
    sys.exit(1)
"""


def test_a_limit_of_file_sizes_ends_an_audit_cleanly_and_it_continues(tmp_path):
    """HDF5 crashed the interpreter where it could not write."""
    folder = tmp_path / "audit"

    def run(limit):
        command = [sys.executable, "-c", LIMITED, str(folder), str(limit)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    stopped = run(16_000)
    assert stopped.returncode == 1, stopped.stderr
    assert "NotWritableError Cannot write" in stopped.stdout
    assert "same call with that folder continues" in stopped.stdout
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert not (folder / "audit.lock").exists()
    done = run(0)
    assert done.returncode == 0, done.stderr
    found = tfexplain.report.load(folder)
    assert set(found.datasets) == {"entropy", "examples"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(analyzer, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(NotWritableError, match="Permission denied.*may write"):
        analyzer.save(tmp_path / "a.tfx")


def test_a_refused_rename_says_what_to_do(analyzer, tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(NotWritableError, match="Permission denied.*may write to"):
        analyzer.save(tmp_path / "a.tfx")
    assert listed(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_what_the_system_does_not_let_read_is_not_damaged(code, analyzer, tmp_path, monkeypatch):
    refused = OSError(code, os.strerror(code))

    def refuse(*_, **__):
        raise refused

    netcdf.write(dataset(), tmp_path / "a.nc")
    analyzer.save(tmp_path / "a.tfx")
    reads = {
        (xr, "load_dataset"): lambda: netcdf.read(tmp_path / "a.nc", ""),
        (zipfile, "ZipFile"): lambda: tfexplain.load_analyzer(tmp_path / "a.tfx"),
    }
    for (module, name), read in reads.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            with pytest.raises(OSError) as error:
                read()
        assert error.value.errno == code
        read()


def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(dense_relu, x, tmp_path):
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file. Choose another folder"):
        tfexplain.audit(
            dense_relu, x, folder=place / "audit", methods=["gradient"], audits="entropy"
        )
    assert listed(tmp_path) == ["file"] and place.read_text() == ""
