"""What the mean over random alignments changes: K-C9, and what it costs (K15).

Independent runs differ in their alignments alone. Each has the credit of every single alignment and
that of the mean operator, so that variances of the one and of the other come from the same fits.
The mean operator of a block that enlarges is smaller than each of those it is the mean of: single
ones are projections, their mean is (p / q) of the operator.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.koopman2022.blocks import SHOWN_CLASS, digits, fitted_on, known, load, options
from experiments.koopman2022.protocol import PROTOCOLS, sizes
from experiments.runs import Experiment, Task, finding
from tfexplain import koopman

# Ratio of variances up to which the mean over 10 has about a tenth: an F test with 20 runs leaves
# room for twice that.
TENTH = 0.2
# Variance relative to the square of the mean, from which a block's operator is random at all.
RANDOM = 1e-12
TEXT = 8


def compute(task: Task) -> xr.Dataset:
    """Repeats the fit of all blocks with other alignments."""
    protocol = PROTOCOLS[task.protocol]
    chosen = sizes(task.request.tiny)
    model = load(task)
    all_digits = digits(task)
    places = known(model, all_digits.x, all_digits.y)
    x = fitted_on(protocol, all_digits, places.get(SHOWN_CLASS, min(places.values())))
    held_out = all_digits.held_out[:100]
    given = options(task, model, len(x))
    runs = []
    for run in range(chosen.runs):
        seed = int(task.generator("averaging", run).integers(2**31))
        for repeats in (chosen.repeats, 1):
            arguments = {**given, "repeats": repeats, "seed": seed, "kernels": ()}
            runs.append(koopman.credit(model, x, held_out=held_out, **arguments))
    means, singles = runs[::2], runs[1::2]
    dims = ("run", "block")
    weights = {
        kind: np.stack([_weights(run) for run in of_kind])
        for kind, of_kind in (("mean", means), ("single", singles))
    }
    return xr.Dataset(
        {
            "mean_log_volume": (dims, np.stack([run["log_volume"] for run in means])),
            "single_log_volume": (
                (*dims, "repeat"),
                np.stack([run["repeat_log_volume"] for run in means]),
            ),
            "weight_variance": (
                "kind",
                [float(weights[kind].var(axis=0, ddof=1).sum()) for kind in ("mean", "single")],
            ),
        },
        {
            "block": means[0]["block"].values,
            "kind": ["mean", "single"],
        },
        {
            "fitted": len(x),
            "runs": chosen.runs,
            "repeats": chosen.repeats,
            "described": str(protocol),
        },
    )


def _weights(run: xr.Dataset) -> np.ndarray:
    """Returns the product of the mean operators, one row."""
    return run["feature_weight"].sel(operator="mean").values.ravel()


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about K-C9."""
    attributes = dataset.attrs
    repeats = attributes["repeats"]
    means, singles = dataset["mean_log_volume"].values, dataset["single_log_volume"].values
    criteria, numbers = [], {}
    for place, block in enumerate(dataset["block"].values.tolist()):
        mean, single = means[:, place], singles[:, place]  # (run,), (run, repeat)
        # Blocks without alignment have a single operator.
        single = single[np.isfinite(single)]
        of_mean, of_single = mean.var(ddof=1), single.var(ddof=1)
        numbers[f"{block}: standard deviation of one log-volume"] = np.sqrt(of_single)
        numbers[f"{block}: log-volume of the mean operator minus mean log-volume"] = float(
            mean.mean() - single.mean()
        )
        if of_single > RANDOM * max(1.0, single.mean() ** 2):
            criteria.append(
                Criterion(
                    f"{block}: variance of the log-volume of the mean of {repeats} operators over "
                    "that of one",
                    of_mean / of_single,
                    "<=",
                    TENTH,
                )
            )
    of_mean, of_single = dataset["weight_variance"].sel(kind=["mean", "single"]).values
    criteria.append(
        Criterion(
            f"variance of the product of the mean operators, {repeats} alignments over one",
            of_mean / of_single if of_single > 0 else np.nan,
            "<=",
            TENTH,
        )
    )
    note = (
        f"{attributes['protocol']}: {attributes['described']}; {attributes['fitted']} digits, "
        f"{attributes['runs']} runs. Blocks whose operator does not depend on the alignment have "
        "no criterion."
    )
    reason = "no operator depends on the alignment"
    return [finding(dataset, "K-C9", criteria, numbers=numbers, note=note, reason=reason)]


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws log-volumes of single operators and of mean ones, for each block."""
    names = dict.fromkeys(dataset.attrs["model"] for dataset in datasets)
    return {
        f"averaging_{name}" if len(names) > 1 else "averaging": _spread(
            [dataset for dataset in datasets if dataset.attrs["model"] == name]
        )
        for name in names
    }


def _spread(datasets: Sequence[xr.Dataset]) -> Figure:
    blocks = datasets[0]["block"].values.tolist()
    figure = Figure(figsize=(1.7 * len(blocks) + 0.4, 2.3 * len(datasets)), layout="constrained")
    cells = figure.subplots(len(datasets), len(blocks), squeeze=False)
    for row, dataset in zip(cells, datasets, strict=True):
        singles, means = dataset["single_log_volume"].values, dataset["mean_log_volume"].values
        for place, (ax, block) in enumerate(zip(row, blocks, strict=True)):
            single = singles[:, place].ravel()
            ax.boxplot(
                [single[np.isfinite(single)], means[:, place]],
                widths=0.6,
                whis=(0, 100),
                medianprops={"color": "#d55e00"},
            )
            ax.set_xticks([1, 2], ["one", f"mean of {dataset.attrs['repeats']}"])
            ax.set_title(f"{block}, {dataset.attrs['protocol']}", fontsize=TEXT)
            ax.tick_params(labelsize=TEXT - 1)
            ax.ticklabel_format(axis="y", useOffset=False)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("log-volume", fontsize=TEXT)
    figure.suptitle(f"{datasets[0].attrs['network']}: credits over alignments", fontsize=TEXT + 1)
    return figure


EXPERIMENT = Experiment(
    "koopman2022",
    "averaging",
    "Spread of credits over random alignments, of single operators and of their means.",
    compute,
    judge,
    draw,
    models=("pooled_mlp",),
    images=100,
    data=(networks.MNIST,),
    tiny={"models": (networks.TINY,), "images": 20},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
