"""Fig. 8 and theorem 1: do products of random or learned matrices turn into rank 1?

Networks of this experiment:

* `random`: chains of random matrices of VGG-16's backward shapes (fig. 8a and 8b);
* `grids`: non-negative 1x1 and 3x3 convolutions on maps, against dense layers (section 2.2), see
  `experiments.sixt2020.grids`;
* `exact`: theorem 1 in rational arithmetic, see `experiments.sixt2020.theorem`;
* networks without branches: chains of their weights ("relu_learned") and of patterns times weights
  ("pattern"), one tap of each convolution (fig. 8a).

Vectors are rows: x becomes x M_1 M_2 ..., as relevance that is sent back. 1 - |cos| is computed
from the distance of normalised vectors, so that it is seen down to about 1e-30.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.runs import Experiment, Request, Task, finding
from experiments.sixt2020 import grids, theorem
from experiments.sixt2020.chains import (
    ALPHA_BETA,
    RANDOM_KINDS,
    SHAPES,
    TINY_SHAPES,
    chain_separations,
    predicted_factor,
    propagated,
    random_matrix,
    separation,
    start_vectors,
)
from experiments.sixt2020.patterns import fitted_patterns, taps
from experiments.sixt2020.protocol import PROTOCOLS

REPETITIONS, TINY_REPETITIONS = 20, 3
LEARNED_KINDS = ("relu_learned", "pattern")
# The paper calls a median cosine similarity of 0.99 convergence (section 4).
CONVERGED = 0.01
FLOAT64, FLOAT32 = 2.0**-52, 2.0**-23
# The lower end of fig. 8: what is smaller counts as converged to floating-point precision there.
SHOWN = 1e-12
# Below this, distances are rounding.
FLOOR = 1e-28
# Stride-free 3x3 convolutions in the last stage of ResNet-50, on maps of 7x7.
LAST_STAGE = 3


def random_chains(task: Task) -> xr.Dataset:
    """Fig. 8a and 8b for random matrices; all kinds share the normal numbers."""
    cosines = PROTOCOLS[task.protocol].chain_cosines
    shapes = TINY_SHAPES if task.request.tiny else SHAPES
    repetitions = TINY_REPETITIONS if task.request.tiny else REPETITIONS
    kinds = (*RANDOM_KINDS, *(f"{alpha},{beta}" for alpha, beta in ALPHA_BETA))
    separations = np.empty((len(kinds), repetitions, len(shapes) + 1))
    for repetition in range(repetitions):
        start = start_vectors(task.generator("start", repetition), shapes[0][0], cosines)
        vectors = {kind: start for kind in kinds}
        separations[:, repetition, 0] = separation(start, cosines)
        generator = task.generator("matrices", repetition)
        for step, shape in enumerate(shapes, 1):
            w = generator.normal(size=shape)
            for place, kind in enumerate(kinds):
                matrix = random_matrix(kind, w, cosines)
                vectors[kind] = propagated(vectors[kind], matrix, kind == "relu")
                separations[place, repetition, step] = separation(vectors[kind], cosines)
    predicted = [[predicted_factor(kind, rows) for rows, _ in shapes] for kind in kinds]
    return _chains(kinds, separations).assign(predicted_factor=(("kind", "factor"), predicted))


def _chains(kinds: Sequence[str], separations: np.ndarray) -> xr.Dataset:
    """Returns the Dataset of chains: separations are (kind, repetition, multiplications)."""
    return xr.Dataset(
        {
            "separation": (("kind", "repetition", "multiplications"), separations),
            "median": (("kind", "multiplications"), _median(separations)),
        },
        {
            "kind": list(kinds),
            "repetition": np.arange(separations.shape[1]),
            "multiplications": np.arange(separations.shape[2]),
        },
    )


def _median(separations: np.ndarray) -> np.ndarray:
    """Returns the median over repetitions (axis 1), without those whose vectors all died."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.nanmedian(separations, axis=1)


def learned_chains(task: Task) -> xr.Dataset:
    """Fig. 8a for the weights of a network: random vectors through one tap of each layer."""
    protocol = PROTOCOLS[task.protocol]
    model = networks.load(task)
    x, _ = networks.images(task)
    patterns = fitted_patterns(model, x, protocol.output_mean)
    chains = {"relu_learned": taps(model), "pattern": taps(model, patterns)}
    repetitions = TINY_REPETITIONS if task.request.tiny else REPETITIONS
    separations = []
    for kind, kernels in chains.items():
        matrices = [kernel.T for kernel in reversed(kernels.values())]
        separations.append(
            [
                chain_separations(
                    start_vectors(
                        task.generator("start", repetition),
                        matrices[0].shape[0],
                        protocol.chain_cosines,
                    ),
                    matrices,
                    protocol.chain_cosines,
                    rectified=kind == "relu_learned",
                )
                for repetition in range(repetitions)
            ]
        )
    dataset = _chains(LEARNED_KINDS, np.array(separations))
    return dataset.assign_coords(layer=("factor", list(reversed(chains["pattern"]))))


def once(function: Callable[[Task], xr.Dataset]) -> Callable[[Task], xr.Dataset]:
    """Computes what does not depend on the protocol only once."""

    @functools.cache
    def computed(seed: int, tiny: bool) -> xr.Dataset:
        return function(Task(Request((), seed=seed, tiny=tiny), "", ""))

    return lambda task: computed(task.request.seed, task.request.tiny).copy()


grid_chains = once(grids.chains)


@once
def exact_theorem(task: Task) -> xr.Dataset:
    """Theorem 1 without rounding; the same for both protocols."""
    tiny = task.request.tiny
    matrix, limit, _ = theorem.counterexample()
    chains, length = (20, 5) if tiny else (1000, 10)
    sides = ("right", "left")
    moves = [theorem.falls(task.generator("falls", s), chains, length, s) for s in sides]
    # Some 3x3 matrices of 0, 1 and 3 are reducible, with a block that grows faster.
    counts = theorem.census(2, (0, 1)) if tiny else theorem.census(3, (0, 1, 3))
    excluded = {
        theorem.ZERO: [[1, 0], [1, 0]],
        theorem.UNIT: [[1, 1], [0, 2]],
        theorem.ORTHOGONAL: [[1, 0], [0, 1]],
    }
    met = [theorem.exclusions(theorem.exact(rows)) for rows in excluded.values()]
    return xr.Dataset(
        {
            "falls": ("side", [fallen for fallen, _ in moves]),
            "steps": ("side", [steps for _, steps in moves]),
            "census": ("count", list(counts.values())),
            "exclusion_met": (
                "exclusion",
                [int(e in m) for e, m in zip(excluded, met, strict=True)],
            ),
            "exclusion_aligns": ("exclusion", [_aligns_or_nan(m) for m in excluded.values()]),
            "counterexample_exclusions": len(theorem.exclusions(matrix)),
            "counterexample_closed_form": int(theorem.follows_closed_form()),
            "counterexample_rank": theorem.rank(limit),
            "counterexample_cosine": float(theorem.squared_cosine(*limit.T[2:4])) ** 0.5,
            "counterexample_scaled_coefficient": float(
                theorem.ergodic_coefficient(theorem.with_columns_of_sum_one(matrix))
            ),
        },
        {"side": list(sides), "count": list(counts), "exclusion": list(excluded)},
    )


def _aligns_or_nan(rows: list[list[int]]) -> float:
    """Returns whether the powers align, as a number; NaN where a column is zero."""
    matrix = theorem.exact(rows)
    return np.nan if theorem.ZERO in theorem.exclusions(matrix) else float(theorem.aligns(matrix))


SPECIAL = {"random": random_chains, "grids": grid_chains, "exact": exact_theorem}


def compute(task: Task) -> xr.Dataset:
    """Returns the Dataset of one source of matrices."""
    return SPECIAL.get(task.model, learned_chains)(task)


# --- what the numbers say ------------------------------------------------------------------------


def reaches(values: np.ndarray, bound: float) -> float:
    """Returns after how many multiplications values are first at most `bound`; inf if never."""
    hits = np.flatnonzero(values <= bound)
    return float(hits[0]) if len(hits) else np.inf


def slope(values: np.ndarray) -> tuple[float, float]:
    """Fits a line to log10 of values from the first multiplication down to rounding.

    Returns:
        Decades per multiplication (negative: converging), and R^2; NaN with fewer than 3 points.
    """
    steps = np.arange(len(values))
    kept = (values > FLOOR) & (steps > 0)
    if np.count_nonzero(kept) < 3:
        return np.nan, np.nan
    x, y = steps[kept], np.log10(values[kept])
    line = np.polyfit(x, y, 1)
    rest = y - np.polyval(line, x)
    total = ((y - y.mean()) ** 2).sum()
    return float(line[0]), float(1 - (rest**2).sum() / total) if total else np.nan


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about S4, S5, S16 and S20."""
    functions: Mapping[str, Callable[[xr.Dataset], list[Finding]]] = {
        "random": _judge_random,
        "grids": _judge_grids,
        "exact": _judge_exact,
    }
    return functions.get(dataset.attrs["model"], _judge_learned)(dataset)


def _judge_random(dataset: xr.Dataset) -> list[Finding]:
    lines = {kind: dataset["median"].sel(kind=kind).values for kind in dataset.kind.values}
    slopes = {kind: slope(line) for kind, line in lines.items()}
    criteria = []
    for kind in ("positive", "stochastic", "nonnegative"):
        criteria += [
            Criterion(
                f"{kind}: R^2 of a line through log10(1 - |cos|)", slopes[kind][1], ">=", 0.98
            ),
            Criterion(
                f"{kind}: 1 - |cos| after 7 multiplications", _at(lines[kind], 7), "<=", SHOWN
            ),
        ]
    criteria += [
        Criterion(
            "slope of non-negative over slope of positive",
            slopes["nonnegative"][0] / slopes["positive"][0],
            ">=",
            0.75,
        ),
        Criterion("vanilla: least 1 - |cos|", np.min(lines["vanilla"]), ">", CONVERGED),
    ]
    numbers = {f"decades per multiplication, {kind}": slopes[kind][0] for kind in slopes}
    for name, bound in (("float64", FLOAT64), ("float32", FLOAT32)):
        for kind in ("positive", "stochastic", "nonnegative"):
            key = f"multiplications to {name} precision, {kind}"
            numbers[key] = reaches(lines[kind], bound)
    steps = dataset.sizes["multiplications"] - 1
    reason = "the chain is too short" if steps < 7 else ""
    beta = {tuple(map(int, kind.split(","))): kind for kind in lines if "," in kind}
    ends = {b: _at(lines[kind], steps) for (_, b), kind in beta.items()}
    return [
        finding(dataset, "S4", criteria, numbers=numbers, reason=reason, note=CHAIN_NOTE),
        finding(
            dataset,
            "S5",
            [
                *(
                    Criterion(f"beta {b}: final 1 - |cos|", ends[b], "<=", CONVERGED)
                    for b in (0, 1, 2, 3)
                ),
                *(Criterion(f"beta {b}: final 1 - |cos|", ends[b], ">", CONVERGED) for b in (4, 9)),
            ],
            numbers={
                f"beta {b}: least 1 - |cos| of all multiplications": np.min(lines[kind])
                for (_, b), kind in beta.items()
            },
            note=BETA_NOTE,
        ),
    ]


CHAIN_NOTE = (
    "Floating-point precision is read as 1e-12, the lower end of fig. 8; that of float64 (2^-52) "
    "and float32 (2^-23) is among the numbers. The slope follows from mean m and variance v of the "
    "entries alone: 1 - cos falls by v / (m^2 rows) with each matrix. Lines are straight as far as "
    "the matrices have the same number of rows."
)
BETA_NOTE = (
    "Converged means 1 - |cos| <= 0.01, the paper's bound for networks. By v / (m^2 rows) a matrix "
    "brings vectors together if it has more rows than (alpha^2 + beta^2) pi - 1: 128 for alpha 5 "
    "beta 4, 78 for 4/3, 40 for 3/2. Chains of larger beta converge in wide layers and part again "
    "in narrow ones: the limit of beta is one of widths."
)


def _at(values: np.ndarray, step: int) -> float:
    return float(values[step]) if step < len(values) else np.nan


def _judge_grids(dataset: xr.Dataset) -> list[Finding]:
    medians = dataset.median("repetition")

    def line(variable: str, grid: str, **start: str) -> np.ndarray:
        if grid not in medians.grid:
            return np.full(medians.sizes["layers"], np.nan)
        return medians[variable].sel(grid=grid, **start).values

    last = dataset.sizes["layers"] - 1
    # The first layers turn normal numbers into positive ones.
    slopes = {
        grid: slope(line("whole", grid, start="random")[LAST_STAGE:])[0]
        for grid in ("dense", *grids.GRIDS)
        if grid in medians.grid
    }
    overlapping, dense = slopes.get("3x3 on 7x7", np.nan), slopes["dense"]
    criteria = [
        Criterion(
            "1x1: final 1 - |cos| at a location",
            _at(line("local", "1x1 on 7x7", start="random"), last),
            "<=",
            CONVERGED,
        ),
        Criterion(
            "1x1: final 1 - |cos| of whole maps",
            _at(line("whole", "1x1 on 7x7", start="random"), last),
            ">",
            0.5,
        ),
        Criterion(
            "1x1: final 1 - |cos| of what channels of one location send down",
            _at(line("within", "1x1 on 7x7"), last),
            "<=",
            CONVERGED,
        ),
        Criterion(
            "1x1: final 1 - |cos| of what channels of two locations send down",
            _at(line("across", "1x1 on 7x7"), last),
            ">=",
            1 - CONVERGED,
        ),
        Criterion("3x3 on 7x7: decades per layer of whole maps", overlapping, "<=", -0.02),
        Criterion("3x3 on 7x7: decades per layer over those of dense", overlapping / dense, "<", 1),
        Criterion(
            f"3x3 on 7x7: 1 - |cos| of whole maps after {LAST_STAGE} layers",
            _at(line("whole", "3x3 on 7x7", start="random"), LAST_STAGE),
            "<=",
            0.5,
        ),
    ]
    numbers = {f"decades per layer of whole maps, {grid}": n for grid, n in slopes.items()}
    numbers |= {
        f"1 - |cos| after {LAST_STAGE} layers behind a global average, {grid}": _at(
            line("whole", grid, start="pooled"), LAST_STAGE
        )
        for grid in dataset.grid.values
    }
    numbers |= {
        f"final 1 - |cos| of what channels of {words} send down, {grid}": _at(
            line(variable, grid), last
        )
        for variable, words in (("within", "one location"), ("across", "two locations"))
        for grid in dataset.grid.values
    }
    return [
        finding(
            dataset,
            "S20",
            criteria,
            numbers=numbers,
            reason="the smoke run leaves grids out" if dataset.attrs["tiny"] else "",
            note="Random non-negative kernels, half of them zero, 64 channels; networks are tested "
            "by csc. Considerable is read as a median |cos| of at least 0.5 after the three "
            "convolutions of ResNet-50's last stage; unrelated maps of 7x7 have about 0.1. Behind "
            "a global average pooling, which hands the same vector to all locations, whole maps "
            "converge as single locations do, also with 1x1 kernels: what converges there comes "
            "from the pooling, not from overlapping kernels. What the channels of a location send "
            "down are rows of the product of all matrices: those of one location turn into one "
            "direction, those of two stay orthogonal as long as kernels do not overlap.",
        )
    ]


def _judge_exact(dataset: xr.Dataset) -> list[Finding]:
    census = {str(name): int(value) for name, value in dataset["census"].to_series().items()}
    falls = dataset["falls"].to_series()
    steps = dataset["steps"].to_series()
    valid = bool(dataset["counterexample_closed_form"]) and not dataset["counterexample_exclusions"]
    criteria = [
        Criterion(
            "rank of the limit of A^n for a matrix A that meets all conditions",
            float(dataset["counterexample_rank"]) if valid else np.nan,
            "==",
            1,
        ),
        Criterion(
            f"steps in which the least cosine falls, of {steps['right']} (factors added behind)",
            falls["right"],
            "==",
            0,
        ),
    ]
    numbers = {
        f"steps in which the least cosine falls, of {steps['left']} (in front)": falls["left"],
        "cosine of columns 3 and 4 in the limit": float(dataset["counterexample_cosine"]),
        "ergodic coefficient of the counterexample with columns of sum one": float(
            dataset["counterexample_scaled_coefficient"]
        ),
        **{f"small matrices {name}": value for name, value in census.items()},
    }
    return [
        finding(
            dataset,
            "S16",
            criteria,
            numbers=numbers,
            note=THEOREM_NOTE,
            reason="" if valid else "the counterexample does not meet the conditions",
        )
    ]


THEOREM_NOTE = (
    "Counterexample, exact: A = [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 3, 0], [0, 0, 0, 3]] / 3 for "
    "all factors has no zero column, no multiple of a unit vector and no two orthogonal columns, "
    "and A^n tends to [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1]], of rank 2. The "
    "proof scales the columns v_i of M_n to length one (before Eq. 20), but keeps the entries a_i "
    "of A_(n+1), which would have to be scaled by the old lengths; these can degenerate, so that "
    "the a_i do not tend to entries of the limit. With columns that add up to one, as those of z+ "
    "without bias, nothing degenerates: the conclusion holds if no two columns of the limit are "
    "orthogonal, at the rate of Hajnal's ergodic coefficient. The least cosine is monotone when "
    "factors are added behind (towards the logits), as the proof does. Added in front, towards the "
    "input, as in fig. 8 and in the cosine similarity convergence, it can fall."
)


def _judge_learned(dataset: xr.Dataset) -> list[Finding]:
    # Fig. 8a draws these chains; the text claims nothing about them.
    return []


# --- figures -------------------------------------------------------------------------------------

COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#56b4e9")


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws fig. 8a and 8b, and the grids, a panel for each protocol."""
    figures = {}
    chains = [d for d in datasets if d.attrs["model"] not in ("grids", "exact")]
    if chains:
        figures["matrix_chains"] = _draw_chains(chains)
    grids = [d for d in datasets if d.attrs["model"] == "grids"]
    if grids:
        figures["matrix_chains_grids"] = _draw_grids(grids)
    return figures


def _draw_chains(datasets: Sequence[xr.Dataset]) -> Figure:
    protocols = list(dict.fromkeys(d.attrs["protocol"] for d in datasets))
    figure = Figure(figsize=(10, 3.9 * len(protocols)), layout="constrained")
    axes = figure.subplots(len(protocols), 2, squeeze=False)
    for row, protocol in enumerate(protocols):
        panels: tuple[list, list] = ([], [])
        for dataset in datasets:
            if dataset.attrs["protocol"] != protocol:
                continue
            for kind in dataset.kind.values:
                learned = f" ({dataset.attrs['model']})" if kind in LEARNED_KINDS else ""
                alpha, _, beta = kind.partition(",")
                label = f"\N{GREEK SMALL LETTER ALPHA} {alpha}, \N{GREEK SMALL LETTER BETA} {beta}"
                label = label if beta else kind + learned
                line = dataset["median"].sel(kind=kind).values
                panels["," in kind].append((label.replace("_", " "), line))
        for column, lines in enumerate(panels):
            ax = axes[row, column]
            for (label, line), colour in zip(lines, _cycled(COLOURS), strict=False):
                # Stochastic and positive matrices give the same line.
                style = {"linestyle": "--"} if label == "stochastic" else {}
                ax.plot(np.maximum(line, 1e-32), label=label, color=colour, marker=".", **style)
            _one_minus(ax)
            ax.set_xlabel("multiplications")
            ax.set_title(
                f"{protocol}: {('kinds of matrices', 'alpha W+ + beta W-')[column]}", fontsize=9
            )
            if lines:
                ax.legend(fontsize=7)
    return figure


def _draw_grids(datasets: Sequence[xr.Dataset]) -> Figure:
    dataset = datasets[-1]
    medians = dataset.median("repetition")
    random, pooled = (medians.sel(start=start) for start in ("random", "pooled"))
    panels = {
        "whole maps": random["whole"],
        "whole maps behind a global average": pooled["whole"],
        "single locations": random["local"],
        "channels of one location": medians["within"],
        "channels of two locations": medians["across"],
    }
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    axes[-1].set_axis_off()
    for ax, (title, lines) in zip(axes, panels.items(), strict=False):
        for grid, colour in zip(dataset.grid.values, _cycled(COLOURS), strict=False):
            line = lines.sel(grid=grid).values
            ax.plot(np.maximum(line, 1e-32), label=grid, color=colour, marker=".", linewidth=1)
        _one_minus(ax)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("layers")
    # Dense layers leave the picture, so that the convolutions can be seen.
    for ax in (axes[0], axes[4]):
        ax.set_ylim(1.3, 0.05)
    axes[-1].legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="upper left")
    return figure


def _cycled(colours: Sequence[str]) -> Iterator[str]:
    while True:
        yield from colours


def _one_minus(ax) -> None:
    """Draws 1 - |cos| on a log axis that points to convergence."""
    ax.set_yscale("log")
    ax.invert_yaxis()
    ax.axhline(FLOAT64, color="0.6", linewidth=0.7, linestyle=":")
    ax.set_ylabel("1 \N{MINUS SIGN} |cos|")
    ax.tick_params(labelsize=8)


EXPERIMENT = Experiment(
    "sixt2020",
    "matrix_chains",
    "Convergence of chains of matrices (fig. 8) and theorem 1 in exact arithmetic.",
    compute,
    judge,
    draw,
    models=("random", "grids", "exact"),
    known_models=networks.CHAINS,
    images=0,
    tiny={"models": ("random", "grids", "exact", "tiny"), "images": 20},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
