"""The report of an audit as one HTML file, from saved Datasets alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import xarray as xr
from markupsafe import Markup

from tfexplain.audits.base import Audit
from tfexplain.audits.drawings import Drawing, Gallery, Grid, Labels, Tile
from tfexplain.audits.judging import Cell, Check, Thresholds, bootstrap
from tfexplain.audits.registry import in_reports
from tfexplain.references import REFERENCES
from tfexplain.report.figures import Picture, drawn, small_input, small_map
from tfexplain.report.verdict import NOT_TRUSTWORTHY, TRUSTWORTHY, Row, Verdict

TEMPLATE = "report.html.jinja"
# Pixels of the larger side of a map in a grid.
LARGEST_CELL = 112
# Characters of an option of a method.
LONGEST_OPTION = 120
# Samples, below which a number says so.
FEW = 6
_STYLES = {True: "pass", False: "fail", None: ""}


def page(datasets: Mapping[str, xr.Dataset], record: Mapping[str, Any], verdict: Verdict) -> str:
    """Returns the report as HTML, one file without scripts or outside requests.

    Args:
        datasets: Audit -> Dataset.
        record: See `Outcome`.
        verdict: The verdict of the same Datasets.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfexplain.report", "."),
        autoescape=True,
        trim_blocks=True,
        undefined=_Strict,
    )
    settings = record["settings"]
    title = f"Which explanations of {record['model']} can be trusted?"
    trusted = sum(row.trust == TRUSTWORTHY for row in verdict.rows)
    used = len(record["samples"]["positions"])
    summary = (
        f"{len(verdict.rows)} methods were audited on {used} of {_num_given(record)} "
        f"samples; {trusted} of them passed every test that decides and could be measured."
    )
    audits, labels = in_reports(), _labels(record)
    sections = [
        _section(audit, datasets[name], record, verdict.methods, labels)
        for name, audit in audits.items()
        if name in datasets
    ]
    units = {check.name: _unit(check.name, verdict.rows) for check in verdict.checks}
    return environment.get_template(TEMPLATE).render(
        title=title,
        summary=summary,
        checks=[{**vars(check), "unit": units[check.name]} for check in verdict.checks],
        rows=[_row(row, verdict.checks, units) for row in verdict.rows],
        thresholds=_thresholds(verdict.thresholds),
        intervals="; ".join(_intervals(verdict.checks)),
        left_out=verdict.left_out,
        sections=sections,
        missing={
            audits[name].title: reasons[""]
            for name, reasons in record["reasons"].items()
            if "" in reasons and name not in datasets and name in audits
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
            for name, options in record["audits"].items()
            if name in datasets
        ],
        link=_link,
    )


def _num_given(record: Mapping[str, Any]) -> int:
    """Returns of how many samples those of the audit were drawn."""
    return record["about"].get("given", record["samples"]["given"])


_Strict = jinja2.StrictUndefined


# --- the verdict ---------------------------------------------------------------------------------


def _unit(check: str, rows: Sequence[Row]) -> str:
    """Returns what the numbers of a column are; that of most rows."""
    measures = [row.cells[check].measure for row in rows if row.cells[check].measured]
    return max(measures, key=measures.count) if measures else ""


def _intervals(checks: Sequence[Check]) -> list[str]:
    """Returns what the intervals of the columns are."""
    own = [
        f"for {check.head or check.title} {check.interval}" for check in checks if check.interval
    ]
    return [f"interval, {bootstrap()}", *own]


def _row(row: Row, checks: Sequence[Check], units: Mapping[str, str]) -> dict[str, Any]:
    style = {TRUSTWORTHY: "pass", NOT_TRUSTWORTHY: "fail"}.get(row.trust, "")
    cells = [_cell(check.title, row.cells[check.name], units[check.name]) for check in checks]
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


# --- one section per audit -----------------------------------------------------------------------


def _labels(record: Mapping[str, Any]) -> Labels:
    about = record["about"]
    positions = record["samples"]["positions"]
    return Labels(positions, about.get("names", ()), about.get("classes", {}))


def _section(
    audit: type[Audit],
    dataset: xr.Dataset,
    record: Mapping[str, Any],
    methods: Sequence[str],
    labels: Labels,
) -> dict[str, Any]:
    dataset = _sorted(dataset, methods)
    named = _for_figures(dataset)
    failed: list[str] = []
    pieces = _tried(failed, "what it shows", _listed, audit.draw, dataset, labels) or []
    told = _tried(failed, "its notes", _listed, audit.page_notes, dataset) or []
    drawings = [
        drawn(functools.partial(piece.draw, named), piece.alt, piece.caption)
        for piece in pieces
        if isinstance(piece, Drawing)
    ]
    galleries = [
        _tried(failed, piece.title, _gallery, piece)
        for piece in pieces
        if isinstance(piece, Gallery)
    ]
    grids = [
        _tried(failed, piece.title, _grid, piece) for piece in pieces if isinstance(piece, Grid)
    ]
    stored = [note for note in str(dataset.attrs.get("notes", "")).splitlines() if note]
    failed += [picture for picture in drawings if isinstance(picture, str)]
    return {
        "name": audit.name,
        "title": audit.title,
        "text": audit.caption or audit.question,
        "papers": [key for key in audit.references if key in REFERENCES],
        "notes": [*told, *stored, *failed],
        "galleries": [gallery for gallery in galleries if gallery],
        "grids": [grid for grid in grids if grid],
        "pictures": [picture for picture in drawings if not isinstance(picture, str)],
        "reasons": {k: v for k, v in record["reasons"].get(audit.name, {}).items() if k},
    }


def _tried(failed: list[str], what: str, make: Callable[..., Any], *given: Any) -> Any:
    """Returns what a function makes; a failure is noted and takes nothing else away.

    Args:
        failed: To which a note is added.
        what: What is made, for the note.
        make: The function.
        *given: Its arguments.

    Returns:
        The result, or None.
    """
    try:
        return make(*given)
    except Exception as error:  # audits of a user's own may raise anything
        failed.append(f"Not shown: {what} ({type(error).__name__}: {error}).")
        return None


def _listed(function: Callable[..., Iterable[Any]], *given: Any) -> list[Any]:
    return list(function(*given))


def _sorted(dataset: xr.Dataset, methods: Sequence[str]) -> xr.Dataset:
    """Returns a Dataset with its methods in the order of the verdict."""
    if "analyzer" not in dataset.coords:
        return dataset
    known = set(dataset.analyzer.values.tolist())
    return dataset.sel(analyzer=[name for name in methods if name in known])


def _for_figures(dataset: xr.Dataset) -> xr.Dataset:
    """Returns a Dataset whose methods are named as matplotlib reads them."""
    if "analyzer" not in dataset.coords:
        return dataset
    # What is between two dollars would be a formula.
    names = [str(name).replace("$", r"\$") for name in dataset.analyzer.values]
    return dataset.assign_coords(analyzer=names)


def _gallery(gallery: Gallery) -> dict[str, Any]:
    pictures = [_small(tile) for tile in gallery.tiles]
    return {"title": gallery.title, "text": gallery.text, "pictures": pictures}


def _grid(grid: Grid) -> dict[str, Any]:
    rows = [
        {"name": name, "maps": [tile and _small(tile, LARGEST_CELL) for tile in tiles]}
        for name, tiles in grid.rows.items()
    ]
    return {"title": grid.title, "columns": grid.columns, "rows": rows}


def _small(tile: Tile, *largest: int) -> Picture:
    """Returns a small picture; below a map stands the limit of its colours."""
    if not tile.is_map:
        return Picture(small_input(tile.values), tile.alt, tile.caption)
    # Pictures of maps have an axis of channels; a row of numbers is drawn as it is.
    flat = tile.values.ndim == 2 and not tile.has_channels
    values = tile.values[..., None] if flat else tile.values
    source, limit = small_map(values, *largest)
    caption = f"{tile.caption} \N{PLUS-MINUS SIGN}{limit:.2g}".strip()
    return Picture(source, tile.alt, caption)


# --- methods and settings ------------------------------------------------------------------------


def _method(
    name: str, datasets: Mapping[str, xr.Dataset], record: Mapping[str, Any]
) -> dict[str, Any]:
    about = record["methods"][name]
    rows: Mapping[str, Any] = {}
    assignments = [d.attrs["assignment"] for d in datasets.values() if "assignment" in d.attrs]
    if assignments:
        rows = json.loads(assignments[0])
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
    texts = {
        "Command": record["about"].get("command", ""),
        "Data": record["about"].get("data", ""),
        "Preset": settings["preset"],
        "Seed": str(settings["seed"]),
        "Samples": f"{len(record['samples']['positions'])} of {_num_given(record)}, "
        f"in batches of {settings['batch_size']}",
        "Explained": record.get("explained", ""),
        "Versions": ", ".join(f"{k} {v}" for k, v in settings["versions"].items()),
        "Hardware": f"{hardware['system']}, {hardware['processor']}, {hardware['cpus']} CPUs"
        + "".join(f", {gpu}" for gpu in hardware["gpus"]),
        "Time": f"{sum(record['seconds'].values()):.0f} seconds",
    }
    return {name: text for name, text in texts.items() if text}


def _link(key: str) -> Markup:
    """Returns a reference, linked to where it can be read."""
    reference = REFERENCES[key]
    kind, _, identifier = reference.identifier.partition(":")
    places = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
    text = f"{reference.authors} ({reference.year}): {reference.title}."
    if kind in places:
        return Markup('<a href="{}">{}</a>').format(places[kind] + identifier, text)
    return Markup("{} {}").format(text, reference.identifier)
