"""Datasets as NetCDF files with a checksum, written from memory and read wholly into it."""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import h5netcdf
import xarray as xr

from tfexplain.errors import DamagedFileError
from tfexplain.files import RESOURCES, check_seal, warn_of_no_checksum, write_sealed


def write(
    dataset: xr.Dataset,
    path: str | os.PathLike,
    encoding: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes a Dataset, whole or not at all.

    Args:
        dataset: What to write.
        path: Name of the file; its folder must exist. A file of that name is replaced.
        encoding: As for `xarray.Dataset.to_netcdf`.

    Raises:
        FileNotFoundError: If the folder does not exist.
        NotWritableError: If there is no space, or the folder cannot be written to.
    """
    # HDF5 ends the process where it writes to a full disk itself.
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        store = xr.backends.H5NetCDFStore(file)
        dataset.dump_to_store(store, encoding=encoding)
    write_sealed(path, buffer.getvalue())


def read(path: str | os.PathLike, advice: str) -> xr.Dataset:
    """Returns the Dataset of a file, without the encoding of that file.

    With it, names that are longer would be cut when it is joined with others and written again.

    Args:
        path: The file.
        advice: What to do with a damaged file, as a sentence.

    Raises:
        DamagedFileError: If it is no NetCDF, or another one than was written.
    """
    sealed = check_seal(path, advice)
    try:
        dataset = xr.load_dataset(pathlib.Path(path), engine="h5netcdf").drop_encoding()
    except MemoryError:
        raise
    except Exception as error:  # h5py, h5netcdf and xarray raise different classes
        if isinstance(error, OSError) and error.errno in RESOURCES:
            raise
        raise DamagedFileError(
            path, f"it cannot be read as NetCDF ({type(error).__name__}: {error})", advice
        ) from error
    if not sealed:
        warn_of_no_checksum(path)
    return dataset
