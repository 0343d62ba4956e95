"""The report of an audit as one HTML file, from saved Datasets alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import xarray as xr
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfexplain import plotting
from tfexplain.references import REFERENCES
from tfexplain.report.directions import comparable
from tfexplain.report.figures import Picture, drawn, small_input, small_map
from tfexplain.report.template import PAGE
from tfexplain.report.verdict import (
    BOOTSTRAP,
    NOT_TRUSTWORTHY,
    OF_PAIRS,
    TESTS,
    TRUSTWORTHY,
    Cell,
    Row,
    Thresholds,
    Verdict,
)

# Outputs of the model beside an example.
MOST_OUTPUTS = 5
# Of maps of random weights: columns, and pixels of the larger side of one.
MOST_COLUMNS, LARGEST_CELL = 8, 112
# |cos| of float32 cannot be told from 1 when it is nearer.
CLOSEST = 1e-8
# Characters of an option of a method.
LONGEST_OPTION = 120
# Samples, below which a number says so.
FEW = 6
_STYLES = {True: "pass", False: "fail", None: ""}

# Part -> (heading, what it shows, keys of papers).
SECTIONS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "maps": (
        "Gallery",
        "Maps of a few samples by each method: red speaks for the explained output, blue against "
        "it, white is zero. Each map has a scale of its own; the number is its limit.",
        (),
    ),
    "parameter_randomization": (
        "Random weights",
        "From the last layer to the first, trained weights are replaced by random ones. The maps "
        "of a method that explains what the model learned change at once; a line that stays near "
        "1 does not depend on the layers that were randomised. Below are the compared maps, of "
        "gradients their magnitudes: first that of the trained model, then those with all layers "
        "down to the named one random.",
        ("adebayo2018sanity", "sixt2020when"),
    ),
    "random_logit": (
        "Maps of other classes",
        "How similar the map of one class is to that of another. A method whose values are near 1 "
        "draws the same map whatever class it is asked for.",
        ("sixt2020when",),
    ),
    "cosine_convergence": (
        "Directions on the way back",
        "Random vectors are sent from the output back to the input. Where their median |cos| comes "
        "close to 1, they have become parallel: whatever the layers above say, the map below keeps "
        "its pattern. The grey line is that of random directions.",
        ("sixt2020when",),
    ),
    "spectrum": (
        "Stability and sensitivity",
        "The singular values of the matrix that sends outputs to maps. A first one that is much "
        "larger than all others means that all outputs have nearly the same map (SSM near 1).",
        ("maess2025uncovering",),
    ),
    "pixel_flipping": (
        "Pixel flipping",
        "The probability of the class while pixels are removed, the most relevant first. The "
        "faster it falls, the better a map found what the model uses; grey is a random order.",
        ("samek2017evaluating", "maess2025uncovering"),
    ),
    "entropy": (
        "Entropy",
        "Over how many places a map is spread. Low is easier to read, not truer.",
        ("samek2017evaluating",),
    ),
    "koopman": (
        "Contribution of the blocks",
        "What each block of the model contributes by itself, whatever the method: the logarithm of "
        "the volume of a linear operator that is fitted to it. Compare blocks by what holds in all "
        "panels.",
        ("liang2022credit",),
    ),
}


def page(datasets: Mapping[str, xr.Dataset], record: Mapping[str, Any], verdict: Verdict) -> str:
    """Returns the report as HTML, one file without scripts or outside requests.

    Args:
        datasets: Part -> Dataset.
        record: See `Audit`.
        verdict: Of the same Datasets.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=_Strict)
    settings = record["settings"]
    title = f"Which explanations of {record['model']} can be trusted?"
    trusted = sum(row.trust == TRUSTWORTHY for row in verdict.rows)
    used = len(record["samples"]["positions"])
    summary = (
        f"{len(verdict.rows)} methods were audited on {used} of {_given(record)} "
        f"samples; {trusted} of them passed every test that decides and could be measured."
    )
    sections = [
        _section(name, datasets[name], record, verdict) for name in SECTIONS if name in datasets
    ]
    units = {test.name: _unit(test.name, verdict.rows) for test in TESTS}
    known = {name: heading for name, (heading, _, _) in SECTIONS.items()}
    return environment.from_string(PAGE).render(
        title=title,
        summary=summary,
        checks=[{**vars(test), "unit": units[test.name]} for test in TESTS],
        rows=[_row(row, units) for row in verdict.rows],
        thresholds=_thresholds(verdict.thresholds),
        intervals=f"interval, {BOOTSTRAP}; for directions {OF_PAIRS}",
        left_out=verdict.left_out,
        sections=sections,
        missing={
            known[name]: reasons[""]
            for name, reasons in record["reasons"].items()
            if "" in reasons and name not in datasets
        },
        methods=[_method(name, datasets, record) for name in verdict.methods],
        settings=_settings(settings, record),
        notes=[*record["notes"], *record["about"].get("notes", [])],
        timed=[
            {
                "name": name,
                "settings": json.dumps(options),
                "seconds": f"{record['seconds'].get(name, 0):.1f}",
            }
            for name, options in record["parts"].items()
            if name in datasets
        ],
        link=_link,
    )


def _given(record: Mapping[str, Any]) -> int:
    """Returns of how many samples those of the audit were drawn."""
    return record["about"].get("given", record["samples"]["given"])


_Strict = jinja2.StrictUndefined


# --- the verdict ---------------------------------------------------------------------------------


def _unit(test: str, rows: Sequence[Row]) -> str:
    """Returns what the numbers of a column are; that of most rows."""
    found = [row.cells[test].measure for row in rows if row.cells[test].measured]
    return max(found, key=found.count) if found else ""


def _row(row: Row, units: Mapping[str, str]) -> dict[str, Any]:
    style = {TRUSTWORTHY: "pass", NOT_TRUSTWORTHY: "fail"}.get(row.trust, "")
    cells = [_cell(test.title, row.cells[test.name], units[test.name]) for test in TESTS]
    return {**vars(row), "style": style, "cells": cells}


def _cell(title: str, cell: Cell, unit: str) -> dict[str, Any]:
    word, _, reason = cell.word.partition(": ")
    details = [reason]
    if cell.measured and np.isfinite([cell.low, cell.high]).all():
        ends = (_number(cell.text_of(end)) for end in (cell.low, cell.high))
        details.append(Markup("[{}, {}]").format(*ends))
        if 0 < cell.samples < FEW:
            details.append(f"of {cell.samples} samples")
    if cell.measured and cell.measure != unit:
        details.append(cell.measure)
    return {
        "title": title,
        "style": _STYLES[cell.passed],
        "text": _number(cell.text),
        "word": word,
        "details": Markup(" ").join(filter(None, details)),
    }


def _number(text: str) -> Markup:
    """Returns a number that stays on one line, with a raised exponent."""
    start, power, exponent = text.partition("^")
    if power:
        return Markup('<span class="number">{}<sup>{}</sup></span>').format(start, exponent)
    return Markup('<span class="number">{}</span>').format(text) if text else Markup("")


def _thresholds(thresholds: Thresholds) -> str:
    return (
        "Insensitive: a median similarity of maps above "
        f"{thresholds.last_layers:g} after the last layer is randomised "
        f"({thresholds.last_layers_rank:g} for rank correlations), above "
        f"{thresholds.other_class:g} for another class, or a median |cos| above "
        f"{thresholds.directions:g} at the first layer."
    )


# --- one section per part ------------------------------------------------------------------------


def _section(
    name: str, dataset: xr.Dataset, record: Mapping[str, Any], verdict: Verdict
) -> dict[str, Any]:
    heading, text, papers = SECTIONS[name]
    pictures, examples, grids = [], [], []
    if name == "maps":
        examples = _examples(dataset, record, verdict.methods)
    else:
        pictures = _PICTURES[name](_for_figures(dataset, verdict.methods))
    if name == "parameter_randomization" and "relevance" in dataset:
        grids = _grids(dataset, record, verdict.methods)
    notes = _NOTES[name](record) if name in _NOTES else []
    notes += [note for note in str(dataset.attrs.get("notes", "")).splitlines() if note]
    notes += [picture for picture in pictures if isinstance(picture, str)]
    return {
        "name": name,
        "title": heading,
        "text": text,
        "papers": [key for key in papers if key in REFERENCES],
        "notes": notes,
        "examples": examples,
        "grids": grids,
        "pictures": [picture for picture in pictures if not isinstance(picture, str)],
        "reasons": {k: v for k, v in record["reasons"].get(name, {}).items() if k},
    }


def _sorted(dataset: xr.Dataset, methods: Sequence[str]) -> xr.Dataset:
    """Returns a Dataset with its methods in the order of the verdict."""
    if "analyzer" not in dataset.coords:
        return dataset
    known = set(dataset.analyzer.values.tolist())
    return dataset.sel(analyzer=[name for name in methods if name in known])


def _for_figures(dataset: xr.Dataset, methods: Sequence[str]) -> xr.Dataset:
    """Returns a Dataset in the order of the verdict, its methods named as matplotlib reads them."""
    found = _sorted(dataset, methods)
    if "analyzer" not in found.coords:
        return found
    # What is between two dollars would be a formula.
    names = [str(name).replace("$", r"\$") for name in found.analyzer.values]
    return found.assign_coords(analyzer=names)


def _examples(
    dataset: xr.Dataset, record: Mapping[str, Any], methods: Sequence[str]
) -> list[dict[str, Any]]:
    dataset = _sorted(dataset, methods)
    if dataset["input"].ndim - 1 > 3:
        return []
    classes = record["about"].get("classes", {})
    found = []
    for place, position in enumerate(dataset.example.values.tolist()):
        one = dataset.isel(example=place)
        if "channel" in one.dims:
            one = one.transpose(..., "channel")
        target = int(dataset["target"].values[position])
        outputs = dataset["output"].values[position]
        best = np.argsort(-outputs)[:MOST_OUTPUTS]
        names = ", ".join(f"{_class(classes, index)}: {outputs[index]:.3g}" for index in best)
        shown = one["pixels" if "pixels" in one else "input"]
        pictures = [Picture(small_input(shown.values), "the input", "input")]
        for name in dataset.analyzer.values.tolist():
            relevance = one["relevance"].sel(analyzer=name).values
            if not np.isfinite(relevance).all():
                continue
            source, limit = small_map(relevance)
            caption = f"{name} \N{PLUS-MINUS SIGN}{limit:.2g}"
            pictures.append(Picture(source, f"map by {name}", caption))
        found.append(
            {
                "title": f"Sample {_sample(record, position)}: explained is "
                f"{_class(classes, target)}",
                "text": f"The model's largest outputs: {names}.",
                "pictures": pictures,
            }
        )
    return found


def _grids(
    dataset: xr.Dataset, record: Mapping[str, Any], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns, for each kept sample, rows of small maps: a column per randomised layer."""
    maps = _sorted(dataset, methods)["relevance"]
    # Of deep networks some columns, with the first and the last.
    steps = np.linspace(0, maps.sizes["map_step"] - 1, min(maps.sizes["map_step"], MOST_COLUMNS))
    maps = maps.isel(map_step=np.unique(steps.round().astype(int)))
    found = []
    for one in maps.transpose("kept", "analyzer", "map_step", ...):
        rows = [
            {"name": str(row.analyzer.item()), "maps": [_small_cell(map) for map in row]}
            for row in one
        ]
        title = f"Sample {_sample(record, one.kept.item())}"
        columns = [str(step) for step in one.map_step.values]
        found.append({"title": title, "columns": columns, "rows": rows})
    return found


def _small_cell(map: xr.DataArray) -> Picture | None:
    """Returns a map of a cascade; None if it is not finite."""
    values = map.values
    if not np.isfinite(values).all():
        return None
    source, limit = small_map(values[..., None] if values.ndim == 2 else values, LARGEST_CELL)
    alt = f"map by {map.analyzer.item()}, {map.map_step.item()}"
    return Picture(source, alt, f"\N{PLUS-MINUS SIGN}{limit:.2g}")


def _sample(record: Mapping[str, Any], position: int) -> str:
    """Returns the place of an audited sample in x, and its name where there is one."""
    place = record["samples"]["positions"][position]
    names = record["about"].get("names")
    return f"{place} ({names[place]})" if names else str(place)


def _of_patterns(record: Mapping[str, Any]) -> list[str]:
    """Returns what a reader has to know of methods that are fitted."""
    analyzers = record["settings"]["analyzers"]
    names = [name for name, found in analyzers.items() if "patterns" in found["options"]]
    if not names:
        return []
    return [
        f"{', '.join(names)}: patterns stay as they were fitted to the trained model, so that of "
        "these methods only the weights, where they use them, become random."
    ]


def _of_outputs(record: Mapping[str, Any]) -> list[str]:
    """Says that outputs are not probabilities, where that could be expected."""
    first = next(iter(record["settings"]["analyzers"].values()))
    if first["options"].get("output_activation") == "keep":
        return []
    return ["Outputs are values before a last softmax or sigmoid, which methods leave out."]


_NOTES: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "maps": _of_outputs,
    "parameter_randomization": _of_patterns,
}


def _class(classes: Mapping[str, str], index: int) -> str:
    name = classes.get(str(index))
    return f"output {index}" if name is None else f"{name} (output {index})"


def _of_randomization(dataset: xr.Dataset) -> list[Picture | str]:
    similarity = "spearman" if np.isnan(dataset["ssim"]).all() else "ssim"
    title = "Rank correlation" if similarity == "spearman" else "Structural similarity"
    return [
        drawn(
            lambda: plotting.randomization_curves(dataset, similarity, ax=_axes(dataset)),
            f"{title} of the maps as weights become random",
            f"{title} with the maps of the trained model, layer by layer from the last.",
        )
    ]


def _of_convergence(dataset: xr.Dataset) -> list[Picture | str]:
    shown = comparable(dataset)
    dims = ("analyzer", "start", "bin")
    alike = (shown["count"].sum(dims) == 0) & (dataset["count"].sum(dims) > 0)
    caption = "From the output (left) towards the input (right); 1-10^-3 means 0.999. What is "
    caption += "nearer to 1 than float32 can tell is drawn at 1-10^-8. Locations where all vectors "
    caption += "lie in one channel do not count."
    if alike.any():
        names = ", ".join(map(str, dataset.layer.values[alike.values]))
        caption += f" They do so nearly everywhere at: {names}."
    return [
        drawn(
            lambda: plotting.convergence_curves(
                shown, logarithmic=True, closest=CLOSEST, ax=_axes(shown)
            ),
            "Median |cos| over the layers",
            caption,
        )
    ]


def _axes(dataset: xr.Dataset) -> Axes:
    """Returns axes that are high enough for a legend with a line per method."""
    height = max(3.6, 0.6 + 0.17 * dataset.sizes["analyzer"])
    return Figure(figsize=(8.4, height), layout="constrained").subplots()


def _alone(draw: Callable[[xr.Dataset], Any], alt: str, caption: str) -> Callable:
    """Returns what makes the only picture of a section."""
    return lambda dataset: [drawn(lambda: draw(dataset), alt, caption)]


_PICTURES: Mapping[str, Callable[[xr.Dataset], list[Picture | str]]] = {
    "parameter_randomization": _of_randomization,
    "random_logit": _alone(
        plotting.random_logit_boxes,
        "Structural similarity of the maps of two classes",
        "1: the same map.",
    ),
    "cosine_convergence": _of_convergence,
    "spectrum": _alone(
        lambda dataset: plotting.singular_values(dataset, ax=_axes(dataset)),
        "Singular values of each method",
        "Medians over the samples.",
    ),
    "pixel_flipping": _alone(
        lambda dataset: plotting.pixel_flipping_curves(dataset, "probability", ax=_axes(dataset)),
        "Probability of the class as pixels are removed",
        "Behind each name the median area under its curves; small is good.",
    ),
    "entropy": _alone(
        plotting.entropy_boxes, "Entropy of the maps", "In nats; the line is the largest possible."
    ),
    "koopman": _alone(
        plotting.block_credits, "Credit of each block", "The first block is at the top."
    ),
}


# --- methods and settings ------------------------------------------------------------------------


def _method(
    name: str, datasets: Mapping[str, xr.Dataset], record: Mapping[str, Any]
) -> dict[str, Any]:
    about = record["methods"][name]
    rows: Mapping[str, Any] = {}
    if "maps" in datasets:
        rows = json.loads(datasets["maps"].attrs["assignment"])
    options = record["settings"]["analyzers"][name]["options"]
    return {
        "name": name,
        "summary": about["summary"],
        "papers": [key for key in about["references"] if key in REFERENCES],
        "options": ", ".join(f"{key}={_shortened(value)}" for key, value in options.items()),
        "rows": rows.get(name, []),
    }


def _shortened(value: Any) -> str:
    """Returns an option; of arrays the first numbers."""
    text = str(value)
    return text if len(text) <= LONGEST_OPTION else f"{text[:LONGEST_OPTION]} ..."


def _settings(settings: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    hardware = record["hardware"]
    found = {
        "Command": record["about"].get("command", ""),
        "Data": record["about"].get("data", ""),
        "Preset": settings["preset"],
        "Seed": str(settings["seed"]),
        "Samples": f"{len(record['samples']['positions'])} of {_given(record)}, "
        f"in batches of {settings['batch_size']}",
        "Explained": record.get("explained", ""),
        "Versions": ", ".join(f"{k} {v}" for k, v in settings["versions"].items()),
        "Hardware": f"{hardware['system']}, {hardware['processor']}, {hardware['cpus']} CPUs"
        + "".join(f", {gpu}" for gpu in hardware["gpus"]),
        "Time": f"{sum(record['seconds'].values()):.0f} seconds",
    }
    return {name: text for name, text in found.items() if text}


def _link(key: str) -> Markup:
    """Returns a reference, linked to where it can be read."""
    reference = REFERENCES[key]
    kind, _, identifier = reference.identifier.partition(":")
    places = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
    text = f"{reference.authors} ({reference.year}): {reference.title}."
    if kind in places:
        return Markup('<a href="{}">{}</a>').format(places[kind] + identifier, text)
    return Markup("{} {}").format(text, reference.identifier)
