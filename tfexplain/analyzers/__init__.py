"""Analyzers explain the outputs of a Keras model; `ANALYZERS` lists them by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import keras

from tfexplain.analyzers.base import Analyzer, option_names
from tfexplain.analyzers.deep_lift import (
    DeepLIFTAblation,
    DeepLIFTGenomics,
    DeepLIFTRescale,
    DeepLIFTRevealCancel,
)
from tfexplain.analyzers.grad_cam import GradCAM
from tfexplain.analyzers.gradients import (
    Deconvnet,
    GradientAnalyzer,
    GuidedBackprop,
    InputTimesGradient,
    RectGradAnalyzer,
)
from tfexplain.analyzers.patterns import PatternAttribution, PatternNet
from tfexplain.analyzers.persistence import load_analyzer
from tfexplain.analyzers.relevance import (
    LRPZ,
    BoundedDeepTaylor,
    ContrastiveExcitationBackprop,
    ContrastiveLRP,
    DeepTaylor,
    ExcitationBackprop,
    LRPAlphaBeta,
    LRPComposite,
    LRPEpsilon,
    LRPFlat,
    LRPGamma,
    LRPSequentialPreset,
    LRPWSquare,
    LRPZPlus,
)
from tfexplain.analyzers.sampling import IntegratedGradients, SmoothGrad
from tfexplain.analyzers.shapley import ShapleySampling
from tfexplain.errors import nearest

__all__ = [
    "ANALYZERS",
    "Analyzer",
    "BoundedDeepTaylor",
    "ContrastiveExcitationBackprop",
    "ContrastiveLRP",
    "Deconvnet",
    "DeepLIFTAblation",
    "DeepLIFTGenomics",
    "DeepLIFTRescale",
    "DeepLIFTRevealCancel",
    "DeepTaylor",
    "Entry",
    "ExcitationBackprop",
    "GradCAM",
    "GradientAnalyzer",
    "GuidedBackprop",
    "InputTimesGradient",
    "IntegratedGradients",
    "LRPAlphaBeta",
    "LRPComposite",
    "LRPEpsilon",
    "LRPFlat",
    "LRPGamma",
    "LRPSequentialPreset",
    "LRPWSquare",
    "LRPZ",
    "LRPZPlus",
    "PatternAttribution",
    "PatternNet",
    "RectGradAnalyzer",
    "ShapleySampling",
    "SmoothGrad",
    "create_analyzer",
    "load_analyzer",
]


@dataclass(frozen=True)
class Entry:
    """One name of an analyzer.

    Attributes:
        cls: The class.
        summary: One line on what it computes.
        references: Keys of `tfexplain.references.REFERENCES`.
        preset: Options that belong to the name.
    """

    cls: type[Analyzer]
    summary: str
    references: tuple[str, ...]
    preset: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Option name -> default; `inspect.Parameter.empty` for required ones."""
        names = option_names(self.cls)
        return {key: value for key, value in names.items() if key not in self.preset}

    @property
    def fits(self) -> bool:
        """Whether it has to be fitted to data before it explains."""
        return self.cls.fits

    @property
    def required(self) -> tuple[str, ...]:
        """Options without a default."""
        return tuple(k for k, v in self.options.items() if v is inspect.Parameter.empty)


BACH, MONTAVON, OVERVIEW = "bach2015pixel", "montavon2017explaining", "montavon2019layer"
PRACTICE, ZHANG, SIXT = "kohlbrenner2020towards", "zhang2018top", "sixt2020when"
KINDERMANS = "kindermans2018learning"
CLEVER, SHRIKUMAR = "lapuschkin2019unmasking", "shrikumar2017learning"

ANALYZERS: dict[str, Entry] = {
    "gradient": Entry(GradientAnalyzer, "Gradient of the output", ("simonyan2014deep",)),
    "input_t_gradient": Entry(InputTimesGradient, "Input times gradient", ("shrikumar2016not",)),
    "integrated_gradients": Entry(
        IntegratedGradients,
        "Gradient averaged along the path from a baseline, times the difference",
        ("sundararajan2017axiomatic",),
    ),
    "smoothgrad": Entry(
        SmoothGrad,
        "Gradient averaged over noisy copies of the input",
        ("smilkov2017smoothgrad",),
    ),
    "guided_backprop": Entry(
        GuidedBackprop,
        "Gradient with negative relevance stopped at rectifiers",
        ("springenberg2015striving",),
    ),
    "deconvnet": Entry(
        Deconvnet,
        "Gradient with rectifiers applied to the relevance",
        ("zeiler2014visualizing",),
    ),
    "rect_grad": Entry(
        RectGradAnalyzer,
        "Gradient of only the largest products of activation and gradient",
        ("kim2019saliency",),
    ),
    "excitation_bp": Entry(
        ExcitationBackprop, "Positive contributions only, started with one", (ZHANG,)
    ),
    "excitation_bp.contrastive": Entry(
        ContrastiveExcitationBackprop,
        "Excitation backpropagation minus that of the negated last layer",
        (ZHANG, SIXT),
    ),
    "deep_taylor": Entry(
        DeepTaylor, "Positive contributions for inputs >= 0, else squared weights", (MONTAVON,)
    ),
    "deep_taylor.bounded": Entry(
        BoundedDeepTaylor,
        "Deep Taylor with the box rule at the first layer",
        (MONTAVON,),
    ),
    "lrp.z": Entry(LRPZ, "In proportion to contributions", (BACH,)),
    "lrp.epsilon": Entry(LRPEpsilon, "In proportion to contributions, damped by epsilon", (BACH,)),
    "lrp.gamma": Entry(
        LRPGamma,
        "Contributions with the sign of the output count more",
        (OVERVIEW, "andeol2021learning"),
    ),
    "lrp.alpha_beta": Entry(LRPAlphaBeta, "Positive and negative contributions apart", (BACH,)),
    "lrp.alpha_1_beta_0": Entry(
        LRPAlphaBeta,
        "Positive contributions only, with bias",
        (BACH,),
        {"alpha": 1, "beta": 0},
    ),
    "lrp.alpha_2_beta_1": Entry(
        LRPAlphaBeta,
        "Twice the positive minus the negative contributions",
        (BACH,),
        {"alpha": 2, "beta": 1},
    ),
    "lrp.z_plus": Entry(LRPZPlus, "Positive contributions only, without bias", (MONTAVON,)),
    "lrp.w_square": Entry(LRPWSquare, "In proportion to squared weights", (MONTAVON,)),
    "lrp.flat": Entry(LRPFlat, "Equal shares: the receptive field", (CLEVER,)),
    "lrp.sequential_preset_a": Entry(
        LRPSequentialPreset,
        "Epsilon for dense layers, alpha 1 beta 0 for convolutions",
        (PRACTICE,),
        {"alpha": 1},
    ),
    "lrp.sequential_preset_b": Entry(
        LRPSequentialPreset,
        "Epsilon for dense layers, alpha 2 beta 1 for convolutions",
        (PRACTICE,),
        {"alpha": 2},
    ),
    "lrp.sequential_preset_a_flat": Entry(
        LRPSequentialPreset,
        "Preset a with the flat rule at the first layer",
        (PRACTICE, CLEVER),
        {"alpha": 1, "input_rule": "flat"},
    ),
    "lrp.sequential_preset_b_flat": Entry(
        LRPSequentialPreset,
        "Preset b with the flat rule at the first layer",
        (PRACTICE, CLEVER),
        {"alpha": 2, "input_rule": "flat"},
    ),
    "lrp.composite": Entry(LRPComposite, "A rule for each kind of layer", (OVERVIEW, PRACTICE)),
    "lrp.contrastive": Entry(
        ContrastiveLRP,
        "The map of the output minus that of all others",
        ("gu2018understanding", SIXT),
    ),
    "deep_lift.rescale": Entry(
        DeepLIFTRescale, "Differences from a baseline, with the Rescale rule", (SHRIKUMAR,)
    ),
    "deep_lift.reveal_cancel": Entry(
        DeepLIFTRevealCancel, "Differences, with the RevealCancel rule", (SHRIKUMAR,)
    ),
    "deep_lift.genomics": Entry(
        DeepLIFTGenomics,
        "Differences: RevealCancel behind dense layers, Rescale elsewhere",
        (SHRIKUMAR,),
    ),
    "deep_lift.ablation": Entry(
        DeepLIFTAblation,
        "Differences, without the mixing of signs in linear layers",
        (SIXT, SHRIKUMAR),
    ),
    "pattern.net": Entry(
        PatternNet, "The signal that an output detects, by fitted patterns", (KINDERMANS,)
    ),
    "pattern.attribution": Entry(
        PatternAttribution, "Fitted patterns times weights", (KINDERMANS,)
    ),
    "shapley_sampling": Entry(
        ShapleySampling,
        "Losses of the output as features are removed in random orders",
        ("castro2009polynomial", "strumbelj2010efficient"),
    ),
    "grad_cam": Entry(
        GradCAM,
        "Channels of the last convolution weighted by their mean gradient",
        ("selvaraju2017grad",),
    ),
}

ALIASES = {"lrp": "lrp.composite", "lrp.z_plus_fast": "lrp.z_plus"}
REMOVED = {
    "input": "x itself",
    "random": "numpy.random",
    "gradient.baseline": "integrated_gradients with a baseline",
}
# innvestigate's options that have another name, or another place.
RENAMED = {
    "neuron_selection_mode": "analyze(x, target=...)",
    "postprocess": "numpy.abs or numpy.square of the result",
    "input_layer_rule": "input_rule",
    "until_layer_idx": "until",
    "reference_inputs": "baseline",
    "augment_by_n": "samples",
    "pattern_type": "estimator",
    "reverse_keep_tensors": "propagate(..., layers=...)",
}


def resolve_name(name: str) -> tuple[Entry, dict[str, Any]]:
    """Returns the entry of a name, and the options that a suffix of it sets.

    Raises:
        ValueError: If there is no such analyzer; the message has the nearest names.
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of an analyzer is text, received {type(name).__name__}.")
    base, suffixed = name, {}
    if base.endswith("_IB"):
        base, suffixed = base.removesuffix("_IB"), {"bias": "ignore"}
    if base.endswith("_until_idx"):
        base = base.removesuffix("_until_idx")
        if "sequential_preset" not in base:
            base = name
    base = ALIASES.get(base, base)
    known = ANALYZERS.get(base)
    if known is None or (suffixed and "bias" not in known.options):
        if name in REMOVED:
            raise ValueError(f"innvestigate's {name!r} does not exist here; use {REMOVED[name]}.")
        raise ValueError(
            f"There is no analyzer {name!r}."
            + nearest(name, [*ANALYZERS, *ALIASES])
            + " `tfexplain methods` lists all."
        )
    return known, suffixed


def create_analyzer(name: str, model: keras.Model, **options: Any) -> Analyzer:
    """Creates the analyzer of a name.

    Args:
        name: One of `ANALYZERS`, or an innvestigate name.
        model: A built Keras model; it is never changed.
        **options: Options of the analyzer, see its class, and the common ones of `Analyzer`.

    Returns:
        The analyzer.

    Raises:
        ValueError: For an unknown name or option, or a wrong value.
        TypeError: If `model` is no Keras model.
        UnsupportedModelError: For a model that is not built or has no graph.
        UnsupportedLayerError: If operations of the model have no rule.

    Example:
        >>> analyzer = create_analyzer("lrp.alpha_beta", model, alpha=2, beta=1)
        >>> relevance = analyzer.analyze(x)
    """
    entry, suffixed = resolve_name(name)
    clash = [key for key in options if key in suffixed or key in entry.preset]
    if clash:
        raise ValueError(f"{name} sets {', '.join(clash)} itself; leave it out.")
    known = entry.options
    unknown = [key for key in options if key not in known]
    if unknown:
        renamed = [f"{key} is {RENAMED[key]} here" for key in unknown if key in RENAMED]
        hint = f" innvestigate's {', '.join(renamed)}." if renamed else None
        raise ValueError(
            f"{name} has no option {', '.join(map(repr, unknown))}."
            + (hint or nearest(unknown[0], list(known)))
            + f" Options: {', '.join(sorted(known))}."
        )
    missing = [key for key in entry.required if key not in options]
    if name.endswith("_until_idx") and options.get("until") is None:
        missing.append("until")
    if missing:
        raise ValueError(f"{name} needs the option(s) {', '.join(missing)}.")
    analyzer = entry.cls.__new__(entry.cls, **options)
    analyzer.name = name
    analyzer.__init__(model, **entry.preset, **suffixed, **options)
    return analyzer
