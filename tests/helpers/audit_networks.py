"""Networks and data that several tests of whole audits share."""

import numpy as np
from keras import layers
from PIL import Image

from tests.helpers.networks import randomize, sequential


def table_network():
    return randomize(
        sequential((6,), layers.Dense(8, "relu", name="hidden"), layers.Dense(3, name="scores"))
    )


def table_columns():
    return np.random.default_rng(0).normal(size=(5, 6)).astype("float32")


def write_data(path):
    """Writes photos/{cat,dog,eel}, two each, and arrays for a table; returns the array."""
    generator = np.random.default_rng(0)
    for place, name in enumerate(("cat", "dog", "eel")):
        (path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            pixels = generator.integers(0, 255, (6, 6), "uint8")
            Image.fromarray(pixels).save(path / "photos" / name / f"{place}{number}.png")
    x = generator.normal(size=(4, 5)).astype("float32")
    np.save(path / "x.npy", x)
    np.savez(path / "xy.npz", x=x, y=[2, 1, 0, 0])
    return x
