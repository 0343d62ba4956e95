"""What analyzers declare of themselves: audits and reports ask for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from tfexplain.errors import UnsupportedModelError
from tfexplain.numerics import Tensor
from tfexplain.reverse import ReversedNetwork

# A backward pass takes about twice the time of a forward pass.
BACKWARD = 2


@dataclass(frozen=True, eq=False)
class Place:
    """Where a batch lies among the samples of a call.

    Attributes:
        positions: Its slice of the samples.
        count: How many samples there are in all.
        passes: Network -> inputs and tensors of a forward pass that the batches of the call have in
            common. The next call makes its own: weights may have changed.
    """

    positions: slice
    count: int
    passes: dict[ReversedNetwork, tuple[list[np.ndarray], list[Tensor]]] = field(
        default_factory=dict
    )


class BackwardPass(NamedTuple):
    """One of the backward passes whose weighted sum a map is, and the forward pass it needs.

    Attributes:
        network: The reversed network.
        records: The tensors of its forward pass.
        weight: Weight of its relevance in the sum.
        factor: What its relevance is multiplied with, (batch, 1, *input_shape); None for nothing.
    """

    network: ReversedNetwork
    records: list[Tensor]
    weight: float
    factor: np.ndarray | None


class Capabilities:
    """What a method can do, and what it says of its relevance.

    Attributes:
        fits: Whether it has to be fitted to data before it explains.
        has_chain: Whether given relevance goes back through reversed networks alone: what
            averages over inputs, contrasts two maps or reads one layer has no such chain.
        takes_start: Which start `propagate` takes: "layer" (the output of any layer), "output"
            (the explained output alone) or "none" (there is no given relevance).
        redistributes: Whether its rules share relevance out among inputs, as those of LRP do: then
            a sum of a map means something, and contrastive LRP takes it where it has a chain.
        quantities: What a reversed network can read: "contribution", "multiplier".
        reduction: How audits make maps of its relevance: a name of `metrics.REDUCTIONS`.
        normalization: How they scale these: a name of `metrics.NORMALIZATIONS`.
        seed: The seed of what it draws; None where it draws nothing.
    """

    name: str = ""
    fits: ClassVar[bool] = False
    has_chain: ClassVar[bool] = False
    takes_start: ClassVar[str] = "none"
    redistributes: ClassVar[bool] = False
    quantities: ClassVar[tuple[str, ...]] = ("contribution",)
    reduction: ClassVar[str] = "sum"
    normalization: ClassVar[str] = "percentile"
    seed: int | None = None
    # What messages say behind the name, where given relevance or a keras.Model is asked for.
    _no_chain: ClassVar[str] = (
        "has no single backward chain to send relevance through. Use gradient, an LRP method, "
        "guided_backprop, deconvnet or rect_grad."
    )
    _no_network: ClassVar[str] = "is no single reversed network."

    @property
    def is_fitted(self) -> bool:
        """Whether it explains already: True for what needs no fit."""
        return True

    @property
    def num_chains(self) -> int:
        """How many reversed networks one sample needs; 0 without a chain."""
        return int(self.has_chain)

    def nonlinear(self, start: str | None = None) -> str:
        """Returns why relevance is not linear in the output relevance; empty if it is.

        Args:
            start: Name of the layer whose output receives the relevance; None is the explained
                output.
        """
        return "it has no backward pass, or contrasts several"

    def passes(self, shape: Sequence[int], outputs: int = 1) -> float:
        """Returns about how many forward passes of the model the maps of one sample take.

        Args:
            shape: Shape of the sample, without the batch axis.
            outputs: How many outputs have a map.
        """
        return (1 + BACKWARD) * outputs

    def backward_passes(
        self, arrays: list[np.ndarray], place: Place, start: str | None = None
    ) -> list[BackwardPass]:
        """Returns the passes whose weighted sum a map is; none where a method is no such sum.

        Args:
            arrays: The batch, one checked array (n, *shape) per input.
            place: Where the batch lies among all samples.
            start: Name of the layer whose output receives the relevance; None is the explained
                output.
        """
        return []

    def send(
        self, arrays: list[np.ndarray], relevance: np.ndarray, place: Place
    ) -> list[np.ndarray]:
        """Sends relevance of the explained output back, where `takes_start` is not "none".

        Args:
            arrays: The batch, one checked array (n, *shape) per input.
            relevance: (n, num_vectors, *output_shape): weights of the outputs.
            place: Where the batch lies among all samples.

        Returns:
            One relevance (n, num_vectors, *shape) per input.

        Raises:
            UnsupportedModelError: Where there is no given relevance.
        """
        raise self._without_chain()

    def _without_chain(self) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.name} {self._no_chain}")
