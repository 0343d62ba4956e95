"""NumPy files, of which the headers are read first: what does not fit is never unpacked."""

from __future__ import annotations

import math
import os
import pathlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import psutil


@dataclass(frozen=True)
class Header:
    """What a file says of an array.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def headers(path: pathlib.Path | IO[bytes]) -> dict[str, Header]:
    """Returns the header of each array of a `.npz` file, or that of a `.npy` file as "".

    Args:
        path: The file; a `.npz` file may be an open one.

    Raises:
        OSError: If the file cannot be read; `zipfile.BadZipFile` or `ValueError` if it is no NumPy
            file.
    """
    if isinstance(path, pathlib.Path) and path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            return {"": _header(file)}
    by_name = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                by_name[member.removesuffix(".npy")] = _header(file)
    return by_name


def read(path: pathlib.Path, name: str, check: Callable[[Header], str]) -> np.ndarray:
    """Returns one array of a NumPy file.

    Args:
        path: The file.
        name: Its key in a `.npz` file; "" for a `.npy` file.
        check: Function of the header that returns what is wrong with it, as a sentence that begins
            with "an array", or nothing.

    Raises:
        ValueError: If the check refuses the array, or it cannot be read.
        MemoryError: If it needs more memory than there is.
        OSError: If the file cannot be read.
    """
    header = headers(path)[name]
    if wrong := check(header):
        raise ValueError(f"{path} holds {wrong}")
    held = f"an array of shape {header.shape} and type {header.dtype}"
    check_memory(path, held, header.nbytes, "Give fewer samples at a time.")
    # Opened here, because np.load leaves what is no archive open.
    with path.open("rb") as file:
        loaded: Any = np.load(file, allow_pickle=False)
        return loaded[name] if name else loaded


def check_memory(path: str | os.PathLike, held: str, size: int, advice: str) -> None:
    """Refuses what a file says that it holds if that does not fit into memory.

    Args:
        path: The file.
        held: What it holds, as part of a sentence.
        size: Bytes that are needed.
        advice: What to do, as a sentence.

    Raises:
        MemoryError: If there are fewer.
    """
    available = psutil.virtual_memory().available
    if size > available:
        raise MemoryError(
            f"{path} holds {held}, which needs {size:,} bytes, and {available:,} are available. "
            f"{advice}"
        )


def _header(file: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = reader(file)
    return Header(tuple(shape), dtype)
