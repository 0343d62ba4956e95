"""Do maps of two classes differ? Similarity of the maps of one class and of random others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.base import Arrays, Audit, Work
from tfexplain.audits.drawings import Drawing, Labels
from tfexplain.audits.judging import SSIM, Cell, Check, Thresholds, similarity_cell
from tfexplain.checks import flag, integer, positive

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.audits.case import Case


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work(Work):
    """Columns are the targets and then the other classes, (n, 1 + draws)."""

    reductions: Mapping[str, str]
    normalizations: Mapping[str, str]
    columns: np.ndarray


def _other_class(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    scores = dataset["ssim"].sel(analyzer=method).mean("draw").values
    return similarity_cell(scores, SSIM, thresholds.other_class)


@dataclass(frozen=True)
class RandomLogit(Audit):
    """Whether maps depend on the class; options as of `random_logit`."""

    name = "random_logit"
    function = "tfexplain.audits.random_logit"
    title = "Maps of other classes"
    question = "Does the map of one class differ from that of another?"
    caption = (
        "How similar the map of one class is to that of another. A method whose values are near 1 "
        "draws the same map whatever class it is asked for."
    )
    references = ("sixt2020when",)
    presets = {
        "quick": {"num_classes": 1},
        "default": {"num_classes": 1},
        "thorough": {"num_classes": 5},
    }
    checks = (
        Check(
            "class",
            "Depends on the class",
            "The map of one class is compared with that of others. If they are the same, a map "
            "cannot say why the model chose this class.",
            _other_class,
            decides=True,
            head="class",
        ),
    )

    num_classes: int = 1
    reduction: str | Mapping[str, str] | None = None
    normalization: str | Mapping[str, str] | None = None
    data_range: float = 1.0
    flip: bool = False

    @classmethod
    def suits(cls, case: Case) -> str:
        """Needs two outputs, and maps that have a structural similarity."""
        if reason := case.without_classes():
            return reason
        if case.layout.too_small:
            return (
                "the structural similarity compares maps with spatial axes: "
                f"{case.layout.too_small}. Give images, or use parameter_randomization, which has "
                "other similarities too"
            )
        return ""

    @classmethod
    def for_case(cls, case: Case, settings: Mapping[str, Any]) -> RandomLogit:
        """Counts a map times -1 as the same: it says the same of where the model looks."""
        return cls(num_classes=min(settings["num_classes"], case.outputs - 1), flip=True)

    def passes(self, case: Case) -> float:
        """Outputs share the forward pass."""
        from tfexplain.analyzers.capabilities import BACKWARD

        extra = BACKWARD / (1 + BACKWARD) * self.num_classes
        return case.count * case.passes_per_map() * (1 + extra)

    def prepare(self, case: Case) -> _Work:
        """Checks the options, and draws the other classes."""
        count = integer(
            "num_classes", self.num_classes, 1, case.outputs - 1, hint="It counts other classes."
        )
        data_range, flip = positive("data_range", self.data_range), flag("flip", self.flip)
        reductions = case.reductions(self.reduction)
        normalizations = case.normalizations(self.normalization)
        others = other_classes(case.targets, case.outputs, count, case.seed)
        options = {
            "num_classes": count,
            "reduction": reductions,
            "normalization": normalizations,
            "data_range": data_range,
            "flip": flip,
            **case.options("targets"),
        }
        columns = np.concatenate([case.targets[:, None], others], axis=1)
        return _Work(
            case,
            options,
            len(case.analyzers),
            case.layout.notes(),
            reductions=reductions,
            normalizations=normalizations,
            columns=columns,
        )

    def measure(self, work: _Work, block: slice, advance: Callable[[], None]) -> Arrays:
        """Returns the similarities of a block, (analyzer, sample, draw)."""
        from tfexplain import metrics
        from tfexplain.audits.case import structural_similarity

        case, count = work.case, work.columns.shape[1] - 1
        scores = np.empty((len(case.analyzers), block.stop - block.start, count))
        for row, name in enumerate(case.analyzers):
            _, relevance = case.explain(name, block, work.columns)
            maps = case.layout.maps(relevance, work.reductions[name])
            kind = work.normalizations[name]
            for place, (own, *rest) in enumerate(maps):
                own = metrics.NORMALIZATIONS[kind](own)
                scores[row, place] = [
                    structural_similarity(own, other, kind, self.data_range, bool(self.flip))
                    for other in rest
                ]
            advance()
        return {"ssim": scores}

    def combine(self, work: _Work, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Joins the samples."""
        import xarray as xr

        ssim = np.concatenate([block["ssim"] for block in blocks], axis=1)
        return xr.Dataset(
            {
                "ssim": (("analyzer", "sample", "draw"), ssim),
                "other_class": (("sample", "draw"), work.columns[:, 1:].astype("int64")),
                "target": (("sample",), work.case.targets.astype("int64")),
                "missing": (("analyzer",), np.isnan(ssim).sum(axis=(1, 2))),
            },
            coords={
                "analyzer": list(work.case.analyzers),
                "sample": np.arange(work.case.count),
                "draw": np.arange(ssim.shape[2]),
            },
        )

    @classmethod
    def draw(cls, dataset: xr.Dataset, labels: Labels) -> list[Drawing]:
        """A box per method."""
        from tfexplain import plotting

        return [
            Drawing(
                plotting.random_logit_boxes,
                "Structural similarity of the maps of two classes",
                "1: the same map.",
            )
        ]


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
        data_range: The data range of the structural similarity; the published code has 2.
        flip: Take the larger similarity of the two maps and of one with the negative of the other,
            as published: for methods whose maps change their sign with that of the logit.
        seed: The seed of the other classes, >= 0.
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
        >>> dataset = random_logit(analyzers, np.ones((2, 8, 8, 1)), num_classes=2)
        >>> dataset.ssim.shape
        (1, 2, 2)
    """
    from tfexplain.audits.case import Case

    case = Case(analyzers, x, y, seed=seed, batch_size=batch_size)
    audit = RandomLogit(num_classes, reduction, normalization, data_range, flip)
    return audit.run(case, block_size=block_size, path=path)


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
    others = np.empty((len(targets), count), targets.dtype)
    for position, target in enumerate(targets):
        # All are shuffled, so that the first draws do not depend on how many there are.
        drawn = np.random.default_rng([seed, position]).permutation(outputs - 1)[:count]
        others[position] = drawn + (drawn >= target)
    return others
