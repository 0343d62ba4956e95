"""Plots of Koopman credits: blocks, kernels of convolutions, and weights of the input's features.

Preparation (`kernel_groups`, `sample_weights`) is pure and apart from drawing (`block_credits`,
`kernel_credits`, `feature_weights`), which is on given Axes or on Figures of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfexplain.plotting.pictures import (
    Margins,
    _given,
    _new_cells,
    draw_input,
    draw_map,
    grid_of_axes,
    symmetric_limits,
)

# Variable -> title of its panel.
CREDITS: Mapping[str, str] = {
    "log_volume": "log-volume",
    "log_volume_per_dimension": "per dimension",
    "log_volume_fixed_rank": "fixed rank",
    "log_volume_mean": "mean of log-volumes",
    "least_squares_log_volume_per_dimension": "least squares,\nper dimension",
}
KERNEL_CREDITS: Mapping[str, str] = {
    "kernel_rows_log_volume_per_dimension": "rows of K",
    "kernel_block_log_volume_per_dimension": "block of its own",
}
OPERATORS: Mapping[str, str] = {
    "mean": "mean operators",
    "products": "mean of products",
    "least_squares": "least squares",
}

_TEXT = 8  # points
_NAME = 28  # characters of a block's name that are shown
_CHARACTER = 0.062  # inches: mean width of a character of _TEXT points
_MOST_BARS = 64  # kernels of a convolution that are drawn as bars
_MOST_LINES = 4  # channels of a sequence that are drawn as lines, as in `draw_input`


def block_credits(dataset: xr.Dataset, *, ax: object | None = None) -> Figure:
    """Draws the credits of all blocks as bars, a panel for each normalisation of `CREDITS`.

    Blocks stand in the order of the network, the first at the top. The lines in the panel of the
    mean are standard deviations over repeats. On the right are sizes, ranks and residuals of the
    regressions, and what the reduction of large tensors leaves out, if it does.

    Args:
        dataset: What `koopman.credit` returned.
        ax: Axes for the panels, and one more for the text. `None`: a new Figure.

    Returns:
        The Figure. A block without a finite credit has "none" instead of a bar.

    Raises:
        ValueError: If it is another Dataset, or the number of Axes is wrong.
    """
    _check(dataset, [*CREDITS, "rank", "residual"])
    names = [_shortened(str(name)) for name in dataset["block"].values]
    small = _TEXT - (1 if len(names) <= 25 else 2)
    table = _table(dataset)
    widths = [max(map(len, column)) + 3 for column in table]
    if ax is None:
        text = _CHARACTER * sum(widths) * small / _TEXT
        bars = [1.75] * len(CREDITS)
        left = 0.2 + _CHARACTER * max(map(len, names))
        size = (left + sum(bars) + text + 0.8, 0.9 + len(names) * (0.26 if small == 7 else 0.175))
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        panels = figure.subplots(1, len(CREDITS) + 1, sharey=True, width_ratios=[*bars, text])
    else:
        panels = np.array(ax, dtype=object).ravel()
        if len(panels) != len(CREDITS) + 1:
            raise ValueError(
                f"ax has {len(panels)} Axes. Expected {len(CREDITS) + 1}: one per normalisation, "
                "and one for the text."
            )
    places = np.arange(len(names))
    for panel, (variable, title) in zip(panels[:-1], CREDITS.items(), strict=True):
        _bars(panel, places, dataset[variable].values, horizontal=True)
        panel.set_title(title, fontsize=_TEXT)
        panel.grid(axis="x", linewidth=0.4, color="0.85")
        panel.tick_params(axis="both", labelsize=small, length=2)
        panel.tick_params(axis="y", labelleft=panel is panels[0])
        panel.margins(x=0.08)
        panel.locator_params(axis="x", nbins=4)
        panel.set_ylim(len(names) - 0.4, -0.6)
    if "log_volume_std" in dataset:
        middle, spread = dataset["log_volume_mean"].values, dataset["log_volume_std"].values
        known = np.isfinite(middle) & np.isfinite(spread)
        style = {"fmt": "none", "ecolor": "0.2", "elinewidth": 0.8, "capsize": 1.5}
        panels[3].errorbar(middle[known], places[known], xerr=spread[known], **style)
    panels[0].set_yticks(places, names, fontsize=small, parse_math=False)
    _write_columns(panels[-1], table, widths, small)
    return panels[0].figure


def kernel_groups(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    """Returns the part of the Dataset with the kernels of each convolution.

    Args:
        dataset: What `koopman.credit` returned.

    Returns:
        Name of the block -> Dataset over its kernels, in the order of channels and of the network.

    Raises:
        ValueError: If it is another Dataset, or one without kernels.
    """
    _check(dataset, ["block"])
    if "kernel_block" not in dataset or not any(name in dataset for name in KERNEL_CREDITS):
        raise ValueError(
            "The Dataset has no kernels: the model has no convolution, or kernels=() was given."
        )
    owners = dataset["kernel_block"].values.astype(str)
    parts = {
        name: dataset.isel(kernel=np.flatnonzero(owners == name)) for name in dict.fromkeys(owners)
    }
    return {name: part.sortby("kernel_channel") for name, part in parts.items()}


def kernel_credits(dataset: xr.Dataset, *, ax: object | None = None) -> Figure:
    """Draws the credits per dimension of the kernels of each convolution.

    A column for each definition that the Dataset has (see `KERNEL_CREDITS`). Up to 64 kernels are
    bars in the order of their channels, more are a falling curve.

    Args:
        dataset: What `koopman.credit` returned.
        ax: Array of Axes, (convolutions, definitions). `None`: a new Figure; many convolutions
            stand in several columns.

    Returns:
        The Figure. Kernels without a finite credit are crosses at zero among bars, and counted
        beside a curve.

    Raises:
        ValueError: If it is another Dataset, one without kernels, or the number of Axes is wrong.
    """
    groups = kernel_groups(dataset)
    titles = {name: title for name, title in KERNEL_CREDITS.items() if name in dataset}
    if ax is None:
        cells = _new_panels(len(groups), len(titles))
    else:
        cells = np.array(ax, dtype=object)
        if cells.size != len(titles) * len(groups):
            raise ValueError(
                f"ax has {cells.size} Axes. Expected {(len(groups), len(titles))}: a row for each "
                "convolution, a column for each definition."
            )
        cells = cells.reshape(len(groups), len(titles))
    for row, (name, part) in zip(cells, groups.items(), strict=True):
        for panel, (variable, title) in zip(row, titles.items(), strict=True):
            _draw_kernels(panel, part["kernel_channel"].values, part[variable].values)
            panel.set_title(f"{_shortened(name)}: {title}", fontsize=_TEXT, parse_math=False)
            panel.tick_params(labelsize=_TEXT - 1, length=2)
            panel.locator_params(axis="y", nbins=4)
            panel.margins(y=0.1)
            panel.grid(axis="y", linewidth=0.4, color="0.85")
            panel.set_axisbelow(True)
        row[0].set_ylabel("per dimension", fontsize=_TEXT - 1)
    return cells[0, 0].figure


def sample_weights(
    dataset: xr.Dataset, count: int, outputs: Sequence[int] | None = None
) -> tuple[list[int], dict[str, np.ndarray]]:
    """Returns the feature weights of one output for each of `count` samples.

    Args:
        dataset: What `koopman.credit` returned.
        count: Number of samples.
        outputs: Index of the output for each sample. `None`: the largest output of the network for
            the first held-out inputs.

    Returns:
        The outputs, and operator -> weights (count, *input_shape).

    Raises:
        ValueError: If it is another Dataset, or has no weights of an output or too few samples.
    """
    _check(dataset, ["feature_weight", "network_output"])
    if outputs is None:
        if count > dataset.sizes["sample"]:
            raise ValueError(
                f"There are {count} inputs, but the Dataset has {dataset.sizes['sample']} held-out "
                "samples. Give the held-out inputs, or the outputs too."
            )
        outputs = dataset["network_output"].values[:count].argmax(axis=1).tolist()
    if len(outputs) != count:
        raise ValueError(f"outputs has {len(outputs)} entries. Expected {count}, one per input.")
    known = dataset["output"].values.tolist()
    if missing := sorted(set(outputs) - set(known)):
        raise ValueError(
            f"The Dataset has no feature weights of the outputs {missing}. It has those of "
            f"{_listed(known)}; give koopman.credit outputs={sorted(set(outputs))}."
        )
    places = [known.index(output) for output in outputs]
    weights = dataset["feature_weight"].isel(output=places)
    names = [str(name) for name in weights["operator"].values]
    return list(outputs), dict(zip(names, weights.values, strict=True))


def feature_weights(
    dataset: xr.Dataset,
    inputs: np.ndarray,
    outputs: Sequence[int] | None = None,
    *,
    row_labels: Sequence[str] | None = None,
    reduction: str = "sum",
    percentile: float | None = None,
    ax: object | None = None,
) -> Figure:
    """Draws a row per sample: the input, and the feature weights of its class by each operator.

    Images have maps, sequences of up to four channels lines, other sequences strips, tables bars.
    Each has limits of its own, symmetric about zero, printed under it. The titles say for how many
    held-out inputs the operator has the same largest output as the network.

    Args:
        dataset: What `koopman.credit` returned.
        inputs: Shape (n, *input_shape): images, sequences or rows of a table.
        outputs: Index of the output for each sample. `None`: the largest output of the network;
            `inputs` are then the first of the held-out inputs.
        row_labels: One per sample, at the left. `None`: the outputs.
        reduction: The reduction of the channels of images, see `reduce_channels`.
        percentile: For images and strips, see `symmetric_limits`. Pixels that are hardly ever other
            than zero can have weights beside which no other is seen.
        ax: Array of Axes, (n, 1 + operators). `None`: a new Figure.

    Returns:
        The Figure.

    Raises:
        ValueError: If shapes or numbers do not fit, or the Dataset has no weights of an output.
    """
    inputs = np.asarray(inputs)
    outputs, weights = sample_weights(dataset, len(inputs), outputs)
    shape = dataset["feature_weight"].shape[2:]
    if not len(inputs) or inputs.shape[1:] != shape or len(shape) not in (1, 2, 3):
        raise ValueError(
            f"inputs have shape {inputs.shape}, the feature weights {shape}. Expected (n, "
            "*input_shape) with one to three axes: tables, sequences or images."
        )
    labels = [f"output {o}" for o in outputs] if row_labels is None else list(row_labels)
    if len(labels) != len(inputs):
        raise ValueError(f"row_labels has {len(labels)} entries. Expected {len(inputs)}.")
    titles = ["input", *(_title(dataset, name) for name in weights)]
    grid = (len(inputs), len(titles))
    if ax is None:
        # Many rows fit on a screen if they are small.
        cells = _new_cells(inputs.shape, titles, labels, 2.2 if len(inputs) <= 4 else 1.15)
        if len(shape) == 2 and shape[1] <= _MOST_LINES:
            cells[0, 0].figure.axes[-1].remove()  # the scale of colours, of which lines have none
    else:
        cells = _given(ax, grid)
    style = {"fontsize": _TEXT - 1, "parse_math": False}
    for row, (label, sample) in enumerate(zip(labels, inputs, strict=True)):
        draw_input(cells[row, 0], sample)
        cells[row, 0].set_ylabel(label, rotation=0, ha="right", labelpad=3, **style)
        for cell, values in zip(cells[row, 1:], weights.values(), strict=True):
            text = _draw_weights(cell, values[row], reduction, percentile)
            cell.set_xlabel(text, fontsize=_TEXT - 2, labelpad=1.5)
    for cell, title in zip(cells[0], titles, strict=True):
        cell.set_title(title, pad=3, **style)
    return cells[0, 0].figure


def _check(dataset: xr.Dataset, variables: Sequence[str]) -> None:
    """Refuses a Dataset without these variables."""
    if missing := [name for name in variables if name not in dataset.variables]:
        raise ValueError(
            f"The Dataset has no {', '.join(missing)}. Expected one that koopman.credit returned."
        )


def _shortened(name: str) -> str:
    """A name that fits beside bars: the middle of a long one is left out."""
    half = (_NAME - 1) // 2
    return name if len(name) <= _NAME else f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def _listed(values: Sequence[object]) -> str:
    """The first values of a list as text."""
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")


def _table(dataset: xr.Dataset) -> list[list[str]]:
    """Columns of text about the blocks, each with its heading first."""
    sizes = list(zip(dataset["input_size"].values, dataset["output_size"].values, strict=True))
    columns = [
        ["size", *(f"{p}\N{RIGHTWARDS ARROW}{q}" for p, q in sizes)],
        ["rank", *(f"{rank:.0f}" for rank in dataset["rank"].values)],
        ["residual", *(f"{residual:.2g}" for residual in dataset["residual"].values)],
    ]
    if "energy_lost" in dataset and (dataset["energy_lost"] > 0).any():
        columns.append(["left out", *(f"{share:.1%}" for share in dataset["energy_lost"].values)])
    return columns


def _write_columns(
    ax: Axes, table: Sequence[Sequence[str]], widths: Sequence[int], size: int
) -> None:
    """Writes columns of text beside the bars, aligned on the right."""
    ax.set_axis_off()
    ax.set_ylim(len(table[0]) - 1.4, -0.6)
    for column, right in zip(table, np.cumsum(widths) / sum(widths), strict=True):
        style: dict[str, Any] = {"ha": "right", "fontsize": size}
        ax.text(right, 1.01, column[0], va="bottom", transform=ax.transAxes, **style)
        for place, text in enumerate(column[1:]):
            ax.text(right, place, text, va="center", transform=ax.get_yaxis_transform(), **style)


def _bars(ax: Axes, places: np.ndarray, values: np.ndarray, horizontal: bool) -> np.ndarray:
    """Draws bars from zero where values are finite; returns where they are."""
    finite = np.isfinite(values)
    if horizontal:
        ax.barh(places[finite], values[finite], height=0.7, color="tab:blue")
        ax.axvline(0, color="0.3", linewidth=0.6)
        for place in places[~finite]:
            ax.text(0, place, " none", va="center", fontsize=_TEXT - 2, color="0.4")
    else:
        ax.bar(places[finite], values[finite], width=0.8, color="tab:blue")
        ax.axhline(0, color="0.3", linewidth=0.6)
    ax.set_axisbelow(True)
    return finite


def _new_panels(groups: int, definitions: int) -> np.ndarray:
    """Axes (groups, definitions) on a new Figure, of sizes in inches so that no text overlaps."""
    columns = 1 + (groups > 6) + (groups > 18)
    rows = -(-groups // columns)
    across = columns * definitions
    size = (3.0 if columns == 1 else 2.2), 0.9
    grid = grid_of_axes((rows, across), size, (0.75, 0.72), Margins(0.75, 0.1, 0.3, 0.5))
    # Down the first column of groups, then down the next.
    cells = np.concatenate(np.split(grid, columns, axis=1))
    for panel in cells[groups:].ravel():
        panel.remove()
    return cells[:groups]


def _draw_kernels(ax: Axes, channels: np.ndarray, values: np.ndarray) -> None:
    """Draws the credits of the kernels of one convolution."""
    if len(values) <= _MOST_BARS:
        finite = _bars(ax, channels, values, horizontal=False)
        ax.plot(
            channels[~finite], np.zeros((~finite).sum()), "x", color="tab:red", ms=4, clip_on=False
        )
        ax.set_xlim(channels.min() - 0.7, channels.max() + 0.7)
        locator: Any = ax.xaxis.get_major_locator()
        locator.set_params(integer=True)
        ax.set_xlabel("channel", fontsize=_TEXT - 1, labelpad=1)
        return
    finite = np.isfinite(values)
    falling = np.sort(values[finite])[::-1]
    ax.plot(np.arange(1, len(falling) + 1), falling, linewidth=1.2, color="tab:blue")
    text = "kernels, sorted"
    if not finite.all():
        text += f"; {(~finite).sum()} without a credit"
    ax.set_xlabel(text, fontsize=_TEXT - 1, labelpad=1)


def _title(dataset: xr.Dataset, operator: str) -> str:
    """Title of a column: the operator, and how often it agrees with the network."""
    title = OPERATORS.get(operator, operator)
    if "agreement" in dataset:
        share = dataset["agreement"].sel(operator=operator).item()
        title += f"\nagrees: {share:.0%}" if np.isfinite(share) else ""
    return title


def _draw_weights(ax: Axes, weights: np.ndarray, reduction: str, percentile: float | None) -> str:
    """Draws the weights of one input; returns the text about their limit."""
    drawn_as_lines = weights.ndim == 2 and weights.shape[1] <= _MOST_LINES
    if weights.ndim > 1 and not drawn_as_lines:
        limit = draw_map(ax, weights, reduction=reduction, percentile=percentile)[1]
        share = "" if percentile is None else f"{percentile:g}% within "
        return f"{share}\N{PLUS-MINUS SIGN}{limit:.2g}"
    if weights.ndim == 1:
        return f"\N{PLUS-MINUS SIGN}{draw_map(ax, weights)[1]:.2g}"
    low, high = symmetric_limits(weights)
    ax.axhline(0, color="0.4", linewidth=0.5)
    ax.plot(np.arange(len(weights)), weights, linewidth=0.8)
    ax.set_xlim(-0.5, len(weights) - 0.5)
    ax.set_ylim(1.05 * low, 1.05 * high)
    ax.tick_params(labelsize=_TEXT - 2, length=2, pad=1)
    return f"\N{PLUS-MINUS SIGN}{high:.2g}"
