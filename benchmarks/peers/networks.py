"""The small networks on which tfexplain is compared with its peers, for Keras 2 and Keras 3 alike.

A network is described by a list of layers (class name, name, names of its inputs, arguments), so
that a peer that needs Keras 2 and tfexplain, which needs Keras 3, build the same model.
"""

from __future__ import annotations

import json
import os
from typing import Any

import keras
import numpy as np


def _layer(class_name: str, name: str, inputs: list[str] | str, **kwargs: Any) -> dict[str, Any]:
    inputs = [inputs] if isinstance(inputs, str) else inputs
    return {"class_name": class_name, "name": name, "inputs": inputs, "kwargs": kwargs}


def _vgg_like() -> list[dict[str, Any]]:
    """Stacked convolutions and max pooling, then two dense layers."""
    conv = {"kernel_size": [3, 3], "padding": "same", "activation": "relu"}
    return [
        _layer("Input", "input", [], shape=[12, 12, 3]),
        _layer("Conv2D", "conv_1", "input", filters=8, **conv),
        _layer("Conv2D", "conv_2", "conv_1", filters=8, **conv),
        _layer("MaxPooling2D", "pool_1", "conv_2", pool_size=[2, 2]),
        _layer("Conv2D", "conv_3", "pool_1", filters=12, **conv),
        _layer("MaxPooling2D", "pool_2", "conv_3", pool_size=[2, 2]),
        _layer("Flatten", "flatten", "pool_2"),
        _layer("Dense", "dense_1", "flatten", units=16, activation="relu"),
        _layer("Dense", "logits", "dense_1", units=10),
    ]


def _sequence() -> list[dict[str, Any]]:
    """One-dimensional convolutions, without and with padding, and average pooling."""
    return [
        _layer("Input", "input", [], shape=[24, 6]),
        _layer("Conv1D", "conv_1", "input", filters=8, kernel_size=5, activation="relu"),
        _layer(
            "Conv1D",
            "conv_2",
            "conv_1",
            filters=8,
            kernel_size=3,
            padding="same",
            activation="relu",
        ),
        _layer("AveragePooling1D", "pool", "conv_2", pool_size=2),
        _layer("Flatten", "flatten", "pool"),
        _layer("Dense", "dense_1", "flatten", units=12, activation="relu"),
        _layer("Dense", "logits", "dense_1", units=4),
    ]


def _residual() -> list[dict[str, Any]]:
    """Two convolutional branches with signed values, their sum, global average pooling.

    The relu after the sum is an Activation layer, since innvestigate's LRP refuses ReLU layers, and
    the addition is not called "add", the name that innvestigate gives to layers of its own.
    """
    same = {"padding": "same"}
    return [
        _layer("Input", "input", [], shape=[8, 8, 3]),
        _layer("Conv2D", "stem", "input", filters=8, kernel_size=[3, 3], activation="relu", **same),
        _layer(
            "Conv2D", "long_1", "stem", filters=8, kernel_size=[3, 3], activation="relu", **same
        ),
        _layer("Conv2D", "long_2", "long_1", filters=8, kernel_size=[3, 3], **same),
        _layer("Conv2D", "short", "stem", filters=8, kernel_size=[1, 1]),
        _layer("Add", "sum", ["long_2", "short"]),
        _layer("Activation", "sum_relu", "sum", activation="relu"),
        _layer("GlobalAveragePooling2D", "pool", "sum_relu"),
        _layer("Dense", "logits", "pool", units=5),
    ]


NETWORKS = {"vgg_like": _vgg_like, "sequence": _sequence, "residual": _residual}


def config(name: str) -> list[dict[str, Any]]:
    """Returns the layers of the network of this name; the last one is the output."""
    if name not in NETWORKS:
        raise ValueError(f"Unknown network {name!r}; expected one of {', '.join(NETWORKS)}.")
    return NETWORKS[name]()


def build(layers: list[dict[str, Any]]) -> keras.Model:
    """Builds a functional model from a list of layers."""
    tensors: dict[str, Any] = {}
    for layer in layers:
        kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in layer["kwargs"].items()}
        create = getattr(keras.layers, layer["class_name"])
        inputs = [tensors[name] for name in layer["inputs"]]
        if not inputs:
            tensors[layer["name"]] = create(name=layer["name"], **kwargs)
        else:
            operation = create(name=layer["name"], **kwargs)
            tensors[layer["name"]] = operation(inputs if len(inputs) > 1 else inputs[0])
    sources = [tensors[layer["name"]] for layer in layers if not layer["inputs"]]
    output = tensors[layers[-1]["name"]]
    return keras.Model(sources if len(sources) > 1 else sources[0], output)


def set_weights(
    model: keras.Model, layers: list[dict[str, Any]], weights: list[np.ndarray]
) -> None:
    """Sets the weights, given in the order of the list of layers."""
    remaining = list(weights)
    for layer in layers:
        if layer["class_name"] == "Input":
            continue
        target = model.get_layer(layer["name"])
        count = len(target.get_weights())
        target.set_weights(remaining[:count])
        remaining = remaining[count:]
    if remaining:
        raise ValueError(f"{len(weights)} arrays given, {len(remaining)} more than the model has.")


def random_weights(model: keras.Model, seed: int) -> list[np.ndarray]:
    """Draws weights that keep the values of order one, with biases of both signs."""
    generator = np.random.default_rng(seed)
    weights = []
    for array in model.get_weights():
        kernel = array.ndim > 1
        scale = np.sqrt(2.0 / np.prod(array.shape[:-1])) if kernel else 0.3
        weights.append((scale * generator.standard_normal(array.shape)).astype("float32"))
    return weights


def load(path: str | os.PathLike[str]) -> tuple[keras.Model, dict[str, np.ndarray], dict[str, Any]]:
    """Reads a file of results.

    Args:
        path: A file that `run_innvestigate.py` has written.

    Returns:
        The network with its weights (in Keras' default precision), the arrays of the file, and its
        metadata.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    layers = json.loads(str(arrays["config"]))
    count = sum(name.startswith("weights/") for name in arrays)
    model = build(layers)
    set_weights(model, layers, [arrays[f"weights/{i}"] for i in range(count)])
    return model, arrays, json.loads(str(arrays["metadata"]))
