"""How values of a traced call are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from tfexplain.opening.steps import Value
from tfexplain.operations import Operation


@dataclass(frozen=True, eq=False)
class Made:
    """How values are made: an operation, what it reads and what it makes.

    Attributes:
        operation: A canonical operation, or the call of a Keras layer.
        inputs: Values to which relevance goes.
        outputs: What it makes.
        operands: What it reads beside them.
        kind: What the name of its call says.
    """

    operation: Operation
    inputs: list[Value]
    outputs: list[Value]
    operands: list[Value] = field(default_factory=list)
    kind: str = ""
