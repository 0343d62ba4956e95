"""Audits: what an owner of a model can ask about its explanations, as labelled Datasets."""

from tfexplain.audits.pattern_spectrum import pattern_spectrum
from tfexplain.audits.random_logit import random_logit

__all__ = ["pattern_spectrum", "random_logit"]
