"""What tests of parameter randomization share."""

import numpy as np
from keras import layers

from tests.helpers.networks import randomize, sequential


def images(count=4, shape=(6, 7, 2), seed=1):
    return np.random.default_rng(seed).normal(size=(count, *shape))


def small(seed=0):
    """Two convolutions with a normalisation between, and logits."""
    return randomize(
        sequential(
            (6, 7, 2),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(4, 3, activation="relu", name="conv2"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="scores"),
        ),
        seed,
    )
