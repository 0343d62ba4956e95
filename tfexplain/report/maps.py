"""The maps of an audit: conservation errors of all samples, and a few maps to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from tfexplain import results
from tfexplain.analyzers import Analyzer
from tfexplain.audits import common
from tfexplain.audits.blocks import Arrays, digest, in_blocks
from tfexplain.checks import integer


def maps(
    analyzers: Any,
    x: Any,
    y: Any = None,
    *,
    examples: int = 4,
    pixels: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 32,
    block_size: int = 32,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Explains samples by several methods, and keeps the maps of a few of them.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer; of one input.
        x: Samples, as for `analyze`.
        y: Explained output of each sample, (n,), or one for all; None: the largest output.
        examples: Samples whose maps are kept, of as many different outputs as there are.
        pixels: uint8 images of which x was made, (n, height, width, 1 or 3); those of examples are
            kept to look at.
        seed: Kept in the attributes; nothing is drawn here.
        batch_size: Samples that are computed together.
        block_size: Samples after which the work done so far is kept, if there is a path.
        path: NetCDF file of the result; a run that was stopped continues.

    Returns:
        Dataset with

        * `conservation_error` (analyzer, sample): sum of the map minus the explained output, in the
          unit of that output;
        * `output` (sample, output_index) and `target` (sample): all outputs, and which is
          explained;
        * `relevance` (analyzer, example, *input dimensions), `input` (example, *input dimensions):
          the maps that are kept; the coordinate `example` is the position of the sample. Images
          with channels first are (channel, height, width);
        * `pixels` (example, pixel_row, pixel_column, colour), uint8, where they are given;
        * `explained` (analyzer, sample): the explained output, which differs between analyzers
          where some keep a last softmax or sigmoid.

        The attribute `assignment` is JSON text: analyzer -> rows (call, operation, rule).

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For several inputs, wrong options or samples, or a path with another run.
    """
    named = common.named_analyzers(analyzers)
    samples = common.one_input(named, x)
    common.check_common(1.0, False, seed)
    integer("examples", examples, 1)
    targets = common.labels(named, samples, y, batch_size)
    kept = different(targets, examples)
    arrays = common.typed(named, samples)
    found = common.settings(
        "maps",
        named,
        samples,
        with_data=path is not None,
        examples=[int(position) for position in kept],
        seed=int(seed),
        batch_size=int(batch_size),
        targets_sha256=digest([targets]),
        pixels_sha256="none" if pixels is None else digest([pixels]),
    )

    def compute(block: slice, advance: Callable[[], None]) -> Arrays:
        inside = kept[(kept >= block.start) & (kept < block.stop)] - block.start
        errors = np.empty((len(named), block.stop - block.start))
        explained = np.empty_like(errors)
        shown = np.empty((len(named), len(inside), *samples.shape[1:]))
        places = np.arange(block.stop - block.start), targets[block]
        outputs: np.ndarray | None = None
        for row, (name, analyzer) in enumerate(named.items()):
            out, (relevance,) = analyzer.explain_part(
                [arrays[name]], targets[:, None], block, batch_size
            )
            out = out.reshape(len(out), -1).astype("float64")
            outputs = out if outputs is None else outputs
            sums = relevance[:, 0].reshape(len(relevance), -1).sum(axis=1, dtype="float64")
            explained[row] = out[places]
            errors[row] = sums - explained[row]
            shown[row] = relevance[inside, 0]
            advance()
        return {"error": errors, "explained": explained, "relevance": shown, "output": outputs}

    def combine(blocks: list[Arrays]) -> xr.Dataset:
        joined = {
            name: np.concatenate([block[name] for block in blocks], axis=axis)
            for name, axis in (("error", 1), ("explained", 1), ("relevance", 1), ("output", 0))
        }
        images = {}
        if pixels is not None:
            images["pixels"] = (("example", "pixel_row", "pixel_column", "colour"), pixels[kept])
        dimensions = results.input_dimensions(samples.ndim - 1)
        if "channel" in dimensions and common.layout(named, samples).channel_axis == 0:
            dimensions = ("channel", *(name for name in dimensions if name != "channel"))
        return xr.Dataset(
            {
                "conservation_error": (("analyzer", "sample"), joined["error"]),
                "explained": (("analyzer", "sample"), joined["explained"]),
                "output": (("sample", "output_index"), joined["output"]),
                "target": (("sample",), targets.astype("int64")),
                "relevance": (("analyzer", "example", *dimensions), joined["relevance"]),
                "input": (("example", *dimensions), samples[kept].astype("float64")),
                **images,
            },
            coords={
                "analyzer": list(named),
                "sample": np.arange(len(targets)),
                "example": kept.astype("int64"),
            },
            attrs={
                **common.attributes(found),
                "assignment": json.dumps(_assignments(named)),
            },
        )

    return in_blocks(
        compute,
        combine,
        title="maps",
        count=len(samples),
        block_size=block_size,
        steps=len(named),
        settings=found,
        path=path,
    )


def different(targets: np.ndarray, count: int) -> np.ndarray:
    """Returns the positions of some samples, of as many different targets as there are.

    Args:
        targets: Shape (n,).
        count: How many, at most.

    Returns:
        Rising positions: the first sample of each target, then the second, and so on.

    Example:
        >>> different(np.array([3, 3, 1, 3]), 2).tolist()
        [0, 2]
    """
    seen: dict[int, int] = {}
    rounds = []
    for position, target in enumerate(targets.tolist()):
        seen[target] = seen.get(target, 0) + 1
        rounds.append((seen[target], position))
    return np.array(sorted(position for _, position in sorted(rounds)[:count]))


def _assignments(named: Mapping[str, Analyzer]) -> dict[str, list[list[str]]]:
    return {
        name: [[str(cell) for cell in row] for row in analyzer.describe().rows]
        for name, analyzer in named.items()
    }
