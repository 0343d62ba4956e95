"""Contrastive methods: what speaks for the explained output minus what speaks for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
import xarray as xr

from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.derived import TARGETS, DerivedAnalyzer, in_chunks
from tfexplain.analyzers.registry import created, resolve_name
from tfexplain.analyzers.relevance import ExcitationBackprop
from tfexplain.analyzers.reversed import with_chain
from tfexplain.analyzers.sides import NEGATIVE_SIDE
from tfexplain.checks import flag
from tfexplain.composites import Composite, Last
from tfexplain.numerics import Tensor, expand, shape_of
from tfexplain.reverse import start_relevance
from tfexplain.rules import ContrastiveZPlus


class Contrast(DerivedAnalyzer):
    """Base of methods that subtract one backward pass from another."""

    redistributes: ClassVar[bool] = True
    _no_chain: ClassVar[str] = (
        "contrasts two backward passes that depend on the explained output; given relevance has "
        "none. Use the method that is contrasted."
    )

    def passes(self, shape: Sequence[int], outputs: int = 1) -> float:
        """Returns about how many forward passes of the model the maps of one sample take."""
        return 2 * super().passes(shape, outputs)


class _NegatedLast(ExcitationBackprop):
    """Excitation backpropagation whose last layer subtracts what -W would get."""

    def composite(self) -> Composite:
        return super().composite().prepend([(Last(), ContrastiveZPlus())])


class ContrastiveExcitationBackprop(Contrast):
    """Excitation backpropagation whose last layer subtracts what -W would get ([zhang2018top]).

    Args:
        model: See `Analyzer`.
        batch_norm: See `GraphAnalyzer`.
        input_rule: See `LRPAnalyzer`.
        add: See `LRPAnalyzer`.
        max_pool: See `LRPAnalyzer`.
        **common: See `Analyzer`.
    """

    name = "excitation_bp.contrastive"

    def __init__(
        self,
        model: keras.Model,
        *,
        batch_norm: str = "fold",
        input_rule: Any = None,
        add: str | None = None,
        max_pool: str = "winner",
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        own = {"input_rule": input_rule, "add": add, "max_pool": max_pool}
        options = {"batch_norm": batch_norm, **own, **common}
        self.inner = _NegatedLast.named(self.name, model, {}, options, self.side, self.execution)

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, *relevance]."""
        return self.inner.explain(inputs, targets)

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        return self.inner._explain(arrays, targets, place)

    def ledger(self, x: Any, target: Any = None, *, batch_size: int = 32) -> xr.Dataset:
        """Accounts for the relevance of every call; see `ReversedAnalyzer`."""
        return self.inner.ledger(x, target, batch_size=batch_size)

    @property
    def model(self) -> keras.Model:
        """The reversed network, a keras.Model of (inputs, output_relevance)."""
        return self.inner.model


class ContrastiveLRP(Contrast):
    """Contrastive LRP: the map of the output minus that of all others ([gu2018understanding]).

    max(0, n(r(y_k)) - n(r(y_-k))), n dividing a map by its sum (Eq. 15 of [sixt2020when]).

    Args:
        model: See `Analyzer`.
        rule: Name of the analyzer that is contrasted, or the name and options in a dict
            {"name": ..., **options}.
        rectify: Apply the maximum with 0.
        bias: As for the contrasted analyzer, to which this and the next options are passed on.
        input_rule: See `LRPAnalyzer`.
        add: See `LRPAnalyzer`.
        max_pool: See `LRPAnalyzer`.
        batch_norm: See `GraphAnalyzer`.
        **common: See `Analyzer`.

    Raises:
        ValueError: If `rule` is no LRP method, does not take an option, or holds one of this one.
    """

    name = "lrp.contrastive"
    default_head: ClassVar[str] = "logit"

    def __init__(
        self,
        model: keras.Model,
        *,
        rule: str | dict = "lrp.alpha_1_beta_0",
        rectify: bool = True,
        bias: str | None = None,
        input_rule: Any = None,
        add: str | None = None,
        max_pool: str | None = None,
        batch_norm: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        self.rectify = flag("rectify", rectify)
        passed = {"bias": bias, "input_rule": input_rule, "add": add, "max_pool": max_pool}
        passed = {**passed, "batch_norm": batch_norm}
        common.update({key: value for key, value in passed.items() if value is not None})
        options = dict(rule) if isinstance(rule, dict) else {"name": rule}
        inner = options.pop("name", None)
        if not (isinstance(inner, str) and resolve_name(inner)[0].cls.redistributes):
            raise ValueError(
                f"rule names the LRP analyzer that is contrasted, received {inner!r}; for example "
                "'lrp.alpha_1_beta_0'."
            )
        # One without a chain is refused.
        of_method = {"dtype", "precision", "jit_compile"}
        if twice := sorted(options.keys() & (common.keys() | of_method)):
            raise ValueError(
                f"rule holds the option(s) {', '.join(twice)}, which {self.name} has itself: give "
                "them beside rule."
            )
        made = created(inner, model, {**options, **common}, self.execution)
        self.inner = with_chain(made._of_class_0() if self.side == NEGATIVE_SIDE else made)
        if not self.inner.has_chain:
            raise ValueError(f"{inner!r} cannot be contrasted: it is no reversed network.")
        # Built now: Keras layers are not made while a function is traced.
        self._network = self.inner.network()
        self._run_explain = self._compiled(self.explain, TARGETS)

    @property
    def _starts_with_sign(self) -> bool:
        """Its maps are divided by their sums, so that the sign of the start is gone."""
        return False

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, *relevance]."""
        network = self._network
        records = network.forward_pass(inputs)
        outputs = records[network.start_index]
        chosen = start_relevance(outputs, targets, "one")
        value = expand(outputs) if self.head == "logit" else tf.ones_like(expand(outputs))
        maps = [
            _normalised(network.backward_pass(records, start))
            for start in (value * chosen, value * (1 - chosen))
        ]
        difference = [first - second for first, second in zip(*maps, strict=True)]
        if self.rectify:
            difference = [tf.nn.relu(part) for part in difference]
        return [outputs, *difference]

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        run = self._run_explain.for_count(targets.shape[1])
        return in_chunks(self._network, arrays, targets, run)


def _normalised(maps: Sequence[Tensor]) -> list[Tensor]:
    """Divides the maps of all inputs by their common sum; 0 where that is 0."""
    sums = sum(tf.reduce_sum(part, axis=list(range(2, len(part.shape)))) for part in maps)
    return [
        tf.math.divide_no_nan(
            part, tf.reshape(sums, [*shape_of(sums), *[1] * (len(part.shape) - 2)])
        )
        for part in maps
    ]
