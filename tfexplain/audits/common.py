"""What audits share: analyzers by name, samples, maps, and the attributes of their results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfexplain import metrics, results
from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.arrays import flat_targets
from tfexplain.audits.blocks import digest
from tfexplain.errors import nearest


def named_analyzers(analyzers: Any) -> dict[str, Analyzer]:
    """Returns analyzers by name, of one input and the same shapes.

    Args:
        analyzers: A dict of name -> analyzer, or one analyzer.

    Raises:
        TypeError: If it is something else.
        ValueError: If there is none, or they explain different inputs or outputs.
    """
    if isinstance(analyzers, Analyzer):
        analyzers = {analyzers.name: analyzers}
    if not isinstance(analyzers, Mapping) or not all(
        isinstance(analyzer, Analyzer) for analyzer in analyzers.values()
    ):
        raise TypeError(
            "analyzers must be an analyzer, or a dict of name -> analyzer, received "
            f"{type(analyzers).__name__}."
        )
    if not analyzers:
        raise ValueError("There is no analyzer to audit.")
    found = {str(name): analyzer for name, analyzer in analyzers.items()}
    first, *others = found
    for name in others:
        for what in ("inputs", "outputs"):
            mine, theirs = _shapes(found[name], what), _shapes(found[first], what)
            if mine != theirs:
                raise ValueError(
                    f"All analyzers must explain the same {what}: {first!r} has {theirs}, "
                    f"{name!r} {mine}."
                )
    return found


def _shapes(analyzer: Analyzer, what: str) -> list[tuple]:
    if what == "inputs":
        return [tuple(node.shape[1:]) for node in analyzer.inputs.nodes]
    return [tuple(analyzer.output_shape)]


def one_input(analyzers: Mapping[str, Analyzer], x: Any) -> np.ndarray:
    """Returns the checked samples of models with one input.

    Raises:
        ValueError: For several inputs, a wrong shape, an empty batch, NaN or infinity.
    """
    inputs = next(iter(analyzers.values())).inputs
    if len(inputs.nodes) > 1:
        raise ValueError(
            f"Audits compare maps of one input; the model has {len(inputs.nodes)} "
            f"({', '.join(inputs.names)})."
        )
    (array,) = inputs.arrays(x)
    return array


def num_classes(analyzers: Mapping[str, Analyzer]) -> int:
    """Returns the number of outputs, of which there are at least two.

    Raises:
        ValueError: For a single output, or a number that is unknown.
    """
    shape = next(iter(analyzers.values())).output_shape
    if None in shape:
        raise ValueError(f"The explained output has the shape {tuple(shape)}, with unknown sizes.")
    count = int(np.prod(shape, dtype=int))
    if count < 2:
        raise ValueError(
            "The model has a single output, and this audit compares the explanations of two. Give "
            "a model with one output per class."
        )
    return count


def labels(analyzers: Mapping[str, Analyzer], x: np.ndarray, y: Any, batch_size: int) -> np.ndarray:
    """Returns the explained output of each sample, (n,).

    Args:
        analyzers: By name.
        x: The samples.
        y: One index per sample, one for all, or None for the largest output.
        batch_size: Samples that are computed together.

    Raises:
        ValueError: For a wrong number or an index out of range.
    """
    analyzer = next(iter(analyzers.values()))
    if y is None:
        outputs = analyzer.outputs(x, batch_size=batch_size)
        return outputs.reshape(len(outputs), -1).argmax(axis=1)
    if isinstance(y, str):
        raise ValueError(f"y must be one index per sample, received {y!r}.")
    y = np.asarray(y)
    if y.shape == (len(x), 1) and len(analyzer.output_shape) == 1:
        y = y[:, 0]  # the labels of keras.datasets
    return flat_targets(y, len(x), analyzer.output_shape)[:, 0]


def map_functions(
    analyzers: Mapping[str, Analyzer], reduction: Any, normalization: Any
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the names of reduction and normalisation of each analyzer.

    Args:
        analyzers: By name.
        reduction: A name for all, a dict by analyzer, or None for each analyzer's own.
        normalization: The same.

    Raises:
        ValueError: For an unknown name.
    """
    return (
        _by_analyzer("reduction", analyzers, reduction, metrics.REDUCTIONS),
        _by_analyzer("normalization", analyzers, normalization, metrics.NORMALIZATIONS),
    )


def _by_analyzer(
    what: str, analyzers: Mapping[str, Analyzer], given: Any, known: Mapping[str, Any]
) -> dict[str, str]:
    given = given if isinstance(given, Mapping) else dict.fromkeys(analyzers, given)
    if unknown := [name for name in given if name not in analyzers]:
        raise ValueError(f"{what} names {', '.join(map(str, unknown))}, which is no analyzer.")
    found = {}
    for name, analyzer in analyzers.items():
        value = given.get(name)
        value = getattr(analyzer, what) if value is None else value
        if value not in known:
            raise ValueError(
                f"{what} must be one of {', '.join(known)}, received {value!r}."
                + nearest(str(value), list(known))
            )
        found[name] = value
    return found


def settings(
    audit: str,
    analyzers: Mapping[str, Analyzer],
    x: np.ndarray,
    *,
    with_data: bool,
    **options: Any,
) -> dict[str, Any]:
    """Returns what the numbers of an audit depend on, as JSON-able data.

    Args:
        audit: Its name.
        analyzers: By name.
        x: The samples.
        with_data: Add checksums of samples and weights, which takes a second for large models.
        **options: Of the audit.
    """
    found = {
        "audit": audit,
        "analyzers": {
            name: analyzer.get_config(strict=False) for name, analyzer in analyzers.items()
        },
        "versions": results.versions(),
        **options,
    }
    if with_data:
        found["samples_sha256"] = digest([x])
        models = {id(a.user_model): a.user_model for a in analyzers.values()}
        found["weights_sha256"] = [
            digest(np.asarray(weight) for weight in model.weights) for model in models.values()
        ]
    return found


def attributes(found: Mapping[str, Any], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Returns settings as attributes of a Dataset: text and numbers.

    Args:
        found: See `settings`.
        notes: What was left out and why.
    """
    return {**{key: _attribute(value) for key, value in found.items()}, "notes": "\n".join(notes)}


def _attribute(value: Any) -> str | int | float:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, str | int | float) else json.dumps(value)
