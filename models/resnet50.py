"""ResNet-50 (version 1) of `keras.applications` with the names of "When Explanations Lie"."""

import os
from types import MappingProxyType

import keras

from models.applications import renamed_application

_BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}  # stage -> number of residual blocks


def _keras_names() -> dict[str, str]:
    names = {
        "conv1_pad": "conv1_pad",
        "conv1": "conv1_conv",
        "conv1_bn": "conv1_bn",
        "conv1_relu": "conv1_relu",
        "maxpool_pad": "pool1_pad",
        "maxpool": "pool1_pool",
    }
    for stage, number in _BLOCKS.items():
        for block in range(1, number + 1):
            old = f"conv{stage}_block{block}"
            convolutions = {
                f"conv{stage}_{block}a": f"{old}_1",
                f"conv{stage}_{block}b": f"{old}_2",
                f"conv{stage}_{block}c": f"{old}_3",
            }
            if block == 1:
                convolutions[f"conv{stage}_skip"] = f"{old}_0"
            for name, convolution in convolutions.items():
                names[name] = f"{convolution}_conv"
                names[f"{name}_bn"] = f"{convolution}_bn"
                if name[-1] in "ab":
                    names[f"{name}_relu"] = f"{convolution}_relu"
            names[f"block{stage}_{block}_add"] = f"{old}_add"
            names[f"block{stage}_{block}"] = f"{old}_out"
    return {**names, "avgpool": "avg_pool", "dense": "predictions"}


KERAS_NAMES = MappingProxyType(_keras_names())
"""Name of a layer here -> its name in `keras.applications`."""

PAPER_NAMES = (
    "input",
    *(name for name in KERAS_NAMES if not name.endswith(("_pad", "_bn", "_relu", "_add"))),
)
"""The 73 names that the paper uses; padding, normalisation, inner ReLU and sum have none there."""


def resnet50(
    weights: str | os.PathLike | None = None,
    *,
    classifier_activation: str | None = "softmax",
    input_shape: tuple[int, int, int] = (224, 224, 3),
    epsilon: float = 1.001e-5,
) -> keras.Model:
    """Builds ResNet-50: bottlenecks with the stride in their first convolution.

    The convolutions of block 1 of stage 2 are called conv2_1a, conv2_1b, conv2_1c and conv2_skip,
    and block2_1 is the ReLU behind the sum of that block; what belongs to a convolution or block
    has its name with `_pad`, `_bn`, `_relu` or `_add` behind. The positions of all other names in
    `model.layers` are those of the paper (block2_1 18, dense 176); only the skip convolution and
    the third one of its block change places, 13 and 14, as Keras orders them today.

    Args:
        weights: None for random weights; "imagenet" for those of `keras.applications`, which may
            download; or the path of a `.weights.h5` or `.npz` file with the names here or those
            of `keras.applications`, or of an `.h5` file that `keras.applications` downloaded.
        classifier_activation: Activation of the last layer; None gives logits.
        input_shape: Height, width (each at least 32) and channels. No weight depends on height
            and width.
        epsilon: Added to the variances of all batch normalisations. The default is that of Keras
            today; the Keras 2.2 of the paper had 1e-3.

    Returns:
        Model from (batch, *input_shape), preprocessed by `models.images.vgg_resnet`, to
        (batch, 1000).

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit, or the imagenet weights cannot
            be loaded.

    Example:
        >>> model = resnet50(input_shape=(32, 32, 3))
        >>> [layer.name for layer in model.layers[15:19]]
        ['conv2_skip_bn', 'conv2_1c_bn', 'block2_1_add', 'block2_1']
    """
    return renamed_application(
        keras.applications.ResNet50,
        KERAS_NAMES,
        weights,
        epsilon=epsilon,
        input_shape=input_shape,
        classifier_activation=classifier_activation,
    )
