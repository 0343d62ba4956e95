"""The maps that `parameter_randomization` compares, to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.parameter_randomization import TRAINED, ParameterRandomization

if TYPE_CHECKING:
    import xarray as xr


def cascade_maps(
    analyzers: Any,
    x: Any,
    y: Any = None,
    *,
    layers: str | Sequence[str] | None = None,
    mode: str = "cascading",
    weights: str = "initializer",
    statistics: str = "randomized",
    reduction: str | Mapping[str, str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> xr.Dataset:
    """Returns the maps that `parameter_randomization` compares, of a few samples, to look at.

    Args:
        analyzers: See `parameter_randomization`.
        x: Samples; all maps of all steps are kept in memory.
        y: See `parameter_randomization`.
        layers: See `parameter_randomization`.
        mode: See `parameter_randomization`.
        weights: See `parameter_randomization`.
        statistics: See `parameter_randomization`.
        reduction: See `random_logit`.
        seed: See `parameter_randomization`; the random networks are the same.
        batch_size: Samples that are computed together.

    Returns:
        Dataset with `relevance` (analyzer, step, sample, *sizes), reduced over channels, in its
        own unit; the first step is "trained". `input` (sample, *input dimensions) and `target`
        (sample). Sizes are (height, width) for images, (position) for sequences, else axis_1,
        axis_2 ...; `plotting.cascade` draws it.

    Raises:
        TypeError: As `parameter_randomization`.
        ValueError: As `parameter_randomization`.
        UnsupportedModelError: As `parameter_randomization`.
    """
    import xarray as xr

    from tfexplain import runs
    from tfexplain.audits.case import Case

    case = Case(analyzers, x, y, seed=seed, batch_size=batch_size)
    audit = ParameterRandomization(layers, mode, weights, statistics, reduction)
    audit.check(case)
    case = case.at_highest_precision()
    work = audit.prepare(case)
    everything, of_steps = slice(0, case.count), []
    for step in (None, *work.steps_taken):
        work.set(step)
        of_steps.append([maps for _, maps in work.maps(everything)])
    maps = np.array(of_steps).swapaxes(0, 1)  # (analyzer, step, sample, *sizes)
    sizes = case.layout.names()
    inputs = sizes
    if case.layout.channel_axis is not None:
        inputs = ("channel", *sizes) if case.layout.channel_axis == 0 else (*sizes, "channel")
    left = ("normalization", "data_range", "flip", "keep", "resamples", "confidence")
    options = {key: value for key, value in work.options.items() if key not in left}
    settings = runs.settings("cascade_maps", case.analyzers, case.inputs, options, with_data=False)
    return xr.Dataset(
        {
            "relevance": (("analyzer", "step", "sample", *sizes), maps),
            "input": (("sample", *inputs), case.samples),
            "target": (("sample",), case.targets.astype("int64")),
        },
        coords={
            "analyzer": list(case.analyzers),
            "step": [TRAINED, *(step.name for step in work.steps_taken)],
            "sample": np.arange(case.count),
        },
        attrs=runs.attributes(settings, work.notes),
    )
