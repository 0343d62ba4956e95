"""Composites say which rule each call of a graph gets: ordered rows, the first match wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tfexplain import tables
from tfexplain.checks import choice
from tfexplain.compilation import PLAIN, Execution
from tfexplain.errors import UnsupportedLayerError
from tfexplain.graph import Call, Graph, Node
from tfexplain.operations import Bystander, Scan
from tfexplain.rules import (
    AlphaBeta,
    AverageOfWindow,
    DifferenceRule,
    DifferenceThroughTime,
    Epsilon,
    EqualShares,
    Flat,
    Gamma,
    Gradient,
    HeldDeviation,
    NoRelevance,
    Pass,
    Proportional,
    Rule,
    SignalTakesAll,
    ThroughTime,
    Winner,
    WSquare,
    ZBox,
    ZPlus,
    rule_from_config,
)
from tfexplain.selectors import (
    ACTIVATION,
    ADDITION,
    ADDITIVE,
    AVERAGE_POOLING,
    CELL_SUM,
    DENSE,
    GATE,
    LOG_SUM_EXP,
    MAX_POOLING,
    NORMALIZATION,
    PRODUCT,
    SCALING,
    STRUCTURE,
    First,
    Places,
    Selector,
    ensure_selector,
    selector_config,
    selector_from,
)

# Composites of users take these from here too.
from tfexplain.selectors import ANY as ANY
from tfexplain.selectors import BATCH_NORM as BATCH_NORM
from tfexplain.selectors import DIAGONAL as DIAGONAL
from tfexplain.selectors import LINEAR as LINEAR
from tfexplain.selectors import After as After
from tfexplain.selectors import Last as Last
from tfexplain.selectors import NonNegativeInput as NonNegativeInput
from tfexplain.selectors import UpTo as UpTo


@dataclass(frozen=True)
class Composite:
    """An ordered list of rows (selector, rule); the first row that matches a call wins.

    A selector is a tuple of types (Keras classes or the groups of this module), a name pattern
    such as "block1_*", `First()`, `Last()`, `NonNegativeInput(types)`, `UpTo(index)`, or a function
    of a `Call` that is registered with `keras.saving.register_keras_serializable`. A row only
    concerns calls that its rule can handle.

    Args:
        name: For tables and saved results.
        rows: Pairs of selector and rule.

    Example:
        >>> mine = epsilon_plus().prepend([("block1_*", Flat())], name="mine")
    """

    name: str
    rows: tuple[tuple[Selector, Rule], ...] = field(default=())

    def __post_init__(self) -> None:
        """Checks and normalises the rows.

        Raises:
            TypeError: If a row is no pair of selector and rule.
        """
        rows = []
        for row in self.rows:
            if not (isinstance(row, Sequence) and len(row) == 2 and isinstance(row[1], Rule)):
                raise TypeError(
                    f"A row of a composite is a pair (selector, rule), received {row!r}."
                )
            rows.append((ensure_selector(row[0]), row[1]))
        object.__setattr__(self, "rows", tuple(rows))

    def prepend(self, rows: Iterable[tuple[Selector, Rule]], name: str | None = None) -> Composite:
        """Returns a composite in which `rows` come first."""
        return Composite(name or self.name, (*rows, *self.rows))

    def to_config(self) -> dict[str, Any]:
        """Returns the composite as JSON-able data.

        Raises:
            ValueError: If a function is not registered with Keras.
        """
        rows = [[selector_config(selector), rule.to_config()] for selector, rule in self.rows]
        return {"name": self.name, "rows": rows}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Composite:
        """Returns the composite that `to_config` described."""
        rows = [(selector_from(row[0]), rule_from_config(row[1])) for row in config["rows"]]
        return cls(config["name"], tuple(rows))


# --- assigning rules to calls --------------------------------------------------------------------


class RuleAssignment:
    """Which rule each call of a graph has; prints as a table.

    Attributes:
        rows: Tuples (call, operation, rule) of text, in the order of the forward pass; the calls of
            one step follow a recurrent layer whose rule goes through it.
        rules: Call -> rule; text, where a method only runs forward.
        execution: How the functions run, which a line below the table says where it is not plain.
    """

    def __init__(
        self, graph: Graph, rules: Mapping[Call, Any], execution: Execution = PLAIN
    ) -> None:
        self.rules = rules
        self.execution = execution
        self.rows = [row for call in graph.calls for row in _rows_of(call, rules[call])]

    def __str__(self) -> str:
        """Returns the printable table."""
        head = ("call", "operation", "rule")
        line = tuple("-" * max(map(len, column)) for column in zip(head, *self.rows, strict=True))
        table = tables.columns([head, line, *self.rows])
        told = self.execution.describe()
        return f"{table}\n\n{told[0].upper()}{told[1:]}." if told else table

    __repr__ = __str__


def _rows_of(call: Call, rule: Any) -> Iterator[tuple[str, str, str]]:
    """Yields the row of a call, and those of the step that its rule goes through."""
    yield call.name, call.operation.label, str(rule)
    if isinstance(rule, ThroughTime | DifferenceThroughTime):
        rules = dict(rule.rules)
        for inner in call.operation.step.calls:
            yield f"{call.name}/{inner.name}", inner.operation.label, str(rules[inner.name])


def assign(
    graph: Graph, composite: Composite, method: str, first_required: bool = False
) -> RuleAssignment:
    """Gives every call of a canonical graph its rule.

    Args:
        graph: A canonical graph.
        composite: The rows.
        method: Name of the analyzer, for messages.
        first_required: Refuse a row for the first layer where there is none.

    Raises:
        UnsupportedLayerError: If no row covers a call; the message names all such calls.
        ValueError: If a name pattern of the composite, or a required first layer, concerns no call.
    """
    places = Places(graph)
    asked = first_required and any(isinstance(row[0], First) for row in composite.rows)
    if asked and not places.first:
        raise ValueError(
            f"{method} has a rule for the first layer, but no linear layer follows the input "
            "directly (through padding, reshaping or scaling). Leave out input_rule, or low and "
            "high, or name the layer in a row of a Composite."
        )
    rules: dict[Call, Rule] = {}
    rows = _Rows(composite, places)
    offenders = []
    for call in graph.calls:
        if isinstance(call.operation, Bystander):
            rules[call] = NoRelevance()
            continue
        if isinstance(call.operation, Scan):
            found, without = rows.of_scan(call)
            offenders += without
        else:
            found = rows.first(call)
            offenders += [call] if found is None else []
        if isinstance(found, DifferenceRule) and call.operation.follows_signal:
            # At the baseline its conditions or integers would be others.
            offenders.append(call)
        if found is not None:
            rules[call] = found
    if offenders:
        raise UnsupportedLayerError(_refusal(offenders, method))
    mixed = [
        f"{call.name}: {rule}"
        for call, rule in rules.items()
        if rule.compares_elements and any(node.internal for node in (*call.inputs, *call.outputs))
    ]
    if mixed:
        raise UnsupportedLayerError(
            f"{method} compares all elements of a sample, which is not possible where layers merge "
            f"the samples with other axes inside: {'; '.join(mixed)}. Give these calls another "
            "rule by a row of a Composite, or use another method."
        )
    for pattern, used in rows.named.items():
        if not used:
            raise ValueError(
                f"The row {pattern!r} of composite {composite.name!r} matches no call that its "
                f"rule can handle. Calls: {', '.join(call.name for call in graph.calls)}."
            )
    return RuleAssignment(graph, rules)


class _Rows:
    """The rows of a composite, asked for calls of a graph.

    Args:
        composite: The rows.
        places: Where the calls lie.

    Attributes:
        named: Name pattern -> whether it concerns a call that its rule can handle.
    """

    def __init__(self, composite: Composite, places: Places) -> None:
        self.composite, self.places = composite, places
        self.named: dict[str, bool] = {}

    def first(self, call: Call, named_only: bool = False) -> Rule | None:
        """Returns the rule of the first row that fits a call.

        Args:
            call: The call.
            named_only: Only rows that mean this call: by its name, its Keras class, or a function.
        """
        found = None
        for selector, rule in self.composite.rows:
            fits = self.places.matches(selector, call) and rule.handles(call.operation)
            if isinstance(selector, str):
                self.named[selector] = self.named.get(selector, False) or fits
            means = not named_only or _means(selector, call)
            if fits and means and found is None:
                found = rule
        return found

    def of_scan(self, call: Call) -> tuple[Rule | None, list[Call]]:
        """Returns the rule of a recurrent layer, and the calls of its step that have none.

        A row that means the layer gives it a rule as a whole; all others give rules to the calls
        of its step. Where these are gradients, the gradient of the whole is the same.
        """
        whole = self.first(call, named_only=True)
        if whole is not None:
            return whole, []
        rules: list[tuple[str, Rule]] = []
        without = []
        for inner in call.operation.signed_calls(call.nonnegative):
            placed = replace(inner, name=f"{call.name}/{inner.name}")
            rule = self.first(placed)
            rule = None if rule is None else rule.inside_scan()
            if rule is None:
                without.append(placed)
            else:
                rules.append((inner.name, rule))
        if without:
            return None, without
        if all(isinstance(rule, Gradient) for _, rule in rules):
            return Gradient(), []
        differences = any(isinstance(rule, DifferenceRule) for _, rule in rules)
        return (DifferenceThroughTime if differences else ThroughTime)(tuple(rules)), []


def _means(selector: Selector, call: Call) -> bool:
    """Tells whether a row that matches a call speaks of it, and not of a family of operations."""
    if isinstance(selector, tuple):
        return isinstance(call.operation.source, selector)
    return isinstance(selector, str) or callable(selector)


def _refusal(offenders: list[Call], method: str) -> str:
    lines = [f"{method} has no rule for {len(offenders)} call(s) of this model:"]
    for call in offenders:
        why = call.operation.refusal
        if call.operation.follows_signal:
            why = why or "it reads conditions or integers that are computed of the input"
        lines.append(f"  {call.name} ({call.operation.label}{': ' if why else ''}{why})")
    lines.append(
        "Relevance is not sent through operations without a rule. Use a gradient method, or give "
        "these calls a rule of your choice, for example the gradient: create_analyzer("
        '"lrp.composite", model, composite=tfexplain.composites.epsilon_plus().prepend([("'
        f'{offenders[0].name}", tfexplain.rules.Gradient())])). A custom layer of one tensor may '
        'declare relevance_policy = "pass".'
    )
    return "\n".join(lines)


# --- rows that composites share ------------------------------------------------------------------


def routing_rows(max_pool: str = "winner") -> tuple[tuple[Any, Rule], ...]:
    """Returns the rows of relevance methods for everything that is not affine.

    Args:
        max_pool: "winner" or "average".

    Raises:
        ValueError: For another value.
    """
    choice("max_pool", max_pool, ("winner", "average"))
    return (
        (AVERAGE_POOLING, Proportional()),
        (MAX_POOLING, Winner() if max_pool == "winner" else AverageOfWindow()),
        (ACTIVATION, Pass()),
        (SCALING, Pass()),
        (STRUCTURE, Gradient()),
        (PRODUCT, EqualShares()),
        (LOG_SUM_EXP, Gradient()),
    )


def relevance_rows(
    dense: Rule,
    convolution: Rule,
    *,
    first: Rule | None = None,
    add: str = "rule",
    max_pool: str = "winner",
    gates: bool = True,
) -> tuple[tuple[Any, Rule], ...]:
    """Returns the rows of a relevance method.

    Args:
        dense: Rule of Dense and EinsumDense.
        convolution: Rule of convolutions and all else that adds contributions up: batch
            normalisations that were not folded, and additions.
        first: Rule of the first linear call on each path from an input.
        add: "rule": additions follow the rule of convolutions; "proportional": x_i / sum.
        max_pool: "winner" or "average".
        gates: Whether there is a rule for the gates of LSTM and GRU.

    Raises:
        ValueError: For an unknown option.
    """
    choice("add", add, ("rule", "proportional"))
    merging = Proportional() if add == "proportional" else convolution
    rows: list[tuple[Any, Rule]] = [(First(), first)] if first is not None else []
    if gates:
        # What a cell keeps and what is new may have any sign: the sum shares in proportion.
        rows += [(GATE, SignalTakesAll())]
        rows += [(CELL_SUM, dense if isinstance(dense, Epsilon) else Proportional())]
    rows += [
        (DENSE, dense),
        (ADDITION, merging),
        (ADDITIVE, convolution),
        (NORMALIZATION, HeldDeviation()),
    ]
    return (*rows, *routing_rows(max_pool))


def ensure_input_rule(value: Any) -> Rule | None:
    """Returns the rule of the option `input_rule`.

    Args:
        value: None, "flat", "w_square", ("box", low, high) or a `Rule`.

    Raises:
        ValueError: For anything else.
    """
    if value is None or isinstance(value, Rule):
        return value
    if value == "flat":
        return Flat()
    if value == "w_square":
        return WSquare()
    if isinstance(value, tuple | list) and len(value) == 3 and value[0] == "box":
        return ZBox(value[1], value[2])
    raise ValueError(
        f"input_rule must be None, 'flat', 'w_square' or ('box', low, high), received {value!r}."
    )


# --- presets -------------------------------------------------------------------------------------

COMPOSITES: dict[str, Callable[..., Composite]] = {}


def register_composite(name: str) -> Callable[[Callable], Callable]:
    """Enters a preset under a name that the command line, docs and tests list."""

    def decorate(function: Callable[..., Composite]) -> Callable[..., Composite]:
        if name in COMPOSITES:
            raise ValueError(f"There is a composite {name!r} already; choose another name.")
        COMPOSITES[name] = function
        return function

    return decorate


@register_composite("epsilon_plus")
def epsilon_plus(*, epsilon: float = 1e-6, bias: str = "split", **rows: Any) -> Composite:
    """Epsilon for dense layers, z+ for convolutions ([montavon2019layer])."""
    return Composite("epsilon_plus", relevance_rows(Epsilon(epsilon, bias=bias), ZPlus(), **rows))


@register_composite("epsilon_plus_flat")
def epsilon_plus_flat(*, epsilon: float = 1e-6, bias: str = "split", **rows: Any) -> Composite:
    """As epsilon_plus, flat at the first layer ([lapuschkin2019unmasking])."""
    rows = {"first": Flat(), **rows}
    return replace(epsilon_plus(epsilon=epsilon, bias=bias, **rows), name="epsilon_plus_flat")


@register_composite("epsilon_gamma_box")
def epsilon_gamma_box(
    *,
    low: Any,
    high: Any,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    bias: str = "split",
    **rows: Any,
) -> Composite:
    """Epsilon for dense layers, gamma for convolutions, z^B first ([montavon2019layer])."""
    rows = {"first": ZBox(low, high), **rows}
    dense, convolution = Epsilon(epsilon, bias=bias), Gamma(gamma, bias=bias)
    return Composite("epsilon_gamma_box", relevance_rows(dense, convolution, **rows))


@register_composite("epsilon_alpha2_beta1")
def epsilon_alpha2_beta1(*, epsilon: float = 1e-6, bias: str = "split", **rows: Any) -> Composite:
    """Epsilon for dense layers, alpha 2 beta 1 for convolutions ([kohlbrenner2020towards])."""
    dense, convolution = Epsilon(epsilon, bias=bias), AlphaBeta(2, 1, bias=bias)
    return Composite("epsilon_alpha2_beta1", relevance_rows(dense, convolution, **rows))


@register_composite("epsilon_alpha2_beta1_flat")
def epsilon_alpha2_beta1_flat(
    *, epsilon: float = 1e-6, bias: str = "split", **rows: Any
) -> Composite:
    """As epsilon_alpha2_beta1, flat at the first layer."""
    rows = {"first": Flat(), **rows}
    composite = epsilon_alpha2_beta1(epsilon=epsilon, bias=bias, **rows)
    return replace(composite, name="epsilon_alpha2_beta1_flat")


@register_composite("cmp_alpha1_beta0")
def cmp_alpha1_beta0(*, epsilon: float = 1e-10, bias: str = "split", **rows: Any) -> Composite:
    """LRP-CMP with alpha 1 ([kohlbrenner2020towards]; [sixt2020when])."""
    dense, convolution = Epsilon(epsilon, bias=bias), AlphaBeta(1, 0, bias=bias)
    return Composite("cmp_alpha1_beta0", relevance_rows(dense, convolution, **rows))


@register_composite("cmp_alpha2_beta1")
def cmp_alpha2_beta1(*, epsilon: float = 1e-10, bias: str = "split", **rows: Any) -> Composite:
    """LRP-CMP with alpha 2 ([kohlbrenner2020towards]; [sixt2020when])."""
    dense, convolution = Epsilon(epsilon, bias=bias), AlphaBeta(2, 1, bias=bias)
    return Composite("cmp_alpha2_beta1", relevance_rows(dense, convolution, **rows))


@register_composite("excitation")
def excitation(**rows: Any) -> Composite:
    """z+ everywhere: excitation backpropagation ([zhang2018top])."""
    # Gates and the tanh of a cell make values < 0, which excitations are not.
    return Composite("excitation", relevance_rows(ZPlus(), ZPlus(), gates=False, **rows))


def bounded_path(graph: Graph, node: Node) -> tuple[Call, ...]:
    """Returns the transparent calls between the inputs and a tensor, for its bounds.

    Masks are left out: what they keep has the bounds that it had.
    """
    calls = graph.upstream([node]).calls
    return tuple(call for call in calls if not isinstance(call.operation, Bystander))
