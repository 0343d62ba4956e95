"""Audits: what an owner of a model can ask about its explanations, as labelled Datasets."""

from tfexplain.audits.pattern_spectrum import pattern_spectrum

__all__ = ["pattern_spectrum"]
