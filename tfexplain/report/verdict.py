"""Which explanations can be trusted? Verdicts from saved Datasets alone, by stated thresholds."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from tfexplain import tables
from tfexplain.audits.judging import Cell, Check, Thresholds, missing
from tfexplain.audits.registry import all_checks
from tfexplain.files import write_atomically

SCHEMA, SCHEMA_VERSION = "tfexplain.verdict", 1
TRUSTWORTHY, NOT_TRUSTWORTHY, UNDECIDED = "trustworthy", "not trustworthy", "undecided"
_SHORT = {TRUSTWORTHY: "yes", NOT_TRUSTWORTHY: "no", UNDECIDED: "?"}


@dataclass(frozen=True)
class Row:
    """What is known of one method.

    Attributes:
        method: Its name.
        trust: "trustworthy" (no check that decides failed), "not trustworthy" (one did) or
            "undecided" (none was measured).
        passed: How many of the checks that decide it passed.
        measured: How many of them were measured.
        cells: Name of a check -> cell.
    """

    method: str
    trust: str
    passed: int
    measured: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Verdict:
    """The verdicts of all methods, the most trustworthy first.

    Attributes:
        rows: Sorted by the number of passed checks, then by those failed, then by the checks that
            break ties.
        thresholds: By which they were made.
        left_out: Method -> why it was not audited at all.
        checks: What was asked, those that decide first; readers of the page and of the JSON
            know them as tests.
    """

    rows: tuple[Row, ...]
    thresholds: Thresholds
    left_out: Mapping[str, str]
    checks: tuple[Check, ...]

    def __getitem__(self, method: str) -> Row:
        """Returns the row of a method.

        Raises:
            KeyError: If the method was not audited.
        """
        for row in self.rows:
            if row.method == method:
                return row
        why = f": {self.left_out[method]}" if method in self.left_out else ""
        raise KeyError(f"{method} was not audited{why}. Audited: {', '.join(self.methods)}.")

    @property
    def methods(self) -> list[str]:
        """Names of the audited methods, the most trustworthy first."""
        return [row.method for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdicts as JSON-able data.

        Returns:
            `schema` ("tfexplain.verdict") and `schema_version` (1; it grows when a key changes its
            meaning or goes); `thresholds` (name -> number); `tests`, a list of {`name`, `title`,
            `meaning`, `decides`}; `methods`, a list in the order of trust of {`method`, `trust`
            ("trustworthy", "not trustworthy" or "undecided"), `passed`, `measured` (numbers of
            tests that decide), `tests`: name -> {`word`, `value`, `low`, `high`, `passed`,
            `measure`, `interval`, `samples`}}; `left_out` (method -> reason). What is not known is
            null.
        """
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "thresholds": dataclasses.asdict(self.thresholds),
            "tests": [
                {key: getattr(check, key) for key in ("name", "title", "meaning", "decides")}
                for check in self.checks
            ],
            "methods": [
                {
                    "method": row.method,
                    "trust": row.trust,
                    "passed": row.passed,
                    "measured": row.measured,
                    "tests": {name: _plain(cell) for name, cell in row.cells.items()},
                }
                for row in self.rows
            ],
            "left_out": dict(self.left_out),
        }

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """Returns `to_dict` as text, and writes it.

        Args:
            path: File to write; None for none.
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        if path is not None:
            write_atomically(
                pathlib.Path(path), lambda name: name.write_text(text, encoding="utf-8")
            )
        return text

    def __str__(self) -> str:
        """A table: one line for each method, with the checks that have a head.

        `!` stands behind a number that fails its test, `-` where nothing was measured.
        """
        if not self.rows:
            return "no method was audited"
        printed = [check for check in self.checks if check.head]
        lines = [["method", "trust", "tests", *(check.head for check in printed)]]
        for row in self.rows:
            cells = [_printed(row.cells[check.name]) for check in printed]
            lines.append([row.method, _SHORT[row.trust], f"{row.passed}/{row.measured}", *cells])
        return tables.columns(lines, separator=" ")


def _printed(cell: Cell) -> str:
    return f"{cell.text}!" if cell.passed is False else cell.text or "-"


def judge(
    datasets: Mapping[str, xr.Dataset],
    *,
    reasons: Mapping[str, Mapping[str, str]] | None = None,
    left_out: Mapping[str, str] | None = None,
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Makes verdicts of the Datasets of an audit; nothing is computed by a model.

    The checks are those of the audits in `tfexplain.AUDITS`. Some decide on trust, each with a
    threshold. A method that fails one of those that were measured is not trustworthy; one that
    passes all is, as far as these checks can tell. The others describe: they have no threshold that
    fits all models.

    Args:
        datasets: Name of an audit -> its Dataset, as `tfexplain.audit` saves them.
        reasons: Audit -> method (or "" for all) -> why it was not measured.
        left_out: Method -> why it was not audited.
        thresholds: None for those of `Thresholds`.

    Returns:
        `Verdict`.

    Example:
        >>> judge({}).methods
        []
    """
    thresholds = thresholds or Thresholds()
    reasons = reasons or {}
    methods: dict[str, None] = {}
    for dataset in datasets.values():
        if "analyzer" in dataset.coords:
            methods |= dict.fromkeys(str(name) for name in dataset.analyzer.values)
    asked = all_checks()
    rows = []
    for method in methods:
        cells = {}
        for check, audit in asked:
            answer, known = datasets.get(audit.name), reasons.get(audit.name, {})
            if answer is not None and method in answer.coords.get("analyzer", ()):
                cells[check.name] = _measured(check, answer, method, thresholds)
            else:
                reason = known.get(method) or known.get("")
                cells[check.name] = missing(reason or f"the audit {audit.name} was not run")
        passed = [cells[check.name].passed for check, _ in asked if check.decides]
        decided = [value for value in passed if value is not None]
        trust = UNDECIDED
        if decided:
            trust = TRUSTWORTHY if all(decided) else NOT_TRUSTWORTHY
        rows.append(Row(method, trust, sum(decided), len(decided), cells))
    checks = tuple(check for check, _ in asked)
    rows.sort(key=lambda row: _order(row, checks))
    return Verdict(tuple(rows), thresholds, dict(left_out or {}), checks)


def _measured(check: Check, dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    """Returns the cell of a check; one that fails takes nothing else away."""
    try:
        cell: Any = check.measure(dataset, method, thresholds)
    except Exception as error:  # checks of a user's own may raise anything
        return missing(f"{type(error).__name__}: {error}")
    if not isinstance(cell, Cell):
        return missing(f"the check returned {type(cell).__name__}, expected a Cell")
    return cell


def _order(row: Row, checks: tuple[Check, ...]) -> tuple:
    values = [row.cells[check.name].value for check in checks if check.breaks_ties]
    # What was not measured comes last.
    ties = [(math.isnan(value), 0 if math.isnan(value) else value) for value in values]
    return (-row.passed, row.measured - row.passed, *ties, row.method)


def _plain(cell: Cell) -> dict[str, Any]:
    values = dataclasses.asdict(cell)
    nothing = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
    return values | dict.fromkeys(nothing)
