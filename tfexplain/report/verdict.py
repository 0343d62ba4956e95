"""Which explanations can be trusted? Verdicts from saved Datasets alone, by stated thresholds."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tfexplain import metrics
from tfexplain.checks import real
from tfexplain.files import write_atomically
from tfexplain.report.directions import comparable, first_layer

SCHEMA, SCHEMA_VERSION = "tfexplain.verdict", 1
TRUSTWORTHY, NOT_TRUSTWORTHY, UNDECIDED = "trustworthy", "not trustworthy", "undecided"
SENSITIVE, INSENSITIVE, NOT_MEASURED = "sensitive", "insensitive", "not measured"
# Tests that fit on a line, and their heads.
PRINTED = {
    "last_layers": "last layer",
    "class": "class",
    "directions": "directions",
    "flipping": "flipping",
}
_SHORT = {TRUSTWORTHY: "yes", NOT_TRUSTWORTHY: "no", UNDECIDED: "?"}
BOOTSTRAP = f"{metrics.CONFIDENCE:.0%} of the median, by resampling the samples"
# The quantiles of all pairs of vectors that stand for an interval.
PAIRS = (0.05, 0.95)
OF_PAIRS = f"{PAIRS[0]:.0%} to {PAIRS[1]:.0%} of all pairs of vectors"
# |cos| from here on is written by its distance from 1.
FROM_ONE = 0.9
_NAN = math.nan


@dataclass(frozen=True)
class Thresholds:
    """From where on a number counts as insensitive, all settable.

    Attributes:
        last_layers: Median structural similarity of maps before and after the last layer is
            randomised; above it a method is insensitive to the last layer.
        last_layers_rank: The same for the magnitude of the rank correlation, which is used where
            maps have no structural similarity (tables).
        other_class: Median structural similarity of the maps of two classes.
        directions: Median |cos| of the relevance of random outputs at the first layer.
        conservation: Median magnitude of the sum of a map minus the explained output, relative to
            that output; up to it a map is called conserved.
        ssm: Share of the way of SSM from 1 (all maps alike) to the largest possible value, up to
            which maps are called alike.

    Raises:
        ValueError: If one is no number in 0..1.
    """

    last_layers: float = 0.95
    last_layers_rank: float = 0.95
    other_class: float = 0.95
    directions: float = 0.99
    conservation: float = 0.01
    ssm: float = 0.1

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, value in dataclasses.asdict(self).items():
            number = real(name, value, 0)
            if number > 1:
                raise ValueError(f"{name} must be a number in 0..1, received {value!r}.")
            # JSON knows no NumPy numbers.
            object.__setattr__(self, name, number)


@dataclass(frozen=True)
class Cell:
    """One test of one method.

    Attributes:
        word: In plain words: "sensitive", "insensitive", "not measured: <reason>" ...
        value: The number; not a number where nothing was measured.
        low: Lower end of the interval.
        high: Upper end.
        passed: For tests that decide on trust; None for others, and where nothing was measured.
        measure: What the number is.
        interval: What the interval is.
        samples: How many samples count; 0 where pairs of vectors do.
    """

    word: str
    value: float = _NAN
    low: float = _NAN
    high: float = _NAN
    passed: bool | None = None
    measure: str = ""
    interval: str = ""
    samples: int = 0

    @property
    def measured(self) -> bool:
        """Whether there is a number."""
        return not math.isnan(self.value)

    @property
    def text(self) -> str:
        """The number as people read it."""
        return self.text_of(self.value) if self.measured else ""

    def text_of(self, value: float) -> str:
        """Returns a number in the unit of the cell: |cos| near 1 by its distance from 1."""
        if self.measure != COSINE or value < FROM_ONE:
            return f"{value:.3g}"
        return "1" if value >= 1 else f"1-10^-{-math.log10(1 - value):.1f}"


@dataclass(frozen=True)
class Row:
    """What is known of one method.

    Attributes:
        method: Its name.
        trust: "trustworthy" (no test that decides failed), "not trustworthy" (one did) or
            "undecided" (none was measured).
        passed: How many of the tests that decide it passed.
        measured: How many of them were measured.
        cells: Name of a test -> cell.
    """

    method: str
    trust: str
    passed: int
    measured: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Check:
    """One question that is asked of each method.

    Attributes:
        name: In tables and files.
        title: As a heading.
        meaning: For people who did not read the papers.
        part: The audit whose Dataset answers it.
        decides: Whether trust depends on it.
        measure: Function of (Dataset, method, thresholds) that returns the cell.
    """

    name: str
    title: str
    meaning: str
    part: str
    decides: bool
    measure: Callable[[xr.Dataset, str, Thresholds], Cell]


@dataclass(frozen=True)
class Verdict:
    """The verdicts of all methods, the most trustworthy first.

    Attributes:
        rows: Sorted by the number of passed tests, then by those failed, then by pixel flipping.
        thresholds: By which they were made.
        left_out: Method -> why it was not audited at all.
    """

    rows: tuple[Row, ...]
    thresholds: Thresholds
    left_out: Mapping[str, str]

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
                {key: getattr(test, key) for key in ("name", "title", "meaning", "decides")}
                for test in TESTS
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
        """A table: one line for each method, with the tests that decide and flipping, which sorts.

        `!` stands behind a number that fails its test, `-` where nothing was measured.
        """
        if not self.rows:
            return "no method was audited"
        lines = [["method", "trust", "tests", *PRINTED.values()]]
        for row in self.rows:
            cells = [_printed(row.cells[name]) for name in PRINTED]
            lines.append([row.method, _SHORT[row.trust], f"{row.passed}/{row.measured}", *cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            " ".join(f"{text:{width}}" for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


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

    Three tests decide on trust, each with a threshold: whether maps depend on the last layer, on
    the class, and whether the backward pass keeps the directions that it starts from. A method that
    fails one of those that were measured is not trustworthy; one that passes all is, as far as
    these tests can tell. The other tests describe: they have no threshold that fits all models.

    Args:
        datasets: Name of a part -> its Dataset, as `tfexplain.audit` saves them.
        reasons: Part -> method (or "" for all) -> why it was not measured.
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
    rows = []
    for method in methods:
        cells = {test.name: _cell(test, datasets, method, reasons, thresholds) for test in TESTS}
        decided = [cells[t.name].passed for t in TESTS if cells[t.name].passed is not None]
        trust = UNDECIDED
        if decided:
            trust = TRUSTWORTHY if all(decided) else NOT_TRUSTWORTHY
        rows.append(Row(method, trust, sum(decided), len(decided), cells))
    rows.sort(key=_order)
    return Verdict(tuple(rows), thresholds, dict(left_out or {}))


def _order(row: Row) -> tuple:
    area = row.cells["flipping"].value
    failed = row.measured - row.passed
    return (-row.passed, failed, math.isnan(area), 0 if math.isnan(area) else area, row.method)


def _cell(
    test: Check,
    datasets: Mapping[str, xr.Dataset],
    method: str,
    reasons: Mapping[str, Mapping[str, str]],
    thresholds: Thresholds,
) -> Cell:
    dataset = datasets.get(test.part)
    if dataset is not None and method in dataset.analyzer:
        return test.measure(dataset, method, thresholds)
    known = reasons.get(test.part, {})
    reason = known.get(method) or known.get("") or f"the part {test.part} was not run"
    return _missing(reason)


def _missing(reason: str) -> Cell:
    return Cell(f"{NOT_MEASURED}: {reason}")


def _plain(cell: Cell) -> dict[str, Any]:
    values = dataclasses.asdict(cell)
    nothing = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
    return values | dict.fromkeys(nothing)


# --- the numbers ---------------------------------------------------------------------------------

SSIM, RANK, COSINE = "structural similarity", "|rank correlation|", "|cos|"


def _decided(values: np.ndarray, measure: str, threshold: float) -> Cell:
    """The cell of a similarity of maps, high for methods that are insensitive."""
    middle, low, high = map(float, metrics.median_interval(values))
    if math.isnan(middle):
        return _missing("maps are constant or not finite")
    passed = not middle > threshold
    word = SENSITIVE if passed else INSENSITIVE
    count = int(np.isfinite(values).sum())
    return Cell(word, middle, low, high, passed, measure, BOOTSTRAP, count)


def _last_layers(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    # Steps go from the last layer to the first.
    last = dataset.isel(step=0).sel(analyzer=method)
    if not np.isnan(last["ssim"]).all():
        return _decided(last["ssim"].values, SSIM, thresholds.last_layers)
    ranks = np.abs(last["spearman"].values)
    return _decided(ranks, RANK, thresholds.last_layers_rank)


def _other_class(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    scores = dataset["ssim"].sel(analyzer=method).mean("draw").values
    return _decided(scores, SSIM, thresholds.other_class)


def _directions(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    dataset = comparable(dataset.sel(analyzer=[method]))
    name = first_layer(dataset, method)
    if name is None:
        return _missing("no layer has directions to compare: nothing arrives, or one channel only")
    quantile = dataset["quantile"].isel(start=0).sel(analyzer=method, layer=name)
    middle, low, high = (float(quantile.sel(q=q)) for q in (0.5, *PAIRS))
    passed = not middle > thresholds.directions
    word = SENSITIVE if passed else INSENSITIVE
    count = int(dataset["count"].isel(start=0).sel(analyzer=method, layer=name).sum())
    interval = f"{OF_PAIRS} ({count} at {name})"
    return Cell(word, middle, low, high, passed, COSINE, interval)


def _among(dataset: xr.Dataset, method: str, variable: str, unit: str) -> Cell:
    """The cell of a number that is compared with that of the other methods."""
    values = dataset[variable].sel(analyzer=method).values
    middle, low, high = map(float, metrics.median_interval(values))
    if math.isnan(middle):
        return _missing("not a number for any sample")
    everyone = dataset[variable].median("sample").values
    everyone = everyone[np.isfinite(everyone)]
    if len(everyone) < 3:
        word = "too few methods to compare with"
    else:
        lower, upper = np.quantile(everyone, [1 / 3, 2 / 3])
        word = "low" if middle < lower else "high" if middle > upper else "middle"
        unit = f"{unit}; thirds of {len(everyone)} methods"
    count = int(np.isfinite(values).sum())
    return Cell(word, middle, low, high, None, unit, BOOTSTRAP, count)


def _stability(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    return _among(dataset, method, "stability", "1 / largest singular value")


def _sensitivity(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    return _among(dataset, method, "sensitivity", "Frobenius norm")


def _ssm(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    one = dataset.sel(analyzer=method)
    values, columns = one["ssm"].values, one["columns"].values
    middle, low, high = map(float, metrics.median_interval(values))
    largest = math.sqrt(float(np.median(columns)))
    if math.isnan(middle) or largest <= 1:
        return _missing("fewer than two outputs have a map with a sum")
    alike = (middle - 1) / (largest - 1) <= thresholds.ssm
    word = "maps of outputs are alike" if alike else "maps of outputs differ"
    measure = f"sensitivity x stability, 1 to {largest:.3g}"
    return Cell(word, middle, low, high, None, measure, BOOTSTRAP, int(np.isfinite(values).sum()))


def _flipping(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    # The probability is defined for every sample; the logit relative to its start is not.
    areas = dataset["auc"].sel(analyzer=method, output="probability").values
    random = dataset["random_auc"].sel(output="probability").values
    middle, low, high = map(float, metrics.median_interval(areas))
    if math.isnan(middle):
        return _missing("maps are not finite")
    # Of each sample the same two orders are compared.
    _, lower, upper = metrics.median_interval(areas - random)
    word = "no better than random"
    if math.isnan(upper):
        word = "one sample is too few to compare with a random order"
    elif upper < 0:
        word = "better than random"
    elif lower > 0:
        word = "worse than random"
    measure = f"area under the probability (random order: {np.median(random):.3g})"
    return Cell(word, middle, low, high, None, measure, BOOTSTRAP, int(np.isfinite(areas).sum()))


def _conservation(dataset: xr.Dataset, method: str, thresholds: Thresholds) -> Cell:
    one = dataset.sel(analyzer=method)
    error, value = one["conservation_error"].values, one["explained"].values
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(error / value)
    relative = np.where(np.isfinite(relative), relative, _NAN)
    middle, low, high = map(float, metrics.median_interval(relative))
    if math.isnan(middle):
        return _missing("the explained outputs are 0, or maps are not finite")
    word = "conserved" if middle <= thresholds.conservation else "not conserved"
    measure = "|sum of the map - output| / |output|"
    count = int(np.isfinite(relative).sum())
    return Cell(word, middle, low, high, None, measure, BOOTSTRAP, count)


TESTS: Sequence[Check] = (
    Check(
        "last_layers",
        "Depends on the last layer",
        "The last layer gets random weights. Maps that stay the same do not show what it learned.",
        "parameter_randomization",
        True,
        _last_layers,
    ),
    Check(
        "class",
        "Depends on the class",
        "The map of one class is compared with that of others. If they are the same, a map cannot "
        "say why the model chose this class.",
        "random_logit",
        True,
        _other_class,
    ),
    Check(
        "directions",
        "Backward pass keeps directions",
        "Random vectors are sent back from the output. Where they are parallel at the first layer "
        "(|cos| = 1), the layers above only scale the map. Locations where a single channel is "
        "active do not count: there they are parallel for any method.",
        "cosine_convergence",
        True,
        _directions,
    ),
    Check(
        "stability",
        "Stability",
        "How little a map changes with the outputs, at worst. A large number is stable; it depends "
        "on the number of pixels, so compare methods of one model only.",
        "spectrum",
        False,
        _stability,
    ),
    Check(
        "sensitivity",
        "Sensitivity",
        "How much the maps of different outputs differ in all. Outputs whose map sums to nearly 0 "
        "make it explode.",
        "spectrum",
        False,
        _sensitivity,
    ),
    Check(
        "ssm",
        "Stability x sensitivity (SSM)",
        "1 if the maps of all outputs are alike, the root of the number of outputs if they share "
        "nothing. Maps that sum to nearly 0 pull it to 1.",
        "spectrum",
        False,
        _ssm,
    ),
    Check(
        "flipping",
        "Faithful by flipping",
        "Pixels are removed, the most relevant first. The faster the probability of the class "
        "falls (small area), the better the map found what the model uses. It depends on what "
        "replaces the pixels.",
        "pixel_flipping",
        False,
        _flipping,
    ),
    Check(
        "conservation",
        "Conservation error",
        "Whether a map adds up to the output that it explains. Gradients and their modifications "
        "are not meant to.",
        "maps",
        False,
        _conservation,
    ),
)
