"""Theorem 1 in exact arithmetic: its conditions, its conclusion, and where they part.

Matrices are arrays of Python integers or `fractions.Fraction` (dtype object), so that nothing is
rounded. Cosines of non-negative columns are compared by their squares, which are rational.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations, product

import numpy as np

ZERO, UNIT, ORTHOGONAL = "zero column", "multiple of a unit vector", "orthogonal columns"
# Powers that tell whether columns align: 1 - cos falls at least like 1 / (2 n^2) if they do.
LAST_POWER, ALIGNED = 256, 1e-3


def exact(rows: Sequence[Sequence[int | Fraction]]) -> np.ndarray:
    """Returns a matrix of exact numbers."""
    return np.array([[Fraction(value) for value in row] for row in rows], dtype=object)


def squared_cosine(u: np.ndarray, v: np.ndarray) -> Fraction:
    """Returns cos^2 of two vectors, exactly.

    Raises:
        ValueError: If one of them is zero: there is no angle.
    """
    squares = (u @ u) * (v @ v)
    if squares == 0:
        raise ValueError("A zero vector has no angle; leave out matrices with zero columns.")
    return Fraction((u @ v) ** 2, squares)


def least_squared_cosine(matrix: np.ndarray) -> Fraction:
    """Returns the least cos^2 of two columns: s_n^2 of the proof; 1 for a single column."""
    columns = matrix.T
    return min((squared_cosine(u, v) for u, v in combinations(columns, 2)), default=Fraction(1))


def exclusions(matrix: np.ndarray) -> tuple[str, ...]:
    """Returns which exclusions of the theorem a limit matrix meets."""
    columns = [[value != 0 for value in column] for column in matrix.T]
    met = []
    if any(sum(column) == 0 for column in columns):
        met.append(ZERO)
    if any(sum(column) == 1 for column in columns):
        met.append(UNIT)
    # Non-negative columns are orthogonal if and only if they have no row in common.
    if any(
        not any(a and b for a, b in zip(u, v, strict=True)) and any(u) and any(v)
        for u, v in combinations(columns, 2)
    ):
        met.append(ORTHOGONAL)
    return tuple(met)


def rank(matrix: np.ndarray) -> int:
    """Returns the rank by exact elimination."""
    rows = [[Fraction(value) for value in row] for row in matrix]
    done = 0
    for column in range(matrix.shape[1]):
        pivot = next((r for r in range(done, len(rows)) if rows[r][column]), None)
        if pivot is None:
            continue
        rows[done], rows[pivot] = rows[pivot], rows[done]
        for r in range(done + 1, len(rows)):
            factor = rows[r][column] / rows[done][column]
            rows[r] = [a - factor * b for a, b in zip(rows[r], rows[done], strict=True)]
        done += 1
    return done


def power(matrix: np.ndarray, exponent: int) -> np.ndarray:
    """Returns a power by repeated squaring; the exponent is a power of 2."""
    while exponent > 1:
        matrix, exponent = matrix @ matrix, exponent // 2
    return matrix


def aligns(matrix: np.ndarray) -> bool:
    """Tells whether the columns of A^n become parallel, from n = `LAST_POWER`.

    Raises:
        ValueError: If a column of the power is zero.
    """
    return 1 - float(least_squared_cosine(power(matrix, LAST_POWER))) ** 0.5 < ALIGNED


def counterexample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a matrix that meets the theorem's conditions, but not its conclusion.

    A^n = L + (2/3)^n E for n >= 1, and L has rank 2. Columns 3 and 4 feed the first two rows, which
    all columns share, but keep a row of their own whose weight does not fall: the proof scales the
    columns of M_n to unit length and goes on as if the entries of A_(n+1) were not scaled with it.

    Returns:
        A, L and E.
    """
    third = Fraction(1, 3)
    a = exact([[third, third, third, third], [third, third, third, third], [0, 0, 1, 0]])
    a = np.concatenate([a, exact([[0, 0, 0, 1]])])
    limit = exact([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    half = Fraction(1, 2)
    rest = exact([[half, half, -1, -1], [half, half, -1, -1], [0, 0, 0, 0], [0, 0, 0, 0]])
    return a, limit, rest


def follows_closed_form(last: int = 40) -> bool:
    """Tells whether A^n = L + (2/3)^n E holds for n = 1 ... `last`, and is kept by A.

    A L = L and A E = 2/3 E make it hold for all n.
    """
    a, limit, rest = counterexample()
    kept = np.array_equal(a @ limit, limit) and np.array_equal(a @ rest, rest * Fraction(2, 3))
    current = a
    for n in range(1, last + 1):
        kept &= np.array_equal(current, limit + rest * Fraction(2, 3) ** n)
        current = current @ a
    return bool(kept)


def with_columns_of_sum_one(matrix: np.ndarray) -> np.ndarray:
    """Returns the matrix with columns that add up to one, as those of z+ without bias."""
    return matrix / matrix.sum(axis=0)


def ergodic_coefficient(matrix: np.ndarray) -> Fraction:
    """Returns how much a matrix of column sums one brings columns together: 0 to 1 (Hajnal).

    1 - min over pairs of columns of sum_i min(a_i, b_i). Below 1, products converge to rank 1
    exponentially: the distance of two columns shrinks by it with every factor.
    """
    return max(
        (
            1 - sum(min(a, b) for a, b in zip(u, v, strict=True))
            for u, v in combinations(matrix.T, 2)
        ),
        default=Fraction(0),
    )


def small_matrices(size: int, values: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields all square matrices of a size with entries among `values`."""
    for entries in product(values, repeat=size * size):
        yield np.array(entries, dtype=object).reshape(size, size)


def census(size: int, values: Sequence[int]) -> dict[str, int]:
    """Counts small matrices without zero column by what the theorem says, and what is.

    Returns:
        Numbers of matrices: "allowed" by the theorem, of these "not aligned" (columns of the
        powers stay apart) and "not contracting" (after scaling columns to sum one), "excluded" by
        it, of these "aligned" all the same.
    """
    counts = dict.fromkeys(("allowed", "not aligned", "not contracting", "excluded", "aligned"), 0)
    for matrix in small_matrices(size, values):
        met = exclusions(matrix)
        if ZERO in met:
            continue
        if met:
            counts["excluded"] += 1
            counts["aligned"] += aligns(matrix)
        else:
            counts["allowed"] += 1
            counts["not aligned"] += not aligns(matrix)
            scaled = with_columns_of_sum_one(matrix * Fraction(1))
            counts["not contracting"] += ergodic_coefficient(scaled) >= 1
    return counts


def random_chain(generator: np.random.Generator, length: int, side: str) -> list[Fraction]:
    """Returns s_n^2 along a product of random non-negative integer matrices of changing sizes.

    About half of the entries are zero; matrices with a zero column are drawn again.

    Args:
        generator: Random numbers.
        length: Number of factors.
        side: "right": M_n A_(n+1), as in the proof, towards the logits; "left": A_(n+1) M_n, as
            relevance is sent back, towards the input.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side is {side!r}. Expected 'right' or 'left'.")
    sizes = generator.integers(2, 5, length + 1)
    chain, cosines = None, []
    for number in range(length):
        shape = (sizes[number], sizes[number + 1])
        factor = _without_zero_column(generator, shape if side == "right" else shape[::-1])
        if chain is None:
            chain = factor
        else:
            chain = chain @ factor if side == "right" else factor @ chain
        cosines.append(least_squared_cosine(chain))
    return cosines


def _without_zero_column(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    while True:
        entries = generator.integers(1, 10, shape) * generator.integers(0, 2, shape)
        if entries.any(axis=0).all():
            return np.array(entries.tolist(), dtype=object)


def falls(generator: np.random.Generator, chains: int, length: int, side: str) -> tuple[int, int]:
    """Counts the steps of random chains in which the least cosine of two columns falls.

    Returns:
        Number of steps in which it falls, and number of steps.
    """
    fallen = steps = 0
    for _ in range(chains):
        values = random_chain(generator, length, side)
        fallen += sum(b < a for a, b in zip(values, values[1:], strict=False))
        steps += length - 1
    return fallen, steps
