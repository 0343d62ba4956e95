"""Pictures of audits: boxes, curves with intervals, cascades of maps.

Preparation (`box_statistics`, `curves`, `flipping_curves`) is pure and apart from drawing
(`random_logit_boxes`, `randomization_curves`, `cascade` and others), which is on given Axes or on
Figures of their own, as in `pictures`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure, SubFigure

from tfexplain.plotting.pictures import (
    MOST_BANDS,
    _given,
    _new_cells,
    _no_ticks,
    _wrapped,
    draw_input,
    draw_map,
)

SIMILARITIES = {
    "ssim": "structural similarity",
    "spearman": "rank correlation",
    "cosine": "cosine",
}

RANDOM = "random order"

_TEXT = 8  # points
_MARKERS = "osD^v<>PX*"
_COLOURS = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]  # it has a list


def box_statistics(values: np.ndarray) -> dict | None:
    """Returns what a box shows: quartiles, whiskers, and the values beyond them.

    The whiskers end at the last values within 1.5 lengths of the box.

    Args:
        values: Any shape; what is not a number is left out.

    Returns:
        Dict with "med", "q1", "q3", "whislo", "whishi" and "fliers", as `Axes.bxp` takes it; None
        without values.

    Example:
        >>> box_statistics([1.0, 2.0, 3.0, 9.0])["fliers"].tolist()
        [9.0]
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    (statistics,) = boxplot_stats(values)
    return statistics


def random_logit_boxes(dataset: xr.Dataset, *, ax: Axes | None = None) -> Figure | SubFigure:
    """Draws a box per analyzer of the similarities of two classes' maps.

    Args:
        dataset: What `audits.random_logit` returned.
        ax: Where to draw. `None`: a new Figure.

    Returns:
        The Figure. A name says how many similarities are missing.

    Raises:
        ValueError: If it is another Dataset.
    """
    _check(dataset, "random_logit", ("ssim", "missing"))
    ax = _boxes(dataset.ssim, dataset.missing, ax)
    _similarity_axis(ax, "structural similarity of the maps\nof two classes", dataset.ssim.values)
    return ax.figure


def entropy_boxes(dataset: xr.Dataset, *, ax: Axes | None = None) -> Figure | SubFigure:
    """Draws a box per analyzer of the entropies of its maps; a dotted line is the largest possible.

    Args:
        dataset: What `audits.entropy` returned.
        ax: Where to draw. `None`: a new Figure.

    Returns:
        The Figure. A name says how many entropies are missing.

    Raises:
        ValueError: If it is another Dataset.
    """
    _check(dataset, "entropy", ("entropy", "missing"))
    ax = _boxes(dataset.entropy, dataset.missing, ax)
    largest = dataset.attrs["maximum"]
    ax.axhline(largest, linestyle=":", linewidth=1, color="0.5", label="equal everywhere")
    ax.legend(fontsize=_TEXT - 1, loc="lower right", frameon=False)
    ax.set_ylim(-0.04 * largest, 1.04 * largest)
    _value_axis(ax, "entropy of the map, nats")
    return ax.figure


def boxes(values: xr.DataArray, label: str, *, ax: Axes | None = None) -> Figure | SubFigure:
    """Draws a box per analyzer of any numbers, as audits of your own measure them.

    Args:
        values: With the dimension `analyzer`.
        label: The label of the axis of the numbers.
        ax: Where to draw. `None`: a new Figure.

    Returns:
        The Figure. A name says how many values are not numbers.

    Raises:
        ValueError: If there is no dimension `analyzer`.
    """
    if "analyzer" not in values.dims:
        raise ValueError(
            f"Expected the dimension analyzer, received {', '.join(map(str, values.dims))}."
        )
    others = [name for name in values.dims if name != "analyzer"]
    ax = _boxes(values, values.isnull().sum(others), ax)
    _value_axis(ax, label)
    return ax.figure


def _boxes(values: xr.DataArray, missing: xr.DataArray, ax: Axes | None) -> Axes:
    """Draws a box per analyzer; returns the Axes."""
    names = [str(name) for name in values.analyzer.values]
    if ax is None:
        size = (max(3.0, 1.1 + 0.42 * len(names)), 3.6)
        ax = Figure(figsize=size, dpi=130, layout="constrained").add_subplot()
    labels = []
    for place, name in enumerate(names):
        statistics = box_statistics(values.isel(analyzer=place).values)
        count = int(missing.isel(analyzer=place))
        labels.append(f"{name} ({count} missing)" if count else name)
        if statistics is not None:
            ax.bxp(
                [statistics],
                positions=[place],
                widths=0.6,
                manage_ticks=False,
                patch_artist=True,
                boxprops={"facecolor": "0.9", "linewidth": 0.8},
                medianprops={"color": "tab:red", "linewidth": 1.4},
                whiskerprops={"linewidth": 0.8},
                capprops={"linewidth": 0.8},
                flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "0.4"},
            )
    _names_below(ax, labels)
    ax.set_xlim(-0.6, len(names) - 0.4)
    return ax


class Curve(NamedTuple):
    """One curve of `randomization_curves` or `pixel_flipping_curves`.

    Attributes:
        name: The name of the analyzer.
        median: (steps,).
        low: Lower end of its band; not a number where there is none.
        high: Upper end.
    """

    name: str
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curves(dataset: xr.Dataset, similarity: str = "ssim") -> list[Curve]:
    """Returns a curve per analyzer that has any value.

    Args:
        dataset: What `audits.parameter_randomization` returned.
        similarity: "ssim", "spearman" or "cosine".

    Raises:
        ValueError: If it is another Dataset, an unknown similarity, or one without any value.
    """
    _check(dataset, "parameter_randomization", ("median", "low", "high"))
    known = [str(name) for name in dataset.similarity.values]
    if similarity not in known:
        raise ValueError(f"similarity is {similarity!r}. Expected one of {', '.join(known)}.")
    chosen = dataset.sel(similarity=similarity)
    all_curves = [
        Curve(str(name), *(chosen[part].sel(analyzer=name).values for part in Curve._fields[1:]))
        for name in dataset.analyzer.values
    ]
    all_curves = [curve for curve in all_curves if np.isfinite(curve.median).any()]
    if not all_curves:
        raise ValueError(
            f"The Dataset has no value of {similarity!r} ({dataset.attrs.get('notes') or 'all are'}"
            " missing). Choose another similarity."
        )
    return all_curves


def randomization_curves(
    dataset: xr.Dataset, similarity: str = "ssim", *, ax: Axes | None = None
) -> Figure | SubFigure:
    """Draws the median similarity of each analyzer over the steps, with its interval as a band.

    Args:
        dataset: What `audits.parameter_randomization` returned.
        similarity: "ssim", "spearman" or "cosine".
        ax: Where to draw. `None`: a new Figure.

    Returns:
        The Figure. Analyzers without any value are left out; more than ten have no bands.

    Raises:
        ValueError: If it is another Dataset, an unknown similarity, or one without any value.
    """
    all_curves = curves(dataset, similarity)
    steps = [str(step) for step in dataset.step.values]
    if ax is None:
        size = (3.6 + 0.4 * len(steps), max(3.6, 1.2 + 0.2 * len(all_curves)))
        ax = Figure(figsize=size, dpi=130, layout="constrained").add_subplot()
    _draw_curves(ax, np.arange(len(steps)), all_curves)
    _names_below(ax, steps)
    cascading = dataset.attrs.get("mode") == "cascading"
    ax.set_xlabel(
        "randomized: from the output down to ..." if cascading else "randomized layer",
        fontsize=_TEXT,
    )
    percent = 100 * dataset.attrs.get("confidence", 0.99)
    ends = np.array([part for curve in all_curves for part in curve[1:]])
    text = f"{SIMILARITIES.get(similarity, similarity)}\nmedian"
    text += f" and {percent:g} % interval" if _has_bands(all_curves) else ""
    _similarity_axis(ax, text, ends)
    _legend_beside(ax)
    return ax.figure


def flipping_curves(dataset: xr.Dataset, output: str = "logit") -> list[Curve]:
    """Returns the median and the quartiles over samples, for each analyzer that has any value.

    Args:
        dataset: What `audits.pixel_flipping` returned.
        output: "logit" or "probability".

    Returns:
        Curves over the steps; the last is that of the random order, if that has any value.

    Raises:
        ValueError: If it is another Dataset, an unknown output, or one without any value.
    """
    _check(dataset, "pixel_flipping", ("curve", "random_curve", "removed"))
    known = [str(name) for name in dataset.output.values]
    if output not in known:
        raise ValueError(f"output is {output!r}. Expected one of {', '.join(known)}.")
    chosen = dataset.sel(output=output)
    rows = [(str(name), chosen.curve.sel(analyzer=name)) for name in chosen.analyzer.values]
    all_curves = []
    for name, row in [*rows, (RANDOM, chosen.random_curve)]:
        values = row.transpose("sample", "step").values
        # A curve that is not defined has no value at all.
        values = values[np.isfinite(values).all(axis=1)]
        if len(values):
            low, median, high = np.percentile(values, [25, 50, 75], axis=0)
            all_curves.append(Curve(name, median, low, high))
    if not all_curves:
        raise ValueError(f"The Dataset has no value of {output!r}. Choose another output.")
    return all_curves


def pixel_flipping_curves(
    dataset: xr.Dataset, output: str = "logit", *, ax: Axes | None = None
) -> Figure | SubFigure:
    """Draws the median curve of each analyzer over the removed pixels, its quartiles as a band.

    Args:
        dataset: What `audits.pixel_flipping` returned.
        output: "logit" or "probability".
        ax: Where to draw. `None`: a new Figure.

    Returns:
        The Figure. The random order is grey; behind each name is the median area under its curves.
        More than ten curves have no bands.

    Raises:
        ValueError: If it is another Dataset, an unknown output, or one without any value.
    """
    all_curves = flipping_curves(dataset, output)
    if ax is None:
        size = (6.4, max(3.6, 1.2 + 0.2 * len(all_curves)))
        ax = Figure(figsize=size, dpi=130, layout="constrained").add_subplot()
    chosen = dataset.sel(output=output)
    removed, labelled = chosen.removed.values, []
    for curve in all_curves:
        last = curve is all_curves[-1] and curve.name == RANDOM
        areas = chosen.random_auc if last else chosen.auc.sel(analyzer=curve.name)
        labelled.append(curve._replace(name=f"{curve.name} ({np.nanmedian(areas):.2f})"))
    random = labelled.pop() if last else None
    # Without the grey of the random order.
    colours = [color for index, color in enumerate(_COLOURS) if index != 7]
    _draw_curves(ax, removed, labelled, colours)
    if random is not None:
        grey: dict[str, Any] = {"color": "0.5", "zorder": 1}
        if _has_bands(all_curves):
            ax.fill_between(removed, random.low, random.high, alpha=0.15, linewidth=0, **grey)
        ax.plot(removed, random.median, ":", linewidth=1.6, label=random.name, **grey)
    ax.set_xlim(removed[0], removed[-1])
    ax.set_xlabel("removed pixels, the most relevant first", fontsize=_TEXT)
    ax.tick_params(axis="x", labelsize=_TEXT - 1)
    what = "logit, divided by its start" if output == "logit" else "probability of the class"
    spread = " and quartiles" if _has_bands(all_curves) else ""
    _value_axis(ax, f"{what}\nmedian{spread}")
    _legend_beside(ax, title="median area")
    return ax.figure


def _draw_curves(
    ax: Axes, places: np.ndarray, all_curves: Sequence[Curve], colours: Sequence = _COLOURS
) -> None:
    """Draws lines with bands, each with a look of its own."""
    bands = _has_bands(all_curves)
    shade = 0.15 if len(all_curves) <= 4 else 0.08
    for index, curve in enumerate(all_curves):
        turn, place = divmod(index, len(colours))
        style = {
            "color": colours[place],
            "marker": _MARKERS[(place + 3 * turn) % len(_MARKERS)],
            "linestyle": ("-", "--", ":")[turn % 3],
            "linewidth": 1.2,
            "markersize": 3.5,
        }
        ax.plot(places, curve.median, label=curve.name, **style)
        if bands:
            ax.fill_between(
                places, curve.low, curve.high, color=colours[place], alpha=shade, linewidth=0
            )


def _has_bands(all_curves: Sequence[Curve]) -> bool:
    """Whether there are so few curves that their bands do not hide one another."""
    return len(all_curves) <= MOST_BANDS


def _legend_beside(ax: Axes, title: str | None = None) -> None:
    ax.legend(
        title=title,
        title_fontsize=_TEXT - 1,
        alignment="left",
        fontsize=_TEXT - 1,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
        frameon=False,
    )


def cascade(
    dataset: xr.Dataset,
    sample: int = 0,
    *,
    percentile: float | None = 99.5,
    ax: object | None = None,
) -> Figure:
    """Draws the maps of one sample: a row per analyzer, a column per randomized layer.

    The first columns are the input and the map of the trained network. Each map has limits of its
    own, symmetric about zero; the limit is printed under it.

    Args:
        dataset: What `audits.cascade_maps` returned, of images or sequences.
        sample: Which sample, by its place.
        percentile: See `symmetric_limits`.
        ax: Array of Axes, (analyzers, 1 + steps with "trained"). `None`: a new Figure.

    Returns:
        The Figure. A map with values that are not finite says so.

    Raises:
        ValueError: If it is another Dataset, or there is no such sample.
    """
    _check(dataset, "cascade_maps", ("relevance", "input"))
    if not 0 <= sample < dataset.sizes["sample"]:
        raise ValueError(
            f"sample is {sample}. Expected 0 to {dataset.sizes['sample'] - 1}, a place in the "
            "Dataset."
        )
    one = dataset.isel(sample=sample)
    shown = _channels_last(one["input"])
    maps = one.relevance.values
    if maps.ndim == 4:
        maps = maps[..., None]  # images without channels
    names = [str(name) for name in one.analyzer.values]
    titles = ["input", *(str(step) for step in one.step.values)]
    cells = _cells((len(names), *maps.shape[2:]), titles, names, ax)
    draw_input(cells[0, 0], shown)
    for row, name in enumerate(names):
        if row:
            _empty(cells[row, 0])
        _label(cells[row, 0], name)
        for cell, map in zip(cells[row, 1:], maps[row], strict=True):
            if not np.isfinite(map).all():
                _no_ticks(cell)
                cell.text(0.5, 0.5, "not finite", ha="center", fontsize=_TEXT - 2)
                continue
            limit = draw_map(cell, map, percentile=percentile)[1]
            _print(cell, f"\N{PLUS-MINUS SIGN}{limit:.2g}")
    return cells[0, 0].figure


def _check(dataset: xr.Dataset, audit: str, variables: Sequence[str]) -> None:
    actual = dataset.attrs.get("audit", "none")
    if actual != audit or any(name not in dataset for name in variables):
        raise ValueError(
            f"The Dataset is of the audit {actual!r}. Expected one that audits.{audit} returned."
        )


def _channels_last(array: xr.DataArray) -> np.ndarray:
    """One input as `draw_input` takes it."""
    dims = [name for name in array.dims if name != "channel"]
    if "channel" in array.dims:
        dims.append("channel")
    return array.transpose(*dims).values


def _names_below(ax: Axes, names: Sequence[str]) -> None:
    ax.set_xticks(np.arange(len(names)))
    ax.set_xticklabels(names, rotation=45, ha="right", rotation_mode="anchor", fontsize=_TEXT - 1)


def _similarity_axis(ax: Axes, text: str, values: np.ndarray) -> None:
    """From 0 to 1, or from below where something is negative."""
    low = np.nanmin(values, initial=0.0)
    ax.set_ylim(-0.05 if low >= -0.05 else max(-1.05, low - 0.05), 1.05)
    _value_axis(ax, text)


def _value_axis(ax: Axes, text: str) -> None:
    ax.set_ylabel(text, fontsize=_TEXT)
    ax.tick_params(axis="y", labelsize=_TEXT - 1)
    ax.grid(axis="y", linewidth=0.4, color="0.85")
    ax.set_axisbelow(True)


def _cells(
    shape: tuple[int, ...], titles: Sequence[str], labels: Sequence[str], ax: object | None
) -> np.ndarray:
    """The caller's Axes or new ones, (rows, columns), with titles over the first row."""
    titles = [_wrapped(title) for title in titles]
    size = (shape[0], len(titles))
    cells = _new_cells(shape, titles, labels) if ax is None else _given(ax, size)
    for cell, title in zip(cells[0], titles, strict=True):
        cell.set_title(title, fontsize=_TEXT - 1, pad=3, parse_math=False)
    return cells


def _empty(ax: Axes) -> None:
    """Keeps nothing but the label."""
    _no_ticks(ax)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _label(ax: Axes, name: str) -> None:
    ax.set_ylabel(
        name,
        fontsize=_TEXT - 1,
        rotation=0,
        horizontalalignment="right",
        labelpad=3,
        parse_math=False,
    )


def _print(ax: Axes, text: str) -> None:
    ax.set_xlabel(text, fontsize=_TEXT - 2, labelpad=1.5)
