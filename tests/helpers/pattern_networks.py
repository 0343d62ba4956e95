"""What tests of patterns share: networks, fitted analyzers, and patterns by NumPy."""

import keras
import numpy as np
from keras import layers

import tfexplain
from tests.helpers.networks import set_random_weights
from tfexplain.patterns import ESTIMATORS, OUTPUT_MEANS

NAMES = ("pattern.net", "pattern.attribution")
OPTIONS = [(e, m) for e in ESTIMATORS for m in OUTPUT_MEANS]
F64 = {"dtype": "float64"}


def fitted(model, x, name="pattern.net", batch_size=32, **options):
    return tfexplain.create_analyzer(name, model, **options).fit(x, batch_size=batch_size)


def sequential(shape, *parts, seed=0):
    model = keras.Sequential([keras.Input(shape, **F64), *parts])
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        set_random_weights(layer, generator)
    return model


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def reference(x, kernel, bias, estimator="relu", output_mean="active"):
    """Patterns (inputs, units) of all samples at once: c / (w . c), unit by unit, in two passes.

    x: (samples, inputs); kernel: (inputs, units).
    """
    y = x @ kernel
    patterns = np.zeros_like(kernel)
    for unit in range(kernel.shape[1]):
        on = y[:, unit] + bias[unit] > 0 if estimator == "relu" else np.ones(len(y), bool)
        if not on.any():
            continue
        seen, of = x[on], y[on, unit]
        mean = (of if output_mean == "active" else y[:, unit]).mean()
        c = ((seen - seen.mean(0)) * (of - of.mean())[:, None]).mean(0)
        c = c + seen.mean(0) * (of.mean() - mean)
        patterns[:, unit] = c / (kernel[:, unit] @ c)
    return patterns


def residual(seed=0, norm=True, activation="relu", dtype="float64"):
    """A residual network with what ResNets have."""
    options = {"dtype": dtype}
    inputs = keras.Input((8, 8, 3), dtype=dtype, name="pixels")

    def convolution(h, name, filters=4, size=3, activation=activation, **given):
        h = layers.Conv2D(filters, size, padding="same", name=name, **given, **options)(h)
        if norm:
            h = layers.BatchNormalization(name=f"{name}_norm", **options)(h)
        return layers.Activation(activation, name=f"{name}_out", **options)(h)

    h = convolution(inputs, "stem", strides=2)
    inner = convolution(convolution(h, "one"), "two", activation="linear")
    h = layers.Activation(activation, **options)(layers.Add(name="add1", **options)([h, inner]))
    inner = convolution(h, "three", 5, activation="linear")
    short = convolution(h, "short", 5, 1, activation="linear")
    h = layers.Add(name="add2", **options)([short, inner])
    h = layers.Activation(activation, name="last", **options)(h)
    h = layers.GlobalAveragePooling2D(name="average", **options)(h)
    model = keras.Model(inputs, layers.Dense(3, name="scores", activation="softmax", **options)(h))
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        set_random_weights(layer, generator)
        if isinstance(layer, layers.Conv2D):
            layer.kernel.assign(layer.kernel.numpy() / 3)
    return model
