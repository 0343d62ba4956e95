"""Turns RGB images into what the networks of this package were trained on."""

import os

import numpy as np
from PIL import Image

_CAFFE_MEAN = (104.0, 117.0, 123.0)  # blue, green, red
_TORCH_MEAN = (0.485, 0.456, 0.406)  # red, green, blue
_TORCH_STD = (0.229, 0.224, 0.225)


def caffe(x: np.ndarray) -> np.ndarray:
    """Prepares images for GoogLeNet and SqueezeNet: BGR minus the mean colour.

    Args:
        x: RGB images, values 0..255, shape (n, height, width, 3).

    Returns:
        Float32 array of the same shape, channels in the order blue, green, red.

    Raises:
        ValueError: If shape or values are others.

    Example:
        >>> caffe(np.full((1, 1, 1, 3), 255, "uint8"))
        array([[[[151., 138., 132.]]]], dtype=float32)
    """
    return _ensure_rgb(x)[..., ::-1] - np.float32(_CAFFE_MEAN)


def mobilenet(x: np.ndarray) -> np.ndarray:
    """Prepares images for MobileNet: RGB scaled to -1..1.

    Args:
        x: RGB images, values 0..255, shape (n, height, width, 3).

    Returns:
        Float32 array of the same shape.

    Raises:
        ValueError: If shape or values are others.

    Example:
        >>> mobilenet(np.full((1, 1, 1, 3), 255, "uint8"))
        array([[[[1., 1., 1.]]]], dtype=float32)
    """
    return _ensure_rgb(x) / np.float32(127.5) - np.float32(1)


def cifar_resnet(x: np.ndarray) -> np.ndarray:
    """Prepares images for the CIFAR-10 ResNets: RGB standardised with ImageNet's mean and std.

    Args:
        x: RGB images, values 0..255, shape (n, height, width, 3).

    Returns:
        Float32 array of the same shape.

    Raises:
        ValueError: If shape or values are others.

    Example:
        >>> cifar_resnet(np.zeros((1, 1, 1, 3), "uint8")).round(2)
        array([[[[-2.12, -2.04, -1.8 ]]]], dtype=float32)
    """
    return (_ensure_rgb(x) / np.float32(255) - np.float32(_TORCH_MEAN)) / np.float32(_TORCH_STD)


def cifar_cnn(x: np.ndarray) -> np.ndarray:
    """Prepares images for the plain CIFAR-10 network: RGB scaled to 0..1.

    Args:
        x: RGB images, values 0..255, shape (n, height, width, 3).

    Returns:
        Float32 array of the same shape.

    Raises:
        ValueError: If shape or values are others.

    Example:
        >>> cifar_cnn(np.full((1, 1, 1, 3), 255, "uint8"))
        array([[[[1., 1., 1.]]]], dtype=float32)
    """
    return _ensure_rgb(x) / np.float32(255)


def load_photograph(path: str | os.PathLike, size: int, resize: int = 256) -> np.ndarray:
    """Reads a square from the middle of a photograph.

    Args:
        path: File that Pillow reads; grey images get three equal channels.
        size: Height and width of the result in pixels.
        resize: Length in pixels to which the shorter side is scaled (bilinear) before the crop.

    Returns:
        RGB uint8 array of shape (size, size, 3).

    Raises:
        ValueError: If `size` exceeds `resize`.
    """
    if size > resize:
        raise ValueError(
            f"Cannot crop {size} pixels from a photograph whose shorter side is scaled to "
            f"{resize}; pass resize >= {size}."
        )
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = resize / min(image.size)
    width, height = (max(resize, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _ensure_rgb(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(f"Got images of shape {x.shape}; expected (n, height, width, 3).")
    if x.size and not (x.min() >= 0 and x.max() <= 255):
        raise ValueError(
            f"Got values from {x.min()} to {x.max()}; expected RGB values 0..255, not yet "
            "preprocessed."
        )
    return x.astype("float32")
