"""Non-negative convolutions: do maps converge at each location, or as a whole (section 2.2)?

Relevance is sent down through random kernels, as vectors of all locations and channels.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments.runs import Task
from experiments.sixt2020.chains import VECTORS, convolve, separations

# Maps of the grids: name -> (side in pixels, kernel size).
GRIDS = {
    "1x1 on 7x7": (7, 1),
    "3x3 on 7x7": (7, 3),
    "3x3 on 14x14": (14, 3),
    "3x3 on 28x28": (28, 3),
}
CHANNELS, LAYERS, REPETITIONS = 64, 12, 5
# A dense layer between maps of this side is a matrix of all locations and channels.
DENSE, DENSE_SIDE = "dense", 7
STARTS = ("random", "pooled")
# From how many locations single channels are sent down; all have equally many.
LOCATIONS = 4


def chains(task: Task) -> xr.Dataset:
    """Sends vectors through non-negative convolutions, and through dense layers.

    Vectors start with normal numbers at all locations, with the same normal vector at each location
    ("pooled"), which is what a global average pooling hands down, or with one at a single channel
    of a single location, so that rows of the product of all matrices are compared.

    Returns:
        Dataset with medians of 1 - |cos|: `whole` and `local` (grid, start, repetition, layers) of
        pairs of maps, and of what they have at a location; `within` and `across` (grid, repetition,
        layers) of what two channels of the same location, or of two locations, send down.
    """
    tiny = task.request.tiny
    channels, layers = (8, 4) if tiny else (CHANNELS, LAYERS)
    repetitions = 2 if tiny else REPETITIONS
    grids = {DENSE: (1, 1), **GRIDS} if not tiny else {DENSE: (1, 1), "3x3 on 7x7": (7, 3)}
    shape = (len(grids), len(STARTS), repetitions, layers + 1)
    local, whole = np.full(shape, np.nan), np.full(shape, np.nan)
    within, across = (np.full((len(grids), repetitions, layers + 1), np.nan) for _ in range(2))
    for place, (name, (side, size)) in enumerate(grids.items()):
        width = channels * DENSE_SIDE**2 if name == DENSE else channels
        for repetition in range(repetitions):
            generator = task.generator("grid", name, repetition)
            maps = {
                "random": generator.normal(size=(VECTORS, side, side, width)),
                "pooled": np.broadcast_to(
                    generator.normal(size=(VECTORS, 1, 1, width)), (VECTORS, side, side, width)
                ),
            }
            units, same = _units(
                task.generator("units", name, repetition),
                DENSE_SIDE if name == DENSE else side,
                channels,
            )
            maps["units"] = units.reshape(VECTORS, side, side, width)
            for layer in range(layers + 1):
                if layer:
                    kernel = np.maximum(generator.normal(size=(size, size, width, width)), 0)
                    maps = {key: _rescaled(convolve(x, kernel)) for key, x in maps.items()}
                for column, key in enumerate(STARTS):
                    x = maps[key]
                    whole[place, column, repetition, layer] = np.median(
                        separations(x.reshape(VECTORS, -1))
                    )
                    # All locations would cost much and say the same: the middle row.
                    local[place, column, repetition, layer] = np.median(
                        [separations(x[:, side // 2, j]) for j in range(side)]
                    )
                rows = separations(maps["units"].reshape(VECTORS, -1))
                within[place, repetition, layer] = np.median(rows[same])
                across[place, repetition, layer] = np.median(rows[~same])
    of_starts, of_units = (
        ("grid", "start", "repetition", "layers"),
        ("grid", "repetition", "layers"),
    )
    return xr.Dataset(
        {
            "local": (of_starts, local),
            "whole": (of_starts, whole),
            "within": (of_units, within),
            "across": (of_units, across),
        },
        {
            "grid": list(grids),
            "start": list(STARTS),
            "repetition": np.arange(repetitions),
            "layers": np.arange(layers + 1),
        },
    )


def _units(
    generator: np.random.Generator, side: int, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit vectors of a few locations, and which pairs are of the same location.

    Args:
        generator: Draws different locations, and different channels of each.
        side: The side of the maps.
        channels: The channels of the maps.

    Returns:
        Shapes (vectors, side, side, channels) and (pairs,), pairs as `separations` has them.
    """
    units = np.zeros((VECTORS, side * side, channels))
    each = VECTORS // LOCATIONS
    for group, location in enumerate(generator.choice(side * side, LOCATIONS, replace=False)):
        chosen = generator.choice(channels, each, replace=False)
        units[np.arange(group * each, (group + 1) * each), location, chosen] = 1
    first, second = np.triu_indices(VECTORS, 1)
    return units.reshape(VECTORS, side, side, channels), first // each == second // each


def _rescaled(x: np.ndarray) -> np.ndarray:
    return x / np.abs(x).max(axis=(1, 2, 3), keepdims=True)
