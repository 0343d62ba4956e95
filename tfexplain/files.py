"""Writing files so that a failure never leaves a half-written one behind."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Iterator


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
        writer(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    """
    path = check_folder(path).absolute()
    made: list[pathlib.Path] = []
    scratch = None
    try:
        for parent in reversed(path.parents):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        name = f".{path.name}-{secrets.token_hex(4)}"
        scratch = path / name if path.is_dir() else path.with_name(name)
        temporary, replaced = scratch / "new", scratch / "replaced"
        for folder in (scratch, temporary, replaced):
            folder.mkdir()
        yield temporary
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
