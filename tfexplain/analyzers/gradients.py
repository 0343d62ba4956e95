"""Gradient and its modifications at rectifiers."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from tfexplain.analyzers.reversed import ReversedAnalyzer
from tfexplain.composites import ANY, Composite
from tfexplain.graph import Graph, has_graph, opaque_graph
from tfexplain.rules import DeconvReLU, Gradient, GuidedReLU, RectGrad
from tfexplain.rules.gradients import RectifierRule


class ReplayedGradient(ReversedAnalyzer):
    """The gradient of the explained output, of a model whose calls are replayed one by one."""

    name = "gradient"
    reduction: ClassVar[str] = "abs_sum"

    def composite(self) -> Composite:
        """The vector-Jacobian product everywhere."""
        return Composite("gradient", ((ANY, Gradient()),))


class GradientAnalyzer(ReplayedGradient):
    """The gradient of the explained output ([simonyan2014deep]).

    Also takes subclassed models, as one call by `tf.GradientTape`.
    """

    def _trace(self, fold_batch_norm: bool) -> Graph:
        if not has_graph(self.user_model):
            return opaque_graph(self.user_model)
        return super()._trace(fold_batch_norm)


class InputTimesGradient(GradientAnalyzer):
    """Input times gradient ([shrikumar2016not]); at a layer, activation times gradient."""

    name = "input_t_gradient"
    reduction: ClassVar[str] = "sum"
    times_activation: ClassVar[bool] = True


class RectifierAnalyzer(ReversedAnalyzer):
    """Base of methods that change the gradient at rectifiers only."""

    reduction: ClassVar[str] = "abs_sum"

    def _default_head(self) -> str:
        # innvestigate starts guided backpropagation and deconvnet with the value of the logit.
        return "logit" if self.compat else "one"

    def composite(self) -> Composite:
        """A rule at rectifiers, the gradient elsewhere."""
        # A row concerns what its rule fits: the first one rectifiers only.
        return Composite(self.name, ((ANY, self._rule()), (ANY, Gradient())))

    def _rule(self) -> RectifierRule:
        raise NotImplementedError


class GuidedBackprop(RectifierAnalyzer):
    """Guided backpropagation: negative relevance stops at rectifiers ([springenberg2015striving]).

    Rectifiers are ReLU (with every option), ReLU6, LeakyReLU and PReLU, fused or not.
    """

    name = "guided_backprop"

    def _rule(self) -> RectifierRule:
        return GuidedReLU()


class Deconvnet(RectifierAnalyzer):
    """Deconvnet: rectifiers act on the relevance alone ([zeiler2014visualizing])."""

    name = "deconvnet"

    def _rule(self) -> RectifierRule:
        return DeconvReLU()


class RectGradAnalyzer(RectifierAnalyzer):
    """RectGrad: only the largest products of activation and gradient pass ([kim2019saliency]).

    Args:
        model: See `Analyzer`.
        percentile: Percentile of activation times gradient over the units of a sample (nearest
            rank), up to which nothing passes. A rectifier with fewer than about
            50 / (100 - percentile) units lets nothing pass: its largest product is the percentile.
        **common: See `Analyzer`.
    """

    name = "rect_grad"
    # Its maps are sparse: the upper percentile of most is 0.
    normalization: ClassVar[str] = "minmax"

    def __init__(self, model: keras.Model, *, percentile: float = 98, **common: Any) -> None:
        self._rectifier_rule = RectGrad(percentile)
        super().__init__(model, **common)

    def _default_head(self) -> str:
        return "one"

    def _rule(self) -> RectifierRule:
        return self._rectifier_rule
