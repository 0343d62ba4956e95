"""Long runs over samples, block by block: shown, interruptible, and resumed to the same numbers."""

from __future__ import annotations

import contextlib
import contextvars
import io
import json
import os
import pathlib
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tfexplain import files, netcdf
from tfexplain.checks import integer
from tfexplain.errors import DamagedFileError, warn
from tfexplain.runs.settings import differing

Arrays = dict[str, np.ndarray]
_SETTINGS = "settings.json"
_ADVICE = "Remove it, and the blocks beside it are computed again."
# What reading a truncated or altered block raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError)

# The display that runs inside of another one share.
_shown: contextvars.ContextVar[Progress | None] = contextvars.ContextVar("shown", default=None)


class OtherSettingsError(ValueError):
    """A file or folder holds a run of other settings."""


def in_blocks(
    compute: Callable[[slice, Callable[[], None]], Arrays],
    combine: Callable[[list[Arrays]], xr.Dataset],
    *,
    title: str,
    count: int,
    block_size: int,
    steps: int,
    sample_steps: int = 0,
    settings: Mapping[str, Any],
    path: str | os.PathLike | None,
) -> xr.Dataset:
    """Computes a Dataset from blocks of samples.

    With a path, every finished block is written to the folder `<path>.blocks` at once, and a run
    that was killed continues behind the last of them. At the end the Dataset is written to `path`,
    and the folder is removed. A path that holds the result of the same settings is read. A damaged
    block is computed again, with a warning. So are all blocks whose settings are gone.

    Args:
        compute: Function of (slice of the samples, function to call after each step) that returns
            arrays by name.
        combine: Function of the arrays of all blocks, in order, that returns the Dataset.
        title: What the progress bar says.
        count: Number of samples.
        block_size: Samples of a block.
        steps: Steps of each block, for the progress bar.
        sample_steps: Steps of each sample besides.
        settings: All that the numbers depend on, as JSON-able data. A folder of blocks with other
            settings is refused.
        path: NetCDF file of the result, or None.

    Returns:
        The Dataset.

    Raises:
        ValueError: If the block size is no positive integer.
        OtherSettingsError: If `path` holds other settings.
        FileNotFoundError: If the folder of `path` does not exist.
        DamagedFileError: If the result, or the settings of the blocks, are not as they were
            written. Nothing is removed.
        NotWritableError: If there is no space, or the folder cannot be written to.
    """
    block_size = integer("block_size", block_size, 1)
    blocks = [slice(i, min(i + block_size, count)) for i in range(0, count, block_size)]
    store = None
    if path is not None:
        store = _Store(pathlib.Path(path), {**settings, "block_size": block_size})
        if (finished := store.result()) is not None:
            return finished
    of_blocks: list[Arrays] = []
    with one_display() as progress:
        task = progress.add_task(title, total=len(blocks) * steps + count * sample_steps)
        for block in blocks:
            arrays = store.read(block) if store else None
            if arrays is None:
                arrays = compute(block, lambda: progress.advance(task))
                if store:
                    store.write(block, arrays)
            of_blocks.append(arrays)
            done = len(of_blocks) * steps + block.stop * sample_steps
            progress.update(task, completed=done)
        progress.remove_task(task)
    dataset = combine(of_blocks)
    if store:
        dataset = store.finish(dataset)
    return dataset


class _Store:
    """Blocks of one run on disk."""

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.folder = path.with_name(path.name + ".blocks")
        self.settings = json.dumps(settings, sort_keys=True)
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"Cannot write {path}: the folder {path.parent} does not exist. Make it first."
            )
        if path.exists():
            return
        noted = self.folder / _SETTINGS
        if noted.exists():
            self._check(_settings_in(noted), self.folder)
            return
        with files.refusals(self.folder):
            self.folder.mkdir(exist_ok=True)
        if stray := list(self.folder.glob("*.npz")):
            # Nothing tells with which settings they were computed.
            warn(
                f"{len(stray)} block(s) in {self.folder} are computed again: {_SETTINGS}, which "
                "says how they were computed, is gone."
            )
            with files.refusals(self.folder):
                for block in stray:
                    block.unlink()
        files.write_record(noted, {"settings": settings})

    def _check(self, other: Mapping[str, Any], place: pathlib.Path) -> None:
        # As text, where NaN is NaN.
        if json.dumps(other, sort_keys=True) == self.settings:
            return
        names = differing(json.loads(self.settings), other)
        raise OtherSettingsError(
            f"{place} holds a run with other settings; they differ in {', '.join(names)}. Choose "
            "another path, or remove it."
        )

    def result(self) -> xr.Dataset | None:
        """Returns the finished Dataset, if there is one of these settings."""
        if not self.path.exists():
            return None
        advice = "Choose another path, or remove it."
        loaded = netcdf.read(self.path, advice)
        try:
            known = dict(json.loads(loaded.attrs.get("settings", "{}")))
        except (TypeError, ValueError, RecursionError) as error:
            missing = f"its settings cannot be read ({error})"
            raise DamagedFileError(self.path, missing, advice) from error
        self._check(known, self.path)
        # Left behind where a run was killed between writing the result and removing its blocks.
        shutil.rmtree(self.folder, ignore_errors=True)
        return loaded

    def _file(self, block: slice) -> pathlib.Path:
        return self.folder / f"{block.start:08d}-{block.stop:08d}.npz"

    def read(self, block: slice) -> Arrays | None:
        """Returns the arrays of a finished block; None where it has to be computed."""
        file = self._file(block)
        if not file.exists():
            return None
        try:
            if not files.check_seal(file, ""):
                raise DamagedFileError(file, "it has no checksum", "")
            # Opened here, because np.load leaves what is no archive open.
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                return dict(stored)
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno in files.RESOURCES:
                raise
            missing = error.missing if isinstance(error, DamagedFileError) else error
            warn(f"{file} is damaged ({missing}) and is computed again.")
            return None

    def write(self, block: slice, arrays: Mapping[str, Any]) -> None:
        """Writes the arrays of a block, whole or not at all."""
        stored = io.BytesIO()
        np.savez(stored, **arrays)
        files.write_sealed(self._file(block), stored.getvalue())

    def finish(self, dataset: xr.Dataset) -> xr.Dataset:
        """Writes the result and removes the blocks."""
        dataset = dataset.assign_attrs(settings=self.settings)
        packed = {
            str(name): {"zlib": True, "complevel": 4}
            for name, variable in dataset.variables.items()
            if variable.dtype.kind in "iufb" and variable.size > 1000
        }
        netcdf.write(dataset, self.path, packed)
        shutil.rmtree(self.folder, ignore_errors=True)
        return dataset


@contextlib.contextmanager
def one_display() -> Iterator[Progress]:
    """Shows progress on stderr; inside of another such context in the display of that.

    Yields:
        The display.
    """
    outer = _shown.get()
    if outer is not None:
        yield outer
        return
    with _progress() as progress:
        token = _shown.set(progress)
        try:
            yield progress
        finally:
            _shown.reset(token)


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _settings_in(file: pathlib.Path) -> dict[str, Any]:
    """Returns the settings of finished blocks.

    Raises:
        DamagedFileError: If they are not as they were written.
    """
    record = files.read_record(file, _ADVICE)
    if files.DIGEST not in record and "block_size" not in record:
        # Earlier versions wrote the settings as they are, without a checksum.
        raise DamagedFileError(file, f"it has no {files.DIGEST}", _ADVICE)
    return record["settings"] if files.check_digest(file, record, _ADVICE) else record
