"""What the experiments on networks share: which methods run where, and their analyzers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from experiments import networks
from experiments.runs import Part
from experiments.sixt2020.patterns import fitted_patterns
from experiments.sixt2020.protocol import Method, Protocol, methods
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
    bounds = None
    if method.bounded:
        # T11: published is the range of the example image.
        example = protocol.bounds == "example"
        bounds = (x[0].min(), x[0].max()) if example else networks.input_range(part.model)
    patterns = fitted_patterns(model, x, protocol.output_mean) if method.fitted else None
    return method.create(model, bounds=bounds, patterns=patterns, **options)


def images(part: Part, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and classes as a protocol draws (T14) and feeds them (T1).

    Args:
        part: The part.
        protocol: The protocol.

    Returns:
        Arrays (n, height, width, channels), float32, and (n,), int64.
    """
    x, y = networks.images(part, replace=not protocol.shared_draws)
    if part.model == "cifar_cnn" and protocol.cifar_range == "raw":
        x = x * np.float32(255)
    return x, y
