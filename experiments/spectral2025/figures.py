"""Figures that the experiments draw from their Datasets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.spectral2025.judging import (
    MEASURES,
    averaged,
    best,
    each,
    of_method,
)
from experiments.spectral2025.sweep import INTEGRATED, LRP, SHAPLEY, SMOOTHGRAD
from tfexplain import plotting

COLOURS = {"published": "#0173b2", "corrected": "#de8f05"}
SAME = "0.25"
SPECTRAL = ("stability", "sensitivity", "SSM")
LABELS = {
    "stability": "stability 1 / σ₁",
    "sensitivity": r"sensitivity $\Vert R\Vert_F$",
    "SSM": "SSM (more is better)",
    "PF-AUC": "PF-AUC (less is better)",
    "entropy": "entropy in nats\n(less is better)",
}
STYLES = {"mean": "-", "median": "--"}
PARAMETERS = {LRP: "γ", SMOOTHGRAD: "noise / input range"}
OTHERS = {INTEGRATED: "IG", SHAPLEY: "Shapley"}
TEXT = 8


def by_network(datasets: Sequence[xr.Dataset]) -> dict[str, list[xr.Dataset]]:
    """Returns the Datasets of each network, in order."""
    by_model: dict[str, list[xr.Dataset]] = {}
    for dataset in datasets:
        by_model.setdefault(dataset.attrs["model"], []).append(dataset)
    return by_model


def curves(datasets: Sequence[xr.Dataset]) -> Figure:
    """Draws every measure over gamma and over noise, as fig. 3 and 4, and methods without either.

    Args:
        datasets: The Datasets of one network, one for each protocol.
    """
    figure = Figure(figsize=(9, 11), layout="constrained")
    cells = figure.subplots(
        len(LABELS), 3, sharey="row", sharex="col", gridspec_kw={"width_ratios": (4, 3, 1.2)}
    )
    for row, measure in zip(cells, LABELS, strict=True):
        for ax, method in zip(row[:2], PARAMETERS, strict=True):
            for chosen, colour in _coloured(datasets, [method], measure):
                _curve(ax, of_method(chosen, method), measure, colour)
        for chosen, colour in _coloured(datasets, list(OTHERS), measure):
            _points(row[2], chosen, measure, colour)
        if measure in ("stability", "sensitivity"):
            _logarithmic(row[0])
        if measure == "PF-AUC":
            random = float(each_random(datasets[0]).mean())
            for ax in row[:2]:
                ax.axhline(random, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
            row[0].annotate(
                "random order",
                (0.01, random),
                xycoords=("axes fraction", "data"),
                ha="left",
                va="top",
                fontsize=TEXT - 1,
                color="0.5",
            )
        row[0].set_ylabel(LABELS[measure], fontsize=TEXT)
    for ax, method in zip(cells[-1], PARAMETERS, strict=False):
        ax.set_xlabel(PARAMETERS[method], fontsize=TEXT)
        _parameter_axis(ax, of_method(datasets[0], method)["value"].values)
    for ax, title in zip(cells[0], [*PARAMETERS, "others"], strict=True):
        ax.set_title(title, fontsize=TEXT + 1)
    for ax in cells.flat:
        ax.tick_params(labelsize=TEXT - 1)
        ax.grid(color="0.92", linewidth=0.6)
        ax.set_axisbelow(True)
    _legend(figure, datasets)
    count, network = datasets[0].attrs["images"], datasets[0].attrs["network"]
    figure.suptitle(f"{network}, {count} images", fontsize=TEXT + 2)
    return figure


def spectra(datasets: Sequence[xr.Dataset]) -> Figure:
    """Draws stability, sensitivity and SSM over gamma.

    Args:
        datasets: The Datasets of one network, one for each protocol.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for ax, measure in zip(figure.subplots(1, len(SPECTRAL)), SPECTRAL, strict=True):
        for dataset in datasets:
            _curve(ax, dataset, measure, COLOURS[dataset.attrs["protocol"]])
        if measure != "SSM":
            _logarithmic(ax)
        _parameter_axis(ax, datasets[0]["value"].values)
        ax.set_title(LABELS[measure], fontsize=TEXT + 1)
        ax.set_xlabel(PARAMETERS[LRP], fontsize=TEXT)
        ax.tick_params(labelsize=TEXT - 1)
        ax.grid(color="0.92", linewidth=0.6)
    _legend(figure, datasets, shared=False)
    one = datasets[0].attrs
    title = f"{one['network']}, {one['images']} images: outputs are the units of {one['layer']}"
    figure.suptitle(title, fontsize=TEXT + 2)
    return figure


def _logarithmic(ax: Axes) -> None:
    """A logarithmic axis with plain numbers, also where it has less than a decade."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def each_random(dataset: xr.Dataset) -> np.ndarray:
    """Returns PF-AUC of random orders, (sample,)."""
    return dataset["random_auc"].sel(fill="telea", output="probability").values


def _coloured(
    datasets: Sequence[xr.Dataset], methods: Sequence[str], measure: str
) -> list[tuple[xr.Dataset, str]]:
    """Returns the settings of methods with a colour; what is the same in all of them comes once."""
    chosen = [
        dataset.isel(analyzer=np.isin(dataset["method"].values, methods)) for dataset in datasets
    ]
    first = each(chosen[0], measure)
    if all(np.array_equal(first, each(one, measure), equal_nan=True) for one in chosen[1:]):
        several = len(datasets) > 1 or measure not in SPECTRAL
        return [(chosen[0], SAME if several else COLOURS[datasets[0].attrs["protocol"]])]
    return [(one, COLOURS[one.attrs["protocol"]]) for one in chosen]


def _curve(ax: Axes, chosen: xr.Dataset, measure: str, colour: str) -> None:
    """Draws averages over the values of a method's parameter; a dot is the best setting."""
    values = chosen["value"].values
    for average, style in STYLES.items():
        width = 1.4 if average == "mean" else 0.9
        averages = averaged(chosen, measure, average)
        ax.plot(values, averages, style, color=colour, linewidth=width)
        if average == "mean" and measure in MEASURES and (place := best(chosen, measure)) >= 0:
            ax.plot(values[place], averages[place], "o", color=colour, markersize=5)


def _points(ax: Axes, dataset: xr.Dataset, measure: str, colour: str) -> None:
    """Draws methods without a parameter: the mean as a dash, the median as a ring."""
    present = [method for method in OTHERS if of_method(dataset, method).sizes["analyzer"]]
    for place, method in enumerate(present):
        chosen = of_method(dataset, method)
        for average, marker in (("mean", "_"), ("median", "o")):
            averages = averaged(chosen, measure, average)
            style = {"color": colour, "markersize": 11 if marker == "_" else 4}
            ax.plot(place, averages[0], marker, fillstyle="none", **style)
    ax.set_xlim(-0.6, len(present) - 0.4)
    ax.set_xticks(range(len(present)), [OTHERS[method] for method in present])


def _parameter_axis(ax: Axes, values: np.ndarray) -> None:
    """A logarithmic axis that has zero."""
    positive = values[values > 0]
    ax.set_xscale("symlog", linthresh=float(positive.min()), linscale=0.7)
    # Without the room for negative values that such axes leave.
    ax.set_xlim(-0.1 * positive.min(), 1.3 * positive.max())
    exponents = np.arange(
        int(np.floor(np.log10(positive.min()))), int(np.floor(np.log10(positive.max()))) + 1
    )
    ticks = [0.0, *(10.0 ** exponents[10.0**exponents >= positive.min()])]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def _legend(figure: Figure, datasets: Sequence[xr.Dataset], shared: bool = True) -> None:
    lines = [
        Line2D([], [], color=COLOURS[p.attrs["protocol"]], label=_described(p)) for p in datasets
    ]
    if shared:
        lines.append(Line2D([], [], color=SAME, label="same in both protocols"))
    lines += [
        Line2D([], [], color=SAME, linestyle=style, label=average)
        for average, style in STYLES.items()
    ]
    lines.append(
        Line2D([], [], color=SAME, marker="o", linestyle="", markersize=5, label="best mean")
    )
    figure.legend(
        handles=lines, loc="outside lower center", ncols=3, fontsize=TEXT - 1, frameon=False
    )


def _described(dataset: xr.Dataset) -> str:
    columns = dataset.attrs["policy"]
    return f"{dataset.attrs['protocol']}: {columns}"


def bound(datasets: Sequence[xr.Dataset]) -> Figure:
    """Draws norms of explanations under their bound, and norms of layers, over gamma."""
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    split = datasets[0].sel(bias="split")
    gammas = datasets[0]["gamma"].values
    for name, label, colour in (
        ("bound", "bound of ‖R‖₁ (eq. 9)", "0.25"),
        ("norm", "‖R‖₁, columns not renormalised", "#029e73"),
    ):
        low, middle, high = np.quantile(split[name].values, (0, 0.5, 1), axis=1)
        left.plot(gammas, middle, color=colour, label=label, linewidth=1.3)
        left.fill_between(gammas, low, high, color=colour, alpha=0.15, linewidth=0)
    for dataset in datasets:
        lrp = of_method(dataset, LRP)
        left.plot(
            lrp["value"].values,
            np.median(each(lrp, "sigma_1"), axis=1),
            color=COLOURS[dataset.attrs["protocol"]],
            linewidth=1.3,
            label=f"σ₁ = ‖R‖₂, {dataset.attrs['protocol']}",
        )
    forms = np.median(split["layer_closed_form"].values, axis=1)  # (gamma, layer)
    measured = np.median(split["layer_measured"].values, axis=1)
    for place, layer in enumerate(split["layer"].values.tolist()):
        c = float(np.median(split["layer_c"].values[0, :, place]))
        (line,) = right.plot(
            gammas, forms[:, place], linewidth=1.2, label=f"{layer}, 1 - c = {1 - c:.2g}"
        )
        right.plot(gammas, measured[:, place], ".", color=line.get_color(), markersize=4)
    left.set_title(f"explanations: medians, {split.sizes['image']} images", fontsize=TEXT + 1)
    right.set_title("layers: closed form (line), measured (dots)", fontsize=TEXT + 1)
    for ax in (left, right):
        ax.set_yscale("log")
        _parameter_axis(ax, gammas)
        ax.set_xlabel("γ", fontsize=TEXT)
        ax.tick_params(labelsize=TEXT - 1)
        ax.grid(color="0.92", linewidth=0.6)
        ax.legend(fontsize=TEXT - 1, frameon=False)
    left.set_ylabel("norm", fontsize=TEXT)
    right.set_ylabel("L1 norm of a layer", fontsize=TEXT)
    return figure


def class_maps(datasets: Sequence[xr.Dataset]) -> Figure:
    """Draws maps of one digit for two classes and three gammas, as fig. 2."""
    dataset = datasets[-1]
    classes, gammas = dataset["class_shown"].values, dataset["shown"].values
    figure = Figure(figsize=(1.5 * (1 + len(gammas)), 3.6), layout="constrained")
    cells = figure.subplots(len(classes), 1 + len(gammas))
    for row, number in zip(cells, classes, strict=True):
        row[0].imshow(dataset["digit"].values, cmap="gray_r", interpolation="nearest")
        row[0].set_ylabel(f"class {number}", fontsize=TEXT)
        for ax, gamma in zip(row[1:], gammas, strict=True):
            map = dataset["maps"].sel(gamma=gamma, class_shown=number).values
            low, high = plotting.symmetric_limits(map)
            ax.imshow(map, cmap=plotting.COLORMAP, vmin=low, vmax=high, interpolation="nearest")
            ax.set_xlabel(f"± {high:.3g}", fontsize=TEXT - 1)
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
    figure.suptitle(f"{dataset.attrs['network']}: columns of R", fontsize=TEXT)
    cells[0, 0].set_title("input", fontsize=TEXT)
    for ax, gamma in zip(cells[0, 1:], gammas, strict=True):
        ax.set_title(f"γ = {gamma:g}", fontsize=TEXT)
    return figure


def terms(dataset: xr.Dataset) -> Figure:
    """Draws the spectral terms of one explanation for three gammas, as fig. 5."""
    names = ("term", "rest", "explanation", "singular_value", "coefficient")
    figure = plotting.term_maps(dataset[list(names)].rename(shown="sample"))
    columns = 2 + dataset.sizes["rank"]
    for ax, gamma in zip(figure.axes[::columns], dataset["shown"].values, strict=True):
        ax.set_ylabel(f"γ = {gamma:g}", fontsize=TEXT)
    figure.suptitle(f"{dataset.attrs['network']}, {dataset.attrs['protocol']}", fontsize=TEXT)
    return figure
