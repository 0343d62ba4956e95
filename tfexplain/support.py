"""Which method does what at which operation, read off the code: `python -m tfexplain.support`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tfexplain import tables
from tfexplain.analyzers.deep_lift import difference_rows
from tfexplain.analyzers.gradients import Deconvnet, GuidedBackprop, RectGradAnalyzer
from tfexplain.analyzers.patterns import pattern_rows
from tfexplain.composites import (
    ADDITIVE,
    ANY,
    NonNegativeInput,
    relevance_rows,
    routing_rows,
)
from tfexplain.layer_types import IDENTITY, OPERATIONS
from tfexplain.operations import DenseSum, Gate, Normalization, Opaque, Operation, Scan
from tfexplain.rules import Gradient, Rule, WSquare, ZPlus
from tfexplain.rules.gradients import RectifierRule


class _Method(Rule, abstract=True):
    """Stands for the rule that gives a method its name."""

    handled = ADDITIVE

    def __repr__(self) -> str:
        return "the method's rule"


def _families() -> dict[str, tuple[tuple[Any, Rule], ...]]:
    """Returns the rows of one member of each family."""
    method = _Method()
    rectifiers = " / ".join(cls.name for cls in (GuidedBackprop, Deconvnet, RectGradAnalyzer))
    return {
        "gradient family": ((ANY, Gradient()),),
        rectifiers: ((ANY, _AtRectifiers()), (ANY, Gradient())),
        "LRP, excitation BP": relevance_rows(method, method),
        "Deep Taylor": (
            (NonNegativeInput(ADDITIVE), ZPlus()),
            (ADDITIVE, WSquare()),
            *routing_rows(),
        ),
        "DeepLIFT": difference_rows(),
        "PatternNet, PatternAttribution": pattern_rows(),
    }


class _AtRectifiers(RectifierRule, abstract=True):
    def __repr__(self) -> str:
        return "own rule at rectifiers, else gradient"


def policy(kind: type[Operation], rows: Iterable[tuple[Any, Rule]]) -> str:
    """Returns what the rows do with a kind of operation, in a few words."""
    rows = list(rows)
    if issubclass(kind, Scan):
        parts = [next((r for s, r in rows if _fits(part, s, r)), None) for part in (DenseSum, Gate)]
        linear, gate = (None if rule is None else rule.inside_scan() for rule in parts)
        if linear is None:
            return "refused"
        return "without gates" if gate is None else "step by step"
    texts = []
    for selector, rule in rows:
        if _fits(kind, selector, rule):
            condition = " if x >= 0, else " if isinstance(selector, NonNegativeInput) else ""
            texts.append(repr(rule).removesuffix("()") + condition)
            if not condition:
                return "".join(texts)
    return "refused"


def _fits(kind: type[Operation], selector: Any, rule: Rule) -> bool:
    """Tells whether a row of families concerns a kind of operation."""
    types = selector.types if isinstance(selector, NonNegativeInput) else selector
    concerned = isinstance(types, tuple) and issubclass(kind, types)
    return concerned and issubclass(kind, rule.handled)


def table() -> list[tuple[str, ...]]:
    """Returns the rows (Keras classes, canonical operation, one policy per family)."""
    families = _families()
    kinds: dict[type[Operation] | None, list[str]] = {}
    for cls, entry in OPERATIONS.items():
        if cls.__module__.startswith("tfexplain."):
            # What tracing records by itself.
            continue
        module = "ops." if "ops" in cls.__module__.split(".") else ""
        kinds.setdefault(entry.kind, []).append(module + cls.__name__)
    kinds.pop(Opaque)
    # These have no row of their own: they are recognised in what they compute.
    kinds[Normalization] = [
        "LayerNormalization, GroupNormalization, RMSNormalization, UnitNormalization"
    ]
    kinds[Opaque] = ["what cannot be opened"]
    rows = [("Keras layers and operations", "treated as", *families)]
    for kind, names in kinds.items():
        listed = ", ".join(names)
        if kind is IDENTITY:
            rows.append((listed, "identity", *["left out"] * len(families)))
            continue
        cells = [policy(kind, composite) for composite in families.values()]
        rows.append((listed, kind.__name__, *cells))
    return rows


def markdown() -> str:
    """Returns the table as a Markdown page."""
    head, *rows = table()
    lines = [
        "# Operations against analyzer families",
        "",
        "Made by `python -m tfexplain.support`; a test compares it with the code.",
        "",
        tables.markdown(head, rows),
        "",
        "* Fused activations of layers count as activations of their own. "
        "Rectifiers are ReLU with every option, ReLU6, LeakyReLU and PReLU.",
        "* `Gradient` at a `Reshaping`, `Rearrangement`, `Concatenation` or `Lookup` sends "
        "relevance back the way the elements came; a token gets the sum over its vector.",
        "* A recurrent layer is a `Scan`: a method has its rules for the operations of one step, "
        "which `describe` lists, and goes back through time; gradients are those of the whole. "
        "Where gates have no rule, as in excitation backpropagation, LSTM and GRU are refused. "
        "RevealCancel is Rescale inside of cells; RectGrad, patterns and DeepLIFT's ablation "
        "refuse what they would have to change there.",
        "* Batch normalisation is `Affine` only where it cannot be folded into a linear layer.",
        "* Every other layer or operation is opened: `Lambda`, layers and functions of your own, "
        "attention and subclassed models are the operations of TensorFlow that they run, which are "
        "treated as above and have rows of their own in `describe`. What holds a loop or a branch "
        "of its own, and operations without a rule, such as sorting, are not opened; "
        "what works across samples or draws random numbers is refused by every method.",
        "* A subclass that overrides `call` is opened too. A layer of one tensor may "
        'declare `relevance_policy = "pass"` instead.',
        "* Refusals name every call that has no rule; rows of a composite give it one.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
