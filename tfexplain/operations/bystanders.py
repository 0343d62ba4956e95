"""What a network computes beside its signal: masks, indices, sizes."""

from __future__ import annotations

from tfexplain.operations.base import Operation


class Bystander(Operation):
    """Computes operands: what other operations read without sending relevance to it.

    It may read anything. At the baseline of DeepLIFT and along the path of integrated gradients its
    results are those of the sample.
    """
