"""Checks what users hand in: inputs, targets, output relevance. Returns NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.sides import SIDES
from tfexplain.checks import integer, is_integer
from tfexplain.graph import Node

# TensorFlow's seeds are int32.
LARGEST_SEED = 2**31 - 1


class Inputs:
    """The inputs of a model: checks arrays against them and keeps the user's structure.

    Args:
        nodes: The input tensors.
        names: Their names.
        dtype: Precision of floating inputs.
        rows: Input of tokens -> how many rows the table has in which they are looked up.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        names: Sequence[str],
        dtype: str,
        rows: Mapping[Node, int] | None = None,
    ) -> None:
        self.nodes, self.names = tuple(nodes), tuple(names)
        self.dtype = dtype
        self.rows = rows or {}

    def arrays(self, x: Any) -> list[np.ndarray]:
        """Returns one checked array (n, *input_shape) for each input.

        Raises:
            ValueError: For a wrong number of inputs, rank, shape, an empty batch, NaN or infinity.
            TypeError: For what is no number.
        """
        parts = self._parts(x)
        arrays = [self._array(*item) for item in zip(parts, self.nodes, self.names, strict=True)]
        sizes = {len(array) for array in arrays}
        if len(sizes) != 1:
            raise ValueError(f"All inputs need the same number of samples, received {sizes}.")
        if 0 in sizes:
            raise ValueError("x holds no samples (batch of size 0); give at least one.")
        return arrays

    def _parts(self, x: Any) -> list:
        if isinstance(x, Mapping):
            if set(x) != set(self.names):
                raise ValueError(
                    f"x has the inputs {sorted(map(str, x))}, the model has {sorted(self.names)}."
                )
            return [x[name] for name in self.names]
        if len(self.nodes) == 1:
            single = isinstance(x, list | tuple) and len(x) == 1 and hasattr(x[0], "shape")
            if single and len(x[0].shape) == len(self.nodes[0].shape):
                return list(x)
            return [x]
        if not isinstance(x, list | tuple) or len(x) != len(self.nodes):
            count = len(x) if isinstance(x, list | tuple) else f"a {type(x).__name__}"
            raise ValueError(
                f"The model has {len(self.nodes)} inputs ({', '.join(self.names)}); give a list "
                f"or dict of as many arrays, received {count}."
            )
        return list(x)

    def _array(self, value: Any, node: Node, name: str) -> np.ndarray:
        if is_dataset(value):
            raise TypeError(
                f"Input {name!r} is a tf.data.Dataset, which only analyze and attribute take; give "
                "an array here."
            )
        try:
            array = np.asarray(value)
            if array.dtype == object or array.dtype.kind not in "biuf":
                raise TypeError
        except (TypeError, ValueError):
            raise TypeError(
                f"Input {name!r} must be an array of numbers, received {type(value).__name__}."
            ) from None
        expected = node.shape
        fits = array.ndim == len(expected) and all(
            size is None or size == given
            for size, given in zip(expected[1:], array.shape[1:], strict=True)
        )
        if not fits:
            hint = ""
            if array.ndim == len(expected) - 1:
                hint = " A single sample needs a batch axis: x[None]."
            raise ValueError(
                f"Input {name!r} has shape {array.shape}, expected (batch, "
                f"{', '.join('any' if s is None else str(s) for s in expected[1:])}).{hint}"
            )
        if not node.floating:
            if array.dtype.kind == "f":
                if not np.array_equal(finite(array, f"Input {name!r}"), np.round(array)):
                    raise ValueError(f"Input {name!r} takes integers, received fractions.")
            with np.errstate(invalid="ignore"):
                kept = array.astype(node.dtype)
            if not np.array_equal(kept, array):
                raise ValueError(
                    f"Input {name!r} takes {node.dtype}, and {array.min()} to {array.max()} does "
                    "not fit into that."
                )
            self.check_tokens(kept, node, f"Input {name!r}")
            return kept
        with np.errstate(over="ignore"):
            # What does not fit the precision becomes infinite and is refused as such.
            array = array.astype(self.dtype)
        if not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            raise ValueError(
                f"Input {name!r} holds NaN or infinity in sample(s) "
                f"{', '.join(map(str, bad[:5]))}; remove or replace them first."
            )
        return array

    def check_tokens(self, array: np.ndarray, node: Node, what: str) -> None:
        """Refuses integers outside of the table in which those of an input are looked up.

        GPUs and XLA take a vector of zeros for these, or another one.

        Args:
            array: What is going to be looked up, if it holds integers.
            node: The input.
            what: How messages call it.

        Raises:
            ValueError: If it holds some.
        """
        rows = self.rows.get(node)
        if rows is None or array.dtype.kind not in "iu" or not array.size:
            return
        if not 0 <= array.min() <= array.max() < rows:
            raise ValueError(
                f"{what} holds tokens from {array.min()} to {array.max()}, and the Embedding that "
                f"reads them has {rows} rows: tokens are 0 to {rows - 1}."
            )

    def like(self, x: Any, results: Sequence[np.ndarray]) -> Any:
        """Returns one result per input in the structure of x."""
        if isinstance(x, Mapping):
            return {name: result for name, result in zip(self.names, results, strict=True)}
        if len(self.nodes) == 1 and not isinstance(x, list | tuple):
            return results[0]
        if len(self.nodes) == 1:
            first = self._parts(x)[0]
            return type(x)(results) if first is not x else results[0]
        return list(results)


def tensors(arrays: Sequence[np.ndarray]) -> list[tf.Tensor]:
    """Returns the arrays as tensors."""
    return [tf.constant(array) for array in arrays]


def is_dataset(x: Any) -> bool:
    """Tells whether x is a `tf.data.Dataset`."""
    return isinstance(x, tf.data.Dataset)


def dataset_batches(dataset: tf.data.Dataset) -> Iterator[Any]:
    """Yields the inputs of each batch of a Dataset; labels beside them are left out.

    Raises:
        ValueError: If it holds no batch, or fails on the way.
    """
    elements, count = iter(dataset), 0
    while True:
        try:
            element = next(elements)
        except StopIteration:
            break
        except tf.errors.OpError as error:
            raise ValueError(
                f"The Dataset fails at batch {count} (counted from 0): "
                f"{str(error).splitlines()[0][:300]}. Nothing is wrong with the analyzer; mend or "
                "leave out what makes that batch."
            ) from error
        x = element[0] if isinstance(element, tuple) else element
        yield keras.tree.map_structure(lambda tensor: tensor.numpy(), x)
        count += 1
    if not count:
        raise ValueError("The Dataset holds no batches.")


def slices(count: int, size: int) -> Iterator[slice]:
    """Yields the slices that cut `count` samples into batches.

    Raises:
        ValueError: If the size is no positive integer.
    """
    size = integer("batch_size", size, 1)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def places(part: slice, count: int, batch_size: int) -> Iterator[Place]:
    """Yields the places of the batches of one call.

    Args:
        part: Which samples the call goes through, with start and stop.
        count: How many samples there are in all.
        batch_size: Samples of a batch, at most.
    """
    whole = Place(part, count)
    for inside in slices(part.stop - part.start, batch_size):
        positions = slice(part.start + inside.start, part.start + inside.stop)
        yield Place(positions, count, whole.passes)


def flat_targets(target: Any, count: int, output_shape: Sequence[int | None]) -> np.ndarray:
    """Returns flat output indices (count, num_vectors); -1 stands for the largest output.

    Args:
        target: None, an index, a tuple of indices, one of these per sample, or "all".
        count: Number of samples.
        output_shape: Shape of the explained tensor without the batch axis.

    Raises:
        ValueError: If a target is out of range or their number is wrong.
        TypeError: If a target is no index.
    """
    if target is None:
        return np.full((count, 1), -1, "int32")
    sizes = [size for size in output_shape if size is not None]
    if len(sizes) < len(output_shape):
        raise ValueError(
            f"The explained output has the shape {tuple(output_shape)}, of which a part is "
            "unknown; only target=None (the largest output) is possible."
        )
    outputs = math.prod(sizes)
    if isinstance(target, str):
        if target != "all":
            raise ValueError(
                f"target must be None, an index, one index per sample or 'all', for one sigmoid "
                f"unit also {', '.join(map(repr, SIDES))}; received {target!r}."
            )
        return np.tile(np.arange(outputs, dtype="int32"), (count, 1))
    if isinstance(target, tuple) and len(target) == len(output_shape) > 1:
        return np.full((count, 1), _flat_index(target, sizes), "int32")
    if is_integer(target):
        return np.full((count, 1), _flat_index(target, sizes), "int32")
    if isinstance(target, np.ndarray) and target.ndim == 0:
        return flat_targets(target[()], count, output_shape)
    if not isinstance(target, list | tuple | np.ndarray | tf.Tensor):
        raise TypeError(
            f"target must be None, an index, one index per sample or 'all', "
            f"received {type(target).__name__}."
        )
    items = list(np.asarray(target)) if not isinstance(target, list | tuple) else list(target)
    if len(items) != count:
        raise ValueError(f"{len(items)} targets for {count} samples; give one for each sample.")
    return np.array([[_flat_index(item, sizes)] for item in items], "int32")


def _flat_index(item: Any, output_shape: Sequence[int]) -> int:
    outputs = int(np.prod(output_shape, dtype=int))
    parts = np.asarray(item)
    if parts.dtype.kind not in "iu":
        raise TypeError(f"A target is an integer index, received {item!r}.")
    if parts.ndim == 0:
        index, size = int(parts), outputs
        if not 0 <= index < size:
            raise ValueError(
                f"target {index} is out of range: the explained output has {size} value(s), "
                f"indices 0 to {size - 1}."
                + (f" One sigmoid unit takes {', '.join(map(repr, SIDES))}." if size == 1 else "")
            )
        return index
    inside = parts.shape == (len(output_shape),) and all(
        0 <= i < size for i, size in zip(parts, output_shape, strict=True)
    )
    if not inside:
        raise ValueError(
            f"target {tuple(parts.tolist())} is no index into an output of shape "
            f"{tuple(output_shape)}."
        )
    return int(np.ravel_multi_index(tuple(parts), tuple(output_shape)))


def check_relevance(value: Any, count: int, shape: Sequence[int | None], dtype: str) -> np.ndarray:
    """Returns output relevance (count, num_vectors, *shape).

    Raises:
        ValueError: If the shape is another, or there is NaN or infinity.
    """
    array = np.asarray(value, dtype=dtype)
    fits = array.ndim == len(shape) + 2 and all(
        size is None or size == given for size, given in zip(shape, array.shape[2:], strict=True)
    )
    if not fits or array.shape[0] != count or array.shape[1] == 0:
        wanted = ", ".join(str(size) for size in (count, "num_vectors", *shape))
        raise ValueError(f"output_relevance has shape {array.shape}, expected ({wanted}).")
    return finite(array, "output_relevance")


def joined(parts: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Returns the batches of one input of a Dataset as one array.

    Raises:
        ValueError: If their samples have different sizes.
    """
    sizes = sorted({part.shape[1:] for part in parts})
    if len(sizes) > 1:
        raise ValueError(
            f"The batches of the Dataset have different sizes of input {name!r}: {sizes}. Explain "
            "each size by itself."
        )
    return np.concatenate(parts)


def finite(value: np.ndarray, name: str) -> np.ndarray:
    """Returns the array.

    Raises:
        ValueError: If it holds NaN or infinity.
    """
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinity; remove or replace them first.")
    return value
