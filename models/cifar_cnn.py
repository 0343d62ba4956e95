"""The plain CIFAR-10 network of "When Explanations Lie" (Sixt, Granz, Landgraf 2020)."""

import os

import keras
from keras import layers

from models.weights import load_weights


def cifar_cnn(
    weights: str | os.PathLike | None = None, *, classifier_activation: str | None = "softmax"
) -> keras.Model:
    """Builds the network of appendix D: four convolutions and two dense layers.

    Names are those of the authors; every activation is a layer of its own.

    Args:
        weights: Path of a `.weights.h5` file, or None for random weights.
        classifier_activation: Activation of the last layer; None leaves that layer out.

    Returns:
        Model from (batch, 32, 32, 3), preprocessed by `models.images.cifar_cnn`, to (batch, 10).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit.

    Example:
        >>> cifar_cnn().count_params()
        8640714
    """
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3), name="input"),
            layers.Conv2D(32, 3, padding="same", name="conv1"),
            layers.Activation("relu", name="relu1"),
            layers.Conv2D(64, 3, padding="same", name="conv2"),
            layers.Activation("relu", name="relu2"),
            layers.MaxPooling2D(2, name="pool2"),
            layers.Conv2D(128, 3, padding="same", name="conv3"),
            layers.Activation("relu", name="relu3"),
            layers.Conv2D(128, 3, padding="same", name="conv4"),
            layers.Activation("relu", name="relu4"),
            layers.MaxPooling2D(2, name="pool4"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.5, name="dropout5"),
            layers.Dense(1024, name="fc5"),
            layers.Activation("relu", name="relu5"),
            layers.Dropout(0.5, name="dropout6"),
            layers.Dense(10, name="fc6"),
        ],
        name="cifar_cnn",
    )
    if classifier_activation is not None:
        model.add(layers.Activation(classifier_activation, name=classifier_activation))
    if weights is not None:
        load_weights(model, weights)
    return model
