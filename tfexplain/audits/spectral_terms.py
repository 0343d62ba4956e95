"""One explanation as a sum of the terms that its singular values and vectors make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.base import Arrays, Audit, Work
from tfexplain.checks import choice, integer, real

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.audits.case import Case
    from tfexplain.audits.redistribution import Redistribution


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work(Work):
    """What is explained.

    Attributes:
        classes: Those whose explanations are taken apart, -1 where relevance is given.
        given: That relevance, float64, or None.
    """

    classes: np.ndarray
    given: np.ndarray | None


@dataclass(frozen=True)
class SpectralTerms(Audit):
    """Explanations as sums of terms; options as of `spectral_terms`."""

    name = "spectral_terms"
    function = "tfexplain.audits.spectral_terms"
    title = "Terms of explanations"
    question = "Which singular values and vectors does an explanation consist of?"
    precise = True
    references = ("maess2025uncovering",)
    in_report = False

    start: str | None = None
    output_relevance: Any = None
    policy: str = "literal"
    quantile: float = 0.5
    num_terms: int = 5

    def prepare(self, case: Case) -> _Work:
        """Checks the options."""
        from tfexplain.audits.redistribution import POLICIES, check_start
        from tfexplain.runs import digest

        if len(case.analyzers) > 1:
            raise ValueError(
                f"Explanations of one analyzer are taken apart, received {len(case.analyzers)}."
            )
        for name, analyzer in case.analyzers.items():
            check_start(name, analyzer, self.start)
        choice("policy", self.policy, POLICIES)
        if self.start is not None and self.output_relevance is None:
            raise ValueError(f"start={self.start!r} has no classes: give output_relevance.")
        if self.output_relevance is None:
            given, classes, explained = None, case.targets, case.options("targets")
        else:
            given, classes = _as_array(self.output_relevance, case.count), np.full(case.count, -1)
            explained = {**case.options(), "output_relevance_sha256": digest([given])}
        options = {
            "start": self.start,
            "policy": self.policy,
            "quantile": real("quantile", self.quantile, 0, 1),
            "num_terms": integer("num_terms", self.num_terms, 1),
            **explained,
        }
        return _Work(case, options, 1, case.layout.notes(), classes=classes, given=given)

    def measure(self, work: _Work, block: slice, advance: Callable[[], None]) -> Arrays:
        """Takes the explanations of a block apart."""
        import scipy.linalg

        from tfexplain.audits.redistribution import Redistribution
        from tfexplain.audits.singular_values import build

        case, sizes = work.case, work.case.layout.sizes
        ((name, analyzer),) = case.analyzers.items()
        (array,) = case.arrays(name)
        variables: dict[str, list[np.ndarray]] = {}
        for position in range(block.start, block.stop):
            matrix = Redistribution(analyzer, array, position, case.layout, self.start)
            r, columns = build(matrix, self.policy, self.quantile)
            explained = _explained(work.given, matrix, position, int(work.classes[position]))
            absent = np.setdiff1d(np.flatnonzero(explained), columns.kept)
            if len(absent):
                raise ValueError(
                    f"Output {absent[0]} of sample {position} has no column under "
                    f"policy={self.policy!r}, so its explanation has no terms."
                )
            given = explained[columns.kept]
            left, values, right = scipy.linalg.svd(r, full_matrices=False)
            count = min(self.num_terms, len(values))
            coefficients = values * (right @ given)
            explanation = r @ given
            terms = (coefficients[:count] * left[:, :count]).T
            pad = [(0, self.num_terms - count)]
            for key, value in (
                ("singular_value", np.pad(values[:count], pad, constant_values=np.nan)),
                ("coefficient", np.pad(coefficients[:count], pad)),
                ("term", np.pad(terms, [*pad, (0, 0)]).reshape(-1, *sizes)),
                ("rest", (explanation - terms.sum(axis=0)).reshape(sizes)),
                ("explanation", explanation.reshape(sizes)),
            ):
                variables.setdefault(key, []).append(value)
        advance()
        return {key: np.stack(values) for key, values in variables.items()}

    def combine(self, work: _Work, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Joins the samples."""
        import xarray as xr

        rank = len(work.case.layout.sizes)
        axes = ("row", "column") if rank == 2 else tuple(f"axis_{i}" for i in range(rank))
        dimensions = {
            "singular_value": ("sample", "rank"),
            "coefficient": ("sample", "rank"),
            "term": ("sample", "rank", *axes),
            "rest": ("sample", *axes),
            "explanation": ("sample", *axes),
        }
        return xr.Dataset(
            {
                **{
                    key: (dims, np.concatenate([block[key] for block in blocks]))
                    for key, dims in dimensions.items()
                },
                "target": ("sample", work.classes.astype("int64")),
            },
            coords={
                "sample": np.arange(work.case.count),
                "rank": np.arange(1, self.num_terms + 1),
            },
        )


def spectral_terms(
    analyzer: Any,
    x: Any,
    y: Any = None,
    *,
    start: str | None = None,
    output_relevance: Any = None,
    policy: str = "literal",
    quantile: float = 0.5,
    num_terms: int = 5,
) -> xr.Dataset:
    """Takes explanations apart: R y = sum_k sigma_k (v_k^T y) u_k.

    This is Eq. 10 of [maess2025uncovering]. R is the redistribution matrix (see `spectrum`), y what
    of the outputs is explained: by default the value of one class, so that the map adds up to it.
    Each term is a map; the signs of u_k and v_k cancel. `rest` holds the terms beyond the first
    ones, so that all add up to the explanation.

    Args:
        analyzer: An analyzer of a model with one input.
        x: Samples, as for `analyze`.
        y: Class of each sample, (n,), or one for all; None: the largest output.
        start: Name of the layer whose output is explained; then give `output_relevance` too.
        output_relevance: Instead of a class: what is explained, (n, *shape of the explained
            tensor).
        policy: Which outputs have a column; see `spectrum`.
        quantile: The quantile of the policy of that name.
        num_terms: Number of terms that are returned one by one.

    Returns:
        Dataset with

        * `term` (sample, rank, *map), `rest` and `explanation` (sample, *map), in the unit of y;
          a map is relevance summed over channels, with the axes row and column for images;
        * `singular_value` and `coefficient` = sigma_k v_k^T y (sample, rank);
        * `target` (sample): the class, or -1.

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For wrong options or samples, or an explained output without a column.
    """
    from tfexplain.audits.case import Case

    if output_relevance is not None and y is not None:
        raise ValueError("Give y or output_relevance, not both.")
    audit = SpectralTerms(start, output_relevance, policy, quantile, num_terms)
    return audit.run(Case(analyzer, x, y))


def _as_array(given: Any, count: int) -> np.ndarray:
    """Returns relevance of outputs as an array with an entry for each sample."""
    try:
        array = np.asarray(given, "float64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"output_relevance must be an array of numbers: {error}.") from error
    if array.shape[:1] != (count,):
        raise ValueError(
            f"output_relevance has the shape {array.shape} for {count} samples; its first axis is "
            "that of the samples."
        )
    return array


def _explained(
    given: np.ndarray | None, matrix: Redistribution, position: int, target: int
) -> np.ndarray:
    """Returns y of one sample, flat."""
    if given is None:
        explained = np.zeros(len(matrix.outputs))
        explained[target] = matrix.outputs[target]
        return explained
    explained = given[position].ravel()
    if len(explained) != len(matrix.outputs) or not np.isfinite(explained).all():
        raise ValueError(
            f"output_relevance has {len(explained)} values for sample {position}, expected "
            f"{len(matrix.outputs)} finite ones."
        )
    return explained
