"""Functions of single elements that have a constant in them: powers, limits and the like."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfexplain.operations.base import Operation
from tfexplain.operations.calls import Call, Replay, Slot
from tfexplain.operations.elementwise import Activation, Scaling
from tfexplain.operations.opaque import Opaque

# Powers that are functions of their own.
_POWERS = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal", 2.0: "square"}


def power(call: Call) -> Operation:
    """A tensor to a constant power, and a positive constant to the power of a tensor."""
    constant = _constant(call)
    if constant is None:
        return Opaque.from_call(call)
    if not isinstance(call.data[0], Slot):
        return _function("exponential", call) if (constant > 0).all() else Opaque.from_call(call)
    name = _POWERS.get(float(constant), "power") if constant.ndim == 0 else "power"
    function = _function(name, call)
    if name == "power":
        whole = bool((constant == np.round(constant)).all() and (constant >= 0).all())
        function.partial, function.keeps_sign = not whole, True
        function.nonnegative = whole and bool((constant % 2 == 0).all())
    return function


def division(call: Call) -> Operation:
    """A tensor by a constant, and a constant by a tensor."""
    if len(call.inputs) == 1 and not isinstance(call.data[0], Slot):
        numerator = _constant(call)
        if numerator is None:
            return Opaque.from_call(call)
        function = _function("reciprocal", call)
        function.keeps_sign = bool((numerator >= 0).all())
        return function
    return Scaling.from_call(call)


def clip(call: Call) -> Operation:
    """Between two constants; from 0 on it is a rectifier."""
    operation = call.operation
    low, high = (_array(end) for end in (operation.x_min, operation.x_max))
    if low is None or high is None:
        return Opaque.from_call(call)
    return _between(call, low, high)


def limited(call: Call, largest: bool) -> Operation:
    """The larger or the smaller of a tensor and a constant; the larger of 0 is a rectifier.

    Args:
        call: Of a maximum or minimum.
        largest: It is the maximum.
    """
    constant = _constant(call)
    if constant is None:
        return Opaque.from_call(call)
    endless = np.asarray(np.inf)
    return _between(call, *((constant, endless) if largest else (-endless, constant)))


def _between(call: Call, low: np.ndarray, high: np.ndarray) -> Operation:
    rectifies = bool((low == 0).all() and (high > 0).all())
    function = _function("relu" if rectifies else "clip", call)
    function.nonnegative = bool((low >= 0).all() and (high >= 0).all())
    function.keeps_sign = bool((high >= 0).all())
    function.is_relu = rectifies and bool(np.isinf(high).all())
    return function


def _function(name: str, call: Call) -> Activation:
    """Returns the function of single elements that a call computes."""
    return Activation(name, Replay(call.operation, call.arguments), call.operation)


def _constant(call: Call) -> np.ndarray | None:
    """Returns the constant beside the only tensor, which it does not make larger; else None."""
    same = len(call.inputs) == 1 and call.inputs[0].shape == call.outputs[0].shape
    constants = [leaf for leaf in call.data if not isinstance(leaf, Slot)]
    floating = call.inputs[0].floating
    return _array(constants[0]) if same and floating and len(constants) == 1 else None


def _array(value: Any) -> np.ndarray | None:
    """Returns a constant; None for a variable, which may become another number."""
    if not isinstance(value, int | float | np.generic | np.ndarray | tf.Tensor):
        return None
    return np.asarray(value)
