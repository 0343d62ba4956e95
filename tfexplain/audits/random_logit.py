"""Do maps of two classes differ? Similarity of the maps of one class and of random others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from tfexplain import metrics
from tfexplain.audits import common
from tfexplain.audits.blocks import Arrays, digest, in_blocks
from tfexplain.checks import integer


def random_logit(
    analyzers: Any,
    x: Any,
    y: Any = None,
    *,
    num_classes: int = 1,
    reduction: str | Mapping[str, str] | None = None,
    normalization: str | Mapping[str, str] | None = None,
    data_range: float = 1.0,
    flip: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    block_size: int = 32,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Compares the map of one class with those of random other classes.

    A method whose maps hardly depend on the class cannot explain why the network chose it: its
    similarities are close to 1 (section 4 and fig. 4 of [sixt2020when]). Maps are relevance reduced
    over channels, normalised, and compared by the structural similarity (`metrics.ssim`).

    The other classes are drawn uniformly and without replacement within a sample, from a generator
    seeded by (seed, position of the sample in x): the same for all analyzers, batch and block
    sizes; a larger `num_classes` keeps the draws of a smaller one. All classes of a sample share
    one forward pass.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer. Their models have one input and the
            same classes.
        x: Samples, (n, *input_shape): images or volumes with channels, sequences (steps, features),
            or tokens (steps,); of a sequence, the similarity is that along its steps. Every
            size but that of the channels is at least 5.
        y: Class of each sample, (n,), or one for all; flat index for outputs of rank > 2. None: the
            largest output of the first analyzer's model.
        num_classes: Number of other classes for each sample.
        reduction: How channels are reduced, "abs_sum", "abs_max" or "sum": one for all, or a dict
            by analyzer. None: the sum of magnitudes for the gradient and its modifications, else
            the sum (`analyzer.reduction`).
        normalization: "percentile" (0 and 1 are the percentiles 0.5 and 99.5), "minmax", or
            "inverted_percentile", "inverted_minmax" for the published numbers: one for all, or a
            dict by analyzer. None: "minmax" for rect_grad, whose maps are sparse, else "percentile"
            (`analyzer.normalization`).
        data_range: Of the structural similarity; the published code has 2.
        flip: Take the larger similarity of the two maps and of one with the negative of the other,
            as published: for methods whose maps change their sign with that of the logit.
        seed: Of the other classes, >= 0.
        batch_size: Samples that are computed together.
        block_size: Samples after which the work done so far is kept, if there is a path.
        path: NetCDF file for the result. A run that was stopped continues with the same numbers
            (finished blocks are in the folder `<path>.blocks`); a finished file of the same
            settings is read. None: nothing is written.

    Returns:
        Dataset with

        * `ssim` (analyzer, sample, draw): -1..1, without a unit; not a number where a map is
          constant or its two percentiles are equal;
        * `other_class` (sample, draw) and `target` (sample): flat indices of outputs;
        * `missing` (analyzer): how many similarities are not a number.

        Attributes: the arguments above, `versions` and `analyzers` (JSON text), and `notes`.

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For a model with a single output or several inputs, maps without spatial axes or
            smaller than 5, wrong options or samples, or a path with another run.

    Example:
        >>> from tfexplain.analyzers import create_analyzer
        >>> pixels = keras.Input((8, 8, 1))
        >>> scores = keras.layers.Dense(3)(keras.layers.Flatten()(pixels))
        >>> analyzers = {"gradient": create_analyzer("gradient", keras.Model(pixels, scores))}
        >>> found = random_logit(analyzers, np.ones((2, 8, 8, 1)), num_classes=2)
        >>> found.ssim.shape
        (1, 2, 2)
    """
    named = common.named_analyzers(analyzers)
    samples = common.one_input(named, x)
    outputs = common.num_classes(named)
    _check_number(num_classes, outputs)
    common.check_common(data_range, flip, seed)
    reductions, normalizations = common.map_functions(named, reduction, normalization)
    shape = common.layout(named, samples)
    if shape.too_small:
        raise ValueError(
            f"The structural similarity compares maps with spatial axes: {shape.too_small}. Give "
            "images, or use parameter_randomization, which has other similarities too."
        )
    targets = common.labels(named, samples, y, batch_size)
    others = other_classes(targets, outputs, num_classes, seed)
    arrays = common.typed(named, samples)
    columns = np.concatenate([targets[:, None], others], axis=1)
    found = common.settings(
        "random_logit",
        named,
        samples,
        with_data=path is not None,
        num_classes=int(num_classes),
        reduction=reductions,
        normalization=normalizations,
        data_range=float(data_range),
        flip=bool(flip),
        seed=int(seed),
        batch_size=int(batch_size),
        targets_sha256=digest([targets]),
    )

    def compute(block: slice, advance: Callable[[], None]) -> Arrays:
        scores = np.empty((len(named), block.stop - block.start, num_classes))
        for row, (name, analyzer) in enumerate(named.items()):
            _, (relevance,) = analyzer.explain_part([arrays[name]], columns, block, batch_size)
            maps = common.maps(relevance, reductions[name], shape.channel_axis)
            normalize = metrics.NORMALIZATIONS[normalizations[name]]
            for place, (own, *rest) in enumerate(maps):
                own = normalize(own)
                scores[row, place] = [
                    common.structural_similarity(
                        own, other, normalizations[name], data_range, bool(flip)
                    )
                    for other in rest
                ]
            advance()
        return {"ssim": scores}

    def combine(blocks: list[Arrays]) -> xr.Dataset:
        ssim = np.concatenate([block["ssim"] for block in blocks], axis=1)
        return xr.Dataset(
            {
                "ssim": (("analyzer", "sample", "draw"), ssim),
                "other_class": (("sample", "draw"), others.astype("int64")),
                "target": (("sample",), targets.astype("int64")),
                "missing": (("analyzer",), np.isnan(ssim).sum(axis=(1, 2))),
            },
            coords={
                "analyzer": list(named),
                "sample": np.arange(len(targets)),
                "draw": np.arange(num_classes),
            },
            attrs=common.attributes(found, shape.notes()),
        )

    return in_blocks(
        compute,
        combine,
        title="random logit",
        count=len(samples),
        block_size=block_size,
        steps=len(named),
        settings=found,
        path=path,
    )


def other_classes(targets: np.ndarray, outputs: int, count: int, seed: int) -> np.ndarray:
    """Draws other classes for each sample, uniformly and without replacement.

    Args:
        targets: The class of each sample, (n,), in 0..outputs-1.
        outputs: Number of classes.
        count: How many to draw for a sample, below `outputs`.
        seed: With the position of the sample it is the seed of its generator.

    Returns:
        Shape (n, count), of the dtype of the targets.
    """
    found = np.empty((len(targets), count), targets.dtype)
    for position, target in enumerate(targets):
        # All are shuffled, so that the first draws do not depend on how many there are.
        drawn = np.random.default_rng([seed, position]).permutation(outputs - 1)[:count]
        found[position] = drawn + (drawn >= target)
    return found


def _check_number(num_classes: int, outputs: int) -> None:
    integer("num_classes", num_classes, 1, outputs - 1, hint="It counts other classes.")
