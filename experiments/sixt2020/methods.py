"""What the experiments on networks share: which methods run where, and their analyzers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from experiments import networks
from experiments.runs import Task
from experiments.sixt2020.patterns import fitted_patterns
from experiments.sixt2020.protocol import Method, Protocol, methods
from tfexplain.analyzers import Analyzer

# The five groups of the paper's figures and the gradient: "colorblind" of seaborn, and black.
GROUPS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#000000")

# Number of small images that patterns are fitted to; large ones have many positions each.
FITTED = 500
# Images up to this side in pixels are small enough for large batches.
SMALL_IMAGE = 64
# The methods of smoke runs: one of each kind.
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
    chosen = methods(protocol)
    if name == networks.TINY:
        chosen = {key: chosen[key] for key in TINY_METHODS}
    if residual and protocol.name == "published":
        chosen = {k: m for k, m in chosen.items() if not (m.fitted or k == "DTD")}
    return chosen


def create(
    task: Task, method: Method, model: keras.Model, x: np.ndarray, protocol: Protocol, **more: Any
) -> Analyzer:
    """Returns an analyzer with the range of its input (T11).

    Args:
        task: The task.
        method: The method.
        model: The network.
        x: Preprocessed images (n, *input_shape); the first is the paper's example image.
        protocol: The protocol.
        **more: See `Method.create`.
    """
    bounds = None
    if method.bounded:
        example = protocol.bounds == "example"
        bounds = (x[0].min(), x[0].max()) if example else networks.input_range(task.model)
    return method.create(model, bounds=bounds, **more)


def analyzers(
    task: Task, protocol: Protocol, model: keras.Model, x: np.ndarray
) -> Iterator[tuple[Method, Analyzer]]:
    """Returns each method of the paper's table that runs on a network, with its analyzer.

    Patterns are fitted once, to the photographs of the run or to more small images.

    Args:
        task: The task.
        protocol: The protocol.
        model: The network.
        x: The images of the run.
    """
    patterns = None
    for method in applicable(task.model, model, protocol).values():
        if method.fitted and patterns is None:
            many = _fitted_images(task, protocol, x)
            size = 4 if is_large(x) else 125
            patterns = fitted_patterns(model, many, protocol.output_mean, batch_size=size)
        more = {"patterns": patterns} if method.fitted else {}
        yield method, create(task, method, model, x, protocol, **more)


def _fitted_images(task: Task, protocol: Protocol, x: np.ndarray) -> np.ndarray:
    if is_large(x) or len(x) >= FITTED:
        return x
    request = dataclasses.replace(task.request, images=FITTED)
    return images(dataclasses.replace(task, request=request), protocol)[0]


def is_large(x: np.ndarray) -> bool:
    """Tells whether images are too large for large batches."""
    return max(x.shape[1:3]) > SMALL_IMAGE


def images(task: Task, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Returns images as a protocol feeds them (T1), drawn as it draws them (T14), and classes.

    Args:
        task: The task.
        protocol: The protocol.

    Returns:
        Arrays (n, height, width, channels), float32, and (n,), int64.
    """
    x, y = networks.images(task, replace=not protocol.shared_draws)
    return fed(task, protocol, x), y


def fed(task: Task, protocol: Protocol, x: np.ndarray) -> np.ndarray:
    """Returns preprocessed images in the range in which a protocol feeds them (T1)."""
    if protocol.cifar_range == "raw" and task.model == "cifar_cnn":
        return np.round(x * 255).astype("float32")
    return x
