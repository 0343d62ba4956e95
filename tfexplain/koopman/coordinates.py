"""Coordinates of the tensors between blocks: flattened values, or leading principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

# Values whose products are computed together, in float64.
_CHUNK = 2**24


@dataclass(frozen=True, eq=False)
class Coordinates:
    """How a tensor is written as a vector: z = U^T (x - middle) / scale.

    Attributes:
        shape: Shape of one sample of the tensor.
        components: U, (size of the tensor, number of components), with orthonormal columns; None:
            all values are coordinates.
        middle: What is subtracted, (size,); None: nothing.
        scale: A number.
    """

    shape: tuple[int, ...]
    components: np.ndarray | None = None
    middle: np.ndarray | None = None
    scale: float = 1.0

    @property
    def size(self) -> int:
        """The number of coordinates."""
        if self.components is not None:
            return self.components.shape[1]
        return int(np.prod(self.shape, dtype=int))

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Returns the coordinates (n, size), float64, of samples (n, *shape)."""
        flat = x.reshape(len(x), -1)
        if self.middle is not None:
            flat = flat - self.middle
        if self.components is not None:
            flat = flat @ self.components
        return flat.astype("float64") / self.scale

    def lost(self, x: np.ndarray) -> float:
        """Returns the share of the squared norm of (x - middle) that the components leave out."""
        if self.components is None:
            return 0.0
        flat = x.reshape(len(x), -1)
        if self.middle is not None:
            flat = flat - self.middle
        total = _squares(flat)
        kept = _squares(flat @ self.components)
        return max(0.0, 1 - kept / total) if total else 0.0

    def decode(self, z: np.ndarray, dtype: str) -> np.ndarray:
        """Returns the samples (n, *shape) of coordinates (n, size)."""
        flat = (z * self.scale).astype(dtype)
        if self.components is not None:
            flat = flat @ self.components.T
        if self.middle is not None:
            flat = flat + self.middle
        return flat.astype(dtype, copy=False).reshape(len(z), *self.shape)

    def pull_rows(self, matrix: np.ndarray) -> np.ndarray:
        """Returns functionals (n, size) of coordinates as functionals (n, *shape) of tensors."""
        rows = matrix / self.scale
        if self.components is not None:
            # Scaled, because components may be of float32, which has a smaller range.
            size = np.abs(rows).max(axis=1, keepdims=True)
            scaled = rows / np.where(size > 0, size, 1)
            rows = (scaled.astype(self.components.dtype) @ self.components.T) * size
        return rows.reshape(len(matrix), *self.shape)


def coordinates_of(
    x: np.ndarray,
    *,
    max_dimension: int | None,
    centered: bool,
    normalize: bool,
) -> Coordinates:
    """Chooses the coordinates of a tensor from samples of it.

    Args:
        x: Samples, (n, *shape).
        max_dimension: Tensors with more values are written in that many principal components at
            most, and at most in n; None: none are.
        centered: Subtract the mean of the samples, as an operator with an offset can.
        normalize: Divide by the root of the mean squared deviation of a coordinate from its mean,
            so that a layer that is multiplied by a number and the next one divided by it have the
            same operators. Without deviations nothing is divided.
    """
    flat = x.reshape(len(x), -1)
    components = None
    middle = flat.mean(axis=0) if centered else None
    if max_dimension is not None and flat.shape[1] > max_dimension:
        components = principal_components(flat, middle, max_dimension)
    elif centered:
        middle = None  # the regression centres by itself
    unscaled = Coordinates(x.shape[1:], components, middle)
    if not normalize:
        return unscaled
    deviations = unscaled.encode(x)
    size = float(np.sqrt(np.mean((deviations - deviations.mean(axis=0)) ** 2)))
    return Coordinates(x.shape[1:], components, middle, size or 1.0)


def principal_components(flat: np.ndarray, middle: np.ndarray | None, count: int) -> np.ndarray:
    """Returns orthonormal leading directions of samples.

    Args:
        flat: (n, size).
        middle: What is subtracted first, (size,), or None.
        count: Number of directions; fewer are returned if the samples have fewer.

    Returns:
        (size, number of directions) in the precision of the samples.
    """
    n, size = flat.shape

    def deviations(columns: slice, rows: slice = slice(None)) -> np.ndarray:
        part = flat[rows, columns].astype("float64")
        return part if middle is None else part - middle[columns]

    wide = n <= size
    step = max(1, _CHUNK // (n if wide else size))
    products: Any
    if wide:
        products = sum(_gram(deviations(slice(i, i + step)).T) for i in range(0, size, step))
    else:
        everything = slice(None)
        products = sum(_gram(deviations(everything, slice(i, i + step))) for i in range(0, n, step))
    most = len(products)
    values, vectors = scipy.linalg.eigh(products, subset_by_index=(max(0, most - count), most - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    # Eigenvalues are squares of singular values, and are themselves rounded in float64.
    rounding = max(np.finfo(flat.dtype).eps ** 2, np.finfo("float64").eps)
    known = values > values[0] * rounding * max(n, size)
    rank = max(1, int(known.sum()))
    if wide:
        directions = np.empty((size, rank), flat.dtype)
        scaled = vectors[:, :rank] / np.sqrt(np.maximum(values[:rank], np.finfo("float64").tiny))
        for i in range(0, size, step):
            directions[i : i + step] = deviations(slice(i, i + step)).T @ scaled
    else:
        directions = vectors[:, :rank].astype(flat.dtype)
    return directions * _signs(flat, directions, middle)


def _signs(flat: np.ndarray, directions: np.ndarray, middle: np.ndarray | None) -> np.ndarray:
    """Returns the sign of each direction, which an eigenvalue leaves open.

    A block is iterated from the coordinates of its output to those of its input. With the mean
    positive in both, iterates of rectified tensors stay on the side of the data.
    """
    if middle is None:
        marks = flat.mean(axis=0) @ directions
    else:
        marks = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    return np.where(marks < 0, -1, 1).astype(flat.dtype)


def _gram(rows: np.ndarray) -> np.ndarray:
    return rows.T @ rows


def _squares(values: np.ndarray) -> float:
    return float(np.sum(np.square(values, dtype="float64")))
