"""The two leading singular values of pattern and weight matrices, and of those in between."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np
import scipy.linalg
import xarray as xr

from tfexplain import results
from tfexplain.analyzers.patterns import PatternAnalyzer
from tfexplain.graph import Call, Graph
from tfexplain.operations import DenseLinear, EinsumLinear, Linear, Sum
from tfexplain.operations.linear import (
    DepthwiseLinear,
    SeparableLinear,
    TransposedLinear,
)
from tfexplain.patterns import fitted_calls

QUANTITIES = ("A", "W", "A*W")
# Larger matrices have their two leading singular values from the Gram matrix.
GRAM_ENTRIES = 2**22


class Decomposition(NamedTuple):
    """M = u diag(s) v of a slice, with min(inputs, outputs) singular values."""

    u: np.ndarray
    s: np.ndarray
    v: np.ndarray


def leading_values(analyzer: PatternAnalyzer) -> xr.Dataset:
    """Returns the Dataset of `pattern_spectrum`, of an analyzer with patterns.

    Raises:
        ValueError: If the model has no layer with such a matrix.
    """
    graph = analyzer.graph.upstream([analyzer.start])
    calls = {fitted.call.name: fitted.call for fitted in fitted_calls(graph)}
    notes = {name: reason for name, call in calls.items() if (reason := _left_out(call))}
    names = [name for name in calls if name not in notes]
    if not names:
        raise ValueError(f"No layer has a matrix of inputs and outputs: {_text(notes)}.")
    values = np.full((len(QUANTITIES), len(names), 2), np.nan)
    slices: dict[str, dict[str, Decomposition]] = {}
    for place, name in enumerate(names):
        pattern = np.asarray(analyzer.patterns[name], dtype="float64")
        values[0, place] = _leading(pattern.reshape(-1, pattern.shape[-1]))
        sizes = _map_sizes(calls[name], graph)
        weights = _slice(calls[name].operation.kernel("float64").numpy(), sizes)
        slices[name] = {"W": _svd(weights), "A*W": _svd(_slice(pattern, sizes) * weights)}
        for row, quantity in enumerate(QUANTITIES[1:], 1):
            values[row, place] = _two(slices[name][quantity].s)
    pairs, unpaired = _pairs(names, calls, graph, slices)
    between = np.full((len(QUANTITIES), len(pairs), 2), np.nan)
    for place, (first, second) in enumerate(pairs):
        for row, quantity in enumerate(QUANTITIES[1:], 1):
            matrix = _interlayer(slices[first][quantity], slices[second][quantity])
            between[row, place] = _leading(matrix)
    left_out = [f"left out: {_text(notes)}"] if notes else []
    if unpaired:
        left_out.append(f"no matrix between layers: {_text(unpaired)}")
    return xr.Dataset(
        {
            "singular_value": (("quantity", "layer", "rank"), values),
            "ratio": (("quantity", "layer"), _ratio(values)),
            "interlayer_singular_value": (("quantity", "pair", "rank"), between),
            "interlayer_ratio": (("quantity", "pair"), _ratio(between)),
        },
        coords={
            "quantity": list(QUANTITIES),
            "layer": names,
            "rank": [1, 2],
            "pair": np.arange(len(pairs)),
            "first": ("pair", np.array([first for first, _ in pairs], dtype=str)),
            "second": ("pair", np.array([second for _, second in pairs], dtype=str)),
        },
        attrs={
            "analyzer": analyzer.name,
            "estimator": analyzer.estimator,
            "output_mean": analyzer.output_mean,
            "seed": "none",
            "versions": json.dumps(results.versions()),
            "notes": "\n".join(left_out),
        },
    )


def _left_out(call: Call) -> str:
    """Returns why a call has no matrix of inputs and outputs; empty if it has one."""
    operation = call.operation
    for kind, reason in (
        (Sum, "an addition"),
        (TransposedLinear, "a transposed convolution"),
        (DepthwiseLinear, "a depthwise convolution"),
        (SeparableLinear, "a separable convolution"),
    ):
        if isinstance(operation, kind):
            return reason
    return "a grouped convolution" if getattr(operation.source, "groups", 1) > 1 else ""


def _map_sizes(call: Call, graph: Graph) -> tuple[int, ...] | None:
    """Returns the shape of the map whose flat form a Dense layer reads; None if there is none.

    Flatten keeps channels last unless something in the model has them first.
    """
    before = graph.producer().get(call.inputs[0])
    if (
        not isinstance(call.operation, DenseLinear | EinsumLinear)
        or before is None
        or not isinstance(before.operation.source, keras.layers.Flatten)
        or not all(getattr(c.operation, "channels_last", True) for c in graph.calls)
    ):
        return None
    sizes = before.inputs[0].shape[1:]
    return None if len(sizes) < 2 or None in sizes else sizes


def _slice(kernel: np.ndarray, map_sizes: tuple[int, ...] | None) -> np.ndarray:
    """Returns the (inputs, outputs) matrix of one position: the centre of all but two axes."""
    if map_sizes is not None:
        kernel = kernel.reshape(*map_sizes, kernel.shape[-1])
    return kernel[tuple((size - 1) // 2 for size in kernel.shape[:-2])]


def _pairs(
    names: list[str],
    calls: Mapping[str, Call],
    graph: Graph,
    slices: Mapping[str, Mapping[str, Decomposition]],
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Returns the layers whose slices follow each other, and why others have none before them."""
    producer = graph.producer()
    pairs, reasons = [], {}
    for name in names:
        before = producer.get(calls[name].inputs[0])
        while before is not None and not isinstance(before.operation, Linear | Sum):
            if len(before.inputs) != 1:
                break
            before = producer.get(before.inputs[0])
        if before is None:
            continue
        if before.name not in slices:
            reasons[name] = f"behind {before.name}"
            continue
        made, read = slices[before.name]["W"].v.shape[1], slices[name]["W"].u.shape[0]
        if made == read:
            pairs.append((before.name, name))
        else:
            reasons[name] = f"reads {read} channels, {before.name} makes {made}"
    return pairs, reasons


def _interlayer(first: Decomposition, second: Decomposition) -> np.ndarray:
    """Returns T without the rows and columns that are zero because S is padded with zeros."""
    return np.sqrt(first.s)[:, None] * (first.v @ second.u) * np.sqrt(second.s)


def _svd(matrix: np.ndarray) -> Decomposition:
    return Decomposition(*scipy.linalg.svd(matrix, full_matrices=False))


def _leading(matrix: np.ndarray) -> np.ndarray:
    """Returns the two leading singular values of a matrix, (2,)."""
    if matrix.size <= GRAM_ENTRIES:
        return _two(scipy.linalg.svdvals(matrix))
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    size = len(gram)
    squares = scipy.linalg.eigh(
        gram, eigvals_only=True, subset_by_index=(max(size - 2, 0), size - 1), overwrite_a=True
    )
    return _two(np.sqrt(np.maximum(squares[::-1], 0)))


def _two(values: np.ndarray) -> np.ndarray:
    """Returns the first two of falling values; not a number where there is only one."""
    return np.append(values, np.nan)[:2]


def _ratio(values: np.ndarray) -> np.ndarray:
    """Returns the first over the second along the last axis; 0 / 0 is not a number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return values[..., 0] / values[..., 1]


def _text(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
