"""Where relevance vanishes for certain, so that no pass is spent on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tfexplain.graph import Call, Graph, Node
from tfexplain.operations import Movement
from tfexplain.rules import AverageOfWindow, ContributionRule, Gradient, Pass, Rule, Winner


def vanishing_below_zero(graph: Graph, rules: Mapping[Call, Rule], start: Node) -> set[Call]:
    """Returns the calls at whose negative outputs no relevance arrives, whatever is explained.

    That is so in front of a ReLU: its output is 0 there, and rules that share in proportion to
    contributions give nothing to an input that is 0.

    Args:
        graph: A canonical graph up to the start.
        rules: Rule of each call.
        start: The tensor that receives the output relevance, which may be anything.
    """
    readers = graph.readers()
    at_zero: set[Node] = set()
    below_zero: set[Node] = set()
    vanishing = set()

    def everywhere(node: Node, test: Callable[[Call, Rule], bool]) -> bool:
        return node is not start and all(test(c, rules[c]) for c in readers[node])

    def moved(call: Call, rule: Rule) -> bool:
        return isinstance(rule, Gradient) and isinstance(call.operation, Movement)

    def rectified(call: Call, rule: Rule) -> bool:
        return isinstance(rule, Pass) and call.operation.rectifies

    def nothing_at_zero(call: Call, rule: Rule) -> bool:
        if isinstance(rule, ContributionRule | AverageOfWindow):
            return True
        passed = isinstance(rule, Winner) or moved(call, rule) or rectified(call, rule)
        return passed and at_zero.issuperset(call.outputs)

    def nothing_below_zero(call: Call, rule: Rule) -> bool:
        if rectified(call, rule):
            return at_zero.issuperset(call.outputs)
        passed = isinstance(rule, Winner) or moved(call, rule)
        return passed and below_zero.issuperset(call.outputs)

    for call in reversed(graph.calls):
        for node in call.outputs:
            if everywhere(node, nothing_at_zero):
                at_zero.add(node)
            if everywhere(node, nothing_below_zero):
                below_zero.add(node)
        if below_zero.issuperset(call.outputs):
            vanishing.add(call)
    return vanishing
