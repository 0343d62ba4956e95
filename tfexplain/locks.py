"""Folders that one process at a time writes into."""

import contextlib
import errno
import json
import os
import pathlib
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import psutil

from tfexplain.errors import InUseError
from tfexplain.files import refusals

# What the system says where another process has locked a file.
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


@contextlib.contextmanager
def lock(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Keeps what a lock file stands for to this process, as long as the context lasts.

    The file says which process has it: host, number, and when it began, because numbers are used
    again. The system locks the file for that process as well, where it can: clocks that are set
    and containers that number their processes alike deceive nobody then. The file of a process of
    this host that is gone is taken over.

    Args:
        path: The lock file; its folder must exist.
        what: What is locked, for the message.

    Raises:
        InUseError: If another process has it, or a host that cannot be asked from here.
        NotWritableError: If the file cannot be written.
    """
    path = pathlib.Path(path)
    me = psutil.Process()
    mine = {"host": socket.gethostname(), "process": me.pid, "began": me.create_time()}
    text = json.dumps(mine).encode()
    with refusals(path):
        while (file := _placed(path, text) or _taken_over(path, text, what)) is None:
            pass
    try:
        yield
    finally:
        if sys.platform == "win32":
            # An open file cannot be removed there.
            file.close()
        # The lock of another process stays, and a copy of this one (fork) removes none.
        if me.pid == os.getpid() and _owner_in(path) == mine:
            path.unlink(missing_ok=True)
        file.close()


def _placed(path: pathlib.Path, text: bytes) -> BinaryIO | None:
    """Creates a lock file that no one sees half-written; returns it if there was none."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return None
        except (OSError, AttributeError, NotImplementedError):
            # Not every file system has links.
            if not _created(path, text):
                return None
    finally:
        temporary.unlink(missing_ok=True)
    file = path.open("r+b")
    # Another process may be reading it, which finds that this one is alive and lets go.
    _guard(file.fileno(), waits=True)
    return file


def _created(path: pathlib.Path, text: bytes) -> bool:
    """Does what `_placed` does without links: the file is empty for a moment."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _taken_over(path: pathlib.Path, text: bytes, what: str) -> BinaryIO | None:
    """Makes the lock file of a process of this host that is gone that of this process.

    The file is written over where it lies, by one process at a time, so that it never is missing.

    Returns:
        The open file, or None where it has been removed meanwhile.

    Raises:
        InUseError: If it is not gone, or that cannot be told.
    """
    free = f"If nothing runs there any more, delete {path}."
    nameless = InUseError(f"{what} is in use, and {path} does not say by which process. {free}")
    try:
        opened = _opened(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise nameless from error
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(opened)
        is_guarded = _guard(file.fileno(), waits=False)
        content = file.read()
        owner = _owner(content)
        if owner is None and is_guarded is False:
            # Another process may be writing it over.
            time.sleep(0.05)
            file.seek(0)
            owner = _owner(content := file.read())
        is_gone = owner is not None and _is_gone(owner) and is_guarded is not False
        # Only now, because a process that is gone removes nothing afterwards.
        if not _is_at(path, file.fileno()):
            return None
        if owner is None:
            raise nameless
        process = f"process {owner['process']}"
        if owner["host"] != socket.gethostname():
            raise InUseError(f"{what} is in use by {process} on the host {owner['host']}. {free}")
        if not is_gone:
            raise InUseError(
                f"{what} is in use by {process} on this host. Wait for it to end, or choose "
                "another place."
            )
        if not (is_guarded and file.writable()):
            raise InUseError(
                f"{what} was in use by {process} on this host, which is gone, and the file system "
                f"does not let one process alone take over {path}. Delete that file."
            )
        file.seek(0)
        file.write(text.ljust(len(content)))
        file.flush()
        stack.pop_all()
        return file


def _opened(path: pathlib.Path) -> BinaryIO:
    try:
        return path.open("r+b")
    except PermissionError:
        # The file of another user may be one that can only be read.
        return path.open("rb")


def _guard(descriptor: int, waits: bool) -> bool | None:
    """Locks a file for this process until it is closed.

    Args:
        descriptor: Of the open file.
        waits: Whether to wait for another process that has it.

    Returns:
        False where another process has it, and None where the system cannot lock it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            # Behind its end, because what is locked there cannot be read.
            os.lseek(descriptor, 2**30, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if waits else msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def _is_at(path: pathlib.Path, descriptor: int) -> bool:
    """Tells whether an open file is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner_in(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        return _owner(path.read_bytes())
    except OSError:
        return None


def _owner(content: bytes) -> dict[str, Any] | None:
    """Returns what a lock file says, or None for one of another origin."""
    try:
        stated = json.loads(content)
        owner: dict[str, Any] = {"host": str(stated["host"]), "process": int(stated["process"])}
        owner["began"] = float(stated["began"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return owner if owner["process"] > 0 else None


def _is_gone(owner: dict[str, Any]) -> bool:
    """Tells whether the process is known to have ended: one of this host, by number and start."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(owner["process"])
        # One that was killed is listed until its parent asks for its end.
        is_killed = process.status() == psutil.STATUS_ZOMBIE
        # Clocks are set a little now and then.
        return is_killed or abs(process.create_time() - owner["began"]) >= 5
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
