"""Scans: one step of a few canonical operations, run over the time axis of a sequence.

The step is a small graph, so that every rule exists once: a rule of the whole scan goes back
through time and applies the rules of these operations (`tfexplain.rules.scans`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from tfexplain.numerics import Tensor, shape_of
from tfexplain.operations.base import Operation
from tfexplain.operations.calls import Call, Node


@dataclass(frozen=True, eq=False)
class Step:
    """What a recurrent cell does at one point of time.

    Attributes:
        x: What it reads of the sequence.
        states: What it reads of the step before.
        calls: Its calls, in an order in which they can run.
        output: What it returns.
        new_states: What the next step reads.
    """

    x: Node
    states: tuple[Node, ...]
    calls: tuple[Call, ...]
    output: Node
    new_states: tuple[Node, ...]

    def run(self, x: Tensor, states: Sequence[Tensor]) -> dict[Node, Tensor]:
        """Returns all tensors of the step."""
        tensors = {self.x: x, **dict(zip(self.states, states, strict=True))}
        for call in self.calls:
            tensors.update(zip(call.outputs, call.run(tensors), strict=True))
        return tensors

    def signed(self, x: bool, states: Sequence[bool]) -> tuple[tuple[Call, ...], bool]:
        """Returns the calls with the signs of their inputs, and whether the output is >= 0.

        Args:
            x: Whether the sequence is >= 0 for certain.
            states: Whether the first states are.
        """
        signs = list(states)
        while True:
            known = {self.x: x, **dict(zip(self.states, signs, strict=True))}
            calls = []
            for call in self.calls:
                of_inputs = tuple(known[node] for node in call.inputs)
                calls.append(replace(call, nonnegative=of_inputs))
                sign = call.operation.is_nonnegative(of_inputs)
                known.update(dict.fromkeys(call.outputs, sign))
            # What one step spoils is spoilt in all that follow.
            kept = [s and known[node] for s, node in zip(signs, self.new_states, strict=True)]
            if kept == signs:
                return tuple(calls), known[self.output]
            signs = kept


@dataclass(frozen=True, eq=False)
class History:
    """What a scan computed.

    Attributes:
        output: Of the last step, (batch, *shape).
        outputs: Of all steps in the order in which they ran, (time, batch, *shape).
        states: Of the last step.
        before: The states that each step read, (time, batch, *shape) each.
    """

    output: Tensor
    outputs: Tensor
    states: tuple[Tensor, ...]
    before: tuple[Tensor, ...]


class Scan(Operation):
    """A recurrent layer: (sequence, *first states) -> (output or outputs, *last states).

    Its operand, where it has one, is the mask of the sequence. At masked steps states stay what
    they were, and the output is that of the step before, or zero.

    Args:
        label: What `describe` prints.
        step: What it does at one point of time.
        layer: The layer of Keras, with the options of `keras.layers.RNN`.
    """

    numeric = True

    def __init__(self, label: str, step: Step, layer: keras.layers.RNN) -> None:
        super().__init__(label, source=layer)
        self.layers = (layer,)
        self.step = step
        self.backwards = layer.go_backwards
        self.return_sequences, self.return_state = layer.return_sequences, layer.return_state
        self.zeros_where_masked = layer.zero_output_for_mask

    def prepare(self, dtype: str) -> None:
        """Makes the operations of the step ready."""
        for call in self.step.calls:
            call.operation.prepare(dtype)

    def signed_calls(self, nonnegative: Sequence[bool]) -> tuple[Call, ...]:
        """Returns the calls of the step with the signs of their inputs.

        Args:
            nonnegative: Whether the sequence and the given first states are >= 0 for certain.
        """
        return self._signed(nonnegative)[0]

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if the output of every step is >= 0."""
        outputs = self._signed(inputs)[1]
        # All outputs have one answer.
        return outputs and (not self.return_state or len(self.step.new_states) == 1)

    def _signed(self, nonnegative: Sequence[bool]) -> tuple[tuple[Call, ...], bool]:
        x, *states = nonnegative or [False]
        return self.step.signed(x, states or [bool(nonnegative)] * len(self.step.states))

    # --- time ---

    def by_time(self, tensor: Tensor, axis: int = 1) -> Tensor:
        """Moves time to the front, in the order in which the steps run."""
        rank = len(tensor.shape)
        order = [axis, *range(axis), *range(axis + 1, rank)]
        moved = tf.transpose(tensor, order)
        return tf.reverse(moved, [0]) if self.backwards else moved

    def in_place(self, tensor: Tensor, axis: int = 1) -> Tensor:
        """Moves time from the front back, in the order of the sequence."""
        rank = len(tensor.shape)
        ordered = tf.reverse(tensor, [0]) if self.backwards else tensor
        return tf.transpose(ordered, [*range(1, axis + 1), 0, *range(axis + 1, rank)])

    def mask(self) -> Tensor | None:
        """Returns which steps count, (time, batch), in the order in which they run."""
        if not self.operands:
            return None
        (mask,) = self.operands
        return self.by_time(tf.cast(mask, tf.bool))

    def first_states(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the states that the first step reads: given ones, or zeros."""
        x, *states = inputs
        batch = shape_of(x)[0]
        return states or [tf.zeros([batch, *n.shape[1:]], x.dtype) for n in self.step.states]

    def run(self, inputs: Sequence[Tensor]) -> History:
        """Runs all steps.

        Args:
            inputs: The sequence, (batch, time, *shape), and the first states if they are given.
        """
        inputs = self._for_mask(inputs)
        sequence, mask = self.by_time(inputs[0]), self.mask()
        states = self.first_states(inputs)
        size = shape_of(sequence)[0]
        read = [_array_of(sequence.dtype, size, sequence).unstack(sequence)]
        if mask is not None:
            read.append(_array_of(tf.bool, size, mask).unstack(mask))
        step, shape = self.step, self.step.output.shape
        output = tf.zeros([shape_of(states[0])[0], *shape[1:]], sequence.dtype)
        written = [_array_of(t.dtype, size, None, t.shape) for t in (output, *states)]

        def advance(time: Tensor, output: Tensor, states: list, written: list) -> tuple:
            tensors = step.run(read[0].read(time), states)
            new_output = tensors[step.output]
            new_states = [tensors[node] for node in step.new_states]
            if mask is not None:
                counts = read[1].read(time)
                kept = tf.zeros_like(output) if self.zeros_where_masked else output
                new_output = where_counts(counts, new_output, kept)
                new_states = [
                    where_counts(counts, *p) for p in zip(new_states, states, strict=True)
                ]
            tensors_now = (new_output, *states)
            written = [a.write(time, t) for a, t in zip(written, tensors_now, strict=True)]
            new_output.set_shape(output.shape)
            for new, old in zip(new_states, states, strict=True):
                new.set_shape(old.shape)
            return time + 1, new_output, new_states, written

        _, output, states, written = tf.while_loop(
            lambda time, *_: time < size,
            advance,
            (tf.constant(0), output, states, written),
            maximum_iterations=size,
        )
        outputs, *before = (array.stack() for array in written)
        return History(output, outputs, tuple(states), tuple(before))

    def _for_mask(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns inputs of which one serves all samples once for each sample of the mask."""
        if not self.operands:
            return list(inputs)
        (mask,) = self.operands
        ours, theirs = shape_of(inputs[0])[0], shape_of(mask)[0]
        if isinstance(ours, int) and ours == theirs:
            return list(inputs)
        return [tf.repeat(x, theirs // ours, axis=0) for x in inputs]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Returns the output of the last step, or of all, and the last states if asked for."""
        history = self.run(inputs)
        output = history.output
        if self.return_sequences:
            # The outputs stay in the order in which the steps ran, as those of Keras do.
            output = tf.transpose(history.outputs, [1, 0, *range(2, len(history.outputs.shape))])
        return [output, *history.states] if self.return_state else [output]


def where_counts(counts: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Returns `new` at the samples whose step counts, `old` at others."""
    for _ in range(len(new.shape) - 1):
        counts = tf.expand_dims(counts, -1)
    return tf.where(counts, new, old)


def _array_of(
    dtype: tf.DType, size: Any, tensors: Tensor | None, shape: tf.TensorShape | None = None
) -> tf.TensorArray:
    """Returns an empty array over time, which may be read several times."""
    element = tensors.shape[1:] if shape is None and tensors is not None else shape
    return tf.TensorArray(dtype, size, clear_after_read=False, element_shape=element)
