"""Networks and inputs for tests of Koopman credit."""

import keras
import numpy as np
from keras import layers


def samples(n, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape))


def linear(*sizes, seed=0, scale=1.0):
    """Dense layers without biases and activations, in float64."""
    model = keras.Sequential(
        [
            keras.Input((sizes[0],), dtype="float64"),
            *(
                layers.Dense(size, use_bias=False, name=f"d{i}", dtype="float64")
                for i, size in enumerate(sizes[1:])
            ),
        ]
    )
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        layer.set_weights([scale * generator.standard_normal(layer.kernel.shape)])
    return model


def weights(model):
    return [layer.get_weights()[0].T for layer in model.layers]
