"""Fits the operators of one block: alignments, trajectories, regressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfexplain.koopman.alignment import alignment
from tfexplain.koopman.operators import fit
from tfexplain.koopman.trajectories import Function, roll_out

UNDERDETERMINED = ("raise", "minimum_norm")


@dataclass(frozen=True)
class FitOptions:
    """How operators are fitted; see `tfexplain.koopman.credit`."""

    steps: int | None
    max_snapshots: int | None
    alignment: str
    repeats: int
    rescale: bool
    intercept: bool
    tolerance: float | None
    precision: str
    underdetermined: str

    def tolerance_of(self, snapshots: np.ndarray) -> float:
        """Returns the part of the largest singular value up to which others are left out."""
        return self.rounding_of(snapshots) if self.tolerance is None else self.tolerance

    def rounding_of(self, matrix: np.ndarray) -> float:
        """Returns up to which part of the largest singular values are rounding.

        What was computed in float32 holds rounding as directions of their own, also when it is
        written in float64.
        """
        return float(np.finfo(self.precision).eps) * max(matrix.shape)


@dataclass(frozen=True)
class SnapshotBudget:
    """How many snapshots are made of a block.

    Attributes:
        inputs: Trajectories.
        steps: Pairs of snapshots of each.
        note: Why the data do not determine the operator; empty if they may.
        count: Inputs that there are.
        free: 1 with an offset, which takes one of them, else 0.
    """

    inputs: int
    steps: int
    note: str
    count: int
    free: int

    def check(self) -> None:
        """Refuses snapshots that cannot determine the operator.

        Raises:
            ValueError: If they are too few.
        """
        components = max(1, self.inputs - self.free)
        if self.note:
            raise ValueError(
                f"Too few inputs: {self.note}. Give more inputs (of {self.count} are used "
                f"{self.inputs}; fewer steps or a larger max_snapshots use more), or "
                f"max_dimension={components} to work in principal components, or "
                'underdetermined="minimum_norm" for the solution that sets to 0 what the data '
                "leave open."
            )


def snapshot_budget(
    name: str, p: int, q: int, narrowest: int, count: int, fit_options: FitOptions
) -> SnapshotBudget:
    """Decides on the snapshots of a block.

    Args:
        name: The name of the block.
        p: Input coordinates.
        q: Output coordinates.
        narrowest: d, the least width inside the block.
        count: Inputs that there are.
        fit_options: How operators are fitted.
    """
    most = 4 * p if fit_options.max_snapshots is None else fit_options.max_snapshots
    if fit_options.steps is None:
        steps = max(1, min(2 * min(narrowest, p, q), most // min(count, most)))
    else:
        steps = min(fit_options.steps, most)
    inputs = min(count, max(1, most // steps))
    free = 1 if fit_options.intercept else 0
    wanted = max(1, p - q) + free
    note = ""
    if q < p and inputs < wanted:
        note = (
            f"block {name!r} takes {p} numbers to {q}, and from step 1 on its snapshots lie in {q} "
            f"dimensions: {inputs} inputs do not determine the operator, {wanted} are needed"
        )
    elif inputs * steps < p + free:
        note = (
            f"block {name!r} takes {p} numbers, and {inputs} inputs with {steps} steps give "
            f"{inputs * steps} pairs of snapshots: they do not determine the operator"
        )
    return SnapshotBudget(inputs, steps, note, count, free)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Operators of a block, one for each alignment, or a single one where there is none to draw.

    Attributes:
        matrices: K, (repeats, q, p).
        unprojected: The mean of Y' Y^+ over the repeats, (q, p): K without the projection B A.
        offsets: (repeats, q).
        ranks: Retained rank of the snapshots, (repeats,).
        residuals: ||Y' - K~ Y|| / ||Y'|| of the aligned block, (repeats,).
        columns: Pairs of snapshots, (repeats,).
        diverged: Trajectories that diverged, (repeats,).
        collapsed: Trajectories that came to a standstill, (repeats,).
        scales: c, (repeats,).
    """

    matrices: np.ndarray
    unprojected: np.ndarray
    offsets: np.ndarray
    ranks: np.ndarray
    residuals: np.ndarray
    columns: np.ndarray
    diverged: np.ndarray
    collapsed: np.ndarray
    scales: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """The mean operator, (q, p)."""
        return self.matrices.mean(axis=0)

    @property
    def offset(self) -> np.ndarray:
        """The mean offset, (q,)."""
        return self.offsets.mean(axis=0)


def fit_block(
    function: Function,
    start: np.ndarray,
    first: np.ndarray,
    budget: SnapshotBudget,
    fit_options: FitOptions,
    generator: Callable[[int], np.random.Generator],
    advance: Callable[[], None] = lambda: None,
) -> Fitted:
    """Fits a block under every alignment (sections III.B and C of [liang2022credit]).

    With K~ = A Y' Y^+ the operator is B K~ = B A Y' Y^+, and B A = I for p >= q. A number c that
    divides the aligned block changes the trajectories only: c B K~ / c. Where the alignment changes
    nothing at all, for p = q and for a single step of a block that does not widen, there is one
    repeat.

    Args:
        function: The block f in coordinates, from (n, p) to (n, q).
        start: Its inputs, (count, p).
        first: f of them, (count, q).
        budget: How many of them are used, and for how many steps.
        fit_options: How operators are fitted.
        generator: Function of the number of the repeat.
        advance: Called after each repeat.
    """
    # From everywhere: files are often sorted by class.
    places = np.linspace(0, len(start) - 1, budget.inputs).round().astype(int)
    start, first = start[places], first[places]
    p, q = start.shape[1], first.shape[1]
    drawn = q > p or (q < p and budget.steps > 1)
    rows, unprojected = [], np.zeros((q, p))
    repeats = fit_options.repeats if drawn else 1
    for repeat in range(repeats):
        composition, decomposition = alignment(p, q, generator(repeat), fit_options.alignment)
        snapshots = roll_out(
            function,
            start,
            first,
            composition,
            steps=budget.steps,
            rescale=fit_options.rescale,
        )
        regression = fit(
            snapshots.before,
            snapshots.after,
            tolerance=fit_options.tolerance_of(snapshots.before),
            intercept=fit_options.intercept,
        )
        matrix, offset = regression.matrix, regression.offset
        unprojected += matrix / repeats
        if q > p:
            matrix, offset = (decomposition @ (composition @ part) for part in (matrix, offset))
        rows.append(
            (
                matrix,
                offset,
                regression.rank,
                regression.residual(composition if q != p else None),
                len(snapshots.before),
                snapshots.diverged,
                snapshots.collapsed,
                snapshots.scale,
            )
        )
        advance()
    matrices, *others = (np.stack(column) for column in zip(*rows, strict=True))
    return Fitted(matrices, unprojected, *others)
