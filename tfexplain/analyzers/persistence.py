"""Analyzers as files: one archive with the model, the configuration and its arrays; no pickle."""

from __future__ import annotations

import inspect
import io
import json
import os
import pathlib
import tempfile
import zipfile
import zlib
from typing import Any

import keras
import numpy as np

from tfexplain.analyzers.base import Analyzer, option_names
from tfexplain.composites import Composite
from tfexplain.files import write_atomically
from tfexplain.rules import Rule, rule_from_config

FORMAT = 1
_MODEL, _CONFIG, _ARRAYS = "model.keras", "analyzer.json", "arrays.npz"
# What reading a foreign, truncated or altered archive raises.
_INCOMPLETE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError, OSError)


def all_options(analyzer: Analyzer) -> dict[str, Any]:
    """Returns the options as given, and the defaults of the others that its name leaves open."""
    from tfexplain.analyzers import resolve_name

    options = option_names(type(analyzer))
    try:
        entry, suffixed = resolve_name(analyzer.name)
        options = {k: v for k, v in options.items() if k not in (*entry.preset, *suffixed)}
    except ValueError:
        pass  # a class of the user's own
    known = {k: v for k, v in options.items() if v is not inspect.Parameter.empty}
    return {**known, **analyzer._options}


def option_config(value: Any, key: str, arrays: dict[str, np.ndarray] | None = None) -> Any:
    """Returns an option as JSON-able data.

    Args:
        value: The option.
        key: Where it lies, for the names of arrays.
        arrays: Collects arrays; without it they are written as lists.

    Raises:
        ValueError: If it cannot be written, for example a function that is not registered.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Composite):
        return {"__composite__": value.to_config()}
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if arrays is None:
            return {"__array__": array.tolist(), "dtype": str(array.dtype)}
        arrays[key] = array
        return {"__stored__": key}
    if isinstance(value, tuple):
        items = [option_config(item, f"{key}/{i}", arrays) for i, item in enumerate(value)]
        return {"__tuple__": items}
    if isinstance(value, list):
        return [option_config(item, f"{key}/{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {k: option_config(item, f"{key}/{k}", arrays) for k, item in value.items()}
    if isinstance(value, Rule):
        return {"__rule__": value.to_config()}
    named = callable(value) and hasattr(value, "__name__")
    name = keras.saving.get_registered_name(value) if named else None
    if name is not None and keras.saving.get_registered_object(name) is value:
        return {"__function__": name}
    raise ValueError(
        f"The option {key}={value!r} cannot be saved. Decorate a function with "
        "@keras.saving.register_keras_serializable(), or give numbers or arrays."
    )


def option_value(config: Any, arrays: dict[str, np.ndarray], custom: dict[str, Any]) -> Any:
    """Returns the option that `option_config` wrote.

    Raises:
        ValueError: If a function is not known in this process.
    """
    if isinstance(config, list):
        return [option_value(item, arrays, custom) for item in config]
    if not isinstance(config, dict):
        return config
    if "__composite__" in config:
        selectors = [selector for selector, _ in config["__composite__"]["rows"]]
        names = [name for selector in selectors for name in selector.values()]
        known = {n: custom[_plain(n)] for n in names if isinstance(n, str) and _plain(n) in custom}
        with keras.saving.custom_object_scope({**custom, **known}):
            return Composite.from_config(config["__composite__"])
    if "__rule__" in config:
        return rule_from_config(config["__rule__"])
    if "__stored__" in config:
        return arrays[config["__stored__"]]
    if "__array__" in config:
        return np.asarray(config["__array__"], dtype=config["dtype"])
    if "__tuple__" in config:
        return tuple(option_value(item, arrays, custom) for item in config["__tuple__"])
    if "__function__" in config:
        name = config["__function__"]
        found = keras.saving.get_registered_object(name) or custom.get(_plain(name))
        if found is None:
            raise ValueError(
                f"The function {name!r} is not known here; import the module that registers it, "
                "or pass it in custom_objects."
            )
        return found
    return {key: option_value(item, arrays, custom) for key, item in config.items()}


def _plain(name: str) -> str:
    """Returns the name of a registered object without its package."""
    return name.split(">")[-1]


def save(analyzer: Analyzer, path: Any) -> None:
    """Writes an analyzer into one file, which appears only when it is complete.

    Raises:
        ValueError: If an option cannot be written, or the class belongs to no known name.
    """
    from tfexplain.analyzers import resolve_name

    if resolve_name(analyzer.name)[0].cls is not type(analyzer):
        raise ValueError(
            f"{type(analyzer).__name__} is none of the analyzers that create_analyzer knows; only "
            "these can be saved."
        )
    arrays: dict[str, np.ndarray] = {}
    options = {k: option_config(v, k, arrays) for k, v in all_options(analyzer).items()}
    config = {"format": FORMAT, "analyzer": analyzer.name, "options": options}
    text = json.dumps(config, indent=2)
    stored = io.BytesIO()
    np.savez_compressed(stored, **arrays)

    def write(temporary: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, _MODEL)
            analyzer.user_model.save(model)
            with zipfile.ZipFile(temporary, "w") as archive:
                archive.write(model, _MODEL)
                archive.writestr(_CONFIG, text)
                archive.writestr(_ARRAYS, stored.getvalue())

    write_atomically(path, write)


def load_analyzer(path: Any, custom_objects: dict[str, Any] | None = None) -> Analyzer:
    """Loads an analyzer that `Analyzer.save` wrote.

    Args:
        path: The file.
        custom_objects: Name -> class or function that the model or the options need.

    Returns:
        The analyzer with the same numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no complete analyzer file.
    """
    from tfexplain.analyzers import resolve_name

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
    return create_again(resolve_name(name)[0].cls, name, model, options)


def create_again(cls: type[Analyzer], name: str, model: keras.Model, options: dict) -> Analyzer:
    """Creates an analyzer from what `Analyzer` keeps of another: class, name and options."""
    from tfexplain.analyzers import resolve_name

    # As `create_analyzer`, but an instance made from its class may set what a name presets.
    try:
        entry, suffixed = resolve_name(name)
        implied = {**entry.preset, **suffixed}
    except ValueError:
        implied = {}  # a class of the user's own
    analyzer = cls.__new__(cls, **options)
    analyzer.name = name
    analyzer.__init__(model, **{**implied, **options})
    return analyzer
