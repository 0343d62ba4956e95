"""The base class of canonical operations, and the one for operations without a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import tree
from keras.src.backend.common.variables import AutocastScope

from tfexplain.numerics import Tensor, pull_back


@dataclass(frozen=True)
class Slot:
    """Stands for the tensor number `index` among the arguments of a call."""

    index: int


class Replay:
    """Runs a Keras operation again, at inference, with other tensors in the same arguments.

    It calls `operation.call`, not the operation itself: no node, loss, mask or metric is recorded
    on the user's layer. Variables are cast to the dtype of the tensors.

    Args:
        operation: A Keras layer or operation.
        arguments: The pair (args, kwargs) of the recorded call, with a `Slot` for each tensor.
    """

    def __init__(self, operation: keras.Operation, arguments: tuple) -> None:
        self.operation = operation
        args, kwargs = arguments
        kwargs = {key: value for key, value in kwargs.items() if key not in ("training", "mask")}
        if getattr(operation, "_call_has_training_arg", False):
            kwargs["training"] = False
        self.arguments = (args, kwargs)

    def __call__(self, *tensors: Tensor) -> Any:
        """Returns what the operation returns for `tensors`."""
        args, kwargs = tree.map_structure(
            lambda leaf: tensors[leaf.index] if isinstance(leaf, Slot) else leaf, self.arguments
        )
        floating = [tensor.dtype.name for tensor in tensors if tensor.dtype.is_floating]
        dtype = floating[0] if floating else None
        with AutocastScope(dtype):
            results = self.operation.call(*args, **kwargs)
        if dtype is None:
            return results
        return tree.map_structure(
            lambda result: tf.cast(result, dtype) if result.dtype.is_floating else result, results
        )


class Operation:
    """One step of a canonical graph: it can run forward and pull relevance back.

    Attributes:
        label: What `describe` prints, for example "Conv2D" or "relu".
        source: The Keras operation it comes from, which selectors by type look at; or None.
        layers: Keras layers whose variables it reads. They belong to the user and are only read.
    """

    label: str = ""
    source: keras.Operation | None = None
    layers: tuple[keras.layers.Layer, ...] = ()

    def forward(self, *inputs: Tensor) -> Tensor | Sequence[Tensor]:
        """Returns the output tensor or tensors for inputs of shape (batch, *shape)."""
        raise NotImplementedError

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Tells whether outputs are >= 0 for certain, given which inputs are."""
        return False

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns the vector-Jacobian product, one (batch, num_vectors, *shape) per input."""
        return pull_back(self.forward, inputs, relevances)

    def __repr__(self) -> str:
        """Names the operation as `describe` does."""
        return f"<{type(self).__name__} {self.label}>"


class Opaque(Operation):
    """An operation of which only the gradient is known."""

    def __init__(self, function: Callable, label: str, source: keras.Operation | None) -> None:
        self.forward = function
        self.label = label
        self.source = source
        self.layers = (source,) if isinstance(source, keras.layers.Layer) else ()
