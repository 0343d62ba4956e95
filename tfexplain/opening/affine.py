"""Chains of steps that scale and shift single elements by weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfexplain.numerics import Tensor
from tfexplain.opening.parts import Part
from tfexplain.opening.steps import Step


def through(part: Part, chain: Sequence[Step], number: float, dtype: Any) -> Tensor:
    """Returns what a chain of steps makes of one number everywhere, with the axes of weights."""
    name = tf.as_dtype(dtype).name
    current = tf.constant(number, name)
    for step in reversed(chain):
        signal = part.signals(step)[0]
        given = [current if value is signal else part.weight(value)(name) for value in step.inputs]
        current = _AFFINE[step.kind](*given)
    return current


def factor(part: Part, chain: Sequence[Step], dtype: Any) -> Tensor:
    """Returns the product of the factors of a chain."""
    name = tf.as_dtype(dtype).name
    product = tf.ones((), name)
    for step in reversed(chain):
        signal = part.signals(step)[0]
        others = [part.weight(value)(name) for value in step.inputs if value is not signal]
        if step.kind == "Mul":
            product = product * others[0]
        elif step.kind in ("RealDiv", "Div"):
            product = product / others[0]
        elif step.kind == "Neg" or (step.kind == "Sub" and step.inputs[1] is signal):
            product = -product
    return product


_AFFINE: dict[str, Callable[..., Tensor]] = {
    "Mul": lambda a, b: a * b,
    "AddV2": lambda a, b: a + b,
    "Add": lambda a, b: a + b,
    "BiasAdd": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "RealDiv": lambda a, b: a / b,
    "Div": lambda a, b: a / b,
    "Neg": lambda a: -a,
}
