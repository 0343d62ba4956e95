"""Reversed networks, which go from (inputs, output relevance) to relevance."""

from tfexplain.reverse.differences import DifferenceNetwork
from tfexplain.reverse.network import TERMS, ReversedNetwork, start_relevance
from tfexplain.reverse.steps import ForwardCall, ReverseCall, check_bounds

__all__ = [
    "TERMS",
    "DifferenceNetwork",
    "ForwardCall",
    "ReverseCall",
    "ReversedNetwork",
    "check_bounds",
    "start_relevance",
]
