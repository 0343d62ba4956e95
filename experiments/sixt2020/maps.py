"""What `random_logit` and `sanity_checks` share: images, options of the audits, how maps count."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import skimage.data
import xarray as xr
from PIL import Image

from experiments import networks
from experiments.runs import Task
from experiments.sixt2020.methods import fed, is_large
from experiments.sixt2020.protocol import Method, Protocol
from models import images as preprocessing

# What the paper finds not to converge; the rest of its table does.
REST = ("LRP z", "SmoothGrad", "DeepLIFT RevC", "DeepLIFT Resc", "Gradient")
# On which the paper makes claims of their own (S9, S21); their numbers stand without a criterion.
ELSEWHERE = ("LRP 5/4", "LRP CMP 1/0", "LRP CMP 2/1")
# Whose maps change their sign with that of the logit, so that the better of both counts.
SIGNED = ("DTD", "LRP 1/0")
# "Very close to 1", and the range of the rest of the field.
CLOSE = 0.95
FIELD = (0.4, 0.8)


def photograph(task: Task, protocol: Protocol, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cat of scikit-image, which may be shown, as pixels and as a network's input.

    Args:
        task: The task.
        protocol: The protocol.
        size: Height and width.

    Returns:
        Arrays (size, size, 3), uint8, and (1, size, size, 3), float32.
    """
    pixels = skimage.data.chelsea()
    tiny = task.model == networks.TINY
    if not tiny and networks.network(task.model).resize is not None:
        side = min(pixels.shape[:2])
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        pixels = pixels[top : top + side, left : left + side]
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    prepare = preprocessing.cifar_cnn
    if not tiny:
        prepare = getattr(preprocessing, networks.network(task.model).preprocess)
    return pixels, fed(task, protocol, prepare(pixels[None]))


def options(task: Task, protocol: Protocol, method: Method, x: np.ndarray) -> dict[str, Any]:
    """Returns the options of both audits: T6, T7, T14, D4 and D14, batches, and where to resume.

    Args:
        task: The task.
        protocol: The protocol.
        method: The method.
        x: The images.
    """
    # The maps of RectGrad are sparse: percentile 100.
    normalization = "minmax" if method.analyzer == "rect_grad" else "percentile"
    return {
        "reduction": method.reduction,
        "normalization": f"inverted_{normalization}" if protocol.inverted_maps else normalization,
        "data_range": protocol.ssim_range,
        "flip": protocol.flip_all or method.name in SIGNED,
        "seed": draw_seed(task, protocol, method),
        **batches(x),
        "path": scratch(task, method.name),
    }


def draw_seed(task: Task, protocol: Protocol, method: Method, *step: str) -> int:
    """Returns the seed of classes and random networks.

    One for all, or one for each method, or for each of its steps if they are named.
    """
    if protocol.shared_draws:
        return task.request.seed
    return int(task.generator("draws", method.name, *step).integers(2**31))


def batches(x: np.ndarray) -> dict[str, int]:
    """Returns how many images are computed together, and after how many work is kept."""
    sizes = (4, 16) if is_large(x) else (32, 128)
    return dict(zip(("batch_size", "block_size"), sizes, strict=True))


def scratch(task: Task, audit: str) -> pathlib.Path:
    """Returns the file of an audit, by its method; runs with other images or seeds have others."""
    request = task.request
    word = re.sub(r"\W+", "_", audit).strip("_")
    return task.scratch(f"{word}-{request.images}-{request.seed}")


@contextlib.contextmanager
def overflowing() -> Iterator[None]:
    """Lets relevance overflow in silence: such maps have no similarity, and are counted."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield


def median(values: np.ndarray, count_missing: bool) -> float:
    """Returns the median of similarities; not a number if there is none.

    Args:
        values: Any shape, NaN where a map is constant or overflows.
        count_missing: T19: leave these out. Else one of them is enough to have no median.
    """
    values = np.ravel(values)
    missing = np.isnan(values)
    if missing.all() or (missing.any() and not count_missing):
        return float("nan")
    return float(np.median(values[~missing]))


def missing_text(missing: xr.DataArray, count: int) -> str:
    """Returns a sentence on similarities that are not numbers.

    Args:
        missing: How many, by analyzer.
        count: How many there are in all.
    """
    texts = [
        f"{name} {number} of {count}"
        for name, number in zip(missing["analyzer"].values, missing.values.tolist(), strict=True)
        if number
    ]
    if not texts:
        return "No similarity is missing."
    return f"Without a similarity (constant maps, or overflow): {', '.join(texts)}."


def marker(letter: str) -> str:
    """Returns the marker of matplotlib for the letter of a method."""
    return f"${letter}$" if letter.isalnum() and letter not in "ov" else letter
