"""What does each block contribute? Koopman credit of the model alone, as an audit.

`tfexplain.koopman` computes it; this says what a report asks of it, and shows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfexplain.audits.base import Audit
from tfexplain.audits.drawings import Drawing, Labels

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.audits.case import Case


@dataclass(frozen=True)
class Koopman(Audit):
    """Credit of the blocks; options as of `tfexplain.koopman.credit`."""

    name = "koopman"
    function = "tfexplain.koopman.credit"
    title = "Contribution of the blocks"
    question = "What does each block of the model contribute by itself, whatever the method?"
    caption = (
        "What each block of the model contributes by itself, whatever the method: the logarithm of "
        "the volume of a linear operator that is fitted to it. Compare blocks by what holds in all "
        "panels."
    )
    references = ("liang2022credit",)
    presets = {
        "quick": {"repeats": 2, "max_dimension": 128},
        "default": {"repeats": 5, "max_dimension": 256},
        "thorough": {"repeats": 10, "max_dimension": 512},
    }
    by_samples = False
    of_model = True

    repeats: int = 10
    max_dimension: int | None = 1024

    @classmethod
    def suits(cls, case: Case) -> str:
        """Needs blocks between which inputs can be mixed."""
        from tfexplain import koopman

        if case.tokens:
            return (
                "inputs are tokens, and between two of them there is nothing a block could be asked"
            )
        try:
            koopman.blocks(case.model, output=case.output)
        except (ValueError, TypeError) as error:
            return str(error)
        return ""

    def check(self, case: Case) -> None:
        """Leaves it to `tfexplain.koopman.credit` to refuse what does not fit."""

    def passes(self, case: Case) -> float:
        """Each block runs on 4 p snapshots for each alignment; together they are one model."""
        return case.count + 4 * self.repeats * self._widths(case).mean()

    def seconds(self, case: Case) -> float:
        """Decompositions of p x 4 p matrices, as measured on two cores of 2024."""
        return 5e-8 * self.repeats * (self._widths(case) ** 3).sum()

    def _widths(self, case: Case) -> np.ndarray:
        from tfexplain import koopman

        blocks = koopman.blocks(case.model, output=case.output)
        most = np.inf if self.max_dimension is None else self.max_dimension
        return np.array([min(block.input_size, most) for block in blocks], float)

    def compute(self, case: Case, path: str | os.PathLike | None) -> xr.Dataset:
        """Returns the credits; what few samples leave open is noted, and does not stop it."""
        from tfexplain import koopman

        return koopman.credit(
            case.model,
            case.samples,
            output=case.output,
            repeats=self.repeats,
            max_dimension=self.max_dimension,
            underdetermined="minimum_norm",
            kernels=(),
            path=path,
            seed=case.seed,
            batch_size=case.batch_size,
        )

    @classmethod
    def draw(cls, dataset: xr.Dataset, labels: Labels) -> list[Drawing]:
        """A bar per block."""
        from tfexplain import plotting

        return [
            Drawing(
                plotting.block_credits,
                "Credit of each block",
                "The first block is at the top.",
            )
        ]
