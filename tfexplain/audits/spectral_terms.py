"""One explanation as a sum of the terms that its singular values and vectors make."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import xarray as xr

from tfexplain.analyzers import Analyzer
from tfexplain.audits import common
from tfexplain.audits.redistribution import POLICIES, Redistribution
from tfexplain.audits.spectrum import build, check_start
from tfexplain.checks import choice, integer, real


def spectral_terms(
    analyzer: Analyzer,
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
        analyzer: Of a model with one input.
        x: Samples, as for `analyze`.
        y: Class of each sample, (n,), or one for all; None: the largest output.
        start: Name of the layer whose output is explained; then give `output_relevance` too.
        output_relevance: Instead of a class: what is explained, (n, *shape of the explained
            tensor).
        policy: Which outputs have a column; see `spectrum`.
        quantile: Of the policy of that name.
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
    named = common.named_analyzers(analyzer)
    samples = common.one_input(named, x)
    check_start(analyzer.name, analyzer, start)
    quantile = real("quantile", quantile, 0, 1)
    choice("policy", policy, POLICIES)
    integer("num_terms", num_terms, 1)
    if (output_relevance is not None) and y is not None:
        raise ValueError("Give y or output_relevance, not both.")
    if start is not None and output_relevance is None:
        raise ValueError(f"start={start!r} has no classes: give output_relevance.")
    layout = common.layout(named, samples)
    (array,) = common.typed(named, samples).values()
    targets = np.full(len(samples), -1)
    if output_relevance is None:
        targets = common.labels(named, samples, y, 32)
    found: dict[str, list[np.ndarray]] = {}
    for position in range(len(samples)):
        matrix = Redistribution(analyzer, array, position, layout, start)
        r, columns = build(matrix, policy, quantile)
        explained = _explained(output_relevance, matrix, position, int(targets[position]))
        missing = np.setdiff1d(np.flatnonzero(explained), columns.kept)
        if len(missing):
            raise ValueError(
                f"Output {missing[0]} of sample {position} has no column under policy={policy!r}, "
                "so its explanation has no terms."
            )
        given = explained[columns.kept]
        left, values, right = scipy.linalg.svd(r, full_matrices=False)
        count = min(num_terms, len(values))
        coefficients = values * (right @ given)
        explanation = r @ given
        terms = (coefficients[:count] * left[:, :count]).T
        pad = [(0, num_terms - count)]
        for name, value in (
            ("singular_value", np.pad(values[:count], pad, constant_values=np.nan)),
            ("coefficient", np.pad(coefficients[:count], pad)),
            ("term", np.pad(terms, [*pad, (0, 0)]).reshape(-1, *layout.sizes)),
            ("rest", (explanation - terms.sum(axis=0)).reshape(layout.sizes)),
            ("explanation", explanation.reshape(layout.sizes)),
        ):
            found.setdefault(name, []).append(value)
    axes = ("row", "column") if len(layout.sizes) == 2 else None
    axes = axes or tuple(f"axis_{i}" for i in range(len(layout.sizes)))
    dimensions = {
        "singular_value": ("sample", "rank"),
        "coefficient": ("sample", "rank"),
        "term": ("sample", "rank", *axes),
        "rest": ("sample", *axes),
        "explanation": ("sample", *axes),
    }
    settings = common.settings(
        "spectral_terms", named, samples, with_data=False, start=start, policy=policy, seed=0
    )
    return xr.Dataset(
        {
            **{name: (dimensions[name], np.stack(values)) for name, values in found.items()},
            "target": ("sample", targets.astype("int64")),
        },
        coords={"sample": np.arange(len(samples)), "rank": np.arange(1, num_terms + 1)},
        attrs=common.attributes({**settings, "quantile": quantile}, layout.notes()),
    )


def _explained(given: Any, matrix: Redistribution, position: int, target: int) -> np.ndarray:
    """Returns y of one sample, flat."""
    if given is None:
        explained = np.zeros(len(matrix.outputs))
        explained[target] = matrix.outputs[target]
        return explained
    explained = np.asarray(given, "float64")[position].ravel()
    if len(explained) != len(matrix.outputs) or not np.isfinite(explained).all():
        raise ValueError(
            f"output_relevance has {len(explained)} values for sample {position}, expected "
            f"{len(matrix.outputs)} finite ones."
        )
    return explained
