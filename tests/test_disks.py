"""Every command on a file system that is full or cannot be written to."""

import os
import shutil
import subprocess

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner

from tfexplain import cli

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COMMANDS = {
    "explain": ("explain", "MODEL", "X", "--method", "gradient", "--out", "OUT"),
    "audit": ("audit", "MODEL", "X", "--quick", "--methods", "lrp.z", "--audits", "entropy")
    + ("--out", "OUT"),
    "koopman": ("koopman", "MODEL", "X", "--repeats", "2", "--steps", "3")
    + ("--max-dimension", "8", "--out", "OUT"),
    "export": ("export", "MODEL", "OUT", "--method", "lrp.z"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(A saved network, samples for it)."""
    path = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(2, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    keras.Sequential([keras.Input((6, 6, 1)), *stack]).save(path / "m.keras")
    np.save(path / "x.npy", np.random.default_rng(0).normal(size=(12, 6, 6, 1)))
    return path / "m.keras", path / "x.npy"


@pytest.fixture
def mount(tmp_path):
    """Mounts a file system with options, or mounts it again with others; returns its folder."""
    folder = tmp_path / "disk"

    def mount(options, again=False):
        folder.mkdir(exist_ok=True)
        given = f"remount,{options}" if again else options
        command = ["mount", "-t", "tmpfs", "-o", given, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("file systems cannot be mounted here")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def run(name, files, out):
    places = {"MODEL": str(files[0]), "X": str(files[1]), "OUT": str(out)}
    arguments = [places.get(word, word) for word in COMMANDS[name]]
    return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


def left_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_in_a_message_and_the_same_command_goes_on(name, files, mount):
    disk = mount("size=8k")
    done = run(name, files, disk / "out")
    assert done.exit_code == 1, done.output
    words = " ".join(done.output.split())
    assert "No space left on device" in words and "Free space" in words
    left = left_in(disk)
    # An audit keeps what is finished; nothing else is left, and no half of a file.
    assert not [file for file in left if "/." in file or file.endswith(".lock")]
    assert name == "audit" or not left
    mount("size=20m", again=True)
    done = run(name, files, disk / "out")
    assert done.exit_code == 0, done.output
    assert left_in(disk)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_cannot_be_written_to(name, files, mount):
    disk = mount("size=1m,ro")
    done = run(name, files, disk / "out")
    assert done.exit_code == 1, done.output
    words = " ".join(done.output.split())
    assert "Read-only file system" in words and "Choose a folder that you may write to" in words
    assert not left_in(disk)
