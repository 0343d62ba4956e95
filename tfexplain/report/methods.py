"""Which methods an audit looks at: analyzers that fit the model, and why others do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers import ANALYZERS, Analyzer, create_analyzer, resolve_name
from tfexplain.analyzers.reversed import explained_output
from tfexplain.audits.case import Case
from tfexplain.errors import UnsupportedLayerError, UnsupportedModelError
from tfexplain.graph import has_graph, trace

# Forward passes of one map, above which a method is audited only if it is asked for.
MOST_PASSES = {"quick": 500, "default": 3000, "thorough": 30_000}
# What makes a method or an audit fail alone; a full disk stops everything.
FAILURES = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    tf.errors.OpError,
)
# Characters of a reason: TensorFlow's errors hold whole graphs.
_LONGEST = 500


class Methods(NamedTuple):
    """The methods of an audit.

    Attributes:
        analyzers: By name, fitted.
        left_out: Method -> why it is not audited.
        notes: What a reader may not expect of them.
    """

    analyzers: dict[str, Analyzer]
    left_out: dict[str, str]
    notes: list[str]


def choose(
    model: keras.Model,
    methods: Any,
    x: np.ndarray,
    *,
    fit_data: Any = None,
    output: str | int | None = None,
    preset: str = "default",
) -> Methods:
    """Creates and fits the analyzers of an audit.

    Args:
        model: The model.
        methods: None (all that fit), a name, names, or a dict of name -> options or analyzer.
        x: The samples, checked, which give bounds to box rules.
        fit_data: Inputs to which pattern methods are fitted; None: x.
        output: Name or index of the explained output, for a model with several.
        preset: Its name; a quick audit draws less.

    Raises:
        TypeError: For something else than names.
        ValueError: For an unknown name or wrong options.
    """
    given = _by_name(methods)
    analyzers, left_out, fitted = {}, {}, []
    for name, options in given.items():
        if isinstance(options, Analyzer):
            if options.user_model is not model:
                raise ValueError(
                    f"The analyzer {name!r} explains {options.user_model.name!r}, another model "
                    "than the audited one."
                )
            _check_output(name, options, output)
            analyzers[name] = options
            continue
        resolve_name(name)
        # Options that the audit chose may not fit the model; wrong ones of the caller are errors.
        refused = (UnsupportedLayerError, UnsupportedModelError) if options else FAILURES
        options = {**_own_options(name, x, preset), **options}
        if output is not None:
            options["output"] = output
        try:
            analyzer = create_analyzer(name, model, **options)
            if methods is None:
                _check_cost(analyzer, x, preset)
            if fit_data is None and not analyzer.is_fitted:
                analyzer.fit(x)
                fitted.append(name)
        except refused as error:
            left_out[name] = why(error)
            continue
        if not analyzer.is_fitted:
            analyzer.fit(fit_data)
        analyzers[name] = analyzer
    notes = []
    if fitted:
        notes.append(
            f"{', '.join(fitted)}: fitted to the audited samples. In Python fit_data takes "
            "training data."
        )
    return Methods(analyzers, left_out, notes)


def why(error: BaseException) -> str:
    """Returns what an error says; of one that is no ValueError its class and first words."""
    if isinstance(error, ValueError):
        return str(error)
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def refusal(case: Case, name: str) -> str:
    """Returns why a method has no map of the first sample; empty if it has one."""
    try:
        _, relevance = case.explain(name, slice(0, 1))
    except FAILURES as error:
        return why(error)
    if not np.isfinite(relevance).all():
        return 'its relevance of the first sample is not finite; dtype="float64" may help'
    return ""


def _check_output(name: str, analyzer: Analyzer, output: str | int | None) -> None:
    """Refuses an analyzer of another output than the audited one.

    Raises:
        ValueError: If it explains another one.
    """
    if not has_graph(analyzer.user_model):
        return
    graph = trace(analyzer.user_model)
    if explained_output(graph, analyzer.output) is not explained_output(graph, output):
        raise ValueError(
            f"The analyzer {name!r} explains the output {analyzer.output!r} of the model, and "
            f"output={output!r} is audited. Give output= the one that it explains."
        )


class _TooCostly(ValueError):
    """A method takes more passes than the preset allows."""


def _check_cost(analyzer: Analyzer, x: np.ndarray, preset: str) -> None:
    passes = analyzer.passes(x.shape[1:])
    if passes > MOST_PASSES[preset]:
        raise _TooCostly(
            f"one map takes about {passes:.0f} passes of the model, more than the preset "
            f"{preset!r} has by itself ({MOST_PASSES[preset]}). Name the method to audit it."
        )


def _own_options(name: str, x: np.ndarray, preset: str) -> dict[str, Any]:
    """Returns the options that a method needs, and those of the preset."""
    entry = resolve_name(name)[0]
    return {**entry.for_samples(x), **(entry.quick if preset == "quick" else {})}


def _by_name(methods: Any) -> dict[str, Any]:
    if methods is None:
        return {name: {} for name in ANALYZERS}
    if isinstance(methods, str):
        methods = [methods]
    if isinstance(methods, Analyzer):
        methods = {methods.name: methods}
    if isinstance(methods, Mapping):
        named = dict(methods)
        for name, options in named.items():
            if not isinstance(options, Analyzer | Mapping):
                raise TypeError(
                    f"methods gives {name!r} a {type(options).__name__}; expected a dict of "
                    "options, or an analyzer."
                )
    elif isinstance(methods, Iterable):
        names = list(methods)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(
                "methods must be names, or a dict of name -> options or analyzer, received "
                f"{methods!r}."
            )
        named = {name: {} for name in names}
    else:
        raise TypeError(
            "methods must be names, or a dict of name -> options or analyzer, received "
            f"{type(methods).__name__}."
        )
    if not named:
        raise ValueError("methods is empty. Name at least one, or leave it out for all.")
    return named
