"""What is audited: methods by name, samples, targets and maps, checked once for all audits.

At the end stand helpers that several audits share, for similarities, orders of layers, and chains.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfexplain import metrics
from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.arrays import flat_targets
from tfexplain.checks import choice, integer
from tfexplain.graph import channels_last
from tfexplain.runs import digest

# The window of the structural similarity.
SMALLEST_MAP = 5


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

    def names(self) -> tuple[str, ...]:
        """Returns the names of the axes of maps."""
        rank = len(self.sizes)
        several = tuple(f"axis_{axis + 1}" for axis in range(rank))
        return {1: ("position",), 2: ("height", "width")}.get(rank, several)

    def maps(self, relevance: np.ndarray, reduction: str) -> np.ndarray:
        """Returns relevance without its channels, in float64.

        Args:
            relevance: Shape (n, num_vectors, *input_shape).
            reduction: Name of one of `metrics.REDUCTIONS`; without channels the value counts as the
                only one.

        Returns:
            Shape (n, num_vectors, *sizes).
        """
        relevance = np.asarray(relevance, "float64")
        if self.channel_axis is None:
            relevance = relevance[..., None]
        elif self.channel_axis == 0:
            relevance = np.moveaxis(relevance, 2, -1)
        return metrics.REDUCTIONS[reduction](relevance)


class Case:
    """A model, its samples and the methods that explain them, as audits take them.

    What is derived (targets, layout) is made when it is first asked for, once.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer, of the same inputs and outputs.
        x: Samples, as for `analyze`.
        y: The explained output of each sample, (n,), or one for all; flat index for outputs of
            rank > 2. None: the largest output of the first analyzer's model.
        seed: The seed of everything that is drawn, >= 0.
        batch_size: Samples that are computed together.
        pixels: uint8 images of which `preprocess` makes x, or None.
        preprocess: Function of pixels, or None.

    Attributes:
        analyzers: By name.
        inputs: One checked array (n, *input_shape) per input of the model, in the widest precision
            of the analyzers.

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For wrong samples or options, analyzers of different shapes, or one that is not
            fitted yet.
    """

    def __init__(
        self,
        analyzers: Any,
        x: Any,
        y: Any = None,
        *,
        seed: int = 0,
        batch_size: int = 32,
        pixels: np.ndarray | None = None,
        preprocess: Callable[[np.ndarray], Any] | None = None,
    ) -> None:
        self.analyzers: Mapping[str, Analyzer] = named_analyzers(analyzers)
        self.seed = integer("seed", seed, 0)
        self.batch_size = integer("batch_size", batch_size, 1)
        self.pixels, self.preprocess = pixels, preprocess
        # In the widest precision, which `arrays` makes narrower again.
        widest = max((a.inputs for a in self.analyzers.values()), key=lambda inputs: inputs.dtype)
        self.inputs: list[np.ndarray] = widest.arrays(x)
        self._y = y
        self._cast: dict[tuple[str, ...], list[np.ndarray]] = {}

    # --- the model ---

    @property
    def first(self) -> Analyzer:
        """The first analyzer, whose model's outputs count where one is needed."""
        return next(iter(self.analyzers.values()))

    @property
    def model(self) -> keras.Model:
        """The model of the first analyzer."""
        return self.first.user_model

    @property
    def output(self) -> str | int | None:
        """Name or index of the explained output of the model, or None."""
        return self.first.output

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of the explained tensor, without the batch axis."""
        return tuple(self.first.output_shape)

    @property
    def outputs(self) -> int | Any:
        """The number of outputs; None if it is unknown, which `without_classes` refuses."""
        sizes = [size for size in self.output_shape if size is not None]
        return math.prod(sizes) if len(sizes) == len(self.output_shape) else None

    @property
    def tokens(self) -> bool:
        """Whether inputs are integers that name things."""
        return not self.first.inputs.nodes[0].floating

    def without_classes(self) -> str:
        """Returns why explanations of two outputs cannot be compared; empty if they can."""
        if self.outputs is None:
            return f"the explained output has the shape {self.output_shape}, with unknown sizes"
        if self.outputs < 2:
            return (
                "the model has a single output, and explanations of two are compared. Give a model "
                "with one output per class"
            )
        return ""

    # --- the samples ---

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.inputs[0])

    def check_one_input(self) -> None:
        """Refuses models with several inputs.

        Raises:
            ValueError: For several inputs.
        """
        inputs = self.first.inputs
        if len(inputs.nodes) > 1:
            raise ValueError(
                f"Audits compare maps of one input; the model has {len(inputs.nodes)} "
                f"({', '.join(inputs.names)})."
            )

    @property
    def samples(self) -> np.ndarray:
        """The samples of a model with one input.

        Raises:
            ValueError: For several inputs.
        """
        self.check_one_input()
        return self.inputs[0]

    @functools.cached_property
    def layout(self) -> Layout:
        """How maps are made of relevance.

        Images and sequences have channels, which are reduced: the last axis, or the first where a
        layer of the model has channels first. Tokens are a sequence without channels; columns of a
        table have no neighbours.
        """
        shape = self.samples.shape[1:]
        if len(shape) < 2 or self.tokens:
            axis, sizes, spatial = None, shape, self.tokens and bool(shape)
        else:
            axis = -1 if channels_last(self.model) else 0
            sizes, spatial = shape[:-1] if axis else shape[1:], True
        if not spatial:
            reason = f"inputs of shape {shape} have no spatial axis"
        elif min(sizes) < SMALLEST_MAP:
            reason = f"maps of shape {sizes} are smaller than its window of {SMALLEST_MAP}"
        else:
            reason = ""
        return Layout(axis, tuple(sizes), reason)

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """The explained output of each sample, flat, (n,).

        Raises:
            ValueError: For a wrong number or an index out of range.
        """
        if self._y is None:
            outputs = self.first.outputs(self.samples, batch_size=self.batch_size)
            return outputs.reshape(len(outputs), -1).argmax(axis=1).astype("int32")
        if isinstance(self._y, str):
            raise ValueError(f"y must be one index per sample, received {self._y!r}.")
        y = np.asarray(self._y)
        if y.shape == (self.count, 1) and len(self.output_shape) == 1:
            y = y[:, 0]  # the labels of keras.datasets
        one_hot = y.ndim == 2 and y.shape[1] > 1 and len(self.output_shape) == 1
        if y.dtype.kind not in "iu" or one_hot:
            raise ValueError(
                f"y must hold one class index per sample, received {y.dtype} of shape {y.shape}. "
                "Of one-hot labels or probabilities give y.argmax(axis=1)."
            )
        return flat_targets(y, self.count, self.output_shape)[:, 0]

    def arrays(self, name: str) -> list[np.ndarray]:
        """Returns the samples in the precision of an analyzer, one array per input."""
        inputs = self.analyzers[name].inputs
        dtypes = tuple(node.dtype_in(inputs.dtype) for node in inputs.nodes)
        if dtypes not in self._cast:
            self._cast[dtypes] = [
                array.astype(dtype, copy=False)
                for array, dtype in zip(self.inputs, dtypes, strict=True)
            ]
        return self._cast[dtypes]

    def take(self, positions: Sequence[int] | np.ndarray) -> Case:
        """Returns the case of some samples, which explains the same outputs of them."""
        taken = copy.copy(self)
        # Where `targets` keeps what it has made.
        taken._y = taken.__dict__["targets"] = self.targets[positions]
        taken.inputs, taken._cast = [array[positions] for array in self.inputs], {}
        taken.pixels = None if self.pixels is None else self.pixels[positions]
        return taken

    def spread(self, count: int | None) -> np.ndarray:
        """Returns positions of so many samples at most, evenly spread: classes come in turn."""
        most = self.count if count is None else min(self.count, count)
        return np.linspace(0, self.count - 1, most).round().astype(int)

    def only(self, names: Sequence[str]) -> Case:
        """Returns the case of some methods."""
        fewer = copy.copy(self)
        fewer.analyzers = {name: self.analyzers[name] for name in names}
        return fewer

    def on(self, model: keras.Model) -> Case:
        """Returns the case of the same methods on another model, such as a copy."""
        other = copy.copy(self)
        # The explained outputs stay those of the first model.
        other.__dict__["targets"] = self.targets
        other.analyzers = {name: a.on(model) for name, a in self.analyzers.items()}
        return other

    def at_highest_precision(self) -> Case:
        """Returns the case of the same methods with all bits of products; see `Analyzer`."""
        precise = {
            name: analyzer.at_highest_precision(self.arrays(name))
            for name, analyzer in self.analyzers.items()
        }
        if precise == self.analyzers:
            return self
        other = copy.copy(self)
        if len(self.inputs) == 1:
            # Near a tie other digits could choose another output than in other audits.
            other.__dict__["targets"] = self.targets
        other.analyzers = precise
        return other

    # --- explanations ---

    def explain(
        self, name: str, block: slice, columns: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Explains a block of samples by one method, of a model with one input.

        Args:
            name: The name of the analyzer.
            block: Which samples.
            columns: Flat output indices of all samples, (n, num_vectors); None: the targets.

        Returns:
            The explained tensor (block, *output_shape), and relevance (block, num_vectors,
            *input_shape).
        """
        columns = self.targets[:, None] if columns is None else columns
        outputs, (relevance,) = self.analyzers[name].explain_part(
            self.arrays(name), columns, block, self.batch_size
        )
        return outputs, relevance

    def maps(self, name: str, block: slice, reduction: str) -> np.ndarray:
        """Returns the maps of a block of samples by one method, (block, *sizes)."""
        return self.layout.maps(self.explain(name, block)[1], reduction)[:, 0]

    def reductions(self, given: Any) -> dict[str, str]:
        """Returns how each analyzer's relevance is reduced over channels.

        Args:
            given: A name for all, a dict by analyzer, or None for each analyzer's own.

        Raises:
            ValueError: For an unknown name.
        """
        return self._by_analyzer("reduction", given, metrics.REDUCTIONS)

    def normalizations(self, given: Any) -> dict[str, str]:
        """Returns how each analyzer's maps are normalised; arguments as of `reductions`."""
        return self._by_analyzer("normalization", given, metrics.NORMALIZATIONS)

    def _by_analyzer(self, what: str, given: Any, known: Mapping[str, Any]) -> dict[str, str]:
        given = given if isinstance(given, Mapping) else dict.fromkeys(self.analyzers, given)
        if unknown := [str(name) for name in given if name not in self.analyzers]:
            raise ValueError(
                f"{what} names {', '.join(unknown)}, which is no analyzer. Analyzers: "
                f"{', '.join(self.analyzers)}."
            )
        chosen = {name: given.get(name) for name in self.analyzers}
        return {
            name: choice(what, getattr(self.analyzers[name], what) if v is None else v, known)
            for name, v in chosen.items()
        }

    # --- cost and record ---

    def passes_per_map(self, outputs: int = 1) -> float:
        """Returns about how many forward passes of the model all methods take for one sample."""
        shape = self.inputs[0].shape[1:]
        return sum(analyzer.passes(shape, outputs) for analyzer in self.analyzers.values())

    def options(self, *names: str) -> dict[str, Any]:
        """Returns what numbers depend on beside the options of an audit, as JSON-able data.

        Args:
            *names: What counts beside the seed: "targets" for those (as a checksum) and the size
                of the batches in which they are computed, or nothing.
        """
        options: dict[str, Any] = {"seed": self.seed}
        if "targets" in names:
            options |= {"batch_size": self.batch_size, "targets_sha256": digest([self.targets])}
        return options


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


def several_chains(analyzer: Analyzer) -> str:
    """Returns why a method has more than one backward chain; empty if it has not."""
    if analyzer.num_chains < 2:
        return ""
    return (
        f"it averages over {analyzer.num_chains} baselines, each with a chain of its own. Give one "
        "baseline"
    )


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
    named = {str(name): analyzer for name, analyzer in analyzers.items()}
    first, *others = named
    for name in others:
        for what in ("inputs", "outputs"):
            mine, theirs = _shapes(named[name], what), _shapes(named[first], what)
            if mine != theirs:
                raise ValueError(
                    f"All analyzers must explain the same {what}: {first!r} has {theirs}, "
                    f"{name!r} {mine}."
                )
    if unfitted := [name for name, analyzer in named.items() if not analyzer.is_fitted]:
        raise ValueError(
            f"{', '.join(unfitted)} has no patterns yet: call analyzer.fit(x) on training data "
            "first, or pass patterns=..."
        )
    return named


def _shapes(analyzer: Analyzer, what: str) -> list[tuple]:
    if what == "inputs":
        return [tuple(node.shape[1:]) for node in analyzer.inputs.nodes]
    return [tuple(analyzer.output_shape)]
