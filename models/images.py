"""Turns images into what the networks of this package were trained on.

Photographs become squares in one of two ways (`load_photograph`): the middle of the image, as the
published accuracies of ImageNet networks are measured, or the whole image squeezed into the
square, as "When Explanations Lie" (Sixt, Granz, Landgraf 2020) explains them.
"""

import os
from typing import BinaryIO

import numpy as np
from PIL import Image

_CAFFE_MEAN = (104.0, 117.0, 123.0)  # blue, green, red
_VGG_MEAN = (103.939, 116.779, 123.68)  # blue, green, red
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


def vgg_resnet(x: np.ndarray) -> np.ndarray:
    """Prepares images for VGG-16 and ResNet-50: BGR minus the mean colour, not scaled.

    The same as `preprocess_input` of `keras.applications.vgg16` and `.resnet`.

    Args:
        x: RGB images, values 0..255, shape (n, height, width, 3).

    Returns:
        Float32 array of the same shape, channels in the order blue, green, red.

    Raises:
        ValueError: If shape or values are others.

    Example:
        >>> vgg_resnet(np.full((1, 1, 1, 3), 255, "uint8")).round(2)
        array([[[[151.06, 138.22, 131.32]]]], dtype=float32)
    """
    return _ensure_rgb(x)[..., ::-1] - np.float32(_VGG_MEAN)


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


def digits(x: np.ndarray) -> np.ndarray:
    """Prepares images for the MNIST network and LeNet-5: scaled to 0..1.

    Args:
        x: Grey images, values 0..255, shape (n, height, width), as in Keras.

    Returns:
        Float32 array of shape (n, height, width, 1).

    Raises:
        ValueError: If shape or values are others.

    Example:
        >>> digits(np.full((1, 1, 2), 255, "uint8"))
        array([[[[1.],
                 [1.]]]], dtype=float32)
    """
    x = np.asarray(x)
    if x.ndim != 3:
        raise ValueError(f"Got images of shape {x.shape}; expected (n, height, width).")
    return (_ensure_pixels(x, "grey") / np.float32(255))[..., None]


def pooled_digits(x: np.ndarray) -> np.ndarray:
    """Prepares images for the network of pooled digits: largest of 3 x 3 pixels, scaled to 0..1.

    Args:
        x: Grey images, values 0..255, shape (n, height, width), as in Keras.

    Returns:
        Float32 array of shape (n, height // 3, width // 3, 1).

    Raises:
        ValueError: If shape or values are others.

    Example:
        >>> pooled_digits(np.zeros((1, 28, 28), "uint8")).shape
        (1, 9, 9, 1)
    """
    return max_pool(digits(x), 3)


def max_pool(x: np.ndarray, size: int) -> np.ndarray:
    """Takes the largest value of each square of pixels; squares do not overlap.

    Args:
        x: Images of shape (n, height, width, channels).
        size: Length of a side of the squares in pixels. Rows and columns at the end that fill no
            square are left out.

    Returns:
        Array (n, height // size, width // size, channels) of the same dtype.

    Example:
        >>> max_pool(np.arange(16).reshape(1, 4, 4, 1), 3)
        array([[[[10]]]])
    """
    n, height, width, channels = x.shape
    rows, columns = height // size, width // size
    squares = x[:, : rows * size, : columns * size].reshape(n, rows, size, columns, size, channels)
    return squares.max(axis=(2, 4))


def load_photograph(path: str | os.PathLike, size: int, resize: int | None = 256) -> np.ndarray:
    """Reads a photograph as a square: its middle, or all of it with another aspect ratio.

    Args:
        path: File that Pillow reads; grey images get three equal channels.
        size: Height and width of the result in pixels.
        resize: Length in pixels to which the shorter side is scaled (bilinear) before the middle
            is cut out. None scales the whole photograph to the square (bicubic) and cuts nothing.

    Returns:
        RGB uint8 array of shape (size, size, 3).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If `size` exceeds `resize` or is less than 1, or if the file is damaged, no
            image, or has more than 8 bits per channel.
    """
    if size < 1:
        raise ValueError(f"The size of a photograph is {size} pixels; expected at least 1.")
    if resize is not None and size > resize:
        raise ValueError(
            f"Cannot crop {size} pixels from a photograph whose shorter side is scaled to "
            f"{resize}; pass resize >= {size}."
        )
    image = _read_rgb(path)
    if resize is None:
        return np.array(image.resize((size, size), Image.Resampling.BICUBIC))
    scale = resize / min(image.size)
    width, height = (max(resize, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def read_image(path: str | os.PathLike | BinaryIO, name: str | None = None) -> np.ndarray:
    """Reads an image as it is.

    Args:
        path: File that Pillow reads, or its content as an open file; grey images get three equal
            channels.
        name: What messages call the file; its path by default.

    Returns:
        RGB uint8 array of shape (height, width, 3).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, no image, or has more than 8 bits per channel.
    """
    return np.array(_read_rgb(path, name))


def _read_rgb(path: str | os.PathLike | BinaryIO, name: str | None = None) -> Image.Image:
    name = str(path) if name is None else name
    try:
        with Image.open(path) as file:
            deep = file.mode.startswith(("I", "F"))
            image = file.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image {name!r}.") from None
    except Exception as error:  # Pillow raises many classes for damaged files
        raise ValueError(
            f"{name!r} cannot be read as an image ({type(error).__name__}: {error}). The file is "
            "damaged or of another kind; fetch it again or leave it out."
        ) from error
    if deep:
        raise ValueError(
            f"{name!r} has more than 8 bits per channel. Convert it to 8 bits; values above 255 "
            "would be cut off."
        )
    return image


def _ensure_rgb(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(f"Got images of shape {x.shape}; expected (n, height, width, 3).")
    return _ensure_pixels(x, "RGB")


def _ensure_pixels(x: np.ndarray, kind: str) -> np.ndarray:
    if x.size and not (x.min() >= 0 and x.max() <= 255):
        raise ValueError(
            f"Got values from {x.min()} to {x.max()}; expected {kind} values 0..255, not yet "
            "preprocessed."
        )
    return x.astype("float32")
