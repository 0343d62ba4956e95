"""Audits: what an owner of a model can ask about its explanations, as labelled Datasets."""

from tfexplain.audits.cosine_convergence import cosine_convergence
from tfexplain.audits.entropy import entropy
from tfexplain.audits.layer_norms import layer_norms
from tfexplain.audits.parameter_randomization import cascade_maps, parameter_randomization
from tfexplain.audits.pattern_spectrum import pattern_spectrum
from tfexplain.audits.pixel_flipping import pixel_flipping
from tfexplain.audits.random_logit import random_logit
from tfexplain.audits.spectral_terms import spectral_terms
from tfexplain.audits.spectrum import spectrum

__all__ = [
    "cascade_maps",
    "cosine_convergence",
    "entropy",
    "layer_norms",
    "parameter_randomization",
    "pattern_spectrum",
    "pixel_flipping",
    "random_logit",
    "spectral_terms",
    "spectrum",
]
