"""Audits: what an owner of a model can ask about its explanations, as labelled Datasets."""

from tfexplain.audits.cosine_convergence import cosine_convergence
from tfexplain.audits.entropy import entropy
from tfexplain.audits.parameter_randomization import cascade_maps, parameter_randomization
from tfexplain.audits.pattern_spectrum import pattern_spectrum
from tfexplain.audits.pixel_flipping import pixel_flipping
from tfexplain.audits.random_logit import random_logit

__all__ = [
    "cascade_maps",
    "cosine_convergence",
    "entropy",
    "parameter_randomization",
    "pattern_spectrum",
    "pixel_flipping",
    "random_logit",
]
