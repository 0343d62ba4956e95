"""Rules redistribute the relevance of one call; `RULES` lists them by name."""

from tfexplain.rules.base import RULES, Absorbed, RecordedCall, Rule, rule_from_config
from tfexplain.rules.contributions import (
    AlphaBeta,
    ContrastiveZPlus,
    ContributionRule,
    Epsilon,
    Gamma,
    ZPlus,
)
from tfexplain.rules.differences import (
    AblatedLinear,
    AffineDifference,
    DifferenceCall,
    DifferenceRule,
    LinearDifference,
    LogSumExpDifference,
    MaxDifference,
    PassDifference,
    ProductDifference,
    Rescale,
    RevealCancel,
    SignedParts,
    Transport,
)
from tfexplain.rules.gradients import DeconvReLU, Gradient, GuidedReLU, RectGrad
from tfexplain.rules.groups import Group
from tfexplain.rules.normalizations import HeldDeviation, NormalizationDifference
from tfexplain.rules.patterns import PatternCall, PatternRule
from tfexplain.rules.published import ClippedAddition
from tfexplain.rules.routing import (
    AverageOfWindow,
    EqualShares,
    NoRelevance,
    Pass,
    Proportional,
    SignalTakesAll,
    Winner,
)
from tfexplain.rules.scans import DifferenceThroughTime, ThroughTime
from tfexplain.rules.weights import BoundedCall, Flat, WSquare, ZBox

__all__ = [
    "RULES",
    "AblatedLinear",
    "Absorbed",
    "AffineDifference",
    "AlphaBeta",
    "AverageOfWindow",
    "BoundedCall",
    "ClippedAddition",
    "ContrastiveZPlus",
    "ContributionRule",
    "DeconvReLU",
    "DifferenceCall",
    "DifferenceRule",
    "DifferenceThroughTime",
    "Epsilon",
    "EqualShares",
    "Flat",
    "Gamma",
    "Gradient",
    "Group",
    "GuidedReLU",
    "HeldDeviation",
    "LinearDifference",
    "LogSumExpDifference",
    "MaxDifference",
    "NoRelevance",
    "NormalizationDifference",
    "Pass",
    "PassDifference",
    "PatternCall",
    "PatternRule",
    "ProductDifference",
    "Proportional",
    "RecordedCall",
    "RectGrad",
    "Rescale",
    "RevealCancel",
    "Rule",
    "SignalTakesAll",
    "SignedParts",
    "ThroughTime",
    "Transport",
    "WSquare",
    "Winner",
    "ZBox",
    "ZPlus",
    "rule_from_config",
]
