"""Analyzers by name: what a name means, and what is created under it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfexplain.analyzers import persistence
from tfexplain.analyzers.base import Analyzer
from tfexplain.compilation import Execution
from tfexplain.errors import nearest
from tfexplain.names import resolve_name

# innvestigate's options that have another name, or another place.
RENAMED = {
    "neuron_selection_mode": "analyze(x, target=...)",
    "postprocess": "numpy.abs or numpy.square of the result",
    "input_layer_rule": "input_rule",
    "until_layer_idx": "until",
    "reference_inputs": "baseline",
    "augment_by_n": "samples",
    "pattern_type": "estimator",
    "reverse_keep_tensors": "propagate(..., layers=...)",
}


def create_analyzer(name: str, model: keras.Model, **options: Any) -> Analyzer:
    """Creates the analyzer of a name.

    Args:
        name: One of `ANALYZERS`, or an innvestigate name.
        model: A built Keras model; it is never changed.
        **options: Options of the analyzer, see its class, and the common ones of `Analyzer`.

    Returns:
        The analyzer.

    Raises:
        ValueError: For an unknown name or option, or a wrong value.
        TypeError: If `model` is no Keras model.
        UnsupportedModelError: For a model that is not built or has no graph.
        UnsupportedLayerError: If operations of the model have no rule.

    Example:
        >>> analyzer = create_analyzer("lrp.alpha_beta", model, alpha=2, beta=1)
        >>> relevance = analyzer.analyze(x)
    """
    return created(name, model, options)


def created(
    name: str, model: keras.Model, options: Mapping[str, Any], execution: Execution | None = None
) -> Analyzer:
    """Creates the analyzer of a name, as `create_analyzer`.

    Args:
        name: See `create_analyzer`.
        model: See `create_analyzer`.
        options: See `create_analyzer`.
        execution: See `Analyzer.named`.
    """
    entry, suffixed = resolve_name(name)
    clash = [key for key in options if key in suffixed or key in entry.preset]
    if clash:
        raise ValueError(f"{name} sets {', '.join(clash)} itself; leave it out.")
    known = entry.options
    unknown = [key for key in options if key not in known]
    if unknown:
        renamed = [f"{key} is {RENAMED[key]} here" for key in unknown if key in RENAMED]
        hint = f" innvestigate's {', '.join(renamed)}." if renamed else None
        raise ValueError(
            f"{name} has no option {', '.join(map(repr, unknown))}."
            + (hint or nearest(unknown[0], list(known)))
            + f" Options: {', '.join(sorted(known))}."
        )
    missing = [key for key in entry.required if key not in options]
    if name.endswith("_until_idx") and options.get("until") is None:
        missing.append("until")
    if missing:
        raise ValueError(f"{name} needs the option(s) {', '.join(missing)}.")
    return entry.cls.named(name, model, {**entry.preset, **suffixed}, options, execution=execution)


def load_analyzer(path: Any, custom_objects: dict[str, Any] | None = None) -> Analyzer:
    """Loads an analyzer that `Analyzer.save` wrote.

    Args:
        path: The file.
        custom_objects: Name -> class or function that the model or the options need.

    Returns:
        The analyzer with the same numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is no complete analyzer file, or what it says makes no analyzer.
        ValueError: If it is of another format, has Python code, or a function that is not known.
        UnsupportedLayerError: If operations of the model have no rule in this version.
    """
    return persistence.analyzer_of(path, *persistence.read(path, custom_objects))
