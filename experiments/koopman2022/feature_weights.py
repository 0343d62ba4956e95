"""Fig. 4b: weights of the pixels for the predicted class, and whether they speak of the network.

An operator that was fitted on one trajectory is not determined outside of what the trajectory
spans (K11). The minimum-norm solution is zero there, so that its rows are combinations of the
snapshots, and the first of these is the image itself: a weight map that resembles the digit can be
a copy of the input. Controls:

* one digit / many digits: with many inputs the operators are determined;
* random images: every pixel is drawn from the grey levels of all digits. They have the brightness
  of digits, but no strokes. Weights that highlight strokes all the same have them from the network;
  weights that resemble the random image have them from the fit;
* permuted pixels: one fixed permutation moves the pixels of every image that is fitted on, and the
  network gets them as they are then. Grey levels, their number in each image and their correlations
  stay as in digits, places do not: what a map owes to the statistics of the inputs follows the
  permuted strokes, what it owes to the network's weights stays where the strokes were;
* least squares: each block fitted directly on many digits, x to f(x), without alignment and
  iteration; or the whole network, x to N(x).

Maps are compared with the image itself, with its strokes, with the mean digit of its class and with
digits of other classes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import scipy.stats
import xarray as xr
from matplotlib.figure import Figure

from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.koopman2022.blocks import digits, known, load, options, outputs, predicted
from experiments.koopman2022.protocol import CORRECTED, PROTOCOLS, PUBLISHED, sizes
from experiments.runs import Experiment, Task, finding
from tfexplain import create_analyzer, koopman, plotting

# The value of a pixel in 0..1 from which it belongs to a stroke.
STROKE = 0.5
# Share of the digits that ink a pixel which counts as inked.
INKED = 0.05
WHOLE = "whole"
DIGITS, RANDOM, PERMUTED = "digits", "random images", "permuted pixels"


@dataclass(frozen=True)
class Condition:
    """What feature weights are fitted on.

    Args:
        images: `DIGITS`, `RANDOM` or `PERMUTED`.
        single: One trajectory for each shown digit; else many inputs, and one fit for all.
        operator: "mean": the mean operators multiplied; "products": the mean of the products (K23);
            "least_squares": each block fitted directly; "whole": the network fitted directly.
        steps: The steps of each trajectory; None: as many as the paper has, 2d.
    """

    images: str
    single: bool
    operator: str = "mean"
    steps: int | None = None


CONDITIONS = {
    PUBLISHED.name: {
        "one digit": Condition(DIGITS, True),
        "one digit, mean of products": Condition(DIGITS, True, "products"),
        "one random image": Condition(RANDOM, True),
        "one digit with permuted pixels": Condition(PERMUTED, True),
    },
    CORRECTED.name: {
        "many digits": Condition(DIGITS, False),
        "many digits, mean of products": Condition(DIGITS, False, "products"),
        "many digits, one step": Condition(DIGITS, False, steps=1),
        "least squares": Condition(DIGITS, False, "least_squares"),
        "least squares, whole network": Condition(DIGITS, False, WHOLE),
        "many random images": Condition(RANDOM, False),
        "random images, least squares": Condition(RANDOM, False, "least_squares"),
        "many digits with permuted pixels": Condition(PERMUTED, False),
        "permuted pixels, least squares": Condition(PERMUTED, False, "least_squares"),
        "one digit": Condition(DIGITS, True),
        "one random image": Condition(RANDOM, True),
    },
}
# Probability that a stroke has a larger weight than another pixel; 0.5 by chance.
HIGHLIGHTED = 0.7
# How much larger it is for the digit's own strokes than for those of other classes.
SPECIFIC = 0.05
# Share of held-out digits that get the class which the network gives them.
VALID = 0.8
# Percentile of the magnitudes at which colours end: single pixels that few digits ink explode.
SHOWN_PERCENT = 97.5
TEXT = 8


def compute(task: Task) -> xr.Dataset:
    """Fits operators under all conditions; keeps the weight maps and the images."""
    model = load(task)
    all_digits = digits(task)
    places = list(known(model, all_digits.x, all_digits.y).values())
    if task.request.tiny:
        places = places[:2]
    given = {
        DIGITS: all_digits.x,
        RANDOM: random_images(task, all_digits.x),
        PERMUTED: permuted(task, all_digits.x),
    }
    targets = predicted(model, all_digits.x[places])
    runs: dict[tuple, list[xr.Dataset]] = {}
    weights, agreements, errors, starts = [], [], [], []
    conditions = CONDITIONS[task.protocol]
    for condition in conditions.values():
        key = (condition.images, condition.single, condition.steps, condition.operator == WHOLE)
        images = given[condition.images]
        if key not in runs:
            runs[key] = _fits(task, model, images, all_digits.held_out, places, condition)
        chosen = [fit.sel(operator=condition.operator) for fit in runs[key]]
        weights.append(
            [
                _map(fit["feature_weight"].sel(output=target).values)
                for fit, target in zip(chosen, targets, strict=True)
            ]
        )
        agreements.append([float(fit["agreement"]) for fit in chosen])
        errors.append([float(fit["output_error"]) for fit in chosen])
        starts.append([_map(image) for image in images[places]])
    mean = np.stack(
        [_map(all_digits.x[all_digits.y == all_digits.y[place]].mean(axis=0)) for place in places]
    )
    image = ("shown", "row", "column")
    return xr.Dataset(
        {
            "weight": (("condition", *image), np.array(weights)),
            "fitted_image": (("condition", *image), np.array(starts)),
            "agreement": (("condition", "shown"), np.array(agreements)),
            "output_error": (("condition", "shown"), np.array(errors)),
            "digit": (image, np.stack([_map(all_digits.x[place]) for place in places])),
            "mean_digit": (image, mean),
            "gradient": (image, gradients(model, all_digits.x[places], targets)),
            "inked": (
                ("row", "column"),
                (np.stack([_map(x) for x in all_digits.x]) > STROKE).mean(axis=0),
            ),
        },
        {
            "condition": list(conditions),
            "single": ("condition", [int(one.single) for one in conditions.values()]),
            "label": ("shown", all_digits.y[places]),
            "target": ("shown", targets),
        },
        {
            "fitted": len(all_digits.x),
            "held_out": len(all_digits.held_out),
            "repeats": sizes(task.request.tiny).repeats,
            "described": str(PROTOCOLS[task.protocol]),
        },
    )


def _fits(
    task: Task,
    model: keras.Model,
    x: np.ndarray,
    held_out: np.ndarray,
    places: Sequence[int],
    condition: Condition,
) -> list[xr.Dataset]:
    """Returns the Dataset of `koopman.credit` for each shown digit; with many inputs, one for all.

    Agreement with the network is measured on held-out digits, whatever is fitted.
    """

    def fit(images: np.ndarray) -> xr.Dataset:
        dataset = koopman.credit(
            model,
            images,
            held_out=held_out,
            kernels=(),
            steps=condition.steps,
            **options(task, model, len(images)),
        )
        return dataset[["feature_weight", "agreement", "output_error"]]

    if condition.operator == WHOLE:
        return [whole(model, x, held_out)] * len(places)
    if condition.single:
        return [fit(x[place : place + 1]) for place in places]
    return [fit(x)] * len(places)


def whole(model: keras.Model, x: np.ndarray, held_out: np.ndarray) -> xr.Dataset:
    """Fits one linear map to a network, in the form of the Dataset of `koopman.credit`."""
    before, after = x.reshape(len(x), -1), outputs(model, x)
    matrix = koopman.fit(before, after).matrix
    tested = outputs(model, held_out)
    linear = held_out.reshape(len(held_out), -1) @ matrix.T
    same = linear.argmax(axis=1) == tested.argmax(axis=1)
    axes = ("row", "column", "channel")
    weights = matrix.reshape(-1, *x.shape[1:])[None]
    return xr.Dataset(
        {
            "feature_weight": (("operator", "output", *axes), weights),
            "agreement": ("operator", [same.mean()]),
            "output_error": (
                "operator",
                [np.linalg.norm(linear - tested) / np.linalg.norm(tested)],
            ),
        },
        {"operator": [WHOLE], "output": np.arange(len(matrix))},
    )


def _map(values: np.ndarray) -> np.ndarray:
    """Returns (row, column): weights of channels are added, as their inputs would be alike."""
    return values.sum(axis=-1)


def random_images(task: Task, x: np.ndarray) -> np.ndarray:
    """Returns as many images, every pixel drawn from the grey levels of all of them."""
    return task.generator("random images").permuted(x.ravel()).reshape(x.shape)


def permuted(task: Task, x: np.ndarray) -> np.ndarray:
    """Returns the images with their pixels moved by one permutation; channels move together."""
    n, height, width, channels = x.shape
    order = task.generator("permuted pixels").permutation(height * width)
    return x.reshape(n, height * width, channels)[:, order].reshape(x.shape)


def gradients(model: keras.Model, x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the gradient of each target's logit at its image, (n, row, column)."""
    maps = create_analyzer("gradient", model).analyze(x, target=targets)
    return np.stack([_map(values) for values in maps])


# --- what is measured on maps --------------------------------------------------------------------


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Pearson's correlation of two maps; NaN if one is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1])


def auc(weight: np.ndarray, stroke: np.ndarray, among: np.ndarray | None = None) -> float:
    """Returns the probability that a pixel of a stroke has a larger weight than another.

    Args:
        weight: (row, column).
        stroke: Booleans.
        among: Booleans of the pixels that count; None: all.

    Returns:
        0..1, ties count half; NaN if there are no strokes or nothing else, or all weights are
        equal: such a map highlights nothing.
    """
    weight, stroke = np.ravel(weight), np.ravel(stroke)
    if among is not None:
        weight, stroke = weight[np.ravel(among)], stroke[np.ravel(among)]
    inside, outside = weight[stroke], weight[~stroke]
    if not len(inside) or not len(outside) or np.ptp(weight) == 0:
        return float("nan")
    statistic = scipy.stats.mannwhitneyu(inside, outside).statistic
    return float(statistic / (len(inside) * len(outside)))


def compared(dataset: xr.Dataset, condition: int) -> dict[str, float]:
    """Returns means over the shown digits of what a condition's maps have in common with images."""
    digit, label = dataset["digit"].values, dataset["label"].values
    strokes = digit > STROKE
    inked = dataset["inked"].values >= INKED
    rows = []
    for place, weight in enumerate(dataset["weight"].values[condition]):
        others = np.flatnonzero(label != label[place])
        fitted = correlation(weight, dataset["fitted_image"].values[condition, place])
        rows.append(
            {
                "AUC of strokes": auc(weight, strokes[place]),
                "AUC of strokes of other classes": _mean(auc(weight, strokes[o]) for o in others),
                "AUC of strokes among inked pixels": auc(weight, strokes[place], inked),
                "AUC of strokes, |weights|": auc(np.abs(weight), strokes[place]),
                "correlation with the image itself": correlation(weight, digit[place]),
                "correlation with the image that was fitted": fitted,
                "|correlation| with the image that was fitted": abs(fitted),
                "correlation with its strokes": correlation(weight, strokes[place].astype(float)),
                "correlation with the mean digit of its class": correlation(
                    weight, dataset["mean_digit"].values[place]
                ),
                "correlation with digits of other classes": _mean(
                    correlation(weight, digit[o]) for o in others
                ),
                "correlation with the gradient at the digit": correlation(
                    weight, dataset["gradient"].values[place]
                ),
            }
        )
    return {name: _mean(row[name] for row in rows) for name in rows[0]}


def _mean(values: Iterable[float]) -> float:
    """Returns the mean of all values; NaN if one is missing."""
    values = np.array(list(values))
    return float(values.mean()) if len(values) else float("nan")


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about K-C3 and K-C10, for each condition."""
    attributes = dataset.attrs
    note = (
        f"{attributes['protocol']}: {attributes['described']}, if the condition does not say "
        f"otherwise; {attributes['fitted']} digits to fit, {attributes['held_out']} held out, "
        f"{attributes['repeats']} alignments; means over {dataset.sizes['shown']} digits. Weights "
        "that show a digit's strokes only if it is what was fitted, and a random image if that was "
        "fitted instead, speak of the fit and not of the network."
    )
    findings = []
    for place, name in enumerate(dataset["condition"].values.tolist()):
        numbers = compared(dataset, place)
        own, others = (
            numbers[text] for text in ("AUC of strokes", "AUC of strokes of other classes")
        )
        named = dataset.assign_attrs(network=f"{attributes['network']}: {name}")
        criteria = [
            Criterion("mean AUC of the digit's strokes", own, ">=", HIGHLIGHTED),
            Criterion(
                "mean AUC of the digit's strokes minus that of other classes' strokes",
                own - others,
                ">=",
                SPECIFIC,
            ),
        ]
        reason = "all weights are equal, or a digit has no strokes"
        findings.append(finding(named, "K-C3", criteria, numbers=numbers, note=note, reason=reason))
        agreement = float(dataset["agreement"][place].mean())
        criteria = [
            Criterion(
                "share of held-out digits with the same class as the network",
                agreement,
                ">=",
                VALID,
            )
        ]
        numbers = {
            "least over the shown digits": float(dataset["agreement"][place].min()),
            "|K x - N(x)| / |N(x)|": float(dataset["output_error"][place].mean()),
        }
        findings.append(
            finding(named, "K-C10", criteria, numbers=numbers, note=note, reason="no agreement")
        )
    return findings


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws digits beside their weights under all conditions, as fig. 4b."""
    several = len({dataset.attrs["model"] for dataset in datasets}) > 1
    drawn = {}
    for dataset in datasets:
        model = f"_{dataset.attrs['model']}" if several else ""
        drawn[f"feature_weights{model}_{dataset.attrs['protocol']}"] = figure_of(dataset)
    return drawn


def figure_of(dataset: xr.Dataset) -> Figure:
    """Draws a row for the digits, one for each condition, and one for the gradient.

    Where trajectories start from other images, these have a row too.
    """
    rows: list[tuple[str, np.ndarray, bool]] = [("input", dataset["digit"].values, False)]
    for name in dataset["condition"].values.tolist():
        chosen = dataset.sel(condition=name)
        start = chosen["fitted_image"].values
        if chosen["single"] and not np.array_equal(start, dataset["digit"].values):
            rows.append(("trajectory from", start, False))
        rows.append((name, chosen["weight"].values, True))
    rows.append(("gradient", dataset["gradient"].values, True))
    count = dataset.sizes["shown"]
    figure = Figure(figsize=(1.6 + 0.72 * count, 0.8 * len(rows)), layout="constrained")
    cells = figure.subplots(len(rows), count, squeeze=False)
    for axes, (title, images, signed) in zip(cells, rows, strict=True):
        for ax, image in zip(axes, images, strict=True):
            if signed:
                low, high = plotting.symmetric_limits(image, SHOWN_PERCENT)
                style = {"cmap": plotting.COLORMAP, "vmin": low, "vmax": high}
                ax.set_xlabel(f"± {high:.2g}", fontsize=TEXT - 2, labelpad=1)
            else:
                style = {"cmap": "gray_r"}
            ax.imshow(image, interpolation="nearest", **style)
            ax.set_xticks([])
            ax.set_yticks([])
        axes[0].set_ylabel(
            title.replace(", ", ",\n").replace(" with ", "\nwith "),
            fontsize=TEXT - 1,
            rotation=0,
            ha="right",
            va="center",
        )
    for ax, target in zip(cells[0], dataset["target"].values, strict=True):
        ax.set_title(f"class {target}", fontsize=TEXT - 1)
    figure.suptitle(
        f"{dataset.attrs['network']}, {dataset.attrs['protocol']}: weights of the predicted class "
        f"(limits: {SHOWN_PERCENT} % of the magnitudes)",
        fontsize=TEXT + 1,
    )
    return figure


EXPERIMENT = Experiment(
    "koopman2022",
    "feature_weights",
    "Weights of the pixels for the predicted class (fig. 4b), with controls of the fit.",
    compute,
    judge,
    draw,
    models=("pooled_mlp",),
    known_models=("lenet5",),
    images=1000,
    data=(networks.MNIST,),
    tiny={"models": (networks.TINY,), "images": 20},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
