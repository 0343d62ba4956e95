"""What tests of files and folders share."""

import pathlib


def listed(folder: pathlib.Path) -> list[str]:
    """Returns the names of all that is below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
