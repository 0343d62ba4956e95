"""Counts multiply-adds: those of a compiled function, and those that a method's formula needs.

The unit is the forward pass of the network. Convolutions and matrix products count, forward ones
and transposed ones apart, because a device runs them at different speeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfexplain.graph import Call
from tfexplain.operations import Linear
from tfexplain.reverse import ReversedNetwork
from tfexplain.rules import (
    AblatedLinear,
    ContributionRule,
    DifferenceRule,
    Flat,
    Gradient,
    LinearDifference,
    PatternRule,
    WSquare,
    ZBox,
)

# Kind of operation -> index of what its number of elements is multiplied with the fan-in of the
# kernel: an input, or None for the output. The kernel is the second input of each.
FORWARD = {"Conv2D": None, "DepthwiseConv2dNative": None}
TRANSPOSED = {"Conv2DBackpropInput": 2, "DepthwiseConv2dNativeBackpropInput": 2}
PRODUCT = "MatMul"
# What hands a kernel on as it is.
HANDING_ON = ("Identity", "Reshape", "Cast")


@dataclass(frozen=True)
class Work:
    """Multiply-adds, or these in forward passes of a network.

    Attributes:
        forward: Those of convolutions and matrix products.
        transposed: Those of transposed ones.
    """

    forward: float = 0
    transposed: float = 0

    def __add__(self, other: Work) -> Work:
        """Returns the sum of both."""
        return Work(self.forward + other.forward, self.transposed + other.transposed)

    def __truediv__(self, unit: float) -> Work:
        """Returns the same in another unit."""
        return Work(self.forward / unit, self.transposed / unit)

    @property
    def total(self) -> float:
        """Both together."""
        return self.forward + self.transposed


def traced(function: Callable, *specs: Any) -> Any:
    """Returns the concrete function for tensors of these shapes, which are all known."""
    return tf.function(function, autograph=False).get_concrete_function(*specs)


def _running(function: Any) -> Iterator[tf.Operation]:
    """Yields the operations that the results of a concrete function depend on.

    The others, such as convolutions of which only the gradient is read, are traced and never run.

    Raises:
        ValueError: If one of them runs other functions, as a loop does: how often is not known.
    """
    waiting = [tensor.op for tensor in function.outputs]
    waiting += function.graph.control_outputs
    seen = set()
    while waiting:
        operation = waiting.pop()
        if operation in seen:
            continue
        seen.add(operation)
        if any(attribute.HasField("func") for attribute in operation.node_def.attr.values()):
            raise ValueError(f"{operation.name} ({operation.type}) runs functions.")
        waiting += [tensor.op for tensor in operation.inputs]
        waiting += operation.control_inputs
        yield operation


def multiply_adds(function: Any) -> Work:
    """Returns the multiply-adds of one call of a concrete function of known shapes.

    Raises:
        ValueError: For an operation that cannot be counted.
    """
    return sum((_work_of(operation) for operation in _running(function)), Work())


def _work_of(operation: tf.Operation) -> Work:
    kind = operation.type
    if kind == PRODUCT:
        first = operation.inputs[0].shape.as_list()
        inner = first[0 if operation.get_attr("transpose_a") else 1]
        amount = inner * math.prod(operation.outputs[0].shape.as_list())
        return Work(transposed=amount) if operation.get_attr("transpose_b") else Work(amount)
    if kind not in FORWARD | TRANSPOSED:
        if "Conv" in kind or "MatMul" in kind or kind == "Einsum":
            raise ValueError(f"The multiply-adds of {kind} ({operation.name}) are not known.")
        return Work()
    place = (FORWARD | TRANSPOSED)[kind]
    counted = operation.outputs[0] if place is None else operation.inputs[place]
    sizes = operation.inputs[1].shape.as_list()
    # A depthwise kernel is (height, width, channels, multiplier).
    fan_in = math.prod(sizes[:2] if kind.startswith("Depthwise") else sizes[:-1])
    amount = fan_in * math.prod(counted.shape.as_list())
    return Work(amount) if kind in FORWARD else Work(transposed=amount)


def derived_bytes(function: Any, model: keras.Model) -> int:
    """Returns the size of the kernels that a concrete function does not take from the model.

    These are made of the weights, such as their positive parts, or belong to rules.
    """
    of_model = {id(variable.value.handle) for variable in model.variables}
    shared = {id(inside) for outside, inside in function.graph.captures if id(outside) in of_model}
    derived = {}
    for operation in _running(function):
        if operation.type not in (*FORWARD, *TRANSPOSED, PRODUCT):
            continue
        kernel = operation.inputs[1]
        while kernel.op.type in HANDING_ON:
            kernel = kernel.op.inputs[0]
        if kernel.op.type != "ReadVariableOp" or id(kernel.op.inputs[0]) not in shared:
            derived[kernel.ref()] = math.prod(kernel.shape.as_list()) * kernel.dtype.size
    return sum(derived.values())


def limit(network: ReversedNetwork, batch: int) -> Work:
    """Returns the forward passes that the formula of a method needs on a network.

    These are the forward pass, and for each linear call what `needed` says of its rule, weighed by
    the multiply-adds of that call. What depends on weights and constants alone counts nothing: the
    sums of weights, bounds, and DeepLIFT's pass of a constant baseline.
    """
    every, extra = 0.0, Work()
    for call in network.graph.calls:
        if not isinstance(call.operation, Linear):
            continue
        (x,) = call.inputs
        spec = tf.TensorSpec((batch, *x.shape[1:]), x.dtype_in(network.dtype))
        work = multiply_adds(traced(call.operation.forward, spec)).total
        times = needed(network, call)
        every += work
        extra += Work(work * times.forward, work * times.transposed)
    return Work(forward=1) + extra / every


def needed(network: ReversedNetwork, call: Call) -> Work:
    """Returns the passes through a linear call that its rule needs beside the forward pass.

    * One transposed pass where one share meets one kernel: the gradient, z and epsilon (z is
      known), patterns, w^2 and flat, Rescale.
    * z+, gamma, alpha-beta: one more sum, that of contributions of one sign; the other one is its
      difference to z, but where alpha-beta meets outputs of both signs: there one of the two would
      be a difference that cancels. Going back, one transposed pass for each group, and for gamma at
      outputs of one sign.
    * The same where x has both signs: each of these takes two passes, one for x^+ and one for x^-,
      because the sign of a contribution is no longer that of its weight. (x w + |x| |w|) / 2 has
      one pass less, and no digits where the positive sum is small.
    * RevealCancel: one more sum, of |D_i w_ij|, and two transposed passes, for m+ and m-.
    * z^B: two transposed passes, one for each bound.

    Raises:
        ValueError: For a rule that is not in this list.
    """
    rule = network.rules[call]
    if isinstance(rule, ContributionRule):
        # Where no relevance arrives at negative outputs, their groups have no shares.
        above_zero = call in network.vanishing
        groups = [group for group in rule.groups if not (above_zero and group.gate == "negative")]
        if all(group.positive == group.negative for group in groups):
            return Work(transposed=1)
        one_sum = above_zero or len(groups) == 1 or all(group.gate for group in groups)
        of_signs = 1 if call.nonnegative[0] else 2
        return Work((1 if one_sum else 2) * of_signs, len(groups) * of_signs)
    if isinstance(rule, LinearDifference):
        return Work(1, 2) if _receives_two(network, call) else Work(transposed=1)
    if isinstance(rule, ZBox):
        return Work(transposed=2)
    if isinstance(rule, Gradient | WSquare | Flat | PatternRule | AblatedLinear):
        return Work(transposed=1)
    raise ValueError(f"How many passes {rule} needs at {call.name} is not known.")


def _receives_two(network: ReversedNetwork, call: Call) -> bool:
    """Tells whether DeepLIFT's multipliers m+ and m- arrive at the output of a call."""
    (output,) = call.outputs
    rules = [network.rules[other] for other in network.graph.calls if output in other.inputs]
    return any(isinstance(rule, DifferenceRule) and rule.leaving(1) == 2 for rule in rules)
