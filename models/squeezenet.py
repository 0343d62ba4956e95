"""SqueezeNet 1.1 as trained for Caffe; no batch normalisation and no dense layer."""

import os

import keras
from keras import layers

from models.weights import load_weights

# Units of squeeze1x1, and of each of expand1x1 and expand3x3.
_FIRE_UNITS = {
    "fire2": (16, 64),
    "fire3": (16, 64),
    "fire4": (32, 128),
    "fire5": (32, 128),
    "fire6": (48, 192),
    "fire7": (48, 192),
    "fire8": (64, 256),
    "fire9": (64, 256),
}


def squeezenet(
    weights: str | os.PathLike | None = None,
    *,
    classifier_activation: str | None = "softmax",
    input_size: int = 227,
) -> keras.Model:
    """Builds SqueezeNet 1.1.

    Layers are called as in Caffe, with `_` for `/`: `fire2_squeeze1x1`. The ReLU is part of its
    convolution, so the output of a layer is Caffe's blob of the same name.

    Args:
        weights: Path of an `.npz` file with arrays `<layer>/kernel` and `<layer>/bias` (Caffe's
            layer names), or None for random weights.
        classifier_activation: Activation of the last layer; None gives logits, which are averages
            after a ReLU and thus never negative.
        input_size: Height and width of the input in pixels. 227 is that of Caffe.

    Returns:
        Model from (batch, input_size, input_size, 3), preprocessed by `models.images.caffe`, to
        (batch, 1000).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit.

    Example:
        >>> squeezenet().count_params()
        1235496
    """
    inputs = keras.Input((input_size, input_size, 3), name="input")
    x = layers.Conv2D(64, 3, strides=2, activation="relu", name="conv1")(inputs)
    for name, (squeeze_units, expand_units) in _FIRE_UNITS.items():
        if name in ("fire2", "fire4", "fire6"):
            x = _ceil_pool(x, f"pool{int(name[-1]) - 1}")
        x = _fire(x, name, squeeze_units, expand_units)
    x = layers.Dropout(0.5, name="drop9")(x)
    x = layers.Conv2D(1000, 1, activation="relu", name="conv10")(x)
    x = layers.GlobalAveragePooling2D(name="pool10")(x)
    if classifier_activation is not None:
        x = layers.Activation(classifier_activation, name="prob")(x)
    model = keras.Model(inputs, x, name="squeezenet")
    if weights is not None:
        load_weights(model, weights, _array_names)
    return model


def _ceil_pool(x, name: str):
    # Caffe rounds the output size up, so a window may hang over the lower right edge. On an even
    # size that is "same"; on an odd size the windows fit, and "same" would shift them by one.
    padding = "same" if x.shape[1] % 2 == 0 else "valid"
    return layers.MaxPooling2D(3, strides=2, padding=padding, name=name)(x)


def _fire(x, name: str, squeeze_units: int, expand_units: int):
    x = layers.Conv2D(squeeze_units, 1, activation="relu", name=f"{name}_squeeze1x1")(x)
    expand_1 = layers.Conv2D(expand_units, 1, activation="relu", name=f"{name}_expand1x1")(x)
    expand_3 = layers.Conv2D(
        expand_units, 3, padding="same", activation="relu", name=f"{name}_expand3x3"
    )(x)
    return layers.Concatenate(name=f"{name}_concat")([expand_1, expand_3])


def _array_names(layer: layers.Layer) -> list[str]:
    return [f"{layer.name.replace('_', '/')}/{variable.name}" for variable in layer.weights]
