"""Do maps depend on what was learned? Similarity of maps of a trained and a randomized network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from tfexplain import metrics
from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.reversed import explained_output
from tfexplain.audits import common
from tfexplain.audits.blocks import Arrays, digest, in_blocks
from tfexplain.audits.random_weights import RandomizedCopy, RandomWeights
from tfexplain.checks import choice
from tfexplain.errors import UnsupportedModelError, nearest
from tfexplain.graph import Call, has_graph, trace

MODES = ("cascading", "independent")
SIMILARITIES = ("ssim", "spearman", "cosine")
TRAINED = "trained"


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
        seed: Of weights and intervals, >= 0.
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
        >>> found = parameter_randomization(create_analyzer("lrp.z", model), x)
        >>> found["median"].dims
        ('analyzer', 'step', 'similarity')
    """
    common.check_common(data_range, flip, seed)
    run = _Run(analyzers, x, y, layers, mode, weights, statistics, reduction, seed, batch_size)
    kept = _positions(keep, len(run.samples))
    normalizations = common.map_functions(run.analyzers, reduction, normalization)[1]
    found = common.settings(
        "parameter_randomization",
        run.given,
        run.samples,
        with_data=path is not None,
        **run.settings,
        normalization=normalizations,
        data_range=float(data_range),
        flip=bool(flip),
        keep=kept.tolist(),
        resamples=metrics.RESAMPLES,
        confidence=metrics.CONFIDENCE,
    )
    names = list(run.analyzers)

    def compute(block: slice, advance: Callable[[], None]) -> Arrays:
        size = block.stop - block.start
        scores = np.full((len(SIMILARITIES), len(names), len(run.steps), size), np.nan)
        shown = kept[(kept >= block.start) & (kept < block.stop)] - block.start
        looks = np.empty((len(names), 1 + len(run.steps), len(shown), *run.layout.sizes), "float32")
        run.set(None)
        trained = {name: run.maps(name, block) for name in names}
        looks[:, 0] = [trained[name][shown] for name in names]
        scaled = {
            name: [metrics.NORMALIZATIONS[normalizations[name]](map) for map in maps]
            for name, maps in trained.items()
        }
        advance()
        for place, step in enumerate(run.steps):
            run.set(step)
            for row, name in enumerate(names):
                maps = run.maps(name, block)
                looks[row, 1 + place] = maps[shown]
                for sample, (map, own) in enumerate(zip(maps, trained[name], strict=True)):
                    if not run.layout.too_small:
                        scores[0, row, place, sample] = common.structural_similarity(
                            scaled[name][sample], map, normalizations[name], data_range, bool(flip)
                        )
                    scores[1, row, place, sample] = metrics.spearman(own, map)
                    scores[2, row, place, sample] = metrics.cosine(own, map)
            advance()
        return {**dict(zip(SIMILARITIES, scores, strict=True)), "relevance": looks}

    def combine(blocks: list[Arrays]) -> xr.Dataset:
        scores = {
            name: np.concatenate([block[name] for block in blocks], axis=2) for name in SIMILARITIES
        }
        stacked = np.stack(list(scores.values()), axis=2)  # (analyzer, step, similarity, sample)
        middle = np.apply_along_axis(metrics.median_interval, -1, stacked, seed=seed)
        dims = ("analyzer", "step", "similarity")
        dataset = xr.Dataset(
            {
                **{name: (("analyzer", "step", "sample"), part) for name, part in scores.items()},
                **{
                    name: (dims, middle[..., index])
                    for index, name in enumerate(("median", "low", "high"))
                },
                "missing": (dims, np.isnan(stacked).sum(axis=-1)),
                "target": (("sample",), run.targets.astype("int64")),
            },
            coords={
                "analyzer": names,
                "step": [step.name for step in run.steps],
                "sample": np.arange(len(run.targets)),
                "similarity": list(SIMILARITIES),
            },
            attrs=common.attributes(found, run.notes()),
        )
        if not len(kept):
            return dataset
        looks = np.concatenate([block["relevance"] for block in blocks], axis=2)
        sizes = ("analyzer", "map_step", "kept", *_dimensions(looks.ndim - 3))
        return dataset.assign(relevance=(sizes, looks)).assign_coords(
            map_step=[TRAINED, *(step.name for step in run.steps)], kept=kept
        )

    return in_blocks(
        compute,
        combine,
        title="parameter randomization",
        count=len(run.samples),
        block_size=block_size,
        steps=1 + len(run.steps),
        settings=found,
        path=path,
    )


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
    common.check_common(1.0, False, seed)
    run = _Run(analyzers, x, y, layers, mode, weights, statistics, reduction, seed, batch_size)
    everything, found = slice(0, len(run.samples)), []
    for step in (None, *run.steps):
        run.set(step)
        found.append([run.maps(name, everything) for name in run.analyzers])
    maps = np.array(found).swapaxes(0, 1)  # (analyzer, step, sample, *sizes)
    sizes = _dimensions(len(run.layout.sizes))
    inputs = sizes
    if run.layout.channel_axis is not None:
        inputs = ("channel", *sizes) if run.layout.channel_axis == 0 else (*sizes, "channel")
    options = common.settings(
        "cascade_maps", run.given, run.samples, with_data=False, **run.settings
    )
    return xr.Dataset(
        {
            "relevance": (("analyzer", "step", "sample", *sizes), maps),
            "input": (("sample", *inputs), run.samples),
            "target": (("sample",), run.targets.astype("int64")),
        },
        coords={
            "analyzer": list(run.analyzers),
            "step": [TRAINED, *(step.name for step in run.steps)],
            "sample": np.arange(len(run.targets)),
        },
        attrs=common.attributes(options, run.notes()),
    )


def _positions(keep: Any, count: int) -> np.ndarray:
    """Returns rising positions of samples.

    Raises:
        ValueError: If they are none.
    """
    found = np.asarray(keep)
    if found.size == 0:
        return np.empty(0, int)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= count:
        raise ValueError(
            f"keep must be positions of the {count} samples, from 0 on, received {keep!r}."
        )
    return np.unique(found)


def _dimensions(rank: int) -> tuple[str, ...]:
    """Returns the names of the axes of maps."""
    several = tuple(f"axis_{axis + 1}" for axis in range(rank))
    return {1: ("position",), 2: ("height", "width")}.get(rank, several)


class Step(NamedTuple):
    """One step: its name, and which of the model's weights are random in it."""

    name: str
    places: frozenset[int]


class _Run:
    """Analyzers on a copy of their model, and what both functions check and do with them.

    Attributes:
        given: The user's analyzers by name.
        analyzers: The same methods on the copy.
        samples: The samples.
        targets: The explained outputs, (n,).
        steps: The steps, from the last layer to the first.
        layout: How maps are made.
        settings: The options, as JSON-able data.
    """

    def __init__(
        self,
        analyzers: Any,
        x: Any,
        y: Any,
        layers: str | Sequence[str] | None,
        mode: str,
        weights: str,
        statistics: str,
        reduction: str | Mapping[str, str] | None,
        seed: int,
        batch_size: int,
    ) -> None:
        self.given = common.named_analyzers(analyzers)
        model = _one_model(self.given)
        self.samples = common.one_input(self.given, x)
        choice("mode", mode, MODES)
        self._reductions = common.map_functions(self.given, reduction, None)[0]
        self._random = RandomWeights(model, weights, statistics, int(seed))
        self.steps = _steps(_calls(self.given), layers, mode, self._random)
        self._random.check(frozenset().union(*(step.places for step in self.steps)))
        self._copy = RandomizedCopy(self._random, [self.samples[:2]])
        self.analyzers = {name: a.on(self._copy.model) for name, a in self.given.items()}
        self.layout = common.layout(self.given, self.samples)
        self._arrays = common.typed(self.analyzers, self.samples)
        self._batch_size = batch_size
        self.targets = common.labels(self.analyzers, self.samples, y, batch_size)
        self.settings = {
            "layers": [step.name for step in self.steps],
            "mode": mode,
            "weights": weights,
            "statistics": statistics,
            "reduction": self._reductions,
            "seed": int(seed),
            "batch_size": int(batch_size),
            "targets_sha256": digest([self.targets]),
        }

    def set(self, step: Step | None) -> None:
        """Gives the copy the weights of a step; None is the trained network."""
        self._copy.set(frozenset() if step is None else step.places)

    def maps(self, name: str, block: slice) -> np.ndarray:
        """Returns the maps of an analyzer for the present weights, (n, *sizes)."""
        _, (relevance,) = self.analyzers[name].explain_part(
            [self._arrays[name]], self.targets[:, None], block, self._batch_size
        )
        return common.maps(relevance, self._reductions[name], self.layout.channel_axis)[:, 0]

    def notes(self) -> list[str]:
        """Returns what was left out and why."""
        reason = self.layout.too_small
        return [
            *self._random.notes(),
            *self.layout.notes(),
            *([f"no structural similarity: {reason}"] if reason else []),
        ]


def _one_model(analyzers: Mapping[str, Analyzer]) -> Any:
    models = {id(analyzer.user_model): analyzer.user_model for analyzer in analyzers.values()}
    if len(models) > 1:
        raise ValueError(
            f"All analyzers must explain the same model, so that they see the same random network; "
            f"these explain {len(models)} models. Audit each model by itself."
        )
    (model,) = models.values()
    if not has_graph(model):
        raise UnsupportedModelError(
            f"The model {model.name!r} ({type(model).__name__}) is subclassed: it has no graph, "
            "which says in which order layers run, and no copy. Build the same layers as a "
            "Functional model."
        )
    return model


def _calls(analyzers: Mapping[str, Analyzer]) -> list[Call]:
    """Returns the calls that the explained outputs depend on, in the order in which they run."""
    graph = trace(next(iter(analyzers.values())).user_model)
    outputs = [explained_output(graph, analyzer.output) for analyzer in analyzers.values()]
    return list(graph.upstream(outputs).calls)


def _steps(
    calls: Sequence[Call], layers: str | Sequence[str] | None, mode: str, random: RandomWeights
) -> list[Step]:
    """Returns the steps, from the last layer to the first.

    Raises:
        ValueError: For unknown or repeated names, or a step that would randomize nothing.
    """
    own = [random.places(call.operation) for call in calls]
    starts: dict[str, list[int]] = {}
    for index, call in enumerate(calls):
        starts.setdefault(call.name, []).append(index)
        parts = call.name.split("/")
        for depth in range(1, len(parts)):  # the nested models around it
            starts.setdefault("/".join(parts[:depth]), []).append(index)
    if layers is None:
        # Each layer at its last use, so that each step adds one layer.
        last = {call.operation: index for index, call in enumerate(calls) if own[index]}
        names = [calls[index].name for index in last.values()]
    else:
        names = [layers] if isinstance(layers, str) else list(layers)
        _check_names(names, starts)
    if not names:
        raise ValueError(
            "There is no layer to randomize: "
            + ("the model has no weights." if layers is None else "layers is empty.")
        )

    def places(name: str) -> frozenset[int]:
        chosen = starts[name] if mode == "independent" else range(starts[name][0], len(calls))
        return frozenset().union(*(own[index] for index in chosen))

    names.sort(key=lambda name: -starts[name][0])
    steps = [Step(name, places(name)) for name in names]
    if empty := [step.name for step in steps if not step.places]:
        where = "in" if mode == "independent" else "at or behind"
        raise ValueError(
            f"There are no weights to randomize {where} {', '.join(empty)}. Leave them out of "
            "layers."
        )
    return steps


def _check_names(names: Sequence[Any], known: Mapping[str, Any]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        hints = "".join(nearest(str(name), list(known)) for name in unknown[:3])
        raise ValueError(
            f"layers names {', '.join(map(repr, unknown))}, which the explained output does not "
            f"depend on or which are no layers.{hints} Known: {', '.join(list(known)[:40])}"
            f"{' ...' if len(known) > 40 else ''}."
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"layers names {', '.join(repeated)} more than once.")
