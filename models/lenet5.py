"""LeNet-5, as "Credit Assignment for Trained Neural Networks" (Liang et al. 2022) uses it."""

import os

import keras
from keras import layers

from models.weights import load_weights, weight_file


def lenet5(weights: str | os.PathLike | None = None) -> keras.Model:
    """Builds LeNet-5: two convolutions, each with a pool, and three dense layers.

    The paper cites LeCun et al. 1998 and names convolution, pooling and dense layers; it states no
    sizes, activations or training. Sizes are those of LeCun et al., 5 x 5 convolutions of 28 x 28
    pixels with two zeros on each side. Chosen here, unlike 1998: ReLU, average pools without
    weights, a second convolution that sees all channels, a plain dense layer of logits at the end.
    Every activation is a layer of its own; random weights are drawn as Keras draws them.

    Args:
        weights: Path of a `.weights.h5` file, "mnist" for the trained weights of this project, or
            None for random weights.

    Returns:
        Model from (batch, 28, 28, 1), preprocessed by `models.images.digits`, to (batch, 10).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit.

    Example:
        >>> lenet5().count_params()
        61706
    """
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="input"),
            layers.Conv2D(6, 5, padding="same", name="conv1"),
            layers.Activation("relu", name="relu1"),
            layers.AveragePooling2D(2, name="pool1"),
            layers.Conv2D(16, 5, name="conv2"),
            layers.Activation("relu", name="relu2"),
            layers.AveragePooling2D(2, name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(120, name="fc3"),
            layers.Activation("relu", name="relu3"),
            layers.Dense(84, name="fc4"),
            layers.Activation("relu", name="relu4"),
            layers.Dense(10, name="fc5"),
        ],
        name="lenet5",
    )
    if weights is not None:
        load_weights(model, weight_file("lenet5", weights))
    return model
