"""Linear operators of blocks: regression by truncated SVD, volumes and sensitivities in logs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg

_EPSILON = float(np.finfo("float64").eps)


class Volume(NamedTuple):
    """Volume of a linear map in its retained dimensions.

    Attributes:
        log_volume: Sum of the natural logarithms of the singular values above the threshold; nan
            for a map without any.
        rank: Their number.
    """

    log_volume: float
    rank: int

    @property
    def per_dimension(self) -> float:
        """The logarithm of their geometric mean; nan at rank 0."""
        return self.log_volume / self.rank if self.rank else math.nan


@dataclass(frozen=True, eq=False)
class Operator:
    """A linear or affine map that was fitted to snapshots, y' = K y + offset.

    Attributes:
        matrix: K, (q, p).
        offset: (q,); 0 without an intercept.
        rank: Retained singular values of the snapshots.
        singular_values: All of them, falling, (min(n, p),).
        error: Matrix with as many columns as outputs, whose products with its own transpose are
            those of the errors of all snapshots; see `residual`.
        target: The same of the targets.
    """

    matrix: np.ndarray
    offset: np.ndarray
    rank: int
    singular_values: np.ndarray
    error: np.ndarray
    target: np.ndarray

    def residual(self, composition: np.ndarray | None = None) -> float:
        """Returns ||Y' - K Y||_F / ||Y'||_F; nan for targets that are 0.

        Args:
            composition: Matrix A, (m, q): the residual of A Y' instead.
        """
        parts = [self.error, self.target]
        if composition is not None:
            parts = [part @ composition.T for part in parts]
        error, target = map(np.linalg.norm, parts)
        return float(error / target) if target else math.nan


def fit(
    before: np.ndarray,
    after: np.ndarray,
    *,
    tolerance: float | None = None,
    intercept: bool = False,
) -> Operator:
    """Fits the linear map that takes snapshots to the next ones, in float64.

    Dynamic mode decomposition with the identity as observable: the solution of least norm of
    min ||Y' - K Y||_F, K = Y' Y^+ with the pseudoinverse by a truncated SVD (section III.C of
    [liang2022credit], with the correction of its theorem 3). Rows are snapshots here.

    Args:
        before: Y, (n, p).
        after: Y', (n, q).
        tolerance: Singular values of Y up to this part of the largest are left out; None: the
            rounding of float64 times max(n, p).
        intercept: Fit an offset too; the linear part is then that of centred snapshots.

    Returns:
        The operator.

    Raises:
        ValueError: For shapes that do not fit, no snapshots, NaN or infinity, or a wrong tolerance.
    """
    before, after = (np.asarray(part, "float64") for part in (before, after))
    if before.ndim != 2 or after.ndim != 2 or len(before) != len(after) or not len(before):
        raise ValueError(
            "Snapshots and the next ones are arrays (n, p) and (n, q) with n >= 1, received "
            f"{before.shape} and {after.shape}."
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("Snapshots hold NaN or infinity.")
    if tolerance is None:
        tolerance = _EPSILON * max(before.shape)
    elif not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), received {tolerance!r}.")
    q, p = after.shape[1], before.shape[1]
    middles = np.zeros(p), np.zeros(q)
    if intercept:
        middles = before.mean(axis=0), after.mean(axis=0)
    # One triangle holds all that the regression reads of any number of snapshots.
    joint = np.concatenate([before - middles[0], after - middles[1]], axis=1)
    rows = min(len(joint), p)
    if len(joint) > p:
        joint = np.linalg.qr(joint, mode="r")
    # Below, a triangle holds only what no operator reaches.
    source, target, rest = joint[:rows, :p], joint[:rows, p:], joint[rows:, p:]
    left, values, right = scipy.linalg.svd(source, full_matrices=False, lapack_driver="gesdd")
    rank = int(np.sum(values > tolerance * values[0]))
    left, kept, right = left[:, :rank], values[:rank], right[:rank]
    coordinates = left.T @ target
    matrix = ((right.T / kept) @ coordinates).T
    error = np.concatenate([target - left @ coordinates, rest])
    offset = middles[1] - matrix @ middles[0] if intercept else np.zeros(q)
    return Operator(matrix, offset, rank, values, error, np.concatenate([target, rest]))


def volume(matrix: np.ndarray, tolerance: float | None = None) -> Volume:
    """Returns the volume of a linear map: the product of its singular values, as a logarithm.

    This is |det M| for square matrices, sqrt(det(M^T M)) for tall and sqrt(det(M M^T)) for wide
    ones of full rank (section III.D of [liang2022credit]).

    Args:
        matrix: (q, p).
        tolerance: Singular values up to this part of the largest do not count; None: the rounding
            of float64 times the larger size.
    """
    matrix = np.asarray(matrix, "float64")
    return _product(scipy.linalg.svdvals(matrix), matrix.shape, tolerance)


def eigenvalue_volume(matrix: np.ndarray, tolerance: float | None = None) -> Volume:
    """Returns the product of those eigenvalues of a square matrix that are not 0.

    The paper takes it where a determinant is 0. It is no volume: a matrix that is nilpotent has
    only eigenvalues 0 and stretches space all the same.

    Args:
        matrix: (p, p).
        tolerance: See `volume`.

    Raises:
        ValueError: If the matrix is not square.
    """
    matrix = np.asarray(matrix, "float64")
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"Only square matrices have eigenvalues, received {matrix.shape}.")
    values = np.sort(np.abs(scipy.linalg.eigvals(matrix)))[::-1]
    return _product(values, matrix.shape, tolerance)


def _threshold(shape: Sequence[int], tolerance: float | None) -> float:
    return _EPSILON * max(shape) if tolerance is None else tolerance


def _product(values: np.ndarray, shape: Sequence[int], tolerance: float | None) -> Volume:
    kept = values[values > _threshold(shape, tolerance) * values[0]]
    return Volume(float(np.log(kept).sum()) if len(kept) else math.nan, len(kept))


def log_sensitivities(matrices: Sequence[np.ndarray], tolerance: float | None = None) -> np.ndarray:
    """Returns the logarithm of each block's sensitivity |det dK / dK_i| with K = K_m ... K_1.

    The Jacobian is (K_m ... K_{i+1}) kron (K_{i-1} ... K_1)^T (theorem 1), and the volume of a
    Kronecker product of A and B is volume(A)^rank(B) volume(B)^rank(A). For square matrices of one
    size n this is theorem 5 of [liang2022credit], the product of |det K_s|^n over s != i.

    Args:
        matrices: K_1 ... K_m, each (q_i, p_i) with p_{i+1} = q_i.
        tolerance: See `volume`.

    Returns:
        (m,); nan where a matrix of the Jacobian is 0.

    Raises:
        ValueError: If the shapes do not follow each other.
    """
    _check_chain(matrices)
    factors = [_factors(np.asarray(matrix, "float64"), tolerance) for matrix in matrices]
    logs = []
    for place in range(len(matrices)):
        right = _product_volume(matrices[0].shape[1], [f for pair in factors[:place] for f in pair])
        left = _product_volume(
            matrices[place].shape[0], [f for pair in factors[place + 1 :] for f in pair]
        )
        logs.append(left.rank * right.log_volume + right.rank * left.log_volume)
    return np.array(logs)


def _factors(matrix: np.ndarray, tolerance: float | None) -> list[np.ndarray]:
    """Splits a matrix of lower rank r into factors with r dimensions between them."""
    if volume(matrix, tolerance).rank == min(matrix.shape):
        return [matrix]
    left, values, right = scipy.linalg.svd(matrix, full_matrices=False)
    rank = int(np.sum(values > _threshold(matrix.shape, tolerance) * values[0]))
    return [right[:rank], left[:, :rank] * values[:rank]]


def _product_volume(size: int, chain: list[np.ndarray]) -> Volume:
    """Returns the volume of M_k ... M_1, whose factors have full rank.

    From the narrowest place on, triangles of QR decompositions have the volumes of both sides:
    the product itself is never made, whose small singular values would drown in rounding.

    Args:
        size: Columns of M_1, or of the empty product.
        chain: M_1 ... M_k.
    """
    widths = [size, *(len(matrix) for matrix in chain)]
    narrow = int(np.argmin(widths))
    if not widths[narrow]:
        return Volume(math.nan, 0)
    behind = _tall_log_volume(widths[narrow], chain[narrow:])
    before = _tall_log_volume(widths[narrow], [matrix.T for matrix in reversed(chain[:narrow])])
    return Volume(behind + before, widths[narrow])


def _tall_log_volume(size: int, chain: list[np.ndarray]) -> float:
    """Returns the log-volume of M_k ... M_1 of `size` columns, none of which gets lost."""
    basis, total = np.eye(size), 0.0
    for matrix in chain:
        basis, triangle = np.linalg.qr(matrix @ basis)
        diagonal = np.abs(np.diag(triangle))
        if not diagonal.all():
            return -math.inf
        total += float(np.log(diagonal).sum())
    return total


def _check_chain(matrices: Sequence[np.ndarray]) -> None:
    shapes = [np.shape(matrix) for matrix in matrices]
    chained = all(first[0] == then[1] for first, then in zip(shapes, shapes[1:], strict=False))
    if not shapes or not all(len(shape) == 2 for shape in shapes) or not chained:
        raise ValueError(
            f"Operators K_1 ... K_m have shapes (q_i, p_i) with p_(i+1) = q_i, received {shapes}."
        )
