"""The letters of products of TensorFlow: matrix products, with batches, and Einstein sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfexplain.opening.steps import Step

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def attributes_of(step: Step) -> Callable[..., Any]:
    """Returns what gives the value of an attribute, by its name."""
    return step.attributes.get


def equation_of(step: Step) -> tuple[str, str, str] | None:
    """Returns the letters of a product's factors and result; None where it has none."""
    if len(step.inputs) != 2:
        return None
    first, second = (value.shape for value in step.inputs)
    result = step.outputs[0].shape
    if first is None or second is None or result is None:
        return None
    get = attributes_of(step)
    if step.kind == "Einsum":
        return _spelled(get("equation").decode(), first, second, result)
    flags = ("transpose_a", "transpose_b") if step.kind == "MatMul" else ("adj_x", "adj_y")
    inner, rows, columns = "xyz"
    left = [rows, inner] if not get(flags[0]) else [inner, rows]
    right = [inner, columns] if not get(flags[1]) else [columns, inner]
    batch = LETTERS[: len(result) - 2]
    letters, spare = [], iter(LETTERS[26:])
    for shape, last in ((first, left), (second, right)):
        own = []
        for axis, letter in enumerate(batch[len(batch) - len(shape) + 2 :]):
            place = axis + len(batch) - len(shape) + 2
            one = shape[axis] == 1 and result[place] != 1
            own.append(next(spare) if one else letter)
        letters.append("".join([*own, *last]))
    return letters[0], letters[1], batch + rows + columns


def _spelled(
    equation: str, first: tuple, second: tuple, result: tuple
) -> tuple[str, str, str] | None:
    """Returns an equation with letters in place of dots."""
    given, _, out = equation.replace(" ", "").partition("->")
    left, right = given.split(",")
    spare = [letter for letter in LETTERS if letter not in equation]

    def full(letters: str, shape: tuple) -> str:
        if "..." not in letters:
            return letters
        count = len(shape) - len(letters) + 3
        return letters.replace("...", "".join(spare[: len(result)][len(result) - count :]))

    left, right, out = full(left, first), full(right, second), full(out, result)
    whole = all(len(set(part)) == len(part) for part in (left, right, out))
    sizes: dict[str, Any] = {}
    for letters, shape in ((left, first), (right, second)):
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size and 1 in (size, sizes[letter]):
                return None
    return (left, right, out) if whole else None
