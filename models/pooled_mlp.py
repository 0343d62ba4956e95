"""The fully connected network of "Credit Assignment for Trained Neural Networks" (Liang 2022)."""

import os

import keras
from keras import layers

from models.weights import load_weights, weight_file


def pooled_mlp(weights: str | os.PathLike | None = None) -> keras.Model:
    """Builds the network for digits of 9 x 9 pixels, of widths 81, 128, 64, 24 and 10.

    The paper states these widths, and that MNIST is max-pooled to 9 x 9 pixels; it states no
    activations and no training. Chosen here: pools of 3 x 3 without overlap, which leave out the
    last row and column of 28, ReLU, and logits as output. Every activation is a layer of its own;
    random weights are drawn as Keras draws them.

    Args:
        weights: Path of a `.weights.h5` file, "mnist" for the trained weights of this project, or
            None for random weights.

    Returns:
        Model from (batch, 9, 9, 1), preprocessed by `models.images.pooled_digits`, to (batch, 10).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit.

    Example:
        >>> pooled_mlp().count_params()
        20562
    """
    model = keras.Sequential(
        [
            keras.Input((9, 9, 1), name="input"),
            layers.Flatten(name="flatten"),
            layers.Dense(128, name="fc1"),
            layers.Activation("relu", name="relu1"),
            layers.Dense(64, name="fc2"),
            layers.Activation("relu", name="relu2"),
            layers.Dense(24, name="fc3"),
            layers.Activation("relu", name="relu3"),
            layers.Dense(10, name="fc4"),
        ],
        name="pooled_mlp",
    )
    if weights is not None:
        load_weights(model, weight_file("pooled_mlp", weights))
    return model
