"""Files that are never half-written, and never silently altered."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from tfexplain.errors import DamagedFileError, NotWritableError, warn

# What the system says where it is not the content that is wrong.
RESOURCES = {
    getattr(errno, name)
    for name in "EACCES EDQUOT EFBIG EIO EMFILE ENFILE ENOMEM ENOSPC EPERM EROFS".split()
    if hasattr(errno, name)
}
# Of these, what it says of writing alone.
OF_WRITING = RESOURCES & {
    getattr(errno, name) for name in "EDQUOT EFBIG ENOSPC EROFS".split() if hasattr(errno, name)
}
# A sealed file ends in this and 64 hexadecimal digits, which NetCDF and zip archives may have.
_SEAL = b"\ntfexplain sha256 "
_SEAL_SIZE = len(_SEAL) + 64
# The key of the checksum of JSON-able data.
DIGEST = "sha256"


def write_atomically(path: str | os.PathLike, writer: Callable[[pathlib.Path], object]) -> None:
    """Calls `writer` with a temporary name in the folder of `path`, then renames the result.

    The temporary name keeps the suffix of `path`, because many writers choose the format by it.
    When `writer` raises, what it left is removed and a file that was at `path` before is untouched.

    Args:
        path: Where the file shall be. Its folder must exist.
        writer: Function of a `pathlib.Path` that writes the whole file there.

    Raises:
        FileNotFoundError: If the folder of `path` does not exist.
        IsADirectoryError: If `path` is a folder.
        NotWritableError: If there is no space, or the folder cannot be written to.

    Example:
        >>> write_atomically("notes.txt", lambda name: name.write_text("done"))
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Cannot write {path}: the folder {path.parent} does not exist. Make it first."
        )
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {path}: it is a folder. Give the name of a file.")
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        with refusals(path):
            writer(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def refusals(
    path: str | os.PathLike,
    *,
    size: int | None = None,
    codes: Collection[int] = frozenset(RESOURCES),
    errors: tuple[type[Exception], ...] = (OSError,),
    advice: str = "",
) -> Iterator[None]:
    """Turns what the system says where it refuses to write into an error that says what to do.

    Args:
        path: What is written.
        size: Bytes that are needed, if that is known.
        codes: The numbers of the system's errors that are meant.
        errors: Errors of libraries in whose text the system's words stand.
        advice: What to do, as a sentence, if that is another thing than for the files of a user.

    Raises:
        NotWritableError: For these errors; all others pass.
    """
    try:
        yield
    except NotWritableError:
        raise
    except errors as error:
        refusal = _refusal(error, codes)
        if refusal is None:
            raise
        raise _not_writable(path, refusal, size, advice) from error


def _refusal(error: Exception, codes: Collection[int]) -> OSError | None:
    """Returns what the system said: its own error, or one made of the text of a library's."""
    if isinstance(error, OSError):
        return error if error.errno in codes else None
    said = [code for code in sorted(codes) if os.strerror(code) in str(error)]
    return OSError(said[0], os.strerror(said[0])) if said else None


def _not_writable(
    path: str | os.PathLike, error: OSError, size: int | None, advice: str
) -> NotWritableError:
    """Returns the error that says what to do where the system refuses to write; see `refusals`."""
    needed = "" if size is None else f"It needs {size:,} bytes. "
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = advice or "Choose a folder that you may write to."
    advice = advice or "Free space, raise the limit, or choose a folder on another disk."
    return NotWritableError(
        path, error, f"{needed}{advice} Nothing that was there before has changed."
    )


@contextlib.contextmanager
def temporary_folder() -> Iterator[pathlib.Path]:
    """Yields a folder that is removed at the end, where the system keeps temporary files.

    Raises:
        NotWritableError: If there is no space, or it cannot be written to.
    """
    place = tempfile.gettempdir()
    advice = (
        "It is the folder for temporary files: free space there, or set the environment variable "
        "TMPDIR to another folder."
    )
    with refusals(place, advice=advice), tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def write_sealed(path: str | os.PathLike, content: bytes) -> None:
    """Writes bytes with a checksum behind them, whole or not at all.

    Args:
        path: The file; see `write_atomically`, also for errors.
        content: A format that ignores what follows it, such as NetCDF or a zip archive.
    """
    write_bytes(path, content, seal(content))


def write_bytes(path: str | os.PathLike, *parts: bytes) -> None:
    """Writes bytes one after the other, whole or not at all; see `write_atomically`."""

    def write(name: pathlib.Path) -> None:
        with refusals(path, size=sum(map(len, parts))), name.open("wb") as file:
            for part in parts:
                file.write(part)

    write_atomically(path, write)


def seal(content: bytes | memoryview) -> bytes:
    """Returns the checksum that `check_seal` expects behind the content."""
    return _SEAL + hashlib.sha256(content).hexdigest().encode()


def check_seal(path: str | os.PathLike, advice: str, content: bytes | None = None) -> bool:
    """Compares a file with the checksum behind it.

    Args:
        path: The file.
        advice: What to do with a damaged file, as a sentence.
        content: Its bytes, where they do not lie in a file.

    Returns:
        Whether there is a checksum: other programs write none, and old versions did not.

    Raises:
        DamagedFileError: If the content is another one than was written.
    """
    with open(path, "rb") if content is None else io.BytesIO(content) as file:
        left = file.seek(0, os.SEEK_END) - _SEAL_SIZE
        file.seek(max(0, left))
        end = file.read()
        if not end.startswith(_SEAL):
            if _SEAL in end:
                raise DamagedFileError(path, "its end is cut off", advice)
            return False
        file.seek(0)
        digest = hashlib.sha256()
        while left:
            chunk = file.read(min(left, 2**20))
            digest.update(chunk)
            left -= len(chunk)
    if digest.hexdigest().encode() != end[len(_SEAL) :]:
        raise DamagedFileError(path, "its content does not have the checksum at its end", advice)
    return True


def warn_of_no_checksum(path: str | os.PathLike) -> None:
    """Says of a file without a checksum what that means."""
    warn(
        f"{path} has no checksum, because an earlier version or another program wrote it: whether "
        "it is as it was written is not known."
    )


def checksum(record: Mapping[str, Any]) -> str:
    """Returns the checksum of a record, which has to be as JSON reads it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_record(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Writes JSON-able data with their checksum among them, whole or not at all.

    Args:
        path: The file; see `write_atomically`, also for errors.
        record: The data, without the key "sha256".
    """
    # As it will be read: keys are texts then, and tuples lists.
    record = json.loads(json.dumps(record))
    text = json.dumps({**record, DIGEST: checksum(record)}, indent=2) + "\n"
    write_atomically(path, lambda name: name.write_text(text, encoding="utf-8"))


def read_record(path: pathlib.Path, advice: str) -> dict[str, Any]:
    """Returns the data of `write_record` with their checksum, for `check_digest`.

    Args:
        path: The file.
        advice: What to do with a damaged file, as a sentence.

    Raises:
        DamagedFileError: If they are no data that `write_record` may have written.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"it is no JSON ({error})", advice) from error
    if not isinstance(record, dict):
        raise DamagedFileError(path, f"it is a {type(record).__name__}", advice)
    return record


def check_digest(path: pathlib.Path, record: dict[str, Any], advice: str) -> bool:
    """Compares the data of a file with the checksum among them, which is taken out.

    Args:
        path: The file.
        record: The data.
        advice: What to do with a damaged file, as a sentence.

    Returns:
        Whether there is a checksum; earlier versions wrote none, and a warning says so.

    Raises:
        DamagedFileError: If they are others than were written.
    """
    if (written := record.pop(DIGEST, None)) is None:
        warn_of_no_checksum(path)
        return False
    if written != checksum(record):
        raise DamagedFileError(path, "its content does not have the checksum in it", advice)
    return True


def check_folder(path: str | os.PathLike) -> pathlib.Path:
    """Returns `path` as a `pathlib.Path` if it is a folder or can become one.

    Args:
        path: The folder, which need not exist.

    Raises:
        NotADirectoryError: If `path`, or what would be its parent, is a file.
    """
    path = pathlib.Path(path)
    for place in (path, *path.parents):
        if place.is_dir():
            return path
        if place.exists():
            raise NotADirectoryError(
                f"Cannot write into the folder {path}: {place} is a file. Choose another folder."
            )
    return path


@contextlib.contextmanager
def output_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder whose content moves into the folder `path` at the end.

    The temporary folder lies in `path`, or beside it if that does not exist, so that moving is
    renaming. After an exception it is removed, and so are the folders made for it; `path` is then
    as it was. Files of the same name in `path` are replaced, all others stay.

    Args:
        path: The folder, which need not exist.

    Yields:
        The temporary folder, empty.

    Raises:
        NotADirectoryError: If `path`, or what would be its parent, is a file.
        IsADirectoryError: If a folder in `path` has the name of something new, or a file the name
            of a new folder. Nothing is moved.
        NotWritableError: If there is no space, or `path` cannot be written to.
    """
    path = check_folder(path).absolute()
    made: list[pathlib.Path] = []
    scratch = None
    try:
        with refusals(path):
            for parent in reversed(path.parents):
                if not parent.exists():
                    parent.mkdir()
                    made.append(parent)
            name = f".{path.name}-{secrets.token_hex(4)}"
            scratch = path / name if path.is_dir() else path.with_name(name)
            temporary, replaced = scratch / "new", scratch / "replaced"
            for folder in (scratch, temporary, replaced):
                folder.mkdir()
        with refusals(path, codes=OF_WRITING):
            yield temporary
        with refusals(path):
            _move(sorted(temporary.iterdir()), path, replaced)
        made.clear()
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()


def _move(files: list[pathlib.Path], path: pathlib.Path, replaced: pathlib.Path) -> None:
    """Moves files into a folder, all or none; what they replace goes to `replaced`."""
    for file in files:
        target = path / file.name
        if target.is_dir() or (file.is_dir() and target.exists()):
            kind = "a folder" if target.is_dir() else "a file"
            raise IsADirectoryError(
                f"Cannot write {file.name} into {path}: {kind} of that name is there. Move it or "
                "choose another folder."
            )
    path.mkdir(exist_ok=True)
    moved: list[tuple[pathlib.Path, pathlib.Path]] = []
    try:
        for file in files:
            target = path / file.name
            if target.exists():
                os.replace(target, replaced / file.name)
                moved.append((target, replaced / file.name))
            os.replace(file, target)
            moved.append((file, target))
    except OSError:
        for before, now in reversed(moved):
            os.replace(now, before)
        raise
