"""How much of a map is noise: its energy in high frequencies."""

from __future__ import annotations

import numpy as np

# Frequencies above it are noise; the highest is 0.5 along each axis.
CYCLES_PER_PIXEL = 0.25


def high_frequencies(map: np.ndarray) -> float:
    """Returns the share of a map's energy, without its mean, in high frequencies.

    White noise has about 0.8, a smooth map little.

    Args:
        map: Shape (height, width).

    Returns:
        0..1; not a number for a map that is constant or not finite.
    """
    if not np.isfinite(map).all() or np.ptp(map) == 0:
        return float("nan")
    power = np.abs(np.fft.fft2((map - map.mean()) / np.abs(map).max())) ** 2
    y, x = (np.fft.fftfreq(length) for length in map.shape)
    high = np.hypot(y[:, None], x[None]) > CYCLES_PER_PIXEL
    return float(power[high].sum() / power.sum())
