"""Finds in the steps of a call what rules know as one operation.

Primitives give other maps than the operation that they make up together: of a GELU that is opened
into products, each of which shares its relevance out, a part would be lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from tfexplain.opening.parts import Part
from tfexplain.opening.steps import Step, Value

UNARY = (
    "Relu Relu6 LeakyRelu Elu Selu Softplus Softsign Tanh Sigmoid Exp Expm1 Log Log1p Sqrt Rsqrt "
    "Square Abs Erf Erfc Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Reciprocal Inv Neg "
    "ClipByValue Lgamma Digamma Ndtri StopGradient"
).split()
BINARY = (
    "AddV2 Add BiasAdd Sub Mul RealDiv Div DivNoNan Maximum Minimum Pow SquaredDifference Xdivy "
    "Xlogy Xlog1py MulNoNan Atan2 AddN FloorMod SelectV2 Select"
).split()
ELEMENTWISE = frozenset([*UNARY, *BINARY])
# What a condition of single elements is made of.
CONDITIONS = frozenset(
    "Greater GreaterEqual Less LessEqual Equal NotEqual LogicalAnd LogicalOr LogicalNot".split()
)
# What may stand beside the signal in a function of single elements.
OF_ELEMENTS = CONDITIONS | ELEMENTWISE | {"Cast"}
AFFINE = frozenset("Mul AddV2 Add BiasAdd Sub RealDiv Div Neg".split())
REDUCTIONS = ("Mean", "Sum")
ROOTS = ("Rsqrt", "Sqrt")


def is_elementwise(part: Part, value: Value) -> bool:
    """Tells whether a value depends element by element on what it reads of the signal."""
    step = value.step
    if step.kind not in ELEMENTWISE:
        return False
    return all(source.shape == value.shape for source in part.signals(step))


def element_of(part: Part, value: Value) -> Value | None:
    """Returns the one value of which another is a function of single elements, by several ways.

    It is the last such value; None where there is none, or one way alone.
    """
    if not is_elementwise(part, value) or len(_read(part, value.step)) < 2:
        return None
    # The values that are met on the way back, the last first; each is a candidate as soon as all
    # that is waiting is itself.
    waiting = set(_read(part, value.step))
    while waiting:
        last = max(waiting, key=part.order)
        if len(waiting) == 1:
            return last if part.is_signal(last) and last.shape == value.shape else None
        beside = not part.is_signal(last) and last.step.kind in OF_ELEMENTS
        if not (is_elementwise(part, last) or beside) or last.shape != value.shape:
            return None
        waiting.remove(last)
        waiting.update(_read(part, last.step))
    return None


def _read(part: Part, step: Step) -> list[Value]:
    """Returns what a step reads of the signal, also through conditions."""
    return [v for v in dict.fromkeys(step.inputs) if part.is_signal(v) or _depends(part, v)]


def _depends(part: Part, value: Value) -> bool:
    """Tells whether what stands beside the signal is computed of it, element by element."""
    if part.is_constant(value) or value.step.kind not in OF_ELEMENTS:
        return False
    return any(part.is_signal(v) or _depends(part, v) for v in value.step.inputs)


def logits_of(part: Part, value: Value) -> Value | None:
    """Returns x of a softmax over the last axis that is made of exp, sum and division."""
    if value.step.kind not in ("RealDiv", "Div"):
        return None
    exponential, total = value.step.inputs
    if exponential.step.kind != "Exp" or total.step.kind != "Sum" or not value.shape:
        return None
    (summed, axes), (x,) = total.step.inputs, exponential.step.inputs
    twin = summed.step.kind == "Exp" and summed.step.inputs[0] is x
    if (summed is not exponential and not twin) or not _is_last(part, axes, value):
        return None
    if not total.step.attributes["keep_dims"] or not part.is_signal(x) or len(value.shape) < 2:
        return None
    if x.step.kind == "Sub":
        # The largest logit, which only keeps numbers finite.
        logits, largest = x.step.inputs
        while largest.step.kind == "StopGradient":
            (largest,) = largest.step.inputs
        if largest.step.kind == "Max" and largest.step.inputs[0] is logits:
            return logits if _is_last(part, largest.step.inputs[1], value) else x
    return x


def _is_last(part: Part, axes: Value, value: Value) -> bool:
    places = part.literal(axes)
    rank = len(value.shape or ())
    return places is not None and [int(a) % rank for a in places.ravel()] == [rank - 1]


@dataclass(frozen=True, eq=False)
class Normalization:
    """Values of a normalisation: y = A(x, u), linear in u, with u = h(v) and v = Q(x).

    Attributes:
        x: What is normalised.
        statistic: v, a sum of squares of x.
        root: The value by which x is multiplied or divided, a function of single elements of v.
        divides: The root is a divisor: u is its reciprocal.
        y: What it makes.
    """

    x: Value
    statistic: Value
    root: Value
    divides: bool
    y: Value


def normalizations(part: Part) -> list[Normalization]:
    """Returns the normalisations by statistics of each sample, in the order of their results."""
    found = []
    for step in part.traced.steps:
        if step.kind in ROOTS and part.is_signal(step.outputs[0]):
            normalization = _normalization(part, step.outputs[0])
            if normalization is not None:
                found.append(normalization)
    return found


def _normalization(part: Part, root: Value) -> Normalization | None:
    statistic = root
    while statistic.step.kind in ELEMENTWISE and len(part.signals(statistic.step)) == 1:
        statistic = part.signals(statistic.step)[0]
    x = _origin_of_squares(part, statistic)
    if x is None:
        return None
    # Behind the root, until it has met the signal: a small number may be added before.
    top = root
    while True:
        readers = part.readers.get(top, [])
        if len(readers) != 1 or top in part.outputs:
            break
        (after,) = readers
        if not is_elementwise(part, after.outputs[0]) or len(part.signals(after)) != 1:
            break
        if after.kind not in (*AFFINE, "Maximum", "Minimum", "Reciprocal", "Inv"):
            return None
        top = after.outputs[0]
    y = _end(part, top, x)
    if y is None:
        return None
    readers = part.readers[top]
    divides = all(s.kind in ("RealDiv", "Div", "DivNoNan") and s.inputs[1] is top for s in readers)
    if not divides and any(step.kind not in ("Mul", "Reshape") for step in readers):
        return None
    return Normalization(x, statistic, top, divides, _with_parameters(part, y))


def _origin_of_squares(part: Part, statistic: Value) -> Value | None:
    """Returns the x of which a statistic is quadratic: sums of squares; None if it is none."""
    # Whether something behind a value squares it.
    squared = {statistic: False}
    waiting = {statistic}
    while waiting:
        last = max(waiting, key=part.order)
        step, kind = last.step, last.step.kind
        if len(waiting) == 1 and squared[last] and not _centres(part, last):
            return last
        signals = part.signals(step)
        squares = kind in ("Square", "SquaredDifference")
        squares |= kind == "Mul" and step.inputs[0] is step.inputs[1]
        scales = kind in ("Mul", "RealDiv") and len(signals) == 1 and not squares
        inner = kind in (*REDUCTIONS, "StopGradient", "Reshape", "Squeeze", "ExpandDims")
        inner = inner or kind in ("Sub", "AddV2", "Neg") or squares or scales
        if not inner or (squares and squared[last]):
            return None
        waiting.remove(last)
        for value in signals:
            squared[value] = squared.get(value, False) or squared[last] or squares
        waiting.update(signals)
    return None


def _centres(part: Part, value: Value) -> bool:
    """Tells whether a value is another one minus its mean."""
    step = value.step
    if step.kind != "Sub" or len(part.signals(step)) != 2:
        return False
    x, mean = step.inputs
    while mean.step.kind in ("StopGradient", "Reshape"):
        mean = mean.step.inputs[0]
    return mean.step.kind in REDUCTIONS and mean.step.inputs[0] is x


def _end(part: Part, root: Value, x: Value) -> Value | None:
    """Returns the value at which all ways from a root have met again, and met x."""
    active = {root}
    while active:
        first = min(active, key=part.order)
        if len(active) == 1 and first is not root and _meets(part, first, root, x):
            return first
        readers = part.readers.get(first, [])
        if not readers or first in part.outputs:
            return None
        active.remove(first)
        for step in readers:
            if step.kind not in (*ELEMENTWISE, *REDUCTIONS, "Reshape"):
                return None
            active.update(step.outputs)
        if len(active) > 8:
            return None
    return None


def _meets(part: Part, y: Value, root: Value, x: Value) -> bool:
    """Tells whether y is affine in x, given the root, and depends on nothing else."""
    met = False
    waiting, seen = [y], set()
    while waiting:
        value = waiting.pop()
        if value in seen or value is root or value is x:
            met |= value is x
            continue
        seen.add(value)
        step = value.step
        signals = part.signals(step)
        if step.kind not in (*AFFINE, *REDUCTIONS, "Reshape", "StopGradient", "DivNoNan"):
            return False
        if step.kind in ("RealDiv", "Div", "DivNoNan") and step.inputs[1] is not root:
            if part.is_signal(step.inputs[1]):
                return False
        if not signals:
            return False
        waiting.extend(signals)
    return met


def _with_parameters(part: Part, y: Value) -> Value:
    """Returns what a scale and a shift behind a normalisation make of it."""
    while True:
        readers = part.readers.get(y, [])
        if len(readers) != 1 or y in part.outputs:
            return y
        (step,) = readers
        others = [value for value in step.inputs if value is not y]
        fits = step.kind in ("Mul", "AddV2", "Add", "BiasAdd") and len(others) == 1
        if not fits or not part.is_constant(others[0]) or step.outputs[0].shape != y.shape:
            return y
        y = step.outputs[0]
