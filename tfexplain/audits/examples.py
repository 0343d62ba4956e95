"""How do maps look, and do they add up to the output? Maps of a few samples, errors of all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.base import Arrays, Audit, Work
from tfexplain.audits.drawings import Gallery, Labels, Tile
from tfexplain.audits.judging import Cell, Check, Thresholds, median_cell, missing
from tfexplain.checks import integer

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.audits.case import Case

# Outputs of the model that are named beside an example.
MOST_OUTPUTS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work(Work):
    """Positions of the samples whose maps are kept."""

    kept: np.ndarray


def _conservation(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    one = dataset.sel(analyzer=method)
    error, value = one["conservation_error"].values, one["explained"].values
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(error / value)
    relative = np.where(np.isfinite(relative), relative, math.nan)

    def word(middle: float, low: float, high: float) -> str:
        return "conserved" if middle <= thresholds.conservation else "not conserved"

    cell = median_cell(relative, "|sum of the map - output| / |output|", word)
    return cell or missing("the explained outputs are 0, or maps are not finite")


@dataclass(frozen=True)
class Examples(Audit):
    """Maps to look at, and conservation; options as of `examples`."""

    name = "examples"
    function = "tfexplain.audits.examples"
    title = "Gallery"
    question = "How do the maps look, and do they add up to the explained output?"
    caption = (
        "Maps of a few samples by each method: red speaks for the explained output, blue against "
        "it, white is zero. Each map has a scale of its own; the number is its limit."
    )
    precise = True
    presets = {"quick": {"examples": 3}, "default": {"examples": 5}, "thorough": {"examples": 10}}
    checks = (
        Check(
            "conservation",
            "Conservation error",
            "Whether a map adds up to the output that it explains. Gradients and their "
            "modifications are not meant to.",
            _conservation,
        ),
    )

    examples: int = 4

    def prepare(self, case: Case) -> _Work:
        """Chooses the samples whose maps are kept."""
        from tfexplain.runs import digest

        kept = different(case.targets, integer("examples", self.examples, 1))
        options = {
            "examples": kept.tolist(),
            **case.options("targets"),
            "pixels_sha256": "none" if case.pixels is None else digest([case.pixels]),
        }
        return _Work(case, options, len(case.analyzers), kept=kept)

    def measure(self, work: _Work, block: slice, advance: Callable[[], None]) -> Arrays:
        """Returns errors and explained outputs of a block, all outputs, and the maps to keep."""
        case = work.case
        inside = work.kept[(work.kept >= block.start) & (work.kept < block.stop)] - block.start
        errors = np.empty((len(case.analyzers), block.stop - block.start))
        explained = np.empty_like(errors)
        shown = np.empty((len(case.analyzers), len(inside), *case.samples.shape[1:]))
        places = np.arange(block.stop - block.start), case.targets[block]
        outputs: Any = None
        for row, name in enumerate(case.analyzers):
            out, relevance = case.explain(name, block)
            out = out.reshape(len(out), -1).astype("float64")
            outputs = out if outputs is None else outputs
            sums = relevance[:, 0].reshape(len(relevance), -1).sum(axis=1, dtype="float64")
            explained[row] = out[places]
            errors[row] = sums - explained[row]
            shown[row] = relevance[inside, 0]
            advance()
        return {"error": errors, "explained": explained, "relevance": shown, "output": outputs}

    def combine(self, work: _Work, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Joins the samples."""
        import xarray as xr

        from tfexplain import results

        case, kept = work.case, work.kept
        joined = {
            name: np.concatenate([block[name] for block in blocks], axis=axis)
            for name, axis in (("error", 1), ("explained", 1), ("relevance", 1), ("output", 0))
        }
        images = {}
        if case.pixels is not None:
            pixels = case.pixels[kept]
            images["pixels"] = (("example", "pixel_row", "pixel_column", "colour"), pixels)
        dimensions = results.input_dimensions(case.samples.ndim - 1)
        if "channel" in dimensions and case.layout.channel_axis == 0:
            dimensions = ("channel", *(name for name in dimensions if name != "channel"))
        rules = {
            name: [[str(cell) for cell in row] for row in analyzer.describe().rows]
            for name, analyzer in case.analyzers.items()
        }
        return xr.Dataset(
            {
                "conservation_error": (("analyzer", "sample"), joined["error"]),
                "explained": (("analyzer", "sample"), joined["explained"]),
                "output": (("sample", "output_index"), joined["output"]),
                "target": (("sample",), case.targets.astype("int64")),
                "relevance": (("analyzer", "example", *dimensions), joined["relevance"]),
                "input": (("example", *dimensions), case.samples[kept].astype("float64")),
                **images,
            },
            coords={
                "analyzer": list(case.analyzers),
                "sample": np.arange(case.count),
                "example": kept.astype("int64"),
            },
            attrs={"assignment": json.dumps(rules)},
        )

    @classmethod
    def draw(cls, dataset: xr.Dataset, labels: Labels) -> Iterator[Gallery]:
        """For each example the input, and a map per method."""
        if dataset["input"].ndim - 1 > 3:
            return
        for place, position in enumerate(dataset.example.values.tolist()):
            one = dataset.isel(example=place)
            if "channel" in one.dims:
                one = one.transpose(..., "channel")
            outputs = dataset["output"].values[position]
            best = np.argsort(-outputs)[:MOST_OUTPUTS]
            names = ", ".join(f"{labels.output(index)}: {outputs[index]:.3g}" for index in best)
            shown = one["pixels" if "pixels" in one else "input"]
            tiles = [Tile(shown.values, "the input", "input", is_map=False)]
            for name in dataset.analyzer.values.tolist():
                relevance = one["relevance"].sel(analyzer=name).values
                if np.isfinite(relevance).all():
                    tiles.append(Tile(relevance, f"map by {name}", name))
            target = labels.output(int(dataset["target"].values[position]))
            yield Gallery(
                f"Sample {labels.sample(position)}: explained is {target}",
                f"The model's largest outputs: {names}.",
                tiles,
            )

    @classmethod
    def page_notes(cls, dataset: xr.Dataset) -> list[str]:
        """Says that outputs are not probabilities, where that could be expected."""
        first = next(iter(json.loads(dataset.attrs["analyzers"]).values()))
        if first["options"].get("output_activation") == "keep":
            return []
        return ["Outputs are values before a last softmax or sigmoid, which methods leave out."]


def examples(
    analyzers: Any,
    x: Any,
    y: Any = None,
    *,
    examples: int = 4,
    pixels: np.ndarray | None = None,
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
    from tfexplain.audits.case import Case

    case = Case(analyzers, x, y, batch_size=batch_size, pixels=pixels)
    return Examples(examples).run(case, block_size=block_size, path=path)


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
