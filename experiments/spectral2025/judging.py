"""What the numbers say about the claims that concern both data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.stats
import xarray as xr

from experiments.claim_table import Criterion, Finding
from experiments.runs import finding
from experiments.spectral2025.sweep import INTEGRATED, LRP, METHODS, SHAPLEY, SMOOTHGRAD, uniform

MONOTONE = 0.95
# How much better than the ends of a grid a setting in between has to be.
BETTER = 1.01
# (max - min) / mean up to which a curve is flat.
FLAT = 0.1
EXACT = 1e-12
ALIKE = 0.99
# SSM up to which a matrix has nearly rank 1.
COLLAPSED = 1.05
# Which output `pixel_flipping` watches, and how it fills.
WATCHED, FILL = "probability", "telea"
# Measure -> whether more is better.
MEASURES = {"SSM": True, "PF-AUC": False, "entropy": False}
# Average -> function of (setting, sample).
AVERAGES: Mapping[str, Callable] = {"mean": np.nanmean, "median": np.nanmedian}
Say = Callable[..., Finding]


def of_method(dataset: xr.Dataset, method: str) -> xr.Dataset:
    """Returns the settings of a method, in the order of their values; there may be none."""
    chosen = dataset.isel(analyzer=np.flatnonzero(dataset["method"].values == method))
    return chosen.isel(analyzer=np.argsort(chosen["value"].values, kind="stable"))


def each(dataset: xr.Dataset, measure: str, fill: str = FILL, output: str = WATCHED) -> np.ndarray:
    """Returns a measure of each setting and image, (analyzer, sample).

    Args:
        dataset: What `sweep.measure` returned, or some of its settings.
        measure: "SSM", "PF-AUC", "entropy", "stability", "sensitivity" or "sigma_1".
        fill: The fill of pixel flipping.
        output: The watched output of pixel flipping.
    """
    if measure == "PF-AUC":
        return dataset["auc"].sel(fill=fill, output=output).values
    if measure == "sigma_1":
        return 1 / dataset["stability"].values
    return dataset[measure.lower()].values


def averaged(dataset: xr.Dataset, measure: str, average: str = "mean", **which: str) -> np.ndarray:
    """Returns the average of a measure over images, (analyzer,); NaN where no image has one."""
    values = each(dataset, measure, **which)
    averages = np.full(len(values), np.nan)
    known = ~np.isnan(values).all(axis=1)
    if known.any():
        averages[known] = AVERAGES[average](values[known], axis=1)
    return averages


def best(dataset: xr.Dataset, measure: str, average: str = "mean") -> int:
    """Returns the position of the best setting; -1 if there is none."""
    values = averaged(dataset, measure, average)
    if np.isnan(values).all():
        return -1
    return int(np.nanargmax(values) if MEASURES[measure] else np.nanargmin(values))


def rank_correlation(values: np.ndarray, averages: np.ndarray) -> float:
    """Returns Spearman's correlation; not a number if a value is missing or all are equal."""
    if len(values) < 2 or np.isnan(averages).any() or np.ptp(averages) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(values, averages).statistic)


def interior(averages: np.ndarray, larger: bool) -> tuple[float, float]:
    """Returns how much better the best setting is than the first and than the last one.

    Args:
        averages: Positive, (settings,).
        larger: More is better.

    Returns:
        Two ratios >= 1.
    """
    if not len(averages) or np.isnan(averages).any():
        return float("nan"), float("nan")
    if larger:
        return float(averages.max() / averages[0]), float(averages.max() / averages[-1])
    return float(averages[0] / averages.min()), float(averages[-1] / averages.min())


def sayer(dataset: xr.Dataset, more: str = "") -> Say:
    """Returns a function of claim, criteria and numbers that makes a finding of a Dataset.

    Args:
        dataset: The Dataset of one task.
        more: Further text of its notes.
    """
    attributes = dataset.attrs
    missing = int(np.isnan(dataset["entropy"].values).sum())
    note = (
        f"{attributes['images']} images; R has {attributes['policy']}; PF-AUC with inpainting and "
        f"the probability, {attributes['removed']} of {attributes['entries']} pixels; criteria use "
        f"means over images. {missing} of {dataset['entropy'].size} maps are zero everywhere."
    )
    note = f"{note} {more}".strip()

    def say(claim: str, criteria: Sequence[Criterion], **options) -> Finding:
        given = {"reason": "a value is missing", "note": note, **options}
        return finding(dataset, claim, criteria, **given)

    return say


def ratios(name: str, values: tuple[float, float]) -> list[Criterion]:
    """Returns the criteria of an optimum between the ends of a grid."""
    return [
        Criterion(f"{name}, best over {end} setting", value, ">", BETTER)
        for end, value in zip(("first", "last"), values, strict=True)
    ]


def gamma_and_norms(dataset: xr.Dataset, say: Say) -> Finding:
    """M1: sigma_1 and the Frobenius norm fall with gamma."""
    lrp = of_method(dataset, LRP)
    gammas = lrp["value"].values
    correlations = {
        (measure, average): rank_correlation(gammas, averaged(lrp, measure, average))
        for measure in ("sigma_1", "sensitivity")
        for average in AVERAGES
    }
    names = {"sigma_1": "sigma_1", "sensitivity": "Frobenius norm"}
    criteria = [
        Criterion(
            f"Spearman correlation of gamma and mean {text}",
            correlations[measure, "mean"],
            "<=",
            -MONOTONE,
        )
        for measure, text in names.items()
    ]
    numbers = {
        f"Spearman correlation of gamma and median {text}": correlations[measure, "median"]
        for measure, text in names.items()
    }
    for measure, text in names.items():
        for average in AVERAGES:
            values = averaged(lrp, measure, average)
            numbers[f"{average} {text} at gamma {gammas[0]:g}"] = values[0]
            numbers[f"{average} {text} at gamma {gammas[-1]:g}"] = values[-1]
    numbers["share of columns with a sum near zero"] = float(
        lrp["near_zero"].sum() / lrp["columns"].sum()
    )
    numbers["smallest magnitude of a column sum"] = float(lrp["smallest_sum"].min())
    return say("M1", criteria, numbers=numbers)


def best_gamma_of_ssm(dataset: xr.Dataset, say: Say) -> Finding:
    """M2: SSM has its maximum inside of the grid of gammas."""
    lrp = of_method(dataset, LRP)
    criteria = ratios("mean SSM of LRP-gamma", interior(averaged(lrp, "SSM"), True))
    numbers = _best_numbers(lrp, "SSM", "gamma")
    medians = interior(averaged(lrp, "SSM", "median"), True)
    for end, value in zip(("first", "last"), medians, strict=True):
        numbers[f"median SSM, best over {end} gamma"] = value
    # The error of the estimate from products; between images it is more.
    errors = np.sqrt((lrp["ssm_error"].values ** 2).sum(axis=1)) / lrp.sizes["sample"]
    if errors.max() > 0:
        numbers["largest standard error of the estimate of a mean SSM"] = errors.max()
    return say("M2", criteria, numbers=numbers)


def _best_numbers(chosen: xr.Dataset, measure: str, parameter: str) -> dict[str, float]:
    """Returns the best settings by mean and median, and what they reach."""
    numbers = {}
    for average in AVERAGES:
        place = best(chosen, measure, average)
        if place < 0:
            continue
        values = averaged(chosen, measure, average)
        numbers[f"best {average} {measure}"] = values[place]
        numbers[f"{parameter} of the best {average} {measure}"] = chosen["value"].values[place]
    return numbers


def noise_and_norms(dataset: xr.Dataset, say: Say, flat: bool) -> Finding:
    """M3: SmoothGrad gets stabler and less sensitive with noise; SSM is flat, or has an optimum.

    Args:
        dataset: The Dataset of one task.
        say: See `sayer`.
        flat: What the paper says of SSM on these data.
    """
    chosen = of_method(dataset, SMOOTHGRAD)
    noises = chosen["value"].values
    criteria = [
        Criterion(
            f"Spearman correlation of noise and mean {measure}",
            rank_correlation(noises, averaged(chosen, measure)),
            relation,
            bound,
        )
        for measure, relation, bound in (
            ("stability", ">=", MONOTONE),
            ("sensitivity", "<=", -MONOTONE),
        )
    ]
    ssm = averaged(chosen, "SSM")
    spread = float(np.ptp(ssm) / np.mean(ssm))
    ends = interior(ssm, True)
    if flat:
        criteria.append(Criterion("(max - min) / mean of mean SSM over noise", spread, "<=", FLAT))
    else:
        criteria += ratios("mean SSM of SmoothGrad", ends)
    numbers = _best_numbers(chosen, "SSM", "noise")
    numbers["(max - min) / mean of mean SSM"] = spread
    medians = averaged(chosen, "SSM", "median")
    numbers["(max - min) / mean of median SSM"] = float(np.ptp(medians) / np.mean(medians))
    for measure in ("stability", "sensitivity"):
        numbers[f"Spearman correlation of noise and median {measure}"] = rank_correlation(
            noises, averaged(chosen, measure, "median")
        )
    return say("M3", criteria, numbers=numbers)


def best_gamma_of_others(dataset: xr.Dataset, say: Say) -> Finding:
    """M4: pixel flipping and entropy have their minima inside of the grid of gammas."""
    lrp = of_method(dataset, LRP)
    criteria, numbers = [], {}
    for measure in ("PF-AUC", "entropy"):
        ends = interior(averaged(lrp, measure), False)
        criteria += [
            Criterion(f"mean {measure} of LRP-gamma, {end} gamma over best", value, ">", BETTER)
            for end, value in zip(("first", "last"), ends, strict=True)
        ]
        numbers |= _best_numbers(lrp, measure, "gamma")
    for which in (
        {"fill": "telea", "output": "logit"},
        {"fill": "constant", "output": "probability"},
        {"fill": "constant", "output": "logit"},
    ):
        ends = interior(averaged(lrp, "PF-AUC", **which), False)
        text = f"mean PF-AUC ({which['fill']}, {which['output']})"
        for end, value in zip(("first", "last"), ends, strict=True):
            numbers[f"{text}, {end} gamma over best"] = value
    random = dataset["random_auc"].sel(fill=FILL, output=WATCHED).mean()
    numbers["mean PF-AUC of a random order"] = float(random)
    return say("M4", criteria, numbers=numbers)


def low_entropy_of_noise(dataset: xr.Dataset, say: Say) -> Finding:
    """M5: SmoothGrad with the least noise has a low entropy and a low stability."""
    chosen = of_method(dataset, SMOOTHGRAD)
    place = best(chosen, "SSM")
    values = {
        measure: averaged(chosen, measure)[0] / averaged(chosen, measure)[place]
        for measure in ("entropy", "stability")
    }
    text = "of SmoothGrad, least noise over the noise of the best SSM"
    criteria = [
        Criterion(f"mean entropy {text}", values["entropy"], "<=", 1),
        Criterion(f"mean stability {text}", values["stability"], "<", 1),
    ]
    numbers = {
        "noise of the best SSM": chosen["value"].values[place],
        "mean entropy at the least noise": averaged(chosen, "entropy")[0],
        "mean entropy at the noise of the best SSM": averaged(chosen, "entropy")[place],
        "median entropy at the least noise": averaged(chosen, "entropy", "median")[0],
        "median entropy at the noise of the best SSM": averaged(chosen, "entropy", "median")[place],
        "noise of the least mean entropy": chosen["value"].values[best(chosen, "entropy")],
    }
    return say("M5", criteria, numbers=numbers)


def disagreement(dataset: xr.Dataset, say: Say) -> Finding:
    """M6: the metrics prefer several gammas. Its numbers are table 1."""
    lrp = of_method(dataset, LRP)
    places = {measure: best(lrp, measure) for measure in MEASURES}
    count = len(set(places.values())) if min(places.values()) >= 0 else float("nan")
    numbers = {}
    for measure in MEASURES:
        for method in METHODS:
            chosen = of_method(dataset, method)
            if not chosen.sizes["analyzer"]:
                continue
            place = best(chosen, measure)
            values = averaged(chosen, measure)
            numbers[f"{measure}, {method}"] = values[place] if place >= 0 else float("nan")
            if method not in (INTEGRATED, SHAPLEY) and place >= 0:
                parameter = "gamma" if method == LRP else "noise"
                numbers[f"{measure}, {method}, its {parameter}"] = chosen["value"].values[place]
    criterion = Criterion("number of different gammas that are best", count, ">", 1)
    return say("M6", [criterion], numbers=numbers)


def coarse_and_alike(dataset: xr.Dataset, say: Say, everywhere: bool) -> Finding:
    """M9: maps of two classes get alike and smooth with gamma.

    Args:
        dataset: The Dataset of one task.
        say: See `sayer`.
        everywhere: LRP-gamma is in all layers, so that maps of classes have to become the same.
    """
    cosines = dataset["class_cosine"]
    noise = dataset["noise"]
    gammas = dataset["gamma"].values
    first, last = float(cosines[0].mean()), float(cosines[-1].mean())
    text = "mean cosine of the maps of two classes"
    low, high = f"gamma {gammas[0]:g}", f"gamma {gammas[-1]:g}"
    criteria = [Criterion(f"{text}, {high} minus {low}", last - first, ">", 0)]
    if everywhere:
        criteria.append(Criterion(f"{text} at {high}", last, ">=", ALIKE))
    share = "share of energy in high frequencies"
    ratio = float(noise[0].mean() / noise[-1].mean())
    criteria.append(Criterion(f"mean {share}, {low} over {high}", ratio, ">", 1))
    numbers = {}
    for place in (0, len(gammas) // 2, len(gammas) - 1):
        numbers[f"{text} at gamma {gammas[place]:g}"] = float(cosines[place].mean())
        numbers[f"mean {share} at gamma {gammas[place]:g}"] = float(noise[place].mean())
    numbers[f"median cosine of the maps of two classes at {low}"] = float(cosines[0].median())
    numbers[f"median cosine of the maps of two classes at {high}"] = float(cosines[-1].median())
    return say("M9", criteria, numbers=numbers)


def uniform_matrix(dataset: xr.Dataset, say: Say) -> Finding:
    """M10: the uniform matrix is as theory says, and no measured one is stabler."""
    entries = dataset.attrs["entries"]
    columns = min(dataset.attrs["outputs"], 10)
    sigma, ssm = uniform(entries, columns)
    least = 1 / (dataset["stability"] * np.sqrt(dataset["columns"] / entries))
    criteria = [
        Criterion(
            "uniform matrix: distance of sigma_1 from sqrt(K/d)",
            abs(sigma - np.sqrt(columns / entries)),
            "<=",
            EXACT,
        ),
        Criterion("uniform matrix: distance of SSM from 1", abs(ssm - 1), "<=", EXACT),
        Criterion("least measured sigma_1 over sqrt(K/d)", float(least.min()), ">=", 1),
    ]
    return say("M10", criteria, numbers={"sqrt(K/d)": np.sqrt(columns / entries)})


def shared_findings(dataset: xr.Dataset, say: Say, digits: bool) -> list[Finding]:
    """Returns the findings on both data sets.

    Args:
        dataset: The Dataset of one task.
        say: See `sayer`.
        digits: The data are MNIST.
    """
    return [
        gamma_and_norms(dataset, say),
        best_gamma_of_ssm(dataset, say),
        noise_and_norms(dataset, say, flat=digits),
        best_gamma_of_others(dataset, say),
        low_entropy_of_noise(dataset, say),
        disagreement(dataset, say),
        coarse_and_alike(dataset, say, everywhere=digits),
        uniform_matrix(dataset, say),
    ]
