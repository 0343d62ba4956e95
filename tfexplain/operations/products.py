"""Products that sum over axes: of two tensors, and of a tensor and a constant.

An equation such as "bij,bjk->bik" says what is computed, as in `tf.einsum`. The first letter of
each tensor and of the result is the axis of the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfexplain.numerics import Tensor, expand, shape_of
from tfexplain.operations.base import Operation
from tfexplain.operations.calls import Call, Slot
from tfexplain.operations.linear import EinsumLinear
from tfexplain.operations.opaque import Opaque
from tfexplain.operations.pooling import AveragePooling
from tfexplain.operations.structure import Rearrangement

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class TensorProduct(Operation):
    """y = sum A B over axes: matmul, einsum and Dot of two tensors that depend on the input.

    Args:
        label: What `describe` prints.
        equation: Letters of both tensors and of the result, such as "bij,bjk->bik", none of them
            twice in one tensor. A letter that one tensor alone has is summed over, one that the
            result alone has is an axis of length one. A tensor that broadcasts has letters of its
            own for its axes of length one.
        source: The Keras operation, or None.
    """

    numeric = True

    def __init__(self, label: str, equation: str, source: keras.Operation | None = None) -> None:
        super().__init__(label, source=source)
        given, self.result = equation.split("->")
        self.first, self.second = given.split(",")
        self.vectors = _fresh(equation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the product."""
        first, second = inputs
        return _summed_product(self.first, first, self.second, second, self.result)

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Holds if both tensors are >= 0."""
        return all(inputs)

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns R B^T for A and A^T R for B."""
        (relevance,), (a, b) = relevances, inputs
        pulled = []
        for x, letters, other, others in (
            (a, self.first, b, self.second),
            (b, self.second, a, self.first),
        ):
            part = _summed_product(
                self._of_vectors(self.result), relevance, others, other, self._of_vectors(letters)
            )
            # Where an axis was summed over without a partner, each place gets the same.
            sizes = shape_of(relevance)[:2] + shape_of(x)[1:]
            pulled.append(tf.broadcast_to(part, sizes))
        return tuple(pulled)

    def equal_shares(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Gives each tensor half of R, in proportion to the products that an output sums.

        R_A = A * (q B^T) and R_B = B * (A^T q) with q = R / (2 y).
        """
        share = tf.math.divide_no_nan(relevance, 2 * expand(outputs[0]))
        pulled = self.gradient(inputs, outputs, (share,))
        return tuple(expand(x) * part for x, part in zip(inputs, pulled, strict=True))

    def average_orders(
        self, inputs: Sequence[Tensor], baselines: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns the gradient at the mean of inputs and baselines: see `Product`."""
        means = [(x + x0) / 2 for x, x0 in zip(inputs, baselines, strict=True)]
        return self.gradient(means, (), (relevance,))

    def _of_vectors(self, letters: str) -> str:
        """Returns the letters of relevance, which has the axis of vectors behind the samples."""
        return letters[0] + self.vectors + letters[1:]


def _summed_product(
    letters: str, tensor: Tensor, others: str, other: Tensor, result: str
) -> Tensor:
    """Returns what `tf.einsum` does; letters of the result alone are axes of length one."""
    known = "".join(letter for letter in result if letter in letters + others)
    product = tf.einsum(f"{letters},{others}->{known}", tensor, other)
    for axis, letter in enumerate(result):
        if letter not in known:
            product = tf.expand_dims(product, axis)
    return product


class ConstantProduct(EinsumLinear):
    """The product of a tensor and a constant, which is its kernel: matmul, einsum, tensordot.

    Args:
        label: What `describe` prints.
        equation: Letters of the tensor, of the constant and of the result, as "bij,jk->bik".
        constant: An array, a variable, which is read at each call, or a function of a dtype.
        source: The Keras operation, or None.
    """

    def __init__(
        self, label: str, equation: str, constant: Any, source: keras.Operation | None = None
    ) -> None:
        super().__init__(source)
        self.label, self.layers = label, ()
        self._equation, self.constant = equation, constant

    @property
    def equation(self) -> str:
        """What is contracted."""
        return self._equation

    def _kernel(self, dtype: tf.DType) -> Tensor:
        if callable(self.constant):
            return self.constant(dtype)
        return tf.cast(tf.convert_to_tensor(self.constant), dtype)


class _Equation(NamedTuple):
    """Letters of the operands, and of the result, in which sizes of shared letters agree."""

    operands: tuple[str, ...]
    result: str


def product(call: Call) -> Operation:
    """Matmul, einsum, tensordot and their kin, by what is a tensor and what a constant."""
    equation = _equation(call)
    floating = all(node.floating for node in call.inputs)
    if equation is None or not floating or not _keeps_samples(call, equation):
        return Opaque.from_call(call)
    label, source, data = type(call.operation).__name__, call.operation, call.data
    operands, result = equation
    tensors = [place for place, leaf in enumerate(data) if isinstance(leaf, Slot)]
    if len(operands) == 1:
        # Elements move, or are summed.
        kind = Rearrangement if set(operands[0]) == set(result) else AveragePooling
        return kind.from_call(call)
    if len(operands) > 2 or any(len(set(letters)) < len(letters) for letters in operands):
        return Opaque.from_call(call)
    if len(tensors) == 2:
        return TensorProduct(label, f"{','.join(operands)}->{result}", source)
    (place,) = tensors
    letters = f"{operands[place]},{operands[1 - place]}->{result}"
    return ConstantProduct(label, letters, data[1 - place], source)


def mixes_samples(call: Call) -> bool:
    """Tells whether a product goes across samples."""
    equation = _equation(call)
    return equation is not None and not _keeps_samples(call, equation)


def _keeps_samples(call: Call, equation: _Equation) -> bool:
    """Tells whether the first axis of all tensors is that of the result, and no other axis is."""
    samples = equation.result[:1]
    if not samples or samples in equation.result[1:]:
        return False
    for letters, leaf in zip(equation.operands, call.data, strict=True):
        if isinstance(leaf, Slot) != (letters[:1] == samples) or samples in letters[1:]:
            return False
    return True


def _equation(call: Call) -> _Equation | None:
    """Returns what a call computes; None where that cannot be written so."""
    operation, shapes = call.operation, [_shape(call, leaf) for leaf in call.data]
    if not all(shapes):
        return None
    ranks = [len(shape) for shape in shapes]
    kind = type(operation).__name__
    if kind == "Einsum":
        letters = _written(operation.subscripts, ranks)
    elif kind == "Matmul":
        letters = _of_matmul(*ranks)
    elif isinstance(operation, keras.layers.Dot):
        letters = None if operation.normalize else _of_dot(operation.axes, *ranks)
    else:
        axes: Any = {"Dot": ([-1], [max(-2, -ranks[-1])]), "Inner": ([-1], [-1])}.get(kind)
        letters = _of_tensordot(axes or operation.axes, *ranks)
    return None if letters is None else _told_apart(letters, shapes)


def _shape(call: Call, leaf: Any) -> tuple:
    """Returns the shape of an operand; it is empty where there are no axes."""
    return tuple(call.inputs[leaf.index].shape if isinstance(leaf, Slot) else np.shape(leaf))


def _fresh(used: str) -> str:
    """Returns a letter that is not used."""
    return next(letter for letter in _LETTERS if letter not in used)


def _told_apart(equation: _Equation, shapes: Sequence[tuple]) -> _Equation:
    """Gives axes of length one that broadcast against longer ones letters of their own."""
    longer = {
        letter
        for letters, shape in zip(equation.operands, shapes, strict=True)
        for letter, size in zip(letters, shape, strict=True)
        if size != 1
    }
    used, operands = "".join(equation.operands) + equation.result, []
    for letters, shape in zip(equation.operands, shapes, strict=True):
        own = ""
        for letter, size in zip(letters, shape, strict=True):
            if size == 1 and letter in longer:
                letter = _fresh(used)
                used += letter
            own += letter
        operands.append(own)
    return _Equation(tuple(operands), equation.result)


def _of_matmul(first: int, second: int) -> _Equation:
    """Rows times columns; axes before them broadcast against each other from the right."""
    leading = _LETTERS[26 : 24 + max(first, second, 2)]

    def of(rank: int, letters: str) -> str:
        return leading[len(leading) + 2 - rank :] + letters if rank > 1 else "j"

    rows, columns = "i" * (first > 1), "k" * (second > 1)
    return _Equation((of(first, "ij"), of(second, "jk")), leading + rows + columns)


def _of_tensordot(axes: Any, first: int, second: int) -> _Equation:
    """Sums over pairs of axes; all others remain, those of the first tensor before the others."""
    if isinstance(axes, int):
        axes = range(first - axes, first), range(axes)
    pairs = [[a] if isinstance(a, int) else list(a) for a in axes]
    of_first, of_second = list(_LETTERS[:first]), list(_LETTERS[first : first + second])
    for here, there in zip(*pairs, strict=True):
        of_second[there] = of_first[here]
    summed = set(of_first) & set(of_second)
    result = [letter for letter in of_first + of_second if letter not in summed]
    return _Equation(("".join(of_first), "".join(of_second)), "".join(result))


def _of_dot(axes: Any, first: int, second: int) -> _Equation:
    """The layer Dot: as tensordot, sample by sample; two vectors give one number in an axis."""
    here, there = (axes, axes) if isinstance(axes, int) else axes
    equation = _of_tensordot(([0, here], [0, there]), first, second)
    (of_first, of_second), result = equation
    ending = _fresh(of_first + of_second) if not result else ""
    return _Equation((of_first, of_second), of_first[0] + result + ending)


def _written(subscripts: str, ranks: Sequence[int]) -> _Equation | None:
    """Returns the letters of an equation, also for "..." and without a result."""
    left, arrow, result = subscripts.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != len(ranks):
        return None
    # Of "...", the axes are counted from the right.
    counts = [rank - len(o.replace(".", "")) for o, rank in zip(operands, ranks, strict=True)]
    dotted = [count if "..." in o else 0 for o, count in zip(operands, counts, strict=True)]
    unused = [letter for letter in _LETTERS if letter not in subscripts]
    dots = "".join(unused[: max(dotted)])
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        result = "".join(letter for letter in sorted(letters) if letters.count(letter) == 1)
    full = [
        operand.replace("...", dots[len(dots) - count :])
        for operand, count in zip(operands, dotted, strict=True)
    ]
    return _Equation(tuple(full), result.replace("...", dots))
