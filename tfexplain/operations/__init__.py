"""Canonical operations: the few kinds of steps that rules are written for.

Every Keras layer and operation of a model becomes one of these; `tfexplain.canonizers` says which.
"""

from tfexplain.operations.base import Opaque, Operation, Replay, Slot, WholeModel
from tfexplain.operations.elementwise import RECTIFIERS, Activation, Affine, Scaling
from tfexplain.operations.linear import (
    LINEAR_LAYERS,
    ConvolutionLinear,
    DenseLinear,
    EinsumLinear,
    Linear,
)
from tfexplain.operations.merges import Concatenation, Product, Sum
from tfexplain.operations.pooling import AveragePooling, GlobalMaxPooling, MaxPooling
from tfexplain.operations.structure import Lookup, Rearrangement, Reshaping

__all__ = [
    "LINEAR_LAYERS",
    "RECTIFIERS",
    "Activation",
    "Affine",
    "AveragePooling",
    "Concatenation",
    "ConvolutionLinear",
    "DenseLinear",
    "EinsumLinear",
    "GlobalMaxPooling",
    "Linear",
    "Lookup",
    "MaxPooling",
    "Opaque",
    "Operation",
    "Product",
    "Rearrangement",
    "Replay",
    "Reshaping",
    "Scaling",
    "Slot",
    "Sum",
    "WholeModel",
]
