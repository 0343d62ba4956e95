"""Credit of the blocks of a trained model: volumes of their Koopman operators [liang2022credit]."""

from tfexplain.koopman.alignment import alignment, distance_to_identity
from tfexplain.koopman.credit import credit
from tfexplain.koopman.operators import (
    Operator,
    Volume,
    eigenvalue_volume,
    fit,
    log_sensitivities,
    volume,
)
from tfexplain.koopman.partition import PARTITIONS, Block, blocks
from tfexplain.koopman.tables import OPERATORS

__all__ = [
    "OPERATORS",
    "PARTITIONS",
    "Block",
    "Operator",
    "Volume",
    "alignment",
    "blocks",
    "credit",
    "distance_to_identity",
    "eigenvalue_volume",
    "fit",
    "log_sensitivities",
    "volume",
]
