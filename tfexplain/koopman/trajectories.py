"""Rolls a block out: snapshots of the system that a block and its alignment make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# A trajectory ends where the norm of a snapshot leaves this range, relative to its first one,
LEAST, MOST = 1e-3, 1e3
# or where it moves by less than this part of its norm.
STANDSTILL = 1e-6

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Pairs of snapshots of all trajectories.

    Attributes:
        before: y(k), (columns, p), float64.
        after: f(y(k)), the block's own output, (columns, q).
        diverged: Trajectories whose norm left [1e-3, 1e3] times the first, or became infinite.
        collapsed: Trajectories that came to a standstill.
        scale: The number c that divides the aligned block.
    """

    before: np.ndarray
    after: np.ndarray
    diverged: int
    collapsed: int
    scale: float


def roll_out(
    function: Function,
    start: np.ndarray,
    first: np.ndarray,
    composition: np.ndarray,
    *,
    steps: int,
    rescale: bool,
) -> Snapshots:
    """Iterates y(k+1) = A f(y(k)) / c from all inputs at once (section III.C of [liang2022credit]).

    Iterates leave what the block knows, and may grow or stand still; such trajectories end there.

    Args:
        function: f, from (n, p) to (n, q).
        start: y(0), (n, p).
        first: f(y(0)), (n, q).
        composition: A, (p, q).
        steps: Pairs of snapshots per trajectory.
        rescale: Choose c so that the mean norm of y(1) is that of y(0); else c = 1.

    Returns:
        The pairs, in the order of steps and then of inputs.
    """
    norms = np.linalg.norm(start, axis=1)
    mean = norms.mean()
    # An input that is 0 has no norm of its own to compare with.
    norms = np.where(norms > 0, norms, mean)
    following = first @ composition.T
    scale = 1.0
    if rescale:
        moved = np.linalg.norm(following, axis=1).mean()
        scale = float(moved / mean) if moved > 0 and mean > 0 else 1.0
    following = following / scale
    before, after = [start], [first]
    current, diverged, collapsed = start, 0, 0
    for _ in range(steps - 1):
        size = np.linalg.norm(following, axis=1)
        inside = (size >= LEAST * norms) & (size <= MOST * norms)
        still = np.linalg.norm(following - current, axis=1) <= STANDSTILL * size
        diverged += int(np.sum(~inside))
        collapsed += int(np.sum(inside & still))
        going = inside & ~still
        if not going.any():
            break
        current, norms = following[going], norms[going]
        outputs = function(current)
        finite = np.isfinite(outputs).all(axis=1)
        diverged += int(np.sum(~finite))
        current, norms, outputs = current[finite], norms[finite], outputs[finite]
        if not len(current):
            break
        before.append(current)
        after.append(outputs)
        following = outputs @ composition.T / scale
    return Snapshots(np.concatenate(before), np.concatenate(after), diverged, collapsed, scale)
