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

# How often, and how many seconds, to wait for a process that is taking over a stale lock.
_WAITS, _WAIT = 20, 0.05
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
    file, waits = None, _WAITS
    with refusals(path):
        while file is None:
            file = _placed(path, text) or _taken_over(path, text, what, patient=waits > 0)
            waits -= 1
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
    """Creates a lock file that no one sees half-written, and locked; None if there is one."""
    if sys.platform == "win32":
        # An open file has no second name there.
        return _created(path, text)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        file = _created(temporary, text)
        if file is None:
            return None
        try:
            os.link(temporary, path)
        except FileExistsError:
            file.close()
            return None
        except (OSError, NotImplementedError):
            # Not every file system has links.
            file.close()
            return _created(path, text)
        return file
    finally:
        temporary.unlink(missing_ok=True)


def _created(path: pathlib.Path, text: bytes) -> BinaryIO | None:
    """Creates and locks a file, which is empty for a moment; None if there is one."""
    try:
        file = path.open("x+b")
    except FileExistsError:
        return None
    try:
        file.write(text)
        file.flush()
        _guard(file.fileno(), waits=True)
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
    return file


def _taken_over(path: pathlib.Path, text: bytes, what: str, patient: bool) -> BinaryIO | None:
    """Makes the lock file of a process of this host that is gone that of this process.

    The file is written over where it lies, by one process at a time, so that it never is missing.

    Args:
        path: The lock file.
        text: What this process writes.
        what: As for `lock`.
        patient: Wait a moment for another process that may be taking it over.

    Returns:
        The open file, or None where it has been removed meanwhile, or is worth another look.

    Raises:
        InUseError: If it is not gone, or that cannot be told.
    """
    try:
        opened = _opened(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _nameless(path, what) from error
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(opened)
        is_guarded = _guard(file.fileno(), waits=False)
        content = file.read()
        owner = _owner(content)
        is_gone = owner is not None and _is_gone(owner)
        # Only now, because a process that is gone removes nothing afterwards.
        if not _is_at(path, file.fileno()):
            return None
        if (owner is None or is_gone) and is_guarded is False and patient:
            # Another process is taking it over, or looking whether it can.
            time.sleep(_WAIT)
            return None
        if owner is None:
            raise _nameless(path, what)
        _check_gone(owner, is_gone, is_guarded, path, what)
        if not (is_guarded and file.writable()):
            raise InUseError(
                f"{what} was in use by process {owner['process']} on this host, which is gone, and "
                f"the file system does not let one process alone take over {path}. Delete that "
                "file."
            )
        file.seek(0)
        file.write(text.ljust(len(content)))
        file.flush()
        stack.pop_all()
        return file


def _nameless(path: pathlib.Path, what: str) -> InUseError:
    return InUseError(
        f"{what} is in use, and {path} does not say by which process. {_advice(path)}"
    )


def _advice(path: pathlib.Path) -> str:
    return f"If nothing runs there any more, delete {path}."


def _check_gone(
    owner: dict[str, Any], is_gone: bool, is_guarded: bool | None, path: pathlib.Path, what: str
) -> None:
    """Refuses a lock file whose process may still run.

    Args:
        owner: What the file says.
        is_gone: Whether that process is known to have ended.
        is_guarded: Whether this process could lock the file; None where the system cannot.
        path: The lock file.
        what: As for `lock`.

    Raises:
        InUseError: If it may run.
    """
    process = f"process {owner['process']}"
    if owner["host"] != socket.gethostname():
        raise InUseError(
            f"{what} is in use by {process} on the host {owner['host']}. {_advice(path)}"
        )
    if not is_gone:
        raise InUseError(
            f"{what} is in use by {process} on this host. Wait for it to end, or choose another "
            "place."
        )
    if is_guarded is False:
        raise InUseError(
            f"{what} is in use by {process} on this host or by a copy of it: the system has locked "
            f"{path} for it. Wait for it to end, or choose another place."
        )


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
