"""Analyzers as files: one archive with the model, the configuration and its arrays; no pickle.

`pickle`, `joblib` and `copy.deepcopy` of an analyzer carry the bytes of such a file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfexplain import files
from tfexplain.analyzers.options import UnknownFunctionError, option_config, option_value
from tfexplain.errors import DamagedFileError, UnsupportedLayerError, UnsupportedModelError
from tfexplain.names import resolve_name
from tfexplain.rules.base import UnknownRuleError

FORMAT = 1
_MODEL, _CONFIG, _ARRAYS = "model.keras", "analyzer.json", "arrays.npz"
_ADVICE = "Write it with analyzer.save."
# What reading a foreign, truncated or altered archive raises; it may hold what was never written.
_FAILURES = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    NotImplementedError,
    OSError,
)


def write(path: Any, name: str, model: keras.Model, options: Mapping[str, Any]) -> None:
    """Writes an analyzer into one file, which appears only when it is complete.

    Args:
        path: The file.
        name: The name of the analyzer.
        model: The model that it explains.
        options: Its options.

    Raises:
        ValueError: If an option cannot be written.
        NotWritableError: If there is no space, or the folder cannot be written to.
    """
    files.write_sealed(path, to_bytes(name, model, options))


def to_bytes(name: str, model: keras.Model, options: Mapping[str, Any]) -> bytes:
    """Returns what `write` writes.

    Raises:
        ValueError: If an option cannot be written.
        NotWritableError: If there is no space for temporary files.
    """
    arrays: dict[str, Any] = {}
    written = {key: option_config(value, key, arrays) for key, value in options.items()}
    config = {"format": FORMAT, "analyzer": name, "options": written}
    stored, whole = io.BytesIO(), io.BytesIO()
    np.savez_compressed(stored, **arrays)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, _MODEL)
        with files.refusals(file):
            model.save(file)
        with zipfile.ZipFile(whole, "w") as archive:
            archive.write(file, _MODEL)
            archive.writestr(_CONFIG, json.dumps(config, indent=2))
            archive.writestr(_ARRAYS, stored.getvalue())
    return whole.getvalue()


def read(
    path: Any, custom_objects: dict[str, Any] | None = None
) -> tuple[str, keras.Model, dict[str, Any]]:
    """Returns what `write` wrote: name, model and options.

    Args:
        path: The file.
        custom_objects: Name -> class or function that the model or the options need.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is no complete analyzer file.
        ValueError: If it is of another format, has Python code, or names what is not known here.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no analyzer file {str(path)!r}.")
    files.check_seal(path, _ADVICE)
    return from_bytes(path.read_bytes(), path, custom_objects)


def restored(content: bytes) -> Any:
    """Returns the analyzer of the bytes that pickle carries."""
    where = "the pickle of an analyzer"
    return analyzer_of(where, *from_bytes(content, where))


def analyzer_of(path: Any, name: str, model: keras.Model, options: dict[str, Any]) -> Any:
    """Makes an analyzer of what a file says; errors name the file."""
    try:
        entry, suffixed = resolve_name(name)
        return entry.cls.named(name, model, {**entry.preset, **suffixed}, options)
    except (UnsupportedLayerError, UnsupportedModelError):
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DamagedFileError(
            path,
            f"what it says makes no analyzer ({error})",
            "Expected a file that analyzer.save of this version wrote.",
        ) from error


def from_bytes(
    content: bytes, path: Any, custom_objects: dict[str, Any] | None = None
) -> tuple[str, keras.Model, dict[str, Any]]:
    """Returns what `to_bytes` made of: name, model and options.

    Args:
        content: The bytes.
        path: What messages call them.
        custom_objects: As for `read`.

    Raises:
        DamagedFileError: If it is no complete analyzer file.
        ValueError: As `read`.
    """
    custom = custom_objects or {}
    with tempfile.TemporaryDirectory() as folder:
        with _damage(path, f"no archive of {_CONFIG}, {_ARRAYS} and {_MODEL}"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                text, stored = archive.read(_CONFIG), io.BytesIO(archive.read(_ARRAYS))
                archive.extract(_MODEL, folder)
            with np.load(stored, allow_pickle=False) as loaded:
                arrays = {key: loaded[key] for key in loaded.files}
        with _damage(path, f"{_CONFIG} in it cannot be read"):
            config = json.loads(text)
        if not isinstance(config, dict):
            raise _damaged(path, f"{_CONFIG} in it is a {type(config).__name__}")
        for key, cls in (("format", int), ("analyzer", str), ("options", dict)):
            if not isinstance(config.get(key), cls):
                raise _damaged(path, f"{_CONFIG} in it has no {key!r} of type {cls.__name__}")
        if config["format"] != FORMAT:
            raise ValueError(
                f"{str(path)!r} has format {config['format']!r}, this tfexplain reads format "
                f"{FORMAT}."
            )
        model = _model(os.path.join(folder, _MODEL), path, custom_objects)
    try:
        options = {key: option_value(v, arrays, custom) for key, v in config["options"].items()}
    except (UnknownFunctionError, UnknownRuleError):
        raise
    except _FAILURES as error:
        raise _damaged(path, f"its options cannot be read ({_said(error)})") from error
    return config["analyzer"], model, options


def _model(file: str, path: Any, custom_objects: dict[str, Any] | None) -> keras.Model:
    """Loads the model, whose errors name a file that is gone by then."""
    with _damage(path, f"{_MODEL} in it is no Keras file"):
        with zipfile.ZipFile(file) as archive:
            text = archive.read("config.json").decode()
        json.loads(text)
    if '"__lambda__"' in text:
        raise ValueError(
            f"{str(path)!r} has a layer with Python code (Lambda), which is not run from files. "
            "Build the model by your own code, and create the analyzer with create_analyzer."
        )
    known = "; if it has classes of your own, register them, or give custom_objects"
    with _damage(path, f"{_MODEL} in it cannot be loaded", known):
        return keras.models.load_model(file, custom_objects=custom_objects, compile=False)


@contextlib.contextmanager
def _damage(path: Any, what: str, more: str = "") -> Iterator[None]:
    """Says of whatever reading raises which file is damaged, and where."""
    try:
        yield
    except MemoryError:
        raise
    except _FAILURES as error:
        raise _damaged(path, f"{what} ({_said(error)}{more})") from None


def _damaged(path: Any, what: str) -> DamagedFileError:
    return DamagedFileError(path, f"it is no complete analyzer file: {what}", _ADVICE)


def _said(error: BaseException) -> str:
    """Returns the line of an error that says most, without names of temporary files."""
    text = str(error) or type(error).__name__
    # Keras shows a whole configuration before it.
    line = text.rpartition("Exception encountered: ")[2].splitlines()[0]
    return re.sub(r"\S*" + re.escape(tempfile.gettempdir()) + r"\S*", _MODEL, line)[:300]
