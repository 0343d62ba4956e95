"""What reversed networks consist of: replayed calls, rules, bounds, zeros.

Each is a `Step`: a plain function of tensors. Only the Keras model that a user asks for makes a
Keras layer of it, because those cost more than what a small network computes.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfexplain.composites import RuleAssignment, bounded_path
from tfexplain.graph import Call, Graph
from tfexplain.numerics import Tensor, expand, shape_of
from tfexplain.operations import Diagonal, Masked, Operation
from tfexplain.operations.calls import as_list
from tfexplain.rules import BoundedCall, RecordedCall, Rule


class Step(abc.ABC):
    """One step of a reversed network: a function of tensors, and a layer of a Keras model.

    Args:
        name: Name of the layer.
        dtype: Precision of floating tensors.

    Attributes:
        sources: The user's layers in it, which are shared, not copied.
        parameters: Arrays that belong to it.
    """

    sources: Sequence[keras.layers.Layer] = ()
    parameters: Sequence[tf.Variable] = ()

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype

    @abc.abstractmethod
    def call(self, *arguments: Any, **named: Any) -> Any:
        """Returns tensors, given tensors."""

    @abc.abstractmethod
    def spec(self, *arguments: Any, **named: Any) -> Any:
        """Returns Keras' symbolic tensors for those of `call`, given such tensors."""

    def description(self) -> dict[str, Any]:
        """Returns what it does, for printing."""
        return {}

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Computes tensors, or adds the layer to a Keras model."""
        if _is_symbolic([*arguments, *named.values()]):
            return self.layer(*arguments, **named)
        return self.call(*arguments, **named)

    @functools.cached_property
    def layer(self) -> keras.layers.Layer:
        """The step as a layer of Keras."""
        return StepLayer(self)


def _is_symbolic(tensors: Any) -> bool:
    """Tells whether nested tensors are Keras' symbolic ones, by the first of them."""
    if isinstance(tensors, keras.KerasTensor | tf.Tensor):
        return isinstance(tensors, keras.KerasTensor)
    if isinstance(tensors, list | tuple | dict):
        for part in tensors.values() if isinstance(tensors, dict) else tensors:
            if part is not None and not (isinstance(part, list | tuple | dict) and not part):
                return _is_symbolic(part)
    return False


class StepLayer(keras.layers.Layer):
    """A step as a layer of the Keras models that users ask for."""

    def __init__(self, step: Step) -> None:
        super().__init__(name=step.name, dtype=step.dtype, autocast=False)
        self.step = step
        # Never read here: so Keras knows their variables as those of this layer.
        self.sources, self.parameters = list(step.sources), list(step.parameters)
        self.built = True

    def call(self, *arguments: Any, **named: Any) -> Any:
        """Runs the step."""
        return self.step.call(*arguments, **named)

    def compute_output_spec(self, *arguments: Any, **named: Any) -> Any:
        """Takes the shapes from the user's model: nothing is traced twice."""
        return self.step.spec(*arguments, **named)

    def get_config(self) -> dict[str, Any]:
        """Returns what the layer does, for printing; `Analyzer.save` stores the method."""
        return {"name": self.name, **self.step.description()}


class CallStep(Step):
    """A step around a canonical operation."""

    def __init__(self, operation: Operation, name: str, dtype: str) -> None:
        super().__init__(name, dtype)
        self.operation = operation
        self.sources = operation.layers

    def description(self) -> dict[str, Any]:
        """Returns the operation."""
        return {"operation": self.operation.label}


class ForwardCall(CallStep):
    """Replays one call of the user's model.

    Args:
        call: The call.
        name: Name of this layer.
        dtype: Precision of floating tensors.
    """

    def __init__(self, call: Call, name: str, dtype: str) -> None:
        super().__init__(call.operation, name, dtype)
        self.results = call.outputs

    def call(self, inputs: Sequence[Tensor], operands: Sequence[Tensor] = ()) -> list[Tensor]:
        """Returns the outputs of the operation, each (batch, *shape)."""
        results = as_list(self.operation.bound(operands).forward(*inputs))
        # What reads integers alone, such as a table of vectors, has the precision of an analyzer.
        return [
            tf.cast(result, self.dtype) if result.dtype.is_floating else result
            for result in results
        ]

    def spec(self, inputs: Sequence, operands: Sequence = ()) -> list[keras.KerasTensor]:
        """Takes the shapes from the user's model."""
        return [keras.KerasTensor(n.shape, n.dtype_in(self.dtype)) for n in self.results]


class ReverseCall(CallStep):
    """Redistributes the relevance of one call by its rule.

    Args:
        call: The call.
        rule: The rule.
        name: Name of this layer.
        dtype: Precision.
        parameters: Arrays that belong to the rule at this call.
        **known: Fields of the rule's record that are the same in every pass.
    """

    def __init__(
        self,
        call: Call,
        rule: Rule,
        name: str,
        dtype: str,
        parameters: Sequence[np.ndarray] = (),
        **known: Any,
    ) -> None:
        super().__init__(call.operation, name, dtype)
        self.rule = rule
        self.parameters = [tf.Variable(value, trainable=False) for value in parameters]
        self.known = {"nonnegative": call.nonnegative, **known}
        self.arguments = call.inputs

    def call(self, relevance: Sequence[Tensor], **tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns one (batch, num_vectors, *shape) for each input of the call."""
        return list(self.rule.propagate(self.recorded(**tensors), tuple(relevance)))

    def recorded(self, **tensors: Sequence[Tensor]) -> RecordedCall:
        """Returns the record that the rule asks for, given the tensors among its fields."""
        given: dict[str, Any] = {name: tuple(value) for name, value in tensors.items()}
        if self.parameters:
            given["parameters"] = tuple(tf.convert_to_tensor(value) for value in self.parameters)
        operation = self.operation.bound(given.pop("operands", ()))
        return self.rule.record(operation, **self.known, **given)

    def spec(self, relevance: Sequence, **tensors: Any) -> list[keras.KerasTensor]:
        """Relevance has the shape of the tensor, with the axis of vectors."""
        return [keras.KerasTensor((None, None, *n.shape[1:]), self.dtype) for n in self.arguments]

    def description(self) -> dict[str, Any]:
        """Returns operation and rule."""
        return {**super().description(), "rule": self.rule.to_config()}


class Bounds(Step):
    """Lowest and highest values of a first layer's input, from those of the model's input."""

    def __init__(self, rule: Any, graph: Graph, call: Call, name: str, dtype: str) -> None:
        super().__init__(name, dtype)
        # It has `low` and `high`.
        self.rule, self.graph, self.bounded = rule, graph, call.inputs[0]
        self.calls = bounded_path(graph, self.bounded)
        self.sources = [layer for call in self.calls for layer in call.operation.layers]

    def call(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns [low, high], each (1, *shape of the first layer's input).

        Where samples are merged with another axis, as many as those of the input.
        """
        ends, merged = [], self.bounded.internal
        for value in (self.rule.low, self.rule.high):
            tensors = {
                node: tf.zeros_like(x if merged else x[:1]) + tf.constant(value, x.dtype)
                for node, x in zip(self.graph.inputs, inputs, strict=True)
                if x.dtype.is_floating
            }
            ends.append(tensors)
        for call in self.calls:
            results = []
            for tensors in ends:
                kept = isinstance(call.operation, Masked)
                results.append([tensors[call.inputs[0]]] if kept else call.run(tensors))
            for node, first, second in zip(call.outputs, *results, strict=True):
                if isinstance(call.operation, Diagonal):
                    # A negative factor exchanges the ends.
                    first, second = tf.minimum(first, second), tf.maximum(first, second)
                ends[0][node], ends[1][node] = first, second
        return [tensors[self.bounded] for tensors in ends]

    def spec(self, inputs: Sequence) -> list[keras.KerasTensor]:
        """One sample of the first layer's input."""
        # Two tensors: the same one twice would be one output of the layer.
        shape = (1, *self.bounded.shape[1:])
        return [keras.KerasTensor(shape, self.dtype) for _ in ("low", "high")]


class Zeros(Step):
    """Zero relevance for a tensor that the explained output does not depend on."""

    def call(self, x: Tensor, relevance: Tensor) -> Tensor:
        """Returns zeros of (batch, num_vectors, *shape of x)."""
        batch, vectors = shape_of(relevance)[:2]
        return tf.zeros([batch, vectors, *shape_of(x)[1:]], relevance.dtype)

    def spec(self, x: Any, relevance: Any) -> keras.KerasTensor:
        """The shape of x with the axis of vectors."""
        return keras.KerasTensor((None, None, *x.shape[1:]), self.dtype)


class TimesActivation(Step):
    """Relevance times the activation at the same tensor."""

    def call(self, x: Tensor, relevance: Tensor) -> Tensor:
        """Returns the product."""
        return expand(tf.cast(x, relevance.dtype)) * relevance

    def spec(self, x: Any, relevance: Any) -> keras.KerasTensor:
        """The shape of the relevance."""
        return keras.KerasTensor(relevance.shape, self.dtype)


def check_bounds(graph: Graph, assignment: RuleAssignment) -> None:
    """Refuses box rules whose bounds are unknown or have another shape than the input.

    Raises:
        ValueError: If a first layer also reads computed tensors, or bounds do not broadcast.
    """
    for call, rule in assignment.rules.items():
        if not issubclass(rule.record, BoundedCall):
            continue
        path = bounded_path(graph, call.inputs[0])
        inside = [c.name for c in path if not c.operation.transparent]
        if inside:
            raise ValueError(
                f"The box rule at {call.name!r} needs the bounds of its input, but that also "
                f"depends on computed tensors ({', '.join(inside)}). Use input_rule='w_square'."
            )
        for node in graph.inputs:
            sizes = node.shape[1:]
            for name in ("low", "high"):
                given = np.shape(getattr(rule, name))
                pairs = zip(reversed(given), reversed(sizes), strict=False)
                if len(given) > len(sizes) or any(g not in (1, s) and s for g, s in pairs):
                    raise ValueError(
                        f"{name} has shape {given}, which does not broadcast to the input's "
                        f"{sizes}; give a number, one per channel, or an array of that shape."
                    )
