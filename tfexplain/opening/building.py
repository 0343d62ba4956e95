"""Makes canonical calls of the steps of a traced call.

From the outputs backward it is decided what each value is made by, and so which values are needed:
what is recognised as one operation skips those inside. Then the calls are made in their order.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Sequence

from tfexplain.errors import UnsupportedLayerError
from tfexplain.opening import table
from tfexplain.opening.parts import Part
from tfexplain.opening.plans import Made
from tfexplain.opening.steps import Value
from tfexplain.operations import Bystander, Call, Node
from tfexplain.operations.opened import Recoding

# Makes canonical calls of a call of Keras.
Canonical = Callable[[Call], list[Call]]


class Builder:
    """Makes the calls of one part.

    Args:
        part: The steps.
        call: The call that is opened.
        canonical: Makes canonical calls of those of Keras layers inside.
    """

    def __init__(self, part: Part, call: Call, canonical: Canonical) -> None:
        self.part, self.call, self.canonical = part, call, canonical
        self.calls: list[Call] = []
        self.nodes: dict[Value, Node] = {}
        self.uses: collections.Counter = collections.Counter()

    def build(self) -> list[Call]:
        """Returns the calls, in their order."""
        part, call = self.part, self.call
        for value in part.outputs:
            if part.is_signal(value) and value.shape and not value.leads:
                raise UnsupportedLayerError("its result has no batch axis in front")
        self.nodes.update(zip(part.traced.inputs, call.reads, strict=True))
        made = self._planned()
        for value, node in zip(part.outputs, call.outputs, strict=True):
            if part.is_signal(value):
                self.nodes.setdefault(value, node)
        for one in made:
            self._emit(one)
        for value, node in zip(part.outputs, call.outputs, strict=True):
            if self.nodes.get(value) is not node:
                self._hand_on(value, node)
        return self.calls

    def _planned(self) -> list[Made]:
        """Returns how all needed values are made, in their order."""
        part = self.part
        planner = table.Planner(part)
        needed = {value for value in part.outputs if part.is_signal(value)}
        plans: list[list[Made]] = []

        def need(values: Sequence[Value]) -> None:
            for value in values:
                needed.update([value] if part.is_signal(value) else part.sources(value))

        need([value for value in part.outputs if not part.is_signal(value)])
        for step in reversed(part.traced.steps):
            wanted = [value for value in step.outputs if value in needed and part.is_signal(value)]
            if not wanted or step.kind == "Input":
                continue
            plan = planner.plan(step)
            plans.append(plan)
            inside = {value for one in plan for value in one.outputs}
            for one in plan:
                need([value for value in one.inputs if value not in inside])
                need(one.operands)
        return [one for plan in reversed(plans) for one in plan]

    def _node(self, value: Value) -> Node:
        """Returns the tensor of a value, which is made now if it is none yet."""
        if value not in self.nodes:
            node = Node(value.shape or (), value.dtype.name, internal=not value.leads)
            self.nodes[value] = node
        return self.nodes[value]

    def _operand(self, value: Value) -> Node:
        """Returns the tensor of a bystander, and makes the call that computes it."""
        if value not in self.nodes:
            self._beside(value, self._node(value))
        return self.nodes[value]

    def _beside(self, value: Value, node: Node) -> None:
        """Makes the call that computes a bystander."""
        sources = self.part.sources(value)
        operation = Bystander(value.step.kind, self.part.function([value], sources))
        operation.follows_signal = self.part.follows_signal([value])
        operation.prepare = self._prepare  # type: ignore[method-assign]  # of one operation
        operands = tuple(self._node(source) for source in sources)
        name = self._name(value.step.path, value.step.kind)
        self.calls.append(Call(name, operation, (), (node,), operands=operands))

    def _prepare(self, dtype: str) -> None:
        self.part.dtype = dtype

    def _emit(self, one: Made) -> None:
        step = one.outputs[0].step
        if self.part.follows_signal(one.operands):
            one.operation.follows_signal = True
        name = self._name(step.path, one.kind or step.kind)
        inputs = tuple(
            self._node(value) if self.part.is_signal(value) else self._operand(value)
            for value in one.inputs
        )
        operands = tuple(self._operand(value) for value in one.operands)
        outputs = tuple(self._node(value) for value in one.outputs)
        if step.kind == "Keras":
            layer = step.held
            arguments = layer.arguments
            self.calls += self.canonical(Call(name, layer.layer, inputs, outputs, arguments))
            return
        self.calls.append(Call(name, one.operation, inputs, outputs, operands=operands))

    def _hand_on(self, value: Value, node: Node) -> None:
        """Makes an output that is an input too, or another output, or no relevance goes to."""
        if self.part.is_signal(value):
            operation, inputs = table.identity(), (self.nodes[value],)
            self.calls.append(Call(self._name("", "identity"), operation, inputs, (node,)))
            return
        token = self.part.token_of(value) if value.dtype.is_integer else None
        if token is None:
            self._beside(value, node)
            return
        # Tokens that are clipped or shifted first are tokens.
        operation = Recoding(value.step.kind, self.part.function([value], [token]))
        name = self._name(value.step.path, value.step.kind)
        self.calls.append(Call(name, operation, (self.nodes[token],), (node,)))

    def _name(self, path: str, kind: str) -> str:
        """Returns the name of a call: the path of the layer, the operation, `@n` in their order."""
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
        name = "/".join(filter(None, [self.call.name, path, kind if kind != "keras" else ""]))
        self.uses[name] += 1
        use = self.uses[name] - 1
        return f"{name}@{use}" if use else name
