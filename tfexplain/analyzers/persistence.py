"""Analyzers as files: one archive with the model, the configuration and its arrays; no pickle."""

from __future__ import annotations

import io
import json
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfexplain.analyzers.options import option_config, option_value
from tfexplain.files import write_atomically

FORMAT = 1
_MODEL, _CONFIG, _ARRAYS = "model.keras", "analyzer.json", "arrays.npz"
# What reading a foreign, truncated or altered archive raises.
_INCOMPLETE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError, OSError)


def write(path: Any, name: str, model: keras.Model, options: Mapping[str, Any]) -> None:
    """Writes an analyzer into one file, which appears only when it is complete.

    Args:
        path: The file.
        name: The name of the analyzer.
        model: The model that it explains.
        options: Its options.

    Raises:
        ValueError: If an option cannot be written.
    """
    arrays: dict[str, Any] = {}
    written = {key: option_config(value, key, arrays) for key, value in options.items()}
    config = {"format": FORMAT, "analyzer": name, "options": written}
    text = json.dumps(config, indent=2)
    stored = io.BytesIO()
    np.savez_compressed(stored, **arrays)

    def write(temporary: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, _MODEL)
            model.save(file)
            with zipfile.ZipFile(temporary, "w") as archive:
                archive.write(file, _MODEL)
                archive.writestr(_CONFIG, text)
                archive.writestr(_ARRAYS, stored.getvalue())

    write_atomically(path, write)


def read(
    path: Any, custom_objects: dict[str, Any] | None = None
) -> tuple[str, keras.Model, dict[str, Any]]:
    """Returns what `write` wrote: name, model and options.

    Args:
        path: The file.
        custom_objects: Name -> class or function that the model or the options need.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no complete analyzer file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no analyzer file {str(path)!r}.")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read(_CONFIG))
                with np.load(io.BytesIO(archive.read(_ARRAYS)), allow_pickle=False) as stored:
                    arrays = {key: stored[key] for key in stored.files}
                archive.extract(_MODEL, folder)
            version, name, options = (config[key] for key in ("format", "analyzer", "options"))
        except _INCOMPLETE as error:
            raise ValueError(
                f"{str(path)!r} is no complete analyzer file ({error}); write it with "
                "analyzer.save."
            ) from None
        if version != FORMAT:
            raise ValueError(
                f"{str(path)!r} has format {version!r}, this tfexplain reads format {FORMAT}."
            )
        model = keras.models.load_model(
            os.path.join(folder, _MODEL), custom_objects=custom_objects, compile=False
        )
    custom = custom_objects or {}
    options = {key: option_value(value, arrays, custom) for key, value in options.items()}
    return name, model, options
