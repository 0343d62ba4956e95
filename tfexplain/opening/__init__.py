"""Opens calls that have no rule of their own: their TensorFlow operations get the rules.

Custom and composite layers, `Lambda`, functions given as activations, subclassed models and
`TFSMLayer` are traced into a graph of TensorFlow (`steps`). Each value is a constant, a bystander
or part of the signal (`parts`). What makes up one operation together is recognised (`recognition`),
each operation of TensorFlow becomes a canonical one (`table`), and these become calls (`building`).
"""

from __future__ import annotations

from collections.abc import Collection

from tfexplain.opening.building import Builder, Canonical
from tfexplain.opening.parts import Part
from tfexplain.opening.steps import IsKnown, trace_call
from tfexplain.operations import Call

__all__ = ["opened"]


def opened(
    call: Call, is_known: IsKnown, canonical: Canonical, beside: Collection[int] = ()
) -> list[Call]:
    """Returns the canonical calls of what a call computes inside.

    Args:
        call: A call of Keras that has no rule of its own.
        is_known: Tells whether a layer inside of it has one.
        canonical: Makes canonical calls of a layer that has.
        beside: Numbers of the floating tensors it reads that relevance does not go through.

    Raises:
        Unopened: If it holds what cannot be opened; the message says only why.
        UnsupportedLayerError: If it cannot be explained at all: it mixes samples, or is random.
    """
    return Builder(Part(trace_call(call, is_known), beside), call, canonical).build()
