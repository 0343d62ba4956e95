"""What the experiments on networks share: which methods run where, and their analyzers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from experiments import networks
from experiments.runs import Part
from experiments.sixt2020.patterns import fitted_patterns
from experiments.sixt2020.protocol import Method, Protocol, methods
from models import images as preprocessing
from tfexplain.analyzers import Analyzer

# The five groups of the paper's figures and the gradient: "colorblind" of seaborn, and black.
GROUPS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#000000")

# Of smoke runs: one of each kind.
TINY_METHODS = (
    "GuidedBP",
    "DTD",
    "PatternAttr.",
    "LRP z",
    "LRP 1/0",
    "LRP CMP 1/0",
    "SmoothGrad",
    "DeepLIFT Resc",
    "Gradient",
)


def _colours() -> dict[str, str]:
    from experiments.sixt2020.protocol import CORRECTED

    return {name: GROUPS[method.group] for name, method in methods(CORRECTED).items()}


COLOURS = _colours()


def applicable(name: str, model: keras.Model, protocol: Protocol) -> dict[str, Method]:
    """Returns the methods that run on a network.

    As the paper has it, Deep Taylor and the pattern methods run on networks without additions; as
    published on those alone, whereas the corrected protocol has them everywhere.

    Args:
        name: Name of the network.
        model: The network.
        protocol: The protocol.
    """
    residual = any(isinstance(layer, keras.layers.Add) for layer in model.layers)
    found = methods(protocol)
    if name == networks.TINY:
        found = {key: found[key] for key in TINY_METHODS}
    if residual and protocol.name == "published":
        found = {k: m for k, m in found.items() if not (m.fitted or k == "DTD")}
    return found


def create(
    part: Part,
    method: Method,
    model: keras.Model,
    x: np.ndarray,
    protocol: Protocol,
    **options: Any,
) -> Analyzer:
    """Returns an analyzer with its bounds, and with patterns that are fitted to the images.

    Args:
        part: The part.
        method: The method.
        model: The network.
        x: Preprocessed images (n, *input_shape); the first is the paper's example image.
        protocol: The protocol.
        **options: Further options of the analyzer.
    """
    bounds = input_range(part, x, protocol) if method.bounded else None
    patterns = fitted_patterns(model, x, protocol.output_mean) if method.fitted else None
    return method.create(model, bounds=bounds, patterns=patterns, **options)


def input_range(part: Part, x: np.ndarray, protocol: Protocol) -> tuple[Any, Any]:
    """Returns the lowest and highest values of the input (T11).

    Returns:
        Of the first image as numbers ("example"), or what black and white become, per channel.
    """
    if protocol.bounds == "example":
        return float(x[0].min()), float(x[0].max())
    if part.model == networks.TINY:
        return 0.0, 1.0
    prepare = getattr(preprocessing, networks.network(part.model).preprocess)
    black, white = (prepare(np.full((1, 1, 1, 3), value, "uint8"))[0] for value in (0, 255))
    return np.minimum(black, white), np.maximum(black, white)
