"""ResNet-20, 32, 44 and 56 for CIFAR-10, with shortcuts that have no weights (option A)."""

import os

import keras
import numpy as np
from keras import layers

from models.weights import load_weights

_TORCH_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def cifar_resnet20(
    weights: str | os.PathLike | None = None, *, classifier_activation: str | None = None
) -> keras.Model:
    """Builds the ResNet of 20 layers (3 blocks per stage, 271,098 parameters).

    Layers are called as in the PyTorch original, with `_` for `.`: `layer1_0_conv1`. As there, the
    output are logits unless an activation is asked for.

    Args:
        weights: Path of an `.npz` file with the names and axes of PyTorch, or None for random
            weights.
        classifier_activation: Activation of the last layer, for example "softmax".

    Returns:
        Model from (batch, 32, 32, 3), preprocessed by `models.images.cifar_resnet`, to
        (batch, 10).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit.

    Example:
        >>> cifar_resnet20().count_params()
        271098
    """
    return _cifar_resnet(20, weights, classifier_activation)


def cifar_resnet32(
    weights: str | os.PathLike | None = None, *, classifier_activation: str | None = None
) -> keras.Model:
    """Builds the ResNet of 32 layers (5 blocks per stage); see `cifar_resnet20`."""
    return _cifar_resnet(32, weights, classifier_activation)


def cifar_resnet44(
    weights: str | os.PathLike | None = None, *, classifier_activation: str | None = None
) -> keras.Model:
    """Builds the ResNet of 44 layers (7 blocks per stage); see `cifar_resnet20`."""
    return _cifar_resnet(44, weights, classifier_activation)


def cifar_resnet56(
    weights: str | os.PathLike | None = None, *, classifier_activation: str | None = None
) -> keras.Model:
    """Builds the ResNet of 56 layers (9 blocks per stage); see `cifar_resnet20`."""
    return _cifar_resnet(56, weights, classifier_activation)


def _cifar_resnet(
    depth: int, weights: str | os.PathLike | None, classifier_activation: str | None
) -> keras.Model:
    inputs = keras.Input((32, 32, 3), name="input")
    x = _convolution(inputs, 16, 1, "conv1")
    x = _normalization(x, "bn1")
    x = layers.ReLU(name="relu")(x)
    for stage, units in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            x = _block(x, units, f"layer{stage}_{block}")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(10, activation=classifier_activation, name="linear")(x)
    model = keras.Model(inputs, x, name=f"cifar_resnet{depth}")
    if weights is not None:
        load_weights(model, weights, _array_names, _torch_to_keras)
    return model


def _block(x, units: int, name: str):
    widens = x.shape[-1] != units
    shortcut = _shortcut(x, units, name) if widens else x
    x = _convolution(x, units, 2 if widens else 1, f"{name}_conv1")
    x = _normalization(x, f"{name}_bn1")
    x = layers.ReLU(name=f"{name}_relu1")(x)
    x = _convolution(x, units, 1, f"{name}_conv2")
    x = _normalization(x, f"{name}_bn2")
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_out")(x)


def _shortcut(x, units: int, name: str):
    # The original is x[:, ::2, ::2, :]. Keras records slicing as an operation of its own, whose
    # arguments (slices) hide that it is linear; averages over windows of one pixel are the same
    # numbers, and average pooling is a linear layer that any graph walk knows.
    x = layers.AveragePooling2D(1, strides=2, name=f"{name}_shortcut_pool")(x)
    # No layer pads channels, and one of ours would be unknown to others. The operation keeps the
    # constant 0 in its arguments, which makes it linear as well.
    padding = (units - x.shape[-1]) // 2
    return keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (padding, padding)))


def _convolution(x, units: int, strides: int, name: str):
    padding = "same"
    if strides == 2:
        # PyTorch pads 1 on each side, "same" would pad 0 before and 1 after.
        x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
        padding = "valid"
    return layers.Conv2D(units, 3, strides=strides, padding=padding, use_bias=False, name=name)(x)


def _normalization(x, name: str):
    return layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=name)(x)


def _array_names(layer: layers.Layer) -> list[str]:
    torch_name = layer.name.replace("_", ".")
    return [f"{torch_name}.{_TORCH_NAMES[variable.name]}" for variable in layer.weights]


def _torch_to_keras(array: np.ndarray) -> np.ndarray:
    # (out, in, height, width) -> (height, width, in, out); (out, in) -> (in, out)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
