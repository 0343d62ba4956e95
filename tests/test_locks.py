"""Folders that one process at a time writes into."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import xarray as xr

import tfexplain
from tests.helpers.deep_lift_networks import KERAS_SAVES
from tests.helpers.folders import listed
from tfexplain.errors import InUseError
from tfexplain.locks import lock

pytestmark = KERAS_SAVES


def test_a_folder_has_one_writer(tmp_path):
    path = tmp_path / "audit.lock"
    with lock(path, "The folder"):
        owner = json.loads(path.read_text())
        assert owner["host"] == socket.gethostname() and owner["process"] == os.getpid()
        with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on this host"):
            with lock(path, "The folder"):
                pass
        assert json.loads(path.read_text()) == owner
    assert listed(tmp_path) == []


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ({"host": "elsewhere", "process": 1, "began": 0.0}, "host elsewhere.*delete .*audit.lock"),
        ({}, "does not say by which process.*delete"),
        ({"host": 3}, "does not say by which process.*delete"),
    ],
)
def test_another_host_is_not_taken_over(owner, message, tmp_path):
    path = tmp_path / "audit.lock"
    path.write_text(json.dumps(owner))
    with pytest.raises(InUseError, match=message):
        with lock(path, "The folder"):
            pass
    assert json.loads(path.read_text()) == owner


def stale_owner():
    """Returns what the lock file of a process that is gone says."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    began = psutil.Process(gone.pid).create_time()
    gone.wait()
    return {"host": socket.gethostname(), "process": gone.pid, "began": began}


def test_a_process_that_is_gone_is_taken_over(tmp_path):
    path = tmp_path / "audit.lock"
    stale = stale_owner()
    for owner in (
        stale,
        # Its number is that of another process now.
        {**stale, "process": os.getpid(), "began": psutil.Process().create_time() - 1000},
    ):
        path.write_text(json.dumps(owner))
        with lock(path, "The folder"):
            assert json.loads(path.read_text())["process"] == os.getpid()
        assert listed(tmp_path) == []


CONTENDER = """
import os, sys, time
from tfexplain.locks import lock
from tfexplain.errors import InUseError

path, marker, ends = sys.argv[1], sys.argv[2], time.monotonic() + 3


def hold(leave):
    try:
        with lock(path, "The folder"):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            time.sleep(0)
            os.unlink(marker)
            leave(0)
            return 1
    except InUseError as error:
        assert "is in use by process" in str(error), error
        return 0


held = 0
while time.monotonic() < ends:
    held += hold(abs)
    # A copy of this process ends within the lock, as one that is killed, and leaves it stale.
    child = os.fork()
    if not child:
        hold(os._exit)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print(held)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be copied here")
def test_of_many_that_take_over_stale_locks_one_has_it(tmp_path):
    """One that took over late moved away the new lock, and a third made its own meanwhile."""
    folder = tmp_path / "locked"
    folder.mkdir()
    command = [sys.executable, "-c", CONTENDER, str(folder / "a.lock"), str(tmp_path / "marker")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    contenders = [subprocess.Popen(command, **pipes) for _ in range(4)]
    outputs = [contender.communicate(timeout=60) for contender in contenders]
    assert not [text for _, text in outputs if text]
    assert sum(int(count) for count, _ in outputs) > 0
    with lock(folder / "a.lock", "The folder"):
        assert listed(folder) == ["a.lock"]
    assert listed(folder) == []


def test_a_new_lock_is_not_moved_away_by_one_that_saw_the_stale_one(tmp_path, monkeypatch):
    path, stale = tmp_path / "a.lock", stale_owner()
    path.write_text(json.dumps(stale))
    inside, most, leave, threads = [], [], threading.Event(), []

    def contend():
        with contextlib.suppress(InUseError), lock(path, "The folder"):
            inside.append(threading.get_ident())
            most.append(len(inside))
            leave.wait(10)
            inside.remove(threading.get_ident())

    def start():
        threads.append(threading.Thread(target=contend))
        threads[-1].start()
        threads[-1].join(0.3)

    asked = psutil.Process

    def when_asked(*number):
        if number == (stale["process"],) and not threads:
            start()
        return asked(*number)

    monkeypatch.setattr(psutil, "Process", when_asked)
    first = threading.Thread(target=contend)
    first.start()
    first.join(2)
    leave.set()
    for thread in (first, *threads):
        thread.join()
    assert threads and most == [1]
    assert listed(tmp_path) == []


def test_a_clock_that_is_set_frees_no_lock(tmp_path, monkeypatch):
    """The start of a process is told by the clock: where that is set, another process seems meant.

    A container whose processes have the same numbers looks just like that.
    """
    path, asked = tmp_path / "a.lock", psutil.Process.create_time
    with lock(path, "The folder"):
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: asked(self) + 3600)
        with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on this host"):
            with lock(path, "The folder"):
                pass
        assert listed(tmp_path) == ["a.lock"]
        monkeypatch.undo()
    assert listed(tmp_path) == []


def test_a_lock_taken_over_is_held_as_firmly(tmp_path, monkeypatch):
    path, asked = tmp_path / "a.lock", psutil.Process.create_time
    path.write_text(json.dumps(stale_owner()))
    with lock(path, "The folder"):
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: asked(self) + 3600)
        with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on this host"):
            with lock(path, "The folder"):
                pass


def test_a_killed_process_whose_parent_does_not_ask_is_gone(tmp_path):
    path = tmp_path / "a.lock"
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    owner = {"host": socket.gethostname(), "process": killed.pid}
    path.write_text(json.dumps({**owner, "began": psutil.Process(killed.pid).create_time()}))
    killed.kill()
    while psutil.Process(killed.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with lock(path, "The folder"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    killed.wait()


def test_the_lock_of_another_is_not_removed_on_leaving(tmp_path):
    path = tmp_path / "a.lock"
    other = {"host": "elsewhere", "process": 1, "began": 0.0}
    with lock(path, "The folder"):
        path.write_text(json.dumps(other))
    assert json.loads(path.read_text()) == other


def test_a_lock_that_is_released_meanwhile_is_not_in_use(tmp_path, monkeypatch):
    path, asked = tmp_path / "a.lock", psutil.Process
    stack = contextlib.ExitStack()
    stack.enter_context(lock(path, "The folder"))

    def when_asked(*number):
        if number:
            stack.close()
        return asked(*number)

    monkeypatch.setattr(psutil, "Process", when_asked)
    with lock(path, "The folder"):
        assert listed(tmp_path) == ["a.lock"]
    assert listed(tmp_path) == []


def test_without_links_and_locks_of_the_system_a_stale_lock_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.lock"

    def refuse(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr("fcntl.flock", refuse)
    with lock(path, "The folder"):
        with pytest.raises(InUseError, match="in use by process .* on this host. Wait"):
            with lock(path, "The folder"):
                pass
    assert listed(tmp_path) == []
    path.write_text(json.dumps(stale_owner()))
    with pytest.raises(InUseError, match="which is gone, .* take over .*a.lock. Delete that file"):
        with lock(path, "The folder"):
            pass
    assert listed(tmp_path) == ["a.lock"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 9999,
        b'{"host": "", "process": Infinity}',
        json.dumps({"host": socket.gethostname(), "process": -1, "began": 0}).encode(),
    ],
    ids=["empty", "no text", "deep", "infinite", "negative"],
)
def test_a_lock_file_of_another_origin_is_named(content, tmp_path):
    path = tmp_path / "a.lock"
    path.write_bytes(content)
    with pytest.raises(InUseError, match="does not say by which process.*delete .*a.lock"):
        with lock(path, "The folder"):
            pass
    assert path.read_bytes() == content


def test_the_second_of_two_audits_writes_nothing(dense_relu, tmp_path):
    model, x = dense_relu, np.random.default_rng(1).normal(size=(9, 5)).astype("float32")
    options = {"methods": ["gradient"], "audits": "entropy", "preset": "quick"}
    folder = tmp_path / "audit"
    found = tfexplain.audit(model, x, folder=folder, **options)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with lock(folder / "audit.lock", "The folder"):
        with pytest.raises(InUseError, match="in use by process"):
            tfexplain.audit(model, x, folder=folder, **options)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    again = tfexplain.audit(model, x, folder=folder, **options)
    xr.testing.assert_identical(again.datasets["entropy"], found.datasets["entropy"])
