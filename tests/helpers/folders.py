"""What tests of files and folders share."""

import pathlib
import zipfile

import numpy as np
import xarray as xr


def listed(folder: pathlib.Path) -> list[str]:
    """Returns the names of all that is below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def dataset():
    return xr.Dataset(
        {
            "a": (("n", "m"), np.eye(3, 4)),
            "t": (("n",), np.array(["x", "yy", ""])),
        },
        coords={"n": [1, 2, 3]},
        attrs={"text": "gr\u00fcn", "number": 3, "list": [1.5, 2.5]},
    )


def rewritten(path, target, **members):
    """Copies an archive without its checksum, with other contents of some members."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as other:
        for name in archive.namelist():
            content = members.get(name, archive.read(name))
            if content is not None:
                other.writestr(name, content)
    return target


def changes(value, path=()):
    """Yields copies of JSON-able data with one key dropped, or one value of another type."""
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            for changed in changes(value[key], (*path, key)):
                yield {**value, key: changed}
    elif isinstance(value, list):
        for place in range(len(value)):
            for changed in changes(value[place], (*path, place)):
                yield [*value[:place], changed, *value[place + 1 :]]
    for other in (None, "q", -7, [], {}, [[]], {"__stored__": "q"}, {"__rule__": 3}, True):
        if type(other) is not type(value):
            yield other
