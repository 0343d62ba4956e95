"""Canonical operations: the few kinds of steps that rules are written for.

Every Keras layer and operation of a model becomes one of these; `tfexplain.layer_types` says which.
`tfexplain.operations.base` says what an operation is, and what each family of rules asks of it.
"""

from tfexplain.operations.adaptive import AdaptiveMaxPooling
from tfexplain.operations.base import (
    Additive,
    Diagonal,
    Movement,
    Operation,
    Selection,
)
from tfexplain.operations.bystanders import Bystander
from tfexplain.operations.calls import Call, Node, Replay, Slot
from tfexplain.operations.cells import ConvolutionSum, DenseSum, SumOfLinear
from tfexplain.operations.elementwise import (
    RECTIFIERS,
    Activation,
    Affine,
    Scaling,
    SumOfTensors,
)
from tfexplain.operations.linear import (
    ConvolutionLinear,
    DenseLinear,
    EinsumLinear,
    Linear,
)
from tfexplain.operations.masks import Masked
from tfexplain.operations.merges import CellSum, Factors, Gate, Merge, Product, Quotient, Sum
from tfexplain.operations.normalizations import Normalization
from tfexplain.operations.opaque import Opaque, WholeModel
from tfexplain.operations.pooling import AveragePooling, GlobalMaxPooling, LogSumExp, MaxPooling
from tfexplain.operations.products import ConstantProduct, TensorProduct
from tfexplain.operations.scans import Scan, Step
from tfexplain.operations.structure import (
    Choice,
    Concatenation,
    Condition,
    Lookup,
    Rearrangement,
    Reshaping,
)

__all__ = [
    "RECTIFIERS",
    "Activation",
    "AdaptiveMaxPooling",
    "Additive",
    "Affine",
    "AveragePooling",
    "Bystander",
    "Call",
    "CellSum",
    "Choice",
    "Concatenation",
    "Condition",
    "ConstantProduct",
    "ConvolutionLinear",
    "ConvolutionSum",
    "DenseLinear",
    "DenseSum",
    "Diagonal",
    "EinsumLinear",
    "Factors",
    "Gate",
    "GlobalMaxPooling",
    "Linear",
    "LogSumExp",
    "Lookup",
    "Masked",
    "MaxPooling",
    "Merge",
    "Movement",
    "Node",
    "Normalization",
    "Opaque",
    "Operation",
    "Product",
    "Quotient",
    "Rearrangement",
    "Replay",
    "Reshaping",
    "Scaling",
    "Scan",
    "Selection",
    "Slot",
    "Step",
    "Sum",
    "SumOfLinear",
    "SumOfTensors",
    "TensorProduct",
    "WholeModel",
]
