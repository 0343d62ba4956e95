"""What picks the calls that a row of a composite concerns: families, names, places."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from tfexplain.graph import Call, Graph
from tfexplain.operations import (
    Activation,
    Additive,
    Affine,
    AveragePooling,
    CellSum,
    Condition,
    DenseLinear,
    DenseSum,
    Diagonal,
    EinsumLinear,
    Gate,
    Linear,
    LogSumExp,
    Lookup,
    Movement,
    Normalization,
    Operation,
    Product,
    Quotient,
    Scaling,
    Selection,
    Sum,
    TensorProduct,
)

# Families of canonical operations, for rows by type. Whoever subclasses one joins its rows.
ANY = (Operation,)
ADDITIVE = (Additive,)
LINEAR = (Linear,)
DENSE = (DenseLinear, EinsumLinear, DenseSum)
BATCH_NORM = (Affine,)
ADDITION = (Sum,)
PRODUCT = (Product, TensorProduct, Quotient)
LOG_SUM_EXP = (LogSumExp,)
GATE = (Gate,)
CELL_SUM = (CellSum,)
AVERAGE_POOLING = (AveragePooling,)
NORMALIZATION = (Normalization,)
MAX_POOLING = (Selection,)  # also the largest or smallest of tensors
ACTIVATION = (Activation,)
SCALING = (Scaling,)
DIAGONAL = (Diagonal,)
STRUCTURE = (Movement, Lookup, Condition)


def _operation_types(base: type[Operation] = Operation) -> dict[str, type]:
    """Maps the names of all canonical operations to their classes."""
    types: dict[str, type] = {base.__name__: base}
    for cls in base.__subclasses__():
        types.update(_operation_types(cls))
    return types


@dataclass(frozen=True)
class First:
    """Selects the first linear call on each path from an input.

    It is looked for through padding, reshaping, joining, Rescaling, Normalization and batch
    normalisation that could not be folded.
    """


@dataclass(frozen=True)
class Last:
    """Selects the last linear call on each path to the explained output."""


@dataclass(frozen=True)
class NonNegativeInput:
    """Selects calls of some types all of whose inputs are >= 0 for certain."""

    types: tuple[type, ...]


@dataclass(frozen=True)
class After:
    """Selects calls behind a linear layer of some types.

    The layer is looked for through batch normalisation, reshaping, scaling and poolings.
    """

    types: tuple[type, ...]


@dataclass(frozen=True)
class UpTo:
    """Selects linear calls number 0 to `index` from the input (innvestigate's `until`)."""

    index: int


# What picks calls: types (of Keras or canonical operations), a name pattern, a place, a function.
Selector = tuple[type, ...] | type | str | First | Last | NonNegativeInput | After | UpTo | Callable


def ensure_selector(selector: Any) -> Any:
    """Returns a selector in its one form.

    Raises:
        TypeError: If it is none.
    """
    if isinstance(selector, type):
        selector = (selector,)
    if isinstance(selector, tuple | list):
        selector = tuple(selector)
        places = (First, Last, NonNegativeInput, After, UpTo)
        if not all(isinstance(item, type) and item not in places for item in selector):
            raise TypeError(
                f"A tuple selector holds types of layers, received {selector!r}; places are "
                "values, as First()."
            )
        return selector
    place = isinstance(selector, First | Last | NonNegativeInput | After | UpTo)
    if place or isinstance(selector, str) or callable(selector):
        return selector
    raise TypeError(
        "A selector is a tuple of types, a name pattern, First(), Last() or a function of a call; "
        f"received {selector!r}."
    )


def selector_config(selector: Any) -> Any:
    """Returns a selector as JSON-able data.

    Raises:
        ValueError: If a function is not registered with Keras.
    """
    if isinstance(selector, str):
        return {"pattern": selector}
    if isinstance(selector, First | Last):
        return {"place": type(selector).__name__}
    if isinstance(selector, NonNegativeInput):
        return {"nonnegative": [_type_name(cls) for cls in selector.types]}
    if isinstance(selector, After):
        return {"after": [_type_name(cls) for cls in selector.types]}
    if isinstance(selector, UpTo):
        return {"up_to": selector.index}
    if isinstance(selector, tuple):
        return {"types": [_type_name(cls) for cls in selector]}
    name = keras.saving.get_registered_name(selector)
    if keras.saving.get_registered_object(name) is not selector:
        raise ValueError(
            f"The selector {getattr(selector, '__name__', selector)!r} is not registered. Decorate "
            "it with @keras.saving.register_keras_serializable() so that it can be saved."
        )
    return {"function": name}


def selector_from(config: dict[str, Any]) -> Any:
    """Returns the selector that `selector_config` described.

    Raises:
        ValueError: If a function or class is not known in this process.
    """
    ((kind, value),) = config.items()
    if kind == "pattern":
        return value
    if kind == "place":
        return {"First": First, "Last": Last}[value]()
    if kind == "nonnegative":
        return NonNegativeInput(tuple(_type_named(name) for name in value))
    if kind == "after":
        return After(tuple(_type_named(name) for name in value))
    if kind == "up_to":
        return UpTo(value)
    if kind == "types":
        return tuple(_type_named(name) for name in value)
    function = keras.saving.get_registered_object(value)
    if function is None:
        raise ValueError(f"The selector function {value!r} is not registered in this process.")
    return function


def _type_name(cls: type) -> str:
    if _operation_types().get(cls.__name__) is cls:
        return cls.__name__
    # A class that is not registered has to be in `custom_objects` when it is loaded.
    return "keras:" + keras.saving.get_registered_name(cls)


def _type_named(name: str) -> type:
    if not name.startswith("keras:"):
        return _operation_types()[name]
    name = name.removeprefix("keras:")
    cls = getattr(keras.layers, name, None) or keras.saving.get_registered_object(name)
    if cls is None:
        raise ValueError(f"The layer class {name!r} is not known; register it with Keras.")
    return cls


class Places:
    """Finds out where a call lies in its graph."""

    def __init__(self, graph: Graph) -> None:
        self.first = _first_calls(graph)
        self.last = _last_calls(graph)
        linear = [call for call in graph.calls if isinstance(call.operation, Linear)]
        self.number = {call: number for number, call in enumerate(linear)}
        self.producer = graph.producer()

    def matches(self, selector: Any, call: Call) -> bool:
        """Tells whether a selector picks a call."""
        if isinstance(selector, str):
            return fnmatch.fnmatchcase(call.name, selector)
        if isinstance(selector, First):
            return call in self.first
        if isinstance(selector, Last):
            return call in self.last
        if isinstance(selector, After):
            return self._follows(call, selector.types)
        if isinstance(selector, UpTo):
            return self.number.get(call, selector.index + 1) <= selector.index
        if isinstance(selector, NonNegativeInput):
            return isinstance(call.operation, selector.types) and all(call.nonnegative)
        if isinstance(selector, tuple):
            return isinstance(call.operation, selector) or isinstance(
                call.operation.source, selector
            )
        return bool(selector(call))

    def _follows(self, call: Call, types: tuple[type, ...]) -> bool:
        before = self.producer.get(call.inputs[0])
        while before is not None and before.operation.attached:
            before = self.producer.get(before.inputs[0])
        return before is not None and isinstance(before.operation, types)


def _first_calls(graph: Graph) -> set[Call]:
    first, waiting, seen = set(), list(graph.inputs), set()
    consumers = graph.consumers()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for call in consumers[node]:
            if isinstance(call.operation, Linear):
                first.add(call)
            elif call.operation.transparent:
                waiting.extend(call.outputs)
    return first


def _last_calls(graph: Graph) -> set[Call]:
    last, waiting, seen = set(), list(graph.outputs), set()
    producer = graph.producer()
    while waiting:
        node = waiting.pop()
        call = producer.get(node)
        if call is None or call in seen:
            continue
        seen.add(call)
        if isinstance(call.operation, Linear):
            last.add(call)
        else:
            waiting.extend(call.inputs)
    return last
