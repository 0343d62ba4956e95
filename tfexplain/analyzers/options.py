"""Options of analyzers as data: how they are written and read."""

from __future__ import annotations

import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfexplain.composites import Composite
from tfexplain.rules import Rule, rule_from_config

# So many numbers of an array are written in full at most where no one has to read it again.
MOST_NUMBERS = 10_000


class UnknownFunctionError(ValueError):
    """A function that an option names is not registered in this process."""


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
    if isinstance(value, np.dtype | tf.DType):
        return value.name
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
        UnknownFunctionError: If a function is not known in this process.
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
        function = keras.saving.get_registered_object(name) or custom.get(_plain(name))
        if function is None:
            raise UnknownFunctionError(
                f"The function {name!r} is not known here; import the module that registers it, "
                "or pass it in custom_objects."
            )
        return function
    return {key: option_value(item, arrays, custom) for key, item in config.items()}


def _plain(name: str) -> str:
    """Returns the name of a registered object without its package."""
    return name.split(">")[-1]


def brief(value: Any) -> Any:
    """Returns an option with large arrays replaced by their shape and checksum."""
    if isinstance(value, dict):
        return {key: brief(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(brief(item) for item in value)
    if isinstance(value, np.ndarray) and value.size > MOST_NUMBERS:
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}
    return value
