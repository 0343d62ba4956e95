"""The redistribution matrix of one sample: what each output's relevance becomes at the input.

R = E diag(1 / s): column k of E is the map of output k, channels summed, and s_k its sum, so that
the columns of R sum to one (section 3 of [maess2025uncovering]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.arrays import slices
from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.reversed import CHUNK_BYTES, with_chain
from tfexplain.audits.case import Layout
from tfexplain.compilation import Compiled
from tfexplain.numerics import Tensor
from tfexplain.reverse import ReversedNetwork

# Which columns count; see `choose`.
POLICIES = ("literal", "quantile", "active")
# A column sum this small beside the median magnitude of the kept ones makes a column explode.
NEAR_ZERO = 1e-3
# Columns that are made at once by methods without backward passes.
CHUNK = 64
# Bytes of the largest matrix that is built.
LARGEST_MATRIX = 2**31


@dataclass(frozen=True)
class Columns:
    """Which outputs have a column, and what it is divided by.

    Attributes:
        kept: Flat indices of outputs, (kept,).
        sums: Their column sums, (kept,), float64.
        near_zero: How many of them are smaller than `NEAR_ZERO` of the median magnitude.
    """

    kept: np.ndarray
    sums: np.ndarray
    near_zero: int


def choose(sums: np.ndarray, outputs: np.ndarray, policy: str, quantile: float) -> Columns:
    """Chooses outputs by a policy; those whose sum is exactly 0 have no column.

    Args:
        sums: Column sums of E, (outputs,).
        outputs: The outputs themselves, (outputs,).
        policy: "literal" (all), "quantile" (magnitude of at least a quantile of all magnitudes) or
            "active" (> 0).
        quantile: In [0, 1).
    """
    wanted = np.ones(len(sums), bool)
    if policy == "quantile":
        magnitude = np.abs(outputs)
        wanted = magnitude >= np.quantile(magnitude, quantile)
    elif policy == "active":
        wanted = outputs > 0
    kept = np.flatnonzero(wanted & (sums != 0) & np.isfinite(sums))
    sums = sums[kept].astype("float64")
    typical = np.median(np.abs(sums)) if len(sums) else 0.0
    return Columns(kept, sums, int((np.abs(sums) < NEAR_ZERO * typical).sum()))


class Redistribution:
    """E of one sample, as columns or as products.

    Args:
        analyzer: The analyzer; it explains one input.
        x: All samples, (n, *input_shape), checked.
        position: Which sample.
        layout: How maps are made.
        start: Name of the layer whose output is explained; None for the model's output.

    Attributes:
        outputs: The explained tensor, flat, float64.
        size: Number of entries of a map.
    """

    def __init__(
        self,
        analyzer: Analyzer,
        x: np.ndarray,
        position: int,
        layout: Layout,
        start: str | None = None,
    ) -> None:
        self._analyzer, self._layout = analyzer, layout
        self._x, self._place = x, slice(position, position + 1)
        self.size = int(np.prod(layout.sizes, dtype=int))
        one, whole = [x[self._place]], Place(self._place, len(x))
        self._passes = analyzer.backward_passes(one, whole, start)
        if analyzer.has_chain:
            network, records, *_ = self._passes[-1]
            outputs = records[network.start_index].numpy()
        else:
            outputs = analyzer.outputs(x[self._place])
        self._chunk = CHUNK
        if self._passes:
            network, records, *_ = self._passes[0]
            self._chunk = network.vectors_beside(records, CHUNK_BYTES)
        self._shape = outputs.shape[1:]
        self.outputs = outputs.reshape(-1).astype("float64")

    def columns(self, indices: np.ndarray) -> np.ndarray:
        """Returns columns of E, (entries of a map, columns), float64.

        Args:
            indices: Flat indices of outputs.

        Raises:
            ValueError: If relevance is not finite.
        """
        columns = np.empty((self.size, len(indices)))
        for part in slices(len(indices), self._chunk):
            chosen = indices[part]
            if self._analyzer.takes_start != "none":
                relevance = np.zeros((len(chosen), len(self.outputs)), self._analyzer.dtype)
                relevance[np.arange(len(chosen)), chosen] = 1
                columns[:, part] = self._sent(relevance)
                continue
            everything = np.full((len(self._x), len(chosen)), chosen, "int32")
            _, (relevance,) = self._analyzer.explain_part([self._x], everything, self._place, 1)
            columns[:, part] = self._maps(relevance).T
        self._check_finite(columns)
        return columns

    def product(self, vectors: np.ndarray) -> np.ndarray:
        """Returns E V, (entries of a map, vectors), of V (outputs, vectors)."""
        product = np.empty((self.size, vectors.shape[1]))
        for part in slices(vectors.shape[1], self._chunk):
            product[:, part] = self._sent(vectors[:, part].T.astype(self._analyzer.dtype))
        self._check_finite(product)
        return product

    def transposed(self, maps: np.ndarray) -> np.ndarray:
        """Returns E^T U, (outputs, vectors), of U (entries of a map, vectors).

        It is the vector-Jacobian product of the backward pass with respect to its relevance.
        """
        product = np.empty((len(self.outputs), maps.shape[1]))
        for part in slices(maps.shape[1], self._chunk):
            given = self._input_like(maps[:, part].T.astype(self._analyzer.dtype))
            total: Any = 0
            for network, records, weight, factor in self._passes:
                scaled = weight * (given if factor is None else factor * given)
                total = total + _transposed(network)(records, tf.constant(scaled)).numpy()
            product[:, part] = total.reshape(-1, len(self.outputs)).T
        self._check_finite(product)
        return product

    def _sent(self, relevance: np.ndarray) -> np.ndarray:
        """Sends relevance (vectors, outputs) back; returns maps (entries, vectors)."""
        given = relevance.reshape(1, len(relevance), *self._shape)
        if not self._passes:
            place = Place(self._place, len(self._x))
            (arrived,) = self._analyzer.send([self._x[self._place]], given, place)
            return self._maps(arrived).T
        total: Any = 0
        for network, records, weight, factor in self._passes:
            sent = network.run_backward(records, tf.constant(given))[0].numpy()
            total = total + weight * (sent if factor is None else factor * sent)
        return self._maps(total).T

    def _maps(self, relevance: np.ndarray) -> np.ndarray:
        """Returns maps (vectors, entries) of relevance (1, vectors, *input_shape)."""
        maps = self._layout.maps(relevance, "sum")[0]
        return maps.reshape(len(maps), -1)

    def _input_like(self, flat: np.ndarray) -> np.ndarray:
        """Returns (1, vectors, *input_shape) with the entry of a map at each of its channels."""
        maps = flat.reshape(1, len(flat), *self._layout.sizes)
        axis = self._layout.channel_axis
        shape = (1, len(flat), *self._x.shape[1:])
        if axis is not None:
            maps = np.expand_dims(maps, 2 if axis == 0 else -1)
        return np.ascontiguousarray(np.broadcast_to(maps, shape))

    def _check_finite(self, relevance: np.ndarray) -> None:
        if not np.isfinite(relevance).all():
            raise ValueError(
                f"The relevance of {self._analyzer.name} overflows at sample {self._place.start}. "
                'Create the analyzer with dtype="float64".'
            )


def check_start(name: str, analyzer: Analyzer, start: str | None) -> None:
    """Refuses a start inside of a network that has no single reversed network.

    Raises:
        ValueError: With the reason; also for an unknown layer.
    """
    if start is None:
        return
    if not analyzer.has_chain:
        raise ValueError(
            f"{name!r} ({analyzer.name}) explains the model's output only, received "
            f"start={start!r}."
        )
    with_chain(analyzer).network(start)


def check_linear(name: str, analyzer: Analyzer, start: str | None) -> None:
    """Refuses analyzers without products R v and R^T u.

    Raises:
        ValueError: With the reason.
    """
    if reason := analyzer.nonlinear(start):
        raise ValueError(
            f"{name!r} ({analyzer.name}) has no products with its redistribution matrix: {reason}. "
            'Use method="exact".'
        )


def _transposed(network: ReversedNetwork) -> Compiled:
    """Returns the compiled transpose of a network's backward pass."""
    if __name__ not in network.derived:

        def run(records: Sequence[Tensor], u: Tensor) -> Tensor:
            shape = tf.shape(records[network.start_index])
            sizes = tf.concat([shape[:1], tf.shape(u)[1:2], shape[1:]], 0)
            # Linear, so that the point does not matter.
            relevance = tf.zeros(sizes, network.dtype)
            with tf.GradientTape() as tape:
                tape.watch(relevance)
                sent = network.backward_pass(records, relevance)[0]
            zero = tf.UnconnectedGradients.ZERO
            return tape.gradient(sent, relevance, output_gradients=u, unconnected_gradients=zero)

        shape = (None, None, *network.input_specs[0].shape[1:])
        signature = [network.record_specs, tf.TensorSpec(shape, network.dtype)]
        network.derived[__name__] = Compiled(run, signature, network.execution)
    return network.derived[__name__]
