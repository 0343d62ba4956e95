"""The MNIST network of "Uncovering the Structure of Explanation Quality" (Maess et al. 2025)."""

import os

import keras
from keras import layers

from models.weights import load_weights, weight_file


def mnist_cnn(weights: str | os.PathLike | None = None) -> keras.Model:
    """Builds the network of appendix D: six convolutions in two blocks, and one dense layer.

    Convolutions of 3 x 3 keep the size, those of 5 x 5 do not. Every activation is a layer of its
    own; the output are logits. The text at hand of the appendix has lost its numbers: widths, the
    first pool and the training (`models.train`) are those of a network in the first author's
    public research code, which is not that of the paper but agrees with everything the text still
    says. Random kernels and biases are drawn as PyTorch draws them, uniformly within
    1 / sqrt(fan in) of zero.

    Args:
        weights: Path of a `.weights.h5` file, "mnist" for the trained weights of this project, or
            None for random weights.

    Returns:
        Model from (batch, 28, 28, 1), preprocessed by `models.images.digits`, to (batch, 10).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit.

    Example:
        >>> mnist_cnn().count_params()
        12698
    """
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="input"),
            layers.Conv2D(8, 3, padding="same", name="conv1", **_uniform(3 * 3)),
            layers.Activation("relu", name="relu1"),
            layers.Conv2D(8, 3, padding="same", name="conv2", **_uniform(3 * 3 * 8)),
            layers.Activation("relu", name="relu2"),
            layers.Conv2D(8, 5, name="conv3", **_uniform(5 * 5 * 8)),
            layers.Activation("relu", name="relu3"),
            layers.MaxPooling2D(2, name="pool1"),
            layers.Conv2D(16, 5, name="conv4", **_uniform(5 * 5 * 8)),
            layers.Activation("relu", name="relu4"),
            layers.Conv2D(16, 3, padding="same", name="conv5", **_uniform(3 * 3 * 16)),
            layers.Activation("relu", name="relu5"),
            layers.Conv2D(16, 3, padding="same", name="conv6", **_uniform(3 * 3 * 16)),
            layers.Activation("relu", name="relu6"),
            layers.MaxPooling2D(2, name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(10, name="fc7", **_uniform(4 * 4 * 16)),
        ],
        name="mnist_cnn",
    )
    if weights is not None:
        load_weights(model, weight_file("mnist_cnn", weights))
    return model


def _uniform(fan_in: int) -> dict[str, keras.Initializer]:
    """The initializers of PyTorch's convolutions and dense layers, as arguments."""
    limit = fan_in**-0.5
    return {
        f"{part}_initializer": keras.initializers.RandomUniform(-limit, limit)
        for part in ("kernel", "bias")
    }
