"""Is a map focused? The Shannon entropy of its magnitudes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from tfexplain import metrics
from tfexplain.audits import common
from tfexplain.audits.blocks import Arrays, digest, in_blocks


def entropy(
    analyzers: Any,
    x: Any,
    y: Any = None,
    *,
    reduction: str | Mapping[str, str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    block_size: int = 32,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Measures the Shannon entropy of maps: how many locations share the relevance.

    With p_i = |r_i| / sum |r| over the locations of a map it is -sum p_i log p_i, in nats. Lower
    is easier to read ([samek2017evaluating], [maess2025uncovering]), not truer: the entropy ignores
    the scale and the signs of a map, and a single wrong location has the lowest of all.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer. Their models have one input and the
            same outputs.
        x: Samples, (n, *input_shape): images or volumes with channels, sequences (steps, features),
            tokens (steps,) or columns of a table (features,).
        y: Output that is explained of each sample, (n,), or one for all; flat index for outputs of
            rank > 2. None: the largest output of the first analyzer's model.
        reduction: How channels are reduced, "abs_sum", "abs_max" or "sum": one for all, or a dict
            by analyzer. None: the sum of magnitudes for the gradient and its modifications, else
            the sum (`analyzer.reduction`).
        seed: Kept in the attributes, as of every audit; nothing is drawn here.
        batch_size: Samples that are computed together.
        block_size: Samples after which the work done so far is kept, if there is a path.
        path: NetCDF file for the result. A run that was stopped continues with the same numbers
            (finished blocks are in the folder `<path>.blocks`); a finished file of the same
            settings is read. None: nothing is written.

    Returns:
        Dataset with

        * `entropy` (analyzer, sample): 0 (one location) to the attribute `maximum`, the logarithm
          of the number of locations (all equal), in nats; not a number where a map is zero
          everywhere or not finite;
        * `target` (sample): flat indices of outputs;
        * `missing` (analyzer): how many entropies are not a number.

        Attributes: the arguments above, `maximum`, `versions` and `analyzers` (JSON text), and
        `notes`.

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For a model with several inputs, wrong options or samples, or a path with
            another run.

    Example:
        >>> from tfexplain.analyzers import create_analyzer
        >>> found = entropy(create_analyzer("gradient", model), np.ones((2, 4)))
        >>> found.entropy.shape, round(found.maximum, 3)
        ((1, 2), 1.386)
    """
    named = common.named_analyzers(analyzers)
    samples = common.one_input(named, x)
    common.check_common(1.0, False, seed)
    reductions = common.map_functions(named, reduction, None)[0]
    shape = common.layout(named, samples)
    targets = common.labels(named, samples, y, batch_size)
    arrays = common.typed(named, samples)
    found = common.settings(
        "entropy",
        named,
        samples,
        with_data=path is not None,
        reduction=reductions,
        seed=int(seed),
        batch_size=int(batch_size),
        targets_sha256=digest([targets]),
    )

    def compute(block: slice, advance: Callable[[], None]) -> Arrays:
        values = np.empty((len(named), block.stop - block.start))
        for row, (name, analyzer) in enumerate(named.items()):
            _, (relevance,) = analyzer.explain_part(
                [arrays[name]], targets[:, None], block, batch_size
            )
            maps = common.maps(relevance, reductions[name], shape.channel_axis)[:, 0]
            values[row] = [metrics.entropy(map) for map in maps]
            advance()
        return {"entropy": values}

    def combine(blocks: list[Arrays]) -> xr.Dataset:
        values = np.concatenate([block["entropy"] for block in blocks], axis=1)
        return xr.Dataset(
            {
                "entropy": (("analyzer", "sample"), values, {"units": "nat"}),
                "target": (("sample",), targets.astype("int64")),
                "missing": (("analyzer",), np.isnan(values).sum(axis=1)),
            },
            coords={"analyzer": list(named), "sample": np.arange(len(targets))},
            attrs={
                **common.attributes(found, shape.notes()),
                "maximum": math.log(math.prod(shape.sizes)),
            },
        )

    return in_blocks(
        compute,
        combine,
        title="entropy",
        count=len(samples),
        block_size=block_size,
        steps=len(named),
        settings=found,
        path=path,
    )
