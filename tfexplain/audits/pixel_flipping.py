"""Does the network need what a map shows? Its output while the most relevant pixels disappear."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.base import Arrays, Audit, Work
from tfexplain.audits.drawings import Drawing, Labels, axes_for_legend
from tfexplain.audits.judging import Cell, Check, Thresholds, median_cell, missing
from tfexplain.audits.removal import Removal, removed_pixels, without_opencv

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.analyzers import Analyzer
    from tfexplain.audits.case import Case

OUTPUTS = ("logit", "probability")
# A share of the largest logit: below it a logit is taken as zero, and nothing is divided by it.
TINY = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work(Work):
    """How inputs without some pixels are made, and how many pixels go at each step."""

    reductions: Mapping[str, str]
    removal: Removal
    removed: np.ndarray

    def watch(self, analyzer: Analyzer, position: int, order: np.ndarray) -> np.ndarray:
        """Returns logit and probability of a sample while pixels disappear in that order."""
        images = self.removal.inputs(position, order, self.removed)
        outputs = analyzer.outputs(images, batch_size=self.case.batch_size).astype("float64")
        return _curve(outputs, self.case.targets[position])


def _flipping(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    from tfexplain import metrics

    # The probability is defined for every sample; the logit relative to its start is not.
    areas = dataset["auc"].sel(analyzer=method, output="probability").values
    random = dataset["random_auc"].sel(output="probability").values

    def word(*_: float) -> str:
        # The same two orders of each sample are compared.
        _, lower, upper = metrics.median_interval(areas - random)
        if np.isnan(upper):
            return "one sample is too few to compare with a random order"
        if upper < 0:
            return "better than random"
        return "worse than random" if lower > 0 else "no better than random"

    measure = f"area under the probability (random order: {np.median(random):.3g})"
    return median_cell(areas, measure, word) or missing("maps are not finite")


@dataclass(frozen=True)
class PixelFlipping(Audit):
    """Whether the network uses what maps show; options as of `pixel_flipping`."""

    name = "pixel_flipping"
    function = "tfexplain.audits.pixel_flipping"
    title = "Pixel flipping"
    question = "How fast does the output fall when the most relevant pixels are removed?"
    caption = (
        "The probability of the class while pixels are removed, the most relevant first. The "
        "faster it falls, the better a map found what the model uses; grey is a random order."
    )
    references = ("samek2017evaluating", "maess2025uncovering")
    presets = {
        "quick": {"fraction": 0.1, "steps": 10},
        "default": {"fraction": 0.1, "steps": 20},
        "thorough": {"fraction": 0.25, "steps": 50},
    }
    block_size = 8
    checks = (
        Check(
            "flipping",
            "Faithful by flipping",
            "Pixels are removed, the most relevant first. The faster the probability of the class "
            "falls (small area), the better the map found what the model uses. It depends on what "
            "replaces the pixels.",
            _flipping,
            breaks_ties=True,
            head="flipping",
        ),
    )

    fraction: float = 0.05
    fill: str = "telea"
    value: float = 0.0
    radius: float = 3
    steps: int = 50
    reduction: str | Mapping[str, str] | None = None

    @classmethod
    def suits(cls, case: Case) -> str:
        """Needs images, and one output per class."""
        if len(case.output_shape) != 1 or case.without_classes():
            return (
                "it watches the probability of a class, the softmax of the outputs; it needs a "
                "model with one output per class, and this one has outputs of shape "
                f"{case.output_shape}"
            )
        if case.samples.ndim != 4 or case.layout.channel_axis is None:
            return (
                "it removes pixels of images (height, width, channels), and inputs have the shape "
                f"{case.samples.shape[1:]}"
            )
        return ""

    @classmethod
    def lacks(cls, case: Case) -> str:
        """Needs OpenCV where there are pixels, because `for_case` inpaints them."""
        if case.pixels is None or not (reason := without_opencv()):
            return ""
        return f"{reason}, then audit again in another folder"

    @classmethod
    def for_case(cls, case: Case, settings: Mapping[str, Any]) -> PixelFlipping:
        """Inpaints where there are pixels; else the mean of the samples is the least news."""
        if case.pixels is not None:
            return cls(fill="telea", **settings)
        mean = float(case.samples.mean(dtype="float64"))
        return cls(fill="constant", value=mean, **settings)

    def passes(self, case: Case) -> float:
        """A map each, and the outputs at each step, also of the random order."""
        watched = (len(case.analyzers) + 1) * (1 + self.steps)
        return case.count * (case.passes_per_map() + watched)

    def prepare(self, case: Case) -> _Work:
        """Checks the options, the pixels, and that outputs are logits."""
        removed = removed_pixels(case.layout.sizes, self.fraction, self.steps)
        reductions = case.reductions(self.reduction)
        removal = Removal(
            case.samples,
            case.layout,
            self.fill,
            self.value,
            self.radius,
            case.pixels,
            case.preprocess,
        )
        removal.check(case.batch_size, removed)
        _check_logits(case)
        options = {
            "fraction": float(self.fraction),
            **removal.options(),
            "steps": int(self.steps),
            "reduction": reductions,
            **case.options("targets"),
        }
        return _Work(
            case,
            options,
            len(case.analyzers) + 1,
            versions=removal.versions(),
            reductions=reductions,
            removal=removal,
            removed=removed,
        )

    def measure(self, work: _Work, block: slice, advance: Callable[[], None]) -> Arrays:
        """Returns the curves of a block, (analyzer, sample, step, output), and the random ones."""
        case, positions = work.case, range(block.start, block.stop)
        size = (len(positions), len(work.removed), len(OUTPUTS))
        curves = np.full((len(case.analyzers), *size), np.nan)
        start, random = np.empty((len(case.analyzers), len(positions))), np.empty(size)
        orders = [random_order(case.seed, p, *case.layout.sizes) for p in positions]
        for row, (name, analyzer) in enumerate(case.analyzers.items()):
            outputs, relevance = case.explain(name, block)
            start[row] = outputs[np.arange(len(positions)), case.targets[block]]
            maps = case.layout.maps(relevance, work.reductions[name])[:, 0]
            for place, position in enumerate(positions):
                if np.isfinite(maps[place]).all():
                    order = most_relevant_first(maps[place], orders[place])
                    curves[row, place] = work.watch(analyzer, position, order)
            advance()
        for place, position in enumerate(positions):
            random[place] = work.watch(case.first, position, orders[place])
        advance()
        return {"curve": curves, "random_curve": random, "start": start}

    def combine(self, work: _Work, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Joins the samples, and measures areas under the curves."""
        import xarray as xr

        case = work.case
        curves = np.concatenate([block["curve"] for block in blocks], axis=1)
        random = np.concatenate([block["random_curve"] for block in blocks])
        start = np.concatenate([block["start"] for block in blocks], axis=1)
        areas = area(curves, work.removed)
        negative = int((start < 0).sum())
        note = (
            f"{negative} of {start.size} logits are negative at the start: the curves rise as they "
            "fall; look at the probability."
        )
        return xr.Dataset(
            {
                "curve": (("analyzer", "sample", "step", "output"), curves),
                "auc": (("analyzer", "sample", "output"), areas),
                "random_curve": (("sample", "step", "output"), random),
                "random_auc": (("sample", "output"), area(random, work.removed)),
                "start": (("analyzer", "sample"), start),
                "target": (("sample",), case.targets.astype("int64")),
                "missing": (("analyzer", "output"), np.isnan(areas).sum(axis=1)),
            },
            coords={
                "analyzer": list(case.analyzers),
                "sample": np.arange(case.count),
                "removed": (("step",), work.removed),
                "output": list(OUTPUTS),
            },
            attrs={"notes": note if negative else ""},
        )

    @classmethod
    def draw(cls, dataset: xr.Dataset, labels: Labels) -> list[Drawing]:
        """Curves of the probability."""
        from tfexplain import plotting

        return [
            Drawing(
                lambda named: plotting.pixel_flipping_curves(
                    named, "probability", ax=axes_for_legend(named)
                ),
                "Probability of the class as pixels are removed",
                "Behind each name the median area under its curves; small is good.",
            )
        ]


def pixel_flipping(
    analyzers: Any,
    x: Any,
    y: Any = None,
    *,
    fraction: float = 0.05,
    fill: str = "telea",
    pixels: Any = None,
    preprocess: Callable[[np.ndarray], Any] | None = None,
    value: float = 0.0,
    radius: float = 3,
    steps: int = 50,
    reduction: str | Mapping[str, str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    block_size: int = 8,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Removes pixels, the most relevant first, and watches the output of the explained class.

    The faster it falls, the better the map found what the network uses: a small area under the
    curve is good ([bach2015pixel], [samek2017evaluating]; with inpainting as in
    [maess2025uncovering]). A location is removed with all its channels. Pixels of equal relevance
    go in a random order, which is keyed by (seed, position of the sample in x): so a map is not
    favoured for the order in which arrays are stored, and sparse maps do not fall back on the upper
    left corner. The same order alone gives the curves of a map that knows nothing, to compare with.

    What replaces the removed pixels decides what is measured. Inpainting keeps images natural and
    leaks what the neighbours know; a constant is news to the network. Rankings of methods can
    differ, so look at both.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer. Their models take one image and have
            one output per class. They are asked for their logits, so leave `output_activation` at
            "drop".
        x: Images as the model takes them, (n, height, width, channels), or channels first.
        y: Class of each sample, (n,), or one for all. None: the largest output of the first
            analyzer's model.
        fraction: Which part of the pixels is removed in the end, in (0, 1]; rounded to whole
            pixels (39 of 784), at least one.
        fill: "telea": removed pixels are inpainted from those around them (Telea's fast marching,
            by OpenCV, `pip install "tfexplain[inpainting]"`), always from the original image with
            all pixels removed so far. "constant": they get `value`.
        pixels: The images as uint8, (n, height, width, 1 or 3) or (n, height, width), also for
            models with channels first. "telea" needs them.
        preprocess: Function of some of the `pixels` that makes them the model's inputs:
            `preprocess(pixels)` has to be x. What is removed from pixels passes through it.
        value: What "constant" sets all channels to: an integer in 0..255 if there are pixels (0 is
            black), else in units of x.
        radius: How far "telea" looks around a pixel, in pixels; 3 for small images, 5 for 224 x 224
            in [maess2025uncovering].
        steps: Number of steps at most, of about as many pixels each; fewer pixels go one by one.
        reduction: How channels are reduced, "abs_sum", "abs_max" or "sum": one for all, or a dict
            by analyzer. None: the sum of magnitudes for the gradient and its modifications, else
            the sum (`analyzer.reduction`).
        seed: The seed of the random orders, >= 0.
        batch_size: Samples that are computed together.
        block_size: Samples after which the work done so far is kept, if there is a path.
        path: NetCDF file for the result. A run that was stopped continues with the same numbers
            (finished blocks are in the folder `<path>.blocks`); a finished file of the same
            settings is read. None: nothing is written.

    Returns:
        Dataset with

        * `curve` (analyzer, sample, step, output): "logit" is that of the class divided by its
          value for the whole image, so that it starts at 1; not a number where that value is about
          0. "probability" is the softmax of the logits, not divided;
        * `auc` (analyzer, sample, output): mean of the curve over the removed pixels (trapezoids);
          lower is better. Not a number where the map is not finite or the curve is not defined;
        * `random_curve` (sample, step, output) and `random_auc` (sample, output): the same for the
          random order, with the model of the first analyzer;
        * `start` (analyzer, sample): the logit of the class for the whole image. Where it is
          negative, the curve rises as the logit falls (`notes` counts these);
        * `target` (sample): classes;
        * `missing` (analyzer, output): how many areas are not a number.

        The coordinate `removed` (step) is the number of removed pixels; at step 0 there are none.
        Attributes: the arguments above, `versions` and `analyzers` (JSON text), and `notes`.

    Raises:
        ImportError: If fill is "telea" and OpenCV is not installed.
        TypeError: For what is no analyzer.
        ValueError: For a model of something else than images and classes, one that explains
            probabilities, missing or wrong pixels, wrong options or samples, or a path with another
            run.

    Example:
        >>> from tfexplain.analyzers import create_analyzer
        >>> image = keras.Input((8, 8, 1))
        >>> scores = keras.layers.Dense(3)(keras.layers.Flatten()(image))
        >>> analyzer = create_analyzer("input_t_gradient", keras.Model(image, scores))
        >>> dataset = pixel_flipping(analyzer, np.ones((2, 8, 8, 1)), fill="constant")
        >>> dataset.removed.values.tolist(), dataset.curve.shape
        ([0, 1, 2, 3], (1, 2, 4, 2))
    """
    from tfexplain.audits.case import Case

    audit = PixelFlipping(fraction, fill, value, radius, steps, reduction)
    given = {"pixels": pixels, "preprocess": preprocess}
    case = Case(analyzers, x, y, seed=seed, batch_size=batch_size, **given)
    return audit.run(case, block_size=block_size, path=path)


def random_order(seed: int, position: int, height: int, width: int) -> np.ndarray:
    """Returns a random order of the pixels of a sample, as flat places, (height * width,).

    Args:
        seed: The seed of the audit.
        position: The position of the sample in x.
        height: The height of the image.
        width: The width of the image.
    """
    return np.random.default_rng([seed, position]).permutation(height * width)


def most_relevant_first(map: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Returns the places of a flat map, the largest value first.

    Args:
        map: Any shape.
        ties: Order of all places, in which those of equal values go.

    Example:
        >>> most_relevant_first(np.array([1.0, 3.0, 1.0]), np.array([2, 1, 0])).tolist()
        [1, 2, 0]
    """
    # A stable sort keeps the order of equal values; + 0 makes zeros of both signs equal.
    return ties[np.argsort(-(np.ravel(map)[ties] + 0.0), kind="stable")]


def area(curves: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Returns the mean of curves over the removed pixels, by trapezoids.

    Args:
        curves: (..., step, output).
        removed: (step,), from 0 on.

    Returns:
        (..., output).
    """
    widths = np.diff(removed)[:, None] / removed[-1]
    return ((curves[..., 1:, :] + curves[..., :-1, :]) / 2 * widths).sum(axis=-2)


def _curve(outputs: np.ndarray, target: int) -> np.ndarray:
    """Returns the logit divided by its start, and the probability, (step, 2)."""
    import scipy.special

    logit = outputs[:, target]
    defined = np.abs(logit[0]) > TINY * np.abs(outputs[0]).max()
    divided = logit / logit[0] if defined else np.full(len(logit), np.nan)
    return np.stack([divided, scipy.special.softmax(outputs, axis=1)[:, target]], axis=1)


def _check_logits(case: Case) -> None:
    for name, analyzer in case.analyzers.items():
        outputs = analyzer.outputs(case.arrays(name)[0][:8], batch_size=case.batch_size)
        if (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, rtol=0, atol=1e-3):
            raise ValueError(
                f"The outputs that {name!r} explains are probabilities: they sum to 1. Pixel "
                'flipping needs logits: leave output_activation at "drop", or give a model '
                "without the final softmax where it cannot be left out."
            )
