"""Single layers: the receptive field of their largest output, and what noise does to it.

innvestigate's reference files explain these layers; `test_closed_formulas.py` checks the same
without the files.
"""

import keras
import numpy as np

LAYERS = {
    "Dense": lambda: keras.layers.Dense(5),
    "Dense_relu": lambda: keras.layers.Dense(5, activation="relu"),
    "Conv2D": lambda: keras.layers.Conv2D(5, 3),
    "Conv2D_relu": lambda: keras.layers.Conv2D(5, 3, activation="relu"),
    "AveragePooling2D": lambda: keras.layers.AveragePooling2D(2),
    "MaxPooling2D": lambda: keras.layers.MaxPooling2D(2),
}
# Noise of standard deviation 1 opens and closes gates and moves the maximum, so that SmoothGrad
# depends on the draws; `check_draws` says what can be said.
NOISY = ("Conv2D_relu", "Dense_relu", "MaxPooling2D")


class Field:
    """The receptive field of the largest output of one sample.

    Attributes:
        x: Its inputs, flat.
        w: Their weights (kernel layers only).
        y: The output.
        place: Index of the field in the input.
    """

    def __init__(self, layer, x, kernel):
        self.layer = layer
        if layer.startswith("Dense"):
            size, self.kernels = 1, kernel.reshape(1, 1, *kernel.shape)
        elif layer.startswith("Conv"):
            size, self.kernels = 3, kernel
        else:
            size, self.kernels = 2, None
        step = size if self.kernels is None else 1
        best = None
        for row in range(0, x.shape[0] - size + 1, step):
            for column in range(0, x.shape[1] - size + 1, step):
                window = (slice(row, row + size), slice(column, column + size))
                outputs = self._outputs(x[window])
                index = int(np.argmax(outputs))
                if best is None or outputs[index] > best[0]:
                    best = (outputs[index], window, index)
        self.y, window, index = best
        if self.kernels is None:
            self.place = (*window, slice(index, index + 1))
            self.w = None
        else:
            self.place = (*window, slice(None))
            self.w = self.kernels[..., index].reshape(-1)
        self.x = x[self.place].reshape(-1)
        self.z = None if self.w is None else self.x * self.w

    def _outputs(self, window):
        if self.layer == "AveragePooling2D":
            return window.mean(axis=(0, 1))
        if self.layer == "MaxPooling2D":
            return window.max(axis=(0, 1))
        return np.tensordot(window, self.kernels, axes=3)

    def share(self, parts):
        """Returns y shared in proportion to `parts`; 0 where they add up to 0."""
        total = parts.sum()
        return parts * 0 if total == 0 else parts * self.y / total


def check_draws(relevance, field):
    """Checks SmoothGrad of 64 draws of standard deviation 1 at one of the layers `NOISY`.

    The share of open gates, or of wins, has a standard deviation of at most 1/16, so that it lies
    within 1/4 of its expectation.
    """
    inside = relevance[field.place].reshape(-1)
    assert np.count_nonzero(relevance) == np.count_nonzero(inside)
    generator = np.random.default_rng(19)
    if field.w is None:
        shares = inside
        draws = field.x + generator.normal(size=(20000, 4))
        expected = np.bincount(draws.argmax(axis=1), minlength=4) / len(draws)
        np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
    else:
        # All weights of the field pass the same gate.
        shares = inside / field.w
        np.testing.assert_allclose(shares, shares[0], rtol=1e-5)
        noise = generator.normal(size=20000)
        expected = np.mean(field.y + noise * np.linalg.norm(field.w) > 0)
        assert shares[0] < 1
    np.testing.assert_allclose(64 * shares, np.round(64 * shares), rtol=0, atol=1e-4)
    np.testing.assert_allclose(shares, expected, rtol=0, atol=0.25)
