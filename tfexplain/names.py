"""The names of analyzers: class, summary, references and preset of each; names of audits.

Nothing is imported here that takes long, so that `tfexplain methods` answers at once: an entry has
the name of its class, and looks the class up when it is first asked for.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfexplain.errors import nearest

if TYPE_CHECKING:
    import numpy as np

# The audits of tfexplain that take part in a report, in the order of `tfexplain.AUDITS`.
REPORTED_AUDITS = (
    "examples",
    "parameter_randomization",
    "random_logit",
    "cosine_convergence",
    "spectrum",
    "pixel_flipping",
    "entropy",
    "koopman",
)


def _no_options(x: np.ndarray) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Entry:
    """One name of an analyzer.

    Attributes:
        class_name: Name of the class in `tfexplain.analyzers`, or a class of your own.
        summary: One line on what it computes.
        references: Keys of `tfexplain.references.REFERENCES`.
        preset: Options that belong to the name.
        quick: Options of a quick audit, where the method averages over many draws.
        for_samples: Function of samples that returns the options without a default, for those who
            create the analyzers of all names.
    """

    class_name: str | type[Any]
    summary: str
    references: tuple[str, ...]
    preset: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    for_samples: Callable[[np.ndarray], dict[str, Any]] = _no_options

    @property
    def cls(self) -> type[Any]:
        """The class, a subclass of `tfexplain.analyzers.Analyzer`; imports TensorFlow."""
        if isinstance(self.class_name, type):
            return self.class_name
        return getattr(importlib.import_module("tfexplain.analyzers"), self.class_name)

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


def option_names(cls: type) -> dict[str, Any]:
    """Returns the keyword-only options of an analyzer class with their defaults."""
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        init = base.__dict__.get("__init__")
        if init is None or base is object:
            continue
        for parameter in inspect.signature(init).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                defaults[parameter.name] = parameter.default
    return defaults


BACH, MONTAVON, OVERVIEW = "bach2015pixel", "montavon2017explaining", "montavon2019layer"
PRACTICE, ZHANG, SIXT = "kohlbrenner2020towards", "zhang2018top", "sixt2020when"
KINDERMANS = "kindermans2018learning"
CLEVER, SHRIKUMAR = "lapuschkin2019unmasking", "shrikumar2017learning"


def _bounds(x: np.ndarray) -> dict[str, float]:
    """Returns the lowest and the highest value of samples, the bounds of the box rule."""
    return {"low": float(x.min()), "high": float(x.max())}


# In the order in which `tfexplain methods` lists them.
ANALYZERS: dict[str, Entry] = {
    "gradient": Entry("GradientAnalyzer", "Gradient of the output", ("simonyan2014deep",)),
    "input_t_gradient": Entry("InputTimesGradient", "Input times gradient", ("shrikumar2016not",)),
    "integrated_gradients": Entry(
        "IntegratedGradients",
        "Gradient averaged along the path from a baseline, times the difference",
        ("sundararajan2017axiomatic",),
        quick={"steps": 16},
    ),
    "smoothgrad": Entry(
        "SmoothGrad",
        "Gradient averaged over noisy copies of the input",
        ("smilkov2017smoothgrad",),
        quick={"samples": 16},
    ),
    "guided_backprop": Entry(
        "GuidedBackprop",
        "Gradient with negative relevance stopped at rectifiers",
        ("springenberg2015striving",),
    ),
    "deconvnet": Entry(
        "Deconvnet",
        "Gradient with rectifiers applied to the relevance",
        ("zeiler2014visualizing",),
    ),
    "rect_grad": Entry(
        "RectGradAnalyzer",
        "Gradient of only the largest products of activation and gradient",
        ("kim2019saliency",),
    ),
    "excitation_bp": Entry(
        "ExcitationBackprop", "Positive contributions only, started with one", (ZHANG,)
    ),
    "excitation_bp.contrastive": Entry(
        "ContrastiveExcitationBackprop",
        "Excitation backpropagation minus that of the negated last layer",
        (ZHANG, SIXT),
    ),
    "deep_taylor": Entry(
        "DeepTaylor", "Positive contributions for inputs >= 0, else squared weights", (MONTAVON,)
    ),
    "deep_taylor.bounded": Entry(
        "BoundedDeepTaylor",
        "Deep Taylor with the box rule at the first layer",
        (MONTAVON,),
        for_samples=_bounds,
    ),
    "lrp.z": Entry("LRPZ", "In proportion to contributions", (BACH,)),
    "lrp.epsilon": Entry(
        "LRPEpsilon", "In proportion to contributions, damped by epsilon", (BACH,)
    ),
    "lrp.gamma": Entry(
        "LRPGamma",
        "Contributions with the sign of the output count more",
        (OVERVIEW, "andeol2021learning"),
    ),
    "lrp.alpha_beta": Entry(
        "LRPAlphaBeta",
        "Positive and negative contributions apart",
        (BACH,),
        for_samples=lambda x: {"alpha": 3},
    ),
    "lrp.alpha_1_beta_0": Entry(
        "LRPAlphaBeta",
        "Positive contributions only, with bias",
        (BACH,),
        {"alpha": 1, "beta": 0},
    ),
    "lrp.alpha_2_beta_1": Entry(
        "LRPAlphaBeta",
        "Twice the positive minus the negative contributions",
        (BACH,),
        {"alpha": 2, "beta": 1},
    ),
    "lrp.z_plus": Entry("LRPZPlus", "Positive contributions only, without bias", (MONTAVON,)),
    "lrp.w_square": Entry("LRPWSquare", "In proportion to squared weights", (MONTAVON,)),
    "lrp.flat": Entry("LRPFlat", "Equal shares: the receptive field", (CLEVER,)),
    "lrp.sequential_preset_a": Entry(
        "LRPSequentialPreset",
        "Epsilon for dense layers, alpha 1 beta 0 for convolutions",
        (PRACTICE,),
        {"alpha": 1},
    ),
    "lrp.sequential_preset_b": Entry(
        "LRPSequentialPreset",
        "Epsilon for dense layers, alpha 2 beta 1 for convolutions",
        (PRACTICE,),
        {"alpha": 2},
    ),
    "lrp.sequential_preset_a_flat": Entry(
        "LRPSequentialPreset",
        "Preset a with the flat rule at the first layer",
        (PRACTICE, CLEVER),
        {"alpha": 1, "input_rule": "flat"},
    ),
    "lrp.sequential_preset_b_flat": Entry(
        "LRPSequentialPreset",
        "Preset b with the flat rule at the first layer",
        (PRACTICE, CLEVER),
        {"alpha": 2, "input_rule": "flat"},
    ),
    "lrp.composite": Entry("LRPComposite", "A rule for each kind of layer", (OVERVIEW, PRACTICE)),
    "lrp.contrastive": Entry(
        "ContrastiveLRP",
        "The map of the output minus that of all others",
        ("gu2018understanding", SIXT),
    ),
    "deep_lift.rescale": Entry(
        "DeepLIFTRescale", "Differences from a baseline, with the Rescale rule", (SHRIKUMAR,)
    ),
    "deep_lift.reveal_cancel": Entry(
        "DeepLIFTRevealCancel", "Differences, with the RevealCancel rule", (SHRIKUMAR,)
    ),
    "deep_lift.genomics": Entry(
        "DeepLIFTGenomics",
        "Differences: RevealCancel behind dense layers, Rescale elsewhere",
        (SHRIKUMAR,),
    ),
    "deep_lift.ablation": Entry(
        "DeepLIFTAblation",
        "Differences, without the mixing of signs in linear layers",
        (SIXT, SHRIKUMAR),
    ),
    "pattern.net": Entry(
        "PatternNet", "The signal that an output detects, by fitted patterns", (KINDERMANS,)
    ),
    "pattern.attribution": Entry(
        "PatternAttribution", "Fitted patterns times weights", (KINDERMANS,)
    ),
    "shapley_sampling": Entry(
        "ShapleySampling",
        "Losses of the output as features are removed in random orders",
        ("castro2009polynomial", "strumbelj2010efficient"),
        quick={"cycles": 5},
    ),
    "grad_cam": Entry(
        "GradCAM",
        "Channels of the last convolution weighted by their mean gradient",
        ("selvaraju2017grad",),
    ),
}

# innvestigate's other names of analyzers, and what it has beside them.
ALIASES = {"lrp": "lrp.composite", "lrp.z_plus_fast": "lrp.z_plus"}
REMOVED = {
    "input": "x itself",
    "random": "numpy.random",
    "gradient.baseline": "integrated_gradients with a baseline",
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
        short = ANALYZERS.get(base.removesuffix("_until_idx"))
        takes_until = short is not None and "until" in short.options
        base = base.removesuffix("_until_idx") if takes_until else name
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
