"""Baselines: what "absence" of an input means, in the forms users give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import Inputs, finite
from tfexplain.analyzers.capabilities import Place
from tfexplain.graph import Call
from tfexplain.numerics import Tensor


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

    def constants(self, inputs: Inputs, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Returns for each baseline one tensor per input, with TensorFlow alone, for `export`.

        Args:
            inputs: The inputs of the model.
            tensors: The samples.

        Raises:
            ValueError: For a baseline per sample, or a wrong shape.
        """
        found = []
        for value in self.values:
            if callable(value):
                value = value(tensors[0] if len(tensors) == 1 else list(tensors))
                if isinstance(value, Mapping):
                    value = [value[name] for name in inputs.names]
                parts = list(value) if isinstance(value, list | tuple) else [value]
                parts = [tf.convert_to_tensor(part) for part in parts]
            elif not isinstance(value, Mapping) and np.ndim(value) == 0:
                parts = [tf.fill(tf.shape(x[:1]), tf.cast(value, inputs.dtype)) for x in tensors]
            else:
                like = [
                    np.zeros((1, *(s or 1 for s in node.shape[1:])), node.dtype_in(inputs.dtype))
                    for node in inputs.nodes
                ]
                (arrays,) = Baseline([value]).arrays(inputs, like, Place(slice(0, 1), 1))
                parts = [tf.constant(array) for array in arrays]
            # Integers are tokens, floating numbers the entries of their vectors.
            found.append([p if p.dtype.is_integer else tf.cast(p, inputs.dtype) for p in parts])
        return found

    @staticmethod
    def _array(given: Any, name: str, array: np.ndarray, place: Place) -> np.ndarray:
        dtype: Any = array.dtype if array.dtype.kind == "f" else None
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


def as_vectors(lookup: Call | None, baseline: Tensor, dtype: str) -> Tensor:
    """Returns a baseline in the space in which an input differs: for tokens, that of vectors.

    Args:
        lookup: The embedding that reads the input, or None.
        baseline: (batch or 1, *input_shape); integers are tokens, floating numbers fill vectors.
        dtype: Precision.
    """
    if lookup is None:
        return tf.cast(baseline, dtype)
    if baseline.dtype.is_integer:
        return lookup.operation.forward(baseline)
    width = lookup.outputs[0].shape[-1]
    return tf.repeat(tf.expand_dims(tf.cast(baseline, dtype), -1), width, axis=-1)


BaselineLike = float | np.ndarray | list | Callable
