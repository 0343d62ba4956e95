"""Vectors that are sent through matrices, and how far apart their directions are.

Vectors are rows: x becomes x M_1 M_2 ..., as relevance that is sent back.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# (rows, columns) of the matrices of VGG-16, last layer first; convolutions count as 1x1.
SHAPES = (
    (1000, 4096),
    (4096, 4096),
    (4096, 512),
    *[(512, 512)] * 5,
    (512, 256),
    *[(256, 256)] * 2,
    (256, 128),
    (128, 128),
    (128, 64),
    (64, 64),
    (64, 3),
)
TINY_SHAPES = ((40, 64), (64, 64), (64, 32), (32, 16), (16, 3))
VECTORS = 32
ALPHA_BETA = ((10, 9), (5, 4), (4, 3), (3, 2), (2, 1), (1, 0))
RANDOM_KINDS = ("vanilla", "relu", "stochastic", "positive", "nonnegative")


def separations(x: np.ndarray) -> np.ndarray:
    """Returns 1 - |cos| of all pairs of rows, without cancellation.

    For unit vectors u and v it is the smaller of |u - v|^2 / 2 and |u + v|^2 / 2.

    Args:
        x: Shape (vectors, size).

    Returns:
        Shape (pairs,); NaN for pairs with a zero row.
    """
    largest = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = x / largest
        unit /= np.sqrt((unit**2).sum(axis=1, keepdims=True))
    first, second = np.triu_indices(len(x), 1)
    distances = np.empty(len(first))
    for start in range(0, len(first), 128):
        part = slice(start, start + 128)
        u, v = unit[first[part]], unit[second[part]]
        signs = np.where((u * v).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
        distances[part] = ((u - signs * v) ** 2).sum(axis=1) / 2
    return distances


def separation(x: np.ndarray, cosines: str) -> float:
    """Returns one minus what fig. 8 plots.

    Args:
        x: Shape (vectors, size).
        cosines: "rows": one minus the mean |cos| over the lower triangle of all pairs of rows, with
            the diagonal of ones (the published code); "columns": the median of 1 - |cos| over pairs
            of different vectors (the text).

    Returns:
        Float in 0..1; NaN if all vectors are zero.
    """
    distances = separations(x)
    kept = distances[~np.isnan(distances)]
    if not len(kept):
        return np.nan
    if cosines == "columns":
        return float(np.median(kept))
    # A zero row has no cosine with itself either.
    diagonal = np.count_nonzero(np.abs(x).max(axis=1) > 0)
    return float(kept.sum() / (len(kept) + diagonal))


def start_vectors(generator: np.random.Generator, size: int, cosines: str) -> np.ndarray:
    """Returns the vectors that are sent through a chain, (vectors, size).

    "rows": normal vectors, as the published code; "columns": different unit vectors, so that the
    chain's own columns are compared (in the paper's orientation, a column for each logit).
    """
    if cosines == "rows":
        return generator.normal(size=(VECTORS, size))
    chosen = generator.choice(size, min(VECTORS, size), replace=False)
    return np.eye(size)[chosen]


def random_matrix(kind: str, w: np.ndarray, cosines: str) -> np.ndarray:
    """Returns a matrix of one kind, made from normal numbers.

    Args:
        kind: One of `RANDOM_KINDS`, or "alpha,beta" for alpha W+ + beta W-.
        w: Normal numbers.
        cosines: "rows": columns of stochastic matrices add up to one (published code); "columns":
            rows do, so that relevance is conserved.
    """
    if kind in ("vanilla", "relu"):
        return w
    if kind == "nonnegative":
        return np.maximum(w, 0)
    if kind in ("positive", "stochastic"):
        positive = np.abs(w)
        if kind == "positive":
            return positive
        return positive / positive.sum(axis=0 if cosines == "rows" else 1, keepdims=True)
    alpha, beta = map(float, kind.split(","))
    return np.where(w > 0, alpha, beta) * w


def predicted_factor(kind: str, inputs: int) -> float:
    """Returns by which factor 1 - cos falls in one large random matrix, once it is small.

    For x = c (1 + e) with small e of variance s^2, x M has the mean c m sum and a deviation of
    s sqrt(v / (m^2 inputs)): m and v are mean and variance of the entries.
    """
    mean, square = np.sqrt(2 / np.pi), 1.0
    if kind == "nonnegative":
        mean, square = mean / 2, 0.5
    elif "," in kind:
        alpha, beta = map(float, kind.split(","))
        mean, square = mean * (alpha - beta) / 2, (alpha**2 + beta**2) / 2
    elif kind in ("vanilla", "relu"):
        return np.nan
    return (square - mean**2) / (mean**2 * inputs)


def chain_separations(
    x: np.ndarray, matrices: Iterable[np.ndarray], cosines: str, rectified: bool = False
) -> list[float]:
    """Returns `separation` of x, x M_1, x M_1 M_2, ...; rows are rescaled after each product."""
    chain = [separation(x, cosines)]
    for matrix in matrices:
        x = propagated(x, matrix, rectified)
        chain.append(separation(x, cosines))
    return chain


def propagated(x: np.ndarray, matrix: np.ndarray, rectified: bool = False) -> np.ndarray:
    """Returns x M, or its positive part, with rows scaled to a largest entry of one."""
    x = x @ matrix
    if rectified:
        x = np.maximum(x, 0)
    largest = np.abs(x).max(axis=1, keepdims=True)
    return x / np.where(largest > 0, largest, 1)


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Returns a convolution with "same" padding: (n, h, w, c), (k, k, c, d) -> (n, h, w, d)."""
    size, half = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(x, [(0, 0), (half, half), (half, half), (0, 0)])
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )
