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
    """One baseline for the inputs of a model, or several over which maps are averaged.

    Args:
        value: A number, which for tokens fills their vectors; an array of input_shape or (1, …)
            that all samples share, or (batch, …) with one per sample; or a function of x. For
            several inputs a dict by name, or a list with one entry per input, may hold them.
        background: Rows (n, *input_shape), each a baseline of all samples; for several inputs a
            dict of such by name. None for the one of `value`.

    Raises:
        ValueError: If both are given, or the background is no rows.
    """

    def __init__(self, value: Any, background: Any = None) -> None:
        self._rows = None
        if background is None:
            self.values = [value]
            return
        if not (np.ndim(value) == 0 and not callable(value) and value == 0):
            raise ValueError(
                "baseline is one baseline and background holds several, over which maps are "
                "averaged; give one of the two."
            )
        self._rows = background
        named = background if isinstance(background, Mapping) else {"": background}
        rows = {name: _rows(part, name) for name, part in named.items()}
        counts = {len(part) for part in rows.values()}
        if len(counts) != 1:
            raise ValueError(
                f"background has {sorted(counts)} rows for its inputs; a row of each makes one "
                "baseline, so give all as many."
            )
        self.values = [
            {name: part[row : row + 1] for name, part in rows.items()}
            if isinstance(background, Mapping)
            else rows[""][row : row + 1]
            for row in range(*counts)
        ]

    def check(self, inputs: Inputs) -> None:
        """Gives each value the form that the number of inputs asks for.

        Raises:
            ValueError: For a list that is no entry per input, or a background of other inputs.
        """
        names = inputs.names
        if self._rows is not None:
            self._check_rows(inputs)
            return
        (value,) = self.values
        if not isinstance(value, list | tuple):
            return
        if len(value) != len(names):
            of = "one input" if len(names) == 1 else f"{len(names)} inputs ({', '.join(names)})"
            raise ValueError(
                f"baseline is a list of {len(value)}, and the model has {of}: a list holds one "
                "entry per input. Several baselines over which maps are averaged are "
                "background=..., an array of rows (for several inputs a dict of such by name); "
                "the numbers of one baseline are an array."
            )
        self.values = [dict(zip(names, value, strict=True)) if len(names) > 1 else value[0]]

    def _check_rows(self, inputs: Inputs) -> None:
        rows, names = self._rows, inputs.names
        if isinstance(rows, Mapping) and set(rows) != set(names):
            raise ValueError(
                f"background has the inputs {sorted(map(str, rows))}, the model has "
                f"{sorted(names)}."
            )
        if not isinstance(rows, Mapping) and len(names) > 1:
            raise ValueError(
                f"The model has {len(names)} inputs: background is a dict of rows by name "
                f"({', '.join(names)})."
            )
        for node, name in zip(inputs.nodes, names, strict=True):
            part = np.asarray(rows[name] if isinstance(rows, Mapping) else rows)
            given, expected = part.shape[1:], node.shape[1:]
            fits = len(given) == len(expected) and all(
                size in (None, one) for size, one in zip(expected, given, strict=True)
            )
            if not fits:
                hint = " A single row needs an axis of rows: background[None]." * (
                    part.ndim == len(expected)
                )
                sizes = ", ".join("any" if size is None else str(size) for size in expected)
                raise ValueError(
                    f"background of {name!r} has shape {part.shape}, expected (rows, {sizes})."
                    f"{hint}"
                )

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
        baselines = []
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
            for node, name, array in zip(inputs.nodes, inputs.names, arrays, strict=True):
                given = value[name] if isinstance(value, Mapping) else value
                parts.append(self._array(given, name, array, where))
                inputs.check_tokens(parts[-1], node, f"baseline of {name!r}")
            baselines.append(parts)
        return baselines

    def constants(self, inputs: Inputs, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Returns for each baseline one tensor per input, with TensorFlow alone, for `export`.

        Args:
            inputs: The inputs of the model.
            tensors: The samples.

        Raises:
            ValueError: For a baseline per sample, or a wrong shape.
        """
        baselines = []
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
                (arrays,) = Baseline(value).arrays(inputs, like, Place(slice(0, 1), 1))
                parts = [tf.constant(array) for array in arrays]
            # Integers are tokens, floating numbers the entries of their vectors.
            baselines.append([p if p.dtype.is_integer else tf.cast(p, inputs.dtype) for p in parts])
        return baselines

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


def _rows(rows: Any, name: str) -> np.ndarray:
    """Returns the rows of a background, of one input."""
    try:
        array = np.asarray(rows)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf" or array.ndim < 2 or not len(array):
        of = f" of {name!r}" if name else ""
        raise ValueError(
            f"background{of} must be an array of at least one row (rows, *input_shape), received "
            f"{type(rows).__name__}{f' of shape {array.shape}' if array.dtype != object else ''}."
        )
    return finite(array, "background")


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


BaselineLike = float | np.ndarray | list | Mapping | Callable
BackgroundLike = np.ndarray | Mapping | None
