"""Cosine similarity convergence: whether a backward chain forgets what it started from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.base import Arrays, Audit, Work
from tfexplain.audits.drawings import Drawing, Labels, axes_for_legend
from tfexplain.audits.judging import (
    COSINE,
    INSENSITIVE,
    SENSITIVE,
    Cell,
    Check,
    Thresholds,
    missing,
)
from tfexplain.checks import choice, flag, integer

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.analyzers import Analyzer
    from tfexplain.audits.case import Case
    from tfexplain.audits.direction_counts import Chain

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0)
# The quantiles of all pairs of vectors that stand for an interval.
PAIRS = (0.05, 0.95)
OF_PAIRS = f"{PAIRS[0]:.0%} to {PAIRS[1]:.0%} of all pairs of vectors"
# |cos| of float32 cannot be told from 1 when it is nearer.
CLOSEST = 1e-8
# At least this share of a layer's pairs has to be comparable.
LEAST_SHARE = 0.1


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work(Work):
    """The chains of each analyzer, one per start, and all layers from the start to the input."""

    chains: Mapping[str, Sequence[Chain]]
    starts: Sequence[str]
    order: Sequence[str]


def _directions(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    dataset = comparable(dataset.sel(analyzer=[method]))
    name = first_layer(dataset, method)
    if name is None:
        return missing("no layer has directions to compare: nothing arrives, or one channel only")
    quantile = dataset["quantile"].isel(start=0).sel(analyzer=method, layer=name)
    middle, low, high = (float(quantile.sel(q=q)) for q in (0.5, *PAIRS))
    passed = not middle > thresholds.directions
    word = SENSITIVE if passed else INSENSITIVE
    count = int(dataset["count"].isel(start=0).sel(analyzer=method, layer=name).sum())
    interval = f"{OF_PAIRS} ({count} at {name})"
    return Cell(word, middle, low, high, passed, COSINE, interval)


@dataclass(frozen=True)
class CosineConvergence(Audit):
    """Whether directions survive the way back; options as of `cosine_convergence`."""

    name = "cosine_convergence"
    function = "tfexplain.audits.cosine_convergence"
    title = "Directions on the way back"
    question = "Does the way back through the model keep the directions that it starts from?"
    caption = (
        "Random vectors are sent from the output back to the input. Where their median |cos| comes "
        "close to 1, they have become parallel: whatever the layers above say, the map below keeps "
        "its pattern. The grey line is that of random directions."
    )
    precise = True
    references = ("sixt2020when",)
    presets = {
        "quick": {"samples": 10, "num_vectors": 3},
        "default": {"samples": 32, "num_vectors": 5},
        "thorough": {"samples": 64, "num_vectors": 10},
    }
    compiled = 3.0
    block_size = 16
    checks = (
        Check(
            "directions",
            "Backward pass keeps directions",
            "Random vectors are sent back from the output. Where they are parallel at the first "
            "layer (|cos| = 1), the layers above only scale the map. Locations where a single "
            "channel is active do not count: there they are parallel for any method.",
            _directions,
            decides=True,
            head="directions",
            interval=OF_PAIRS,
        ),
    )

    start: str | Sequence[str | None] | None = None
    layers: str | Sequence[str] | None = None
    num_vectors: int = 5
    quantity: str = "contribution"
    per_location: bool = False

    @classmethod
    def suits(cls, case: Case) -> str:
        """Needs two outputs, because a report starts at them."""
        return case.without_classes()

    def check(self, case: Case) -> None:
        """Refuses methods alone: other starts have directions where the output has none."""
        self.check_methods(case)

    @classmethod
    def refuses(cls, analyzer: Analyzer, case: Case) -> str:
        """Needs one backward chain through layers that can be read."""
        from tfexplain.audits.case import several_chains
        from tfexplain.graph import has_graph

        if not analyzer.has_chain:
            return "no single backward chain: it averages, contrasts two maps, or reads one layer"
        if not has_graph(analyzer.user_model):
            return (
                f"the model {analyzer.user_model.name!r} is subclassed and has no layers to read. "
                "Build the same layers as a Functional model"
            )
        return several_chains(analyzer)

    def passes(self, case: Case) -> float:
        """All vectors of a sample share the forward pass."""
        from tfexplain.analyzers.capabilities import BACKWARD

        return case.count * len(case.analyzers) * (1 + BACKWARD * self.num_vectors)

    def prepare(self, case: Case) -> _Work:
        """Checks the options, and makes the chains."""
        from tfexplain.analyzers.reversed import with_chain
        from tfexplain.audits.case import merged_orders
        from tfexplain.audits.direction_counts import Chain

        count = integer("num_vectors", self.num_vectors, 2, hint="Pairs of vectors are compared.")
        choice("quantity", self.quantity, ("contribution", "multiplier"))
        single = flag("per_location", self.per_location)
        layers = [self.layers] if isinstance(self.layers, str) else self.layers
        start = self.start
        starts = [start] if start is None or isinstance(start, str) else list(start)
        if not starts:
            raise ValueError(
                "start is an empty list; give names of layers, or None for the output."
            )
        chains = {
            name: [Chain(with_chain(a), one, layers, count, self.quantity) for one in starts]
            for name, a in case.analyzers.items()
        }
        names = [chain.start for chain in next(iter(chains.values()))]
        for name, row in chains.items():
            if [chain.start for chain in row] != names:
                raise ValueError(
                    f"{name!r} starts at {', '.join(chain.start for chain in row)}, the first "
                    f"analyzer at {', '.join(names)}. Name the layers to start from."
                )
        if len(set(names)) < len(names):
            raise ValueError(f"start names the same tensor twice: {', '.join(names)}.")
        order = merged_orders([list(chain.readouts) for row in chains.values() for chain in row])
        options = {
            "start": names,
            "layers": order,
            "num_vectors": count,
            "quantity": self.quantity,
            "per_location": single,
            **case.options(),
        }
        steps = len(chains) * len(names)
        return _Work(case, options, steps, chains=chains, starts=names, order=order)

    def measure(self, work: _Work, block: slice, advance: Callable[[], None]) -> Arrays:
        """Returns counts of all pairs of a block, (analyzer, start, layer, bin)."""
        from tfexplain.audits.direction_counts import BINS, NUMBERS

        shape = (len(work.chains), len(work.starts), len(work.order))
        arrays = {name: np.zeros((*shape, BINS), "int64") for name in ("count", "negative")}
        arrays |= {name: np.zeros(shape, "int64") for name in NUMBERS}
        for row, name in enumerate(work.chains):
            for column, chain in enumerate(work.chains[name]):
                measured, single = chain.measure(
                    work.case.arrays(name),
                    block,
                    work.case.seed,
                    work.case.batch_size,
                    bool(self.per_location),
                )
                for layer, (counts, negative, others) in measured.items():
                    place = (row, column, work.order.index(layer))
                    arrays["count"][place] += counts
                    arrays["negative"][place] += negative
                    for number, value in zip(NUMBERS, others, strict=False):
                        arrays[number][place] = value
                for layer, value in single.items():
                    arrays[f"single/{row}/{column}/{layer}"] = value
                advance()
        return arrays

    def combine(self, work: _Work, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Pools the counts."""
        import xarray as xr

        from tfexplain import metrics
        from tfexplain.audits.direction_counts import NUMBERS

        pooled: dict[str, Any] = {
            name: sum(block[name] for block in blocks) for name in ("count", "negative", *NUMBERS)
        }
        baseline = np.full(pooled["dead"].shape, np.nan)
        for row, name in enumerate(work.chains):
            for column, chain in enumerate(work.chains[name]):
                for layer in chain.readouts:
                    size = chain.dimensions(layer)
                    if size is not None:
                        place = (row, column, work.order.index(layer))
                        baseline[place] = metrics.random_direction_cosine(size)
        dimensions = ("analyzer", "start", "layer")
        variables = {
            "count": ((*dimensions, "bin"), pooled["count"]),
            "negative": ((*dimensions, "bin"), pooled["negative"]),
            "quantile": (
                (*dimensions, "q"),
                metrics.histogram_quantiles(pooled["count"], np.array(QUANTILES)),
            ),
            "baseline": (dimensions, baseline),
            **{name: (dimensions, pooled[name]) for name in NUMBERS},
        }
        if self.per_location:
            variables |= _single(blocks, work.chains, work.order)
        return xr.Dataset(
            variables,
            coords={
                "analyzer": list(work.chains),
                "start": list(work.starts),
                "layer": list(work.order),
                "bin": metrics.BIN_EDGES[1:],
                "bin_low": ("bin", metrics.BIN_EDGES[:-1]),
                "q": list(QUANTILES),
            },
        )

    @classmethod
    def draw(cls, dataset: xr.Dataset, labels: Labels) -> list[Drawing]:
        """Medians over the layers."""
        from tfexplain import plotting

        shown = comparable(dataset)
        dims = ("analyzer", "start", "bin")
        alike = (shown["count"].sum(dims) == 0) & (dataset["count"].sum(dims) > 0)
        caption = "From the output (left) towards the input (right); 1-10^-3 means 0.999. What is "
        caption += "nearer to 1 than float32 can tell is drawn at 1-10^-8. Locations where all "
        caption += "vectors lie in one channel do not count."
        if alike.any():
            names = ", ".join(map(str, dataset.layer.values[alike.values]))
            caption += f" They do so nearly everywhere at: {names}."
        return [
            Drawing(
                lambda named: plotting.convergence_curves(
                    comparable(named),
                    logarithmic=True,
                    closest=CLOSEST,
                    ax=axes_for_legend(named),
                ),
                "Median |cos| over the layers",
                caption,
            )
        ]


def cosine_convergence(
    analyzers: Analyzer | Mapping[str, Analyzer],
    x: Any,
    *,
    start: str | Sequence[str | None] | None = None,
    layers: Sequence[str] | None = None,
    num_vectors: int = 5,
    quantity: str = "contribution",
    per_location: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    block_size: int = 16,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Measures how similar the relevance of random output vectors becomes on its way back.

    Gaussian vectors v ~ N(0, 1) are sent backward from a tensor; at every layer the relevance of
    each two of them is compared by its cosine (section 3 of [sixt2020when], there CSC). Where |cos|
    is 1 for all pairs, the direction of what is below no longer depends on what is above: a map can
    then change by a factor only, which for tensors with locations may be another one at each
    location. Compare with `baseline`: a tensor with one channel has |cos| = 1 always.

    Tensors with locations (height, width, channels; steps, features) are compared location by
    location over their channels, all others as whole vectors. 1 - |cos| is half the squared
    distance of the normalised vectors, in float64: without cancellation. Float32 relevance itself
    resolves about 1e-14; analyzers with dtype="float64" go further. 1 - |cos| is counted in 50 bins
    per decade from 1e-16 to 1 as it is computed, and nothing else is kept.

    The vectors of a sample depend on the seed, its position in x and the start, and are the same
    for all analyzers. All vectors of a sample share one forward pass. Batch sizes change the
    results by rounding only.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer; with a backward chain (LRP, pattern
            methods, excitation, DeepLIFT, gradients and their modifications).
        x: Samples, as for `analyze`.
        start: Name of the layer whose output receives the vectors, or a list of these; None is the
            explained output.
        layers: Names of layers to read; None reads every layer. The input is always read.
        num_vectors: Vectors per sample, >= 2.
        quantity: What is read of DeepLIFT: "contribution" or "multiplier".
        per_location: Also return every single value, in variables `one_minus_abs_cosine_<layer>`
            (analyzer, start, sample, pair, location), which are large.
        seed: The seed of the vectors.
        batch_size: Samples that are computed together, at most; fewer where they are large.
        block_size: Samples that are finished and stored together.
        path: NetCDF file for the result. Finished blocks are kept beside it until the end, and a
            run that was killed continues with the next one.

    Returns:
        Dataset with, all without a unit,

        * `count` (analyzer, start, layer, bin): pairs by 1 - |cos|; `negative`: those of them with
          cos < 0. The coordinate `bin` is the upper edge, `bin_low` the lower one; the first bin
          holds everything below 1e-16;
        * `quantile` (analyzer, start, layer, q): of |cos| over all pairs, from the bins;
        * `baseline` (analyzer, start, layer): median |cos| of random directions with the number of
          dimensions of that layer;
        * `dead` (analyzer, start, layer): locations where no vector arrives, over all samples;
        * `dropped` (analyzer, start, layer): pairs without a cosine, because at least one of the
          two is zero there;
        * `one_channel` (analyzer, start, layer): counted pairs at locations where all vectors lie
          in one and the same channel, so that |cos| is 1 whatever the method (first bin).

        Layers go from the start to the input. Where an analyzer does not have a layer, counts are
        0 and the others not a number.

    Raises:
        TypeError: If `analyzers` is something else.
        ValueError: For wrong samples, layers or options; for an analyzer without a backward chain;
            if relevance overflows.
    """
    from tfexplain.audits.case import Case

    audit = CosineConvergence(start, layers, num_vectors, quantity, per_location)
    case = Case(analyzers, x, seed=seed, batch_size=batch_size)
    return audit.run(case, block_size=block_size, path=path)


def comparable(dataset: xr.Dataset) -> xr.Dataset:
    """Returns cosines without those of vectors in one channel, which are 1 whatever the method.

    Behind rectifiers and max pooling, often a single channel of a location is active.

    Args:
        dataset: The result of `cosine_convergence`.

    Returns:
        The same with fewer pairs in `count`, and `quantile` of the others. Layers of which less
        than a tenth of the pairs is left have none.
    """
    from tfexplain import metrics

    count = dataset["count"].astype("int64")
    alone = dataset["one_channel"]
    # Distances of parallel vectors are in the first bin.
    left = count.where(count["bin"] != count["bin"][0], count - alone)
    enough = left.sum("bin") >= LEAST_SHARE * count.sum("bin")
    left = left.where(enough, 0).transpose(*count.dims)
    quantiles = metrics.histogram_quantiles(left.values, dataset["q"].values)
    return dataset.assign(
        count=left, quantile=(dataset["quantile"].dims, quantiles.astype("float64"))
    )


def first_layer(dataset: xr.Dataset, method: str) -> str | None:
    """Returns the layer nearest to the input at which directions can be compared.

    The input counts where there is no other one.

    Args:
        dataset: What `comparable` returned.
        method: Name of the analyzer.
    """
    count = dataset["count"].isel(start=0).sel(analyzer=method).sum("bin")
    start = str(dataset.start.values[0])
    *inside, last = [str(name) for name in dataset.layer.values]
    for name in (*reversed(inside), last):
        if name != start and int(count.sel(layer=name)) > 0:
            return name
    return None


def _single(
    blocks: Sequence[Arrays], chains: Mapping[str, Sequence[Chain]], order: Sequence[str]
) -> dict[str, tuple]:
    """Returns the variables that hold every single value."""
    variables = {}
    for layer in order:
        parts = {}
        for row, analyzer in enumerate(chains):
            for column in range(len(chains[analyzer])):
                key = f"single/{row}/{column}/{layer}"
                if key in blocks[0]:
                    parts[row, column] = np.concatenate([block[key] for block in blocks])
        shape = (len(chains), len(next(iter(chains.values()))), *next(iter(parts.values())).shape)
        values = np.full(shape, np.nan)
        for place, part in parts.items():
            values[place] = part
        name = layer.replace("/", "_")
        dimensions = ("analyzer", "start", "sample", "pair", f"location_{name}")
        variables[f"one_minus_abs_cosine_{name}"] = (dimensions, values)
    return variables
