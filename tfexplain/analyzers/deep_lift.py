"""DeepLIFT: contributions of differences from a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import tensors
from tfexplain.analyzers.baselines import BackgroundLike, Baseline, BaselineLike, as_vectors
from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.reversed import ReversedAnalyzer
from tfexplain.checks import choice
from tfexplain.composites import (
    ACTIVATION,
    ADDITIVE,
    AVERAGE_POOLING,
    DENSE,
    DIAGONAL,
    GATE,
    LOG_SUM_EXP,
    MAX_POOLING,
    NORMALIZATION,
    PRODUCT,
    STRUCTURE,
    After,
    Composite,
)
from tfexplain.errors import UnsupportedModelError
from tfexplain.graph import sources_of, token_lookups
from tfexplain.numerics import Tensor
from tfexplain.reverse import DifferenceNetwork, ReversedNetwork
from tfexplain.reverse.differences import CONTRIBUTION, MULTIPLIER
from tfexplain.rules import (
    AblatedLinear,
    AffineDifference,
    LinearDifference,
    LogSumExpDifference,
    MaxDifference,
    NormalizationDifference,
    PassDifference,
    ProductDifference,
    Rescale,
    RevealCancel,
    Rule,
    Transport,
)


def difference_rows(
    linear: Rule = LinearDifference(),  # noqa: B008, a frozen value
    activations: tuple[tuple[Any, Rule], ...] = (),
    pooling: Rule = MaxDifference(),  # noqa: B008
) -> tuple[tuple[Any, Rule], ...]:
    """Returns the rows of DeepLIFT.

    Args:
        linear: Rule of linear layers and additions.
        activations: Rows of activations before that of Rescale.
        pooling: Rule of max pooling.
    """
    return (
        (GATE, ProductDifference()),
        (DIAGONAL, AffineDifference()),
        (ADDITIVE, linear),
        *activations,
        (ACTIVATION, Rescale()),
        (ACTIVATION, PassDifference()),
        (MAX_POOLING, pooling),
        (AVERAGE_POOLING + STRUCTURE, Transport()),
        (NORMALIZATION, NormalizationDifference()),
        (PRODUCT, ProductDifference()),
        (LOG_SUM_EXP, LogSumExpDifference()),
    )


class DeepLIFT(ReversedAnalyzer):
    """Base of DeepLIFT's variants: contributions that add up to f(x) - f(x0).

    Args:
        model: See `Analyzer`.
        baseline: x0: a number (which for tokens fills their vectors), an array of input_shape or
            (1, …) (shared), (batch, …) (one per sample), or a function of x, such as one that
            blurs; for several inputs a dict by name, or a list with one entry per input.
        background: Several baselines, over which maps are averaged: rows (n, *input_shape), for
            several inputs a dict of such by name.
        max_pool: "difference" (contributions add up) or "gradient" (the winner gets everything, as
            in the deeplift package).
        **common: See `GraphAnalyzer`.

    Raises:
        ValueError: For a wrong baseline or option.
    """

    quantities: ClassVar[tuple[str, ...]] = (CONTRIBUTION, MULTIPLIER)
    # Whether multipliers are divided by their largest magnitude on the way.
    unit_maximum = False

    def __init__(
        self,
        model: keras.Model,
        *,
        baseline: BaselineLike = 0.0,
        background: BackgroundLike = None,
        max_pool: str = "difference",
        **common: Any,
    ) -> None:
        choice("max_pool", max_pool, ("difference", "gradient"))
        self.baseline = Baseline(baseline, background)
        self.max_pool = max_pool
        super().__init__(model, **common)
        self.baseline.check(self.inputs)
        self._sources = sources_of(self.graph, token_lookups(self.graph, self.name))

    def _linear(self) -> Rule:
        return LinearDifference()

    def _activations(self) -> tuple[tuple[Any, Rule], ...]:
        return ()

    def composite(self) -> Composite:
        """Rows of the variant."""
        pooling = MaxDifference() if self.max_pool == "difference" else Transport()
        rows = difference_rows(self._linear(), self._activations(), pooling)
        return Composite(self.name, rows)

    def _new_network(self, **options: Any) -> DifferenceNetwork:
        return DifferenceNetwork(
            self.graph,
            self.assignment,
            sources=[source.node for source in self._sources],
            unit_maximum=self.unit_maximum,
            **options,
        )

    @property
    def num_chains(self) -> int:
        """The number of baselines."""
        return len(self.baseline.values)

    def chain_inputs(
        self, network: ReversedNetwork, arrays: list[np.ndarray], place: Place
    ) -> Iterator[list[Tensor]]:
        """Yields the samples with the pass at each baseline in turn."""
        given = tensors(arrays)
        for parts in self.baseline.arrays(self.inputs, arrays, place):
            yield [*given, *self._baseline_pass(network, parts, given, place)]

    def _baseline_pass(
        self,
        network: ReversedNetwork,
        parts: list[np.ndarray],
        given: list[Tensor],
        place: Place,
    ) -> list[Tensor]:
        """Returns the tensors at a baseline, those of the last batch where it had the same one."""
        network = cast(DifferenceNetwork, network)
        size = max(map(len, parts))
        own = bool(network.operands) or network.is_internal
        if own:
            # Sizes and masks are those of the samples, and so is the pass at the baseline.
            size = len(given[0])
            parts = [
                np.broadcast_to(part, (len(part), *x.shape[1:])) if part.dtype.kind == "f" else part
                for part, x in zip(parts, given, strict=True)
            ]
        # A shared part beside one per sample.
        parts = [part if len(part) == size else np.repeat(part, size, axis=0) for part in parts]
        known = place.passes.get(network)
        if known is not None and all(map(_is_same, known[0], parts)):
            return known[1]
        operands = network.run_operands(given) if network.operands else []
        records = network.run_baseline(self._vectors(parts), operands)
        if own:
            return records
        if size == 1 and self.num_chains == 1:
            # The tensors of many samples or baselines take memory, and those per sample come once.
            place.passes[network] = parts, records
        return records

    def _vectors(self, parts: Sequence) -> list[Tensor]:
        """Returns baselines in the space in which inputs differ: tokens by their vectors."""
        return [
            as_vectors(source.lookup, tf.convert_to_tensor(parts[source.place]), self.dtype)
            for source in self._sources
        ]

    def propagate(
        self,
        x: Any,
        output_relevance: Any,
        *,
        start: str | None = None,
        layers: Sequence[str] = (),
        batch_size: int = 32,
        quantity: str = CONTRIBUTION,
    ) -> dict[str, np.ndarray]:
        """Sends given multipliers backward; one forward pass serves all vectors.

        Args:
            x: As for `analyze`, but no Dataset.
            output_relevance: Multipliers of the start tensor, of positive and negative differences
                alike, (batch, num_vectors, *shape).
            start: Name of the layer whose output receives them; None is the model's logits.
            layers: Names of layers to read beside the input.
            batch_size: As for `analyze`.
            quantity: "contribution" (multiplier times difference) or "multiplier".

        Returns:
            "input" (or the names of several inputs) and each of `layers` -> array (batch,
            num_vectors, *shape of that layer's output).

        Raises:
            ValueError: For a wrong shape, an unknown layer or quantity, or a layer that is not
                upstream.
        """
        choice("quantity", quantity, self.quantities)
        return self._propagate(x, output_relevance, start, layers, batch_size, quantity=quantity)

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, *contributions of the inputs], averaged over baselines."""
        network = self.network()
        of_baselines = [
            network.explain([*inputs, *self._vectors(parts)], targets)
            for parts in self.baseline.constants(self.inputs, inputs)
        ]
        return [
            of_baselines[0][0],
            *(
                tf.add_n(list(p)) / len(of_baselines)
                for p in list(zip(*of_baselines, strict=True))[1:]
            ),
        ]

    @property
    def model(self) -> keras.Model:
        """The reversed network, a keras.Model of (inputs, output_relevance).

        Raises:
            UnsupportedModelError: For several baselines, or one per sample.
        """
        if self.num_chains > 1:
            raise UnsupportedModelError(
                f"{self.name} averages over {self.num_chains} baselines and is no single "
                "reversed network; give one baseline."
            )
        self._check_shared()
        network = self.network()
        count = len(self.graph.inputs)
        inputs, relevance = network.model.inputs[:count], network.model.inputs[-1]
        baselines = _Baselines(self, name="baselines", dtype=self.dtype, autocast=False)(inputs)
        contributions = network.model([*inputs, *baselines, relevance])
        return keras.Model([*inputs, relevance], contributions, name="reversed")

    def _check_shared(self) -> None:
        """Refuses a baseline per sample where the samples are not known."""
        if callable(self.baseline.values[0]):
            return
        like = [
            tf.zeros([1, *(size or 1 for size in node.shape[1:])], node.dtype_in(self.dtype))
            for node in self.graph.inputs
        ]
        try:
            self.baseline.constants(self.inputs, like)
        except ValueError as error:
            raise UnsupportedModelError(
                f"{self.name} is a reversed network for any samples only with a baseline that all "
                f"samples share: {error}"
            ) from None


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Tells whether two arrays hold the same numbers: integers are tokens, and none of these."""
    return one.dtype == other.dtype and np.array_equal(one, other)


class _Baselines(keras.layers.Layer):
    """The baselines of an analyzer as tensors."""

    def __init__(self, analyzer: DeepLIFT, **options: Any) -> None:
        super().__init__(**options)
        self._analyzer = analyzer

    def call(self, inputs: list[Tensor]) -> list[Tensor]:
        analyzer = self._analyzer
        (parts,) = analyzer.baseline.constants(analyzer.inputs, list(inputs))
        return analyzer._vectors(parts)

    def compute_output_spec(self, inputs: list) -> list[keras.KerasTensor]:
        nodes = [source.node for source in self._analyzer._sources]
        return [keras.KerasTensor(node.shape, self.compute_dtype) for node in nodes]


class DeepLIFTRescale(DeepLIFT):
    """DeepLIFT with the Rescale rule at non-linearities ([shrikumar2017learning])."""

    name = "deep_lift.rescale"


class DeepLIFTRevealCancel(DeepLIFT):
    """DeepLIFT with the RevealCancel rule at non-linearities ([shrikumar2017learning])."""

    name = "deep_lift.reveal_cancel"

    def _activations(self) -> tuple[tuple[Any, Rule], ...]:
        return ((ACTIVATION, RevealCancel()),)


class DeepLIFTGenomics(DeepLIFT):
    """RevealCancel behind dense layers, Rescale elsewhere, as deeplift does for genomics."""

    name = "deep_lift.genomics"

    def _activations(self) -> tuple[tuple[Any, Rule], ...]:
        return ((After(DENSE), RevealCancel()),)


class DeepLIFTAblation(DeepLIFT):
    """DeepLIFT (Rescale) without the mixing of signs in linear layers ([sixt2020when]).

    The multipliers are divided by their largest magnitude wherever one tensor carries all of them,
    because their chain grows exponentially: results have an arbitrary positive unit per sample and
    vector.

    Args:
        model: See `Analyzer`.
        definition: "as_run" (what the published code runs: W+ for both signs) or "as_written" (the
            text: W+ for positive, W- for negative differences).
        **common: See `DeepLIFT`.

    Raises:
        ValueError: For another definition.
    """

    name = "deep_lift.ablation"
    unit_maximum = True

    def __init__(self, model: keras.Model, *, definition: str = "as_run", **common: Any) -> None:
        self._ablated = AblatedLinear(definition)
        super().__init__(model, **common)

    def _linear(self) -> Rule:
        return self._ablated
