"""Analyzers as files: one archive with the model, the configuration and its arrays; no pickle.

`pickle`, `joblib` and `copy.deepcopy` of an analyzer carry the bytes of such a file.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfexplain import files, numpy_files
from tfexplain.analyzers.options import UnknownFunctionError, option_config, option_value
from tfexplain.errors import DamagedFileError, UnsupportedLayerError, UnsupportedModelError
from tfexplain.names import ANALYZERS, resolve_name
from tfexplain.rules.base import UnknownRuleError

FORMAT = 1
_MODEL, _CONFIG, _ARRAYS = "model.keras", "analyzer.json", "arrays.npz"
_ADVICE = "Write it with analyzer.save."
_MORE_MEMORY = "Load it where there is more memory."
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
        ValueError: If an option or the model cannot be written so that it can be read.
        NotWritableError: If there is no space, or the folder cannot be written to.
    """
    files.write_bytes(path, to_bytes(name, model, options))


def to_bytes(name: str, model: keras.Model, options: Mapping[str, Any]) -> bytes:
    """Returns what `write` writes, with its checksum.

    Raises:
        ValueError: If an option or the model cannot be written so that it can be read.
        NotWritableError: If there is no space for temporary files.
    """
    arrays: dict[str, Any] = {}
    written = {key: option_config(value, key, arrays) for key, value in options.items()}
    config = {"format": FORMAT, "analyzer": name, "options": written}
    stored, whole = io.BytesIO(), io.BytesIO()
    np.savez_compressed(stored, **arrays)
    with files.temporary_folder() as folder:
        file = folder / _MODEL
        _save_model(model, file)
        with zipfile.ZipFile(whole, "w") as archive:
            archive.write(file, _MODEL)
            archive.writestr(_CONFIG, json.dumps(config, indent=2))
            archive.writestr(_ARRAYS, stored.getvalue())
    seal = files.seal(whole.getbuffer())
    whole.seek(0, io.SEEK_END)
    whole.write(seal)
    return whole.getvalue()


def _save_model(model: keras.Model, file: pathlib.Path) -> None:
    """Writes a model, if it can be read without running code that lies in a file.

    Raises:
        ValueError: If it has a lambda.
    """
    refusal = (
        "cannot be saved: of a lambda the file would hold code, which is not run from files. Give "
        "a function that is decorated with @keras.saving.register_keras_serializable()."
    )
    try:
        with warnings.catch_warnings():
            # Keras advises to run that code.
            warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")
            model.save(file)
    except OSError as error:
        # Keras warns with the text of a lambda, which one that was typed or made does not have.
        if "source code" in str(error):
            raise ValueError(f"The model {model.name!r} {refusal}") from error
        raise
    if layers := _with_code(_model_config(file)):
        raise ValueError(f"The model {model.name!r} with {', '.join(layers)} {refusal}")


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
    return from_bytes(path.read_bytes(), path, custom_objects)


def restored(content: bytes) -> Any:
    """Returns the analyzer of the bytes that pickle carries."""
    where = "the pickle of an analyzer"
    return analyzer_of(where, *from_bytes(content, where))


def check_name(own: type, name: str) -> None:
    """Refuses an analyzer that would be loaded as another one, or not at all.

    Args:
        own: Its class.
        name: Its name.

    Raises:
        ValueError: If the name does not stand for the class.
    """
    names = [known for known, entry in ANALYZERS.items() if entry.cls is own]
    if not names:
        raise ValueError(
            f"{own.__name__} is none of the analyzers that create_analyzer knows; only these can "
            "be saved."
        )
    try:
        stands = resolve_name(name)[0].cls is own
    except (ValueError, TypeError):
        stands = False
    if not stands:
        raise ValueError(
            f"An analyzer is loaded by its name, and {name!r} does not stand for {own.__name__}. "
            f"Set its name to one of {', '.join(names)}."
        )


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
    has_checksum = files.check_seal(path, _ADVICE, content)
    with files.temporary_folder() as folder:
        with _damage(path, f"no archive of {_CONFIG}, {_ARRAYS} and {_MODEL}"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                _check_size(path, archive)
                text, stored = archive.read(_CONFIG), io.BytesIO(archive.read(_ARRAYS))
                archive.extract(_MODEL, folder)
            size = sum(header.nbytes for header in numpy_files.headers(stored).values())
            numpy_files.check_memory(path, "the arrays of an analyzer", size, _MORE_MEMORY)
            stored.seek(0)
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
        model = _model(folder / _MODEL, path, custom_objects)
    try:
        options = {key: option_value(v, arrays, custom) for key, v in config["options"].items()}
    except (UnknownFunctionError, UnknownRuleError):
        raise
    except _FAILURES as error:
        raise _damaged(path, f"its options cannot be read ({_said(error)})") from error
    if not has_checksum:
        files.warn_of_no_checksum(path)
    return config["analyzer"], model, options


def _check_size(path: Any, archive: zipfile.ZipFile) -> None:
    """Refuses an archive by what it says of itself, before anything of it is unpacked.

    Raises:
        MemoryError: If it does not fit into memory.
    """
    size = sum(member.file_size for member in archive.infolist())
    numpy_files.check_memory(path, "an analyzer", size, _MORE_MEMORY)


def _model(file: pathlib.Path, path: Any, custom_objects: dict[str, Any] | None) -> keras.Model:
    """Loads the model, whose errors name a file that is gone by then."""
    with _damage(path, f"{_MODEL} in it is no Keras file"):
        with zipfile.ZipFile(file) as archive:
            _check_size(path, archive)
        config = _model_config(file)
    if layers := _with_code(config):
        raise ValueError(
            f"{str(path)!r} has Python code in {', '.join(layers)}, which is not run from files. "
            "Build the model by your own code, and create the analyzer with create_analyzer."
        )
    try:
        return keras.models.load_model(file, custom_objects=custom_objects, compile=False)
    except _FAILURES as error:
        if unknown := _unknown(config, custom_objects):
            raise ValueError(
                f"The model in {str(path)!r} has {', '.join(map(repr, unknown))}, which this "
                "process does not know. Import the module that registers it, or pass it in "
                "custom_objects by that name."
            ) from error
        with _damage(path, f"{_MODEL} in it cannot be loaded"):
            raise


def _model_config(file: pathlib.Path) -> dict[str, Any]:
    """Returns what a Keras file says of the model, without its losses, which are not loaded."""
    with zipfile.ZipFile(file) as archive:
        config = dict(json.loads(archive.read("config.json")))
    config.pop("compile_config", None)
    return config


def _described(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields every dict of a model's configuration, and the name of the layer that it is of."""
    pending: list[tuple[Any, str]] = [(config, "")]
    while pending:
        value, name = pending.pop()
        if isinstance(value, dict):
            name = str(value.get("name", name))
            yield value, name
        if isinstance(value, dict | list):
            items = value.values() if isinstance(value, dict) else value
            pending.extend((item, name) for item in items)


def _with_code(config: dict[str, Any]) -> list[str]:
    """Returns the names of layers for which a model's configuration holds Python code."""
    return sorted({name for value, name in _described(config) if _is_code(value)})


def _is_code(value: dict[str, Any]) -> bool:
    """Tells whether Keras wrote a lambda so: its code, defaults and closure."""
    if value.get("class_name") == "__lambda__":
        return True
    # Keras writes that of an activation without the name of the class.
    code = value.get("value") if value.keys() == {"value"} else None
    return (
        isinstance(code, list)
        and len(code) == 3
        and isinstance(code[0], str)
        and all(part is None or isinstance(part, list) for part in code[1:])
    )


def _unknown(config: dict[str, Any], custom_objects: dict[str, Any] | None) -> list[str]:
    """Returns the names of classes and functions that neither Keras nor this process knows."""
    names = set()
    for value, _ in _described(config):
        is_function = value.get("class_name") == "function"
        name = value.get("config" if is_function else "registered_name")
        if not isinstance(name, str) or str(value.get("module")).startswith("keras"):
            continue
        # Keras writes its own functions like those of others.
        of_keras = any(hasattr(module, name) for module in (keras.activations, keras.ops))
        if is_function and of_keras:
            continue
        if keras.saving.get_registered_object(name, custom_objects) is None:
            names.add(name)
    return sorted(names)


@contextlib.contextmanager
def _damage(path: Any, what: str) -> Iterator[None]:
    """Says of whatever reading raises which file is damaged, and where."""
    try:
        yield
    except MemoryError:
        raise
    except _FAILURES as error:
        if isinstance(error, OSError) and error.errno in files.RESOURCES:
            raise
        raise _damaged(path, f"{what} ({_said(error)})") from None


def _damaged(path: Any, what: str) -> DamagedFileError:
    return DamagedFileError(path, f"it is no complete analyzer file: {what}", _ADVICE)


def _said(error: BaseException) -> str:
    """Returns the line of an error that says most, without names of temporary files."""
    text = str(error) or type(error).__name__
    # Keras shows a whole configuration before it.
    line = text.rpartition("Exception encountered: ")[2].splitlines()[0]
    return re.sub(r"\S*" + re.escape(tempfile.gettempdir()) + r"\S*", _MODEL, line)[:300]
