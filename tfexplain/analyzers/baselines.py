"""Baselines: what "absence" of an input means, in the forms users give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfexplain.analyzers.arrays import Inputs, finite
from tfexplain.analyzers.base import Place


class Baseline:
    """One or several baselines for the inputs of a model.

    Args:
        value: A number, which for tokens fills their vectors; an array of input_shape or (1, …)
            that all samples share, or (batch, …) with one per sample; a list of these, over which
            results are averaged; or a function of x. For several inputs a dict by input name may
            hold them.
    """

    def __init__(self, value: Any) -> None:
        self.values = list(value) if isinstance(value, list) else [value]
        if not self.values:
            raise ValueError("baseline is an empty list; give at least one baseline.")

    def arrays(
        self, inputs: Inputs, arrays: list[np.ndarray], place: Place
    ) -> list[list[np.ndarray]]:
        """Returns for each baseline one array per input, (n, *shape) or (1, *shape).

        Args:
            inputs: The inputs of the model.
            arrays: The samples of the batch.
            place: Where the batch lies among all samples, of which a baseline per sample has as
                many.

        Raises:
            ValueError: For a wrong shape, NaN or infinity.
        """
        found = []
        for value in self.values:
            parts = []
            if callable(value):
                value = value(arrays[0] if len(arrays) == 1 else list(arrays))
                if isinstance(value, list | tuple) and len(arrays) > 1:
                    value = dict(zip(inputs.names, value, strict=True))
                where = Place(slice(0, len(arrays[0])), len(arrays[0]))
            else:
                where = place
            if isinstance(value, Mapping) and set(value) != set(inputs.names):
                raise ValueError(
                    f"baseline has the inputs {sorted(map(str, value))}, the model has "
                    f"{sorted(inputs.names)}."
                )
            for name, array in zip(inputs.names, arrays, strict=True):
                given = value[name] if isinstance(value, Mapping) else value
                parts.append(self._array(given, name, array, where))
            found.append(parts)
        return found

    @staticmethod
    def _array(given: Any, name: str, array: np.ndarray, place: Place) -> np.ndarray:
        dtype = array.dtype if array.dtype.kind == "f" else None
        try:
            value = np.asarray(given, dtype=dtype)
        except (TypeError, ValueError):
            raise ValueError(f"baseline of {name!r} is no array of numbers: {given!r}.") from None
        finite(value, "baseline")
        if value.ndim == 0:
            # For tokens a number fills their vectors, where 0 is the absence of every token.
            dtype = value.dtype if value.dtype.kind == "f" else "float64"
            return np.full((1, *array.shape[1:]), value, dtype=dtype)
        if value.shape == array.shape[1:]:
            return value[None]
        if value.shape[1:] == array.shape[1:]:
            if len(value) == 1:
                return value
            if len(value) == place.count:
                return value[place.positions]
        raise ValueError(
            f"baseline of {name!r} has shape {value.shape}; expected a number, {array.shape[1:]}, "
            f"(1, ...) or ({place.count}, ...), or a function of x."
        )


BaselineLike = float | np.ndarray | list | Callable
