"""How the paper's experiments were run, and how they should be: one switch per trap.

`PUBLISHED` has every switch as the published code has it, `CORRECTED` as the cited papers and the
theory have it. Traps without a switch: T13 (where LRP-z starts; every result has its baseline), T16
(dropped values are always counted), T17 (the names of ResNet's blocks are kept), T18 (the ablation
is an explicit analyzer), T22 (theorem 1 is tested by itself, in `theorem`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

import tfexplain
from tfexplain.analyzers import Analyzer, DeepLIFTAblation
from tfexplain.composites import (
    ADDITION,
    AVERAGE_POOLING,
    BATCH_NORM,
    LINEAR,
    Composite,
    First,
    relevance_rows,
    routing_rows,
)
from tfexplain.rules import AlphaBeta, ClippedAddition, Epsilon, Gradient, Rule, ZBox


@dataclass(frozen=True)
class Protocol:
    """One value for each trap of the published code; D: differences of text and code.

    Args:
        name: "published" or "corrected".
        cifar_range: T1: CIFAR-10 images as "raw" bytes, or as the network was "trained".
        bias: T2: "full": the whole bias in both denominators of alpha-beta; "split" by its sign.
        addition_clip: T3: what relevance is clipped to at residual additions; None: not at all.
        pattern_weights: T4: the matrices of PatternAttribution when weights are randomised:
            "frozen" at those of the trained network, or "current".
        rectifier_head: T5: guided backpropagation, deconvnet and RectGrad start with the "logit" or
            with "one".
        inverted_maps: T6: maps are turned upside down before SSIM.
        ssim_range: T7: data range of SSIM.
        output_mean: T8: patterns subtract the mean output over "all" or over "active" samples.
        ablation: T9: "as_run" (W+ for both signs) or "as_written" (W- for negative differences).
        ablation_rescaled: T10: multipliers of the ablation are kept from overflowing.
        bounds: T11: range of the input from one "example" image or from the "preprocessing".
        exact_cosines: T12: cosines in float64 without cancellation, never beyond 1.
        shared_draws: T14: all methods see the same images (without repetition), classes and random
            networks; else each draws its own, DeepLIFT random networks for each step.
        read_point: T15: relevance is given and read at "output" tensors of layers, wherever their
            activation is, or behind the "activation".
        count_constant_maps: T19: constant maps are counted as missing; else SSIM is NaN.
        batch_norm: T20: "rule" (an affine map of its own) or "fold".
        random_weights: T21: "initializer" (with normalisations reset) or "permutation".
        gradient_reduction: D4: channels of gradient maps: "abs_max" (code) or "abs_sum" (text).
        chain_cosines: D11: of matrix chains: "rows" (mean over propagated rows, with the diagonal;
            code) or "columns" (median over pairs of columns; text).
        deep_lift_max_pool: how DeepLIFT treats max pooling: "gradient" (the deeplift package) or
            "difference" (contributions add up).
        contrastive_logits: what the other classes of contrastive LRP start with: their "signed"
            logits (Eq. 15 as the paper writes it), which can cancel so that a map is divided by
            about 0, or their "magnitude" (the code of contrastive LRP's authors).
        flip_all: D14: the better of a map and its negative counts for all methods, or only for
            Deep Taylor and LRP alpha 1 beta 0.
    """

    name: str
    cifar_range: str
    bias: str
    addition_clip: tuple[float, float] | None
    pattern_weights: str
    rectifier_head: str
    inverted_maps: bool
    ssim_range: float
    output_mean: str
    ablation: str
    ablation_rescaled: bool
    bounds: str
    exact_cosines: bool
    shared_draws: bool
    read_point: str
    count_constant_maps: bool
    batch_norm: str
    random_weights: str
    gradient_reduction: str
    chain_cosines: str
    deep_lift_max_pool: str
    contrastive_logits: str
    flip_all: bool


PUBLISHED = Protocol(
    name="published",
    cifar_range="raw",
    bias="full",
    addition_clip=(0.0, 1000.0),
    pattern_weights="frozen",
    rectifier_head="logit",
    inverted_maps=True,
    ssim_range=2.0,
    output_mean="all",
    ablation="as_run",
    ablation_rescaled=False,
    bounds="example",
    exact_cosines=False,
    shared_draws=False,
    read_point="output",
    count_constant_maps=False,
    batch_norm="rule",
    random_weights="initializer",
    gradient_reduction="abs_max",
    chain_cosines="rows",
    deep_lift_max_pool="gradient",
    contrastive_logits="signed",
    flip_all=True,
)
CORRECTED = Protocol(
    name="corrected",
    cifar_range="trained",
    bias="split",
    addition_clip=None,
    pattern_weights="current",
    rectifier_head="one",
    inverted_maps=False,
    ssim_range=1.0,
    output_mean="active",
    ablation="as_run",
    ablation_rescaled=True,
    bounds="preprocessing",
    exact_cosines=True,
    shared_draws=True,
    read_point="activation",
    count_constant_maps=True,
    batch_norm="fold",
    random_weights="initializer",
    gradient_reduction="abs_sum",
    chain_cosines="columns",
    deep_lift_max_pool="difference",
    contrastive_logits="magnitude",
    flip_all=False,
)
PROTOCOLS = {protocol.name: protocol for protocol in (PUBLISHED, CORRECTED)}


class UnscaledAblation(DeepLIFTAblation):
    """The ablation of DeepLIFT without rescaling: float32 overflows in deep networks (T10)."""

    unit_maximum = False


@dataclass(frozen=True)
class Method:
    """A method of the paper's table.

    Args:
        name: As the paper writes it.
        analyzer: Name of the analyzer.
        letter: What marks it in figures; a marker of matplotlib or a letter.
        group: Number of its colour: 0 rectifiers, 1 CMP and SmoothGrad, 2 LRP, 3 Deep Taylor and
            patterns, 4 DeepLIFT, 5 gradient.
        options: The options of the analyzer.
        reduction: How channels become one, a key of `tfexplain.metrics.REDUCTIONS`.
        bounded: Whether it needs the range of the input, see `create`.
        fitted: Whether it needs patterns, see `create`.
        chain: Whether it is one backward chain that takes given relevance.
        networks: Which of vgg16, resnet50 and cifar_cnn the paper has it on.
        cls: Class of the analyzer where the library's is not what was published.
    """

    name: str
    analyzer: str
    letter: str
    group: int
    options: Mapping[str, Any] = field(default_factory=dict)
    reduction: str = "sum"
    bounded: bool = False
    fitted: bool = False
    chain: bool = True
    networks: tuple[str, ...] = ("vgg16", "resnet50", "cifar_cnn")
    cls: type[Analyzer] | None = None

    def create(
        self,
        model: keras.Model,
        *,
        bounds: tuple[Any, Any] | None = None,
        patterns: Any = None,
        **more: Any,
    ) -> Analyzer:
        """Returns the analyzer.

        Args:
            model: A Keras model.
            bounds: Lowest and highest values of the input, for the methods that are `bounded`:
                numbers or arrays that broadcast to it.
            patterns: For the methods that are `fitted`; without them, call `fit`.
            **more: Further options of the analyzer, as dtype.

        Raises:
            ValueError: If bounds are needed and not given.
        """
        options = dict(self.options)
        if self.bounded and bounds is None:
            raise ValueError(f"{self.name} needs the range of the input; give bounds=(low, high).")
        if self.analyzer == "smoothgrad":
            options["noise_range"] = (float(np.min(bounds[0])), float(np.max(bounds[1])))
        elif self.analyzer == "deep_taylor.bounded":
            options |= {"low": bounds[0], "high": bounds[1]}
        elif self.bounded:
            options["composite"] = options["composite"].prepend([(First(), ZBox(*bounds))])
        if self.fitted and patterns is not None:
            options["patterns"] = patterns
        if self.cls is not None:
            return self.cls(model, **options, **more)
        return tfexplain.create_analyzer(self.analyzer, model, **options, **more)


def methods(protocol: Protocol) -> dict[str, Method]:
    """Returns the methods of the paper's table by name, with a protocol's options.

    Args:
        protocol: `PUBLISHED`, `CORRECTED`, or one with single switches exchanged.

    Example:
        >>> methods(PUBLISHED)["LRP 2/1"].analyzer
        'lrp.composite'
    """
    absolute = {"reduction": protocol.gradient_reduction}
    rectifier = {"options": {"head": protocol.rectifier_head}, **absolute}
    norm = {"batch_norm": protocol.batch_norm}
    differences = {**norm, "max_pool": protocol.deep_lift_max_pool}
    patterns = {"output_mean": protocol.output_mean}
    everywhere = ("vgg16", "resnet50")
    table = [
        Method("GuidedBP", "guided_backprop", "G", 0, **rectifier),
        Method("Deconv", "deconvnet", "V", 0, **rectifier),
        Method(
            "RectGrad",
            "rect_grad",
            "R",
            0,
            {"percentile": 98, "head": protocol.rectifier_head},
            protocol.gradient_reduction,
        ),
        _deep_taylor(protocol),
        Method("PatternAttr.", "pattern.attribution", "P", 3, patterns, fitted=True, networks=VGG),
        Method("PatternNet", "pattern.net", "N", 3, patterns, fitted=True, networks=VGG),
        Method("LRP z", "lrp.z", "Z", 2, {"bias": protocol.bias, **norm}),
        *(
            _alpha_beta(f"LRP {alpha}/{alpha - 1}", letter, protocol, alpha)
            for alpha, letter in ((1, "1"), (2, "2"), (5, "5"))
        ),
        _alpha_beta("LRP CMP 1/0", "^", protocol, 1, sequential=True),
        _alpha_beta("LRP CMP 2/1", "+", protocol, 2, sequential=True),
        Method(
            "SmoothGrad",
            "smoothgrad",
            "o",
            1,
            {"samples": 50, "noise_scale": 0.15},
            bounded=True,
            chain=False,
            networks=everywhere,
            **absolute,
        ),
        Method("DeepLIFT RevC", "deep_lift.reveal_cancel", "L", 4, differences),
        Method("DeepLIFT Resc", "deep_lift.rescale", "D", 4, differences),
        Method(
            "DeepLIFT Abla",
            "deep_lift.ablation",
            "A",
            4,
            {"definition": protocol.ablation, **differences},
            cls=None if protocol.ablation_rescaled else UnscaledAblation,
        ),
        Method("Gradient", "gradient", "v", 5, **absolute),
    ]
    return {method.name: method for method in table}


VGG = ("vgg16",)


def _deep_taylor(protocol: Protocol) -> Method:
    """Returns Deep Taylor decomposition with the box rule at the first layer."""
    name, networks = "DTD", ("vgg16", "cifar_cnn")
    if protocol.bias != "full":
        return Method(
            name,
            "deep_taylor.bounded",
            "T",
            3,
            {"batch_norm": protocol.batch_norm},
            bounded=True,
            networks=networks,
        )
    # alpha 1 beta 0 with the whole bias in the place of z+. Activations that are layers of their
    # own gate relevance, fused ones do not.
    rows = [
        (LINEAR + BATCH_NORM, AlphaBeta(1, 0, bias=protocol.bias)),
        (ADDITION + AVERAGE_POOLING, Gradient()),
        ((keras.layers.Activation, keras.layers.ReLU), Gradient()),
        *routing_rows(),
    ]
    options = {"composite": Composite("published_deep_taylor", tuple(rows))}
    options["batch_norm"] = protocol.batch_norm
    return Method(name, "lrp.composite", "T", 3, options, bounded=True, networks=networks)


def _alpha_beta(
    name: str, letter: str, protocol: Protocol, alpha: int, sequential: bool = False
) -> Method:
    """Returns alpha-beta for all layers, or for convolutions with the z rule for dense ones."""
    rule: Rule = AlphaBeta(alpha, bias=protocol.bias)
    dense: Rule = Epsilon(1e-10, bias=protocol.bias) if sequential else rule
    rows = relevance_rows(dense, rule)
    if protocol.addition_clip is not None:
        rows = ((ADDITION, ClippedAddition(rule, *protocol.addition_clip)), *rows)
    options = {"composite": Composite(name, rows), "batch_norm": protocol.batch_norm}
    return Method(name, "lrp.composite", letter, 1 if sequential else 2, options)
