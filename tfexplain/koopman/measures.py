"""Fits one block, and measures the volumes of its operators and of its kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tfexplain.koopman import kernels as kernel_credit
from tfexplain.koopman.coordinates import principal_components
from tfexplain.koopman.fitting import FitOptions, fit_block, snapshot_budget
from tfexplain.koopman.flow import Flow, State
from tfexplain.koopman.operators import Volume, eigenvalue_volume, fit, volume
from tfexplain.koopman.partition import Block
from tfexplain.runs import Arrays


def measure(
    block: Block,
    state: State,
    place: int,
    fit_options: FitOptions,
    fixed: int,
    definitions: Sequence[str],
    flow: Flow,
    seed: int,
    advance: Callable[[], None],
) -> Arrays:
    """Fits the operators of one block; returns all that is known of it."""
    start, first = state.before.encode(state.inputs), state.after.encode(state.outputs)
    p, q = start.shape[1], first.shape[1]
    budget = snapshot_budget(block.name, p, q, block.narrowest, len(start), fit_options)
    fitted = fit_block(
        lambda z: flow.run(block, z, state.before, state.after.encode),
        start,
        first,
        budget,
        fit_options,
        lambda repeat: np.random.default_rng([seed, place, repeat]),
        advance,
    )
    direct = fit(
        start, first, tolerance=fit_options.tolerance_of(start), intercept=fit_options.intercept
    )
    tested = state.before.encode(state.tested[0]), state.after.encode(state.tested[1])
    matrix = fitted.matrix

    def measured(operator: np.ndarray) -> Volume:
        return volume(operator, fit_options.rounding_of(operator))

    mean, unprojected = measured(matrix), measured(fitted.unprojected)
    least_squares = measured(direct.matrix)
    logs = np.array([measured(one).log_volume for one in fitted.matrices])
    # Eigenvalues need an operator from a space to itself, not between two sets of components.
    same = p == q and state.before.components is None and state.after.components is None
    eigenvalues = math.nan
    if same:
        eigenvalues = eigenvalue_volume(matrix, fit_options.rounding_of(matrix)).log_volume
    numbers = {
        "log_volume": mean.log_volume,
        "log_volume_per_dimension": mean.per_dimension,
        "unprojected_log_volume": unprojected.log_volume,
        "unprojected_log_volume_per_dimension": unprojected.per_dimension,
        "log_volume_fixed_rank": _fixed_rank_volume(start, first, fixed),
        "log_volume_eigenvalues": eigenvalues,
        "log_volume_mean": logs.mean(),
        "log_volume_std": logs.std(ddof=1) if len(logs) > 1 else 0.0,
        "residual": fitted.residuals.mean(),
        "one_step_error": _error(matrix, fitted.offset, *tested),
        "scale": fitted.scales.mean(),
        "energy_lost": state.after.lost(state.tested[1]),
        "input_energy_lost": state.before.lost(state.tested[0]),
        "least_squares_log_volume": least_squares.log_volume,
        "least_squares_log_volume_per_dimension": least_squares.per_dimension,
        "least_squares_one_step_error": _error(direct.matrix, direct.offset, *tested),
    }
    counts = {
        "rank": mean.rank,
        "inputs": budget.inputs,
        "steps": budget.steps,
        "columns": fitted.columns.max(),
        "diverged": fitted.diverged.sum(),
        "collapsed": fitted.collapsed.sum(),
        "least_squares_rank": least_squares.rank,
        "input_coordinates": p,
        "output_coordinates": q,
    }
    if fit_options.underdetermined == "raise":
        budget.check()
    notes = [budget.note] if budget.note else []
    if (rank := int(fitted.ranks.min())) < p and not budget.note:
        notes.append(
            f"snapshots of block {block.name!r} have rank {rank} of {p} ({counts['columns']} pairs "
            f"of {budget.inputs * budget.steps}): its operator is 0 for what they leave out"
        )
    if not mean.rank:
        notes.append(f"the operator of block {block.name!r} is 0: it has no volume")
    if math.isnan(numbers["log_volume_fixed_rank"]):
        notes.append(f"inputs or outputs of block {block.name!r} have a rank below {fixed}")
    of_kernels, more = _of_kernels(
        block, state, place, fitted.unprojected, fit_options, definitions, flow, seed
    )
    notes += more
    return {
        **{name: np.float64(value) for name, value in numbers.items()},
        **{name: np.int64(value) for name, value in counts.items()},
        "repeat_log_volume": logs,
        "repeat_rank": fitted.ranks,
        "matrices": fitted.matrices,
        "offsets": fitted.offsets,
        "least_squares_matrix": direct.matrix,
        "least_squares_offset": direct.offset,
        **of_kernels,
        "notes": np.array(notes, dtype=str),
    }


def _fixed_rank_volume(start: np.ndarray, first: np.ndarray, rank: int) -> float:
    """Returns the log-volume of the regression between leading principal components.

    Scores of the centred outputs are regressed on those of the centred inputs, as the remark of
    section III.D of [liang2022credit] proposes. nan where one of them has a lower rank.
    """
    scores = []
    for values in (start, first):
        middle = values.mean(axis=0)
        directions = principal_components(values, middle, rank)
        if directions.shape[1] < rank:
            return math.nan
        scores.append((values - middle) @ directions)
    measured = volume(fit(*scores).matrix)
    return measured.log_volume if measured.rank == rank else math.nan


def _error(matrix: np.ndarray, offset: np.ndarray, start: np.ndarray, first: np.ndarray) -> float:
    size = np.linalg.norm(first)
    return float(np.linalg.norm(start @ matrix.T + offset - first) / size) if size else math.nan


def _of_kernels(
    block: Block,
    state: State,
    place: int,
    matrix: np.ndarray,
    fit_options: FitOptions,
    definitions: Sequence[str],
    flow: Flow,
    seed: int,
) -> tuple[Arrays, list[str]]:
    """Returns the volumes of a block's kernels by the definitions that are asked for, and notes.

    Rows are those of the operator without the projection of a block that widens, which would mix
    all channels.
    """
    count = kernel_credit.num_kernels(block)
    if not count:
        return {}, []
    arrays: Arrays = {}
    notes: list[str] = []
    if "rows" in definitions:
        volumes = kernel_credit.row_volumes(block, matrix, state.after, fit_options)
        arrays |= _kernel_arrays("rows", volumes)
    if "block" in definitions:
        start = state.before.encode(state.inputs)
        of_fits: list[Volume | None] = []
        for channel in range(count):
            fitted, note = kernel_credit.fit_kernel(
                lambda z, encode, c=channel: flow.run(  # type: ignore[misc]  # has a default
                    block, z, state.before, lambda outputs: encode(outputs[..., c])
                ),
                start,
                state.outputs[..., channel],
                block.narrowest,
                f"{block.name}, kernel {channel}",
                flow.options,
                fit_options,
                lambda repeat, c=channel: np.random.default_rng(  # type: ignore[misc]  # has a default
                    [seed, place, repeat, c]
                ),
            )
            rounding = None if fitted is None else fit_options.rounding_of(fitted.matrix)
            of_fits.append(None if fitted is None else volume(fitted.matrix, rounding))
            if note:
                notes.append(note)
        arrays |= _kernel_arrays("block", of_fits)
    return arrays, notes


def _kernel_arrays(definition: str, volumes: Sequence[Volume | None]) -> Arrays:
    start = f"kernel_{definition}"
    return {
        f"{start}_log_volume": np.array([math.nan if v is None else v.log_volume for v in volumes]),
        f"{start}_log_volume_per_dimension": np.array(
            [math.nan if v is None else v.per_dimension for v in volumes]
        ),
        f"{start}_rank": np.array([0 if v is None else v.rank for v in volumes]),
    }
