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
class Settings:
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
        """Returns the part of the largest singular value up to which others are left out.

        Snapshots that were computed in float32 hold rounding as directions of their own, also when
        they are numbers of float64.
        """
        if self.tolerance is not None:
            return self.tolerance
        return float(np.finfo(self.precision).eps) * max(snapshots.shape)


@dataclass(frozen=True)
class Plan:
    """How many snapshots are made of a block.

    Attributes:
        inputs: Trajectories.
        steps: Pairs of snapshots of each.
        note: Why the data do not determine the operator; empty if they may.
        count: Inputs that there are.
    """

    inputs: int
    steps: int
    note: str
    count: int

    def check(self) -> None:
        """Refuses snapshots that cannot determine the operator.

        Raises:
            ValueError: If they are too few.
        """
        if self.note:
            raise ValueError(
                f"Too few inputs: {self.note}. Give more inputs (of {self.count} are used "
                f"{self.inputs}; fewer steps or a larger max_snapshots use more), or "
                f"max_dimension={self.inputs} to work in principal components, or "
                'underdetermined="minimum_norm" for the solution that sets to 0 what the data '
                "leave open."
            )


def plan(name: str, p: int, q: int, narrowest: int, count: int, settings: Settings) -> Plan:
    """Decides on the snapshots of a block.

    Args:
        name: Of the block.
        p: Input coordinates.
        q: Output coordinates.
        narrowest: d, the least width inside the block.
        count: Inputs that there are.
        settings: Of the run.
    """
    most = 4 * p if settings.max_snapshots is None else settings.max_snapshots
    if settings.steps is None:
        steps = max(1, min(2 * min(narrowest, p, q), most // min(count, most)))
    else:
        steps = settings.steps
    inputs = min(count, max(1, most // steps))
    free = 1 if settings.intercept else 0
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
    return Plan(inputs, steps, note, count)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Operators of a block, one for each alignment, or a single one where there is none to draw.

    Attributes:
        matrices: K, (repeats, q, p).
        offsets: (repeats, q).
        ranks: Retained rank of the snapshots, (repeats,).
        residuals: ||Y' - K~ Y|| / ||Y'|| of the aligned block, (repeats,).
        columns: Pairs of snapshots, (repeats,).
        diverged: Trajectories that diverged, (repeats,).
        collapsed: Trajectories that came to a standstill, (repeats,).
        scales: c, (repeats,).
    """

    matrices: np.ndarray
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
    planned: Plan,
    settings: Settings,
    generator: Callable[[int], np.random.Generator],
    advance: Callable[[], None] = lambda: None,
) -> Fitted:
    """Fits a block under every alignment (sections III.B and C of [liang2022credit]).

    With K~ = A Y' Y^+ the operator is B K~. For p >= q that is Y' Y^+, because B A = I; for p < q
    the regression has the p numbers of A Y' as targets. A number c that divides the aligned block
    changes the trajectories only: c B K~ / c.

    Args:
        function: The block f in coordinates, from (n, p) to (n, q).
        start: Its inputs, (count, p).
        first: f of them, (count, q).
        planned: How many of them are used, and for how many steps.
        settings: Of the run.
        generator: Function of the number of the repeat.
        advance: Called after each repeat.
    """
    start, first = start[: planned.inputs], first[: planned.inputs]
    p, q = start.shape[1], first.shape[1]
    rows = []
    for repeat in range(settings.repeats if p != q else 1):
        composition, decomposition = alignment(p, q, generator(repeat), settings.alignment)
        snapshots = roll_out(
            function,
            start,
            first,
            composition,
            steps=planned.steps,
            rescale=settings.rescale,
        )
        found = fit(
            snapshots.before,
            snapshots.after @ composition.T if q > p else snapshots.after,
            tolerance=settings.tolerance_of(snapshots.before),
            intercept=settings.intercept,
        )
        if q > p:
            residual = found.residual()
            matrix, offset = decomposition @ found.matrix, decomposition @ found.offset
        else:
            residual = found.residual(composition if q < p else None)
            matrix, offset = found.matrix, found.offset
        rows.append(
            (
                matrix,
                offset,
                found.rank,
                residual,
                len(snapshots.before),
                snapshots.diverged,
                snapshots.collapsed,
                snapshots.scale,
            )
        )
        advance()
    return Fitted(*(np.stack(column) for column in zip(*rows, strict=True)))
