"""Checks of options: one answer to what an integer, a number, a flag or a choice is.

All return the value as plain Python has it. Messages say what was expected and what was received.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

from tfexplain.errors import nearest


def is_integer(value: Any) -> TypeGuard[int]:
    """Tells whether a value is an integer, of Python or NumPy; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)


def integer(
    name: str, value: Any, least: int = 0, most: int | None = None, *, hint: str = ""
) -> int:
    """Returns an option as an integer in least..most.

    Args:
        name: The name of the option.
        value: What was given.
        least: The smallest value.
        most: The largest value; None for no limit.
        hint: What else the message says.

    Raises:
        ValueError: If it is no such integer.

    Example:
        >>> integer("seed", 3)
        3
    """
    if is_integer(value) and least <= value and (most is None or value <= most):
        return int(value)
    wanted = "a positive integer" if least == 1 else f"an integer >= {least}"
    if most is not None:
        wanted = f"an integer in {least}..{most}"
    raise ValueError(f"{name} must be {wanted}, received {value!r}. {hint}".rstrip())


def optional_integer(name: str, value: Any, least: int = 0) -> int | None:
    """Returns an option that is an integer, or None.

    Args:
        name: The name of the option.
        value: What was given.
        least: The smallest value.

    Raises:
        ValueError: If it is neither.
    """
    return None if value is None else integer(name, value, least, hint="Or None.")


def real(name: str, value: Any, least: float, most: float = math.inf, hint: str = "") -> float:
    """Returns an option as a number in [least, most), infinity excluded.

    Args:
        name: The name of the option.
        value: What was given.
        least: The smallest value.
        most: What it must stay below.
        hint: What else the message says.

    Raises:
        ValueError: If it is no such number.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    if number and least <= value < most:
        return float(value)
    wanted = f"in [{least}, {most})"
    if most == math.inf:
        wanted = "a finite number" + (f" >= {least}" if least > -math.inf else "")
    raise ValueError(f"{name} must be {wanted}, received {value!r}. {hint}".rstrip())


def positive(name: str, value: Any) -> float:
    """Returns an option as a finite number > 0.

    Args:
        name: The name of the option.
        value: What was given.

    Raises:
        ValueError: If it is no such number.
    """
    if real(name, value, 0) == 0:
        raise ValueError(f"{name} must be a number > 0, received {value!r}.")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """Returns an option that is True or False.

    Args:
        name: The name of the option.
        value: What was given.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ValueError(f"{name} must be True or False, received {value!r}.")


def frozen(value: Any) -> Any:
    """Returns a value as plain Python has it, comparable and hashable; mappings stay as they are.

    NumPy's numbers and texts become Python's, arrays and lists nested tuples. Everything else stays
    as it is.

    Example:
        >>> frozen([np.int64(1), np.array([[0.5]])])
        (1, ((0.5,),))
    """
    if not isinstance(value, type) and hasattr(value, "__array__"):
        value = np.asarray(value).tolist()
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def choice(name: str, value: Any, known: Iterable[Any]) -> Any:
    """Returns an option that is one of a few values.

    Args:
        name: The name of the option.
        value: What was given.
        known: The values, or what holds them as keys.

    Returns:
        The known value, for a text of NumPy's that of Python.

    Raises:
        ValueError: If it is none of them; the message has the nearest.

    Example:
        >>> choice("mode", "cascading", ("cascading", "independent"))
        'cascading'
    """
    known = list(known)
    for item in known:
        # 1 is equal to True and yet no flag; an array is equal to nothing. NumPy's texts are texts.
        same_kind = type(value) is type(item) or (isinstance(value, str) and isinstance(item, str))
        if same_kind and value == item:
            return item
    words = all(isinstance(item, str) for item in known)
    listed = ", ".join(known if words else map(repr, known))
    hint = nearest(value, [item for item in known if isinstance(item, str)])
    hint = hint if isinstance(value, str) else ""
    raise ValueError(f"{name} must be one of {listed}, received {value!r}.{hint}")


def precision_or_none(name: str, value: Any) -> str | None:
    """Returns an option that is "float32", "float64" or None; a dtype counts as its name.

    Args:
        name: The name of the option.
        value: What was given.

    Raises:
        ValueError: If it is none of them.

    Example:
        >>> precision_or_none("dtype", np.dtype("float32"))
        'float32'
    """
    # Those of NumPy and TensorFlow; classes such as np.float32 have no name of that kind.
    given = getattr(value, "name", value)
    return choice(name, given if isinstance(given, str) else value, (None, "float32", "float64"))
