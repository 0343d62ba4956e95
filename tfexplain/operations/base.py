"""The base class of canonical operations, and the one for operations without a rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import tree
from keras.src.backend.common.variables import AutocastScope

from tfexplain.errors import UnsupportedModelError
from tfexplain.numerics import DisconnectedError, Tensor, pull_back


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
        self.twin: keras.layers.Layer | None = None

    def prepare(self, dtype: str) -> None:
        """Makes a twin of a layer that computes in another precision; it reads its variables."""
        layer = self.operation
        if not isinstance(layer, keras.layers.Layer) or layer.compute_dtype == dtype:
            return
        try:
            self.twin = type(layer).from_config(_in_precision(layer.get_config(), dtype))
            self.twin.build_from_config(layer.get_build_config() or {})
            same = [v.shape for v in self.twin.variables] == [v.shape for v in layer.variables]
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError):
            same = False
        if not same:
            self.twin = None
            warnings.warn(
                f"{layer.name} ({type(layer).__name__}) may compute in {layer.compute_dtype} "
                f"inside, not in {dtype}: it cannot be rebuilt from its configuration.",
                stacklevel=2,
            )

    def __call__(self, *tensors: Tensor) -> Any:
        """Returns what the operation returns for `tensors`."""
        args, kwargs = tree.map_structure(
            lambda leaf: tensors[leaf.index] if isinstance(leaf, Slot) else leaf, self.arguments
        )
        floating = [tensor.dtype.name for tensor in tensors if tensor.dtype.is_floating]
        dtype = floating[0] if floating else None
        if self.twin is not None:
            layer = self.operation
            values = [
                [_converted(variable, dtype) for variable in variables]
                for variables in (layer.trainable_variables, layer.non_trainable_variables)
            ]
            results, _ = self.twin.stateless_call(*values, *args, **kwargs)
        else:
            with AutocastScope(dtype):
                results = self.operation.call(*args, **kwargs)
        if dtype is None:
            return results
        return tree.map_structure(
            lambda result: tf.cast(result, dtype) if result.dtype.is_floating else result, results
        )


def _converted(variable: keras.Variable, dtype: str) -> Tensor:
    """Returns the current value, floating ones in the given precision."""
    value = tf.convert_to_tensor(variable)
    return tf.cast(value, dtype) if value.dtype.is_floating else value


def _in_precision(config: Any, dtype: str) -> Any:
    """Replaces every dtype policy in a layer's configuration, also those of layers inside."""
    if isinstance(config, dict):
        if config.get("class_name", "").endswith("DTypePolicy"):
            return dtype
        return {
            key: dtype if key == "dtype" and value is not None else _in_precision(value, dtype)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_in_precision(item, dtype) for item in config)
    return config


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

    def prepare(self, dtype: str) -> None:
        """Makes ready for a precision, before anything is traced."""
        replay = getattr(self, "forward", None)
        if isinstance(replay, Replay):
            replay.prepare(dtype)

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
            return pull_back(self.forward, inputs, relevances, connected=True)
        except DisconnectedError:
            raise UnsupportedModelError(
                f"The outputs of {self.label} have no gradient with respect to its input, which it "
                "reads as tokens or rounds. Explain the part behind the embedding."
            ) from None
