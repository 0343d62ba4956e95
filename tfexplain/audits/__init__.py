"""Audits: what an owner of a model can ask about its explanations, as labelled Datasets."""

from tfexplain.audits.cosine_convergence import cosine_convergence
from tfexplain.audits.pattern_spectrum import pattern_spectrum

__all__ = ["cosine_convergence", "pattern_spectrum"]
