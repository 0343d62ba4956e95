"""GoogLeNet (Inception v1) as trained by BVLC for Caffe; no batch normalisation."""

import os
import re

import keras
import tensorflow as tf
from keras import layers

from models.weights import load_weights

# Units of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj (table 1 of Szegedy et al. 2015).
_INCEPTION_UNITS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


@keras.saving.register_keras_serializable(package="tfexplain_models")
class LocalResponseNormalization(layers.Layer):
    """Divides every channel by a power of the energy of its neighbours.

    y_c = x_c / (bias + alpha * sum_{|d - c| <= depth_radius} x_d^2)^beta, channels last. No
    weights. The defaults are those of GoogLeNet; Caffe divides alpha by the number of channels in
    the window (5), TensorFlow and this layer do not.

    Args:
        depth_radius: Integer >= 0, channels on each side.
        bias: Float, keeps the denominator away from 0.
        alpha: Float, weight of the energy.
        beta: Float, exponent.
        **kwargs: Passed to `keras.layers.Layer`.

    Example:
        >>> LocalResponseNormalization()(keras.ops.ones((1, 1, 1, 8))).shape
        TensorShape([1, 1, 1, 8])
    """

    # Each channel is divided by a number close to the same for its neighbours, so relevance methods
    # let the relevance pass, as they do at activations.
    relevance_policy = "pass"

    def __init__(
        self,
        depth_radius: int = 2,
        bias: float = 1.0,
        alpha: float = 1e-4 / 5,
        beta: float = 0.75,
        **kwargs,
    ):
        """Keeps the settings; see the class."""
        super().__init__(**kwargs)
        self.depth_radius = depth_radius
        self.bias = bias
        self.alpha = alpha
        self.beta = beta

    def call(self, inputs):
        """Normalises a batch.

        Args:
            inputs: Shape (batch, height, width, channels), any floating dtype.

        Returns:
            Same shape and dtype.
        """
        if inputs.dtype != "float64":
            return tf.nn.local_response_normalization(
                inputs, self.depth_radius, self.bias, self.alpha, self.beta
            )
        # TensorFlow's kernels stop at float32, and a cast would hide the loss of precision. An
        # average over the channels as if they were steps in time does the same in float64.
        channels = inputs.shape[-1]
        window = 2 * self.depth_radius + 1
        padding = ((0, 0), (0, 0), (0, 0), (self.depth_radius, self.depth_radius))
        energy = keras.ops.pad(keras.ops.square(inputs), padding)
        energy = keras.ops.reshape(energy, (-1, channels + window - 1, 1))
        energy = window * keras.ops.average_pool(energy, window, 1, "valid")
        energy = keras.ops.reshape(energy, keras.ops.shape(inputs))
        return inputs * keras.ops.power(self.bias + self.alpha * energy, -self.beta)

    def compute_output_shape(self, input_shape):
        """Gives the shape of the output, which is that of the input."""
        return input_shape

    def get_config(self):
        """Gives the arguments from which an equal layer is made."""
        return {
            **super().get_config(),
            "depth_radius": self.depth_radius,
            "bias": self.bias,
            "alpha": self.alpha,
            "beta": self.beta,
        }


def googlenet(
    weights: str | os.PathLike | None = None, *, classifier_activation: str | None = "softmax"
) -> keras.Model:
    """Builds GoogLeNet without its two auxiliary classifiers.

    Layers are called as in Caffe, with `_` for `/`: `inception_3a_5x5_reduce`. The ReLU is part of
    its convolution, so the output of a layer is Caffe's blob of the same name.

    Args:
        weights: Path of an `.npz` file with arrays `<layer>/kernel` and `<layer>/bias` (Caffe's
            layer names), or None for random weights.
        classifier_activation: Activation of the last layer; None gives logits.

    Returns:
        Model from (batch, 224, 224, 3), preprocessed by `models.images.caffe`, to (batch, 1000).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit.

    Example:
        >>> googlenet().count_params()
        6998552
    """
    inputs = keras.Input((224, 224, 3), name="input")
    # Caffe pads 3 on each side, "same" would pad 2 before and 3 after.
    x = layers.ZeroPadding2D(3, name="conv1_pad")(inputs)
    x = layers.Conv2D(64, 7, strides=2, activation="relu", name="conv1_7x7_s2")(x)
    x = _pool("pool1_3x3_s2", strides=2)(x)
    x = LocalResponseNormalization(name="pool1_norm1")(x)
    x = _convolution(64, 1, "conv2_3x3_reduce")(x)
    x = _convolution(192, 3, "conv2_3x3")(x)
    x = LocalResponseNormalization(name="conv2_norm2")(x)
    x = _pool("pool2_3x3_s2", strides=2)(x)
    for block, units in _INCEPTION_UNITS.items():
        if block in ("4a", "5a"):
            x = _pool(f"pool{int(block[0]) - 1}_3x3_s2", strides=2)(x)
        x = _inception(x, f"inception_{block}", units)
    x = layers.GlobalAveragePooling2D(name="pool5_7x7_s1")(x)
    x = layers.Dropout(0.4, name="pool5_drop_7x7_s1")(x)
    x = layers.Dense(1000, activation=classifier_activation, name="loss3_classifier")(x)
    model = keras.Model(inputs, x, name="googlenet")
    if weights is not None:
        load_weights(model, weights, _array_names)
    return model


def _inception(x, name: str, units: tuple[int, ...]):
    branch_1 = _convolution(units[0], 1, f"{name}_1x1")(x)
    branch_3 = _convolution(units[1], 1, f"{name}_3x3_reduce")(x)
    branch_3 = _convolution(units[2], 3, f"{name}_3x3")(branch_3)
    branch_5 = _convolution(units[3], 1, f"{name}_5x5_reduce")(x)
    branch_5 = _convolution(units[4], 5, f"{name}_5x5")(branch_5)
    branch_pool = _pool(f"{name}_pool", strides=1)(x)
    branch_pool = _convolution(units[5], 1, f"{name}_pool_proj")(branch_pool)
    return layers.Concatenate(name=f"{name}_output")([branch_1, branch_3, branch_5, branch_pool])


def _convolution(units: int, size: int, name: str) -> layers.Layer:
    return layers.Conv2D(units, size, padding="same", activation="relu", name=name)


def _pool(name: str, strides: int) -> layers.Layer:
    return layers.MaxPooling2D(3, strides=strides, padding="same", name=name)


def _array_names(layer: layers.Layer) -> list[str]:
    caffe_name = re.sub(r"^(conv\d|inception_\d[a-e]|loss3)_", r"\1/", layer.name)
    return [f"{caffe_name}/{variable.name}" for variable in layer.weights]
