"""Layer-wise relevance propagation, excitation backpropagation and Deep Taylor decomposition."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import keras

from tfexplain.analyzers.reversed import ReversedAnalyzer
from tfexplain.checks import integer
from tfexplain.composites import (
    ADDITION,
    ADDITIVE,
    AVERAGE_POOLING,
    BATCH_NORM,
    COMPOSITES,
    LINEAR,
    Composite,
    First,
    NonNegativeInput,
    UpTo,
    ensure_input_rule,
    relevance_rows,
    routing_rows,
)
from tfexplain.errors import nearest
from tfexplain.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)


class LRPAnalyzer(ReversedAnalyzer):
    """Base of LRP methods with one rule for all linear layers.

    Args:
        model: See `Analyzer`.
        input_rule: Rule of the first linear call on each path from an input: None, "flat",
            "w_square" or ("box", low, high) in units of the model's input.
        add: "rule": additions follow the method's rule; "proportional": x_i / sum.
        max_pool: "winner" or "average".
        **common: See `Analyzer`.
    """

    redistributes: ClassVar[bool] = True
    default_head: ClassVar[str] = "logit"
    # Whether it has a rule for the gates of recurrent cells.
    has_gates: ClassVar[bool] = True

    def __init__(
        self,
        model: keras.Model,
        *,
        input_rule: Any = None,
        add: str | None = None,
        max_pool: str = "winner",
        **common: Any,
    ) -> None:
        proportional = common.get("compat") is not None
        self._rows: dict[str, Any] = {
            "gates": self.has_gates,
            "first": ensure_input_rule(input_rule),
            "add": add if add is not None else ("proportional" if proportional else "rule"),
            "max_pool": max_pool,
        }
        super().__init__(model, **common)

    def composite(self) -> Composite:
        """One rule for dense layers, convolutions, normalisations and additions."""
        rule = self._rule()
        return Composite(self.name, relevance_rows(rule, rule, **self._rows))

    def _rule(self) -> Rule:
        raise NotImplementedError


class BiasedLRP(LRPAnalyzer):
    """Base of LRP methods whose rule knows the bias.

    Args:
        model: See `Analyzer`.
        bias: "split" (its positive part counts in the positive denominator, its negative part in
            the negative one), "ignore", or "full" (the whole bias in both).
        **common: See `LRPAnalyzer`.
    """

    def __init__(self, model: keras.Model, *, bias: str | None = None, **common: Any) -> None:
        # innvestigate has the whole bias in both denominators.
        default = "full" if common.get("compat") is not None else "split"
        self.bias = default if bias is None else bias
        super().__init__(model, **common)


class LRPZ(BiasedLRP):
    """LRP-z (LRP-0): in proportion to contributions; 0 where z = 0 ([bach2015pixel])."""

    name = "lrp.z"

    def _rule(self) -> Rule:
        return Epsilon(0.0, bias=self.bias)


class LRPEpsilon(BiasedLRP):
    """LRP-epsilon ([bach2015pixel]).

    Args:
        model: See `Analyzer`.
        epsilon: Float >= 0, added to z with its sign.
        relative: Measure epsilon in standard deviations of z.
        **common: See `BiasedLRP`.
    """

    name = "lrp.epsilon"

    def __init__(
        self, model: keras.Model, *, epsilon: float = 1e-7, relative: bool = False, **common: Any
    ) -> None:
        self.epsilon, self.relative = epsilon, relative
        super().__init__(model, **common)

    def _rule(self) -> Rule:
        return Epsilon(self.epsilon, self.relative, self.bias)


class LRPGamma(BiasedLRP):
    """LRP-gamma, generalised to signed inputs ([montavon2019layer], [andeol2021learning]).

    Args:
        model: See `Analyzer`.
        gamma: Float >= 0: how much more contributions with the sign of the output count.
        **common: See `BiasedLRP`.
    """

    name = "lrp.gamma"

    def __init__(self, model: keras.Model, *, gamma: float = 0.25, **common: Any) -> None:
        self.gamma = gamma
        super().__init__(model, **common)

    def _rule(self) -> Rule:
        return Gamma(self.gamma, self.bias)


class LRPAlphaBeta(BiasedLRP):
    """LRP-alpha-beta ([bach2015pixel]).

    Args:
        model: See `Analyzer`.
        alpha: Float >= 1, factor of positive contributions.
        beta: Factor of negative contributions; alpha - 1 if not given.
        **common: See `BiasedLRP`.
    """

    name = "lrp.alpha_beta"

    def __init__(
        self, model: keras.Model, *, alpha: float, beta: float | None = None, **common: Any
    ) -> None:
        self.alpha, self.beta = alpha, beta
        super().__init__(model, **common)

    def _rule(self) -> Rule:
        return AlphaBeta(self.alpha, self.beta, self.bias)


class LRPZPlus(LRPAnalyzer):
    """z+ everywhere: positive contributions without bias ([montavon2017explaining])."""

    name = "lrp.z_plus"

    def _rule(self) -> Rule:
        return ZPlus()


class LRPWSquare(LRPAnalyzer):
    """w^2 everywhere: in proportion to squared weights ([montavon2017explaining])."""

    name = "lrp.w_square"

    def _rule(self) -> Rule:
        return WSquare()


class LRPFlat(LRPAnalyzer):
    """Equal shares everywhere: the receptive field ([lapuschkin2019unmasking])."""

    name = "lrp.flat"

    def _rule(self) -> Rule:
        return Flat()


class LRPSequentialPreset(BiasedLRP):
    """Epsilon for dense layers, alpha-beta for convolutions ([kohlbrenner2020towards]).

    Args:
        model: See `Analyzer`.
        alpha: 1 for preset a, 2 for preset b.
        epsilon: Float >= 0 of dense layers.
        until: Flat rule for the linear layers 0 to `until`, counted from the input.
        **common: See `BiasedLRP`.
    """

    name = "lrp.sequential_preset_a"
    _preset: Mapping[str, Any] = {"alpha": 1}

    def __init__(
        self,
        model: keras.Model,
        *,
        alpha: float = 1,
        epsilon: float = 0.1,
        until: int | None = None,
        **common: Any,
    ) -> None:
        self.alpha, self.epsilon = alpha, epsilon
        hint = "It is the index of a linear layer."
        self.until = None if until is None else integer("until", until, 0, hint=hint)
        super().__init__(model, **common)

    def composite(self) -> Composite:
        """Epsilon for dense layers, alpha-beta for the others."""
        dense = Epsilon(self.epsilon, bias=self.bias)
        convolution = AlphaBeta(self.alpha, bias=self.bias)
        composite = Composite(self.name, relevance_rows(dense, convolution, **self._rows))
        if self.until is None:
            return composite
        return composite.prepend([(UpTo(self.until), Flat())])


class LRPComposite(LRPAnalyzer):
    """LRP with a rule for each kind of layer.

    Args:
        model: See `Analyzer`.
        composite: A `Composite`, or the name of one of `COMPOSITES`.
        bias: Treatment of the bias by the preset's rules; see `BiasedLRP`.
        epsilon: Passed to presets that have it, as gamma, low and high are.
        gamma: Float >= 0.
        low: Lowest values of the input.
        high: Highest values of the input.
        add: As in `LRPAnalyzer`, for presets.
        max_pool: As in `LRPAnalyzer`, for presets.
        **options: See `LRPAnalyzer`.

    Raises:
        ValueError: For an unknown preset, or an option that it does not have.
    """

    name = "lrp.composite"

    def __init__(
        self,
        model: keras.Model,
        *,
        composite: str | Composite = "epsilon_plus",
        bias: str | None = None,
        epsilon: float | None = None,
        gamma: float | None = None,
        low: Any = None,
        high: Any = None,
        add: str | None = None,
        max_pool: str | None = None,
        **options: Any,
    ) -> None:
        own = {"epsilon": epsilon, "gamma": gamma, "low": low, "high": high, "bias": bias}
        self._own = {key: value for key, value in own.items() if value is not None}
        self._merging = {"add": add, "max_pool": max_pool}
        self._given_composite = composite
        max_pool = "winner" if max_pool is None else max_pool
        super().__init__(model, add=add, max_pool=max_pool, **options)

    def composite(self) -> Composite:
        """The given composite, or the preset with its options."""
        given = self._given_composite
        given_rows = {key: value for key, value in self._rows.items() if key != "gates"}
        rows = {key: value for key, value in given_rows.items() if value is not None}
        if isinstance(given, Composite):
            foreign = [*self._own, *(k for k, v in self._merging.items() if v is not None)]
            if foreign:
                raise ValueError(
                    f"The options {', '.join(foreign)} belong to named presets; a Composite holds "
                    "rows of its own, to which composite.prepend adds others."
                )
            first = rows.pop("first", None)
            return given if first is None else given.prepend([(First(), first)])
        if not isinstance(given, str) or given not in COMPOSITES:
            known = sorted(COMPOSITES)
            raise ValueError(
                f"There is no composite {given!r}. Known: {', '.join(known)}."
                + nearest(given, known)
            )
        own = dict(self._own)
        if self.compat and "bias" in inspect.signature(COMPOSITES[given]).parameters:
            own.setdefault("bias", "full")
        try:
            return COMPOSITES[given](**own, **rows)
        except TypeError as error:
            raise ValueError(f"Composite {given!r}: {error}") from None


class ExcitationBackprop(LRPAnalyzer):
    """Excitation backpropagation: z+ everywhere, started with one ([zhang2018top])."""

    name = "excitation_bp"
    has_gates: ClassVar[bool] = False
    default_head: ClassVar[str] = "one"

    def _rule(self) -> Rule:
        return ZPlus()


class DeepTaylor(ReversedAnalyzer):
    """Deep Taylor decomposition ([montavon2017explaining]).

    z+ where the inputs are >= 0 for certain, w^2 elsewhere.

    Args:
        model: See `Analyzer`.
        low: Lowest values of the input, a number or an array that broadcasts to it; with `high`,
            the box rule at the first layer.
        high: Highest values of the input.
        max_pool: "winner" or "average".
        **common: See `Analyzer`.

    Raises:
        ValueError: If only one of `low` and `high` is given, or low > high.
    """

    name = "deep_taylor"
    redistributes: ClassVar[bool] = True
    default_head: ClassVar[str] = "logit"

    def __init__(
        self,
        model: keras.Model,
        *,
        low: Any = None,
        high: Any = None,
        max_pool: str = "winner",
        **common: Any,
    ) -> None:
        if (low is None) != (high is None):
            raise ValueError(f"Give both low and high, received low={low!r}, high={high!r}.")
        self._box = None if low is None else ZBox(low, high)
        self._max_pool = max_pool
        super().__init__(model, **common)

    def _network_head(self) -> str:
        return "positive_logit" if self.compat and self.head == "logit" else self.head

    def composite(self) -> Composite:
        """Rows by the sign of the input."""
        rows: list = [] if self._box is None else [(First(), self._box)]
        if self.compat:
            # Also at the first layer, whatever the sign of its input, as innvestigate does.
            rows += [(LINEAR + BATCH_NORM, ZPlus())]
            rows += [(ADDITION + AVERAGE_POOLING, Gradient())]
            # Only activations that are layers of their own gate relevance there.
            rows += [((keras.layers.Activation, keras.layers.ReLU), Gradient())]
        else:
            rows += [(NonNegativeInput(ADDITIVE), ZPlus()), (ADDITIVE, WSquare())]
        return Composite(self.name, (*rows, *routing_rows(self._max_pool)))


class BoundedDeepTaylor(DeepTaylor):
    """Deep Taylor decomposition for inputs inside known bounds ([montavon2017explaining]).

    Args:
        model: See `Analyzer`.
        low: Lowest values of the input: a number or an array that broadcasts to it.
        high: Highest values.
        **common: See `DeepTaylor`.
    """

    name = "deep_taylor.bounded"

    def __init__(self, model: keras.Model, *, low: Any, high: Any, **common: Any) -> None:
        super().__init__(model, low=low, high=high, **common)
