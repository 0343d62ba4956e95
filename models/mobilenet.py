"""MobileNet v1 of width 0.75: depthwise convolutions and unfolded batch normalisation."""

import os

import keras

from models.weights import load_weights


def mobilenet(
    weights: str | os.PathLike | None = None, *, classifier_activation: str | None = "softmax"
) -> keras.Model:
    """Builds `keras.applications.MobileNet` with alpha 0.75.

    Keras would load the file as well, but match layers by order and ignore what is left over.

    Args:
        weights: Path of a `.weights.h5` file, or None for random weights.
        classifier_activation: Activation of the last layer; None gives logits.

    Returns:
        Model from (batch, 224, 224, 3), preprocessed by `models.images.mobilenet`, to
        (batch, 1000).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit.

    Example:
        >>> mobilenet().count_params()
        2601976
    """
    model = keras.applications.MobileNet(
        input_shape=(224, 224, 3),
        alpha=0.75,
        weights=None,
        classifier_activation=classifier_activation,
    )
    if weights is not None:
        load_weights(model, weights)
    return model
