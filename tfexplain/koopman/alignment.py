"""Makes blocks of different input and output size iterable: minimal linear dimension alignment."""

from __future__ import annotations

import math

import numpy as np

from tfexplain.checks import choice

ALIGNMENTS = ("orthonormal", "gaussian")
# Relative rounding that the minimum of theorem 4 may be away by.
_ROUNDING = 1e-6


def alignment(
    p: int, q: int, generator: np.random.Generator, kind: str = "orthonormal"
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the linear maps around a block f: R^p -> R^q (section III.B of [liang2022credit]).

    A o f maps R^p to itself, and the operator K~ of that gives B K~ as operator of f. With
    A = B^+ and B of full rank ||B A - I||_F has its minimum sqrt(max(q - p, 0)) (theorem 4), which
    is checked here: nothing is lost for p >= q, a random projection to p dimensions is left else.

    Args:
        p: Input dimensions of the block.
        q: Output dimensions.
        generator: It draws the random numbers.
        kind: "orthonormal": rows or columns of B are an orthonormal basis of a random subspace, so
            that A is the transposed B. "gaussian": independent normal numbers. For p = q both are
            identities.

    Returns:
        A (p, q) and B (q, p), float64.

    Raises:
        ValueError: For an unknown kind, or a size below 1.
        FloatingPointError: If the minimum is missed.
    """
    choice("alignment", kind, ALIGNMENTS)
    if min(p, q) < 1:
        raise ValueError(f"Blocks have at least one input and output, received {p} and {q}.")
    if p == q:
        return np.eye(p), np.eye(p)
    drawn = generator.standard_normal((max(p, q), min(p, q)))
    if kind == "orthonormal":
        # With the signs of R, Q is distributed evenly over all orthonormal bases.
        basis, triangle = np.linalg.qr(drawn)
        basis = basis * np.sign(np.diag(triangle))
        decomposition = basis if q > p else basis.T
        composition = decomposition.T
    else:
        decomposition = drawn if q > p else drawn.T
        composition = np.linalg.pinv(decomposition)
    distance = distance_to_identity(composition, decomposition)
    least = math.sqrt(max(q - p, 0))
    if not abs(distance - least) <= _ROUNDING * max(1.0, least):
        raise FloatingPointError(
            f"||B A - I||_F is {distance:.6g}, its minimum is {least:.6g}: the drawn matrix of "
            f"shape {decomposition.shape} is too close to a lower rank. Use another seed."
        )
    return composition, decomposition


def distance_to_identity(composition: np.ndarray, decomposition: np.ndarray) -> float:
    """Returns ||B A - I||_F, the objective of theorem 4.

    Args:
        composition: A, (p, q).
        decomposition: B, (q, p).
    """
    p, q = composition.shape
    if q <= p:
        return float(np.linalg.norm(decomposition @ composition - np.eye(q)))
    # The product is large, its trace and norm are not: ||B A||^2 = sum of (B^T B) * (A A^T).
    trace = np.sum(decomposition * composition.T)
    squared = np.sum((decomposition.T @ decomposition) * (composition @ composition.T))
    return math.sqrt(max(0.0, squared - 2 * trace + q))
