"""The singular values of an explanation: how stable and how sensitive a method is at a sample."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import xarray as xr

from tfexplain.analyzers import Analyzer
from tfexplain.audits import common
from tfexplain.audits.blocks import Arrays, in_blocks
from tfexplain.audits.redistribution import (
    LARGEST_MATRIX,
    POLICIES,
    Columns,
    Redistribution,
    check_linear,
    choose,
)
from tfexplain.checks import choice, optional_integer, real

METHODS = ("exact", "matrix_free")
# Vectors that are sent together: the work that does not depend on them is then shared.
BLOCK = 8
# Random vectors whose spread gives the standard error of the Frobenius norm, at least.
LEAST_SAMPLES = 16


class Spectrum(NamedTuple):
    """What is known of the singular values of one matrix.

    Attributes:
        values: Leading singular values, falling.
        error: Of the first, by its residual.
        norm: Frobenius norm.
        norm_error: Its standard error.
        passes: Vectors that were sent forward or backward.
    """

    values: np.ndarray
    error: float
    norm: float
    norm_error: float
    passes: int


def spectrum(
    analyzers: Analyzer | Mapping[str, Analyzer],
    x: Any,
    *,
    start: str | None = None,
    method: str = "exact",
    policy: str = "literal",
    quantile: float = 0.5,
    num_values: int | None = None,
    standard_error: float = 0.01,
    tolerance: float = 1e-3,
    seed: int = 0,
    block_size: int = 4,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Measures stability, sensitivity and SSM of explanations by their singular values.

    The map of output k divided by its sum is column k of the redistribution matrix R, so that R y
    explains any change y of the outputs. Its largest singular value bounds how much an explanation
    changes with the output, its Frobenius norm says how much maps of different outputs differ, and
    their ratio is the spectral stability metric SSM (Eq. 1 to 5 of [maess2025uncovering]), which is
    1 where all maps are alike and sqrt(outputs) where they share nothing. Channels are summed
    first; norms depend on the number of pixels, SSM hardly does.

    Columns with a sum near zero explode and pull SSM to 1, whatever the method; `near_zero` counts
    them, and `policy` says which outputs have a column:

    * "literal": all of them;
    * "quantile": outputs with a magnitude of at least the given quantile of all;
    * "active": outputs > 0, as for the units behind a ReLU that `start` may name.

    An output whose sum is exactly 0 has no column.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer; of one input.
        x: Samples, as for `analyze`.
        start: Name of the layer whose output is explained (a representation); None is the model's
            output.
        method: "exact" builds R and decomposes it in float64. "matrix_free" needs products with R
            and its transpose alone, for linear methods: block Lanczos iteration for the leading
            singular values, and for the Frobenius norm random vectors outside of the space that
            the iteration has found (Hutch++, [meyer2021hutch]).
        policy: See above.
        quantile: Of the policy of that name, in [0, 1).
        num_values: Number of singular values that are returned; None: all ("exact") or 6.
        standard_error: Of the Frobenius norm that "matrix_free" aims at, relative.
        tolerance: Of sigma_1 that "matrix_free" aims at, relative.
        seed: Of random vectors; with the position of the sample.
        block_size: Samples that are finished and stored together.
        path: NetCDF file for the result; a run that was stopped continues.

    Returns:
        Dataset with, over (analyzer, sample),

        * `singular_value` (analyzer, sample, rank): falling; not a number beyond the last;
        * `stability` = 1 / sigma_1, `sensitivity` = Frobenius norm, `ssm` = their product;
        * `stability_error` (by the residual), `sensitivity_error`, `ssm_error` (standard errors): 0
          if exact;
        * `effective_rank`: exp of the entropy of sigma / sum sigma [roy2007effective]; not a number
          if not exact;
        * `columns`, `near_zero`, `smallest_sum`: number of columns, of those with a sum below
          1e-3 of the median magnitude, and the smallest magnitude of a sum, in the unit of maps;
        * `passes`: vectors sent through the network, by which the methods' costs compare.

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For wrong options or samples; for "matrix_free", an analyzer that is not linear
            in the output relevance; for "exact", a matrix of more than 2 GiB; if no output has a
            column.

    Example:
        >>> from tfexplain.analyzers import create_analyzer
        >>> found = spectrum({"lrp.gamma": create_analyzer("lrp.gamma", model)}, x)
        >>> found.ssm.shape, bool((found.ssm >= 1).all())
        ((1, 2), True)
    """
    named = common.named_analyzers(analyzers)
    samples = common.one_input(named, x)
    common.check_common(1.0, False, seed)
    _check(method, policy, num_values)
    quantile = real("quantile", quantile, 0, 1)
    standard_error = real("standard_error", standard_error, 0)
    tolerance = real("tolerance", tolerance, 0)
    for name, analyzer in named.items():
        check_start(name, analyzer, start)
        if method == "matrix_free":
            check_linear(name, analyzer, start)
    layout = common.layout(named, samples)
    arrays = common.typed(named, samples)
    for name, analyzer in named.items():
        if common.has_chain(analyzer):
            analyzer.checked(arrays[name][:2])
    found = common.settings(
        "spectrum",
        named,
        samples,
        with_data=path is not None,
        start=start,
        method=method,
        policy=policy,
        quantile=quantile,
        num_values=num_values,
        standard_error=standard_error,
        tolerance=tolerance,
        seed=int(seed),
    )

    def compute(block: slice, advance: Callable[[], None]) -> Arrays:
        rows = []
        for name, analyzer in named.items():
            for position in range(block.start, block.stop):
                matrix = Redistribution(analyzer, arrays[name], position, layout, start)
                key = [int(seed), position]
                if method == "exact":
                    result = exact(matrix, policy, quantile)
                else:
                    goals = (num_values or 6, tolerance, standard_error)
                    result = matrix_free(matrix, policy, quantile, *goals, key)
                rows.append(result)
                advance()
        longest = max(len(result.values) for result, _ in rows)
        values = np.full((len(rows), longest), np.nan)
        numbers = np.empty((len(rows), 7))
        for place, (result, columns) in enumerate(rows):
            values[place, : len(result.values)] = result.values
            smallest = np.abs(columns.sums).min()
            numbers[place] = (
                *(result.error, result.norm, result.norm_error, result.passes),
                *(len(columns.kept), columns.near_zero, smallest),
            )
        shape = (len(named), block.stop - block.start)
        return {"values": values.reshape(*shape, -1), "numbers": numbers.reshape(*shape, -1)}

    def combine(blocks: list[Arrays]) -> xr.Dataset:
        return _dataset(blocks, list(named), num_values, method == "exact", found)

    return in_blocks(
        compute,
        combine,
        title="spectrum",
        count=len(samples),
        block_size=block_size,
        steps=len(named) * block_size,
        settings=found,
        path=path,
    )


def check_start(name: str, analyzer: Analyzer, start: str | None) -> None:
    """Refuses a start inside of a network that has no single reversed network.

    Raises:
        ValueError: With the reason; also for an unknown layer.
    """
    if start is None:
        return
    if not common.has_chain(analyzer):
        raise ValueError(
            f"{name!r} ({analyzer.name}) explains the model's output only, received "
            f"start={start!r}."
        )
    analyzer.network(start)


def _check(method: str, policy: str, num_values: int | None) -> None:
    choice("method", method, METHODS)
    choice("policy", policy, POLICIES)
    optional_integer("num_values", num_values, 1)


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


def exact(matrix: Redistribution, policy: str, quantile: float) -> tuple[Spectrum, Columns]:
    """Decomposes the whole matrix in float64."""
    r, columns = build(matrix, policy, quantile)
    values = scipy.linalg.svdvals(r, overwrite_a=True)
    norm = float(np.linalg.norm(values))
    return Spectrum(values, 0.0, norm, 0.0, len(columns.kept)), columns


# --- products alone ------------------------------------------------------------------------------


def matrix_free(
    matrix: Redistribution,
    policy: str,
    quantile: float,
    num_values: int,
    tolerance: float,
    standard_error: float,
    key: Sequence[int],
) -> tuple[Spectrum, Columns]:
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

    found = estimate(
        product, transposed, len(kept), num_values, tolerance, standard_error, list(key)
    )
    return found._replace(passes=found.passes + 1), columns


def estimate(
    product: Callable[[np.ndarray], np.ndarray],
    transposed: Callable[[np.ndarray], np.ndarray],
    size: int,
    num_values: int,
    tolerance: float,
    standard_error: float,
    key: Sequence[int],
) -> Spectrum:
    """Estimates leading singular values and the Frobenius norm of a matrix R.

    Block Lanczos iteration on R^T R: with Q an orthonormal basis of what has been reached, the
    singular values of R Q are those of R from below. With P the projection away from Q, the rest of
    the squared norm is the mean of |R P g|^2 over random signs g.

    Args:
        product: V (size, vectors) -> R V.
        transposed: U -> R^T U, (size, vectors).
        size: Number of columns of R.
        num_values: How many singular values to return.
        tolerance: Of the first, relative.
        standard_error: Of the norm, relative.
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
        signs = generator.choice([-1.0, 1.0], size=(size, LEAST_SAMPLES))
        signs -= basis @ (basis.T @ signs)
        squares += list(np.sum(product(signs) ** 2, axis=0))
        passes += LEAST_SAMPLES
        rest = float(np.mean(squares))
        spread = float(np.std(squares, ddof=1) / np.sqrt(len(squares)))
        # The standard error of a root is that of its square over twice the root.
        if spread <= 2 * standard_error * (inside + rest) or len(squares) >= size:
            break
    norm = np.sqrt(inside + rest)
    return Spectrum(values[:num_values], error, float(norm), float(spread / (2 * norm)), passes)


def _orthonormal(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Returns an orthonormal basis of what vectors add to a basis."""
    found = vectors / np.maximum(np.linalg.norm(vectors, axis=0), np.finfo("float64").tiny)
    for _ in range(2):  # once leaves rounding behind
        found = found - basis @ (basis.T @ found)
    left, values, _ = scipy.linalg.svd(found, full_matrices=False)
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


# --- the result ----------------------------------------------------------------------------------


def _dataset(
    blocks: list[Arrays],
    names: list[str],
    num_values: int | None,
    is_exact: bool,
    settings: Mapping[str, Any],
) -> xr.Dataset:
    numbers = np.concatenate([block["numbers"] for block in blocks], axis=1)
    longest = max(block["values"].shape[2] for block in blocks)
    values = np.concatenate(
        [
            np.pad(
                block["values"],
                [(0, 0), (0, 0), (0, longest - block["values"].shape[2])],
                constant_values=np.nan,
            )
            for block in blocks
        ],
        axis=1,
    )
    first, rank = values[..., 0], np.full(values.shape[:2], np.nan)
    error, norm, norm_error, passes, columns, near_zero, smallest = np.moveaxis(numbers, 2, 0)
    if is_exact:
        shares = values / np.nansum(values, axis=2, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            rank = np.exp(-np.nansum(np.where(shares > 0, shares * np.log(shares), 0), axis=2))
    values = values[..., :num_values]
    ssm = norm / first
    each = ("analyzer", "sample")
    return xr.Dataset(
        {
            "singular_value": ((*each, "rank"), values),
            "stability": (each, 1 / first),
            "stability_error": (each, error / first**2),
            "sensitivity": (each, norm),
            "sensitivity_error": (each, norm_error),
            "ssm": (each, ssm),
            "ssm_error": (each, ssm * np.hypot(norm_error / norm, error / first)),
            "effective_rank": (each, rank),
            "columns": (each, columns.astype("int64")),
            "near_zero": (each, near_zero.astype("int64")),
            "smallest_sum": (each, smallest),
            "passes": (each, passes.astype("int64")),
        },
        coords={
            "analyzer": names,
            "sample": np.arange(values.shape[1]),
            "rank": np.arange(1, values.shape[2] + 1),
        },
        attrs=common.attributes(settings),
    )
