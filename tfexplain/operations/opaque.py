"""Operations of which only the gradient is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras

from tfexplain.errors import UnsupportedModelError
from tfexplain.numerics import DisconnectedError, Tensor, pull_back
from tfexplain.operations.base import Operation


class Opaque(Operation):
    """An operation of which only the gradient is known: relevance methods refuse it."""

    def __init__(
        self, label: str, function: Callable, source: keras.Operation | None = None
    ) -> None:
        super().__init__(label, function, source)
        self.layers = (source,) if isinstance(source, keras.layers.Layer) else ()


class WholeModel(Opaque):
    """A whole model as one operation, for models without a graph of layers."""

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns the vector-Jacobian product.

        Raises:
            UnsupportedModelError: If the model does not depend on its input in a way that has a
                gradient.
        """
        try:
            return pull_back(self.folded(relevances[0]).forward, inputs, relevances, connected=True)
        except DisconnectedError:
            raise UnsupportedModelError(
                f"The outputs of {self.label} have no gradient with respect to its input, which it "
                "reads as tokens or rounds. Explain the part behind the embedding."
            ) from None
