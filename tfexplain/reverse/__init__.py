"""Reversed networks: Keras models from (inputs, output relevance) to relevance."""

from tfexplain.reverse.differences import DifferenceNetwork
from tfexplain.reverse.layers import ForwardCall, ReverseLayer, check_bounds
from tfexplain.reverse.network import TERMS, ReversedNetwork, start_relevance

__all__ = [
    "TERMS",
    "DifferenceNetwork",
    "ForwardCall",
    "ReverseLayer",
    "ReversedNetwork",
    "check_bounds",
    "start_relevance",
]
