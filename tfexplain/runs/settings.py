"""What the numbers of a run depend on, and whether two runs have the same of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfexplain import results
from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.options import option_config
from tfexplain.graph import has_graph, trace


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Returns the names of settings in which two runs differ; results of equal ones are the same.

    Args:
        mine: JSON-able settings.
        theirs: Those of the other run, as they were or as JSON has them (lists for tuples).

    Example:
        >>> differing({"seed": 0, "sizes": (1, 2)}, {"seed": 1, "sizes": [1, 2]})
        ['seed']
    """
    mine, theirs = (json.loads(json.dumps(dict(one))) for one in (mine, theirs))
    return sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))


def digest(arrays: Iterable[np.ndarray]) -> str:
    """Returns a checksum of arrays with their shapes and dtypes."""
    checksum = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array)
        checksum.update(f"{array.dtype}{array.shape}".encode())
        # As bytes, because buffers know no bfloat16.
        checksum.update(np.ascontiguousarray(array).reshape(-1).view("uint8"))
    return checksum.hexdigest()


def settings(
    audit: str,
    analyzers: Mapping[str, Analyzer],
    x: np.ndarray | Sequence[np.ndarray],
    options: Mapping[str, Any],
    *,
    with_data: bool,
) -> dict[str, Any]:
    """Returns what the numbers of an audit depend on, as JSON-able data.

    Args:
        audit: Its name.
        analyzers: By name.
        x: The samples; several inputs as a list.
        options: The options of the audit.
        with_data: Add checksums of samples, weights and architecture, which takes a second for
            large models; a run that continues later needs them.

    Raises:
        TypeError: If an option cannot be written as JSON.
        ValueError: If an option has the name of another setting, or if another process could not
            tell whether it runs the same, because an option of an analyzer is a function that is
            not registered.
    """
    _check_json(audit, options)
    if with_data:
        _check_options(analyzers)
    described = {
        "audit": audit,
        "analyzers": {
            name: analyzer.get_config(strict=False) for name, analyzer in analyzers.items()
        },
        "precision": results.lowest_precision(a.execution.products for a in analyzers.values()),
        "versions": {
            **results.versions(),
            **{name: importlib.metadata.version(name) for name in ("scipy", "scikit-image")},
        },
    }
    if taken := sorted(described.keys() & options.keys()):
        raise ValueError(
            f"The audit {audit!r} has the option(s) {', '.join(taken)}, and every run has settings "
            "of that name. Choose other names."
        )
    described |= options
    if with_data:
        described["samples_sha256"] = digest([x] if isinstance(x, np.ndarray) else x)
        models = {id(a.user_model): a.user_model for a in analyzers.values()}
        described["weights_sha256"] = [
            digest(np.asarray(weight) for weight in model.weights) for model in models.values()
        ]
        described["architecture_sha256"] = [architecture(model) for model in models.values()]
    return described


def architecture(model: keras.Model) -> str:
    """Returns a checksum of a model's operations and their order, without their names."""
    if not has_graph(model):
        return f"subclassed: {type(model).__name__}"
    graph = trace(model)
    places = {node: place for place, node in enumerate(graph.inputs)}
    rows = []
    for call in graph.calls:
        try:
            config = dict(call.operation.get_config())
        except NotImplementedError:
            config = {}
        config.pop("name", None)
        rows.append([type(call.operation).__name__, config, [places.get(n) for n in call.reads]])
        for node in call.outputs:
            places[node] = len(places)
    # What JSON does not know is named by its class: another process has other addresses.
    text = json.dumps(rows, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_json(audit: str, options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"The option {key!r} of the audit {audit!r} cannot be written as JSON ({error}), "
                f"received {value!r}. Numbers, texts, None, and lists or dicts of such can; of an "
                "array tfexplain.runs.digest gives a checksum."
            ) from error


def _check_options(analyzers: Mapping[str, Analyzer]) -> None:
    for name, analyzer in analyzers.items():
        for key, value in analyzer.options.items():
            try:
                option_config(value, key, {})
            except ValueError as error:
                raise ValueError(
                    f"A run that continues later must know its settings again, and those of "
                    f"{name!r} have no name: {error} Or leave path out."
                ) from error


def attributes(described: Mapping[str, Any], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Returns settings as attributes of a Dataset: text and numbers.

    Args:
        described: See `settings`.
        notes: What was left out and why.
    """
    return {
        **{key: _attribute(value) for key, value in described.items()},
        "notes": "\n".join(notes),
    }


def _attribute(value: Any) -> str | int | float:
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_):
        return int(value)
    return value if isinstance(value, str | int | float) else json.dumps(value)
