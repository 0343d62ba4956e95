"""Which weights `parameter_randomization` makes random one after another: the steps, by layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfexplain.errors import nearest

if TYPE_CHECKING:
    from tfexplain.audits.case import Case
    from tfexplain.audits.random_weights import RandomWeights
    from tfexplain.graph import Call

MODES = ("cascading", "independent")


class Step(NamedTuple):
    """One step: its name, and which of the model's weights are random in it."""

    name: str
    places: frozenset[int]


def randomized_layers(case: Case, count: int | None) -> list[str]:
    """Returns names of layers with weights, from the last to the first, evenly chosen.

    Args:
        case: What is audited.
        count: How many at most, with the last and the first of them; None: all.
    """
    random = drawable(case)
    calls = explained_calls(case)
    last = {call.operation: call.name for call in calls if random.places(call.operation)}
    names = list(last.values())[::-1]
    if count is None or count >= len(names):
        return names
    places = np.unique(np.linspace(0, len(names) - 1, count).round().astype(int))
    return [names[place] for place in places]


def drawable(case: Case) -> RandomWeights:
    """Fresh draws from the initializers; where one is unknown, the entries in random order."""
    from tfexplain.audits.random_weights import RandomWeights

    random = RandomWeights(case.model, "initializer", "randomized", case.seed)
    try:
        random.check(range(len(case.model.weights)))
    except ValueError:
        random = RandomWeights(case.model, "permutation", "randomized", case.seed)
    return random


def explained_calls(case: Case) -> list[Call]:
    """Returns the calls that the explained outputs depend on, in the order in which they run."""
    from tfexplain.analyzers.reversed import explained_output
    from tfexplain.graph import trace

    graph = trace(case.model)
    outputs = [explained_output(graph, analyzer.output) for analyzer in case.analyzers.values()]
    return list(graph.upstream(outputs).calls)


def randomization_steps(
    case: Case, layers: str | Sequence[str] | None, mode: str, random: RandomWeights
) -> list[Step]:
    """Returns the steps, from the last layer to the first.

    Args:
        case: What is audited.
        layers: See `parameter_randomization`.
        mode: One of `MODES`.
        random: Which weights there are to randomize.

    Raises:
        ValueError: For unknown or repeated names, or a step that would randomize nothing.
    """
    calls = explained_calls(case)
    own = [random.places(call.operation) for call in calls]
    starts: dict[str, list[int]] = {}
    for index, call in enumerate(calls):
        starts.setdefault(call.name, []).append(index)
        parts = call.name.split("/")
        for depth in range(1, len(parts)):  # the nested models around it
            starts.setdefault("/".join(parts[:depth]), []).append(index)
    if layers is None:
        # Each layer at its last use, so that each step adds one layer.
        last = {call.operation: index for index, call in enumerate(calls) if own[index]}
        names = [calls[index].name for index in last.values()]
    else:
        names = [layers] if isinstance(layers, str) else list(layers)
        _check_names(names, starts)
    if not names:
        raise ValueError(
            "There is no layer to randomize: "
            + ("the model has no weights." if layers is None else "layers is empty.")
        )

    def places(name: str) -> frozenset[int]:
        chosen = starts[name] if mode == "independent" else range(starts[name][0], len(calls))
        return frozenset().union(*(own[index] for index in chosen))

    names.sort(key=lambda name: -starts[name][0])
    steps = [Step(name, places(name)) for name in names]
    if empty := [step.name for step in steps if not step.places]:
        where = "in" if mode == "independent" else "at or behind"
        raise ValueError(
            f"There are no weights to randomize {where} {', '.join(empty)}. Leave them out of "
            "layers."
        )
    return steps


def _check_names(names: Sequence[Any], known: Mapping[str, Any]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        hints = "".join(nearest(str(name), list(known)) for name in unknown[:3])
        raise ValueError(
            f"layers names {', '.join(map(repr, unknown))}, which the explained output does not "
            f"depend on or which are no layers.{hints} Known: {', '.join(list(known)[:40])}"
            f"{' ...' if len(known) > 40 else ''}."
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"layers names {', '.join(repeated)} more than once.")
