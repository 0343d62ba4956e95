"""Do maps depend on what was learned? Similarity of maps of a trained and a randomized network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.base import Arrays, Audit, Work
from tfexplain.audits.drawings import Drawing, Grid, Labels, Tile, axes_for_legend
from tfexplain.audits.judging import RANK, SSIM, Cell, Check, Thresholds, similarity_cell
from tfexplain.audits.randomization_steps import (
    MODES,
    Step,
    drawable,
    randomization_steps,
    randomized_layers,
)
from tfexplain.checks import choice, flag, positive
from tfexplain.errors import UnsupportedModelError

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.audits.case import Case
    from tfexplain.audits.random_weights import RandomizedCopy

SIMILARITIES = ("ssim", "spearman", "cosine")
TRAINED = "trained"
# Columns of maps on the page at most, with the first and the last.
MOST_COLUMNS = 8


def _last_layers(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    # Steps go from the last layer to the first.
    last = dataset.isel(step=0).sel(analyzer=method)
    if not np.isnan(last["ssim"]).all():
        return similarity_cell(last["ssim"].values, SSIM, thresholds.last_layers)
    ranks = np.abs(last["spearman"].values)
    return similarity_cell(ranks, RANK, thresholds.last_layers_rank)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work(Work):
    """The same methods on a copy of the model, whose weights are randomized.

    Attributes:
        on_copy: The case on the copy.
        copy: The copy.
        steps_taken: The steps of random weights, from the last layer to the first; `steps` counts
            those of the display.
        reductions: The reductions of each analyzer.
        normalizations: The normalizations of each analyzer.
        kept: Positions of the samples whose maps are kept.
    """

    on_copy: Case
    copy: RandomizedCopy
    steps_taken: Sequence[Step]
    reductions: Mapping[str, str]
    normalizations: Mapping[str, str]
    kept: np.ndarray

    def set(self, step: Step | None) -> None:
        """Gives the copy the weights of a step; None is the trained network."""
        self.copy.set(frozenset() if step is None else step.places)

    def maps(self, block: slice) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the name and the maps (n, *sizes) of each analyzer for the present weights."""
        for name, reduction in self.reductions.items():
            yield name, self.on_copy.maps(name, block, reduction)


@dataclass(frozen=True)
class ParameterRandomization(Audit):
    """Whether maps depend on the trained weights; options as of `parameter_randomization`."""

    name = "parameter_randomization"
    function = "tfexplain.audits.parameter_randomization"
    title = "Random weights"
    question = "Do maps change when trained weights are replaced by random ones, layer by layer?"
    caption = (
        "From the last layer to the first, trained weights are replaced by random ones. The maps "
        "of a method that explains what the model learned change at once; a line that stays near "
        "1 does not depend on the layers that were randomised. Below are the compared maps, of "
        "gradients their magnitudes: first that of the trained model, then those with all layers "
        "down to the named one random."
    )
    precise = True
    references = ("adebayo2018sanity", "sixt2020when")
    presets = {
        "quick": {"steps": 3, "examples": 1},
        "default": {"steps": 6, "examples": 2},
        "thorough": {"steps": None, "examples": 2},
    }
    compiled = 2.0
    checks = (
        Check(
            "last_layers",
            "Depends on the last layer",
            "The last layer gets random weights. Maps that stay the same do not show what it "
            "learned.",
            _last_layers,
            decides=True,
            head="last layer",
        ),
    )

    layers: str | Sequence[str] | None = None
    mode: str = "cascading"
    weights: str = "initializer"
    statistics: str = "randomized"
    reduction: str | Mapping[str, str] | None = None
    normalization: str | Mapping[str, str] | None = None
    data_range: float = 1.0
    flip: bool = False
    keep: Sequence[int] = ()

    @classmethod
    def suits(cls, case: Case) -> str:
        """Needs a graph with weights, and a copy."""
        from tfexplain.audits.random_weights import RandomizedCopy
        from tfexplain.graph import has_graph

        if not has_graph(case.model):
            return _no_graph(case.model)
        if not randomized_layers(case, None):
            return "the model has no weights"
        try:
            RandomizedCopy(drawable(case), [case.samples[:2]])
        except ValueError as error:
            return str(error)
        return ""

    def check(self, case: Case) -> None:
        """Leaves all but the graph to `prepare`, which makes the copy that `suits` tries."""
        from tfexplain.graph import has_graph

        if not has_graph(case.model):
            raise UnsupportedModelError(f"T{_no_graph(case.model)[1:]}.")

    @classmethod
    def for_case(cls, case: Case, settings: Mapping[str, Any]) -> ParameterRandomization:
        """Some layers, evenly chosen; a map times -1 counts as the same."""
        pictures = len(case.layout.sizes) in (1, 2)
        return cls(
            layers=randomized_layers(case, settings["steps"]),
            weights=drawable(case).kind,
            flip=True,
            keep=tuple(case.spread(settings["examples"]).tolist()) if pictures else (),
        )

    def passes(self, case: Case) -> float:
        """A map of the trained network and of each step."""
        names = randomized_layers(case, None) if self.layers is None else self.layers
        steps = 1 if isinstance(names, str) else len(names)
        return case.count * (1 + steps) * case.passes_per_map()

    def prepare(self, case: Case) -> _Work:
        """Checks the options, makes the steps, and copies the model."""
        from tfexplain import metrics
        from tfexplain.audits.random_weights import RandomizedCopy, RandomWeights

        model = _one_model(case)
        data_range, flip = positive("data_range", self.data_range), flag("flip", self.flip)
        choice("mode", self.mode, MODES)
        reductions = case.reductions(self.reduction)
        random = RandomWeights(model, self.weights, self.statistics, case.seed)
        steps = randomization_steps(case, self.layers, self.mode, random)
        random.check(frozenset().union(*(step.places for step in steps)))
        copy = RandomizedCopy(random, [case.samples[:2]])
        normalizations = case.normalizations(self.normalization)
        kept = _positions(self.keep, case.count)
        options = {
            "layers": [step.name for step in steps],
            "mode": self.mode,
            "weights": self.weights,
            "statistics": self.statistics,
            "reduction": reductions,
            **case.options("targets"),
            "normalization": normalizations,
            "data_range": data_range,
            "flip": flip,
            "keep": kept.tolist(),
            "resamples": metrics.RESAMPLES,
            "confidence": metrics.CONFIDENCE,
        }
        small = case.layout.too_small
        notes = [*random.notes(), *case.layout.notes()]
        notes += [f"no structural similarity: {small}"] if small else []
        fitted = [name for name, analyzer in case.analyzers.items() if analyzer.fits]
        if fitted:
            notes.append(
                f"{', '.join(fitted)}: what was fitted to the trained model stays, so that of "
                "these methods only the weights, where they use them, become random."
            )
        return _Work(
            case,
            options,
            1 + len(steps),
            notes,
            on_copy=case.on(copy.model),
            copy=copy,
            steps_taken=steps,
            reductions=reductions,
            normalizations=normalizations,
            kept=kept,
        )

    def measure(self, work: _Work, block: slice, advance: Callable[[], None]) -> Arrays:
        """Returns the similarities of a block, (analyzer, step, sample), and the maps to keep."""
        from tfexplain import metrics
        from tfexplain.audits.case import structural_similarity

        names, layout = list(work.reductions), work.case.layout
        shape = (len(names), len(work.steps_taken), block.stop - block.start)
        scores = {kind: np.full(shape, np.nan) for kind in SIMILARITIES}
        shown = work.kept[(work.kept >= block.start) & (work.kept < block.stop)] - block.start
        kept_maps = np.empty((shape[0], 1 + shape[1], len(shown), *layout.sizes), "float32")
        work.set(None)
        trained = dict(work.maps(block))
        kept_maps[:, 0] = [maps[shown] for maps in trained.values()]
        scaled = {
            name: [metrics.NORMALIZATIONS[work.normalizations[name]](map) for map in maps]
            for name, maps in trained.items()
        }
        advance()
        for place, step in enumerate(work.steps_taken):
            work.set(step)
            for row, (name, maps) in enumerate(work.maps(block)):
                kept_maps[row, 1 + place] = maps[shown]
                kind = work.normalizations[name]
                for sample, (map, own) in enumerate(zip(maps, trained[name], strict=True)):
                    where = row, place, sample
                    if not layout.too_small:
                        scores["ssim"][where] = structural_similarity(
                            scaled[name][sample], map, kind, self.data_range, bool(self.flip)
                        )
                    scores["spearman"][where] = metrics.spearman(own, map)
                    scores["cosine"][where] = metrics.cosine(own, map)
            advance()
        return {**scores, "relevance": kept_maps}

    def combine(self, work: _Work, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Joins the samples, and makes medians with intervals."""
        import xarray as xr

        from tfexplain import metrics

        case, names = work.case, list(work.reductions)
        scores = {
            name: np.concatenate([block[name] for block in blocks], axis=2) for name in SIMILARITIES
        }
        stacked = np.stack(list(scores.values()), axis=2)  # (analyzer, step, similarity, sample)
        middle = np.apply_along_axis(metrics.median_interval, -1, stacked, seed=case.seed)
        dims = ("analyzer", "step", "similarity")
        steps = [step.name for step in work.steps_taken]
        dataset = xr.Dataset(
            {
                **{name: (("analyzer", "step", "sample"), part) for name, part in scores.items()},
                **{
                    name: (dims, middle[..., index])
                    for index, name in enumerate(("median", "low", "high"))
                },
                "missing": (dims, np.isnan(stacked).sum(axis=-1)),
                "target": (("sample",), case.targets.astype("int64")),
            },
            coords={
                "analyzer": names,
                "step": steps,
                "sample": np.arange(case.count),
                "similarity": list(SIMILARITIES),
            },
        )
        if not len(work.kept):
            return dataset
        kept_maps = np.concatenate([block["relevance"] for block in blocks], axis=2)
        sizes = ("analyzer", "map_step", "kept", *case.layout.names())
        return dataset.assign(relevance=(sizes, kept_maps)).assign_coords(
            map_step=[TRAINED, *steps], kept=work.kept
        )

    @classmethod
    def draw(cls, dataset: xr.Dataset, labels: Labels) -> Iterator[Drawing | Grid]:
        """Curves over the steps; for each kept sample the maps, a column per step."""
        from tfexplain import plotting

        similarity = "spearman" if np.isnan(dataset["ssim"]).all() else "ssim"
        title = "Rank correlation" if similarity == "spearman" else "Structural similarity"
        yield Drawing(
            lambda named: plotting.randomization_curves(
                named, similarity, ax=axes_for_legend(named)
            ),
            f"{title} of the maps as weights become random",
            f"{title} with the maps of the trained model, layer by layer from the last.",
        )
        if "relevance" not in dataset:
            return
        maps = dataset["relevance"]
        count = maps.sizes["map_step"]
        columns = np.unique(np.linspace(0, count - 1, min(count, MOST_COLUMNS)).round().astype(int))
        for one in maps.isel(map_step=columns).transpose("kept", "analyzer", "map_step", ...):
            yield Grid(
                f"Sample {labels.sample(one.kept.item())}",
                [str(step) for step in one.map_step.values],
                {str(row.analyzer.item()): [_tile(map) for map in row] for row in one},
            )


def _tile(map: xr.DataArray) -> Tile | None:
    """Returns a map of a cascade; None if it is not finite."""
    if not np.isfinite(map.values).all():
        return None
    alt = f"map by {map.analyzer.item()}, {map.map_step.item()}"
    return Tile(map.values, alt, has_channels=False)


def parameter_randomization(
    analyzers: Any,
    x: Any,
    y: Any = None,
    *,
    layers: str | Sequence[str] | None = None,
    mode: str = "cascading",
    weights: str = "initializer",
    statistics: str = "randomized",
    reduction: str | Mapping[str, str] | None = None,
    normalization: str | Mapping[str, str] | None = None,
    data_range: float = 1.0,
    flip: bool = False,
    keep: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 32,
    block_size: int = 32,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Compares maps of the trained network with maps of the network with random weights.

    A method whose maps stay the same when layers are randomized does not show what these layers
    learned ([adebayo2018sanity]; section 4 and fig. 5 of [sixt2020when]). The explained class stays
    that of the trained network in all steps.

    Weights are randomized on a copy of the model, never on the model itself. All analyzers see the
    same copy, and so the same random network: each weight has a generator of its own, seeded by
    (seed, its position among the model's weights), whatever the order of steps. The pattern
    methods keep their fitted patterns; `pattern.attribution` multiplies them by the weights of the
    randomized network. (The published code keeps these products too, so that its curves of pattern
    methods hardly fall.) Methods that start with the value of the logit do so with that of the
    randomized network, which may be negative.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer, all of one model with one input. It is
            Functional or Sequential, with layers that can be made again from their configuration.
        x: Samples, (n, *input_shape), as for `random_logit`; other inputs too, which have no
            structural similarity.
        y: Class of each sample, (n,), or one for all; flat index for outputs of rank > 2. None: the
            largest output of the trained network.
        layers: Names of the steps, as `analyzer.describe()` and the model have them ("outer/inner"
            inside of nested models, "name@1" for the second use of a layer). In whatever order they
            are given, steps go from the last to the first. Default: all layers with weights that
            the explained output depends on.
        mode: "cascading": a step randomizes every layer at or behind the named one, in the order in
            which the layers run, so that each step contains those behind it. A name without weights
            means what lies behind it: the last ReLU of a residual block leaves the block as it is.
            A layer that is used several times is randomized as soon as one of its uses is at or
            behind the named one. "independent": a step randomizes the named layer only, or all
            layers of the named nested model.
        weights: "initializer": a fresh draw from the layer's own initializers, as before training.
            "permutation": the trained entries of each array in random order.
        statistics: "randomized" (moving mean and variance of batch normalisations are weights like
            others) or "kept". Statistics of the data, in Normalization layers, are always kept.
        reduction: See `random_logit`.
        normalization: See `random_logit`; for the structural similarity only.
        data_range: See `random_logit`.
        flip: See `random_logit`; for the structural similarity only, the others tell by their sign.
        keep: Positions of samples whose maps are kept, to look at.
        seed: The seed of weights and intervals, >= 0.
        batch_size: Samples that are computed together.
        block_size: Samples for which all steps are done before the next are taken. Random weights
            are drawn once per block.
        path: See `random_logit`.

    Returns:
        Dataset with, all without a unit and in -1..1,

        * `ssim`, `spearman`, `cosine` (analyzer, step, sample): structural similarity of the
          normalised maps, rank correlation and cosine of the maps before normalisation; not a
          number where a map is constant (cosine: zero) or not finite;
        * `median`, `low`, `high` (analyzer, step, similarity): median over the samples, and the
          ends of its 99 % interval from 10,000 resamples of the samples (bootstrap, percentile
          method); what is missing is left out. One sample has no interval;
        * `missing` (analyzer, step, similarity): how many samples are left out;
        * `target` (sample): the explained outputs;
        * with `keep`: `relevance` (analyzer, map_step, kept, *sizes), float32, what `cascade_maps`
          returns of these samples; the first step is "trained", `kept` their positions.

        Attributes: the arguments above, `versions` and `analyzers` (JSON text), and `notes`: what
        was left as trained, and why there is no structural similarity.

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For several models or inputs, unknown layers, weights whose initializer is
            unknown, wrong options or samples, or a path with another run.
        UnsupportedModelError: For a model that has no graph or no faithful copy.

    Example:
        >>> from tfexplain.analyzers import create_analyzer
        >>> dataset = parameter_randomization(create_analyzer("lrp.z", model), x)
        >>> dataset["median"].dims
        ('analyzer', 'step', 'similarity')
    """
    from tfexplain.audits.case import Case

    audit = ParameterRandomization(
        layers, mode, weights, statistics, reduction, normalization, data_range, flip, keep
    )
    case = Case(analyzers, x, y, seed=seed, batch_size=batch_size)
    return audit.run(case, block_size=block_size, path=path)


def _positions(keep: Any, count: int) -> np.ndarray:
    """Returns rising positions of samples.

    Raises:
        ValueError: If they are none.
    """
    positions = np.asarray(keep)
    if positions.size == 0:
        return np.empty(0, int)
    if (
        positions.ndim != 1
        or positions.dtype.kind not in "iu"
        or positions.min() < 0
        or positions.max() >= count
    ):
        raise ValueError(
            f"keep must be positions of the {count} samples, from 0 on, received {keep!r}."
        )
    return np.unique(positions)


def _one_model(case: Case) -> Any:
    models = {id(analyzer.user_model): analyzer.user_model for analyzer in case.analyzers.values()}
    if len(models) > 1:
        raise ValueError(
            f"All analyzers must explain the same model, so that they see the same random network; "
            f"these explain {len(models)} models. Audit each model by itself."
        )
    (model,) = models.values()
    return model


def _no_graph(model: Any) -> str:
    return (
        f"the model {model.name!r} ({type(model).__name__}) is subclassed: it has no graph, which "
        "says in which order layers run, and no copy. Build the same layers as a Functional model"
    )
