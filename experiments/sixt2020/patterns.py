"""Patterns of networks without branches, and the single taps that figures 3 and 8 look at."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np

import tfexplain


def fitted_patterns(
    model: keras.Model, x: np.ndarray, output_mean: str, batch_size: int = 32
) -> dict[str, np.ndarray]:
    """Returns the patterns of all layers, shaped as their kernels, by the names of the layers.

    Args:
        model: A network.
        x: Images, (n, *input_shape).
        output_mean: "all" (as published) or "active", see `tfexplain.PatternNet`.
        batch_size: Images that are computed together.
    """
    analyzer = tfexplain.create_analyzer("pattern.net", model, output_mean=output_mean)
    return analyzer.fit(x, batch_size=batch_size).patterns


def taps(
    model: keras.Model, patterns: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Returns one (inputs, outputs) matrix for each layer of a network without branches.

    It is the centre tap of a convolution, the centre position of the map that a Dense layer reads
    behind Flatten, and the whole kernel of other Dense layers. The centre of `size` is number
    (size - 1) // 2.

    Args:
        model: A network of Conv2D and Dense layers, one after the other.
        patterns: If given, kernels are multiplied by them.

    Returns:
        Name of the layer -> float64 matrix, in the order of the forward pass.

    Raises:
        ValueError: If the matrices of two layers do not fit together.
    """
    matrices: dict[str, np.ndarray] = {}
    flattened = None
    for layer in model.layers:
        if isinstance(layer, keras.layers.Flatten):
            flattened = layer.input.shape[1:]
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            continue
        kernel = layer.kernel.numpy().astype("float64")
        if patterns is not None:
            kernel = kernel * patterns[layer.name]
        if flattened is not None:
            kernel, flattened = kernel.reshape(*flattened, kernel.shape[-1]), None
        kernel = kernel[tuple((size - 1) // 2 for size in kernel.shape[:-2])]
        if matrices and (before := list(matrices.values())[-1].shape[1]) != kernel.shape[0]:
            raise ValueError(
                f"{layer.name} reads {kernel.shape[0]} channels, but the layer before it makes "
                f"{before}. Chains need a network without branches, as cifar_cnn and vgg16."
            )
        matrices[layer.name] = kernel
    return matrices
