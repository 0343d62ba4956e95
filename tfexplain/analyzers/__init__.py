"""Analyzers explain the outputs of a Keras model; `ANALYZERS` lists them by name."""

from tfexplain.analyzers.base import Analyzer
from tfexplain.analyzers.contrastive import ContrastiveExcitationBackprop, ContrastiveLRP
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
from tfexplain.analyzers.integrated_gradients import IntegratedGradients
from tfexplain.analyzers.patterns import PatternAttribution, PatternNet
from tfexplain.analyzers.registry import create_analyzer, load_analyzer, resolve_name
from tfexplain.analyzers.relevance import (
    LRPZ,
    BoundedDeepTaylor,
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
from tfexplain.analyzers.shapley import ShapleySampling
from tfexplain.analyzers.smoothgrad import SmoothGrad
from tfexplain.names import ANALYZERS, Entry

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
    "resolve_name",
]
