"""VGG-16 of `keras.applications` with the layer names of "When Explanations Lie"."""

import os
from types import MappingProxyType

import keras

from models.applications import renamed_application

_CONVOLUTIONS = (2, 2, 3, 3, 3)

KERAS_NAMES = MappingProxyType(
    {
        **{
            name: old
            for block, number in enumerate(_CONVOLUTIONS, start=1)
            for name, old in [
                *((f"conv{block}_{i}", f"block{block}_conv{i}") for i in range(1, number + 1)),
                (f"pool{block}", f"block{block}_pool"),
            ]
        },
        "flatten": "flatten",
        "fc1": "fc1",
        "fc2": "fc2",
        "fc3": "predictions",
    }
)
"""Name of a layer here -> its name in `keras.applications`, in the order of the network."""


def vgg16(
    weights: str | os.PathLike | None = None,
    *,
    classifier_activation: str | None = "softmax",
    input_shape: tuple[int, int, int] = (224, 224, 3),
) -> keras.Model:
    """Builds VGG-16: thirteen convolutions and three dense layers.

    Layers are called conv1_1 .. conv5_3, pool1 .. pool5, flatten, fc1, fc2, fc3, and their
    positions in `model.layers` are those of the paper (input 0, pool5 18, fc3 22). Activations,
    also that of the last layer, are parts of their convolution or dense layer.

    Args:
        weights: None for random weights; "imagenet" for those of `keras.applications`, which may
            download; or the path of a `.weights.h5` or `.npz` file with the names here or those
            of `keras.applications`, or of an `.h5` file that `keras.applications` downloaded.
        classifier_activation: Activation of the last layer; None gives logits.
        input_shape: Height, width (each at least 32) and channels. The weights of fc1 depend on
            it.

    Returns:
        Model from (batch, *input_shape), preprocessed by `models.images.vgg_resnet`, to
        (batch, 1000).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit, or the imagenet weights cannot
            be loaded.

    Example:
        >>> model = vgg16(input_shape=(32, 32, 3))
        >>> [layer.name for layer in model.layers[:4]]
        ['input', 'conv1_1', 'conv1_2', 'pool1']
    """
    return renamed_application(
        keras.applications.VGG16,
        KERAS_NAMES,
        weights,
        input_shape=input_shape,
        classifier_activation=classifier_activation,
    )
