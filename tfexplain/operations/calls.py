"""Calls: one use of an operation, with the tensors that it reads and makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import tree
from keras.src.backend import set_keras_mask
from keras.src.backend.common import global_state
from keras.src.backend.common.variables import AutocastScope
from keras.src.layers.layer import CallContext

from tfexplain.errors import warn
from tfexplain.numerics import Tensor


@dataclass(frozen=True)
class Slot:
    """Stands for the tensor number `index` among the arguments of a call."""

    index: int


@dataclass(frozen=True)
class MaskedSlot(Slot):
    """Stands for a tensor that has a mask of Keras attached when the operation gets it.

    Attributes:
        mask: The number of the mask among the tensors of the call.
    """

    mask: int


@dataclass(eq=False)
class Node:
    """A tensor of the graph, compared by identity.

    Attributes:
        shape: (None, *sizes), the batch axis always unknown; all sizes where it is internal.
        dtype: Name of the dtype in the user's model.
        batch: Size of the first axis in the user's model: None, a fixed batch size, or -1 for a
            tensor without axes.
        internal: Its first axis is not that of the samples.
    """

    # Unknown sizes are None.
    shape: tuple[Any, ...]
    dtype: str
    batch: int | None = None
    internal: bool = False

    @property
    def floating(self) -> bool:
        """Whether it holds floating numbers."""
        return "float" in self.dtype

    def dtype_in(self, precision: str) -> str:
        """Returns `precision` for floating tensors, the own dtype of others."""
        return precision if self.floating else self.dtype


@dataclass(frozen=True, eq=False)
class Call:
    """One use of an operation.

    Attributes:
        name: Unique in the graph: "conv", "conv@1" for the second use, "outer/conv" if nested.
        operation: A Keras operation after tracing, a canonical `Operation` after canonizing.
        inputs: The tensors it reads, in the order of its `Slot`s.
        outputs: The tensors it makes.
        arguments: (args, kwargs) of the call with a `Slot` for each input.
        nonnegative: For each input, whether it is >= 0 for certain; known after canonizing.
        operands: Further tensors that it reads, to which no relevance goes: masks, indices,
            sizes. Their `Slot`s follow those of the inputs.
    """

    name: str
    operation: Any
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    arguments: tuple = ((), {})
    nonnegative: tuple[bool, ...] = ()
    operands: tuple[Node, ...] = ()

    @property
    def reads(self) -> tuple[Node, ...]:
        """All tensors that it reads."""
        return self.inputs + self.operands

    def run(self, tensors: Mapping[Node, Tensor]) -> list[Tensor]:
        """Returns the outputs of a canonical call, given the tensors that it reads."""
        operation = self.operation.bound([tensors[node] for node in self.operands])
        return as_list(operation.forward(*(tensors[node] for node in self.inputs)))

    @property
    def data(self) -> list:
        """The arguments that carry data: tensors (as slots) and constants, in order."""
        args, kwargs = self.arguments
        given = {key: value for key, value in kwargs.items() if key not in _NO_DATA}
        return [leaf for leaf in tree.flatten(args) + tree.flatten(given) if leaf is not None]

    @property
    def only_tensors(self) -> bool:
        """Whether no constant is among its arguments."""
        return all(isinstance(leaf, Slot) for leaf in self.data)

    @property
    def merges(self) -> bool:
        """Whether it reads floating tensors alone, which broadcast against each other by axes.

        Tensors of different rank broadcast in ways of their own, and for integers among the tensors
        Keras computes in a dtype that none of them has.
        """
        same_rank = len({len(node.shape) for node in self.inputs}) == 1
        floating = all(node.floating for node in self.inputs)
        return self.only_tensors and same_rank and floating


# Arguments that are no data.
_NO_DATA = ("training", "mask")


def as_list(results: Any) -> list:
    """Returns what an operation has made, one tensor or several, as a list."""
    return list(results) if isinstance(results, list | tuple) else [results]


@contextmanager
def inference(operation: keras.Operation) -> Iterator[None]:
    """Lets layers inside of an operation know that they do not train, also where it cannot say."""
    name = "current_call_ctx"
    before = global_state.get_global_attribute(name)
    context = CallContext(entry_layer=operation)
    context.training = False
    global_state.set_global_attribute(name, context)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)


class MaskGiven(keras.Operation):
    """Stands between a tensor and a model inside of another that is called with a mask for it."""

    def call(self, x: Any, mask: Any) -> Any:
        """Returns the tensor."""
        return x


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
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
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
            warn(
                f"{layer.name} ({type(layer).__name__}) may compute in {layer.compute_dtype} "
                f"inside, not in {dtype}: it cannot be rebuilt from its configuration."
            )

    def __call__(self, *tensors: Tensor) -> Any:
        """Returns what the operation returns for `tensors`."""
        args, kwargs = tree.map_structure(
            lambda leaf: _given(leaf, tensors) if isinstance(leaf, Slot) else leaf, self.arguments
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
            with AutocastScope(dtype), inference(self.operation):
                results = self.operation.call(*args, **kwargs)
        if dtype is None:
            return results
        return tree.map_structure(
            lambda result: tf.cast(result, dtype) if result.dtype.is_floating else result, results
        )


def _given(slot: Slot, tensors: Sequence[Tensor]) -> Tensor:
    """Returns the tensor of a slot, with its mask."""
    tensor = tensors[slot.index]
    if not isinstance(slot, MaskedSlot):
        return tensor
    # A tensor of its own: others that read the same one may not see the mask.
    tensor = tf.identity(tensor)
    set_keras_mask(tensor, tensors[slot.mask])
    return tensor


def _converted(variable: keras.Variable, dtype: str | None) -> Tensor:
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


def listed_class(operation: keras.Operation, classes: Iterable[type]) -> type | None:
    """Returns the listed class of an operation.

    A subclass may compute something else, so only one that inherits what computes counts.
    """
    for cls in type(operation).__mro__:
        if cls in classes:
            parts = ("call", "convolution_op")
            own = type(operation)
            return cls if all(getattr(own, p, 0) is getattr(cls, p, 0) for p in parts) else None
    return None
