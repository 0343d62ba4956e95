"""What audits share: analyzers by name, samples, maps, and the attributes of their results."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfexplain import metrics, results
from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.arrays import flat_targets
from tfexplain.analyzers.persistence import all_options, option_config
from tfexplain.audits.blocks import digest
from tfexplain.checks import flag, integer, real
from tfexplain.errors import nearest
from tfexplain.graph import channels_last, has_graph, trace

# The window of the structural similarity.
SMALLEST_MAP = 5


def named_analyzers(analyzers: Any) -> dict[str, Analyzer]:
    """Returns analyzers by name, of one input and the same shapes.

    Args:
        analyzers: A dict of name -> analyzer, or one analyzer.

    Raises:
        TypeError: If it is something else.
        ValueError: If there is none, they explain different inputs or outputs, or one is not fitted
            yet.
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
    if unfitted := [name for name, analyzer in found.items() if not analyzer.is_fitted]:
        raise ValueError(
            f"{', '.join(unfitted)} has no patterns yet: call analyzer.fit(x) on training data "
            "first, or pass patterns=..."
        )
    return found


def _shapes(analyzer: Analyzer, what: str) -> list[tuple]:
    if what == "inputs":
        return [tuple(node.shape[1:]) for node in analyzer.inputs.nodes]
    return [tuple(analyzer.output_shape)]


def has_chain(analyzer: Analyzer) -> bool:
    """Tells whether given relevance goes back through reversed networks alone."""
    return analyzer.has_chain


def check_one_baseline(name: str, analyzer: Analyzer) -> None:
    """Refuses a method with several baselines, where one chain is looked at.

    Raises:
        ValueError: If it averages over several.
    """
    if analyzer.num_chains > 1:
        raise ValueError(
            f"{name!r} averages over {analyzer.num_chains} baselines, each with a "
            "chain of its own. Give one baseline."
        )


def one_input(analyzers: Mapping[str, Analyzer], x: Any) -> np.ndarray:
    """Returns the checked samples of models with one input.

    Raises:
        ValueError: For several inputs, a wrong shape, an empty batch, NaN or infinity.
    """
    # In the widest precision, which `typed` makes narrower again.
    inputs = max((a.inputs for a in analyzers.values()), key=lambda inputs: inputs.dtype)
    if len(inputs.nodes) > 1:
        raise ValueError(
            f"Audits compare maps of one input; the model has {len(inputs.nodes)} "
            f"({', '.join(inputs.names)})."
        )
    (array,) = inputs.arrays(x)
    return array


def typed(analyzers: Mapping[str, Analyzer], x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns checked samples in the precision of each analyzer; equal ones are one array.

    Args:
        analyzers: By name.
        x: What `one_input` returned.
    """
    by_type = {}
    for analyzer in analyzers.values():
        dtype = _precision_of_input(analyzer)
        if dtype not in by_type:
            by_type[dtype] = x.astype(dtype, copy=False)
    return {name: by_type[_precision_of_input(a)] for name, a in analyzers.items()}


def _precision_of_input(analyzer: Analyzer) -> str:
    return analyzer.inputs.nodes[0].dtype_in(analyzer.inputs.dtype)


class Layout(NamedTuple):
    """How maps are made of relevance.

    Attributes:
        channel_axis: Axis of the channels in the relevance of one sample; None without one
            (tokens, columns of a table).
        sizes: Shape of a map.
        too_small: Why maps have no structural similarity; empty if they have.
    """

    channel_axis: int | None
    sizes: tuple[int, ...]
    too_small: str

    def notes(self) -> list[str]:
        """Returns what a reader may not expect of the maps."""
        if self.channel_axis is None or len(self.sizes) > 1:
            return []
        return [
            f"inputs are sequences, maps have the shape {self.sizes}: the axis of features was "
            "reduced. Images need an axis of channels."
        ]


def layout(analyzers: Mapping[str, Analyzer], x: np.ndarray) -> Layout:
    """Returns how maps are made of relevance.

    Images and sequences have channels, which are reduced: the last axis, or the first where a layer
    of the model has channels first. Tokens are a sequence without channels; columns of a table have
    no neighbours.

    Args:
        analyzers: By name.
        x: The samples.
    """
    analyzer, shape = next(iter(analyzers.values())), x.shape[1:]
    tokens = not analyzer.inputs.nodes[0].floating
    if len(shape) < 2 or tokens:
        axis, sizes, spatial = None, shape, tokens and bool(shape)
    else:
        axis = -1 if channels_last(analyzer.user_model) else 0
        sizes, spatial = shape[:-1] if axis else shape[1:], True
    if not spatial:
        reason = f"inputs of shape {shape} have no spatial axis"
    elif min(sizes) < SMALLEST_MAP:
        reason = f"maps of shape {sizes} are smaller than its window of {SMALLEST_MAP}"
    else:
        reason = ""
    return Layout(axis, tuple(sizes), reason)


def maps(relevance: np.ndarray, reduction: str, channel_axis: int | None) -> np.ndarray:
    """Returns relevance without its channels, in float64.

    Args:
        relevance: Shape (n, num_vectors, *input_shape).
        reduction: Name of one of `metrics.REDUCTIONS`; without channels the value counts as the
            only one.
        channel_axis: See `Layout`.

    Returns:
        Shape (n, num_vectors, *sizes).
    """
    relevance = np.asarray(relevance, "float64")
    if channel_axis is None:
        relevance = relevance[..., None]
    elif channel_axis == 0:
        relevance = np.moveaxis(relevance, 2, -1)
    return metrics.REDUCTIONS[reduction](relevance)


def structural_similarity(
    normalized: np.ndarray, map: np.ndarray, normalization: str, data_range: float, flip: bool
) -> float:
    """Returns the SSIM of a normalised map and another one.

    Args:
        normalized: The first map, normalised.
        map: The second map.
        normalization: Name of one of `metrics.NORMALIZATIONS`.
        data_range: See `metrics.ssim`.
        flip: Take the larger similarity of the second map and of its negative.
    """
    normalize = metrics.NORMALIZATIONS[normalization]
    score = metrics.ssim(normalized, normalize(map), data_range)
    if not flip:
        return score
    return float(np.maximum(score, metrics.ssim(normalized, normalize(-map), data_range)))


def check_common(data_range: float, flip: bool, seed: int) -> None:
    """Checks options that audits of maps share.

    Raises:
        ValueError: For a wrong value.
    """
    if real("data_range", data_range, 0) == 0:
        raise ValueError(f"data_range must be a number > 0, received {data_range!r}.")
    flag("flip", flip)
    integer("seed", seed, 0)


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
        y: One index per sample, one for all, or None for the largest output (of the model of the
            first analyzer).
        batch_size: Samples that are computed together.

    Raises:
        ValueError: For a wrong number or an index out of range.
    """
    analyzer = next(iter(analyzers.values()))
    if y is None:
        outputs = analyzer.outputs(x, batch_size=batch_size)
        return outputs.reshape(len(outputs), -1).argmax(axis=1).astype("int32")
    if isinstance(y, str):
        raise ValueError(f"y must be one index per sample, received {y!r}.")
    y = np.asarray(y)
    if y.shape == (len(x), 1) and len(analyzer.output_shape) == 1:
        y = y[:, 0]  # the labels of keras.datasets
    one_hot = y.ndim == 2 and y.shape[1] > 1 and len(analyzer.output_shape) == 1
    if y.dtype.kind not in "iu" or one_hot:
        raise ValueError(
            f"y must hold one class index per sample, received {y.dtype} of shape {y.shape}. Of "
            "one-hot labels or probabilities give y.argmax(axis=1)."
        )
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
    if unknown := [str(name) for name in given if name not in analyzers]:
        raise ValueError(
            f"{what} names {', '.join(unknown)}, which is no analyzer. Analyzers: "
            f"{', '.join(analyzers)}."
        )
    found = {}
    for name, analyzer in analyzers.items():
        value = given.get(name)
        value = getattr(analyzer, what) if value is None else value
        if not isinstance(value, str) or value not in known:
            raise ValueError(
                f"{what} must be one of {', '.join(known)}, received {value!r}."
                + nearest(str(value), list(known))
            )
        found[name] = value
    return found


def settings(
    audit: str,
    analyzers: Mapping[str, Analyzer],
    x: np.ndarray | Sequence[np.ndarray],
    *,
    with_data: bool,
    **options: Any,
) -> dict[str, Any]:
    """Returns what the numbers of an audit depend on, as JSON-able data.

    Args:
        audit: Its name.
        analyzers: By name.
        x: The samples; several inputs as a list.
        with_data: Add checksums of samples, weights and architecture, which takes a second for
            large models; a run that continues later needs them.
        **options: Of the audit.

    Raises:
        ValueError: If another process could not tell whether it runs the same, because an option
            of an analyzer is a function that is not registered.
    """
    if with_data:
        _check_options(analyzers)
    found = {
        "audit": audit,
        "analyzers": {
            name: analyzer.get_config(strict=False) for name, analyzer in analyzers.items()
        },
        "versions": {
            **results.versions(),
            **{name: importlib.metadata.version(name) for name in ("scipy", "scikit-image")},
        },
        **options,
    }
    if with_data:
        found["samples_sha256"] = digest(x if isinstance(x, list) else [x])
        models = {id(a.user_model): a.user_model for a in analyzers.values()}
        found["weights_sha256"] = [
            digest(np.asarray(weight) for weight in model.weights) for model in models.values()
        ]
        found["architecture_sha256"] = [architecture(model) for model in models.values()]
    return found


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
        rows.append([type(call.operation).__name__, config, [places.get(n) for n in call.inputs]])
        for node in call.outputs:
            places[node] = len(places)
    # What JSON does not know is named by its class: another process has other addresses.
    text = json.dumps(rows, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_options(analyzers: Mapping[str, Analyzer]) -> None:
    for name, analyzer in analyzers.items():
        for key, value in all_options(analyzer).items():
            try:
                option_config(value, key, {})
            except ValueError as error:
                raise ValueError(
                    f"A run that continues later must know its settings again, and those of "
                    f"{name!r} have no name: {error} Or leave path out."
                ) from error


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
    if isinstance(value, bool | np.bool_):
        return int(value)
    return value if isinstance(value, str | int | float) else json.dumps(value)


def merged_orders(orders: list[list[str]]) -> list[str]:
    """Merges lists that agree on the order of what they share."""
    merged: list[str] = []
    for order in orders:
        at = 0
        for name in order:
            if name in merged:
                at = merged.index(name) + 1
            else:
                merged.insert(at, name)
                at += 1
    return merged
