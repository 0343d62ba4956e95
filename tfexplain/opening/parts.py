"""What each value of a traced call is: a constant, a bystander, or the signal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfexplain.errors import Unopened, UnsupportedLayerError
from tfexplain.numerics import Tensor
from tfexplain.opening.steps import IDENTITIES, RANDOM, Step, Traced, Value, evaluate

# Of variables and constants alone; of the sizes of tensors too; of what samples hold; and what
# relevance goes through.
CONSTANT, SIZES, BYSTANDER, SIGNAL = range(4)
# What makes other integers of integers one by one.
RECODING = (
    "AddV2 Sub Mul Maximum Minimum FloorMod Cast ClipByValue SelectV2 Less LessEqual Greater "
    "GreaterEqual Equal NotEqual LogicalAnd LogicalOr LogicalNot"
).split()
LOOKUPS = ("GatherV2", "ResourceGather", "Gather")


class Part:
    """The steps of a traced call, what kind each value is of, and functions of some of them.

    Args:
        traced: The steps.
        beside: Numbers of the floating inputs that relevance does not go through.

    Attributes:
        dtype: The precision in which functions compute.
        kinds: Value -> its kind.
        readers: Value -> the steps that read it.
        place: Step -> its place in the order of steps.
        outputs: What the call returns.
    """

    def __init__(self, traced: Traced, beside: Collection[int] = ()) -> None:
        self.traced = traced
        self.dtype = "float32"
        self._beside = frozenset(beside)
        self.kinds: dict[Value, int] = {}
        self.readers: dict[Value, list[Step]] = {}
        self.place = {step: place for place, step in enumerate(traced.steps)}
        self._reads_variables: dict[Value, bool] = {}
        self._handed_on: dict[Value, Value] = {}
        for step in traced.steps:
            # Whoever reads what is only handed on reads what it is handed on from.
            step.inputs = [self._handed_on.get(value, value) for value in step.inputs]
            for value in step.inputs:
                self.readers.setdefault(value, []).append(step)
            kind = self._kind(step)
            self.kinds.update(dict.fromkeys(step.outputs, kind))
            # Large constants are captured as variables are.
            reads = any(value.dtype == tf.resource for value in step.outputs)
            reads |= any(self._reads_variables[v] for v in step.inputs)
            self._reads_variables.update(dict.fromkeys(step.outputs, reads))
            self._hand_on(step)
        self.outputs = [self._handed_on.get(value, value) for value in traced.outputs]

    def _kind(self, step: Step) -> int:
        if step.kind == "Input":
            is_signal = step.outputs[0].floating and step.held not in self._beside
            return SIGNAL if is_signal else BYSTANDER
        if step.kind.startswith(RANDOM):
            raise UnsupportedLayerError(f"it draws random numbers ({step.kind})")
        kinds = [self.kinds[value] for value in step.inputs]
        kind = max(kinds, default=CONSTANT)
        if kind == CONSTANT:
            return CONSTANT
        if step.kind in ("Shape", "ShapeN", "Size", "Rank", "OnesLike", "ZerosLike"):
            known = all(v.shape is not None and None not in v.shape for v in step.inputs)
            return CONSTANT if known else SIZES
        if self.is_lookup(step):
            return SIGNAL
        if kind == SIGNAL and any(value.dtype.is_complex for value in step.outputs):
            raise Unopened("it computes with complex numbers")
        if kind == SIGNAL and not any(value.floating for value in step.outputs):
            return BYSTANDER
        return kind

    def is_lookup(self, step: Step) -> bool:
        """Tells whether integers of the samples select rows of a table of weights."""
        if step.kind == "Keras":
            is_embedding = isinstance(step.held.layer, keras.layers.Embedding)
            return is_embedding and self.token_of(step.inputs[0]) is not None
        if step.kind not in LOOKUPS or not step.outputs[0].floating:
            return False
        table, indices = step.inputs[:2]
        return self.kinds[table] == CONSTANT and self.token_of(indices) is not None

    def uncast(self, value: Value) -> Value:
        """Returns the integers that a value has in another dtype."""
        while value.step.kind == "Cast" and value.step.inputs[0].dtype.is_integer:
            (value,) = value.step.inputs
        return value

    def follows_signal(self, values: Iterable[Value]) -> bool:
        """Tells whether bystanders are computed of the signal itself, and not of its sizes."""
        waiting, seen = list(values), set()
        while waiting:
            value = waiting.pop()
            if value in seen or self.kinds[value] != BYSTANDER:
                continue
            seen.add(value)
            if any(map(self.is_signal, value.step.inputs)):
                return True
            waiting.extend(value.step.inputs)
        return False

    def token_of(self, value: Value) -> Value | None:
        """Returns the integer input that a value is computed from, one by one; None for others."""
        tokens, waiting = set(), [value]
        while waiting:
            part = waiting.pop()
            if part.step.kind == "Input":
                tokens.add(part)
            elif part.step.kind not in RECODING or part.shape != value.shape:
                return None
            else:
                waiting += [v for v in part.step.inputs if not self.is_constant(v)]
        (token, *others) = tokens or [value]
        return token if not others and token.dtype.is_integer and tokens else None

    def is_signal(self, value: Value) -> bool:
        """Tells whether relevance goes through it."""
        return self.kinds[value] == SIGNAL

    def is_constant(self, value: Value) -> bool:
        """Tells whether it depends on variables and constants alone."""
        return self.kinds[value] == CONSTANT

    def is_parameter(self, value: Value) -> bool:
        """Tells whether it depends on variables, and on nothing of the samples."""
        return self.is_constant(value) and self._reads_variables[value]

    def literal(self, value: Value) -> np.ndarray | None:
        """Returns the numbers of a constant that depends on no variable; None for other values."""
        if not self.is_constant(value) or self._reads_variables[value]:
            return None
        with tf.init_scope():
            return evaluate([value], {}, "float64")[0].numpy()

    def signals(self, step: Step) -> list[Value]:
        """Returns the values that a step reads relevance goes to, each once."""
        return list(dict.fromkeys(value for value in step.inputs if self.is_signal(value)))

    def weight(self, value: Value) -> Callable[[Any], Tensor]:
        """Returns the function of a dtype that computes a constant from the current weights."""

        def function(dtype: Any) -> Tensor:
            return evaluate([value], {}, tf.as_dtype(dtype).name)[0]

        return function

    def function(
        self, outputs: Sequence[Value], inputs: Sequence[Value], any_shape: bool = False
    ) -> Callable[..., Any]:
        """Returns what computes some values, given tensors for others.

        Args:
            outputs: What it returns, one tensor or a list.
            inputs: Its arguments.
            any_shape: It is also called with tensors of other shapes than those of the trace.
        """

        def function(*tensors: Tensor) -> Any:
            floating = [t.dtype.name for t in tensors if t.dtype.is_floating]
            dtype = floating[0] if floating else self.dtype
            results = evaluate(outputs, dict(zip(inputs, tensors, strict=True)), dtype)
            for value, result in zip(outputs, results, strict=True):
                if value.shape and not any_shape and not tf.executing_eagerly():
                    # Known from the trace, where sizes are computed when it runs.
                    result.set_shape((None, *value.shape[1:]))
            return results[0] if len(results) == 1 else results

        return function

    def operands(
        self, outputs: Iterable[Value], inputs: Sequence[Value], through: Collection[str] = ()
    ) -> list[Value]:
        """Returns what some values depend on beside others: sizes and bystanders, in their order.

        Args:
            outputs: The values.
            inputs: What they are computed from.
            through: Kinds of bystanders that are computed with them.

        Raises:
            Unopened: If they depend on relevance that is not among the others.
        """
        operands: dict[Value, None] = {}
        waiting, seen = list(outputs), set(inputs)
        while waiting:
            value = waiting.pop()
            if value in seen or self.is_constant(value):
                continue
            seen.add(value)
            if not self.is_signal(value) and value.step.kind not in through:
                operands[value] = None
            elif value.step.kind == "Input":
                raise Unopened("one of its values depends on more than is known of it")
            else:
                waiting.extend(value.step.inputs)
        return sorted(operands, key=self.order)

    def order(self, value: Value) -> tuple[int, int]:
        """Returns where a value is made."""
        return self.place[value.step], value.index

    def sources(self, value: Value) -> list[Value]:
        """Returns the values with relevance, and the inputs, that a bystander is computed from."""
        sources: dict[Value, None] = {}
        waiting, seen = [value], set()
        while waiting:
            part = waiting.pop()
            if part in seen or self.is_constant(part):
                continue
            seen.add(part)
            if self.is_signal(part) or part.step.kind == "Input":
                sources[part] = None
            else:
                waiting.extend(part.step.inputs)
        return sorted(sources, key=self.order)

    def _hand_on(self, step: Step) -> None:
        """Notes what a step only hands on: nobody reads it from there."""
        if step.kind in IDENTITIES:
            handed = step.inputs
        elif step.kind == "Cast":
            floats = [part.floating for part in (*step.inputs, *step.outputs)]
            handed = step.inputs if all(floats) else []
        elif step.kind == "Transpose":
            order = self.literal(step.inputs[1])
            same = order is not None and list(order) == list(range(len(order)))
            handed = step.inputs[:1] if same else []
        else:
            handed = []
        for value, origin in zip(step.outputs, handed, strict=False):
            self._handed_on[value] = origin
        if handed:
            for value in step.inputs:
                self.readers[value].remove(step)
