"""Singular values of a redistribution matrix: from the matrix itself, or from products alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from tfexplain.audits.redistribution import LARGEST_MATRIX, Columns, Redistribution, choose

# Vectors that are sent together: the work that does not depend on them is then shared.
BLOCK = 8
# Random vectors whose spread gives the standard error of the Frobenius norm, at least.
LEAST_SAMPLES = 16


class SingularValues(NamedTuple):
    """What is known of the singular values of one matrix.

    Attributes:
        values: Leading singular values, falling.
        error: Error of the first, by its residual.
        norm: Frobenius norm.
        norm_error: Its standard error.
        passes: Vectors that were sent forward or backward.
    """

    values: np.ndarray
    error: float
    norm: float
    norm_error: float
    passes: int


# --- the matrix itself ---------------------------------------------------------------------------


def build(matrix: Redistribution, policy: str, quantile: float) -> tuple[np.ndarray, Columns]:
    """Returns R, (entries of a map, columns), float64, and its columns.

    Raises:
        ValueError: If it would take more than 2 GiB, or no output has a column.
    """
    wanted = np.arange(len(matrix.outputs))
    if policy != "literal":
        # By the outputs alone, so that the other columns are not made.
        wanted = choose(np.ones(len(wanted)), matrix.outputs, policy, quantile).kept
    if matrix.size * len(wanted) * 8 > LARGEST_MATRIX:
        raise ValueError(
            f"The redistribution matrix has {matrix.size} x {len(wanted)} entries, more than fit "
            'into 2 GiB. Use method="matrix_free", or a policy that keeps fewer outputs.'
        )
    everything = matrix.columns(wanted)
    sums = np.zeros(len(matrix.outputs))
    sums[wanted] = everything.sum(axis=0)
    columns = choose(sums, matrix.outputs, policy, quantile)
    _some(columns, policy)
    return everything[:, np.isin(wanted, columns.kept)] / columns.sums, columns


def _some(columns: Columns, policy: str) -> None:
    if not len(columns.kept):
        raise ValueError(
            f"No output has a column under policy={policy!r}: all column sums are 0, or no output "
            "is wanted."
        )


def exact(matrix: Redistribution, policy: str, quantile: float) -> tuple[SingularValues, Columns]:
    """Decomposes the whole matrix in float64."""
    r, columns = build(matrix, policy, quantile)
    values = scipy.linalg.svdvals(r, overwrite_a=True)
    norm = float(np.linalg.norm(values))
    return SingularValues(values, 0.0, norm, 0.0, len(columns.kept)), columns


# --- products alone ------------------------------------------------------------------------------


def matrix_free(
    matrix: Redistribution,
    policy: str,
    quantile: float,
    num_values: int,
    tolerance: float,
    standard_error: float,
    key: Sequence[int],
) -> tuple[SingularValues, Columns]:
    """Estimates the spectrum from products with the matrix and its transpose."""
    # One transposed pass of ones gives all column sums.
    sums = matrix.transposed(np.ones((matrix.size, 1)))[:, 0]
    columns = choose(sums, matrix.outputs, policy, quantile)
    _some(columns, policy)
    kept, scale = columns.kept, columns.sums[:, None]
    outputs = len(matrix.outputs)

    def product(vectors: np.ndarray) -> np.ndarray:
        everything = np.zeros((outputs, vectors.shape[1]))
        everything[kept] = vectors / scale
        return matrix.product(everything)

    def transposed(maps: np.ndarray) -> np.ndarray:
        return matrix.transposed(maps)[kept] / scale

    estimated = estimate(
        product, transposed, len(kept), num_values, tolerance, standard_error, list(key)
    )
    return estimated._replace(passes=estimated.passes + 1), columns


def estimate(
    product: Callable[[np.ndarray], np.ndarray],
    transposed: Callable[[np.ndarray], np.ndarray],
    size: int,
    num_values: int,
    tolerance: float,
    standard_error: float,
    key: Sequence[int],
) -> SingularValues:
    """Estimates leading singular values and the Frobenius norm of a matrix R.

    Block Lanczos iteration on R^T R: with Q an orthonormal basis of what has been reached, the
    singular values of R Q are those of R from below. With P the projection away from Q, the rest of
    the squared norm is the mean of |R P g|^2 over random signs g.

    Args:
        product: V (size, vectors) -> R V.
        transposed: U -> R^T U, (size, vectors).
        size: Number of columns of R.
        num_values: How many singular values to return.
        tolerance: Relative error allowed to the first.
        standard_error: Relative standard error of the norm.
        key: Seed of the random vectors.
    """
    generator = np.random.default_rng(key)
    block = min(BLOCK, size)
    # Where all columns are alike, the vector of ones is the leading one.
    start = np.column_stack([np.ones(size), generator.standard_normal((size, block - 1))])
    basis = np.zeros((size, 0))
    images, returned = None, np.zeros((size, 0))
    new, passes = _orthonormal(start, basis), 0
    while True:
        forward = product(new)
        basis = np.column_stack([basis, new])
        images = forward if images is None else np.column_stack([images, forward])
        returned = np.column_stack([returned, transposed(forward)])
        passes += 2 * new.shape[1]
        _, values, right = scipy.linalg.svd(images, full_matrices=False)
        error = _residual(values, right, basis, returned)
        # The vectors of the start know nothing of a single column that stands out; those that have
        # gone through R^T R once do.
        settled = basis.shape[1] > block and error <= tolerance * values[0]
        if basis.shape[1] == size or settled:
            break
        new = _orthonormal(returned[:, -new.shape[1] :], basis)
        if not new.shape[1]:
            break
    error = 0.0 if basis.shape[1] == size else error
    inside = float(np.sum(values**2))
    squares: list[float] = []
    rest, spread = 0.0, 0.0
    while basis.shape[1] < size:
        signs: np.ndarray = generator.choice([-1.0, 1.0], size=(size, LEAST_SAMPLES))
        signs -= basis @ (basis.T @ signs)
        squares += list(np.sum(product(signs) ** 2, axis=0))
        passes += LEAST_SAMPLES
        rest = float(np.mean(squares))
        spread = float(np.std(squares, ddof=1) / np.sqrt(len(squares)))
        # The standard error of a root is that of its square over twice the root.
        if spread <= 2 * standard_error * (inside + rest) or len(squares) >= size:
            break
    norm = np.sqrt(inside + rest)
    return SingularValues(
        values[:num_values], error, float(norm), float(spread / (2 * norm)), passes
    )


def _orthonormal(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Returns an orthonormal basis of what vectors add to a basis."""
    added = vectors / np.maximum(np.linalg.norm(vectors, axis=0), np.finfo("float64").tiny)
    for _ in range(2):  # once leaves rounding behind
        added = added - basis @ (basis.T @ added)
    left, values, _ = scipy.linalg.svd(added, full_matrices=False)
    room = len(vectors) - basis.shape[1]
    return left[:, : min(room, int((values > 1e-6).sum()))]


def _residual(
    values: np.ndarray, right: np.ndarray, basis: np.ndarray, returned: np.ndarray
) -> float:
    """Returns the error of the first singular value, as the residual of its Ritz pair tells.

    There is an eigenvalue of R^T R within the residual, and within its square over the distance to
    the others: the first one, unless the vectors so far have missed it.
    """
    if values[0] == 0:
        return 0.0
    square = values[0] ** 2
    residual = np.linalg.norm(returned @ right[0] - square * (basis @ right[0]))
    gap = square - (values[1] ** 2 if len(values) > 1 else 0.0)
    error = min(residual, residual**2 / gap) if gap > 0 else residual
    return float(error / (2 * values[0]))
