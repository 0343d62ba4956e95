"""The singular values of an explanation: how stable and how sensitive a method is at a sample."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.base import Arrays, Audit, Work
from tfexplain.audits.drawings import Drawing, Labels, axes_for_legend
from tfexplain.audits.judging import Cell, Check, Thresholds, median_cell, missing, ranked_cell
from tfexplain.checks import choice, optional_integer, real

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.analyzers import Analyzer
    from tfexplain.audits.case import Case

METHODS = ("exact", "matrix_free")


def _stability(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    return ranked_cell(dataset, method, "stability", "1 / largest singular value")


def _sensitivity(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    return ranked_cell(dataset, method, "sensitivity", "Frobenius norm")


def _ssm(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    one = dataset.sel(analyzer=method)
    largest = math.sqrt(float(np.median(one["columns"].values)))

    def word(middle: float, low: float, high: float) -> str:
        alike = (middle - 1) / (largest - 1) <= thresholds.ssm
        return "maps of outputs are alike" if alike else "maps of outputs differ"

    cell = None
    if largest > 1:
        measure = f"sensitivity x stability, 1 to {largest:.3g}"
        cell = median_cell(one["ssm"].values, measure, word)
    return cell or missing("fewer than two outputs have a map with a sum")


@dataclass(frozen=True)
class Spectrum(Audit):
    """How much maps change with the outputs; options as of `spectrum`."""

    name = "spectrum"
    function = "tfexplain.audits.spectrum"
    title = "Stability and sensitivity"
    question = "How much do maps change with the outputs, and do those of all outputs differ?"
    caption = (
        "The singular values of the matrix that sends outputs to maps. A first one that is much "
        "larger than all others means that all outputs have nearly the same map (SSM near 1)."
    )
    precise = True
    references = ("maess2025uncovering",)
    presets = {
        "quick": {"samples": 2, "columns": 20},
        "default": {"samples": 4, "columns": 100},
        "thorough": {"samples": 16, "columns": 1000},
    }
    compiled = 1.0
    block_size = 4
    checks = (
        Check(
            "stability",
            "Stability",
            "How little a map changes with the outputs, at worst. A large number is stable; it "
            "depends on the number of pixels, so compare methods of one model only.",
            _stability,
        ),
        Check(
            "sensitivity",
            "Sensitivity",
            "How much the maps of different outputs differ in all. Outputs whose map sums to "
            "nearly 0 make it explode.",
            _sensitivity,
        ),
        Check(
            "ssm",
            "Stability x sensitivity (SSM)",
            "1 if the maps of all outputs are alike, the root of the number of outputs if they "
            "share nothing. Maps that sum to nearly 0 pull it to 1.",
            _ssm,
        ),
    )

    start: str | None = None
    method: str = "exact"
    policy: str = "literal"
    quantile: float = 0.5
    num_values: int | None = None
    standard_error: float = 0.01
    tolerance: float = 1e-3

    @classmethod
    def suits(cls, case: Case) -> str:
        """Needs two outputs, and in a report a matrix that fits into memory."""
        from tfexplain.audits.redistribution import LARGEST_MATRIX

        if reason := case.without_classes():
            return reason
        entries = int(np.prod(case.layout.sizes, dtype=int)) * case.outputs
        if entries * 8 > LARGEST_MATRIX:
            return f"its matrix of {entries} numbers does not fit into 2 GiB"
        return ""

    @classmethod
    def for_case(cls, case: Case, settings: Mapping[str, Any]) -> Spectrum:
        """Takes the outputs of the largest magnitude where there are many."""
        columns = min(case.outputs, settings["columns"])
        if columns == case.outputs:
            return cls()
        return cls(policy="quantile", quantile=1 - columns / case.outputs)

    def passes(self, case: Case) -> float:
        """A map for each output that has a column."""
        share = 1 - self.quantile if self.policy == "quantile" else 1
        return case.count * case.passes_per_map(round(case.outputs * share))

    def check(self, case: Case) -> None:
        """Leaves other starts, single outputs and large matrices to the work itself."""

    def prepare(self, case: Case) -> Work:
        """Checks the options and the networks."""
        from tfexplain.audits.redistribution import POLICIES, check_linear, check_start

        choice("method", self.method, METHODS)
        choice("policy", self.policy, POLICIES)
        case.check_one_input()
        options = {
            "start": self.start,
            "method": self.method,
            "policy": self.policy,
            "quantile": real("quantile", self.quantile, 0, 1),
            "num_values": optional_integer("num_values", self.num_values, 1),
            "standard_error": real("standard_error", self.standard_error, 0),
            "tolerance": real("tolerance", self.tolerance, 0),
            **case.options(),
        }
        for name, analyzer in case.analyzers.items():
            check_start(name, analyzer, self.start)
            if self.method == "matrix_free":
                check_linear(name, analyzer, self.start)
            if analyzer.has_chain:
                analyzer.checked(case.arrays(name)[0][:2])
        return Work(case, options, 0, sample_steps=len(case.analyzers))

    def measure(self, work: Work, block: slice, advance: Callable[[], None]) -> Arrays:
        """Decomposes the matrix of each method at each sample of a block."""
        from tfexplain.audits.redistribution import Redistribution
        from tfexplain.audits.singular_values import exact, matrix_free

        case, rows = work.case, []
        for name, analyzer in case.analyzers.items():
            (array,) = case.arrays(name)
            for position in range(block.start, block.stop):
                matrix = Redistribution(analyzer, array, position, case.layout, self.start)
                if self.method == "exact":
                    row = exact(matrix, self.policy, self.quantile)
                else:
                    goals = (self.num_values or 6, self.tolerance, self.standard_error)
                    key = [case.seed, position]
                    row = matrix_free(matrix, self.policy, self.quantile, *goals, key)
                rows.append(row)
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
        shape = (len(case.analyzers), block.stop - block.start)
        return {"values": values.reshape(*shape, -1), "numbers": numbers.reshape(*shape, -1)}

    def combine(self, work: Work, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Joins the samples, and makes the metrics of the singular values."""
        import xarray as xr

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
        if self.method == "exact":
            shares = values / np.nansum(values, axis=2, keepdims=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                rank = np.exp(-np.nansum(np.where(shares > 0, shares * np.log(shares), 0), axis=2))
        values = values[..., : self.num_values]
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
                "analyzer": list(work.case.analyzers),
                "sample": np.arange(values.shape[1]),
                "rank": np.arange(1, values.shape[2] + 1),
            },
        )

    @classmethod
    def draw(cls, dataset: xr.Dataset, labels: Labels) -> list[Drawing]:
        """Falling singular values."""
        from tfexplain import plotting

        return [
            Drawing(
                lambda named: plotting.singular_values(named, ax=axes_for_legend(named)),
                "Singular values of each method",
                "Medians over the samples.",
            )
        ]


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
        quantile: The quantile of the policy of that name, in [0, 1).
        num_values: Number of singular values that are returned; None: all ("exact") or 6.
        standard_error: Relative error of the Frobenius norm that "matrix_free" aims at.
        tolerance: Relative error of sigma_1 that "matrix_free" aims at.
        seed: The seed of random vectors; with the position of the sample.
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
        >>> dataset = spectrum({"lrp.gamma": create_analyzer("lrp.gamma", model)}, x)
        >>> dataset.ssm.shape, bool((dataset.ssm >= 1).all())
        ((1, 2), True)
    """
    from tfexplain.audits.case import Case

    audit = Spectrum(start, method, policy, quantile, num_values, standard_error, tolerance)
    return audit.run(Case(analyzers, x, seed=seed), block_size=block_size, path=path)
